"""Several averages of one run: each is what it would be in a run of its own."""

import re
from itertools import product

import pytest
import torch
from mmengine.hooks import Hook

from mmyolo_ema import EMAHook, checkpoint
from mmyolo_ema.checkpoint.weights import origin, updates_in
from mmyolo_ema.ema_options import check_options
from tests.helpers import ROOT, assert_equal
from tests.hooks.test_upstream_defects import Adapted
from tests.hooks.toy import Overflow, average_of, scalars, toy_hook
from tests.test_distributed import launch

SHORT, LONG = dict(mean_age='40%'), dict(momentum=0.05, gamma=4)
AVERAGES = dict(short=SHORT, long=LONG)
KINDS = ['ema', 'raw', 'short', 'long']


def several(**options):
    return toy_hook(**dict(dict(averages=AVERAGES, evaluate=KINDS), **options))


def alone(schedule, **options):
    hook = dict(toy_hook(**options), **schedule)
    return {key: value for key, value in hook.items() if 'mean_age' not in schedule or key not in ('momentum', 'gamma')}


def train(toy, name, hook, **options):
    runner = toy(name, custom_hooks=[hook, Overflow()], **options)
    runner.train()
    return runner


def train_together_and_alone(toy, folder, averages=None, **run):
    """Trains all averages in one run, that run again from its middle, and each average in a run of its own."""
    options = averages or {}
    train(toy, 'several', several(**options), **run)
    train(toy, 'resumed', several(**options), load_from=str(folder / 'several' / 'epoch_1.pth'), resume=True, **run)
    for name, schedule in dict(AVERAGES, ema={}).items():
        train(toy, name, alone(schedule, **options), **run)


def assert_each_is_that_of_a_run_of_its_own(folder):
    for run, kind in product(('several', 'resumed'), ('ema', *AVERAGES)):
        stored, single = (checkpoint.read(folder / name / 'epoch_2.pth') for name in (run, kind))
        assert_equal(dict(checkpoint.weights_of(stored, kind)), dict(single['state_dict']), kind)
        assert_equal(stored['ema_state_dict'], single['ema_state_dict'])
        assert updates_in(stored, kind) == updates_in(single) > 0
        assert dict(origin(stored, kind), averages=None) == dict(origin(single), averages=None)


@pytest.mark.parametrize(
    'options',
    [
        dict(averages=dict(begin_iter=3)),
        dict(averages=dict(exclude=['^norm'], interval=2), optim_wrapper=dict(accumulative_counts=2)),
    ],
    ids=str,
)
def test_each_average_is_that_of_a_run_of_its_own(toy, tmp_path, options):
    train_together_and_alone(toy, tmp_path, **options)
    assert_each_is_that_of_a_run_of_its_own(tmp_path)


TWO_PROCESSES = """
import sys
from pathlib import Path
from mmengine.config import Config
from torch import distributed
sys.path.insert(0, sys.argv[1])
from mmyolo_ema.cli.runner import finish
from tests.helpers import forget_runs
from tests.hooks.test_further_averages import train_together_and_alone
from tests.hooks.toy import ITERATIONS, loader, toy_runner

# The processes have one BatchNorm: a file has the statistics of the main one only.
wrapper = dict(type='MMDistributedDataParallel', device_ids=None)

def toy(name, **options):
    forget_runs()
    return toy_runner(Path(name).resolve(), launcher='pytorch', cfg=Config(dict(model_wrapper_cfg=wrapper)), **options)

distributed.init_process_group('gloo')
train_together_and_alone(toy, Path.cwd(), averages=dict(begin_iter=3), optim_wrapper=dict(accumulative_counts=2),
                         train_dataloader=loader(8 * ITERATIONS))
finish()
"""


@pytest.mark.slow
def test_each_average_of_two_processes_is_that_of_a_run_of_its_own(tmp_path):
    launch(2, TWO_PROCESSES, tmp_path, str(ROOT))
    assert_each_is_that_of_a_run_of_its_own(tmp_path)


