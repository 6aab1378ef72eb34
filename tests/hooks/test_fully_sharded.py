"""Averages of models that FSDP cuts: runs, logs and files are those of the same runs under DDP."""

import inspect

import pytest

from mmyolo_ema import checkpoint
from tests.helpers import ROOT, call_tool, launch, small_config
from tests.hooks.fsdp import ResumingFSDPStrategy
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
import itertools
import sys
from functools import partial
from pathlib import Path
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import FlexibleRunner
from torch import distributed, nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from mmdet.models import CSPNeXt
from mmyolo_ema import ExpMomentumEMA
from mmyolo_ema.checkpoint.weights import unprefixed
from mmyolo_ema.cli.runner import finish
from mmyolo_ema.hooks.weight_swap import WeightSwap
from mmyolo_ema.models.fully_sharded import local, part_of, whole
from mmyolo_ema.models.tensor_references import tensor_references, unwrap

sys.path.insert(0, sys.argv[1])
import tests.conftest  # saves time
from tests.helpers import assert_equal, change, forget_runs
from tests.hooks.fsdp import fsdp1, fsdp2, is_last
from tests.hooks.test_fully_sharded import SEVERAL as several
from tests.hooks.toy import average_of, toy_hook, toy_runner

distributed.init_process_group('gloo')
rank = distributed.get_rank()


def tensors(model):
    return {name: reference.tensor for name, reference in sorted(tensor_references(unwrap(model)))}


def whole_state(model):
    return {name: whole(value).clone() for name, value in tensors(model).items()}


def follow(plain, cut):
    # Gives a cut model what a whole one has.
    with torch.no_grad():
        for value, other in zip(tensors(cut).values(), tensors(plain).values()):
            local(value).copy_(part_of(other, value))


class Net(nn.Sequential):

    def __init__(self):
        super().__init__(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 1))
        self[3].weight = self[2].weight
        self[4].requires_grad_(False)


def cut_2(model):
    fully_shard(model[0])
    return fully_shard(model)


def cut_1(model, **options):
    return FullyShardedDataParallel(model, device_id=torch.device('cpu'), auto_wrap_policy=is_last, **options)


ways = [cut_2, partial(cut_1, use_orig_params=True), partial(cut_1, use_orig_params=False)]
torch.manual_seed(1)
plain = Net()
inputs = torch.rand(4, 3)
for way, options in itertools.product(ways, ({}, dict(update_buffers=True, exclude=['0.bias'], dtype='float64'))):
    model = copy.deepcopy(plain)
    cut = way(copy.deepcopy(plain))
    pair = [ExpMomentumEMA(module, momentum=0.3, gamma=2, **options) for module in (model, cut)]

    def update(is_whole=False):
        torch.manual_seed(int(pair[0].steps))
        frozen = model[4].weight.clone()
        change(model)
        model[4].weight.data.copy_(frozen)
        follow(model, cut)
        if is_whole:
            cut.eval()(inputs)  # leaves the root whole
            getattr(cut[0], 'unshard', lambda: None)()
        for average, module in zip(pair, (model, cut)):
            average.update_parameters(module)

    def check():
        pair[1].gather()
        # What is frozen has the average's dtype, if it is cut.
        assert_equal(*({name: value.double() for name, value in tensors(average).items()} for average in pair))
        assert pair[1].module[3].weight is pair[1].module[2].weight

    assert type(pair[1].module) is Net
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
    for gather in (pair[1].gather, partial(pair[1].share_out, cut)):
        gather()
        swap = WeightSwap(pair[1].module, cut, pair[1].shards)
        raw = cut(inputs)
        swap.swap_in()
        assert torch.equal(cut(inputs), pair[0].module.to(inputs.dtype).eval()(inputs))
        with swap.paused():
            assert torch.equal(cut(inputs), raw)
        cut(inputs)
        swap.swap_out()
    pair[1].gather()
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
            self.bias = local(tensors(runner.model)['linear.bias'])
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
    shared=fsdp2(),
    flat=fsdp1(), flattened=dict(fsdp1(use_orig_params=False), activation_checkpointing=dict(
        check_fn=lambda module: isinstance(module, nn.Linear))),
    local=dict(fsdp1(use_orig_params=True), state_dict_cfg='local'),
    local_flat=dict(fsdp1(use_orig_params=False), state_dict_cfg='local'))


def make(name, kind, hooks=(), hook=several, **options):
    forget_runs()
    return toy_runner(Path(f'{name}_{kind}'), launcher='pytorch', kind=FlexibleRunner, strategy=dict(strategies[kind]),
                      custom_hooks=[toy_hook(**hook), *hooks],
                      **{**dict(default_hooks=saving, optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.1))),
                         **options})


