"""Two judges of pictures besides CLIP: DINO measures whether two show the same thing, LPIPS how different they look.

Caron et al., arXiv 2104.14294, class tokens of ViT-S/16 as in the DreamBooth evaluation; Zhang et al., arXiv 1801.03924, AlexNet
with the linear weights of version 0.1. Weights are the user's; nothing is downloaded. Letters: N pictures, F features.
"""

import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ...concepts.errors import BestiaryError
from ...concepts.features.dino_weights import plain_weights, read_dino_weights
from ...concepts.features.vit_weights import cached_weights, hub_name
from ...concepts.files.concept_file import read_tensors
from ...concepts.files.safe_pickle import load_inert
from .clip_judge import middle_square

DINO = "vit_small_patch16_224.dino"
"""timm's name of the transformer that published figures are made with."""
_CROP = 0.9
_AT_ONCE = 32
_MEAN, _SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_LPIPS_SHIFT, _LPIPS_SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_ALEXNET = "alexnet-owt-7be5be79.pth"
_LINEAR = "alex.pth"


class _Patches(Protocol):
    """The first layer of a vision transformer."""

    img_size: tuple[int, int]


class DinoJudge:
    """Class tokens of a vision transformer."""

    def __init__(self, network: Callable[[Tensor], Tensor], edge: int, device: torch.device | str = "cpu") -> None:
        """`network`: pictures `(N, 3, edge, edge)` to class tokens `(N, F)`."""
        self._network, self._edge, self._device = network, edge, device
        self._mean, self._spread = (torch.tensor(values).view(1, 3, 1, 1) for values in (_MEAN, _SPREAD))

    @classmethod
    def load(cls, weights: Path | None = None, model: str = DINO, device: torch.device | str = "cpu") -> "DinoJudge":
        """A judge from a checkpoint, or from timm's downloads of `model`.

        Raises:
            BestiaryError: timm or the weights are missing; the message says how to give them.
        """
        if importlib.util.find_spec("timm") is None:
            raise BestiaryError("DINO needs timm: pip install timm")
        found = weights or cached_weights(model)
        if found is None:
            raise BestiaryError(
                f"DINO needs the weights of {model}: give a checkpoint with --dino, or fetch it once with: "
                f"hf download {hub_name(model)}"
            )
        import timm

        name, state = read_dino_weights(found, model)
        try:
            network = timm.create_model(
                name, pretrained=True, num_classes=0, pretrained_cfg_overlay={"state_dict": state}
            )
        except (RuntimeError, ValueError, TypeError) as fault:
            raise BestiaryError(f"{found} is no {name}: {str(fault).splitlines()[0]}; give its checkpoint") from fault
        edge = int(cast(_Patches, network.patch_embed).img_size[0])
        return cls(nn.Module.to(network.eval().requires_grad_(False), device), edge, device)

    @torch.no_grad()
    def pictures(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Features `(N, F)` of length 1."""
        found = []
        for start in range(0, len(pictures), _AT_ONCE):
            some = [
                middle_square(one, self._edge, round(self._edge / _CROP)) for one in pictures[start : start + _AT_ONCE]
            ]
            pixels = (torch.stack(some) - self._mean) / self._spread  # (n, 3, E, E)
            found.append(F.normalize(self._network(pixels.to(self._device)).float(), dim=-1).cpu())
        return torch.cat(found)


class LpipsJudge:
    """Distance of pictures in AlexNet's features."""

    def __init__(self, convolutions: Sequence[tuple[Tensor, Tensor]], linear: Sequence[Tensor]) -> None:
        """Weights and biases of the five convolutions, and for each the weights `(C,)` of its channels."""
        self._convolutions, self._linear = tuple(convolutions), tuple(linear)
        self._shift, self._scale = (torch.tensor(values).view(1, 3, 1, 1) for values in (_LPIPS_SHIFT, _LPIPS_SCALE))

    @classmethod
    def load(cls, folder: Path | None = None) -> "LpipsJudge":
        """A judge from a folder with both files, or from torch's downloads and an installed package lpips.

        Raises:
            BestiaryError: a file is missing or another network's; the message says what to give.
        """
        alexnet, linear = _weights(folder, _ALEXNET), _weights(folder, _LINEAR)
        try:
            convolutions = [(alexnet[f"features.{n}.weight"], alexnet[f"features.{n}.bias"]) for n in (0, 3, 6, 8, 10)]
            weights = [linear[f"lin{n}.model.1.weight"].flatten() for n in range(5)]
        except KeyError as fault:
            raise BestiaryError(
                f"LPIPS: the files hold no {fault}: give AlexNet of torchvision and alex.pth of version 0.1"
            ) from fault
        if [len(one) for one in weights] != [len(bias) for _, bias in convolutions]:
            raise BestiaryError("LPIPS: AlexNet and alex.pth do not belong together: their channels differ")
        return cls([(w.float(), b.float()) for w, b in convolutions], [one.float() for one in weights])

    @torch.no_grad()
    def distance(self, first: Tensor, second: Tensor) -> Tensor:
        """Distances `(N,)`, 0 for equal pictures, of pictures `(N, 3, H, W)` in 0..1."""
        total = torch.zeros(len(first))
        for one, other, weights in zip(self._features(first), self._features(second), self._linear, strict=True):
            apart = (one - other).square()  # (N, C, h, w)
            total += torch.einsum("nchw,c->nhw", apart, weights).mean(dim=(1, 2))
        return total

    def diversity(self, images: Tensor) -> float:
        """Mean distance between two of the pictures `(N, 3, H, W)` in 0..1."""
        pairs = torch.combinations(torch.arange(len(images)), 2)  # (M, 2)
        return float(self.distance(images[pairs[:, 0]], images[pairs[:, 1]]).mean())

    def _features(self, images: Tensor) -> Iterator[Tensor]:
        """Activations `(N, C, h, w)` after each of the five layers, of length 1 over channels."""
        x = (images.float() * 2 - 1 - self._shift) / self._scale
        strides, paddings, pooled = (4, 1, 1, 1, 1), (2, 2, 1, 1, 1), (False, True, True, False, False)
        for (weight, bias), stride, padding, pool in zip(self._convolutions, strides, paddings, pooled, strict=True):
            x = F.max_pool2d(x, 3, 2) if pool else x
            x = F.relu(F.conv2d(x, weight, bias, stride, padding))
            yield x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)


