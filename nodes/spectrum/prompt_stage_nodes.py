"""Stages without a learned file: words per stage, ranges, a preview of steps, and which stages carry a word."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfy_api.latest import io, ui

from ...concepts.spectrum.attribute_presets import DEFAULT_PRESETS, format_presets
from ...concepts.spectrum.stage_bounds import DEFAULT_STAGES, StageBounds
from ..host.comfy_version import schema
from ..host.graph_progress import GraphProgress
from ..host.socket_types import WORD_PLACE, NamedSpectrum, SpectrumSocket
from ..part_map.part_pictures import named_faults
from .prompt_spectrum_nodes import (
    CATEGORY,
    LINES_TOOLTIP,
    MOST_STAGES,
    PRESETS_TOOLTIP,
    text_input,
    timing_inputs,
)
from .stage_ranges import CLOCKS, StageClock, intersect_range
from .stage_schedule import preview_schedule, sampler_names, schedule_table, scheduler_names

if TYPE_CHECKING:
    from torch import Tensor

    from ..host.comfy_objects import Clip, ClipVision, Conditioning, Model, Vae


SWEEP_STAGES = 8


def _stages_input(tooltip: str, default: int = DEFAULT_STAGES, most: int = MOST_STAGES) -> io.Input:
    return io.Int.Input("stages", default=default, min=1, max=most, optional=True, tooltip=tooltip)


def _range_input(name: str, default: float, tooltip: str) -> io.Input:
    return io.Float.Input(name, default=default, min=0.0, max=1.0, step=0.001, round=False, tooltip=tooltip)


class BestiaryStageText(io.ComfyNode):
    """Plain words per stage."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="BestiaryStageText",
            display_name="Stage Text",
            category=CATEGORY,
            description=(
                "Uses different prompts at different stages of the denoising, without a trained file. Works with "
                "every model. Sampling takes as long as with a single prompt."
            ),
            search_aliases=["prompt scheduling", "prompt travel", "timestep range", "text encode"],
            inputs=[
                io.Clip.Input("clip", tooltip="The CLIP of the model."),
                text_input("lines", "layout: a wide meadow\n3-10: a red bird on a meadow", LINES_TOOLTIP),
                text_input(
                    "text", "a bird on a meadow", "The prompt for all other stages. If empty, every stage needs a line."
                ),
                _stages_input("Number of stages of equal length."),
                text_input("presets", "", PRESETS_TOOLTIP + "the default presets.", optional=True),
                *timing_inputs(),
            ],
            outputs=[
                io.Conditioning.Output(
                    "conditioning",
                    display_name="conditioning",
                    tooltip="Positive or negative conditioning for any sampler.",
                ),
                io.String.Output("report", display_name="report", tooltip="The content of each stage."),
            ],
        )

    @classmethod
    def execute(
        cls,
        clip: Clip,
        lines: str,
        text: str,
        stages: int = DEFAULT_STAGES,
        presets: str = "",
        clock: StageClock = CLOCKS[0],
        model: Model | None = None,
        sigmas: Tensor | None = None,
        gap_filler: bool = True,
    ) -> io.NodeOutput:
        from ..part_prompt.clip_tokens import dictionaries_of
        from .spectrum_prompts import PromptOptions, StageTiming, encode_stage_lines

        options = PromptOptions(stages, presets, StageTiming(clock, model, sigmas), gap_filler)
        with named_faults("Stage Text"):
            parts = dictionaries_of(clip) if clip is not None else {}
            return io.NodeOutput(*encode_stage_lines(clip, lines, text, options, parts))


