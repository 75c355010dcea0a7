"""Prompt spectra: load, prompt with them, mix them by attribute, save, as graph blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io, ui

from ...concepts.errors import BestiaryError
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
    from ...concepts.spectrum.staged_prompt import PromptSources
    from ..host.comfy_objects import Clip, Model

CATEGORY = "Bestiary/spectrum"
SLOTS = 4
SPECTRUM_PROMPT = "BestiarySpectrumPrompt"
MODEL_OUTPUT = 3
"""Number of Spectrum Prompt's output for the MODEL."""
MOST_STAGES = 250
USUAL_SHARES = ("layout", "content", "material", "style")
LINES_TOOLTIP = (
    "Different texts for some stages, one line each: layout: a wide meadow; 3-5: a red bird; 0%-40%: "
    "a cat; 10: =4 repeats stage 4. Numbers take precedence over attributes."
)
PRESETS_TOOLTIP = "Which stages belong to which attribute, one line each, such as layout: 0%-10%. Leave empty to use "


def timing_inputs() -> list[io.Input]:
    """Inputs that say when stages begin."""
    return [
        io.Combo.Input(
            "clock",
            options=list(CLOCKS),
            default=CLOCKS[0],
            optional=True,
            tooltip=(
                "How stages are placed. timesteps: by noise level, as in training. steps: in proportion to the "
                "number of sampler steps; requires model and sigmas."
            ),
        ),
        io.Model.Input(
            "model", optional=True, tooltip="Required for clock = steps, and for models other than Stable Diffusion."
        ),
        io.Sigmas.Input("sigmas", optional=True, tooltip="From Basic Scheduler; required for clock = steps."),
        io.Boolean.Input(
            "gap_filler",
            default=True,
            optional=True,
            tooltip=(
                "Adds a conditioning that is used only at steps without a stage, at no cost. It is inactive if a "
                "node sets a mask, an area or a strength."
            ),
        ),
    ]


def text_input(name: str, default: str, tooltip: str, *, optional: bool = False) -> io.Input:
    """A field for long text, whose brackets the browser's dynamic prompts must not take away."""
    return io.String.Input(
        name, multiline=True, dynamic_prompts=False, default=default, optional=optional, tooltip=tooltip
    )


class BestiaryLoadSpectrum(io.ComfyNode):
    """From a file to a spectrum."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="BestiaryLoadSpectrum",
            display_name="Load Spectrum",
            category=CATEGORY,
            description=(
                "Loads a prompt spectrum: the embeddings of a concept, learned separately for each denoising "
                "stage, so that layout, content, material and style can be used on their own. Trained with "
                "bestiary train spectrum, or imported."
            ),
            search_aliases=["bestiary", "prospect", "prompt spectrum", "textual inversion", "xti", "neti"],
            inputs=[
                io.Combo.Input(
                    "file", options=spectrum_names(), tooltip="A prompt spectrum (.safetensors) in models/bestiary."
                ),
                io.String.Input(
                    "name",
                    default="",
                    optional=True,
                    tooltip="Name of the spectrum in prompts; leave empty to use the file name.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-4.0,
                    max=4.0,
                    step=0.05,
                    optional=True,
                    tooltip="1 is as trained, 0 gives the words it was initialised from, values above 1 exaggerate.",
                ),
                io.Float.Input(
                    "soft_boundaries",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    optional=True,
                    tooltip="How much neighbouring stages are blended; 0 uses them as trained.",
                ),
            ],
            outputs=[
                SpectrumSocket.Output("spectrum", display_name="spectrum", tooltip="For the spectrum nodes."),
                io.String.Output("info", display_name="info", tooltip="Stages, words and provenance."),
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
    """Prompts that change from stage to stage."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id=SPECTRUM_PROMPT,
            display_name="Spectrum Prompt",
            category=CATEGORY,
            description=(
                "Encodes a prompt whose content can change between denoising stages: <name> inserts the "
                "embedding of a spectrum for each stage. Sampling takes as long as with a single prompt."
            ),
            search_aliases=["text encode", "prospect", "prompt scheduling", "prompt editing", "stages"],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
            inputs=[
                io.Clip.Input(
                    "clip", tooltip="The CLIP of the model. Connect it through Load Part Dictionary to use parts."
                ),
                text_input(
                    "text",
                    "a photo of a <name>",
                    (
                        "The prompt. Syntax: <corgi>, <corgi*0.7>, <corgi@layout>, <corgi@1-3|a dog>, "
                        "<head:cardinal@content>, [a cat:a dog:0.4]; weights as usual."
                    ),
                ),
                text_input("negative_text", "", "The negative prompt; it can use the same syntax."),
                *[
                    SpectrumSocket.Input(
                        f"spectrum_{n}",
                        optional=True,
                        tooltip="A spectrum for the texts; from Load Spectrum.",
                    )
                    for n in range(1, SLOTS + 1)
                ],
                text_input("stage_texts", "", LINES_TOOLTIP, optional=True),
                text_input(
                    "negative_stage_texts", "", "Different texts for some stages of the negative prompt.", optional=True
                ),
                DictionarySocket.Input(
                    "dictionary", optional=True, tooltip="One more part dictionary, in addition to those of the CLIP."
                ),
                socket(
                    io.Int.Input,
                    "stages",
                    default=DEFAULT_STAGES,
                    min=1,
                    max=MOST_STAGES,
                    optional=True,
                    tooltip=(
                        "Number of stages of a text that contains no spectrum; other texts use the stages of their first "
                        "spectrum."
                    ),
                ),
                text_input("presets", "", PRESETS_TOOLTIP + "those of the spectrum.", optional=True),
                *timing_inputs(),
            ],
            outputs=[
                io.Conditioning.Output("positive", display_name="positive", tooltip="For any sampler."),
                io.Conditioning.Output("negative", display_name="negative", tooltip="For the same sampler."),
                io.String.Output("report", display_name="report", tooltip="The content of each stage."),
                io.Model.Output(
                    "patched_model",
                    display_name="model",
                    tooltip=(
                        "The model of the input, prepared for spectra with vectors per layer (XTI, NeTI). If you sample "
                        "with it, ComfyUI does not have to load the model a second time; for other prompts it is "
                        "unchanged."
                    ),
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs: object) -> str:
        # ComfyUI keeps results as long as inputs stay; these also depend on whether the MODEL that comes out is linked
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
        **slots: NamedSpectrum | None,
    ) -> io.NodeOutput:
        from .layer_prompts import is_packed, with_layer_prompts
        from .spectrum_prompts import PromptOptions, StageTiming, TypedSide, encode_typed_sides

        with named_faults("Spectrum Prompt"):
            # where the MODEL that comes out is sampled, prompts need no hooks of their own
            through_model = _is_output_linked(cls.hidden, MODEL_OUTPUT)
            if through_model and model is None:
                raise BestiaryError(
                    "the output model is connected, but the input model is not: connect a MODEL to the input"
                )
            sources = _sources(clip, [slots[name] for name in sorted(slots)], dictionary)
            sides = [TypedSide(text, stage_texts), TypedSide(negative_text, negative_stage_texts)]
            timing = StageTiming(clock, model, sigmas)
            options = PromptOptions(stages, presets, timing, gap_filler, with_hooks=not through_model)
            conditionings, report = encode_typed_sides(clip, sides, sources, options)
        if model is not None and any(map(is_packed, conditionings)):
            model = with_layer_prompts(model)
        return io.NodeOutput(*conditionings, report, model)


