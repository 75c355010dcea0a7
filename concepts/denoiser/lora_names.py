"""LoRA files spell one layer in many ways; here all of them become kohya names, and back.

| naming | example for the query of one attention layer |
|---|---|
| kohya | `lora_unet_<path with underscores>_to_q.lora_up.weight`, `.lora_down.weight`, `.alpha` |
| partcraft | `<path>.processor.to_q_lora.up.weight` (SD1.5); with `unet.` before it: partcraft-sdxl |
| diffusers | `unet.<path>.to_q.lora.up.weight` (0.2x) |
| lora_layer | `<path>.to_q.lora_layer.up.weight` |
| peft | `unet.<path>.to_q.lora_B.weight` (today's diffusers); peft-plain without prefix; diffengine with `base_model.model.` |
| transformer | `transformer.<path>.to_q.lora_B.weight`, or `lora_transformer_<path with underscores>` as kohya: SD3 and Flux, with diffusers' paths |

Kohya's own trainer also writes block numbers of the original checkpoints (`input_blocks_4_1`); they become diffusers'
paths too. A missing alpha means scale 1.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..errors import BestiaryError
from .lora_family import family_hint
from .lora_forms import TRANSFORMER_PREFIX, UNET_PREFIX, check_forms

LoraNaming = Literal[
    "kohya", "partcraft", "partcraft-sdxl", "diffusers", "lora_layer", "peft", "peft-plain", "diffengine", "transformer"
]

MID = ".lora_mid.weight"
DOWN, UP, ALPHA = ".lora_down.weight", ".lora_up.weight", ".alpha"
BUNDLED = "bundle_emb."
"""Before the embeddings that some LoRA files carry with them."""
_PIECES = {"up": UP, "B": UP, "down": DOWN, "A": DOWN, "mid": MID}
_DIFFUSERS_TRANSFORMER = re.compile(r"^(?:base_model\.model\.)?(?:transformer\.|(?=(?:single_)?transformer_blocks\.))")
_TEXT_WIDTHS = (768, 1024, 1280, 2048, 4096)
_TEXT_LAYER = re.compile(r"_attn2_to_[kv]$")

_KOHYA = re.compile(r"^(lora_(?:unet|transformer|te1?|te2)_\w+)$")
_SUFFIX = re.compile(
    r"(?:_lora\.|\.lora_layer\.|\.lora_linear_layer\.|\.lora\.|\.lora_)(up|down|mid|A|B)(?:\.default(?:_\d+)?)?\.weight$"
)
_ALPHA_SUFFIX = re.compile(r"(?:_lora|\.lora_layer|\.lora)?\.alpha$")
_PREFIXES = re.compile(r"^(?:base_model\.model\.|model\.diffusion_model\.|diffusion_model\.|unet\.)+")
_WORDS = re.compile(
    r"(?:down_blocks|up_blocks|mid_block|single_transformer_blocks|transformer_blocks|text_model|self_attn|time_emb_proj|time_embedding|"
    r"add_embedding|conv_shortcut|conv_in|conv_out|proj_in|proj_out|to_q|to_k|to_v|to_out|[qkv]_proj|out_proj|"
    r"token_embedding|position_embedding|add_[kqv]_proj|to_add_out|ff_context|norm1_context|norm_out|proj_mlp|time_text_embed|"
    r"(?:context|x|timestep|guidance|text)_embedder|linear_\d|[a-z0-9]+)(?:_|$)"
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
    "transformer": ("transformer.", ".lora_A.weight", ".lora_B.weight"),
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


def to_kohya(
    tensors: Mapping[str, Tensor], alpha: float | None = None, *, prefix: str = UNET_PREFIX
) -> dict[str, Tensor]:
    """The same tensors under kohya names with diffusers' paths; keys that belong to no adapter pass unchanged.

    Args:
        tensors: a LoRA in any naming of this module's table; down `(r, in)`, up `(out, r)`.
        alpha: added to layers that have none (PEFT keeps `lora_alpha` in its adapter_config.json).
        prefix: of the kind of denoiser that it is for, see `Backbone.lora_prefix`.

    Raises:
        BestiaryError: not a single adapter was recognised, or the file holds more than plain pairs; the message shows a key
            and what is expected.
    """
    check_forms(tensors, prefix)
    # keys of other kinds (notes, bundled embeddings) are kept, so that nothing of the file is lost
    renamed = {kohya_name(name) or name: tensor for name, tensor in tensors.items()}
    modules = [name.removesuffix(DOWN) for name in renamed if name.endswith(DOWN)]
    if not modules:
        raise BestiaryError(_nothing_found(tensors))
    _check_pairs(renamed, modules)
    for module in modules:
        if module + MID in renamed:
            renamed[module + DOWN] = _folded(renamed.pop(module + MID), renamed[module + DOWN], module)
    if alpha is not None:
        renamed |= {m + ALPHA: torch.tensor(float(alpha)) for m in modules if m + ALPHA not in renamed}
    return renamed


def check_family(tensors: Mapping[str, Tensor], width: int) -> None:
    """Make sure that a LoRA under kohya names reads prompts of a model whose text vectors `(tokens, width)` are so wide.

    Raises:
        BestiaryError: it reads others; the message shows the layer and both widths.
    """
    for name, down in tensors.items():
        module = name.removesuffix(DOWN)
        if not name.endswith(DOWN) or not _TEXT_LAYER.search(module):
            continue
        if down.shape[1] != width and down.shape[1] in _TEXT_WIDTHS:
            raise BestiaryError(
                f"the LoRA's layer {module} reads text vectors of width {down.shape[1]}, this model has {width}: "
                "it was trained for another family of models (SD 1.5 has 768, SD 2 has 1024, SDXL has 2048)"
            )


def with_told_alphas(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, Tensor]:
    """A LoRA of any naming with the alphas that only its header contains, as tensors under kohya names.

    PEFT keeps `lora_alpha`, `r` and `use_rslora` in the header's `lora_adapter_metadata`, per model part; kohya's trainer
    keeps `ss_network_alpha`. A layer's own alpha counts before any of them. rsLoRA (Kalajdzievski 2023, arXiv 2312.03732)
    scales by alpha / sqrt(rank) instead of alpha / rank.

    Raises:
        BestiaryError: the header's table is broken.
    """
    declared = _adapter_table(metadata)
    known = {kohya_name(name) for name in tensors}
    found = dict(tensors)
    for name, down in tensors.items():
        module = kohya_name(name)
        if module is None or not module.endswith(DOWN) or not down.ndim:
            continue
        stem = module.removesuffix(DOWN)
        alpha = None if stem + ALPHA in known else _declared_alpha(stem, down.shape[0], declared)
        if alpha is not None:
            found[stem + ALPHA] = torch.tensor(alpha)
    return found


def _adapter_table(metadata: Mapping[str, str]) -> dict[str, dict[str, object]]:
    """Part of the model ("unet", "text_encoder", "" for all) -> settings of its adapter."""
    text = metadata.get("lora_adapter_metadata")
    declared: dict[str, dict[str, object]] = {}
    if text is None:
        # an alpha alone: kohya's files normally repeat it in every layer
        alpha = metadata.get("ss_network_alpha", "")
        return {"": {"lora_alpha": float(alpha)}} if re.fullmatch(r"\d{1,6}(?:\.\d{1,6})?", alpha) else {}
    try:
        table = json.loads(text)
    except (ValueError, RecursionError) as fault:
        raise BestiaryError("the LoRA's header has a broken lora_adapter_metadata: it is not valid JSON") from fault
    for name, value in table.items() if isinstance(table, dict) else ():
        part, _, setting = name.rpartition(".")
        declared.setdefault(part, {})[setting] = value
    return declared


def _declared_alpha(module: str, rank: int, declared: Mapping[str, Mapping[str, object]]) -> float | None:
    """The alpha of one layer, for a scale of alpha / rank."""
    path = module_path(module)
    starts = ("text_encoder_2", "text_encoder")
    part = next((start for start in starts if path.startswith(start + ".")), "unet")
    settings = declared.get(part, declared.get("", {}))
    # single layers may differ from the rest
    pattern = settings.get("alpha_pattern")
    own = [value for name, value in pattern.items() if path.endswith(name)] if isinstance(pattern, dict) else []
    alpha = own[0] if own else settings.get("lora_alpha")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 <= alpha < 1e6:
        return None
    return float(alpha) * (math.sqrt(rank) if settings.get("use_rslora") is True else 1.0)


def _check_pairs(named: Mapping[str, Tensor], modules: Sequence[str]) -> None:
    """Raises BestiaryError unless every down `(r, in, ...)` has an up `(out, r, ...)`, and alphas are single numbers."""
    for module in modules:
        down, up, alpha = named[module + DOWN], named.get(module + UP), named.get(module + ALPHA)
        if up is None:
            raise BestiaryError(f"the LoRA has {module}{DOWN} but no {module}{UP}: the file is incomplete")
        mid = named.get(module + MID)
        rank = down.shape[0] if mid is None or not mid.ndim else mid.shape[0]
        if min(down.ndim, up.ndim) < 2 or up.shape[1] != rank or 0 in (*down.shape, *up.shape):
            raise BestiaryError(
                f"the LoRA's layer {module} is {tuple(up.shape)} times {tuple(down.shape)}: its ranks differ, the file is broken"
            )
        if alpha is not None and (alpha.numel() != 1 or not math.isfinite(float(alpha))):
            raise BestiaryError(
                f"the LoRA's {module}{ALPHA} has shape {tuple(alpha.shape)}, expected one finite number"
            )
    alone = next((name for name in named if name.endswith(UP) and name.removesuffix(UP) + DOWN not in named), None)
    if alone is not None:
        raise BestiaryError(f"the LoRA has {alone} but no {alone.removesuffix(UP)}{DOWN}: the file is incomplete")


def _folded(mid: Tensor, down: Tensor, module: str) -> Tensor:
    """One down matrix `(r, in, kh, kw)` for LoCon's two: mid `(r, q, kh, kw)` after down `(q, in, 1, 1)`; exact."""
    if mid.ndim != 4 or down.ndim != 4 or down.shape[2:] != (1, 1) or mid.shape[1] != down.shape[0]:
        raise BestiaryError(
            f"the LoRA's layer {module} has a middle matrix {tuple(mid.shape)} that does not fit {tuple(down.shape)}"
        )
    return torch.einsum("rqhw,qi->rihw", mid.float(), down.flatten(1).float()).contiguous()


