"""The micro-step of kamwoh/partcraft @ dfe64e1 (src/train_dreamcreature_sd.py), re-created operation by operation.

What it does in every step and ours does once or never: encode the pictures with the autoencoder, run DINOv2 and two nearest-
centroid searches for the part masks, form the probabilities of all attention layers, look for placeholder tokens with
`nonzero`, and read five scalars back. Letters: B pictures, M parts, N places, L = 77 tokens, D text width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

TOKENS = 77
DINO_EDGE = 224
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class LoraLinear(nn.Module):
    """A frozen linear layer plus a float32 adapter of two linear layers (diffusers 0.25, LoRACompatibleLinear)."""

    def __init__(self, base: nn.Linear, down: Tensor, up: Tensor) -> None:
        """`down` `(r, in)` and `up` `(out, r)` are copied, `base` stays frozen."""
        super().__init__()
        self.base = base
        self.down, self.up = nn.Parameter(down.clone()), nn.Parameter(up.clone())

    def forward(self, x: Tensor) -> Tensor:
        """`(..., in)` -> `(..., out)`."""
        update = F.linear(F.linear(x.to(self.down.dtype), self.down), self.up)
        return self.base(x) + 1.0 * update.to(x.dtype)


class ExplicitAttention:
    """Attention that forms all probabilities and keeps those of cross-attention on an edge x edge grid."""

    def __init__(self, edge: int) -> None:
        self.edge = edge

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """From `(B, N, D)` to itself or to `(B, L, E)`; the probabilities of the asked grid stay on the layer."""
        batch = hidden_states.shape[0]
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q = attn.head_to_batch_dim(attn.to_q(hidden_states))  # (B * H, N, d)
        k = attn.head_to_batch_dim(attn.to_k(context))
        v = attn.head_to_batch_dim(attn.to_v(context))
        probabilities = attn.get_attention_scores(q, k, None)  # (B * H, N, L)
        wanted = probabilities.shape[1:] == (self.edge**2, TOKENS) and encoder_hidden_states is not None
        attn.kept = probabilities.reshape(batch, -1, self.edge, self.edge, TOKENS) if wanted else None
        out = attn.batch_to_head_dim(torch.bmm(probabilities, v))
        return attn.to_out[1](attn.to_out[0](out)) / attn.rescale_output_factor


def prepare_denoiser(unet: nn.Module, adapters: dict[str, Tensor], edge: int) -> dict[str, nn.Parameter]:
    """Put explicit attention and adapters `(r, in)`, `(out, r)` into a UNet; returns their parameters by kohya name."""
    unet.set_attn_processor(ExplicitAttention(edge))
    parameters: dict[str, nn.Parameter] = {}
    for name, module in list(unet.named_modules()):
        if not (name.endswith((".attn1", ".attn2"))):
            continue
        for projection in ("to_q", "to_k", "to_v", "to_out.0"):
            key = "lora_unet_" + f"{name}.{projection}".replace(".", "_")
            down, up = adapters[f"{key}.lora_down.weight"], adapters[f"{key}.lora_up.weight"]
            layer = LoraLinear(module.get_submodule(projection), down, up)
            parameters |= {f"{key}.lora_down.weight": layer.down, f"{key}.lora_up.weight": layer.up}
            # the output projection stands in a list with its dropout
            if projection == "to_out.0":
                module.to_out[0] = layer
            else:
                setattr(module, projection, layer)
    return parameters


@dataclass
class PartSegmenter:
    """Part masks from DINOv2 patches: two centroid searches, background patches set to -1 before the second."""

    dino: nn.Module
    foreground: Tensor
    """`(2, 768)` centroids; the first is the foreground."""
    parts: Tensor
    """`(M, 768)` centroids."""

    @torch.no_grad()
    def masks(self, pictures: Sequence[Image.Image]) -> tuple[Tensor, list[list[int]]]:
        """Masks `(B, M, 16, 16)` and the parts that occur in every picture."""
        pixels = torch.stack([_dino_pixels(picture) for picture in pictures])  # (B, 3, 224, 224)
        states = self.dino(pixels, output_hidden_states=True).hidden_states[-1][:, 1:]  # (B, 256, 768)
        background = _nearest(states.flatten(0, 1), self.foreground).view(states.shape[:2])  # (B, 256)
        cleaned = []
        for patches, is_background in zip(states, background, strict=True):
            # a mean that the reference takes and never uses; it is part of what a step costs
            patches[is_background == 1].mean(dim=0, keepdim=True)
            share = is_background.unsqueeze(1)
            cleaned.append(patches * (1 - share) + (-1 * share))
        labels = _nearest(torch.stack(cleaned).flatten(0, 1), self.parts)
        edge = int(states.shape[1] ** 0.5)
        labels = labels.view(len(pictures), edge, edge)  # (B, 16, 16)
        masks = torch.stack([(labels == part).float() for part in range(len(self.parts))], dim=1)
        return masks, [torch.unique(row.reshape(-1)).tolist() for row in labels]


def _dino_pixels(picture: Image.Image) -> Tensor:
    resized = picture.resize((DINO_EDGE, DINO_EDGE), Image.Resampling.BICUBIC)
    pixels = torch.frombuffer(bytearray(resized.tobytes()), dtype=torch.uint8).view(DINO_EDGE, DINO_EDGE, 3)
    pixels = pixels.permute(2, 0, 1).float() / 255  # (3, 224, 224)
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    return (pixels - mean.view(3, 1, 1)) / std.view(3, 1, 1)


def _nearest(points: Tensor, centroids: Tensor) -> Tensor:
    """Nearest centroid `(n,)` of points `(n, d)` by cosine."""
    similarity = F.normalize(points, dim=-1) @ F.normalize(centroids, dim=-1).t()
    return similarity.argmax(-1)


@dataclass
class ReferenceBatch:
    """What the reference's loader hands to a step, and the random numbers of the step."""

    pictures: Sequence[Image.Image]
    pixels: Tensor
    """`(B, 3, H, W)` in -1..1."""
    ids: Tensor
    """`(B, 77)` with placeholder ids."""
    codes: Tensor
    """`(B, M)`."""
    posterior_noise: Tensor
    noise: Tensor
    timesteps: Tensor


