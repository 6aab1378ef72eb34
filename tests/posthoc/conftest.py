from math import exp

import pytest
import torch

HOOK = "dict(type='EMAHook', ema_type='mmyolo_ema.ExpMomentumEMA', momentum=0.1, gamma=5, update_buffers=True)"


@pytest.fixture
def counting(tmp_path):
    """A run of 100 updates, 20 in an epoch, whose weight is the number of the update; an average is its mean time."""
    average = 0.0
    for update in range(1, 101):
        momentum = 0.9 * exp(-update / 5) + 0.1 if update > 1 else 1.0
        average += momentum * (update - average)
        if update % 4 == 0:
            raw = {'steps': torch.tensor(update), 'module.w': torch.tensor([float(update)])}
            torch.save(
                dict(
                    meta=dict(cfg=f'custom_hooks = [{HOOK}]', iter=update, mmyolo_ema=dict(updates_per_epoch=20)),
                    ema_state_dict=raw,
                    state_dict=dict(w=torch.tensor([average])),
                ),
                tmp_path / f'{update}.pth',
            )
    return tmp_path
