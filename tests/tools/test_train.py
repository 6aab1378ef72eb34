import json
import shutil

import pytest
import torch
from mmengine.config import Config

from mmyolo_ema import checkpoint


def losses(work_dir):
    lines = [
        json.loads(line) for file in work_dir.glob('*/vis_data/scalars.json') for line in file.read_text().splitlines()
    ]
    return [line['epoch'] for line in lines if 'loss' in line]


@pytest.mark.slow
def test_trains_into_the_config_names_folder_and_resumes(tool, config_file, tmp_path):
    options = ['--cfg-options', 'default_hooks.checkpoint.interval=1', 'default_hooks.logger.interval=1']
    tool('train', config_file, *options, 'train_cfg.max_epochs=1', 'train_cfg.val_interval=5')
    work_dir = tmp_path / 'work_dirs' / 'small'
    first = checkpoint.read(work_dir / 'epoch_1.pth')
    assert first['ema_state_dict']['steps'] == 2
    tool('train', config_file, '--resume', *options)
    assert checkpoint.read(work_dir / 'epoch_2.pth')['ema_state_dict']['steps'] == 4
    assert sorted(losses(work_dir)) == [1, 1, 2, 2]


@pytest.mark.slow
def test_work_dir_and_checkpoint_to_resume_can_be_named(tool, config_file, tmp_path):
    tool('train', config_file, '--work-dir', 'one', '--cfg-options', 'default_hooks.checkpoint.interval=1')
    tool('train', config_file, '--work-dir', 'two', '--resume', 'one/epoch_1.pth')
    one, two = (checkpoint.read(tmp_path / name / 'epoch_2.pth') for name in ('one', 'two'))
    assert all(torch.equal(value, two['state_dict'][name]) for name, value in one['state_dict'].items())


