"""The noise of a MODEL that predicts a flow: its shift, patches of other nodes included, as the method's process."""

from __future__ import annotations

import math
from typing import Any

from ...concepts.denoiser.process import FlowProcess
from ...concepts.errors import BestiaryError
from ..host.comfy_objects import Model, ModelSampling

LEAST_SIGNAL = 1e-6
"""Share of the picture at half of the time that is taken for none at all."""


def is_flow(model: Model) -> bool:
    """Whether a MODEL predicts the flow from picture to noise; ModelSampling nodes before it count."""
    import comfy.model_sampling as kinds

    # patches may change what a prediction means: the function that turns one into latents shows it
    denoised = getattr(type(model.get_model_object("model_sampling")), "calculate_denoised", None)
    return denoised is kinds.CONST.calculate_denoised


def flow_sampling(model: Model) -> ModelSampling:
    """The noise schedule of a MODEL that predicts a flow.

    Raises:
        BestiaryError: its shift is 0, so that it has no noise levels between none and all.
    """
    sampling = model.get_model_object("model_sampling")
    if not sampling.percent_to_sigma(0.5) > 0:
        raise BestiaryError(
            f"the MODEL's shift is {float(getattr(sampling, 'shift', 0.0)):g}, which leaves no noise in the middle of the sampling: set a shift "
            "above 0 in the ModelSampling node before it (3 for SD3, 1.15 for Flux)"
        )
    return sampling


def flow_process(model: Model) -> FlowProcess:
    """The forward process of a MODEL that predicts a flow; training times as SD3's authors draw them.

    Raises:
        BestiaryError: its shift is 0, or its noise is no shifted straight path.
    """
    import comfy.model_sampling as kinds

    sampling: Any = flow_sampling(model)
    middle, late = (float(sampling.percent_to_sigma(percent)) for percent in (0.5, 0.75))
    # SD3 writes a factor, Flux its logarithm; others are asked for their noise at half of the time
    if isinstance(sampling, kinds.ModelSamplingDiscreteFlow):
        shift = float(sampling.shift)
    elif isinstance(sampling, kinds.ModelSamplingFlux):
        shift = math.exp(sampling.shift)
    else:
        shift = middle / max(1 - middle, LEAST_SIGNAL)
    process = FlowProcess(shift, draw="logit_normal")
    for percent, sigma in ((0.5, middle), (0.75, late)):
        expected = shift * (1 - percent) / (1 + (shift - 1) * (1 - percent))
        if abs(sigma - expected) > 1e-3:
            raise BestiaryError(
                f"the MODEL's noise at {percent:.0%} of the sampling is {sigma:.4g}, not {expected:.4g} as with a shift of {shift:.4g}: connect "
                "the MODEL from before the node that changes its noise schedule"
            )
    return process
