"""When weights are averaged, evaluated, saved and loaded."""

import logging
import math
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Optional, Union

from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook, RuntimeInfoHook
from mmengine.hooks import EMAHook as MMEngineEMAHook
from mmengine.logging import print_log
from mmengine.model import BaseAveragedModel
from mmengine.runner import BaseLoop, Runner
from torch import nn

from mmyolo_ema._upstream import averaging_has_begun, evaluation_loops, has_training_loop
from mmyolo_ema.checkpoint import check_no_program, has_ema, updates_in
from mmyolo_ema.checkpoint.weights import further_averages
from mmyolo_ema.ema_config import SECOND_HORIZON, ema_type_of
from mmyolo_ema.ema_options import check_averages, kinds_to_evaluate
from mmyolo_ema.files import replace
from mmyolo_ema.hooks.average_log import AverageLog
from mmyolo_ema.hooks.average_picture import draw_average_curves
from mmyolo_ema.hooks.average_record import AverageRecord
from mmyolo_ema.hooks.finite_check import FiniteCheck, NotFinite
from mmyolo_ema.hooks.horizon import Horizon
from mmyolo_ema.hooks.kept_average import MAIN, KeptAverage, update
from mmyolo_ema.hooks.loading_errors import share_loading_errors
from mmyolo_ema.hooks.local_files import load_local, store_local
from mmyolo_ema.hooks.optimizer_steps import OptimizerSteps, accumulative_counts
from mmyolo_ema.hooks.own_files import forget_other_files
from mmyolo_ema.hooks.refusals import check_run
from mmyolo_ema.hooks.resumption import is_resumed
from mmyolo_ema.hooks.run_length import updates_at_end
from mmyolo_ema.hooks.same_start import check_same_start
from mmyolo_ema.hooks.second_pass import validate_once_more
from mmyolo_ema.hooks.shared_tensors import advice_on_shared_tensors
from mmyolo_ema.hooks.sharing import check_sharing, gather, shards_of, share_out, whole_on_main
from mmyolo_ema.hooks.stored_average import beginning, copied_state, exchange, load, store, synchronize_buffers, unfit
from mmyolo_ema.hooks.weight_swap import WeightSwap
from mmyolo_ema.models.flat_parts import is_saved_in_parts
from mmyolo_ema.models.fully_sharded import is_fully_sharded
from mmyolo_ema.models.tensor_references import unwrap
from mmyolo_ema.printing import printable
from mmyolo_ema.processes import raised_by_all
from mmyolo_ema.registry import HOOKS
from mmyolo_ema.schedules import advice

# What the names of the raw weights' metrics end in, where both kinds are validated.
_ORIGIN = '_origin'
_CURVES = 'ema_curves.png'


