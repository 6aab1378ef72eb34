"""What the log, the visualizer and the picture at the end of a run show of an average."""

import math
from typing import Any, Optional

import torch
from mmengine.hooks import LoggerHook
from mmengine.logging import MessageHub
from mmengine.model import BaseAveragedModel
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch import Tensor, nn

from mmyolo_ema.hooks.average_picture import AverageCurves
from mmyolo_ema.hooks.average_record import AverageRecord

__all__ = ['HISTORY', 'AverageLog', 'drift', 'is_history']

#: Where the history is kept in the message hub, which a checkpoint stores and a resumed run reads.
HISTORY = 'ema_history'


def drift(averaged: nn.Module, model: nn.Module) -> float:
    """Returns the L2 distance of an average's parameters to the model's, relative to the norm of the model's."""
    sources = dict(model.named_parameters())
    distance, norm = [], []
    with torch.inference_mode():
        for name, average in averaged.named_parameters():
            if not (average.is_floating_point() or average.is_complex()):
                continue
            source = sources[name].to(average.device)
            distance.append(_norm(average - source))
            norm.append(_norm(source).to(distance[0].device))
        if not norm:
            return 0.0
        total = [torch.stack([part.to(norm[0].device) for part in parts]).norm() for parts in (distance, norm)]
        return float(total[0] / total[1].clamp(min=torch.finfo(torch.float32).tiny))


def _norm(tensor: Tensor) -> Tensor:
    dtype = torch.float32 if tensor.dtype in (torch.float16, torch.bfloat16) else None
    return torch.linalg.vector_norm(tensor, dtype=dtype).float()


class AverageLog:
    """Follows an average through a run: momentum, mean age and drift, and the metrics of both kinds of weights.

    Args:
        ema_model: The average.
        model: The bare model that it follows.
        record: What made it.
    """

    def __init__(self, ema_model: BaseAveragedModel, model: nn.Module, record: AverageRecord) -> None:
        self._ema_model, self._model, self._record = ema_model, model, record

    def is_due(self, runner: Runner, batch_idx: int) -> bool:
        """Whether a LoggerHook may write a line after this iteration."""
        loggers = [hook for hook in runner.hooks if isinstance(hook, LoggerHook)]
        return any(hook.every_n_inner_iters(batch_idx, hook.interval) for hook in loggers) or (
            bool(loggers) and loggers[0].end_of_epoch(runner.train_dataloader, batch_idx))

    def add_state(self, runner: Runner) -> None:
        """Hands the scalars ``ema_momentum``, ``ema_mean_age`` and ``ema_drift`` to the log and the visualizer."""
        age, momentum = self._record.mean_age(), self._record.momentum()
        distance = drift(self._ema_model.module, self._model)
        scalars = dict(momentum=momentum, mean_age=math.nan if age is None else age, drift=distance)
        for name, value in scalars.items():
            # MMDetection's analyze_logs.py takes a line with a slash in a name for a validation's.
            runner.message_hub.update_scalar(f'train/ema_{name}', value)
        self._history(runner.message_hub)['state'].append([_position(runner, runner.iter + 1), momentum, distance])

    def add_metrics(self, runner: Runner, averaged: Optional[dict], raw: Optional[dict]) -> None:
        """Keeps the first metric of a validation of the average, of the model, or of both, for the picture."""
        numbers = [_numbers(metrics or {}) for metrics in (averaged, raw)]
        name = next(iter([*numbers[0], *numbers[1]]), None)
        if name is not None:
            history = self._history(runner.message_hub)
            history['metric'] = name
            history['metrics'].append([_position(runner, runner.iter), *(found.get(name) for found in numbers)])

    def curves(self, runner: Runner) -> AverageCurves:
        """Returns what the picture shows."""
        history = self._history(runner.message_hub)
        unit = 'epoch' if isinstance(runner.train_loop, EpochBasedTrainLoop) else 'iteration'
        return AverageCurves(unit, history['metric'], history['metrics'], history['state'])

    @staticmethod
    def _history(message_hub: MessageHub) -> dict:
        if HISTORY not in message_hub.runtime_info:
            message_hub.update_info(HISTORY, dict(metric='', metrics=[], state=[]))
        return message_hub.runtime_info[HISTORY]  # get_info() would return a copy


def is_history(value: Any) -> bool:
    """Whether a value from a checkpoint is a history of an average."""
    return isinstance(value, dict) and isinstance(value.get('metric'), str) and all(
        isinstance(value.get(part), list) and all(map(_is_point, value[part])) for part in ('metrics', 'state'))


def _is_point(point: Any) -> bool:
    return isinstance(point, list) and len(point) == 3 and all(
        isinstance(number, (int, float, type(None))) for number in point)


def _numbers(metrics: dict) -> dict[str, float]:
    """Returns the metrics that are numbers, as Python's own, because a checkpoint stores them."""
    return {name: float(value) for name, value in metrics.items() if isinstance(value, float)}


def _position(runner: Runner, iterations: int) -> float:
    """Returns how far the training has come: in epochs if it counts them, otherwise in iterations."""
    by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
    return iterations / len(runner.train_dataloader) if by_epoch else iterations
