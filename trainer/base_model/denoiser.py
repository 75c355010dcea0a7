"""Second stage of the base model: the denoiser and its text encoder, trained on cached latents and fresh captions."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from diffusers.models.attention_processor import Attention
from einops import rearrange
from PIL import Image
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...concepts.errors import BestiaryError
from ...concepts.files.atomic_file import replacing
from ...demo.captions import caption_of
from ...demo.species import PARTS, Scene, Species, random_scene, random_species
from ..learning.denoiser.prompt_encoding import ClipStates
from ..model.text_conditioning import run_clip
from .autoencoder import SHARD, draw_training_picture
from .caption_reading import ReadingLoss, slot_embeddings
from .denoiser_shapes import LATENT_CHANNELS
from .model_parts import LATENT_NOISE, BaseModel, decode, encode_captions
from .training_state import RunLog, StagePlan, StageState, rate_share, step_generator

logger = logging.getLogger(__name__)

SMALLEST_PART = 0.01
"""Share of the picture below which the emphasis of a part no longer grows."""
MERGED_SHARE = 0.4
"""Share of the captions in which a part's words are merged into one position."""
READING_WEIGHT = 0.1
"""Weight of the reading loss in the loss of the second stage."""


@dataclass(frozen=True)
class LatentSet:
    """Cached latents with the species and scenes that their captions are built from."""

    values: Tensor
    """(N, C, 16, 16) float16."""
    scale: float
    """Factor to unit standard deviation."""
    truths: Sequence[tuple[Species, Scene]]
    """Species and scene of every picture."""
    emphasis: Tensor | None = None
    """(N, 16, 16) float16, mean 1 in every picture: weight of each latent cell in the loss; None is 1 everywhere."""

    def batch(self, indices: Tensor, generator: torch.Generator) -> Tensor:
        """Scaled latents of some pictures, with the decoder's training noise -> (B, C, 16, 16) float32."""
        values = self.values[indices].float()  # (B, C, 16, 16)
        return (values + LATENT_NOISE * torch.randn(values.shape, generator=generator)) * self.scale

    def weigh(self, errors: Tensor, indices: Tensor) -> Tensor:
        """Squared errors (B, C, 16, 16) of some pictures -> their weighted means (B,)."""
        errors = errors.mean(dim=1)  # (B, 16, 16)
        if self.emphasis is not None:
            errors = errors * self.emphasis[indices].to(errors)
        return errors.mean(dim=(1, 2))


def picture_truth(seed: int, index: int) -> tuple[Species, Scene]:
    """Species and scene of training picture `index`, without drawing it."""
    rng = np.random.default_rng((seed, index))
    species = random_species(rng)
    return species, random_scene(rng)


def part_emphasis(labels: np.ndarray) -> np.ndarray:
    """Loss weight of each cell: one half uniform, one half divided equally among the visible parts, however small.

    Labels (H, W) of `demo.creatures` -> (16, 16) float16 with mean 1. The denoiser's optimum is unchanged; heads and
    legs, a few of 256 cells, are learned about as early as the background.
    """
    # one mask per region, the background too, and the share of every latent cell that it covers
    regions = (labels[None] == np.arange(len(PARTS) + 1)[:, None, None]).astype(np.float32)  # (R, H, W)
    height, width = labels.shape
    shares = regions.reshape(len(regions), 16, height // 16, 16, width // 16).mean(axis=(2, 4))  # (R, 16, 16)
    areas = np.maximum(shares.mean(axis=(1, 2)), SMALLEST_PART)  # (R,)
    weights = 0.5 + 0.5 * (shares / areas[:, None, None]).sum(axis=0) / len(regions)  # (16, 16)
    return (weights / weights.mean()).astype(np.float16)


def cache_emphasis(folder: Path, seed: int, count: int) -> Tensor:
    """`part_emphasis` of the first `count` training pictures, cached in one file per shard -> (N, 16, 16)."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for shard, start in enumerate(range(0, count, SHARD)):
        # the number of pictures is part of the name: a shorter shard is another file
        path = folder / f"emphasis-{shard:04d}-{min(SHARD, count - start)}.npy"
        if not path.exists():
            drawings = (draw_training_picture(seed, index) for index in range(start, min(start + SHARD, count)))
            maps = np.stack([part_emphasis(drawing.labels) for drawing in drawings])
            with replacing(path) as temporary, temporary.open("wb") as file:
                np.save(file, maps)
        parts.append(torch.from_numpy(np.load(path)))
    return torch.cat(parts)[:count]


def predict(model: BaseModel, noisy: Tensor, times: Tensor, ids: Tensor) -> Tensor:
    """Text encoder and denoiser in one pass: noisy (B, C, h, w), times (B,), ids (B, 77) -> prediction (B, C, h, w)."""
    return model.shape.evaluate(model.denoiser, noisy, times, _read(model, ids.unsqueeze(-1)))


def predict_and_read(model: BaseModel, noisy: Tensor, times: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
    """As `predict` for slots (B, 77, 4), with the text encoder's output (B, 77, D) beside the prediction."""
    text = _read(model, slots)
    return model.shape.evaluate(model.denoiser, noisy, times, text), text.hidden


def _read(model: BaseModel, slots: Tensor) -> ClipStates:
    """States (B, 77, D) of slots (B, 77, words), and the pooled state (B, D) where the shape has one."""
    embeddings = slot_embeddings(model.word_embeddings.weight, slots)  # (B, 77, D)
    # the first of the end tokens; those after it are padding
    end = cast(int, model.tokenizer.eos_token_id)
    ends = slots[..., 0].eq(end).int().argmax(dim=1)  # (B,)
    return run_clip(model.text_encoder, embeddings, model.shape.backbone.text_encoders[0], ends)


class QuickAttention:
    """Attention of diffusers' blocks as plain matrix products, whose backward pass in bf16 is fastest on a CPU."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Hidden states (B, N, D), context (B, L, E) or None for self-attention -> (B, N, D); masks are not supported."""
        _refuse_mask(attention_mask)
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            _split_heads(attn, name, tokens)
            for name, tokens in (("to_q", hidden_states), ("to_k", context), ("to_v", context))
        )
        mixed = _mix(query, key, value)  # (B, N, D)
        return cast(nn.ModuleList, attn.to_out)[0](mixed.to(hidden_states.dtype))


