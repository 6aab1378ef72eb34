"""Noticing that a module holds other objects than before."""

import gc
from collections.abc import Iterable
from operator import is_

from torch import nn


class ModuleWatch:
    """Remembers which tensors and modules some modules hold directly.

    An assignment replaces an object in a module's dictionary; the garbage collector reads the dictionaries at a
    third of the cost of a walk over them. What happens to a tensor in place, or to its ``data``, is not seen here.

    Args:
        modules: What to watch: each of them, not what is inside it.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._holders = tuple(
            holder for module in modules for holder in (module._parameters, module._buffers, module._modules)
        )
        self._held = gc.get_referents(*self._holders)

    def is_unchanged(self) -> bool:
        """Whether all modules hold what they held when the watch was made."""
        held = gc.get_referents(*self._holders)
        # By identity: equality would compare tensors element by element.
        return len(held) == len(self._held) and all(map(is_, held, self._held))
