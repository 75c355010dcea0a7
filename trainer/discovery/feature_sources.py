"""Builds the patch-feature source requested by a codebook or a command, and chooses the default source."""

from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from ...concepts.denoiser.denoiser import Denoiser
from ...concepts.errors import BestiaryError
from ...concepts.features.imagenet_features import ImagenetFeatures
from ...concepts.features.patch_features import DescriptorFeatures, DiffusionFeatures, DinoFeatures, FeatureSource
from ...concepts.features.vit_weights import DINO_MODEL as DINO_MODEL
from ...concepts.features.vit_weights import cached_weights, fetch_weights

SourceChoice = Literal["auto", "dinov2", "imagenet", "diffusion", "descriptor"]
Spec = dict[str, "str | int | float"]


class _SourceSettings(BaseModel):
    """Settings of a source from its specification; omitted ones keep the defaults of the source."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    image_size: int | None = None


class _DescriptorSettings(_SourceSettings):
    grid: int | None = None
    position: float | None = None


class _ImagenetSettings(_SourceSettings):
    weights: str | None = None
    model: str | None = None
    blocks: str | None = None
    detail: str | None = None
    margin: int | None = None
    saliency: int | None = None
    dilated: int | None = None
    weights_sha256: str | None = None


class _DinoSettings(_SourceSettings):
    weights: str | None = None
    model: str = DINO_MODEL


class _DiffusionSettings(_SourceSettings):
    backbone: str | None = None
    timestep: int | None = None
    blocks: str | None = None
    grid: int | None = None
    draws: int = 1
    seed: int = 0
    margin: int | None = None


Settings = TypeVar("Settings", bound=_SourceSettings)
"""The settings of one source."""


def choose_source(choice: SourceChoice, *, weights: Path | None = None, model: str | None = None) -> Spec:
    """Specification of the chosen source; `auto` selects the best one that needs no download.

    That is dinov2 if its weights are on disk, else imagenet. `descriptor` (colour and texture) and `diffusion` (features
    of a base model) are used only if requested by name.

    Raises:
        BestiaryError: weights or a model given for a source that does not use them.
    """
    # with auto, an explicit checkpoint or model implies dinov2
    name = choice
    if choice == "auto":
        # auto must not start a download on its own
        name = "dinov2" if weights is not None or model is not None or dino_weights_on_disk() else "imagenet"
    if model is not None and name != "dinov2":
        raise BestiaryError(f"--model {model} is for --source dinov2, not {name}: remove one of the two options")
    if weights is not None and name not in ("dinov2", "imagenet"):
        raise BestiaryError(
            f"--weights {weights} is for --source dinov2 or imagenet, not {name}: remove one of the two options"
        )
    given = {"model": model, "weights": None if weights is None else str(weights)}
    return {"name": name, **{setting: value for setting, value in given.items() if value is not None}}


def default_source() -> Spec:
    """Specification of the best source that needs no download."""
    return choose_source("auto")


def build_feature_source(spec: Spec, denoiser: Denoiser | None = None, *, device: str = "cpu") -> FeatureSource:
    """A feature source from its specification (`FeatureSource.spec`, or just a name).

    Args:
        spec: `name` and the settings of that source; omitted settings keep their defaults.
        denoiser: the model to read activations from; required by the source `diffusion` only.
        device: device of the feature network, for example "cuda:0".

    Raises:
        BestiaryError: an unknown name, a missing or different base model, or weights that cannot be read.
    """
    name = spec.get("name")
    if name == "descriptor":
        return DescriptorFeatures(**_settings(spec, _DescriptorSettings).model_dump(exclude_unset=True))
    if name == "dinov2":
        return _dino_source(_settings(spec, _DinoSettings), device)
    if name == "imagenet":
        return ImagenetFeatures(**_settings(spec, _ImagenetSettings).model_dump(exclude_unset=True), device=device)
    if name == "diffusion":
        return _diffusion_source(_settings(spec, _DiffusionSettings), denoiser)
    raise BestiaryError(f"unknown feature source {name!r}: choose one of dinov2, imagenet, diffusion, descriptor")


def dino_weights_on_disk() -> bool:
    """True if timm can load its DINOv2 weights without a download."""
    return cached_weights() is not None


def _settings(spec: Spec, form: type[Settings]) -> Settings:
    """The validated settings of a specification, without its name."""
    try:
        return form.model_validate({name: value for name, value in spec.items() if name != "name"})
    except ValidationError as fault:
        faults = "; ".join(f"{error['loc'][0]} = {error['input']!r}: {error['msg']}" for error in fault.errors())
        raise BestiaryError(
            f"the feature source {spec['name']} cannot be built with these settings: {faults}. "
            f"Valid settings: {', '.join(form.model_fields)}; correct the file that contains them, or run discovery again"
        ) from fault


def _dino_source(settings: _DinoSettings, device: str) -> DinoFeatures:
    weights, model, size = settings.weights, settings.model, settings.image_size
    if weights is not None:
        return DinoFeatures(weights, image_size=size, model=model, device=device)
    # timm retries for minutes without a network: fetch with an error that names the remedy
    remedy = "choose --source imagenet, which needs no network"
    source = DinoFeatures(fetch_weights(model, remedy=remedy), image_size=size, model=model, device=device)
    # the codebook may be used on other machines, where this path does not exist
    del source.spec["weights"]
    return source


def _diffusion_source(settings: _DiffusionSettings, denoiser: Denoiser | None) -> DiffusionFeatures:
    if denoiser is None:
        raise BestiaryError(
            "the feature source diffusion needs a base model: give --base FOLDER, or choose --source descriptor"
        )
    backbone = settings.backbone
    if backbone is not None and backbone != denoiser.backbone.name:
        raise BestiaryError(
            f"these features were computed with a {backbone!r} base model, not {denoiser.backbone.name!r}: "
            f"give --base a {backbone} model"
        )
    # specifications are flat: block names are stored as one comma-separated text
    blocks = settings.blocks
    return DiffusionFeatures(
        denoiser,
        timestep=settings.timestep,
        blocks=blocks.split(",") if blocks else None,
        grid=settings.grid,
        draws=settings.draws,
        seed=settings.seed,
        image_size=settings.image_size,
        margin=settings.margin,
    )