class QuickJointAttention:
    """The same of the transformer's attention, in which image and text attend to both, the image first."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Image (B, N, D) and text (B, L, D) -> both; the text of the last block, which nothing reads, has no projection."""
        _refuse_mask(attention_mask)
        pairs = ((hidden_states, "to_", ""), (encoder_hidden_states, "add_", "_proj"))
        (q, k, v), (text_q, text_k, text_v) = (
            [_split_heads(attn, f"{before}{kind}{after}", tokens) for kind in "qkv"] for tokens, before, after in pairs
        )
        norm_q, norm_k, norm_text_q, norm_text_k = (
            cast(nn.Module, norm) for norm in (attn.norm_q, attn.norm_k, attn.norm_added_q, attn.norm_added_k)
        )
        query = torch.cat([norm_q(q), norm_text_q(text_q)], dim=2)  # (B, H, N + L, d)
        key = torch.cat([norm_k(k), norm_text_k(text_k)], dim=2)
        image, text = _mix(query, key, torch.cat([v, text_v], dim=2)).split(
            [hidden_states.shape[1], encoder_hidden_states.shape[1]], dim=1
        )
        image = cast(nn.ModuleList, attn.to_out)[0](image)
        return image, text if attn.context_pre_only else cast(nn.Module, attn.to_add_out)(text)


def _refuse_mask(mask: Tensor | None) -> None:
    if mask is not None:
        raise BestiaryError(f"the base model attends without masks, got one of shape {tuple(mask.shape)}")


def _split_heads(attn: Attention, projection: str, tokens: Tensor) -> Tensor:
    """Tokens (B, N, D) through a projection of the layer -> (B, H, N, d)."""
    return rearrange(attn.get_submodule(projection)(tokens), "b n (h d) -> b h n d", h=attn.heads)