def stored(path, model=None):
    # The weights of a file, joined with those of the other process by a model.
    content = torch.load(path, weights_only=False)
    states = dict(raw=content['ema_state_dict'], ema=content['state_dict'], **content['ema_averages'])
    for name, state in states.items():
        weights = unprefixed(state, prefixed_only='steps' in state)
        if model is not None:
            model.load_state_dict(weights, strict=False)
            weights = whole_state(model)
        states[name] = dict(sorted(weights.items()), steps=state.get('steps'))
    return states, content['meta']['mmyolo_ema']


def check_local(kind, model):
    (toy, meta), (resumed, _) = (
        stored(f'{run}_{kind}/epoch_3.pth/rank{rank}.pth', model) for run in ('toy', 'resumed'))
    alone, meta_alone = stored('toy_whole/epoch_3.pth')
    if rank:  # with statistics of its own
        alone['raw'].update({name: value for name, value in toy['raw'].items() if 'running' in name})
    assert_equal(toy, alone)
    assert meta == meta_alone
    torch.testing.assert_close(resumed.pop('long'), toy.pop('long'))  # is kept in float64, and stored in float32
    assert_equal(resumed, toy)


three = dict(train_cfg=dict(by_epoch=True, max_epochs=3))
for kind in strategies:
    trouble = Trouble()
    snapshots = dict(type='mmyolo_ema.SnapshotHook', interval=4, second_horizon=5)
    # With save_best, MMEngine may save once more, and count an epoch more there.
    plain = dict(default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1)))
    options = dict(three, **(plain if kind.startswith('local') else {}))
    runner = make('toy', kind, [trouble, Mend(trouble), snapshots], **options)
    runner.train()
    if kind in ('whole', 'shared'):  # FSDP stores an optimizer in a form of its own, and AdamW's wrongly on a CPU
        make('resumed', kind, load_from=f'toy_{kind}/epoch_1.pth', resume=True, **three).train()
        make('from_one', kind, load_from=f'{sys.argv[2]}/epoch_1.pth', resume=True, **three).train()
    if kind.startswith('local'):
        options['default_hooks']['checkpoint']['max_keep_ckpts'] = 1
        trouble = Trouble()
        hooks = [trouble, Mend(trouble), snapshots]
        make('resumed', kind, hooks, load_from=f'toy_{kind}/epoch_1.pth', resume=True, **options).train()
        assert not Path(f'resumed_{kind}', 'epoch_2.pth').exists()
        check_local(kind, runner.model)
    if kind.startswith(('flattened', 'local')):
        continue
    # Saved by iterations, and resumed; begun late from other weights; and no validation swaps anything.
    raw = dict(hook=dict(several, evaluate=['raw'], begin_iter=3), by_epoch=False,
               train_cfg=dict(by_epoch=False, max_iters=6, val_interval=2),
               optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9)),
               default_hooks=dict(saving, checkpoint=dict(type='CheckpointHook', interval=3, by_epoch=False)))
    make('raw', kind, load_from='toy_whole/epoch_1.pth', **raw).train()
    runner = make('raw_resumed', kind, load_from=f'raw_{kind}/iter_3.pth', resume=True, **raw)
    runner.train()
    assert runner.val()['mean'] == runner.test()['mean']
    raw = whole_state(runner.model)
    runner.register_hook(Interrupt())
    average_of(runner).evaluate_on_ema = True
    with pytest.raises(KeyboardInterrupt):
        runner.val()
    assert_equal(whole_state(runner.model), raw)
    average_of(runner).before_train(runner)  # as where it goes on
    assert average_of(runner)._finite._ignored == set()

strategies['shared'].update(blocks=['backbone'])
strategies['flat']['model_wrapper'].update(auto_wrap_policy=ModuleWrapPolicy({CSPNeXt}))
for kind in ('whole', 'shared', 'flat'):
    forget_runs()
    cfg = Config.fromfile(sys.argv[3])
    cfg.merge_from_dict(dict(work_dir=f'rtmdet_{kind}', experiment_name=f'rtmdet_{kind}'))
    cfg.strategy = strategies[kind]
    FlexibleRunner.from_cfg(cfg).train()
finish()
"""

# Other ways to cut and to train a toy, each beside a whole average and beside a run without validations. Some processes
# have no elements of a tensor, and one of none.
SET_UPS = """
import copy
import sys
from pathlib import Path
import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import MODELS
from mmengine.runner import FlexibleRunner
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FullyShardedDataParallel, MixedPrecisionPolicy, ShardingStrategy
from mmyolo_ema import ExpMomentumEMA
from mmyolo_ema.cli.runner import finish
from mmyolo_ema.hooks.sharing import whole_on_main
from mmyolo_ema.models.fully_sharded import check_cut, whole
from mmyolo_ema.models.tensor_references import tensor_references

