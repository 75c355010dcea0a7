"""Learned words of several vectors at the end of a chunk: in the graph and in the trainer where ComfyUI puts an embedding."""

import copy
from pathlib import Path

import pytest
import torch
from bestiary.concepts.denoiser.denoiser import PromptPiece
from bestiary.concepts.denoiser.token_insertion import lay_out_tokens
from bestiary.concepts.files.concept_file import write_tensors
from bestiary.nodes.host.socket_types import SPANS_KEY

MOST = 150
WORD = "red"
"""A word of one token."""


def border_cases() -> list[tuple[int, int]]:
    """(vectors, words before them): all places of short words, and of every number of vectors those around the border."""
    short = [(count, before) for count in (*range(1, 10), 75, MOST) for before in (0, 1, *range(64, 77))]
    border = [(count, before % 150) for count in range(10, MOST) for before in (75 - count, 76 - count)]
    return short + border


@pytest.fixture
def host(sd15_model: object, tmp_path: Path) -> object:
    """A CLIP of ComfyUI with embeddings called v1 to v150 of so many vectors, row r filled with r + 1."""
    rows = torch.arange(1.0, MOST + 1).view(-1, 1).expand(-1, 32)  # (150, 32)
    for count in range(1, MOST + 1):
        write_tensors(tmp_path / f"v{count}.safetensors", {"clip_l": rows[:count].contiguous()})
    clip = sd15_model.clip.clone()
    clip.tokenizer = copy.copy(clip.tokenizer)
    clip.tokenizer.clip_l = copy.copy(clip.tokenizer.clip_l)
    clip.tokenizer.clip_l.embedding_directory = [str(tmp_path)]
    return clip


def layout_of(tokens: dict) -> list[list[object]]:
    """Ids, and the number of every vector as a text."""
    return [
        [f"v{int(token[0])}" if isinstance(token, torch.Tensor) else int(token) for token, *_ in chunk]
        for chunk in tokens["l"]
    ]


def prompt(before: int, word: str) -> str:
    return f"{f'{WORD} ' * before}{word} {WORD} {WORD} {WORD}"


def placed_by_the_trainer(host: object, count: int, before: int) -> list[object]:
    inner = host.tokenizer.clip_l
    pieces = [PromptPiece(f"{WORD} " * before), *PromptPiece.word(count), PromptPiece(f" {WORD} {WORD} {WORD}")]
    layout = lay_out_tokens(
        pieces,
        lambda text: inner.tokenizer(text)["input_ids"][1:-1],
        start=49406,
        end=49407,
        pad=49407,
        filler=1,
        max_tokens=77,
    )
    placed: list[object] = layout.ids.flatten().tolist()
    for number, place in enumerate(layout.slots.tolist(), start=1):
        placed[place] = f"v{number}"
    return placed


def test_words_of_several_vectors_are_placed_as_an_embedding_is_placed(host):
    from bestiary.nodes.part_prompt.part_encoding import LearnedMention, tokenize_mentions

    rows = torch.arange(1.0, MOST + 1).view(-1, 1).expand(-1, 32)
    for count, before in border_cases():
        theirs = layout_of(host.tokenize(prompt(before, f"embedding:v{count}")))
        text = prompt(before, "<x>")
        place = text.index("<")
        mention = LearnedMention(place, place + 3, "x", "x", rows[:count])
        assert layout_of(tokenize_mentions(host, text, [mention])) == theirs, (count, before)
        assert placed_by_the_trainer(host, count, before) == [token for chunk in theirs for token in chunk]


@pytest.mark.parametrize("weight", [1.0, 1.3])
def test_a_spectrum_of_seven_vectors_is_encoded_as_an_embedding_of_seven(host, weight):
    from bestiary.concepts.spectrum.staged_prompt import plain_staged_prompt
    from bestiary.nodes.spectrum.staged_encoding import StagedSide, encode_sides

    rows = torch.arange(1.0, 8.0).view(-1, 1).expand(-1, 32).contiguous()  # (7, 32)
    pieces = [PromptPiece(f"{WORD} " * 70), *PromptPiece.word(7, weight), PromptPiece(f" {WORD}")]
    ((ours, facts),) = encode_sides(host, [StagedSide(plain_staged_prompt(pieces, rows), (0.0, 1.0))])[0]
    word = "embedding:v7" if weight == 1 else f"( embedding:v7:{weight})"
    ((theirs, _),) = host.encode_from_tokens_scheduled(host.tokenize(f"{f'{WORD} ' * 70}{word} {WORD}"))
    assert ours.shape == (1, 154, 32)
    assert torch.equal(ours, theirs)
    # one word, told once: seven places in the second chunk
    assert [span.positions for span in facts[SPANS_KEY]] == [tuple(range(78, 85))]
