"""Patch features of pictures behind a common interface: hand-crafted, from a vision transformer, or from a denoiser.

Letters: B pictures, S edge in pixels, (h, w) or (g, g) patch grid, D channels.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from ..denoiser.denoiser import Denoiser
from ..errors import BestiaryError
from .dino_weights import read_dino_weights
from .vit_weights import DINO_MODEL

SourceName = Literal["dinov2", "imagenet", "diffusion", "descriptor"]
SourceSpec = dict[str, "str | int | float"]

_ORIENTATIONS = 8
_PALETTE_LEVELS = ((20.0, 45.0, 70.0, 92.0), (-45.0, 0.0, 45.0), (-45.0, 0.0, 45.0))
_PALETTE_WIDTH = 22.0
_PATCHES = 16
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class PatchGrid:
    """Features of B pictures on a patch grid."""

    features: Tensor
    """`(B, h, w, D)` float."""
    saliency: Tensor | None = None
    """`(B, h, w)` float, larger where the source expects an object; None if it provides none."""

    detail: Tensor | None = None
    """`(B, h, w, E)` float, appearance of patches from shallow blocks and colour; None if the source provides none."""

    def at(self, index: int) -> PatchGrid:
        """The grid of one picture, batch of 1."""
        return self.rows(slice(index, index + 1))

    def rows(self, rows: slice | Tensor) -> PatchGrid:
        """The grid `(n, h, w, C)` of some pictures."""
        others = (None if tensor is None else tensor[rows] for tensor in (self.saliency, self.detail))
        return PatchGrid(self.features[rows], *others)

    @classmethod
    def joined(cls, pieces: Sequence[PatchGrid]) -> PatchGrid:
        """Several grids concatenated; saliency and detail only if all have them."""
        others = ([getattr(piece, name) for piece in pieces] for name in ("saliency", "detail"))
        return cls(
            torch.cat([piece.features for piece in pieces]),
            *(None if any(tensor is None for tensor in some) else torch.cat(some) for some in others),
        )

    def rounded(self) -> PatchGrid:
        """Rounded to half precision on the CPU like stored grids, so that a picture gets the same labels stored or not."""
        saliency = None if self.saliency is None else self.saliency.float().cpu()
        return PatchGrid(_rounded(self.features), saliency, None if self.detail is None else _rounded(self.detail))


def _rounded(tensor: Tensor) -> Tensor:
    """Values `(B, h, w, D)` rounded to half precision on the CPU, clamped to its range."""
    limit = torch.finfo(torch.float16).max
    return tensor.float().cpu().clamp(-limit, limit).half().float()


class FeatureSource(Protocol):
    """Computes patch features of pictures; the same source can be rebuilt from `spec`."""

    name: SourceName
    spec: SourceSpec
    image_size: int
    width: int

    def __call__(self, images: Tensor) -> PatchGrid:
        """Features of images `(B, 3, S, S)` in 0..1, S = `image_size`."""
        ...


class DescriptorFeatures:
    """Colour and texture of every patch: no weights, no download, thousands of patches a second.

    Per patch: mean and spread of CIELAB at the patch and around it, a soft colour histogram, energies of 8 gradient
    orientations at two scales (Freeman and Roth 1995), and with `position` the position in the picture, mirrored about its
    vertical axis. Use no position to learn a foreground: it would separate border and centre by itself.
    """

    name: SourceName = "descriptor"

    def __init__(self, image_size: int = 128, grid: int = 16, position: float = 0.0) -> None:
        if image_size % grid or image_size // grid < 4:
            raise BestiaryError(
                f"image size {image_size} px with a grid of {grid} patches: the size must be a multiple of the grid, "
                "with patches of at least 4 px"
            )
        self.image_size = image_size
        self.grid = grid
        self.position = position
        self.spec: SourceSpec = {"name": self.name, "image_size": image_size, "grid": grid, "position": position}
        # a fixed palette, so that histograms of different sets of pictures are comparable
        self._palette = torch.cartesian_prod(*[torch.tensor(levels) for levels in _PALETTE_LEVELS])  # (36, 3)
        self.width = 12 + len(self._palette) + 2 * _ORIENTATIONS + (2 if position else 0)

    def __call__(self, images: Tensor) -> PatchGrid:
        """Features `(B, grid, grid, D)` of images `(B, 3, S, S)` in 0..1."""
        _check_images(images, self.image_size)
        # colour at each patch: mean and spread over its pixels
        lab = rgb_to_lab(images.float())  # (B, 3, S, S)
        colour = lab / 25.0
        mean = self._pool(colour)  # (B, 3, g, g)
        spread = (self._pool(colour.square()) - mean.square()).clamp_min(0).sqrt()  # (B, 3, g, g)
        # context: the same over the neighbouring patches
        around = F.avg_pool2d(F.pad(mean, (1, 1, 1, 1), mode="replicate"), 3, 1)
        spread_around = F.avg_pool2d(F.pad(spread, (1, 1, 1, 1), mode="replicate"), 3, 1)
        fine, coarse = (self._orientation_energy(lab[:, :1] / 25.0, scale) for scale in (1, 2))
        # the weights balance the groups in a Euclidean distance
        parts = [mean, 0.7 * spread, 0.7 * around, 0.7 * spread_around, 2.0 * self._histogram(lab), fine, coarse]
        if self.position:
            parts.append(self._place().expand(len(images), -1, -1, -1))  # (B, 2, g, g)
        return PatchGrid(torch.cat(parts, dim=1).permute(0, 2, 3, 1).contiguous())  # (B, g, g, D)

    def _pool(self, maps: Tensor) -> Tensor:
        """Means `(B, C, g, g)` of maps `(B, C, s, s)` over the patches."""
        return F.adaptive_avg_pool2d(maps, self.grid)

    def _histogram(self, lab: Tensor) -> Tensor:
        """Soft colour histogram (B, 36, g, g) at a quarter of the pixels; square root, as for a Hellinger distance."""
        # soft assignment of every pixel to the nearest palette colours, averaged over the patch
        pixels = F.avg_pool2d(lab, 2).permute(0, 2, 3, 1)  # (B, S/2, S/2, 3)
        distance = torch.cdist(pixels.flatten(0, 2), self._palette.to(lab)).square()
        share = torch.softmax(-distance / (2 * _PALETTE_WIDTH**2 / 4), dim=1)  # (pixels, 36)
        return self._pool(share.unflatten(0, pixels.shape[:3]).permute(0, 3, 1, 2)).clamp_min(1e-9).sqrt()

    def _orientation_energy(self, light: Tensor, scale: int) -> Tensor:
        """Gradient energy by orientation, modulo 180 degrees: (B, 1, S, S) -> (B, 8, g, g)."""
        smooth = F.avg_pool2d(light, scale) if scale > 1 else light
        # central differences; the border repeats its last pixel
        padded = F.pad(smooth, (1, 1, 1, 1), mode="replicate")
        dx = padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]
        dy = padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]  # (B, 1, s, s)
        angle = 2 * torch.atan2(dy, dx)  # doubled: modulo 180 degrees
        centers = torch.arange(_ORIENTATIONS, device=light.device) * (2 * math.pi / _ORIENTATIONS)
        nearness = torch.cos(angle - centers.view(1, -1, 1, 1)).clamp_min(0).square()  # (B, 8, s, s)
        return self._pool(nearness * (dx.square() + dy.square()).sqrt())

    def _place(self) -> Tensor:
        """Position of every patch `(1, 2, g, g)`: height, and distance from the vertical axis."""
        line = (torch.arange(self.grid) + 0.5) / self.grid * 2 - 1
        y, x = torch.meshgrid(line, line, indexing="ij")
        return self.position * torch.stack([y, x.abs()]).unsqueeze(0)  # (1, 2, g, g)


class VisionTransformer(Protocol):
    """Used attributes of timm's vision transformers."""

    blocks: Sequence[torch.nn.Module]
    num_features: int

    def to(self, device: str) -> VisionTransformer:
        """The network, moved to a device."""
        ...

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """Its weights."""
        ...

    def forward_intermediates(
        self, x: Tensor, *, indices: list[int], norm: bool, intermediates_only: bool
    ) -> list[Tensor]:
        """Tokens `(B, D, h, w)` of the blocks `indices`, of normalised pictures `(B, 3, S, S)`."""
        ...


