"""One update of several averages of a model."""

import torch
from mmdet.models.layers import ExpMomentumEMA as MMDetExpMomentumEMA
from mmengine.model import StochasticWeightAverage
from torch import Tensor, nn

from mmyolo_ema import ExpMomentumEMA
from mmyolo_ema.models import tensor_plan
from mmyolo_ema.models.exp_momentum_ema import update_together
from mmyolo_ema.models.tensor_plan import Pair
from tests.helpers import assert_equal, change


class Copying(ExpMomentumEMA):
    """Has an update of its own."""

    def update_parameters(self, model):
        self.module.load_state_dict(model.state_dict())
        self.steps += 1


def averages_of(net):
    return [
        ExpMomentumEMA(net, 0.1, 3, update_buffers=True),
        ExpMomentumEMA(net, 0.2, 5, interval=2, exclude=['linear.weight']),
        ExpMomentumEMA(net, 0.3, 1, dtype='float64'),
        Copying(net),
        MMDetExpMomentumEMA(net, 0.1, 3),
        StochasticWeightAverage(net),
    ]


def test_each_average_is_as_if_it_were_updated_alone(net, monkeypatch):
    monkeypatch.setattr(tensor_plan, '_CACHED_BYTES', 1)
    together, alone = averages_of(net), averages_of(net)
    for _ in range(5):
        update_together(together, change(net))
        for average in alone:
            average.update_parameters(net)
    for one, other in zip(together, alone):
        assert_equal(one.state_dict(), other.state_dict())


def test_update_that_somebody_put_into_an_average_is_called(net):
    average, calls = ExpMomentumEMA(net), []
    average.update_parameters = calls.append
    update_together([average], net)
    assert calls == [net]


def test_all_averages_move_a_part_before_the_next(net, monkeypatch):
    monkeypatch.setattr(tensor_plan, '_CACHED_BYTES', 1)
    averages = [ExpMomentumEMA(net, 0.1) for _ in range(2)]
    update_together(averages, net)
    moved = []
    monkeypatch.setattr(tensor_plan, 'lerp_all', lambda averaged, source, momentum: moved.append(source[0].data_ptr()))
    update_together(averages, net)
    assert moved[::2] == moved[1::2]
    assert len(set(moved)) == len(list(net.parameters()))


def test_tensors_are_cut_into_parts_in_one_pass():
    looks = []

    class OfOneByte(Tensor):
        def element_size(self):
            looks.append(self)
            return 1

    pairs = [Pair(torch.zeros(1).as_subclass(OfOneByte), None, None, []) for _ in range(100)]
    assert [len(part) for part in tensor_plan._parts(pairs, 30)] == [30, 30, 30, 10]
    assert len(looks) == len(pairs)


def test_several_sparse_buffers_are_copied():
    model = nn.Linear(1, 1)
    for name in ('one', 'other'):
        model.register_buffer(name, torch.eye(2).to_sparse())
    average = ExpMomentumEMA(model)
    model.other = model.other * 2
    average.update_parameters(model)
    assert torch.equal(average.module.other.to_dense(), 2 * torch.eye(2))
