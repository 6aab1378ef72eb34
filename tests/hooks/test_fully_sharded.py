"""Averages of models that ``fully_shard`` cuts: runs, logs and files are those of the same runs under DDP."""

import pytest

from mmyolo_ema import checkpoint
from tests.helpers import ROOT, call_tool, launch, small_config
from tests.hooks.test_sharing import assert_same_file, assert_same_log
from tests.hooks.toy import toy_hook, toy_runner

pytestmark = pytest.mark.slow

SEVERAL = dict(
    averages=dict(
        short=dict(mean_age='20%', exclude=['^norm', 'bias']),
        long=dict(momentum=0.05, gamma=4, dtype='float64', interval=2),
    ),
    evaluate=['ema', 'raw', 'short'],
)

# An average by itself; then a toy in several set-ups, each under DDP and cut; then a detector.
PROGRAM = """
import copy
import sys
from pathlib import Path
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import FlexibleRunner
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard
from mmyolo_ema import ExpMomentumEMA
from mmyolo_ema.cli.runner import finish
from mmyolo_ema.hooks.weight_swap import WeightSwap
from mmyolo_ema.models.fully_sharded import local, part_of, whole
from mmyolo_ema.models.tensor_references import unwrap

sys.path.insert(0, sys.argv[1])
import tests.conftest  # saves time
from tests.helpers import assert_equal, change, forget_runs
from tests.hooks import fsdp2
from tests.hooks.test_fully_sharded import SEVERAL as several
from tests.hooks.toy import average_of, toy_hook, toy_runner

distributed.init_process_group('gloo')
rank = distributed.get_rank()


def whole_state(model):
    return {name: whole(value).clone() for name, value in model.state_dict().items()}


def follow(plain, cut):
    # Gives a cut model what a whole one has.
    with torch.no_grad():
        for one, other in zip(cut.parameters(), plain.parameters()):
            local(one).copy_(part_of(other, one))
        for one, other in zip(cut.buffers(), plain.buffers()):
            one.copy_(other)


torch.manual_seed(1)
plain = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 1))
plain[3].weight = plain[2].weight
plain[4].requires_grad_(False)
inputs = torch.rand(4, 3)
for options in ({}, dict(update_buffers=True, exclude=['0.bias'], dtype='float64')):
    model = copy.deepcopy(plain)
    cut = copy.deepcopy(plain)
    fully_shard(cut[0])
    fully_shard(cut)
    pair = [ExpMomentumEMA(module, momentum=0.3, gamma=2, **options) for module in (model, cut)]

    def update(is_whole=False):
        torch.manual_seed(int(pair[0].steps))
        frozen = model[4].weight.clone()
        change(model)
        model[4].weight.data.copy_(frozen)
        follow(model, cut)
        if is_whole:
            cut.eval()(inputs)  # leaves the root whole
            cut[0].unshard()
        for average, module in zip(pair, (model, cut)):
            average.update_parameters(module)

    def check():
        pair[1].gather()
        # What is frozen has the average's dtype, if it is cut.
        assert_equal(*({name: value.double() for name, value in average.state_dict().items()} for average in pair))
        assert pair[1].module[3].weight is pair[1].module[2].weight

    assert type(pair[1].module) is nn.Sequential
    check()
    for _ in range(3):
        update()
    assert pair[1].module[0].weight.isnan().all()
    check()
    update()
    update(is_whole=True)
    check()
    # A forward with the average and a training step, beside those of the whole model.
    for module in (model, cut):
        module.eval()
    swap = WeightSwap(pair[1].module, cut)
    raw = cut(inputs)
    swap.swap_in()
    assert torch.equal(cut(inputs), pair[0].module.to(inputs.dtype).eval()(inputs))
    with swap.paused():
        assert torch.equal(cut(inputs), raw)
    cut(inputs)
    swap.swap_out()
    for module in (model, cut):
        module.train()
        module(inputs).sum().backward()
        torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.1).step()
    assert_equal(whole_state(model), whole_state(cut))
    copy.deepcopy(pair[1]).load_state_dict(pair[0].state_dict())


class Trouble(Hook):
    # NaN in a step of the last process; mended before the next.
    priority = 'VERY_HIGH'

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter == 3 and rank == 1:
            self.bias = local(unwrap(runner.model).linear.bias)
            self.before = self.bias.detach().clone()
            self.bias.data.fill_(float('nan'))


class Mend(Hook):
    priority = 'LOWEST'

    def __init__(self, trouble):
        self.trouble = trouble

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter == 3:
            assert average_of(runner).skipped == 1
            if rank == 1:
                self.trouble.bias.data.copy_(self.trouble.before)


class Interrupt(Hook):

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        raise KeyboardInterrupt


saving = dict(logger=dict(type='LoggerHook', interval=1),
              checkpoint=dict(type='CheckpointHook', interval=1, save_best='mean_short', rule='less'))
strategies = dict(whole=dict(type='DDPStrategy', model_wrapper=dict(
    type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False)),
    shared=dict(type='FSDP2Strategy', blocks=['linear']))


def make(name, kind, hooks=(), hook=several, **options):
    forget_runs()
    return toy_runner(Path(f'{name}_{kind}'), launcher='pytorch', kind=FlexibleRunner, strategy=dict(strategies[kind]),
                      custom_hooks=[toy_hook(**hook), *hooks],
                      optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.1)),
                      **{**dict(default_hooks=saving), **options})


three = dict(train_cfg=dict(by_epoch=True, max_epochs=3))
for kind in strategies:
    trouble = Trouble()
    snapshots = dict(type='mmyolo_ema.SnapshotHook', interval=4, second_horizon=5)
    runner = make('toy', kind, [trouble, Mend(trouble), snapshots], **three)
    runner.train()
    make('resumed', kind, load_from=f'toy_{kind}/epoch_1.pth', resume=True, **three).train()
    make('from_one', kind, load_from=f'{sys.argv[2]}/epoch_1.pth', resume=True, **three).train()
    # Saved by iterations; begun late from other weights; and no validation swaps anything.
    runner = make('raw', kind, hook=dict(evaluate=['raw'], begin_iter=3), load_from='toy_whole/epoch_1.pth',
                  default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=3, by_epoch=False)),
                  by_epoch=False, train_cfg=dict(by_epoch=False, max_iters=6, val_interval=2))
    runner.train()

runner = make('tested', 'shared')
runner.train()
assert runner.val()['mean'] == runner.test()['mean']
raw = whole_state(runner.model)
runner.register_hook(Interrupt())
with pytest.raises(KeyboardInterrupt):
    runner.val()
assert_equal(whole_state(runner.model), raw)

for kind in strategies:
    forget_runs()
    cfg = Config.fromfile(sys.argv[3])
    cfg.merge_from_dict(dict(work_dir=f'rtmdet_{kind}', experiment_name=f'rtmdet_{kind}'))
    cfg.strategy = dict(strategies[kind], **(dict(blocks=['backbone']) if kind == 'shared' else {}))
    FlexibleRunner.from_cfg(cfg).train()
finish()
"""

