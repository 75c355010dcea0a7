"""Pictures from a denoiser: classifier-free guidance with the samplers of diffusers.

Every picture has a seed of its own and its noise is drawn on the CPU, so it does not depend on the batch it is made in.
Letters: N pictures, B pictures of one batch, P learned vectors of a prompt.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, PNDMScheduler
from torch import Tensor

from ...concepts.denoiser.attention_maps import average_maps
from ...concepts.denoiser.denoiser import AttentionRequest, Denoiser, ProgressCallback, TextConditioning
from ...concepts.errors import BestiaryError
from ...concepts.spectrum.staged_conditioning import StagedConditioning

logger = logging.getLogger(__name__)

Sampler = Literal["ddim", "dpmpp_2m", "euler", "pndm"]

SAMPLERS = {
    "ddim": DDIMScheduler,
    "dpmpp_2m": DPMSolverMultistepScheduler,
    "euler": EulerDiscreteScheduler,
    "pndm": PNDMScheduler,
}
Told = TextConditioning | StagedConditioning
"""What pictures are told: the same at every timestep, or stage by stage."""
PIXELS_AT_ONCE = 2**20
"""Pixels of one batch on a GPU or CPU: 64 pictures of 128, 4 of 512, 1 of 1024."""


class SamplingDenoiser(Denoiser, Protocol):
    """A denoiser that also knows the settings its samplers are built from and what an empty prompt says."""

    scheduler_config: Mapping[str, object]

    def empty_conditioning(self) -> TextConditioning:
        """What an empty negative prompt says, `(1, L, E)`."""


@dataclass(frozen=True)
class SampledImages:
    """Finished pictures."""

    images: Tensor
    """`(N, 3, H, W)` float32 on the CPU, 0..1."""
    attention: Tensor | None
    """`(N, P, h, w)` float32 on the CPU: probabilities averaged over layers and steps, conditional half only."""


@dataclass
class _Guidance:
    """The two prompts of one batch and how far to go from one to the other."""

    positive: Told
    negative: Told | None
    scale: float

    def at(self, timestep: Tensor) -> "_Guidance":
        """What they say at one timestep: contexts `(B, L, E)`."""
        negative = None if self.negative is None else _said_at(self.negative, timestep)
        return _Guidance(_said_at(self.positive, timestep), negative, self.scale)

    def predict(
        self, denoiser: Denoiser, latents: Tensor, timestep: Tensor, request: AttentionRequest | None
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Guided prediction `(B, C, h, w)` and attention maps of the conditional half (Ho and Salimans 2022, eq. 6)."""
        batch = len(latents)
        times = timestep.expand(batch)  # (B,)
        # without guidance one evaluation says it all
        if self.negative is None:
            out = denoiser.predict(latents, times, self.positive, request)
            return out.prediction, out.attention
        # prompts of different length cannot share a batch
        if self.negative.context.shape[1] != self.positive.context.shape[1]:
            out = denoiser.predict(latents, times, self.positive, request)
            plain = denoiser.predict(latents, times, self.negative).prediction  # (B, C, h, w)
            return plain + self.scale * (out.prediction - plain), out.attention
        both = _joined(self.positive, self.negative)
        wanted = None if request is None else _conditional_half(request)
        out = denoiser.predict(torch.cat([latents, latents]), torch.cat([times, times]), both, wanted)
        prediction, plain = out.prediction.chunk(2)  # (B, C, h, w) each
        attention = {name: maps[:batch] for name, maps in out.attention.items()}
        return plain + self.scale * (prediction - plain), attention


