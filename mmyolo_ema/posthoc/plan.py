"""What a run will leave of its average, before it is made, and what can be made of that."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple, Optional

from mmengine.config import Config

from mmyolo_ema.checkpoint.weights import first_names, single_precision_bytes
from mmyolo_ema.ema_config import averages_by_name, hooks_named, package_of
from mmyolo_ema.posthoc.fit import fit
from mmyolo_ema.posthoc.gram import Snapshot
from mmyolo_ema.posthoc.reconstruction import USUAL_ERROR
from mmyolo_ema.posthoc.run import RAW_SCHEDULE, repeated
from mmyolo_ema.posthoc.targets import Target, target
from mmyolo_ema.run_plan import RunPlan
from mmyolo_ema.schedules import Schedule, in_updates

# Numbers that an optimizer keeps for each weight.
_MOMENTS = dict(SGD=1, Adam=2, AdamW=2, NAdam=2, RAdam=2)


class Kept(NamedTuple):
    """What a run leaves.

    Attributes:
        name: How that comes about: lines of a config, in words.
        snapshots: The averages and the raw weights.
        files: How many files they are in.
        bytes: What these take on the disk, about.
        multiplicities: How many names the tensors have that are averaged once for each of them; 1 for all others.
        advice: What to add to a config for it.
    """

    name: str
    snapshots: list[Snapshot]
    files: int
    bytes: int
    multiplicities: Sequence[int] = (1,)
    advice: str = ''

    def reconstruction_error(self, wanted: Target, updates: int) -> float:
        """Returns the largest :attr:`mmyolo_ema.posthoc.Fit.reconstruction_error` of an average made of it."""
        return max(
            fit(
                [repeated(snapshot, count) for snapshot in self.snapshots], wanted.schedule, updates
            ).reconstruction_error
            for count in self.multiplicities
        )


def kept_by(cfg: Config, plan: RunPlan, weights: dict[str, Any]) -> list[Kept]:
    """Returns what a config leaves, and what the SnapshotHooks would that are advised, if it has none.

    Args:
        cfg: The config.
        plan: Its run.
        weights: The state of its model.

    Raises:
        ValueError: If options of its hooks are of another form.
    """
    size = single_precision_bytes(weights)
    counts = Counter(first_names(weights).values()).values() if averages_by_name(plan.hook) else [1]
    settings = [as_configured(cfg, plan, size)]
    if not hooks_named(cfg.get('custom_hooks'), 'SnapshotHook'):
        settings += advice(plan, size, USUAL_ERROR)
    return [kept._replace(multiplicities=sorted(set(counts))) for kept in settings]


def as_configured(cfg: Config, plan: RunPlan, size: int) -> Kept:
    """Returns what the CheckpointHook and the SnapshotHook of a config leave; ``size`` is that of its weights."""
    checkpoints = _checkpoints(cfg, plan)
    optimizer = (cfg.get('optim_wrapper') or {}).get('optimizer') or {}
    hooks = [hook for _, hook in hooks_named(cfg.get('custom_hooks'), 'SnapshotHook')[:1]]
    horizons = [str(hook['second_horizon']) for hook in hooks if hook.get('second_horizon') is not None]
    main, *further = _tracks(plan, horizons)
    of_checkpoint = size * (1 + _count(plan, horizons) + _MOMENTS.get(str(optimizer.get('type')).split('.')[-1], 0))
    snapshots = [Snapshot(schedule, updates) for schedule in (main, RAW_SCHEDULE, *further) for updates in checkpoints]
    kept = Kept('as configured', snapshots, len(checkpoints), len(checkpoints) * of_checkpoint)
    for hook in hooks:
        slim = with_snapshots(plan, size, str(hook.get('interval', '1epoch')), horizons)
        kept = Kept(
            kept.name,
            list(dict.fromkeys(kept.snapshots + slim.snapshots)),
            kept.files + slim.files,
            kept.bytes + slim.bytes,
        )
    return kept


def _tracks(plan: RunPlan, horizons: Sequence[str]) -> list[Schedule]:
    """Returns the schedules of a run's averages, the main one's first, and of others that differ in the horizon.

    Those that are not averaged as the main one are left out, as they are when others are made.
    """
    options = {name: {**plan.hook, **own} for name, own in (plan.hook.get('averages') or {}).items()}
    further = [schedule for name, schedule in plan.further.items() if _selected(options[name]) == _selected(plan.hook)]
    return [
        plan.schedule,
        *further,
        *(target(horizon, plan.schedule, plan.updates, plan.updates_per_epoch).schedule for horizon in horizons),
    ]


def _selected(options: dict[str, Any]) -> list[Any]:
    return [options.get(name) or None for name in ('update_buffers', 'include', 'exclude')]


def _count(plan: RunPlan, horizons: Sequence[str]) -> int:
    """Returns how many averages are in a file."""
    return 1 + len(plan.further) + len(horizons)


def with_snapshots(plan: RunPlan, size: int, interval: str, horizons: Sequence[str] = ()) -> Kept:
    """Returns what a SnapshotHook leaves that keeps up to two averages of other horizons too."""
    every = max(round(in_updates(interval, plan.updates, plan.updates_per_epoch)), 1)
    moments = sorted({*range(every, plan.updates, every), plan.updates})
    tracks = _tracks(plan, horizons)
    snapshots = [Snapshot(schedule, updates) for schedule in tracks for updates in moments]
    options = f'interval={interval}' + ''.join(f', second_horizon={horizon}' for horizon in horizons[:1])
    text, name = f"dict(type='mmyolo_ema.SnapshotHook', {options})", f'SnapshotHook {options}'
    if len(horizons) > 1:
        numbers = ', '.join(
            f'{key}={getattr(tracks[-1], key):.4g}' for key in ('momentum', 'gamma') if hasattr(tracks[-1], key)
        )
        text, name = f'{text}, and averages=dict(long=dict({numbers})) for the EMAHook', f'{name}, long={horizons[1]}'
    return Kept(name, snapshots, len(moments), len(moments) * _count(plan, horizons) * size, advice=text)


def advice(plan: RunPlan, size: int, most_error: float) -> list[Kept]:
    """Returns the SnapshotHooks of largest interval that leave enough for half the horizon, and twice it if possible.

    The first keeps the averages of the config. If that has one, others keep one of a quarter of its horizon too, and
    one of four times it, where they take less of the disk.
    """
    momentum = getattr(plan.schedule, 'momentum', None)
    if momentum is None:
        return []
    horizon = 1 / momentum
    settings = [_widest(plan, size, (), (horizon / 2, 2 * horizon), most_error)]
    if package_of(plan.hook['type']) == 'mmyolo_ema' and not plan.further:
        others = f'{horizon / 4:.4g}', f'{4 * horizon:.4g}'
        settings += [_widest(plan, size, others[:count], (horizon / 2.8, 2 * horizon), most_error) for count in (1, 2)]
    kept = [setting for setting in settings if setting is not None]
    return [
        setting for place, setting in enumerate(kept) if all(setting.bytes < before.bytes for before in kept[:place])
    ]


def _widest(
    plan: RunPlan, size: int, others: Sequence[str], horizons: tuple[float, float], most_error: float
) -> Optional[Kept]:
    """Returns the snapshots of largest interval, by halving, that are good enough for two horizons, or the shorter."""
    if min([*horizons, *map(float, others)]) <= 1:
        return None
    wanted = [target(f'{horizon:.6g}', plan.schedule, plan.updates) for horizon in horizons]
    enough = None
    every = plan.updates / 2
    while every >= 1:
        kept = with_snapshots(plan, size, str(round(every)), others)
        is_good = [kept.reconstruction_error(average, plan.updates) <= most_error for average in wanted]
        if all(is_good):
            return kept
        enough = enough or (kept if is_good[0] else None)
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