@pytest.mark.slow
def test_learning_rate_is_scaled_to_the_batch_size(tool, config_file, tmp_path):
    tool(
        'train',
        config_file,
        '--auto-scale-lr',
        '--work-dir',
        'run',
        '--cfg-options',
        'auto_scale_lr.base_batch_size=16',
        'train_cfg.max_epochs=1',
        'param_scheduler=[]',
        'train_cfg.val_interval=5',
        'default_hooks.checkpoint.interval=1',
    )
    optimizer = checkpoint.read(tmp_path / 'run' / 'epoch_1.pth')['optimizer']
    assert optimizer['param_groups'][0]['lr'] == pytest.approx(0.001)


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [
        (['nowhere.py'], 'there is no config nowhere.py'),
        (
            ['small.py', '--cfg-options', 'custom_hooks.0.gama=25'],
            'EMAHook has no option gama (did you mean gamma?): it takes ema_type, strict_load, '
            'begin_iter, begin_epoch, evaluate_on_ema, evaluate_on_origin, skip_nonfinite, mean_age, averages, '
            'evaluate, and its average ExpMomentumEMA takes momentum, gamma, interval, device, update_buffers, '
            'include, exclude, dtype, save_dtype',
        ),
        (
            ['small.py', '--cfg-options', 'custom_hooks.0.decay=0.95', 'custom_hooks.0.gama=2'],
            'EMAHook has no option decay (momentum is 1 - decay: write momentum=0.05) and no option gama (did you '
            'mean gamma',
        ),
        (
            ['small.py', '--cfg-options', 'custom_hooks.0.mean_age=None', 'custom_hooks.0.momentum=20'],
            'the config cannot be trained: momentum must be a number above 0 and below 1, but got 20',
        ),
        (['small.py', '--cfg-options', 'custom_hooks.0.mean_age=4%'], 'name either that or these'),
        (
            ['small.py', '--cfg-options', 'custom_hooks.0.begin_iter=2', 'custom_hooks.0.begin_epoch=3'],
            'begin_epoch=3 and begin_iter=2 exclude each other',
        ),
        (
            ['small.py', '--cfg-options', 'custom_hooks.0.type=mmyolo_ema.EmaHook'],
            'there is no mmyolo_ema.EmaHook: did you mean mmyolo_ema.EMAHook?',
        ),
        (
            ['small.py', '--cfg-options', 'custom_hooks.0.ema_type=mmyolo_ema.ExpMomentumEma'],
            'there is no mmyolo_ema.ExpMomentumEma: did you mean mmyolo_ema.ExpMomentumEMA?',
        ),
        ([], 'the following arguments are required: config'),
        (['small.py', '--no-such-flag'], 'unrecognized arguments: --no-such-flag'),
        (['small.py', '--cfg-options', 'resume=nowhere.pth'], 'there is no checkpoint nowhere.pth'),
        (['small.py', '--resume', 'nowhere.pth'], 'there is no checkpoint nowhere.pth'),
        (['small.py', '--resume', 'cut.pth'], 'cut.pth is not a checkpoint, or is truncated'),
        (
            ['small.py', '--resume', 'weights.pth'],
            'cannot start from weights.pth: to resume, it would have to hold meta, message_hub, optimizer',
        ),
        (
            ['small.py', '--resume', 'epoch_9.pth', '--cfg-options', 'model.bbox_head.num_classes=3'],
            "cannot start from epoch_9.pth: its weights are of another model than the config's",
        ),
        (['small.py', '--resume', 'file:///epoch_9.pth'], 'there is no checkpoint file:/epoch_9.pth'),
        (['small.py', '--cfg-options', 'load_from=5'], 'cannot start from 5: '),
        (['small.py', '--cfg-options', 'train_cfg.max_epochs', '5'], '--cfg-options takes KEY=VALUE, but got '),
        (['small.py', '--cfg-options', 'x=[1,2'], '--cfg-options takes KEY=VALUE, but got x=[1,2'),
        (['small.py', '--work-dir', 'epoch_9.pth/run'], 'epoch_9.pth is not a folder'),
        (['small.py', '--work-dir', ''], '--work-dir is empty: name a folder'),
        (
            ['small.py', '--launcher', 'slurm'],
            '--launcher slurm is for a process that it started: SLURM_PROCID is not set',
        ),
        (
            ['small.py', '--auto-scale-lr', '--cfg-options', 'auto_scale_lr=None'],
            '--auto-scale-lr needs the batch size',
        ),
        (['stopping.py'], 'the config stopping.py cannot be read: SystemExit'),
        (['small.py', '--cfg-options', 'load_from=nowhere.pth'], 'there is no checkpoint nowhere.pth'),
        (['small.py', '--cfg-options', 'custom_hooks.5.momentum=1'], 'the config small.py cannot be read'),
        (['broken.py'], "the config broken.py cannot be read: NameError: name 'momentum' is not defined"),
        (['unparsable.py'], 'the config unparsable.py cannot be read: SyntaxError'),
        (['empty.py'], 'the config empty.py defines no model'),
        (['small.py', '--cfg-options', 'train_dataloader=None'], 'the config small.py defines no train_dataloader'),
        (['two.py'], 'the config has two EMAHooks in custom_hooks'),
        (
            ['snapshots.py'],
            "the config cannot be trained: SnapshotHook.__init__() got an unexpected keyword argument 'ever'",
        ),
        (['cut.pth'], 'the config cut.pth cannot be read'),
        (['small.py', '--auto-scale-lr', '--cfg-options', 'auto_scale_lr={}'], '--auto-scale-lr needs the batch size'),
    ],
)
def test_bad_input_gets_one_line(refused, config_file, checkpoint_file, tmp_path, arguments, said):
    (tmp_path / 'cut.pth').write_bytes(checkpoint_file.read_bytes()[:1000])
    torch.save(dict(state_dict={}), tmp_path / 'weights.pth')
    (tmp_path / 'broken.py').write_text('ema = dict(momentum=momentum)')
    (tmp_path / 'unparsable.py').write_text('model = dict(')
    (tmp_path / 'two.py').write_text("_base_ = 'small.py'\ncustom_hooks = _base_.custom_hooks * 2")
    snapshots = "custom_hooks = [*_base_.custom_hooks, dict(type='mmyolo_ema.SnapshotHook', ever=5)]"
    (tmp_path / 'snapshots.py').write_text(f"_base_ = 'small.py'\n{snapshots}")
    (tmp_path / 'stopping.py').write_text('raise SystemExit(0)')
    (tmp_path / 'empty.py').write_text('')
    assert said in refused('train', *arguments)


