"""What is followed, what is noticed, and what is left alone."""

import copy

import pytest
import torch
from mmengine.hooks import EMAHook
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.utils import parametrizations

from mmyolo_ema import ExpMomentumEMA
from mmyolo_ema.models import exp_momentum_ema
from tests.helpers import change


@pytest.fixture
def plans(monkeypatch):
    """Counts how often the tensors are looked up."""
    made = []

    class Counted(exp_momentum_ema.TensorPlan):
        def __init__(self, *args):
            made.append(args)
            super().__init__(*args)

    monkeypatch.setattr(exp_momentum_ema, 'TensorPlan', Counted)
    return made


def copying(model, **options):
    """Returns an average that equals its source after each update, so that what is missed is seen."""
    averaged = ExpMomentumEMA(model, momentum=0.5, gamma=1e9, **options)
    averaged.update_parameters(model)
    return averaged


def test_tensors_are_looked_up_once(net, plans):
    averaged = copying(net, update_buffers=True)
    for _ in range(5):
        averaged.update_parameters(change(net))
    assert len(plans) == 1


@pytest.mark.parametrize(
    'replace',
    [
        lambda net: setattr(net, 'linear', nn.Linear(3, 4)),
        lambda net: setattr(net.linear, 'weight', nn.Parameter(torch.rand(4, 3))),
        lambda net: setattr(net.linear.weight, 'data', torch.rand(4, 3)),
        lambda net: setattr(net.norm, 'running_var', torch.rand(4)),
        lambda net: net.load_state_dict({k: v.clone() for k, v in net.state_dict().items()}, assign=True),
        lambda net: net.double(),
        lambda net: net.to(torch.float64).to(torch.float32),
        lambda net: net.linear.double(),
        lambda net: net.norm.double(),
        lambda net: setattr(net.norm.bias, 'data', net.norm.bias.data.double()),
    ],
    ids=['module', 'parameter', 'data', 'buffer', 'assign', 'double', 'to', 'linear', 'norm', 'one parameter'],
)
def test_replaced_tensors_are_noticed(net, replace, plans):
    averaged = copying(net)
    replace(net)
    averaged.update_parameters(change(net))
    assert len(plans) == 2
    for name, value in net.state_dict().items():
        torch.testing.assert_close(averaged.module.state_dict()[name], value, check_dtype=False, msg=name)


@pytest.mark.parametrize('name', ['norm.weight', 'norm.running_mean', 'linear.bias'])
def test_average_whose_tensor_is_pointed_at_the_models_memory_gets_its_own(net, name):
    averaged = ExpMomentumEMA(net, momentum=0.1, gamma=1e-3, update_buffers=True)
    averaged.update_parameters(net)
    mine, theirs = averaged.module.state_dict(keep_vars=True)[name], net.state_dict(keep_vars=True)[name]
    mine.data = theirs.data
    before = theirs.detach().clone()
    averaged.update_parameters(net)
    averaged.update_parameters(change(net))
    torch.testing.assert_close(mine.detach(), before + 0.1 * (theirs.detach() - before))


def test_child_that_calls_itself_equal_to_the_one_it_replaces_is_noticed():

    class Equal(nn.Linear):
        __hash__ = nn.Module.__hash__

        def __eq__(self, other):
            return True

    model = nn.Sequential(Equal(2, 2))
    averaged = copying(model)
    model[0] = Equal(2, 2)
    averaged.update_parameters(change(model))
    assert torch.equal(averaged.module[0].weight, model[0].weight)


@pytest.mark.parametrize(
    'change_shape',
    [
        lambda norm: setattr(norm, 'running_mean', torch.arange(7.0)),
        lambda norm: setattr(norm.running_mean, 'data', norm.running_mean.data[:1]),  # could be broadcast
        lambda norm: norm.running_mean.resize_(9).fill_(3),
        lambda norm: norm.running_mean.resize_(0),
    ],
    ids=['new', 'cut', 'grown in place', 'emptied'],
)
def test_averaged_buffer_of_another_shape_starts_anew(net, change_shape):
    averaged = ExpMomentumEMA(net, momentum=0.25, gamma=1e-3, update_buffers=True)
    averaged.update_parameters(net)
    change_shape(net.norm)
    averaged.update_parameters(net)
    assert torch.equal(averaged.module.norm.running_mean, net.norm.running_mean)
    before = net.norm.running_mean.clone()
    net.norm.running_mean.add_(4)
    averaged.update_parameters(net)
    torch.testing.assert_close(averaged.module.norm.running_mean, before + 1)


