import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmyolo_ema import ExpMomentumEMA, checkpoint
from mmyolo_ema.posthoc import Fit, Reconstruction, Target, read_run
from mmyolo_ema.posthoc.build import build
from mmyolo_ema.schedules import Ramp
from tests.helpers import assert_equal, forget_runs, small_config, weights_of

HORIZON, GAMMA = 10, 2


class Track(Hook):
    """Keeps an average of half the horizon in the same run, and how far the weights moved about their mean."""

    priority = 'LOWEST'

    def before_train(self, runner):
        self.average = ExpMomentumEMA(runner.model, momentum=2 / HORIZON, gamma=GAMMA, update_buffers=True)
        self.seen = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.average.update_parameters(runner.model)
        self.seen.append(flat(runner.model.state_dict()))


def flat(weights):
    values = [value.double().reshape(-1) for name, value in weights.items() if value.is_floating_point()]
    return torch.cat(values)


def config(work_dir, **average):
    hook = dict(
        dict(
            type='mmyolo_ema.EMAHook',
            ema_type='mmyolo_ema.ExpMomentumEMA',
            momentum=1 / HORIZON,
            gamma=GAMMA,
            update_buffers=True,
        ),
        **average,
    )
    return small_config(
        work_dir,
        **{
            'train_cfg.max_epochs': 12,
            'train_cfg.val_interval': 20,
            'custom_hooks': [hook],
            'default_hooks.checkpoint.interval': 1,
            'default_hooks.checkpoint.max_keep_ckpts': -1,
        },
    )


def train(cfg):
    forget_runs()
    runner, track = Runner.from_cfg(cfg), Track()
    runner.register_hook(track)
    runner.train()
    return Path(cfg.work_dir), track


@pytest.fixture(scope='module')
def ours(tmp_path_factory):
    """Returns the folder of a run with a checkpoint of each epoch, and what was tracked in it."""
    return train(config(tmp_path_factory.mktemp('ours')))


@pytest.fixture
def copied(ours, tmp_path):
    """Returns a function that copies checkpoints of that run into a folder of their own."""

    def copy(*epochs):
        folder = tmp_path / 'copied'
        folder.mkdir()
        for epoch in epochs:
            shutil.copy(ours[0] / f'epoch_{epoch}.pth', folder)
        return folder

    return copy


def built_of(run, schedule):
    return build([run.average(Target('built', schedule))])[0]


def assert_tracked(folder, track, files):
    """Checks that the average of half the horizon is the one that was tracked, as far as was told beforehand."""
    run = read_run(folder)
    assert (run.updates, len(run.files), run.multiplicities, run.updates_per_epoch) == (24, files, [1, 3], 2)
    half = run.average(HORIZON / 2)
    (built,) = build([half])
    tracked = track.average.module.state_dict()
    assert list(built) == list(tracked)
    apart = (flat(built) - flat(tracked)).norm()
    # What the weights of the updates lack, times how far the model moved.
    seen = torch.stack(track.seen)
    wanted = weights_of(Ramp(2 / HORIZON, GAMMA), 24)
    bound = half.fits[1].reconstruction_error * np.linalg.norm(wanted) * (seen - seen.mean(0)).norm()
    assert apart <= bound + 1e-5 * flat(tracked).norm()
    # The raw weights beside the averages make up for what two updates an epoch leave out.
    assert (half.fits[1].reconstruction_error < 1e-6) is (files == 12)
    nearest = min((flat(checkpoint.read(file.path)['state_dict']) - flat(tracked)).norm() for file in run.files)
    assert apart < 0.5 * nearest


@pytest.mark.slow
@pytest.mark.parametrize('epochs', [range(1, 13), range(3, 13, 3)])
def test_average_of_half_the_horizon_is_the_one_that_was_tracked(ours, copied, epochs):
    assert_tracked(copied(*epochs), ours[1], len(epochs))


@pytest.mark.slow
def test_so_it_is_with_the_class_of_mmdetection(tmp_path):
    cfg = config(tmp_path, type='EMAHook', ema_type='mmdet.ExpMomentumEMA')
    cfg.default_hooks.checkpoint.interval = 3
    assert_tracked(*train(cfg), 4)


@pytest.mark.slow
def test_stored_snapshot_is_given_back_bit_for_bit(copied):
    run = read_run(copied(10, 11, 12))
    assert_equal(built_of(run, run.schedule), dict(checkpoint.read(run.files[-1].path)['state_dict']))


@pytest.mark.slow
def test_resumed_run_gives_the_same(ours, copied, tmp_path):
    complete, parts = copied(3, 6, 9, 12), config(tmp_path / 'parts')
    parts.update(load_from=str(complete / 'epoch_6.pth'), resume=True)
    parts.default_hooks.checkpoint.interval = 3
    folder, _ = train(parts)
    for epoch in (3, 6):
        shutil.copy(complete / f'epoch_{epoch}.pth', folder)
    assert_equal(*(built_of(read_run(run), Ramp(2 / HORIZON, GAMMA)) for run in (complete, folder)))


