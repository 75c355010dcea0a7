"""Looks a training over before its first step: pictures, sizes, disk, memory, one forward pass, one preview."""

import logging
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from ...concepts.errors import BestiaryError
from ..learning.parts.settings import TrainPartsSettings
from ..learning.run.run_folder import RunFolder
from .memory_estimate import GIB, estimate_memory
from .part_previews import PartPreviews
from .training_setup import TrainingSetup, prepare

logger = logging.getLogger("bestiary")
MIB = 2**20
RARE = 3
"""A kind shown by fewer pictures than this is hard to learn."""
PREVIEW_STEPS = 4
PREVIEW_MIB = 2
"""Disk space of one preview sheet, at most."""


@dataclass
class DoctorReport:
    """Findings in the order they were made."""

    lines: list[str] = field(default_factory=list)

    def add(self, line: str) -> None:
        """Note and log one finding."""
        self.lines.append(line)
        logger.info("%s", line)


def examine(settings: TrainPartsSettings) -> Iterator[str]:
    """Findings about a training that is not started; only latents are written, into their cache.

    Raises:
        BestiaryError: what would stop the training.
    """
    yield from examine_setup(prepare(settings), None).lines


def examine_setup(setup: TrainingSetup, run: RunFolder | None) -> DoctorReport:
    """Findings about a prepared training; with a run folder also a first preview.

    Raises:
        BestiaryError: the disk is too small, or the first forward pass gives no finite loss.
    """
    # from what is known at once to what must be computed
    report = DoctorReport()
    for line in (*_picture_lines(setup), *_size_lines(setup)):
        report.add(line)
    place = run.path if run else setup.settings.run.out
    report.add(_disk_line(setup, place))
    if setup.settings.run.estimate_memory:
        report.add(_memory_line(setup))
    report.add(_forward_line(setup))
    if run and setup.settings.run.preview_every:
        started = time.monotonic()
        PartPreviews(setup, run).write(0, sampling_steps=PREVIEW_STEPS)
        report.add(f"preview: {run.samples / 'step-0000000.png'} in {time.monotonic() - started:.1f} s")
    return report


def _picture_lines(setup: TrainingSetup) -> Iterator[str]:
    pictures, kinds = setup.pictures, setup.pictures.kinds
    yield f"pictures: {len(pictures.names)} in {pictures.folder}, {pictures.left_out} without parts left out"
    counts = (kinds.codes >= 0).sum(0)  # (N, M) -> (M,)
    shown = [f"{name} {count}" for name, count in zip(kinds.part_names, counts, strict=True) if count]
    yield f"parts and the pictures that show them: {', '.join(shown)}"
    # rare kinds have too few pictures to be learned from
    sizes = [int((kinds.codes[:, part] == kind).sum()) for part, kind in kinds.rows()]
    rare = sum(size < RARE for size in sizes)
    yield (
        f"tokens: {len(sizes)}, each in {min(sizes)} to {max(sizes)} pictures (median {int(np.median(sizes))}), "
        f"{rare} in fewer than {RARE}"
    )


def _size_lines(setup: TrainingSetup) -> Iterator[str]:
    plan, spec = setup.batches.plan, setup.spec
    yield (
        f"sizes: trained at {setup.image_size} px, cached at {spec.image_size} px "
        f"({spec.byte_count / MIB:.0f} MiB of latents), attention read at {plan.grid} x {plan.grid}"
    )
    steps = setup.settings.optimizer.steps
    # how often every picture is seen in all
    epochs = steps * plan.step_size / len(setup.pictures.names)
    yield f"work: {steps} steps of {plan.step_size} pictures, {epochs:.1f} passes over all pictures"


def state_bytes(setup: TrainingSetup) -> int:
    """Size of one saved state: weights, two moments, perhaps an average."""
    learned = sum(parameter.numel() for parameter in setup.objective.parameters())
    return 4 * learned * (4 if setup.settings.optimizer.ema else 3)


def _disk_line(setup: TrainingSetup, place: Path) -> str:
    settings = setup.settings
    previews = settings.optimizer.steps // settings.run.preview_every if settings.run.preview_every else 0
    # states that are kept, and two more while they change; two sheets a preview
    needed = state_bytes(setup) * (settings.run.keep_states + 2) + 2 * previews * PREVIEW_MIB * MIB
    existing = next(folder for folder in (place.absolute(), *place.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise BestiaryError(
            f"{existing} has {free / MIB:.0f} MiB free, this training needs about {needed / MIB:.0f} MiB for states and "
            "previews: free some space, or set run.out, run.keep_states or run.preview_every"
        )
    return f"disk: about {needed / MIB:.0f} MiB needed, {free / MIB:.0f} MiB free in {existing}"


def _memory_line(setup: TrainingSetup) -> str:
    estimate = estimate_memory(setup.objective, setup.batches.draw(0, 0), ema=setup.settings.optimizer.ema > 0)
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
