"""Nodes that load, encode, mix and save prompt spectra."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io, ui

from ...concepts.errors import BestiaryError
from ...concepts.spectrum.attribute_presets import PRESET_CLOCKS
from ...concepts.spectrum.stage_bounds import DEFAULT_STAGES
from ..host.comfy_version import schema, socket
from ..host.concept_folders import file_stamp
from ..host.file_menus import check_file_input
from ..host.running_graph import linked_nodes, running_graphs
from ..host.socket_types import DictionarySocket, NamedDictionary, NamedSpectrum, SpectrumSocket
from ..part_dictionary.dictionary_loading import prompt_name
from ..part_map.part_pictures import named_faults
from .spectrum_files import check_spectrum_file, describe_spectrum, read_spectrum, spectrum_names, write_spectrum
from .stage_ranges import CLOCKS, StageClock

if TYPE_CHECKING:
    from torch import Tensor

    from ...concepts.spectrum.stage_algebra import Rest
    from ...concepts.spectrum.stage_claims import Reference
    from ...concepts.spectrum.staged_prompt import PromptSources
    from ..host.comfy_objects import Clip, Conditioning, Model

CATEGORY = "Bestiary/spectrum"
SLOTS = 4
SPECTRUM_PROMPT = "BestiarySpectrumPrompt"
NEGATIVE_OUTPUT, MODEL_OUTPUT = 1, 3
"""Indices of Spectrum Prompt's outputs."""
MOST_STAGES = 250
USUAL_SHARES = ("layout", "content", "material", "style")


def timing_inputs() -> list[io.Input]:
    """Inputs for the timing of stages."""
    return [
        io.Combo.Input("clock", options=list(CLOCKS), default=CLOCKS[0], optional=True),
        io.Model.Input("model", optional=True),
        io.Sigmas.Input("sigmas", optional=True),
        io.Boolean.Input("gap_filler", default=True, optional=True),
    ]


def presets_by_input() -> io.Input:
    """Input for what default presets divide."""
    return io.Combo.Input("presets_by", options=list(PRESET_CLOCKS), default=PRESET_CLOCKS[0], optional=True)


def text_input(name: str, default: str = "", *, optional: bool = False) -> io.Input:
    """A multiline text input without dynamic prompts, which would remove braces in the browser."""
    return io.String.Input(name, multiline=True, dynamic_prompts=False, default=default, optional=optional)


