"""First stage of the base model: draws the pictures, trains the autoencoder, and caches the latents."""

from __future__ import annotations

import logging
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from torch import Tensor
from torch.nn import functional

from ...concepts.files.atomic_file import replacing
from ...demo.creatures import IMAGE_SIZE, Drawing, draw_creature, random_species
from .denoiser_shapes import LATENT_CHANNELS
from .model_parts import LATENT_NOISE, decode, encode
from .training_state import RunLog, StagePlan, StageState, rate_share, step_generator

logger = logging.getLogger(__name__)

SHARD = 2_000
"""Drawings per file."""
CROP = 64
"""Edge in pixels of the squares that the autoencoder is trained on."""
MEASURED_PICTURES = 32
"""Number of pictures, the last of the set, on which a saved state is measured."""


def draw_training_picture(seed: int, index: int) -> Drawing:
    """Picture number `index` of the training set `(128, 128, 3)`, with its ground truth; deterministic in (seed, index)."""
    rng = np.random.default_rng((seed, index))
    return draw_creature(random_species(rng), rng)


def _draw_shard(folder: Path, seed: int, shard: int, count: int) -> Path:
    """One file of drawings `(count, 128, 128, 3)` uint8, drawn unless the file exists."""
    path = folder / f"pictures-{shard:04d}.npy"
    if not path.exists():
        images = np.empty((count, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
        for row in range(count):
            images[row] = draw_training_picture(seed, shard * SHARD + row).image
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.save(file, images)
    return path


def draw_pictures(folder: Path, seed: int, count: int, workers: int) -> list[np.ndarray]:
    """Draws the training pictures once, in shards that survive an interruption -> memory maps `(n, 128, 128, 3)`, n at most 2000."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = [min(SHARD, count - start) for start in range(0, count, SHARD)]
    shards = range(len(sizes))
    if workers <= 1:
        paths = [_draw_shard(folder, seed, shard, sizes[shard]) for shard in shards]
    else:
        # spawned, not forked: threads of torch do not survive a fork
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            futures = [pool.submit(_draw_shard, folder, seed, shard, sizes[shard]) for shard in shards]
            paths = [future.result() for future in futures]
    return [np.load(path, mmap_mode="r") for path in paths]


def to_tensor(images: np.ndarray) -> Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) float32 in -1..1, channels last in memory."""
    pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)  # (B, 3, H, W)
    return pixels.to(torch.float32, memory_format=torch.channels_last) / 127.5 - 1


def pick_pictures(shards: list[np.ndarray], indices: Tensor) -> np.ndarray:
    """Pictures by number -> (B, 128, 128, 3) uint8."""
    return np.stack([shards[i // SHARD][i % SHARD] for i in indices.tolist()])


def reconstruct(autoencoder: AutoencoderTiny, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Images (B, 3, H, W) through the bottleneck with `noise` (B, C, h, w) -> reconstruction, latents."""
    latents = encode(autoencoder, images)  # (B, C, h, w)
    return decode(autoencoder, latents + LATENT_NOISE * noise), latents


def _edges(images: Tensor) -> tuple[Tensor, Tensor]:
    """Differences of neighbouring pixels along rows and columns of `(B, 3, H, W)`."""
    return images[..., 1:] - images[..., :-1], images[..., 1:, :] - images[..., :-1, :]


def reconstruction_loss(images: Tensor, rebuilt: Tensor) -> Tensor:
    """Absolute and squared error of pixels, absolute error of neighbour differences and of 8 px means; (B, 3, H, W)."""
    rebuilt = rebuilt.float()
    # the squared error keeps colours right, differences keep edges sharp, means keep areas even
    pixels = functional.l1_loss(rebuilt, images) + 4 * functional.mse_loss(rebuilt, images)
    edges = sum(functional.l1_loss(a, b) for a, b in zip(_edges(rebuilt), _edges(images), strict=True))
    return pixels + 0.5 * edges + functional.avg_pool2d(rebuilt - images, 8).abs().mean()


@torch.no_grad()
def reconstruction_psnr(autoencoder: AutoencoderTiny, images: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of reconstructions; images (B, 3, H, W) in -1..1."""
    rebuilt = decode(autoencoder, encode(autoencoder, images)).float().clamp(-1, 1)
    error = ((rebuilt - images) / 2).square().mean(dim=(1, 2, 3))  # (B,)
    return float((-10 * error.log10()).mean())


def _crop(images: Tensor, generator: torch.Generator) -> Tensor:
    """One random square of CROP px of a batch (B, 3, H, W) -> (B, 3, CROP, CROP)."""
    top, left = torch.randint(images.shape[-1] - CROP + 1, (2,), generator=generator).tolist()
    square = images[..., top : top + CROP, left : left + CROP]  # (B, 3, CROP, CROP)
    return square.contiguous(memory_format=torch.channels_last)


def fit_autoencoder(
    autoencoder: AutoencoderTiny,
    state: StageState,
    shards: list[np.ndarray],
    log: RunLog,
    plan: StagePlan,
    *,
    magnitude_weight: float,
) -> None:
    """Trains the autoencoder on crops from `state.step` on; saves every `plan.save_every` steps and at the end.

    Crops are sufficient: without normalisation layers a reconstruction depends on its neighbourhood only.
    """
    forward = plan.speeded(reconstruct)
    count = sum(len(shard) for shard in shards)
    while state.step < plan.steps:
        # all random numbers are derived from the step: a resumed training continues bit-identically
        generator = step_generator(plan.seed, 1, state.step)
        indices = torch.randint(count, (plan.batch,), generator=generator)
        noise = torch.randn((plan.batch, LATENT_CHANNELS, CROP // 8, CROP // 8), generator=generator)
        images = _crop(to_tensor(pick_pictures(shards, indices)), generator).to(plan.device)
        with plan.autocast():
            # noise on the latents makes the decoder robust against errors of the denoiser
            rebuilt, latents = forward(autoencoder, images, noise.to(plan.device))
        loss = reconstruction_loss(images, rebuilt) + magnitude_weight * latents.float().square().mean()
        norm = state.descend(loss, rate_share(state.step, plan.steps, decay_from=plan.decay_from))
        if state.step % 50 == 0:
            log.write(stage="autoencoder", step=state.step, loss=round(float(loss.detach()), 5), grad=round(norm, 4))
        last = state.step == plan.steps or plan.expired()
        if last or state.step % plan.save_every == 0:
            state.save()
            _report_psnr(autoencoder, state, shards, log, plan)
        if last:
            return


def _report_psnr(
    autoencoder: AutoencoderTiny, state: StageState, shards: list[np.ndarray], log: RunLog, plan: StagePlan
) -> None:
    """Logs the reconstruction of the last pictures with averaged weights."""
    # the averaged weights are what gets exported, so they are what is measured; swapped back below
    state.swap_averages()
    images = to_tensor(shards[-1][-MEASURED_PICTURES:]).to(plan.device)
    with plan.autocast():
        psnr = reconstruction_psnr(autoencoder, images)
    state.swap_averages()
    log.write(stage="autoencoder", step=state.step, psnr=round(psnr, 3), seconds=round(state.seconds, 1))
    logger.info("autoencoder step %d: %.2f dB", state.step, psnr)


@torch.no_grad()
def cache_latents(autoencoder: AutoencoderTiny, shards: list[np.ndarray], folder: Path, plan: StagePlan) -> Tensor:
    """Latents of every picture, computed once -> (N, C, 16, 16) float16."""
    speeded = plan.speeded(encode)
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for number, shard in enumerate(shards):
        path = folder / f"latents-{number:04d}.npy"
        if not path.exists():
            # one file per shard, so that a stopped run continues at the unfinished shard
            rows = []
            # 20 pictures at a time: activations at full size would fill the memory
            for start in range(0, len(shard), 20):
                with plan.autocast():
                    latents = speeded(
                        autoencoder, to_tensor(shard[start : start + 20]).to(plan.device)
                    )  # (B, C, 16, 16)
                rows.append(latents.to("cpu", torch.float16))
            with replacing(path) as temporary, temporary.open("wb") as file:
                np.save(file, torch.cat(rows).numpy())
        parts.append(torch.from_numpy(np.load(path)))
    return torch.cat(parts)  # (N, C, 16, 16)


def latent_scale(latents: Tensor) -> float:
    """Scaling factor to unit standard deviation for latents (N, C, h, w) including the decoder's training noise."""
    return float(1 / (latents[:4096].float().var() + LATENT_NOISE**2).sqrt())
