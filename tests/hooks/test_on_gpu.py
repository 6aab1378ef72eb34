"""The hook in trainings on a GPU: the same average as on the CPU, and no needless wait."""

import warnings

import pytest
import torch
from mmengine.hooks import Hook

from mmyolo_ema import ExpMomentumEMA, checkpoint
from tests.hooks.toy import average_of, toy_hook

AMP = dict(type='AmpOptimWrapper', loss_scale=dict(init_scale=2.0**127, growth_interval=10**6))


class Recorder(Hook):
    """Keeps the weights after each iteration that changed them, in float64."""

    priority = 48

    def __init__(self, model):
        self.weights = [self._weights(model)]

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        weights = self._weights(runner.model)
        if not torch.equal(weights, self.weights[-1]):
            self.weights.append(weights)

    @staticmethod
    def _weights(model):
        return torch.cat([parameter.detach().double().flatten().cpu() for parameter in model.parameters()])

    def average(self, momentum_at):
        averaged = self.weights[1].clone()
        for step, weights in enumerate(self.weights[2:], start=1):
            averaged.lerp_(weights, momentum_at(step))
        return averaged


def averaged_weights(hook):
    return Recorder._weights(hook.ema_model.module)


@pytest.mark.gpu
def test_steps_that_the_gradient_scaler_skips_are_no_updates(toy):
    # With this scale all gradients are infinite, until it has been halved often enough.
    runner = toy(
        optim_wrapper=AMP,
        train_cfg=dict(by_epoch=True, max_epochs=40),
        val_cfg=None,
        val_dataloader=None,
        val_evaluator=None,
    )
    recorder = Recorder(runner.model)
    runner.register_hook(recorder)
    runner.train()
    hook = average_of(runner)
    updates = len(recorder.weights) - 1
    assert 0 < updates < 240
    assert hook.ema_model.steps == updates
    assert hook.skipped == 0
    torch.testing.assert_close(
        averaged_weights(hook), recorder.average(hook.ema_model.momentum_at), rtol=1e-5, atol=1e-6
    )


@pytest.mark.gpu
def test_average_that_is_kept_on_the_cpu_is_that_of_the_gpu(toy):
    averages, metrics = [], []
    for place in ('cuda', 'cpu'):
        runner = toy(place, hook=toy_hook(device=place, evaluate_on_origin=True))
        recorder = Recorder(runner.model)
        runner.register_hook(recorder)
        runner.train()
        hook = average_of(runner)
        assert {tensor.device.type for tensor in hook.ema_model.module.state_dict().values()} == {place}
        torch.testing.assert_close(
            averaged_weights(hook), recorder.average(hook.ema_model.momentum_at), rtol=1e-5, atol=1e-6
        )
        averages.append(averaged_weights(hook))
        metrics.append(runner.message_hub.get_scalar('val/mean').current())
    torch.testing.assert_close(*averages, rtol=1e-6, atol=1e-7)
    assert metrics[0] == pytest.approx(metrics[1], rel=1e-5)


@pytest.mark.gpu
def test_weights_in_bfloat16_on_the_gpu_warn(net, messages):
    model = net.to('cuda', torch.bfloat16)
    averaged = ExpMomentumEMA(model, momentum=0.0002)
    averaged.update_parameters(model)
    assert 'The average is kept in torch.bfloat16, too coarse for momentum 0.0002' in messages[0]


@pytest.mark.gpu
@pytest.mark.parametrize('skip_nonfinite', [True, False])
def test_hook_waits_for_the_gpu_once_a_step_and_only_to_check(toy, skip_nonfinite):
    # Drift is worked out for the log only, with a wait of its own.
    runner = toy(
        hook=toy_hook(skip_nonfinite=skip_nonfinite), default_hooks=dict(logger=dict(type='LoggerHook', interval=10**6))
    )
    runner.train()
    hook = average_of(runner)
    hook.before_train(runner)
    runner.optim_wrapper.step()
    torch.cuda.set_sync_debug_mode('warn')
    try:
        with warnings.catch_warnings(record=True) as waits:
            warnings.simplefilter('always')
            hook.after_train_iter(runner, 1)
    finally:
        torch.cuda.set_sync_debug_mode('default')
    assert len([wait for wait in waits if 'synchroniz' in str(wait.message)]) == skip_nonfinite
    hook.after_train(runner)


@pytest.mark.slow
@pytest.mark.parametrize(
    'options',
    [
        pytest.param({}, id='cpu'),
        pytest.param({}, id='cuda', marks=pytest.mark.gpu),
        pytest.param(dict(mode='reduce-overhead'), id='cuda-graphs', marks=pytest.mark.gpu),
    ],
)
def test_compiled_model_is_validated_with_the_weights_of_its_file(toy, options):
    runner = toy('compiled', hook=toy_hook(evaluate_on_origin=True), cfg=dict(compile=options or True))
    # MMEngine compiles the training step alone. Graphs that read the raw weights' memory must not be replayed.
    runner.model.val_step = torch.compile(runner.model.val_step, **options)
    runner.train()
    assert average_of(runner).ema_model.steps == 12
    measured = {name: runner.message_hub.get_scalar(f'val/{name}').current() for name in ('mean', 'mean_origin')}
    assert measured['mean'] != measured['mean_origin']
    content = checkpoint.read(f'{runner.work_dir}/epoch_2.pth')
    for name, weights in (('mean', content['state_dict']), ('mean_origin', checkpoint.raw_weights(content))):
        tested = toy(f'test-{name}')
        tested.model.load_state_dict(weights)
        assert tested.test()['mean'] == pytest.approx(measured[name], rel=1e-5), name
