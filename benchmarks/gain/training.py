"""One training of the demo's detector, with several averages kept and validated beside the raw weights."""

import contextlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Optional

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import nn

from mmyolo_ema.hooks import EMAHook

DATA, RATES = ('nuclei', 'digits'), ('decayed', 'flat')
#: In a training of the demo, which validates four times.
UPDATES = 480
_CONFIG = Path(__file__).resolve().parents[2] / 'configs' / 'demo' / 'rtmdet_nuclei.py'
# Beside ours: the classes of MMDetection and MMEngine as MMDetection's configs and MMEngine's hook have them; and
# MMDetection's with the schedule of ours, so that the two differ in shared tensors only.
_AVERAGES = dict(
    mmdet=dict(momentum=0.0002, gamma=2000),
    mmengine=dict(momentum=0.0002, update_buffers=False),
    by_name=dict(mean_age='4%'),
)
_CLASSES = dict(
    mmdet='mmdet.ExpMomentumEMA', mmengine='mmengine.ExponentialMovingAverage', by_name='mmdet.ExpMomentumEMA'
)
_SUFFIXES = dict(ours='', raw='_origin', **{name: f'_{name}' for name in _AVERAGES})


class Case(NamedTuple):
    """A training: ``data`` of DATA, ``rate`` of RATES, and the seed."""

    data: str
    rate: str
    seed: int


def train(case: Case, folder: Path, after_update: Callable[[], object]) -> dict[str, Any]:
    """Trains once and returns what the validations measured.

    Args:
        case: Data, learning rate and seed.
        folder: For the runner's files; the digits are in ``digits``.
        after_update: Called after each update.

    Returns:
        A number for each validation: ``updates`` so far; ``mAP`` from 0 to 1 by the name of the weights;
        ``apart``, how far weights are from ours in the parameters that the model shares (:func:`shared_distance`).
    """
    measure = _Measure(after_update)
    with open(os.devnull, 'w') as nowhere, contextlib.redirect_stdout(nowhere):  # for what pycocotools prints
        runner = Runner.from_cfg(_config(case, folder))
        runner.register_hook(measure, priority='VERY_LOW')
        for name, kind in _CLASSES.items():
            # In a config all averages of a hook are of one class.
            _ema_hook(runner)._kept[name].ema_cfg['type'] = kind
        runner.train()
    return dict(updates=measure.updates, mAP=measure.precision, apart=measure.apart)


def _ema_hook(runner: Runner) -> EMAHook:
    return next(hook for hook in runner.hooks if isinstance(hook, EMAHook))


def _config(case: Case, folder: Path) -> Config:
    cfg, name = Config.fromfile(_CONFIG), '-'.join(map(str, case))
    cfg.update(
        work_dir=str(folder / name),
        experiment_name=name,
        visualizer=None,
        log_level='ERROR',
        randomness=dict(seed=case.seed),
    )
    cfg.default_hooks.checkpoint = None
    cfg.default_hooks.pop('visualization')
    cfg.custom_hooks = [
        dict(
            type='mmyolo_ema.EMAHook',
            mean_age='4%',
            update_buffers=True,
            averages=_AVERAGES,
            evaluate=['ema', 'raw', *_AVERAGES],
        )
    ]
    if case.rate == 'flat':
        cfg.param_scheduler = cfg.param_scheduler[:1]  # the warm-up
    if case.data == 'digits':
        cfg.val_evaluator.ann_file = str(folder / 'digits' / 'val.json')
        for loader in (cfg.train_dataloader, cfg.val_dataloader):
            loader.dataset.update(data_root=str(folder / 'digits'), metainfo=dict(classes=('digit',)))
            # A flipped digit is another, or none.
            loader.dataset.pipeline = [step for step in loader.dataset.pipeline if step.type != 'RandomFlip']
    return cfg


class _Measure(Hook):
    """Keeps what each validation measures."""

    def __init__(self, after_update: Callable[[], object]) -> None:
        self._after_update = after_update
        self.updates: list[int] = []
        self.precision: dict[str, list[float]] = defaultdict(list)
        self.apart: dict[str, list[float]] = defaultdict(list)

    def after_train_iter(self, *args: Any, **kwargs: Any) -> None:
        self._after_update()

    def after_val_epoch(self, runner: Runner, metrics: Optional[dict[str, float]] = None) -> None:
        hook = _ema_hook(runner)
        self.updates.append(int(hook.ema_model.steps))
        for name, suffix in _SUFFIXES.items():
            # Taken out: weights that detect nothing have no metric, and leave that of the validation before.
            measured = runner.message_hub.log_scalars.pop(f'val/coco/bbox_mAP{suffix}', None)
            self.precision[name].append(0.0 if measured is None else float(measured.current()))
        for name, model in dict(raw=hook.src_model, by_name=hook.averages['by_name'].module).items():
            self.apart[name].append(shared_distance(model, hook.ema_model.module))


def shared_distance(model: nn.Module, reference: nn.Module) -> float:
    """Returns the L2 distance of the parameters that have several names, relative to the norm of the reference's.

    Example:
        >>> import torch
        >>> layer, other = torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1, bias=False)
        >>> layer.weight.data.fill_(3.), other.weight.data.fill_(2.)
        (tensor([[3.]]), tensor([[2.]]))
        >>> shared_distance(torch.nn.Sequential(layer, layer), torch.nn.Sequential(other, other))
        0.5
    """
    names = Counter(parameter for _, parameter in reference.named_parameters(remove_duplicate=False))
    pairs = [pair for pair in zip(model.parameters(), reference.parameters()) if names[pair[1]] > 1]
    tensors, references = (torch.cat([tensor.detach().flatten() for tensor in column]) for column in zip(*pairs))
    return float((tensors - references).norm() / references.norm())
