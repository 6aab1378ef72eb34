from benchmarks.pictures import Growth, StepTimes, draw_growth, draw_step_times


def test_each_class_has_a_bar_and_each_detector_a_panel(figures, tmp_path):
    panel = StepTimes('rtmdet-tiny', {'ours': (1.0, 2.0, 3.0), 'theirs': (4.0, 5.0, 6.0)}, limit=1.5)
    draw_step_times([panel, panel._replace(title='rtmdet-l', limit=4.5)], tmp_path / 'steps.png')
    assert (tmp_path / 'steps.png').exists()
    axes = figures[0].axes
    assert [axis.get_title() for axis in axes] == ['rtmdet-tiny', 'rtmdet-l']
    assert [bar.get_width() for bar in axes[0].patches] == [2.0, 5.0]
    assert [label.get_text() for label in axes[0].get_yticklabels()] == ['ours', 'theirs']
    limits = [next(line for line in axis.lines if line.get_label() == 'limit') for axis in axes]
    assert [limit.get_xdata()[0] for limit in limits] == [1.5, 4.5]
    assert axes[0].get_xlabel() == 'ms a step (median, quartiles)'


def test_five_detectors_take_two_rows(figures, tmp_path):
    draw_step_times([StepTimes('rtmdet-tiny', {'ours': (1.0, 2.0, 3.0)}, limit=1.5)] * 5, tmp_path / 'steps.png')
    assert len({axis.get_position().y0 for axis in figures[0].axes if axis.axison}) == 2


def test_growth_is_drawn_for_each_panel(figures, tmp_path):
    times = {'ours': [1.0, 2.0], 'theirs': [3.0, 9.0], 'limit': [1.0, 1.0]}
    draw_growth([Growth('tensors', [100, 1000], times), Growth('weights', [10, 20], times)], tmp_path / 'growth.png')
    axes = figures[0].axes
    assert [axis.get_xlabel() for axis in axes] == ['tensors', 'weights']
    assert list(axes[1].lines[0].get_xdata()) == [10, 20]
    assert {line.get_label(): list(line.get_ydata()) for line in axes[0].lines} == times
    assert axes[0].get_xscale() == axes[0].get_yscale() == 'log'
