"""What a connected MODEL and CLIP are, and whether a part dictionary was trained for such a model."""

from __future__ import annotations

from collections.abc import Sequence

from ...concepts.denoiser.backbone import BACKBONES, get_backbone
from ...concepts.errors import BestiaryError
from ...concepts.name_search import shown_name
from ...concepts.part_dictionary.part_dictionary import PartDictionary
from ..host.comfy_objects import Clip, Model
from .transformer_layers import family_of

PREDICTIONS = {"EPS": "epsilon", "V_PREDICTION": "v_prediction", "FLOW": "flow", "FLUX": "flow"}
"""ComfyUI's words for what a denoiser predicts, in ours."""


TRANSFORMERS = {"sd3", "flux"}
"""Families whose CLIP is known by its T5."""
FLOWS = {*TRANSFORMERS, "bestiary-demo-dit"}
"""Backbones that predict a flow."""


def text_widths(clip: Clip) -> dict[str, int]:
    """Text encoder name (clip_l, clip_g, clip_h, ...) -> channels of its token embeddings."""
    widths: dict[str, int] = {}
    for name, encoder in clip.cond_stage_model.named_children():
        table = getattr(getattr(encoder, "transformer", None), "get_input_embeddings", None)
        if table is not None:
            widths[name] = table().weight.shape[1]
    return widths


def clip_family(clip: Clip) -> str | None:
    """Family of the model that a CLIP belongs to, by the places it has for text encoders: sd15 (the demo models too), sd2, sdxl, sd3, flux."""
    stage = clip.cond_stage_model
    # places stay where an encoder was not loaded
    places = frozenset(name for name in ("clip_l", "clip_h", "clip_g", "t5xxl") if hasattr(stage, name))
    families = {("clip_l",): "sd15", ("clip_h",): "sd2", ("clip_l", "clip_g"): "sdxl", ("clip_l", "t5xxl"): "flux"}
    families[("clip_l", "clip_g", "t5xxl")] = "sd3"
    return {frozenset(names): family for names, family in families.items()}.get(places)


def is_flow_clip(clip: Clip) -> bool:
    """Whether a CLIP belongs to a model that predicts a flow, as far as its text encoders show it (SD3, Flux)."""
    return clip_family(clip) in TRANSFORMERS


def prediction_of(model: Model) -> str:
    """What the denoiser predicts: "epsilon", "v_prediction", or ComfyUI's word for something else."""
    kind: str = model.model.model_type.name
    return PREDICTIONS.get(kind, kind.lower())


def backbone_of(model: Model, clip: Clip) -> str | None:
    """Name of the backbone whose widths and latent channels MODEL and CLIP have; None for one we do not know."""
    widths, channels = text_widths(clip), model.model.latent_format.latent_channels
    is_flow = family_of(model.model.diffusion_model) is not None
    for backbone in BACKBONES.values():
        # the two demo models share text encoder and latents
        fits = channels == backbone.latent_channels and is_flow == (backbone.name in FLOWS)
        if fits and widths == _expected_widths(backbone.name):
            return backbone.name
    return None


def check_family(kind: str, name: str, learned_for: str, clip: Clip) -> None:
    """Refuses what was learned for SD3 or Flux with another CLIP, and the other way round.

    Args:
        kind: what it is: dictionary or spectrum, called `name` by the user.
        learned_for: name of its backbone.

    Raises:
        BestiaryError: core would leave its vectors out of T5, with nothing but a line in the log.
    """
    family = clip_family(clip)
    if {family, learned_for} & TRANSFORMERS and family != learned_for:
        raise BestiaryError(
            f"{kind} {shown_name(name)} was trained for {learned_for}, the connected CLIP is that of {family or 'another model'}: load the MODEL "
            f"and CLIP of {learned_for}, or choose a {kind} that was trained for this one"
        )


def check_insertion(kind: str, name: str, insertion: str) -> None:
    """Refuses vectors that were learned as rows of a text encoder's output.

    Raises:
        BestiaryError: as token embeddings they would mean nothing.
    """
    if insertion == "output":
        raise BestiaryError(
            f"{kind} {shown_name(name)} was learned with insertion = 'output', as rows of T5's output, which prompts of a graph do not have yet: "
            f"make pictures with `bestiary compose`, or train a {kind} with insertion = 'input'"
        )


def missing_encoders(clip: Clip) -> tuple[str, ...]:
    """Text encoders for which an SD3 or Flux has a place, but that its CLIP was loaded without."""
    held = text_widths(clip)
    family = clip_family(clip)
    return tuple(n for n in _expected_widths(family) if n not in held) if family in TRANSFORMERS and family else ()


