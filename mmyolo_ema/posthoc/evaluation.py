"""Validating weights with the model, the data and the evaluator of a config."""

import contextlib
import io
import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any, Optional

import numpy as np
from mmdet.evaluation import CocoMetric
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from pycocotools.coco import COCO

from mmyolo_ema._upstream import read_ground_truth
from mmyolo_ema.checkpoint import load_all, use_safe_loader
from mmyolo_ema.files import check_no_links
from mmyolo_ema.posthoc.bootstrap import Matches, matches, mean_average_precision

# Parts of a config that a validation depends on, and that it does without.
_OF_VALIDATION = ('model', 'data_preprocessor', 'val_dataloader', 'val_evaluator', 'val_cfg')
_OF_TRAINING = (
    'train_dataloader',
    'train_cfg',
    'optim_wrapper',
    'param_scheduler',
    'test_dataloader',
    'test_cfg',
    'test_evaluator',
    'load_from',
    'custom_hooks',
    'visualizer',
)


class _Listen(Hook):
    """Reports each batch, and keeps the metrics: not every loop returns them."""

    def __init__(self, report: Callable[[], object]) -> None:
        self.report = report
        self.metrics: dict[str, Any] = {}

    def after_val_iter(self, *args: Any, **kwargs: Any) -> None:
        self.report()

    def after_val_epoch(self, runner: Runner, metrics: Optional[dict[str, Any]] = None) -> None:
        self.metrics.update(metrics or {})


class Evaluation:
    """Validates weights, one set after the other.

    The config's hooks of its own are left out, its EMAHook among them.

    Args:
        cfg: Config with a model and what a validation needs.
        folder: Where logs and detections go. The latter are kept if the evaluator is MMDetection's CocoMetric.
        report: Called after each batch. Defaults to doing nothing.

    Attributes:
        config: What a validation depends on, as text.

    Raises:
        ValueError: If the config lacks a part, or there are links in the folder.
    """

    def __init__(self, cfg: Config, folder: Path, report: Callable[[], object] = lambda: None) -> None:
        missing = [part for part in ('model', 'val_dataloader', 'val_evaluator') if cfg.get(part) is None]
        if missing:
            raise ValueError(f'the config defines no {", ".join(missing)}, so that nothing can be validated')
        check_no_links(folder, *folder.glob('*'))
        # Now, because models write into their configs when they are built.
        self.config = repr({part: cfg.get(part) for part in _OF_VALIDATION})
        cfg = deepcopy(cfg)
        for part in _OF_TRAINING:
            cfg[part] = None
        cfg.update(work_dir=str(folder), resume=False, launcher='none', log_level='WARNING')
        cfg.val_cfg = cfg.get('val_cfg') or dict(type='ValLoop')
        # There is nothing to save; None takes out a hook of MMEngine's own.
        cfg.default_hooks = dict(cfg.get('default_hooks') or {}, checkpoint=None)
        cfg.default_hooks.pop('visualization', None)
        self._folder = folder
        self._ground_truth: Optional[COCO] = None
        self._listener = _Listen(report)
        with _quietly():
            use_safe_loader()  # a model may load a teacher when it is built
            self._runner = Runner.from_cfg(cfg)
            self._runner.register_hook(self._listener)
            metrics = self._runner.val_loop.evaluator.metrics  # the loop is made when it is first asked for
            self._runner.call_hook('before_run')
        self._coco: Any = next((metric for metric in metrics if isinstance(metric, CocoMetric)), None)

    @property
    def batches(self) -> int:
        """Number of batches of a validation."""
        return len(self._runner.val_dataloader)

    @property
    def is_coco(self) -> bool:
        """Whether it measures COCO's mAP, for which images can be drawn anew."""
        return self._coco is not None

    @property
    def evaluator(self) -> str:
        """The classes of its metrics."""
        return ', '.join(type(metric).__name__ for metric in self._runner.val_evaluator.metrics)

    def measure(self, weights: dict[str, Any], name: str) -> dict[str, float]:
        """Returns the metrics of weights of the config's model; files of detections get the name."""
        load_all(weights, self._runner.model)
        if self._coco is not None:
            self._coco.outfile_prefix = str(self._folder / name)
        self._listener.metrics = {}
        with _quietly():
            self._runner.val_loop.run()
        return {
            key: float(value)
            for key, value in self._listener.metrics.items()
            if isinstance(value, (int, float, np.number))
        }

    def exact(self, name: str, metric: str, measured: float) -> tuple[float, Optional[Matches]]:
        """Returns a metric as exactly as it is known, and how the detections of that name match the ground truth.

        What was measured and None, unless the metric is COCO's mAP and the file of the detections is there.
        """
        kind = metric.rpartition('/')[2].removesuffix('_mAP')
        path = self._folder / f'{name}.{kind}.json'
        if self._coco is None or kind not in ('bbox', 'segm') or not path.is_file():
            return measured, None
        try:
            results = json.loads(path.read_text())
        except ValueError:  # truncated
            return measured, None
        for result in results if kind == 'segm' else ():
            del result['bbox']  # so that the area is that of the mask, as MMDetection has it
        if self._ground_truth is None:
            # Without an ann_file it is made of the data set, and written beside the detections.
            with _quietly():
                self._ground_truth = read_ground_truth(self._coco) or COCO(str(self._folder / f'{name}.gt.json'))
        categories = self._ground_truth.getCatIds(catNms=self._coco.dataset_meta['classes'])
        matched = matches(self._ground_truth, results, kind, categories)
        precision = mean_average_precision(matched)
        # MMDetection rounds to three digits; another set of thresholds would make another metric.
        return (precision, matched) if abs(precision - measured) < 1e-3 else (measured, None)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keeps back what pycocotools prints, and gives what a config's classes raise one type."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    except Exception as error:  # what they raise is up to them
        raise ValueError(f'the weights cannot be validated: {type(error).__name__}: {error!s:.300}') from error
