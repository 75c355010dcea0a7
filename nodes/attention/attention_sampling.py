"""Cross-attention of one sampling: which rows of a batch contain which part tokens, and how they are recorded or changed.

An `AttentionSampling` lives from the start of a sampler to its end, a `ModelEvaluation` for one evaluation of the prompts;
both are passed in the options of the call, so that nothing remains after it ends or fails. With several GPUs ComfyUI runs
the model for different prompts in different threads, all with the same two objects.
Letters: B images, R rows of a batch (R = prompts * B), N positions of a layer, K context tokens.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...concepts.denoiser.part_attention_patch import (
    Area,
    PartMapSum,
    full_mask,
    part_columns,
    region_scores,
    token_places,
)
from ..host.socket_types import SPANS_KEY, WORDS_KEY, PartSpan
from .attention_layers import chosen_factors
from .attention_record import AttentionRecord, RecordedPart, Recording
from .part_regions import PartRegion
from .transformer_families import Block, Transformer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PromptEntry:
    """One conditioning in an evaluation."""

    spans: tuple[PartSpan, ...]
    tokens: int
    """Length of its context, before it is repeated to the length of a longer one."""
    negative: bool
    area: Area | None

    def positions(self, part: RecordedPart) -> tuple[int, ...]:
        """Token positions of all mentions with this label."""
        if part.negative != self.negative:
            return ()
        return tuple(place for span in self.spans if span.label == part.label for place in span.positions)


@dataclass(frozen=True)
class TimedRegion:
    """A region and its range of noise levels."""

    region: PartRegion
    highest: float
    lowest: float
    is_word: bool = False
    """True if no prompt contains a part of its name, so that it confines the plain word."""

    def covers(self, span: PartSpan) -> bool:
        """True if the region applies to this mention of a part or word."""
        return span.is_word == self.is_word and self.region.covers(span)

    def acts_at(self, sigma: float) -> bool:
        """True inside the range, which is half-open, so that of two adjacent regions only one acts at their border."""
        return self.region.active and self.lowest < sigma <= self.highest


class AttentionSampling:
    """State of one run of a sampler: prompts, regions and recordings."""

    def __init__(
        self,
        prompts: Mapping[str, list[dict]],
        sigmas: list[float],
        regions: Iterable[TimedRegion],
        records: Iterable[AttentionRecord],
        available: frozenset[int],
        transformer: Transformer | None = None,
    ) -> None:
        """Start recordings of all parts in the prompts.

        Args:
            prompts: "positive", "negative" or other name -> conditionings of the sampler.
            sigmas: noise level at the start of each step, and at the end of the last.
            regions: regions of this model.
            records: records to fill.
            available: ratios of the latent's edge to a layer's edge, for the existing layers.
            transformer: the blocks of a diffusion transformer; None for a UNet.
        """
        self.sigmas = sigmas
        self.transformer = transformer
        self.regions = tuple(regions)
        self.available = available
        # ComfyUI identifies conditionings by uuid: remember the side of each, to separate positive and negative parts
        self._sides = {entry["uuid"]: side for side, entries in prompts.items() for entry in entries}
        self.recordings: list[tuple[AttentionRecord, Recording]] = []
        records = list(records)
        confined = [timed.region.part for timed in self.regions if timed.is_word]
        self._words = tuple(dict.fromkeys([*confined, *(word for record in records for word in record.words)]))
        for record in records:
            sides = {side: entries for side, entries in prompts.items() if side != "negative" or record.negative}
            parts = dict.fromkeys(
                RecordedPart(span.label, span.part, side == "negative")
                for side, entries in sides.items()
                for entry in entries
                for span in spans_of(entry, record.words)
            )
            self.recordings.append((record, Recording(tuple(parts), max(1, len(sigmas) - 1))))
        self._owned: dict[tuple[int, object], tuple[PartSpan, ...]] = {}
        self._owners: dict[int, tuple[object, object]] = {}
        """Contexts by their id, kept so that it stays theirs, and the uuid of the conditioning that each was made for."""
        self._scores: dict[tuple, Tensor] = {}
        self._warned: dict[str, None] = {}
        self.evaluations = self.marked = self.attended = 0
        """Evaluations of the prompts, announced cross-attentions, and those that passed through our override."""
        self._lock = threading.Lock()

    def step(self, sigma: float) -> int:
        """Step, counted from 0, of an evaluation at this noise level."""
        begun = sum(sigma <= start * (1 + 1e-6) for start in self.sigmas[:-1])
        return max(0, begun - 1)

    def entry(self, index: int, conditioning: dict) -> PromptEntry | None:
        """The entry of a conditioning for an evaluation; None if it has no text context."""
        context = conditioning.get("model_conds", {}).get("c_crossattn")
        if context is None:
            return None
        # spans are checked once per conditioning, not at every step
        key = (index, conditioning["uuid"])
        if key not in self._owned:
            if self.transformer is not None and self.transformer.family.named_by == "cross":
                # an adapter has made the context of the states: its copies come behind the conditioning that it belongs to
                uuid = conditioning["uuid"]
                is_own = self._owners.setdefault(id(context), (context, uuid))[1] == uuid
                self._owned[key] = spans_of(conditioning, self._words) if is_own else ()
            else:
                self._owned[key] = _own_spans(conditioning, context.cond, self._words)
        side = self._sides.get(conditioning["uuid"], "negative" if index else "positive")
        area = conditioning.get("area")
        area = _flat_area(area)
        return PromptEntry(self._owned[key], context.cond.shape[1], side == "negative", area)

    def blocks_of(self, record: AttentionRecord) -> frozenset[Block]:
        """Blocks of the transformer that a record reads."""
        if self.transformer is None:
            return frozenset()
        return self.transformer.all_blocks if record.layers == "all" else self.transformer.method_blocks

    def uses(self, block: Block) -> bool:
        """True if a record reads a block of the transformer, or a region acts in it."""
        confined = self.transformer is not None and bool(self.regions) and block in self.transformer.method_blocks
        return confined or any(block in self.blocks_of(record) for record, _ in self.recordings)

    def scores(
        self, region: PartRegion, entry: PromptEntry, size: tuple[int, int], latent: tuple, like: Tensor
    ) -> Tensor:
        """`(B, N)` or `(1, N)`: bias of a region at a layer, computed once per sampling."""
        key = (id(region), size, entry.area, latent, like.device, like.dtype)
        if key not in self._scores:
            scores = region_scores(region.mask, region.strength, size, entry.area, latent)
            self._scores[key] = scores.to(like.device, like.dtype)
        return self._scores[key]

    def warn(self, text: str) -> None:
        """Log a warning once per sampling."""
        if text not in self._warned:
            self._warned[text] = None
            log.warning(text)

    def __deepcopy__(self, memo: dict) -> AttentionSampling:
        """Returns itself: the options are deep-copied, but there is only one sampling."""
        return self

    def count(self, *, evaluations: int = 0, marked: int = 0, attended: int = 0) -> None:
        """Add to the counters; thread-safe."""
        with self._lock:
            self.evaluations += evaluations
            self.marked += marked
            self.attended += attended

    def unseen(self) -> str:
        """Reason why part attention missed this sampling or parts of it; empty if it saw everything."""
        # the first hook in the chain that was not called identifies what interfered
        if not self.evaluations:
            self.warn(
                "Bestiary: the sampler evaluates the prompts without ComfyUI's calc_cond_batch, so part attention has no effect: "
                "use a sampler of ComfyUI"
            )
        elif not self.marked:
            self.warn(
                "Bestiary: the MODEL ran without its cross-attention patches, as compiled and converted models "
                "do: put the node that replaced it behind this one, or remove it"
            )
        elif self.attended < self.marked:
            self.warn(
                f"Bestiary: another pack replaced {self.marked - self.attended} of the {self.marked} "
                "cross-attentions, so part attention has no effect there: put its node in front of this one, or remove it"
            )
        return "\n".join(self._warned)


def _flat_area(area: Sequence[int] | None) -> Area | None:
    """Height, width, top and left of an area; of a latent with frames, those of every frame."""
    if area is None or len(area) not in (4, 6):
        return None
    sizes, corners = area[: len(area) // 2], area[len(area) // 2 :]
    return (sizes[-2], sizes[-1], corners[-2], corners[-1])


def spans_of(conditioning: dict, words: Iterable[str]) -> tuple[PartSpan, ...]:
    """Mentions of parts in a conditioning, and those of the words that it contains."""
    known = conditioning.get(WORDS_KEY)
    found = [] if known is None else [PartSpan(word, word, known.places(word), is_word=True) for word in words]
    return (*conditioning.get(SPANS_KEY, ()), *(span for span in found if span.positions))


def _own_spans(conditioning: dict, context: Tensor, words: Iterable[str]) -> tuple[PartSpan, ...]:
    """Spans of a conditioning `(1, K, E)`; none if ComfyUI copied them to another prompt's tokens, as for areas."""
    spans, own = spans_of(conditioning, words), conditioning.get("cross_attn")
    if not spans or own is None or own is context:
        return tuple(spans)
    # compare values: the same tokens may have been moved to another device or cast
    same = own.shape == context.shape and torch.equal(own.to(context.device, context.dtype), context)
    return tuple(spans) if same else ()


