"""LoRA files spell one layer in many ways; here all of them become kohya names, and back.

| naming | example for the query of one attention layer |
|---|---|
| kohya | `lora_unet_<path with underscores>_to_q.lora_up.weight`, `.lora_down.weight`, `.alpha` |
| partcraft | `<path>.processor.to_q_lora.up.weight` (SD1.5); with `unet.` before it: partcraft-sdxl |
| diffusers | `unet.<path>.to_q.lora.up.weight` (0.2x) |
| lora_layer | `<path>.to_q.lora_layer.up.weight` |
| peft | `unet.<path>.to_q.lora_B.weight` (today's diffusers); peft-plain without prefix; diffengine with `base_model.model.` |

Kohya's own trainer also writes block numbers of the original checkpoints (`input_blocks_4_1`); they become diffusers'
paths too. A missing alpha means scale 1.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .errors import BestiaryError

LoraNaming = Literal[
    "kohya", "partcraft", "partcraft-sdxl", "diffusers", "lora_layer", "peft", "peft-plain", "diffengine"
]

DOWN, UP, ALPHA = ".lora_down.weight", ".lora_up.weight", ".alpha"
UNET_PREFIX = "lora_unet_"

_KOHYA = re.compile(r"^(lora_(?:unet|te1?|te2)_\w+)$")
_SUFFIX = re.compile(
    r"(?:_lora\.|\.lora_layer\.|\.lora_linear_layer\.|\.lora\.|\.lora_)(up|down|A|B)(?:\.default(?:_\d+)?)?\.weight$"
)
_ALPHA_SUFFIX = re.compile(r"(?:_lora|\.lora_layer|\.lora)?\.alpha$")
_PREFIXES = re.compile(r"^(?:base_model\.model\.|model\.diffusion_model\.|diffusion_model\.|unet\.)+")
_WORDS = re.compile(
    r"(?:down_blocks|up_blocks|mid_block|transformer_blocks|text_model|self_attn|time_emb_proj|time_embedding|"
    r"add_embedding|conv_shortcut|conv_in|conv_out|proj_in|proj_out|to_q|to_k|to_v|to_out|[qkv]_proj|out_proj|"
    r"token_embedding|position_embedding|linear_\d|[a-z0-9]+)(?:_|$)"
)
_BLOCK = re.compile(r"^lora_unet_(input_blocks|middle_block|output_blocks)_(\d+)(?:_(\d+))?_(.+)$")
_RESNET_PARTS = {
    "in_layers_2": "conv1",
    "out_layers_3": "conv2",
    "emb_layers_1": "time_emb_proj",
    "skip_connection": "conv_shortcut",
}

_SPELLINGS: dict[str, tuple[str, str, str]] = {
    "partcraft": ("", "_lora.down.weight", "_lora.up.weight"),
    "partcraft-sdxl": ("unet.", "_lora.down.weight", "_lora.up.weight"),
    "diffusers": ("unet.", ".lora.down.weight", ".lora.up.weight"),
    "lora_layer": ("", ".lora_layer.down.weight", ".lora_layer.up.weight"),
    "peft": ("unet.", ".lora_A.weight", ".lora_B.weight"),
    "peft-plain": ("", ".lora_A.weight", ".lora_B.weight"),
    "diffengine": ("base_model.model.", ".lora_A.weight", ".lora_B.weight"),
}
"""Prefix, suffix of down and suffix of up."""


@dataclass(frozen=True)
class LoraLayer:
    """The adapter of one layer: its update is `scale * up @ down`."""

    down: Tensor
    """`(r, in, ...)`."""
    up: Tensor
    """`(out, r, ...)`."""
    alpha: float | None
    """None means scale 1."""

    @property
    def scale(self) -> float:
        """alpha / rank, 1 without an alpha."""
        return 1.0 if self.alpha is None else self.alpha / self.down.shape[0]


def to_kohya(tensors: Mapping[str, Tensor], alpha: float | None = None) -> dict[str, Tensor]:
    """The same tensors under kohya names with diffusers' paths; keys that belong to no adapter pass unchanged.

    Args:
        tensors: a LoRA in any naming of this module's table; down `(r, in)`, up `(out, r)`.
        alpha: added to layers that have none (PEFT keeps `lora_alpha` in its adapter_config.json).

    Raises:
        BestiaryError: not a single adapter was recognised; the message shows a key and what is expected.
    """
    # keys of other kinds (DoRA scales, notes) are kept, so that nothing of the file is lost
    renamed = {kohya_name(name) or name: tensor for name, tensor in tensors.items()}
    modules = [name.removesuffix(DOWN) for name in renamed if name.endswith(DOWN)]
    if not modules:
        raise BestiaryError(_nothing_found(tensors))
    if alpha is not None:
        renamed |= {m + ALPHA: torch.tensor(float(alpha)) for m in modules if m + ALPHA not in renamed}
    return renamed


def kohya_name(name: str) -> str | None:
    """The kohya name of one tensor, None if it belongs to no adapter."""
    match = _SUFFIX.search(name)
    if match:
        suffix = UP if match[1] in ("up", "B") else DOWN
    else:
        # no matrix: perhaps the scale that belongs to one
        match, suffix = _ALPHA_SUFFIX.search(name), ALPHA
    if not match:
        return None
    path = name[: match.start()]
    if _KOHYA.match(path):
        return _diffusers_block(path) + suffix
    # text encoders keep their own prefix, everything else belongs to the denoiser
    for prefix, start in (("text_encoder_2.", "lora_te2_"), ("text_encoder.", "lora_te_"), ("", UNET_PREFIX)):
        if path.startswith(prefix):
            path = _PREFIXES.sub("", path.removeprefix(prefix)).replace(".processor.", ".")
            path = path + ".0" if path.endswith(".to_out") else path
            return start + path.replace(".", "_") + suffix
    return None


def from_kohya(tensors: Mapping[str, Tensor], naming: LoraNaming) -> dict[str, Tensor]:
    """Kohya names -> another naming; alphas are multiplied into the up matrices `(out, r)`, since the others have no place for them.

    Raises:
        BestiaryError: unknown naming, or no adapter among the tensors.
    """
    if naming == "kohya":
        return dict(tensors)
    if naming not in _SPELLINGS:
        raise BestiaryError(f"unknown LoRA naming {naming!r}: choose one of kohya, {', '.join(_SPELLINGS)}")
    prefix, down_suffix, up_suffix = _SPELLINGS[naming]
    renamed: dict[str, Tensor] = {}
    for module, layer in lora_layers(tensors).items():
        # the oldest naming puts the adapter into the processor and does not number to_out
        path = module_path(module)
        if naming.startswith("partcraft"):
            # underscores in the suffix belong to the kohya form alone, dots to all others
            path = re.sub(r"\.(to_[qkv]|to_out)(?:\.0)?$", r".processor.\1", path)
        stem = path if module.startswith("lora_te") else prefix + path
        renamed[stem + down_suffix] = layer.down
        renamed[stem + up_suffix] = layer.up * layer.scale
    return renamed


def lora_layers(tensors: Mapping[str, Tensor]) -> dict[str, LoraLayer]:
    """Kohya module name -> adapter, for every down matrix `(r, in)`; any naming is accepted.

    Raises:
        BestiaryError: no adapter among the tensors, or one lacks its up matrix.
    """
    layers: dict[str, LoraLayer] = {}
    named = to_kohya(tensors)
    for name, down in named.items():
        if not name.endswith(DOWN):
            continue
        module = name.removesuffix(DOWN)
        if module + UP not in named:
            raise BestiaryError(f"the LoRA has {name} but no {module}{UP}: the file is incomplete")
        # a missing alpha means scale 1, which only its absence can say
        alpha = named.get(module + ALPHA)
        layers[module] = LoraLayer(down, named[module + UP], None if alpha is None else float(alpha))
    return layers


def resolve_lora(tensors: Mapping[str, Tensor], module_paths: Iterable[str]) -> dict[str, LoraLayer]:
    """Dotted module path -> adapter, for those modules of a diffusers denoiser that the LoRA names.

    Args:
        tensors: a LoRA in any naming, down `(r, in)` and up `(out, r)`.
        module_paths: names of the denoiser's modules (`named_modules`).

    Raises:
        BestiaryError: not one module is named; the message shows a key of the file and one of the model.
    """
    layers = lora_layers(tensors)
    # underscores cannot be undone without doubt, so the model's own paths are flattened instead
    by_name = {UNET_PREFIX + path.replace(".", "_"): path for path in module_paths}
    reached = {by_name[module]: layer for module, layer in layers.items() if module in by_name}
    if not reached:
        wanted = next((name for name in by_name if name.endswith("to_q")), next(iter(by_name), "nothing"))
        raise BestiaryError(
            f"none of the {len(layers)} LoRA layers belongs to this model: the file has {next(iter(tensors))!r}, "
            f"the model has layers such as {wanted!r}; load a LoRA that was trained for this base model"
        )
    return reached


def module_path(kohya_module: str) -> str:
    """Dotted path of a kohya module name, `unet` prefix left out, `text_encoder[_2].` kept."""
    for start, prefix in (
        ("lora_te2_", "text_encoder_2."),
        ("lora_te1_", "text_encoder."),
        ("lora_te_", "text_encoder."),
    ):
        if kohya_module.startswith(start):
            return prefix + _dotted(kohya_module.removeprefix(start))
    return _dotted(kohya_module.removeprefix(UNET_PREFIX))


def _dotted(name: str) -> str:
    # words that hold underscores of their own are known; every other one is a separator
    return ".".join(word.group().removesuffix("_") for word in _WORDS.finditer(name))


def _diffusers_block(module: str) -> str:
    """`lora_unet_input_blocks_4_1_...` -> `lora_unet_down_blocks_1_attentions_0_...` (two residual blocks per level)."""
    match = _BLOCK.match(module)
    if not match:
        return module
    side, number, inner, rest = match[1], int(match[2]), match[3], match[4]
    if side == "middle_block":
        # the middle is residual, attention, residual
        if number == 1:
            return f"{UNET_PREFIX}mid_block_attentions_0_{inner + '_' if inner else ''}{rest}"
        return f"{UNET_PREFIX}mid_block_resnets_{number // 2}_{_RESNET_PARTS.get(rest, rest)}"
    if inner is None or (side == "input_blocks" and number == 0):
        return module
    # three blocks a level: two residual ones and the down- or upsampler; input block 0 is conv_in
    position = number - 1 if side == "input_blocks" else number
    block = f"{'down' if side == 'input_blocks' else 'up'}_blocks_{position // 3}"
    if inner == "0" and rest == "op":
        return f"{UNET_PREFIX}{block}_downsamplers_0_conv"
    # the third place of a level holds the upsampler
    if rest == "conv":
        return f"{UNET_PREFIX}{block}_upsamplers_0_conv"
    if inner == "0":
        return f"{UNET_PREFIX}{block}_resnets_{position % 3}_{_RESNET_PARTS.get(rest, rest)}"
    return f"{UNET_PREFIX}{block}_attentions_{position % 3}_{rest}"


def _nothing_found(tensors: Mapping[str, Tensor]) -> str:
    found = repr(next(iter(tensors))) if tensors else "nothing"
    return (
        f"no LoRA layer among {len(tensors)} tensors (the first is {found}): expected names such as "
        "'lora_unet_....lora_up.weight', 'unet....to_q.lora_A.weight' or '....processor.to_q_lora.up.weight'"
    )
