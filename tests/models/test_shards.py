"""An average shared out among processes: each keeps a part, and gathered they are the average that is not."""

import pytest
import torch

from mmyolo_ema import ExpMomentumEMA
from mmyolo_ema.models.shards import split
from tests.helpers import ROOT, change, launch


def test_parts_differ_by_one_element_at_most_and_are_everything_in_order():
    sizes = [7, 1, 5000, 3, 2]
    for parts in (1, 2, 3, 7):
        cut = split(sizes, parts)
        elements = [sum(stop - start for _, start, stop in part) for part in cut]
        assert max(elements) - min(elements) <= 1
        cuts = [(tensor, element) for part in cut for tensor, start, stop in part for element in range(start, stop)]
        assert cuts == [(tensor, element) for tensor, size in enumerate(sizes) for element in range(size)]


def test_there_may_be_fewer_elements_than_processes():
    assert [len(part) for part in split([1, 1], 3)] == [0, 1, 1]


def test_average_of_one_process_stays_whole(net):
    averaged = ExpMomentumEMA(net, shard=True)
    averaged.share_out(net)
    averaged.update_parameters(change(net))
    assert torch.equal(averaged.module.linear.weight, net.linear.weight)
    assert averaged.state_dict()


def test_wrong_flag_is_refused(net):
    with pytest.raises(TypeError, match='shard must be True or False, but got 2'):
        ExpMomentumEMA(net, shard=2)


# A whole average beside one that is shared out, through whatever happens to a model and its average.
PROGRAM = """
import copy
import sys
import pytest
import torch
from torch import distributed, nn
from mmyolo_ema import ExpMomentumEMA
from mmyolo_ema.cli.runner import finish

sys.path.insert(0, sys.argv[1])
from tests.helpers import assert_equal, change

distributed.init_process_group('gloo')
rank, processes = distributed.get_rank(), distributed.get_world_size()


def model_of():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(40, 500), nn.BatchNorm1d(500), nn.Conv2d(3, 8, 3), nn.Linear(4, 4), nn.Linear(5, 7))
    model[2].to(memory_format=torch.channels_last)
    model.register_parameter('tied', model[0].weight)  # two names
    model[3].requires_grad_(False)
    model.register_parameter('strided', nn.Parameter(torch.rand(6, 6)[:, ::2]))  # cannot be cut
    model.register_parameter('coarse', nn.Parameter(torch.rand(33, dtype=torch.bfloat16)))
    model.register_parameter('scale', nn.Parameter(torch.tensor(1.0, dtype=torch.float64)))  # for one process
    model.register_parameter('wave', nn.Parameter(torch.rand(5, dtype=torch.complex64)))
    return model


class Pair:

    def __init__(self, model, **options):
        self.model = model
        self.whole, self.shared = (ExpMomentumEMA(model, momentum=0.3, gamma=2, shard=shard, **options)
                                   for shard in (False, True))

    def update(self, times=1):
        for _ in range(times):
            frozen = [parameter for parameter in self.model.parameters() if not parameter.requires_grad]
            values = [parameter.clone() for parameter in frozen]
            change(self.model)
            with torch.no_grad():
                for parameter, value in zip(frozen, values):
                    parameter.copy_(value)
            for average in (self.whole, self.shared):
                average.update_parameters(self.model)

    def check(self):
        assert self.shared._warned == self.whole._warned
        self.shared.gather()
        assert_equal(dict(self.whole.state_dict()), dict(self.shared.state_dict()))
        states = [None] * processes
        distributed.all_gather_object(states, self.shared.state_dict())
        for state in states:
            assert_equal(dict(states[0]), dict(state))


for options in ({}, dict(update_buffers=True, exclude=['0.bias']), dict(dtype='float64', interval=2)):
    pair = Pair(model_of(), **options)
    pair.shared.share_out(pair.model)
    pair.update(3)
    pair.check()
    pair.update(2)
    # A buffer that one process alone re-assigns, a weight that is unfrozen, one that is frozen, one in new memory.
    if rank == 0:
        pair.model[1].running_mean = pair.model[1].running_mean.clone()
    pair.model[3].requires_grad_(True)
    pair.model[4].requires_grad_(False)
    pair.model[0].weight.data = pair.model[0].weight.data.clone()
    pair.update(2)
    pair.model.double()
    pair.update()
    pair.check()

pair = Pair(model_of())
pair.update()
own = sum(row._memory.nbytes for row in pair.shared.shards._rows)
assert own * processes == pytest.approx(sum(parameter.nbytes for parameter in pair.model.parameters()), rel=0.01)
held = {part.data_ptr(): part.untyped_storage().nbytes() for part in pair.shared.module.parameters()}
assert sum(held.values()) < 500  # what is frozen and what cannot be cut
assert pair.shared.module[0].weight.isnan().all()
for use in (pair.shared.state_dict, lambda: copy.deepcopy(pair.shared), lambda: pair.shared(None)):
    with pytest.raises(RuntimeError, match='call gather.. in all processes'):
        use()
pair.model[2].to(memory_format=torch.contiguous_format)
if any(pair.shared.shards.has_part(parameter) for parameter in pair.shared.module[2].parameters()):
    with pytest.raises(ValueError, match='memory format'):
        pair.shared.update_parameters(pair.model)
# Loading makes it whole, and the next update shares it out again.
state = {name: value + 1 for name, value in pair.whole.state_dict().items()}
for average in (pair.whole, pair.shared):
    average.load_state_dict(state)
pair.update(2)
pair.check()
finish()
"""


@pytest.mark.slow
@pytest.mark.parametrize('processes', [2, 3])
def test_parts_of_processes_are_the_whole_average_bit_for_bit(tmp_path, processes):
    launch(processes, PROGRAM, tmp_path, str(ROOT))
