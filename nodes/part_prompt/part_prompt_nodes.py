"""Parts in prompts, as graph blocks."""

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
    """The prompt weight that every block with parts offers."""
    tooltip = "How strongly the prompt asks for it, like (text:1.2). 1 is neutral."
    limits = {"default": 1.0, "min": 0.0, "max": LARGEST_WEIGHT, "step": 0.05}
    return io.Float.Input("weight", tooltip=tooltip, optional=optional, **limits)


def part_outputs() -> list[io.Output]:
    """What every block that makes parts gives: the parts, and how a prompt writes them."""
    return [
        PartSocket.Output("chosen", display_name="part", tooltip="For Part Prompt or Combine Parts."),
        io.String.Output("written", display_name="text", tooltip="The same as text, to be put into any part prompt."),
    ]


class BestiaryPart(io.ComfyNode):
    """One part of one kind."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="BestiaryPart",
            display_name="Part",
            category=CATEGORY,
            description="Picks one learned part of one kind, such as the head of a cardinal, for a prompt.",
            search_aliases=["part token", "head", "wing", "bestiary"],
            inputs=[
                DictionarySocket.Input("dictionary", tooltip="From Load Part Dictionary."),
                io.String.Input("part", default="head", tooltip="Name or number of the part, such as head."),
                io.String.Input(
                    "kind",
                    default="",
                    tooltip="Name or number of the kind, such as cardinal, or a blend such as 17*0.6+18*0.4.",
                ),
                weight_input(),
                io.String.Input(
                    "blend_with", default="", optional=True, tooltip="A second kind of the same part; empty for none."
                ),
                socket(
                    io.Float.Input,
                    "blend_amount",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    optional=True,
                    tooltip="Share of the second kind: 0 is the first kind alone, 1 the second alone.",
                ),
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
    """Several parts in one."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        slots = [f"part_{number}" for number in range(1, PART_SLOTS + 1)]
        return schema(
            node_id="BestiaryCombineParts",
            display_name="Combine Parts",
            category=CATEGORY,
            description="Puts parts together into one creature: a head of this, wings of that. Chain it for more than six.",
            inputs=[
                *[
                    PartSocket.Input(slot, optional=True, tooltip="A part; empty sockets are passed over.")
                    for slot in slots
                ],
                PartSocket.Input(
                    "chain", optional=True, tooltip="Parts of another Combine Parts; they come before those here."
                ),
                io.Boolean.Input(
                    "allow_repeats",
                    default=False,
                    optional=True,
                    tooltip="Let the same part stand there twice, such as two heads. Off, that is an error.",
                ),
            ],
            outputs=part_outputs(),
        )

    @classmethod
    def execute(
        cls, chain: ChosenParts | None = None, allow_repeats: bool = False, **slots: ChosenParts | None
    ) -> io.NodeOutput:
        from .chosen_parts import combine_parts, written_parts

        # in the order of the sockets, whatever order the graph names them in
        chosen = combine_parts([chain, *(slots[name] for name in sorted(slots))], allow_repeats=allow_repeats)
        return io.NodeOutput(chosen, written_parts(chosen))


class BestiaryPartPrompt(io.ComfyNode):
    """A prompt that names learned parts."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="BestiaryPartPrompt",
            display_name="Part Prompt",
            category=CATEGORY,
            description="Encodes a prompt that names learned parts, as <head:cardinal>, for any sampler; positive or negative.",
            search_aliases=["text encode", "prompt", "clip"],
            inputs=[
                io.Clip.Input("clip", tooltip="From Load Part Dictionary, so that it knows the parts."),
                io.String.Input(
                    "text",
                    multiline=True,
                    # the browser's dynamic prompts would take the brackets of {parts} away
                    dynamic_prompts=False,
                    default=f"a photo of a {PARTS_PLACE}",
                    tooltip="A prompt with parts as <head:cardinal>, <head:17> or <head:17*0.6+18*0.4>, with weights as "
                    f"(<head:cardinal>:1.2). {PARTS_PLACE} is where linked parts go; without it they come last.",
                ),
                PartSocket.Input("parts", optional=True, tooltip=f"Parts that go where the text says {PARTS_PLACE}."),
                DictionarySocket.Input(
                    "dictionary",
                    optional=True,
                    tooltip="A dictionary whose parts the text may name besides those that the CLIP knows, "
                    "such as that of Random Kind.",
                ),
            ],
            outputs=[
                io.Conditioning.Output("conditioning", display_name="conditioning", tooltip="For any sampler."),
                io.String.Output("prompt", display_name="text", tooltip="The whole prompt as it was encoded."),
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
        # first as it was typed, so that the columns of faults count there
        typed = find_learned_mentions(text, known, carried)
        notice = repeat_notice([(one.part, text[one.start : one.end]) for one in typed], parts)
        if notice:
            logging.getLogger(__name__).warning("%s", notice)
        prompt = fill_template(text, parts)
        encoded = encode_part_prompt(clip, prompt, known, carried)
        return io.NodeOutput(encoded, prompt, ui={"bestiary_notice": (notice,)} if notice else None)


NODES: list[type[io.ComfyNode]] = [BestiaryPart, BestiaryCombineParts, BestiaryPartPrompt]
