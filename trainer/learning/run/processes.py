"""Interface between the processes of one training."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn


class Parallel(Protocol):
    """Several processes that train one model."""

    @property
    def rank(self) -> int:
        """Number of this process, from 0."""
        ...

    @property
    def size(self) -> int:
        """Number of processes."""
        ...

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module, with gradients averaged over all processes in its backward pass."""
        ...

    def gradients(self, module: nn.Module, synchronise: bool) -> AbstractContextManager[Any]:
        """Context of a forward and backward pass; without `synchronise` gradients stay local."""
        ...

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum of a tensor over all processes, in its shape."""
        ...

    def wait(self) -> None:
        """Barrier: returns when all processes have called it."""
        ...


@dataclass(frozen=True)
class SingleProcess:
    """One process: nothing to synchronise."""

    rank: int = 0
    size: int = 1

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module itself."""
        return module

    def gradients(self, module: nn.Module, synchronise: bool) -> AbstractContextManager[Any]:
        """No context is needed."""
        return nullcontext()

    def sum(self, tensor: Tensor) -> Tensor:
        """The tensor itself, in its shape."""
        return tensor

    def wait(self) -> None:
        """Return at once."""
