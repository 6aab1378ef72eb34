import json
from dataclasses import replace

import pytest

from mmyolo_ema.cli.posthoc_picture import draw_horizons
from mmyolo_ema.cli.posthoc_tables import sweep_table, verdict
from mmyolo_ema.posthoc import read_run
from mmyolo_ema.posthoc.bootstrap import Comparison
from mmyolo_ema.posthoc.reconstruction import USUAL_ERROR
from mmyolo_ema.posthoc.sweep import sweep


@pytest.fixture
def run(counting):
    return read_run(counting)


class Nearness:
    """Measures how near to a time the weights are."""

    def __init__(self, time, name='score', sign=1, config='a config'):
        self.time, self.name, self.sign, self.config, self.measured = time, name, sign, config, []

    def measure(self, weights, name):
        self.measured.append(name)
        return {self.name: -self.sign * abs(float(weights['w']) - self.time)}

    def exact(self, name, metric, measured):
        return measured, None


@pytest.fixture
def path(tmp_path):
    return tmp_path / 'sweep.json'


def test_best_horizon_is_found_and_closed_in_on(run, path):
    # A horizon of 14 updates has a mean age of 13, which is update 87 of 100.
    result = sweep(run, Nearness(87), ['5', 20, '40'], path)
    assert list(result.candidates) == ['shipped', 'raw', '5', '20', '40', '7.071', '14.14', '11.89', '16.82']
    averages = {name: candidate.score for name, candidate in result.candidates.items() if name != 'raw'}
    assert result.best.name == max(averages, key=averages.get) == '14.14'
    assert result.best.average.target == run.average('14.14').target


def test_less_may_be_better(run, path):
    assert sweep(run, Nearness(87, 'loss', -1), ['14', '40'], path, less_is_better=True).best.name == '14'


def test_raw_weights_are_shown_and_not_chosen(run, path):
    result = sweep(run, Nearness(100), [], path)
    raw = result.candidates['raw']
    assert (raw.score, raw.average.error, raw.average.worst.mean_age) == (0, 0, 0)
    assert list(sweep_table(result).columns[0].cells)[:2] == ['raw', f'{result.best.name} (best)']


def test_picture_has_metric_and_error_by_the_age(run, path, figures):
    result = sweep(run, Nearness(87), ['5', '20', '40'], path)
    draw_horizons(result, path.with_suffix('.png'))
    above, below = figures[0].axes
    assert (above.get_ylabel(), below.get_ylabel()) == ('score', 'reconstruction error, %')
    averages = sorted(
        (candidate.average.worst.mean_age, candidate.score, 100 * candidate.average.error)
        for candidate in result.candidates.values()
        if candidate.name != 'raw'
    )
    ages, scores, errors = (list(values) for values in zip(*averages))
    drawn, own, raw = ([list(values) for values in line.get_data()] for line in above.lines)
    assert (drawn, own) == ([ages, scores], [[result.run_ema.average.worst.mean_age], [result.run_ema.score]])
    assert raw[1] == [result.candidates['raw'].score] * 2
    assert [list(values) for values in below.lines[0].get_data()] == [ages, errors]


def test_picture_shows_what_chance_does(run, path, figures):
    result = sweep(run, Nearness(87), ['5', '20', '40'], path)
    others = [candidate for candidate in result.candidates.values() if candidate.name not in ('raw', 'shipped')]
    intervals = {candidate.name: (-0.1, 0.2) for candidate in others}
    draw_horizons(replace(result, comparison=Comparison('14', 0.1, intervals, 0.3)), path.with_suffix('.png'))
    (band,) = figures[0].axes[0].collections
    heights = band.get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == (result.run_ema.score - 0.1, result.run_ema.score + 0.2)


def test_names_in_the_picture_do_not_overlap(run, path, figures):
    result = sweep(run, Nearness(87), ['5', '20', '20.1', '20.2', '40'], path)
    draw_horizons(result, path.with_suffix('.png'))
    above = figures[0].axes[0]
    figures[0].canvas.draw()
    boxes = [text.get_window_extent() for text in above.texts]
    assert len(boxes) >= 3
    assert result.best.name in {text.get_text() for text in above.texts}
    assert not any(box.overlaps(other) for index, box in enumerate(boxes) for other in boxes[:index])


def test_average_that_cannot_be_made_well_is_dropped(run, path):
    evaluation = Nearness(87)
    result = sweep(run, evaluation, ['2', '14'], path)
    assert result.dropped == {'2': run.average('2').error}
    assert result.dropped['2'] > USUAL_ERROR
    assert evaluation.measured[:3] == ['shipped', 'raw', '14']
    assert '2' not in evaluation.measured


def test_what_was_measured_is_not_measured_again(run, path):
    first = sweep(run, Nearness(87), ['14'], path)
    again = Nearness(87)
    assert sweep(run, again, ['14', '40'], path).best.name == '14'
    assert again.measured == ['40']
    content = json.loads(path.read_text())
    assert (content['best'], content['metric']) == ('14', 'score')
    assert list(content['measured']) == [*first.candidates, '40']
    assert content['candidates'][2]['error'] == first.candidates['14'].average.error


def test_file_of_other_weights_or_another_config_is_refused(run, path):
    sweep(run, Nearness(87), ['14'], path)
    with pytest.raises(ValueError, match='is of another config, or of other checkpoints: move it away'):
        sweep(run, Nearness(87, config='another'), ['14'], path)
    path.write_text('{"of": 1')
    with pytest.raises(ValueError, match='is not what a sweep writes: move it away'):
        sweep(run, Nearness(87), ['14'], path)


def test_metric_that_is_not_measured_is_named(run, path):
    with pytest.raises(ValueError, match='the evaluator measures no mAP, but score'):
        sweep(run, Nearness(87), ['14'], path, metric='mAP')


@pytest.mark.parametrize(
    ('time', 'compared', 'said'),
    [
        (91, None, 'is the best of these: keep it'),
        (87, None, "cannot be told; it can for COCO's mAP"),
        (87, Comparison('14', 0.1, {'14': (-0.1, 0.3)}, 0.3), "no more than chance: keep the run's EMA"),
        (87, Comparison('14', 0.1, {'14': (0.05, 0.3)}, 0.01), 'best_posthoc.pth is better'),
    ],
)
def test_verdict_tells_chance_from_gain(run, path, time, compared, said):
    result = sweep(run, Nearness(time), ['14'], path)
    assert said in verdict(replace(result, comparison=compared))[-1]


def test_who_asks_for_fewer_later_has_had_the_earlier_chances(run, path):
    earlier = sweep(run, Nearness(87), ['20', '40'], path)
    assert sweep(run, Nearness(87), ['14'], path).candidates.keys() > earlier.candidates.keys()


def test_detector_that_detects_nothing_is_no_result(run, path):
    nothing = Nearness(87)
    nothing.measure = lambda weights, name: {}
    with pytest.raises(ValueError, match="measured nothing for the run's EMA"):
        sweep(run, nothing, ['14'], path)


def test_usual_metric_comes_before_those_of_classes(run, path):
    two = Nearness(87)
    two.measure = lambda weights, name: {'coco/cat_precision': 0.1, 'coco/bbox_mAP': 0.5}
    assert sweep(run, two, [], path).metric == 'coco/bbox_mAP'
