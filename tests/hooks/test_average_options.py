"""Options of the average's class in a run: which weights it has."""

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, MODELS

from mmyolo_ema import checkpoint
from mmyolo_ema.posthoc import Fit, Reconstruction, Target, read_run
from mmyolo_ema.posthoc.build import build
from tests.helpers import assert_equal
from tests.hooks.toy import Toy, average_of, toy_hook

EXCLUDE = ['^out']


def both_of(path):
    content = checkpoint.read(path)
    return checkpoint.averaged_weights(content), checkpoint.raw_weights(content)


@pytest.fixture
def excluding(toy):
    """Returns a function that trains a run whose average lacks the last layer."""

    def train(name, **options):
        runner = toy(name, hook=toy_hook(exclude=EXCLUDE), **options)
        runner.train()
        return runner

    return train


def test_excluded_weights_are_raw_in_the_file(toy, excluding, tmp_path):
    toy('plain').train()
    excluding('run')
    (plain, raw), (averaged, own) = (both_of(tmp_path / name / 'epoch_2.pth') for name in ('plain', 'run'))
    for name in plain:
        assert torch.equal(own[name], raw[name]), name
        assert torch.equal(averaged[name], (raw if name.startswith('out') else plain)[name]), name
    assert checkpoint.read(tmp_path / 'run' / 'epoch_2.pth')['meta']['mmyolo_ema']['excluded'] == [
        'out.weight',
        'out.bias',
    ]


def test_run_with_excluded_weights_resumes(excluding, tmp_path):
    excluding('whole')
    excluding('resumed', load_from=str(tmp_path / 'whole' / 'epoch_1.pth'), resume=True)
    one, other = (checkpoint.read(tmp_path / name / 'epoch_2.pth') for name in ('whole', 'resumed'))
    for part in ('state_dict', 'ema_state_dict'):
        assert_equal(one[part], other[part])


@pytest.mark.parametrize(
    ('exclude', 'said'),
    [
        ([], '; averaged from here on: out.bias, out.weight'),
        (['^out', 'r.bias'], '; not averaged from here on: linear.bias'),
        (['^out'], ''),
    ],
)
def test_run_that_resumes_with_another_filter_says_so(toy, excluding, tmp_path, messages, exclude, said):
    excluding('run')
    toy('resumed', hook=toy_hook(exclude=exclude), load_from=str(tmp_path / 'run' / 'epoch_2.pth'), resume=True).train()
    assert f'EMA: resumed at update 12{said}' in map(str, messages)


def test_weights_that_are_averaged_from_a_resume_on_only_are_listed_and_refused_after_the_training(
    toy, excluding, tmp_path
):
    excluding('run')
    for exclude in (['out.bias'], []):
        last = max((tmp_path / 'run').glob('epoch_*.pth'))
        epochs = int(last.stem[-1]) + 1
        toy(
            'run',
            hook=toy_hook(exclude=exclude),
            load_from=str(last),
            resume=True,
            train_cfg=dict(by_epoch=True, max_epochs=epochs, val_interval=1000),
        ).train()
    about = checkpoint.read(tmp_path / 'run' / f'epoch_{epochs}.pth')['meta']['mmyolo_ema']
    assert about['averaged_from'] == {'out.weight': 12, 'out.bias': 18}
    with pytest.raises(ValueError, match=r'epoch_3\.pth: .* from a resume on only: out\.weight'):
        read_run(tmp_path / 'run')


@pytest.mark.parametrize('kind', ['mmyolo_ema.EMAHook', 'EMAHook'])
def test_buffers_that_are_averaged_from_a_resume_on_only_are_listed_too(toy, tmp_path, messages, kind):
    copying = dict(toy_hook(), type=kind, update_buffers=False)
    # A Runner that is not made of a config stores none.
    runner = toy('run', hook=copying)
    runner.cfg = Config(dict(custom_hooks=[copying]))
    runner.train()
    for name, hook in (('averaging', toy_hook()), ('copying', dict(copying, type='mmyolo_ema.EMAHook'))):
        toy(name, hook=hook, load_from=str(tmp_path / 'run' / 'epoch_1.pth'), resume=True).train()
    averaging, other = (
        checkpoint.read(tmp_path / name / 'epoch_2.pth')['meta']['mmyolo_ema'] for name in ('averaging', 'copying')
    )
    assert averaging['averaged_from'] == {'norm.running_mean': 6, 'norm.running_var': 6}
    assert 'averaged_from' not in other
    assert [str(message).count('averaged from here on: norm.running_mean') for message in messages].count(1) == 1