def test_empty_buffer_that_grows_in_place_is_followed(net):
    net.register_buffer('seen', torch.zeros(0))
    averaged = copying(net, update_buffers=True)
    net.seen.resize_(2).fill_(5)
    averaged.update_parameters(net)
    assert torch.equal(averaged.module.seen, torch.full((2,), 5.0))
    assert averaged.module.seen.data_ptr() != net.seen.data_ptr()


def test_buffer_of_another_shape_stays_in_the_dtype_of_the_average(net):
    averaged = copying(net)
    averaged.module.double()
    net.cache = torch.ones(5)
    averaged.update_parameters(net)
    assert averaged.module.cache.dtype == torch.float64
    assert torch.equal(averaged.module.cache, torch.ones(5).double())


def test_buffer_outside_the_checkpoint_may_come_and_go(net):
    averaged = copying(net, update_buffers=True)
    net.cache = None
    net.register_buffer('late', torch.ones(3), persistent=False)
    averaged.update_parameters(change(net))
    assert torch.equal(averaged.module.linear.weight, net.linear.weight)


def test_module_whose_only_buffer_is_an_integer_is_followed_through_conversion(net, plans):
    # As the attention of Swin, whose index stays the same object when the module is converted.
    net.linear.register_buffer('index', torch.arange(3))
    averaged = copying(net)
    averaged.module.linear.double()
    averaged.update_parameters(change(net))
    assert len(plans) == 2
    torch.testing.assert_close(averaged.module.linear.weight, net.linear.weight.double())


def test_parameter_cut_to_another_size_raises(net):
    averaged = copying(net)
    net.linear.bias.data = net.linear.bias.data[:1]  # the same memory, and it could be broadcast
    with pytest.raises(ValueError, match=r'linear\.bias \(model \(1,\), average \(4,\)\)'):
        averaged.update_parameters(net)


def test_average_that_was_given_the_tensors_of_the_model_gets_its_own(net):
    averaged = ExpMomentumEMA(net, momentum=0.1, gamma=1e-3)
    averaged.update_parameters(net)
    averaged.module.load_state_dict(net.state_dict(), assign=True)
    nn.init.constant_(averaged.module.linear.weight, 1)
    assert torch.equal(net.linear.weight, torch.ones(4, 3)), 'they share memory'
    averaged.update_parameters(net)
    nn.init.constant_(net.linear.weight, 2)
    averaged.update_parameters(net)
    torch.testing.assert_close(averaged.module.linear.weight, torch.full((4, 3), 1.1))


@pytest.mark.parametrize(
    'convert', [lambda module: module.double(), lambda module: module.linear.double()], ids=['all', 'one']
)
def test_change_of_the_averaged_module_is_noticed(net, convert):
    averaged = copying(net)
    convert(averaged.module)
    averaged.module.norm = nn.BatchNorm1d(4)
    averaged.update_parameters(change(net))
    assert averaged.module.linear.weight.dtype == torch.float64
    torch.testing.assert_close(averaged.module.norm.running_var, net.norm.running_var)


def test_new_buffer_in_a_module_that_had_none_is_noticed(net):
    averaged = copying(net)
    net.linear.register_buffer('scale', torch.ones(1))
    with pytest.raises(ValueError, match=r'Unexpected in the model: linear\.scale'):
        averaged.update_parameters(net)


def test_parametrisation_that_renames_tensors_is_named(net):
    averaged = copying(net)
    parametrizations.weight_norm(net.linear)
    with pytest.raises(
        ValueError,
        match=r'Missing from the model: linear\.weight\. Unexpected in the model: '
        r'linear\.parametrizations\.weight\.original0',
    ):
        averaged.update_parameters(net)


@pytest.mark.parametrize(
    'wrap',
    [torch.compile, DataParallel, DistributedDataParallel, lambda model: torch.compile(DistributedDataParallel(model))],
)
def test_wrappers_are_seen_through(net, process_group, wrap):
    wrapped = wrap(net)
    averaged = ExpMomentumEMA(wrapped, update_buffers=True)
    assert list(averaged.module.state_dict()) == list(net.state_dict())
    averaged.update_parameters(change(net))
    averaged.update_parameters(wrapped)
    averaged.steps.zero_()
    averaged.update_parameters(change(net) and wrapped)
    assert torch.equal(averaged.module.linear.weight, net.linear.weight)


