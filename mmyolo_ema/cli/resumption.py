"""Whether a run can go on from a checkpoint, found out before anything is written."""

import logging
from copy import deepcopy
from numbers import Integral, Real
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.optim import build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS
from torch import Tensor, nn

from mmyolo_ema import checkpoint
from mmyolo_ema.cli.config import build_model
from mmyolo_ema.hooks.average_log import HISTORY, is_history


def check_resumable(content: dict[str, Any], cfg: Config) -> None:
    """Raises if a run cannot go on from a checkpoint.

    MMEngine takes what it says as it is, and would stop later, or go on with something else.

    Raises:
        ValueError: If the checkpoint lacks a part, holds one in another form, or is of another model.
    """
    checkpoint.check_no_program(content)
    missing = [
        part
        for part in ('meta', 'message_hub', 'optimizer')
        if not (content.get(part) and isinstance(content[part], dict))
    ]
    if not missing:
        missing = [f'meta.{count}' for count in ('epoch', 'iter') if type(content['meta'].get(count)) is not int]
    if missing:
        raise ValueError(
            f'to resume, it would have to hold {", ".join(missing)}. To start anew from its weights, '
            'leave --resume out and pass --cfg-options load_from=...'
        )
    _check_meta(content['meta'])
    _check_message_hub(content['message_hub'])
    model = build_model(cfg)
    checkpoint.load_all(checkpoint.averaged_weights(content), model)
    if checkpoint.has_ema(content):
        checkpoint.load_all(checkpoint.raw_weights(content), model)
    if is_main_process():  # for the memory that it takes
        _check_optimizer(content, cfg, model)


def _refuse(place: str, value: Any, wanted: str) -> None:
    raise ValueError(f'its {place} is {value!r:.80}, but must be {wanted}')


def _check_meta(meta: dict[str, Any]) -> None:
    for count in ('epoch', 'iter'):
        if meta[count] < 0:
            _refuse(f'meta.{count}', meta[count], 'a count')
    seed = meta.get('seed')
    if not (seed is None or (isinstance(seed, Integral) and 0 <= int(seed) < 2**32)):
        _refuse('meta.seed', seed, 'an integer from 0 to 2**32 - 1, or None')


def _check_message_hub(hub: dict[str, Any]) -> None:
    for part in ('log_scalars', 'runtime_info', 'resumed_keys'):
        if not (isinstance(hub.get(part), dict) and all(isinstance(name, str) for name in hub[part])):
            _refuse(f'message_hub.{part}', hub.get(part), 'a dictionary with names')
    for name, value in hub['runtime_info'].items():
        if name.startswith('best_score') and not _is_number(value):
            _refuse(f'message_hub.runtime_info.{name}', value, 'a number')
        if name == HISTORY and not is_history(value):
            _refuse(f'message_hub.runtime_info.{name}', value, 'metric, metrics and state')
    for name in (*hub['log_scalars'], *hub['runtime_info']):
        # MMEngine stores no others.
        if hub['resumed_keys'].get(name, True) is not True:
            _refuse(f'message_hub.resumed_keys.{name}', hub['resumed_keys'][name], 'True')


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) or (isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex())


def _check_optimizer(content: dict[str, Any], cfg: Config, model: nn.Module) -> None:
    """Tries the states of optimizer and schedulers in a step of their own, whose gradients are 0."""
    try:
        _step(cfg, model, content)
    except Exception as error:  # what an optimizer raises is up to it
        try:
            _step(cfg, model, {})
        except Exception:  # it takes no step here, such as one for a GPU
            return
        raise ValueError(
            "the state of its optimizer or schedulers does not fit the config's: "
            f'{type(error).__name__}: {error!s:.200}'
        ) from error


def _step(cfg: Config, model: nn.Module, content: dict[str, Any]) -> None:
    logging.disable(logging.INFO)  # a constructor tells how it treats each parameter
    try:
        wrapper = build_optim_wrapper(model, deepcopy(cfg.optim_wrapper))
    finally:
        logging.disable(logging.NOTSET)
    configured = cfg.get('param_scheduler') or []
    defaults = dict(optimizer=wrapper, epoch_length=1)
    schedulers = [
        PARAM_SCHEDULERS.build(dict(scheduler), default_args=defaults)
        for scheduler in ([configured] if isinstance(configured, dict) else configured)
    ]
    if 'optimizer' in content:
        wrapper.load_state_dict(content['optimizer'])
    for scheduler, state in zip(schedulers, content.get('param_schedulers', ())):
        _check_scheduler(scheduler, state)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    wrapper.optimizer.step()


def _check_scheduler(scheduler: Any, state: dict[str, Any]) -> None:
    """Raises if a scheduler would get another kind of value than it has, or one in the place of a method."""
    for name, value in state.items():
        own = getattr(scheduler, name, None)
        if value is not None and own is not None and _kind(value) != _kind(own):
            raise TypeError(f'{name} of a scheduler is {value!r:.80} in the place of {own!r:.80}')


def _kind(value: Any) -> Any:
    if isinstance(value, Real):
        return Real
    return [_kind(item) for item in value] if isinstance(value, (list, tuple)) else type(value)
