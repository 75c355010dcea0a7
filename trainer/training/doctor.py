"""Looks a training over before its first step: pictures, sizes, disk, memory, one forward pass, one preview."""

import logging
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from ...concepts.errors import BestiaryError
from ..learning.run.run_folder import RunFolder
from .memory_estimate import GIB, estimate_memory
from .previews import Previews
from .training_setup import Task, TrainingSetup, prepare

logger = logging.getLogger("bestiary")
MIB = 2**20
PREVIEW_STEPS = 4
PREVIEW_MIB = 2
"""Disk space of one preview sheet, at most."""


@dataclass
class Checks:
    """Findings in the order they were made."""

    lines: list[str] = field(default_factory=list)

    def add(self, line: str) -> None:
        """Note and log one finding."""
        self.lines.append(line)
        logger.info("%s", line)


def examine(task: Task) -> list[str]:
    """Findings about a training that is not started; only latents are written, into their cache, and one picture of a class that lacks some.

    Raises:
        BestiaryError: what would stop the training.
    """
    task.only_examined = True
    return examine_setup(prepare(task), None).lines


def examine_setup(setup: TrainingSetup, run: RunFolder | None) -> Checks:
    """Findings about a prepared training; with a run folder also a first preview.

    Raises:
        BestiaryError: the disk is too small, or the first forward pass gives no finite loss.
    """
    # from what is known at once to what must be computed
    checks = Checks()
    for line in setup.task.findings(setup):
        checks.add(line)
    checks.add(_disk_line(setup, run.path if run else setup.settings.run.out))
    if setup.settings.run.estimate_memory:
        checks.add(_memory_line(setup))
    checks.add(_forward_line(setup))
    if run and setup.settings.run.preview_every:
        started = time.monotonic()
        Previews(setup, run).write(0, sampling_steps=PREVIEW_STEPS)
        checks.add(f"preview: {run.samples / 'step-0000000.png'} in {time.monotonic() - started:.1f} s")
    return checks


def state_bytes(setup: TrainingSetup) -> int:
    """Size of one saved state: weights, two moments, perhaps an average."""
    learned = sum(parameter.numel() for parameter in setup.objective.parameters())
    return 4 * learned * (4 if setup.settings.optimizer.ema else 3)


def _disk_line(setup: TrainingSetup, place: Path) -> str:
    settings = setup.settings
    previews = settings.optimizer.steps // settings.run.preview_every if settings.run.preview_every else 0
    # states that are kept, and two more while they change
    needed = state_bytes(setup) * (settings.run.keep_states + 2) + setup.task.sheets * previews * PREVIEW_MIB * MIB
    existing = next(folder for folder in (place.absolute(), *place.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise BestiaryError(
            f"{existing} has {free / MIB:.0f} MiB free, this training needs about {needed / MIB:.0f} MiB for states and "
            "previews: free some space, or set run.out, run.keep_states or run.preview_every"
        )
    return f"disk: about {needed / MIB:.0f} MiB needed, {free / MIB:.0f} MiB free in {existing}"


def _memory_line(setup: TrainingSetup) -> str:
    estimate = estimate_memory(setup.objective, setup.training.largest_batch(), ema=setup.settings.optimizer.ema > 0)
    line = (
        f"memory: about {estimate.total / GIB:.2f} GiB (frozen weights {estimate.frozen / GIB:.2f}, learned weights and "
        f"optimiser {estimate.learned / GIB:.2f}, activations {estimate.activations / GIB:.2f})"
    )
    # frozen weights lie on the device already: what is still free must hold the rest
    device = setup.denoiser.device
    if device.type != "cuda":
        return line
    free, total = torch.cuda.mem_get_info(device)
    needed = estimate.learned + estimate.activations
    line += f"; {free / GIB:.2f} of {total / GIB:.2f} GiB are free"
    if needed > free:
        line += (
            "; this will probably not fit: lower optimizer.batch_size (and raise optimizer.accumulation), "
            "or set base.checkpointing = true"
        )
    return line


@torch.no_grad()
def _forward_line(setup: TrainingSetup) -> str:
    # no gradients: the first real batch through the objective, as the loop will call it
    started = time.monotonic()
    curves = setup.objective(setup.batches.draw(0, 0)).curves
    loss = float(curves["loss"])
    seconds = time.monotonic() - started
    if not np.isfinite(loss):
        raise BestiaryError(
            f'the first forward pass gives a loss of {loss}: set run.dtype = "fp32", or use another base model'
        )
    return (
        f"first forward pass: loss {loss:.4f} in {seconds:.2f} s on {setup.denoiser.device} in {setup.denoiser.dtype}"
    )