# Other ways to cut and to train a toy, each beside a whole average and beside a run without validations. Some processes
# have no elements of a tensor, and one of none.
SET_UPS = """
import sys
from pathlib import Path
import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import MODELS
from mmengine.runner import FlexibleRunner
from torch import distributed
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy
from mmyolo_ema import ExpMomentumEMA
from mmyolo_ema.cli.runner import finish
from mmyolo_ema.models.fully_sharded import whole

sys.path.insert(0, sys.argv[1])
import tests.conftest  # saves time
from tests.helpers import assert_equal, forget_runs
from tests.hooks import fsdp2
from tests.hooks.toy import Toy, average_of, toy_hook, toy_runner

distributed.init_process_group('gloo')
rank = distributed.get_rank()


@MODELS.register_module()
class Smooth(Toy):
    # BatchNorm does not go with weights in half precision.

    def __init__(self):
        super().__init__()
        self.norm = torch.nn.LayerNorm(4)


@MODELS.register_module()
class Failing(ExpMomentumEMA):

    def __init__(self, *args, **options):
        if rank == 1:
            raise ValueError('no memory')
        super().__init__(*args, **options)


def whole_state(model):
    return {name: whole(value) for name, value in model.state_dict().items()}


class Witness(Hook):
    # Averages whole copies of the model.
    priority = 'LOWEST'

    def before_train(self, runner):
        self.model = Smooth()
        self.model.load_state_dict(whole_state(runner.model))
        self.average = ExpMomentumEMA(self.model, momentum=0.1, gamma=2, update_buffers=True)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        average = average_of(runner).ema_model
        if average.steps > self.average.steps:
            self.model.load_state_dict(whole_state(runner.model))
            self.average.update_parameters(self.model)
        average.gather()
        assert_equal(average.state_dict(), self.average.state_dict())


def train(name, hook=(), hooks=(), sharding=None, val_interval=1, **options):
    forget_runs()
    runner = toy_runner(
        Path(name),
        model=dict(type='Smooth'),
        launcher='pytorch',
        kind=FlexibleRunner,
        strategy=dict(type='FSDP2Strategy', blocks=['linear'], sharding=sharding),
        custom_hooks=[dict(toy_hook(), **dict(hook)), *hooks],
        train_cfg=dict(by_epoch=True, max_epochs=2, val_interval=val_interval),
        **options,
    )
    runner.train()
    return whole_state(runner.model), int(average_of(runner).ema_model.steps)


for name, options in dict(
    accumulated=dict(optim_wrapper=dict(accumulative_counts=2)),
    mixed=dict(sharding=dict(mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))),
    offloaded=dict(sharding=dict(offload_policy=CPUOffloadPolicy(pin_memory=False))),
    kept=dict(sharding=dict(reshard_after_forward=False)),
).items():
    state, updates = train(name, hooks=[Witness()], **options)
    assert updates == (2 if name == 'accumulated' else 4)
    assert_equal(state, train(f'{name}_without', val_interval=9, **options)[0])

with pytest.raises(ValueError, match='no memory'):
    train('failing', hook=dict(ema_type='Failing'))
finish()
"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Returns the folder of all runs."""
    folder, alone = tmp_path_factory.mktemp('fully_sharded'), tmp_path_factory.mktemp('alone')
    toy_runner(
        alone,
        hook=toy_hook(**SEVERAL),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.1)),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1)),
    ).train()
    cfg = small_config(
        folder,
        launcher='pytorch',
        **{'train_cfg.max_epochs': 1, 'train_cfg.val_interval': 1, 'default_hooks.checkpoint.interval': 1},
    )
    cfg.custom_hooks = [toy_hook(averages=dict(short=dict(momentum=0.3)), evaluate=['ema', 'raw'])]
    cfg.dump(folder / 'detector.py')
    launch(2, PROGRAM, folder, str(ROOT), str(alone), str(folder / 'detector.py'))
    return folder


