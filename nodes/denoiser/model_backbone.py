"""What a connected MODEL and CLIP are, and whether a part dictionary was trained for such a model."""

from __future__ import annotations

from ...concepts.denoiser.backbone import BACKBONES, get_backbone
from ...concepts.errors import BestiaryError
from ...concepts.name_search import shown_name
from ...concepts.part_dictionary.part_dictionary import PartDictionary
from ..host.comfy_objects import Clip, Model

PREDICTIONS = {"EPS": "epsilon", "V_PREDICTION": "v_prediction", "FLOW": "flow", "FLUX": "flow"}
"""ComfyUI's words for what a denoiser predicts, in ours."""


def text_widths(clip: Clip) -> dict[str, int]:
    """Text encoder name (clip_l, clip_g, clip_h, ...) -> channels of its token embeddings."""
    widths: dict[str, int] = {}
    for name, encoder in clip.cond_stage_model.named_children():
        table = getattr(getattr(encoder, "transformer", None), "get_input_embeddings", None)
        if table is not None:
            widths[name] = table().weight.shape[1]
    return widths


def is_flow_clip(clip: Clip) -> bool:
    """Whether a CLIP belongs to a model that predicts a flow, as far as its text encoders show it: T5 beside CLIP (SD3, Flux)."""
    widths = text_widths(clip)
    return "t5xxl" in widths and bool(widths.keys() & {"clip_l", "clip_g"})


def is_flux_clip(clip: Clip) -> bool:
    """Whether a CLIP is Flux's: T5 and CLIP-L, with no place for CLIP-G."""
    return is_flow_clip(clip) and not hasattr(clip.cond_stage_model, "clip_g")


def prediction_of(model: Model) -> str:
    """What the denoiser predicts: "epsilon", "v_prediction", or ComfyUI's word for something else."""
    kind: str = model.model.model_type.name
    return PREDICTIONS.get(kind, kind.lower())


def backbone_of(model: Model, clip: Clip) -> str | None:
    """Name of the backbone whose widths and latent channels MODEL and CLIP have; None for one we do not know."""
    widths, channels = text_widths(clip), model.model.latent_format.latent_channels
    for backbone in BACKBONES.values():
        if widths == _expected_widths(backbone.name) and channels == backbone.latent_channels:
            return backbone.name
    return None


def check_backbone(dictionary: PartDictionary, name: str, model: Model, clip: Clip) -> None:
    """Refuses a dictionary that was trained for another model.

    Raises:
        BestiaryError: text encoders, latent, size conditioning or prediction differ; the message says in what.
    """
    # all reasons at once: one of them alone may look like a mistake of ours
    reasons = [*_text_reasons(dictionary, clip), *_denoiser_reasons(dictionary, model)]
    if reasons:
        known = backbone_of(model, clip)
        connected = f"the connected model is {known}" if known else "the connected model is another one"
        raise BestiaryError(
            f"dictionary {shown_name(name)} was trained for {dictionary.backbone}, {connected}: {'; '.join(reasons)}. "
            f"Connect a {dictionary.backbone} checkpoint, or choose a dictionary that was trained for this one"
        )


def check_widths(dictionary: PartDictionary, name: str, clip: Clip) -> None:
    """Refuses vectors that ComfyUI would drop without an error.

    Raises:
        BestiaryError: no text encoder of the CLIP is in the dictionary, or one has another width.
    """
    held = text_widths(clip)
    ours = {encoder: tensor.shape[1] for encoder, tensor in dictionary.embeddings.items()}
    # an encoder that the CLIP lacks is left out, one of another width would shift all tokens
    wrong = [encoder for encoder in ours if ours[encoder] != held.get(encoder, ours[encoder])]
    if wrong or not ours.keys() & held.keys():
        raise BestiaryError(
            f"dictionary {shown_name(name)} holds vectors for {_listed(ours)}, the connected CLIP takes {_listed(held)}: "
            f"choose a dictionary that was trained for this model"
        )


def _text_reasons(dictionary: PartDictionary, clip: Clip) -> list[str]:
    ours = {encoder: tensor.shape[1] for encoder, tensor in dictionary.embeddings.items()}
    held = text_widths(clip)
    return [] if ours == held else [f"its vectors are for {_listed(ours)}, the CLIP has {_listed(held)}"]


def _denoiser_reasons(dictionary: PartDictionary, model: Model) -> list[str]:
    backbone, inner = get_backbone(dictionary.backbone), model.model
    reasons = []
    channels = inner.latent_format.latent_channels
    if channels != backbone.latent_channels:
        reasons.append(f"it expects {backbone.latent_channels} latent channels, the MODEL has {channels}")
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