def _mix(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of (B, H, N, d) -> (B, N, H * d)."""
    # plain products: on a CPU their backward pass in bf16 is the fastest
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)  # (B, H, N, L)
    return rearrange(scores.softmax(dim=-1).to(value.dtype) @ value, "b h n d -> b n (h d)")


QUICK = {"unet": QuickAttention, "dit": QuickJointAttention}
"""Shape -> its attention on a CPU."""


def fit_denoiser(
    model: BaseModel,
    state: StageState,
    latents: LatentSet,
    log: RunLog,
    plan: StagePlan,
    on_save: Callable[[int], None],
    *,
    plain_steps: int = 0,
    reading_after: int = 0,
) -> None:
    """Trains denoiser and text encoder from `state.step` on; `on_save(step)` follows every saved state.

    The first `plain_steps` use the shape's plain weights, later ones raise the weight of high noise. After
    `reading_after` steps the reading loss of the text encoder is added (`ReadingLoss`).

    Raises FloatingPointError if the loss is not finite; the last saved state is kept.
    """
    shape = model.shape
    if plan.device.type == "cpu":
        # diffusers takes any callable, while its annotation lists its own classes
        model.denoiser.set_attn_processor(cast(Any, QUICK[shape.name]()))
    forward = plan.speeded(predict_and_read)
    reading = ReadingLoss(model)
    running = 0.0
    while state.step < plan.steps:
        # draw: pictures, latents, noise, times and captions, all derived from the step number
        generator = step_generator(plan.seed, 2, state.step)
        rng = np.random.default_rng((plan.seed, 2, state.step))
        indices = torch.randint(len(latents.truths), (plan.batch,), generator=generator)
        clean = latents.batch(indices, generator)  # (B, C, 16, 16)
        noise = torch.randn(clean.shape, generator=generator)
        times = shape.draw_times(plan.batch, generator)  # (B,)
        noisy = shape.noised(clean, noise, times).to(plan.device, memory_format=torch.channels_last)
        ids = encode_captions(model.tokenizer, [caption_of(*latents.truths[i], rng) for i in indices.tolist()])
        slots = reading.merge(ids, torch.from_numpy(rng.random(plan.batch) < MERGED_SHARE)).to(plan.device)
        # predict, with the text encoder's output beside it
        with plan.autocast(), sdpa_kernel(SDPBackend.MATH):  # flash attention's backward pass is slow on CPUs
            predicted, context = forward(model, noisy, times.to(plan.device), slots)
        # loss: weighted by cell within a picture, then by time
        target = shape.target(clean, noise).to(plan.device)  # (B, C, 16, 16)
        errors = latents.weigh((predicted.float() - target).square(), indices)  # (B,)
        loss = (errors * shape.weights(times, plain=state.step < plain_steps).to(plan.device)).mean()
        value = float(loss.detach())
        # the logged value excludes the reading loss, so that it is comparable over the whole run
        if state.step >= reading_after:
            loss = loss + READING_WEIGHT * reading(context.float(), slots)
        if not np.isfinite(value):
            raise FloatingPointError(f"denoiser loss is {value} at step {state.step}, pictures {indices.tolist()[:8]}")
        # step, log, save
        norm = state.descend(loss, rate_share(state.step, plan.steps, decay_from=plan.decay_from, warmup=200))
        running = value if running == 0 else 0.98 * running + 0.02 * value
        if state.step % 50 == 0:
            entry = {"loss": round(running, 5), "grad": round(norm, 4), "cpu_seconds": round(time.process_time())}
            log.write(stage="denoiser", step=state.step, **entry)
        last = state.step == plan.steps or plan.expired()
        if last or state.step % plan.save_every == 0:
            state.save()
            on_save(state.step)
        if last:
            return


@torch.no_grad()
def sample_latents(
    model: BaseModel, captions: list[str], *, steps: int = 25, guidance: float = 3.0, seed: int = 0
) -> Tensor:
    """Samples with classifier-free guidance against the empty caption -> (B, C, 16, 16) float32."""
    device = next(model.denoiser.parameters()).device
    count = len(captions)
    ids = encode_captions(model.tokenizer, [*captions, *[""] * count]).to(device)  # (2 * B, 77)
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn((count, LATENT_CHANNELS, 16, 16), generator=generator).to(device)
    with torch.autocast(device.type, torch.bfloat16):
        text = _read(model, ids.unsqueeze(-1))
        for moment, advance in model.shape.sampling(steps):
            # one batch: prompts in the first half, empty captions in the second
            doubled = torch.cat([latents, latents]).contiguous(memory_format=torch.channels_last)  # (2 * B, C, 16, 16)
            times = moment.to(device).expand(2 * count)
            conditional, free = model.shape.evaluate(model.denoiser, doubled, times, text).float().chunk(2)
            latents = advance(latents, free + guidance * (conditional - free))
    return latents


@torch.no_grad()
def decode_latents(model: BaseModel, latents: Tensor, scale: float) -> np.ndarray:
    """Scaled latents (B, C, 16, 16) -> pictures (B, 128, 128, 3) uint8."""
    with torch.autocast(latents.device.type, torch.bfloat16):
        images = decode(model.autoencoder, latents / scale).float()  # (B, 3, 128, 128)
    images = ((images + 1) * 127.5).clamp(0, 255).round()
    return images.permute(0, 2, 3, 1).to("cpu", torch.uint8).numpy()


def sample_pictures(
    model: BaseModel, captions: list[str], scale: float, *, steps: int = 25, guidance: float = 3.0, seed: int = 0
) -> np.ndarray:
    """Pictures for captions, sampled in batches of 50 -> (B, 128, 128, 3) uint8."""
    portions = []
    for start in range(0, len(captions), 50):
        some = captions[start : start + 50]
        latents = sample_latents(model, some, steps=steps, guidance=guidance, seed=seed + start)
        portions.append(decode_latents(model, latents, scale))
    return np.concatenate(portions)


def save_sheet(pictures: np.ndarray, columns: int, path: Path) -> None:
    """Pictures (B, H, W, 3) uint8 in a grid in one PNG; the last row may be incomplete."""
    count, height, width, _ = pictures.shape
    rows = -(-count // columns)
    sheet = np.full((rows * height, columns * width, 3), 255, np.uint8)
    for number, picture in enumerate(pictures):
        top, left = number // columns * height, number % columns * width
        sheet[top : top + height, left : left + width] = picture
    with replacing(path) as temporary:
        Image.fromarray(sheet).save(temporary, format="PNG")
