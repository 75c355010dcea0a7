"""New kinds: blends and random samples, as graph blocks."""

from __future__ import annotations

from comfy_api.latest import io

from ..host.comfy_version import schema
from ..host.socket_types import ALL_PARTS, ChosenParts, DictionarySocket, NamedDictionary
from .part_prompt_nodes import CATEGORY, part_outputs, weight_input


class BestiaryBlendKinds(io.ComfyNode):
    """Something between two kinds."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        amount = {"default": 0.5, "min": 0.0, "max": 1.0, "step": 0.05}
        return schema(
            node_id="BestiaryBlendKinds",
            display_name="Blend Kinds",
            category=CATEGORY,
            description="Makes a part that lies between two kinds, such as a head half cardinal, half blue jay.",
            search_aliases=["mix", "interpolate"],
            inputs=[
                DictionarySocket.Input("dictionary", tooltip="From Load Part Dictionary."),
                io.String.Input("part", default="head", tooltip="Name or number of the part, such as head."),
                io.String.Input("first_kind", default="", tooltip="Name or number of the kind at amount 0."),
                io.String.Input("second_kind", default="", tooltip="Name or number of the kind at amount 1."),
                io.Float.Input(
                    "amount", tooltip="0 is exactly the first kind, 1 exactly the second, 0.5 the middle.", **amount
                ),
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
    """Kinds that no picture showed."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        spread = {"default": 1.0, "min": 0.0, "max": 10.0, "step": 0.05}
        return schema(
            node_id="BestiaryRandomKind",
            display_name="Random Kind",
            category=CATEGORY,
            description="Draws new kinds from the mean and spread of the learned ones: creatures that no picture showed.",
            search_aliases=["sample", "novel", "seed"],
            inputs=[
                DictionarySocket.Input("dictionary", tooltip="From Load Part Dictionary."),
                io.String.Input(
                    "part",
                    default=ALL_PARTS,
                    tooltip="Name or number of the part, or all for every part but the background.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="The same seed draws the same kind; other parts draw differently from it.",
                ),
                io.Float.Input(
                    "spread",
                    tooltip="How far from the mean kind: 0 is the mean itself, 1 as far as the learned kinds are.",
                    **spread,
                ),
                weight_input(optional=True),
            ],
            outputs=[
                *part_outputs(),
                DictionarySocket.Output(
                    "extended",
                    display_name="dictionary",
                    tooltip="The dictionary with the new kinds in it, named such as random 7: save it, or name them in text.",
                ),
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
