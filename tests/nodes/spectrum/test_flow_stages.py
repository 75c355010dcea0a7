"""Stages on flow models through the nodes: noise levels that no shift moves, presets by noise, and what the report says."""

import math
from itertools import pairwise

import pytest
import torch
from bestiary.concepts.denoiser.backbone import get_backbone
from bestiary.concepts.denoiser.process import FlowProcess
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.spectrum.prompt_spectrum import PromptSpectrum
from bestiary.concepts.spectrum.stage_bounds import StageBounds
from bestiary.concepts.spectrum.stage_levels import StageLevels
from bestiary.nodes.host.socket_types import NamedSpectrum

from tests.nodes import tiny_transformers as tiny

LEVELS = StageLevels.learned(StageBounds.equal(10), FlowProcess(3.0)).sigmas


def shifted(model: object, shift: float) -> object:
    """The MODEL behind ComfyUI's own node for shifts."""
    from comfy_extras.nodes_model_advanced import ModelSamplingFlux, ModelSamplingSD3

    if type(model.model).__name__ == "Flux":
        return ModelSamplingFlux().patch(model, shift, shift, 1024, 1024)[0]
    return ModelSamplingSD3().patch(model, shift)[0]


def spectrum(shift: float | None = 3.0, name: str = "sd3") -> NamedSpectrum:
    record = get_backbone(name)
    widths = {"clip_l": tiny.CLIP_L, "clip_g": tiny.CLIP_G, "t5xxl": 4096 if name == "sd3" else tiny.FLUX_T5}
    rng = torch.Generator().manual_seed(3)
    vectors = {spec.name: torch.randn(10, 1, widths[spec.name], generator=rng) for spec in record.text_encoders}
    return NamedSpectrum("pet", PromptSpectrum(name, vectors, StageBounds.equal(10), shift=shift))


def encode(clip: object, text: str, **inputs: object) -> tuple[list, list, str]:
    from bestiary.nodes.spectrum.prompt_spectrum_nodes import BestiarySpectrumPrompt

    return BestiarySpectrumPrompt.execute(clip, text, inputs.pop("negative_text", ""), **inputs).args[:3]


def levels_of(model: object, conditioning: list) -> list[float]:
    """Noise levels at which the entries of a conditioning begin, and where the last one ends."""
    sampling = model.get_model_object("model_sampling")
    acting = [options for _, options in conditioning if not options.get("default")]
    ends = [acting[0]["start_percent"], *(options["end_percent"] for options in acting)]
    return [float(sampling.percent_to_sigma(percent)) for percent in ends]


@pytest.fixture(scope="module")
def staged() -> dict[float, tuple[object, list, str]]:
    """A spectrum learned at shift 3, encoded for a MODEL of each shift."""
    made = {}
    for shift in (1.0, 3.0, 6.0):
        # Flux writes the logarithm of a shift
        model = shifted(tiny.flux_model(), math.log(shift))
        positive, _, report = encode(tiny.flux_clip(), "a <pet>", spectrum_1=spectrum(3.0, "flux"), model=model)
        made[shift] = model, positive, report
    return made


def test_a_changed_shift_moves_percents_and_never_noise(staged):
    percents = set()
    for shift, (model, positive, report) in staged.items():
        assert levels_of(model, positive) == pytest.approx(LEVELS, abs=1e-6)
        percents.add(round(positive[0][1]["end_percent"], 4))
        notice = f"The stages were learned at shift 3, the MODEL has {shift:g}: they keep their noise"
        assert (notice in report) == (shift != 3.0)
    assert len(percents) == 3


@pytest.mark.parametrize("shift", [1.0, 3.0, 6.0])
def test_every_step_of_every_scheduler_has_one_stage(staged, shift):
    import comfy.samplers
    from bestiary.nodes.spectrum.stage_schedule import conditioning_ranges, sampler_sigmas, schedule_stages

    model, positive, _ = staged[shift]
    ranges, has_filler = conditioning_ranges(positive)
    assert has_filler and len(ranges) == 10
    for scheduler in comfy.samplers.KSampler.SCHEDULERS:
        sigmas = sampler_sigmas(model, "euler", scheduler, 11, 1.0)
        steps = schedule_stages(model, ranges, sigmas).steps
        counts = [len(step.stages) for step in steps if step.sigma > 0]
        assert set(counts) == {1}, scheduler
        # pure noise belongs to the first stage
        assert steps[0].stages == (0,) or steps[0].sigma < 1


