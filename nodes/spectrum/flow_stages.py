"""Stages on flow models: presets by time or by noise, and what a node says of shifts and of negative prompts without effect."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ...concepts.denoiser.process import FlowProcess
from ...concepts.spectrum.attribute_presets import DEFAULT_PRESETS, Presets
from ...concepts.spectrum.stage_levels import presets_for
from ..denoiser.flow_sampling import flow_process, is_flow
from ..denoiser.model_backbone import clip_family
from ..host.comfy_objects import Clip, Model

if TYPE_CHECKING:
    from .stage_ranges import StageTiming
    from .staged_encoding import StagedSide

ANY_SHIFT = 1.0
"""Shares of time are shares of the sampling at whatever shift, as long as learning and sampling agree."""
UNUSED_NEGATIVE = "at cfg 1 ComfyUI leaves the negative prompt out, so that its stages have no effect: raise cfg, or leave negative_text empty."


def presets_by(clock: str, own: Presets, shift: float | None, model: Model | None) -> Presets:
    """Presets for a prompt: `own` by time; by noise those at whose noise Stable Diffusion shows the attribute.

    Args:
        clock: "time" or "noise".
        own: those of the spectrum, or the defaults; presets that a file brings itself stay whatever the clock.
        shift: at which the stages were learned; None takes the MODEL's.
        model: without one, and without a shift, stages are Stable Diffusion's, for which both clocks are the same.

    Raises:
        BestiaryError: another clock, or a MODEL whose noise has no shift.
    """
    if clock == "time" or dict(own) != dict(DEFAULT_PRESETS):
        return own
    if shift is not None:
        return presets_for(FlowProcess(shift), clock)
    return presets_for(flow_process(model), clock) if model is not None and is_flow(model) else own


def shift_notice(shift: float | None, timing: StageTiming) -> str | None:
    """What a report says of the shift at which stages lie; None where it says nothing new."""
    model = timing.model
    if timing.clock != "timesteps" or (shift is None and timing.assumed is None):
        return None
    if model is None:
        learned = "their own shift" if shift is None else f"the shift {shift:.4g} they were learned with"
        return (
            f"No MODEL is connected: stages are placed for sampling at {learned}; connect the MODEL if it has another."
        )
    own = flow_process(model).shift
    if shift is None or math.isclose(own, shift, rel_tol=1e-4):
        return None
    return f"The stages were learned at shift {shift:.4g}, the MODEL has {own:.4g}: they keep their noise, at other percents of the sampling."


def negative_notice(sides: Sequence[StagedSide], clip: Clip) -> str | None:
    """What a report says of a staged negative prompt for Flux, which is sampled without one as a rule."""
    staged = len(sides) > 1 and len(sides[1].prompt.stages) > 1
    return f"Flux is made for cfg 1, and {UNUSED_NEGATIVE}" if staged and clip_family(clip) == "flux" else None


def unused_negative(graph: Mapping[str, Any], node: str, output: int) -> str | None:
    """What is said where a sampler of the queued graph takes this output of a node at cfg 1; None where none does."""
    for number, one in graph.items():
        inputs = one.get("inputs", {})
        if [node, output] in inputs.values() and inputs.get("cfg") == 1:
            return f"{one.get('class_type', 'The sampler')} (node {number}) has cfg 1: {UNUSED_NEGATIVE}"
    return None
