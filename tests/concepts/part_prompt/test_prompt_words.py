"""Words among the pieces of CLIP, T5 and byte-level tokenizers: whole words, phrases, all mentions, nothing outside of the prompt."""

import pytest
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.part_prompt.prompt_words import (
    BREAK,
    PromptWords,
    TokenRun,
    missing_word,
    token_run,
    word_pattern,
    words_of_list,
)


def run(*pieces: str | bytes, start: int, spaced: bool = False) -> TokenRun:
    return token_run([piece if isinstance(piece, bytes) else piece.encode() for piece in pieces], start, spaced=spaced)


HALVES = " 鳥".encode()
CLIP = run(
    BREAK, "a ", "red ", "hat ", ", ", "black", "bird ", "t ", "- ", "shirt ", "1 ", "9 ", "hat ", start=0, spaced=True
)
T5 = run(" ", "a", " red", " ", "hat", ",", " black", "bird", " t", "-", "shirt", " 19", " hat", BREAK, start=77)
QWEN = run(*[BREAK] * 3, "a", " red", " hat", ",", " blackbird", HALVES[:2], HALVES[2:], " hat", BREAK, start=-3)


@pytest.mark.parametrize(
    ("tokens", "word", "places"),
    [
        (CLIP, "hat", (3, 12)),
        (CLIP, "Red  HAT", (2, 3)),
        (CLIP, "blackbird", (5, 6)),
        (CLIP, "t-shirt", (7, 8, 9)),
        (CLIP, "19", (10, 11)),
        (T5, "hat", (81, 89)),
        (T5, "red hat", (79, 80, 81)),
        (T5, "t-shirt", (85, 86, 87)),
        (T5, "19", (88,)),
        (QWEN, "a red hat", (0, 1, 2)),
        # both halves of a letter that was cut in two
        (QWEN, "鳥", (5, 6)),
    ],
)
def test_a_word_has_the_places_of_all_its_pieces(tokens, word, places):
    assert PromptWords((tokens,)).places(word) == places


@pytest.mark.parametrize("word", ["bird", "black", "ha", "redhat", "hat hat", "red bird"])
def test_parts_of_words_and_words_apart_are_not_found(word):
    assert PromptWords((CLIP, T5)).places(word) == ()


def test_only_clip_cannot_say_where_spaces_were():
    assert PromptWords((CLIP,)).places("shirt1") == (9, 10)
    assert PromptWords((T5,)).places("shirt1") == ()


def test_encoders_are_searched_together():
    assert PromptWords((CLIP, T5)).places("hat") == (3, 12, 81, 89)


def test_places_that_were_cut_off_are_left_out():
    assert PromptWords((run("red ", "hat ", "hat ", start=-1),)).places("hat") == (0, 1)


def test_a_break_is_never_crossed():
    assert PromptWords((run("red ", BREAK, "hat ", start=0),)).places("red hat") == ()


def test_a_list_keeps_each_word_once():
    assert words_of_list(" bird, red   hat;Bird\n\n,t-shirt") == ("bird", "red hat", "t-shirt")
    assert words_of_list(" ") == ()


def test_what_is_no_word_is_told():
    with pytest.raises(BestiaryError, match="is no word: type words of the prompt"):
        word_pattern("\0")


def test_a_missing_word_is_told_with_its_neighbours():
    known = PromptWords((CLIP,))
    assert "contains the word 'blckbird'; choose one of 'blackbird', 'red'" in missing_word("blckbird", [known])
    assert "encode the prompt with Part Prompt" in missing_word("hat", [])