class ModelEvaluation:
    """One evaluation of all prompts at one noise level; the model may run several times for it."""

    def __init__(
        self,
        sampling: AttentionSampling,
        entries: Mapping[tuple[int, object], PromptEntry],
        sigma: float,
        latent_shape: torch.Size,
    ) -> None:
        """`entries` by side and uuid, at noise level `sigma`, for latents of shape (B, C, h, w)."""
        self.sampling = sampling
        sampling.count(evaluations=1)
        self.entries = entries
        self.regions = [timed for timed in sampling.regions if timed.acts_at(sigma)]
        self.step = sampling.step(sigma)
        self.images = latent_shape[0]
        self.latent = (latent_shape[-2], latent_shape[-1])
        self.sums: list[dict[tuple[int, torch.device], PartMapSum]] = [{} for _ in sampling.recordings]
        """Per record: sums by thread and device."""
        self._factors = [
            chosen_factors(record.layers, self.latent, sampling.available) for record, _ in sampling.recordings
        ]
        self._marks: dict[int, tuple] = {}
        """Marks by thread."""

    def mark(self, options: dict) -> None:
        """Mark the next attention of this block, in this thread, as its cross-attention."""
        self.sampling.count(marked=1)
        self._marks[threading.get_ident()] = (options.get("uuids"), options.get("block"), options.get("block_index"))

    def take_mark(self, options: dict) -> bool:
        """True if this attention is the marked one; removes the mark, so that a chain of our patches acts once."""
        mark = self._marks.pop(threading.get_ident(), None)
        # compare the uuid list by identity: it is new for every run, so a stale mark of a replaced block never matches
        return (
            mark is not None
            and mark[0] is options.get("uuids")
            and mark[1:] == (options.get("block"), options.get("block_index"))
        )

    def attend(
        self, attention: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, heads: int, *args: Any, **kw: Any
    ) -> Tensor:
        """Call the attention, q `(R, N, H * d)`, with regions added to its mask, and record the columns of the parts.

        Args:
            attention: the attention to call, `(q, k, v, heads, mask=..., ...)`.
            q: `(R, N, heads * d)`, k and v: `(R, K, heads * d)`.
            heads: number of heads.
            args: the mask, if it was passed by position.
            kw: further arguments of ComfyUI; `transformer_options` identifies the rows.
        """
        self.sampling.count(attended=1)
        # a run contains rows of several prompts; if they cannot be assigned, the attention stays unchanged
        options = kw["transformer_options"]
        rows = self._rows(options, q, k)
        if args:
            kw["mask"], args = args[0], args[1:]
        # regions first: the recorded columns must include their effect
        if rows and self.regions:
            bias = self._bias(rows, options, q, k)
            if bias is not None:
                kw["mask"] = bias if kw.get("mask") is None else full_mask(kw["mask"]).to(q.dtype) + bias.unsqueeze(1)
        if rows:
            self._record(rows, options, q, k, heads, kw.get("mask"))
        return attention(q, k, v, heads, *args, **kw)

    def finish(self) -> None:
        """Add the maps of this evaluation to the recordings."""
        for (_, recording), sums in zip(self.sampling.recordings, self.sums, strict=True):
            # fixed order of devices: floating-point sums must not depend on thread timing
            several = [sums[key] for key in sorted(sums, key=lambda key: (str(key[1]), key[0]))]
            for other in several[1:]:
                several[0].take_in(other)
            if several:
                recording.add(self.step, several[0])

    def entries_of(self, options: dict) -> list[PromptEntry]:
        """The prompts in this run of the model, in the order of their rows; empty if they are unknown."""
        sides = list(zip(options.get("cond_or_uncond", ()), options.get("uuids", ()), strict=False))
        found = [entry for side in sides if (entry := self.entries.get(side)) is not None]
        if not sides or len(found) < len(sides):
            self.sampling.warn(
                "Bestiary: another pack evaluates prompts in its own way and does not report which rows belong to which prompt; "
                "part attention is skipped there"
            )
            return []
        return found

    def sum_of(self, number: int, parts: int, device: torch.device) -> PartMapSum:
        """The sum of a record for this thread and device."""
        # sums use the grid of the record's finest layer, allocated when the first maps arrive
        own = (threading.get_ident(), device)
        if own not in self.sums[number]:
            finest = min(self._factors[number])
            grid = -(-self.latent[0] // finest), -(-self.latent[1] // finest)
            self.sums[number][own] = PartMapSum(self.images, parts, grid, device)
        return self.sums[number][own]

    def _rows(self, options: dict, q: Tensor, k: Tensor) -> list[tuple[slice, PromptEntry, int]]:
        """Rows of every prompt in this run of the model, and the context length; empty if they cannot be assigned."""
        found = self.entries_of(options)
        if not found:
            return []
        # ComfyUI repeats contexts of different lengths to their least common multiple
        length = math.lcm(*(entry.tokens for entry in found))
        size = options["activations_shape"][-2:]
        # another patch may have changed the batch: then rows cannot be assigned
        expected = (len(found) * self.images, math.prod(size))
        if q.ndim != 3 or q.shape[:2] != expected or k.shape[1] < length:
            self.sampling.warn(
                f"Bestiary: cross-attention of {tuple(q.shape[:2])} rows and positions to {k.shape[1]} tokens, expected "
                f"{expected} and {length}: another patch changed the batch, part attention is skipped there"
            )
            return []
        return [
            (slice(i * self.images, (i + 1) * self.images), entry, length)
            for i, entry in enumerate(found)
            if entry.spans
        ]

    def _bias(self, rows: list[tuple[slice, PromptEntry, int]], options: dict, q: Tensor, k: Tensor) -> Tensor | None:
        """`(R, N, K)` bias of the regions on the scores; None if they concern no row."""
        bias = None
        for some, entry, length in rows:
            for timed in self.regions:
                held = [place for span in entry.spans if timed.covers(span) for place in span.positions]
                # includes the repetitions of a short prompt in a longer context
                places = token_places([held], entry.tokens, length)[0]
                if not held:
                    continue
                bias = q.new_zeros((q.shape[0], q.shape[1], k.shape[1])) if bias is None else bias  # (R, N, K)
                # the same for all heads; on the grid of the layer, cropped to the prompt's area
                size = tuple(options["activations_shape"][-2:])
                scores = self.sampling.scores(timed.region, entry, size, self.latent, q)  # (B or 1, N)
                bias[some, :, places.to(q.device)] += scores.unsqueeze(-1)
        return bias

    def _record(
        self,
        rows: list[tuple[slice, PromptEntry, int]],
        options: dict,
        q: Tensor,
        k: Tensor,
        heads: int,
        mask: Tensor | None,
    ) -> None:
        size = tuple(options["activations_shape"][-2:])
        # round to a power of 2: odd latent sizes give inexact ratios
        factor = 2 ** round(math.log2(options["original_shape"][-2] / size[0]))
        mask = None if mask is None else full_mask(mask)
        # records may use different layers
        for number, (_, recording) in enumerate(self.sampling.recordings):
            if factor not in self._factors[number]:
                continue
            for some, entry, length in rows:
                positions = [entry.positions(part) for part in recording.parts]
                if not any(positions):
                    continue
                places = token_places(positions, entry.tokens, length).to(q.device)
                some_mask = mask if mask is None or mask.shape[0] == 1 else mask[some]
                columns = part_columns(q[some], k[some], heads, places, some_mask)  # (B, P, N)
                held = [bool(places) for places in positions]
                self.sum_of(number, len(positions), q.device).add(columns, size, held, entry.area, self.latent)
