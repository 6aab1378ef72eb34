"""What is wrong in the classes of MMEngine and MMDetection, and right in ours.

Each test runs on our class and, where MMDetection's has the defect, on that too: there it must fail.
"""

import copy
import inspect
import pickle
import re

import pytest
import torch
from mmdet.models.layers import ExpMomentumEMA as Parent
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from mmyolo_ema import ExpMomentumEMA
from tests.helpers import change

ours = pytest.param(ExpMomentumEMA, id='ours')
also_upstream = pytest.mark.parametrize('ema_class', [ours, pytest.param(Parent, id='mmdet')])


def fails_upstream(error, text):
    """Runs a test on our class, and on MMDetection's, where it must fail with an error of that text."""
    marks = pytest.mark.defect(error, text)
    return pytest.mark.parametrize('ema_class', [ours, pytest.param(Parent, id='mmdet', marks=marks)])


def fails_with_lerp(error, text):
    """As fails_upstream, but for the class of mmdet that averages by mul_ and add_, not by lerp_."""
    return fails_upstream(error, text) if 'lerp_' in inspect.getsource(Parent.avg_func) else also_upstream


MOMENTUM = 0.1


def make(ema_class, model, **options):
    """Returns an average past its first update, with a constant momentum of 0.1."""
    averaged = ema_class(model, momentum=MOMENTUM, gamma=1e-3, **options)
    averaged.update_parameters(model)
    return averaged


def moved(before, source):
    return before + MOMENTUM * (source - before)


@also_upstream
def test_buffers_follow_the_model_without_update_buffers(ema_class, net):
    averaged = make(ema_class, net)
    for _ in range(3):
        averaged.update_parameters(change(net))
    assert torch.equal(averaged.module.norm.running_var, net.norm.running_var)


class SharedTwice(nn.Module):
    """One convolution under three names, one parameter under two, as RTMDet's and others' heads hold them."""

    def __init__(self):
        super().__init__()
        conv = nn.Conv2d(1, 1, 1)
        self.levels = nn.ModuleList([conv, conv, conv])
        self.tied = nn.Linear(1, 1)
        self.tied.weight = nn.Parameter(torch.zeros(1, 1))
        self.other = nn.Linear(1, 1)
        self.other.weight = self.tied.weight


@fails_upstream(AssertionError, 'Tensor-likes are not close')
def test_shared_tensor_is_averaged_once(ema_class):
    model = SharedTwice().double()
    averaged = make(ema_class, model, update_buffers=True)
    before = copy.deepcopy(averaged.module)
    nn.init.constant_(model.levels[0].weight, 5)
    nn.init.constant_(model.tied.weight, 7)
    averaged.update_parameters(model)
    torch.testing.assert_close(averaged.module.levels[2].weight, moved(before.levels[0].weight, 5.0))
    torch.testing.assert_close(averaged.module.other.weight, moved(before.tied.weight, 7.0))


@fails_upstream(AssertionError, 'Tensor-likes are not close')
def test_shared_convolutions_of_rtmdet_are_averaged_once(ema_class, detector):
    detector = detector.double()
    averaged = make(ema_class, detector, update_buffers=True)
    before = averaged.module.bbox_head.cls_convs[0][0].conv.weight.clone()
    averaged.update_parameters(change(detector))
    conv = detector.bbox_head.cls_convs[0][0].conv
    assert detector.bbox_head.cls_convs[2][0].conv is conv
    torch.testing.assert_close(averaged.module.bbox_head.cls_convs[0][0].conv.weight, moved(before, conv.weight))


@also_upstream
def test_the_given_model_is_averaged(ema_class, net):
    averaged = make(ema_class, net)
    before = averaged.module.linear.weight.clone()
    other = change(copy.deepcopy(net))
    averaged.update_parameters(other)
    torch.testing.assert_close(averaged.module.linear.weight, moved(before, other.linear.weight))


