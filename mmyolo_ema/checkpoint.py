"""What an EMA checkpoint holds, and reading it without running what it contains.

MMEngine's EMAHook saves the averaged weights under ``state_dict``, where every
loader looks, and the raw ones, which the optimizer trains, under
``ema_state_dict`` with the prefix ``module.``: the name lies.
"""

import re
import warnings
import zipfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from pickle import UnpicklingError
from typing import Any, Union
from urllib.parse import urlparse

import torch
from mmengine.dist import barrier, is_main_process
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn

from mmyolo_ema.unpickling import restored, stand_ins

__all__ = ['check_fits', 'has_ema', 'raw_weights', 'read', 'use_safe_loader']

_PREFIX = 'module.'


def read(path: Union[str, Path], map_location: Any = 'cpu', mmap: bool = False) -> dict:
    """Reads a checkpoint, building nothing but tensors, containers and what MMEngine puts in its log history.

    Args:
        path: A file that MMEngine's runner saved, or any file of ``torch.save`` that holds a dictionary with the
            weights under ``state_dict``.
        map_location: As for ``torch.load``. Defaults to 'cpu'.
        mmap: Whether to leave the tensors on disk until they are used. Defaults to False.

    Returns:
        The dictionary that the file holds.

    Raises:
        OSError: If there is no such file, or it may not be read.
        ValueError: If it is no checkpoint, is cut off, or holds objects that are not on the list. Nothing of such
            an object is run.
        RuntimeError: If torch is older than 2.6.

    Example:
        >>> import os, tempfile, torch
        >>> from mmyolo_ema import checkpoint
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, 'epoch_1.pth')
        ...     torch.save(dict(state_dict=dict(weight=torch.ones(1))), path)
        ...     checkpoint.read(path)
        {'state_dict': {'weight': tensor([1.])}}
    """
    content = _load(path, map_location, mmap)
    if not isinstance(content, dict) or not isinstance(content.get('state_dict'), dict):
        raise ValueError(f"{path} is not a checkpoint of MMEngine: it holds no dictionary 'state_dict'")
    return content


def use_safe_loader() -> None:
    """Makes MMEngine, in this process, read files and http(s) addresses by the list that :func:`read` goes by.

    MMEngine's own loader unpickles anything (upstream), or does so when the safe way fails (onedl).
    """

    # Also for files that a backbone starts from, which may hold bare weights. MMEngine logs the part of the name
    # after 'load_from_'.
    def load_from_local(filename: str, map_location: Any) -> Any:
        return _load(filename, map_location)

    def load_from_http(filename: str, map_location: Any) -> Any:
        if is_main_process():
            _download(filename)
        barrier()
        return _load(_download(filename), map_location)

    CheckpointLoader.register_scheme(prefixes='', loader=load_from_local, force=True)
    CheckpointLoader.register_scheme(prefixes=('http://', 'https://'), loader=load_from_http, force=True)


def has_ema(checkpoint: dict) -> bool:
    """Whether a checkpoint holds an average beside the raw weights."""
    return isinstance(checkpoint.get('ema_state_dict'), dict)


def raw_weights(checkpoint: dict) -> dict[str, Tensor]:
    """Returns the raw weights: those that the optimizer trained.

    Args:
        checkpoint: As :func:`read` returns it.

    Returns:
        The tensors by the names that they have in the model.

    Raises:
        ValueError: If the checkpoint holds no average, so that its only weights are under ``state_dict``.
    """
    if not has_ema(checkpoint):
        raise ValueError("it holds no EMA (no 'ema_state_dict'), so there are no raw weights beside those that "
                         "weights 'ema' tests")
    stored = _tensors(checkpoint['ema_state_dict'])
    return {name[len(_PREFIX):]: tensor for name, tensor in stored if name.startswith(_PREFIX)}


def check_fits(weights: dict[str, Tensor], model: nn.Module) -> None:
    """Raises if weights lack a tensor that a model has, or have it in another shape.

    MMEngine's loader only warns, and leaves what does not fit as it was initialised.

    Args:
        weights: Tensors by name; a prefix ``module.``, from a model wrapper, is ignored.
        model: The bare model.

    Raises:
        ValueError: With the names and shapes that differ.
    """
    shapes = {name.removeprefix(_PREFIX): tuple(tensor.shape) for name, tensor in _tensors(weights)}
    wanted = {name: tuple(tensor.shape) for name, tensor in _tensors(model.state_dict())}
    missing = [name for name in wanted if name not in shapes]
    other = [
        f'{name} (checkpoint {shapes[name]}, model {shape})' for name, shape in wanted.items()
        if name in shapes and shapes[name] != shape
    ]
    if missing or other:
        raise ValueError("its weights are of another model than the config's" +
                         _listed('; of another shape: ', other) + _listed('; missing: ', missing))


def _download(address: str) -> Path:
    """Returns where torch keeps a file from the web, after fetching it if it is not there."""
    path = Path(torch.hub.get_dir()) / 'checkpoints' / PurePosixPath(urlparse(address).path).name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(address, str(path))
    return path


def _load(path: Union[str, Path], map_location: Any, mmap: bool = False) -> Any:
    """Returns what a file of ``torch.save`` holds; raises as :func:`read` says."""
    if not hasattr(torch.serialization, 'safe_globals'):
        raise RuntimeError(f'reading checkpoints safely needs torch 2.6 or newer, but this is {torch.__version__}')
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f'there is no checkpoint {path}')
    path.open('rb').close()  # says so if it may not be read
    try:
        with torch.serialization.safe_globals(stand_ins()), warnings.catch_warnings():
            warnings.filterwarnings('ignore', message='Detected pickle protocol')
            content = torch.load(path, map_location, weights_only=True, mmap=mmap and zipfile.is_zipfile(path))
        return restored(content)
    except UnpicklingError as error:
        named = re.search(r'GLOBAL ([\w.]+)', str(error))
        what = f'{named[1]}, which is not on the list of what a checkpoint may hold' if named else 'an unknown format'
        raise ValueError(f'{path} is refused, and nothing in it was run: it holds {what}') from error
    except Exception as error:  # a file that is cut off breaks the reader in many ways
        reason = f'{type(error).__name__}: {error!s:.80}'
        raise ValueError(f'{path} is not a checkpoint, or is cut off ({reason})') from error


def _tensors(state_dict: dict) -> Iterable[tuple[str, Tensor]]:
    return ((name, value) for name, value in state_dict.items()
            if isinstance(name, str) and isinstance(value, Tensor) and not value.is_meta)


def _listed(title: str, names: list[str], most: int = 3) -> str:
    """Returns a title and the first names of a list, or nothing where there are none."""
    if not names:
        return ''
    rest = f' and {len(names) - most} more' if len(names) > most else ''
    return title + ', '.join(names[:most]) + rest
