"""Our EMAHook in MMEngine's runner: what it shares with MMEngine's hook, and what it adds."""

import pytest
from mmengine.hooks import EMAHook as UpstreamHook
from mmengine.hooks import Hook
from mmengine.registry import METRICS, MODELS
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mmyolo_ema import EMAHook, checkpoint
from mmyolo_ema.schedules import mean_age, momentum_at, rounded
from tests.helpers import assert_equal, copy_of
from tests.hooks.toy import average_of, scalars, toy_hook

UPSTREAM = 'mmengine.EMAHook'
Toy = MODELS.get('Toy')


@pytest.fixture
def assert_same_state():

    def check(one, other):
        for part in ('state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers'):
            assert_equal(one[part], other[part], part)

    return check


AVERAGES = [
    dict(ema_type='mmyolo_ema.ExpMomentumEMA', momentum=0.1, gamma=2, update_buffers=True),
    dict(ema_type='mmyolo_ema.ExpMomentumEMA', momentum=0.1, gamma=2, interval=2),
    dict(ema_type='mmdet.ExpMomentumEMA', momentum=0.1, gamma=2),
    dict(ema_type='ExponentialMovingAverage', momentum=0.1, update_buffers=True),
    dict(ema_type='MomentumAnnealingEMA', gamma=10),
    dict(ema_type='StochasticWeightAverage'),
]


@pytest.mark.parametrize('average', AVERAGES, ids=lambda average: f'{average["ema_type"]}')
@pytest.mark.parametrize('begin', [{}, dict(begin_epoch=2), dict(begin_iter=4)], ids=str)
def test_checkpoints_equal_those_of_mmengine(toy, tmp_path, average, begin, assert_same_state):
    for name, kind in (('ours', 'mmyolo_ema.EMAHook'), ('theirs', UPSTREAM)):
        toy(name, hook=dict(type=kind, **average, **begin)).train()
    for epoch in (1, 2):
        one, other = (checkpoint.read(tmp_path / name / f'epoch_{epoch}.pth') for name in ('ours', 'theirs'))
        assert_same_state(one, other)


@pytest.mark.parametrize('first', [UPSTREAM, 'mmyolo_ema.EMAHook'])
@pytest.mark.parametrize('second', [UPSTREAM, 'mmyolo_ema.EMAHook'])
def test_a_run_resumes_with_either_hook(toy, tmp_path, first, second, assert_same_state):
    toy('whole', hook=dict(toy_hook(), type=first)).train()
    half = str(tmp_path / 'whole' / 'epoch_1.pth')
    toy('resumed', hook=dict(toy_hook(), type=second), load_from=half, resume=True).train()
    assert_same_state(*(checkpoint.read(tmp_path / name / 'epoch_2.pth') for name in ('whole', 'resumed')))


@pytest.mark.parametrize('by_epoch', [True, False])
@pytest.mark.parametrize(('counts', 'updates'), [(1, 12), (4, 3), (5, 3)])
def test_updates_are_optimizer_steps(toy, by_epoch, counts, updates):
    runner = toy(by_epoch=by_epoch, optim_wrapper=dict(accumulative_counts=counts))
    runner.train()
    assert average_of(runner).ema_model.steps == updates


class Probe(Hook):
    """Remembers the metrics that hooks get after each validation."""

    priority = 'LOWEST'

    def __init__(self):
        self.metrics = []

    def after_val_epoch(self, runner, metrics=None):
        self.metrics.append(dict(metrics))


def validated(runner):
    probe = Probe()
    runner.register_hook(probe)
    runner.train()
    return probe.metrics


def test_both_kinds_of_weights_are_validated(toy):
    averaged = validated(toy('ema'))
    raw = validated(toy('raw', hook=toy_hook(evaluate_on_ema=False)))
    both = validated(toy('both', hook=toy_hook(evaluate_on_origin=True)))
    assert averaged != raw
    assert both == [dict(**a, mean_origin=r['mean']) for a, r in zip(averaged, raw)]