class BestiaryLoadSpectrum(io.ComfyNode):
    """Loads a spectrum from a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="BestiaryLoadSpectrum",
            category=CATEGORY,
            search_aliases=["bestiary", "prospect", "prompt spectrum", "textual inversion", "xti", "neti"],
            inputs=[
                io.Combo.Input("file", options=spectrum_names()),
                io.String.Input("name", default="", optional=True),
                io.Float.Input("strength", default=1.0, min=-4.0, max=4.0, step=0.05, optional=True),
                io.Float.Input("soft_boundaries", default=0.0, min=0.0, max=1.0, step=0.05, optional=True),
            ],
            outputs=[
                SpectrumSocket.Output("spectrum"),
                io.String.Output("info"),
            ],
        )

    @classmethod
    def validate_inputs(cls, file: str | None, input_types: dict[str, str]) -> bool | str:
        return check_file_input(cls, file, input_types, check_spectrum_file)

    @classmethod
    def fingerprint_inputs(cls, **inputs: object) -> str:
        return file_stamp(str(inputs.get("file") or ""))

    @classmethod
    def execute(cls, file: str, name: str = "", strength: float = 1.0, soft_boundaries: float = 0.0) -> io.NodeOutput:
        from ...concepts.spectrum.stage_algebra import with_soft_bounds, with_strength

        with named_faults("Load Spectrum"):
            named = read_spectrum(file, name)
            spectrum = with_soft_bounds(with_strength(named.spectrum, strength), soft_boundaries)
        named = NamedSpectrum(named.name, spectrum)
        return io.NodeOutput(named, describe_spectrum(named))


class BestiarySpectrumPrompt(io.ComfyNode):
    """Encodes prompts that change from stage to stage."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id=SPECTRUM_PROMPT,
            category=CATEGORY,
            search_aliases=["text encode", "prospect", "prompt scheduling", "prompt editing", "stages"],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
            inputs=[
                io.Clip.Input("clip"),
                text_input("text", "a photo of a <name>"),
                text_input("negative_text"),
                *[SpectrumSocket.Input(f"spectrum_{n}", optional=True) for n in range(1, SLOTS + 1)],
                text_input("stage_texts", optional=True),
                text_input("negative_stage_texts", optional=True),
                DictionarySocket.Input("dictionary", optional=True),
                socket(io.Int.Input, "stages", default=DEFAULT_STAGES, min=1, max=MOST_STAGES, optional=True),
                text_input("presets", optional=True),
                *timing_inputs(),
                presets_by_input(),
            ],
            outputs=[
                io.Conditioning.Output("positive"),
                io.Conditioning.Output("negative"),
                io.String.Output("report"),
                io.Model.Output("patched_model"),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs: object) -> str:
        # the result also depends on whether the MODEL output is linked, which ComfyUI's cache does not consider
        graphs = running_graphs()
        return " ".join(number for graph in graphs for number in linked_nodes(graph, SPECTRUM_PROMPT, MODEL_OUTPUT))

    @classmethod
    def execute(
        cls,
        clip: Clip,
        text: str,
        negative_text: str,
        stage_texts: str = "",
        negative_stage_texts: str = "",
        dictionary: NamedDictionary | None = None,
        stages: int = DEFAULT_STAGES,
        presets: str = "",
        clock: StageClock = CLOCKS[0],
        model: Model | None = None,
        sigmas: Tensor | None = None,
        gap_filler: bool = True,
        presets_by: str = PRESET_CLOCKS[0],
        **slots: NamedSpectrum | None,
    ) -> io.NodeOutput:
        from .layer_prompts import is_packed, with_layer_prompts
        from .spectrum_prompts import PromptOptions, TypedSide, encode_typed_sides
        from .stage_ranges import StageTiming

        with named_faults("Spectrum Prompt"):
            # if the MODEL output is used, it unpacks the prompts itself: no hooks needed
            through_model = _is_output_linked(cls.hidden, MODEL_OUTPUT)
            if through_model and model is None:
                raise BestiaryError(
                    "the output model is connected, but the input model is not: connect a MODEL to the input"
                )
            sources = _sources(clip, [slots[name] for name in sorted(slots)], dictionary)
            sides = [TypedSide(text, stage_texts), TypedSide(negative_text, negative_stage_texts)]
            timing = StageTiming(clock, model, sigmas)
            options = PromptOptions(stages, presets, timing, gap_filler, not through_model, presets_by)
            conditionings, report = encode_typed_sides(clip, sides, sources, options)
            report = _with_negative_notice(report, conditionings[1], cls.hidden)
        if model is not None and any(map(is_packed, conditionings)):
            model = with_layer_prompts(model)
        return io.NodeOutput(*conditionings, report, model)


def _with_negative_notice(report: str, negative: Conditioning, hidden: io.HiddenHolder | None) -> str:
    """The report, and what it says where a staged negative goes to a sampler with cfg 1."""
    from .flow_stages import unused_negative

    graph, own = getattr(hidden, "prompt", None) or {}, str(getattr(hidden, "unique_id", ""))
    notice = unused_negative(graph, own, NEGATIVE_OUTPUT) if len(negative) > 1 else None
    if notice:
        logging.getLogger(__name__).warning("%s", notice)
    return f"{report}\n{notice}" if notice else report


def _is_output_linked(hidden: io.HiddenHolder | None, output: int) -> bool:
    """True if the queued graph links this output of the node to any input."""
    prompt, own = getattr(hidden, "prompt", None) or {}, getattr(hidden, "unique_id", None)
    links = [value for node in prompt.values() for value in node.get("inputs", {}).values() if isinstance(value, list)]
    return any(link == [own, output] for link in links)


