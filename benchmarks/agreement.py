"""Whether the classes that are timed do the same work: nobody wins by leaving some of it out."""

from copy import deepcopy

import torch
from torch import nn

from benchmarks.contenders import OURS, averaged_pairs, makers

_UPDATES, _MOMENTUM = 10, 0.1
# Float32, a few additions for each update, weights of about 1.
_TOLERANCE = 1e-5


def check_agreement(device: str = 'cpu') -> dict[str, float]:
    """Updates an average of each class with the same weights and compares the results with ours.

    The model has one name for each tensor, because several classes average a tensor once for each of its names.

    Args:
        device: Where the model is. Defaults to 'cpu'.

    Returns:
        The largest difference from our average, by class.

    Raises:
        RuntimeError: If one differs by more than rounding, with its name and the difference.

    Example:
        >>> max(check_agreement().values()) < 1e-5
        True
    """
    worst: dict[str, float] = {}
    for update_buffers in (True, False):
        averages = {name: _average(name, update_buffers, device) for name in makers(update_buffers)}
        for name, average in averages.items():
            pairs = averaged_pairs(average, averages[OURS], update_buffers)
            difference = max(float((theirs - ours).abs().max()) for theirs, ours in pairs)
            if not difference <= _TOLERANCE:  # a NaN is no agreement either
                raise RuntimeError(
                    f'{name} does not compute the same average as {OURS}: after {_UPDATES} updates with '
                    f'update_buffers={update_buffers} they are {difference:.3g} apart'
                )
            worst[name] = max(worst.get(name, 0.0), difference)
    return worst


def _average(name: str, update_buffers: bool, device: str) -> nn.Module:
    """Returns the averaged model of a class after updates with a model that changes as in training."""
    model = _model().to(device)
    contender = makers(update_buffers)[name](model, _MOMENTUM, update_buffers)
    contender.update()
    generator = torch.Generator().manual_seed(0)
    for _ in range(_UPDATES):
        _change(model, generator)
        contender.update()
    return contender.module


def _model() -> nn.Module:
    block = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(4, 5))
    for parameter in block.parameters():
        nn.init.ones_(parameter)
    return nn.Sequential(block, deepcopy(block))


@torch.no_grad()
def _change(model: nn.Module, generator: torch.Generator) -> None:
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
        else:
            tensor.add_(1)
