"""What is wrong with an environment in which MMDetection cannot be imported, and the command that mends it."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import distributions

#: The two families of packages, which install the same modules: advice must name packages of the one that is there.
FAMILIES = {
    'onedl': dict(mmengine='onedl-mmengine', mmcv='onedl-mmcv', mmdet='onedl-mmdetection'),
    'openmmlab': dict(mmengine='mmengine', mmcv='mmcv', mmdet='mmdet'),
}


@contextmanager
def explained() -> Iterator[None]:
    """Says what is missing where an import fails, and the command that installs it.

    Raises:
        RuntimeError: MMEngine's registry passes over an ImportError, and would only say that a hook is not registered.
    """
    try:
        yield
    except ImportError as error:
        raise RuntimeError(f'mmyolo_ema cannot work here: {remedy(error)}') from error


def check_torch() -> None:
    """Raises ImportError if this torch is older than the oldest that is tested."""
    import torch  # which takes a second, and only what averages needs it

    if torch.__version__ < '2.6.dev0':  # also what a container calls 2.6.0a0 is 2.6
        raise ImportError(f'torch {torch.__version__} is too old: install torch 2.6 or newer')


def remedy(error: ImportError) -> str:
    """Returns what to tell a user about a failed import.

    Args:
        error: What ``import mmdet.models`` raised.

    Returns:
        What is missing and the command that installs it, or the error's own text where it is something else.
    """
    module = error.name or ''
    if module == 'mmcv._ext':
        return (
            'mmcv is installed without its compiled ops, which MMDetection needs. Build them where torch can be '
            f'imported: {_install_mmcv()} --force-reinstall --no-deps'
        )
    if module == 'mmcv':
        return f'mmcv is not installed. Build it with its ops, where torch can be imported: {_install_mmcv()}'
    if module in ('mmdet', 'mmengine'):
        return f'{module} is not installed: pip install {_family()[module]}'
    return str(error)


def _install_mmcv() -> str:
    # Without these an isolated build finds no torch, and silently leaves the ops out.
    return (
        'pip install "setuptools>=77,<81" wheel ninja psutil packaging numpy && MMCV_WITH_OPS=1 pip install '
        f'--no-build-isolation --no-cache-dir {_family()["mmcv"]}'
    )


def _family() -> dict[str, str]:
    """Returns the packages of the family that is installed, in part; of onedl's where none is."""
    return next((family for family in FAMILIES.values() if installed([*family.values()])), FAMILIES['onedl'])


def installed(packages: list[str]) -> list[str]:
    """Returns those of the named packages that are installed, with their versions."""
    versions = {str(distribution.name).lower(): distribution.version for distribution in distributions()}
    return [f'{package} {versions[package]}' for package in packages if package in versions]
