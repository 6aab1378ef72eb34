"""How a run takes its average from a file, and what it says about it."""

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.runner import Runner
from torch import nn

from mmyolo_ema import checkpoint
from mmyolo_ema.hooks.stored_average import store
from mmyolo_ema.models import ExpMomentumEMA
from tests.hooks.toy import average_of, toy_hook


def said(messages):
    return [
        str(message)
        for message in messages
        if str(message).startswith('EMA: ') and 'drawn' not in str(message) and 'do not suit' not in str(message)
    ]


@pytest.fixture
def file(toy, tmp_path):
    """Returns the path of a checkpoint after 12 updates."""
    toy('before').train()
    return tmp_path / 'before' / 'epoch_2.pth'


def without(path, part):
    content = checkpoint.read(path)
    del content[part]
    torch.save(content, path)
    return str(path)


def test_resumed_run_says_at_which_update(toy, file, messages):
    toy(load_from=str(file), resume=True).train()
    assert said(messages) == ['EMA: resumed at update 12']


def test_run_from_a_file_with_an_average_says_that_the_ramp_starts_again(toy, file, messages):
    runner = toy(load_from=str(file))
    runner.train()
    assert said(messages) == [
        'EMA: starts anew from the averaged weights of 12 updates in the file; its ramp starts '
        'again. To go on with that average, resume the run'
    ]
    assert average_of(runner).ema_model.steps == 12


@pytest.mark.parametrize('resume', [True, False])
def test_run_from_a_file_without_an_average_says_so(toy, file, messages, resume):
    runner = toy(load_from=without(file, 'ema_state_dict'), resume=resume, train_cfg=dict(by_epoch=True, max_epochs=3))
    runner.train()
    assert said(messages) == ['EMA: starts from a file without EMA, from its weights']


def test_loaded_average_is_that_of_the_file(toy, file):
    runner = toy(load_from=str(file), resume=True)
    runner.train()  # nothing is left to train
    content = checkpoint.read(file)
    for name, value in average_of(runner).ema_model.module.state_dict().items():
        assert torch.equal(value, content['state_dict'][name])
    for name, value in runner.model.state_dict().items():
        assert torch.equal(value, checkpoint.raw_weights(content)[name])


@pytest.fixture
def other_classes(trained, demo_config):
    """Returns a function that makes a run from a one-class checkpoint with three classes."""
    no_validation = dict.fromkeys(('val_dataloader', 'val_cfg', 'val_evaluator'))

    def make(**options):
        return demo_config(
            'fine-tune',
            load_from=str(trained),
            **{'model.bbox_head.num_classes': 3, 'train_cfg.max_epochs': 1, **no_validation, **options},
        )

    return make


@pytest.mark.slow
def test_fine_tuning_with_other_classes_loads_what_fits_and_names_the_rest(other_classes, messages):
    checkpoint.use_safe_loader()
    Runner.from_cfg(other_classes()).train()
    line = next(line for line in said(messages) if 'starts anew' in line)
    for level in range(3):
        assert f'bbox_head.rtm_cls.{level}.weight (checkpoint (1, 32, 1, 1), model (3, 32, 1, 1))' in line
        assert f'bbox_head.rtm_cls.{level}.bias (checkpoint (1,), model (3,))' in line
    assert 'backbone' not in line
    assert 'resume' not in line


def test_strict_load_refuses_other_classes(other_classes):
    checkpoint.use_safe_loader()
    with pytest.raises(ValueError, match=r'strict_load is set, .*rtm_cls\.0\.weight'):
        Runner.from_cfg(other_classes(**{'custom_hooks.0.strict_load': True})).train()


def test_strict_load_accepts_what_fits(toy, file):
    for options in (dict(resume=True), {}):
        runner = toy(hook=toy_hook(strict_load=True), load_from=str(file), **options)
        runner.train()
        assert average_of(runner).ema_model.steps == 12


@pytest.mark.parametrize('kind', ['averaged', 'raw'])
def test_strict_load_looks_at_both_kinds(toy, file, kind):
    content = checkpoint.read(file)
    part, name = dict(averaged=('state_dict', 'out.bias'), raw=('ema_state_dict', 'module.out.bias'))[kind]
    content[part][name] = torch.zeros(2)
    torch.save(content, file)
    with pytest.raises(ValueError, match=r'of another shape or kind: out\.bias \(checkpoint \(2,\), model \(1,\)\)'):
        toy(hook=toy_hook(strict_load=True), load_from=str(file), resume=True).train()


@pytest.mark.parametrize(('steps', 'updates'), [(None, 6), (12, 18), (torch.tensor([12]), 18)], ids=str)
def test_count_of_updates_may_be_of_another_kind_or_missing(toy, file, messages, steps, updates):
    content = checkpoint.read(file)
    content['ema_state_dict']['steps'] = steps
    torch.save(content, file)
    runner = toy(load_from=str(file), resume=True, train_cfg=dict(by_epoch=True, max_epochs=3))
    runner.train()
    assert average_of(runner).ema_model.steps == updates
    assert any('the count of updates (steps) is missing' in line for line in said(messages)) == (steps is None)


