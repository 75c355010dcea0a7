"""Adds part attention to a clone of a MODEL with ComfyUI's own hooks; nothing in the model itself is replaced.

Four hooks work together. A wrapper around the sampling starts an `AttentionSampling`; a wrapper around each evaluation of
the prompts records which rows contain which part tokens; a patch of the cross-attention input marks the next
cross-attention, or a patch around a block of a diffusion transformer names it; and the attention override, which also sees
all others, acts on the marked or named one and calls the previous override. Several of our patches on one model share these hooks and act once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ...concepts.errors import BestiaryError
from ...concepts.name_search import shown_name
from ...concepts.part_prompt.prompt_words import PromptWords, missing_word
from ..host.running_graph import running_server
from ..host.socket_types import SPANS_KEY, WORDS_KEY
from .attention_layers import SUPPORTED, check_blocks, check_layers
from .attention_record import AttentionRecord
from .attention_sampling import AttentionSampling, ModelEvaluation, TimedRegion
from .part_regions import PartRegion, check_regions
from .transformer_attention import EVALUATION_KEY, BlockPatch, attend_in_block, block_of_attention
from .transformer_families import Block, Transformer, family_name, transformer_of

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

    from ..host.comfy_objects import ModelSampling

WRAPPER_KEY = "bestiary_attention"
RECORDS_KEY = "bestiary_records"
REGIONS_KEY = "bestiary_regions"
SAMPLING_KEY = "bestiary_sampling"
OVERRIDE_KEY = "optimized_attention_override"
_told: set[str] = set()
"""Ids of nodes that currently show a warning of ours."""


def record_attention(model: ModelPatcher, record: AttentionRecord) -> ModelPatcher:
    """A clone of the model whose samplings fill the record.

    Raises:
        BestiaryError: the model has no attention at the layers of the record, or is of no family that is supported.
    """
    transformer = transformer_of(model)
    if transformer is None:
        check_layers(record.layers, attention_factors(model), family_name(model))
        return _with_entry(model, RECORDS_KEY, record)
    check_blocks(record.layers, transformer.family.name)
    blocks = transformer.all_blocks if record.layers == "all" else transformer.method_blocks
    return _with_entry(model, RECORDS_KEY, record, transformer, blocks)


def confine_part(model: ModelPatcher, region: PartRegion) -> ModelPatcher:
    """A clone of the model that keeps a part inside its region.

    Raises:
        BestiaryError: the model is no UNet with cross-attention, and of no family of transformers that is supported.
    """
    transformer = transformer_of(model)
    if transformer is not None:
        return _with_entry(model, REGIONS_KEY, region, transformer, transformer.method_blocks)
    if not attention_factors(model):
        raise BestiaryError(
            f"Part Regions: this MODEL ({family_name(model)}) has no cross-attention, so {shown_name(region.part)} cannot be "
            f"confined to a mask; use {SUPPORTED}"
        )
    return _with_entry(model, REGIONS_KEY, region)


def attention_factors(model: ModelPatcher) -> frozenset[int]:
    """Ratios of the latent's edge to the layer's edge, for a UNet's layers with cross-attention; empty for other models."""
    config = model.model.model_config.unet_config
    depths, blocks = list(config.get("transformer_depth", ())), config.get("num_res_blocks", ())
    levels = len(config.get("channel_mult", ()))
    blocks = [blocks] * levels if isinstance(blocks, int) else list(blocks)
    factors = {2 ** max(0, levels - 1)} if config.get("transformer_depth_middle", 0) > 0 and levels else set()
    for level, count in enumerate(blocks):
        # transformer_depth is a flat list: one entry per residual block, level by level
        if any(depths[:count]):
            factors.add(2**level)
        depths = depths[count:]
    return frozenset(factors)


