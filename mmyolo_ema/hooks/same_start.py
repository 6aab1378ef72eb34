"""Whether all processes of a training start from the same state."""

import hashlib
from collections import defaultdict
from typing import Any, Optional

import torch
from mmengine.dist import all_gather_object, get_world_size
from torch import nn

from mmyolo_ema.checkpoint.streaming import chunks
from mmyolo_ema.checkpoint.weights import is_dense
from mmyolo_ema.models.fully_sharded import is_cut
from mmyolo_ema.models.tensor_references import tensor_references
from mmyolo_ema.processes import whereabouts


def check_same_start(values: dict[str, Any], weights: dict[str, Optional[nn.Module]]) -> None:
    """Raises, in all processes alike, if they do not start a training from the same state.

    Where each looks at its own disk, one may go on from a checkpoint and another start from scratch, and the gradients
    of two models would be mixed from then on.

    Args:
        values: What must be equal, such as the iteration, by what it is called in the message.
        weights: Modules whose parameters must be equal; None stands for one that there is not.

    Raises:
        ValueError: With what each process has.
    """
    if get_world_size() == 1:
        return
    own = {**values, **{name: 'none' if module is None else _checksum(module) for name, module in weights.items()}}
    states: list[tuple[str, dict[str, Any]]] = all_gather_object((whereabouts(), own))
    names = [name for name in own if any(state[name] != states[0][1][name] for _, state in states)]
    if names:
        holders = defaultdict(list)
        for where, state in states:
            holders[', '.join(f'{name} {state[name]}' for name in names)].append(where)
        has = '; '.join(f'{", ".join(holder)} has {state}' for state, holder in holders.items())
        raise ValueError(
            f'the processes do not start from the same state: {has}. All hosts must load the same '
            'checkpoint: share the work directory, or copy the file to the same path on each of them.'
        )


def _checksum(module: nn.Module) -> str:
    """Returns what tells the parameters of a module from others, but for those of which each process has a part.

    Buffers may differ between processes.
    """
    digest = hashlib.blake2b(digest_size=4)
    for name, reference in tensor_references(module):
        tensor = reference.tensor.detach()
        if reference.is_parameter and not is_cut(reference.tensor):
            digest.update(name.encode())
            if is_dense(tensor) and tensor.numel():
                for (part,) in chunks(tensor.cpu()):
                    digest.update(part.contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
