"""Averages that are shared out among processes: runs, logs and files are those of averages that are not."""

import json

import pytest
from mmengine.config import Config

from mmyolo_ema import checkpoint
from tests.helpers import ROOT, assert_equal, forget_runs, launch, small_config
from tests.hooks.toy import toy_hook, toy_runner

pytestmark = pytest.mark.slow

SEVERAL = dict(
    averages=dict(short=dict(mean_age='20%', exclude=['^norm', 'bias']), long=dict(momentum=0.05, gamma=4)),
    evaluate=['ema', 'raw', 'short'],
)

# A toy in several set-ups, each with whole averages and with shared ones; then detectors by their configs.
PROGRAM = """
import sys
from pathlib import Path
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import FlexibleRunner
from torch import distributed
from mmyolo_ema.cli.runner import build_runner, finish

sys.path.insert(0, sys.argv[1])
import tests.conftest  # saves time
from tests.helpers import assert_equal, copy_of, forget_runs
from tests.hooks.test_sharing import SEVERAL as several
from tests.hooks.toy import average_of, toy_hook, toy_runner

distributed.init_process_group('gloo')
rank, processes = distributed.get_rank(), distributed.get_world_size()
wrapper = dict(type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False)
usual, flexible = dict(cfg=Config(dict(model_wrapper_cfg=wrapper))), dict(
    kind=FlexibleRunner, strategy=dict(type='DDPStrategy', model_wrapper=wrapper))
saving = dict(logger=dict(type='LoggerHook', interval=1),
              checkpoint=dict(type='CheckpointHook', interval=1, save_best='mean_short', rule='less'))


class Trouble(Hook):
    # NaN in a step of the last process; a look at the averages within a step.
    priority = 'VERY_HIGH'

    def __init__(self, is_shared):
        self.is_shared = is_shared

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        hook, bias = average_of(runner), runner.model.module.out.bias
        averages = [hook.ema_model, *hook.averages.values()]
        assert [average.shards is not None for average in averages] == [self.is_shared] * len(averages)
        if runner.iter == 3 and rank == processes - 1:
            self.before = bias.detach().clone()
            bias.data.fill_(float('nan'))


class Mend(Hook):
    priority = 'LOWEST'

    def __init__(self, trouble):
        self.trouble = trouble

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter == 3 and rank == processes - 1:
            runner.model.module.out.bias.data.copy_(self.trouble.before)


class Interrupt(Hook):
    in_training = False

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if self.in_training and batch_idx == 1:
            raise KeyboardInterrupt
        # Saved at a point of its own, of which the other processes do not know.
        if runner.iter == 1 and average_of(runner).ema_model.shards is not None and rank == 0:
            try:
                runner.save_checkpoint('.', 'own.pth')
            except RuntimeError as error:
                self.said = str(error)

    def after_train_epoch(self, runner):
        self.raw = copy_of(runner.model.module)

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.epoch == 2 and not self.in_training:
            raise KeyboardInterrupt


def train_until_interrupted(runner):
    try:
        runner.train()
    except KeyboardInterrupt:
        return
    raise AssertionError('not interrupted')


def make(name, is_shared, hooks=(), engine=usual, hook={}, **options):
    forget_runs()
    name = f'{name}_{"shared" if is_shared else "whole"}'
    hook = toy_hook(shard=is_shared, **hook)
    return toy_runner(Path(name), launcher='pytorch', custom_hooks=[hook, *hooks], default_hooks=saving, **engine,
                      **options)


def train(*arguments, **options):
    runner = make(*arguments, **options)
    runner.train()
    return runner


states = []
for is_shared in (False, True):
    trouble = Trouble(is_shared)
    hooks = [trouble, Mend(trouble), dict(type='mmyolo_ema.SnapshotHook', interval=4, second_horizon=5)]
    train('toy', is_shared, hooks, hook=several, optim_wrapper=dict(accumulative_counts=2),
          train_cfg=dict(by_epoch=True, max_epochs=3))
    # Resumed where it was before, and begun late, under the other runner.
    name = f'toy_{"shared" if is_shared else "whole"}/epoch_2.pth'
    train('flexible', is_shared, hook=dict(several, begin_iter=3), engine=flexible, load_from=name, resume=True,
          train_cfg=dict(by_epoch=True, max_epochs=3))
    late = train('late', is_shared, hook=dict(several, begin_iter=4), engine=flexible)
    assert late.val()['mean'] == late.test()['mean']
    # What another number of processes made goes on here.
    other = Path(sys.argv[2], name)
    if other.exists():
        train('chain', is_shared, hook=several, load_from=str(other), resume=True,
              train_cfg=dict(by_epoch=True, max_epochs=3))
    interrupt = Interrupt()
    runner = make('interrupted', is_shared, [interrupt], hook=several)
    train_until_interrupted(runner)
    assert_equal(copy_of(runner.model.module), interrupt.raw)
    hook = average_of(runner)
    states.append([copy_of(average) for average in (hook.ema_model, *hook.averages.values())])
    if is_shared and rank == 0:
        assert 'call gather() in all processes' in interrupt.said, interrupt.said
    # It goes on from there, when asked to; also after an interruption between two steps, when averages are not whole.
    interrupt.in_training = True
    runner.train_loop._max_epochs = 3
    train_until_interrupted(runner)
    runner.hooks.remove(interrupt)
    runner.train()
    assert hook._finite._ignored == set()
    states[-1].append(copy_of(hook.ema_model))
assert_equal(*states)

for name, options in dict(alone={}, ignored=usual, other=usual).items():
    forget_runs()
    options = dict(options, custom_hooks=[dict(toy_hook(shard=True), **(
        dict(ema_type='ExponentialMovingAverage') if name == 'other' else {}))])
    try:
        runner = toy_runner(Path(name), launcher='none' if name == 'alone' else 'pytorch', **options)
        if name == 'ignored':
            runner.model.parameters_to_ignore = {'out.bias'}
        runner.train()
    except Exception as error:
        Path(f'{name}_{rank}.txt').write_text(f'{type(error).__name__}: {error}')

for config in sys.argv[3:]:
    forget_runs()
    build_runner(Config.fromfile(config), local_rank=0).train()
finish()
"""