@pytest.mark.slow
def test_what_is_not_averaged_is_that_of_the_newest(tmp_path):
    cfg = config(tmp_path, update_buffers=False)
    cfg.train_cfg.max_epochs = 4
    folder, _ = train(cfg)
    run = read_run(folder)
    built = built_of(run, Ramp(0.2, 2))
    newest = checkpoint.read(run.files[-1].path)['state_dict']
    same = [name for name, value in built.items() if torch.equal(value, newest[name])]
    assert all(name in same for name in built if name.endswith(('running_mean', 'running_var', 'num_batches_tracked')))
    assert len(same) < len(built)


@pytest.mark.slow
def test_nan_in_a_file_is_named(copied):
    run = read_run(copied(6, 12))
    content = checkpoint.read(run.files[0].path)
    content['state_dict']['neck.out_convs.0.conv.weight'][0] = float('nan')
    torch.save(content, run.files[0].path)
    with pytest.raises(ValueError, match=r'epoch_6\.pth holds NaN or infinity: neck\.out_convs\.0\.conv\.weight'):
        built_of(run, Ramp(0.2, 2))


@pytest.fixture
def stored(tmp_path):
    """Returns a function that stores a run of two updates, with averaged and raw of each in turn, and reads it."""

    def store(update_buffers=True, **tensors):
        hook = (
            "dict(type='EMAHook', ema_type='mmyolo_ema.ExpMomentumEMA', momentum=0.1, gamma=5, "
            f'update_buffers={update_buffers})'
        )
        for updates in (1, 2):
            averaged = {name: values[2 * updates - 2] for name, values in tensors.items()}
            raw = {f'module.{name}': values[2 * updates - 1] for name, values in tensors.items()}
            torch.save(
                dict(
                    meta=dict(cfg=f'custom_hooks = [{hook}]', iter=updates),
                    state_dict=averaged,
                    ema_state_dict=dict(raw, steps=torch.tensor(updates)),
                ),
                tmp_path / f'{updates}.pth',
            )
        return read_run(tmp_path)

    return store


def mean(run):
    """The mean of both averages."""
    fit = Fit(np.array([0.5, 0.5, 0, 0]), 0, 1, 0, 0)
    return build([Reconstruction(run, Target('mean', run.schedule), {count: fit for count in run.multiplicities})])[0]


def test_buffers_that_are_copied_are_those_of_the_newest(stored):
    values = [torch.tensor([number]) for number in (1.0, 5.0, 2.0, 7.0)]
    copied = [torch.tensor([number]) for number in (1.0, 1.0, 3.0, 3.0)]
    built = mean(stored(update_buffers=False, weight=values, scale=copied))
    assert (float(built['weight']), float(built['scale'])) == (1.5, 3)
    built = mean(stored(update_buffers=True, weight=values, scale=copied))
    assert (float(built['weight']), float(built['scale'])) == (1.5, 2)


def test_names_of_buffers_that_are_no_list_are_refused(stored):
    run = stored(update_buffers=False, weight=[torch.ones(1)] * 4)
    content = checkpoint.read(run.files[-1].path)
    torch.save(dict(content, meta=dict(content['meta'], mmyolo_ema=dict(buffers=5))), run.files[-1].path)
    with pytest.raises(ValueError, match=r'2\.pth: the names of its buffers must be a list, but are 5'):
        read_run(run.files[-1].path.parent)


def test_masks_and_complex_weights_are_kept(stored):
    mask = torch.tensor([0.0, -torch.inf])
    built = mean(stored(mask=[mask] * 4, phase=[torch.tensor([number * 1j]) for number in (1, 5, 2, 7)]))
    assert torch.equal(built['mask'], mask)
    assert built['phase'] == torch.tensor([1.5j])


@pytest.mark.slow
def test_older_file_that_does_not_fit_the_newest_is_refused(copied):
    folder, name = copied(6, 12), 'bbox_head.rtm_cls.0.bias'
    path = folder / 'epoch_6.pth'
    content = checkpoint.read(path)
    right = content['ema_state_dict'].pop(f'module.{name}')
    for wrong, said in (
        ({}, 'is missing'),
        ({f'module.{name}': torch.ones(1, 1)}, r'is floating of shape \(1, 1\) '),
        ({f'module.{name}': right * 1j}, 'is complex'),
        ({f'module.{name}': right.int()}, 'is integer'),
        ({f'module.{name}': 'text'}, 'is str of shape None instead of floating'),
    ):
        torch.save(dict(content, ema_state_dict={**content['ema_state_dict'], **wrong}), path)
        with pytest.raises(ValueError, match=f'epoch_6.pth does not fit .*epoch_12.pth: {name} among .* {said}'):
            built_of(read_run(folder), Ramp(2 / HORIZON, GAMMA))
