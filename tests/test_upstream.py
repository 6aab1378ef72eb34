"""The private names of MMEngine, MMDetection and torch are there, mean the same, and are used in one place."""

import ast
from operator import attrgetter

import pytest
import torch
from mmdet.evaluation import CocoMetric
from mmengine.evaluator import Evaluator
from mmengine.hooks import EMAHook
from mmengine.logging import MessageHub
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from pycocotools.coco import COCO
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.optim import SGD
from torch.serialization import safe_globals
from torch.utils.data import DataLoader

from mmyolo_ema import _upstream
from tests.helpers import ROOT, forget_runs

# Private names that other files may use.
ELSEWHERE = {
    '_parameters',
    '_buffers',
    '_modules',  # torch's documentation uses them
    '_load_from_state_dict',
    '_save_to_state_dict',  # documented as what a module may override
    '_metadata',  # written into files, where it cannot change
    '_replace',
    '_asdict',
    '_getframe',
    '_exit',
    '_run_exitfuncs',  # Python's own
}


class OwnState(nn.Linear):
    """Has a state beside its tensors."""

    def get_extra_state(self):
        return 'extra'


class Empty(BaseModel):
    def forward(self, inputs, mode='tensor'):
        return inputs


@pytest.fixture
def make_runner(tmp_path):
    """Returns a function that makes a runner with all three loops, for a model without weights."""

    def make(**options):
        forget_runs()
        loader = DataLoader([1])
        return Runner(
            Empty(),
            str(tmp_path),
            train_dataloader=loader,
            val_dataloader=loader,
            test_dataloader=loader,
            train_cfg=dict(by_epoch=True, max_epochs=1),
            val_cfg=dict(),
            test_cfg=dict(),
            log_level='WARNING',
            optim_wrapper=OptimWrapper(SGD([torch.ones(1)], lr=0.1)),
            val_evaluator=Evaluator([]),
            test_evaluator=Evaluator([]),
            **options,
        )

    return make


@pytest.fixture
def runner(make_runner):
    return make_runner()


