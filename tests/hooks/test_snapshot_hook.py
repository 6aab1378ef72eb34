import shutil
from collections import namedtuple

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import MODELS

from mmyolo_ema import EMAHook, ExpMomentumEMA, checkpoint
from mmyolo_ema.posthoc import Target, read_run
from mmyolo_ema.posthoc.build import build
from mmyolo_ema.schedules import Ramp, Segmented
from tests.helpers import assert_equal
from tests.hooks.test_upstream_defects import Adapted
from tests.hooks.toy import average_of, toy_hook

AVERAGES = dict(short=dict(momentum=0.4, gamma=2), long=dict(mean_age='40%'))


@pytest.fixture
def run(toy):
    """Returns a function that makes a run of 12 updates, 6 an epoch, with snapshots."""

    def make(name='run', average=None, toy_options=None, **options):
        hooks = [average or toy_hook(), dict(type='mmyolo_ema.SnapshotHook', **options)]
        cfg = Config(dict(custom_hooks=[hooks[0]]))
        return toy(name, cfg=cfg, **dict(dict(custom_hooks=hooks), **(toy_options or {})))

    return make


class Follow(Hook):
    """Keeps an average of its own after each update, to compare with."""

    priority = 'LOWEST'

    def before_train(self, runner):
        self.average, self.states = ExpMomentumEMA(runner.model, momentum=0.2, gamma=2, update_buffers=True), []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.average.update_parameters(runner.model)
        self.states.append({name: value.clone() for name, value in self.average.module.state_dict().items()})


def snapshots(folder):
    return {path.name: torch.load(path, weights_only=True) for path in sorted((folder / 'snapshots').glob('*.pth'))}


@pytest.mark.parametrize(
    ('interval', 'names'),
    [
        (5, ['update_00000005.pth', 'update_00000010.pth', 'update_00000012.pth']),
        ('1epoch', ['update_00000006.pth', 'update_00000012.pth']),
        ('25%', [f'update_{updates:08d}.pth' for updates in (3, 6, 9, 12)]),
    ],
)
def test_snapshots_come_at_their_updates_and_at_the_end(run, tmp_path, interval, names):
    run(interval=interval).train()
    assert list(snapshots(tmp_path / 'run')) == names


@pytest.mark.parametrize('kind', ['mmyolo_ema.EMAHook', 'mmengine.EMAHook'])
def test_snapshot_is_the_average_and_nothing_else(run, tmp_path, kind):
    run(average=dict(toy_hook(), type=kind)).train()
    found = snapshots(tmp_path / 'run')['update_00000012.pth']
    whole = checkpoint.read(tmp_path / 'run' / 'epoch_2.pth')
    assert_equal(found['state_dict'], dict(whole['state_dict']))
    assert list(found) == ['meta', 'state_dict']
    meta = found['meta']
    buffers = ['norm.running_mean', 'norm.running_var', 'norm.num_batches_tracked']
    assert (meta['iter'], meta['mmyolo_ema']) == (
        12,
        dict(whole['meta'].get('mmyolo_ema', {}), updates_per_epoch=6, weights='ema', updates=12, buffers=buffers),
    )


def test_second_average_is_that_of_its_own_horizon(run, tmp_path):
    follow, runner = Follow(), run(interval=4, second_horizon=5)
    runner.register_hook(follow)
    runner.train()
    for updates, found in zip((4, 8, 12), snapshots(tmp_path / 'run').values()):
        assert_equal(dict(checkpoint.weights_of(found, 'second')), follow.states[updates - 1])
    stored = read_run(tmp_path / 'run')
    assert (stored.schedule, stored.second) == (Ramp(0.1, 2), Ramp(0.2, 2))
    exact = stored.average(5)
    ((file, kind),) = (source for source, value in zip(stored.sources, exact.worst.coefficients) if value)
    assert (file.updates, kind, exact.error) == (12, 'second', 0)


def test_second_average_is_validated_if_it_is_named(run, tmp_path):
    hook = toy_hook(evaluate=['ema', 'second'])
    runner = run(average=hook, second_horizon=5)
    runner.train()
    weights = checkpoint.weights_of(checkpoint.read(tmp_path / 'run' / 'epoch_2.pth'), 'second')
    validated = runner.message_hub.get_scalar('val/mean_second').current()
    runner.model.load_state_dict(weights)
    average_of(runner).evaluate_on_ema = False
    assert runner.test()['mean'] == validated
    with pytest.raises(ValueError, match="evaluate has 'second', but no SnapshotHook of the run has a second_horizon"):
        run(average=hook).train()


