"""Exporting one set of a checkpoint's weights, in a file that every loader opens."""

import errno
import json
import os
import shutil
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Optional

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from torch import Tensor

from mmyolo_ema.checkpoint.archive import verify
from mmyolo_ema.checkpoint.difference import difference, is_statistic
from mmyolo_ema.checkpoint.embedded_program import meta_without_program
from mmyolo_ema.checkpoint.mismatches import listed
from mmyolo_ema.checkpoint.reading import read, read_weights
from mmyolo_ema.checkpoint.streaming import stream
from mmyolo_ema.checkpoint.weights import first_names, further_averages, has_ema, origin, tensors, updates_in
from mmyolo_ema.files import write_new

#: What the name of an extracted file may end in.
SUFFIXES = ('.pth', '.pt', '.safetensors')

# With fewer bytes left a disk is full.
_LEAST_FREE = 2**20


class Published(NamedTuple):
    """A file that was published.

    Attributes:
        path: Where it is.
        worst: Name of the tensor that lost most by the new precision, None if none changed.
        error: The L2 norm of what it lost, relative to its own.
    """

    path: Path
    worst: Optional[str]
    error: float


def extract(path: Path, out: Path, kind: Optional[str] = None) -> None:
    """Writes one set of weights to a file of its own: ``meta`` and ``state_dict``, without classes of any package.

    A ``.safetensors`` file holds the tensors by their names, each for itself if several share one, and ``meta`` as JSON
    in its metadata. The weights are written from the mapped file and not held in memory besides.

    Args:
        path: As for :func:`mmyolo_ema.checkpoint.read`.
        out: File to write, ``.pth``, ``.pt`` or ``.safetensors``. Its folder is made if need be.
        kind: 'ema', 'raw', or the name of a further average. Defaults to None: the averaged weights, or the only ones
            of a file that holds one set.

    Raises:
        OSError, ValueError: As :func:`mmyolo_ema.checkpoint.read` does; if there are no such weights; if ``out`` has
            another suffix; if a ``.safetensors`` file cannot hold what a module keeps besides tensors.
        FileExistsError: If there is such a file already.
        ImportError: If a ``.safetensors`` file is asked for and that package is not installed.
    """
    if out.suffix not in SUFFIXES:
        raise ValueError(f'the file to write must end in {", ".join(SUFFIXES)}, but got {out}')
    content = _plain_checkpoint(path, kind)
    write: Callable[[Path], object] = partial(save, content)
    if out.suffix == '.safetensors':
        try:
            tensors, meta = _single_tensors(content['state_dict']), _as_json(content['meta'])
        except ValueError as error:
            raise ValueError(f'{path} cannot be written to a .safetensors file: {error}; write a .pth file') from error
        write = partial(_save_safetensors, tensors, meta)
    write_new(out, write)


def publish(path: Path, stem: Path, kind: Optional[str] = None, dtype: Optional[torch.dtype] = None) -> Published:
    """Writes one set of weights to ``STEM-12345678.pth``, named by the first 8 hex digits of the file's sha256.

    Args:
        path: As for :func:`mmyolo_ema.checkpoint.read`.
        stem: Folder and beginning of the name; a suffix ``.pth`` is left out.
        kind: As for :func:`extract`. Defaults to None.
        dtype: Precision of the floating tensors; the running statistics of BatchNorm, which half precision may not
            hold, stay as they are. Defaults to None: all stay as they are.

    Raises:
        OSError, ValueError: As :func:`extract` does; or if a weight is too large for ``dtype``.
        FileExistsError: If the same file was published before.
    """
    if stem.suffix in SUFFIXES:
        if stem.suffix != '.pth':
            raise ValueError(f'a published file is a .pth file, but got {stem}')
        stem = stem.with_suffix('')
    content = _plain_checkpoint(path, kind)
    tensor_name, error = None, 0.0
    if dtype is not None:
        converted, tensor_name, error = _converted(path, kind, dtype)
        content['state_dict'].update(converted)
    path = write_new(stem.with_name(f'{stem.name}.pth'), partial(save, content), by_content=True)
    return Published(path, tensor_name, error)