def untied_modules():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    return model, lambda: setattr(model[1], 'weight', nn.Parameter(torch.rand(2, 2))), '0.weight and 1.weight'


def replaced_module():
    conv = nn.Conv2d(1, 1, 1)
    model = nn.Sequential(conv, conv)
    return model, lambda: model.__setitem__(1, nn.Conv2d(1, 1, 1)), '0.weight and 1.weight'


def untied_names():
    model = nn.Module()
    model.query = model.key = nn.Parameter(torch.zeros(2))
    return model, lambda: setattr(model, 'key', nn.Parameter(torch.ones(2))), 'query and key'


@pytest.mark.parametrize('case', [untied_modules, replaced_module, untied_names])
def test_model_untied_after_the_average_was_made_is_refused(case):
    model, untie, names = case()
    averaged = copying(model)
    untie()
    before = copy.deepcopy(averaged.state_dict())
    with pytest.raises(ValueError, match=f'{names} are one tensor in the average, but two in the model now'):
        averaged.update_parameters(model)
    assert all(torch.equal(value, before[name]) for name, value in averaged.state_dict().items())


@pytest.mark.parametrize(
    'view', [lambda grid: grid[:2], lambda grid: grid[2:], lambda grid: grid.view(2, 2)], ids=['start', 'end', 'all']
)
def test_views_of_one_memory_are_refused(view):
    model = nn.Module()
    model.register_buffer('grid', torch.zeros(4))
    model.register_buffer('part', view(model.grid))
    averaged = ExpMomentumEMA(model)
    with pytest.raises(ValueError, match=r'(grid and part|part and grid) are views of the same memory'):
        averaged.update_parameters(model)
    assert averaged.steps == 0


def test_parts_of_one_memory_that_do_not_overlap_are_averaged():
    # As the weights of a recurrent layer on a GPU.
    flat = torch.zeros(4)
    model = nn.Module()
    model.first, model.second = nn.Parameter(flat[:2]), nn.Parameter(flat[2:])
    averaged = copying(model)
    averaged.update_parameters(change(model))
    for name, value in model.state_dict().items():
        assert torch.equal(averaged.module.state_dict()[name], value), name


def exchange(model, averaged):
    """Exchanges the two as MMEngine's hook does before and after validation."""
    hook = EMAHook()
    hook.src_model, hook.ema_model = model, averaged
    hook._swap_ema_parameters()


def test_tensors_tied_after_the_average_was_made():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    averaged = copying(model)
    model[1].weight = model[0].weight
    averaged.update_parameters(change(model))
    assert len(list(averaged.module.parameters())) == len(list(model.parameters())) == 3
    exchange(model, averaged)
    exchange(model, averaged)
    assert averaged.module[1].weight is averaged.module[0].weight


@pytest.mark.parametrize(
    'buffer',
    [
        torch.zeros(3, 1).expand(3, 4),
        torch.zeros(2, 2).to_sparse(),
        torch.zeros(0),
        torch.zeros(2, dtype=torch.complex64),
        torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last),
    ],
    ids=['expanded', 'sparse', 'empty', 'complex', 'channels_last'],
)
@pytest.mark.parametrize('persistent', [True, False])
def test_unusual_buffers_work(buffer, persistent):
    model = nn.Linear(1, 1)
    model.register_buffer('unusual', buffer, persistent=persistent)
    averaged = copying(model)
    model.unusual = copy.deepcopy(buffer) + buffer
    for _ in range(2):
        averaged.update_parameters(model)
    torch.testing.assert_close(averaged.module.unusual, model.unusual)


def test_empty_parameter_may_change_its_dtype(net):
    net.empty = nn.Parameter(torch.zeros(0, 2))
    averaged = copying(net)
    averaged.module.empty.data = averaged.module.empty.data.double()
    for _ in range(2):
        averaged.update_parameters(net)
    assert averaged.steps == 3


def test_complex_parameters_are_averaged():
    model = nn.Module()
    model.weight = nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    averaged = ExpMomentumEMA(model, momentum=0.25, gamma=1e-3)
    averaged.update_parameters(model)
    with torch.no_grad():
        model.weight.fill_(4 + 8j)
    averaged.update_parameters(model)
    torch.testing.assert_close(averaged.module.weight.detach(), torch.full((2,), 1 + 2j, dtype=torch.complex64))
