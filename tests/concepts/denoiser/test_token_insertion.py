"""Laying out tokens in chunks and inserting learned vectors."""

import pytest
import torch
from bestiary.concepts.denoiser.denoiser import PromptPiece
from bestiary.concepts.denoiser.token_insertion import insert_vectors, lay_out_tokens
from bestiary.concepts.errors import BestiaryError
from torch.utils._python_dispatch import TorchDispatchMode

START, END, FILLER = 98, 99, 50
VECTOR = PromptPiece(None)


def words(text: str) -> list[int]:
    """A tokenizer without files: one id per word, its length."""
    return [len(word) for word in text.split()]


def lay_out(pieces: list[PromptPiece], max_tokens: int = 8, chunks: int | None = None, pad: int = END):
    return lay_out_tokens(
        pieces, words, start=START, end=END, pad=pad, filler=FILLER, max_tokens=max_tokens, chunks=chunks
    )


def test_short_prompt_fits_one_chunk() -> None:
    ours = lay_out([PromptPiece("a bb"), VECTOR, PromptPiece("ccc", 1.3)])
    assert ours.ids.tolist() == [[START, 1, 2, FILLER, 3, END, END, END]]
    assert ours.slots.tolist() == [3]
    assert ours.weights[0].tolist() == pytest.approx([1, 1, 1, 1, 1.3, 1, 1, 1])


def test_pad_may_differ_from_the_end_token() -> None:
    assert lay_out([VECTOR], pad=0).ids.tolist() == [[START, FILLER, END, 0, 0, 0, 0, 0]]


def test_empty_prompt_is_one_chunk() -> None:
    ours = lay_out([])
    assert ours.ids.tolist() == [[START, END, END, END, END, END, END, END]]
    assert ours.slots.shape == (0,)


def test_repeated_vectors_keep_their_order() -> None:
    ours = lay_out([VECTOR, PromptPiece("a"), VECTOR, VECTOR])
    assert ours.slots.tolist() == [1, 3, 4]


def test_a_short_word_group_moves_whole_to_the_next_chunk() -> None:
    ours = lay_out([PromptPiece("a a a a"), PromptPiece("bb bb bb"), VECTOR])
    assert ours.ids.tolist() == [
        [START, 1, 1, 1, 1, END, END, END],
        [START, 2, 2, 2, FILLER, END, END, END],
    ]
    assert ours.slots.tolist() == [8 + 4]


def test_the_vectors_of_one_word_move_together_to_the_next_chunk() -> None:
    word = PromptPiece.word(3, 1.2)
    ours = lay_out([PromptPiece("a a a a"), *word, VECTOR, VECTOR, VECTOR])
    assert ours.slots.tolist() == [8 + 1, 8 + 2, 8 + 3, 8 + 4, 8 + 5, 8 + 6]
    # words of one vector each fill the chunk
    assert lay_out([PromptPiece("a a a a"), VECTOR, VECTOR, VECTOR]).slots.tolist() == [5, 6, 8 + 1]
    # a new word begins where nothing is joined
    assert lay_out([PromptPiece("a a a a"), VECTOR, *word]).slots.tolist() == [5, 8 + 1, 8 + 2, 8 + 3]


def test_a_long_group_is_split_over_chunks() -> None:
    ours = lay_out([PromptPiece("a " * 14)])
    assert ours.ids.shape == (3, 8)
    assert ours.ids[0].tolist() == [START, 1, 1, 1, 1, 1, 1, END]
    assert ours.ids[2].tolist() == [START, 1, 1, END, END, END, END, END]


@pytest.mark.parametrize("length", range(1, 40))
def test_no_token_is_lost_or_doubled(length: int) -> None:
    pieces = [PromptPiece(" ".join("x" * (1 + i % 7) for i in range(length))), VECTOR, PromptPiece("yy yy")]
    ours = lay_out(pieces, max_tokens=12)
    plain = [t for t in ours.ids.flatten().tolist() if t not in (START, END)]
    assert plain == [1 + i % 7 for i in range(length)] + [FILLER, 2, 2]


def test_fixed_chunks_cut_and_fill() -> None:
    pieces = [PromptPiece("a " * 6), VECTOR]
    cut = lay_out(pieces, chunks=1)
    assert cut.ids.shape == (1, 8)
    assert cut.slots.tolist() == [-1]
    filled = lay_out(pieces, chunks=3)
    assert filled.slots.tolist() == [9]
    assert filled.ids[2].tolist() == [START] + [END] * 7


def test_of_two_repeats_only_the_surviving_one_is_written() -> None:
    ours = lay_out([VECTOR, PromptPiece("a " * 5), VECTOR], chunks=1)
    assert ours.slots.tolist() == [1, -1]
    vectors = torch.tensor([[[1.0], [2.0]]])
    written = insert_vectors(torch.zeros(1, 8, 1), ours.slots[None], vectors)
    assert written[0, :, 0].tolist() == [0, 1, 0, 0, 0, 0, 0, 0]


def test_layout_errors_show_the_value() -> None:
    with pytest.raises(BestiaryError, match="max_tokens is 2"):
        lay_out([VECTOR], max_tokens=2)
    with pytest.raises(BestiaryError, match="filler id 99 is the start or end token"):
        lay_out_tokens([], words, start=START, end=END, pad=0, filler=END, max_tokens=8)


def test_insertion_equals_a_manual_overwrite_bit_by_bit() -> None:
    torch.manual_seed(0)
    embeddings, vectors = torch.randn(3, 7, 5), torch.randn(3, 2, 5)
    positions = torch.tensor([[1, 6], [-1, 2], [-1, -1]])
    theirs = embeddings.clone()
    for row in range(3):
        for column, place in enumerate(positions[row].tolist()):
            if place >= 0:
                theirs[row, place] = vectors[row, column]
    assert torch.equal(insert_vectors(embeddings, positions, vectors), theirs)


def test_gradients_reach_only_inserted_vectors() -> None:
    embeddings = torch.randn(1, 4, 3, requires_grad=True)
    vectors = torch.randn(1, 3, 3, requires_grad=True)
    insert_vectors(embeddings, torch.tensor([[2, -1, -1]]), vectors).sum().backward()
    assert vectors.grad[0].tolist() == [[1, 1, 1], [0, 0, 0], [0, 0, 0]]
    assert embeddings.grad[0, :, 0].tolist() == [1, 1, 0, 1]


def test_vectors_take_the_dtype_of_the_embeddings() -> None:
    ours = insert_vectors(torch.zeros(1, 3, 2, dtype=torch.bfloat16), torch.tensor([[0]]), torch.ones(1, 1, 2))
    assert ours.dtype == torch.bfloat16


def test_wrong_shapes_are_refused_with_both_shapes() -> None:
    with pytest.raises(BestiaryError, match=r"vectors \(1, 2, 4\) and positions \(1, 2\) do not fit .*\(1, 3, 5\)"):
        insert_vectors(torch.zeros(1, 3, 5), torch.zeros(1, 2, dtype=torch.long), torch.zeros(1, 2, 4))


class _ForbidHostReads(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket.__name__ not in {"_local_scalar_dense", "nonzero", "index"}, func
        return func(*args, **(kwargs or {}))


def test_insertion_never_waits_for_the_device() -> None:
    with _ForbidHostReads():
        insert_vectors(torch.zeros(2, 6, 4), torch.tensor([[1, -1], [2, 3]]), torch.ones(2, 2, 4))
