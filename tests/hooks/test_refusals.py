"""Runs that are refused at their start, because their weights would silently become wrong or lost."""

from functools import partial

import pytest
from mmengine._strategy import SingleDeviceStrategy
from mmengine.registry import MODELS, STRATEGIES
from mmengine.runner import FlexibleRunner, Runner
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, StateDictType, fully_shard

from tests.hooks.toy import toy_hook

Toy = MODELS.get('Toy')


class Saving(Runner):
    """Saves in a way of its own."""

    def save_checkpoint(self, *args, **kwargs):
        raise NotImplementedError


@pytest.mark.parametrize('other', ['mmyolo_ema.EMAHook', 'mmengine.EMAHook'])
@pytest.mark.parametrize('ours_first', [True, False])
def test_two_averages_are_refused(toy, other, ours_first):
    hooks = [toy_hook(), dict(toy_hook(), type=other)]
    with pytest.raises(ValueError, match='the run has 2 EMAHooks, and would save the average of one as the raw'):
        toy(custom_hooks=hooks if ours_first else hooks[::-1]).train()


def test_two_averages_do_not_matter_to_a_test(toy):
    assert toy(custom_hooks=[toy_hook(), toy_hook()]).test() == toy().test()


def zero3():
    model = Toy()
    model.out.weight.ds_tensor = model.out.weight.detach().flatten()
    return model


def test_zero3_is_refused(toy, process_group):
    runner = toy(model=zero3())
    with pytest.raises(
        ValueError, match=r'does not work with DeepSpeed ZeRO-3: each process holds a part.* DDPStrategy'
    ):
        runner.train()


def flat(state_dict_type=None):
    model = FullyShardedDataParallel(Toy(), device_id='cpu')
    if state_dict_type is not None:
        FullyShardedDataParallel.set_state_dict_type(model, state_dict_type)
    return model


def whole_by_itself():
    model = Toy()
    model.linear = FullyShardedDataParallel(model.linear, device_id='cpu')
    return model


def whole_in_parts(**options):
    return fully_shard(Toy(), **options)


def part_only():
    model = Toy()
    fully_shard(model.linear)
    return model


@pytest.mark.parametrize(
    ('kind', 'model', 'hook', 'said'),
    [
        (
            Runner,
            whole_in_parts,
            {},
            'with FSDP: Runner does not save all of the model. Use a strategy of',
        ),
        (Runner, flat, {}, 'with FSDP: Runner does not save all of the model. Use a strategy of'),
        (
            Saving,
            partial(flat, StateDictType.SHARDED_STATE_DICT),
            {},
            "would have the form SHARDED_STATE_DICT. Set state_dict_cfg='full' or 'local'",
        ),
        (
            Saving,
            partial(flat, StateDictType.LOCAL_STATE_DICT),
            dict(dtype='float64', save_dtype='float64'),
            "save_dtype is not for state_dict_cfg='local'",
        ),
        (Saving, whole_by_itself, {}, 'FSDP leaves out norm.weight, which is trained'),
        (Saving, whole_in_parts, dict(ema_type='ExponentialMovingAverage'), 'averages whole tensors. Set ema_type='),
        (Saving, part_only, {}, 'FSDP leaves out norm.weight, which is trained'),
        (
            Saving,
            lambda: whole_in_parts(mesh=init_device_mesh('cpu', (1, 1), mesh_dim_names=('a', 'b'))),
            {},
            'linear.weight is placed as .*Replicate.* on a mesh of one dimension',
        ),
        (Saving, whole_in_parts, dict(device='cpu'), "device='cpu' is not for a model that FSDP has cut"),
    ],
    ids=['runner', 'FSDP1', 'sharded', 'save_dtype', 'FSDP1 part', 'class', 'part', 'HSDP', 'device'],
)
def test_what_no_strategy_of_parts_can_do_is_refused(toy, process_group, kind, model, hook, said):
    runner = toy(model=model(), kind=kind, custom_hooks=[dict(toy_hook(), **hook)])
    with pytest.raises(ValueError, match=said):
        runner.train()


@pytest.mark.parametrize(('name', 'engine'), [('DeepSpeedStrategy', 'DeepSpeed'), ('ColossalAIStrategy', 'ColossalAI')])
def test_strategy_that_saves_without_hooks_is_refused(toy, name, engine):
    like_it = type(f'Toy{name}', (type(name, (SingleDeviceStrategy,), {}),), {})
    STRATEGIES.register_module(module=like_it, force=True)
    runner = toy(kind=FlexibleRunner, strategy=dict(type=f'Toy{name}'))
    with pytest.raises(ValueError, match=f'does not work with {engine}: its strategy saves and resumes without'):
        runner.train()
