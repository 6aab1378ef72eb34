"""What the package needs; everything else about it is in pyproject.toml."""

from setuptools import setup

setup(
    # Only torch, and any torch: the OpenMMLab packages come in two families that
    # install the same modules, so a hard dependency on either would overwrite the
    # other in an environment that already holds one.
    install_requires=['torch'],
    extras_require={
        'onedl': ['onedl-mmengine>=0.10.12,<0.11', 'onedl-mmcv>=2.3.6,<2.4', 'onedl-mmdetection>=3.5.1,<3.6'],
        'openmmlab': ['mmengine>=0.11.0rc3,<0.12', 'mmcv>=2.1.0,<2.2', 'mmdet>=3.3.0,<3.4'],
        # For tools/ema_checkpoint.py to read and write files of that kind.
        'safetensors': ['safetensors'],
        'test': ['pytest>=8', 'pytest-xdist', 'hypothesis', 'pillow', 'psutil', 'tensorboard', 'safetensors',
                 'ruff', 'mypy'],
        # The classes that tools/benchmark_ema.py compares with, where they are there, and its look at the free memory.
        'bench': ['ema-pytorch', 'timm', 'psutil'],
    },
)