def test_presets_by_noise_lie_where_stable_diffusion_is_as_noisy():
    model = shifted(tiny.sd3_model(), 3.0)
    clip, inputs = tiny.sd3_clip(), {"spectrum_1": spectrum(), "model": model}
    for clock, begin in (("time", 0.2), ("noise", 0.3)):
        positive, _, _ = encode(clip, "a <pet@content>", presets_by=clock, **inputs)
        # SD1.5's content begins at 20 % of its time, and its noise is reached by shift 3 at 37 %: the first stage with its middle there
        assert positive[0][1]["end_percent"] == pytest.approx(begin + (0.1 if clock == "noise" else 0), abs=2e-3)
    typed, _, _ = encode(clip, "a <pet@content>", presets="content: 0%-50%", presets_by="noise", **inputs)
    assert typed[0][1]["start_percent"] == 0 and len(typed) == 7


def test_a_mix_and_a_preview_take_presets_by_noise():
    from bestiary.nodes.spectrum.prompt_spectrum_nodes import BestiaryMixAttributes

    mixed, _ = BestiaryMixAttributes.execute("mix", reference_1=spectrum(), takes_1="content", presets_by="noise").args
    assert mixed.spectrum.shift == 3.0 and mixed.spectrum.presets["content"][0][0] == pytest.approx(0.3712, abs=1e-3)


def test_without_a_model_the_shift_of_learning_is_assumed_and_said():
    clip = tiny.flux_clip()
    known, _, report = encode(clip, "a <pet>", spectrum_1=spectrum(3.16, "flux"))
    assert "No MODEL is connected: stages are placed for sampling at the shift 3.16 they were learned with" in report
    unknown, negative, report = encode(
        clip, "a <pet>", negative_stage_texts="1: fog", spectrum_1=spectrum(None, "flux")
    )
    assert "placed for sampling at their own shift" in report
    assert "Flux is made for cfg 1, and at cfg 1 ComfyUI leaves the negative prompt out" in report and len(negative) > 1
    for conditioning in (known, unknown):
        ends = [options["end_percent"] for _, options in conditioning if not options.get("default")]
        assert tuple(ends) == StageBounds.equal(10).percents("continuous")[1:]
    assert all(a < b for a, b in pairwise(ends))


def test_a_staged_negative_at_a_sampler_with_cfg_1_is_reported():
    from bestiary.nodes.spectrum.flow_stages import unused_negative

    graph = {"4": {"class_type": "KSampler", "inputs": {"negative": ["2", 1], "cfg": 1.0}}, "2": {"inputs": {}}}
    assert unused_negative(graph, "2", 1).startswith(
        "KSampler (node 4) has cfg 1: at cfg 1 ComfyUI leaves the negative"
    )
    graph["4"]["inputs"]["cfg"] = 4.0
    assert unused_negative(graph, "2", 1) is None


def test_models_that_stages_of_a_flow_do_not_fit_are_refused(demo_model):
    from bestiary.nodes.denoiser.flow_sampling import flow_process
    from bestiary.nodes.spectrum.stage_ranges import stage_percents

    ten = StageBounds.equal(10)
    with pytest.raises(BestiaryError, match=r"learned on a flow model \(shift 3\), but the MODEL predicts epsilon"):
        stage_percents(ten, model=demo_model.model, shift=3.0)
    with pytest.raises(BestiaryError, match="the MODEL's shift is 0, which leaves no noise in the middle"):
        stage_percents(ten, model=shifted(tiny.sd3_model(), 0.0), shift=3.0)
    assert flow_process(shifted(tiny.flux_model(), 1.15)).shift == FlowProcess.exponential(1.15).shift
    odd = tiny.sd3_model().clone()
    sampling = shifted(odd, 3.0).get_model_object("model_sampling")
    sampling.percent_to_sigma = lambda percent: (1 - percent) ** 3
    odd.add_object_patch("model_sampling", sampling)
    with pytest.raises(BestiaryError, match="noise at 50% of the sampling is 0.125, not 0.75 as with a shift of 3"):
        flow_process(odd)