def mean_cosine(first: Tensor, second: Tensor) -> float:
    """Mean over all pairs of features `(N, F)` and `(M, F)` of length 1."""
    return float((first @ second.T).mean())


def mean_cosine_within(features: Tensor) -> float | None:
    """Mean over pairs of different rows of `(N, F)`; None for one row."""
    if len(features) < 2:
        return None
    pairs = torch.combinations(torch.arange(len(features)), 2)
    return float((features[pairs[:, 0]] * features[pairs[:, 1]]).sum(-1).mean())


def _weights(folder: Path | None, name: str) -> Mapping[str, Tensor]:
    path = _find(folder, name)
    content = read_tensors(path) if path.suffix == ".safetensors" else plain_weights(load_inert(path))
    return content


def _find(folder: Path | None, name: str) -> Path:
    """The file of a weight's name, in `folder` or where libraries keep it."""
    places = [folder] if folder else [Path(torch.hub.get_dir()) / "checkpoints"]
    package = None if folder else importlib.util.find_spec("lpips")
    for place in package.submodule_search_locations or () if package else ():
        places.append(Path(place) / "weights" / "v0.1")
    stem = name.split("-")[0].removesuffix(".pth")
    for place in places:
        for path in (place / name, place / f"{stem}.safetensors"):
            if path.is_file():
                return path
    raise BestiaryError(
        f"DIV needs {_ALEXNET} (torchvision) and {_LINEAR} (version 0.1 of lpips): put both into a folder and give it with --lpips"
    )
