import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from mmyolo_ema import checkpoint, posthoc
from mmyolo_ema.cli.posthoc import metric_of
from mmyolo_ema.posthoc.evaluation import Evaluation
from tests.helpers import assert_equal

OPTIONS = {'default_hooks.checkpoint.max_keep_ckpts': -1, 'custom_hooks.0.momentum': 0.1, 'custom_hooks.0.gamma': 2}


@pytest.fixture(scope='module')
def trained_run(train_once):
    return train_once(**OPTIONS)


@pytest.fixture
def work_dir(trained_run, config_file, tmp_path):
    """Returns the folder of a run of 8 updates with two checkpoints; config_file is its config."""
    cfg = Config.fromfile(config_file)
    cfg.merge_from_dict(dict(OPTIONS, **{'train_cfg.max_epochs': 4}))
    cfg.dump(config_file)
    return shutil.copytree(trained_run, tmp_path / 'run')


def test_fit_tells_how_well_it_goes(tool, work_dir, capsys):
    capsys.readouterr()
    tool('posthoc_ema', 'fit', work_dir, '--horizon', '5', '2epochs', 'last:50%', '20')
    said = capsys.readouterr().out
    assert '2 checkpoints of updates 4 to 8, 2 in an epoch, Ramp(momentum=0.1, gamma=2, interval=1)' in said
    shown = rows(said)
    assert shown['5'][2] == shown['5'][3], 'the mean age is the wanted one'
    assert 'epoch_4.pth' not in shown
    tool('posthoc_ema', 'fit', work_dir, '--horizon', '5', '--coefficients')
    assert rows(capsys.readouterr().out)['epoch_4.pth'][:2] == ['raw', '8']


@pytest.mark.slow
def test_built_file_is_tested_like_any_other(tool, work_dir, config_file, capsys):
    tool('posthoc_ema', 'build', work_dir, '--horizon', '8', '-o', 'out/a.pth')
    assert capsys.readouterr().out.splitlines()[-1].startswith('out/a.pth  8: reconstruction error ')
    content = torch.load('out/a.pth', weights_only=True)
    posthoc = content['meta']['mmyolo_ema']['posthoc']
    assert posthoc['target'] == '8'
    assert sum(posthoc['coefficients'].values()) == pytest.approx(1)
    assert 0 < posthoc['error'] < 0.5
    tool('ema_checkpoint', 'inspect', 'out/a.pth')
    assert 'average 8, made of the checkpoints of 8 updates with a reconstruction error of' in capsys.readouterr().out
    tool('test', config_file, 'out/a.pth', '--cfg-options', 'log_level=INFO')
    assert 'testing: EMA weights of 8 updates\n' in capsys.readouterr().out


def test_same_average_is_written_from_python(tool, work_dir, config_file):
    bn = ['--bn-batches', '2', '--config', config_file]
    for options in ([], bn):
        tool('posthoc_ema', 'build', work_dir, '--horizon', '4epochs', '-o', 'tool.pth', *options)
        cfg = dict(cfg=Config.fromfile(config_file), bn_batches=2) if options else {}
        posthoc.read_run(work_dir).average('4epochs').write('python.pth', **cfg)
        assert_equal(*(dict(torch.load(path, weights_only=True)) for path in ('tool.pth', 'python.pth')))
        Path('tool.pth').unlink()
        Path('python.pth').unlink()


def test_horizon_of_the_run_gives_its_average(tool, work_dir):
    tool('posthoc_ema', 'build', work_dir, '--horizon', '10', '-o', 'a.pth')
    built, kept = (checkpoint.read(path)['state_dict'] for path in ('a.pth', work_dir / 'epoch_4.pth'))
    assert_equal(dict(built), dict(kept))