def kohya_name(name: str) -> str | None:
    """The kohya name of one tensor, None if it belongs to no adapter."""
    match = _SUFFIX.search(name)
    if match:
        suffix = _PIECES[match[1]]
    else:
        # no matrix: perhaps the scale that belongs to one
        match, suffix = _ALPHA_SUFFIX.search(name), ALPHA
    if not match:
        return None
    path = name[: match.start()]
    if _KOHYA.match(path):
        return _diffusers_block(path) + suffix
    if own := _DIFFUSERS_TRANSFORMER.match(path):
        return TRANSFORMER_PREFIX + path[own.end() :].replace(".", "_") + suffix
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
    kind = TRANSFORMER_PREFIX if naming == "transformer" else UNET_PREFIX
    for module, layer in lora_layers(tensors, kind).items():
        # the oldest naming puts the adapter into the processor and does not number to_out
        path = module_path(module)
        if naming.startswith("partcraft"):
            # underscores in the suffix belong to the kohya form alone, dots to all others
            path = re.sub(r"\.(to_[qkv]|to_out)(?:\.0)?$", r".processor.\1", path)
        stem = path if module.startswith("lora_te") else prefix + path
        renamed[stem + down_suffix] = layer.down
        renamed[stem + up_suffix] = layer.up * layer.scale
    return renamed