def sample_images(
    denoiser: SamplingDenoiser,
    positive: Told,
    negative: Told | None,
    *,
    seeds: Sequence[int],
    steps: int = 30,
    guidance: float = 7.5,
    size: int | tuple[int, int] | None = None,
    sampler: Sampler = "ddim",
    attention: AttentionRequest | None = None,
    on_step: ProgressCallback | None = None,
    batch_size: int | None = None,
) -> SampledImages:
    """Make one picture per seed.

    Args:
        positive: conditioning of N prompts, or of one that all pictures share. Staged ones cost no more evaluations: at
            every timestep each picture is told its stage.
        negative: likewise; None takes the model's empty prompt. It may be longer or shorter than `positive`.
        seeds: one per picture; the same seed gives the same picture in any batch, up to rounding.
        steps: denoising steps, at least 1.
        guidance: classifier-free guidance scale; 1 or less uses the positive prompt alone at half the work.
        size: edge, or (height, width), in pixels, multiples of 8; None is the model's native size.
        attention: tokens whose maps are averaged over layers and steps; positions `(N, P)` or `(1, P)`.
        on_step: called with (steps done, steps in all) over all batches.
        batch_size: pictures made at once; None chooses by size.

    Raises:
        BestiaryError: a value out of range, prompts that do not match the seeds, or numbers that are not finite.
    """
    _check_request(seeds, steps, sampler)
    if attention is not None and isinstance(positive, StagedConditioning):
        raise BestiaryError("attention maps are made of prompts that say the same at every stage: leave stages out")
    # all of the request is checked before anything is computed
    height, width = _checked_size(denoiser, size)
    positive = _matched(positive, len(seeds), "positive")
    negative = None if guidance <= 1 else _matched(negative or denoiser.empty_conditioning(), len(seeds), "negative")
    at_once = batch_size or pictures_at_once(denoiser, size)
    batches = list(_slices(len(seeds), at_once))
    schedule = build_sampler(sampler, denoiser.scheduler_config)
    schedule.set_timesteps(steps)
    advance = _step_counter(len(schedule.timesteps) * len(batches), on_step)
    # batches of pictures; each draws its own noise
    images, maps = [], []
    with torch.no_grad():
        for rows in batches:
            prompts = _Guidance(_rows(positive, rows), None if negative is None else _rows(negative, rows), guidance)
            request = None if attention is None else _request_rows(attention, rows, len(seeds))
            noise = draw_noise(denoiser, seeds[rows], (height, width))
            latents, averaged = _denoise(denoiser, noise, prompts, request, steps, sampler, advance)
            images.append(denoiser.decode_latents(latents).cpu())  # (B, 3, H, W)
            maps.append(averaged)
    pictures = torch.cat(images)
    _check_finite(pictures, "decoded pictures", seeds)
    return SampledImages(pictures, None if attention is None else torch.cat(maps))


