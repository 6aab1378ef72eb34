"""Exponential moving average of a model's weights, with a momentum that ramps down."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from numbers import Integral, Real
from typing import Any, Optional, Union

import torch
from mmdet.models.layers import ExpMomentumEMA as MMDetExpMomentumEMA
from mmengine.dist import get_world_size
from mmengine.logging import print_log
from mmengine.model import BaseAveragedModel
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from mmyolo_ema.models.fully_sharded import LocalParts, is_cut, is_fully_sharded, reshard
from mmyolo_ema.models.own_copy import own_copy
from mmyolo_ema.models.precision import floating_dtype, widen
from mmyolo_ema.models.selection import Selection
from mmyolo_ema.models.shards import AnyShards, Shards
from mmyolo_ema.models.tensor_plan import Group, TensorPlan, is_averaged
from mmyolo_ema.models.tensor_references import tensor_references, unwrap
from mmyolo_ema.registry import MODELS
from mmyolo_ema.schedules import Ramp, Schedule, instead_of_decay

# An average that stops this far (relatively) from its source is not an average of it.
_WORST_STALL = 0.01

_NARROW, _WIDE = ('float16', 'bfloat16'), ('float32', 'float64')


@MODELS.register_module()
class ExpMomentumEMA(MMDetExpMomentumEMA):
    r"""Exponential moving average of a model, with the momentum schedule of YOLOv5, YOLOX and RTMDet.

    .. code-block:: none

        step 0:  averaged = source
        step t:  averaged = (1 - mu_t) * averaged + mu_t * source,   if t is a multiple of interval
                 mu_t = (1 - momentum) * exp(-(1 + t) / gamma) + momentum

    Each distinct tensor is averaged once per step, also where the model holds it under several names. Tensors
    that are not averaged (integers, flags, buffers that no checkpoint holds or that belong to quantization and, without
    ``update_buffers``, all buffers) are copied at every step. A tensor that is re-assigned in the model or in the
    average is followed; a buffer that has another shape then starts anew, as a copy.

    A parameter that needs no gradients and equals its average is not averaged: from the first update on the average
    shares the model's memory of it, so that a write to either is one to both, until an optimizer is about to step with
    gradients of it.

    The checkpoint format, the constructor and the errors are those of MMDetection's class of the same name.

    Args:
        model (nn.Module): The model to average. Wrappers for distributed training and ``torch.compile`` are seen
            through. A copy of it is made, which shares what is no child of the model: modules and tensors that it keeps
            as plain attributes, such as a teacher.
        momentum (float): Weight of the newest source once the ramp is over, in (0, 1); its inverse is the horizon
            in updates. Not the ``1 - momentum`` that other packages call decay. Defaults to 0.0002.
        gamma (float): Length scale of the ramp in updates, above 0. Defaults to 2000.
        interval (int): Updates between two moves of the average. Defaults to 1.
        device (torch.device, optional): Where the average is kept. Defaults to None, the model's device.
        update_buffers (bool): Whether persistent floating buffers, such as the statistics of BatchNorm, are
            averaged too. Defaults to False: they are copied.
        include (list[str], optional): Regular expressions, of which :func:`re.search` must find one in the name of a
            parameter or buffer that is averaged, frozen or not; the others are copied at every update. Defaults to
            None: all.
        exclude (list[str]): Regular expressions; what they are found in is copied instead. A shared tensor is excluded
            if one of its names is. Defaults to none.
        dtype (str | torch.dtype, optional): 'float32' or 'float64': in which the average is kept of weights that have
            fewer bits, such as bfloat16. What is copied or frozen keeps the model's. Defaults to None: the model's.
        save_dtype (str | torch.dtype, optional): In which the EMAHook of this package stores an average that is kept
            in ``dtype``. Defaults to None: the model's.
        shard (bool): Whether each of several processes that train one model, as under DistributedDataParallel, keeps
            and averages a part of the parameters only, of equal numbers of elements. ``module`` then reads as NaN
            between :meth:`share_out` and :meth:`gather`. Nothing changes for one process. The average of a model that
            torch has cut, by ``fully_shard`` (FSDP2) or FullyShardedDataParallel, is always shared out, as the model
            is, and from the start. Defaults to False.

    Attributes:
        module (nn.Module): The averaged model.
        selection (Selection): ``include`` and ``exclude``.
        steps (Tensor): Number of updates made, an int64 scalar on the CPU.
        shards (Shards): What this process has of an average that is shared out; None while it is whole.
        schedule (Schedule): The momentum of each update, see :mod:`mmyolo_ema.schedules`. A subclass with another
            schedule overrides this property.

    Raises:
        TypeError: If an argument has a wrong type or is not known, such as ``decay``. If a subclass overrides
            ``avg_func`` and not ``update_parameters``, which does not call it.
        ValueError: If ``interval`` is below 1 or ``gamma`` is infinite. If a regular expression is none or matches no
            name, or no parameter is left to average. If a dtype is another one, or ``save_dtype`` comes without
            ``dtype``. If there is no such device.
        AssertionError: If ``momentum`` is not in (0, 1) or ``gamma`` is not above 0, as MMDetection's class does.

    Example:
        >>> import torch
        >>> from mmyolo_ema import ExpMomentumEMA
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> averaged = ExpMomentumEMA(model, momentum=0.1, gamma=1)
        >>> for value in (0., 1.):
        ...     _ = torch.nn.init.constant_(model.weight, value)
        ...     averaged.update_parameters(model)
        >>> round(averaged.module.weight.item(), 4)  # 0.9 * exp(-2) + 0.1
        0.2218
    """

    steps: Tensor
    # What an average has that was pickled before there was a choice.
    selection = Selection()
    dtype: Optional[torch.dtype] = None
    save_dtype: Optional[torch.dtype] = None
    shard = False
    shards: Optional[AnyShards] = None
    # Whether the model is cut by FSDP.
    _is_cut = False
    # What was found out about the tensors, see _forget().
    _plan: Optional[TensorPlan]
    _warned: set[torch.dtype]

    def __init__(
        self,
        model: nn.Module,
        momentum: float = 0.0002,
        gamma: float = 2000,
        interval: int = 1,
        device: Optional[torch.device] = None,
        update_buffers: bool = False,
        include: Optional[Sequence[str]] = None,
        exclude: Sequence[str] = (),
        dtype: Union[str, torch.dtype, None] = None,
        save_dtype: Union[str, torch.dtype, None] = None,
        shard: bool = False,
        **other: Any,
    ) -> None:
        if other:
            raise TypeError(_unexpected(*next(iter(other.items()))))
        kind = type(self)
        if kind.avg_func is not ExpMomentumEMA.avg_func and kind.update_parameters is ExpMomentumEMA.update_parameters:
            raise TypeError(
                f'{kind.__name__} overrides avg_func, which an update does not call: override schedule, or '
                'update_parameters too'
            )
        _check_arguments(model, momentum, gamma, interval, update_buffers, shard)
        selection = Selection(include, exclude)
        selection.check(unwrap(model))
        # MMEngine's class would copy the model by a plain deepcopy, which fails on a process group, and keep
        # references to its tensors that go stale. It gets an empty module in its place.
        # The count of updates stays on the CPU, where reading it waits for nothing.
        super().__init__(nn.Module(), momentum, gamma, interval, update_buffers=update_buffers)
        del self.avg_parameters
        self._is_cut = is_fully_sharded(unwrap(model))
        if self._is_cut and device is not None:
            raise ValueError(
                f'device={device!r} is not for a model that FSDP has cut: its average is where the '
                'parts of the model are, and on the CPU while it is whole'
            )
        self.selection, self.shard = selection, shard or self._is_cut
        self.dtype = floating_dtype('dtype', dtype, _WIDE)
        self.save_dtype = floating_dtype('save_dtype', save_dtype, (*_NARROW, *_WIDE))
        if self.save_dtype is not None and self.dtype is None:
            raise ValueError(f'save_dtype={save_dtype!r} is for an average that is kept in another dtype: set that too')
        self.module = own_copy(unwrap(model)).requires_grad_(False)
        if device is not None:
            try:
                self.module.to(device)
            except (AssertionError, RuntimeError, TypeError) as error:  # what torch raises where it has none such
                raise ValueError(f'device={device!r} cannot hold the average: {error}') from error
        self._widen()
        if self._is_cut:
            self.shards = LocalParts(_cut_pairs(self.module, unwrap(model)), is_new=True)
        self._forget()

    def update_parameters(self, model: nn.Module) -> None:
        """Moves the average towards a model and counts one step.

        Args:
            model (nn.Module): The model to follow; it holds the tensors that the averaged model was made with, by
                name, on any device and in any dtype; parameters in their shape. Wrappers are seen through.

        Raises:
            ValueError: If the names of their tensors or the shapes of parameters differ. The average is left as it
                was.
        """
        _update([self], model)

    def share_out(self, model: nn.Module) -> None:
        """Leaves this process its part of the average if it is to be ``shard``; the next update would do so too.

        All processes must call this. It does not communicate.

        Args:
            model (nn.Module): The model that the average follows, equal in all processes.
        """
        if self._is_to_be_shared:
            self._make_plan(model)

    def gather(self) -> None:
        """Makes an average that is shared out whole again. All processes must call this."""
        if self.shards is not None:
            self.shards.gather()
            self.shards = None
            self._part()

    @property
    def _is_to_be_shared(self) -> bool:
        return self.shards is None and (self._is_cut or (self.shard and get_world_size() > 1))

    def current_plan(self, model: nn.Module) -> TensorPlan:
        """Returns which tensor of the average follows which of a model, found anew if that has changed."""
        plan = self._plan
        return plan if plan and plan.holds(self.module, model, self.update_buffers) else self._make_plan(model)

    def _make_plan(self, model: nn.Module) -> TensorPlan:
        if self._is_cut:
            reshard(unwrap(model))
            if self.shards is None:
                self.shards = LocalParts(_cut_pairs(self.module, unwrap(model)))
        arguments = self.module, model, self.update_buffers, self.selection, self.dtype
        plan = TensorPlan(*arguments, self.shards)
        if self._is_to_be_shared:
            self.shards = Shards(plan.divisible)
            plan = TensorPlan(*arguments, self.shards)
        self._plan = plan
        self._warn_of_stall(plan.averages)
        return plan

    def _check_whole(self) -> None:
        if self.shards is not None:
            raise RuntimeError(
                'the average is shared out among the processes (by shard=True or FSDP), and this '
                'one has its own part only: call gather() in all processes before it is used, copied '
                'or stored. The EMAHook does so where a validation or a CheckpointHook needs it.'
            )

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the averaged model."""
        self._check_whole()
        return super().forward(*args, **kwargs)

    @property
    def schedule(self) -> Schedule:
        """The momentum of each update. Subclasses with another schedule override this."""
        if type(self).momentum_at is not ExpMomentumEMA.momentum_at:
            return _OfMethod(self)
        return self._ramp

    def momentum_at(self, step: int) -> float:
        """Returns the weight of the source in an update that moves the average.

        Args:
            step (int): Number of updates before this one, at least 1: step 0 copies.
        """
        is_own = type(self).schedule is not ExpMomentumEMA.schedule
        return (self.schedule if is_own else self._ramp).momentum_at(step)

    @property
    def _ramp(self) -> Ramp:
        return Ramp(self.momentum, self.gamma, self.interval)

    def avg_func(self, averaged_param: Tensor, source_param: Tensor, steps: int) -> None:
        """Moves one tensor; kept for callers of MMEngine's interface, an update makes one call for all tensors."""
        averaged_param.lerp_(source_param, self.momentum_at(int(steps)))

    def _warn_of_stall(self, groups: list[Group]) -> None:
        """Warns, once for a dtype, if its precision stops the average before it has reached its source."""
        for dtype in {group.averaged[0].dtype for group in groups} - self._warned:
            stall = torch.finfo(dtype).eps / (2 * self.momentum)
            if stall > _WORST_STALL:
                self._warned.add(dtype)
                print_log(
                    f'The average is kept in {dtype}, too coarse for momentum {float(self.momentum):g}: a weight '
                    f"stops moving within {stall:.2g} times its own size of the model's (machine epsilon / (2 * "
                    "momentum)). Set dtype='float32' for the average, keep the weights in float32 (AmpOptimWrapper "
                    'computes in half precision and does so), or choose a momentum above '
                    f'{torch.finfo(dtype).eps / (2 * _WORST_STALL):.2g}.',
                    logger='current',
                    level=logging.WARNING,
                )

    def unshare(self) -> None:
        """Gives the average memory of its own for all weights, so that what is written to it does not change the model.

        The next update shares those again that are frozen and equal. An average that is shared out among processes is
        made whole; then all of them must call this.
        """
        self.gather()
        self._part()
        self._widen()

    def _part(self) -> None:
        """Gives frozen weights memory of their own, and drops the plan that says who shares the model's."""
        if self._plan is not None:
            self._plan.shared.part()
            self._plan = None

    def _widen(self) -> None:
        """Converts what may be averaged, so that a file in that dtype loses nothing."""
        for name, reference in tensor_references(self.module):
            tensor = reference.tensor
            if is_averaged(tensor, reference, self.update_buffers) and self.selection.has([name]):
                widen(tensor, self.dtype)

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._check_whole()
        super()._save_to_state_dict(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any) -> None:
        self.unshare()
        super()._load_from_state_dict(*args)

    def _forget(self) -> None:
        """Drops what was found out about the tensors; the next update finds it again."""
        self._plan = None
        self._warned = set()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._forget()

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out what was found out: a copy or a pickle of it would follow tensors that nobody updates."""
        self._check_whole()
        return {key: value for key, value in super().__getstate__().items() if key != '_plan'}


def update_together(averages: Iterable[BaseAveragedModel], model: nn.Module) -> None:
    """Makes one update of several averages of a model.

    On a CPU this is faster than an update of each: all move a part of their weights before the next part comes from
    memory.

    Args:
        averages: The averages, of any class.
        model: The model to follow, as for :meth:`ExpMomentumEMA.update_parameters`.
    """
    ours = []
    for average in averages:
        # Neither its class nor somebody who put a function into it has another.
        if getattr(average.update_parameters, '__func__', None) is ExpMomentumEMA.update_parameters:
            ours.append(average)
        else:
            average.update_parameters(model)
    _update(ours, model)


def _update(averages: list[ExpMomentumEMA], model: nn.Module) -> None:
    plans = [average.current_plan(model) for average in averages]
    momenta = [average.schedule(int(average.steps)) for average in averages]
    # no_grad() would do, but torch still looks at each tensor then, whether it needs gradients.
    with torch.inference_mode():
        for groups in zip_longest(*(plan.averages for plan in plans)):
            for group, momentum in zip(groups, momenta):
                if group is not None:
                    group.move(momentum)
        for average, plan in zip(averages, plans):
            for group in plan.copies:
                group.move(1)
            average.steps.add_(1)
    for plan in plans:
        plan.copy_extra_states()


@dataclass(frozen=True)
class _OfMethod(Schedule):
    """The schedule of a subclass that overrides ``momentum_at`` instead of ``schedule``."""

    average: ExpMomentumEMA

    @property
    def interval(self) -> int:  # type: ignore[override]
        return self.average.interval

    def momentum_at(self, step: int) -> float:
        return self.average.momentum_at(step)

    def __str__(self) -> str:
        return f'the momentum_at of {type(self.average).__name__}'


def _cut_pairs(averaged: nn.Module, model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Returns the distinct tensors of a model that are cut, each behind the one of its average."""
    averages = dict(tensor_references(averaged))
    pairs: dict[int, tuple[Tensor, Tensor]] = {}
    for name, reference in tensor_references(model):
        if is_cut(reference.tensor) and name in averages:
            pairs.setdefault(id(reference.tensor), (averages[name].tensor, reference.tensor))
    return [*pairs.values()]