class DinoFeatures:
    """Patch tokens of DINOv2 ViT-B/14 before the final norm (Oquab et al. 2023), as the PartCraft authors used them.

    Args:
        weights: a checkpoint on disk; None lets timm download its own.
        image_size: edge of the pictures in pixels; None uses 16 patches.
        model: timm's name of a vision transformer: DINOv2, with registers, DINOv3, or any other.

    Raises:
        BestiaryError: timm is not installed, or the weights can neither be read nor downloaded.
    """

    name: SourceName = "dinov2"

    def __init__(
        self,
        weights: Path | str | None = None,
        *,
        image_size: int | None = None,
        model: str = DINO_MODEL,
        device: str = "cpu",
    ) -> None:
        image_size = image_size or _PATCHES * _patch_edge(model)
        built, model = _load_vision_transformer(model, weights, image_size)
        # may be moved to another device from outside: `__call__` follows its parameters
        self.network = built.to(device)
        self.image_size = image_size
        self.width = self.network.num_features
        self.spec: SourceSpec = {"name": self.name, "image_size": image_size, "model": model}
        if weights is not None:
            self.spec["weights"] = str(weights)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> PatchGrid:
        """Features `(B, S/14, S/14, 768)` of images `(B, 3, S, S)` in 0..1; other models have other patches and widths.

        Details are the tokens of the block at a third of the depth, as unit vectors, and colour.
        """
        _check_images(images, self.image_size)
        # two blocks are read: one at a third of the depth for details, the last for features
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (_IMAGENET_MEAN, _IMAGENET_STD))
        last = len(self.network.blocks) - 1
        device = next(self.network.parameters()).device
        found = self.network.forward_intermediates(
            ((images.float() - mean) / std).to(device),
            indices=[last // 3, last],
            norm=False,
            intermediates_only=True,
        )
        early, deep = (tokens.permute(0, 2, 3, 1).float().cpu().contiguous() for tokens in found)  # (B, h, w, D)
        colour = patch_colour(images.float(), (deep.shape[1], deep.shape[2])).permute(0, 2, 3, 1)  # (B, h, w, 6)
        return PatchGrid(deep, detail=torch.cat([F.normalize(early, dim=-1), colour.cpu()], dim=-1))


def _patch_edge(model: str) -> int:
    """Patch size in pixels, from timm's name of a vision transformer."""
    found = re.search(r"patch(\d+)", model)
    return int(found[1]) if found else 16


def _load_vision_transformer(model: str, weights: Path | str | None, image_size: int) -> tuple[VisionTransformer, str]:
    """The transformer and its name, which is detected from the file for DINOv2."""
    try:
        import timm
    except ImportError as fault:
        raise BestiaryError(
            "the source dinov2 needs timm: pip install timm, or choose the source descriptor"
        ) from fault
    overlay: dict[str, object] | None = None
    if weights is not None:
        model, state = read_dino_weights(Path(weights), model)
        # passed as pretrained weights, so that timm resizes the position embeddings to the image size
        overlay = {"state_dict": state}
    try:
        built = timm.create_model(
            model, img_size=image_size, num_classes=0, pretrained=True, pretrained_cfg_overlay=overlay
        )
    except (OSError, RuntimeError, TypeError, ValueError) as fault:
        where = f"from {weights}" if weights is not None else "and timm could not download them"
        raise BestiaryError(
            f"no weights for {model} {where}: {fault}. Give a checkpoint on disk, or choose the source diffusion or descriptor"
        ) from fault
    if not hasattr(built, "blocks") or not hasattr(built, "patch_embed"):
        raise BestiaryError(f"{model} is not a vision transformer: choose one, for example {DINO_MODEL}")
    return cast(VisionTransformer, built.eval().requires_grad_(False)), model


class DiffusionFeatures:
    """Activations of a denoiser at a low noise level with the empty prompt (Tang et al. 2023, DIFT).

    Each block's activations are resized to one grid, normalised and concatenated, then averaged over noise draws that
    depend only on `seed`, so that a picture's features do not depend on the other pictures of a batch. Pictures are padded
    by mirroring on all sides: zero padding would encode the distance from the border in the features.

    Args:
        denoiser: any supported model; its size, blocks and autoencoder are used unchanged.
        timestep: noise level as a timestep of the model; None uses `default_timestep`.
        blocks: names from `network.feature_grids`; None uses `default_blocks`.
        grid: patches along an edge; None uses the grid of cross-attention.
        draws: number of noise draws to average.
        margin: patches of mirrored padding; None uses a quarter of the grid, an eighth for deep models.

    Raises:
        BestiaryError: an unknown block, a timestep outside the schedule, or a margin as large as the picture.
    """

    name: SourceName = "diffusion"

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        timestep: int | None = None,
        blocks: Sequence[str] | None = None,
        grid: int | None = None,
        draws: int = 1,
        seed: int = 0,
        image_size: int | None = None,
        margin: int | None = None,
    ) -> None:
        self._denoiser = denoiser
        self.image_size = image_size or denoiser.backbone.image_size
        self.grid = grid or self.image_size // denoiser.backbone.attention_divisor
        self.blocks = tuple(blocks) if blocks else default_blocks(denoiser)
        self.timestep = default_timestep(denoiser) if timestep is None else timestep
        self.draws, self.seed = draws, seed
        self.margin = self.grid // (4 if _reads_latent_grid(denoiser) else 8) if margin is None else margin
        _check_blocks(self.blocks, denoiser, self.timestep)
        if not 0 <= self.margin < self.grid:
            raise BestiaryError(
                f"margin {self.margin} is out of range: choose 0 to {self.grid - 1} for a grid of {self.grid} patches"
            )
        self.spec: SourceSpec = {
            "name": self.name,
            "backbone": denoiser.backbone.name,
            "image_size": self.image_size,
            "grid": self.grid,
            "timestep": self.timestep,
            "blocks": ",".join(self.blocks),
            "draws": draws,
            "seed": seed,
            "margin": self.margin,
        }
        # encode the empty prompt once; the feature width is only known from an output, so run one grey picture
        self._text = denoiser.text.encode([denoiser.text.tokenize([])], None)
        self.width = self(torch.full((1, 3, self.image_size, self.image_size), 0.5)).features.shape[-1]

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> PatchGrid:
        """Features `(B, grid, grid, D)` of images `(B, 3, S, S)` in 0..1."""
        _check_images(images, self.image_size)
        # mirrored padding is added to the pixels, so that the autoencoder sees it too
        pixels = self.margin * self.image_size // self.grid
        continued = F.pad(images, (pixels,) * 4, mode="reflect") if pixels else images  # (B, 3, S', S')
        sides, process = self._denoiser.images, self._denoiser.process
        latents = sides.from_cache(sides.to_cache(continued.to(self._denoiser.device)))  # (B, C, h, w)
        times = torch.full((len(images),), process.time_of(self.timestep), device=latents.device)  # (B,)
        generator = torch.Generator().manual_seed(self.seed)
        text = self._text.expanded(len(images))
        # the same noise for all pictures of the batch, so that results do not depend on the batch
        total = torch.zeros(())
        for _ in range(self.draws):
            noise = torch.randn((1, *latents.shape[1:]), generator=generator).to(latents).expand_as(latents)
            noisy = process.noised(latents, noise, times)
            output = self._denoiser.network.predict(noisy, times, text, features=self.blocks)
            total = total + torch.cat([self._on_grid(output.features[block]) for block in self.blocks], dim=1)
        return PatchGrid((total / self.draws).permute(0, 2, 3, 1).contiguous())  # (B, g, g, D)

    def _on_grid(self, activations: Tensor) -> Tensor:
        """One block's activations (B, D, h, w) as unit vectors on the picture's part of the grid (B, D, g, g)."""
        maps = activations.float().cpu()
        edge = self.grid + 2 * self.margin
        if maps.shape[-1] > edge:
            maps = F.adaptive_avg_pool2d(maps, edge)
        elif maps.shape[-1] < edge:
            maps = F.interpolate(maps, size=(edge, edge), mode="bilinear", align_corners=False)
        # cut the margin off; unit length gives every block the same weight
        inside = slice(self.margin, self.margin + self.grid)
        return F.normalize(maps[:, :, inside, inside], dim=1)


