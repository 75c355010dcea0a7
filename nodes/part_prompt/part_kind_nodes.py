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
            description="Blends two kinds of a part, such as a head halfway between cardinal and blue jay.",
            search_aliases=["mix", "interpolate"],
            inputs=[
                DictionarySocket.Input("dictionary", tooltip="From Load Part Dictionary."),
                io.String.Input("part", default="head", tooltip="Name or number of the part, such as head."),
                io.String.Input("first_kind", default="", tooltip="Name or number of the kind at amount 0."),
                io.String.Input("second_kind", default="", tooltip="Name or number of the kind at amount 1."),
                io.Float.Input(
                    "amount", tooltip="0 gives the first kind exactly, 1 the second, 0.5 an equal blend.", **amount
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
            description=(
                "Samples new kinds from the mean and standard deviation of the learned ones, for creatures that "
                "are in none of the training pictures."
            ),
            search_aliases=["sample", "novel", "seed"],
            inputs=[
                DictionarySocket.Input("dictionary", tooltip="From Load Part Dictionary."),
                io.String.Input(
                    "part",
                    default=ALL_PARTS,
                    tooltip="Name or number of the part, or all for every part except the background.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="The same seed gives the same kind. Parts are sampled independently of each other.",
                ),
                io.Float.Input(
                    "spread",
                    tooltip=(
                        "Distance from the mean kind: 0 gives the mean, 1 the standard deviation of the learned kinds; "
                        "higher values are more unusual."
                    ),
                    **spread,
                ),
                weight_input(optional=True),
            ],
            outputs=[
                *part_outputs(),
                DictionarySocket.Output(
                    "extended",
                    display_name="dictionary",
                    tooltip=(
                        "The dictionary with the new kinds added under names such as random 7. Save it, or connect it to "
                        "Part Prompt."
                    ),
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
