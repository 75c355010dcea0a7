"""Which family of UNets the layers of a LoRA belong to, told by their names: for messages about files that fit no layer of a model."""

from collections.abc import Iterable

_FAMILIES = {"add_k_proj": "DeepFloyd IF", "transformer_blocks": "Stable Diffusion"}
"""What only the names of one family's attention layers hold -> the family."""


def lora_family(names: Iterable[str]) -> str | None:
    """The family of layers by names in any spelling; None where none tells."""
    listed = list(names)
    return next((family for mark, family in _FAMILIES.items() if any(mark in name for name in listed)), None)


def family_hint(file: Iterable[str], model: Iterable[str]) -> str:
    """What to add to a message where no layer of a file belongs to a model; empty where both are of one family or none tells."""
    given, held = lora_family(file), lora_family(model)
    if given is None or held is None or given == held:
        return ""
    return f" (the LoRA is for {given}, this model is {held})"