def default_blocks(denoiser: Denoiser) -> tuple[str, ...]:
    """Default blocks: the best one on drawings for the embedded model, else the decoder stages near the grid.

    In a model whose cross-attention grid is its latent grid (the embedded one) the first attention block of the encoder
    gave the best foreground and parts of all tried blocks. For deep models these are the stages used by DIFT.
    """
    blocks = denoiser.feature_factors()
    wanted = denoiser.backbone.attention_divisor // denoiser.backbone.latent_factor
    if _reads_latent_grid(denoiser):
        attentive = [name for name, factor in blocks.items() if factor == wanted and "attentions" in name]
        return tuple(attentive[:1]) or tuple(blocks)[:1]
    # only whole decoder stages: names such as up_blocks.1, without a layer suffix
    stages = [name for name in blocks if name.startswith("up") and name.count(".") == 1]
    near = [name for name in stages if blocks[name] in (wanted, max(1, wanted // 2))]
    return tuple(near or stages or list(blocks)[-1:])


def default_timestep(denoiser: Denoiser) -> int:
    """Default timestep: 2 % of the schedule for the embedded model, as measured on drawings, else DIFT's 26 %."""
    steps = denoiser.process.num_timesteps
    return round(steps * (0.02 if _reads_latent_grid(denoiser) else 0.261))


def _reads_latent_grid(denoiser: Denoiser) -> bool:
    return denoiser.backbone.attention_divisor == denoiser.backbone.latent_factor


def rgb_to_lab(images: Tensor) -> Tensor:
    """CIELAB (D65) of sRGB images `(B, 3, H, W)` in 0..1: lightness 0..100, a and b about -100..100 (IEC 61966-2-1)."""
    # sRGB to linear light, then XYZ relative to the white point, then the cube-root scale
    linear = torch.where(images > 0.04045, ((images + 0.055) / 1.055).clamp_min(0) ** 2.4, images / 12.92)
    to_xyz = images.new_tensor(
        [[0.4339531, 0.3762193, 0.1898276], [0.2126573, 0.7151522, 0.0721905], [0.0177564, 0.1094740, 0.8727696]]
    )
    xyz = torch.einsum("xc,bchw->bxhw", to_xyz, linear)
    root = torch.where(xyz > 0.008856, xyz.clamp_min(1e-6) ** (1 / 3), 7.787 * xyz + 16 / 116)
    x, y, z = root.unbind(dim=1)  # (B, H, W) each
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=1)


def patch_colour(images: Tensor, grid: tuple[int, int]) -> Tensor:
    """Mean and spread of CIELAB over every patch `(B, 6, h, w)` of images `(B, 3, H, W)` in 0..1, in units of 100."""
    lab = rgb_to_lab(images) / 100  # (B, 3, H, W)
    mean = F.adaptive_avg_pool2d(lab, grid)
    spread = (F.adaptive_avg_pool2d(lab.square(), grid) - mean.square()).clamp_min(0).sqrt()
    return torch.cat([mean, spread], dim=1)


def _check_images(images: Tensor, size: int) -> None:
    """Refuse what is not `(B, 3, size, size)`."""
    if images.dim() != 4 or tuple(images.shape[1:]) != (3, size, size):
        raise BestiaryError(
            f"pictures of shape {tuple(images.shape)}: this source needs (B, 3, {size}, {size}) in 0..1"
        )


def _check_blocks(blocks: tuple[str, ...], denoiser: Denoiser, timestep: int) -> None:
    known = denoiser.feature_factors()
    unknown = [block for block in blocks if block not in known]
    if unknown:
        raise BestiaryError(f"unknown block {unknown[0]!r} of the denoiser: choose from {', '.join(known)}")
    steps = denoiser.process.num_timesteps
    if not 0 <= timestep < steps:
        raise BestiaryError(f"timestep {timestep} is outside the noise schedule: choose 0 to {steps - 1}")
