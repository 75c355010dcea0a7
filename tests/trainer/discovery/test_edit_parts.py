"""Editing a discovery: codebook, maps, captions, report and page change together and keep fitting each other."""

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.part_map import foreground
from bestiary.concepts.part_map.part_map import ABSENT
from bestiary.concepts.part_prompt.caption_file import parse_captions
from bestiary.trainer.discovery.discover import DiscoverSettings, discover
from bestiary.trainer.discovery.edit_parts import drop_parts, merge_parts, rename_part
from bestiary.trainer.discovery.state import DiscoveryState
from bestiary.trainer.learning.discovery.discovery_folder import Discovery
from PIL import Image, ImageDraw

PICTURES = 20


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A discovery of three parts with three kinds each, called part0, part1, part2."""
    root = tmp_path_factory.mktemp("edits")
    (root / "pictures").mkdir()
    rng = np.random.default_rng(0)
    for number in range(PICTURES):
        image = Image.new("RGB", (96, 96), ("#88bb66", "#99aadd")[number % 2])
        pen = ImageDraw.Draw(image)
        x, y = rng.integers(40, 57, 2)
        for top, color in ((-30, "red"), (-10, "navy"), (10, "yellow")):
            pen.ellipse((x - 20, y + top, x + 20, y + top + 20), fill=color if number % 3 else "white")
        image.save(root / "pictures" / f"{number:02d}.png")
    names = root / "names.toml"
    names.write_text("[parts]\n" + "".join(f'{part} = "part{part}"\n' for part in range(3)))
    settings = {"source": "descriptor", "num_parts": 3, "kinds": 3, "names": names}
    patch = pytest.MonkeyPatch()
    patch.setattr(foreground, "_TRAINING_STEPS", 60)
    discover(DiscoverSettings(images=root / "pictures", out=root / "parts", **settings))
    patch.undo()
    return root / "parts"


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    shutil.copytree(original, tmp_path / "parts")
    return tmp_path / "parts"


def assert_consistent(folder: Path) -> Discovery:
    """Every file tells the same."""
    found = Discovery.load(folder)
    codes, labels, parts = found.maps.codes, found.maps.labels, found.codebook.num_parts
    assert codes.shape == (PICTURES, parts) and int(labels.max()) < parts
    assert torch.equal(parse_captions((folder / "captions.txt").read_text(), parts), codes)
    shown = torch.stack([(labels == part).flatten(1).any(1) for part in range(parts)], dim=1)
    assert not (shown & (codes == ABSENT))[:, : parts - 1].any()
    page = (folder / "index.html").read_text(encoding="utf-8")
    for part, entry in enumerate(found.report["parts"]):
        assert entry["name"] == found.codebook.part_names[part] and f">{entry['name']}<" in page
        kinds = codes[codes[:, part] >= 0, part]
        assert {int(kind): size for kind, size in entry["kinds"].items()} == {
            kind: int((kinds == kind).sum()) for kind in set(kinds.tolist())
        }
        assert not len(kinds) or int(kinds.max()) < found.codebook.num_kinds[part]
        for kind in set(kinds.tolist()):
            assert set(codes[found.report["typical"][f"{part}:{kind}"], part].tolist()) == {kind}
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    return found


def test_renaming_changes_names_alone(folder: Path, original: Path) -> None:
    rename_part(folder, "part0", "head")
    rename_part(folder, "head:1", "cardinal red")
    rename_part(folder, "2", "legs")
    found, before = assert_consistent(folder), Discovery.load(original)
    assert found.codebook.part_names == ("head", "part1", "legs", "background")
    assert found.codebook.kind_names[0] == {1: "cardinal red"}
    assert "cardinal red" in (folder / "index.html").read_text(encoding="utf-8")
    assert torch.equal(found.maps.labels, before.maps.labels) and torch.equal(found.maps.codes, before.maps.codes)


def test_joined_parts_cover_what_they_covered_and_get_kinds_of_their_own(folder: Path, original: Path) -> None:
    merge_parts(folder, ["part0", "part2"])
    found, before = assert_consistent(folder), Discovery.load(original)
    assert found.codebook.part_names == ("part0", "part1", "background")
    theirs = torch.tensor([0, 1, 0, 2], dtype=torch.uint8)[before.maps.labels.long()]
    assert torch.equal(found.maps.labels, theirs)
    assert found.codebook.num_kinds == (3, 3, 3)
    means, counts = _joined_means(folder, [0, 2])
    ours = found.codebook.kind_of(means, counts)[:, 0]
    assert torch.equal(ours, found.maps.codes[:, 0])


def _joined_means(folder: Path, members: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Stored means of some first parts as one part, with zeros for the others."""
    shard = next(DiscoveryState(folder / "state", PICTURES, 128).read_parts())
    counts = shard.counts[:, members].float()
    mean = (shard.means[:, members].float() * counts.unsqueeze(-1)).sum(1) / counts.sum(1, keepdim=True).clamp_min(1)
    means, totals = torch.zeros(PICTURES, 3, mean.shape[1]), torch.zeros(PICTURES, 3, dtype=torch.int32)
    means[:, 0], totals[:, 0] = mean.half().float(), counts.sum(1).int()
    return means, totals