sys.path.insert(0, sys.argv[1])
import tests.conftest  # saves time
from tests.helpers import assert_equal, forget_runs
from tests.hooks.fsdp import fsdp1, fsdp2
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
    return {name: whole(reference.tensor) for name, reference in tensor_references(model)}


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
        with whole_on_main([average]):
            if rank == 0:
                assert_equal(average.state_dict(), self.average.state_dict())
            else:
                assert average.module.linear.weight.isnan().all()

    def before_val_epoch(self, runner):
        assert average_of(runner).ema_model.shards is not None
        assert_equal(whole_state(runner.model), whole_state(self.average.module))


def train(name, strategy, hook=(), hooks=(), val_interval=1, **options):
    forget_runs()
    runner = toy_runner(
        Path(name),
        model=dict(type='Smooth'),
        launcher='pytorch',
        kind=FlexibleRunner,
        strategy=copy.deepcopy(strategy),
        custom_hooks=[dict(toy_hook(), **dict(hook)), *hooks],
        train_cfg=dict(by_epoch=True, max_epochs=2, val_interval=val_interval),
        **options,
    )
    runner.train()
    return whole_state(runner.model), int(average_of(runner).ema_model.steps)


accumulates = dict(optim_wrapper=dict(accumulative_counts=2))
for name, (strategy, options) in dict(
    accumulated=(fsdp2(), accumulates),
    mixed=(fsdp2(mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16)), {}),
    offloaded=(fsdp2(offload_policy=CPUOffloadPolicy(pin_memory=False)), {}),
    kept=(fsdp2(reshard_after_forward=False), {}),
    flat_accumulated=(fsdp1(use_orig_params=False), accumulates),
    flat_mixed=(fsdp1(mixed_precision=dict(param_dtype='bfloat16')), {}),
    flat_kept=(fsdp1(sharding_strategy='SHARD_GRAD_OP', use_orig_params=False), {}),
).items():
    print(rank, name, flush=True)
    state, updates = train(name, strategy, hooks=[Witness()], **options)
    assert updates == (2 if options else 4)
    assert_equal(state, train(f'{name}_without', strategy, val_interval=9, **options)[0])

with pytest.raises(ValueError, match='no memory'):
    train('failing', fsdp2(), hook=dict(ema_type='Failing'))
with pytest.raises(ValueError, match="set sharding_strategy='FULL_SHARD'"):
    train('replicated', fsdp1(sharding_strategy='NO_SHARD'))
with pytest.raises(ValueError, match="set sharding_strategy='FULL_SHARD'"):
    check_cut(FullyShardedDataParallel(
        Smooth(), device_id=torch.device('cpu'), sharding_strategy=ShardingStrategy.HYBRID_SHARD,
        device_mesh=init_device_mesh('cpu', (3, 1))))
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


@pytest.mark.parametrize('kind', ['shared', 'flat', 'flattened', 'local', 'local_flat'])
def test_files_are_those_of_whole_models(folder, kind):
    runs = dict(toy=('epoch_1.pth', 'epoch_3.pth', 'best_mean_short_*.pth', 'snapshots/update_*.pth'))
    if kind.startswith('local'):
        runs = dict(toy=('snapshots/update_*.pth',))
    if kind == 'shared':
        runs.update(resumed=('epoch_3.pth',), from_one=('epoch_3.pth',))
    if kind in ('shared', 'flat'):
        runs.update(raw=('iter_3.pth', 'iter_6.pth'), raw_resumed=('iter_6.pth',), rtmdet=('epoch_1.pth',))
    for run, names in runs.items():
        for name in names:
            content = assert_same_file(folder, run, name, kind)
            assert run == 'toy' or content['ema_state_dict']['steps'] > 0
    if kind in ('shared', 'flat'):
        raw = checkpoint.read(folder / f'rtmdet_{kind}' / 'epoch_1.pth')['ema_state_dict']
        shared = [f'module.bbox_head.cls_convs.{level}.0.conv.weight' for level in range(2)]
        assert raw[shared[0]].data_ptr() == raw[shared[1]].data_ptr(), 'stored once'


def test_logs_are_those_of_whole_models(folder):
    for run, kind in dict(resumed='shared', from_one='shared', raw_resumed='flat').items():
        assert_same_log(folder, run, kind)


@pytest.mark.parametrize('kind', ['shared', 'flat'])
def test_file_tests_in_one_process(folder, kind):
    path = folder / f'rtmdet_{kind}' / 'epoch_1.pth'
    assert not call_tool('test', folder / 'detector.py', path, '--work-dir', folder / 'tested', '--launcher', 'none')


def test_ways_to_cut_and_to_train(tmp_path):
    launch(3, SET_UPS, tmp_path, str(ROOT))


def test_strategies_are_those_of_the_documentation():
    documentation = (ROOT / 'docs' / 'scale.md').read_text()
    program = (ROOT / 'tests' / 'hooks' / 'fsdp2.py').read_text().partition('\n\n')[2]
    assert f'```python\n{program}```' in documentation
    assert f'{inspect.getsource(ResumingFSDPStrategy)}```' in documentation
