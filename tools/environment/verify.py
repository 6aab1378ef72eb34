"""Check that an environment holds one OpenMMLab family with working operators.

Usage: python verify.py

Exit status 0 and one line if it does, 1 and the reason if not.
"""

import sys

from mmyolo_ema.environment import FAMILIES, installed


def devices_with_operators() -> list[str]:
    """Returns the devices that mmcv has operators for, and that are here."""
    import torch
    from device import has_cuda_operators

    return ['cpu', 'cuda'] if has_cuda_operators() and torch.cuda.is_available() else ['cpu']


def check_nms(device: str) -> None:
    """Raises if an operator does not run, or computes something wrong."""
    import torch
    from mmcv.ops import nms

    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 9.0], [20.0, 20.0, 30.0, 30.0]], device=device)
    kept = nms(boxes, torch.tensor([0.9, 0.8, 0.7], device=device), iou_threshold=0.5)[1].tolist()
    if kept != [0, 2]:
        raise RuntimeError(f'nms on {device} kept the boxes {kept} instead of [0, 2]')


def main() -> None:
    families = [installed([*family.values()]) for family in FAMILIES.values()]
    if all(families):
        both = ' and '.join(', '.join(packages) for packages in families)
        sys.exit(
            f'both package families present: {both}. They overwrite each other: delete the environment '
            '(make clean) and let make build it anew.'
        )
    try:
        import torch

        devices = devices_with_operators()
        for device in devices:
            check_nms(device)
    except Exception as error:  # whatever breaks here, the reason is what the user needs
        sys.exit(f'mmcv has no working ops: {type(error).__name__}: {error}')
    try:
        import mmdet.models  # noqa: F401
    except ImportError as error:
        sys.exit(f'MMDetection cannot be imported: {error}')
    family = next(filter(None, families))
    print(f'      ready: torch {torch.__version__}, {", ".join(family)}, ops for {" and ".join(devices)}')


if __name__ == '__main__':
    main()