def test_metrics_of_both_kinds_are_in_the_log(toy):
    runner = toy(hook=toy_hook(evaluate_on_origin=True))
    measured = validated(runner)
    logged = [line for line in scalars(runner) if 'mean' in line]
    assert [line['mean'] for line in logged] == [metrics['mean'] for metrics in measured]
    assert [line['mean_origin'] for line in logged] == [metrics['mean_origin'] for metrics in measured]


def test_progress_of_both_passes_is_shown(toy):
    seen = []

    class Count(Hook):
        def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            seen.append(batch_idx)

    runner = toy(hook=toy_hook(evaluate_on_origin=True))
    runner.register_hook(Count())
    runner.train()
    assert seen == [0, 1, 0, 1] * 2


@pytest.mark.parametrize(('key', 'weights'), [('mean_origin', 'raw'), ('mean', 'averaged')])
def test_best_checkpoint_is_chosen_by_either_metric(toy, tmp_path, key, weights):
    saving = dict(
        type='CheckpointHook', save_best=key, rule='less', save_optimizer=False, published_keys=['meta', 'state_dict']
    )
    runner = toy(hook=toy_hook(evaluate_on_origin=True), default_hooks=dict(checkpoint=saving))
    measured = validated(runner)
    best = min(range(2), key=lambda epoch: measured[epoch][key])
    content = checkpoint.read(tmp_path / 'run' / f'best_{key}_epoch_{best + 1}.pth')
    assert 'optimizer' not in content
    tested = toy('test', load_from=None)
    tested.model.load_state_dict(checkpoint.raw_weights(content) if weights == 'raw' else content['state_dict'])
    assert tested.test()['mean'] == measured[best][key]
    published = next((tmp_path / 'run').glob('best_*-*.pth'))
    assert_equal(dict(checkpoint.read(published)['state_dict']), dict(content['state_dict']))


@METRICS.register_module(force=True)
class SeldomMean(METRICS.get('Mean')):
    """Measures nothing in every second pass, as a detection metric does if nothing is detected."""

    def __init__(self, empty):
        super().__init__()
        self.empty = empty
        self.passes = 0

    def compute_metrics(self, results):
        self.passes += 1
        return {} if self.passes % 2 == self.empty else super().compute_metrics(results)


@pytest.mark.parametrize('key', ['mean', 'mean_origin', 'auto'])
@pytest.mark.parametrize('empty', ['raw', 'averaged'])
def test_one_kind_of_weights_may_have_no_metrics(toy, key, empty):
    passes = dict(averaged=0, raw=1)  # the raw weights come first
    runner = toy(
        val_evaluator=dict(type='SeldomMean', empty=passes[empty]),
        default_hooks=dict(
            logger=dict(type='LoggerHook'), checkpoint=dict(type='CheckpointHook', save_best=key, rule='less')
        ),
        custom_hooks=[
            toy_hook(evaluate_on_origin=True),
            dict(type='EarlyStoppingHook', monitor=key.replace('auto', 'mean'), rule='less', patience=9),
        ],
    )
    measured = validated(runner)
    assert len(measured) == 2
    for metrics in measured:
        assert metrics.get('mean_origin') is None
        assert ('mean' in metrics) == (empty == 'raw')
    logged = [found for line in scalars(runner) if (found := line.keys() & {'mean', 'mean_origin'})]
    assert logged == [{'mean'} if empty == 'raw' else {'mean_origin'}] * 2


def test_best_by_a_metric_that_is_not_measured_is_announced(toy, messages):
    saving = dict(type='CheckpointHook', save_best='mean_origin', rule='less')
    with pytest.raises(KeyError, match='mean_origin'):
        toy(default_hooks=dict(checkpoint=saving)).train()
    assert "EMA: save_best names mean_origin, which is measured with evaluate=['ema', 'raw'] only" in map(str, messages)


def test_before_the_start_the_model_is_validated_as_its_average(toy, tmp_path):
    measured = validated(toy(hook=toy_hook(evaluate_on_origin=True, begin_epoch=2)))
    assert measured[0]['mean'] == measured[0]['mean_origin']
    assert measured[1]['mean'] != measured[1]['mean_origin']
    early = checkpoint.read(tmp_path / 'run' / 'epoch_1.pth')
    assert_equal(dict(early['state_dict']), checkpoint.raw_weights(early))
    assert early['ema_state_dict']['steps'] == 0


