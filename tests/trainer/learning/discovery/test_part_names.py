"""Names of parts: proposed from their places, read from TOML, refused where a prompt could not hold them."""

from pathlib import Path

import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.part_map.foreground import CentroidForeground
from bestiary.concepts.part_map.part_codebook import PartCodebook
from bestiary.concepts.part_map.part_model import CentroidParts
from bestiary.trainer.learning.discovery.part_names import NamesFile, PartPlaces, apply_names, propose_names, read_names

BACKGROUND = 9


def thing(rows: list[str], shift: tuple[int, int] = (2, 3), flipped: bool = False) -> torch.Tensor:
    """Labels (1, 16, 16) from digits; everything else is background."""
    labels = torch.full((16, 16), BACKGROUND)
    for y, row in enumerate(rows):
        for x, digit in enumerate(reversed(row) if flipped else row):
            if digit != ".":
                labels[shift[0] + y, shift[1] + x] = int(digit)
    return labels.unsqueeze(0)


def names_of(*pictures: torch.Tensor, num_parts: int = 10) -> tuple[str, ...]:
    places = PartPlaces(num_parts, BACKGROUND)
    places.add(torch.cat(pictures))
    return propose_names(places)


CREATURE = ["..00..", "211113", "211113", "244443", "..55.."]


def test_places_become_words_wherever_the_thing_stands() -> None:
    for shift in ((0, 0), (10, 9)):
        names = names_of(thing(CREATURE, shift))
        assert (names[0], names[2], names[3], names[5], names[9]) == ("top", "left", "right", "bottom", "background")


def test_things_that_face_both_ways_have_no_sides() -> None:
    rows = ["00....", "111111", "....22"]
    assert names_of(thing(rows))[:3] == ("top left", "middle", "bottom right")
    both = names_of(thing(rows), thing(rows, flipped=True))
    assert both[:3] == ("top", "middle", "bottom")


def test_five_levels_are_told_apart_by_height_alone() -> None:
    rows = ["000", "111", "222", "333", "444"]
    assert names_of(thing(rows))[:5] == ("top", "upper", "middle", "lower", "bottom")
    wide_base = ["....00....", "....11....", "2222222222", "2222222222", "2222222222", "2222222222"]
    assert names_of(thing(wide_base))[:3] == ("top", "upper", "bottom")


def test_parts_that_lie_alike_are_told_apart() -> None:
    nested = names_of(thing(["0000", "0110", "0110", "0000"]))
    assert nested[:2] == ("large middle", "small middle")
    alike = names_of(thing(["0123", "0123", "3210", "3210"]))
    assert sorted(alike[:4]) == ["middle 1", "middle 2", "middle 3", "middle 4"]
    stacked = names_of(thing(["0000", "1111", "2222", ".33.", "....", "....", "....", "....", "4444", "4444"]))
    assert stacked[:2] == ("top 1", "top 2") and stacked[4] == "bottom"


def test_a_part_never_shown_still_has_a_name_of_its_own() -> None:
    names = names_of(thing(["0"]))
    assert len(set(names)) == 10


def test_means_over_pieces_equal_those_over_all() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 10, (12, 16, 16), generator=generator)
    whole, pieces = PartPlaces(10, BACKGROUND), PartPlaces(10, BACKGROUND)
    whole.add(labels)
    for start in range(0, 12, 5):
        pieces.add(labels[start : start + 5])
    for ours, theirs in zip(
        (pieces.mean(), pieces.spread(), pieces.area()), (whole.mean(), whole.spread(), whole.area()), strict=True
    ):
        assert torch.allclose(ours, theirs, atol=1e-12)


def test_hand_computed_place_and_area() -> None:
    places = PartPlaces(10, BACKGROUND)
    places.add(thing(["00", "11", "11", "11"], (0, 0)))
    assert places.mean()[0].tolist() == pytest.approx([-0.75, 0.0])
    assert places.mean()[1].tolist() == pytest.approx([0.25, 0.0])
    assert places.area()[:2].tolist() == pytest.approx([2 / 256, 6 / 256])


def test_names_file(tmp_path: Path) -> None:
    path = tmp_path / "names.toml"
    path.write_text('[parts]\n0 = "head"\nbottom = "legs"\n[kinds.head]\n3 = "cardinal"\n', encoding="utf-8")
    names = read_names(path)
    assert names.parts == {"0": "head", "bottom": "legs"} and names.kinds == {"head": {"3": "cardinal"}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[parts\n", "is not TOML: "),
        ('[part]\n0 = "head"\n', "part = {'0': 'head'}: extra inputs are not permitted; write [parts] 0 = "),
        ("[parts]\n0 = 3\n", "parts.0 = 3: input should be a valid string; write [parts] 0 = "),
        ("[kinds]\nhead = 3\n", "kinds.head = 3: input should be a valid dictionary; write [parts] 0 = "),
    ],
)
def test_faults_of_a_names_file(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "names.toml"
    path.write_text(text)
    with pytest.raises(BestiaryError) as fault:
        read_names(path)
    assert str(fault.value).startswith(f"names file {path}") and message in str(fault.value)


def test_a_names_file_of_a_windows_editor_reads_alike(tmp_path: Path) -> None:
    text = b'[parts]\r\n1 = "head"\r\n'
    for name, content in (("plain.toml", text), ("mark.toml", b"\xef\xbb\xbf" + text)):
        (tmp_path / name).write_bytes(content)
    assert read_names(tmp_path / "mark.toml") == read_names(tmp_path / "plain.toml") != NamesFile()


def test_a_missing_names_file(tmp_path: Path) -> None:
    with pytest.raises(BestiaryError) as fault:
        read_names(tmp_path / "none.toml")
    assert str(fault.value) == f"could not read {str(tmp_path / 'none.toml')!r}: No such file or directory"


def codebook() -> PartCodebook:
    """Two parts and the background, of three kinds each."""
    parts = CentroidParts(torch.eye(2, 4), torch.arange(2), filled=False)
    foreground = CentroidForeground(torch.eye(2, 4), 0)
    fine = tuple(torch.randn(3, 4, generator=torch.Generator().manual_seed(part)) for part in range(3))
    names = ("top", "bottom", "background")
    return PartCodebook({}, 4, (4, 4), names, 2, foreground, parts, fine, kind_names=({}, {}, {}))


def test_names_of_a_file_are_applied_under_numbers_old_and_new_names() -> None:
    ours = apply_names(
        codebook(),
        NamesFile(parts={"0": "head", "bottom": "legs"}, kinds={"head": {"2": "cardinal"}, "1": {"0": "jay"}}),
    )
    assert ours.part_names == ("head", "legs", "background")
    assert ours.kind_names == ({2: "cardinal"}, {0: "jay"}, {})


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (NamesFile(parts={"7": "head"}), "unknown part '7'"),
        (NamesFile(parts={"0": "bottom"}), "two parts would be called 'bottom': choose different names"),
        (NamesFile(parts={"0": "<head>"}), "'<head>' cannot be a name in a prompt"),
        (NamesFile(kinds={"top": {"9": "jay"}}), "unknown kind '9' of part 'top'"),
        (NamesFile(kinds={"top": {"0": "jay", "1": "jay"}}), "two kinds of part 'top' would be called 'jay'"),
    ],
)
def test_names_that_do_not_fit_are_refused(names: NamesFile, message: str) -> None:
    with pytest.raises(BestiaryError) as fault:
        apply_names(codebook(), names)
    assert message in str(fault.value)
