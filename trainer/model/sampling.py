"""Pictures from a denoiser: classifier-free guidance with the samplers of diffusers.

Every picture has a seed of its own and its noise is drawn on the CPU, so it does not depend on the batch it is made in.
Letters: N pictures, B pictures of one batch, P learned vectors of a prompt.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, cast

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, PNDMScheduler
from torch import Tensor

from ...concepts.denoiser.attention_maps import average_maps
from ...concepts.denoiser.denoiser import AttentionRequest, Conditioning, Denoiser, Network, ProgressCallback
from ...concepts.denoiser.image_side import PixelSpace
from ...concepts.denoiser.process import FlowProcess
from ...concepts.errors import BestiaryError
from ...concepts.spectrum.staged_conditioning import StagedConditioning
from .flow_sampler import FlowEuler

logger = logging.getLogger(__name__)

Sampler = Literal["ddim", "dpmpp_2m", "euler", "pndm"]

SAMPLERS = {
    "ddim": DDIMScheduler,
    "dpmpp_2m": DPMSolverMultistepScheduler,
    "euler": EulerDiscreteScheduler,
    "pndm": PNDMScheduler,
}
FLOW_SAMPLERS = ("euler", "ddim")
"""Samplers of flow models: both names mean Euler's steps, which DDIM's are along a straight path."""
Prompted = Conditioning | StagedConditioning
"""Text conditioning of pictures: the same at every timestep, or stage by stage."""
PIXELS_AT_ONCE = 2**20
"""Pixels of one batch on a GPU or CPU: 64 pictures of 128, 4 of 512, 1 of 1024."""


class SamplingDenoiser(Denoiser):
    """A denoiser that also knows the settings its samplers are built from."""

    scheduler_config: Mapping[str, Any]

    @property
    def is_guided(self) -> bool:
        """Whether the network takes the guidance scale as a number, so that one evaluation says what two would."""
        return False

    @property
    def autoencoder_dtype(self) -> torch.dtype:
        """Dtype in which pictures are encoded; pixels are kept as they are."""
        return torch.float32

    def drop_autoencoder(self) -> None:
        """Free what encodes and decodes pictures, for a training run that reads cached ones; of pixels there is nothing to free."""


class Scheduler(Protocol):
    """What is used of a sampler of diffusers."""

    timesteps: Tensor
    """`(S,)`, falling."""

    @property
    def init_noise_sigma(self) -> float | Tensor:
        """Spread of the noise it starts from."""
        ...

    def set_timesteps(self, num_inference_steps: int) -> None:
        """Choose so many timesteps."""
        ...

    def scale_model_input(self, sample: Tensor, timestep: Any) -> Tensor:
        """Latents `(B, C, h, w)` as the network takes them at a timestep."""
        ...

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, *, return_dict: bool) -> Any:
        """One step of latents `(B, C, h, w)`: a tuple that starts with them, without `return_dict`."""
        ...


@dataclass(frozen=True)
class SampledImages:
    """Finished pictures."""

    images: Tensor
    """`(N, 3, H, W)` float32 on the CPU, 0..1."""
    attention: Tensor | None
    """`(N, P, h, w)` float32 on the CPU: probabilities averaged over layers and steps, conditional half only."""


@dataclass
class Guidance:
    """The two prompts of one batch and how far to go from one to the other."""

    positive: Prompted
    negative: Prompted | None
    scale: float

    def predict(
        self, network: Network, latents: Tensor, time: float, request: AttentionRequest | None
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Guided prediction `(B, C, h, w)` and attention maps of the conditional half (Ho and Salimans 2022, eq. 6)."""
        batch = len(latents)
        # in float64, where a sampler's fractional timesteps survive the way to times and back
        times = torch.full((batch,), time, dtype=torch.float64)  # (B,)
        positive = _at(self.positive, time)
        # without guidance one evaluation says it all
        if self.negative is None:
            out = network.predict(latents, times, positive, request)
            return out.prediction, out.attention
        negative = _at(self.negative, time)
        # prompts of different length cannot share a batch
        if negative.context.shape[1] != positive.context.shape[1]:
            out = network.predict(latents, times, positive, request)
            plain = network.predict(latents, times, negative).prediction  # (B, C, h, w)
            return plain + self.scale * (out.prediction - plain), out.attention
        both = _joined(positive, negative)
        wanted = None if request is None else _conditional_half(request)
        out = network.predict(torch.cat([latents, latents]), torch.cat([times, times]), both, wanted)
        prediction, plain = out.prediction.chunk(2)  # (B, C, h, w) each
        attention = {name: maps[:batch] for name, maps in out.attention.items()}
        return plain + self.scale * (prediction - plain), attention