@pytest.mark.parametrize('begin', [dict(begin_iter=0), dict(begin_iter=1), dict(begin_epoch=0), dict(begin_epoch=1)])
def test_begin_0_and_1_are_the_same(toy, begin):
    runner = toy(hook=toy_hook(**begin))
    runner.train()
    assert average_of(runner).ema_model.steps == 12


def test_average_starts_at_the_given_iteration_and_says_so(toy, messages):
    runner = toy(hook=toy_hook(begin_iter=4))
    runner.train()
    assert average_of(runner).ema_model.steps == 9
    assert [message for message in messages if 'begins' in str(message)] == [
        'EMA: begins at iteration 4; until now the model stood for its average'
    ]


def test_misspelt_option_is_named_beside_those_that_there_are(toy):
    with pytest.raises(
        TypeError,
        match=r'no option evaluate_on_orgin \(did you mean evaluate_on_origin or .*: it '
        r'takes ema_type, .*, and its average ExpMomentumEMA takes momentum, gamma, ',
    ):
        toy(hook=toy_hook(evaluate_on_orgin=True)).train()


class Failing(Hook):
    """Raises at one point of a validation or test."""

    def __init__(self, point, priority, error):
        self.priority = priority
        setattr(self, point, self.fail)
        self.error = error

    def fail(self, runner, *args, **kwargs):
        raise self.error


@pytest.mark.parametrize('point', ['before_val_epoch', 'before_val_iter', 'after_val_iter', 'after_val_epoch'])
@pytest.mark.parametrize('priority', ['VERY_HIGH', 'LOWEST'])
@pytest.mark.parametrize('error', [KeyboardInterrupt('now'), ValueError('of a metric')], ids=['Ctrl-C', 'error'])
def test_error_in_a_validation_leaves_the_raw_weights(toy, point, priority, error):
    runner = toy(hook=toy_hook(evaluate_on_origin=True))
    trained, averaged = {}, {}

    class Remember(Hook):
        def after_train_epoch(self, runner):
            trained.update(copy_of(runner.model))
            averaged.update(copy_of(average_of(runner).ema_model.module))

    runner.register_hook(Remember())
    runner.register_hook(Failing(point, priority, error))
    with pytest.raises(type(error)) as raised:
        runner.train()
    assert raised.value is error
    assert_equal(copy_of(runner.model), trained)
    assert_equal(copy_of(average_of(runner).ema_model.module), averaged)