def lora_layers(tensors: Mapping[str, Tensor], prefix: str = UNET_PREFIX) -> dict[str, LoraLayer]:
    """Kohya module name -> adapter, for every down matrix `(r, in)`; any naming of the kind of denoiser is accepted.

    Raises:
        BestiaryError: no adapter among the tensors, or one lacks its up matrix.
    """
    layers: dict[str, LoraLayer] = {}
    named = to_kohya(tensors, prefix=prefix)
    for name, down in named.items():
        if not name.endswith(DOWN):
            continue
        module = name.removesuffix(DOWN)
        # a missing alpha means scale 1, which only its absence can say
        alpha = named.get(module + ALPHA)
        layers[module] = LoraLayer(down, named[module + UP], None if alpha is None else float(alpha))
    return layers


def resolve_lora(
    tensors: Mapping[str, Tensor], module_paths: Iterable[str], prefix: str = UNET_PREFIX
) -> dict[str, LoraLayer]:
    """Dotted module path -> adapter, for those modules of a diffusers denoiser that the LoRA names.

    Args:
        tensors: a LoRA in any naming, down `(r, in)` and up `(out, r)`.
        module_paths: names of the denoiser's modules (`named_modules`).
        prefix: of its kind, see `Backbone.lora_prefix`.

    Raises:
        BestiaryError: not one module is named; the message shows a key of the file and one of the model.
    """
    layers = lora_layers(tensors, prefix)
    # underscores cannot be undone without doubt, so the model's own paths are flattened instead
    by_name = {prefix + path.replace(".", "_"): path for path in module_paths}
    reached = {by_name[module]: layer for module, layer in layers.items() if module in by_name}
    if not reached:
        wanted = next((name for name in by_name if name.endswith("to_q")), next(iter(by_name), "nothing"))
        raise BestiaryError(
            f"none of the {len(layers)} LoRA layers belongs to this model{family_hint(layers, by_name)}: the file has {next(iter(tensors))!r}, "
            f"the model has layers such as {wanted!r}; load a LoRA that was trained for this base model"
        )
    return reached


def module_path(kohya_module: str) -> str:
    """Dotted path of a kohya module name, the denoiser's prefix left out, `text_encoder[_2].` kept."""
    for start, prefix in (
        ("lora_te2_", "text_encoder_2."),
        ("lora_te1_", "text_encoder."),
        ("lora_te_", "text_encoder."),
    ):
        if kohya_module.startswith(start):
            return prefix + _dotted(kohya_module.removeprefix(start))
    return _dotted(kohya_module.removeprefix(UNET_PREFIX).removeprefix(TRANSFORMER_PREFIX))


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
