"""Prompts with learned vectors -> conditionings, whatever library holds the text encoders: the text side of every model.

Every encoder lays a prompt out on its own; where its states stand in the context is data (`TextEncoderSpec`). Letters: B prompts, C chunks, L positions
of a chunk, N chunks of all prompts, P learned vectors of a prompt, K columns of one, D width of an encoder, T positions and E width of the context.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ....concepts.denoiser.backbone import Backbone, TextEncoderSpec
from ....concepts.denoiser.context_places import context_columns, insert_in_context
from ....concepts.denoiser.denoiser import (
    CONTEXT,
    Conditioning,
    EncoderLayout,
    PromptLayout,
    PromptPiece,
    TextSide,
    vectors_of,
)
from ....concepts.denoiser.token_insertion import Insertion, insert_vectors, lay_out_run, lay_out_tokens
from ....concepts.errors import BestiaryError

CACHED_PROMPTS = 64
"""Encodings of prompts without learned vectors that are kept."""


@dataclass(frozen=True)
class ClipStates:
    """States of one text encoder for N chunks."""

    hidden: Tensor
    """`(N, L, D)`: the hidden states that are attended to."""
    pooled: Tensor | None
    """`(N, D_pooled)`: the projected state of the end token, for encoders that give one."""


class TextEncoder(Protocol):
    """One text encoder with its tokenizer."""

    start: int | None
    """Id of the start token; None for encoders without one."""
    end: int
    """Id of the end token."""
    pad: int
    """Id that fills a chunk."""
    unknown: int | None
    """Id that stands for every word of which the tokenizer knows no piece; None where it knows all bytes."""

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        ...

    def plain_ids(self, text: str) -> list[int]:
        """Token ids of a text without start and end token."""
        ...

    def embed(self, ids: Tensor) -> Tensor:
        """Token embeddings `(B, L, D)` of ids `(B, L)`, positions not yet added; no gradient reaches the table."""
        ...

    def run(self, embeddings: Tensor, spec: TextEncoderSpec, end_places: Tensor) -> ClipStates:
        """The encoder from token embeddings `(N, L, D)` on; pooled states are read at `end_places` `(N,)`."""
        ...


class PromptEncoding:
    """The frozen text encoders of one backbone; a `TextSide`."""

    def __init__(self, backbone: Backbone, encoders: Mapping[str, TextEncoder]) -> None:
        """`encoders` by the names of the backbone's text encoders; what one that is missing would say is zero, as in ComfyUI."""
        self.backbone = backbone
        self.encoders = dict(encoders)
        self.insertion: Insertion = "input"
        self._specs = tuple(spec for spec in backbone.text_encoders if spec.name in self.encoders)
        self._known: OrderedDict[bytes, Conditioning] = OrderedDict()

    @property
    def missing(self) -> tuple[str, ...]:
        """Text encoders of the backbone that this model was loaded without."""
        return tuple(spec.name for spec in self.backbone.text_encoders if spec.name not in self.encoders)

    @property
    def device(self) -> torch.device:
        """Where the encoders run."""
        return next(iter(self.encoders.values())).device

    def tokenize(self, pieces: Sequence[PromptPiece], chunks: int | None = None) -> PromptLayout:
        """Lay out a prompt for every encoder, ids `(C, L)` each; `chunks` as in `TextSide.tokenize`."""
        return {spec.name: self._laid_out(spec, pieces, chunks) for spec in self._specs}

    def word_vectors(self, words: str) -> dict[str, Tensor]:
        """Embedding rows of plain words, encoder -> `(n, D)`, without start and end tokens; or what encoders say of them, where vectors enter there.

        Raises:
            BestiaryError: the words give no token at all.
        """
        rows = {spec.name: torch.zeros(1, spec.width) for spec in self.backbone.text_encoders}
        for spec in self._specs:
            encoder = self.encoders[spec.name]
            ids = encoder.plain_ids(words)
            if not ids:
                raise BestiaryError(f"{words!r} holds no word the tokenizer knows: give a plain word such as 'head'")
            if self.insertion == "output" and spec.role == "context":
                rows[spec.name] = self._said(spec, words, len(ids))
                continue
            places = torch.tensor([ids], device=encoder.device)  # (1, n)
            rows[spec.name] = encoder.embed(places)[0].detach().float()  # (n, D)
        return rows

    def unknown_words(self, words: str) -> list[str]:
        """Those of several words that an encoder's tokenizer does not know."""
        encoders = self.encoders.values()
        return [
            word
            for word in words.split()
            if any(encoder.unknown is not None and encoder.unknown in encoder.plain_ids(word) for encoder in encoders)
        ]

    def encode(self, prompts: Sequence[PromptLayout], vectors: Mapping[str, Tensor] | None) -> Conditioning:
        """Encode B prompts, learned vectors, encoder -> `(B, P, D)`, in their places; gradients reach the vectors only.

        Raises:
            BestiaryError: fewer vectors than places, an encoder without vectors, or vectors of another backbone's width.
        """
        prompts = self._equal_lengths(list(prompts))
        most = max((vectors_of(prompt) for prompt in prompts), default=0)
        _check_vectors(vectors, len(prompts), most, self.backbone)
        # prompts without vectors come back again and again: they are remembered
        if vectors is None or most == 0:
            encoded = self._encode_plain(prompts)
        elif self.insertion == "output":
            encoded = self._with_outputs(prompts, vectors)
        else:
            encoded = self._encode_rows(prompts, vectors)
        count = most if vectors is None else next(iter(vectors.values())).shape[1]
        columns = _moved(context_columns(self.backbone, prompts, count), self.device)  # (B, P, K)
        return replace(encoded, places={CONTEXT: columns})

    def _laid_out(self, spec: TextEncoderSpec, pieces: Sequence[PromptPiece], chunks: int | None) -> EncoderLayout:
        encoder = self.encoders[spec.name]
        filler = next(i for i in range(3) if i not in (encoder.start, encoder.end))
        if spec.runs == "single" or encoder.start is None:
            return lay_out_run(
                pieces,
                encoder.plain_ids,
                end=encoder.end,
                pad=encoder.pad,
                filler=filler,
                min_tokens=spec.min_tokens,
                max_tokens=spec.max_tokens,
            )
        return lay_out_tokens(
            pieces,
            encoder.plain_ids,
            start=encoder.start,
            end=encoder.end,
            pad=encoder.pad,
            filler=filler,
            max_tokens=spec.max_tokens,
            chunks=chunks,
        )

    def _with_outputs(self, prompts: Sequence[PromptLayout], vectors: Mapping[str, Tensor]) -> Conditioning:
        """Prompts with vectors `(B, P, D)` in the place of what the encoders say: sentences are encoded once, whatever the vectors are."""
        encoded, empty = self._encode_plain(prompts), None
        if any(_any_weight([prompt[spec.name] for prompt in prompts]) for spec in self._specs):
            lengths = self._equal_lengths([prompts[0], self.tokenize([], chunks=1)])
            empty = self._encode_plain(lengths[1:]).context  # (1, T, E)
        context = insert_in_context(self.backbone, prompts, encoded.context, vectors, empty)
        return replace(encoded, streams={CONTEXT: context})

    def _said(self, spec: TextEncoderSpec, words: str, count: int) -> Tensor:
        """What an encoder says of the first tokens `(n, D)` of words, n of `count` that fit into a prompt."""
        layout = self._laid_out(spec, [PromptPiece(words)], 1)
        first = 0 if spec.runs == "single" else 1
        with torch.no_grad():
            hidden = self._encode_one(spec, [layout], None).hidden[0]  # (L, D)
        return hidden[first : min(first + count, len(hidden) - 1)].float()

    def _encode_plain(self, prompts: Sequence[PromptLayout]) -> Conditioning:
        """Prompts without learned vectors: each distinct one is encoded once and remembered."""
        keys = [_key_of(prompt) for prompt in prompts]
        missing = {key: prompt for key, prompt in zip(keys, prompts, strict=True) if key not in self._known}
        found = {key: self._known[key] for key in keys if key in self._known}
        if missing:
            # tensors born in inference mode could never be used in training
            with torch.inference_mode(False), torch.no_grad():
                encoded = self._encode_rows(list(missing.values()), None)
            for row, key in enumerate(missing):
                found[key] = encoded.rows(slice(row, row + 1))
        self._known.update(found)
        # the oldest encodings go first
        while len(self._known) > CACHED_PROMPTS:
            self._known.popitem(last=False)
        rows = [found[key] for key in keys]
        context = torch.cat([row.context for row in rows])  # (B, T, E)
        return Conditioning.of(
            context, **{name: torch.cat([row.extras[name] for row in rows]) for name in rows[0].extras}
        )

    def _encode_rows(self, prompts: Sequence[PromptLayout], vectors: Mapping[str, Tensor] | None) -> Conditioning:
        states = {
            spec.name: self._encode_one(
                spec, [prompt[spec.name] for prompt in prompts], None if vectors is None else vectors[spec.name]
            )
            for spec in self._specs
        }
        groups = [
            _beside(
                [(spec, states[spec.name].hidden if spec.name in states else None) for spec in group],
                self.backbone.context_width,
            )
            for group in self._groups()
        ]
        context = groups[0] if len(groups) == 1 else torch.cat(groups, dim=1)  # (B, T, E)
        pooled = [
            context.new_zeros(len(prompts), spec.width) if spec.name not in states else states[spec.name].pooled
            for spec in self.backbone.text_encoders
            if spec.pooled
        ]  # (B, D_pooled) each
        given = [state for state in pooled if state is not None]
        joined = torch.cat(given, dim=-1) if given else None
        return Conditioning.of(context, pooled=joined, mask=self._mask(prompts))

    def _groups(self) -> list[tuple[TextEncoderSpec, ...]]:
        """The groups of the context of which at least one encoder is there."""
        return [group for group in self.backbone.context_groups if any(spec in self._specs for spec in group)]

    def _mask(self, prompts: Sequence[PromptLayout]) -> Tensor | None:
        """`(B, T)` bool, False at padding that the network must not see; None where no encoder masks."""
        if not any(spec.mask for spec in self._specs):
            return None
        pieces = []
        for whole in self._groups():
            group = [spec for spec in whole if spec in self._specs]
            length = max(prompts[0][spec.name].ids.numel() for spec in group)
            ends = [[prompt[spec.name].tokens for spec in group if spec.mask] for prompt in prompts]
            shown = torch.tensor([max((length if n is None else n for n in own), default=length) for own in ends])
            pieces.append(torch.arange(length) < shown.unsqueeze(1))  # (B, T of the group)
        return _moved(torch.cat(pieces, dim=1), self.device)

    def _encode_one(
        self, spec: TextEncoderSpec, layouts: Sequence[EncoderLayout], vectors: Tensor | None
    ) -> ClipStates:
        encoder = self.encoders[spec.name]
        ids = _moved(torch.stack([layout.ids for layout in layouts]), encoder.device)  # (B, C, L)
        b, c, length = ids.shape
        embeddings = encoder.embed(ids.view(b, c * length))  # (B, C * L, D)
        if vectors is not None:
            slots = _moved(_stack_slots(layouts, vectors.shape[1]), encoder.device)  # (B, P)
            embeddings = insert_vectors(embeddings, slots, vectors.to(embeddings))
        # pooled states are read at each chunk's first end token
        ends = (ids == encoder.end).long().argmax(-1).view(b * c)  # (B * C,)
        states = encoder.run(embeddings.reshape(b * c, length, -1), spec, ends)
        hidden = states.hidden.reshape(b, c * length, -1)  # (B, C * L, D)
        if _any_weight(layouts):
            hidden = self._weighted(hidden, spec, layouts)
        # of several chunks the first gives the pooled vector, as in ComfyUI
        pooled = None if states.pooled is None else states.pooled.view(b, c, -1)[:, 0]  # (B, D_pooled)
        return ClipStates(hidden, pooled)

    def _weighted(self, hidden: Tensor, spec: TextEncoderSpec, layouts: Sequence[EncoderLayout]) -> Tensor:
        """Move `(B, C * L, D)` away from or towards the empty prompt's states by each position's weight, as ComfyUI."""
        empty_prompt = _longer(self._laid_out(spec, [], 1), layouts[0].ids.shape[1], self.encoders[spec.name].pad)
        with torch.no_grad():
            # the empty prompt's own weights are all 1, so this ends here
            empty = self._encode_one(spec, [empty_prompt], None).hidden  # (1, L, D)
        weights = torch.stack([layout.weights for layout in layouts]).flatten(1).unsqueeze(-1)  # (B, C * L, 1)
        weights = _moved(weights, hidden.device).to(hidden)
        empty = empty.repeat(1, hidden.shape[1] // empty.shape[1], 1)  # (1, C * L, D)
        return torch.where(weights == 1, hidden, torch.lerp(empty, hidden, weights))

    def _equal_lengths(self, prompts: list[PromptLayout]) -> list[PromptLayout]:
        """Fill shorter prompts of a batch: with empty chunks, or single runs with padding."""
        for spec in self._specs:
            own = [prompt[spec.name] for prompt in prompts]
            if len({layout.ids.shape for layout in own}) == 1:
                continue
            longest = max(layout.ids.shape[1] for layout in own)
            empty, most = self._laid_out(spec, [], 1), max(len(layout.ids) for layout in own)
            own = [_longer(_more_chunks(layout, empty, most), longest, self.encoders[spec.name].pad) for layout in own]
            prompts = [{**prompt, spec.name: layout} for prompt, layout in zip(prompts, own, strict=True)]
        return prompts


def use_insertion(text: TextSide, insertion: Insertion) -> None:
    """Let learned vectors enter a text side's prompts there from now on.

    Raises:
        BestiaryError: this text side takes vectors before its encoders alone.
    """
    if isinstance(text, PromptEncoding):
        text.insertion = insertion
    elif insertion != "input":
        raise BestiaryError(
            f'method.insertion = "{insertion}": this model takes learned vectors before its text encoders alone; choose "input"',
            option="method.insertion",
        )


def _more_chunks(layout: EncoderLayout, empty: EncoderLayout, chunks: int) -> EncoderLayout:
    """The layout with empty chunks `(1, L)` behind its own."""
    extra = chunks - len(layout.ids)
    if extra <= 0:
        return layout
    ids = torch.cat([layout.ids, *[empty.ids.to(layout.ids)] * extra])  # (C, L)
    weights = torch.cat([layout.weights, *[empty.weights.to(layout.weights)] * extra])  # (C, L)
    return replace(layout, ids=ids, weights=weights)


def _longer(layout: EncoderLayout, length: int, pad: int) -> EncoderLayout:
    """A single run with padding up to `length` positions."""
    extra = length - layout.ids.shape[1]
    if extra <= 0:
        return layout
    ids, weights = F.pad(layout.ids, (0, extra), value=pad), F.pad(layout.weights, (0, extra), value=1.0)
    return replace(layout, ids=ids, weights=weights)


def _beside(states: Sequence[tuple[TextEncoderSpec, Tensor | None]], width: int) -> Tensor:
    """States `(B, T, D)` of encoders side by side, shorter, narrower and missing ones padded with zeros: `(B, T, width)`."""
    held = [own for _, own in states if own is not None]
    longest = max(own.shape[1] for own in held)
    padded = [
        held[0].new_zeros(len(held[0]), longest, spec.width)
        if own is None
        else F.pad(own, (0, 0, 0, longest - own.shape[1]))
        for spec, own in states
    ]
    joined = padded[0] if len(padded) == 1 else torch.cat(padded, dim=-1)  # (B, T, sum of D)
    return joined if joined.shape[-1] == width else F.pad(joined, (0, width - joined.shape[-1]))


def _check_vectors(vectors: Mapping[str, Tensor] | None, batch: int, most: int, backbone: Backbone) -> None:
    """Every encoder needs `(B, P, D)` with room for the `most` places a prompt has."""
    if vectors is None:
        if most:
            raise BestiaryError(f"the prompt has places for {most} learned vectors, but none were given")
        return
    for spec in backbone.text_encoders:
        own = vectors.get(spec.name)
        if own is None:
            raise BestiaryError(
                f"learned vectors are given for {', '.join(vectors) or 'no text encoder'}, but {backbone.name} also reads {spec.name}: "
                "this dictionary was learned for another base model; load that model, or learn a dictionary for this one"
            )
        # rows and places first: a wrong width and a wrong number have messages of their own
        if own.ndim != 3 or own.shape[0] != batch or own.shape[1] < most:
            raise BestiaryError(
                f"{batch} prompts with up to {most} learned vectors need a tensor (B, P, D) = ({batch}, >= {most}, "
                f"{spec.width}), got {tuple(own.shape)}"
            )
        if own.shape[-1] != spec.width:
            raise BestiaryError(
                f"learned vectors are {own.shape[-1]} wide, but {spec.name} of {backbone.name} takes {spec.width}: "
                "this dictionary was learned for another base model; load that model, or learn a dictionary for this one"
            )


def _stack_slots(layouts: Sequence[EncoderLayout], count: int) -> Tensor:
    """Places `(B, count)`, -1 where a prompt has fewer vectors."""
    return torch.stack([F.pad(layout.slots, (0, count - len(layout.slots)), value=-1) for layout in layouts])


def _moved(values: Tensor, device: torch.device) -> Tensor:
    """Values of any shape on the device, without waiting for it."""
    if device.type == "cuda" and values.device.type == "cpu":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


def _any_weight(layouts: Sequence[EncoderLayout]) -> bool:
    """True unless all weights are known to be 1; weights on a device are not waited for."""
    return any(layout.weights.device.type != "cpu" or bool((layout.weights.numpy() != 1).any()) for layout in layouts)


def _key_of(prompt: PromptLayout) -> bytes:
    # by lists, which are the same numbers where memory is estimated with fake tensors
    lists = [numbers.tolist() for name in sorted(prompt) for numbers in (prompt[name].ids, prompt[name].weights)]
    return b"|".join(np.array(numbers).tobytes() for numbers in lists)
