"""Frozen weights: the average has them in the model's memory, and as its own from the first step that trains them."""

import copy
import pickle

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from mmyolo_ema import ExpMomentumEMA
from mmyolo_ema.hooks.weight_swap import WeightSwap
from tests.helpers import ROOT, change
from tests.models.test_tensor_plan import exchange

ALL = dict(include=['.'])


def shares(averaged, model, name='linear.weight'):
    mine, theirs = (module.get_parameter(name).data_ptr() for module in (averaged.module, model))
    return mine == theirs


@pytest.fixture
def frozen(net):
    net.linear.requires_grad_(False)
    return net


def step(model, rate=0.1):
    """Trains a model for a step, with a new optimizer."""
    optimizer = torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], rate)
    optimizer.zero_grad()
    model(torch.rand(4, 3)).square().sum().backward()
    optimizer.step()


def pair_of(model, **options):
    """Returns an average, and one of the same model that shares nothing."""
    return ExpMomentumEMA(model, 0.1, 2, **options), ExpMomentumEMA(model, 0.1, 2, **options, **ALL)


def assert_same(averaged, other):
    for name, value in other.state_dict().items():
        assert torch.equal(averaged.state_dict()[name], value), name


@pytest.mark.parametrize('update_buffers', [True, False])
def test_frozen_weights_share_the_models_memory_and_the_numbers_are_the_same(frozen, update_buffers):
    averaged, plain = pair_of(frozen, update_buffers=update_buffers)
    for _ in range(4):
        step(frozen)
        averaged.update_parameters(frozen)
        plain.update_parameters(frozen)
    assert shares(averaged, frozen)
    assert not shares(averaged, frozen, 'norm.weight')
    assert not shares(plain, frozen), 'what include names is averaged'
    assert_same(averaged, plain)


def test_average_of_a_detector_with_a_frozen_backbone_takes_what_its_trained_weights_take():
    cfg = Config.fromfile(ROOT / 'configs' / 'faster_rcnn' / 'faster-rcnn_r50_fpn_ema_1x_coco.py').model
    cfg.backbone.update(frozen_stages=4, init_cfg=None)
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(cfg)
    averaged = ExpMomentumEMA(model)
    averaged.update_parameters(model)
    models = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    own = sum(
        parameter.nbytes
        for parameter in averaged.module.parameters()
        if parameter.untyped_storage().data_ptr() not in models
    )
    trained = sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)
    assert 0 < own <= trained < sum(parameter.nbytes for parameter in model.parameters())


@pytest.mark.parametrize('rebuilt', [False, True])
def test_weight_that_is_unfrozen_is_averaged_from_its_first_step_on(frozen, rebuilt):
    averaged, plain = pair_of(frozen)
    for number in range(6):
        if number == 2:
            frozen.linear.requires_grad_(True)
        if rebuilt:
            averaged.momentum, averaged._plan = 0.1, averaged._plan if number == 2 else None
        step(frozen)
        averaged.update_parameters(frozen)
        plain.update_parameters(frozen)
    assert not shares(averaged, frozen)
    assert_same(averaged, plain)


def test_weight_that_is_unfrozen_and_written_without_an_optimizer_starts_as_a_copy(frozen):
    averaged = ExpMomentumEMA(frozen, 0.1, 1e-3)
    averaged.update_parameters(frozen)
    frozen.linear.requires_grad_(True)
    averaged.update_parameters(change(frozen))
    assert not shares(averaged, frozen)
    start = frozen.linear.weight.detach().clone()
    assert torch.equal(averaged.module.linear.weight, start)
    averaged.update_parameters(change(frozen))
    torch.testing.assert_close(averaged.module.linear.weight, start.lerp(frozen.linear.weight.detach(), 0.1))


def test_weight_that_is_frozen_in_mid_run_is_averaged_until_it_has_arrived(net):
    averaged, plain = pair_of(net)
    for number in range(4):
        net.linear.requires_grad_(number < 2)
        step(net)
        for average in (averaged, plain):
            average._plan = None
            average.update_parameters(net)
    assert not shares(averaged, net)
    assert_same(averaged, plain)


