import json

import pytest

from benchmarks.scale import SIZES

pytestmark = pytest.mark.any_family

CLASSES = ['mmyolo_ema', 'mmdet', 'mmengine', 'torch', 'timm', 'ema-pytorch']


@pytest.mark.slow
def test_tables_numbers_and_picture(tool, config_file, tmp_path, capsys):
    tool('benchmark_ema', '--models', config_file, '--rounds', 1, '--json', 'out/steps.json')
    said = capsys.readouterr().out
    assert 'They compute the same average' in said
    assert '\x1b' not in said, 'plain text in a pipe'
    for name in (*CLASSES, 'limit'):
        assert f'| {name} ' in said
    content = json.loads((tmp_path / 'out' / 'steps.json').read_text())
    assert content['measured'] == 'steps'
    assert content['packages']['torch']
    assert [result['update_buffers'] for result in content['results']] == [True, False]
    costs = content['results'][0]['costs']
    assert list(costs) == [*CLASSES, 'bare _foreach_lerp_', 'limit']
    assert 0 < costs['mmyolo_ema']['step']['lower'] <= costs['mmyolo_ema']['step']['median']
    assert costs['mmyolo_ema']['step_memory']['peak'] < 1024
    assert (tmp_path / 'out' / 'steps.png').exists()


def test_growth(tool, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(SIZES, 'tensors', [(2, 100), (4, 100)])
    monkeypatch.setitem(SIZES, 'weights', [(2, 100), (2, 10**15)])
    tool('benchmark_ema', '--scale', '--rounds', 1, '--json', 'scale.json')
    assert 'left out for want of memory: 1,000,000,000 million weights' in capsys.readouterr().out
    points = json.loads((tmp_path / 'scale.json').read_text())['results']
    assert [point['tensors'] for point in points['tensors']] == [2, 4]
    assert len(points['weights']) == 1
    assert (tmp_path / 'scale.png').exists()


def test_several_averages(tool, config_file, tmp_path, capsys):
    tool('benchmark_ema', '--averages', '--models', config_file, '--rounds', 1, '--json', 'averages.json')
    assert 'x bare _foreach_lerp_, at most 4.2: ' in capsys.readouterr().out
    (result,) = json.loads((tmp_path / 'averages.json').read_text())['results']
    assert result['steps']['4 averages']['median'] > 0


def test_training_step(tool, config_file, tmp_path, monkeypatch):
    monkeypatch.setattr('benchmarks.training.IMAGE_SIZE', 64)
    tool('benchmark_ema', '--training-step', '--models', config_file, '--rounds', 1, '--json', 'step.json')
    results = json.loads((tmp_path / 'step.json').read_text())['results']
    assert results['update']['median'] > 0
    assert not (tmp_path / 'step.png').exists()


@pytest.mark.parametrize(
    ('arguments', 'expected'),
    [
        (('--models', 'resnet'), 'resnet cannot be built: resnet is no config, and none of rtmdet-tiny'),
        (('--rounds', '0'), 'argument --rounds: must be 1 to 20000000, but got 0'),
        (('--rounds', 'many'), "invalid count value: 'many'"),
        (('--json', 'numbers.txt'), '--json must name a .json file, but got numbers.txt'),
        (('--scale', '--training-run'), 'not allowed with argument --scale'),
    ],
)
def test_bad_arguments_are_refused(refused, arguments, expected):
    assert expected in refused('benchmark_ema', *arguments)


@pytest.mark.parametrize('name', ['old.json', 'old.png'])
def test_results_are_not_overwritten(refused, tmp_path, name):
    (tmp_path / name).write_text('old')
    assert f'{name} exists' in refused('benchmark_ema', '--json', 'old.json')


def test_folder_that_cannot_be_made_is_refused(refused, tmp_path):
    (tmp_path / 'file').write_text('in the way')
    assert 'file is not a folder' in refused('benchmark_ema', '--json', 'file/new/steps.json')


def test_class_that_computes_something_else_stops_the_benchmark(refused, monkeypatch):
    monkeypatch.setattr('benchmarks.agreement._TOLERANCE', -1)
    assert 'does not compute the same average' in refused('benchmark_ema')


def test_gpu_that_is_not_there_is_refused(refused, monkeypatch):
    monkeypatch.setattr('torch.cuda.is_available', lambda: False)
    assert 'torch finds no GPU here' in refused('benchmark_ema', '--device', 'cuda')
