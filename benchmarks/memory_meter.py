"""Peak bytes of activations of a forward and backward pass on fake tensors: no weights, no memory, the same every time."""

import weakref
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass
class MemoryMeter(TorchDispatchMode):
    """Adds the bytes of every new storage and subtracts them when the storage dies; keeps the high-water mark."""

    current: int = 0
    peak: int = 0
    known: weakref.WeakSet = field(default_factory=weakref.WeakSet)

    def __post_init__(self) -> None:
        super().__init__()

    def ignore(self, tensors: object) -> None:
        """Do not count the storages of these tensors, for example of parameters."""
        for tensor in tree_leaves(tensors):
            if isinstance(tensor, Tensor):
                self.known.add(tensor.untyped_storage())

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
        """Run the operation and count the storages it made."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        # views share the storage of what they look at: it is counted once, until the last of them is gone
        if storage in self.known:
            return
        size = storage.nbytes()
        self.known.add(storage)
        self.current += size
        self.peak = max(self.peak, self.current)
        weakref.finalize(storage, self._release, size)

    def _release(self, size: int) -> None:
        self.current -= size

    __hash__ = object.__hash__