def _is_output_linked(hidden: io.HiddenHolder | None, output: int) -> bool:
    """Whether the graph as it was queued links an output of this node to anything."""
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
    """Layout of one reference, content of another."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        inputs = []
        for number, share in enumerate(USUAL_SHARES, start=1):
            inputs += [
                SpectrumSocket.Input(
                    f"reference_{number}", optional=True, tooltip="A spectrum. Unconnected inputs are ignored."
                ),
                io.String.Input(
                    f"takes_{number}",
                    default=share,
                    optional=True,
                    tooltip=(
                        "Stages to take from it: attributes (layout), stage numbers (4-6) or percentages (0%-30%), "
                        "separated by commas."
                    ),
                ),
                io.Float.Input(
                    f"strength_{number}",
                    default=1.0,
                    min=-4.0,
                    max=4.0,
                    step=0.05,
                    optional=True,
                    tooltip="1 is as trained, 0 gives the words it was initialised from.",
                ),
            ]
        return schema(
            node_id="BestiaryMixAttributes",
            display_name="Mix Attributes",
            category=CATEGORY,
            description=(
                "Combines several spectra into one: layout of one reference, content of another, material and "
                "style of a third. Where attributes overlap, the one with fewer stages takes precedence."
            ),
            search_aliases=["prospect", "merge spectra", "style mixing", "attribute transfer"],
            inputs=[
                io.String.Input("name", default="mix", tooltip="Name of the mixture in prompts."),
                *inputs,
                text_input("presets", "", PRESETS_TOOLTIP + "those of the first reference.", optional=True),
                io.Combo.Input(
                    "rest",
                    options=["neutral", "silent"],
                    default="neutral",
                    optional=True,
                    tooltip=(
                        "What to use at stages that no reference takes. neutral: the words a reference was initialised "
                        "from. silent: nothing."
                    ),
                ),
                io.Float.Input(
                    "soft_boundaries",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    optional=True,
                    tooltip="How much neighbouring stages are blended.",
                ),
            ],
            outputs=[
                SpectrumSocket.Output("spectrum", display_name="spectrum", tooltip="For Spectrum Prompt."),
                io.String.Output("table", display_name="table", tooltip="Which reference is used at which stage."),
            ],
        )

    @classmethod
    def execute(
        cls, name: str, presets: str = "", rest: Rest = "neutral", soft_boundaries: float = 0.0, **slots: Any
    ) -> io.NodeOutput:
        from ...concepts.spectrum.stage_claims import Reference, mix_references, shown_reference

        references = {}
        for number, share in enumerate(USUAL_SHARES, start=1):
            linked = slots.get(f"reference_{number}")
            if linked is not None:
                takes, strength = slots.get(f"takes_{number}", share), slots.get(f"strength_{number}", 1.0)
                references[shown_reference(number, linked.name)] = Reference(linked.spectrum, takes, strength)
        with named_faults("Mix Attributes"):
            mixed, table = mix_references(references, presets=presets, rest=rest, softness=soft_boundaries)
            return io.NodeOutput(NamedSpectrum(prompt_name(name), mixed), table)


class BestiarySaveSpectrum(io.ComfyNode):
    """From a spectrum to a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="BestiarySaveSpectrum",
            display_name="Save Spectrum",
            category=CATEGORY,
            description=(
                "Saves a spectrum in models/bestiary. Existing files are never overwritten: a number is appended "
                "to the name. Other programs load the file as an ordinary embedding."
            ),
            search_aliases=["bestiary", "save prospect"],
            is_output_node=True,
            inputs=[
                SpectrumSocket.Input("spectrum", tooltip="The spectrum to save, such as a mixture."),
                io.String.Input(
                    "filename", default="my_spectrum", tooltip="Name inside models/bestiary; subfolders are allowed."
                ),
            ],
            outputs=[
                io.String.Output("file", display_name="file", tooltip="The file name as listed by Load Spectrum.")
            ],
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
