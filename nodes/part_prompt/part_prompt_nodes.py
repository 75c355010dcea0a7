"""Nodes for parts in prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfy_api.latest import io

from ..host.comfy_version import schema, socket
from ..host.socket_types import PARTS_PLACE, ChosenParts, DictionarySocket, NamedDictionary, PartSocket

if TYPE_CHECKING:
    from ..host.comfy_objects import Clip

CATEGORY = "Bestiary/parts"
LARGEST_WEIGHT = 10.0
PART_SLOTS = 6


def weight_input(*, optional: bool = False) -> io.Input:
    """Input for the prompt weight of a part."""
    limits = {"default": 1.0, "min": 0.0, "max": LARGEST_WEIGHT, "step": 0.05}
    return io.Float.Input("weight", optional=optional, **limits)


def part_outputs() -> list[io.Output]:
    """Outputs of every node that creates parts: the parts, and their prompt syntax."""
    return [
        PartSocket.Output("chosen"),
        io.String.Output("written"),
    ]


class BestiaryPart(io.ComfyNode):
    """Selects one part and kind."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="BestiaryPart",
            category=CATEGORY,
            search_aliases=["part token", "head", "wing", "bestiary"],
            inputs=[
                DictionarySocket.Input("dictionary"),
                io.String.Input("part", default="head"),
                io.String.Input("kind", default=""),
                weight_input(),
                io.String.Input("blend_with", default="", optional=True),
                socket(io.Float.Input, "blend_amount", default=0.5, min=0.0, max=1.0, step=0.05, optional=True),
            ],
            outputs=part_outputs(),
        )

    @classmethod
    def execute(
        cls,
        dictionary: NamedDictionary,
        part: str,
        kind: str,
        weight: float,
        blend_with: str = "",
        blend_amount: float = 0.5,
    ) -> io.NodeOutput:
        from ...concepts.part_prompt.mention_writing import blend_kinds, find_kinds
        from .chosen_parts import choose_kinds, written_parts

        owner = dictionary.dictionary
        number = owner.find_part(part)
        kinds = find_kinds(owner, number, kind)
        if blend_with.strip():
            kinds = blend_kinds(kinds, find_kinds(owner, number, blend_with), blend_amount)
        chosen = ChosenParts((choose_kinds(dictionary, number, kinds, weight),))
        return io.NodeOutput(chosen, written_parts(chosen))


class BestiaryCombineParts(io.ComfyNode):
    """Combines several parts."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        slots = [f"part_{number}" for number in range(1, PART_SLOTS + 1)]
        return schema(
            node_id="BestiaryCombineParts",
            category=CATEGORY,
            inputs=[
                *[PartSocket.Input(slot, optional=True) for slot in slots],
                PartSocket.Input("chain", optional=True),
                io.Boolean.Input("allow_repeats", default=False, optional=True),
            ],
            outputs=part_outputs(),
        )

    @classmethod
    def execute(
        cls, chain: ChosenParts | None = None, allow_repeats: bool = False, **slots: ChosenParts | None
    ) -> io.NodeOutput:
        from .chosen_parts import combine_parts, written_parts

        # order of the sockets, independent of the order of keyword arguments
        chosen = combine_parts([chain, *(slots[name] for name in sorted(slots))], allow_repeats=allow_repeats)
        return io.NodeOutput(chosen, written_parts(chosen))


class BestiaryPartPrompt(io.ComfyNode):
    """Encodes a prompt with learned parts."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="BestiaryPartPrompt",
            category=CATEGORY,
            search_aliases=["text encode", "prompt", "clip"],
            inputs=[
                io.Clip.Input("clip"),
                io.String.Input(
                    "text",
                    multiline=True,
                    # dynamic prompts in the browser would remove the braces of {parts}
                    dynamic_prompts=False,
                    default=f"a photo of a {PARTS_PLACE}",
                ),
                PartSocket.Input("parts", optional=True),
                DictionarySocket.Input("dictionary", optional=True),
            ],
            outputs=[
                io.Conditioning.Output("conditioning"),
                io.String.Output("prompt"),
            ],
        )

    @classmethod
    def execute(
        cls, clip: Clip, text: str, parts: ChosenParts | None = None, dictionary: NamedDictionary | None = None
    ) -> io.NodeOutput:
        import logging

        from .chosen_parts import fill_template, parts_by_mention, repeat_notice
        from .clip_tokens import dictionaries_of
        from .part_encoding import encode_part_prompt, find_learned_mentions

        known = dictionaries_of(clip) if clip is not None else {}
        if dictionary is not None:
            known = {**known, dictionary.name: dictionary.dictionary}
        carried = parts_by_mention(parts)
        # check the typed text first, so that the columns of errors refer to it
        typed = find_learned_mentions(text, known, carried)
        notice = repeat_notice([(one.part, text[one.start : one.end]) for one in typed], parts)
        if notice:
            logging.getLogger(__name__).warning("%s", notice)
        prompt = fill_template(text, parts)
        encoded = encode_part_prompt(clip, prompt, known, carried)
        return io.NodeOutput(encoded, prompt, ui={"bestiary_notice": (notice,)} if notice else None)


NODES: list[type[io.ComfyNode]] = [BestiaryPart, BestiaryCombineParts, BestiaryPartPrompt]
