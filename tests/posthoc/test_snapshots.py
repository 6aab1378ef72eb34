import pytest
import torch

from mmyolo_ema.checkpoint import extract
from mmyolo_ema.cli.posthoc import print_run
from mmyolo_ema.posthoc import Snapshot, Target, read_run
from mmyolo_ema.posthoc.build import build
from mmyolo_ema.posthoc.run import RAW_SCHEDULE as RAW
from mmyolo_ema.schedules import Ramp, Repeated, Segmented
from tests.helpers import assert_equal

OURS = "dict(type='EMAHook', ema_type='mmyolo_ema.ExpMomentumEMA', momentum=0.1, gamma=5, update_buffers=True)"


@pytest.fixture
def file(tmp_path):
    """Returns a function that writes a checkpoint with an average of so many updates."""

    def write(name, updates, iteration=None, hook=OURS, launch='20260101_000000', seed=0, **weights):
        shared = torch.ones(2)
        raw = weights or dict(a=torch.zeros(2), b=shared, c=shared)
        iteration = updates if iteration is None else iteration
        meta = dict(
            cfg=f'custom_hooks = [{hook}]',
            iter=iteration,
            epoch=updates // 10,
            experiment_name=f'mine_{launch}',
            seed=seed,
        )
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
    assert [stored.path for stored in run.files] == [first, second]
    assert run.snapshots() == [Snapshot(schedule, updates) for schedule in (Ramp(0.1, 5), RAW) for updates in (10, 20)]
    assert sorted(run.left_out) == [best, tmp_path / 'plain.pth']
    assert (run.updates, run.updates_per_epoch, run.schedule) == (20, 10, Ramp(0.1, 5))


def test_shared_tensors_of_other_classes_followed_another_schedule(file, tmp_path):
    file('a.pth', 10)
    assert read_run(tmp_path).snapshots(2)[0].schedule == Ramp(0.1, 5)
    file('a.pth', 10, hook=OURS.replace('mmyolo_ema.', ''))
    run = read_run(tmp_path)
    assert run.multiplicities == [1, 2]
    assert run.snapshots(2)[0].schedule == Repeated(Ramp(0.1, 5), 2)
    file('a.pth', 10, hook=OURS.replace('mmyolo_ema.', '').replace(', update_buffers=True', ''))
    assert read_run(tmp_path).snapshots(2)[0].schedule == Ramp(0.1, 5)


@pytest.mark.parametrize(
    ('other', 'said'),
    [
        (dict(hook=OURS.replace('gamma=5', 'gamma=6')), 'the schedule of the average changed between'),
        (dict(hook=OURS.replace('mmyolo_ema.ExpMomentumEMA', 'Mine')), "b.pth: the schedule of ema_type='Mine' is not"),
        (dict(hook=''), 'b.pth: it does not hold the config of its run'),
        (dict(a=torch.zeros(3)), 'do not hold the same tensors: a, b, c'),
        (dict(iteration=5), 'are not of one run'),
        (dict(launch='20251231_235959'), 'are not of one run'),
        (dict(seed=1), 'are not of one run'),
    ],
)
def test_files_that_do_not_belong_together_are_refused(file, tmp_path, other, said):
    file('a.pth', 10)
    file('b.pth', **dict(dict(updates=20), **other))
    with pytest.raises(ValueError, match=said):
        read_run(tmp_path)


