import pytest
import torch

from benchmarks.memory import Memory, memory_of
from mmyolo_ema import ExpMomentumEMA

MIB = 2**20
devices = pytest.mark.parametrize('device', ['cpu', pytest.param('cuda', marks=pytest.mark.gpu)])


@devices
def test_peak_and_what_stays(device):

    def work():
        first = torch.zeros(3 * MIB, dtype=torch.uint8, device=device)
        del first
        return torch.zeros(2 * MIB, dtype=torch.uint8, device=device)

    assert memory_of(work, device) == Memory(peak=3 * MIB, held=2 * MIB)


@devices
@pytest.mark.parametrize('update_buffers', [True, False])
def test_step_takes_no_memory(detector, device, update_buffers):
    detector.to(device)
    averaged = ExpMomentumEMA(detector, update_buffers=update_buffers)
    averaged.update_parameters(detector)
    memory = memory_of(lambda: averaged.update_parameters(detector), device)
    assert memory.peak < 1024
    assert memory.held == 0
