"""What this machine computes on, and what it computes fast."""

from __future__ import annotations

import os
import platform

import torch

_AMX, _AVX512 = "_is_amx_tile_supported", "_is_avx512_bf16_supported"
"""Functions of torch.cpu that report bf16 support; not every version has them."""


def hardware_in_words() -> str:
    """What this process computes on, such as "1 thread on 2 CPU cores (x86_64) with AMX"."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    threads, cores = torch.get_num_threads(), os.cpu_count()
    return (
        f"{threads} thread{'s' * (threads > 1)} on {cores} CPU cores ({platform.machine()})"
        f"{' with AMX' if _cpu_says(_AMX) else ''}, no GPU"
    )


def cpu_has_fast_bf16() -> bool:
    """Whether this CPU multiplies bf16 matrices in hardware; False where this torch cannot say."""
    return _cpu_says(_AMX) or _cpu_says(_AVX512)


def _cpu_says(probe: str) -> bool:
    return bool(getattr(torch.cpu, probe, lambda: False)())
