"""More averages of a run, of other lengths, beside the one that stands for the model."""

from typing import Any

from mmengine.hooks import EMAHook
from mmengine.model import BaseAveragedModel
from mmengine.registry import MODELS
from mmengine.runner import Runner
from torch import nn

from mmyolo_ema._upstream import add_own_state
from mmyolo_ema.checkpoint import Mismatches, load_fitting
from mmyolo_ema.checkpoint.weights import FURTHER, further_averages, origin
from mmyolo_ema.hooks.average_record import AverageRecord
from mmyolo_ema.hooks.kept_buffers import unchanged
from mmyolo_ema.hooks.mean_age import MeanAge
from mmyolo_ema.hooks.stored_average import copy_tensors, cpu_copies, synchronize_buffers

__all__ = ['FurtherAverages']


class FurtherAverages:
    """Averages of a run by name, which follow the model with the main one and are stored under a key of their own.

    Args:
        options: For each average, its ``mean_age`` or ``momentum`` and whatever differs from the main one.

    Attributes:
        averages (dict[str, BaseAveragedModel]): The averages, once they are made.
        records (dict[str, AverageRecord]): What made them.
    """

    def __init__(self, options: dict[str, dict[str, Any]]) -> None:
        self._options = options
        self._mean_ages = {name: MeanAge(own['mean_age'], own) for name, own in options.items() if 'mean_age' in own}
        self.averages: dict[str, BaseAveragedModel] = {}
        self.records: dict[str, AverageRecord] = {}

    def make(self, model: nn.Module, main_cfg: dict[str, Any]) -> None:
        """Makes the averages of a model; what their options do not say is the main one's, but for its schedule."""
        common = {key: value for key, value in main_cfg.items() if key not in ('momentum', 'gamma')}
        for name, options in self._options.items():
            own = {key: value for key, value in options.items() if key != 'mean_age'}
            ema_cfg = dict(common, **own)
            self.averages[name] = MODELS.build(ema_cfg, default_args=dict(model=model))
            self.records[name] = AverageRecord(self.averages[name])

    def forget_schedules(self) -> None:
        """Keeps no schedule of a checkpoint: the run starts anew."""
        for mean_age in self._mean_ages.values():
            mean_age.forget()

    def choose_schedules(self, runner: Runner, hook: EMAHook) -> None:
        """Gives the averages the schedules that their mean ages ask for in a run."""
        for name, mean_age in self._mean_ages.items():
            mean_age.choose(runner, hook, self.averages[name])
            self.records[name].follow()

    def settle(self) -> list[str]:
        """Keeps the schedules that the averages have: their run begins. Returns in words what was chosen."""
        for name, mean_age in self._mean_ages.items():
            mean_age.settle(self.averages[name])
        return [f'{name}: {mean_age.told}' for name, mean_age in self._mean_ages.items()]

    def update(self, model: nn.Module, kept_buffers: list[str]) -> None:
        """Moves the averages towards the model, but for some buffers."""
        for name, average in self.averages.items():
            self.records[name].follow()
            with unchanged(average.module, kept_buffers):
                average.update_parameters(model)

    def synchronize_buffers(self) -> None:
        """Makes the floating buffers of the averages equal on all processes."""
        for average in self.averages.values():
            synchronize_buffers(average)

    def store(self, checkpoint: dict[str, Any]) -> None:
        """Puts the averages into a checkpoint, as CPU copies, and says in its ``meta`` what made them."""
        if not self.averages:
            return
        checkpoint[FURTHER] = {}
        for name, average in self.averages.items():
            state = average.state_dict()
            # As for the main one: a hook of a module may remove what is not its own.
            add_own_state(average, state)
            state.update(cpu_copies(state))  # it has the versions of modules, too
            checkpoint[FURTHER][name] = state
        checkpoint['meta']['mmyolo_ema']['averages'] = {name: record.as_meta() for name, record in self.records.items()}

    def load(self, checkpoint: dict[str, Any], main: BaseAveragedModel, resumes: bool) -> tuple[str, list[Mismatches]]:
        """Takes the averages from a checkpoint; those that it lacks are copies of the main one, which is loaded.

        Args:
            checkpoint: What was loaded.
            main: The main average.
            resumes: Whether the averages of the file go on.

        Returns:
            What there is to say about it, or nothing, and what each does not have in common with the file's.
        """
        self.forget_schedules()
        stored = further_averages(checkpoint) if resumes else {}
        said, mismatches = '', []
        for name, average in self.averages.items():
            meta = checkpoint.get('meta') or {}
            if name in stored:
                mismatches.append(load_fitting(stored[name], average))
                meta = dict(mmyolo_ema=origin(checkpoint, name))
            else:
                load_fitting(dict(steps=main.steps), average)
                copy_tensors(main.module, average.module)
                said += f'; the average {name!r} is new and starts as a copy of it' if resumes and main.steps else ''
            if name in self._mean_ages and name in stored:
                self._mean_ages[name].keep(average, meta)
            self.records[name] = AverageRecord(average)
            remark = self.records[name].go_on(meta, int(average.steps))
            said += remark.replace('; ', f'; the average {name!r}: ', 1) if name in stored else ''
        said += ''.join(f'; the average {name!r} is dropped' for name in stored if name not in self.averages)
        return said, mismatches
