"""Several processes keep one average."""

import json
import socket
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from mmengine.runner import Runner

from mmyolo_ema import checkpoint
from mmyolo_ema.posthoc.build import build
from mmyolo_ema.posthoc.snapshots import read_run
from tests.helpers import ROOT, assert_equal, launch, small_config

# Each process trains on its own part of the images, and stores its average and what it validated.
PROGRAM = """
import sys
from pathlib import Path
import torch
from mmengine.config import Config
from mmengine.hooks import EMAHook, Hook
from mmyolo_ema.cli.runner import build_runner, finish

sys.path.insert(0, sys.argv[1])
from tests.helpers import forget_runs

class Remember(Hook):

    priority = 'LOWEST'

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        store(runner, 'validated', runner.model.module)

def store(runner, kind, model):
    torch.save(model.state_dict(), Path(runner.work_dir) / f'{kind}_{torch.distributed.get_rank()}.pt')

for config in sys.argv[2:]:
    forget_runs()
    runner = build_runner(Config.fromfile(config), local_rank=0)
    runner.register_hook(Remember())
    runner.train()
    hook = next(hook for hook in runner.hooks if isinstance(hook, EMAHook))
    store(runner, 'average', hook.ema_model)
    store(runner, 'raw', runner.model.module)
finish()
"""

SYNC_NORM = dict(type='SyncNormHook', priority=48)
ALL_BOXES = {'model.test_cfg.score_thr': 0.0}
BUFFERS = {
    f'{kind}-{averaging}': ([SYNC_NORM] if kind == 'SyncNormHook' else [], averaging == 'update_buffers')
    for kind in ('plain', 'SyncNormHook')
    for averaging in ('update_buffers', 'copy_buffers')
}
IN_THREE = 'plain-update_buffers', 'SyncNormHook-copy_buffers'


@pytest.fixture(scope='module')
def trained_in(tmp_path_factory):
    """Returns a function that gives the folders of all runs in a number of processes; they share one launch."""
    folders = {}

    def train(processes):
        if processes not in folders:
            folder = folders[processes] = tmp_path_factory.mktemp(f'processes_{processes}')
            configs = [folder / f'{name}.py' for name in runs(processes, small_config)]
            for path, options in zip(configs, runs(processes, small_config).values()):
                small_config(folder / path.stem, launcher='pytorch', **options).dump(path)
            launch(processes, PROGRAM, folder, str(ROOT), *map(str, configs))
        return folders[processes]

    return train


def runs(processes, small_config):
    """Returns the options of the runs in a number of processes, by name."""
    average = small_config(Path('any')).custom_hooks[0]
    named = {
        name: {'custom_hooks': [*others, dict(average, update_buffers=update_buffers)], **ALL_BOXES}
        for name, (others, update_buffers) in BUFFERS.items()
        if processes == 2 or name in IN_THREE
    }
    if processes == 2:
        unvalidated = dict(val_cfg=None, val_dataloader=None, val_evaluator=None)
        saving = {'default_hooks.checkpoint': dict(type='CheckpointHook', by_epoch=False, interval=3)}
        for hook in ('mmyolo_ema.EMAHook', 'mmengine.EMAHook'):
            options = {key: value for key, value in dict(average, type=hook).items() if key != 'evaluate_on_origin'}
            named[hook] = {'custom_hooks': [options], **unvalidated, **saving}
        # The further average has the schedule of the main one, so that it must be equal to it.
        equal = dict(averages=dict(equal=dict(momentum=average['momentum'], gamma=average['gamma'])))
        for name, include in (('frozen', {}), ('frozen-averaged', dict(include=['.']))):
            named[name] = {
                'custom_hooks': [dict(average, **include, **equal)],
                'model.backbone.frozen_stages': 4,
                'train_cfg.max_epochs': 2,
                'find_unused_parameters': True,
                **unvalidated,
            }
        snapshots = dict(type='mmyolo_ema.SnapshotHook', interval=1, second_horizon=5)
        named['snapshots'] = {
            'custom_hooks': [dict(average, momentum=0.1, gamma=2), snapshots],
            'train_cfg.max_epochs': 8,
        }
    return named


def stored(folder, kind):
    """Returns what each process of a run stored."""
    return [torch.load(path) for path in sorted(folder.glob(f'{kind}_*.pt'))]


def differing(states):
    return [name for name, value in states[0].items() if not all(torch.equal(value, state[name]) for state in states)]


