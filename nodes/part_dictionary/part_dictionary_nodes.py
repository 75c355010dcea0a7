"""Part dictionaries: load, merge, look into, save, as graph blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfy_api.latest import io, ui

from ..host.comfy_version import schema
from ..host.concept_folders import dictionary_names, file_stamp
from ..host.file_menus import check_file_input
from ..host.socket_types import DictionarySocket, NamedDictionary
from .dictionary_loading import (
    check_dictionary_file,
    merge,
    read_dictionary,
    renamed,
    save_dictionary,
    teach,
)

if TYPE_CHECKING:
    from ..host.comfy_objects import Clip, Model

CATEGORY = "Bestiary/parts"
STRENGTH = {"default": 1.0, "min": -10.0, "max": 10.0, "step": 0.05}


def _name_input(default: str) -> io.Input:
    return io.String.Input(
        "name", default="", optional=True, tooltip=f"Name of the dictionary in prompts; leave empty to use {default}."
    )


def _model_inputs() -> list[io.Input]:
    return [
        io.Model.Input("model", tooltip="The base model the dictionary was trained for, or a finetune of it."),
        io.Clip.Input("clip", tooltip="The CLIP of that model; it may already contain other dictionaries."),
    ]


def _strength_input() -> io.Input:
    tooltip = "Strength of the dictionary's LoRA; 0 leaves the model unchanged."
    return io.Float.Input("lora_strength", tooltip=tooltip, **STRENGTH)


def _model_outputs() -> list[io.Output]:
    return [
        io.Model.Output("model_out", display_name="MODEL", tooltip="With the dictionary's LoRA."),
        io.Clip.Output(
            "clip_out", display_name="CLIP", tooltip="With the part tokens of the dictionary, for any text encode node."
        ),
    ]


class BestiaryLoadDictionary(io.ComfyNode):
    """From a file to MODEL, CLIP and a dictionary."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="BestiaryLoadDictionary",
            display_name="Load Part Dictionary",
            category=CATEGORY,
            description=(
                "Loads a part dictionary, adds its part tokens to the CLIP and its LoRA to the MODEL. Every text "
                "encode node then accepts embedding:name/part.kind, such as (embedding:creatures/head.3:1.2)."
            ),
            search_aliases=["bestiary", "part tokens", "load embeddings", "lora"],
            inputs=[
                *_model_inputs(),
                io.Combo.Input(
                    "file", options=dictionary_names(), tooltip="A part dictionary (.safetensors) in models/bestiary."
                ),
                _strength_input(),
                _name_input("the file name"),
            ],
            outputs=[
                *_model_outputs(),
                DictionarySocket.Output("dictionary", display_name="dictionary", tooltip="For the part nodes."),
            ],
        )

    @classmethod
    def validate_inputs(cls, file: str | None, input_types: dict[str, str]) -> bool | str:
        return check_file_input(cls, file, input_types, check_dictionary_file)

    @classmethod
    def fingerprint_inputs(cls, **inputs: object) -> str:
        return file_stamp(str(inputs.get("file") or ""))

    @classmethod
    def execute(cls, model: Model, clip: Clip, file: str, lora_strength: float, name: str = "") -> io.NodeOutput:
        named = read_dictionary(file, name)
        return io.NodeOutput(*teach(model, clip, named, lora_strength), named)