def test_each_average_is_validated_and_in_the_log(toy, tmp_path, figures):
    runner = train(
        toy,
        'several',
        several(),
        default_hooks=dict(
            logger=dict(type='LoggerHook', interval=1),
            checkpoint=dict(type='CheckpointHook', interval=1, save_best=['mean', 'mean_short'], rule='less'),
        ),
    )
    metric, _, drift = figures[0].axes
    assert [line.get_label() for line in metric.lines] == ['average', 'raw', 'short', 'long']
    assert [line.get_label() for line in drift.lines] == ['average', 'short', 'long']
    assert re.fullmatch(
        r'Mean age after 11 updates: average \S+, short \S+, long \S+ updates', figures[0].get_suptitle()
    )
    lines = scalars(runner)
    for name, schedule in dict(AVERAGES, origin=None).items():
        hook = toy_hook(evaluate=['raw']) if schedule is None else alone(schedule)
        single = scalars(train(toy, name, hook))
        assert [line['mean'] for line in single if 'mean' in line] == [
            line[f'mean_{name}'] for line in lines if 'mean' in line
        ]
        for scalar in ('mean_age', 'drift') if schedule else ():
            assert [line[f'ema_{scalar}'] for line in single if 'loss' in line] == [
                line[f'ema_{name}_{scalar}'] for line in lines if 'loss' in line
            ]
    assert list((tmp_path / 'several').glob('best_mean_short*'))
    curves = runner.message_hub.get_info('ema_history')['further']
    assert {name: (len(curve['metrics']), len(curve['drift'])) for name, curve in curves.items()} == {
        'short': (2, 12),
        'long': (2, 12),
    }


def test_names_that_end_alike_are_told_apart(toy, messages):
    saving = dict(type='CheckpointHook', save_best='mean_very_long', rule='less')
    hook = several(averages=dict(AVERAGES, very_long=LONG), evaluate=['ema', 'very_long'])
    toy(hook=hook, default_hooks=dict(checkpoint=saving)).train()
    assert not [message for message in map(str, messages) if 'save_best' in message]


def test_run_resumes_bit_for_bit(toy, tmp_path, messages):
    train(toy, 'whole', several())
    runner = train(toy, 'resumed', several(), load_from=str(tmp_path / 'whole' / 'epoch_1.pth'), resume=True)
    one, other = (checkpoint.read(tmp_path / name / 'epoch_2.pth') for name in ('whole', 'resumed'))
    for part in ('state_dict', 'ema_state_dict', 'ema_averages'):
        assert_equal(one[part], other[part])
    assert one['meta']['mmyolo_ema'] == other['meta']['mmyolo_ema']
    drifts = [
        history['further'][name]['drift']
        for name in AVERAGES
        for history in (one['message_hub']['runtime_info']['ema_history'], runner.message_hub.get_info('ema_history'))
    ]
    assert str(drifts[::2]) == str(drifts[1::2]), 'one of them is no number'
    assert 'EMA: resumed at update 5' in map(str, messages)


def test_weights_of_an_average_are_read_from_a_file_by_its_name(toy, tmp_path):
    runner = train(toy, 'run', several())
    content = checkpoint.read(tmp_path / 'run' / 'epoch_2.pth')
    assert checkpoint.weights_in(content) == KINDS
    weights = checkpoint.weights_of(content, 'long')
    assert_equal(dict(weights), dict(average_of(runner).averages['long'].module.state_dict()))
    assert weights._metadata['norm'] == dict(version=2)


def test_average_that_is_new_starts_as_a_copy_and_one_that_is_gone_is_named(toy, tmp_path, messages):
    train(toy, 'before', several())
    path = tmp_path / 'before' / 'epoch_2.pth'
    runner = train(
        toy,
        'after',
        several(averages=dict(long=LONG, new=SHORT), evaluate=['ema', 'new']),
        load_from=str(path),
        resume=True,
    )  # nothing is left to train
    averages = average_of(runner).averages
    stored = checkpoint.read(path)
    assert_equal(dict(averages['new'].module.state_dict()), dict(stored['state_dict']))
    assert_equal(dict(averages['long'].state_dict()), dict(stored['ema_averages']['long']))
    assert averages['new'].steps == 11
    assert (
        "EMA: resumed at update 11; the average 'new' is new and starts as a copy of it; the average 'short' is dropped"
    ) in map(str, messages)


def test_averages_of_a_run_that_only_starts_from_a_file_start_anew(toy, tmp_path):
    train(toy, 'before', several())
    runner = train(toy, 'after', several(), load_from=str(tmp_path / 'before' / 'epoch_2.pth'))
    assert all(average.steps == 11 for average in average_of(runner).averages.values())


def test_state_that_holds_the_trained_layers_only_resumes(toy, tmp_path):
    averages = []
    resumed = dict(load_from=str(tmp_path / 'whole' / 'epoch_1.pth'), resume=True)
    for run, options in (('whole', {}), ('resumed', resumed)):
        runner = toy(run, hook=several(), model=Adapted(), **options)
        runner.train()
        averages.append(
            {
                name: average.state_dict() | dict(average.module.named_parameters())
                for name, average in average_of(runner).averages.items()
            }
        )
    assert_equal(*averages)


