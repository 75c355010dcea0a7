"""What a MODEL and its CLIP are, in the records that the method reads: noise schedule and backbone.

Letter: T timesteps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ...concepts.denoiser.backbone import Backbone, get_backbone
from ...concepts.denoiser.process import DiscreteProcess, FlowProcess, Prediction
from ...concepts.errors import BestiaryError
from ..host.comfy_objects import Clip, Model
from .flow_sampling import flow_process
from .model_backbone import clip_family
from .transformer_layers import family_of, read_widths


def discrete_process(model: Model) -> DiscreteProcess:
    """The forward process of a MODEL, patches of other nodes included.

    Raises:
        BestiaryError: it predicts neither noise nor velocity, or has no discrete timesteps.
    """
    import comfy.model_sampling as kinds

    sampling = model.get_model_object("model_sampling")
    # patches may change what a prediction means: the function that turns one into latents shows it
    denoised = getattr(type(sampling), "calculate_denoised", None)
    prediction: Prediction | None = None
    if denoised is kinds.EPS.calculate_denoised:
        prediction = "epsilon"
    elif denoised is kinds.V_PREDICTION.calculate_denoised:
        prediction = "v_prediction"
    if prediction is None or type(sampling).timestep is not kinds.ModelSamplingDiscrete.timestep:
        raise BestiaryError(
            f"this MODEL predicts {model.model.model_type.name}: connect one that predicts noise or velocity at discrete "
            "timesteps (Stable Diffusion 1.5, 2, XL or the demo model)"
        )
    # ComfyUI keeps noise over signal, with the variance of the signal at 1
    sigmas = sampling.sigmas.detach().double().cpu()  # (T,)
    return DiscreteProcess((1 / (sigmas.square() + 1)).float(), prediction)


def process_of(model: Model) -> DiscreteProcess | FlowProcess:
    """The forward process of a MODEL, patches of other nodes included; see `discrete_process` and `flow_process` for errors."""
    return flow_process(model) if family_of(model.model.diffusion_model) else discrete_process(model)


def transformer_record(model: Model, clip: Clip, widths: Mapping[str, int]) -> Backbone:
    """The record of an SD3 or Flux, with the widths that the text encoders of its CLIP really have; encoders may be missing.

    Raises:
        BestiaryError: MODEL and CLIP are of different families, or of different widths.
    """
    network, channels = model.model.diffusion_model, model.model.latent_format.latent_channels
    family, held = family_of(network), clip_family(clip)
    demo = get_backbone("bestiary-demo-dit")
    if family == "sd3" and channels == demo.latent_channels:
        family, held = demo.name, demo.name if held == "sd15" else held
    if family is None or held != family:
        raise BestiaryError(
            f"the MODEL is a {family or type(network).__name__}, the CLIP is that of {held or 'another model'} "
            f"({', '.join(widths) or 'no text encoder'}): load both for the same model"
        )
    record = get_backbone(family)
    encoders = tuple(replace(spec, width=widths.get(spec.name, spec.width)) for spec in record.text_encoders)
    record = replace(record, text_encoders=encoders)
    text, pooled = read_widths(network)
    given = sum(spec.width for spec in encoders if spec.pooled)
    if text != record.context_width or pooled != given or channels != record.latent_channels:
        raise BestiaryError(
            f"MODEL and CLIP do not belong together: the MODEL reads texts {text} wide, pooled ones {pooled} wide and latents of {channels} "
            f"channels; the CLIP gives {record.context_width} and {given}, and {record.name} has {record.latent_channels} channels"
        )
    return record


def detect_backbone(model: Model, widths: Mapping[str, int]) -> Backbone:
    """The record of a MODEL whose text encoders have these widths, with the numbers this one really has.

    Raises:
        BestiaryError: MODEL and CLIP do not belong together, or are of an unknown kind.
    """
    # by the names of the text encoders; SD1.5 and the demo model differ in their latents
    channels = model.model.latent_format.latent_channels
    by_encoders = {("clip_l",): "sd15", ("clip_h",): "sd2", ("clip_l", "clip_g"): "sdxl"}
    name = by_encoders.get(tuple(widths))
    if name == "sd15" and channels == get_backbone("bestiary-demo").latent_channels:
        name = "bestiary-demo"
    if name is None:
        known = "; ".join(", ".join(names) for names in by_encoders)
        raise BestiaryError(f"this CLIP has the text encoders {', '.join(widths)}: known are {known}")
    # widths and channels must agree with those of the model, not only the kind
    record = get_backbone(name)
    wanted, given = model.model.model_config.unet_config.get("context_dim"), sum(widths.values())
    pooled = any(encoder.pooled for encoder in record.text_encoders)
    if wanted != given or channels != record.latent_channels or pooled != bool(model.model.adm_channels):
        raise BestiaryError(
            f"MODEL and CLIP do not belong together: the MODEL reads texts {wanted} wide and latents of {channels} channels, "
            f"the CLIP ({', '.join(widths)}) gives {given}; take both from one checkpoint"
        )
    encoders = tuple(replace(encoder, width=widths[encoder.name]) for encoder in record.text_encoders)
    return replace(record, text_encoders=encoders)