def test_named_kinds_survive_the_joining_of_their_parts(folder: Path) -> None:
    rename_part(folder, "part2:1", "orange")
    merge_parts(folder, ["part0", "part2"])
    found = assert_consistent(folder)
    assert found.codebook.num_kinds == (6, 3, 3) and found.codebook.kind_names[0] == {4: "orange"}


def test_parts_can_be_joined_without_the_stored_means(folder: Path) -> None:
    shutil.rmtree(folder / "state")
    merge_parts(folder, ["part0", "part2"])
    assert assert_consistent(folder).codebook.num_kinds == (6, 3, 3)


def test_joining_twice_goes_back_to_the_first_parts(folder: Path) -> None:
    merge_parts(folder, ["part0", "part1"])
    merge_parts(folder, ["part0", "part2"])
    found = assert_consistent(folder)
    assert found.codebook.part_names == ("part0", "background") and found.report["part_of"] == [0, 0, 0, 1]
    assert (found.maps.codes[:, 0] >= 0).sum() == PICTURES


def test_joined_kinds_take_the_first_ones_number(folder: Path, original: Path) -> None:
    merge_parts(folder, ["part1:0", "part1:2"])
    found, before = assert_consistent(folder), Discovery.load(original)
    theirs = torch.tensor([0, 1, 0, ABSENT])[before.maps.codes[:, 1]]
    assert torch.equal(found.maps.codes[:, 1], theirs) and found.codebook.num_kinds[1] == 2
    assert torch.equal(found.maps.codes[:, [0, 2, 3]], before.maps.codes[:, [0, 2, 3]])


def test_a_dropped_part_becomes_background(folder: Path, original: Path) -> None:
    drop_parts(folder, ["part1"])
    found, before = assert_consistent(folder), Discovery.load(original)
    assert found.codebook.part_names == ("part0", "part2", "background") and found.codebook.background == 2
    assert torch.equal(found.maps.labels, torch.tensor([0, 2, 1, 2], dtype=torch.uint8)[before.maps.labels.long()])


def test_dropped_kinds_leave_their_pictures_without_the_part(folder: Path, original: Path) -> None:
    drop_parts(folder, ["part0:2", "part0:0", "part2"])
    found, before = assert_consistent(folder), Discovery.load(original)
    assert torch.equal(found.maps.codes[:, 0], torch.tensor([ABSENT, 0, ABSENT, ABSENT])[before.maps.codes[:, 0]])
    without = before.maps.codes[:, 0] != 1
    assert not (found.maps.labels[without] == 0).any()
    assert (found.maps.labels[~without] == 0).flatten(1).any(1).equal(before.maps.codes[~without, 0] >= 0)
    assert found.codebook.part_names == ("part0", "part1", "background")


