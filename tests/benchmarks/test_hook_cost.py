import pytest

from benchmarks.contenders import OURS
from benchmarks.hook_cost import NO_HOOK, measure_hook_cost

HOOKS = ['mmengine', f'{OURS} without check', OURS]


@pytest.mark.slow
@pytest.mark.any_family
@pytest.mark.parametrize('device', ['cpu', pytest.param('cuda', marks=pytest.mark.gpu)])
def test_hooks_take_turns_in_one_training(detector, device):
    before = detector.bbox_head.rtm_reg[0].weight.detach().clone()
    cost = measure_hook_cost('demo', detector, batch_size=1, image_size=64, seconds=0, device=device)
    assert (before != detector.bbox_head.rtm_reg[0].weight.cpu()).any()
    assert cost.blocks == 2
    assert set(cost.step) == {NO_HOOK, *HOOKS}
    assert list(cost.added) == list(cost.host) == HOOKS
    assert min(timing.median for timing in (*cost.step.values(), *cost.host.values())) > 0
    assert cost.share(OURS) == cost.added[OURS].median / cost.step[NO_HOOK].median