def test_horizon_that_is_nearly_raw_for_the_runs_ramp_is_named(tool, config_file, capsys):
    ramp = [
        'custom_hooks.0.mean_age=None',
        'custom_hooks.0.ema_type=mmyolo_ema.ExpMomentumEMA',
        'custom_hooks.0.momentum=0.1',
        'custom_hooks.0.gamma=2000',
    ]
    tool('posthoc_ema', 'plan', config_file, '--iters', '100', '--horizon', '20', 'last:10', '--cfg-options', *ramp)
    said = capsys.readouterr().out
    assert 'warning: nearly the raw weights: 20 (0.0' in said
    assert "They keep the run's gamma, whose ramp takes most of its 100 updates." in said
    tool(
        'posthoc_ema',
        'plan',
        config_file,
        '--iters',
        '100',
        '--horizon',
        '20',
        '--cfg-options',
        *ramp[:3],
        'custom_hooks.0.gamma=2',
    )
    assert 'warning' not in capsys.readouterr().out


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [
        (['fit', 'run/epoch_4.pth'], 'epoch_4.pth is a file: name the work directory of the run'),
        (['fit', 'nowhere'], 'there is no folder nowhere'),
        (['fit', '.'], 'has no checkpoints with an average'),
        (['fit', 'run', '--horizon', 'old'], 'a length of training is written as'),
        (['build', 'run', '-o', 'a.pth'], 'the following arguments are required: --horizon'),
        (['build', 'run', '--horizon', '8', '-o', 'a.safetensors'], '-o must name .pth files, but got a.safetensors'),
        (['build', 'run', '--horizon', '8', '-o', 'small.py'], '-o must name .pth files, but got small.py'),
        (['build', 'run', '--horizon', '8', '-o', 'a.pth', 'b.pth'], '-o names 2 files for 1 --horizon'),
        (['build', 'run', '--horizon', '8', '9', '-o', 'a.pth', 'a.pth'], '-o names a file twice: a.pth a.pth'),
        (
            ['build', 'run', '--horizon', '8', '-o', 'a.pth', '--bn-batches', '2'],
            '--bn-batches and --config go together',
        ),
        (
            ['build', 'run', '--horizon', '8', '-o', 'a.pth', '--bn-batches', '9', '--config', 'small.py'],
            '9 batches are asked for, but an epoch of the train_dataloader has 2',
        ),
        (['plan', 'nowhere.py'], 'there is no config nowhere.py'),
        (['plan', 'small.py', '--cfg-options', 'custom_hooks=[]'], 'has no EMAHook in custom_hooks'),
        (['plan', 'small.py', '--horizon', 'old'], 'a length of training is written as'),
        (['sweep', 'nowhere', 'small.py'], 'there is no folder nowhere'),
        (['sweep', 'run', 'small.py', '--horizons', 'old'], 'a length of training is written as'),
        (['sweep', 'run', 'small.py', '--resamples', '0'], 'argument --resamples: must be 1 to'),
        (['sweep', 'run', 'small.py', '--cfg-options', 'val_evaluator=None'], 'the config defines no val_evaluator'),
        (['sweep', 'run', 'small.py', '--cfg-options', 'model.bbox_head.num_classes=2'], 'bbox_head'),
        (
            ['build', 'run', '--horizon', 'last:2', '8', '-o', 'a.pth', 'b.pth'],
            '50% is the most that is written. Nothing was written; leave it out to write 8',
        ),
        (
            ['build', 'run', '--horizon', '8', '-o', 'run/epoch_2.pth'],
            'run/epoch_2.pth exists: name another file for -o',
        ),
    ],
)
def test_bad_input_gets_one_line(refused, work_dir, capsys, arguments, said):
    capsys.readouterr()
    assert said in refused('posthoc_ema', *arguments)


@pytest.mark.slow
def test_several_averages_are_made_in_one_go(tool, work_dir, config_file):
    tool(
        'posthoc_ema',
        'build',
        work_dir,
        '--horizon',
        '8',
        '10',
        '-o',
        'a.pth',
        'b.pth',
        '--bn-batches',
        '2',
        '--config',
        config_file,
    )
    kept = checkpoint.read(work_dir / 'epoch_4.pth')['state_dict']
    first, second = (checkpoint.read(path)['state_dict'] for path in ('a.pth', 'b.pth'))
    # The second is the run's own, but for the statistics.
    differing = [name for name, value in kept.items() if not torch.equal(second[name], value)]
    assert differing == [name for name in kept if name.endswith(('running_mean', 'running_var'))]
    assert not torch.equal(first['backbone.stem.0.conv.weight'], second['backbone.stem.0.conv.weight'])


def test_plan_tells_what_the_run_will_allow(tool, work_dir, config_file, capsys):
    cfg = Config.fromfile(config_file)
    capsys.readouterr()
    tool('posthoc_ema', 'plan', config_file, '--horizon', '8', '20')
    planned = rows(capsys.readouterr().out)
    tool('posthoc_ema', 'fit', work_dir, '--horizon', '8', '20')
    fitted = rows(capsys.readouterr().out)
    assert [planned[horizon][0] for horizon in ('8', '20')] == [fitted[horizon][0] for horizon in ('8', '20')]
    assert planned['files'][0] == '2'
    assert cfg.default_hooks.checkpoint.interval == 2


def rows(said):
    return {
        line.split('|')[1].strip(): [cell.strip() for cell in line.split('|')[2:-1]]
        for line in said.splitlines()
        if line.startswith('|')
    }


@pytest.fixture
def files(work_dir):
    return {name: work_dir / name for name in ('posthoc_sweep.json', 'posthoc_sweep.png', 'best_posthoc.pth')}