@pytest.mark.parametrize(
    ("edit", "names", "message"),
    [
        (merge_parts, ["part0"], "merging needs at least two different parts"),
        (merge_parts, ["part0", "part0"], "merging needs at least two different parts"),
        (
            merge_parts,
            ["part0", "part1:2"],
            "part0, part1:2: parts cannot be merged with kinds; give either parts, or kinds of one part",
        ),
        (merge_parts, ["part0:1", "part1:2"], "part0:1, part1:2: kinds of different parts cannot be merged"),
        (merge_parts, ["part0:1", "part0:9"], "unknown kind '9' of part 'part0'"),
        (merge_parts, ["part0", "tail"], "unknown part 'tail'"),
        (drop_parts, [], "nothing to drop: name parts, or kinds as part:kind"),
        (drop_parts, ["background"], "the background ('background') cannot be dropped"),
        (drop_parts, ["part0:"], "'part0:' is neither a part nor a kind: write part, or part:kind"),
        (drop_parts, ["part0", "part1", "part2"], "is the only one: nothing would remain"),
        (drop_parts, ["part0:0", "part0:1", "part0:2"], "would have no kind left: drop the part instead"),
    ],
)
def test_edits_that_make_no_sense_change_nothing(folder: Path, edit: object, names: list[str], message: str) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    with pytest.raises(BestiaryError) as fault:
        edit(folder, names)
    assert message in str(fault.value)
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


@pytest.mark.parametrize(
    ("name", "new_name", "message"),
    [
        ("tail", "x", "unknown part 'tail'"),
        ("part0", "part1", "two parts would be called 'part1'"),
        ("part0", "a:b", "'a:b' cannot be a name in a prompt"),
        ("part0:7", "x", "unknown kind '7' of part 'part0'"),
    ],
)
def test_names_that_cannot_be_given(folder: Path, name: str, new_name: str, message: str) -> None:
    with pytest.raises(BestiaryError) as fault:
        rename_part(folder, name, new_name)
    assert message in str(fault.value)
    assert_consistent(folder)


def test_a_folder_without_a_discovery(tmp_path: Path) -> None:
    with pytest.raises(BestiaryError, match="contains no discovery"):
        rename_part(tmp_path, "a", "b")


@pytest.mark.parametrize("moves", [0, 1, 2, 3, 4, 5])
def test_an_edit_killed_anywhere_is_whole_or_not_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch, moves: int
) -> None:
    replace, done = os.replace, 0

    def stop(source: Path, target: Path) -> None:
        nonlocal done
        if Path(source).parent.name.startswith(".edit") or Path(target).name == ".edit-ready":
            if done == moves:
                raise KeyboardInterrupt
            done += 1
        replace(source, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", stop)
        drop_parts(folder, ["part1"])
    found = assert_consistent(folder)
    assert found.codebook.part_names in (
        ("part0", "part1", "part2", "background"),
        ("part0", "part2", "background"),
    )


def test_an_edit_works_where_the_pictures_are_gone(folder: Path) -> None:
    report = json.loads((folder / "report.json").read_text())
    report |= {"images_folder": str(folder / "nowhere"), "images_folder_relative": "nowhere"}
    (folder / "report.json").write_text(json.dumps(report))
    drop_parts(folder, ["part1"])
    assert Discovery.load(folder, check_images=False).codebook.num_parts == 3


def test_simultaneous_edits_all_count(folder: Path) -> None:
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda part: rename_part(folder, f"part{part}", f"new {part}"), range(3)))
    assert assert_consistent(folder).codebook.part_names == ("new 0", "new 1", "new 2", "background")


def test_left_overs_of_killed_edits_go(folder: Path) -> None:
    (folder / ".edit.12345").mkdir()
    (folder / ".edit.12345" / "report.json").touch()
    rename_part(folder, "part0", "head")
    assert_consistent(folder)


@pytest.mark.parametrize("name", ["\u00b2", "\u2460", "x" * 300, "a\0b", "\udcff"])
def test_names_that_are_none_are_one_clear_fault(folder: Path, original: Path, name: str) -> None:
    with pytest.raises(BestiaryError, match="^unknown part '") as fault:
        rename_part(folder, name, "head")
    assert len(str(fault.value)) < 400 and str(fault.value).isprintable()
    with pytest.raises(BestiaryError, match="cannot be a name in a prompt|use at most 80"):
        rename_part(folder, "part0", name)
    assert (folder / "report.json").read_bytes() == (original / "report.json").read_bytes()
