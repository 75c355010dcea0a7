"""Counts what a piece of code asks of the device: kernels (operations that are no views) and waits for results."""

from collections import Counter
from dataclasses import dataclass, field

import torch
from torch.utils._python_dispatch import TorchDispatchMode

WAITING = (
    "_local_scalar_dense",
    "nonzero",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "masked_select",
    "equal",
    "is_nonzero",
)
NO_KERNEL = ("_unsafe_view", "detach", "lift_fresh")


@dataclass
class DispatchCounter(TorchDispatchMode):
    """Counts operations while active; autograd's backward included."""

    operations: Counter = field(default_factory=Counter)
    waits: Counter = field(default_factory=Counter)
    views: Counter = field(default_factory=Counter)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
        """Run the operation and count it."""
        name = func._schema.name.removeprefix("aten::")
        # a view starts no kernel; all others do, and some wait for the device
        if func.is_view or name in NO_KERNEL:
            self.views[name] += 1
        else:
            self.operations[name] += 1
        if name in WAITING or _indexes_by_mask(name, args):
            self.waits[name] += 1
        return func(*args, **(kwargs or {}))

    __hash__ = object.__hash__

    @property
    def kernels(self) -> int:
        """Operations that are no views."""
        return sum(self.operations.values())

    @property
    def syncs(self) -> int:
        """Operations whose result the host must wait for."""
        return sum(self.waits.values())


def _indexes_by_mask(name: str, args: tuple) -> bool:
    """Indexing by a boolean tensor has a result of a shape that only the device knows."""
    if name not in ("index", "index_put", "index_put_"):
        return False
    return any(isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1])
