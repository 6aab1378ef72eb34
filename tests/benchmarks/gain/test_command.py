import json
import sys
from pathlib import Path

import pytest

from benchmarks.gain import __main__ as command
from benchmarks.gain import training
from benchmarks.gain.training import Case
from tests.helpers import forget_runs

RESULTS = dict(
    updates=[20],
    apart=dict(raw=[0.2], by_name=[0.1]),
    mAP={name: [0.5] for name in ('raw', 'ours', 'mmdet', 'mmengine', 'by_name')},
)


@pytest.fixture
def gain(monkeypatch, tmp_path):
    """Returns a function that runs the command in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, 'argv', ['gain', *map(str, arguments)])
        forget_runs()
        command.main()

    return run


@pytest.fixture
def trained(monkeypatch):
    """Trains nothing; returns the cases that would have been trained."""
    cases = []
    monkeypatch.setattr(command, 'train', lambda case, *_: cases.append(case) or RESULTS)
    return cases


def test_call_goes_on_where_another_was_stopped(gain, trained, monkeypatch):
    def stopped(case, *_):
        if case.rate == 'flat':
            raise KeyboardInterrupt
        return RESULTS

    monkeypatch.setattr(command, 'train', stopped)
    with pytest.raises(KeyboardInterrupt):
        gain('--data', 'nuclei', '--seeds', 0, 1)
    assert [path.name for path in Path('work_dirs/gain').iterdir()] == ['nuclei-decayed-0.json']
    monkeypatch.setattr(command, 'train', lambda case, *_: trained.append(case) or RESULTS)
    gain('--data', 'nuclei', '--seeds', 0, 1)
    assert trained == [Case('nuclei', 'flat', 0), Case('nuclei', 'decayed', 1), Case('nuclei', 'flat', 1)]


def test_finished_call_trains_nothing_and_shows_the_same(gain, trained, capsys):
    gain('--data', 'nuclei', '--seeds', 3)
    said = capsys.readouterr().out
    gain('--data', 'nuclei', '--seeds', 3)
    assert len(trained) == 2
    assert said.endswith(capsys.readouterr().out)


@pytest.mark.parametrize(
    ('arguments', 'expected'),
    [
        (('--data', 'coco'), "invalid choice: 'coco'"),
        (('--seeds', 'many'), "invalid int value: 'many'"),
    ],
)
def test_bad_arguments_are_refused(gain, capsys, arguments, expected):
    with pytest.raises(SystemExit) as ended:
        gain(*arguments)
    assert ended.value.code == 2
    assert expected in capsys.readouterr().err


def test_missing_package_is_named_before_a_training(gain, trained, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'sklearn.datasets', None)
    with pytest.raises(SystemExit):
        gain('--seeds', 0)
    assert 'scikit-learn is not installed: pip install scikit-learn' in capsys.readouterr().err
    assert trained == []


@pytest.mark.slow
def test_training_is_measured(gain, monkeypatch, capsys):
    config = training._config

    def short(*arguments):
        cfg = config(*arguments)
        cfg.train_cfg.update(max_epochs=4, val_interval=1)
        return cfg

    monkeypatch.setattr(training, '_config', short)
    monkeypatch.setattr(command, 'RATES', ('flat',))
    gain('--data', 'nuclei', '--seeds', 0)
    assert '| nuclei | flat          | 1     | 80 ' in capsys.readouterr().out
    run = json.loads(Path('work_dirs/gain/nuclei-flat-0.json').read_text())
    assert run['updates'] == [20, 40, 60, 80]
    # With MMDetection's 0.0002 and 2000, 80 updates average nothing; MMEngine's 0.0002 keeps the first weights.
    raw, mmdet, mmengine = (run['mAP'][name][-1] for name in ('raw', 'mmdet', 'mmengine'))
    assert raw > 0.05
    assert mmdet == pytest.approx(raw, abs=0.02)
    assert mmengine < 0.01
    assert 0 < run['apart']['by_name'][-1] < run['apart']['raw'][-1]
    assert Path('work_dirs/gain/gain.png').exists()
