"""Handing on one set of a checkpoint's weights, in a file that every loader opens."""

import json
from collections import OrderedDict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Optional

import numpy as np
import torch
from torch import Tensor

from mmyolo_ema.checkpoint.difference import difference, is_statistic
from mmyolo_ema.checkpoint.misfits import listed
from mmyolo_ema.checkpoint.reading import read
from mmyolo_ema.checkpoint.streaming import stream
from mmyolo_ema.checkpoint.weights import PREFIX, has_ema, updates_in, weights_of
from mmyolo_ema.files import write_named_by_content, write_new

__all__ = ['SUFFIXES', 'Published', 'extract', 'publish']

#: What the name of an extracted file may end in.
SUFFIXES = ('.pth', '.pt', '.safetensors')


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


def extract(path: Path, out: Path, kind: str = 'ema') -> None:
    """Writes one set of weights to a file of its own: ``meta`` and ``state_dict``, without classes of any package.

    A ``.safetensors`` file holds the tensors by their names, each for itself if several share one, and ``meta`` as JSON
    in its metadata. The weights are written from the mapped file and not held in memory besides.

    Args:
        path: As for :func:`mmyolo_ema.checkpoint.read`.
        out: File to write, ``.pth``, ``.pt`` or ``.safetensors``. Its folder is made if need be.
        kind: 'ema' for the averaged weights, or the only ones of a file without an average; 'raw'. Defaults to 'ema'.

    Raises:
        OSError, ValueError: As :func:`mmyolo_ema.checkpoint.read` does; if there are no such weights; if ``out`` has
            another suffix; if a ``.safetensors`` file cannot hold what a module keeps besides tensors.
        FileExistsError: If there is such a file already.
        ImportError: If a ``.safetensors`` file is asked for and that package is not installed.
    """
    if out.suffix not in SUFFIXES:
        raise ValueError(f'the file to write must end in {", ".join(SUFFIXES)}, but got {out}')
    content = _plain_checkpoint(path, kind)
    write_new(out, partial(_save_safetensors if out.suffix == '.safetensors' else _save, content))


def publish(path: Path, stem: Path, kind: str = 'ema', dtype: Optional[torch.dtype] = None) -> Published:
    """Writes one set of weights to ``STEM-12345678.pth``, named by the first 8 hex digits of the file's sha256.

    Args:
        path: As for :func:`mmyolo_ema.checkpoint.read`.
        stem: Folder and beginning of the name; a suffix ``.pth`` is left out.
        kind: As for :func:`extract`. Defaults to 'ema'.
        dtype: Precision of the floating tensors; the running statistics of BatchNorm, which half precision may not
            hold, stay as they are. Defaults to None: all stay as they are.

    Raises:
        OSError, ValueError: As :func:`extract` does; or if a weight is too large for ``dtype``.
        FileExistsError: If the same file was published before.
    """
    content = _plain_checkpoint(path, kind)
    worst, error = None, 0.0
    if dtype is not None:
        converted, worst, error = _converted(path, kind, dtype)
        content['state_dict'].update(converted)
    if stem.suffix == '.pth':
        stem = stem.with_suffix('')
    return Published(write_named_by_content(stem, '.pth', partial(_save, content)), worst, error)


def _plain_checkpoint(path: Path, kind: str) -> dict[str, Any]:
    content = read(path, mmap=True)
    try:
        weights = weights_of(content, kind)
    except ValueError as error:
        raise ValueError(f'{path}: {error}') from error
    meta = content.get('meta')
    meta = _plain(meta) if isinstance(meta, dict) else {}
    if has_ema(content):
        meta['mmyolo_ema'] = dict(weights=kind, updates=updates_in(content))
    state = OrderedDict((name, _plain(value)) for name, value in weights.items())
    stored = content['ema_state_dict' if kind == 'raw' and has_ema(content) else 'state_dict']
    versions = getattr(stored, '_metadata', None)
    if isinstance(versions, dict):
        # By module; a module that changed its names looks there when it is loaded.
        versions = OrderedDict((name.removeprefix(PREFIX), _plain(value)) for name, value in versions.items())
        vars(state)['_metadata'] = versions
    return dict(meta=meta, state_dict=state)


def _plain(value: Any) -> Any:
    """Returns a value without the classes that torch's safe reader refuses: those of numpy."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, dict):
        return type(value)((key, _plain(item)) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(item) for item in value)
    return value


def _converted(path: Path, kind: str, dtype: torch.dtype) -> tuple[OrderedDict, Optional[str], float]:
    """Returns the weights in another precision, and which tensor lost most by it, and how much."""
    first_names: dict[Any, str] = {}
    first_of = {}
    for name, value in _open(path, kind).items():
        place = (value.data_ptr(), value.shape, value.stride()) if isinstance(value, Tensor) and value.numel() else name
        first_of[name] = first_names.setdefault(place, name)
    converted: OrderedDict = OrderedDict()
    worst, error, too_large = None, 0.0, []
    for name, (value,) in stream(partial(_open, path, kind)):
        if first_of[name] != name:
            converted[name] = converted[first_of[name]]
        elif not (isinstance(value, Tensor) and value.is_floating_point()) or is_statistic(name):
            # Tensors of the mapped file; copies let go of the map.
            converted[name] = value.clone() if isinstance(value, Tensor) else _plain(value)
        else:
            converted[name] = value.to(dtype, copy=True)
            lost = difference(name, converted[name], value)
            if bool((converted[name].isinf() & ~value.isinf()).any()):
                too_large.append(name)
            elif lost.relative and lost.relative > error:
                worst, error = name, lost.relative
    if too_large:
        raise ValueError(f'{path} holds weights that are too large for {str(dtype).removeprefix("torch.")}' +
                         listed(': ', too_large) + '; bfloat16 or float32 can hold them')
    return converted, worst, error


def _open(path: Path, kind: str) -> dict[str, Any]:
    return weights_of(read(path, mmap=True), kind)


def _save(content: dict[str, Any], path: Path) -> None:
    # torch puts the name of the file into it, which would make the hash of the same weights another one.
    with open(path, 'wb') as file:
        torch.save(content, file)


def _save_safetensors(content: dict[str, Any], path: Path) -> None:
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    places = set()
    for name, value in content['state_dict'].items():
        if not isinstance(value, Tensor):
            raise ValueError(f'a .safetensors file holds tensors only, but {name} is a {type(value).__name__}; '
                             'write a .pth file')
        storage = value.untyped_storage().data_ptr()
        # The format has no names for one tensor.
        tensors[name] = value.clone() if storage in places else value.contiguous()
        places.add(storage)
    # The package makes its files readable to their owner only.
    path.touch()
    mode = path.stat().st_mode
    save_file(tensors, path, metadata=dict(format='pt', meta=json.dumps(content['meta'])))
    path.chmod(mode)
