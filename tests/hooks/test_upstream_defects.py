"""What is wrong in MMEngine's EMAHook, and right in ours.

Each test runs on our hook and, where MMEngine's has the defect, on that too: there it must fail.
"""

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import FlexibleRunner
from torch import nn

from mmyolo_ema import checkpoint
from tests.helpers import assert_equal, copy_of
from tests.hooks.toy import Overflow, average_of, toy_hook


@pytest.fixture
def hook(request):
    """Returns the class's part of a config."""
    return dict(toy_hook(), type=request.param)


def fails_upstream(error, text):
    """Runs a test with our hook, and with MMEngine's, where it must fail with an error of that text."""
    return pytest.mark.parametrize(
        'hook',
        [
            pytest.param('mmyolo_ema.EMAHook', id='ours'),
            pytest.param('mmengine.EMAHook', id='mmengine', marks=pytest.mark.defect(error, text)),
        ],
        indirect=True,
    )


@fails_upstream(AssertionError, r'assert tensor\(12\) == 3')
def test_accumulated_gradients_make_one_update(toy, hook):
    runner = toy(hook=hook, optim_wrapper=dict(accumulative_counts=4))
    runner.train()
    assert average_of(runner).ema_model.steps == 3


class Interrupted(Hook):
    """Ctrl-C in the middle of a validation."""

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        raise KeyboardInterrupt('by the user')


@fails_upstream(AssertionError, "'raw', 'linear.weight'")
@pytest.mark.parametrize('update_buffers', [True, False])
def test_interrupted_validation_leaves_the_raw_weights(toy, hook, update_buffers):
    before = {}

    class Remember(Hook):
        def before_val(self, runner):
            before.update(raw=copy_of(runner.model), averaged=copy_of(average_of(runner).ema_model.module))

    runner = toy(hook=dict(hook, update_buffers=update_buffers))
    runner.register_hook(Interrupted())
    runner.register_hook(Remember())
    with pytest.raises(KeyboardInterrupt, match='by the user'):
        runner.train()
    after = dict(raw=copy_of(runner.model), averaged=copy_of(average_of(runner).ema_model.module))
    for kind, tensors in before.items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, after[kind][name]), (kind, name)


@fails_upstream(AssertionError, r'where False = all\(')
def test_nothing_is_copied_before_the_start(toy, hook):
    runner = toy(hook=dict(hook, begin_epoch=3), train_cfg=dict(by_epoch=True, max_epochs=3))
    seen = []

    class Remember(Hook):
        def before_train(self, runner):
            seen.append(copy_of(average_of(runner).ema_model.module))

        def after_train_epoch(self, runner):
            if runner.epoch == 1:
                seen.append(copy_of(average_of(runner).ema_model.module))

    runner.register_hook(Remember())
    runner.train()
    assert all(torch.equal(value, seen[1][name]) for name, value in seen[0].items())
    assert average_of(runner).ema_model.steps == 6


@fails_upstream(AssertionError, r'== \[set\(\), set\(\)\]')
def test_saved_weights_share_no_memory_with_the_live_ones(toy, hook):
    addresses = []

    class Look(Hook):
        priority = 'LOWEST'

        def before_save_checkpoint(self, runner, checkpoint):
            live = [*average_of(runner).ema_model.state_dict().values(), *runner.model.state_dict().values()]
            saved = [*checkpoint['state_dict'].values(), *checkpoint['ema_state_dict'].values()]
            addresses.append({value.data_ptr() for value in live} & {value.data_ptr() for value in saved})

    runner = toy(hook=hook, default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1)))
    runner.register_hook(Look())
    runner.train()
    assert addresses == [set(), set()]


@fails_upstream(KeyError, 'out.bias')
def test_resumed_file_may_lack_a_tensor(toy, hook, tmp_path):
    toy().train()
    path = tmp_path / 'run' / 'epoch_2.pth'
    content = torch.load(path, weights_only=False)
    del content['state_dict']['out.bias']
    torch.save(content, path)
    runner = toy('resumed', hook=hook, load_from=str(path), resume=True, train_cfg=dict(by_epoch=True, max_epochs=3))
    runner.train()
    assert average_of(runner).ema_model.steps == 18


@fails_upstream(KeyError, 'state_dict')
def test_file_of_bare_weights_can_be_started_from(toy, hook, tmp_path):
    state = toy('other').model.state_dict()
    torch.save(state, tmp_path / 'bare.pth')
    runner = toy(hook=hook, load_from=str(tmp_path / 'bare.pth'))
    runner.train()
    assert average_of(runner).ema_model.steps == 12


@fails_upstream(AssertionError, r'where False = all\(')
def test_average_stays_finite(toy, hook):
    runner = toy(hook=hook)
    runner.register_hook(Overflow())
    runner.train()
    assert all(tensor.isfinite().all() for tensor in average_of(runner).ema_model.state_dict().values())


