"""Feature sources for the graph: built from a specification, cached between runs; downloads only with permission."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import folder_paths

from ...concepts.errors import BestiaryError
from ...concepts.features.vit_weights import DINO_MODEL, cached_weights, fetch_weights

if TYPE_CHECKING:
    from torch import Tensor

    from ...concepts.denoiser.denoiser import Denoiser
    from ...concepts.features.imagenet_features import ImagenetFeatures
    from ...concepts.features.patch_features import DinoFeatures, FeatureSource, PatchGrid, SourceName, SourceSpec

SOURCES = ("descriptor", "dinov2", "diffusion", "imagenet")
"""Feature sources of a discovery; diffusion needs a connected model."""
_DINO_SIZE = 224
_DINO_SUFFIXES = (".safetensors", ".pth", ".bin")

_lock = threading.Lock()
_kept: dict[str, FeatureSource] = {}


def open_source(spec: SourceSpec, model: Denoiser | None = None, *, allow_download: bool = False) -> FeatureSource:
    """The feature source of a specification.

    Args:
        spec: `name` and settings, as stored in a codebook; omitted settings keep their defaults.
        model: the denoiser to read activations from; required by the source diffusion only.
        allow_download: allow timm to download missing DINOv2 weights.

    Raises:
        BestiaryError: an unknown name, or a missing library, model or weights.
    """
    settings: dict[str, Any] = dict(spec)  # each source checks its own
    name = settings.pop("name", None)
    if name == "descriptor":
        from ...concepts.features.patch_features import DescriptorFeatures

        return DescriptorFeatures(**settings)
    if name == "dinov2":
        return _dino(settings, allow_download)
    if name == "imagenet":
        return _imagenet(settings)
    if name == "diffusion":
        return _diffusion(settings, model)
    raise BestiaryError(f"unknown feature source {name!r}: choose {', '.join(SOURCES)}")


def dino_folder() -> Path:
    """Folder for manually installed DINOv2 weights."""
    return Path(folder_paths.models_dir) / "dinov2"


def find_dino_weights(model: str = DINO_MODEL) -> Path | None:
    """Weights of a vision transformer in models/dinov2, else in timm's download cache; never uses the network."""
    places = [dino_folder() / f"{model}{suffix}" for suffix in _DINO_SUFFIXES]
    found = next((place for place in places if place.is_file()), None)
    if found is None and importlib.util.find_spec("huggingface_hub") is not None:
        found = cached_weights(model)
    return found


def _dino(settings: dict[str, Any], allow_download: bool) -> FeatureSource:
    if importlib.util.find_spec("timm") is None:
        raise BestiaryError("the feature source dinov2 needs timm: pip install timm, or choose descriptor")
    model, size = str(settings.get("model", DINO_MODEL)), int(settings.get("image_size", _DINO_SIZE))
    weights = find_dino_weights(model)
    if weights is None and not allow_download:
        raise BestiaryError(
            f"no weights of {model} on this machine: put them at {dino_folder() / (model + _DINO_SUFFIXES[0])}, "
            "or switch allow_download on, or choose imagenet"
        )
    from ...concepts.features.patch_features import DinoFeatures

    if weights is None:
        weights = fetch_weights(model, remedy="choose imagenet, which needs no network")
    return _managed(
        f"{model} {size} {weights}", lambda: DinoFeatures(weights, image_size=size, model=model, device="cpu")
    )


def _imagenet(settings: dict[str, Any]) -> FeatureSource:
    from ...concepts.features.imagenet_features import ImagenetFeatures

    # a path in a codebook may be from another machine
    settings.pop("weights", None)
    return _managed(f"imagenet {sorted(settings.items())}", lambda: ImagenetFeatures(**settings, device="cpu"))


def _managed(key: str, build: Callable[[], DinoFeatures | ImagenetFeatures]) -> FeatureSource:
    """The source of this key, built once on the CPU and managed by ComfyUI's memory manager."""
    with _lock:
        # keep one network: loading it takes longer than processing a picture
        if key not in _kept:
            _kept.clear()
            _kept[key] = ManagedFeatures(build())
            # codebooks may be used on other machines, where this path does not exist
            _kept[key].spec.pop("weights", None)
        return _kept[key]


class ManagedFeatures:
    """A feature network that ComfyUI's memory manager loads to the GPU and unloads for other models."""

    def __init__(self, source: DinoFeatures | ImagenetFeatures) -> None:
        """`source` must be on the CPU."""
        import torch
        from comfy.model_management import get_torch_device
        from comfy.model_patcher import ModelPatcher

        self._source = source
        self.name: SourceName = source.name
        self.spec = source.spec
        self.image_size, self.width = source.image_size, source.width
        self._patcher = ModelPatcher(source.network, get_torch_device(), torch.device("cpu"))

    def __call__(self, images: Tensor) -> PatchGrid:
        """Features of images `(B, 3, S, S)` in 0..1, S = `image_size`."""
        from comfy.model_management import load_models_gpu

        # full load: only ComfyUI's own layers can compute with weights on another device
        load_models_gpu([self._patcher], force_full_load=True)
        return self._source(images)


def _diffusion(settings: dict[str, Any], model: Denoiser | None) -> FeatureSource:
    wanted = settings.pop("backbone", None)
    if model is None:
        kind = f"the model {wanted}" if wanted else "a diffusion model"
        raise BestiaryError(
            f"features of {kind} are required: connect Diffusion Features with its model, clip and vae to the input features"
        )
    if wanted not in (None, model.backbone.name):
        raise BestiaryError(
            f"this codebook uses features of a {wanted} model, but the connected one is {model.backbone.name}: "
            "connect Diffusion Features of such a model"
        )
    from ...concepts.features.patch_features import DiffusionFeatures

    # specifications are flat: block names are stored as one comma-separated text
    blocks = str(settings.pop("blocks", ""))
    return DiffusionFeatures(model, blocks=blocks.split(",") if blocks else None, **settings)
