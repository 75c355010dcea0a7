"""Nodes for stages without a learned file: texts per stage, ranges, a preview of steps, and the stages of a word."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfy_api.latest import io, ui

from ...concepts.spectrum.attribute_presets import DEFAULT_PRESETS, PRESET_CLOCKS, format_presets
from ...concepts.spectrum.stage_bounds import DEFAULT_STAGES, StageBounds
from ..host.comfy_version import schema
from ..host.graph_progress import GraphProgress
from ..host.socket_types import WORD_PLACE, NamedSpectrum, SpectrumSocket
from ..part_map.part_pictures import named_faults
from .prompt_spectrum_nodes import (
    CATEGORY,
    MOST_STAGES,
    presets_by_input,
    text_input,
    timing_inputs,
)
from .stage_ranges import CLOCKS, StageClock, intersect_range
from .stage_schedule import preview_schedule, sampler_names, schedule_table, scheduler_names

if TYPE_CHECKING:
    from torch import Tensor

    from ..host.comfy_objects import Clip, ClipVision, Conditioning, Model, Vae


SWEEP_STAGES = 8


def _stages_input(default: int = DEFAULT_STAGES, most: int = MOST_STAGES) -> io.Input:
    return io.Int.Input("stages", default=default, min=1, max=most, optional=True)


def _range_input(name: str, default: float) -> io.Input:
    return io.Float.Input(name, default=default, min=0.0, max=1.0, step=0.001, round=False)


class BestiaryStageText(io.ComfyNode):
    """Encodes a different text per stage."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="BestiaryStageText",
            category=CATEGORY,
            search_aliases=["prompt scheduling", "prompt travel", "timestep range", "text encode"],
            inputs=[
                io.Clip.Input("clip"),
                text_input("lines", "layout: a wide meadow\n3-10: a red bird on a meadow"),
                text_input("text", "a bird on a meadow"),
                _stages_input(),
                text_input("presets", optional=True),
                *timing_inputs(),
                presets_by_input(),
            ],
            outputs=[
                io.Conditioning.Output("conditioning"),
                io.String.Output("report"),
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
        presets_by: str = PRESET_CLOCKS[0],
    ) -> io.NodeOutput:
        from ..part_prompt.clip_tokens import dictionaries_of
        from .spectrum_prompts import PromptOptions, encode_stage_lines
        from .stage_ranges import StageTiming

        timing = StageTiming(clock, model, sigmas)
        options = PromptOptions(stages, presets, timing, gap_filler, presets_by=presets_by)
        with named_faults("Stage Text"):
            parts = dictionaries_of(clip) if clip is not None else {}
            return io.NodeOutput(*encode_stage_lines(clip, lines, text, options, parts))


class BestiaryIntersectRange(io.ComfyNode):
    """Limits a conditioning to a range while keeping its stages."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="BestiaryIntersectRange",
            category=CATEGORY,
            search_aliases=["ConditioningSetTimestepRange", "timestep range", "limit conditioning"],
            inputs=[
                io.Conditioning.Input("conditioning"),
                _range_input("start", 0.0),
                _range_input("end", 1.0),
                io.Conditioning.Input("outside", optional=True),
                io.Model.Input("model", optional=True),
            ],
            outputs=[
                io.Conditioning.Output("limited"),
                io.String.Output("report"),
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
    """Shows which steps belong to which stage."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="BestiaryStagePreview",
            category=CATEGORY,
            search_aliases=["schedule preview", "timesteps", "sigmas"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model"),
                io.Combo.Input("scheduler", options=scheduler_names(), default="normal"),
                io.Int.Input("steps", default=20, min=1, max=10000),
                io.Float.Input("denoise", default=1.0, min=0.0, max=1.0, step=0.01),
                io.Conditioning.Input("conditioning", optional=True),
                SpectrumSocket.Input("spectrum", optional=True),
                _stages_input(),
                io.Combo.Input("sampler", options=sampler_names(), default="euler", optional=True),
                io.Sigmas.Input("sigmas", optional=True),
                presets_by_input(),
            ],
            outputs=[
                io.Image.Output("picture"),
                io.String.Output("table"),
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
        presets_by: str = PRESET_CLOCKS[0],
    ) -> io.NodeOutput:
        from .flow_stages import presets_by as chosen_presets
        from .stage_picture import draw_schedule

        bounds = StageBounds.equal(stages) if spectrum is None else spectrum.spectrum.bounds
        shift = None if spectrum is None else spectrum.spectrum.shift
        presets = DEFAULT_PRESETS if spectrum is None else spectrum.spectrum.presets
        with named_faults("Stage Preview"):
            walk = (sampler, scheduler, steps, denoise)
            schedule = preview_schedule(model, walk, sigmas, bounds if conditioning is None else conditioning, shift)
            presets = chosen_presets(presets_by, presets, shift, model)
        picture = draw_schedule(schedule, presets if conditioning is None else None)
        return io.NodeOutput(picture, schedule_table(schedule), ui=ui.PreviewImage(picture, cls=cls))


class BestiaryFindAttributeStages(io.ComfyNode):
    """Finds the stages at which a word acts."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="BestiaryFindAttributeStages",
            category=CATEGORY,
            search_aliases=["attribute localisation", "prompt spectrum", "stage sweep"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Model.Input("model"),
                io.Clip.Input("clip"),
                io.Vae.Input("vae"),
                io.Latent.Input("latent"),
                io.String.Input(
                    "text",
                    default=f"a {WORD_PLACE} bird",
                ),
                io.String.Input("word", default="red"),
                io.String.Input("otherwise", default=""),
                text_input("negative_text"),
                io.Int.Input("seed", default=0, min=0, max=2**64 - 1, control_after_generate=False),
                io.Int.Input("steps", default=20, min=1, max=10000),
                io.Float.Input("cfg", default=7.0, min=0.0, max=100.0, step=0.1),
                io.Combo.Input("sampler", options=sampler_names(), default="euler"),
                io.Combo.Input("scheduler", options=scheduler_names(), default="normal"),
                _stages_input(SWEEP_STAGES, 50),
                io.String.Input("attribute", default="", optional=True),
                io.ClipVision.Input("clip_vision", optional=True),
            ],
            outputs=[
                io.String.Output("presets"),
                io.String.Output("table"),
                io.Image.Output("pictures"),
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
