"""A class of averages of the user's own, with a schedule of its own, through the whole package."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS

from mmyolo_ema import ExpMomentumEMA, checkpoint, posthoc
from mmyolo_ema.posthoc.build import build
from mmyolo_ema.posthoc.snapshots import read_run
from mmyolo_ema.posthoc.sweep import sweep
from mmyolo_ema.run_plan import plan_run
from mmyolo_ema.schedules import Recorded, Schedule, figures
from tests.helpers import assert_equal, change, weights_of
from tests.hooks.toy import Bias, scalars


@dataclass(frozen=True)
class Falling(Schedule):
    """A momentum that falls with the root of the step, down to a floor."""

    floor: float
    interval: int = 1

    def momentum_at(self, step):
        return max(self.floor, (1 + step) ** -0.5)


@MODELS.register_module(force=True)
class FallingEMA(ExpMomentumEMA):
    @property
    def schedule(self):
        return Falling(self.momentum, self.interval)


@MODELS.register_module(force=True)
class ByMethodEMA(ExpMomentumEMA):
    """Overrides the method, as before there was the property."""

    def momentum_at(self, step):
        return Falling(self.momentum).momentum_at(step)


HOOK = dict(type='mmyolo_ema.EMAHook', ema_type='FallingEMA', momentum=0.25, update_buffers=True)


@pytest.mark.parametrize('ema_class', [FallingEMA, ByMethodEMA])
def test_average_follows_its_own_schedule(net, ema_class):
    averaged, sources = ema_class(net, momentum=0.25), []
    for _ in range(12):
        averaged.update_parameters(change(net))
        sources.append(net.linear.weight.detach().double().clone())
    wanted = sum(weight * source for weight, source in zip(weights_of(Falling(0.25), 12), sources))
    torch.testing.assert_close(averaged.module.linear.weight.double(), wanted, rtol=0, atol=1e-6)
    assert averaged.momentum_at(3) == averaged.schedule(3) == 0.5


def test_config_tells_the_schedule():
    cfg = Config(
        dict(
            train_cfg=dict(by_epoch=True, max_epochs=5),
            train_dataloader=dict(batch_size=4),
            custom_hooks=[dict(HOOK, exclude=['^out'])],
        )
    )
    assert plan_run(cfg, dataset_size=24).schedule == Falling(0.25)
    cfg.custom_hooks[0].ema_type = 'NobodysEMA'
    with pytest.raises(ValueError, match="the schedule of ema_type='NobodysEMA' is not known"):
        plan_run(cfg, dataset_size=24)


@pytest.mark.parametrize('ema_type', ['FallingEMA', 'ByMethodEMA'])
@pytest.mark.parametrize('hook', ['mmyolo_ema.EMAHook', 'mmengine.EMAHook'])
def test_run_is_followed_and_other_averages_are_made_of_it(toy, hook, ema_type):
    second = dict(second_horizon=2) if hook.startswith('mmyolo_ema') else {}
    hooks = [dict(HOOK, type=hook, ema_type=ema_type), dict(type='mmyolo_ema.SnapshotHook', interval=3, **second)]
    for epochs in (3, 5):  # resumed on the way
        runner = toy(
            custom_hooks=hooks,
            cfg=Config(dict(custom_hooks=hooks)),
            resume=True,
            train_cfg=dict(by_epoch=True, max_epochs=epochs, val_interval=1000),
        )
        runner.train()
    age = figures(Falling(0.25), [30])[0].mean_age
    if hook.startswith('mmyolo_ema'):
        line = next(line for line in reversed(scalars(runner)) if 'ema_momentum' in line)
        assert (line['ema_momentum'], line['ema_mean_age']) == (0.25, pytest.approx(age))
    found = checkpoint.inspect(f'{runner.work_dir}/epoch_5.pth').average
    assert found.mean_age == pytest.approx(age)
    run = read_run(runner.work_dir)
    assert run.schedule == Recorded(tuple(map(Falling(0.25), range(30))))
    assert run.further == {name: Recorded(tuple(map(Falling(0.5), range(30)))) for name in ['second'] if second}
    assert run.average('3').error < 0.5
    stored = run.average(posthoc.Target('own', run.schedule))
    assert stored.error == 0
    assert_equal(build([stored])[0], dict(checkpoint.read(f'{runner.work_dir}/epoch_5.pth')['state_dict']))
    result = sweep(run, Bias(), ['3'], Path(runner.work_dir) / 'sweep.json')
    assert result.run_ema.average.worst.mean_age == pytest.approx(age)
