"""Prompts with learned vectors -> what the denoiser is told, whatever library holds the text encoders.

Letters: B prompts, C chunks, L positions of a chunk, N chunks of all prompts, P learned vectors of a prompt, D width of an
encoder, E width of the conditioning.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ....concepts.denoiser.backbone import Backbone, TextEncoderSpec
from ....concepts.denoiser.denoiser import PromptPiece, PromptTokens, TextConditioning
from ....concepts.denoiser.token_insertion import insert_vectors, lay_out_tokens
from ....concepts.errors import BestiaryError

CACHED_PROMPTS = 64
"""Encodings of prompts without learned vectors that are kept."""


@dataclass(frozen=True)
class ClipStates:
    """What one text encoder says about N chunks."""

    hidden: Tensor
    """`(N, L, D)`: the hidden states that condition the denoiser."""
    pooled: Tensor | None
    """`(N, D_pooled)`: the projected state of the end token, for encoders that give one."""


class TextEncoder(Protocol):
    """One text encoder with its tokenizer."""

    start: int
    """Id of the start token."""
    end: int
    """Id of the end token."""
    pad: int
    """Id that fills a chunk."""
    unknown: int | None
    """Id that stands for every word of which the tokenizer knows no piece; None where it knows all bytes."""
    device: torch.device

    def plain_ids(self, text: str) -> list[int]:
        """Token ids of a text without start and end token."""

    def embed(self, ids: Tensor) -> Tensor:
        """Token embeddings `(B, L, D)` of ids `(B, L)`, positions not yet added; no gradient reaches the table."""

    def run(self, embeddings: Tensor, spec: TextEncoderSpec, end_places: Tensor) -> ClipStates:
        """The encoder from token embeddings `(N, L, D)` on; pooled states are read at `end_places` `(N,)`."""


class PromptEncoding:
    """The frozen text encoders of one backbone, as the denoiser protocol wants them."""

    def __init__(self, backbone: Backbone, encoders: Mapping[str, TextEncoder]) -> None:
        """`encoders` by the names of the backbone's text encoders."""
        self.backbone = backbone
        self.encoders = dict(encoders)
        self._known: OrderedDict[bytes, tuple[Tensor, Tensor | None]] = OrderedDict()

    @property
    def device(self) -> torch.device:
        """Where the encoders run."""
        return next(iter(self.encoders.values())).device

    def tokenize(self, pieces: Sequence[PromptPiece], chunks: int | None = None) -> PromptTokens:
        """Lay out a prompt for every encoder, ids `(C, L)` each; `chunks` as in `Denoiser.tokenize`."""
        ids: dict[str, Tensor] = {}
        places: list[tuple[Tensor, Tensor]] = []
        # every encoder has its own tokenizer and special ids, but the places of vectors must agree
        for spec in self.backbone.text_encoders:
            encoder = self.encoders[spec.name]
            layout = lay_out_tokens(
                pieces,
                encoder.plain_ids,
                start=encoder.start,
                end=encoder.end,
                pad=encoder.pad,
                filler=next(i for i in range(3) if i not in (encoder.start, encoder.end)),
                max_tokens=spec.max_tokens,
                chunks=chunks,
            )
            ids[spec.name] = layout.ids
            places.append((layout.positions, layout.weights))
        if any(not torch.equal(positions, places[0][0]) for positions, _ in places):
            raise BestiaryError(
                "the text encoders of this model cut the same prompt into different tokens: "
                "their tokenizers do not belong together; use the tokenizers the model was published with"
            )
        return PromptTokens(ids, *places[0])

    def word_vectors(self, words: str) -> Tensor:
        """Embedding rows `(n, D)` of plain words, all encoders side by side, without start and end tokens.

        Raises:
            BestiaryError: the words give no token at all.
        """
        rows = []
        for spec in self.backbone.text_encoders:
            encoder = self.encoders[spec.name]
            ids = encoder.plain_ids(words)
            if not ids:
                raise BestiaryError(f"{words!r} holds no word the tokenizer knows: give a plain word such as 'head'")
            # the same words through every encoder, which must cut them alike
            places = torch.tensor([ids], device=encoder.device)  # (1, n)
            rows.append(encoder.embed(places)[0].detach().float())  # (n, D of the encoder)
        if len({len(row) for row in rows}) > 1:
            raise BestiaryError(
                f"the text encoders cut {words!r} into different numbers of tokens: choose another word"
            )
        return torch.cat(rows, dim=-1)  # (n, D)

    def unknown_words(self, words: str) -> list[str]:
        """Those of several words that an encoder's tokenizer does not know."""
        encoders = self.encoders.values()
        return [
            word
            for word in words.split()
            if any(encoder.unknown is not None and encoder.unknown in encoder.plain_ids(word) for encoder in encoders)
        ]

    def encode(self, prompts: Sequence[PromptTokens], vectors: Tensor | None) -> TextConditioning:
        """Encode B prompts, learned vectors `(B, P, D)` in their places; gradients reach the vectors only.

        Raises:
            BestiaryError: fewer vectors than places, or vectors of another backbone's width.
        """
        prompts = self._equal_chunks(list(prompts))
        most = max((len(prompt.positions) for prompt in prompts), default=0)
        _check_vectors(vectors, len(prompts), most, self.backbone)
        # prompts without vectors come back again and again: they are remembered
        if vectors is None or most == 0:
            context, pooled = self._encode_plain(prompts)
        else:
            context, pooled = self._encode_rows(prompts, vectors)
        positions = _stack_positions(prompts, most if vectors is None else vectors.shape[1])
        return TextConditioning(context, pooled, _moved(positions, self.device))

    def _encode_plain(self, prompts: Sequence[PromptTokens]) -> tuple[Tensor, Tensor | None]:
        """Prompts without learned vectors: each distinct one is encoded once and remembered."""
        keys = [_key_of(prompt) for prompt in prompts]
        missing = {key: prompt for key, prompt in zip(keys, prompts, strict=True) if key not in self._known}
        found = {key: self._known[key] for key in keys if key in self._known}
        if missing:
            # tensors born in inference mode could never be used in training
            with torch.inference_mode(False), torch.no_grad():
                context, pooled = self._encode_rows(list(missing.values()), None)
            for row, key in enumerate(missing):
                found[key] = (context[row], None if pooled is None else pooled[row])
        self._known.update(found)
        # the oldest encodings go first
        while len(self._known) > CACHED_PROMPTS:
            self._known.popitem(last=False)
        context = torch.stack([found[key][0] for key in keys])  # (B, C * L, E)
        if found[keys[0]][1] is None:
            return context, None
        return context, torch.stack([found[key][1] for key in keys])  # (B, E_pooled)

    def _encode_rows(self, prompts: Sequence[PromptTokens], vectors: Tensor | None) -> tuple[Tensor, Tensor | None]:
        split = None if vectors is None else self.backbone.split_vector(vectors)  # encoder -> (B, P, D)
        contexts, pooled = [], None
        for spec in self.backbone.text_encoders:
            states = self._encode_one(spec, prompts, None if split is None else split[spec.name])
            contexts.append(states.hidden)  # (B, C * L, D)
            pooled = states.pooled if spec.pooled else pooled
        return torch.cat(contexts, dim=-1), pooled  # (B, C * L, E) and (B, E_pooled)

    def _encode_one(self, spec: TextEncoderSpec, prompts: Sequence[PromptTokens], vectors: Tensor | None) -> ClipStates:
        encoder = self.encoders[spec.name]
        ids = _moved(torch.stack([prompt.ids[spec.name] for prompt in prompts]), encoder.device)  # (B, C, L)
        b, c, length = ids.shape
        embeddings = encoder.embed(ids.view(b, c * length))  # (B, C * L, D)
        if vectors is not None:
            positions = _moved(_stack_positions(prompts, vectors.shape[1]), encoder.device)  # (B, P)
            embeddings = insert_vectors(embeddings, positions, vectors.to(embeddings))
        # pooled states are read at each chunk's first end token
        ends = (ids == encoder.end).long().argmax(-1).view(b * c)  # (B * C,)
        states = encoder.run(embeddings.reshape(b * c, length, -1), spec, ends)
        hidden = states.hidden.reshape(b, c * length, -1)  # (B, C * L, D)
        if _any_weight(prompts):
            hidden = self._weighted(hidden, spec, prompts)
        # of several chunks the first gives the pooled vector, as in ComfyUI
        pooled = None if states.pooled is None else states.pooled.view(b, c, -1)[:, 0]  # (B, D_pooled)
        return ClipStates(hidden, pooled)

    def _weighted(self, hidden: Tensor, spec: TextEncoderSpec, prompts: Sequence[PromptTokens]) -> Tensor:
        """Move `(B, C * L, D)` away from or towards the empty prompt's states by each position's weight, as ComfyUI."""
        empty_prompt = self.tokenize([], chunks=1)
        with torch.no_grad():
            # the empty prompt's own weights are all 1, so this ends here
            plain = PromptTokens(empty_prompt.ids, empty_prompt.positions, torch.ones_like(empty_prompt.weights))
            empty = self._encode_one(spec, [plain], None).hidden  # (1, L, D)
        weights = torch.stack([prompt.weights for prompt in prompts]).flatten(1).unsqueeze(-1)  # (B, C * L, 1)
        weights = _moved(weights, hidden.device).to(hidden)
        empty = empty.repeat(1, hidden.shape[1] // empty.shape[1], 1)  # (1, C * L, D)
        return torch.where(weights == 1, hidden, torch.lerp(empty, hidden, weights))

    def _equal_chunks(self, prompts: list[PromptTokens]) -> list[PromptTokens]:
        """Fill shorter prompts of a batch with empty chunks."""
        most = max(len(prompt.weights) for prompt in prompts)
        if all(len(prompt.weights) == most for prompt in prompts):
            return prompts
        empty = self.tokenize([], chunks=1)
        filled = []
        for prompt in prompts:
            # empty chunks behind the prompt's own, for every encoder
            extra = most - len(prompt.weights)
            ids = {name: torch.cat([own, *[empty.ids[name].to(own)] * extra]) for name, own in prompt.ids.items()}
            weights = torch.cat([prompt.weights, *[empty.weights.to(prompt.weights)] * extra])  # (C, L)
            filled.append(PromptTokens(ids, prompt.positions, weights))
        return filled


def _check_vectors(vectors: Tensor | None, batch: int, most: int, backbone: Backbone) -> None:
    """Vectors must be `(B, P, D)` with room for the `most` places a prompt has."""
    if vectors is None:
        if most:
            raise BestiaryError(f"the prompt has places for {most} learned vectors, but none were given")
        return
    # rows and places first: a wrong width is told apart from a wrong number
    if vectors.ndim != 3 or vectors.shape[0] != batch or vectors.shape[1] < most:
        raise BestiaryError(
            f"{batch} prompts with up to {most} learned vectors need a tensor (B, P, D) = ({batch}, >= {most}, "
            f"{backbone.vector_width}), got {tuple(vectors.shape)}"
        )
    if vectors.shape[-1] != backbone.vector_width:
        raise BestiaryError(
            f"learned vectors are {vectors.shape[-1]} wide, but {backbone.name} takes {backbone.vector_width}: "
            "this dictionary was learned for another base model; load that model, or learn a dictionary for this one"
        )


def _stack_positions(prompts: Sequence[PromptTokens], width: int) -> Tensor:
    """Places `(B, P)`, -1 where a prompt has fewer vectors."""
    return torch.stack([F.pad(prompt.positions, (0, width - len(prompt.positions)), value=-1) for prompt in prompts])


def _moved(values: Tensor, device: torch.device) -> Tensor:
    """Values of any shape on the device, without waiting for it."""
    if device.type == "cuda" and values.device.type == "cpu":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


def _any_weight(prompts: Sequence[PromptTokens]) -> bool:
    """True unless all weights are known to be 1; weights on a device are not waited for."""
    return any(prompt.weights.device.type != "cpu" or bool((prompt.weights.numpy() != 1).any()) for prompt in prompts)


def _key_of(prompt: PromptTokens) -> bytes:
    arrays = [*(prompt.ids[name] for name in sorted(prompt.ids)), prompt.weights]
    return b"|".join(array.cpu().contiguous().numpy().tobytes() for array in arrays)