def test_excluded_weights_of_another_average_are_those_of_the_newest_file(excluding, tmp_path):
    excluding('run')
    run = read_run(tmp_path / 'run')
    halves = Fit(np.array([0.5, 0.5, 0, 0]), 0, 1, 0, 0)  # of both averages, and none of the raw weights
    built = build([Reconstruction(run, Target('mean', run.schedule), dict.fromkeys(run.multiplicities, halves))])[0]
    averaged = [both_of(tmp_path / 'run' / f'epoch_{epoch}.pth')[0] for epoch in (1, 2)]
    assert torch.equal(built['out.weight'], averaged[1]['out.weight'])
    torch.testing.assert_close(
        built['linear.weight'], (averaged[0]['linear.weight'] + averaged[1]['linear.weight']) / 2
    )


def test_filter_that_matches_nothing_stops_the_run_at_its_start(toy):
    with pytest.raises(ValueError, match="'teacher' matches no tensor of the model"):
        toy(hook=toy_hook(exclude=['teacher'])).train()


def test_filter_for_a_class_that_has_none_is_refused(toy):
    with pytest.raises(TypeError, match=r"no option exclude \(ema_type='mmyolo_ema.ExpMomentumEMA' has it\)"):
        toy(hook=dict(toy_hook(exclude=EXCLUDE), ema_type='mmdet.ExpMomentumEMA')).train()


@MODELS.register_module(force=True)
class Frozen(Toy):
    """Its first layer is frozen."""

    def __init__(self):
        super().__init__()
        self.linear.requires_grad_(False)


@HOOKS.register_module(force=True)
class Unfreeze(Hook):
    """Trains the first layer from the second epoch on."""

    priority = 'LOWEST'

    def before_train_epoch(self, runner):
        runner.model.linear.requires_grad_(runner.epoch > 0)


def frozen_run(toy, name, include, hook_type='mmyolo_ema.EMAHook', **options):
    hook = toy_hook(**(dict(include=include) if include else {}))
    runner = toy(
        name,
        custom_hooks=[dict(hook, type=hook_type), dict(type='Unfreeze')],
        model=dict(type='Frozen'),
        **dict(dict(train_cfg=dict(by_epoch=True, max_epochs=3)), **options),
    )
    runner.train()
    return runner


def shares_memory(runner):
    average = average_of(runner).ema_model.module
    return average.linear.weight.data_ptr() == runner.model.linear.weight.data_ptr()


@pytest.mark.parametrize('hook_type', ['mmyolo_ema.EMAHook', 'mmengine.EMAHook'])
@pytest.mark.parametrize('counts', [1, 3])
def test_frozen_weights_cost_nothing_and_change_no_file(toy, tmp_path, hook_type, counts):
    """Trains with a layer that is frozen for an epoch, sharing its memory and not; resumes at each epoch."""
    options = dict(hook_type=hook_type, optim_wrapper=dict(accumulative_counts=counts))
    one = dict(train_cfg=dict(by_epoch=True, max_epochs=1))
    assert shares_memory(frozen_run(toy, 'short', None, **options, **one))
    assert not shares_memory(frozen_run(toy, 'plain', ['.'], **options))
    assert not shares_memory(frozen_run(toy, 'run', None, **options))
    for epoch in (1, 2):
        frozen_run(
            toy,
            f'resumed_{epoch}',
            None,
            load_from=str(tmp_path / 'run' / f'epoch_{epoch}.pth'),
            resume=True,
            **options,
        )
    plain = checkpoint.read(tmp_path / 'plain' / 'epoch_3.pth')
    assert not torch.equal(plain['state_dict']['linear.weight'], plain['ema_state_dict']['module.linear.weight'])
    for name in ('run', 'resumed_1', 'resumed_2'):
        stored = checkpoint.read(tmp_path / name / 'epoch_3.pth')
        for part in ('state_dict', 'ema_state_dict', 'optimizer'):
            assert_equal(stored[part], plain[part], name)


