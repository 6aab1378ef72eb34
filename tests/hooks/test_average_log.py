import copy
import runpy
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType

import mmdet
import pytest
import torch
from mmdet.models.layers import ExpMomentumEMA as MMDetExpMomentumEMA
from mmengine.model import ExponentialMovingAverage, MomentumAnnealingEMA, StochasticWeightAverage

from mmyolo_ema import ExpMomentumEMA
from mmyolo_ema.hooks.average_log import drift
from mmyolo_ema.models import schedule_of
from mmyolo_ema.schedules import momentum_at
from tests.helpers import change


@pytest.mark.parametrize(
    ('make', 'expected'),
    [
        (lambda net: ExpMomentumEMA(net, 0.1, 5), lambda step: momentum_at(step, 0.1, 5)),
        (lambda net: MMDetExpMomentumEMA(net, 0.1, 5), lambda step: momentum_at(step, 0.1, 5)),
        (lambda net: ExponentialMovingAverage(net, 0.1), lambda step: 0.1),
        (lambda net: MomentumAnnealingEMA(net, 0.1, gamma=5), lambda step: max(0.1, 5 / (5 + step))),
        (lambda net: StochasticWeightAverage(net), lambda step: 1 / (step + 1)),
    ],
    ids=['ours', 'mmdet', 'constant', 'annealing', 'swa'],
)
def test_schedule_of_a_known_class_is_the_weight_of_the_source(net, make, expected):
    found = schedule_of(make(net))
    assert found(0) == 1
    assert [found(step) for step in (1, 7, 1000)] == pytest.approx([expected(step) for step in (1, 7, 1000)])


def test_drift_is_the_relative_distance_of_all_parameters(net):
    model, averaged = change(net).double(), change(copy.deepcopy(net)).double()
    ours, theirs = (torch.cat([p.flatten() for p in m.parameters()]) for m in (averaged, model))
    assert drift(averaged, model) == pytest.approx(((ours - theirs).norm() / theirs.norm()).item(), rel=1e-6)


def test_drift_is_0_for_equal_weights_in_other_dtypes(net):
    assert drift(copy.deepcopy(net).double(), net) == 0
    assert drift(copy.deepcopy(net), net.double()) == 0
    assert drift(torch.nn.Module(), torch.nn.Module()) == 0


def test_integers_have_no_part_in_the_drift(net):
    net.numbers = torch.nn.Parameter(torch.arange(3), requires_grad=False)
    assert drift(copy.deepcopy(net), net) == 0


def test_log_is_understood_by_the_script_of_mmdetection(toy, monkeypatch):
    script = Path(mmdet.__file__).parent / '.mim' / 'tools' / 'analysis_tools' / 'analyze_logs.py'
    if not script.exists():
        pytest.skip('this mmdet comes without its tools')
    runner = toy(val_evaluator=dict(type='Mean', prefix='toy'))
    runner.train()
    log = str(Path(runner.log_dir, 'vis_data', 'scalars.json'))
    seaborn = ModuleType('seaborn')  # for the looks only
    seaborn.set_style = lambda style: None
    monkeypatch.setitem(sys.modules, 'seaborn', seaborn)
    tool, plotted = runpy.run_path(str(script)), []
    monkeypatch.setattr(tool['plt'], 'plot', lambda steps, values, **style: plotted.append((list(steps), len(values))))
    tool['plot_curve'](
        tool['load_json_logs']([log]),
        Namespace(
            json_logs=[log],
            keys=['loss', 'ema_momentum', 'ema_mean_age', 'ema_drift'],
            out=f'{log}.png',
            backend=None,
            style=None,
            legend=None,
            title=None,
            eval_interval='1',
        ),
    )
    assert plotted == [(list(range(1, 13)), 12)] * 4