def test_files_are_those_of_whole_models(folder):
    for run, names in dict(
        toy=('epoch_1.pth', 'epoch_3.pth', 'best_mean_short_*.pth', 'snapshots/update_*.pth'),
        resumed=('epoch_3.pth',),
        from_one=('epoch_3.pth',),
        raw=('iter_3.pth', 'iter_6.pth'),
        rtmdet=('epoch_1.pth',),
    ).items():
        for name in names:
            content = assert_same_file(folder, run, name)
        assert run == 'toy' or content['ema_state_dict']['steps'] > 0
    raw = checkpoint.read(folder / 'rtmdet_shared' / 'epoch_1.pth')['ema_state_dict']
    shared = [f'module.bbox_head.cls_convs.{level}.0.conv.weight' for level in range(2)]
    assert raw[shared[0]].data_ptr() == raw[shared[1]].data_ptr(), 'stored once'


def test_logs_are_those_of_whole_models(folder):
    for run in ('resumed', 'from_one'):
        assert_same_log(folder, run)


def test_file_tests_in_one_process(folder):
    path = folder / 'rtmdet_shared' / 'epoch_1.pth'
    assert not call_tool('test', folder / 'detector.py', path, '--work-dir', folder / 'tested', '--launcher', 'none')


def test_ways_to_cut_and_to_train(tmp_path):
    launch(3, SET_UPS, tmp_path, str(ROOT))


def test_strategy_is_that_of_the_documentation():
    program = (ROOT / 'tests' / 'hooks' / 'fsdp2.py').read_text().partition('\n\n')[2]
    assert f'```python\n{program}```' in (ROOT / 'docs' / 'scale.md').read_text()
