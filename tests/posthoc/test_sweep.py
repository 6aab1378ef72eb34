import json

import pytest
import torch

from mmyolo_ema.cli.posthoc_tables import sweep_table, verdict
from mmyolo_ema.posthoc.bootstrap import Comparison
from mmyolo_ema.posthoc.reconstruction import reconstruct_named
from mmyolo_ema.posthoc.snapshots import read_run
from mmyolo_ema.posthoc.sweep import Sweep

HOOK = "dict(type='EMAHook', ema_type='mmyolo_ema.ExpMomentumEMA', momentum=0.1, gamma=5, update_buffers=True)"


@pytest.fixture
def run(tmp_path):
    """A run of one number that grows by one an update: it is the update's own, and an average is its mean time."""
    average = 0.0
    for updates in range(1, 101):
        momentum = 0.9 * 2.718281828459045**(-updates / 5) + 0.1 if updates > 1 else 1.0
        average += momentum * (updates - average)
        if updates % 4 == 0:
            stored = {'steps': torch.tensor(updates), 'module.w': torch.tensor([float(updates)])}
            torch.save(dict(meta=dict(cfg=f'custom_hooks = [{HOOK}]', iter=updates), ema_state_dict=stored,
                            state_dict=dict(w=torch.tensor([average]))), tmp_path / f'{updates:03d}.pth')
    return read_run(tmp_path)


class Nearness:
    """Measures how near to a time the weights are."""

    def __init__(self, time, name='score', sign=1):
        self.time, self.name, self.sign, self.measured = time, name, sign, []

    def measure(self, weights, name):
        self.measured.append(name)
        return {self.name: -self.sign * abs(float(weights['w']) - self.time)}

    def matches(self, name, metric, measured):
        return None


@pytest.fixture
def sweep(run, tmp_path):

    def make(evaluation, **options):
        made = Sweep(run, evaluation, tmp_path / 'sweep.json', 'a config', **options)
        made.measure_stored()
        return made

    return make


def test_best_horizon_is_found_and_closed_in_on(sweep):
    # A horizon of 14 updates has a mean age of 13, which is update 87 of 100.
    running = sweep(Nearness(87))
    running.measure(reconstruct_named(running.run, ['5', '20', '40']))
    assert running.best.name == 'shipped'
    running.refine()
    assert [name for name in running.candidates if name not in ('shipped', 'raw', '5', '20', '40')] == [
        '7.071', '14.14', '11.89', '16.82']
    assert (running.best.name, running.best.score) == ('14.14', pytest.approx(0, abs=0.2))


def test_less_may_be_better(sweep):
    running = sweep(Nearness(87, 'loss', -1), less_is_better=True)
    running.measure(reconstruct_named(running.run, ['14', '40']))
    assert running.best.name == '14'


def test_raw_weights_are_shown_and_not_chosen(sweep):
    running = sweep(Nearness(100))
    assert (running.candidates['raw'].score, running.best.name) == (0, 'shipped')
    assert [cell for cell in sweep_table(running).columns[0].cells] == ['raw', "the run's EMA (best)"]


def test_average_that_cannot_be_made_well_is_dropped(sweep):
    evaluation = Nearness(87)
    running = sweep(evaluation)
    running.measure(reconstruct_named(running.run, ['2', '14']))
    assert running.dropped == dict([('2', pytest.approx(0.4, abs=0.3))])
    assert evaluation.measured == ['shipped', 'raw', '14']


def test_what_was_measured_is_not_measured_again(sweep, tmp_path):
    broken = Nearness(87)
    running = sweep(broken)
    running.measure(reconstruct_named(running.run, ['14']))
    again = Nearness(87)
    running = sweep(again)
    running.measure(reconstruct_named(running.run, ['14', '40']))
    assert again.measured == ['40']
    running.finish(None)
    content = json.loads((tmp_path / 'sweep.json').read_text())
    assert (content['best'], content['metric']) == ('14', 'score')
    assert list(content['measured']) == ['shipped', 'raw', '14', '40']
    assert content['candidates'][2]['error'] == running.candidates['14'].reconstruction_error


def test_file_of_other_weights_or_another_config_is_refused(sweep, run, tmp_path):
    sweep(Nearness(87))
    with pytest.raises(ValueError, match='is of another config, or of other checkpoints: move it away'):
        Sweep(run, Nearness(87), tmp_path / 'sweep.json', 'another config')
    (tmp_path / 'sweep.json').write_text('{"of": 1')
    with pytest.raises(ValueError, match='is not what a sweep writes: move it away'):
        sweep(Nearness(87))


def test_metric_that_is_not_measured_is_named(sweep):
    with pytest.raises(ValueError, match='the evaluator measures no mAP, but score'):
        sweep(Nearness(87), metric='mAP')


@pytest.mark.parametrize(('names', 'compared', 'said'), [
    ([], None, 'is the best of these: keep it'),
    (['14'], None, "cannot be told; it can for COCO's mAP"),
    (['14'], Comparison('14', 0.1, -0.1, 0.3, 0.3), "no more than chance: keep the run's EMA"),
    (['14'], Comparison('14', 0.1, 0.05, 0.3, 0.01), 'best_posthoc.pth is better'),
])
def test_verdict_tells_chance_from_gain(sweep, names, compared, said):
    running = sweep(Nearness(87))
    running.measure(reconstruct_named(running.run, names))
    assert said in verdict(running, compared)[-1]


def test_who_asks_for_fewer_later_has_had_the_earlier_chances(sweep):
    sweep(Nearness(87)).measure(reconstruct_named(sweep(Nearness(87)).run, ['20', '40']))
    running = sweep(Nearness(87))
    running.measure(reconstruct_named(running.run, ['14']))
    running.add_earlier()
    assert list(running.candidates) == ['shipped', 'raw', '14', '20', '40']


def test_detector_that_detects_nothing_is_no_result(sweep):
    nothing = Nearness(87)
    nothing.measure = lambda weights, name: {}
    with pytest.raises(ValueError, match="measured nothing for the run's EMA"):
        sweep(nothing)


def test_usual_metric_comes_before_those_of_classes(sweep):
    two = Nearness(87)
    two.measure = lambda weights, name: {'coco/cat_precision': 0.1, 'coco/bbox_mAP': 0.5}
    assert sweep(two).metric == 'coco/bbox_mAP'