@pytest.mark.parametrize(
    'write',
    [
        lambda net: net.load_state_dict({name: value + 1 for name, value in net.state_dict().items()}),
        lambda net: net.linear.weight.data.add_(1),
    ],
    ids=['load_state_dict', 'data'],
)
def test_what_is_written_to_a_frozen_weight_is_followed(frozen, write):
    averaged = ExpMomentumEMA(frozen, 0.1, 2)
    averaged.update_parameters(frozen)
    write(frozen)
    averaged.update_parameters(frozen)
    assert torch.equal(averaged.module.linear.weight, frozen.linear.weight)


def test_frozen_weight_that_is_replaced_is_averaged(frozen):
    averaged, plain = pair_of(frozen)
    for _ in range(3):
        frozen.linear.weight.data = torch.rand(4, 3)
        averaged.update_parameters(frozen)
        plain.update_parameters(frozen)
    assert_same(averaged, plain)


@pytest.mark.parametrize(
    'moved',
    [
        copy.deepcopy,
        lambda average: pickle.loads(pickle.dumps(average)),
        lambda average: average.double().float(),
    ],
    ids=['deepcopy', 'pickle', 'converted'],
)
def test_copy_of_an_average_has_memory_of_its_own_until_its_next_update(frozen, moved):
    averaged, plain = pair_of(frozen)
    for average in (averaged, plain):
        average.update_parameters(frozen)
    averaged = moved(averaged)
    assert not shares(averaged, frozen)
    step(frozen)
    averaged.update_parameters(frozen)
    plain.update_parameters(frozen)
    assert shares(averaged, frozen)
    assert_same(averaged, plain)


def test_state_that_is_loaded_into_an_average_does_not_change_the_model(frozen):
    averaged, plain = pair_of(frozen)
    averaged.update_parameters(frozen)
    plain.update_parameters(frozen)
    before = frozen.linear.weight.detach().clone()
    state = {name: value + 1 for name, value in averaged.state_dict().items()}
    for average in (averaged, plain):
        average.load_state_dict(state)
        average.update_parameters(frozen)
    assert torch.equal(frozen.linear.weight, before)
    assert not shares(averaged, frozen), 'it differs from the model'
    assert_same(averaged, plain)


def test_what_a_validation_writes_to_a_frozen_weight_is_forgotten(frozen):
    averaged = ExpMomentumEMA(frozen, 0.1, 2)
    averaged.update_parameters(frozen)
    before = frozen.linear.weight.detach().clone()
    swap = WeightSwap(averaged.module, frozen)
    swap.swap_in()
    frozen.linear.weight.data.fill_(7)
    swap.swap_out()
    assert torch.equal(frozen.linear.weight, before)
    assert torch.equal(averaged.module.linear.weight, before)
    assert shares(averaged, frozen)


def test_exchange_of_mmengines_hook_is_right_for_shared_memory(frozen):
    averaged, plain = pair_of(frozen)
    other = copy.deepcopy(frozen)
    averaged.update_parameters(frozen)
    plain.update_parameters(other)
    step(frozen)
    other.load_state_dict(frozen.state_dict())
    for model, average in ((frozen, averaged), (other, plain)):
        exchange(model, average)
    assert_same(frozen, other)
    for model, average in ((frozen, averaged), (other, plain)):
        exchange(model, average)
    assert_same(frozen, other)
    assert_same(averaged, plain)


def test_shared_names_of_a_frozen_tensor_are_one_tensor():
    model = nn.ModuleDict(dict(first=nn.Linear(2, 2), second=nn.Linear(2, 2))).requires_grad_(False)
    model.second.weight = model.first.weight
    averaged = ExpMomentumEMA(model)
    averaged.update_parameters(model)
    assert averaged.module.second.weight is averaged.module.first.weight
    assert averaged.module.first.weight is not model.first.weight
    assert shares(averaged, model, 'first.weight')
    model.requires_grad_(True)
    averaged.update_parameters(model)
    assert averaged.module.second.weight is averaged.module.first.weight
    assert not shares(averaged, model, 'first.weight')


def test_nothing_listens_to_optimizers_when_the_average_is_gone(frozen):
    from torch.optim.optimizer import _global_optimizer_pre_hooks as hooks

    before = len(hooks)
    averaged = ExpMomentumEMA(frozen)
    averaged.update_parameters(frozen)
    assert len(hooks) == before + 1
    del averaged
    assert len(hooks) == before
