"""A further average in a real checkpoint, as the tools test, show and export it."""

import json

import pytest

from mmyolo_ema import checkpoint
from tests.helpers import assert_equal

pytestmark = pytest.mark.slow


@pytest.fixture
def path(trained_with_further):
    return trained_with_further


def measured(work_dir):
    """Returns the metrics of the last validation or test that is logged there."""
    (log,) = [*work_dir.glob('*/vis_data/scalars.json')] or work_dir.glob('*/*.json')
    return next(
        {key: value for key, value in json.loads(line).items() if key.startswith('coco/')}
        for line in log.read_text().splitlines()
        if 'coco/bbox_mAP' in line
    )


def test_file_is_tested_with_the_metrics_that_the_training_measured(tool, config_file, path, capsys, tmp_path):
    tool('test', config_file, path, '--weights', 'long', '--work-dir', 'run', '--cfg-options', 'log_level=INFO')
    assert "testing: weights of the average 'long' of 48 updates\n" in capsys.readouterr().out
    in_training, of_file = measured(path.parent), measured(tmp_path / 'run')
    assert of_file['coco/bbox_mAP'] > 0
    assert of_file == {key: in_training[f'{key}_long'] for key in of_file}
    assert of_file != {key: in_training[key] for key in of_file}
    tool('ema_checkpoint', 'extract', path, '--weights', 'long', '-o', 'long.pth')
    tool('test', config_file, 'long.pth', '--work-dir', 'extracted', '--cfg-options', 'log_level=INFO')
    assert "testing: weights of the average 'long' of 48 updates\n" in capsys.readouterr().out
    assert measured(tmp_path / 'extracted') == of_file


def test_extracted_file_holds_those_weights_and_what_made_them(tool, path, capsys):
    tool('ema_checkpoint', 'extract', path, '--weights', 'long', '-o', 'long.pth')
    content, extracted = checkpoint.read(path), checkpoint.read('long.pth')
    stored = content['ema_averages']['long']
    assert_equal(
        {f'module.{name}': value for name, value in extracted['state_dict'].items()},
        {name: value for name, value in stored.items() if name != 'steps'},
    )
    assert extracted['meta']['mmyolo_ema'] == dict(content['meta']['mmyolo_ema']['averages']['long'], weights='long')
    assert tool('ema_checkpoint', 'compare', path, 'long.pth', '--weights', 'long') == 0
    assert 'epoch_8.pth (long), long.pth (long)' in capsys.readouterr().out
    assert tool('ema_checkpoint', 'compare', path, 'long.pth') == 1
    tool('ema_checkpoint', 'publish', path, '--weights', 'long', '-o', 'published')
    tool('ema_checkpoint', 'publish', 'long.pth', '-o', 'again')
    again, published = (line.split('  ')[0] for line in capsys.readouterr().out.splitlines()[::-1][:3:2])
    assert checkpoint.compare(published, again).are_equal


def test_inspection_has_a_row_for_it(tool, path, capsys):
    tool('ema_checkpoint', 'extract', path, '--weights', 'long', '-o', 'long.pth')
    capsys.readouterr()
    assert tool('ema_checkpoint', 'inspect', path, 'long.pth', '--json') == 0
    whole, extracted = json.loads(capsys.readouterr().out)
    assert [weights['kind'] for weights in whole['weights']] == ['ema', 'raw', 'long']
    ema, raw, further = whole['weights']
    about = checkpoint.read(path)['meta']['mmyolo_ema']
    assert (further['key'], further['updates']) == ('ema_averages.long', 48)
    assert further['mean_age'] == about['averages']['long']['mean_age'] > ema['mean_age'] == about['mean_age']
    assert (raw['updates'], raw['mean_age']) == (None, None)
    assert further['size'] == ema['size'] > 2e6
    assert whole['unmatched'] == []
    assert extracted['average']['mean_age'] == further['mean_age']
    assert extracted['average']['horizon'] == 5
    assert tool('ema_checkpoint', 'inspect', path) == 0
    assert f'| long           | ema_averages.long |      48 | {further["mean_age"]:8.1f} |' in capsys.readouterr().out


@pytest.mark.parametrize(
    'arguments',
    [['test', 'small.py'], ['ema_checkpoint', 'extract', '-o', 'a.pth'], ['ema_checkpoint', 'publish', '-o', 'a']],
)
def test_unknown_name_is_refused_with_those_that_there_are(refused, config_file, path, arguments):
    said = refused(*arguments, path, '--weights', 'lang')
    assert "it holds the ema, raw, long weights only, and none called 'lang'" in said