@pytest.mark.gpu
@pytest.mark.parametrize(('model_on', 'average_on'), [('cuda', 'cpu'), ('cpu', 'cuda')])
def test_average_on_another_device(net, model_on, average_on):
    averaged = make(ExpMomentumEMA, net.to(model_on), device=average_on, update_buffers=True)
    before = averaged.module.linear.weight.clone()
    averaged.update_parameters(change(net))
    assert averaged.module.linear.weight.device.type == average_on
    torch.testing.assert_close(averaged.module.linear.weight, moved(before, net.linear.weight.to(average_on)))


@also_upstream
@pytest.mark.parametrize('update_buffers', [True, False])
def test_reassigned_tensors_are_followed(ema_class, net, update_buffers):
    averaged = make(ema_class, net, update_buffers=update_buffers)
    before = copy.deepcopy(averaged.module)
    net.linear.weight = nn.Parameter(torch.full((4, 3), 3.0))
    net.norm.running_mean = torch.full((4,), 2.0)
    net.linear.bias.data = torch.ones(4)
    averaged.update_parameters(net)
    torch.testing.assert_close(averaged.module.linear.weight, moved(before.linear.weight, 3.0))
    torch.testing.assert_close(averaged.module.linear.bias, moved(before.linear.bias, 1.0))
    expected = moved(before.norm.running_mean, 2.0) if update_buffers else torch.full((4,), 2.0)
    torch.testing.assert_close(averaged.module.norm.running_mean, expected)


@fails_with_lerp(RuntimeError, 'expected dtype float for `end` but got dtype double')
def test_model_in_another_dtype_is_followed(ema_class, net):
    averaged = make(ema_class, net, update_buffers=True)
    before = averaged.module.linear.weight.clone()
    averaged.update_parameters(change(net.double()))
    assert averaged.module.linear.weight.dtype == torch.float32
    torch.testing.assert_close(averaged.module.linear.weight, moved(before, net.linear.weight.float()))
    torch.testing.assert_close(
        averaged.module.norm.running_var.double(), moved(1.0, net.norm.running_var), rtol=0, atol=1e-6
    )


def unpickled(averaged):
    return pickle.loads(pickle.dumps(averaged))


@fails_upstream((AssertionError, RuntimeError), 'Tensor-likes are not close|expected dtype float for `end`')
@pytest.mark.parametrize('convert', [nn.Module.double, copy.deepcopy, unpickled], ids=['double', 'deepcopy', 'pickle'])
def test_average_is_followed_through_conversion_and_copy(ema_class, net, convert):
    averaged = convert(make(ema_class, net, update_buffers=True))
    before = copy.deepcopy(averaged.module)
    change(net)
    if convert is nn.Module.double:
        net.double()
    averaged.update_parameters(net)
    torch.testing.assert_close(averaged.module.linear.weight, moved(before.linear.weight, net.linear.weight))
    torch.testing.assert_close(averaged.module.norm.running_var, moved(before.norm.running_var, net.norm.running_var))


@also_upstream
@pytest.mark.parametrize('duplicate', [copy.deepcopy, unpickled])
def test_copy_of_an_average_is_independent(ema_class, net, duplicate):
    averaged = make(ema_class, net)
    twin = duplicate(averaged)
    before = averaged.module.linear.weight.clone()
    twin.update_parameters(change(net))
    assert torch.equal(averaged.module.linear.weight, before)
    assert (averaged.steps, twin.steps) == (1, 2)


@fails_with_lerp(AssertionError, r'\(tensor\(\[0\., nan\]\), tensor\(\[0\., -inf\]\)\)')
def test_mask_with_infinities_is_copied(ema_class, net):
    net.register_buffer('mask', torch.tensor([0.0, -float('inf')]))
    averaged = make(ema_class, net, update_buffers=True)
    averaged.update_parameters(net)
    assert torch.equal(averaged.module.mask, net.mask)


@fails_upstream(AssertionError, r'assert tensor\(0\) == tensor\(1\)')
def test_integers_and_flags_are_copied_at_each_update(ema_class, net):
    averaged = make(ema_class, net, update_buffers=True)
    averaged.update_parameters(change(net))
    assert averaged.module.norm.num_batches_tracked == net.norm.num_batches_tracked == 1
    assert averaged.module.flag == net.flag == torch.tensor(True)