def _sources(clip: Clip, linked: Sequence[NamedSpectrum | None], dictionary: NamedDictionary | None) -> PromptSources:
    from ...concepts.spectrum.staged_prompt import PromptSources
    from ..part_prompt.clip_tokens import dictionaries_of
    from .spectrum_prompts import spectra_by_name

    parts = dictionaries_of(clip) if clip is not None else {}
    if dictionary is not None:
        parts = {**parts, dictionary.name: dictionary.dictionary}
    return PromptSources(spectra_by_name(linked), parts)


class BestiaryMixAttributes(io.ComfyNode):
    """Mixes attributes of several references, such as the layout of one and the content of another."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        inputs = []
        for number, share in enumerate(USUAL_SHARES, start=1):
            inputs += [
                SpectrumSocket.Input(f"reference_{number}", optional=True),
                io.String.Input(f"takes_{number}", default=share, optional=True),
                io.Float.Input(f"strength_{number}", default=1.0, min=-4.0, max=4.0, step=0.05, optional=True),
            ]
        return schema(
            node_id="BestiaryMixAttributes",
            category=CATEGORY,
            search_aliases=["prospect", "merge spectra", "style mixing", "attribute transfer"],
            inputs=[
                io.String.Input("name", default="mix"),
                *inputs,
                text_input("presets", optional=True),
                io.Combo.Input("rest", options=["neutral", "silent"], default="neutral", optional=True),
                io.Float.Input("soft_boundaries", default=0.0, min=0.0, max=1.0, step=0.05, optional=True),
                presets_by_input(),
            ],
            outputs=[
                SpectrumSocket.Output("spectrum"),
                io.String.Output("table"),
            ],
        )

    @classmethod
    def execute(
        cls,
        name: str,
        presets: str = "",
        rest: Rest = "neutral",
        soft_boundaries: float = 0.0,
        presets_by: str = PRESET_CLOCKS[0],
        **slots: Any,
    ) -> io.NodeOutput:
        from ...concepts.spectrum.stage_claims import Reference, mix_references, shown_reference

        references = {}
        for number, share in enumerate(USUAL_SHARES, start=1):
            linked = slots.get(f"reference_{number}")
            if linked is not None:
                takes, strength = slots.get(f"takes_{number}", share), slots.get(f"strength_{number}", 1.0)
                references[shown_reference(number, linked.name)] = Reference(linked.spectrum, takes, strength)
        with named_faults("Mix Attributes"):
            presets = presets if presets.strip() else _presets_of(references, presets_by)
            mixed, table = mix_references(references, presets=presets, rest=rest, softness=soft_boundaries)
            return io.NodeOutput(NamedSpectrum(prompt_name(name), mixed), table)


def _presets_of(references: Mapping[str, Reference], clock: str) -> str:
    """Presets by noise as lines, where the references were learned on a flow model; else nothing, which takes the first one's own."""
    from ...concepts.spectrum.attribute_presets import format_presets
    from ...concepts.spectrum.stage_algebra import common_shift
    from .flow_stages import presets_by

    spectra = [reference.spectrum for reference in references.values()]
    own = spectra[0].presets if spectra else {}
    chosen = presets_by(clock, own, common_shift(spectra), None)
    return "" if chosen is own else format_presets(chosen)


class BestiarySaveSpectrum(io.ComfyNode):
    """Saves a spectrum to a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="BestiarySaveSpectrum",
            category=CATEGORY,
            search_aliases=["bestiary", "save prospect"],
            is_output_node=True,
            inputs=[
                SpectrumSocket.Input("spectrum"),
                io.String.Input("filename", default="my_spectrum"),
            ],
            outputs=[io.String.Output("file")],
        )

    @classmethod
    def execute(cls, spectrum: NamedSpectrum, filename: str) -> io.NodeOutput:
        with named_faults("Save Spectrum"):
            file = write_spectrum(spectrum.spectrum, filename)
        return io.NodeOutput(file, ui=ui.PreviewText(f"saved as {file}"))


NODES: list[type[io.ComfyNode]] = [
    BestiaryLoadSpectrum,
    BestiarySpectrumPrompt,
    BestiaryMixAttributes,
    BestiarySaveSpectrum,
]
