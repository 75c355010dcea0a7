"""Texts of SD3 and Flux against the pipelines of diffusers: the same encoders, the same context, and vectors where their word stands.

The encoders are stand-ins that write the id of every token into their states, so that a context shows where a token went.
"""

from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from bestiary.concepts.denoiser.backbone import Backbone, TextEncoderSpec
from bestiary.concepts.denoiser.denoiser import PromptPiece
from bestiary.concepts.denoiser.transformer_backbones import FLUX, SD3
from bestiary.trainer.learning.denoiser.prompt_encoding import ClipStates, PromptEncoding
from torch import Tensor, nn

START, END, PAD = 1, 2, 0
WORD = 100
"""Id of the word x in every encoder, one token each."""
TEXT = "a photo of x bird"


class Encoder(nn.Module):
    """An encoder of one kind, as both sides use it: CLIP counts words behind a start token, T5 letters."""

    def __init__(self, spec: TextEncoderSpec, length: int) -> None:
        super().__init__()
        self.spec, self.length, self.dtype, self.device = spec, length, torch.float32, torch.device("cpu")
        self.start, self.end, self.pad, self.unknown = (START if spec.runs == "chunked" else None), END, PAD, None

    def plain_ids(self, text: str) -> list[int]:
        units = text.split() if self.spec.runs == "chunked" else [letter for letter in text if letter != " "]
        return [WORD if unit == "x" else 3 + sum(map(ord, unit)) % 90 for unit in units]

    def embed(self, ids: Tensor) -> Tensor:
        return ids.unsqueeze(-1).float().expand(-1, -1, self.spec.width)

    def run(self, embeddings: Tensor, spec: TextEncoderSpec, end_places: Tensor) -> ClipStates:
        pooled = embeddings[torch.arange(len(embeddings)), end_places]  # (N, D)
        return ClipStates(embeddings, pooled if spec.pooled else None)

    def forward(self, ids: Tensor, output_hidden_states: bool = False) -> "States":
        hidden = self.embed(ids)
        return States(hidden, hidden[:, int((ids[0] == END).nonzero()[0])], clip=self.spec.runs == "chunked")


class Tokenizer:
    """What diffusers asks of a tokenizer: one row, padded to the length of the pipeline."""

    added_tokens_encoder: ClassVar[dict[str, int]] = {}

    def __init__(self, encoder: Encoder) -> None:
        self._encoder, self.model_max_length = encoder, encoder.length

    def __call__(self, prompts: list[str], **options: object) -> SimpleNamespace:
        start = [] if self._encoder.start is None else [self._encoder.start]
        ids = [*start, *self._encoder.plain_ids(prompts[0]), END]
        return SimpleNamespace(input_ids=torch.tensor([ids + [PAD] * (self._encoder.length - len(ids))]))

    def tokenize(self, prompt: str) -> list[str]:
        return prompt.split()


class States:
    """An output record of transformers: by number and by name."""

    def __init__(self, hidden: Tensor, pooled: Tensor, clip: bool) -> None:
        self.hidden_states, self.pooler_output = (hidden, hidden), pooled
        self._first = pooled if clip else hidden

    def __getitem__(self, number: int) -> Tensor:
        assert number == 0
        return self._first


def encoders(record: Backbone) -> dict[str, Encoder]:
    lengths = {spec.name: spec.min_tokens if spec.runs == "single" else 77 for spec in record.text_encoders}
    return {spec.name: Encoder(spec, lengths[spec.name]) for spec in record.text_encoders}


def theirs(record: Backbone, own: dict[str, Encoder]) -> tuple[Tensor, Tensor]:
    """Context `(1, T, E)` and pooled text of the pipeline of diffusers."""
    from diffusers import FluxPipeline, StableDiffusion3Pipeline

    kind = StableDiffusion3Pipeline if record is SD3 else FluxPipeline
    names = ["clip_l", "clip_g", "t5xxl"] if record is SD3 else ["clip_l", "t5xxl"]
    pipeline = object.__new__(kind)
    parts: dict[str, object] = {"tokenizer_max_length": 77}
    for number, name in enumerate(names, start=1):
        end = "" if number == 1 else f"_{number}"
        parts |= {f"tokenizer{end}": Tokenizer(own[name]), f"text_encoder{end}": own[name]}
    # past the registry of components, which wants files on disk
    vars(pipeline).update(parts)
    options = {"device": torch.device("cpu"), "max_sequence_length": own["t5xxl"].length, "prompt_2": None}
    if record is SD3:
        found = pipeline.encode_prompt(TEXT, prompt_3=None, do_classifier_free_guidance=False, **options)
        return found[0], found[2]
    return pipeline.encode_prompt(TEXT, **options)[:2]


@pytest.mark.parametrize("record", [SD3, FLUX], ids=["sd3", "flux"])
def test_a_plain_prompt_has_the_context_of_diffusers(record: Backbone) -> None:
    own = encoders(record)
    text = PromptEncoding(record, own)
    ours = text.encode([text.tokenize([PromptPiece(TEXT)])], None)
    context, pooled = theirs(record, own)
    assert torch.equal(ours.context, context) and torch.equal(ours.pooled, pooled)


@pytest.mark.parametrize(("record", "columns"), [(SD3, 2), (FLUX, 1)], ids=["sd3", "flux"])
def test_a_vector_stands_where_diffusers_puts_its_word(record: Backbone, columns: int) -> None:
    own = encoders(record)
    text = PromptEncoding(record, own)
    told = text.tokenize([PromptPiece("a photo of"), PromptPiece(None), PromptPiece("bird")])
    vectors = {spec.name: torch.full((1, 1, spec.width), float(WORD)) for spec in record.text_encoders}
    ours = text.encode([told], vectors)
    context, pooled = theirs(record, own)
    # the word's rows of the pipeline's context are the vector's columns, and nothing else differs
    assert ours.columns.shape == (1, 1, columns)
    assert ours.columns[0, 0].tolist() == (context[0, :, 0] == WORD).nonzero().flatten().tolist()
    assert torch.equal(ours.context, context) and torch.equal(ours.pooled, pooled)
