"""Check that an environment holds one OpenMMLab family with working operators.

Usage: python verify.py

Exit status 0 and one line if it does, 1 and the reason if not.
"""

import sys
from importlib import metadata

FAMILIES = {
    'onedl': ('onedl-mmengine', 'onedl-mmcv', 'onedl-mmdetection'),
    'openmmlab': ('mmengine', 'mmcv', 'mmdet'),
}


def installed(packages: tuple) -> list:
    """Returns those of the named packages that are installed, with their versions."""
    names = {distribution.metadata['Name'].lower(): distribution.version for distribution in metadata.distributions()}
    return [f'{package} {names[package]}' for package in packages if package in names]


def main() -> None:
    found = {family: installed(packages) for family, packages in FAMILIES.items()}
    if all(found.values()):
        both = ' and '.join(', '.join(packages) for packages in found.values())
        sys.exit(f'both package families present: {both}. They overwrite each other: delete the environment '
                 '(make clean) and let make build it anew.')
    try:
        import torch
        from mmcv.ops import nms
        boxes = torch.tensor([[0., 0., 10., 10.], [0., 0., 10., 9.], [20., 20., 30., 30.]])
        kept = nms(boxes, torch.tensor([.9, .8, .7]), iou_threshold=.5)[1].tolist()
    except Exception as error:  # whatever breaks here, the reason is what the user needs
        sys.exit(f'mmcv has no working ops: {type(error).__name__}: {error}')
    if kept != [0, 2]:
        sys.exit(f'mmcv has no working ops: nms kept the boxes {kept} instead of [0, 2]')
    family = next(packages for packages in found.values() if packages)
    print(f'      ready: torch {torch.__version__}, {", ".join(family)}, ops compiled')


if __name__ == '__main__':
    main()
