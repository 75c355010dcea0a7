"""Training in the processes that `accelerate launch` started, or in this one alone."""

import os
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..learning.run.processes import Parallel, SingleProcess

if TYPE_CHECKING:
    from accelerate import Accelerator


class AccelerateProcesses:
    """The `Parallel` of the training loop over accelerate."""

    def __init__(self, accelerator: "Accelerator") -> None:
        self._accelerator = accelerator
        self.rank, self.size = accelerator.process_index, accelerator.num_processes

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module in DistributedDataParallel: its own forward is called, so all its gradients are synchronised."""
        return self._accelerator.prepare_model(module)

    def gradients(self, module: nn.Module, synchronise: bool) -> AbstractContextManager[Any]:
        """Gradients of all but the last micro-step of an optimiser step stay local."""
        wrapped = isinstance(module, DistributedDataParallel)
        return module.no_sync() if wrapped and not synchronise else nullcontext()

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum of a tensor over all processes, in its shape."""
        # accelerate reduces trees of tensors; a single one comes back as one
        return cast(Tensor, self._accelerator.reduce(tensor.to(self._accelerator.device), reduction="sum"))

    def wait(self) -> None:
        """Return when all processes have come here."""
        self._accelerator.wait_for_everyone()

    def share(self, text: str) -> str:
        """The first process's text, in every process."""
        from accelerate.utils import broadcast_object_list

        texts = [text]
        broadcast_object_list(texts, from_process=0)
        return texts[0]


def join_processes(device: str) -> tuple[Parallel, str]:
    """The processes this one belongs to, and the device it uses: its own GPU where each has one."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return SingleProcess(), device
    from accelerate import Accelerator

    # mixed precision is the denoiser's own affair
    on_cpu = device == "cpu" or not torch.cuda.is_available()
    accelerator = Accelerator(cpu=on_cpu, mixed_precision="no")
    own = "cpu" if on_cpu else f"cuda:{accelerator.local_process_index}"
    return AccelerateProcesses(accelerator), own


def shared_text(parallel: Parallel, text: str) -> str:
    """The first process's text, in every process."""
    return parallel.share(text) if isinstance(parallel, AccelerateProcesses) else text
