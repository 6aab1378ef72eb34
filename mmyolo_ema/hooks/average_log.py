"""What the log, the visualizer and the picture at the end of a run show of an average."""

import math
from typing import Any, Optional

import torch
from mmengine.dist import all_reduce
from mmengine.hooks import LoggerHook
from mmengine.logging import MessageHub
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch import Tensor, nn

from mmyolo_ema.hooks.average_picture import AverageCurves
from mmyolo_ema.hooks.kept_average import MAIN, KeptAverage
from mmyolo_ema.hooks.sharing import own_parameters, shards_of
from mmyolo_ema.models.shards import AnyShards
from mmyolo_ema.schedules import rounded

#: Where the history is kept in the message hub, which a checkpoint stores and a resumed run reads.
HISTORY = 'ema_history'


def drift(averaged: nn.Module, model: nn.Module, shards: Optional[AnyShards] = None) -> float:
    """Returns the L2 distance of an average's parameters to the model's, relative to the norm of the model's.

    Args:
        averaged: The module that holds the averaged parameters.
        model: The bare model.
        shards: What this process has of an average that is shared out; then all processes must call this.
    """
    distance, norm = [], []
    with torch.inference_mode():
        for average, source in own_parameters(averaged, model, shards):
            if average.is_floating_point() or average.is_complex():
                source = source.to(average.device)
                distance.append(_norm(average - source))
                norm.append(_norm(source).to(distance[0].device))
        total = torch.zeros(2)
        if norm:
            total = torch.stack(
                [torch.stack([part.to(norm[0].device) for part in parts]).norm() for parts in (distance, norm)]
            )
        if shards is not None:
            total.square_()
            all_reduce(total)
            total.sqrt_()
        return float(total[0] / total[1].clamp(min=torch.finfo(torch.float32).tiny))


def _norm(tensor: Tensor) -> Tensor:
    dtype = torch.float32 if tensor.dtype in (torch.float16, torch.bfloat16) else None
    return torch.linalg.vector_norm(tensor, dtype=dtype).float()


class AverageLog:
    """Follows averages through a run: momentum, mean age and drift, and the metrics of all kinds of weights.

    Args:
        model: The bare model that they follow.
        averages: The averages by name, the main one first.
    """

    def __init__(self, model: nn.Module, averages: dict[str, KeptAverage]) -> None:
        self._model, self._averages = model, averages

    def is_due(self, runner: Runner, batch_idx: int) -> bool:
        """Whether a LoggerHook may write a line after this iteration."""
        loggers = [hook for hook in runner.hooks if isinstance(hook, LoggerHook)]
        return any(hook.every_n_inner_iters(batch_idx, hook.interval) for hook in loggers) or (
            bool(loggers) and loggers[0].end_of_epoch(runner.train_dataloader, batch_idx)
        )

    def add_state(self, runner: Runner) -> None:
        """Hands scalars to the log and the visualizer.

        They are ``ema_momentum``, ``ema_mean_age`` and ``ema_drift``, and ``ema_<name>_mean_age`` and
        ``ema_<name>_drift`` of each further average.
        """
        hub, position = runner.message_hub, _position(runner, runner.iter + 1)
        for name, kept in self._averages.items():
            age = kept.record.mean_age()
            distance = drift(kept.average.module, self._model, shards_of(kept.average))
            scalars = dict(mean_age=math.nan if age is None else age, drift=distance)
            if name == MAIN:
                scalars = dict(momentum=kept.record.momentum(), **scalars)
                self._history(hub)['state'].append([position, scalars['momentum'], distance])
            else:
                self._further(hub, name)['drift'].append([position, distance])
            for scalar, value in scalars.items():
                # MMDetection's analyze_logs.py takes a line with a slash in a name for a validation's.
                hub.update_scalar(f'train/ema_{scalar if name == MAIN else f"{name}_{scalar}"}', value)

    def add_metrics(self, runner: Runner, measured: dict[str, dict[str, Any]]) -> None:
        """Keeps the first metric of a validation for the picture.

        Args:
            runner: The runner of the validation.
            measured: What was measured, by the weights: 'ema', 'raw', or the name of a further average.
        """
        numbers = {kind: _numbers(metrics) for kind, metrics in measured.items()}
        name = next((key for found in numbers.values() for key in found), None)
        if name is None:
            return
        history, position = self._history(runner.message_hub), _position(runner, runner.iter)
        history['metric'] = name
        history['metrics'].append([position, *(numbers.pop(kind, {}).get(name) for kind in ('ema', 'raw'))])
        for kind, found in numbers.items():
            self._further(runner.message_hub, kind)['metrics'].append([position, found.get(name)])

    def curves(self, runner: Runner) -> AverageCurves:
        """Returns what the picture shows."""
        history = self._history(runner.message_hub)
        unit = 'epoch' if isinstance(runner.train_loop, EpochBasedTrainLoop) else 'iteration'
        ages = {'average' if name == MAIN else name: kept.record.mean_age() for name, kept in self._averages.items()}
        known = ', '.join(f'{name} {rounded(age)}' for name, age in ages.items() if age is not None)
        said = f'Mean age after {int(self._averages[MAIN].average.steps):,} updates: {known} updates' if known else ''
        return AverageCurves(
            unit, history['metric'], history['metrics'], history['state'], history.get('further', {}), said
        )

    @staticmethod
    def _history(message_hub: MessageHub) -> dict[str, Any]:
        if HISTORY not in message_hub.runtime_info:
            message_hub.update_info(HISTORY, dict(metric='', metrics=[], state=[]))
        return message_hub.runtime_info[HISTORY]  # get_info() would return a copy

    def _further(self, message_hub: MessageHub, name: str) -> dict[str, list[Any]]:
        return self._history(message_hub).setdefault('further', {}).setdefault(name, dict(metrics=[], drift=[]))


def is_history(value: Any) -> bool:
    """Whether a value from a checkpoint is a history of an average."""
    if not isinstance(value, dict) or not isinstance(value.get('metric'), str):
        return False
    further = value.get('further', {})
    return (
        _has_points(value, ('metrics', 'state'), 3)
        and isinstance(further, dict)
        and all(isinstance(name, str) and _has_points(part, ('metrics', 'drift'), 2) for name, part in further.items())
    )


def _has_points(history: Any, parts: tuple[str, ...], length: int) -> bool:
    return (
        isinstance(history, dict)
        and all(isinstance(history.get(part), list) for part in parts)
        and all(
            isinstance(point, list)
            and len(point) == length
            and all(isinstance(number, (int, float, type(None))) for number in point)
            for part in parts
            for point in history[part]
        )
    )


def _numbers(metrics: dict[str, Any]) -> dict[str, float]:
    """Returns the metrics that are numbers, as Python's own, because a checkpoint stores them."""
    return {name: float(value) for name, value in metrics.items() if isinstance(value, float)}


def _position(runner: Runner, iterations: int) -> float:
    """Returns how far the training has come: in epochs if it counts them, otherwise in iterations."""
    by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
    return iterations / len(runner.train_dataloader) if by_epoch else iterations