@pytest.mark.slow
@pytest.mark.parametrize(('processes', 'name'), [*((2, name) for name in BUFFERS), *((3, name) for name in IN_THREE)])
def test_processes_validate_and_save_one_average(trained_in, processes, name):
    folder = trained_in(processes) / name
    averages, raws, validated = (stored(folder, kind) for kind in ('average', 'raw', 'validated'))
    assert len(averages) == processes
    # BatchNorm without synchronisation sees other images in each process: only the models' statistics differ.
    assert all('running_' in name for name in differing(raws)), differing(raws)
    assert bool(differing(raws)) == name.startswith('plain')
    assert differing(averages) == []
    assert differing(validated) == []
    content = checkpoint.read(folder / 'epoch_4.pth')
    assert differing([content['state_dict'], validated[0]]) == []
    assert content['ema_state_dict']['steps'] == averages[0]['steps'] > 0


@pytest.mark.slow
def test_frozen_weights_of_several_processes_are_in_the_file_as_if_they_were_averaged(trained_in):
    shared, averaged = (checkpoint.read(trained_in(2) / name / 'epoch_2.pth') for name in ('frozen', 'frozen-averaged'))
    for part in ('state_dict', 'ema_state_dict'):
        assert_equal(shared[part], averaged[part], part)


@pytest.mark.slow
def test_further_average_of_several_processes_is_one_average(trained_in):
    content = checkpoint.read(trained_in(2) / 'frozen' / 'epoch_2.pth')
    further = content['ema_averages']['equal']
    assert_equal(
        {f'module.{name}': value for name, value in content['state_dict'].items()},
        {name: value for name, value in further.items() if name != 'steps'},
    )


@pytest.mark.slow
def test_metric_of_several_processes_is_that_of_the_file(trained_in, demo_config):
    folder = trained_in(2) / 'plain-update_buffers'
    measured = json.loads(next(folder.glob('*/vis_data/scalars.json')).read_text().splitlines()[-1])
    checkpoint.use_safe_loader()
    tested = Runner.from_cfg(demo_config('test', load_from=str(folder / 'epoch_4.pth'), **ALL_BOXES)).test()
    assert tested['coco/bbox_mAP'] == measured['coco/bbox_mAP']


@pytest.mark.slow
@pytest.mark.parametrize(
    'hook',
    [
        pytest.param('mmyolo_ema.EMAHook', id='ours'),
        pytest.param('mmengine.EMAHook', id='mmengine', marks=pytest.mark.defect(AssertionError, 'running_mean')),
    ],
)
def test_checkpoints_of_iterations_hold_the_common_average(trained_in, hook):
    folder = trained_in(2) / hook
    average, *others = stored(folder, 'average')
    content = checkpoint.read(folder / 'iter_4.pth')
    module = {name.removeprefix('module.'): value for name, value in average.items()}
    assert differing([average, *others]) + differing([content['state_dict'], module]) == []


# The model of the last process holds a NaN.
ONE_BAD = """
import torch
from torch import distributed, nn
from mmyolo_ema.cli.runner import finish
from mmyolo_ema import ExpMomentumEMA
from mmyolo_ema.hooks.finite_check import FiniteCheck
from mmyolo_ema.hooks.stored_average import synchronize_buffers

distributed.init_process_group('gloo')
rank, last = distributed.get_rank(), distributed.get_world_size() - 1
model = nn.Linear(2, 2)
check = FiniteCheck(model, model)
assert check.look() == ([], [])
if rank == last:
    model.bias.data[0] = float('nan')
assert check.look() == (['bias'], [])
model.bias.data[0] = 3e38
assert check.look() == ([], [])

model.register_buffer('statistic', torch.tensor(float(rank)))
model.register_buffer('table', torch.arange(rank + 1.))
check = FiniteCheck(model, model)
assert check.look() == ([], [])
if rank == 0:
    model.table[0] = float('inf')
assert check.look() == ([], ['table'])
model.table[0] = 0
# A queue that is filled in one process first.
model.register_buffer('queue', torch.ones(rank, 2))
check = FiniteCheck(model, model)
for value, bad in ((1, []), (3e38, []), (float('inf'), ['queue'])):
    model.queue = torch.full((rank, 2), value)
    assert check.look() == ([], bad)
model.queue = torch.ones(rank, 2)
averaged = ExpMomentumEMA(model)
synchronize_buffers(averaged)
assert averaged.module.statistic == last / 2
assert torch.equal(averaged.module.table, torch.arange(rank + 1.))
finish()
"""


