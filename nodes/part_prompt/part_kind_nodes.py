"""Nodes that create new kinds: blends and random samples."""

from __future__ import annotations

from comfy_api.latest import io

from ..host.comfy_version import schema
from ..host.socket_types import ALL_PARTS, ChosenParts, DictionarySocket, NamedDictionary
from .part_prompt_nodes import CATEGORY, part_outputs, weight_input


class BestiaryBlendKinds(io.ComfyNode):
    """Blends two kinds of a part."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        amount = {"default": 0.5, "min": 0.0, "max": 1.0, "step": 0.05}
        return schema(
            node_id="BestiaryBlendKinds",
            category=CATEGORY,
            search_aliases=["mix", "interpolate"],
            inputs=[
                DictionarySocket.Input("dictionary"),
                io.String.Input("part", default="head"),
                io.String.Input("first_kind", default=""),
                io.String.Input("second_kind", default=""),
                io.Float.Input("amount", **amount),
                weight_input(optional=True),
            ],
            outputs=part_outputs(),
        )

    @classmethod
    def execute(
        cls,
        dictionary: NamedDictionary,
        part: str,
        first_kind: str,
        second_kind: str,
        amount: float,
        weight: float = 1.0,
    ) -> io.NodeOutput:
        from ...concepts.part_prompt.mention_writing import blend_kinds, find_kinds
        from .chosen_parts import choose_kinds, written_parts

        owner = dictionary.dictionary
        number = owner.find_part(part)
        kinds = blend_kinds(find_kinds(owner, number, first_kind), find_kinds(owner, number, second_kind), amount)
        chosen = ChosenParts((choose_kinds(dictionary, number, kinds, weight),))
        return io.NodeOutput(chosen, written_parts(chosen))


class BestiaryRandomKind(io.ComfyNode):
    """Samples new kinds that no picture showed."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        spread = {"default": 1.0, "min": 0.0, "max": 10.0, "step": 0.05}
        return schema(
            node_id="BestiaryRandomKind",
            category=CATEGORY,
            search_aliases=["sample", "novel", "seed"],
            inputs=[
                DictionarySocket.Input("dictionary"),
                io.String.Input("part", default=ALL_PARTS),
                io.Int.Input("seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True),
                io.Float.Input("spread", **spread),
                weight_input(optional=True),
            ],
            outputs=[
                *part_outputs(),
                DictionarySocket.Output("extended"),
            ],
        )

    @classmethod
    def execute(
        cls, dictionary: NamedDictionary, part: str, seed: int, spread: float, weight: float = 1.0
    ) -> io.NodeOutput:
        from .chosen_parts import draw_random, written_parts

        drawn, extended = draw_random(dictionary, part, seed, spread, weight)
        return io.NodeOutput(drawn, written_parts(drawn), extended)


NODES: list[type[io.ComfyNode]] = [BestiaryBlendKinds, BestiaryRandomKind]