@fails_upstream(AssertionError, r'equal .*\(tensor\(\[0\., 0\.\]\), ')
def test_buffers_outside_the_checkpoint_are_copied_at_each_update(ema_class, net):
    averaged = make(ema_class, net, update_buffers=True)
    averaged.update_parameters(change(net))
    assert torch.equal(averaged.module.cache, net.cache)


@fails_upstream((AssertionError, RuntimeError), r'equal .*\(tensor\(\[0\.\]\), |match the broadcast shape \[5\]')
@pytest.mark.parametrize('persistent', [True, False])
@pytest.mark.parametrize('update_buffers', [True, False])
def test_buffer_that_changes_its_shape_is_followed(ema_class, net, persistent, update_buffers):
    net.register_buffer('table', torch.zeros(1), persistent=persistent)
    averaged = make(ema_class, net, update_buffers=update_buffers)
    before = averaged.module.linear.weight.clone()
    net.register_buffer('table', torch.arange(5.0), persistent=persistent)
    change(net)
    averaged.update_parameters(net)
    assert torch.equal(averaged.module.table, net.table)
    torch.testing.assert_close(averaged.module.linear.weight, moved(before, net.linear.weight))


class Student(nn.Module):
    """Keeps a teacher, and more that is not its own, where no child is looked for."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.layers = [self.layer]
        object.__setattr__(self, 'teacher', nn.Linear(2, 2))
        self.others = dict(teachers=[nn.Linear(2, 2)])
        self.prior = torch.zeros(2)


@fails_upstream(AssertionError, r'assert Linear\(.*\) is Linear\(.*\)')
def test_what_is_no_child_of_the_model_is_shared(ema_class):
    model = Student()
    copied = ema_class(model).module
    assert copied.layers[0] is copied.layer
    assert copied.layer is not model.layer
    assert copied.teacher is model.teacher
    assert copied.others['teachers'][0] is model.others['teachers'][0]
    assert copied.prior is model.prior


class Computed(nn.Module):
    """Keeps what it has computed, with its graph; torch copies no such tensor."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.wrapped = [nn.Sequential(self.layer)]
        self.features = self.layer.weight * 2


@fails_upstream(RuntimeError, 'Only Tensors created explicitly by the user')
def test_model_that_keeps_a_computed_tensor_can_be_averaged(ema_class):
    model = Computed()
    averaged = make(ema_class, model)
    assert averaged.module.features is model.features
    assert averaged.module.wrapped[0][0] is averaged.module.layer


class Counting(nn.Module):
    """Keeps a number in its state that is no tensor."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.seen = [0]

    def get_extra_state(self):
        return self.seen

    def set_extra_state(self, state):
        self.seen = state


@fails_upstream(AttributeError, "'list' object has no attribute 'data'")
def test_extra_state_is_copied_at_each_update(ema_class):
    model = Counting()
    averaged = make(ema_class, model, update_buffers=True)
    model.seen.append(1)
    averaged.update_parameters(model)
    assert averaged.module.seen == [0, 1]
    assert averaged.module.seen is not model.seen


@fails_upstream(AssertionError, r'where 0 = len\(\[\]\)')
@pytest.mark.parametrize(('dtype', 'momentum'), [(torch.bfloat16, 1e-3), (torch.float16, 2e-4), (torch.float32, 1e-6)])
def test_dtype_too_coarse_for_the_momentum_warns(ema_class, messages, dtype, momentum):
    model = nn.Linear(2, 2).to(dtype)
    averaged = ema_class(model, momentum=momentum)
    averaged.update_parameters(model)
    averaged.update_parameters(model)
    warnings = [message for message in messages if str(dtype) in message]
    assert len(warnings) == 1
    assert 'float32' in warnings[0]


def test_usual_momentum_in_float32_does_not_warn(net, messages):
    make(ExpMomentumEMA, net)
    ExpMomentumEMA(net, momentum=1e-4).update_parameters(net)
    assert not messages


@pytest.mark.parametrize(('dtype', 'momentum'), [(torch.bfloat16, 1e-3), (torch.float16, 2e-4)])
def test_average_in_half_precision_never_moves(dtype, momentum):
    # Why the warning is there: half a unit in the last place is never crossed, however many updates there are.
    model = nn.Linear(1, 1, bias=False).to(dtype)
    nn.init.constant_(model.weight, 1.0)
    averaged = ExpMomentumEMA(model, momentum=momentum, gamma=1e-3)
    averaged.update_parameters(model)
    nn.init.constant_(model.weight, 1.5)
    for _ in range(100):
        averaged.update_parameters(model)
    assert averaged.module.weight.item() == 1.0


@fails_upstream(KeyError, 'linear.weight')
@pytest.mark.parametrize('update_buffers', [True, False])
def test_other_names_raise_and_are_listed(ema_class, net, update_buffers):
    averaged = make(ema_class, net, update_buffers=update_buffers)
    before = copy.deepcopy(averaged.state_dict())
    net.extra = nn.Linear(1, 1, bias=False)
    del net.linear
    with pytest.raises(ValueError, match=re.escape('linear.weight, linear.bias')) as caught:
        averaged.update_parameters(net)
    assert 'Unexpected in the model: extra.weight' in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in averaged.state_dict().items())


@fails_upstream(pytest.fail.Exception, 'DID NOT RAISE')
def test_other_shapes_raise_and_are_listed(ema_class, net):
    averaged = make(ema_class, net)
    net.norm = nn.BatchNorm1d(1)  # a single number would be broadcast over the averaged four
    with pytest.raises(ValueError, match=re.escape('norm.weight (model (1,), average (4,))')):
        averaged.update_parameters(net)


class Operators(TorchDispatchMode):
    """Records the names of the operators that run."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@fails_upstream(AssertionError, 'assert 0 == 1')
