"""Trains the miniature base model from scratch: drawings -> autoencoder -> latents -> denoiser -> export.

Command: `bestiary demo train-base --out FOLDER`. Run it again with the same settings to continue after an interruption.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel as Settings
from pydantic import ConfigDict, Field, ValidationError, model_validator
from torch import nn

from ...concepts.errors import BestiaryError
from ...concepts.files.atomic_file import write_text
from ...demo.captions import caption_of
from ...demo.species import HELD_OUT_SPECIES, random_scene, random_species
from ..model.hardware import cpu_has_fast_bf16, hardware_in_words
from .autoencoder import SHARD, cache_latents, draw_pictures, fit_autoencoder, latent_scale
from .denoiser import LatentSet, cache_emphasis, fit_denoiser, picture_truth, sample_pictures, save_sheet
from .denoiser_shapes import ShapeName
from .model_parts import BaseModel, build_base_model, export_base_model, load_autoencoder, load_text_weights
from .training_state import RunLog, StagePlan, StageState

logger = logging.getLogger(__name__)

SHAPE_DEFAULTS: dict[object, dict[str, object]] = {"dit": {"denoiser_learning_rate": 6e-4}}
"""Shape -> the settings whose defaults differ from those of the UNet."""


class TrainBaseSettings(Settings):
    """Settings of `bestiary demo train-base`."""

    model_config = ConfigDict(extra="forbid")

    shape: ShapeName = Field(
        "unet",
        description="Denoiser to train: a UNet, or a diffusion transformer over the shipped autoencoder that starts from the shipped text encoder.",
    )
    seed: int = Field(1, ge=0, description="Seed of drawings, weights and order.")
    pictures: int = Field(44_000, ge=64, description="Training drawings.")
    latent_pictures: int = Field(44_000, ge=1, description="How many of them, from the first on, train the denoiser.")
    vae_steps: int = Field(4_500, ge=1, description="Optimizer steps of the autoencoder.")
    vae_batch: int = Field(8, ge=1, description="Crops of 64 px per step of the autoencoder.")
    vae_learning_rate: float = Field(1e-3, gt=0, description="Peak learning rate of the autoencoder.")
    latent_weight: float = Field(
        1e-4, ge=0, description="Weight of the latents' mean square in the autoencoder's loss."
    )
    denoiser_steps: int = Field(12_500, ge=1, description="Optimizer steps of denoiser and text encoder.")
    plain_steps: int = Field(
        0, ge=0, description="Steps with plain min-SNR weights, before high noise gets a higher weight."
    )
    reading_after: int = Field(0, ge=0, description="Steps before the reading loss of the part words is added.")
    denoiser_batch: int = Field(32, ge=1, description="Latents per step of the denoiser.")
    denoiser_learning_rate: float = Field(1e-3, gt=0, description="Peak learning rate of denoiser and text encoder.")
    decay_from: float = Field(
        0.6, ge=0, le=1, description="Share of the denoiser's steps after which its learning rate falls."
    )
    ema_decay: float = Field(0.999, ge=0, lt=1, description="Decay of the moving average of the weights.")
    save_every: int = Field(500, ge=1, description="Steps between two saved states, sample sheets and exports.")
    compile: bool = Field(True, description="Use torch.compile if a C++ compiler is available.")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Device to train on; auto uses a GPU if there is one."
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="Number type of the forward passes.")
    hours: float | None = Field(None, gt=0, description="Stop after this time in hours; run again to continue.")
    workers: int = Field(2, ge=1, description="Number of processes for drawing.")

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_shape(cls, values: Any) -> Any:
        return {**SHAPE_DEFAULTS.get(values.get("shape"), {}), **values} if isinstance(values, dict) else values


def parse_settings(values: dict[str, object]) -> TrainBaseSettings:
    """Validated settings; raises BestiaryError naming every invalid one."""
    try:
        return TrainBaseSettings.model_validate(values)
    except ValidationError as fault:
        faults = "; ".join(f"{e['loc'][0]} = {e.get('input')!r}: {e['msg']}" for e in fault.errors())
        raise BestiaryError(f"train-base cannot use these settings: {faults}") from fault


def train_base(settings: TrainBaseSettings, out: Path, work: Path | None = None) -> None:
    """Runs all unfinished stages and writes a model folder of diffusers to `out`.

    `work` (default: `out` with `.work` appended) contains drawings, states, samples and log.jsonl. Raises BestiaryError
    if `work` contains a run with other settings.
    """
    work = work or out.with_name(out.name + ".work")
    work.mkdir(parents=True, exist_ok=True)
    _claim_work_folder(settings, work)
    log = RunLog(work / "log.jsonl")
    log.write(stage="start", hardware=hardware_in_words())
    first, second = stage_plans(settings)
    model = build_base_model(settings.seed, settings.shape)
    if settings.shape == "dit":
        # the latents of both shapes are the same, so that they can be compared; reading captions takes longest to learn
        model.autoencoder = load_autoencoder()
        load_text_weights(model)
    for module in (model.autoencoder, model.denoiser, model.text_encoder):
        _move(module, first.device)
    count = min(settings.latent_pictures, settings.pictures)
    shards = _draw(settings, work, count if settings.shape == "dit" else settings.pictures)
    # first stage: the autoencoder
    if settings.shape == "dit":
        model.autoencoder.requires_grad_(False).eval()
    elif not _train_autoencoder(settings, model, shards, work, log, first):
        return
    # second stage: latents, species and scenes for the captions, and the denoiser
    cached = cache_latents(model.autoencoder, shards[: -(-count // SHARD)], work / "latents", first)[:count]
    truths = [picture_truth(settings.seed, index) for index in range(count)]
    emphasis = cache_emphasis(work / "emphasis", settings.seed, count)
    shipped = settings.shape == "dit"
    scale = float(model.autoencoder.config["scaling_factor"]) if shipped else latent_scale(cached)
    _train_denoiser(settings, model, LatentSet(cached, scale, truths, emphasis), out, work, log, second)


def _draw(settings: TrainBaseSettings, work: Path, count: int) -> list[np.ndarray]:
    """The first `count` training pictures in whole shards of `SHARD`, as far as there are so many."""
    whole = min(-(-count // SHARD) * SHARD, settings.pictures)
    return draw_pictures(work / "pictures", settings.seed, whole, settings.workers)


def stage_plans(settings: TrainBaseSettings) -> tuple[StagePlan, StagePlan]:
    """Plans of the two stages for this machine; the deadline counts from now."""
    # bf16 pays only where the processor computes it natively, so auto falls back to fp32 elsewhere
    has_gpu = torch.cuda.is_available()
    device = torch.device(settings.device if settings.device != "auto" else "cuda" if has_gpu else "cpu")
    dtype = torch.float32 if settings.dtype == "float32" else torch.bfloat16
    if settings.dtype == "auto" and device.type == "cpu" and not cpu_has_fast_bf16():
        dtype = torch.float32
    shared = {
        "seed": settings.seed,
        "device": device,
        "dtype": dtype,
        "compiled": settings.compile and _has_compiler(),
        "deadline": None if settings.hours is None else time.monotonic() + 3600 * settings.hours,
    }
    first = StagePlan(
        steps=settings.vae_steps, batch=settings.vae_batch, save_every=min(settings.save_every, 250), **shared
    )
    second = StagePlan(
        steps=settings.denoiser_steps,
        batch=settings.denoiser_batch,
        save_every=settings.save_every,
        decay_from=settings.decay_from,
        **shared,
    )
    return first, second


def _claim_work_folder(settings: TrainBaseSettings, work: Path) -> None:
    """Stores the settings of a run; those that define its pictures and batches must not change between two starts."""
    path = work / "settings.json"
    if path.exists():
        earlier = TrainBaseSettings.model_validate_json(path.read_text(encoding="utf-8"))
        # steps and rates may change between starts, and more of the drawings may be used; the drawings stay
        for name in ("shape", "seed", "pictures", "latent_pictures"):
            was, now = getattr(earlier, name), getattr(settings, name)
            if was != now and not (name == "latent_pictures" and now > was):
                raise BestiaryError(
                    f"{work} contains a run with {name} = {was}, but {name} = {now} was requested; "
                    "use the earlier value to continue it, or another --out folder to start a new run"
                )
    write_text(path, settings.model_dump_json(indent=2) + "\n")


def _move(module: nn.Module, device: torch.device) -> None:
    module.to(device)
    module.to(memory_format=torch.channels_last)


def _has_compiler() -> bool:
    return any(shutil.which(name) for name in (os.environ.get("CXX", ""), "g++", "clang++") if name)


def _train_autoencoder(
    settings: TrainBaseSettings, model: BaseModel, shards: list[np.ndarray], work: Path, log: RunLog, plan: StagePlan
) -> bool:
    """Trains the autoencoder to the end, or until the deadline (False); its averaged weights stay in the model."""
    state = StageState(
        {"autoencoder": model.autoencoder},
        work / "autoencoder.pt",
        learning_rate=settings.vae_learning_rate,
        ema_decay=min(settings.ema_decay, 0.998),
    )
    state.load()
    fit_autoencoder(model.autoencoder, state, shards, log, plan, magnitude_weight=settings.latent_weight)
    # no further training of the autoencoder: keep the averaged weights
    state.swap_averages()
    model.autoencoder.requires_grad_(False).eval()
    return state.step >= plan.steps


def _train_denoiser(
    settings: TrainBaseSettings,
    model: BaseModel,
    latents: LatentSet,
    out: Path,
    work: Path,
    log: RunLog,
    plan: StagePlan,
) -> None:
    """Trains denoiser and text encoder; every saved state also refreshes the export and a sheet of samples."""
    state = StageState(
        {"denoiser": model.denoiser, "text_encoder": model.text_encoder},
        work / "denoiser.pt",
        learning_rate=settings.denoiser_learning_rate,
        ema_decay=settings.ema_decay,
    )
    state.load()

    def publish(step: int) -> None:
        # sample and export with averaged weights, then continue training with the raw ones
        state.swap_averages()
        pictures = sample_pictures(model, sample_captions(settings.seed), latents.scale, steps=20)
        save_sheet(pictures, 8, work / "samples" / f"step-{step:06d}.png")
        size = export_base_model(model, latents.scale, out)
        state.swap_averages()
        log.write(stage="export", step=step, bytes=size, seconds=round(state.seconds, 1))
        logger.info("denoiser step %d exported to %s (%d bytes)", step, out, size)

    phases = {"plain_steps": settings.plain_steps, "reading_after": settings.reading_after}
    fit_denoiser(model, state, latents, log, plan, publish, **phases)
    if not (out / "model_index.json").exists():
        publish(state.step)


def sample_captions(seed: int) -> list[str]:
    """Captions of a sample sheet: 12 fresh random creatures and 4 held-out species."""
    rng = np.random.default_rng((seed, 99))
    species = [random_species(rng) for _ in range(12)] + list(HELD_OUT_SPECIES[:4])
    return [caption_of(kind, random_scene(rng)) for kind in species]


def main(arguments: list[str] | None = None) -> None:
    """`python -m bestiary.trainer.base_model.train_base --out FOLDER [--work FOLDER] [--any-setting VALUE]`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=None)
    for name, field in TrainBaseSettings.model_fields.items():
        parser.add_argument(f"--{name.replace('_', '-')}", default=None, help=field.description)
    given = vars(parser.parse_args(arguments))
    out, work = given.pop("out"), given.pop("work")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    train_base(parse_settings({name: value for name, value in given.items() if value is not None}), out, work)


if __name__ == "__main__":
    main()