@pytest.mark.parametrize('options', [{}, dict(second_horizon=5)])
def test_snapshot_holds_all_averages_as_a_checkpoint_does(run, tmp_path, options):
    runner = run(average=toy_hook(averages=AVERAGES), interval=4, **options)
    runner.train()
    slim, complete = (
        checkpoint.read(tmp_path / 'run' / name) for name in ('snapshots/update_00000012.pth', 'epoch_2.pth')
    )
    names = [*AVERAGES, *(['second'] if options else [])]
    assert list(slim['ema_averages']) == list(average_of(runner).averages) == names
    for name in names:
        assert_equal(slim['ema_averages'][name], dict(complete['ema_averages'][name]))
    assert slim['meta']['mmyolo_ema']['averages'] == complete['meta']['mmyolo_ema']['averages']
    stored = read_run(tmp_path / 'run')
    assert {kind: file.updates for file, kind in stored.sources} == dict.fromkeys(['ema', 'raw', *names], 12)
    for name, schedule in stored.further.items():
        (made,) = build([stored.average(Target(name, schedule))])
        assert_equal(made, dict(checkpoint.weights_of(complete, name)))
    alone = stored._replace(files=[file._replace(kinds=('ema',)) for file in stored.files if 'ema' in file.kinds])
    assert stored.average(4).error < 0.1 * alone.average(4).error


def test_snapshot_of_a_model_that_stores_a_part_of_itself_tells_the_updates(run, tmp_path):
    run(average=toy_hook(averages=AVERAGES), interval=12, toy_options=dict(model=Adapted())).train()
    content = checkpoint.read(tmp_path / 'run' / 'snapshots' / 'update_00000012.pth')
    assert [checkpoint.updates_in(content, name) for name in AVERAGES] == [12, 12]


def test_snapshots_of_accumulated_steps_count_steps(run, tmp_path):
    run(
        interval='1epoch',
        toy_options=dict(optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1), accumulative_counts=3)),
    ).train()
    assert list(snapshots(tmp_path / 'run')) == ['update_00000002.pth', 'update_00000004.pth']


def test_resumed_run_writes_what_the_whole_one_does(run, tmp_path):
    options = dict(average=toy_hook(averages=AVERAGES), interval=4, second_horizon=5)
    run('whole', **options).train()
    run('parts', **options).train()
    for path in (tmp_path / 'parts' / 'epoch_2.pth', *(tmp_path / 'parts' / 'snapshots').glob('*12.pth')):
        path.unlink()
    (tmp_path / 'parts' / 'last_checkpoint').write_text(str(tmp_path / 'parts' / 'epoch_1.pth'))
    run('parts', toy_options=dict(resume=True), **options).train()
    whole, parts = (snapshots(tmp_path / name) for name in ('whole', 'parts'))
    assert list(whole) == list(parts)
    for name, content in whole.items():
        assert content['meta']['mmyolo_ema'] == parts[name]['meta']['mmyolo_ema']
        for part in ('state_dict', 'ema_averages'):
            assert_equal(content[part], parts[name][part])
    # That of update 8 was written before the end that the run did not come to, and is written again.
    assert (tmp_path / 'parts' / 'snapshots' / 'update_00000008.abandoned').is_file()


def test_run_that_is_taken_back_writes_the_same_again(run, tmp_path):
    runner = run(interval=4, second_horizon=5)
    runner.train()
    first = snapshots(tmp_path / 'run')
    runner.resume(str(tmp_path / 'run' / 'epoch_1.pth'))
    runner.train_loop.run()
    second = snapshots(tmp_path / 'run')
    assert list(first) == list(second)
    for name, content in first.items():
        for part in ('state_dict', 'ema_averages'):
            assert_equal(content[part], second[name][part])
    assert (tmp_path / 'run' / 'snapshots' / 'update_00000012.abandoned').is_file()


@MODELS.register_module(force=True)
class DoubleToy(MODELS.get('Toy')):
    def __init__(self):
        super().__init__()
        self.double()

    def forward(self, inputs, mode='tensor'):
        return super().forward([each.double() for each in inputs], mode)


def test_snapshots_are_in_single_precision(run, tmp_path):
    run(second_horizon=5, toy_options=dict(model=dict(type='DoubleToy'))).train()
    found = snapshots(tmp_path / 'run')['update_00000012.pth']
    dtypes = {value.dtype for kind in ('ema', 'second') for value in checkpoint.weights_of(found, kind).values()}
    assert dtypes == {torch.float32, torch.int64}


@pytest.mark.parametrize(('free', 'warned'), [(10**9, False), (100, True)])
def test_disk_space_is_told_at_the_start(run, messages, monkeypatch, free, warned):
    usage = namedtuple('usage', 'free')
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage(free))
    run(interval=5, second_horizon=5).train()
    said = [message for message in messages if message.startswith('EMA snapshots: ')]
    # 37 numbers of 4 bytes and a count of 8, twice.
    assert said[0].startswith('EMA snapshots: 3 files with 2 averages, 312 bytes each, one every 5 updates: 936 bytes')
    assert [message.endswith('has 100 bytes left, too few') for message in said[1:]] == [True] * warned