def test_error_in_a_test_leaves_the_raw_weights(toy):
    runner = toy()
    runner.train()
    trained = copy_of(runner.model)
    runner.register_hook(Failing('after_test_iter', 'LOWEST', KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        runner.test()
    assert_equal(copy_of(runner.model), trained)


def test_training_goes_on_after_an_interrupted_validation(toy, tmp_path, assert_same_state):
    toy('whole').train()
    runner = toy('interrupted')
    failing = Failing('after_val_iter', 'LOWEST', KeyboardInterrupt())
    runner.register_hook(failing)
    with pytest.raises(KeyboardInterrupt):
        runner.train()
    failing.fail = failing.after_val_iter = lambda *args, **kwargs: None
    runner.train_loop.run()
    assert_same_state(*(checkpoint.read(tmp_path / name / 'epoch_2.pth') for name in ('whole', 'interrupted')))


def test_checkpoint_saved_during_a_validation_has_both_kinds_in_their_places(toy, tmp_path, assert_same_state):

    class Save(Hook):
        def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            runner.save_checkpoint(runner.work_dir, 'within.pth', meta=dict(epoch=1, iter=6))

    runner = toy(train_cfg=dict(by_epoch=True, max_epochs=1))
    runner.register_hook(Save())
    runner.train()
    within, after = (checkpoint.read(tmp_path / 'run' / name) for name in ('within.pth', 'epoch_1.pth'))
    assert_same_state(within, after)


def test_test_run_makes_no_average(toy, tmp_path, monkeypatch):
    toy().train()
    runner = toy('test', load_from=str(tmp_path / 'run' / 'epoch_2.pth'))
    monkeypatch.setattr(EMAHook, '_make_averages', lambda hook: pytest.fail('an average was made'))
    runner.test()


@pytest.mark.parametrize('model', [None, Toy()], ids=['other model', 'same model'])
def test_hook_serves_a_second_runner(toy, model):
    hook = EMAHook(**{key: value for key, value in toy_hook().items() if key not in ('type', 'priority')})
    for name in ('first', 'second'):
        toy(name, hook=hook, **({} if model is None else dict(model=model))).train()
        assert hook.ema_model.steps == 12


def test_second_runner_that_only_tests_leaves_the_average_to_the_first(toy, tmp_path):
    hook = EMAHook(**{key: value for key, value in toy_hook().items() if key not in ('type', 'priority')})
    first = toy('first', hook=hook)
    first.train()
    validated = first.val()
    assert toy('second', hook=hook, load_from=str(tmp_path / 'first' / 'epoch_2.pth')).test() == validated
    assert first.val() == validated


def test_interrupted_validation_leaves_no_metrics_to_a_second_runner(toy):
    hook = EMAHook(
        evaluate_on_origin=True,
        begin_epoch=2,
        **{key: value for key, value in toy_hook().items() if key not in ('type', 'priority')},
    )
    runner = toy('first', hook=hook, custom_hooks=[hook, Failing('after_val_iter', 'LOWEST', KeyboardInterrupt())])
    with pytest.raises(KeyboardInterrupt):
        runner.train()
    first = validated(toy('second', hook=hook))[0]
    assert first['mean'] == first['mean_origin']


def test_validation_before_a_training_is_like_that_of_mmengine(toy, tmp_path):
    toy().train()
    path = str(tmp_path / 'run' / 'epoch_2.pth')
    for hook in (toy_hook(evaluate_on_origin=True), dict(toy_hook(), type=UPSTREAM)):
        runner = toy(
            'val',
            hook=hook,
            load_from=path,
            custom_hooks=[hook, dict(type='EarlyStoppingHook', monitor='mean', rule='less')],
        )
        assert runner.val()['mean'] == toy('test', load_from=path).test()['mean']


@pytest.mark.parametrize('workers', [{}, dict(num_workers=1, persistent_workers=True)], ids=['plain', 'persistent'])
def test_validating_the_raw_weights_too_does_not_change_the_training(toy, tmp_path, workers, assert_same_state):
    model = dict(type='Toy', dropout=0.5)
    for name, both in (('one', False), ('both', True)):
        runner = toy(name, hook=toy_hook(evaluate_on_origin=both), model=model)
        runner._val_dataloader.update(workers)
        runner.train()
    assert_same_state(*(checkpoint.read(tmp_path / name / 'epoch_2.pth') for name in ('one', 'both')))


def test_each_pass_begins_for_later_hooks(toy):
    seen = []

    class Count(Hook):
        def before_val_epoch(self, runner):
            self.iterations = 0

        def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            self.iterations += 1
            seen.append(self.iterations)

    runner = toy(hook=toy_hook(evaluate_on_origin=True), train_cfg=dict(by_epoch=True, max_epochs=1))
    runner.register_hook(Count())
    runner.train()
    assert seen == [1, 2, 1, 2]


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(evaluate_on_ema='no'), "evaluate_on_ema must be True or False, but got 'no'"),
        (dict(skip_nonfinite=1), 'skip_nonfinite must be True or False, but got 1'),
        (dict(begin_iter=1.5), r'begin_iter must be an integer, but got 1\.5'),
    ],
)
def test_wrong_flags_are_refused(options, message):
    with pytest.raises(TypeError, match=message):
        EMAHook(**options)


def test_hook_is_a_subclass_of_mmengine(toy):
    assert issubclass(EMAHook, UpstreamHook)
    # After YOLOX's hooks, before those that log and save.
    order = [type(hook).__name__ for hook in toy(hook=dict(type='mmyolo_ema.EMAHook')).hooks]
    assert order.index('EMAHook') < min(order.index('LoggerHook'), order.index('CheckpointHook'))