@pytest.mark.parametrize(
    ('options', 'said'),
    [
        (dict(exclude=5), 'exclude must be a list of regular expressions'),
        (dict(include=['(']), "include: '(' is no regular expression"),
        (dict(dtype='int8'), "dtype must be one of 'float32', 'float64', but got 'int8'"),
        (dict(device='nowhere'), "device='nowhere' cannot hold the average: "),
        (dict(update_buffers=5), 'update_buffers must be True or False, but got 5'),
        (dict(strict_load=5), 'strict_load must be True or False, but got 5'),
        (dict(averages=dict(short=dict(mean_age='much'))), "mean_age='much' of the EMAHook: "),
        (dict(averages=dict(short=dict(momentum=0.1, exclude=5))), 'exclude must be a list of regular expressions'),
    ],
    ids=str,
)
def test_option_of_a_wrong_form_gets_one_line(refused, config_file, options, said):
    cfg = Config.fromfile(config_file)
    cfg.custom_hooks[0].update(options)
    cfg.dump(config_file)
    assert refused('train', config_file).startswith(f'error: the config cannot be trained: {said}')


@pytest.mark.slow
@pytest.mark.parametrize(
    ('options', 'said'),
    [
        (['custom_hooks.0.exclude=[nothing]'], "exclude=['nothing']: 'nothing' matches no tensor of the model"),
        (
            ['custom_hooks.0.strict_load=True', 'load_from=epoch_9.pth', 'model.bbox_head.num_classes=3'],
            'strict_load is set, but the checkpoint does not fit the model',
        ),
        (['custom_hooks.0.begin_epoch=7'], 'self.begin_epoch should be smaller'),
    ],
)
def test_what_a_hook_refuses_for_the_model_gets_one_line(tool, config_file, checkpoint_file, capsys, options, said):
    with pytest.raises(SystemExit) as stopped:
        tool('train', config_file, '--cfg-options', *options)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith('error: ')]
    assert stopped.value.code == 2
    assert said in line


@pytest.mark.slow
def test_program_in_a_checkpoint_is_not_run(refused, tool, config_file, checkpoint_file, tmp_path):
    content = checkpoint.read(checkpoint_file)
    content['meta']['config'] = "import os\nos.mkdir('harm')"
    torch.save(content, checkpoint_file)
    assert "it holds a text under meta['config']" in refused('train', config_file, '--resume', checkpoint_file)
    options = ['--cfg-options', 'train_cfg.val_interval=5', f'load_from={checkpoint_file}']
    tool('train', config_file, *options)
    for command in ('extract', 'publish'):
        tool('ema_checkpoint', command, checkpoint_file, '-o', f'{command}.pth')
        (written,) = tmp_path.glob(f'{command}*.pth')
        assert 'config' not in checkpoint.read(written)['meta']
    assert not (tmp_path / 'harm').exists()


HUB, INFO = ('message_hub',), ('message_hub', 'runtime_info')