@dataclass
class ReferenceStep:
    """One micro-step up to the loss; the caller runs backward."""

    unet: nn.Module
    vae: nn.Module
    text_encoder: nn.Module
    mapper: nn.Module
    segmenter: PartSegmenter
    scheduler: object
    placeholder_ids: Sequence[int]
    attention_weight: float = 0.01
    snr_gamma: float = 5.0

    def __call__(self, batch: ReferenceBatch) -> Tensor:
        """The scalar loss; noise and prediction are `(B, 4, h, w)`."""
        # posterior draw, noise, prediction
        posterior = self.vae.encode(batch.pixels).latent_dist
        latents = posterior.mean + posterior.std * batch.posterior_noise  # (B, 4, h, w)
        latents = latents * self.vae.config.scaling_factor
        noised = self.scheduler.add_noise(latents, batch.noise, batch.timesteps)
        context = self._encode_text(batch)
        prediction = self.unet(noised, batch.timesteps, context).sample
        error = F.mse_loss(prediction.float(), batch.noise.float(), reduction="none")
        attention_loss = self._attention_loss(batch)
        noise_loss = (error.mean(dim=[1, 2, 3]) * self._snr_weights(batch.timesteps)).mean()
        # the reference reads five scalars back in every step, each a wait for the device
        size = len(batch.timesteps)
        noise_loss.detach().clone().repeat(size).mean().item()
        attention_loss.repeat(size).mean().item()
        loss = noise_loss + self.attention_weight * attention_loss
        loss.repeat(size).mean().item()
        noise_loss.detach().item()
        attention_loss.detach().item()
        return loss

    def _snr_weights(self, timesteps: Tensor) -> Tensor:
        """Min-SNR weights `(B,)`."""
        alphas = self.scheduler.alphas_cumprod[timesteps]  # (B,) of (T,)
        snr = (alphas**0.5 / (1 - alphas) ** 0.5) ** 2
        return torch.stack([snr, self.snr_gamma * torch.ones_like(timesteps)], dim=1).min(dim=1)[0] / snr

    def _encode_text(self, batch: ReferenceBatch) -> Tensor:
        core = getattr(self.text_encoder, "text_model", self.text_encoder)
        vectors = self.mapper(batch.codes)  # (B, M, D)
        # placeholder by placeholder and row by row: each `nonzero` waits for the device
        embeddings = core.embeddings.token_embedding(batch.ids)  # (B, 77, D)
        for part, placeholder in enumerate(self.placeholder_ids):
            for row in range(len(batch.ids)):
                place = (batch.ids[row] == placeholder).nonzero(as_tuple=True)[0]
                if len(place) != 0:
                    embeddings[row, place] = vectors[row, part].to(embeddings.dtype)
        hidden = core.embeddings(inputs_embeds=embeddings)
        mask = torch.full((TOKENS, TOKENS), torch.finfo(hidden.dtype).min, dtype=hidden.dtype).triu(1)
        for layer in core.encoder.layers:
            hidden = _explicit_text_layer(layer, hidden, mask, core.config.num_attention_heads)
        return core.final_layer_norm(hidden)

    def _attention_loss(self, batch: ReferenceBatch) -> Tensor:
        kept = [module.kept.mean(dim=1) for module in self.unet.modules() if getattr(module, "kept", None) is not None]
        average = torch.stack(kept).mean(dim=0)  # (B, e, e, 77)
        size, edge = average.shape[0], average.shape[1]
        # the same search once more, for the attention columns
        located = []
        for placeholder in self.placeholder_ids:
            for row in range(size):
                place = (batch.ids[row] == placeholder).nonzero(as_tuple=True)[0]
                located.append(average[row, :, :, place] if len(place) else torch.zeros(edge, edge, 1))
        maps = torch.stack(located).reshape(len(self.placeholder_ids), size, edge, edge).transpose(0, 1)
        masks, occurring = self.segmenter.masks(batch.pictures)
        if edge != masks.shape[-1]:
            masks = F.interpolate(masks, (edge, edge), mode="nearest")
        # a sum that the reference takes and never uses
        for row, parts in enumerate(occurring):
            (masks[row, parts].sum(dim=0) > 0).float()
        share = maps / maps.sum(dim=1, keepdim=True).clamp(min=1e-6)
        return F.binary_cross_entropy(share.clamp(0, 1), masks.to(maps.dtype).clamp(0, 1))


def _explicit_text_layer(layer: nn.Module, hidden: Tensor, mask: Tensor, heads: int) -> Tensor:
    """One CLIP layer on `(B, L, D)` as transformers 4.3x ran it: explicit scores, softmax, product."""
    b, length, width = hidden.shape
    normed = layer.layer_norm1(hidden)
    own = layer.self_attn
    size = width // heads

    def split(x: Tensor) -> Tensor:
        """`(B, L, D)` -> `(B * heads, L, D / heads)`."""
        return x.view(b, length, heads, size).transpose(1, 2).contiguous().view(b * heads, length, size)

    # heads are rows of one large batch, as they were then
    q, k, v = split(own.q_proj(normed) * size**-0.5), split(own.k_proj(normed)), split(own.v_proj(normed))
    scores = torch.bmm(q, k.transpose(1, 2)).view(b, heads, length, length) + mask
    probabilities = scores.view(b * heads, length, length).softmax(dim=-1)
    mixed = torch.bmm(probabilities, v).view(b, heads, length, size).transpose(1, 2).reshape(b, length, width)
    hidden = hidden + own.out_proj(mixed)
    return hidden + layer.mlp(layer.layer_norm2(hidden))
