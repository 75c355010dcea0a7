"""The processes of one `accelerate launch` and their barriers; without effect in a single process."""

import os
import re
from dataclasses import dataclass
from datetime import timedelta

import torch

from ...concepts.errors import BestiaryError

_LONGEST_WAIT = timedelta(days=7)  # the first process clusters while the others wait


@dataclass(frozen=True)
class WorkGroup:
    """This process within a group of `size` processes that share the work."""

    rank: int = 0
    size: int = 1
    device: str = "cpu"

    @property
    def is_first(self) -> bool:
        """True in the one process that merges and writes results."""
        return self.rank == 0

    def owns(self, piece: int) -> bool:
        """True if this process handles piece number `piece`."""
        return piece % self.size == self.rank

    def meet(self) -> None:
        """Barrier: returns when all processes of the group have called it."""
        if self.size > 1:
            torch.distributed.barrier()


def join_work_group(device: str = "auto") -> WorkGroup:
    """The group of processes started by `accelerate launch` (or torchrun).

    Args:
        device: "auto" uses this process's own GPU if there is one.

    Raises:
        BestiaryError: the requested device does not exist.
    """
    # set by the launcher; absent for a single process
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return WorkGroup(device=_device(device, 0))
    # imported only for groups: accelerate takes seconds to import
    from accelerate import PartialState

    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    own = _device(device, local_rank)
    state = PartialState(cpu=own == "cpu", timeout=_LONGEST_WAIT)
    return WorkGroup(state.process_index, state.num_processes, own)


def _device(asked: str, local_rank: int) -> str:
    # validate now: torch would fail only after pictures were read and models loaded
    if asked == "auto":
        return f"cuda:{local_rank}" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", asked):
        raise BestiaryError(f"--device {asked!r} is unknown: choose auto, cpu, cuda, cuda:1 (the second GPU) or mps")
    if asked.startswith("cuda"):
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0:
            raise BestiaryError(
                f"--device {asked}: PyTorch sees no CUDA GPU; choose cpu, or install a CUDA build of PyTorch"
            )
        if int(asked.partition(":")[2] or 0) >= count:
            raise BestiaryError(
                f"--device {asked} does not exist: this machine has {count} GPUs; choose cuda:0 to cuda:{count - 1}"
            )
    if asked == "mps" and not torch.backends.mps.is_available():
        raise BestiaryError("--device mps: PyTorch sees no Apple GPU; choose cpu")
    # plain cuda: each process of a distributed run uses its own GPU
    return f"cuda:{local_rank}" if asked == "cuda" else asked
