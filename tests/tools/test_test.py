import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.fileio import load

from mmyolo_ema import checkpoint
from tests.helpers import ROOT


def drop(config_file, *keys):
    cfg = Config.fromfile(config_file)
    for key in keys:
        cfg.pop(key)
    cfg.dump(config_file)


def scores(path):
    return torch.cat([sample['pred_instances']['scores'] for sample in load(path)])


def same_scores(one, other):
    assert len(scores(one)) > 0
    return torch.equal(scores(one), scores(other))


@pytest.mark.slow
def test_averaged_weights_are_tested_by_default_and_raw_ones_on_request(tool, config_file, checkpoint_file, tmp_path):
    tool('test', config_file, checkpoint_file, '--out', 'default.pkl', '--work-dir', 'run')
    tool('test', config_file, checkpoint_file, '--weights', 'ema', '--out', 'ema.pkl')
    tool('test', config_file, checkpoint_file, '--weights', 'raw', '--out', 'raw.pkl', '--work-dir', 'run_raw')
    assert same_scores('default.pkl', 'ema.pkl')
    assert not same_scores('raw.pkl', 'ema.pkl')
    content = checkpoint.read(checkpoint_file)
    torch.save(dict(state_dict=checkpoint.raw_weights(content)), 'only_raw.pth')
    tool('test', config_file, 'only_raw.pth', '--out', 'only_raw.pkl')
    assert same_scores('raw.pkl', 'only_raw.pkl')
    metrics = json.loads(next((tmp_path / 'run').glob('*/*.json')).read_text())
    assert 'coco/bbox_mAP' in metrics
    assert metrics['weights'] == 'EMA weights of 8 updates'
    metrics = json.loads(next((tmp_path / 'run_raw').glob('*/*.json')).read_text())
    assert metrics['weights'] == 'raw weights'


def test_file_without_average_is_tested_and_said_so(tool, config_file, checkpoint_file, capsys):
    content = checkpoint.read(checkpoint_file)
    torch.save(dict(state_dict=content['state_dict']), 'plain.pth')
    tool('test', config_file, 'plain.pth', '--cfg-options', 'log_level=INFO')
    assert "testing: the file's only weights\n" in capsys.readouterr().out


def test_extracted_raw_weights_are_not_taken_for_averaged_ones(tool, refused, config_file, checkpoint_file, capsys):
    checkpoint.extract(checkpoint_file, Path('raw.pth'), 'raw')
    tool('test', config_file, 'raw.pth', '--cfg-options', 'log_level=INFO', '--work-dir', 'run')
    assert "testing: the file's only weights (raw)\n" in capsys.readouterr().out
    assert "it holds the raw weights only, and none called 'ema'" in refused(
        'test', config_file, 'raw.pth', '--weights', 'ema'
    )


@pytest.mark.slow
def test_file_without_counts_of_batches_gives_the_same(tool, config_file, checkpoint_file, capsys):
    content = checkpoint.read(checkpoint_file)
    for name in [name for name in content['state_dict'] if name.endswith('num_batches_tracked')]:
        del content['state_dict'][name]
    torch.save(content, 'without.pth')
    for path in (checkpoint_file, 'without.pth'):
        tool('test', config_file, path, '--out', f'{Path(path).stem}.pkl')
    assert same_scores('epoch_9.pkl', 'without.pkl')
    assert 'without.pth: the file lacks 76 num_batches_tracked of BatchNorm' in capsys.readouterr().out


@pytest.mark.slow
def test_file_of_a_plain_detector_is_tested_as_a_semi_supervised_one(tool, config_file, checkpoint_file):
    tool('test', config_file, checkpoint_file, '--out', 'plain.pkl')
    cfg = Config.fromfile(config_file)
    cfg.model = dict(
        type='SemiBaseDetector',
        detector=cfg.model,
        data_preprocessor=cfg.model.data_preprocessor,
        semi_train_cfg=dict(freeze_teacher=True),
        semi_test_cfg=dict(predict_on='teacher'),
    )
    cfg.dump(config_file)
    tool('test', config_file, checkpoint_file, '--out', 'semi.pkl')
    assert same_scores('plain.pkl', 'semi.pkl')


@pytest.mark.slow
def test_predictions_are_drawn(tool, config_file, checkpoint_file, tmp_path):
    tool(
        'test',
        config_file,
        checkpoint_file,
        '--show-dir',
        'shown',
        '--work-dir',
        'run',
        '--cfg-options',
        'default_hooks.visualization.score_thr=0.0',
    )
    assert len(list((tmp_path / 'run').glob('*/shown/*.jpg'))) == 8