@pytest.mark.slow
def test_all_processes_leave_out_what_one_finds_bad(tmp_path):
    launch(3, ONE_BAD, tmp_path)


@pytest.mark.slow
def test_snapshots_of_two_processes_make_the_average_that_was_tracked(trained_in):
    run = read_run(trained_in(2) / 'snapshots')
    wanted = checkpoint.weights_of(checkpoint.read(run.files[-1].path), 'second')
    # Without the checkpoints, and without the second averages, which would be the answer.
    alone = run._replace(files=[file._replace(kinds=('ema',)) for file in run.files if 'second' in file.kinds])
    half = alone.average(5)
    (built,) = build([half])
    assert (half.error < 1e-6, alone.updates) == (True, 8)
    for name, value in wanted.items():
        if value.is_floating_point():
            torch.testing.assert_close(built[name], value, rtol=1e-4, atol=1e-5)


# A toy under both runners, then resumed under that of strategies.
STRATEGIES = """
import sys
from pathlib import Path
from mmengine.config import Config
from mmengine.runner import FlexibleRunner
from torch import distributed
from mmyolo_ema.cli.runner import finish

sys.path.insert(0, sys.argv[1])
from tests.hooks.toy import toy_hook, toy_runner

distributed.init_process_group('gloo')
wrapper = dict(type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False)
common = dict(launcher='pytorch', hook=toy_hook(evaluate_on_origin=True))
toy_runner(Path('usual'), cfg=Config(dict(model_wrapper_cfg=wrapper)), **common).train()
strategy = dict(type='DDPStrategy', model_wrapper=wrapper)
runner = toy_runner(Path('flexible'), kind=FlexibleRunner, strategy=strategy, **common)
runner.train()
validated = runner.message_hub.get_scalar('val/mean').current()
assert validated == runner.val()['mean'] == runner.test()['mean']
half = dict(load_from='flexible/epoch_1.pth', resume=True)
toy_runner(Path('resumed'), kind=FlexibleRunner, strategy=strategy, **half, **common).train()
tester = toy_runner(Path('test'), kind=FlexibleRunner, strategy=strategy, load_from='flexible/epoch_2.pth', **common)
assert tester.test()['mean'] == validated
finish()
"""


@pytest.mark.slow
def test_strategy_for_several_processes_is_like_the_usual_runner(tmp_path):
    launch(2, STRATEGIES, tmp_path, str(ROOT))
    usual, flexible, resumed = (
        checkpoint.read(tmp_path / name / 'epoch_2.pth') for name in ('usual', 'flexible', 'resumed')
    )
    assert 'out.weight' in usual['state_dict']
    for part in ('state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers'):
        assert_equal(usual[part], flexible[part], part)
    # What a process's own statistics were before the stop is not stored.
    for part in ('state_dict', 'ema_state_dict'):
        assert all('running_' in name for name in differing([usual[part], resumed[part]])), part


