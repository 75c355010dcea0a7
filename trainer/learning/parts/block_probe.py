"""Which attention layers ground part words best in the user's own pictures: a ranking before the first step, kept in the run folder.

Transformers have many joint attention layers and only some show where a word is; which ones differs between models (Seg4Diff,
arXiv 2509.18096). Letters: M parts, W words, B pictures, g the attention grid.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from ....concepts.denoiser.attention_maps import average_maps
from ....concepts.denoiser.denoiser import Denoiser
from ....concepts.denoiser.part_attention_loss import attention_iou
from ....concepts.errors import BestiaryError
from ....concepts.files.atomic_file import write_text
from .part_objective import PartBatch
from .token_start import attention_to_words, choose_words, fit_of_maps

logger = logging.getLogger("bestiary")
AUTO = "auto"
"""In the place of names of layers: those that the probe finds."""
PROBE_FILE = "blocks.json"
"""In a run folder."""
_PLACES = ("top", "upper", "middle", "lower", "bottom", "left", "right", "part", "whole", "background")
"""Words that discovery itself names parts with: they say where a part is, not what."""


@dataclass(frozen=True)
class RankedLayer:
    """An attention layer and how well words are grounded in it."""

    layer: str
    iou: float
    """Mean intersection over union of parts and the places that look at their words most, 0 to 1."""


def plain_words(part_words: str, part_names: Sequence[str]) -> list[str]:
    """The words to probe with: those of the settings, else the names of parts that are words for things."""
    names = [name.lower() for name in part_names if name.isalpha() and name.lower() not in _PLACES]
    return part_words.split() or names


@torch.no_grad()
def rank_layers(
    denoiser: Denoiser, words: Sequence[str], parts: Sequence[int], batch: PartBatch
) -> tuple[RankedLayer, ...]:
    """All layers, the best first.

    Args:
        denoiser: without trained adapters, or with fresh ones.
        words: W plain words for parts.
        parts: which of the M parts of the batch have words.
        batch: a few pictures with little noise.
    """
    height, width = batch.moments.shape[-2:]
    layers = tuple(denoiser.network.attention_grids((height, width)))
    grid = (batch.masks.shape[-2], batch.masks.shape[-1])
    found = attention_to_words(denoiser, words, batch, layers)
    maps = {name: average_maps({name: own}, grid) for name, own in found.items()}  # (B, W, g, g) each
    # one word for each part, by what all layers see together
    chosen = choose_words(fit_of_maps(torch.stack(list(maps.values())).mean(0), batch.masks), parts, words)
    places = [words.index(chosen[part]) for part in parts]
    masks, present = batch.masks[:, list(parts)].float(), (batch.codes >= 0)[:, list(parts)]
    ranked = [RankedLayer(name, _mean_iou(own[:, places], masks, present)) for name, own in maps.items()]
    return tuple(sorted(ranked, key=lambda own: -own.iou))


def _mean_iou(maps: Tensor, masks: Tensor, present: Tensor) -> float:
    """Mean over pictures and parts of maps and masks `(B, M, g, g)`; each map counts in units of its own mean."""
    # words of unequal strength would otherwise win everywhere or nowhere
    relative = maps / maps.mean((2, 3), keepdim=True).clamp_min(1e-12)
    return float(attention_iou(relative, masks, present).nanmean().nan_to_num(0.0))


def probed_layers(
    denoiser: Denoiser, words: Sequence[str], parts: Sequence[int], batch: PartBatch, kept: Path | None
) -> tuple[str, ...]:
    """The best layers, as many as the method usually reads; from the file `kept` where an earlier start of the run wrote it.

    Raises:
        BestiaryError: the file is broken, or names layers that this model does not have.
    """
    usual = denoiser.network.method_layers()
    if kept is not None and kept.is_file():
        return _read(kept, denoiser.attention_factors())
    if not words or not parts:
        logger.warning(
            "no plain words for parts are known, so attention is read in the usual layers (%s): set method.part_words, such as "
            "\"head wing tail\", to find the best ones", ", ".join(usual),
        )  # fmt: skip
        return usual
    ranked = rank_layers(denoiser, words, parts, batch)
    chosen = tuple(own.layer for own in ranked[: max(1, len(usual))])
    logger.info(
        "attention is read in %s (IoU of part words %.3f; worst layer %s %.3f)",
        ", ".join(chosen), ranked[0].iou, ranked[-1].layer, ranked[-1].iou,
    )  # fmt: skip
    if kept is not None:
        write_text(kept, json.dumps({"chosen": chosen, "ranked": [asdict(own) for own in ranked]}, indent=1))
    return chosen


def _read(path: Path, known: Mapping[str, int]) -> tuple[str, ...]:
    try:
        chosen = json.loads(path.read_text(encoding="utf-8"))["chosen"]
    except (OSError, ValueError, KeyError, TypeError) as fault:
        raise BestiaryError(f"{path} is not a ranking of attention layers ({fault}): delete it") from fault
    if not isinstance(chosen, list) or not chosen or any(name not in known for name in chosen):
        raise BestiaryError(f"{path} names layers that this model does not have ({str(chosen)[:120]}): delete it")
    return tuple(chosen)
