"""Sentences encoded beforehand, so that the text encoder is gone before the network that reads them is loaded; and their cache.

DeepFloyd IF reads T5 v1.1 XXL, which is larger than its UNets: together they need twice the memory. A training says few sentences, known
before its first step. Letters: U sentences, B prompts, L positions, D width of the states.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ....concepts.denoiser.denoiser import Conditioning, EncoderLayout, PromptLayout, PromptPiece
from ....concepts.errors import BestiaryError
from ....concepts.files.concept_file import read_header, read_tensors, write_tensors
from ....concepts.name_search import shown_name
from .if_folder import NORMALISATION, TEXT_LENGTH, normalised

T5 = "t5xxl"
"""Name of the encoder, as in ComfyUI."""
_KIND = "encoded texts"


@dataclass(frozen=True)
class Sentence:
    """A sentence as the tokenizer cuts it."""

    text: str
    """Normalised."""
    ids: tuple[int, ...]
    """L ids: pieces, the end, padding."""
    pieces: int
    """Pieces of the whole sentence with its end, those that were cut off counted too."""
    words: tuple[tuple[str, int], ...] = ()
    """Every word, and in how many pieces it is cut."""
    unknown: tuple[str, ...] = ()
    """Words with letters for which there is no piece."""

    @property
    def mask(self) -> Tensor:
        """`(L,)` long: 1 at pieces and the end, 0 at padding."""
        return (torch.arange(len(self.ids)) < self.pieces).long()


@dataclass(frozen=True)
class TextSource:
    """What encodes, as far as encodings depend on it."""

    encoder: str
    """Identity of its weights."""
    tokenizer: str
    """Identity of its tokenizer."""
    dtype: str
    """In what it computes, such as float32."""

    def cache_name(self, texts: Sequence[str]) -> str:
        """Name of the file that keeps the encodings of texts, their normalisation and length included."""
        said = [sorted({normalised(text) for text in texts}), NORMALISATION, TEXT_LENGTH]
        key = json.dumps([self.encoder, self.tokenizer, self.dtype, *said])
        return f"embeds-{hashlib.sha256(key.encode()).hexdigest()[:16]}.safetensors"


class EncodedTexts:
    """A `TextSide` of sentences whose states are known; it says no others and has no learned vectors."""

    def __init__(self, sentences: Sequence[Sentence], states: Tensor) -> None:
        """`states` `(U, L, D)`, a row for every sentence."""
        self.sentences = {sentence.text: sentence for sentence in sentences}
        self._states = states
        self._rows = {sentence.ids: row for row, sentence in enumerate(sentences)}

    def to(self, device: torch.device) -> "EncodedTexts":
        """The same with its states `(U, L, D)` on a device."""
        return EncodedTexts(list(self.sentences.values()), self._states.to(device))

    def states_of(self, text: str) -> Tensor:
        """States `(L, D)` of a sentence."""
        return self._states[self._rows[self._sentence(text).ids]]

    def tokenize(self, pieces: Sequence[PromptPiece], chunks: int | None = None) -> PromptLayout:
        """The layout of one of the sentences: a single run of L positions, whatever `chunks` says."""
        if any(piece.text is None for piece in pieces):
            raise BestiaryError(
                "DeepFloyd IF is trained with plain words, not with learned vectors: set method.vectors = 0"
            )
        sentence = self._sentence("".join(piece.text or "" for piece in pieces))
        ids = torch.tensor([sentence.ids])  # (1, L)
        shown = min(sentence.pieces, len(sentence.ids))
        return {T5: EncoderLayout(ids, torch.zeros(0, dtype=torch.long), torch.ones(ids.shape), tokens=shown)}

    def encode(self, prompts: Sequence[PromptLayout], vectors: Mapping[str, Tensor] | None) -> Conditioning:
        """The states of B sentences as `(B, L, D)`; `vectors` must be None."""
        if vectors is not None:
            raise BestiaryError(
                "DeepFloyd IF is trained with plain words, not with learned vectors: set method.vectors = 0"
            )
        # from lists: where memory is estimated with fake tensors, operations on ids give no numbers
        rows = [self._rows[tuple(prompt[T5].ids.tolist()[0])] for prompt in prompts]
        return Conditioning.of(self._states[rows])

    def word_vectors(self, words: str) -> dict[str, Tensor]:
        """Raises BestiaryError instead of giving rows `(n, D)`: the table of the encoder is gone."""
        raise BestiaryError(f"the vectors of {shown_name(words)} cannot be read: the text encoder was released")

    def unknown_words(self, words: str) -> list[str]:
        """Those words of a sentence that hold letters for which there is no piece."""
        return list(self._sentence(words).unknown)

    def _sentence(self, text: str) -> Sentence:
        found = self.sentences.get(normalised(text))
        if found is None:
            raise BestiaryError(
                f"{shown_name(text)} was not encoded before the text encoder was released; known are: "
                f"{', '.join(map(shown_name, self.sentences))}"
            )
        return found


def save_texts(texts: EncodedTexts, source: TextSource, path: Path) -> None:
    """Keep encodings `(U, L, D)` in a file, with all that they depend on in its header."""
    sentences = list(texts.sentences.values())
    records = [
        {"text": one.text, "pieces": one.pieces, "words": one.words, "unknown": one.unknown} for one in sentences
    ]
    notes = {
        "kind": _KIND, "encoder": source.encoder, "tokenizer": source.tokenizer, "dtype": source.dtype,
        "text_norm": NORMALISATION, "length": TEXT_LENGTH, "sentences": records,
    }  # fmt: skip
    tensors = {
        "states": torch.stack([texts.states_of(one.text) for one in sentences]),
        "ids": torch.tensor([one.ids for one in sentences]),
    }
    write_tensors(path, tensors, {f"bestiary.{name}": json.dumps(value) for name, value in notes.items()})


def load_texts(path: Path, texts: Sequence[str]) -> EncodedTexts | None:
    """Encodings of `texts` that were kept; None where there are none, or the file is not what it should be."""
    if not path.is_file():
        return None
    try:
        records = read_header(path).concept.get("sentences")
        tensors = read_tensors(path)
    except BestiaryError:
        # a broken cache is made again
        return None
    if not isinstance(records, list) or not {"states", "ids"} <= tensors.keys():
        return None
    states, ids = tensors["states"], tensors["ids"]
    if len(records) != len(ids) or states.shape[:2] != ids.shape:
        return None
    sentences = [
        Sentence(r["text"], tuple(row), r["pieces"], tuple((w, n) for w, n in r["words"]), tuple(r["unknown"]))
        for r, row in zip(records, ids.tolist(), strict=True)
    ]
    known = {sentence.text for sentence in sentences}
    return EncodedTexts(sentences, states) if {normalised(text) for text in texts} <= known else None