SLIM_RESNET = dict(depth=18, base_channels=8, init_cfg=None, norm_cfg=dict(type='BN', requires_grad=True))


def detector(name, folder, is_shared):
    """Returns the config of a detector that trains for two epochs."""
    hook = toy_hook(shard=is_shared, averages=dict(short=dict(momentum=0.3)), evaluate=['ema', 'raw'])
    cfg = small_config(
        folder, launcher='pytorch', custom_hooks=[hook], **{'train_cfg.max_epochs': 2, 'train_cfg.val_interval': 2}
    )
    if name == 'faster-rcnn':
        cfg.model = Config.fromfile(ROOT / 'configs' / 'faster_rcnn' / 'faster-rcnn_r50_fpn_ema_1x_coco.py').model
        cfg.merge_from_dict(
            {
                'model.backbone': SLIM_RESNET,
                'model.neck.in_channels': [8, 16, 32, 64],
                'model.neck.out_channels': 16,
                'model.rpn_head.in_channels': 16,
                'model.rpn_head.feat_channels': 16,
                'model.roi_head.bbox_roi_extractor.out_channels': 16,
                'model.roi_head.bbox_head.in_channels': 16,
                'model.roi_head.bbox_head.fc_out_channels': 128,
                'model.roi_head.bbox_head.num_classes': 1,
            }
        )
    return cfg


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """Returns a function that gives the folder of all runs in a number of processes; they share one launch.

    Three processes, in a run of their own, go on from what one process made of a file of the two.
    """
    folders = {}

    def train(processes):
        if processes not in folders:
            folder, alone = (tmp_path_factory.mktemp(f'processes_{number}') for number in (processes, 1))
            if processes == 3:
                resume_alone(train(2), alone)
            paths = []
            for name in ('rtmdet', 'faster-rcnn'):
                for kind in ('whole', 'shared'):
                    path = folder / f'{name}_{kind}.py'
                    detector(name, folder / path.stem, kind == 'shared').dump(path)
                    paths.append(path.name)
            launch(processes, PROGRAM, folder, str(ROOT), str(alone), *paths)
            folders[processes] = folder
        return folders[processes]

    return train