@dataclass(frozen=True)
class PromptRegions:
    """Prompts of parts of a picture."""

    prompts: Sequence[Conditioning]
    """K of one row each, seen by all pictures."""
    masks: Tensor
    """`(K, h, w)` in 0..1, at most 1 in sum: how much of the prediction at a place is of each; the rest is the whole picture's."""


@dataclass
class RegionGuidance(Guidance):
    """The prompts of one batch, and others for regions of its pictures."""

    regions: Sequence[Prompted]
    masks: Tensor
    """`(K, h, w)` as in `PromptRegions`."""

    def predict(
        self, network: Network, latents: Tensor, time: float, request: AttentionRequest | None
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Guided predictions `(B, C, h, w)` of all prompts averaged by their masks, and attention maps of the whole picture's."""
        whole, attention = super().predict(network, latents, time, request)
        blended = whole * (1 - self.masks.sum(0))
        for mask, text in zip(self.masks, self.regions, strict=True):
            own, _ = Guidance(text, self.negative, self.scale).predict(network, latents, time, None)
            blended = blended + own * mask
        return blended, attention


def sample_images(
    denoiser: SamplingDenoiser,
    positive: Prompted,
    negative: Prompted | None,
    *,
    seeds: Sequence[int],
    steps: int = 30,
    guidance: float = 7.5,
    size: int | tuple[int, int] | None = None,
    sampler: Sampler = "ddim",
    attention: AttentionRequest | None = None,
    on_step: ProgressCallback | None = None,
    batch_size: int | None = None,
    regions: PromptRegions | None = None,
) -> SampledImages:
    """Make one picture per seed.

    Args:
        positive: conditioning of N prompts, or of one that all pictures share. Staged ones cost no more evaluations: at
            every timestep each picture gets the conditioning of its stage.
        negative: likewise; None takes the model's empty prompt. It may be longer or shorter than `positive`. Models that were distilled for
            guidance take none.
        seeds: one per picture; the same seed gives the same picture in any batch, up to rounding.
        steps: denoising steps, at least 1.
        guidance: classifier-free guidance scale; 1 or less uses the positive prompt alone at half the work. Models that were distilled for
            guidance are given it as a number.
        size: edge, or (height, width), in pixels, multiples of 8; None is the model's native size.
        attention: tokens whose maps are averaged over layers and steps; columns `(N, P, K)` or `(1, P, K)`.
        on_step: called with (steps done, steps in all) over all batches.
        batch_size: pictures made at once; None chooses by size.
        regions: prompts of parts of the pictures; each costs as much as `positive`.

    Raises:
        BestiaryError: a value out of range, prompts that do not match the seeds, or numbers that are not finite.
    """
    _check_request(seeds, steps, sampler)
    if attention is not None and isinstance(positive, StagedConditioning):
        raise BestiaryError("attention maps are made of prompts that say the same at every stage: leave stages out")
    # all of the request is checked before anything is computed
    height, width = _checked_size(denoiser, size)
    positive = _matched(positive, len(seeds), "positive")
    if denoiser.is_guided:
        positive, negative, guidance = _with_guidance(positive, guidance), None, 1.0
    negative = None if guidance <= 1 else _matched(negative or denoiser.empty_conditioning(), len(seeds), "negative")
    at_once = batch_size or pictures_at_once(denoiser, size)
    batches = list(_slices(len(seeds), at_once))
    schedule = sampler_of(denoiser, sampler)
    schedule.set_timesteps(steps)
    advance = _step_counter(len(schedule.timesteps) * len(batches), on_step)
    # batches of pictures; each draws its own noise
    images, maps = [], []
    with torch.no_grad():
        for rows in batches:
            prompts = Guidance(_rows(positive, rows), None if negative is None else _rows(negative, rows), guidance)
            if regions is not None:
                own = [prompt.expanded(len(seeds[rows])) for prompt in regions.prompts]
                masks = regions.masks.to(denoiser.device)
                prompts = RegionGuidance(prompts.positive, prompts.negative, guidance, own, masks)
            request = None if attention is None else _request_rows(attention, rows, len(seeds))
            noise = draw_noise(denoiser, seeds[rows], (height, width))
            latents, averaged = _denoise(denoiser, noise, prompts, request, steps, sampler, advance)
            images.append(denoiser.images.decode(latents).cpu())  # (B, 3, H, W)
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
    shape = denoiser.images.shape(size)
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def build_sampler(name: Sampler, config: Mapping[str, Any], *, in_pixels: bool = False) -> Scheduler:
    """A diffusers scheduler of the asked kind with the model's own noise schedule, and for pixels its limits of their range."""
    known = {key: value for key, value in config.items() if not key.startswith("_")}
    if in_pixels:
        # the variance that such models learn is for DDPM alone
        known.pop("variance_type", None)
    if name == "dpmpp_2m":
        known |= {"algorithm_type": "dpmsolver++", "solver_order": 2}
    if name == "pndm":
        known |= {"skip_prk_steps": True}
    # latents of a latent model have no fixed range; a clip left in a config would cut them
    # from_config also gives what it did not use, but only where it is asked to
    limits = {} if in_pixels else {"clip_sample": False, "thresholding": False}
    return cast(Scheduler, SAMPLERS[name].from_config(known | limits))


def _denoise(
    denoiser: SamplingDenoiser,
    noise: Tensor,
    prompts: Guidance,
    request: AttentionRequest | None,
    steps: int,
    sampler: Sampler,
    advance: Callable[[], None],
) -> tuple[Tensor, Tensor | None]:
    """Noise -> latents `(B, C, h, w)` on the device, and attention maps `(B, P, h, w)` on the CPU."""
    scheduler = sampler_of(denoiser, sampler)
    scheduler.set_timesteps(steps)
    # each sampler starts at its own spread of noise
    latents = noise.to(denoiser.device) * float(scheduler.init_noise_sigma)
    total, grid = None, None
    for timestep in scheduler.timesteps:
        # one evaluation of both prompts, then one step of the sampler
        model_input = scheduler.scale_model_input(latents, timestep)  # (B, C, h, w)
        time = denoiser.process.time_of(float(timestep))
        prediction, attention = prompts.predict(denoiser.network, model_input, time, request)
        latents = scheduler.step(prediction, timestep, latents, return_dict=False)[0]
        # maps of every step on the finest grid that was asked for
        if request is not None:
            grid = grid or _finest(attention)
            maps = average_maps(attention, grid)  # (B, P, h, w)
            total = maps if total is None else total + maps
        advance()
    _check_finite(latents, "latents", ())
    return latents, None if total is None else (total / len(scheduler.timesteps)).cpu()


def sampler_of(denoiser: SamplingDenoiser, name: Sampler) -> Scheduler:
    """The sampler of this name for a model.

    Raises:
        BestiaryError: it does not exist for flow models.
    """
    if isinstance(denoiser.process, FlowProcess):
        if name not in FLOW_SAMPLERS:
            raise BestiaryError(
                f"sampler {name!r} does not follow a flow, and {denoiser.backbone.name} is a flow model: choose {' or '.join(FLOW_SAMPLERS)}",
                option="sampler",
            )
        return FlowEuler(denoiser.process)
    return build_sampler(name, denoiser.scheduler_config, in_pixels=isinstance(denoiser.images, PixelSpace))


def _finest(attention: Mapping[str, Tensor]) -> tuple[int, int]:
    """Largest grid among maps `(B, P, h, w)`."""
    return max((maps.shape[-2], maps.shape[-1]) for maps in attention.values())


def _joined(positive: Conditioning, negative: Conditioning) -> Conditioning:
    """Conditional and unconditional rows in one batch: context `(2B, T, E)`, extras `(2B, ...)`."""
    extras = {
        name: torch.cat([own, negative.extras.get(name, own)]) for name, own in positive.extras.items()
    }  # what the negative prompt does not say is as in the positive one
    return Conditioning.of(torch.cat([positive.context, negative.context]), **extras)


def _conditional_half(request: AttentionRequest) -> AttentionRequest:
    """The same request for a batch of which only the first half is asked: -1 gives no column."""
    columns = torch.cat([request.columns, torch.full_like(request.columns, -1)])  # (2B, P, K)
    return replace(request, columns=columns)


def _at(text: Prompted, time: float) -> Conditioning:
    """The conditioning at a time: itself, or its stage's rows `(B, T, E)`."""
    return text.at(time) if isinstance(text, StagedConditioning) else text


def _matched(text: Prompted, count: int, kind: str) -> Prompted:
    """One prompt for all pictures, or one for each."""
    batch = len(text)
    if batch == count:
        return text
    if batch != 1:
        raise BestiaryError(f"{batch} {kind} prompts for {count} seeds: give one prompt, or one for every seed")
    if isinstance(text, StagedConditioning):
        return replace(text, rows=text.rows.expand(count, -1))  # (N, S)

    # one row in memory, seen by all pictures
    return text.expanded(count)


def _with_guidance(text: Prompted, scale: float) -> Prompted:
    """The same prompts for a model that takes guidance as a number `(B,)`."""
    if isinstance(text, StagedConditioning):
        return replace(text, text=text.text.with_extras(guidance=torch.full((len(text.text),), scale)))
    return text.with_extras(guidance=torch.full((len(text),), scale))


def _rows(text: Prompted, rows: slice) -> Prompted:
    if isinstance(text, StagedConditioning):
        return text.pictures(rows)
    return text.rows(rows)


def _request_rows(request: AttentionRequest, rows: slice, count: int) -> AttentionRequest:
    columns = request.columns.expand(count, -1, -1)[rows]  # (B, P, K)
    return replace(request, columns=columns)


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
    # whole latent cells, or whole patches of them
    factor = denoiser.backbone.pixel_step
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
