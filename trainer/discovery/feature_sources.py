"""Builds the patch-feature source that a codebook or a command asks for, and chooses one where nothing was asked."""

from pathlib import Path
from typing import Literal

from ...concepts.denoiser.denoiser import Denoiser
from ...concepts.errors import BestiaryError
from ...concepts.features.imagenet_features import ImagenetFeatures
from ...concepts.features.patch_features import DescriptorFeatures, DiffusionFeatures, DinoFeatures, FeatureSource
from ...concepts.features.vit_weights import DINO_MODEL as DINO_MODEL
from ...concepts.features.vit_weights import cached_weights, fetch_weights

SourceChoice = Literal["auto", "dinov2", "imagenet", "diffusion", "descriptor"]
Spec = dict[str, "str | int | float"]


def choose_source(choice: SourceChoice, *, weights: Path | None = None, model: str | None = None) -> Spec:
    """Specification of the source that a user's choice means; `auto` takes the best one that needs no download.

    That is dinov2 where its weights are on disk, else imagenet. Colours alone (`descriptor`) and a base model's own
    features (`diffusion`) are taken only where they are asked for by name.

    Raises:
        BestiaryError: weights or a model for a source that has none.
    """
    # a checkpoint or a model given by hand says that dinov2 is meant
    name = choice
    if choice == "auto":
        name = "dinov2" if weights is not None or model is not None or dino_weights_on_disk() else "imagenet"
    if model is not None and name != "dinov2":
        raise BestiaryError(f"--model {model} is for --source dinov2, not {name}: leave one of them out")
    if weights is not None and name not in ("dinov2", "imagenet"):
        raise BestiaryError(
            f"--weights {weights} is for --source dinov2 or imagenet, not {name}: leave one of them out"
        )
    given = {"model": model, "weights": None if weights is None else str(weights)}
    return {"name": name, **{setting: value for setting, value in given.items() if value is not None}}


def default_source() -> Spec:
    """Specification of the best source that needs no download."""
    return choose_source("auto")


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
        return _dino_source(settings, device)
    if name == "imagenet":
        return ImagenetFeatures(settings.pop("weights", None), device=device, **settings)
    if name == "diffusion":
        return _diffusion_source(settings, denoiser)
    raise BestiaryError(f"unknown feature source {name!r}: choose one of dinov2, imagenet, diffusion, descriptor")


def dino_weights_on_disk() -> bool:
    """True where timm would find its DINOv2 weights without a download."""
    return cached_weights() is not None


def _dino_source(settings: Spec, device: str) -> DinoFeatures:
    weights = settings.pop("weights", None)
    if weights is not None:
        return DinoFeatures(weights, device=device, **settings)
    # timm would try for minutes where there is no network
    remedy = "choose --source imagenet, which needs no network"
    source = DinoFeatures(fetch_weights(settings.get("model", DINO_MODEL), remedy=remedy), device=device, **settings)
    # a codebook goes to other machines, where this path means nothing
    del source.spec["weights"]
    return source


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