def test_strict_load_refuses_a_file_without_the_count_of_updates(toy, file):
    content = checkpoint.read(file)
    del content['ema_state_dict']['steps']
    torch.save(content, file)
    with pytest.raises(ValueError, match=r'the count of updates \(steps\) is missing'):
        toy(hook=toy_hook(strict_load=True), load_from=str(file), resume=True).train()


def test_names_with_the_prefix_of_a_wrapper_resume(toy, file):
    content = checkpoint.read(file)
    averaged = content['state_dict']
    content['state_dict'] = {f'module.{name}': value for name, value in averaged.items()}
    torch.save(content, file)
    runner = toy(hook=toy_hook(strict_load=True), load_from=str(file), resume=True)
    runner.train()
    for name, value in average_of(runner).ema_model.module.state_dict().items():
        assert torch.equal(value, averaged[name])
    for name, value in runner.model.state_dict().items():
        assert torch.equal(value, checkpoint.raw_weights(content)[name])


class Growing(nn.Module):
    """A module whose state is a tensor of another length each time, and whose name has a space in it."""

    def __init__(self):
        super().__init__()
        self.states = 0

    def get_extra_state(self):
        self.states += 1
        return torch.zeros(self.states)

    def set_extra_state(self, state):
        self.states = len(state)


def test_extra_states_and_odd_names_load(toy, tmp_path):

    def model(width):
        toy_model = MODELS.build(dict(type='Toy'))
        toy_model.parts = nn.ModuleDict({'traffic light': nn.Linear(1, width), 'growing': Growing()})
        return toy_model

    toy(hook=toy_hook(strict_load=True), model=model(1)).train()
    path = str(tmp_path / 'run' / 'epoch_1.pth')
    runner = toy('resumed', hook=toy_hook(strict_load=True), model=model(1), load_from=path, resume=True)
    runner.train()
    assert average_of(runner).ema_model.steps == 12
    toy('wider', model=model(2), load_from=path).train()


def test_shared_tensors_are_stored_once(detector):
    averaged = ExpMomentumEMA(detector)
    averaged.update_parameters(detector)
    content = dict(state_dict=dict(detector.state_dict()))
    store(content, dict(ema=averaged), has_begun=True)
    weights = content['state_dict']
    first, second = (weights[f'bbox_head.cls_convs.{level}.0.conv.weight'] for level in (0, 1))
    assert first.data_ptr() == second.data_ptr()
    assert first.data_ptr() != averaged.module.bbox_head.cls_convs[0][0].conv.weight.data_ptr()


def test_checkpoint_loads_before_any_run(toy, file):
    toy().load_checkpoint(str(file))


class Renaming(BaseModel):
    """A regression whose ``head`` was called ``b`` in older files."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 1)

    def forward(self, inputs, mode='tensor'):
        output = self.head(torch.stack(inputs))
        return dict(loss=output.square().mean() + output.mean()) if mode == 'loss' else list(output)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        for name in [name for name in state_dict if name.startswith(f'{prefix}b.')]:
            state_dict[name.replace('b.', 'head.')] = state_dict.pop(name)
        super()._load_from_state_dict(state_dict, prefix, *args)


def test_names_that_the_model_understands_when_it_loads_resume(toy, tmp_path, messages):
    toy(model=Renaming()).train()
    path = tmp_path / 'run' / 'epoch_1.pth'
    content = checkpoint.read(path)
    averaged, raw = content['state_dict'], checkpoint.raw_weights(content)
    older = {
        part: type(content[part])((name.replace('head.', 'b.'), value) for name, value in content[part].items())
        for part in ('state_dict', 'ema_state_dict')
    }
    torch.save(dict(content, **older), path)
    resumed = toy(
        'resumed', model=Renaming(), load_from=str(path), resume=True, train_cfg=dict(by_epoch=True, max_epochs=1)
    )
    resumed.train()
    assert said(messages) == ['EMA: resumed at update 6']
    for module, weights in ((average_of(resumed).ema_model.module, averaged), (resumed.model, raw)):
        assert all(torch.equal(value, weights[name]) for name, value in module.state_dict().items())


def test_counts_of_batches_may_be_missing(toy, file, messages):
    content = checkpoint.read(file)
    for part in ('state_dict', 'ema_state_dict'):
        for name in [name for name in content[part] if name.endswith('num_batches_tracked')]:
            del content[part][name]
    torch.save(content, file)
    runner = toy(hook=toy_hook(strict_load=True), load_from=str(file), resume=True)
    runner.train()
    assert said(messages) == [
        'EMA: resumed at update 12; the file lacks 1 num_batches_tracked of BatchNorm, and does without'
    ]
    for name, value in content['state_dict'].items():
        assert torch.equal(average_of(runner).ema_model.module.state_dict()[name], value)
