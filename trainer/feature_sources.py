"""Builds the patch-feature source that a codebook or a command asks for, and chooses one where nothing was asked."""

from pathlib import Path
from typing import Literal

from ..concepts.denoiser import Denoiser
from ..concepts.errors import BestiaryError
from ..concepts.imagenet_features import ImagenetFeatures
from ..concepts.patch_features import DescriptorFeatures, DiffusionFeatures, DinoFeatures, FeatureSource

SourceChoice = Literal["auto", "dinov2", "imagenet", "diffusion", "descriptor"]
Spec = dict[str, "str | int | float"]

DINO_MODEL = "vit_base_patch14_dinov2.lvd142m"
"""timm's name of the vision transformer of the source `dinov2`."""
_DINO_CACHE = ("timm/vit_base_patch14_dinov2.lvd142m", "model.safetensors")


def choose_source(choice: SourceChoice, *, has_base: bool, weights: Path | None = None) -> Spec:
    """Specification of the source that a user's choice means; `auto` takes the best one that needs no download.

    That is dinov2 where its weights are on disk, else diffusion where a base model is given, else descriptor.
    """
    # a checkpoint given by hand says that dinov2 is meant
    name = choice
    if choice == "auto" and (weights is not None or dino_weights_on_disk()):
        name = "dinov2"
    elif choice == "auto":
        name = "diffusion" if has_base else "descriptor"
    return {"name": name, "weights": str(weights)} if name == "dinov2" and weights is not None else {"name": name}


def default_source(denoiser: Denoiser | None = None) -> Spec:
    """Specification of the best source that needs no download, given the denoiser that is loaded anyway."""
    return choose_source("auto", has_base=denoiser is not None)


def build_feature_source(spec: Spec, denoiser: Denoiser | None = None, *, device: str = "cpu") -> FeatureSource:
    """A feature source from its specification (`FeatureSource.spec`, or just a name).

    Args:
        spec: `name` and the settings of that source; settings left out keep their defaults.
        denoiser: the model whose activations are read; only the source `diffusion` needs it.
        device: where a vision transformer runs, for example "cuda:0".

    Raises:
        BestiaryError: an unknown name, a missing or different base model, or weights that cannot be read.
    """
    settings = dict(spec)
    name = settings.pop("name", None)
    # each source knows its own settings; an unknown one is its error to tell
    if name == "descriptor":
        return DescriptorFeatures(**settings)
    if name == "dinov2":
        return DinoFeatures(settings.pop("weights", None), device=device, **settings)
    if name == "imagenet":
        return ImagenetFeatures(settings.pop("weights", None), device=device, **settings)
    if name == "diffusion":
        return _diffusion_source(settings, denoiser)
    raise BestiaryError(f"unknown feature source {name!r}: choose one of dinov2, imagenet, diffusion, descriptor")


def dino_weights_on_disk() -> bool:
    """True where timm would find its DINOv2 weights without a download."""
    # a look into the cache folder: unlike timm it never asks the network
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(*_DINO_CACHE), str)


def _diffusion_source(settings: Spec, denoiser: Denoiser | None) -> DiffusionFeatures:
    if denoiser is None:
        raise BestiaryError(
            "the feature source diffusion reads a base model and none was given: "
            "give --base FOLDER, or choose --source descriptor"
        )
    backbone = settings.pop("backbone", denoiser.backbone.name)
    if backbone != denoiser.backbone.name:
        raise BestiaryError(
            f"these features were made with a base model of the kind {backbone!r}, not {denoiser.backbone.name!r}: "
            f"give --base a {backbone} model"
        )
    # specifications are flat, so the names of blocks stand in one text
    blocks = settings.pop("blocks", None)
    return DiffusionFeatures(denoiser, blocks=blocks.split(",") if blocks else None, **settings)
