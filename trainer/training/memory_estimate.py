"""How much memory a training step takes, known before the first: weights and states counted, activations played through.

One forward and backward pass runs on fake tensors, which have shapes but no storage and cost no arithmetic, while every
new storage is counted until it is freed; the highest sum is the estimate. The same counter over a real pass measures.
"""

import gc
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..learning.dreambooth.dreambooth_objective import DreamBoothObjective
from ..learning.parts.part_objective import PartBatch, PartObjective
from ..learning.run.fit import Batch

GIB = 2**30
_FAKED = ("moments", "noise", "times", "codes", "masks", "guide", "levels")
"""Tensors of a batch that are replaced by fake ones; small ones beside them may stay."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on the training device."""

    frozen: int
    """Weights of the frozen model."""
    learned: int
    """Learned weights, their running average and AdamW's two moments."""
    activations: int
    """Highest sum of activations and gradients within one micro-step."""

    @property
    def total(self) -> int:
        """Everything together, without the context of the GPU driver (about 0.7 GiB) and fragmentation (5 to 10 %)."""
        return self.frozen + self.learned + self.activations


@dataclass(frozen=True)
class _NeutralWeights:
    """Prompt weights that are all 1: text encoders look at their values, which fake tensors do not have."""

    shape: tuple[int, ...]
    device: torch.device = torch.device("cpu")

    def __len__(self) -> int:
        return self.shape[0]

    def tolist(self) -> list[list[float]]:
        """Ones of this shape, as lists."""
        return self.numpy().tolist()

    def numpy(self) -> np.ndarray:
        """Ones of this shape."""
        return np.ones(self.shape, dtype=np.float32)


class StorageHighWater(TorchDispatchMode):
    """Counts the bytes of all storages made while it is active, and remembers the highest sum."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    def ignore(self, tensors: Iterable[Tensor]) -> None:
        """Do not count tensors, of any shape, that exist already."""
        for tensor in tensors:
            self._known[tensor.untyped_storage()] = 0

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation and count what it returns."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            # views share the storage of what they look at: it is counted once, and until the last of them is gone
            return
        size = storage.nbytes()
        self._known[storage] = size
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._release, size)

    def _release(self, size: int) -> None:
        self.now -= size


def estimate_memory(objective: nn.Module, batch: Batch, *, ema: bool = False) -> MemoryEstimate:
    """Memory of training `objective` with batches like `batch`, without computing anything.

    Gradients of the learned parameters are left as they were.
    """
    if isinstance(objective, DreamBoothObjective) and objective.vectors is None:
        # what plain prompts say is remembered: encoding them is not part of a step, and must not leave fake tensors behind
        objective.encode(prompts := getattr(batch, "prompts", ()), tuple(range(len(prompts))))
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        names = [name for name in _FAKED if isinstance(getattr(batch, name, None), Tensor)]
        moved: dict[str, Any] = {name: fake.from_tensor(getattr(batch, name)) for name in names}
        if prompts := getattr(batch, "prompts", ()):
            moved["prompts"] = tuple(
                {name: replace(own, weights=_NeutralWeights(own.weights.shape)) for name, own in prompt.items()}
                for prompt in prompts
            )
        # fake twins of the weights must not count when an operation returns a view of one
        known = [fake.from_tensor(tensor) for tensor in (*_frozen(objective), *objective.parameters())]
        peak = _peak_of_step(objective, replace(batch, **moved), known)
    return replace(_standing(objective, ema), activations=peak)


def measure_memory(objective: PartObjective, batch: PartBatch, *, ema: bool = False) -> MemoryEstimate:
    """Memory of the same step when it is really computed: by CUDA's allocator on a GPU, by counting storages elsewhere."""
    device = batch.moments.device
    if device.type != "cuda":
        return replace(_standing(objective, ema), activations=_peak_of_step(objective, batch))
    objective(batch).total.backward()  # libraries take their workspaces once
    objective.zero_grad(set_to_none=True)
    torch.cuda.reset_peak_memory_stats(device)
    # what lies there already (weights, states) is not part of the step
    before = torch.cuda.memory_allocated(device)
    objective(batch).total.backward()
    peak = torch.cuda.max_memory_allocated(device) - before
    objective.zero_grad(set_to_none=True)
    return replace(_standing(objective, ema), activations=peak)


def _peak_of_step(objective: nn.Module, batch: Batch, known: Iterable[Tensor] = ()) -> int:
    """Bytes: highest sum of storages that a forward and backward pass makes besides `known` ones, with gradients."""
    learned = list(objective.parameters())
    kept = [parameter.grad for parameter in learned]
    objective.zero_grad(set_to_none=True)
    # cycles that hold tensors would be freed at some time within the pass
    gc.collect()
    counter = StorageHighWater()
    counter.ignore([*learned, *_frozen(objective), *known])
    with counter:
        loss = objective(batch).total
        gradients = torch.autograd.grad(loss, learned, allow_unused=True)
    del gradients, loss
    # the caller's gradients, as they were
    for parameter, gradient in zip(learned, kept, strict=True):
        parameter.grad = gradient
    return counter.peak


def _standing(objective: nn.Module, ema: bool) -> MemoryEstimate:
    """Bytes that are there all the time."""
    frozen = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in _frozen(objective)}
    learned = sum(parameter.numel() * parameter.element_size() for parameter in objective.parameters())
    return MemoryEstimate(sum(frozen.values()), learned * (4 if ema else 3), 0)


def _frozen(objective: nn.Module) -> list[Tensor]:
    """All tensors of the modules the denoiser holds, but for the learned ones."""
    learned = {id(parameter) for parameter in objective.parameters()}
    # the protocol does not say which modules a denoiser holds: they are looked for
    found: list[Tensor] = []
    for module in _modules(objective.denoiser):
        found += [tensor for tensor in (*module.parameters(), *module.buffers()) if id(tensor) not in learned]
    return found


def _modules(denoiser: object) -> list[nn.Module]:
    """Modules that a denoiser's capabilities hold, as attributes or in dictionaries; each once."""
    found: dict[int, nn.Module] = {}
    for capability in vars(denoiser).values():
        held = list(getattr(capability, "__dict__", {}).values())
        held += [one for value in held if isinstance(value, dict) for one in value.values()]
        # text encoders lie one deeper, beside their tokenizers
        held += [one for value in held if hasattr(value, "__dict__") for one in vars(value).values()]
        found |= {id(one): one for one in (capability, *held) if isinstance(one, nn.Module)}
    return list(found.values())
