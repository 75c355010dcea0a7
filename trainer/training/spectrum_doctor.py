"""Looks a spectrum training over before its first step: pictures, stages, disk, memory, one forward pass, one preview."""

import logging
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from ...concepts.errors import BestiaryError
from ..learning.run.run_folder import RunFolder
from ..learning.spectrum.spectrum_settings import TrainSpectrumSettings
from .doctor import MIB, PREVIEW_MIB, PREVIEW_STEPS, DoctorReport
from .memory_estimate import GIB, estimate_memory
from .spectrum_previews import SpectrumPreviews
from .spectrum_setup import SpectrumSetup, prepare_spectrum

logger = logging.getLogger("bestiary")


def examine_spectrum(settings: TrainSpectrumSettings) -> Iterator[str]:
    """Findings about a training that is not started; only latents are written, into their cache.

    Raises:
        BestiaryError: what would stop the training.
    """
    yield from examine_spectrum_setup(prepare_spectrum(settings), None).lines


def examine_spectrum_setup(setup: SpectrumSetup, run: RunFolder | None) -> DoctorReport:
    """Findings about a prepared training; with a run folder also a first preview.

    Raises:
        BestiaryError: the disk is too small, or the first forward pass gives no finite loss.
    """
    report = DoctorReport()
    for line in _material_lines(setup):
        report.add(line)
    report.add(_disk_line(setup, run.path if run else setup.settings.run.out))
    if setup.settings.run.estimate_memory:
        report.add(_memory_line(setup))
    report.add(_forward_line(setup))
    if run and setup.settings.run.preview_every:
        started = time.monotonic()
        SpectrumPreviews(setup, run).write(0, sampling_steps=PREVIEW_STEPS)
        report.add(f"preview: {run.samples / 'step-0000000.png'} in {time.monotonic() - started:.1f} s")
    return report


def _material_lines(setup: SpectrumSetup) -> Iterator[str]:
    pictures, plan, settings = setup.pictures, setup.batches.plan, setup.settings
    yield f"pictures: {len(pictures.names)} in {pictures.folder}, {len(pictures.skipped)} files left out"
    yield f"sizes: trained at {setup.image_size} px, cached at {setup.spec.image_size} px"
    words = settings.method.initial_words or "common words"
    yield (
        f"stages: {setup.bounds.stages} with {settings.method.vectors} vectors each, "
        f"{sum(p.numel() for p in setup.objective.parameters()):,} learned numbers, start from {words}"
    )
    updates = settings.optimizer.steps * plan.step_size / setup.bounds.stages
    yield f"work: {settings.optimizer.steps} steps of {plan.step_size} pictures, {updates:.1f} pictures for every stage"


def _disk_line(setup: SpectrumSetup, place: Path) -> str:
    run, steps = setup.settings.run, setup.settings.optimizer.steps
    learned = sum(parameter.numel() for parameter in setup.objective.parameters())
    # weights, two moments and perhaps an average in four bytes each; kept states, and two more while they change
    states = 4 * learned * (4 if setup.settings.optimizer.ema else 3) * (run.keep_states + 2)
    previews = steps // run.preview_every if run.preview_every else 0
    needed = states + previews * PREVIEW_MIB * MIB
    existing = next(folder for folder in (place.absolute(), *place.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise BestiaryError(
            f"{existing} has {free / MIB:.0f} MiB free, this training needs about {needed / MIB:.0f} MiB for states and "
            "previews: free some space, or set run.out, run.keep_states or run.preview_every"
        )
    return f"disk: about {needed / MIB:.0f} MiB needed, {free / MIB:.0f} MiB free in {existing}"


def _memory_line(setup: SpectrumSetup) -> str:
    estimate = estimate_memory(setup.objective, setup.batches.draw(0, 0), ema=setup.settings.optimizer.ema > 0)
    return (
        f"memory: about {estimate.total / GIB:.2f} GiB (frozen weights {estimate.frozen / GIB:.2f}, learned weights and "
        f"optimiser {estimate.learned / GIB:.2f}, activations {estimate.activations / GIB:.2f})"
    )


@torch.no_grad()
def _forward_line(setup: SpectrumSetup) -> str:
    # no gradients: the first real batch through the objective, as the loop will call it
    started = time.monotonic()
    loss = float(setup.objective(setup.batches.draw(0, 0)).curves["loss"])
    if not np.isfinite(loss):
        raise BestiaryError(
            f'the first forward pass gives a loss of {loss}: set run.dtype = "fp32", or use another base model'
        )
    denoiser = setup.denoiser
    return f"first forward pass: loss {loss:.4f} in {time.monotonic() - started:.2f} s on {denoiser.device} in {denoiser.dtype}"