@fails_upstream(AssertionError, r'where False = all\(')
@pytest.mark.parametrize('update_buffers', [True, False])
def test_buffer_that_is_not_finite_leaves_the_average_finite(toy, hook, update_buffers):
    runner = toy(hook=dict(hook, update_buffers=update_buffers))

    class Poison(Hook):
        """NaN in a variance, which training does not use."""

        priority = 'HIGHEST'

        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            if runner.iter >= 3:
                runner.model.norm.running_var[1] = float('nan')

    runner.register_hook(Poison())
    runner.train()
    assert average_of(runner).ema_model.steps == 12
    assert all(tensor.isfinite().all() for tensor in average_of(runner).ema_model.state_dict().values())


@fails_upstream(AssertionError, r'assert -\d\.\d+ == ')
def test_trained_runner_tests_the_average(toy, hook):
    runner = toy(hook=hook)
    runner.train()
    validated = runner.message_hub.get_scalar('val/mean').current()
    assert runner.test()['mean'] == validated


@fails_upstream(AssertionError, r'where False = any\(')
def test_start_from_an_average_is_announced(toy, hook, messages, tmp_path):
    toy().train()
    toy('next', hook=hook, load_from=str(tmp_path / 'run' / 'epoch_2.pth')).train()
    assert any('starts anew from the averaged weights of 12 updates' in message for message in messages), messages


@fails_upstream(AssertionError, 'Extra items in the left set')
def test_log_shows_momentum_age_and_drift(toy, hook):
    runner = toy(hook=hook)
    runner.train()
    assert {'train/ema_momentum', 'train/ema_mean_age', 'train/ema_drift'} <= runner.message_hub.log_scalars.keys()


@fails_upstream(pytest.fail.Exception, 'DID NOT RAISE')
def test_two_averages_are_refused(toy, hook):
    with pytest.raises(ValueError, match='the run has 2 EMAHooks'):
        toy(custom_hooks=[hook, dict(hook)]).train()


@fails_upstream(AttributeError, "'EMAHook' object has no attribute 'ema_model'")
def test_runner_of_strategies_resumes(toy, hook, tmp_path):
    options = dict(hook=hook, kind=FlexibleRunner, strategy=dict(type='SingleDeviceStrategy'))
    toy('first', **options).train()
    runner = toy('next', load_from=str(tmp_path / 'first' / 'epoch_1.pth'), resume=True, **options)
    runner.train()
    assert average_of(runner).ema_model.steps == 12


@fails_upstream(AssertionError, 'linear.weight')
def test_runner_that_a_hook_resumes_has_the_raw_weights(toy, hook):
    seen = []

    class GoBack(Hook):
        def before_train_epoch(self, runner):
            if runner.epoch == 1 and not seen:
                runner.resume(f'{runner.work_dir}/epoch_1.pth')
                seen.append({name: value.clone() for name, value in runner.model.state_dict().items()})

    runner = toy(hook=hook, train_cfg=dict(by_epoch=True, max_epochs=2))
    runner.register_hook(GoBack())
    runner.train()
    assert_equal(seen[0], checkpoint.raw_weights(checkpoint.read(f'{runner.work_dir}/epoch_1.pth')))


class Adapted(BaseModel):
    """A frozen layer that is initialised before the training, and one that is trained and stored alone."""

    def __init__(self):
        super().__init__()
        self.base = nn.Linear(3, 1).requires_grad_(False)
        self.lora_base = nn.Linear(3, 1)
        self.lora_base._register_state_dict_hook(self.keep_adapters)

    @staticmethod
    def keep_adapters(module, state_dict, prefix, metadata):
        for name in [name for name in state_dict if 'lora_' not in name]:
            del state_dict[name]

    def init_weights(self):
        for parameter in self.base.parameters():
            nn.init.constant_(parameter, 2.0)

    def forward(self, inputs, mode='tensor'):
        inputs = torch.stack(inputs)
        output = self.base(inputs) + self.lora_base(inputs)
        return dict(loss=output.square().mean() + output.mean()) if mode == 'loss' else list(output)


@fails_upstream(AssertionError, 'assert None == 6')
def test_state_that_holds_the_trained_layers_only_resumes(toy, hook, tmp_path):
    whole = toy(hook=hook, model=Adapted())
    whole.train()
    path = tmp_path / 'run' / 'epoch_1.pth'
    assert checkpoint.inspect(path).average.updates == 6
    resumed = toy('resumed', hook=hook, model=Adapted(), load_from=str(path), resume=True)
    resumed.train()
    for one, other in zip(*(average_of(runner).ema_model.module.parameters() for runner in (resumed, whole))):
        assert torch.equal(one, other)
    assert average_of(resumed).ema_model.steps == 12