class BestiaryIntersectRange(io.ComfyNode):
    """A range that keeps stages."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="BestiaryIntersectRange",
            display_name="Intersect Range",
            category=CATEGORY,
            description=(
                "Restricts a conditioning to a range of the sampling schedule and keeps its stages. The core "
                "node ConditioningSetTimestepRange would set the same range for every stage."
            ),
            search_aliases=["ConditioningSetTimestepRange", "timestep range", "limit conditioning"],
            inputs=[
                io.Conditioning.Input("conditioning", tooltip="A conditioning with or without stages."),
                _range_input("start", 0.0, "Start of the range; 0 is pure noise."),
                _range_input("end", 1.0, "End of the range; 1 is the finished picture."),
                io.Conditioning.Input(
                    "outside",
                    optional=True,
                    tooltip=(
                        "Conditioning to use outside the range. Without it, combine the result with one that covers the "
                        "rest."
                    ),
                ),
                io.Model.Input("model", optional=True, tooltip="Only required for models other than Stable Diffusion."),
            ],
            outputs=[
                io.Conditioning.Output("limited", display_name="conditioning", tooltip="For any sampler."),
                io.String.Output("report", display_name="report", tooltip="The number of remaining stages."),
            ],
        )

    @classmethod
    def execute(
        cls,
        conditioning: Conditioning,
        start: float,
        end: float,
        outside: Conditioning | None = None,
        model: Model | None = None,
    ) -> io.NodeOutput:
        with named_faults("Intersect Range"):
            return io.NodeOutput(*intersect_range(conditioning, start, end, outside=outside, model=model))


class BestiaryStagePreview(io.ComfyNode):
    """Which steps fall into which stage."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="BestiaryStagePreview",
            display_name="Stage Preview",
            category=CATEGORY,
            description=(
                "Shows which sampler steps fall into which stage, without sampling, and warns about stages that "
                "are never reached."
            ),
            search_aliases=["schedule preview", "timesteps", "sigmas"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The model to sample with."),
                io.Combo.Input("scheduler", options=scheduler_names(), default="normal", tooltip="As in KSampler."),
                io.Int.Input("steps", default=20, min=1, max=10000, tooltip="As in KSampler."),
                io.Float.Input("denoise", default=1.0, min=0.0, max=1.0, step=0.01, tooltip="As in KSampler."),
                io.Conditioning.Input(
                    "conditioning",
                    optional=True,
                    tooltip="Shows the stages of this conditioning; takes precedence over spectrum and stages.",
                ),
                SpectrumSocket.Input(
                    "spectrum", optional=True, tooltip="Shows the stages and attributes of this spectrum."
                ),
                _stages_input("Number of equal stages to show if neither conditioning nor spectrum is connected."),
                io.Combo.Input(
                    "sampler",
                    options=sampler_names(),
                    default="euler",
                    optional=True,
                    tooltip="As in KSampler; a few samplers skip a step.",
                ),
                io.Sigmas.Input("sigmas", optional=True, tooltip="Replace scheduler, steps and denoise."),
            ],
            outputs=[
                io.Image.Output(
                    "picture", display_name="picture", tooltip="The denoising, its stages and the sampler steps."
                ),
                io.String.Output("table", display_name="table", tooltip="Steps per stage, and warnings."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Model,
        scheduler: str,
        steps: int,
        denoise: float,
        conditioning: Conditioning | None = None,
        spectrum: NamedSpectrum | None = None,
        stages: int = DEFAULT_STAGES,
        sampler: str = "euler",
        sigmas: Tensor | None = None,
    ) -> io.NodeOutput:
        from .stage_picture import draw_schedule

        bounds = StageBounds.equal(stages) if spectrum is None else spectrum.spectrum.bounds
        presets = DEFAULT_PRESETS if spectrum is None else spectrum.spectrum.presets
        with named_faults("Stage Preview"):
            walk = (sampler, scheduler, steps, denoise)
            schedule = preview_schedule(model, walk, sigmas, bounds if conditioning is None else conditioning)
        picture = draw_schedule(schedule, presets if conditioning is None else None)
        return io.NodeOutput(picture, schedule_table(schedule), ui=ui.PreviewImage(picture, cls=cls))


class BestiaryFindAttributeStages(io.ComfyNode):
    """Which stages carry a word."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="BestiaryFindAttributeStages",
            display_name="Find Attribute Stages",
            category=CATEGORY,
            description=(
                "Measures which stages a word affects: uses the word at one stage at a time, compares with the "
                "word at all stages, and proposes a preset. Samples once per stage and two more times."
            ),
            search_aliases=["attribute localisation", "prompt spectrum", "stage sweep"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Model.Input("model", tooltip="The model to measure."),
                io.Clip.Input("clip", tooltip="Its CLIP."),
                io.Vae.Input("vae", tooltip="Its VAE."),
                io.Latent.Input(
                    "latent", tooltip="An empty latent. Sets the size and the number of pictures to average over."
                ),
                io.String.Input(
                    "text",
                    default=f"a {WORD_PLACE} bird",
                    tooltip=f"The prompt, with {WORD_PLACE} as the placeholder of the word.",
                ),
                io.String.Input("word", default="red", tooltip="The word to measure."),
                io.String.Input("otherwise", default="", tooltip="The word at all other stages."),
                text_input("negative_text", "", "The negative prompt."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**64 - 1,
                    control_after_generate=False,
                    tooltip="Seed of all sampling runs.",
                ),
                io.Int.Input("steps", default=20, min=1, max=10000, tooltip="As in KSampler."),
                io.Float.Input("cfg", default=7.0, min=0.0, max=100.0, step=0.1, tooltip="As in KSampler."),
                io.Combo.Input("sampler", options=sampler_names(), default="euler", tooltip="As in KSampler."),
                io.Combo.Input("scheduler", options=scheduler_names(), default="normal", tooltip="As in KSampler."),
                _stages_input("Number of stages.", SWEEP_STAGES, 50),
                io.String.Input(
                    "attribute",
                    default="",
                    optional=True,
                    tooltip="Name of the proposed preset; leave empty to use the word.",
                ),
                io.ClipVision.Input(
                    "clip_vision", optional=True, tooltip="Compares the pictures by CLIP features instead of pixels."
                ),
            ],
            outputs=[
                io.String.Output(
                    "presets", display_name="presets", tooltip="A line for the presets input of other nodes."
                ),
                io.String.Output("table", display_name="table", tooltip="Score of each stage."),
                io.Image.Output("pictures", display_name="pictures", tooltip="One picture per stage with its score."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Model,
        clip: Clip,
        vae: Vae,
        latent: dict[str, Tensor],
        text: str,
        word: str,
        otherwise: str,
        negative_text: str,
        seed: int,
        steps: int,
        cfg: float,
        sampler: str,
        scheduler: str,
        stages: int = SWEEP_STAGES,
        attribute: str = "",
        clip_vision: ClipVision | None = None,
    ) -> io.NodeOutput:
        from .attribute_sweep import SweepSettings, sweep_word
        from .sweep_sampling import SweepSampler, sampling_of, seeing_of, sweep_sheet

        settings = SweepSettings(text, word, otherwise, negative_text, stages, attribute)
        with named_faults("Find Attribute Stages"):
            sample = sampling_of(model, latent["samples"], SweepSampler(seed, steps, cfg, sampler, scheduler))
            progress = GraphProgress(cls.hidden.unique_id)
            sweep = sweep_word(model, clip, settings, sample, seeing_of(vae, clip_vision), progress)
            proposal = format_presets(sweep.preset())
        sheet = sweep_sheet(sweep)
        return io.NodeOutput(proposal, sweep.table(), sheet, ui=ui.PreviewImage(sheet, cls=cls))


NODES: list[type[io.ComfyNode]] = [
    BestiaryStageText,
    BestiaryIntersectRange,
    BestiaryStagePreview,
    BestiaryFindAttributeStages,
]
