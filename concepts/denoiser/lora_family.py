"""Which model a LoRA is for: the family by the names of its layers, the base model by what our files say of themselves.

Two models may have layers of equal names and shapes, such as the stages of DeepFloyd IF, so a LoRA of one would silently load into the other.
"""

from collections.abc import Iterable, Mapping

from ..errors import BestiaryError

_FAMILIES = {
    "lora_transformer_": "a diffusion transformer (Stable Diffusion 3, Flux.1)",
    "transformer.transformer_blocks": "a diffusion transformer (Stable Diffusion 3, Flux.1)",
    "add_k_proj": "DeepFloyd IF",
    "transformer_blocks": "Stable Diffusion",
}
"""What only the names of one family's attention layers hold -> the family."""
_STAGES = {"if-i": "stage I of DeepFloyd IF", "if-ii": "stage II of DeepFloyd IF"}
"""Backbones whose names users do not know."""


def lora_family(names: Iterable[str]) -> str | None:
    """The family of layers by names in any spelling; None where no name shows it."""
    listed = list(names)
    return next((family for mark, family in _FAMILIES.items() if any(mark in name for name in listed)), None)


def family_hint(file: Iterable[str], model: Iterable[str]) -> str:
    """What to add to a message where no layer of a file belongs to a model; empty where both are of one family or it is unknown."""
    given, held = lora_family(file), lora_family(model)
    if given is None or held is None or given == held:
        return ""
    return f" (the LoRA is for {given}, this model is {held})"


def check_base(notes: Mapping[str, object], backbone: str, called: str) -> None:
    """Make sure that a LoRA of ours was trained on the kind of model that is to wear it.

    Args:
        notes: what its file says of its training; without a `backbone` in it nothing is checked.
        backbone: name of the model's backbone.
        called: what messages call the LoRA.

    Raises:
        BestiaryError: it was trained on another.
    """
    trained = notes.get("backbone")
    if not isinstance(trained, str) or trained == backbone:
        return
    raise BestiaryError(
        f"{called} was trained on {_STAGES.get(trained, trained)}, this model is {_STAGES.get(backbone, backbone)}: its layers may have the same "
        "names and shapes, but mean something else; load a LoRA that was trained on this model"
    )