def _plain_checkpoint(path: Path, kind: Optional[str]) -> dict[str, Any]:
    content = read(path, mmap=True)
    verify(path)
    weights = read_weights(path, kind)
    meta = meta_without_program(content)
    if has_ema(content) or kind in further_averages(content):
        kind = kind or 'ema'
        # What made the average, if the file says it.
        made = (
            {}
            if kind == 'raw'
            else {
                key: value
                for key, value in origin(content, kind).items()
                if key in ('schedule', 'mean_age', 'update_buffers', 'averages_by_name')
            }
        )
        meta['mmyolo_ema'] = dict(made, weights=kind, updates=updates_in(content, kind))
    state = plain(OrderedDict(weights))
    if hasattr(weights, '_metadata'):
        vars(state)['_metadata'] = plain(weights._metadata)
    return dict(meta=plain(meta), state_dict=state)


def plain(value: Any) -> Any:
    """Returns a value without the classes that torch's safe reader refuses: those of numpy and MMEngine."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    if isinstance(value, HistoryBuffer):
        return plain(list(value.data))
    if isinstance(value, dict):
        return (OrderedDict if isinstance(value, OrderedDict) else dict)(
            (plain(key), plain(item)) for key, item in value.items()
        )
    if isinstance(value, (list, tuple, set, frozenset)):
        return type(value)(plain(item) for item in value)
    return value


def _converted(path: Path, kind: Optional[str], dtype: torch.dtype) -> tuple[dict[str, Tensor], Optional[str], float]:
    """Returns what is another tensor in another precision, and which of them lost most by it, and how much."""
    weights = read_weights(path, kind)
    first_of = first_names(weights)
    changing = {
        name
        for name, value in tensors(weights)
        if value.is_floating_point() and value.dtype != dtype and not is_statistic(name)
    }
    del weights
    converted: dict[str, Tensor] = {}
    most_changed, error, too_large = None, 0.0, []
    for name, (value,) in stream(partial(read_weights, path, kind)):
        if name not in changing:
            continue
        if first_of[name] in converted:
            converted[name] = converted[first_of[name]]
            continue
        converted[name] = value.to(dtype)
        lost = difference(name, converted[name], value)
        if bool((converted[name].float().isinf() & ~value.float().isinf()).any()):
            too_large.append(name)
        elif lost.relative and lost.relative > error:
            most_changed, error = name, lost.relative
    if too_large:
        raise ValueError(
            f'{path} holds weights that are too large for {str(dtype).removeprefix("torch.")}'
            + listed(': ', too_large)
            + '; choose a wider one'
        )
    return converted, most_changed, error


def save(content: dict[str, Any], path: Path) -> None:
    """Writes a checkpoint to a path in a folder of its own; the name is not in it, so that the same gives the same.

    Raises:
        OSError: If it cannot be written.
    """
    # torch puts the name of the file into it, which would make the hash of the same weights another one. An open file,
    # which has no name, would hide an interruption: torch makes another error of it.
    nameless = path.with_name('archive')
    try:
        torch.save(content, nameless)
        nameless.replace(path)
    except RuntimeError as error:
        # torch does not say so in words.
        if shutil.disk_usage(path.parent).free < _LEAST_FREE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path.name) from error
        raise OSError(f'{path.name} cannot be written: {error!s:.80}') from error


def _single_tensors(weights: dict[str, Any]) -> dict[str, Tensor]:
    """Returns tensors that share no memory, for a format that has no names for one tensor."""
    single: dict[str, Tensor] = {}
    storages = set()
    for name, value in weights.items():
        if not isinstance(value, Tensor):
            raise ValueError(f'it holds tensors only, but {name} is a {type(value).__name__}')
        if name == '__metadata__':
            raise ValueError(f'no tensor in it may be called {name}')
        storage = value.untyped_storage().data_ptr()
        tensor = value.resolve_conj().resolve_neg().contiguous()
        single[name] = tensor.clone() if storage in storages and tensor is value else tensor
        storages.add(storage)
    return single


def _as_json(meta: dict[str, Any]) -> str:
    try:
        return json.dumps(meta, default=str)
    except TypeError as error:  # of a key
        raise ValueError(f'meta cannot be written as JSON ({error})') from error


def _save_safetensors(weights: dict[str, Tensor], meta: str, path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    # The package makes its files readable to their owner only.
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(weights, path, metadata=dict(format='pt', meta=meta))
    except (SafetensorError, KeyError, UnicodeError) as error:  # a full disk, a dtype or name that the format lacks
        raise OSError(f'{path.name} cannot be written: {error!s:.80}') from error
    path.chmod(mode)