def test_schedules_that_do_not_suit_the_run_are_named(toy, messages):
    toy(hook=several()).train()
    told = [str(message) for message in messages if 'do not suit this run of 12 updates' in str(message)]
    assert [line.split(' and ')[0] for line in told] == ['EMA: momentum=0.1', 'EMA: long: momentum=0.05'] * 2


def test_interrupted_validation_of_a_further_average_leaves_the_raw_weights(toy):

    class Failing(Hook):
        calls = 0

        def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            self.calls += 1
            if self.calls == 3:
                self.swapped = runner.model.out.weight.detach().clone()
                raise KeyboardInterrupt

    failing, hook = Failing(), several(evaluate=['ema', 'long', 'raw'])
    runner = toy(custom_hooks=[hook, failing], val_dataloader=None, val_cfg=None, val_evaluator=None)
    runner.train()
    raw = runner.model.out.weight.detach().clone()
    other = toy('failing', custom_hooks=[hook, failing], train_cfg=dict(by_epoch=True, max_epochs=2, val_interval=2))
    with pytest.raises(KeyboardInterrupt):
        other.train()
    assert torch.equal(other.model.out.weight, raw)
    assert other.val() == other.val(), 'the first counts what was measured before the interruption'


@pytest.mark.parametrize(
    ('options', 'error', 'message'),
    [
        (dict(averages=dict(raw=LONG)), ValueError, "an average cannot be called 'raw'"),
        (dict(averages={'a b': LONG}), ValueError, "an average cannot be called 'a b'"),
        (dict(averages=dict(short={})), ValueError, "'short' needs a mean_age or momentum of its own, but got {}"),
        (
            dict(averages=dict(short=dict(mean_age='1%', gamma=4))),
            ValueError,
            "mean_age='1%' works momentum and gamma out",
        ),
        (dict(averages=dict(short=dict(mean_age='one'))), ValueError, "mean_age='one' of the EMAHook"),
        (dict(averages=['short']), TypeError, r"averages must be a dictionary .* but got \['short'\]"),
        (dict(averages=dict(short=4)), TypeError, "'short' must be a dictionary of options, but got 4"),
        (dict(averages=dict(long=dict(LONG, begin_iter=3))), TypeError, "'long' cannot have begin_iter=3 of its own"),
        (
            dict(averages=dict(long=dict(LONG, type='ExponentialMovingAverage'))),
            TypeError,
            "'long' cannot have type='Exp",
        ),
        (
            dict(averages=AVERAGES, evaluate=['ema', 'shrt']),
            ValueError,
            "'shrt', .* only ema, raw, short, long: did you",
        ),
        (dict(averages=AVERAGES, evaluate=['short']), ValueError, "evaluate must have 'ema' or 'raw'"),
        (dict(evaluate=['ema', 'ema']), ValueError, 'each name once'),
        (dict(evaluate='ema'), TypeError, "evaluate must be a list .* but got 'ema'"),
        (
            dict(evaluate=['ema'], evaluate_on_origin=True),
            ValueError,
            'leave out evaluate_on_ema and evaluate_on_origin',
        ),
    ],
)
def test_wrong_options_are_refused_with_their_value(options, error, message):
    with pytest.raises(error, match=message):
        EMAHook(**options)


@pytest.mark.parametrize(
    ('options', 'error', 'message'),
    [
        (
            dict(averages=dict(short=dict(LONG, mometum=0.1))),
            TypeError,
            r'no option mometum \(did you mean momentum\?\)',
        ),
        (
            dict(averages=AVERAGES, evaluate=['ema', 'shrt']),
            ValueError,
            'only ema, raw, short, long: did you mean short',
        ),
        (dict(type='EMAHook', ema_type='mmyolo_ema.ExpMomentumEMA', shard=True), ValueError, 'shard=True needs type='),
    ],
)
def test_tools_refuse_what_a_run_would(options, error, message):
    with pytest.raises(error, match=message):
        check_options(dict(dict(type='mmyolo_ema.EMAHook', ema_type='mmyolo_ema.ExpMomentumEMA'), **options))


def test_metric_of_another_meaning_is_not_overwritten(toy):

    class Own(Hook):
        priority = 'VERY_HIGH'

        def after_val_epoch(self, runner, metrics=None):
            metrics['mean_short'] = 1.0

    runner = toy(custom_hooks=[several(), Own()])
    with pytest.raises(ValueError, match='the metric mean_short is measured already: give the average another name'):
        runner.train()