def private_names(path):
    """Yields what a file imports, or takes from anything but its own objects, that has one underscore at its front."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) not in ('self', 'cls'):
            yield node.attr
        elif isinstance(node, ast.ImportFrom) and not node.module.startswith('mmyolo_ema'):
            yield from [part for alias in node.names for part in [*node.module.split('.'), alias.name]]


def test_no_other_file_uses_a_private_name():
    used = {
        (path.name, name)
        for path in (ROOT / 'mmyolo_ema').rglob('*.py')
        if path.name != '_upstream.py'
        for name in private_names(path)
        if name.startswith('_') and not name.startswith('__')
    }
    assert [pair for pair in used if pair[1] not in ELSEWHERE] == []


@pytest.mark.parametrize(
    'name',
    [
        'torch._foreach_lerp_',
        'torch._foreach_copy_',
        'torch._foreach_norm',
        'torch.nn.modules.module._EXTRA_STATE_KEY_SUFFIX',
        'torch.nn.Module._save_to_state_dict',
        'torch._weights_only_unpickler._get_allowed_globals',
        'torch._weights_only_unpickler._get_user_allowed_globals',
        'torch.distributed.fsdp._runtime_utils._reshard',
    ],
)
def test_name_is_there(name):
    assert attrgetter(name.removeprefix('torch.'))(torch) is not None


@pytest.mark.parametrize('name', ['_train_loop', '_val_loop', '_test_loop', '_resume', '_load_from'])
def test_runner_has_the_attribute(runner, name):
    assert name in vars(runner), f'MMEngine renamed Runner.{name}'


def test_loops_that_a_runner_has_made(runner):
    assert (_upstream.has_training_loop(runner), _upstream.evaluation_loops(runner)) == (False, [])
    loops = [runner.val_loop, runner.test_loop]
    assert (_upstream.has_training_loop(runner), _upstream.evaluation_loops(runner)) == (False, loops)
    assert runner.train_loop
    assert _upstream.has_training_loop(runner)


@pytest.mark.parametrize('resume', [True, False])
def test_runner_that_is_made_to_resume(make_runner, resume):
    assert _upstream.is_made_to_resume(make_runner(resume=resume)) is resume


@pytest.mark.parametrize('begin', ['begin_iter', 'begin_epoch'])
def test_hook_says_when_averaging_begins(runner, begin):
    assert runner.train_loop
    assert _upstream.averaging_has_begun(EMAHook(), runner)
    assert not _upstream.averaging_has_begun(EMAHook(**{begin: 2}), runner)


def test_wrapper_says_how_many_iterations_a_step_takes(net):
    wrapper = OptimWrapper(SGD(net.parameters(), lr=0.1), accumulative_counts=3)
    assert _upstream.iterations_per_step(wrapper) == 3, 'MMEngine renamed OptimWrapper._accumulative_counts'
    assert _upstream.iterations_per_step(object()) == 1


def test_torch_marks_the_optimizers_that_it_hooks(net):
    optimizer = type('Fresh', (SGD,), dict(step=lambda self: None))
    assert not _upstream.has_step_hooks(optimizer)
    optimizer(net.parameters())
    assert _upstream.has_step_hooks(optimizer), 'torch renamed the mark Optimizer.step.hooked'


@pytest.mark.parametrize(('gradient', 'skipped'), [(1.0, False), (float('inf'), True)])
def test_scaler_tells_a_fused_optimizer_to_skip(gradient, skipped):
    weight = nn.Parameter(torch.ones(2))
    weight.grad = torch.full((2,), gradient)
    optimizer, said = SGD([weight], lr=0.1, fused=True), []
    optimizer.register_step_post_hook(lambda stepped, *_: said.append(_upstream.is_skipped(stepped)))
    scaler = torch.amp.GradScaler('cpu')
    scaler.scale(torch.ones(()))
    scaler.step(optimizer)
    assert said == [skipped], "torch renamed the gradient scaler's Optimizer.found_inf"
    assert not _upstream.is_skipped(optimizer)


def test_loader_says_whether_its_workers_have_started():
    assert not _upstream.will_start_workers(DataLoader([1]))
    loader = DataLoader([1], num_workers=1, persistent_workers=True)
    assert _upstream.will_start_workers(loader)
    iterator = iter(loader)
    assert not _upstream.will_start_workers(loader)
    assert list(iterator) == [torch.tensor([1])]


def test_hub_of_before_is_the_current_one_again():
    before = MessageHub.get_instance('before')
    MessageHub.get_instance('later')
    _upstream.remove_message_hub('later')
    assert MessageHub.get_current_instance() is before


def test_metric_has_read_its_ground_truth():
    annotations = str(ROOT / 'demo' / 'nuclei' / 'val.json')
    read = _upstream.read_ground_truth(CocoMetric(ann_file=annotations))
    assert read.get_img_ids() == COCO(annotations).getImgIds(), 'MMDetection renamed CocoMetric._coco_api'
    assert _upstream.read_ground_truth(CocoMetric()) is None


@pytest.mark.parametrize('layer', [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm])
def test_layers_are_batch_norms(layer):
    assert issubclass(layer, _upstream.BatchNorm)
    assert not issubclass(nn.GroupNorm, _upstream.BatchNorm)


def test_module_says_which_buffers_its_state_has(net):
    assert [_upstream.is_persistent(net, name) for name in ('flag', 'cache')] == [True, False]


def test_own_state_is_without_children(net):
    state = {}
    _upstream.add_own_state(net, state)
    assert list(state) == ['flag']


def test_extra_state_has_the_suffix():
    assert [name for name in OwnState(1, 1).state_dict() if name.endswith(_upstream.EXTRA_STATE_SUFFIX)] == [
        '_extra_state'
    ]


def test_compiled_module_is_under_its_name(net):
    compiled = torch.compile(net)
    assert compiled._modules.get(_upstream.COMPILED) is net, 'torch renamed OptimizedModule._orig_mod'


@pytest.mark.parametrize('uses_own', [True, False])
def test_flat_parameter_says_where_its_parts_are(net, process_group, uses_own):
    weight = net.linear.weight.detach().clone()
    wrapper = FullyShardedDataParallel(net, device_id=torch.device('cpu'), use_orig_params=uses_own)
    assert wrapper.get_submodule(_upstream.FSDP_WRAPPED) is net
    (handle,) = _upstream.flat_handles(wrapper)
    place = next(place for place in _upstream.flat_ranges(handle) if place.holders == [(net.linear, 'weight')])
    assert (place.shape, place.stride) == (weight.shape, weight.stride())
    own = _upstream.local_shard(handle)[place.offset :][: place.stop - place.start]
    assert torch.equal(own, weight.flatten()[place.start : place.stop])
    _upstream.reshard_flat(wrapper)  # before the first forward


def test_fused_calls_do_what_one_call_for_each_tensor_does():
    averaged, source = [torch.zeros(2), torch.ones(3)], [torch.ones(2), torch.full((3,), 5.0)]
    _upstream.lerp_all(averaged, source, 0.25)
    assert [tensor.tolist() for tensor in averaged] == [[0.25] * 2, [2.0] * 3]
    assert all(map(torch.equal, _upstream.norms_of(source), map(torch.norm, source)))
    _upstream.copy_all(averaged, source)
    assert all(map(torch.equal, averaged, source))


def test_safe_reader_knows_only_what_it_is_given(tmp_path):
    torch.save(torch.Size([1]), tmp_path / 'size.pth')
    with safe_globals([OwnState]):
        of_torch, of_user = _upstream.allowed_globals()
        assert of_torch['torch.Size'] is torch.Size
        assert of_user[f'{__name__}.OwnState'] is OwnState
        with _upstream.only_allowed({}), pytest.raises(Exception, match=r'torch\.Size'):
            torch.load(tmp_path / 'size.pth', weights_only=True)
        with _upstream.only_allowed({'torch.Size': torch.Size}):
            assert torch.load(tmp_path / 'size.pth', weights_only=True) == (1,)
        assert _upstream.allowed_globals() == (of_torch, of_user)