def test_scalars_are_logged_at_the_interval_of_the_logger(toy):
    runner = toy(default_hooks=dict(logger=dict(type='LoggerHook', interval=3)))
    runner.train()
    lines = [line for line in scalars(runner) if 'loss' in line]
    assert [line['step'] for line in lines] == [3, 6, 9, 12]
    for line in lines:
        assert line['ema_momentum'] == momentum_at(line['step'] - 1, 0.1, 2)
        assert line['ema_mean_age'] == mean_age(line['step'], 0.1, 2)
        assert 0 < line['ema_drift'] < 1
    assert len(runner.message_hub.get_scalar('train/ema_drift').data[0]) == 4


def test_tensorboard_shows_the_scalars(toy):
    runner = toy(
        hook=toy_hook(evaluate_on_origin=True),
        visualizer=dict(type='Visualizer', vis_backends=[dict(type='TensorboardVisBackend')]),
    )
    runner.train()
    events = EventAccumulator(f'{runner.log_dir}/vis_data')
    events.Reload()
    assert {'ema_momentum', 'ema_mean_age', 'ema_drift', 'mean', 'mean_origin'} <= set(events.Tags()['scalars'])
    assert [event.step for event in events.Scalars('ema_drift')] == list(range(1, 13))


def test_resumed_run_goes_on_with_the_mean_age_and_the_curves(toy, tmp_path):
    toy('whole').train()
    half = str(tmp_path / 'whole' / 'epoch_1.pth')
    runner = toy('resumed', load_from=half, resume=True)
    runner.train()
    assert runner.message_hub.get_scalar('train/ema_mean_age').current() == mean_age(12, 0.1, 2)
    positions = [point[0] for point in runner.message_hub.get_info('ema_history')['state']]
    assert positions == pytest.approx([(step + 1) / 6 for step in range(12)])


def test_curves_are_drawn_in_the_work_directory(toy, messages, figures, tmp_path):
    runner = toy(hook=toy_hook(evaluate_on_origin=True))
    runner.train()
    assert (tmp_path / 'run' / 'ema_curves.png').exists()
    metric, momentum, drift = figures[0].axes
    assert [axis.get_ylabel() for axis in (metric, momentum)] == ['mean', 'momentum']
    assert drift.get_ylabel() == 'drift: distance / norm of the model'
    values = {line.get_label(): list(line.get_ydata()) for line in metric.lines}
    logged = scalars(runner)
    assert values == {
        'average': [line['mean'] for line in logged if 'mean' in line],
        'raw': [line['mean_origin'] for line in logged if 'mean_origin' in line],
    }
    assert list(momentum.lines[0].get_ydata()) == [line['ema_momentum'] for line in logged if 'ema_momentum' in line]
    assert list(drift.lines[0].get_xdata()) == pytest.approx([(step + 1) / 6 for step in range(12)])
    assert metric.get_xlabel() == 'epoch'
    assert figures[0].get_suptitle() == f'Mean age after 12 updates: average {rounded(mean_age(12, 0.1, 2))} updates'
    assert not any('in the place of an earlier one' in str(message) for message in messages)
    toy().train()
    assert any('in the place of an earlier one' in str(message) for message in messages)


def test_schedule_that_does_not_suit_the_run_is_announced(toy, messages):
    toy(hook=dict(toy_hook(), momentum=0.0002, gamma=2000)).train()
    said = [message for message in messages if 'do not suit' in str(message)]
    assert len(said) == 2, 'at the start, and again at the end'
    assert said[0] == said[1]
    assert 'momentum=0.0002 and gamma=2000 do not suit this run of 12 updates' in said[0]
    assert 'momentum=0.615 and gamma=6.18 would make them 4% of the run old' in said[0]


def test_nothing_is_announced_for_a_schedule_that_suits(toy, messages):
    toy(train_cfg=dict(by_epoch=True, max_epochs=20)).train()
    assert not any('do not suit' in str(message) for message in messages)