# What goes wrong in one process only, or is different in it.
ONE_DIFFERS = """
import shutil
import sys
from contextlib import redirect_stderr, suppress
from pathlib import Path
from mmengine.config import Config
from mmengine.runner.checkpoint import CheckpointLoader
from torch import distributed
from mmyolo_ema import checkpoint
from mmyolo_ema.cli.runner import finish
from mmyolo_ema.processes import raised_by_all

sys.path.insert(0, sys.argv[1])
from tests.helpers import call_tool
from tests.hooks.toy import toy_hook, toy_runner

distributed.init_process_group('gloo')
rank = distributed.get_rank()
wrapper = dict(model_wrapper_cfg=dict(type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False))

def run(name, **options):
    try:
        toy_runner(Path(name), launcher='pytorch', cfg=Config(wrapper), **options).train()
    except Exception as error:
        Path(f'{sys.argv[2]}_{name}_{rank}.txt').write_text(f'{type(error).__name__}: {error}')

run('own', custom_hooks=[toy_hook(), dict(type='mmyolo_ema.SnapshotHook')])
run('option', hook=toy_hook(**(dict(no_such=1) if rank else {})))
run('schedule', hook=toy_hook(begin_iter=rank * 5))
run('own', custom_hooks=[toy_hook(), dict(type='mmyolo_ema.SnapshotHook')])
run('missing', load_from=f'own/epoch_{1 + 9 * rank}.pth')
run(f'resumed{rank}', **({} if rank else dict(load_from='own/epoch_1.pth', resume=True)))

parts = ('train_dataloader', 'train_cfg', 'optim_wrapper', 'test_dataloader', 'test_cfg', 'test_evaluator')
for tool, rest in (('train', []), ('test', ['own/epoch_10.pth' if rank else 'own/epoch_1.pth'])):
    hook = dict(toy_hook(), dtype='int8' if rank else None)
    cfg = dict(dict.fromkeys(parts, {}), default_scope='mmengine', model=dict(type='Toy'), custom_hooks=[hook])
    Config(cfg).dump(f'of_{rank}.py')
    with open(f'{sys.argv[2]}_{tool}_{rank}.txt', 'w') as said, redirect_stderr(said):
        try:
            call_tool(tool, f'of_{rank}.py', *rest, '--launcher', 'pytorch')
        except SystemExit as ended:
            said.write(str(ended.code))

# What a signal ends waits for nobody.
if rank:
    with suppress(SystemExit), raised_by_all():
        sys.exit(128 + 15)

# A bug is no input that is refused.
try:
    with raised_by_all():
        {}[rank] if rank else None
except RuntimeError as error:
    Path(f'{sys.argv[2]}_bug_{rank}.txt').write_text(str(error))

# Rank 1 alone has a checkpoint, and then rank 0 alone.
from mmyolo_ema.cli.train import set_latest_checkpoint
for owner in (1, 0):
    cfg = Config(dict(work_dir=f'{sys.argv[2]}_of_{owner}_{rank}', resume=True))
    Path(cfg.work_dir).mkdir()
    if rank == owner:
        shutil.copy('own/epoch_1.pth', cfg.work_dir)
    note = set_latest_checkpoint(cfg)
    Path(f'{sys.argv[2]}_latest{owner}_{rank}.txt').write_text(f'{cfg.get("load_from")} {cfg.resume and rank} {note}')
checkpoint.use_safe_loader()
CheckpointLoader.load_checkpoint(sys.argv[3])
finish()
"""


@pytest.mark.slow
def test_what_differs_in_one_process_is_raised_by_all(tmp_path, monkeypatch):
    asked = []

    class Count(SimpleHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            super().do_GET()

    torch.save(dict(state_dict={}), tmp_path / 'weights.pth')
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'hub'))
    with ThreadingHTTPServer(('127.0.0.1', 0), partial(Count, directory=tmp_path)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        launch(2, ONE_DIFFERS, tmp_path, str(ROOT), 'said', f'http://127.0.0.1:{server.server_port}/weights.pth')
        server.shutdown()
    assert asked == ['/weights.pth']

    def said(name):
        texts = [(tmp_path / f'said_{name}_{rank}.txt').read_text() for rank in range(2)]
        return texts[0], texts[1]

    host = socket.gethostname()
    one, other = said('option')
    assert one == other
    assert one.startswith(f'ValueError: rank 1 on host {host}: TypeError: ')
    assert 'EMAHook has no option no_such' in one
    one, other = said('missing')
    assert one == other
    assert one.startswith(f'ValueError: rank 1 on host {host}: FileNotFoundError: ')
    assert said('bug') == (f'rank 1 on host {host}: KeyError: 1',) * 2
    refusals = dict(
        train="the config cannot be trained: dtype must be one of 'float32', 'float64', but got 'int8'\n2",
        test='there is no checkpoint own/epoch_10.pth\n2',
    )
    for tool, refusal in refusals.items():
        assert said(tool) == (f'error: rank 1 on host {host}: Stopped: {refusal}', f'error: {refusal}')
    one, other = said('schedule')
    assert one == other
    assert one.startswith('ValueError: the processes do not start from the same state: rank 0 on host')
    assert "'begin_iter': 0" in one
    assert f'rank 1 on host {host} has schedule' in one
    one, other = said('own')
    assert one == other
    assert 'has snapshots of another run, such as update_00000003.pth' in one
    note = 'there is no checkpoint in said_of_1_0 to resume from: training starts anew'
    assert said('latest1') == (f'None 0 {note}', f'None False {note}')
    assert said('latest0') == tuple(f'{tmp_path}/said_of_0_{rank}/epoch_1.pth {rank} None' for rank in range(2))
    one, other = ((tmp_path / f'said_resumed{rank}_{rank}.txt').read_text() for rank in range(2))
    assert one == other
    for rank, number in ((0, 3), (1, 0)):
        assert f'rank {rank} on host {host} has iteration {number}, updates {number}, raw weights ' in one