def _with_entry(
    model: ModelPatcher,
    key: str,
    entry: AttentionRecord | PartRegion,
    transformer: Transformer | None = None,
    blocks: frozenset[Block] = frozenset(),
) -> ModelPatcher:
    from comfy.patcher_extension import WrappersMP

    patched = model.clone()
    options = patched.model_options["transformer_options"]
    options[key] = (*options.get(key, ()), entry)
    if transformer is None:
        _mark_once(patched, mark_cross_attention)
    elif transformer.family.named_by == "cross":
        _mark_once(patched, mark_keyword_attention)
    elif transformer.family.named_by == "patch":
        _name_blocks(patched, blocks)
    options = patched.model_options["transformer_options"]
    # every node of ours chains again: a pack in between that replaced the override cannot disable all of them
    options[OVERRIDE_KEY] = _chained(options.get(OVERRIDE_KEY))
    for kind, wrapper in ((WrappersMP.OUTER_SAMPLE, watch_sampling), (WrappersMP.CALC_COND_BATCH, watch_evaluation)):
        if not patched.get_wrappers(kind, WRAPPER_KEY):
            patched.add_wrapper_with_key(kind, WRAPPER_KEY, wrapper)
    return patched


def _mark_once(patched: ModelPatcher, mark: Callable[..., Any]) -> None:
    """Add a patch of the cross-attention input, unless it is there already."""
    if mark not in patched.model_options["transformer_options"].get("patches", {}).get("attn2_patch", ()):
        patched.set_model_attn2_patch(mark)


def _name_blocks(patched: ModelPatcher, blocks: frozenset[Block]) -> None:
    """Put a patch around each of these blocks, in front of another pack's; blocks that have one of ours keep it."""
    known = patched.model_options["transformer_options"].get("patches_replace", {}).get("dit", {})
    for kind, number in sorted(blocks):
        previous = known.get((kind, number))
        if not isinstance(previous, BlockPatch):
            patched.set_model_patch_replace(BlockPatch((kind, number), previous), "dit", kind, number)


def mark_keyword_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pe: Tensor | None = None,
    attn_mask: Tensor | None = None,
    extra_options: dict | None = None,
) -> dict[str, Tensor]:
    """The same as `mark_cross_attention` in networks that call patches by keywords (Anima); an empty answer changes nothing."""
    options = extra_options or {}
    evaluation = options.get(EVALUATION_KEY)
    if evaluation is not None:
        block = block_of_attention(evaluation.sampling.transformer, options)
        if block is not None and evaluation.sampling.uses(block):
            evaluation.mark(options)
    return {}


def mark_cross_attention(n: Tensor, context: Tensor, value: Tensor, options: dict) -> tuple[Tensor, Tensor, Tensor]:
    """Patch of the cross-attention input `(R, N, D)`: changes nothing, but marks this block's next attention as cross-attention."""
    evaluation = options.get(EVALUATION_KEY)
    if evaluation is not None:
        evaluation.mark(options)
    return n, context, value


def _chained(previous: Callable[..., Tensor] | None) -> Callable[..., Tensor]:
    """The attention override; calls the previous override, directly or from inside its own attention."""

    def attend(
        attention: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, heads: int, *args: Any, **kw: Any
    ) -> Tensor:
        # an override of another node stays active inside ours
        inner = attention if previous is None else functools.partial(previous, attention)
        options = kw.get("transformer_options") or {}
        evaluation = options.get(EVALUATION_KEY)
        if evaluation is None:
            return inner(q, k, v, heads, *args, **kw)
        transformer = evaluation.sampling.transformer
        # joint attentions are named by their block, cross-attentions are marked
        if (transformer is None or transformer.family.named_by == "cross") and not evaluation.take_mark(options):
            return inner(q, k, v, heads, *args, **kw)
        if transformer is None:
            return evaluation.attend(inner, q, k, v, heads, *args, **kw)
        block = block_of_attention(transformer, options)
        if block is None or not evaluation.sampling.uses(block):
            return inner(q, k, v, heads, *args, **kw)
        return attend_in_block(evaluation, block, inner, q, k, v, heads, *args, **kw)

    return attend