@HOOKS.register_module()
class EMAHook(MMEngineEMAHook):
    """Averages a model's weights while it trains, and evaluates, saves and loads the average.

    Takes the place of MMEngine's hook of the same name. Where that is right, trained weights and checkpoints are the
    same, and a run of either resumes with the other. What differs:

    * The average is updated once for each optimizer step, not for each iteration.
    * The average, the model, or both are validated.
    * Before a validation and before a checkpoint is saved, the floating buffers of the average are made equal on all
      processes: their mean.
    * A step that left NaN or infinity in a parameter is not averaged. A buffer that holds any keeps its last finite
      average.
    * Whatever ends a validation, the model has its own weights afterwards.
    * Before ``begin_iter`` or ``begin_epoch`` nothing is copied: the model stands for its average.
    * The log has ``ema_momentum``, ``ema_mean_age`` (in updates) and ``ema_drift`` (the L2 distance of average and
      model, relative to the model's norm); the work directory gets ``ema_curves.png``.

    A test run makes no average: the file has it where the runner looks for weights.

    Args:
        ema_type (str, optional): Class of the average. Defaults to 'ExponentialMovingAverage', as in MMEngine's hook,
            and with ``mean_age`` to 'mmyolo_ema.ExpMomentumEMA', this package's.
        strict_load (bool): Whether a checkpoint must hold exactly the tensors of the model. Otherwise those that fit
            are loaded and the others are named. Defaults to False.
        begin_iter (int): Iteration, counted from 1, after which the average starts as a copy of the model; 0 and 1
            are the same. Not together with ``begin_epoch``. Defaults to 0.
        begin_epoch (int): Epoch, counted from 1, in whose first iteration the average starts; 0 and 1 are the same.
            Defaults to 0.
        evaluate_on_ema (bool): Whether the average is validated, and tested after a training; otherwise the model is.
            Defaults to True.
        evaluate_on_origin (bool): Whether the model is validated beside the average, in a pass of its own before it.
            Its metrics get names that end in ``_origin``. Defaults to False.
        skip_nonfinite (bool): Whether steps that leave NaN or infinity in a parameter are left out, and stored buffers
            that hold any. Costs a pass over the weights, and a wait for the GPU, in each step. Defaults to True.
        mean_age (int | float | str, optional): How old the weights in the average shall be at the end of the run, on
            average: ``'4%'`` of the run, ``'2epochs'``, or ``500`` updates. The hook works momentum and gamma out; a
            run that resumes keeps those of its checkpoint. Defaults to None: they are given, or the class's own.
        averages (dict[str, dict], optional): Further averages by name, such as ``dict(short=dict(mean_age='1%'))``: a
            ``mean_age`` or ``momentum``, and options of the average's class that differ from the main one's. Each takes
            the memory of one more model. Defaults to None: there are none.
        evaluate (list[str], optional): Which weights are validated: ``'ema'``, ``'raw'``, names of ``averages``, and
            ``'second'`` for a SnapshotHook's ``second_horizon``, each in a pass of its own. Metrics of the further ones
            end in ``_`` and the name. Defaults to None: what ``evaluate_on_ema`` and ``evaluate_on_origin`` say.
        **kwargs: For the class of the average: momentum, gamma, interval, update_buffers; and for this package's
            include, exclude, dtype, save_dtype, and shard, which shares the average out among processes.

    Raises:
        TypeError: If a flag is not True or False, or a beginning is not an integer.
        ValueError: If ``mean_age`` is of another form, or momentum or gamma are given too. When a checkpoint does not
            fit and ``strict_load`` is set. At the start of a training, if there is another EMAHook, the model is
            sharded (but by torch's FSDP, with a strategy that saves all of it), a strategy saves without the hooks,
            ``shard`` is set without DistributedDataParallel, or no momentum gives the mean age.
        AssertionError: If both or a negative begin are given, as MMEngine's hook does.

    Example:
        >>> # in a config
        >>> custom_hooks = [dict(type='mmyolo_ema.EMAHook', mean_age='4%', update_buffers=True,
        ...                      evaluate_on_origin=True)]
    """

    # After YOLOX's hooks, which have 48, and before those that log and save.
    priority = 49

    def __init__(
        self,
        ema_type: Optional[str] = None,
        strict_load: bool = False,
        begin_iter: int = 0,
        begin_epoch: int = 0,
        evaluate_on_ema: bool = True,
        evaluate_on_origin: bool = False,
        skip_nonfinite: bool = True,
        mean_age: Union[int, float, str, None] = None,
        averages: Optional[dict[str, dict[str, Any]]] = None,
        evaluate: Optional[Sequence[str]] = None,
        **kwargs: Any,
    ) -> None:
        flags = dict(
            strict_load=strict_load,
            evaluate_on_ema=evaluate_on_ema,
            evaluate_on_origin=evaluate_on_origin,
            skip_nonfinite=skip_nonfinite,
        )
        for name, value in flags.items():
            if not isinstance(value, bool):
                raise TypeError(f'{name} must be True or False, but got {value!r}')
        for name, number in dict(begin_iter=begin_iter, begin_epoch=begin_epoch).items():
            if not isinstance(number, int):
                raise TypeError(f'{name} must be an integer, but got {number!r}')
        ema_type = ema_type_of(dict(ema_type=ema_type, mean_age=mean_age))
        super().__init__(ema_type, strict_load, begin_iter, begin_epoch, **kwargs)
        self._kept = {MAIN: KeptAverage(MAIN, self.ema_cfg, mean_age)}
        check_averages(averages)
        # What the options of a further one do not say is the main one's, but for its schedule.
        common = {key: value for key, value in self.ema_cfg.items() if key not in ('momentum', 'gamma')}
        for name, options in (averages or {}).items():
            own = {key: value for key, value in options.items() if key != 'mean_age'}
            self._kept[name] = KeptAverage(name, dict(common, **own), options.get('mean_age'))
        evaluated = kinds_to_evaluate(evaluate, evaluate_on_ema, evaluate_on_origin, averages or {})
        self.evaluate_on_ema = 'ema' in evaluated
        # The others are validated in a pass of their own.
        self._own_passes = [kind for kind in evaluated if kind != ('ema' if self.evaluate_on_ema else 'raw')]
        self.skip_nonfinite = skip_nonfinite
        #: Steps that were not averaged because of NaN or infinity.
        self.skipped = 0
        #: Buffers that the last update left as they were, because the model's are not finite.
        self.kept_buffers: list[str] = []
        self._said_kept: set[str] = set()
        self._advice: list[str] = []
        self._runner: Callable[[], Optional[Runner]] = lambda: None
        # Once the averages are made.
        self._src_model: Optional[nn.Module] = None
        self._swap: Optional[WeightSwap] = None
        # What those passes measured, by the weights.
        self._measured: dict[str, dict[str, Any]] = {}
        self._guarded_loops: weakref.WeakSet[BaseLoop] = weakref.WeakSet()

    @property
    def ema_model(self) -> BaseAveragedModel:
        """The average of the run's model; made when it is first needed, so that a test makes none."""
        self._make_averages()
        return self._kept[MAIN].average

    @property
    def averages(self) -> dict[str, BaseAveragedModel]:
        """The further averages of the run's model, by name; made with the main one."""
        return {} if self._src_model is None else dict([*self._averages().items()][1:])

    @property
    def record(self) -> AverageRecord:
        """What made the average."""
        return self._kept[MAIN].record

    @property
    def src_model(self) -> nn.Module:
        """The bare model that is averaged."""
        return self._make_averages()

    def describe(self) -> dict[str, Any]:
        """Returns what a checkpoint says of the averages under ``meta['mmyolo_ema']``, as plain data."""
        about, *further = (kept.record.as_meta() for kept in self._kept.values())
        return dict(about, averages=dict(zip(self.averages, further))) if further and about['updates'] else about

    def before_run(self, runner: Runner) -> None:
        """Makes the average if the run trains.

        Args:
            runner (Runner): The runner of the training, validation or test.
        """
        share_loading_errors(runner)
        with raised_by_all() if has_training_loop(runner) else nullcontext():
            self._serve(runner, trains=has_training_loop(runner))

    def before_train(self, runner: Runner) -> None:
        """Checks that all processes start alike, and starts to listen to the optimizer.

        Says so if the average's class or schedule does not suit model or run.

        Args:
            runner (Runner): The runner of the training.
        """
        with raised_by_all():
            super().before_train(runner)
            self._serve(runner, trains=True)
        for name, kept in self._kept.items():
            if kept.mean_age is not None:
                _say(_of(name) + kept.mean_age.settle(kept.average))
        schedule = dict(
            self.ema_cfg,
            begin_iter=self.begin_iter,
            begin_epoch=self.begin_epoch,
            **{name: str(kept.record.schedule) for name, kept in self._kept.items() if name != MAIN},
        )
        schedule.pop('device', None)  # that of the process
        has_begun = self._has_begun(runner)
        if has_begun:
            gather(self._averages().values(), also_cut=True)
        check_same_start(
            dict(iteration=runner.iter, updates=int(self.ema_model.steps), schedule=str(schedule)),
            {
                'raw weights': self.src_model,
                **{
                    'averaged weights' if name == MAIN else f'weights of {name}': average.module if has_begun else None
                    for name, average in self._averages().items()
                },
            },
        )
        self._optimizer_steps = OptimizerSteps(self.src_model)
        if self.skip_nonfinite:
            self._finite = FiniteCheck(self.src_model, self.ema_model.module if has_begun else self.src_model)
        for _, key, kind in _saved_by(runner, ('raw', *self.averages)):
            if kind not in self._own_passes:
                _say(f"save_best names {key}, which is measured with evaluate=['ema', {kind!r}] only", logging.WARNING)
        self._advise(runner)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Leaves each process its part of averages that are shared out, before an iteration takes memory of its own.

        Args:
            runner (Runner): The runner of the training.
            batch_idx (int): Not used.
            data_batch (Any): Not used.
        """
        share_out(self._averages().values(), self.src_model)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Optional[dict[str, Any]] = None
    ) -> None:
        """Updates the average if the optimizer made a step.

        Args:
            runner (Runner): The runner of the training.
            batch_idx (int): Index of the batch in the loop.
            data_batch (Any): Not used.
            outputs (dict, optional): Not used.
        """
        if self._optimizer_steps.stepped(runner.optim_wrapper) and averaging_has_begun(self, runner):
            not_finite = self._finite.look() if self.skip_nonfinite else NotFinite([], [])
            self.kept_buffers = not_finite.buffers
            if not_finite.parameters:
                self._skip(not_finite.parameters + not_finite.buffers)
            else:
                if max(self.begin_iter, self.begin_epoch) > 1 and not self._has_begun(runner):
                    _say(f'begins at iteration {runner.iter + 1}; until now the model stood for its average')
                self._say_kept()
                update(self._kept.values(), self.src_model, self.kept_buffers)
        if self._has_begun(runner) and self._log.is_due(runner, batch_idx):
            self._log.add_state(runner)
        if is_saved_after_iteration(runner):
            self._synchronize_buffers(runner)

    def after_train_epoch(self, runner: Runner) -> None:
        """Prepares the average for a checkpoint; only the main process would hear of its saving.

        Args:
            runner (Runner): The runner of the training.
        """
        self._synchronize_buffers(runner)

    def after_train(self, runner: Runner) -> None:
        """Draws how the average fared, and repeats what was advised at the start, which has scrolled away.

        Args:
            runner (Runner): The runner of the training.
        """
        self._optimizer_steps.close()
        for line in self._advice:
            _say(line, logging.WARNING)
        if is_main_process():
            path = Path(runner.work_dir) / _CURVES
            curves = self._log.curves(runner)
            try:
                replaced = ', in the place of an earlier one' if path.exists() else ''
                replace(path, lambda temporary: draw_average_curves(curves, temporary))
                _say(f'how it fared is drawn in {path}{replaced}')
            except Exception as error:  # the training is done and must not end in an error
                _say(f'{path} cannot be drawn: {error}', logging.WARNING)

    def before_val_epoch(self, runner: Runner) -> None:
        """Validates what is asked for beside the average, such as the raw weights, then swaps in those of the average.

        Args:
            runner (Runner): The runner of the validation.
        """
        self._measured = {}
        if not self._has_begun(runner):
            return
        self._synchronize_buffers(runner)
        for kind in self._own_passes:
            _say('validating the raw weights' if kind == 'raw' else f'validating the average {kind!r}')
            if kind != 'raw':
                self._swap_in(self._kept[kind].average)
            try:
                self._measured[kind] = validate_once_more(runner, self)
            finally:
                self._swap_out()
        if self._own_passes:
            _say(f'validating the {"averaged" if self.evaluate_on_ema else "raw"} weights')
        if self.evaluate_on_ema:
            self._swap_in(self.ema_model)

    def after_val_epoch(self, runner: Runner, metrics: Optional[dict[str, Any]] = None) -> None:
        """Gives the model its own weights back, and adds the metrics of its own.

        Args:
            runner (Runner): The runner of the validation.
            metrics (dict, optional): What was measured; the metrics of the raw weights are added to it.
        """
        self._swap_out()
        if metrics is None or not self._averages_for(runner):
            return
        measured = dict(metrics)
        # Until the average has begun, the model stands for it.
        own = {kind: self._measured.get(kind, measured) for kind in self._own_passes}
        self._log.add_metrics(runner, {'ema' if self.evaluate_on_ema else 'raw': measured, **own})
        if own:
            self._add_metrics(runner, metrics, own)

    def _add_metrics(self, runner: Runner, metrics: dict[str, Any], own: dict[str, dict[str, Any]]) -> None:
        """Adds what passes of their own measured, for the log and for the hooks that choose by a metric."""
        added = {name + _suffix(kind): value for kind, found in own.items() for name, value in found.items()}
        taken = sorted(added.keys() & metrics.keys())
        if taken:
            raise ValueError(f'the metric {taken[0]} is measured already: give the average another name')
        for hook in runner.hooks:
            # The hook that hands metrics to the log has been called already.
            if isinstance(hook, RuntimeInfoHook):
                hook.after_val_epoch(runner, added)
        # A CheckpointHook passes over a validation without metrics.
        if metrics:
            metrics.update(added)
            for hook, key, kind in _saved_by(runner, own):
                if key not in metrics and key.removesuffix(_suffix(kind)) in metrics:
                    _pass_over(hook, key)

    def before_test_epoch(self, runner: Runner) -> None:
        """Swaps in the weights of the average, if it was trained in this run.

        Args:
            runner (Runner): The runner of the test.
        """
        if self._has_begun(runner):
            self._synchronize_buffers(runner)
            if self.evaluate_on_ema:
                self._swap_in(self.ema_model)

    def after_test_epoch(self, runner: Runner, metrics: Optional[dict[str, Any]] = None) -> None:
        """Gives the model its own weights back.

        Args:
            runner (Runner): The runner of the test.
            metrics (dict, optional): Not used.
        """
        self._swap_out()

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Puts the average where every loader looks for weights, and the raw ones under ``ema_state_dict``.

        Args:
            runner (Runner): The runner of the training.
            checkpoint (dict): What is about to be saved; changed in place.
        """
        if not self._averages_for(runner):
            return
        # Those that the runner puts there may be the live ones, swapped, or named as in a wrapper of the model.
        in_parts = is_saved_in_parts(self.src_model)
        with nullcontext() if self._swap is None else self._swap.paused():
            if in_parts:
                store_local(checkpoint, self._averages(), self.src_model, self._has_begun(runner))
            else:
                checkpoint['state_dict'] = copied_state(self.src_model)
        # A strategy that cuts models asks all processes, and the main one writes a file with the whole.
        if not in_parts:
            with whole_on_main(self._averages().values()):
                if is_main_process() or not is_fully_sharded(self.src_model):
                    store(checkpoint, self._averages(), self._has_begun(runner))
        checkpoint.setdefault('meta', {})['mmyolo_ema'] = self.describe()

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Takes the average from a checkpoint, and says in one line how it goes on.

        Args:
            runner (Runner): The runner that loads.
            checkpoint (dict): What it loaded. If the run goes on from it, its raw weights are put where the runner
                looks.

        Raises:
            ValueError: If ``strict_load`` is set and the tensors differ from the model's. If MMEngine would run a text
                in the checkpoint.
        """
        resumed = is_resumed(runner)
        if resumed:
            check_no_program(checkpoint)
            forget_other_files(runner, checkpoint)
        # A runner of strategies loads before it calls before_run.
        self._serve(runner, trains=resumed or has_training_loop(runner))
        if not self._averages_for(runner):
            return
        # What is loaded next goes into the model's own tensors, not into the average's.
        self._swap_out()
        said = beginning(checkpoint, resumed)
        resumes = resumed and has_ema(checkpoint)
        updates = updates_in(checkpoint) if resumes else 0
        load_from = load_local if is_saved_in_parts(self.src_model) else load
        found = load_from(self._averages(), self.src_model, checkpoint, resumes, updates or 0)
        if resumes:
            exchange(checkpoint)
        mismatches = next(filter(None, map(unfit, found)), '')
        if updates is None:
            mismatches += '; the count of updates (steps) is missing from the file, so the ramp starts again'
        if mismatches and self.strict_load:
            raise ValueError(
                f'strict_load is set, but the checkpoint does not fit the model{mismatches}. Leave '
                'strict_load out to load what fits.'
            )
        for kept in self._kept.values():
            said += kept.go_on(runner, self, checkpoint, resumes)
        said += ''.join(
            f'; the average {name!r} is dropped'
            for name in further_averages(checkpoint)
            if resumes and name not in self._kept
        )
        hint = '. To go on with that average, resume the run' if has_ema(checkpoint) and not resumes else ''
        said += (f'; {found[0].remark}' if found[0].remark else '') + (mismatches or hint)
        _say(said, logging.WARNING if mismatches or (resumed and not resumes) else logging.INFO)

    def _serve(self, runner: Runner, trains: bool) -> None:
        """Belongs to a runner from now on; makes its averages if it trains, and sees to its loops."""
        current = self._runner()
        # One that only tests does not take the hook from one that trained.
        if current is not runner and (trains or current is None or self._src_model is None):
            self._runner = weakref.ref(runner)
            self._src_model = None
            self.skipped = 0
            self._said_kept = set()
        if trains:
            self._make_averages()
            for kept in self._kept.values():
                kept.choose_schedule(runner, self)
        for loop in evaluation_loops(runner):
            if loop not in self._guarded_loops:
                self._swap_out_after(loop)
                self._guarded_loops.add(loop)

    def _make_averages(self) -> nn.Module:
        """Makes the averages of the run's model, unless they are there, and returns that."""
        if self._src_model is None:
            runner = self._runner()
            if runner is None:
                raise AttributeError('the EMAHook has no average before a run has begun')
            check_run(runner)
            model = unwrap(runner.model)
            self._add_horizons(runner)
            for kept in self._kept.values():
                kept.make(model)
            check_sharing(runner, self._averages().values())
            self._src_model, self._log = model, AverageLog(model, self._kept)
        return self._src_model

    def _add_horizons(self, runner: Runner) -> None:
        """Adds the averages that other hooks of a run ask for, in the place of those of an earlier run."""
        self._kept = {name: kept for name, kept in self._kept.items() if not isinstance(kept.mean_age, Horizon)}
        asked = {
            name: horizon for hook in runner.hooks for name, horizon in getattr(hook, 'further_horizons', {}).items()
        }
        for name, horizon in asked.items():
            if name in self._kept:
                raise ValueError(
                    f'the EMAHook has an average called {name!r} too, which a SnapshotHook with '
                    'second_horizon asks for: give it another name, or leave second_horizon out'
                )
            self._kept[name] = KeptAverage(name, dict(self.ema_cfg), horizon)
        if SECOND_HORIZON in self._own_passes and SECOND_HORIZON not in self._kept:
            raise ValueError(f'evaluate has {SECOND_HORIZON!r}, but no SnapshotHook of the run has a second_horizon')

    def _advise(self, runner: Runner) -> None:
        """Warns if a schedule does not suit the run, or the averages' class the model."""
        updates = updates_at_end(runner, self, accumulative_counts(runner.optim_wrapper))
        self._advice = []
        for name, kept in self._kept.items():
            schedule = kept.record.schedule if kept.mean_age is None else None
            said = advice(schedule, updates) if schedule is not None and updates > 0 else ''
            self._advice += [f'{_of(name)}{said} mmyolo-ema schedule CONFIG tells more.'] if said else []
        self._advice += filter(None, [advice_on_shared_tensors(self.ema_model, self.src_model)])
        for line in self._advice:
            _say(line, logging.WARNING)

    def _averages_for(self, runner: Runner) -> bool:
        """Whether there is an average, and it is of this runner's training."""
        return self._runner() is runner and self._src_model is not None

    def _averages(self) -> dict[str, BaseAveragedModel]:
        """Returns all averages by name, the main one first."""
        return {name: kept.average for name, kept in self._kept.items()}

    def _has_begun(self, runner: Runner) -> bool:
        """Whether the average of this runner has been updated; the first update makes it a copy of the model."""
        return self._averages_for(runner) and int(self.ema_model.steps) > 0

    def _swap_in(self, average: BaseAveragedModel) -> None:
        try:
            self._swap = WeightSwap(average.module, self.src_model, shards_of(average))
        except ValueError as error:
            raise ValueError(
                f'the averaged weights cannot be put into the model: {error} A hook that rebuilds the '
                f'model must come after the EMAHook, whose priority is {self.priority}.'
            ) from error
        self._swap.swap_in()

    def _swap_out(self) -> None:
        if self._swap is not None:
            self._swap.swap_out()
            self._swap = None

    def _swap_out_after(self, loop: BaseLoop) -> None:
        """Gives the model its own weights back also after an exception in a loop, of which no hook hears."""
        run: Callable[[], Any] = loop.run

        def run_and_swap_out() -> Any:
            try:
                return run()
            except BaseException:
                # What was measured until then must not count in the next pass, which may be of other weights.
                for metric in getattr(getattr(loop, 'evaluator', None), 'metrics', ()):
                    metric.results.clear()
                raise
            finally:
                self._swap_out()

        loop.run = run_and_swap_out

    def _synchronize_buffers(self, runner: Runner) -> None:
        """Makes the averages whole, if ``shard`` is set, and their floating buffers equal on all processes."""
        if self._averages_for(runner):
            gather(self._averages().values())
        if self._has_begun(runner):
            for average in self._averages().values():
                synchronize_buffers(average)

    def _say_kept(self) -> None:
        """Warns of buffers that an update leaves as they were, once for each."""
        new = [name for name in self.kept_buffers if name not in self._said_kept]
        self._said_kept.update(new)
        if new:
            _say(
                f'NaN or infinity in buffers of the model: {_some(new)}. The average keeps its last finite value '
                'there and follows all else. If they are statistics of BatchNorm, tools/posthoc_ema.py build '
                '--bn-batches measures them anew.',
                logging.WARNING,
            )

    def _skip(self, names: list[str]) -> None:
        """Counts a step that is not averaged, and warns of the 1st, 10th, 100th and so on."""
        self.skipped += 1
        if math.log10(self.skipped).is_integer():
            _say(
                f'left out a step that holds NaN or infinity, in {_some(names)} (the {self.skipped}. such step of the '
                'run). The average keeps what it had. If this goes on, lower the learning rate or clip the gradients.',
                logging.WARNING,
            )


