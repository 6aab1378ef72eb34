"""Which weights are in a checkpoint, and by which names.

MMEngine's EMAHook saves the averaged weights under ``state_dict``, where every
loader looks, and the raw ones, which the optimizer trains, under
``ema_state_dict`` with the prefix ``module.``, in spite of that name.
"""

from collections import OrderedDict
from collections.abc import Iterable
from typing import Any, NamedTuple, Optional

import torch
from torch import Tensor

from mmyolo_ema._upstream import EXTRA_STATE_SUFFIX
from mmyolo_ema.checkpoint.stored_schedule import about_averages, second_schedule
from mmyolo_ema.ema_config import TAKEN_NAMES
from mmyolo_ema.schedules import MOST_UPDATES

#: What the names under ``ema_state_dict`` begin with.
PREFIX = 'module.'

#: Where older files have the average of ``SnapshotHook(second_horizon=...)``: it is read as the further one ``second``.
SECOND = 'second_ema_state_dict'

#: Where the further averages of an EMAHook are, by name.
FURTHER = 'ema_averages'

#: Folder in a work directory where a SnapshotHook writes.
SNAPSHOTS = 'snapshots'


def has_ema(checkpoint: dict[str, Any]) -> bool:
    """Whether a checkpoint holds an average beside the raw weights."""
    return isinstance(checkpoint.get('ema_state_dict'), dict)