def watch_sampling(
    executor: Callable[..., Tensor],
    noise: Tensor,
    latent: Tensor,
    sampler: object,
    sigmas: Tensor,
    *args: object,
    **kw: object,
) -> Tensor:
    """Wrapper of a whole sampling: starts new recordings, which are kept only if it succeeds.

    Raises:
        BestiaryError: no prompt contains a part or word of a region, or a word of a record, or masks do not match the pictures.
    """
    guider = executor.class_obj
    # the guider has copied the options for this sampling, so changes do not leak into the model
    options = guider.model_options["transformer_options"]
    regions = options.get(REGIONS_KEY, ())
    spans = [span for entries in guider.conds.values() for entry in entries for span in entry.get(SPANS_KEY, ())]
    check_regions(regions, spans, noise.shape[0], words_of(guider.conds))
    for record in options.get(RECORDS_KEY, ()):
        check_words(record, guider.conds)
    schedule = guider.model_patcher.get_model_object("model_sampling")
    transformer = transformer_of(guider.model_patcher)
    sampling = AttentionSampling(
        guider.conds,
        sigmas.tolist(),
        [_timed(region, schedule, is_word=not any(map(region.covers, spans))) for region in regions],
        options.get(RECORDS_KEY, ()),
        attention_factors(guider.model_patcher) if transformer is None else frozenset({transformer.patch}),
        transformer,
    )
    options[SAMPLING_KEY] = sampling
    samples = executor(noise, latent, sampler, sigmas, *args, **kw)
    # show the warning on every node that recorded or confined something
    is_asked = any(recording.parts for _, recording in sampling.recordings) or any(region.active for region in regions)
    notice = sampling.unseen() if is_asked else ""
    for block in dict.fromkeys(one.block for one in (*options.get(RECORDS_KEY, ()), *regions)):
        tell_block(block, notice)
    height, width = noise.shape[-2:]
    for record, recording in sampling.recordings:
        record.keep(recording.finished(samples, (height, width), notice))
    return samples


def _timed(region: PartRegion, schedule: ModelSampling, *, is_word: bool) -> TimedRegion:
    first, last = (schedule.percent_to_sigma(share) for share in (region.start, region.end))
    return TimedRegion(region, first, last, is_word)


def words_of(prompts: Mapping[str, list[dict]]) -> list[PromptWords]:
    """The words of all prompts that say where they stand."""
    return [entry[WORDS_KEY] for entries in prompts.values() for entry in entries if WORDS_KEY in entry]


def check_words(record: AttentionRecord, prompts: Mapping[str, list[dict]]) -> None:
    """Check that the prompts contain the words of a record.

    Raises:
        BestiaryError: no prompt contains one, or none says where its words stand.
    """
    read = {side: entries for side, entries in prompts.items() if side != "negative" or record.negative}
    known = words_of(read)
    for word in record.words:
        if not any(prompt.places(word) for prompt in known):
            raise BestiaryError(f"Attention Maps: {missing_word(word, known)}")


def tell_block(block: str | None, text: str) -> None:
    """Show a text on a node of the graph, or clear it with an empty text; without a server or a node it is only logged."""
    server = running_server()
    if block is None or server is None or (not text and block not in _told):
        return
    server.send_progress_text(text, block)
    (_told.add if text else _told.discard)(block)


def watch_evaluation(
    executor: Callable[..., list[Tensor]], model: object, conds: list, x: Tensor, timestep: Tensor, model_options: dict
) -> list[Tensor]:
    """Wrapper of one evaluation of all prompts: assigns rows to prompts, and collects the recorded maps."""
    options = model_options.get("transformer_options", {})
    sampling = options.get(SAMPLING_KEY)
    if sampling is None:
        return executor(model, conds, x, timestep, model_options)
    entries = {
        (index, conditioning["uuid"]): sampling.entry(index, conditioning)
        for index, side in enumerate(conds)
        for conditioning in side or ()
    }
    known = {key: entry for key, entry in entries.items() if entry is not None}
    evaluation = ModelEvaluation(sampling, known, float(timestep[0]), x.shape)
    # a copy of the options for this call, so that the evaluation is released when it ends
    model_options = {**model_options, "transformer_options": {**options, EVALUATION_KEY: evaluation}}
    results = executor(model, conds, x, timestep, model_options)
    evaluation.finish()
    return results