def test_run_that_is_resumed_in_mid_run_keeps_its_frozen_weights(toy, tmp_path):
    """Loads a file whose frozen weights differ from their average into a run that shares them."""
    frozen_run(toy, 'run', None)
    path = str(tmp_path / 'run' / 'epoch_3.pth')
    averaged, raw = both_of(path)
    runner = frozen_run(toy, 'other', None, train_cfg=dict(by_epoch=True, max_epochs=1))
    assert shares_memory(runner)
    runner.resume(path)
    assert torch.equal(runner.model.linear.weight, raw['linear.weight'])
    assert torch.equal(average_of(runner).ema_model.module.linear.weight, averaged['linear.weight'])


def test_file_that_is_refused_leaves_frozen_weights_as_they_were(toy, tmp_path):
    runner = frozen_run(toy, 'run', None, train_cfg=dict(by_epoch=True, max_epochs=1))
    assert shares_memory(runner)
    content = checkpoint.read(tmp_path / 'run' / 'epoch_1.pth')
    weights = content['state_dict']
    weights.update({'linear.weight': weights['linear.weight'] + 1, 'out.bias': torch.zeros(2)})
    torch.save(content, tmp_path / 'other.pth')
    before = runner.model.linear.weight.clone()
    average_of(runner).strict_load = True
    with pytest.raises(ValueError, match='strict_load is set'):
        runner.resume(str(tmp_path / 'other.pth'))
    assert torch.equal(runner.model.linear.weight, before)


@MODELS.register_module(force=True)
class Half(Toy):
    """Its parameters are bfloat16."""

    def __init__(self):
        super().__init__()
        self.bfloat16()

    def forward(self, inputs, mode='tensor'):
        outputs = super().forward([part.bfloat16() for part in inputs], mode)
        return outputs if mode == 'loss' else [output.float() for output in outputs]


def half_run(toy, name, hook, **options):
    runner = toy(name, hook=toy_hook(evaluate_on_origin=True, **hook), model=dict(type='Half'), **options)
    runner.train()
    return runner


def test_average_in_float32_of_a_half_precision_model(toy, tmp_path):
    runner = half_run(toy, 'run', dict(dtype='float32', averages=dict(short=dict(momentum=0.3))))
    content, hook = checkpoint.read(tmp_path / 'run' / 'epoch_2.pth'), average_of(runner)
    raw = checkpoint.raw_weights(content)
    for kind, average in (('ema', hook.ema_model.module), ('short', hook.averages['short'].module)):
        averaged = checkpoint.weights_of(content, kind)
        assert average.linear.weight.dtype == torch.float32
        for weights in (averaged, raw):
            assert {value.dtype for value in weights.values()} == {torch.bfloat16, torch.int64}
        for name, parameter in average.named_parameters():
            assert torch.equal(averaged[name], parameter.bfloat16()), name
            assert torch.equal(raw[name], runner.model.get_parameter(name)), name


def test_run_that_stores_float32_resumes_bit_for_bit(toy, tmp_path):
    options = dict(dtype='float32', save_dtype='float32', averages=dict(short=dict(momentum=0.3)))
    half_run(toy, 'whole', options)
    half_run(toy, 'resumed', options, load_from=str(tmp_path / 'whole' / 'epoch_1.pth'), resume=True)
    one, other = (checkpoint.read(tmp_path / name / 'epoch_2.pth') for name in ('whole', 'resumed'))
    assert one['state_dict']['linear.weight'].dtype == torch.float32
    assert one['ema_averages']['short']['module.linear.weight'].dtype == torch.float32
    assert one['ema_state_dict']['module.linear.weight'].dtype == torch.bfloat16
    for part in ('state_dict', 'ema_state_dict', 'ema_averages'):
        assert_equal(one[part], other[part])