def _of(name: str) -> str:
    """Returns what a line about an average begins with."""
    return '' if name == MAIN else f'{name}: '


def _some(names: list[str]) -> str:
    return ', '.join(names[:5]) + (' and others' if len(names) > 5 else '')


def _suffix(kind: str) -> str:
    """Returns what the names of metrics end in that a pass of its own measured."""
    return _ORIGIN if kind == 'raw' else f'_{kind}'


def _saved_by(runner: Runner, kinds: Iterable[str]) -> Iterator[tuple[CheckpointHook, str, str]]:
    """Yields the metrics of kinds of weights that a CheckpointHook chooses the best checkpoint by, and those kinds."""
    # The name of an average may end as that of another does.
    longest_first = sorted(kinds, key=lambda kind: -len(_suffix(kind)))
    for hook in runner.hooks:
        if isinstance(hook, CheckpointHook):
            for key in hook.save_best or []:
                kind = next((kind for kind in longest_first if key.endswith(_suffix(kind))), None)
                if kind is not None:
                    yield hook, key, kind


def _pass_over(hook: CheckpointHook, key: str) -> None:
    """Makes a CheckpointHook pass over a metric that the validation under way lacks, as when nothing was detected.

    It raises for one that is missing, but not for None; hooks that stop early raise for None.
    """
    after_val_epoch = hook.after_val_epoch

    def after_this_val_epoch(runner: Runner, metrics: dict[str, Any]) -> None:
        hook.after_val_epoch = after_val_epoch
        after_val_epoch(runner, {**metrics, key: metrics.get(key)})

    hook.after_val_epoch = after_this_val_epoch


def is_saved_after_iteration(runner: Runner) -> bool:
    """Whether a CheckpointHook that counts iterations saves after this one."""
    return any(
        not hook.by_epoch
        and (
            hook.every_n_train_iters(runner, hook.interval, hook.save_begin)
            or (hook.save_last and hook.is_last_train_iter(runner))
        )
        for hook in runner.hooks
        if isinstance(hook, CheckpointHook)
    )


def _say(message: str, level: int = logging.INFO) -> None:
    print_log(f'EMA: {printable(message)}', logger='current', level=level)