def test_truncated_file_is_named(file, tmp_path):
    complete = file('a.pth', 10).read_bytes()
    (tmp_path / 'b.pth').write_bytes(complete[: len(complete) // 2])
    with pytest.raises(ValueError, match=r'b\.pth is not a checkpoint, or is truncated'):
        read_run(tmp_path)


def test_foreign_files_are_left_out_and_named(file, tmp_path):
    (tmp_path / 'text.pth').write_text('hello')
    torch.save([1], tmp_path / 'list.pth')
    torch.save(dict(state_dict={}, other=ValueError()), tmp_path / 'objects.pth')
    with pytest.raises(
        ValueError,
        match=r'no checkpoints with an average; not used: list\.pth \(is not a checkpoint '
        r'of MMEngine: .*\), objects\.pth \(is refused, .* exceptions\.ValueError',
    ):
        read_run(tmp_path)
    complete = file('a.pth', 10)
    run = read_run(tmp_path)
    assert [stored.path for stored in run.files] == [complete]
    assert run.left_out[tmp_path / 'text.pth'] == 'is not a checkpoint: it is text'
    assert [path.name for path in run.left_out] == ['list.pth', 'objects.pth', 'text.pth']


def test_folder_without_averages_is_refused(tmp_path):
    with pytest.raises(ValueError, match='has no checkpoints with an average'):
        read_run(tmp_path)
    with pytest.raises(FileNotFoundError, match='there is no folder'):
        read_run(tmp_path / 'nowhere')


def test_copies_of_a_shared_tensor_are_found_by_their_content(file, tmp_path):
    complete = dict(torch.load(file('a.pth', 10, hook=OURS.replace('mmyolo_ema.', ''))))
    values = torch.tensor([1.0, 2.0])
    # As a GPU's tensors are copied to the CPU, one by one; b and c are equal in their numbers.
    stored = {'module.a': torch.tensor([3.0, 4.0]), 'module.b': values.clone(), 'module.c': values.clone()}
    torch.save(dict(complete, ema_state_dict=dict(complete['ema_state_dict'], **stored)), tmp_path / 'a.pth')
    assert read_run(tmp_path).firsts == dict(a='a', b='b', c='b')


@pytest.fixture
def slim(file, tmp_path):
    """Returns a function that writes what a SnapshotHook does."""

    def write(name, updates, momentum=0.25, **said):
        content = torch.load(file('complete.pth', updates))
        (tmp_path / 'complete.pth').unlink()
        meta = dict(content['meta'], mmyolo_ema=dict(weights='ema', updates=updates, second_momentum=momentum, **said))
        second = {f'module.{name}': value * 3 for name, value in content['state_dict'].items()}
        (tmp_path / 'snapshots').mkdir(exist_ok=True)
        torch.save(
            dict(meta=meta, state_dict=content['state_dict'], second_ema_state_dict=second),
            tmp_path / 'snapshots' / name,
        )

    return write


def test_slim_snapshots_are_found_beside_checkpoints(file, slim, tmp_path):
    slim('a.pth', 10, updates_per_epoch=5)
    slim('b.pth', 20, updates_per_epoch=5)
    complete = file('complete.pth', 20)
    run = read_run(tmp_path)
    names = [(stored.path.name, kind) for stored, kind in run.sources]
    assert names == [
        ('a.pth', 'ema'),
        ('complete.pth', 'ema'),
        ('complete.pth', 'raw'),
        ('a.pth', 'second'),
        ('b.pth', 'second'),
    ]
    first, second = Ramp(0.1, 5), Ramp(0.25, 5)
    assert run.snapshots() == [
        Snapshot(first, 10),
        Snapshot(first, 20),
        Snapshot(RAW, 20),
        Snapshot(second, 10),
        Snapshot(second, 20),
    ]
    assert (run.second, run.left_out) == (second, {})
    complete.unlink()
    assert read_run(tmp_path).updates_per_epoch == 5


@pytest.mark.parametrize(
    ('momentum', 'said'),
    [
        (0.5, "the schedule of the average 'second' changed between"),
        (None, 'momentum must be a number above 0 and below 1, but got None'),
        (2.0, 'momentum must be a number above 0 and below 1, but got 2.0'),
    ],
)
def test_second_averages_of_other_schedules_are_refused(slim, tmp_path, momentum, said):
    slim('a.pth', 10)
    slim('b.pth', 20, momentum)
    with pytest.raises(ValueError, match=said):
        read_run(tmp_path)


@pytest.fixture
def several(file, tmp_path):
    """Returns a function that writes a checkpoint with two further averages, as this package's hook does."""

    def write(name, updates, short=None, **main):
        def about(momentum, **own):
            schedule = dict(ema_type='ExpMomentumEMA', momentum=momentum, gamma=5, interval=1)
            return dict(updates=updates, schedule=[[0, schedule]], update_buffers=True, averages_by_name=False, **own)

        content = torch.load(file(name, updates))
        states = {
            kind: {f'module.{name}': value * factor for name, value in content['state_dict'].items()}
            for kind, factor in dict(short=3, long=4).items()
        }
        content['meta']['mmyolo_ema'] = about(
            0.1, **main, averages=dict(short=about(0.4, **(short or {})), long=about(0.025))
        )
        torch.save(dict(content, ema_averages=states), tmp_path / name)

    return write


def test_further_averages_of_checkpoints_are_used(several, tmp_path):
    several('a.pth', 10)
    several('b.pth', 20)
    run = read_run(tmp_path)
    assert run.further == dict(short=Ramp(0.4, 5), long=Ramp(0.025, 5))
    assert [(file.path.name, kind) for file, kind in run.sources] == [
        (name, kind) for kind in ('ema', 'raw', 'short', 'long') for name in ('a.pth', 'b.pth')
    ]
    (wanted,) = build([run.average(Target('long', run.further['long']))])
    assert_equal(wanted, {name: value * 4 for name, value in torch.load(tmp_path / 'b.pth')['state_dict'].items()})


def test_average_that_was_new_on_the_way_has_the_history_of_the_main_one(several, file, tmp_path):
    file('a.pth', 10)
    several('b.pth', 20)
    content = torch.load(tmp_path / 'b.pth')
    segments = content['meta']['mmyolo_ema']['averages']['short']['schedule']
    segments[:] = [[0, content['meta']['mmyolo_ema']['schedule'][0][1]], [10, segments[0][1]]]
    torch.save(content, tmp_path / 'b.pth')
    assert read_run(tmp_path).further['short'] == Segmented(((0, Ramp(0.1, 5)), (10, Ramp(0.4, 5))))


def test_files_whose_averages_leave_out_other_tensors_are_refused(several, tmp_path):
    several('a.pth', 10, excluded=['a', 'b'])
    several('b.pth', 20, excluded=['b'])
    with pytest.raises(
        ValueError,
        match=r'a\.pth and .*b\.pth were averaged in different ways: update_buffers=True, '
        r'not averaged: a, b and update_buffers=True, not averaged: b\. Averaged in '
        r'one of them only: a\. Move the files of one of them away',
    ):
        read_run(tmp_path)


def test_track_that_leaves_out_other_tensors_than_the_main_one_is_left_out_and_named(several, tmp_path):
    several('a.pth', 10, short=dict(excluded=['b']))
    run = read_run(tmp_path)
    assert list(run.further) == ['long']
    assert [kind for _, kind in run.sources] == ['ema', 'raw', 'long']
    assert run.left_out == {
        tmp_path / 'a.pth': 'only averages that are not averaged as the main one: short '
        '(update_buffers=True, not averaged: b)'
    }


def test_reason_why_something_is_not_used_is_told_once(several, tmp_path, capsys):
    for updates in range(10, 60, 10):
        several(f'{updates}.pth', updates, short=dict(excluded=['b']))
    print_run(read_run(tmp_path))
    assert capsys.readouterr().out.splitlines()[1] == (
        'not used: 10.pth, 20.pth, 30.pth and 2 more (only averages that are not averaged as the main one: short '
        '(update_buffers=True, not averaged: b))'
    )


def test_tensors_that_are_left_out_are_those_of_the_newest(several, tmp_path):
    several('a.pth', 10, excluded=['a'], short=dict(excluded=['a']))
    several('b.pth', 20, excluded=['a'], short=dict(excluded=['a']))
    run = read_run(tmp_path)
    (made,) = build([run.average(4)])
    assert torch.equal(made['a'], torch.load(tmp_path / 'b.pth')['state_dict']['a'])
    assert not torch.equal(made['b'], torch.load(tmp_path / 'b.pth')['state_dict']['b'])


def test_what_was_made_of_snapshots_is_none(file, tmp_path):
    file('a.pth', 10)
    content = torch.load(file('made.pth', 20))
    del content['ema_state_dict']
    content['meta']['mmyolo_ema'] = dict(weights='ema', updates=20, posthoc=dict(target='5'))
    torch.save(content, tmp_path / 'made.pth')
    run = read_run(tmp_path)
    assert (run.updates, list(run.left_out)) == (10, [tmp_path / 'made.pth'])


def test_files_without_an_average_of_the_run_are_left_out(file, tmp_path):
    before_begin = file('early.pth', 0)
    complete = file('a.pth', 10)
    extract(complete, tmp_path / '0.pth')
    run = read_run(tmp_path)
    assert [stored.path for stored in run.files] == [complete]
    assert sorted(run.left_out) == [tmp_path / '0.pth', before_begin]


def test_length_of_an_epoch_is_told_if_all_files_agree(file, tmp_path):
    file('a.pth', 15, iteration=15)
    assert read_run(tmp_path).updates_per_epoch is None
    file('b.pth', 25, iteration=25)
    assert read_run(tmp_path).updates_per_epoch == 10
    # Saved by iterations: the epoch is the one before.
    file('c.pth', 29, iteration=29)
    assert read_run(tmp_path).updates_per_epoch is None