class BestiaryApplyDictionary(io.ComfyNode):
    """From a dictionary that a graph made to MODEL and CLIP."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="BestiaryApplyDictionary",
            display_name="Apply Part Dictionary",
            category=CATEGORY,
            description=(
                "Adds the part tokens of a dictionary to a CLIP and its LoRA to a MODEL, for a dictionary that "
                "comes from another node, such as Merge Dictionaries."
            ),
            search_aliases=["bestiary", "use merged dictionary"],
            inputs=[
                *_model_inputs(),
                DictionarySocket.Input("dictionary", tooltip="From Merge Dictionaries or any other dictionary output."),
                _strength_input(),
                _name_input("its current name"),
            ],
            outputs=[
                *_model_outputs(),
                DictionarySocket.Output("dictionary_out", display_name="dictionary", tooltip="Under its new name."),
            ],
        )

    @classmethod
    def execute(
        cls, model: Model, clip: Clip, dictionary: NamedDictionary, lora_strength: float, name: str = ""
    ) -> io.NodeOutput:
        named = renamed(dictionary, name)
        return io.NodeOutput(*teach(model, clip, named, lora_strength), named)


class BestiaryMergeDictionaries(io.ComfyNode):
    """Two dictionaries become one."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        tooltip = "Strength of the {} dictionary's LoRA in the merged LoRA."
        return schema(
            node_id="BestiaryMergeDictionaries",
            display_name="Merge Dictionaries",
            category=CATEGORY,
            description=(
                "Merges two dictionaries of the same base model: parts of the same name are merged, their kinds "
                "are kept separate, LoRAs are summed exactly."
            ),
            search_aliases=["bestiary", "combine dictionaries"],
            inputs=[
                DictionarySocket.Input("first", tooltip="Its kinds keep their numbers."),
                DictionarySocket.Input(
                    "second", tooltip="A kind whose number is already used gets the next free number."
                ),
                io.Float.Input("first_strength", tooltip=tooltip.format("first"), optional=True, **STRENGTH),
                io.Float.Input("second_strength", tooltip=tooltip.format("second"), optional=True, **STRENGTH),
                _name_input("both names joined"),
            ],
            outputs=[
                DictionarySocket.Output("merged", display_name="dictionary", tooltip="All parts and kinds of both.")
            ],
        )

    @classmethod
    def execute(
        cls,
        first: NamedDictionary,
        second: NamedDictionary,
        first_strength: float = 1.0,
        second_strength: float = 1.0,
        name: str = "",
    ) -> io.NodeOutput:
        return io.NodeOutput(merge(first, second, (first_strength, second_strength), name))


class BestiaryDictionaryInfo(io.ComfyNode):
    """What a dictionary holds."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="BestiaryDictionaryInfo",
            display_name="Dictionary Info",
            category=CATEGORY,
            description=(
                "Shows the parts, kinds, base model and provenance of a dictionary, and a sheet of its thumbnails."
            ),
            search_aliases=["bestiary", "inspect", "list parts"],
            inputs=[DictionarySocket.Input("dictionary", tooltip="From Load Part Dictionary or Merge Dictionaries.")],
            outputs=[
                io.String.Output("text", display_name="text", tooltip="One line per part, then the provenance."),
                io.Image.Output("thumbnails", display_name="thumbnails", tooltip="All thumbnails on one sheet."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, dictionary: NamedDictionary) -> io.NodeOutput:
        from .dictionary_report import describe_dictionary, thumbnail_sheet

        text = describe_dictionary(dictionary.dictionary, dictionary.name)
        sheet = thumbnail_sheet(dictionary.dictionary)
        shown = {**ui.PreviewImage(sheet, cls=cls).as_dict(), **ui.PreviewText(text).as_dict()}
        return io.NodeOutput(text, sheet, ui=shown)


class BestiarySaveDictionary(io.ComfyNode):
    """A dictionary into models/bestiary."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="BestiarySaveDictionary",
            display_name="Save Dictionary",
            category=CATEGORY,
            description=(
                "Saves a dictionary in models/bestiary. Existing files are never overwritten: a number is "
                "appended to the name."
            ),
            search_aliases=["bestiary", "export dictionary"],
            inputs=[
                DictionarySocket.Input("dictionary", tooltip="From Merge Dictionaries or any other dictionary output."),
                io.String.Input(
                    "filename", default="my_dictionary", tooltip="Name inside models/bestiary; subfolders are allowed."
                ),
            ],
            outputs=[
                io.String.Output(
                    "file", display_name="file", tooltip="Name of the saved file, relative to models/bestiary."
                )
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, dictionary: NamedDictionary, filename: str) -> io.NodeOutput:
        written = save_dictionary(dictionary.dictionary, filename)
        return io.NodeOutput(written, ui=ui.PreviewText(f"models/bestiary/{written}"))


NODES: list[type[io.ComfyNode]] = [
    BestiaryLoadDictionary,
    BestiaryApplyDictionary,
    BestiaryMergeDictionaries,
    BestiaryDictionaryInfo,
    BestiarySaveDictionary,
]