@pytest.mark.slow
@pytest.mark.parametrize('own', [True, False])
def test_flips_are_averaged_with_tta(tool, config_file, checkpoint_file, own):
    if not own:
        drop(config_file, 'tta_model', 'tta_pipeline')
    tool('test', config_file, checkpoint_file, '--out', 'plain.pkl')
    for weights in ('ema', 'raw'):
        tool('test', config_file, checkpoint_file, '--tta', '--weights', weights, '--out', f'{weights}.pkl')
    assert not same_scores('plain.pkl', 'ema.pkl')
    assert not same_scores('raw.pkl', 'ema.pkl')
    assert scores('ema.pkl').max().item() == pytest.approx(scores('plain.pkl').max().item(), rel=0.2)


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [
        (['nowhere.py', 'epoch_9.pth'], 'there is no config nowhere.py'),
        (['small.py'], 'the following arguments are required: checkpoint'),
        (['small.py', 'nowhere.pth'], 'there is no checkpoint nowhere.pth'),
        (['small.py', 'small.py'], 'small.py is not a checkpoint'),
        (['small.py', 'epoch_9.pth', '--cfg-options', 'test_evaluator=None'], 'small.py defines no test_evaluator'),
        (['small.py', 'no_ema.pth', '--weights', 'raw'], 'no_ema.pth cannot be tested with this config: it holds one '),
        (['small.py', 'epoch_9.pth', '--weights', 'swa'], "it holds the ema, raw weights only, and none called 'swa'"),
        (
            ['small.py', 'epoch_9.pth', '--cfg-options', 'model.bbox_head.num_classes=3'],
            'of another shape or kind: bbox_head.rtm_cls.0.weight (checkpoint (1, 32, 1, 1), model (3, 32, 1, 1))',
        ),
        (['small.py', 'epoch_9.pth', '--cfg-options', 'model.neck.num_csp_blocks=2'], 'missing: neck.'),
        (['small.py', 'epoch_9.pth', '--out', 'results.json'], '--out must name a .pkl file, but got results.json'),
        (['small.py', 'epoch_9.pth', '--out', 'nowhere/results.pkl'], 'there is no folder nowhere'),
        (['small.py', 'epoch_9.pth', '--cfg-options', 'model.type=Nothing'], 'model cannot be built: KeyError'),
        (['small.py', 'meta.pth'], 'meta.pth is refused, and nothing in it was run'),
        (['small.py', 'list.pth', '--weights', 'raw'], 'it holds one set of weights only'),
        (
            ['small.py', 'epoch_9.pth', '--out', 'taken.pkl'],
            'taken.pkl exists: name another file for --out, or remove it',
        ),
    ],
)
def test_bad_input_gets_one_line(refused, config_file, checkpoint_file, tmp_path, arguments, said):
    torch.save(dict(state_dict=checkpoint.read(checkpoint_file)['state_dict']), tmp_path / 'no_ema.pth')
    content = checkpoint.read(checkpoint_file)
    torch.save(dict(content, ema_state_dict=[1]), tmp_path / 'list.pth')
    torch.save(
        dict(state_dict={name: value.to('meta') for name, value in content['state_dict'].items()}),
        tmp_path / 'meta.pth',
    )
    (tmp_path / 'taken.pkl').write_text('')
    assert said in refused('test', *arguments)


def test_drawing_needs_its_hook(refused, config_file, checkpoint_file):
    cfg = Config.fromfile(config_file)
    cfg.default_hooks.pop('visualization')
    cfg.dump(config_file)
    said = refused('test', config_file, checkpoint_file, '--show-dir', 'shown')
    assert '--show and --show-dir: they need a default_hooks.visualization' in said


@pytest.mark.slow
@pytest.mark.any_family
def test_bad_input_to_the_real_command(config_file):
    done = subprocess.run(
        [sys.executable, ROOT / 'tools' / 'test.py', config_file, 'nowhere.pth'],
        capture_output=True,
        text=True,
        cwd=config_file.parent,
    )
    assert (done.returncode, done.stderr) == (2, 'error: there is no checkpoint nowhere.pth\n')


@pytest.mark.parametrize(('tool_name', 'flag'), [('test', []), ('train', ['--resume'])])
def test_damaged_weights_are_refused(refused, config_file, checkpoint_file, tool_name, flag):
    content = bytearray(checkpoint_file.read_bytes())
    weight = checkpoint.read(checkpoint_file)['state_dict']['backbone.stem.0.conv.weight']
    content[content.index(weight.numpy().tobytes()) + 3] ^= 64
    checkpoint_file.write_bytes(content)
    assert 'epoch_9.pth is damaged: the checksum of' in refused(tool_name, config_file, *flag, checkpoint_file)


def test_weights_that_would_run_code_are_refused(refused, config_file, checkpoint_file, tmp_path):

    class Harmful:
        def __reduce__(self):
            return os.mkdir, ('harm',)

    torch.save(dict(state_dict=Harmful()), tmp_path / 'harmful.pth')
    assert 'harmful.pth is refused, and nothing in it was run' in refused('test', config_file, tmp_path / 'harmful.pth')


@pytest.mark.parametrize('arguments', [['--out', 'results.pkl'], ['--work-dir', 'new']])
def test_place_that_cannot_be_written_to_is_refused_before_the_test(
    refused, config_file, checkpoint_file, monkeypatch, arguments
):
    monkeypatch.setattr('os.access', lambda path, mode: False)
    assert 'is not writable' in refused('test', config_file, checkpoint_file, *arguments)
