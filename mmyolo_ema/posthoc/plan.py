"""What a run will leave of its average, before it is made, and what can be made of that."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Optional

from mmengine.config import Config

from mmyolo_ema.ema_config import hooks_named
from mmyolo_ema.posthoc.fit import fit
from mmyolo_ema.posthoc.gram import Snapshot
from mmyolo_ema.posthoc.snapshots import RAW, repeated
from mmyolo_ema.posthoc.targets import Target, target
from mmyolo_ema.run_plan import RunPlan
from mmyolo_ema.schedules import in_updates

__all__ = ['Kept', 'advice', 'as_configured', 'with_snapshots']

# Numbers that an optimizer keeps for each weight.
_MOMENTS = dict(SGD=1, Adam=2, AdamW=2, NAdam=2, RAdam=2)


class Kept(NamedTuple):
    """What a run leaves.

    Attributes:
        name: How that comes about: lines of a config, in words.
        snapshots: The average, the raw weights, and a second average if there is one.
        files: How many files they are in.
        bytes: What these take on the disk, about.
        multiplicities: How many names the tensors have that are averaged once for each of them; 1 for all others.
    """

    name: str
    snapshots: list[Snapshot]
    files: int
    bytes: int
    multiplicities: Sequence[int] = (1,)

    def reconstruction_error(self, wanted: Target, updates: int) -> float:
        """Returns the largest :attr:`mmyolo_ema.posthoc.Fit.reconstruction_error` of an average made of it."""
        fits = (fit([repeated(snapshot, count) for snapshot in self.snapshots], wanted.schedule, updates)
                for count in self.multiplicities)
        return max(fit.reconstruction_error for fit in fits)


def as_configured(cfg: Config, plan: RunPlan, size: int) -> Kept:
    """Returns what the CheckpointHook and the SnapshotHook of a config leave.

    Args:
        cfg: The config.
        plan: Its run.
        size: Bytes of one set of its weights, in single precision.

    Raises:
        ValueError: If options of these hooks are of another form.
    """
    checkpoints = _checkpoints(cfg, plan)
    optimizer = (cfg.get('optim_wrapper') or {}).get('optimizer') or {}
    of_checkpoint = size * (2 + _MOMENTS.get(str(optimizer.get('type')).split('.')[-1], 0))
    kept = Kept('as configured', [Snapshot(schedule, updates) for schedule in (plan.schedule, RAW)
                                  for updates in checkpoints],
                len(checkpoints), len(checkpoints) * of_checkpoint)
    hooks = hooks_named(cfg.get('custom_hooks'), 'SnapshotHook')
    if not hooks:
        return kept
    _, hook = hooks[0]
    slim = with_snapshots(plan, size, str(hook.get('interval', '1epoch')), hook.get('second_horizon'))
    return kept._replace(
        snapshots=list(dict.fromkeys([*kept.snapshots, *slim.snapshots])), files=kept.files + slim.files,
        bytes=kept.bytes + slim.bytes)


def with_snapshots(plan: RunPlan, size: int, interval: str, second_horizon: Any = None) -> Kept:
    """Returns what a SnapshotHook leaves.

    Args:
        plan: The run.
        size: As for :func:`as_configured`.
        interval: The hook's, in words.
        second_horizon: The hook's. Defaults to None: there is no second average.

    Raises:
        ValueError: If an option is of another form, or the average has no momentum that a second could differ in.
    """
    every = max(round(in_updates(interval, plan.updates, plan.updates_per_epoch)), 1)
    moments = sorted({*range(every, plan.updates, every), plan.updates})
    schedules, name = [plan.schedule], f'interval={interval}'
    if second_horizon is not None:
        second = target(str(second_horizon), plan.schedule, plan.updates, plan.updates_per_epoch).schedule
        schedules, name = [plan.schedule, second], f'{name}, second_horizon={second_horizon}'
    snapshots = [Snapshot(schedule, updates) for schedule in schedules for updates in moments]
    return Kept(f'SnapshotHook {name}', snapshots, len(moments), len(snapshots) * size)


def advice(plan: RunPlan, size: int, most_error: float) -> list[Kept]:
    """Returns the SnapshotHooks of largest interval by which half and twice the horizon can be made, and more.

    Args:
        plan: The run.
        size: As for :func:`as_configured`.
        most_error: Largest reconstruction error that is good enough.

    Returns:
        One with one average, for half the horizon, and one with a second, of a quarter of it, for what is between the
        two; each also for twice the horizon if the run is long enough for that. Fewer if there are none.
    """
    momentum = getattr(plan.schedule, 'momentum', None)
    if momentum is None:
        return []
    horizon = 1 / momentum
    widest = [_widest(plan, size, None, horizon / 2, 2 * horizon, most_error),
              _widest(plan, size, f'{horizon / 4:.4g}', horizon / 2.8, 2 * horizon, most_error)]
    return [kept for kept in widest if kept is not None]


def _widest(plan: RunPlan, size: int, second_horizon: Optional[str], shorter: float, longer: float,
            most_error: float) -> Optional[Kept]:
    """Returns the snapshots of largest interval, by halving, that are good enough for two horizons, or the shorter."""
    if shorter <= 1 or (second_horizon is not None and float(second_horizon) <= 1):
        return None
    enough = None
    every = plan.updates / 2
    while every >= 1:
        kept = with_snapshots(plan, size, str(round(every)), second_horizon)
        wanted = [target(f'{horizon:.6g}', plan.schedule, plan.updates) for horizon in (shorter, longer)]
        good = [kept.reconstruction_error(average, plan.updates) <= most_error for average in wanted]
        if all(good):
            return kept
        if good[0] and enough is None:
            enough = kept
        every /= 2
    return enough


def _checkpoints(cfg: Config, plan: RunPlan) -> list[int]:
    """Returns after how many updates of the average a config saves checkpoints that stay."""
    hook = (cfg.get('default_hooks') or {}).get('checkpoint', dict(interval=1))
    if hook is None:
        return []
    by_epoch, interval, keep = hook.get('by_epoch', True), hook.get('interval', -1), hook.get('max_keep_ckpts', -1)
    for name, value in dict(interval=interval, max_keep_ckpts=keep).items():
        if not isinstance(value, int):
            raise ValueError(f'default_hooks.checkpoint.{name} must be an integer, but got {value!r:.80}')
    if by_epoch and plan.updates_per_epoch is None:
        raise ValueError('checkpoints are saved by epochs, whose length is not known: pass --dataset-size')
    unit = (plan.updates_per_epoch or 1) if by_epoch else 1 / plan.iterations
    in_all = plan.begin + plan.updates
    counts = range(interval, int(in_all / unit) + 1, interval) if interval > 0 else []
    saved = {round(count * unit) for count in counts}
    if hook.get('save_last', True):
        saved.add(in_all)
    begun = sorted(updates - plan.begin for updates in saved if plan.begin < updates <= in_all)
    return begun[-keep:] if keep > 0 else begun
