"""Train a small detector on real images with averaged weights, then test what it saved.

Takes one to three minutes on 2 CPU cores. Fails if the saved file does not give the metric that was measured
in training, in every printed digit.

Example:
    python tools/demo.py
"""

import io
import json
import os
import re
import subprocess
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path

import mmyolo_ema.registry  # noqa: F401  first, because it says what an environment lacks

# isort: split
import mmcv
import numpy as np
from demo_picture import Detections, draw_detections
from mmengine.config import Config
from mmengine.fileio import load
from pycocotools.coco import COCO
from rich.progress import Progress
from rich.table import Table

from mmyolo_ema.cli.arguments import OneLineParser, add_cfg_options
from mmyolo_ema.cli.ending import stop
from mmyolo_ema.cli.tables import show
from mmyolo_ema.printing import say

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / 'configs' / 'demo' / 'rtmdet_nuclei.py'
DATA = ROOT / 'demo' / 'nuclei'
METRICS = ('coco/bbox_mAP', 'coco/bbox_mAP_50', 'coco/bbox_mAP_75')
# What the names of the raw weights' metrics end in.
RAW = '_origin'
# Boxes that the picture shows; the metrics use all.
MIN_SCORE = 0.3
# What MMEngine logs: the epoch, its iteration and how many it has; and the metrics of a validation.
TRAINED = re.compile(r'Epoch\(train\) +\[(\d+)\]\[ *(\d+)/(\d+)\]')
VALIDATED = re.compile(rf'Epoch\(val\) +\[(\d+)\].* {METRICS[0]}: (\S+).* {METRICS[0]}{RAW}: (\S+)')


def run(log: Path, tool: str, *arguments: object, epochs: int = 0) -> None:
    """Runs a tool in a process of its own; its output goes to the log, and of a training the progress is shown."""
    command = [sys.executable, str(ROOT / 'tools' / tool), *map(str, arguments)]
    log.parent.mkdir(parents=True, exist_ok=True)
    lines = ['']
    with (
        log.open('a') as file,
        Progress(
            *Progress.get_default_columns(), transient=True, disable=not (epochs and sys.stdout.isatty())
        ) as progress,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process,
    ):
        task = progress.add_task('training', total=epochs)
        assert process.stdout is not None
        for line in process.stdout:
            file.write(line)
            lines.append(line.strip())
            if trained := TRAINED.search(line):
                epoch, iteration, per_epoch = map(int, trained.groups())
                progress.update(task, completed=epoch - 1 + iteration / per_epoch)
            if validated := VALIDATED.search(line):
                validation, averaged, raw = validated.groups()
                progress.console.print(f'  epoch {validation} of {epochs}: mAP {averaged} averaged, {raw} raw')
    if process.returncode != 0:
        stop(f'tools/{tool} failed: {next(filter(None, reversed(lines)), "")} ({log} has all it said)')


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
    with redirect_stdout(io.StringIO()):
        coco = COCO(DATA / 'val.json')
    shown = []
    for sample in load(predictions):
        image_id, instances = sample['img_id'], sample['pred_instances']
        image = mmcv.imread(DATA / 'val' / coco.imgs[image_id]['file_name'], flag='grayscale')
        corners = [
            (x, y, x + width, y + height)
            for x, y, width, height in (annotation['bbox'] for annotation in coco.imgToAnns[image_id])
        ]
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
    add_cfg_options(parser)
    cfg = Config.fromfile(CONFIG)
    cfg.merge_from_dict(parser.parse_args().cfg_options or {})
    overrides = sys.argv[1:]
    folder = Path('work_dirs') / f'demo-{time.strftime("%Y%m%d_%H%M%S")}'
    log = folder / 'log.txt'
    say(f'Training a small RTMDet on photographs of nuclei; {log} has the whole log.')
    run(log, 'train.py', CONFIG, '--work-dir', folder / 'train', *overrides, epochs=cfg.train_cfg.max_epochs)
    saved = last_checkpoint(folder / 'train')
    predictions, picture = folder / 'predictions.pkl', folder / 'detections.png'
    say(f'Testing what is in {os.path.relpath(saved)}: the averaged weights, then the raw ones.')
    for kind, wanted in (('ema', ['--out', predictions]), ('raw', [])):
        flags = ['--weights', kind, '--work-dir', folder / f'test_{kind}', *wanted]
        run(log, 'test.py', CONFIG, saved, *flags, *overrides)
    draw_detections(
        held_out_detections(predictions),
        f'Held-out nuclei: averaged weights, boxes with a score above {MIN_SCORE}',
        picture,
    )
    measured = [metrics_in_training(folder / 'train', suffix) for suffix in ('', RAW)]
    stored = [metrics_in_test(folder / name) for name in ('test_ema', 'test_raw')]
    print_table(
        {
            'average, in training': measured[0],
            'average, from the file (--weights ema)': stored[0],
            'raw, in training': measured[1],
            'raw, from the file (--weights raw)': stored[1],
        }
    )
    if measured != stored:
        stop(f'the file does not give what was measured in training: {stored} instead of {measured}')
    print(
        f'The file gives what was measured in training, in every digit.\n'
        f'  {os.path.relpath(saved)}  average and raw weights\n'
        f'  {folder / "train" / "ema_curves.png"}  average and raw metric, momentum, how far the two are apart\n'
        f'  {picture}  predicted and true boxes\n'
        f'  {predictions}  predictions of the average\n'
        f'Next: add the hook of the README to a config of yours, or see here what an average five epochs '
        f'old does (that of the demo is one epoch old):\n'
        f'  {os.path.relpath(sys.executable)} {os.path.relpath(ROOT / "tools" / "train.py")} '
        f'{os.path.relpath(CONFIG)} --cfg-options custom_hooks.0.mean_age=5epochs --work-dir work_dirs/five_epochs'
    )


if __name__ == '__main__':
    main()
