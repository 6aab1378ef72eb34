"""Train a small detector on real images with averaged weights, then test what it saved.

Takes one to three minutes on 2 CPU cores. Fails if the saved file does not give the metric that was measured
in training, in every printed digit.

Example:
    python tools/demo.py
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import mmyolo_ema  # noqa: F401  first, because it says what an environment lacks

# isort: split
import mmcv
import numpy as np
from demo_picture import Detections, draw_detections
from mmengine.fileio import load
from pycocotools.coco import COCO
from rich.table import Table

from mmyolo_ema.cli.arguments import OneLineParser
from mmyolo_ema.cli.ending import stop
from mmyolo_ema.cli.tables import show

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / 'configs' / 'demo' / 'rtmdet_nuclei.py'
DATA = ROOT / 'demo' / 'nuclei'
METRICS = ('coco/bbox_mAP', 'coco/bbox_mAP_50', 'coco/bbox_mAP_75')
# What the names of the raw weights' metrics end in.
RAW = '_origin'
# Boxes that the picture shows; the metrics use all.
MIN_SCORE = 0.3


def run(tool: str, *arguments: object) -> None:
    """Runs a tool in a process of its own; its output goes to the terminal."""
    command = [sys.executable, str(ROOT / 'tools' / tool), *map(str, arguments)]
    if subprocess.run(command).returncode != 0:
        stop(f'tools/{tool} failed; its output is above')


def last_checkpoint(work_dir: Path) -> Path:
    """Returns the path of the newest checkpoint of a training run."""
    return Path((work_dir / 'last_checkpoint').read_text())


def metrics_in_training(work_dir: Path, suffix: str = '') -> dict[str, float]:
    """Returns the metrics of the last validation of a training run; with a suffix, those of the raw weights."""
    lines = next(work_dir.glob('*/vis_data/scalars.json')).read_text().splitlines()
    validations = [values for values in map(json.loads, lines) if METRICS[0] + suffix in values]
    if not validations:
        stop(f'no validation of the training has {METRICS[0] + suffix}: nothing was detected')
    return {name: validations[-1][name + suffix] for name in METRICS}


def metrics_in_test(work_dir: Path) -> dict[str, float]:
    """Returns the metrics of a test run."""
    values = json.loads(next(work_dir.glob('*/*.json')).read_text())
    return {name: values[name] for name in METRICS}


def held_out_detections(predictions: Path) -> list[Detections]:
    """Returns the held-out images with their true boxes and the predicted ones of a test run."""
    coco = COCO(DATA / 'val.json')
    shown = []
    for sample in load(predictions):
        image_id, instances = sample['img_id'], sample['pred_instances']
        image = mmcv.imread(DATA / 'val' / coco.imgs[image_id]['file_name'], flag='grayscale')
        corners = [(x, y, x + width, y + height) for x, y, width, height in
                   (annotation['bbox'] for annotation in coco.imgToAnns[image_id])]
        predicted = instances['bboxes'][instances['scores'] > MIN_SCORE]
        shown.append(Detections(image, np.array(corners), predicted.numpy()))
    return shown


def print_table(rows: dict[str, dict[str, float]]) -> None:
    table = Table('weights', *METRICS)
    for name, metrics in rows.items():
        table.add_row(name, *(f'{metrics[metric]:.3f}' for metric in METRICS))
    show(table)


def main() -> None:
    parser = OneLineParser(__doc__)
    parser.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE',
                        help="override settings of the demo's config")
    options = parser.parse_args().cfg_options
    overrides = ['--cfg-options', *options] if options else []
    folder = Path('work_dirs') / f'demo-{time.strftime("%Y%m%d_%H%M%S")}'
    run('train.py', CONFIG, '--work-dir', folder / 'train', *overrides)
    saved = last_checkpoint(folder / 'train')
    predictions, picture = folder / 'predictions.pkl', folder / 'detections.png'
    run('test.py', CONFIG, saved, '--weights', 'ema', '--work-dir', folder / 'test_ema', '--out', predictions,
        *overrides)
    run('test.py', CONFIG, saved, '--weights', 'raw', '--work-dir', folder / 'test_raw', *overrides)
    draw_detections(held_out_detections(predictions),
                    f'Held-out nuclei: averaged weights, boxes with a score above {MIN_SCORE}', picture)
    measured = [metrics_in_training(folder / 'train', suffix) for suffix in ('', RAW)]
    stored = [metrics_in_test(folder / name) for name in ('test_ema', 'test_raw')]
    print_table({
        'average, in training': measured[0],
        'average, from the file (--weights ema)': stored[0],
        'raw, in training': measured[1],
        'raw, from the file (--weights raw)': stored[1],
    })
    if measured != stored:
        stop(f'the file does not give what was measured in training: {stored} instead of {measured}')
    print(f'The file gives what was measured in training, in every digit.\n'
          f'  {os.path.relpath(saved)}  average and raw weights\n'
          f'  {folder / "train" / "ema_curves.png"}  average and raw metric, momentum, how far the two are apart\n'
          f'  {picture}  predicted and true boxes\n'
          f'  {predictions}  predictions of the average\n'
          f'Next: add the five lines of the README to a config of yours, or see here what an average five epochs '
          f'old does (that of the demo is one epoch old):\n'
          f'  {os.path.relpath(sys.executable)} {os.path.relpath(ROOT / "tools" / "train.py")} '
          f'{os.path.relpath(CONFIG)} --cfg-options custom_hooks.0.mean_age=5epochs --work-dir work_dirs/five_epochs')


if __name__ == '__main__':
    main()