def missing_notice(clip: Clip) -> str | None:
    """What is said where learned vectors meet a CLIP that lacks some of its text encoders; None where it has all."""
    missing = missing_encoders(clip)
    return without_encoders(missing, list(text_widths(clip))) if missing else None


def without_encoders(missing: Sequence[str], held: Sequence[str]) -> str:
    """One sentence about text encoders that are missing and those that are left."""
    return f"This CLIP was loaded without {', '.join(missing)}: learned vectors act through {', '.join(held)} alone."


def check_backbone(dictionary: PartDictionary, name: str, model: Model | None, clip: Clip) -> None:
    """Refuses a dictionary that was trained for another model, and vectors that ComfyUI would drop without an error.

    Args:
        dictionary: the dictionary, called `name` by the user.
        model: None where only a CLIP is known: vectors for some of its text encoders are then enough, since an encoder without one gets a word
            in its place.

    Raises:
        BestiaryError: family, text encoders, latent, size conditioning or prediction differ; the message says in what.
    """
    held, ours = text_widths(clip), {encoder: tensor.shape[1] for encoder, tensor in dictionary.embeddings.items()}
    family = clip_family(clip)
    check_family("dictionary", name, dictionary.backbone, clip)
    check_insertion("dictionary", name, dictionary.insertion)
    if model is None:
        # an encoder that the CLIP lacks is left out, one of another width would shift all tokens
        wrong = [encoder for encoder in ours if ours[encoder] != held.get(encoder, ours[encoder])]
        if wrong or not ours.keys() & held.keys():
            raise BestiaryError(
                f"dictionary {shown_name(name)} holds vectors for {_listed(ours)}, the connected CLIP takes {_listed(held)}: "
                f"choose a dictionary that was trained for this model"
            )
        return
    # all reasons at once: one of them alone may look like a mistake of ours
    reasons = [*_text_reasons(ours, held, family), *_denoiser_reasons(dictionary, model)]
    if reasons:
        known = backbone_of(model, clip)
        connected = f"the connected model is {known}" if known else "the connected model is another one"
        raise BestiaryError(
            f"dictionary {shown_name(name)} was trained for {dictionary.backbone}, {connected}: {'; '.join(reasons)}. "
            f"Connect a {dictionary.backbone} checkpoint, or choose a dictionary that was trained for this one"
        )


def _text_reasons(ours: dict[str, int], held: dict[str, int], family: str | None) -> list[str]:
    # SD3 runs without some of its encoders: their vectors are then left out
    left = {name: width for name, width in ours.items() if name in held} if family in TRANSFORMERS else ours
    return [] if left == held and held else [f"its vectors are for {_listed(ours)}, the CLIP has {_listed(held)}"]


def _denoiser_reasons(dictionary: PartDictionary, model: Model) -> list[str]:
    backbone, inner = get_backbone(dictionary.backbone), model.model
    reasons = []
    channels = inner.latent_format.latent_channels
    if channels != backbone.latent_channels:
        reasons.append(f"it expects {backbone.latent_channels} latent channels, the MODEL has {channels}")
    if (family := family_of(inner.diffusion_model)) or backbone.name in FLOWS:
        wanted = "sd3" if backbone.name == "bestiary-demo-dit" else backbone.name
        if family != wanted:
            reasons.append(
                f"it is for a {wanted} network, the MODEL is {family or type(inner.diffusion_model).__name__}"
            )
        return reasons
    # a denoiser for several text encoders reads them side by side
    width = inner.model_config.unet_config.get("context_dim")
    if width != dictionary.vector_width:
        reasons.append(f"its texts are {dictionary.vector_width} wide, the MODEL reads {width or 'no such text'}")
    pooled = any(encoder.pooled for encoder in backbone.text_encoders)
    if pooled != (inner.adm_channels > 0):
        reasons.append(
            f"it expects a MODEL {'with' if pooled else 'without'} size conditioning, this has {inner.adm_channels} channels of it"
        )
    prediction = dictionary.provenance.get("prediction", prediction_of(model))
    if prediction != prediction_of(model):
        reasons.append(f"it was trained on {prediction}, the MODEL predicts {prediction_of(model)}")
    return reasons


def _expected_widths(backbone: str) -> dict[str, int]:
    return {encoder.name: encoder.width for encoder in get_backbone(backbone).text_encoders}


def _listed(widths: dict[str, int]) -> str:
    return ", ".join(f"{name} ({width} wide)" for name, width in sorted(widths.items())) or "no text encoder"
