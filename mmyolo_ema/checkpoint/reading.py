"""Reading a checkpoint without running what it contains: the one door for tools, hook and post-hoc averages."""

import codecs
import hashlib
import json
import re
import warnings
from contextlib import suppress
from functools import cache
from pathlib import Path, PurePosixPath
from pickle import UnpicklingError
from typing import Any, Optional, Union
from urllib.parse import urlparse

import torch
from mmengine.runner import CheckpointLoader
from mmengine.utils import digit_version

from mmyolo_ema.checkpoint.archive import can_be_mapped, most_bytes, verify
from mmyolo_ema.checkpoint.embedded_program import meta_without_program
from mmyolo_ema.checkpoint.program import NotPlain
from mmyolo_ema.checkpoint.unpickling import known_names_only, restored
from mmyolo_ema.checkpoint.weights import FURTHER, SECOND, weights_of
from mmyolo_ema.files import locked


class ForeignFile(ValueError):
    """What is no checkpoint, or none that may be read; not one that is truncated."""


def read(path: Union[str, Path], map_location: Any = 'cpu', mmap: bool = False) -> dict[str, Any]:
    """Reads a checkpoint, building nothing but dense tensors, containers and what MMEngine puts in its log history.

    Args:
        path: A file that MMEngine's runner saved, any file of ``torch.save`` that holds a dictionary with the weights
            under ``state_dict``, or a ``.safetensors`` file.
        map_location: As for ``torch.load``. Defaults to 'cpu'.
        mmap: Whether to leave the tensors on disk until they are used, where the file holds them as they are in
            memory. Their checksums are then not looked at: :func:`verify` does that. Defaults to False.

    Returns:
        The dictionary that the file holds.

    Raises:
        OSError: If there is no such file, or it may not be read.
        ValueError: If it is no checkpoint, is truncated or damaged, or holds objects that are not on the list. Nothing
            of such an object is run. If it would take far more memory than its size.
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
    if Path(path).suffix == '.safetensors':
        return _load_safetensors(path, map_location)
    content = _load(path, map_location, mmap)
    if not isinstance(content, dict) or not isinstance(content.get('state_dict'), dict):
        raise ForeignFile(f"{path} is not a checkpoint of MMEngine: it holds no dictionary 'state_dict'")
    if not isinstance(content.get('meta'), (dict, type(None))):
        raise ForeignFile(f'{path} is not a checkpoint of MMEngine: its meta is {content["meta"]!r:.80}')
    parts = {part: content.get(part) for part in ('state_dict', 'ema_state_dict', SECOND, FURTHER)}
    further = content.get(FURTHER)
    if isinstance(further, dict):
        parts.update({f'{FURTHER}[{name!r:.80}]': state for name, state in further.items()})
    for part, names in parts.items():
        if isinstance(names, dict) and not all(isinstance(name, str) for name in names):
            raise ForeignFile(f'{path} is not a checkpoint of MMEngine: not all names in {part} are text')
    return content


def read_weights(path: Union[str, Path], kind: Optional[str] = None) -> dict[str, Any]:
    """Returns one set of weights of a file, mapped.

    Raises:
        OSError, ValueError: As :func:`read` and :func:`weights_of` do, with the name of the file.
    """
    content = read(path, mmap=True)
    try:
        return weights_of(content, kind)
    except ValueError as error:
        raise ValueError(f'{path}: {error}') from error


def use_safe_loader() -> None:
    """Makes MMEngine, in this process, read files and http(s) addresses as :func:`read` does.

    MMEngine's own loader unpickles anything (upstream), or does so when the safe way fails (onedl). The text under
    ``meta['config']`` is left out, because MMEngine runs it when it resumes.
    """

    # Also for files that a backbone starts from, which may hold bare weights. MMEngine logs the part of the name
    # after 'load_from_'.
    def load_from_local(filename: Union[str, Path], map_location: Any) -> Any:
        content = _load(filename, map_location)
        if isinstance(content, dict) and isinstance(content.get('meta'), dict):
            content['meta'] = meta_without_program(content)
        return content

    def load_from_http(filename: str, map_location: Any) -> Any:
        return load_from_local(_download(filename), map_location)

    CheckpointLoader.register_scheme(prefixes='', loader=load_from_local, force=True)
    CheckpointLoader.register_scheme(prefixes=('http://', 'https://'), loader=load_from_http, force=True)


def latest_complete(work_dir: Union[str, Path]) -> tuple[Optional[Path], list[Path]]:
    """Finds the checkpoint that a run goes on from: the last complete one.

    A run that was killed may leave a truncated file, and MMEngine deletes old checkpoints before it writes the
    new one, so that the one that ``last_checkpoint`` names may be gone.

    Args:
        work_dir: Folder of the run.

    Returns:
        The path, or None if there is none, and those that were passed over because they are truncated, damaged or gone.
    """
    work_dir = Path(work_dir).resolve()
    named = work_dir / 'last_checkpoint'
    try:
        target = named.read_text().strip() if named.is_file() else ''
        first = [Path(target).resolve()] if target else []
    except (OSError, RuntimeError, ValueError) as error:  # no text, no path, a loop of links
        raise ValueError(f'{named} does not name a checkpoint ({error!s:.80}): remove it') from error
    others = [path for folder in {work_dir, *(path.parent for path in first)} for path in folder.glob('[!.]*.pth')]
    others.sort(key=_time_of, reverse=True)
    passed_over: list[Path] = []
    for path in dict.fromkeys([*first, *others]):
        try:
            # A best_*.pth or a published file cannot be gone on from; the one that is named gets its say later.
            if read(path, mmap=True).get('optimizer') or path in first:
                verify(path, must_have_checksums=False)
                return path, passed_over
        except (OSError, ValueError):
            passed_over.append(path)
    return None, passed_over


#: The older name.
latest_whole = latest_complete


def _time_of(path: Path) -> float:
    """Returns when a file was written, 0 for a link that leads nowhere."""
    with suppress(OSError):
        return path.stat().st_mtime
    return 0.0


def _download(address: str) -> Path:
    """Returns where torch keeps a file from the web, after fetching it if it is not there; once for a host."""
    # Files of one name at two addresses are two files.
    folder = hashlib.sha256(address.encode()).hexdigest()[:16]
    path = Path(torch.hub.get_dir()) / 'checkpoints' / folder / PurePosixPath(urlparse(address).path).name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path):
            if not path.exists():
                torch.hub.download_url_to_file(address, str(path))
    return path


def _load(path: Union[str, Path], map_location: Any, mmap: bool = False) -> Any:
    """Returns what a file of ``torch.save`` holds; raises as :func:`read` says."""
    if torch.__version__ < '2.6.dev0':
        raise RuntimeError(f'reading checkpoints safely needs torch 2.6 or newer, but this is {torch.__version__}')
    _warn_of_old_torch(torch.__version__)
    path = Path(path).expanduser()
    _check_readable(path)
    try:
        is_mapped, most = can_be_mapped(path) and mmap, most_bytes(path)
        with known_names_only(most) as of_user, warnings.catch_warnings():
            warnings.simplefilter('ignore')
            content = torch.load(path, map_location, weights_only=True, mmap=is_mapped)
        content = restored(content, most, of_user)
    except (NotPlain, UnpicklingError) as error:
        _check_is_no_text(path)
        verify(path, must_have_checksums=False)  # a damaged file of one's own is no foreign one
        named = re.search(r'GLOBAL ([\w.]+)', str(error))
        what = (
            f'{named[1]}, which is not on the list of what a checkpoint may hold'
            if named
            else str(error)
            if isinstance(error, NotPlain)
            else 'an unknown format'
        )
        raise ForeignFile(f'{path} is refused, and nothing in it was run: it holds {what}') from error
    except Exception as error:  # a truncated file breaks the reader in many ways
        _check_is_no_text(path)
        reason = f'{type(error).__name__}: {error!s:.80}'
        raise ValueError(f'{path} is not a checkpoint, or is truncated ({reason})') from error
    if not is_mapped:
        verify(path, must_have_checksums=False)
    return content


@cache
def _warn_of_old_torch(version: str) -> None:
    if digit_version(version) < digit_version('2.10'):
        warnings.warn(
            f'torch {version} has a hole in its safe reader (CVE-2026-24747): install torch 2.10 or newer '
            'before you read files of strangers',
            stacklevel=4,
        )


def _load_safetensors(path: Union[str, Path], map_location: Any) -> dict[str, Any]:
    """Returns the tensors of a file, mapped, in the form of a checkpoint; raises as :func:`read` says."""
    from safetensors import safe_open

    _check_readable(Path(path))
    try:
        with safe_open(path, 'pt', device=str(map_location)) as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no dictionary
            meta = json.loads((file.metadata() or {}).get('meta', '{}'))
        return restored(dict(meta=meta, state_dict=weights), most_bytes(Path(path)))
    except NotPlain as error:
        raise ForeignFile(f'{path} is refused: it holds {error}') from error
    except Exception as error:  # a header may say anything
        raise ValueError(f'{path} is not a .safetensors file, or is truncated ({error!s:.80})') from error


def _check_readable(path: Path) -> None:
    if path.is_dir():
        raise IsADirectoryError(f'{path} is a folder: name a checkpoint in it')
    if not path.is_file():
        raise FileNotFoundError(f'there is no checkpoint {path}')
    path.open('rb').close()  # says so if it may not be read


def _check_is_no_text(path: Path) -> None:
    """Says so if a file that cannot be read is empty, or text."""
    with path.open('rb') as file:
        start = file.read(1000)
    if not start:
        raise ForeignFile(f'{path} is not a checkpoint: it is empty')
    with suppress(UnicodeDecodeError):
        if b'\0' not in start and codecs.getincrementaldecoder('utf-8')().decode(start):
            raise ForeignFile(f'{path} is not a checkpoint: it is text')