def test_full_disk_ends_no_training(run, messages, tmp_path, monkeypatch):
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / 'snapshots').write_text('in the way')
    run().train()
    assert sum('could not be written' in message for message in messages) == 2
    assert (tmp_path / 'run' / 'epoch_2.pth').is_file()


@pytest.mark.parametrize(
    ('average', 'options', 'said'),
    [
        (dict(type='mmyolo_ema.RawWeightsHook'), {}, 'but custom_hooks has 1 and 0 of them'),
        (None, dict(interval='often'), "but got 'often'"),
        (None, dict(interval=0), "but got '0'"),
        (None, dict(second_horizon=1), 'second_horizon=1 is 1 updates'),
        (
            dict(type='mmyolo_ema.EMAHook', ema_type='StochasticWeightAverage'),
            dict(second_horizon=4),
            'it needs one with a momentum',
        ),
        (None, dict(second_horizon=10), 'second_horizon=10 is 10 updates'),
        (None, dict(second_horizon='much'), "second_horizon='much' of the SnapshotHook"),
        (
            toy_hook(averages=dict(second=AVERAGES['short'])),
            dict(second_horizon=4),
            "has an average called 'second' too",
        ),
        (
            dict(toy_hook(), type='mmengine.EMAHook'),
            dict(second_horizon=4),
            "MMEngine's EMAHook does not keep: take type=",
        ),
    ],
)
def test_what_cannot_work_is_refused_at_the_start(run, average, options, said):
    with pytest.raises(ValueError, match=said):
        run(average=average, **options).train()


@pytest.mark.parametrize(
    ('more', 'said'),
    [
        (dict(type='mmyolo_ema.SnapshotHook'), 'but custom_hooks has 2 and 1 of them'),
        (None, 'must come after the EMAHook, but its priority is VERY_HIGH'),
    ],
)
def test_hooks_that_do_not_go_together_are_refused(toy, more, said):
    own = dict(type='mmyolo_ema.SnapshotHook', **({} if more else dict(priority='VERY_HIGH')))
    with pytest.raises(ValueError, match=said):
        toy(custom_hooks=[toy_hook(), own, *([more] if more else [])]).train()


def test_validation_after_the_training_leaves_the_second_average(run):
    runner = run(second_horizon=5)
    runner.train()
    before = average_of(runner).averages['second']
    runner.val()
    assert (average_of(runner).averages['second'] is before, int(before.steps)) == (True, 12)


def test_run_that_resumes_from_nothing_puts_snapshots_aside(run, tmp_path):
    for _ in range(3):
        run(toy_options=dict(resume=True)).train()
        for path in (tmp_path / 'run').glob('*.pth'):
            path.unlink()
        (tmp_path / 'run' / 'last_checkpoint').unlink()
    names = sorted(path.name for path in (tmp_path / 'run' / 'snapshots').glob('*06*'))
    assert names == ['update_00000006.1.abandoned', 'update_00000006.abandoned', 'update_00000006.pth']


def test_snapshots_of_another_run_are_not_mixed_in(run):
    run().train()
    with pytest.raises(ValueError, match=r'has snapshots of another run, such as update_00000006\.pth'):
        run().train()


@pytest.mark.parametrize(
    ('before', 'said', 'schedule'),
    [
        (
            {},
            "; the average 'second' is new and starts as a copy of it",
            Segmented(((0, Ramp(0.1, 2)), (6, Ramp(0.2, 2)))),
        ),
        (
            dict(second_horizon=4),
            "; the average 'second': its schedule was Ramp(momentum=0.25, gamma=2, interval=1) and is "
            'Ramp(momentum=0.2, gamma=2, interval=1) from here on',
            Segmented(((0, Ramp(0.25, 2)), (6, Ramp(0.2, 2)))),
        ),
    ],
)
def test_run_that_resumes_with_another_second_horizon_says_so(run, tmp_path, messages, before, said, schedule):
    run('before', **before).train()
    run(
        'after', second_horizon=5, toy_options=dict(resume=True, load_from=str(tmp_path / 'before' / 'epoch_1.pth'))
    ).train()
    assert f'EMA: resumed at update 6{said}' in map(str, messages)
    assert read_run(tmp_path / 'after').second == schedule


def test_hook_of_an_earlier_run_forgets_the_second_average(toy):
    hook = EMAHook(ema_type='mmyolo_ema.ExpMomentumEMA', momentum=0.1)
    toy('first', custom_hooks=[hook, dict(type='mmyolo_ema.SnapshotHook', second_horizon=5)]).train()
    assert list(hook.averages) == ['second']
    toy('next', custom_hooks=[hook]).train()
    assert list(hook.averages) == []