def raw_weights(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Returns the raw weights: those that the optimizer trained.

    Args:
        checkpoint: As :func:`read` returns it.

    Returns:
        The tensors, and what modules keep besides, by the names that they have in the model.

    Raises:
        ValueError: If the checkpoint holds no average, so that its only weights are under ``state_dict``, and doesn't
            say that these are raw.
    """
    if state_dict_kind(checkpoint) == 'raw':
        return averaged_weights(checkpoint)
    if not has_ema(checkpoint):
        raise ValueError("it holds no EMA (no 'ema_state_dict'), so there are no raw weights beside its only ones")
    return unprefixed(checkpoint['ema_state_dict'], prefixed_only=True)


def further_averages(checkpoint: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns the states of the further averages of an EMAHook by name, as they are stored; may be empty."""
    stored = checkpoint.get(FURTHER)
    named = {'second': checkpoint.get(SECOND), **(stored if isinstance(stored, dict) else {})}
    return {
        name: state
        for name, state in named.items()
        if isinstance(name, str) and name not in TAKEN_NAMES and isinstance(state, dict)
    }


def averaged_weights(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Returns the averaged weights, or the only ones of a checkpoint without an average.

    Args:
        checkpoint: As :func:`read` returns it.

    Returns:
        As :func:`raw_weights`; a prefix ``module.`` of all names, from a model wrapper, is left out.
    """
    return unprefixed(checkpoint['state_dict'])


def unprefixed(state: dict[str, Any], prefixed_only: bool = False) -> dict[str, Any]:
    """Returns the weights of a state without the prefix ``module.``, if all have it, for a model to load.

    Args:
        state: Weights by name. It may tell the versions of modules: one that changed its names looks there when it is
            loaded.
        prefixed_only: Whether to leave out what has no prefix: an average's own. Defaults to False.
    """
    names = [name for name in state if isinstance(name, str) and (name.startswith(PREFIX) or not prefixed_only)]
    prefix = PREFIX if all(name.startswith(PREFIX) for name in names) else ''
    named = OrderedDict((name.removeprefix(prefix), state[name]) for name in names)
    # A module's name has no dot at its end.
    versions = OrderedDict(
        (f'{name}.'.removeprefix(prefix).rstrip('.'), value)
        for name, value in (getattr(state, '_metadata', None) or {}).items()
        if isinstance(name, str) and f'{name}.'.startswith(prefix)
    )
    if versions:
        vars(named)['_metadata'] = versions
    return named


def state_dict_kind(checkpoint: dict[str, Any]) -> str:
    """Returns which weights are under ``state_dict``.

    'ema', 'raw', 'only' if the file does not say, or the name of the further average that they were extracted from.
    """
    if has_ema(checkpoint):
        return 'ema'
    kind = origin(checkpoint).get('weights')
    return kind if isinstance(kind, str) and kind.isidentifier() else 'only'


def weights_in(checkpoint: dict[str, Any]) -> list[str]:
    """Returns which weights are in a file, as :func:`weights_of` takes them: those under ``state_dict`` first.

    Example:
        >>> weights_in(dict(state_dict={}, ema_state_dict={}, ema_averages=dict(short={})))
        ['ema', 'raw', 'short']
    """
    raw = ['raw'] if has_ema(checkpoint) else []
    return list(dict.fromkeys([state_dict_kind(checkpoint), *raw, *further_averages(checkpoint)]))


def kind_taken(checkpoint: dict[str, Any], wanted: Optional[str]) -> str:
    """Returns which weights :func:`weights_of` takes of a file that may not say which it holds."""
    return wanted if wanted in weights_in(checkpoint) else state_dict_kind(checkpoint)


def origin(checkpoint: dict[str, Any], kind: str = 'ema') -> dict[str, Any]:
    """Returns what a file of this package says about itself, or about one of its further averages: ``updates``, ..."""
    meta = checkpoint.get('meta') or {}
    own: Any = about_averages(meta)
    if kind in further_averages(checkpoint):
        averages = own.get('averages')
        of_older = dict(own, mean_age=None, schedule=second_schedule(meta)) if kind == 'second' else None
        own = averages.get(kind, of_older) if isinstance(averages, dict) else of_older
    return own if isinstance(own, dict) else {}


def weights_of(checkpoint: dict[str, Any], kind: Optional[str] = None) -> dict[str, Any]:
    """Returns one set of weights.

    Args:
        checkpoint: As :func:`read` returns it.
        kind: 'ema' for the averaged weights, or the only ones of a file that does not say which they are; 'raw'; or
            the name of a further average. Defaults to None: those under ``state_dict``, averaged or the only ones.

    Raises:
        ValueError: If the file does not hold them, with the names of those that it holds.
    """
    further, stored = further_averages(checkpoint), state_dict_kind(checkpoint)
    if kind in further:
        return unprefixed(further[kind], prefixed_only=True)
    if kind == 'raw' and has_ema(checkpoint):
        return raw_weights(checkpoint)
    if kind not in (None, stored) and (stored, kind) != ('only', 'ema'):
        names = weights_in(checkpoint)
        known = 'one set of weights' if names == ['only'] else f'the {", ".join(names)} weights'
        raise ValueError(f'it holds {known} only, and none called {kind!r}')
    return averaged_weights(checkpoint)


def first_names(weights: dict[str, Any]) -> dict[str, str]:
    """Returns, for each name, the first that stands for the same tensor."""
    firsts: dict[Any, str] = {}
    return {
        name: firsts.setdefault(place_of(value) if isinstance(value, Tensor) else name, name)
        for name, value in weights.items()
    }


def updates_in(checkpoint: dict[str, Any], kind: str = 'ema') -> Optional[int]:
    """Returns how many updates the average in a checkpoint has had, None if it does not say.

    Args:
        checkpoint: As :func:`read` returns it.
        kind: The name of a further average. Defaults to 'ema': the main one.
    """
    state = further_averages(checkpoint).get(kind, checkpoint.get('ema_state_dict'))
    steps = state.get('steps') if isinstance(state, dict) else origin(checkpoint).get('updates')
    if isinstance(steps, Tensor) and steps.numel() == 1 and form_of(steps).kind == 'integer':
        steps = int(steps)
    # More take too long to go through.
    return steps if type(steps) is int and 0 <= steps <= MOST_UPDATES else None


def single_precision_bytes(weights: dict[str, Any]) -> int:
    """Returns the size of weights with floats of 4 bytes; what several names share counts once."""
    distinct = [weights[name] for name in set(first_names(weights).values())]
    return sum(
        value.numel() * (4 if value.is_floating_point() else value.itemsize)
        for value in distinct
        if isinstance(value, Tensor)
    )


def is_dense(tensor: Tensor) -> bool:
    """Whether a tensor is an array of numbers that are there."""
    return tensor.layout is torch.strided and not (tensor.is_meta or tensor.is_quantized)


class Form(NamedTuple):
    """What must be the same of two tensors, so that one can stand for the other.

    Attributes:
        kind: The kind of its numbers, or what it is instead of a dense tensor.
        shape: Its shape, None if it is no dense tensor.
    """

    kind: str
    shape: Optional[tuple[int, ...]] = None


def form_of(value: Any) -> Form:
    """Returns the form of a tensor, or of what stands in its place.

    Example:
        >>> form_of(torch.zeros(2, 3, dtype=torch.float16))
        Form(kind='floating', shape=(2, 3))
    """
    if not isinstance(value, Tensor):
        return Form('missing' if value is None else type(value).__name__)
    if not is_dense(value):
        return Form(
            'meta' if value.is_meta else 'quantized' if value.is_quantized else str(value.layout).removeprefix('torch.')
        )
    kind = 'complex' if value.is_complex() else 'floating' if value.is_floating_point() else 'integer'
    return Form(kind, tuple(value.shape))


def place_of(tensor: Tensor) -> Any:
    """Returns where a tensor's numbers are and how they are read, which only one with the same numbers shares."""
    if not is_dense(tensor) or tensor.numel() == 0:
        return id(tensor)
    return (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.is_conj(), tensor.is_neg())


def tensors(state_dict: dict[str, Any]) -> Iterable[tuple[str, Tensor]]:
    """Yields the parameters and buffers of a state; the extra state of a module may be a tensor of any shape."""
    return (
        (name, value)
        for name, value in state_dict.items()
        if isinstance(name, str)
        and isinstance(value, Tensor)
        and not value.is_meta
        and not name.endswith(EXTRA_STATE_SUFFIX)
    )