@pytest.mark.slow
def test_sweep_shows_and_writes_the_best(tool, work_dir, config_file, files, capsys):
    capsys.readouterr()
    tool('posthoc_ema', 'sweep', work_dir, config_file, '--horizons', '8', '2', '--resamples', '20')
    said = capsys.readouterr().out
    stored = json.loads(files['posthoc_sweep.json'].read_text())
    shown = {name.removesuffix(' (best)') for name in rows(said)}
    assert {'raw', "the run's EMA", '8'} <= shown
    assert '2' in stored['dropped']
    assert 'left out: 2, whose reconstruction error would be' in said
    assert stored['metric'] == 'coco/bbox_mAP'
    assert 1 / 21 <= stored['comparison']['p_value'] <= 1
    assert [candidate['score'] for candidate in stored['candidates']] == [
        pytest.approx(candidate['metrics']['coco/bbox_mAP'], abs=1e-3) for candidate in stored['candidates']
    ]
    assert all(path.stat().st_size > 0 for path in files.values())
    tool('test', config_file, files['best_posthoc.pth'])


@pytest.mark.slow
def test_broken_off_sweep_goes_on_where_it_was(tool, work_dir, config_file, files, monkeypatch, capsys):
    measure, measured = Evaluation.measure, []

    def stop_at_the_third(self, weights, name):
        measured.append(name)
        if len(measured) == 3:
            raise KeyboardInterrupt
        return measure(self, weights, name)

    monkeypatch.setattr(Evaluation, 'measure', stop_at_the_third)
    arguments = ('posthoc_ema', 'sweep', work_dir, config_file, '--horizons', '8', '9', '--resamples', '20')
    with pytest.raises(KeyboardInterrupt):
        tool(*arguments)
    assert not files['best_posthoc.pth'].exists()
    tool(*arguments)
    assert measured[:2] == ['shipped', 'raw']
    assert measured[2:5] == ['8', '8', '9']
    assert not {'shipped', 'raw'} & set(measured[2:])
    count = len(measured)
    capsys.readouterr()
    tool(*arguments)
    assert len(measured) == count
    assert f'{files["best_posthoc.pth"]} is written anew' in capsys.readouterr().out


def test_file_that_no_sweep_wrote_is_not_replaced(refused, work_dir, config_file, files, capsys):
    files['best_posthoc.pth'].write_bytes(b'mine')
    capsys.readouterr()
    assert 'best_posthoc.pth exists, but' in refused('posthoc_ema', 'sweep', work_dir, config_file)


@pytest.mark.parametrize(
    ('hook', 'named', 'chosen'),
    [
        ({}, None, (None, False)),
        (dict(save_best='auto', rule='less'), None, (None, True)),
        (dict(save_best='coco/bbox_mAP_origin'), None, ('coco/bbox_mAP', False)),
        (dict(save_best='error', rule='less'), None, ('error', True)),
        (dict(save_best='error', rule='less'), 'coco/bbox_mAP', ('coco/bbox_mAP', False)),
        (dict(save_best=['error', 'coco/bbox_mAP'], rule=['less', 'greater']), None, ('error', True)),
        (dict(save_best='loss'), None, ('loss', True)),
    ],
)
def test_best_is_what_the_config_calls_best(hook, named, chosen):
    cfg = Config(dict(default_hooks=dict(checkpoint=hook)))
    assert metric_of(cfg, named) == chosen


def test_plan_knows_what_other_classes_do_to_shared_tensors(tool, config_file, capsys):
    theirs = ['--cfg-options', 'custom_hooks.0.ema_type=mmdet.ExpMomentumEMA', 'custom_hooks.0.momentum=0.1']
    errors = []
    for options in (theirs[:1] + theirs[2:], theirs):
        capsys.readouterr()
        tool('posthoc_ema', 'plan', config_file, '--horizon', '5', *options)
        said = capsys.readouterr().out
        errors.append(float(rows(said)['5'][0].rstrip('%')))
    assert 'averages a tensor once for each of its names' in said
    assert errors[1] != errors[0]


@pytest.mark.slow
@pytest.mark.parametrize('command', ['plan', 'build', 'sweep'])
def test_harmful_teacher_of_a_config_is_not_run(refused, work_dir, config_file, tmp_path, command):

    class Harmful:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / 'harm'),)

    torch.save(dict(state_dict=Harmful()), tmp_path / 'teacher.pth')
    (tmp_path / 'distilled.py').write_text(f"""_base_ = '{config_file.name}'
model = dict(_delete_=True, type='KnowledgeDistillationSingleStageDetector', backbone=_base_.model.backbone,
             neck=_base_.model.neck, bbox_head=_base_.model.bbox_head, data_preprocessor=_base_.model.data_preprocessor,
             teacher_config='small.py', teacher_ckpt='teacher.pth')
""")
    arguments = dict(
        plan=['distilled.py', '--dataset-size', '16'],
        sweep=[work_dir, 'distilled.py'],
        build=[work_dir, '--horizon', '8', '-o', 'a.pth', '--config', 'distilled.py', '--bn-batches', '1'],
    )
    said = refused('posthoc_ema', command, *arguments[command])
    assert 'teacher.pth is refused, and nothing in it was run: it holds posix.mkdir' in said
    assert not (tmp_path / 'harm').exists()