@pytest.mark.parametrize(
    ('place', 'value', 'said'),
    [
        (('meta', 'seed'), 'text', "its meta.seed is 'text', but must be an integer from 0"),
        (('meta', 'seed'), -1, 'its meta.seed is -1'),
        (('meta', 'iter'), -1, 'its meta.iter is -1, but must be a count'),
        ((*HUB, 'log_scalars'), 5, 'its message_hub.log_scalars is 5, but must be a dictionary with names'),
        ((*HUB, 'runtime_info'), None, 'its message_hub.runtime_info is None'),
        ((*HUB, 'resumed_keys', 'iter'), False, 'its message_hub.resumed_keys.iter is False'),
        ((*INFO, 'best_score'), 'text', "its message_hub.runtime_info.best_score is 'text', but must be a number"),
        ((*INFO, 'ema_history'), 5, 'its message_hub.runtime_info.ema_history is 5'),
        ((*INFO, 'ema_history'), dict(metric='', metrics=[[0]], state=[]), 'but must be metric, metrics and state'),
        (
            (*INFO, 'ema_history'),
            dict(metric='', metrics=[], state=[], further=dict(short=5)),
            'must be metric, metrics',
        ),
        (('optimizer', 'param_groups'), 5, "the state of its optimizer or schedulers does not fit the config's"),
        (('optimizer', 'state', 0), dict(step=torch.tensor(1.0)), "does not fit the config's: KeyError"),
        (('optimizer', 'param_groups', 0, 'lr'), 'text', "does not fit the config's: TypeError"),
        (('param_schedulers',), 5, "the state of its optimizer or schedulers does not fit the config's: TypeError"),
        (('param_schedulers', 0, 'step'), 5, 'step of a scheduler is 5 in the place of <bound method'),
        (('param_schedulers', 0, 'last_step'), 'text', "last_step of a scheduler is 'text' in the place of"),
    ],
)
def test_checkpoint_that_a_run_cannot_go_on_from_is_refused(refused, config_file, checkpoint_file, place, value, said):
    content = part = checkpoint.read(checkpoint_file)
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    torch.save(content, checkpoint_file)
    line = refused('train', config_file, '--resume', checkpoint_file)
    assert line.startswith(f'error: cannot start from {checkpoint_file}: ')
    assert said in line


@pytest.mark.parametrize('name', ['last_checkpoint', 'small.py'])
def test_run_in_a_folder_with_a_link_where_mmengine_writes_is_refused(refused, config_file, tmp_path, name):
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / name).symlink_to(tmp_path / 'mine')
    assert f'run/{name} is a link, and would be written through' in refused('train', config_file, '--work-dir', 'run')


@pytest.mark.skipif(torch.cuda.is_available(), reason='trains so on the GPU here')
def test_mixed_precision_without_a_gpu_is_refused(refused, config_file):
    assert '--amp needs a GPU, and there is none' in refused('train', config_file, '--amp')


@pytest.fixture
def work_dir(tmp_path, checkpoint_file):
    """Returns the work directory of a run that was killed while it saved its last checkpoint."""
    path = tmp_path / 'work_dirs' / 'small'
    path.mkdir(parents=True)
    (path / 'epoch_1.pth').write_bytes(checkpoint_file.read_bytes()[:1000])
    (path / 'last_checkpoint').write_text(str(path / 'epoch_1.pth'))
    return path


def test_latest_checkpoint_that_is_cut_off_is_named(refused, config_file, work_dir):
    said = refused('train', config_file, '--resume')
    assert f'no checkpoint in work_dirs/small is complete; {work_dir}/epoch_1.pth truncated or missing' in said


@pytest.mark.slow
def test_resumes_from_the_last_whole_checkpoint_and_says_so(tool, config_file, work_dir, checkpoint_file, capsys):
    shutil.copy(checkpoint_file, work_dir / 'epoch_0.pth')
    tool('train', config_file, '--resume')
    said = capsys.readouterr().out
    assert f'resuming from {work_dir}/epoch_0.pth, the last complete checkpoint: ' in said
    assert f'{work_dir}/epoch_1.pth truncated or missing' in said
    assert 'nothing is left to train: the checkpoint is of epoch 4, and max_epochs is 2' in said


@pytest.mark.slow
def test_nothing_to_resume_from_is_said(tool, config_file, capsys):
    tool('train', config_file, '--resume')
    assert 'there is no checkpoint in work_dirs/small to resume from: training starts anew' in capsys.readouterr().out