def resume_alone(folder, target):
    """Trains the second epoch of runs in one process."""
    for kind in ('whole', 'shared'):
        forget_runs()
        hook = toy_hook(shard=kind == 'shared', **SEVERAL)
        toy_runner(
            target / f'toy_{kind}', hook=hook, load_from=str(folder / f'toy_{kind}' / 'epoch_1.pth'), resume=True
        ).train()


def assert_same_file(folder, run, name, kind='shared'):
    """Compares a file of a run with that of the same run whose averages are shared out, bit for bit; returns it."""
    whole, shared = (checkpoint.read(max((folder / f'{run}_{which}').glob(name))) for which in ('whole', kind))
    assert whole.keys() == shared.keys()
    # With times, and FSDP stores the optimizer in a form of its own.
    for part in whole.keys() - {'meta', 'message_hub'} - ({'optimizer'} if kind.startswith('flat') else set()):
        assert_equal(whole[part], shared[part], f'{run} {name} {part}')
    assert whole['meta']['mmyolo_ema'] == shared['meta']['mmyolo_ema']
    return whole


def assert_same_log(folder, run, kind='shared'):
    """Compares what a run has logged with what the same run has whose averages are shared out; sums may differ."""
    whole, shared = (
        list(map(json.loads, next(folder.glob(f'{run}_{which}/*/vis_data/scalars.json')).read_text().splitlines()))
        for which in ('whole', kind)
    )
    for line, other in zip(whole, shared, strict=True):
        times = {'time', 'data_time', 'memory'}
        assert {key: value for key, value in line.items() if key not in times} == pytest.approx(
            {key: value for key, value in other.items() if key not in times}, rel=1e-5, nan_ok=True
        )
    assert any(line.get('ema_short_drift', 0) > 0 for line in shared + whole)


@pytest.mark.parametrize('processes', [2, 3])
def test_files_are_those_of_whole_averages(trained, processes):
    folder = trained(processes)
    for name in ('epoch_1.pth', 'epoch_3.pth', 'best_mean_short_*.pth', 'snapshots/update_*.pth'):
        assert_same_file(folder, 'toy', name)
    for run in ('flexible', 'late', 'rtmdet', 'faster-rcnn', *(['chain'] if processes == 3 else [])):
        content = assert_same_file(folder, run, f'epoch_{3 if run in ("flexible", "chain") else 2}.pth')
        assert content['ema_state_dict']['steps'] > 0
        assert content['ema_averages']
        if run == 'faster-rcnn':
            short = content['ema_averages']['short']
            largest = short['module.roi_head.bbox_head.shared_fcs.0.weight'].numel()
            assert largest > 0.3 * sum(value.numel() for value in short.values()), 'cut inside'


def test_logs_are_those_of_whole_averages(trained):
    for run in ('interrupted', 'rtmdet'):
        assert_same_log(trained(2), run)


def test_what_cannot_be_shared_out_is_refused_by_all(trained):
    for name, said in dict(
        alone='processes that train one model under MMDistributedDataParallel, but it is in a Toy',
        ignored='equal weights in all processes, but DistributedDataParallel is told to ignore out',
        other="no option shard (ema_type='mmyolo_ema.ExpMomentumEMA' has it)",
    ).items():
        one, other = ((trained(2) / f'{name}_{rank}.txt').read_text() for rank in range(2))
        assert said in one, one
        assert one.split(' in <')[0] == other.split(' in <')[0]
