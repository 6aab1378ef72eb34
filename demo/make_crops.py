"""Cut the demo's data set out of one microscopy image and its instance mask.

Usage: python demo/make_crops.py img2d.tif mask2d.tif demo/nuclei

README.md beside this file says where the two files come from. The same two files
give the same crops and boxes; only the JPEG encoder may change a byte.
"""

import argparse
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = 128
# Columns below are trained on, columns from here on are held out.
SPLIT = 352
TRAIN_CROPS = 160
# A nucleus of which the crop shows fewer pixels than this is left out.
MIN_PIXELS = 30


def train_corners(height: int) -> Iterator[tuple[int, int]]:
    """Yields the upper left corners (row, column) of the training crops, at random."""
    random = np.random.default_rng(0)
    for _ in range(TRAIN_CROPS):
        yield int(random.integers(height - SIZE + 1)), int(random.integers(SPLIT - SIZE + 1))


def held_out_corners(height: int, width: int) -> Iterator[tuple[int, int]]:
    """Yields the corners of the held-out crops, which cover their columns."""
    for top in range(0, height, SIZE):
        for left in (SPLIT, width - SIZE):
            yield top, left


def boxes(mask: np.ndarray) -> Iterator[tuple[list[int], int]]:
    """Yields the box (x, y, width, height) and the number of pixels of each instance in a mask."""
    for instance in np.unique(mask[mask > 0]):
        rows, columns = np.nonzero(mask == instance)
        if len(rows) >= MIN_PIXELS:
            left, top = int(columns.min()), int(rows.min())
            yield [left, top, int(columns.max()) - left + 1, int(rows.max()) - top + 1], len(rows)


def write_split(
    image: np.ndarray, mask: np.ndarray, corners: Iterable[tuple[int, int]], folder: Path, name: str
) -> None:
    """Writes the crops of one split and their annotations in COCO's form."""
    (folder / name).mkdir(parents=True)
    coco: dict = dict(
        info=dict(description='Nuclei cut out of one image of BBBC038 (2018 Data Science Bowl)'),
        images=[],
        annotations=[],
        categories=[dict(id=1, name='nucleus')],
    )
    for number, (top, left) in enumerate(corners, 1):
        window = (slice(top, top + SIZE), slice(left, left + SIZE))
        file_name = f'{number:03d}.jpg'
        Image.fromarray(image[window]).save(folder / name / file_name, quality=80, optimize=True)
        coco['images'].append(dict(id=number, file_name=file_name, width=SIZE, height=SIZE))
        for box, pixels in boxes(mask[window]):
            coco['annotations'].append(
                dict(id=len(coco['annotations']) + 1, image_id=number, category_id=1, bbox=box, area=pixels, iscrowd=0)
            )
    (folder / f'{name}.json').write_text(json.dumps(coco, separators=(',', ':')) + '\n')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('image', type=Path, help='img2d.tif, 512 x 512')
    parser.add_argument('mask', type=Path, help='mask2d.tif, an integer for each nucleus')
    parser.add_argument('folder', type=Path, help='new folder for the crops and annotations')
    args = parser.parse_args()
    image = np.asarray(Image.open(args.image)).astype(np.uint8)  # 16 bits are stored, 0 to 235 are used
    mask = np.asarray(Image.open(args.mask))
    write_split(image, mask, train_corners(image.shape[0]), args.folder, 'train')
    write_split(image, mask, held_out_corners(*image.shape), args.folder, 'val')


if __name__ == '__main__':
    main()