@pytest.mark.parametrize('update_buffers', [True, False])
def test_step_is_one_call_for_each_device_and_dtype(ema_class, detector, update_buffers):
    averaged = make(ema_class, detector, update_buffers=update_buffers)
    averaged.update_parameters(detector)
    with Operators() as operators:
        averaged.update_parameters(detector)
    assert operators.names.count('aten._foreach_lerp_.Scalar') == 1
    # Copies: integers and floating buffers. And the count of steps.
    assert operators.names.count('aten._foreach_copy_.default') == 2
    assert operators.names.count('aten.add_.Tensor') == 1
    assert operators.names.count('aten._local_scalar_dense.default') == 1  # reads the count, which is on the CPU
    assert len(operators.names) == 5, operators.names


@fails_upstream(AssertionError, 'assert 6 == 1')
def test_momentum_is_computed_once_a_step(ema_class, net, monkeypatch):
    averaged = make(ema_class, net, update_buffers=True)
    calls = []
    import mmdet.models.layers.ema as parents_module

    from mmyolo_ema.schedules import Ramp

    class Math:
        @staticmethod
        def exp(value):
            calls.append(value)
            return 0.0

    monkeypatch.setattr(parents_module, 'math', Math)
    monkeypatch.setattr(Ramp, 'momentum_at', lambda *args: calls.append(args) or 0.5)
    averaged.update_parameters(net)
    assert len(calls) == 1


@pytest.mark.gpu
@pytest.mark.parametrize('device', [None, 'cuda'])
def test_step_does_not_wait_for_the_gpu(net, device):
    averaged = make(ExpMomentumEMA, net.cuda(), device=device, update_buffers=True)
    averaged.update_parameters(net)
    torch.cuda.set_sync_debug_mode('error')
    try:
        averaged.update_parameters(net)
    finally:
        torch.cuda.set_sync_debug_mode('default')
    assert averaged.steps == 3


@fails_upstream(TypeError, 'cannot pickle .*ProcessGroup')
def test_sync_batch_norm_with_a_process_group_can_be_averaged(ema_class, process_group):
    model = nn.Sequential(nn.Linear(2, 2), nn.SyncBatchNorm(2, process_group=process_group))
    averaged = make(ema_class, model)
    nn.init.constant_(model[1].weight, 3)
    averaged.update_parameters(model)
    assert averaged.module[1].process_group is process_group
    torch.testing.assert_close(averaged.module[1].weight, torch.full((2,), 1.2))