def _unexpected(name: str, value: object) -> str:
    said = f'ExpMomentumEMA() got an unexpected keyword argument {name!r}'
    if name != 'decay':
        return (
            f'{said}; it takes model, momentum, gamma, interval, device, update_buffers, include, exclude, dtype, '
            'save_dtype and shard'
        )
    return f'{said}; {instead_of_decay(value)}'


def _check_arguments(
    model: nn.Module, momentum: float, gamma: float, interval: int, update_buffers: bool, shard: bool
) -> None:
    """Raises for wrong arguments that MMDetection's class would accept and fail on later, or report badly."""
    if not isinstance(model, nn.Module):
        raise TypeError(f'model must be an nn.Module, but got {type(model).__name__}: {model!r:.80}')
    lazy = [name for name, parameter in model.named_parameters() if is_lazy(parameter)]
    if lazy:
        raise ValueError(
            f'the model has parameters without a shape yet, such as {lazy[0]}: pass one batch through it '
            'before it is averaged'
        )
    for name, value in (('momentum', momentum), ('gamma', gamma)):
        if not isinstance(value, Real):
            raise TypeError(f'{name} must be a number, but got {value!r}')
    if gamma == float('inf'):
        raise ValueError(f'gamma must be finite, but got {gamma}: the average would always equal the model')
    if not isinstance(interval, Integral):
        raise TypeError(f'interval must be an integer, but got {interval!r}')
    if interval < 1:
        raise ValueError(f'interval must be at least 1, but got {interval}')
    for name, flag in (('update_buffers', update_buffers), ('shard', shard)):
        if not isinstance(flag, bool):
            raise TypeError(f'{name} must be True or False, but got {flag!r}')
