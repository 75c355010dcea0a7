"""Files of a discovery: streamed writing equals one write, edits appear whole or not at all, faults are told."""

import json
import os
from pathlib import Path

import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.part_map.foreground import CentroidForeground
from bestiary.concepts.part_map.part_codebook import PartCodebook
from bestiary.concepts.part_map.part_map import PartMaps
from bestiary.concepts.part_map.part_model import CentroidParts
from bestiary.trainer.learning.discovery.discovery_folder import (
    Discovery,
    editing,
    finish_edit,
    read_labels,
    read_lines_at,
    read_maps,
    read_report,
    read_skipped,
    write_lines,
    write_maps,
    write_report,
    write_skipped,
)
from safetensors.torch import load_file


def some_maps(count: int = 11, parts: int = 3) -> PartMaps:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, parts, (count, 5, 4), generator=generator, dtype=torch.uint8)
    return PartMaps(labels, torch.randint(-1, 300, (count, parts), generator=generator))


def folder_with(path: Path, names: list[str], count: int = 2) -> Path:
    """A discovery of one part in `count` pictures."""
    codebook = PartCodebook(
        {},
        3,
        (4, 4),
        ("thing", "background"),
        1,
        CentroidForeground(torch.eye(2, 3), 0),
        CentroidParts(torch.ones(1, 3), torch.zeros(1).long(), filled=False),
        (torch.eye(2, 3), torch.eye(2, 3)),
        kind_names=({}, {}),
    )
    codebook.save(path / "codebook.parts.safetensors")
    maps = PartMaps(torch.zeros(count, 4, 4, dtype=torch.uint8), torch.zeros(count, 2, dtype=torch.long))
    write_maps(path / "part_maps.safetensors", [maps], count, (4, 4), 2)
    write_lines(path / "images.txt", names)
    write_report(path, {"images_folder": str(path / "pictures"), "images_folder_relative": "pictures"})
    (path / "pictures").mkdir()
    for name in names:
        (path / "pictures" / name).touch()
    return path


@pytest.mark.parametrize("sizes", [[11], [1, 4, 6], [0, 10, 1, 0]])
def test_maps_written_in_pieces_are_an_ordinary_file(tmp_path: Path, sizes: list[int]) -> None:
    maps, starts = some_maps(), [sum(sizes[:number]) for number in range(len(sizes))]
    pieces = (
        PartMaps(maps.labels[start : start + size], maps.codes[start : start + size])
        for start, size in zip(starts, sizes, strict=True)
    )
    write_maps(tmp_path / "maps.safetensors", pieces, 11, (5, 4), 3)
    theirs = load_file(tmp_path / "maps.safetensors")
    assert theirs["labels"].dtype == torch.uint8 and theirs["codes"].dtype == torch.int16
    assert torch.equal(theirs["labels"], maps.labels) and torch.equal(theirs["codes"].long(), maps.codes)
    ours = read_maps(tmp_path / "maps.safetensors")
    assert torch.equal(ours.labels, maps.labels) and torch.equal(ours.codes, maps.codes)
    assert torch.equal(read_labels(tmp_path / "maps.safetensors"), maps.labels)


def test_a_wrong_number_of_pictures_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(BestiaryError) as fault:
        write_maps(tmp_path / "maps.safetensors", [some_maps()], 12, (5, 4), 3)
    assert str(fault.value) == f"{tmp_path / 'maps.safetensors'}: got 11 pictures for a file of 12"
    assert list(tmp_path.iterdir()) == []


def test_damaged_maps_are_reported(tmp_path: Path) -> None:
    (tmp_path / "maps").write_bytes(b"nothing")
    for read in (read_maps, read_labels):
        with pytest.raises(BestiaryError, match=r"maps is damaged \(.*\): run the discovery again with --restart"):
            read(tmp_path / "maps")


def test_lines_are_found_by_their_place(tmp_path: Path) -> None:
    write_lines(tmp_path / "lines.txt", ["a b", "ü", "", "d\u2028e"])
    assert read_lines_at(tmp_path / "lines.txt", [1, 3]) == {1: "ü", 3: "d\u2028e"}


def test_skipped_files_round_trip(tmp_path: Path) -> None:
    skipped = [("a, b.png", 'it is "damaged"'), ("ü.png", "the file is empty")]
    assert read_skipped(tmp_path) == []
    write_skipped(tmp_path / "skipped.csv", skipped)
    assert read_skipped(tmp_path) == skipped


def test_a_discovery_is_read_where_its_pictures_are(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, ["a b.png", "ü.png"])
    found = Discovery.load(folder)
    assert found.image_paths == [tmp_path / "pictures" / "a b.png", tmp_path / "pictures" / "ü.png"]
    assert found.codebook.part_names == ("thing", "background") and found.maps.codes.tolist() == [[0, 0], [0, 0]]


