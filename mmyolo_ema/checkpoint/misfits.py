"""Whether the tensors of a file are those of a model."""

from typing import NamedTuple

from torch import Tensor, nn

from mmyolo_ema.checkpoint.weights import PREFIX, tensors

__all__ = ['Misfits', 'check_fits', 'listed', 'misfits']


def check_fits(weights: dict[str, Tensor], model: nn.Module) -> None:
    """Raises if weights lack a tensor that a model has, or have it in another shape.

    MMEngine's loader only warns, and leaves what does not fit as it was initialised.

    Args:
        weights: Tensors by name; a prefix ``module.``, from a model wrapper, is ignored.
        model: The bare model.

    Raises:
        ValueError: With the names and shapes that differ.
    """
    stored = {name.removeprefix(PREFIX): tensor for name, tensor in tensors(weights)}
    missing, other, _ = misfits(stored, model.state_dict())
    if missing or other:
        raise ValueError("its weights are of another model than the config's" +
                         listed('; of another shape: ', list(other.values())) + listed('; missing: ', missing))


class Misfits(NamedTuple):
    """Names of tensors that a model and a file do not have in common; ``other`` tells both shapes, by name."""

    missing: list[str]
    other: dict[str, str]
    unexpected: list[str]


def misfits(stored: dict, own: dict) -> Misfits:
    """Compares the tensors of a file with those of a model, by name and shape.

    Args:
        stored: What the file holds, by name. What is no tensor is left out.
        own: The state of the model.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors(stored)}
    wanted = {name: tuple(tensor.shape) for name, tensor in tensors(own)}
    missing = [name for name in wanted if name not in shapes]
    other = {
        name: f'{name} (checkpoint {shapes[name]}, model {shape})' for name, shape in wanted.items()
        if name in shapes and shapes[name] != shape
    }
    return Misfits(missing, other, [name for name in shapes if name not in wanted])


def listed(title: str, names: list[str], most: int = 3) -> str:
    """Returns a title and the first names of a list, or nothing where there are none."""
    if not names:
        return ''
    rest = f' and {len(names) - most} more' if len(names) > most else ''
    return title + ', '.join(names[:most]) + rest
