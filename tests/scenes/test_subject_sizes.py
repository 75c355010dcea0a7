"""Sizes from numbers, nouns and words."""

import math

import pytest
from bestiary.concepts.errors import BestiaryError
from bestiary.scenes.subject_sizes import METRES, SIZE_WORDS, find_noun, relative_sizes


def test_the_table_holds_everyday_nouns_in_metres() -> None:
    assert len(METRES) >= 200 and all(0.005 <= metres <= 50 for metres in METRES.values())
    assert METRES["mouse"] < METRES["cat"] < METRES["horse"] < METRES["house"]


@pytest.mark.parametrize(
    ("text", "noun"),
    [
        ("a <head:cardinal> bird", "bird"),
        ("a photo of a cat on a chair", "cat"),
        ("two mice", "mouse"),
        ("Wolves", "wolf"),
        ("butterflies", "butterfly"),
        ("foxes", "fox"),
        ("buses", "bus"),
        ("glasses", "glass"),
        ("a dog house", "house"),
        ("an orange cat", "cat"),
        ("polar bears", "polarbear"),
        ("a toy elephant", "toy"),
        ("cat2", "cat"),
        ("<cat-toy>", "toy"),
        ("<head:cardinal>", "cardinal"),
        ("a wug", None),
        ("", None),
    ],
)
def test_nouns_are_found_in_captions(text: str, noun: str | None) -> None:
    assert find_noun(text) == noun


def test_numbers_keep_their_ratios(make_subject) -> None:
    sizes, unknown = relative_sizes(
        [make_subject("lion", size=2), make_subject("cat", size=1.6), make_subject("x", size="0.2")]
    )
    assert sizes == pytest.approx((1, 0.8, 0.1)) and unknown == ()


def test_nouns_are_compressed_to_two_fifths(make_subject) -> None:
    """The formula: 0.4 + 0.6 * (log s - log min) / (log max - log min)."""
    nouns = ("mouse", "cat", "horse", "house")
    sizes, _ = relative_sizes([make_subject(noun) for noun in nouns])
    logs = [math.log(METRES[noun]) for noun in nouns]
    assert sizes == pytest.approx([0.4 + 0.6 * (log - logs[0]) / (logs[-1] - logs[0]) for log in logs])
    assert sizes[0] == pytest.approx(0.4) and sizes[-1] == 1


def test_things_of_about_one_size_are_not_pulled_apart(make_subject) -> None:
    assert relative_sizes([make_subject("cat"), make_subject("dog")]).sizes[0] == pytest.approx(0.64, abs=0.05)
    assert relative_sizes([make_subject("cat"), make_subject("cat 2")]).sizes == (1, 1)


def test_words_go_before_the_name_and_the_size_before_both(make_subject) -> None:
    mouse, cat, horse = (METRES[noun] for noun in ("mouse", "cat", "horse"))
    assert mouse < cat < horse
    tom = make_subject("horse", words="a cat")
    assert relative_sizes([tom, make_subject("mouse")]) == relative_sizes([make_subject("cat"), make_subject("mouse")])
    tom = make_subject("horse", words="a cat", size="a mouse")
    assert relative_sizes([tom, make_subject("cat")]) == relative_sizes([make_subject("mouse"), make_subject("cat")])


def test_size_words(make_subject) -> None:
    sizes = relative_sizes([make_subject(word, size=word) for word in SIZE_WORDS]).sizes
    assert list(sizes) == sorted(sizes) and (sizes[0], sizes[2], sizes[-1]) == (0.4, 0.7, 1)


def test_an_unknown_word_is_medium_and_said_once(make_subject) -> None:
    subjects = [
        make_subject("wug"),
        make_subject("b", words="wug"),
        make_subject("c", size="blicket"),
        make_subject("house"),
    ]
    sizes, unknown = relative_sizes(subjects)
    assert sizes == (0.7, 0.7, 0.7, 1) and unknown == ("wug", "blicket")


@pytest.mark.parametrize("size", ["0", "-1", "nan", "inf"])
def test_a_number_that_is_no_size(make_subject, size: str) -> None:
    with pytest.raises(BestiaryError, match=f"'cat': size '{size}' must be a number above 0"):
        relative_sizes([make_subject("cat", size=size)])
