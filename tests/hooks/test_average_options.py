"""Options of the average's class in a run: which weights it has."""

import pytest
import torch

from mmyolo_ema import checkpoint
from mmyolo_ema.posthoc.build import build
from mmyolo_ema.posthoc.snapshots import read_run
from tests.helpers import assert_equal
from tests.hooks.toy import toy_hook

EXCLUDE = ['^out']


def both_of(path):
    content = checkpoint.read(path)
    return checkpoint.averaged_weights(content), checkpoint.raw_weights(content)


@pytest.fixture
def excluding(toy):
    """Returns a function that trains a run whose average lacks the last layer."""

    def train(name, **options):
        runner = toy(name, hook=toy_hook(exclude=EXCLUDE), **options)
        runner.train()
        return runner

    return train


def test_excluded_weights_are_raw_in_the_file(toy, excluding, tmp_path):
    toy('plain').train()
    excluding('run')
    (plain, raw), (averaged, own) = (both_of(tmp_path / name / 'epoch_2.pth') for name in ('plain', 'run'))
    for name in plain:
        assert torch.equal(own[name], raw[name]), name
        assert torch.equal(averaged[name], (raw if name.startswith('out') else plain)[name]), name
    assert checkpoint.read(tmp_path / 'run' / 'epoch_2.pth')['meta']['mmyolo_ema']['excluded'] == [
        'out.weight', 'out.bias']


def test_run_with_excluded_weights_resumes(excluding, tmp_path):
    excluding('whole')
    excluding('resumed', load_from=str(tmp_path / 'whole' / 'epoch_1.pth'), resume=True)
    one, other = (checkpoint.read(tmp_path / name / 'epoch_2.pth') for name in ('whole', 'resumed'))
    for part in ('state_dict', 'ema_state_dict'):
        assert_equal(one[part], other[part])


def test_excluded_weights_of_another_average_are_those_of_the_newest_file(excluding, tmp_path):
    excluding('run')
    run = read_run(tmp_path / 'run')
    halves = {count: [0.5 * (kind == 'ema') for _, kind in run.sources] for count in run.multiplicities}
    built = build(run, dict(mean=halves))['mean']
    averaged = [both_of(tmp_path / 'run' / f'epoch_{epoch}.pth')[0] for epoch in (1, 2)]
    assert torch.equal(built['out.weight'], averaged[1]['out.weight'])
    torch.testing.assert_close(built['linear.weight'],
                               (averaged[0]['linear.weight'] + averaged[1]['linear.weight']) / 2)


def test_filter_that_matches_nothing_stops_the_run_at_its_start(toy):
    with pytest.raises(ValueError, match="'teacher' matches no tensor of the model"):
        toy(hook=toy_hook(exclude=['teacher'])).train()


def test_filter_for_a_class_that_has_none_is_refused(toy):
    with pytest.raises(TypeError, match=r"no option exclude \(ema_type='mmyolo_ema.ExpMomentumEMA' has it\)"):
        toy(hook=dict(toy_hook(exclude=EXCLUDE), ema_type='mmdet.ExpMomentumEMA')).train()