def test_a_discovery_moved_together_with_its_pictures_is_still_found(tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    folder_with(tmp_path / "first", ["a.png", "b.png"])
    os.rename(tmp_path / "first", tmp_path / "second")
    assert Discovery.load(tmp_path / "second").image_paths[0] == tmp_path / "second" / "pictures" / "a.png"


def test_pictures_that_are_gone(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, ["a.png", "b.png"])
    os.rename(tmp_path / "pictures", tmp_path / "moved")
    with pytest.raises(BestiaryError) as fault:
        Discovery.load(folder)
    assert str(fault.value) == (
        f"the pictures of {folder} were in {tmp_path / 'pictures'}, but a.png is missing there: give their current folder"
    )
    assert Discovery.load(folder, tmp_path / "moved").image_paths[1] == tmp_path / "moved" / "b.png"
    assert len(Discovery.load(folder, check_images=False).image_paths) == 2


def test_files_that_do_not_fit_each_other(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, ["a.png"])
    with pytest.raises(BestiaryError) as fault:
        Discovery.load(folder)
    assert (
        str(fault.value)
        == f"{folder}: images.txt has 1 lines, part_maps.safetensors 2 pictures; run the discovery again"
    )


def test_maps_and_codebook_of_two_discoveries(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, ["a.png", "b.png"])
    write_maps(folder / "part_maps.safetensors", [some_maps(2)], 2, (5, 4), 3)
    with pytest.raises(
        BestiaryError, match="part_maps.safetensors has 3 parts, codebook.parts.safetensors 2: the files are from two"
    ):
        Discovery.load(folder)


def test_a_list_of_pictures_that_is_no_text(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, ["a.png", "b.png"])
    (folder / "images.txt").write_bytes(b"a.png\n\xff\xfe.png\n")
    with pytest.raises(
        BestiaryError,
        match=r"images.txt is damaged \(it is not UTF-8 text: invalid start byte at byte 6\): run the discovery again",
    ):
        Discovery.load(folder)


def test_a_damaged_report(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, ["a.png", "b.png"])
    (folder / "report.json").write_text("{")
    with pytest.raises(BestiaryError, match=r"report.json is damaged \(.*\): run the discovery again with --restart"):
        Discovery.load(folder)


@pytest.mark.parametrize("content", ["{}", "[]", "5", '"images_folder"'])
def test_a_report_that_lacks_what_is_read(tmp_path: Path, content: str) -> None:
    folder = folder_with(tmp_path, ["a.png", "b.png"])
    (folder / "report.json").write_text(content)
    with pytest.raises(BestiaryError, match=r"report.json is damaged \(.*\): run the discovery again with --restart"):
        Discovery.load(folder)
    (folder / "report.json").write_text('{"images_folder": "x", "images": 2}')
    with pytest.raises(BestiaryError, match=r"is damaged \(it lacks typical, part_of\)"):
        read_report(folder, needs=("images", "typical", "part_of"))


def test_an_edit_replaces_all_its_files_together(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).write_text("old")
    with editing(tmp_path) as staging:
        for name in "ab":
            (staging / name).write_text("new")
        assert (tmp_path / "a").read_text() == "old"
    assert [(tmp_path / name).read_text() for name in "ab"] == ["new", "new"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_a_fault_while_editing_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with pytest.raises(KeyError), editing(tmp_path) as staging:
        (staging / "a").write_text("new")
        raise KeyError
    assert (tmp_path / "a").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("moves", [0, 1])
def test_an_edit_stopped_between_its_files_is_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moves: int
) -> None:
    for name in "ab":
        (tmp_path / name).write_text("old")
    replace, done = os.replace, 0

    def stop(source: Path, target: Path) -> None:
        nonlocal done
        if Path(target).name in "ab":
            if done == moves:
                raise KeyboardInterrupt
            done += 1
        replace(source, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", stop)
        with editing(tmp_path) as staging:
            for name in "ab":
                (staging / name).write_text("new")
    finish_edit(tmp_path)
    assert [(tmp_path / name).read_text() for name in "ab"] == ["new", "new"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_links_for_an_edit_move_nothing(tmp_path: Path) -> None:
    theirs, folder = tmp_path / "theirs", tmp_path / "discovery"
    theirs.mkdir()
    folder.mkdir()
    (theirs / "thesis.txt").write_text("mine")
    (folder / ".edit-ready").symlink_to(theirs)
    with pytest.raises(BestiaryError, match=r"\.edit-ready is a link or not a file, so no interrupted edit left it"):
        finish_edit(folder)
    assert (theirs / "thesis.txt").read_text() == "mine" and [path.name for path in folder.iterdir()] == [".edit-ready"]
    # neither is a link within a folder that looks like an edit
    (folder / ".edit-ready").unlink()
    (folder / ".edit-ready").mkdir()
    (folder / ".edit-ready" / "report.json").symlink_to(theirs / "thesis.txt")
    (folder / "report.json").write_text("old")
    with pytest.raises(BestiaryError, match=r"report\.json is a link or not a file"):
        finish_edit(folder)
    assert (folder / "report.json").read_text() == "old"


def test_an_edit_is_never_written_through_a_link(tmp_path: Path) -> None:
    theirs, folder = tmp_path / "theirs", tmp_path / "discovery"
    theirs.mkdir()
    folder.mkdir()
    (folder / f".edit.{os.getpid()}").symlink_to(theirs)
    with editing(folder) as staging:
        (staging / "a").write_text("new")
    assert not list(theirs.iterdir()) and (folder / "a").read_text() == "new"


def test_an_edit_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(BestiaryError) as fault, editing(tmp_path):
        pass
    assert str(fault.value) == (
        f"{tmp_path} cannot be written to (No space left on device): no file was changed; check its permissions"
    )


def test_the_report_is_readable_text(tmp_path: Path) -> None:
    write_report(tmp_path, {"name": "größe"})
    text = (tmp_path / "report.json").read_text(encoding="utf-8")
    assert "größe" in text and json.loads(text) == {"name": "größe"}