def pictures_at_once(denoiser: SamplingDenoiser, size: int | tuple[int, int] | None) -> int:
    """How many pictures of a size, an edge or (height, width) in pixels, are made in one batch.

    Raises:
        BestiaryError: the model makes no pictures of this size.
    """
    height, width = _checked_size(denoiser, size)
    return max(1, PIXELS_AT_ONCE // (height * width))


def draw_noise(denoiser: Denoiser, seeds: Sequence[int], size: tuple[int, int]) -> Tensor:
    """Standard normal noise `(B, C, h, w)` float32 on the CPU, row i from seed i alone, for pictures of `size` pixels."""
    factor = denoiser.backbone.latent_factor
    shape = (denoiser.backbone.latent_channels, size[0] // factor, size[1] // factor)
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def build_sampler(name: Sampler, config: Mapping[str, object]) -> object:
    """A diffusers scheduler of the asked kind with the model's own noise schedule."""
    known = {key: value for key, value in config.items() if not key.startswith("_")}
    if name == "dpmpp_2m":
        known |= {"algorithm_type": "dpmsolver++", "solver_order": 2}
    if name == "pndm":
        known |= {"skip_prk_steps": True}
    # latents of a latent model have no fixed range; a clip left in a config would cut them
    return SAMPLERS[name].from_config(known | {"clip_sample": False, "thresholding": False})


def _denoise(
    denoiser: SamplingDenoiser,
    noise: Tensor,
    prompts: _Guidance,
    request: AttentionRequest | None,
    steps: int,
    sampler: Sampler,
    advance: Callable[[], None],
) -> tuple[Tensor, Tensor | None]:
    """Noise -> latents `(B, C, h, w)` on the device, and attention maps `(B, P, h, w)` on the CPU."""
    scheduler = build_sampler(sampler, denoiser.scheduler_config)
    scheduler.set_timesteps(steps)
    # each sampler starts at its own spread of noise
    latents = noise.to(denoiser.device) * float(scheduler.init_noise_sigma)
    total, grid = None, None
    for timestep in scheduler.timesteps:
        # one evaluation of both prompts, then one step of the sampler
        model_input = scheduler.scale_model_input(latents, timestep)  # (B, C, h, w)
        prediction, attention = prompts.at(timestep).predict(denoiser, model_input, timestep, request)
        latents = scheduler.step(prediction, timestep, latents, return_dict=False)[0]
        # maps of every step on the finest grid that was asked for
        if request is not None:
            grid = grid or _finest(attention)
            maps = average_maps(attention, grid)  # (B, P, h, w)
            total = maps if total is None else total + maps
        advance()
    _check_finite(latents, "latents", ())
    return latents, None if total is None else (total / len(scheduler.timesteps)).cpu()


def _finest(attention: Mapping[str, Tensor]) -> tuple[int, int]:
    """Largest grid among maps `(B, P, h, w)`."""
    return max(tuple(maps.shape[-2:]) for maps in attention.values())


def _joined(positive: TextConditioning, negative: TextConditioning) -> TextConditioning:
    """Conditional and unconditional rows in one batch: context `(2B, L, E)`, pooled `(2B, E_pooled)`."""
    pooled = None if positive.pooled is None else torch.cat([positive.pooled, negative.pooled])
    sizes = None
    if positive.sizes is not None:
        sizes = torch.cat([positive.sizes, positive.sizes if negative.sizes is None else negative.sizes])
    return TextConditioning(torch.cat([positive.context, negative.context]), pooled, None, sizes)


def _conditional_half(request: AttentionRequest) -> AttentionRequest:
    """The same request for a batch of which only the first half is asked: -1 gives no column."""
    positions = torch.cat([request.positions, torch.full_like(request.positions, -1)])  # (2B, P)
    return replace(request, positions=positions)


def _said_at(text: Told, timestep: Tensor) -> TextConditioning:
    """What a prompt says at a timestep: itself, or its stage's rows `(B, L, E)`."""
    return text.at(timestep) if isinstance(text, StagedConditioning) else text


def _matched(text: Told, count: int, kind: str) -> Told:
    """One prompt for all pictures, or one for each."""
    batch = len(text) if isinstance(text, StagedConditioning) else len(text.context)
    if batch == count:
        return text
    if batch != 1:
        raise BestiaryError(f"{batch} {kind} prompts for {count} seeds: give one prompt, or one for every seed")
    if isinstance(text, StagedConditioning):
        return replace(text, rows=text.rows.expand(count, -1))  # (N, S)

    # one row in memory, seen by all pictures
    def repeated(values: Tensor | None) -> Tensor | None:
        return None if values is None else values.expand(count, *values.shape[1:])  # (N, ...), one row in memory

    return TextConditioning(*(repeated(part) for part in (text.context, text.pooled, text.positions, text.sizes)))


def _rows(text: Told, rows: slice) -> Told:
    if isinstance(text, StagedConditioning):
        return text.pictures(rows)
    parts = (text.context, text.pooled, text.positions, text.sizes)
    return TextConditioning(*(None if part is None else part[rows] for part in parts))


def _request_rows(request: AttentionRequest, rows: slice, count: int) -> AttentionRequest:
    positions = request.positions.expand(count, -1)[rows]  # (B, P)
    return replace(request, positions=positions)


def _slices(count: int, size: int) -> Iterator[slice]:
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def _step_counter(total: int, on_step: ProgressCallback | None) -> Callable[[], None]:
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        if on_step is not None:
            on_step(done, total)

    return advance


def _check_request(seeds: Sequence[int], steps: int, sampler: str) -> None:
    if not seeds:
        raise BestiaryError("no seed was given: give at least one, for example 0")
    if steps < 1:
        raise BestiaryError(f"steps is {steps}: it must be at least 1")
    if sampler not in SAMPLERS:
        raise BestiaryError(f"unknown sampler {sampler!r}: choose one of {', '.join(SAMPLERS)}")


def _checked_size(denoiser: Denoiser, size: int | tuple[int, int] | None) -> tuple[int, int]:
    edge = denoiser.backbone.image_size if size is None else size
    height, width = (edge, edge) if isinstance(edge, int) else edge
    # whole latent cells only
    factor = denoiser.backbone.latent_factor
    if height < factor or width < factor or height % factor or width % factor:
        raise BestiaryError(
            f"picture size {height} x {width}: both edges must be positive multiples of {factor} pixels"
        )
    return height, width


def _check_finite(values: Tensor, what: str, seeds: Sequence[int]) -> None:
    """Refuse latents or pictures `(B, C, h, w)` with a NaN or an infinity in them."""
    if bool(torch.isfinite(values).all()):
        return
    suffix = f" (seeds {', '.join(map(str, seeds))})" if seeds else ""
    raise BestiaryError(
        f"the {what} contain numbers that are not finite{suffix}: the model or its LoRA overflowed; try dtype fp32 or bf16, "
        "a lower LoRA strength or a lower guidance"
    )
