"""Statistics of BatchNorm that are right for averaged weights, from images instead of from an average."""

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import MessageHub
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DefaultScope
from mmengine.runner import Runner, set_random_seed
from torch import nn

from mmyolo_ema._upstream import BatchNorm, remove_message_hub
from mmyolo_ema.building import build_model, scope_of
from mmyolo_ema.checkpoint import listed, load_all
from mmyolo_ema.checkpoint.difference import is_statistic
from mmyolo_ema.checkpoint.weights import first_names


def reestimate(
    weights: dict[str, Any], cfg: Config, batches: int, progress: Callable[[Iterable[int]], Iterable[int]] = iter
) -> dict[str, Any]:
    """Estimates the statistics of BatchNorm anew, on batches of a config's training data.

    Each statistic becomes the mean of what the batches have, by the layers that are in training mode in a training. The
    others (``norm_eval``, frozen stages) and layers that see no batch keep theirs, and ``num_batches_tracked`` stays.

    The batches are the first of an epoch, in the order and with the transforms that the config's seed gives, 0 if it
    has none; another number of workers gives other transforms. No hooks are run. So the pipeline is the one that the
    training starts with, even if a hook switches it for the last epochs, as RTMDet's and YOLOX's do: give a config
    whose ``train_dataloader`` has the later one.

    Args:
        weights: The tensors of the config's model, by name. They are not changed.
        cfg: The config of the training. The model is put where MMEngine trains: on a GPU if there is one.
        batches: Number of batches, an epoch at most.
        progress: Wraps the batches, as tqdm does. Defaults to showing nothing.

    Returns:
        The weights with new statistics, on the devices and in the dtypes of the old. Names that are one tensor in the
        model share it. All that is not new is the given object itself.

    Raises:
        ValueError: If there are fewer batches than asked for; if the config has no model or no training data; if the
            weights are of another model; if none of its BatchNorms is in training mode; if a statistic is not finite.

    Example:
        >>> from mmengine.model import BaseModel
        >>> class Small(BaseModel):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.norm = nn.BatchNorm1d(1)
        ...     def forward(self, inputs, mode):
        ...         return self.norm(inputs)
        >>> data = dict(dataset=[dict(inputs=torch.tensor([value])) for value in (1., 2., 3., 6.)], batch_size=2,
        ...             sampler=dict(type='DefaultSampler', shuffle=False), collate_fn=dict(type='default_collate'))
        >>> cfg = Config(dict(model=dict(type=Small), train_dataloader=data, default_scope='mmengine'))
        >>> estimated = reestimate(Small().state_dict(), cfg, batches=2)
        >>> estimated['norm.running_mean'], estimated['norm.running_var']  # of 1.5 and 4.5, of 0.5 and 4.5
        (tensor([3.]), tensor([2.5000]))
    """
    if batches < 1:
        raise ValueError(f'BatchNorm needs a batch at least, but got batches={batches}')
    for part in ('model', 'train_dataloader'):
        if cfg.get(part) is None:
            raise ValueError(f'the config {cfg.filename or ""} defines no {part}')
    seed = (cfg.get('randomness') or {}).get('seed') or 0
    scope = scope_of(cfg)
    with DefaultScope.overwrite_default_scope(scope), _as_in_training(seed) as hub, torch.no_grad():
        model = _model(weights, cfg)
        layers = _reset(model)
        loader = Runner.build_dataloader(cfg.train_dataloader, seed=seed)
        if batches > len(loader):
            raise ValueError(f'{batches} batches are asked for, but an epoch of the train_dataloader has {len(loader)}')
        # The batches come second, so that none is loaded in vain.
        for iteration, batch in zip(progress(range(batches)), loader):
            hub.update_info('iter', iteration)
            model(**model.data_preprocessor(batch, training=True), mode='loss')
    return _with_statistics(weights, model, layers)


@contextmanager
def _as_in_training(seed: int) -> Iterator[MessageHub]:
    """Seeds all random numbers, and gives the hub where models, such as YOLOX and TOOD, find iteration and epoch.

    Afterwards a runner's hub is the current one again, and random numbers go on as if nothing had been.
    """
    python, numpy = random.getstate(), np.random.get_state()
    hub = MessageHub.get_instance(__name__)
    hub.update_info('epoch', 0)
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        try:
            set_random_seed(seed)
            yield hub
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
            remove_message_hub(__name__)


def _model(weights: dict[str, Any], cfg: Config) -> Any:
    """Returns the model of a config with these weights, in training mode."""
    model = build_model(cfg)
    load_all(weights, model)
    renamed = [name for name in model.state_dict() if is_statistic(name) and name not in weights]
    if renamed:
        raise ValueError('the model has other names for its BatchNorms than the file' + listed(': ', renamed))
    # SyncBatchNorm needs a GPU, or other processes. Moved afterwards, the twins of a shared one would come apart.
    return revert_sync_batchnorm(model.to(get_device())).train()


def _reset(model: nn.Module) -> dict[str, BatchNorm]:
    """Returns the layers that a training changes, by all their names, ready for the mean of all that is to come."""
    tracking = {
        name: layer
        for name, layer in model.named_modules(remove_duplicate=False)
        if isinstance(layer, BatchNorm) and layer.track_running_stats
    }
    layers = {name: layer for name, layer in tracking.items() if layer.training}
    if not layers:
        raise ValueError(
            f'{type(model).__name__} has no BatchNorm in training mode, and {len(tracking)} that are '
            'frozen: there are no statistics to estimate'
        )
    for layer in layers.values():
        layer.reset_running_stats()
        layer.momentum = None
    return layers


def _with_statistics(weights: dict[str, Any], model: nn.Module, layers: dict[str, BatchNorm]) -> dict[str, Any]:
    """Returns weights with the statistics of layers that saw a batch."""
    state = model.state_dict()
    firsts = first_names(state)
    names = [
        f'{name}.{kind}'
        for name, layer in layers.items()
        if layer.num_batches_tracked
        for kind in ('running_mean', 'running_var')
    ]
    new = {name: state[name].to(weights[name]) for name in names if firsts[name] == name}
    broken = [name for name, value in new.items() if not value.isfinite().all()]
    if broken:
        raise ValueError('BatchNorm would get statistics with NaN or infinity' + listed(': ', broken))
    return {name: new.get(firsts.get(name, name), value) for name, value in weights.items()}
