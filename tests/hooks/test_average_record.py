"""What a checkpoint says about the schedules that made its average, and what is made of that."""

import math

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook

from mmyolo_ema import checkpoint
from mmyolo_ema.cli.checkpoint_tables import inspection_lines
from mmyolo_ema.posthoc.snapshots import read_run
from mmyolo_ema.schedules import Ramp, Segmented
from tests.helpers import weights_of
from tests.hooks.toy import average_of, scalars, toy_hook

BEFORE, AFTER = Ramp(0.5, 2), Ramp(0.01, 2)


class Remember(Hook):
    """Keeps a raw weight after each update."""

    def __init__(self):
        self.raw = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.raw.append(runner.model.out.bias.detach().double().clone())


@pytest.fixture
def changed(toy, tmp_path):
    """Returns a run of 48 updates with one momentum and 12 with another, its raw weights, and its folder."""
    remember = Remember()
    for epochs, schedule in ((8, BEFORE), (10, AFTER)):
        hook = dict(toy_hook(), momentum=schedule.momentum)
        runner = toy(
            hook=hook,
            cfg=Config(dict(custom_hooks=[hook])),
            resume=True,
            train_cfg=dict(by_epoch=True, max_epochs=epochs, val_interval=1000),
        )
        runner.register_hook(remember)
        runner.train()
    return runner, remember.raw, tmp_path / 'run'


def test_schedule_that_was_changed_on_the_way_is_stored(changed, messages):
    runner, raw, folder = changed
    segmented = Segmented(((0, BEFORE), (48, AFTER)))
    weights = weights_of(segmented, 60)
    age = sum(weights * range(59, -1, -1))
    assert age == pytest.approx(12.2, abs=0.1)  # and not the 44 of the last momentum
    assert next(line for line in reversed(scalars(runner)) if 'ema_mean_age' in line)['ema_mean_age'] == pytest.approx(
        age
    )
    found = checkpoint.inspect(folder / 'epoch_10.pth')
    assert found.average.mean_age == pytest.approx(age)
    assert (
        'Its schedule changed: Ramp(momentum=0.5, gamma=2, interval=1) to update 48, then Ramp(momentum=0.01'
        in inspection_lines(found)[2]
    )
    # That schedule made the average.
    averaged = checkpoint.read(folder / 'epoch_10.pth')['state_dict']['out.bias'].double()
    torch.testing.assert_close(averaged, sum(weight * value for weight, value in zip(weights, raw)), rtol=0, atol=1e-6)
    run = read_run(folder)
    assert (len(run.files), run.schedule) == (10, segmented)
    checkpoint.extract(folder / 'epoch_10.pth', folder / 'extracted.pth')
    assert checkpoint.inspect(folder / 'extracted.pth').average.mean_age == pytest.approx(age)
    # Old files are not needed.
    for path in folder.glob('epoch_[1-9].pth'):
        path.unlink()
    assert read_run(folder).schedule == Segmented(((0, BEFORE), (48, AFTER)))


def test_age_of_an_average_of_unknown_schedule_is_not_told(toy, tmp_path, messages):
    toy().train()
    path = tmp_path / 'run' / 'epoch_1.pth'
    content = checkpoint.read(path)
    content['meta'].update(cfg='', mmyolo_ema={})
    torch.save(content, path)
    runner = toy('resumed', cfg=Config(dict(custom_hooks=[toy_hook()])), load_from=str(path), resume=True)
    runner.train()
    assert (
        'EMA: resumed at update 6; the file does not tell which schedule made it, so its mean age is not known'
        in messages
    )
    assert all(math.isnan(line['ema_mean_age']) for line in scalars(runner) if 'ema_mean_age' in line)
    with pytest.raises(ValueError, match='the schedule of its average is not known from update 0 on'):
        read_run(tmp_path / 'resumed')


def test_momentum_that_is_changed_in_mid_run_is_stored(toy, tmp_path):

    class Change(Hook):
        def before_train_epoch(self, runner):
            if runner.epoch == 1:
                average_of(runner).ema_model.momentum = 0.5

    runner = toy()
    runner.register_hook(Change())
    runner.train()
    segmented = Segmented(((0, Ramp(0.1, 2)), (6, Ramp(0.5, 2))))
    assert read_run(tmp_path / 'run').schedule == segmented
    age = sum(weights_of(segmented, 12) * range(11, -1, -1))
    last = [line for line in scalars(runner) if 'ema_mean_age' in line][-1]
    assert (last['ema_mean_age'], last['ema_momentum']) == (pytest.approx(age), segmented(11))
