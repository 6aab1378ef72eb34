"""Loading weights into a model, and reporting what the two do not have in common.

What a file means is up to the model: a module may rename or convert tensors when it loads them. So names are compared
by loading, not before it.
"""

import re
from typing import Any, NamedTuple

from torch import Tensor, nn

from mmyolo_ema.checkpoint.weights import form_of, unprefixed

# Of BatchNorm: no loader of MMEngine's asks for it, and some exporters leave it out.
_COUNT = 'num_batches_tracked'

# How torch reports another shape.
_SHAPES = re.compile(
    r'size mismatch for (.+): copying a param with shape torch\.Size\(\[(.*)\]\) from checkpoint, '
    r'the shape in current model is torch\.Size\(\[(.*)\]\)\.'
)


class Mismatches(NamedTuple):
    """Names of tensors that a model and a file do not have in common.

    Attributes:
        missing: Names that the file lacks, but for num_batches_tracked.
        shape: Both shapes, or kinds of numbers, in words where they differ, by name.
        unexpected: Names that the model lacks.
        counts: Names of BatchNorm's ``num_batches_tracked`` that the file lacks, which no file must have.
    """

    missing: list[str]
    shape: dict[str, str]
    unexpected: list[str]
    counts: list[str]

    @property
    def remark(self) -> str:
        """What to say of missing counts, in one line; empty if there are none."""
        return f'the file lacks {len(self.counts)} {_COUNT} of BatchNorm, and does without' if self.counts else ''

    @property
    def other(self) -> dict[str, str]:
        """The older name of ``shape``."""
        return self.shape


#: The older name.
Misfits = Mismatches


def load_fitting(weights: dict[str, Any], model: nn.Module) -> Mismatches:
    """Loads what fits into a model, by the model's own loading.

    Args:
        weights: Tensors by name, and what modules keep besides; a prefix ``module.`` is ignored.
        model: The bare model.
    """
    stored = unprefixed(weights)
    shape = _of_another_kind(stored, model)
    for name in shape:
        del stored[name]
    missing: list[str] = []
    unexpected: list[str] = []

    def note(_: nn.Module, keys: Any) -> None:
        missing.extend(keys.missing_keys)
        unexpected.extend(keys.unexpected_keys)

    handle = model.register_load_state_dict_post_hook(note)
    try:
        model.load_state_dict(stored, strict=False)
    except RuntimeError as error:
        # torch loads all that fits before it raises.
        refused = {
            name: f'{name} (checkpoint {_shape(of_file)}, model {_shape(of_model)})'
            for name, of_file, of_model in _SHAPES.findall(str(error))
        }
        shape.update(refused)
        if len(refused) < str(error).count('\n\t'):  # torch names each on a line of its own
            raise ValueError(f'its weights cannot be loaded: {error}') from error
    finally:
        handle.remove()
    # A BatchNorm of a file without versions does not miss its count.
    has_counts = any(name.endswith(_COUNT) for name in stored)
    absent = missing if has_counts else model.state_dict()
    return Mismatches(
        [name for name in missing if not name.endswith(_COUNT) and name not in shape],
        shape,
        unexpected,
        [name for name in absent if name.endswith(_COUNT)],
    )


def _of_another_kind(stored: dict[str, Any], model: nn.Module) -> dict[str, str]:
    """Returns what torch would convert by losing a part, such as the imaginary one, or take for what it is not."""
    kinds = {
        name: (form_of(stored[name]).kind, form_of(own).kind)
        for name, own in model.state_dict().items()
        if name in stored and isinstance(own, Tensor)
    }
    return {
        name: f'{name} (checkpoint {of_file}, model {of_model})'
        for name, (of_file, of_model) in kinds.items()
        if of_file != of_model
    }


def load_all(weights: dict[str, Any], model: nn.Module) -> Mismatches:
    """Loads weights into a model, and raises if they lack a tensor or have it in another shape.

    MMEngine's loader only warns, and leaves what does not fit as it was initialised.

    Args:
        weights: As for :func:`load_fitting`.
        model: The bare model.

    Raises:
        ValueError: With the names and shapes that differ.
    """
    mismatches = load_fitting(weights, model)
    if mismatches.missing or mismatches.shape:
        raise ValueError(
            "its weights are of another model than the config's"
            + listed('; of another shape or kind: ', list(mismatches.shape.values()))
            + listed('; missing: ', mismatches.missing)
        )
    return mismatches


def listed(title: str, names: list[str], most: int = 3) -> str:
    """Returns a title and the first names of a list, or nothing where there are none."""
    if not names:
        return ''
    rest = f' and {len(names) - most} more' if len(names) > most else ''
    return title + ', '.join(names[:most]) + rest


def _shape(text: str) -> tuple[int, ...]:
    return tuple(int(size) for size in text.split(',') if size)
