import pytest
import torch

from mmyolo_ema.posthoc import Snapshot
from mmyolo_ema.posthoc.snapshots import read_run
from mmyolo_ema.schedule import Ramp, Repeated

OURS = "dict(type='EMAHook', ema_type='mmyolo_ema.ExpMomentumEMA', momentum=0.1, gamma=5, update_buffers=True)"


@pytest.fixture
def file(tmp_path):
    """Returns a function that writes a checkpoint with an average of so many updates."""

    def write(name, updates, iteration=None, hook=OURS, **weights):
        shared = torch.ones(2)
        raw = weights or dict(a=torch.zeros(2), b=shared, c=shared)
        iteration = updates if iteration is None else iteration
        meta = dict(cfg=f'custom_hooks = [{hook}]', iter=iteration, epoch=updates // 10)
        stored = dict(steps=torch.tensor(updates), **{f'module.{name}': value for name, value in raw.items()})
        averaged = {name: value + 1 for name, value in raw.items()}
        torch.save(dict(meta=meta, state_dict=averaged, ema_state_dict=stored), tmp_path / name)
        return tmp_path / name

    return write


def test_checkpoints_come_in_the_order_of_their_updates(file, tmp_path):
    second, first = file('a.pth', 20), file('b.pth', 10)
    best = file('best.pth', 10)
    torch.save(dict(state_dict={}), tmp_path / 'plain.pth')
    (tmp_path / '.unfinished.c.pth').write_text('half')
    run = read_run(tmp_path)
    assert [found.path for found in run.files] == [first, second]
    assert run.snapshots == [Snapshot(0, 10), Snapshot(0, 20), Snapshot(1, 10), Snapshot(1, 20)]
    assert sorted(run.left_out) == [best, tmp_path / 'plain.pth']
    assert (run.updates, run.updates_per_epoch, run.schedule) == (20, 10, Ramp(0.1, 5))


def test_shared_tensors_of_other_classes_followed_another_schedule(file, tmp_path):
    file('a.pth', 10)
    assert read_run(tmp_path).tracks(2)[0] == Ramp(0.1, 5)
    file('a.pth', 10, hook=OURS.replace('mmyolo_ema.', ''))
    run = read_run(tmp_path)
    assert run.multiplicities == [1, 2]
    assert run.tracks(2)[0] == Repeated(Ramp(0.1, 5), 2)
    file('a.pth', 10, hook=OURS.replace('mmyolo_ema.', '').replace(', update_buffers=True', ''))
    assert read_run(tmp_path).tracks(2)[0] == Ramp(0.1, 5)


@pytest.mark.parametrize(('other', 'said'), [
    (dict(hook=OURS.replace('gamma=5', 'gamma=6')), 'the schedule of the average changed between'),
    (dict(hook=OURS.replace('mmyolo_ema.ExpMomentumEMA', 'Mine')), "b.pth: the schedule of ema_type='Mine' is not"),
    (dict(hook=''), 'b.pth does not hold the config of its run'),
    (dict(a=torch.zeros(3)), 'do not hold the same tensors: a, b, c'),
    (dict(iteration=5), r'are not of one run'),
    (dict(updates=0), 'b.pth does not say how many updates its average had'),
])
def test_files_that_do_not_belong_together_are_refused(file, tmp_path, other, said):
    file('a.pth', 10)
    file('b.pth', **dict(dict(updates=20), **other))
    with pytest.raises(ValueError, match=said):
        read_run(tmp_path)


def test_file_that_is_cut_off_is_named(file, tmp_path):
    whole = file('a.pth', 10).read_bytes()
    (tmp_path / 'b.pth').write_bytes(whole[:len(whole) // 2])
    with pytest.raises(ValueError, match=r'b\.pth is not a checkpoint, or is cut off'):
        read_run(tmp_path)


def test_folder_without_averages_is_refused(tmp_path):
    with pytest.raises(ValueError, match='has no checkpoints with an average'):
        read_run(tmp_path)
    with pytest.raises(FileNotFoundError, match='there is no folder'):
        read_run(tmp_path / 'nowhere')
