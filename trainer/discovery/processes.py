"""The processes of one `accelerate launch` and their meeting points; a single process needs none of it."""

import os
import re
from dataclasses import dataclass
from datetime import timedelta

import torch

from ...concepts.errors import BestiaryError

_LONGEST_WAIT = timedelta(days=7)  # the first process clusters while the others wait


@dataclass(frozen=True)
class WorkGroup:
    """This process among the `size` processes that share a piece of work."""

    rank: int = 0
    size: int = 1
    device: str = "cpu"

    @property
    def is_first(self) -> bool:
        """True in the one process that merges and writes results."""
        return self.rank == 0

    def owns(self, piece: int) -> bool:
        """Whether piece number `piece` of the work is this process's."""
        return piece % self.size == self.rank

    def meet(self) -> None:
        """Return once every process of the group has come here."""
        if self.size > 1:
            torch.distributed.barrier()


def join_work_group(device: str = "auto") -> WorkGroup:
    """The group that `accelerate launch` (or torchrun) started this process in.

    Args:
        device: "auto" takes this process's own GPU where there is one.

    Raises:
        BestiaryError: the device asked for is not here.
    """
    # what the launcher says of the group; without it this process is alone
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return WorkGroup(device=_device(device, 0))
    # only a group needs accelerate, whose import takes seconds
    from accelerate import PartialState

    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    own = _device(device, local_rank)
    state = PartialState(cpu=own == "cpu", timeout=_LONGEST_WAIT)
    return WorkGroup(state.process_index, state.num_processes, own)


def _device(asked: str, local_rank: int) -> str:
    # asked for or not, a device that is not here must be told before the work
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
            raise BestiaryError(f"--device {asked}: there are {count} GPUs here, numbered from cuda:0 on")
    if asked == "mps" and not torch.backends.mps.is_available():
        raise BestiaryError("--device mps: PyTorch sees no Apple GPU; choose cpu")
    return f"cuda:{local_rank}" if asked == "cuda" else asked
