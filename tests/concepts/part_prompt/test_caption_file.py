"""Caption files and image lists: both published files parse, everything round-trips, faults name line and word."""

import os
from pathlib import Path

import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.part_prompt.caption_file import (
    ListedImage,
    format_caption,
    format_captions,
    format_image_list,
    parse_captions,
    parse_image_list,
)

SHARED = Path(os.environ.get("BESTIARY_SHARED", Path(__file__).parents[3] / "shared")) / "data" / "partcraft_labels"
needs_published_files = pytest.mark.skipif(not SHARED.is_dir(), reason="the published caption files are not here")

CUB_IMAGES = [5994, 5990, 5994, 0, 5994, 0, 5867, 5994]
CUB_KINDS = [256, 251, 255, 0, 247, 0, 237, 256]
DOGS_KINDS = [254, 256, 255, 256, 243, 251, 253, 253]


def test_absent_parts_are_left_out_and_come_back() -> None:
    codes = torch.tensor([[3, -1, 0], [-1, -1, -1], [0, 255, -1]])
    text = format_captions(codes)
    assert text == "0:3 2:0\n\n0:0 1:255\n"
    assert torch.equal(parse_captions(text, 3), codes)


def test_number_of_parts_follows_the_largest_named() -> None:
    assert parse_captions("0:1\n4:2 1:7\n").tolist() == [[1, -1, -1, -1, -1], [-1, 7, -1, -1, 2]]
    assert parse_captions("").shape == (0, 0)


def test_line_endings_and_spaces_do_not_matter() -> None:
    assert parse_captions("0:1  1:2 \r\n1:5\r\n").tolist() == [[1, 2], [-1, 5]]


def test_one_line_without_its_end() -> None:
    assert format_caption([65, 185, -1, 101]) == "0:65 1:185 3:101"


def test_many_random_codes_round_trip() -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(-1, 256, (300, 8), generator=generator)
    assert torch.equal(parse_captions(format_captions(codes), 8), codes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0:1\n0:1 head:3", "caption line 2: 'head:3' is not of the form part:kind, for example 0:65"),
        ("0:1 0:2", "caption line 1: part 0 occurs twice, as 1 and as 2"),
        ("0:1\n9:2", "caption line 2: part 9 is too large, choose 0 to 7"),
        ("0:-1", "caption line 1: '0:-1' is not of the form part:kind, for example 0:65"),
        ("0", "caption line 1: '0' is not of the form part:kind, for example 0:65"),
    ],
)
def test_faults_of_a_caption_name_line_and_word(text: str, message: str) -> None:
    with pytest.raises(BestiaryError) as fault:
        parse_captions(text, 8)
    assert str(fault.value) == message


def test_paths_with_spaces_and_numbers() -> None:
    text = "200.Common Yellowthroat/bird 7.jpg 199\nimg 1.jpg 5\na b/c.d 2/e.png 0\nplain.webp\n\nno_suffix 12\n"
    assert parse_image_list(text) == [
        ListedImage("200.Common Yellowthroat/bird 7.jpg", 199),
        ListedImage("img 1.jpg", 5),
        ListedImage("a b/c.d 2/e.png", 0),
        ListedImage("plain.webp", None),
        ListedImage("no_suffix", 12),
    ]


def test_image_list_round_trips() -> None:
    images = [ListedImage("größe/ein Vogel.jpg", 3), ListedImage("b.png", None)]
    assert parse_image_list(format_image_list(images)) == images


def test_one_hot_rows_become_their_class() -> None:
    assert parse_image_list("a.jpg 0 0 1 0") == [ListedImage("a.jpg", 2)]


def test_rows_that_are_not_one_hot_are_refused() -> None:
    with pytest.raises(BestiaryError) as fault:
        parse_image_list("ok.jpg 1\nmy bird.jpg 0 1 1")
    assert str(fault.value) == (
        "image list line 2: 3 labels follow 'my bird.jpg' and they are not one-hot; "
        "give one class number, or a row with a single 1"
    )


@needs_published_files
def test_published_birds_have_the_counted_parts_and_kinds() -> None:
    text = (SHARED / "cub200_2011_captions_m8_k256.txt").read_text()
    codes = parse_captions(text)
    assert codes.shape == (5994, 8)
    assert (codes >= 0).sum(0).tolist() == CUB_IMAGES
    assert [len(codes[codes[:, part] >= 0, part].unique()) for part in range(8)] == CUB_KINDS
    assert (codes >= 0).sum(1).bincount(minlength=7).tolist() == [0, 0, 0, 0, 2, 127, 5865]
    assert format_captions(codes).split() == text.split()
    assert torch.equal(parse_captions(format_captions(codes), 8), codes)


@needs_published_files
def test_published_dogs_have_the_counted_parts_and_kinds() -> None:
    text = (SHARED / "dogs_captions_m8_k256.txt").read_text()
    codes = parse_captions(text)
    assert codes.shape == (12000, 8)
    images = (codes >= 0).sum(0).tolist()
    assert (images[4], images[6]) == (11990, 11998)
    assert [len(codes[codes[:, part] >= 0, part].unique()) for part in range(8)] == DOGS_KINDS
    assert format_captions(codes).split() == text.split()


def test_the_mark_of_windows_editors_belongs_to_no_line() -> None:
    assert torch.equal(parse_captions("\ufeff0:1 1:2\r\n0:3\r\n"), parse_captions("0:1 1:2\n0:3\n"))
    assert parse_image_list("\ufeffa b/c.jpg 4\r\n") == parse_image_list("a b/c.jpg 4\n")
