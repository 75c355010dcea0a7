"""Nodes that load, apply, merge, inspect and save part dictionaries."""

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


def _name_input() -> io.Input:
    return io.String.Input("name", default="", optional=True)


def _model_inputs() -> list[io.Input]:
    return [
        io.Model.Input("model"),
        io.Clip.Input("clip"),
    ]


def _strength_input() -> io.Input:
    return io.Float.Input("lora_strength", **STRENGTH)


def _model_outputs() -> list[io.Output]:
    return [
        io.Model.Output("model_out"),
        io.Clip.Output("clip_out"),
    ]


class BestiaryLoadDictionary(io.ComfyNode):
    """Loads a dictionary and applies it to MODEL and CLIP."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="BestiaryLoadDictionary",
            category=CATEGORY,
            search_aliases=["bestiary", "part tokens", "load embeddings", "lora"],
            inputs=[
                *_model_inputs(),
                io.Combo.Input("file", options=dictionary_names()),
                _strength_input(),
                _name_input(),
            ],
            outputs=[
                *_model_outputs(),
                DictionarySocket.Output("dictionary"),
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
    """Applies a dictionary of the graph to MODEL and CLIP."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="BestiaryApplyDictionary",
            category=CATEGORY,
            search_aliases=["bestiary", "use merged dictionary"],
            inputs=[
                *_model_inputs(),
                DictionarySocket.Input("dictionary"),
                _strength_input(),
                _name_input(),
            ],
            outputs=[
                *_model_outputs(),
                DictionarySocket.Output("dictionary_out"),
            ],
        )

    @classmethod
    def execute(
        cls, model: Model, clip: Clip, dictionary: NamedDictionary, lora_strength: float, name: str = ""
    ) -> io.NodeOutput:
        named = renamed(dictionary, name)
        return io.NodeOutput(*teach(model, clip, named, lora_strength), named)


class BestiaryMergeDictionaries(io.ComfyNode):
    """Merges two dictionaries."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="BestiaryMergeDictionaries",
            category=CATEGORY,
            search_aliases=["bestiary", "combine dictionaries"],
            inputs=[
                DictionarySocket.Input("first"),
                DictionarySocket.Input("second"),
                io.Float.Input("first_strength", optional=True, **STRENGTH),
                io.Float.Input("second_strength", optional=True, **STRENGTH),
                _name_input(),
            ],
            outputs=[DictionarySocket.Output("merged")],
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
    """Shows the contents of a dictionary."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="BestiaryDictionaryInfo",
            category=CATEGORY,
            search_aliases=["bestiary", "inspect", "list parts"],
            inputs=[DictionarySocket.Input("dictionary")],
            outputs=[
                io.String.Output("text"),
                io.Image.Output("thumbnails"),
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
    """Saves a dictionary in models/bestiary."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="BestiarySaveDictionary",
            category=CATEGORY,
            search_aliases=["bestiary", "export dictionary"],
            inputs=[
                DictionarySocket.Input("dictionary"),
                io.String.Input("filename", default="my_dictionary"),
            ],
            outputs=[io.String.Output("file")],
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
