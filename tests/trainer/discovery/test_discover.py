"""The discover command on folders as people have them: results fit each other, stops and processes change nothing."""

import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.features.patch_features import DescriptorFeatures, PatchGrid
from bestiary.concepts.files.concept_file import read_concept_file
from bestiary.concepts.part_map import foreground
from bestiary.concepts.part_prompt.caption_file import parse_captions
from bestiary.trainer.discovery import discover as discover_module
from bestiary.trainer.discovery import passes as discovery_passes
from bestiary.trainer.discovery.discover import DiscoverSettings, DiscoveryResult, discover
from bestiary.trainer.learning.discovery.discovery_folder import Discovery
from PIL import Image, ImageDraw
from pydantic import ValidationError

RESULTS = (
    "part_maps.safetensors",
    "images.txt",
    "captions.txt",
    "skipped.csv",
    "index.html",
)
PICTURES = 24


def draw_thing(seed: int, size: int = 96) -> Image.Image:
    """A two-coloured body with a head and legs, somewhere near the middle of a plain scene."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (size, size), ("#88bb66", "#99aadd", "#ccbb88")[seed % 3])
    pen = ImageDraw.Draw(image)
    x, y = rng.integers(-6, 7, 2) + size // 2
    head, body = (("red", "navy"), ("yellow", "black"), ("white", "maroon"), ("orange", "purple"))[seed % 4]
    pen.ellipse((x - 22, y - 12, x + 22, y + 14), fill=body)
    pen.ellipse((x - 10, y - 34, x + 10, y - 12), fill=head)
    pen.rectangle((x - 12, y + 14, x - 7, y + 32), fill="#553311")
    pen.rectangle((x + 7, y + 14, x + 12, y + 32), fill="#553311")
    return image


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn things in subfolders with spaces and umlauts, among files that cannot be read."""
    root = tmp_path_factory.mktemp("my pictures")
    for number in range(PICTURES):
        folder = root / ("", "two words", "vögel/tief")[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        draw_thing(number).save(folder / f"bird {number:02d}.png")
    (root / "empty.jpg").touch()
    (root / "two words" / "text.png").write_text("no picture")
    content = (root / "bird 00.png").read_bytes()
    (root / "vögel" / "cut.png").write_bytes(content[: len(content) // 2])
    (root / "labels.csv").write_text("file,label\n")
    return root


@pytest.fixture(autouse=True)
def quick_foreground(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreground, "_TRAINING_STEPS", 15)


@pytest.fixture
def careful_foreground(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long enough that it is the thing."""
    monkeypatch.setattr(foreground, "_TRAINING_STEPS", 40)


def settings_for(pictures: Path, out: Path, **changes: object) -> DiscoverSettings:
    values = {"source": "descriptor", "num_parts": 3, "shard_images": 5, "batch_size": 2, "sample_patches": 12 * 256}
    return DiscoverSettings(images=pictures, out=out, **{**values, **changes})


@pytest.fixture(scope="session")
def finished(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> DiscoveryResult:
    patch = pytest.MonkeyPatch()
    patch.setattr(foreground, "_TRAINING_STEPS", 15)
    result = discover(settings_for(pictures, tmp_path_factory.mktemp("work") / "parts"))
    patch.undo()
    return result


def without_times(report: dict[str, object]) -> dict[str, object]:
    left_out = ("seconds", "seconds_of", "images_folder_relative")
    return {name: value for name, value in report.items() if name not in left_out}


def content_of(path: Path) -> bytes:
    """A file's content, without the line of a page that tells how long it took."""
    return re.sub(rb'<p class="note times">.*?</p>', b"", path.read_bytes())


def assert_same_result(ours: Path, theirs: Path) -> None:
    for name in RESULTS:
        assert content_of(ours / name) == content_of(theirs / name), name
    ours_codebook, theirs_codebook = (
        read_concept_file(folder / "codebook.parts.safetensors", "parts") for folder in (ours, theirs)
    )
    assert ours_codebook.metadata == theirs_codebook.metadata
    assert ours_codebook.tensors.keys() == theirs_codebook.tensors.keys()
    assert all(
        torch.equal(ours_codebook.tensors[name], theirs_codebook.tensors[name]) for name in ours_codebook.tensors
    )
    reports = [without_times(json.loads((folder / "report.json").read_text())) for folder in (ours, theirs)]
    assert reports[0] == reports[1]


def test_result_files_fit_each_other(finished: DiscoveryResult, pictures: Path) -> None:
    found = finished.load()
    names = (finished.folder / "images.txt").read_text(encoding="utf-8").splitlines()
    assert finished.images == len(names) == PICTURES
    assert names[0] == "bird 00.png" and "vögel/tief/bird 02.png" in names
    assert found.image_paths == [pictures / name for name in names]
    assert all(path.is_file() for path in found.image_paths)
    assert found.maps.labels.shape == (PICTURES, 16, 16) and found.maps.labels.dtype == torch.uint8
    assert found.maps.codes.shape == (PICTURES, 4) and found.maps.codes.dtype == torch.int64
    captions = (finished.folder / "captions.txt").read_text()
    assert torch.equal(parse_captions(captions, 4), found.maps.codes)
    shown = torch.stack([(found.maps.labels == part).flatten(1).any(1) for part in range(4)], dim=1)
    assert torch.equal(shown, found.maps.codes >= 0)
    assert len(set(found.codebook.part_names)) == 4 and found.codebook.part_names[3] == "background"


def test_codebook_gives_the_stored_labels_and_codes_again(finished: DiscoveryResult) -> None:
    found = finished.load()
    source = DescriptorFeatures()
    reader = discovery_passes.PictureReader(
        found.images_folder, [path.relative_to(found.images_folder).as_posix() for path in found.image_paths], 128
    )
    images = torch.stack([reader.read(row) for row in range(PICTURES)])
    grid = PatchGrid(source(images).features.half().float())
    again = found.codebook.segment(grid)
    assert (again.labels == found.maps.labels).float().mean() > 0.999
    assert (again.codes == found.maps.codes).float().mean() > 0.95  # part means were stored in half precision


def test_skipped_files_are_told_with_their_reasons(finished: DiscoveryResult) -> None:
    with open(finished.folder / "skipped.csv", encoding="utf-8", newline="") as file:
        rows = {row["path"]: row["reason"] for row in csv.DictReader(file)}
    assert set(rows) == {"empty.jpg", "two words/text.png", "vögel/cut.png"} and finished.skipped == 3
    assert rows["empty.jpg"] == "the file is empty"
    assert rows["vögel/cut.png"].startswith("it is truncated")
    assert finished.report["other_files"] == {".csv": 1}
    page = (finished.folder / "index.html").read_text(encoding="utf-8")
    assert all(name in page for name in rows)


def test_report_holds_sizes_and_typical_pictures(finished: DiscoveryResult) -> None:
    found, report = finished.load(), finished.report
    for part, entry in enumerate(report["parts"]):
        codes = found.maps.codes[:, part]
        assert entry["images"] == int((codes >= 0).sum()) == sum(entry["kinds"].values())
        assert entry["name"] == found.codebook.part_names[part] == finished.part_names[part]
        for kind, size in entry["kinds"].items():
            assert size == int((codes == int(kind)).sum())
            typical = report["typical"][f"{part}:{kind}"]
            assert len(typical) == min(4, size) and set(codes[typical].tolist()) == {int(kind)}
    assert report["source"]["name"] == "descriptor"
    assert report["bytes_per_image"] <= 13 * 1024


def test_a_finished_discovery_is_returned_without_work(
    finished: DiscoveryResult, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(discover_module, "build_feature_source", None)
    again = discover(settings_for(pictures, finished.folder, batch_size=7))
    assert again.report == finished.report


def test_other_settings_are_refused_by_name(finished: DiscoveryResult, pictures: Path) -> None:
    with pytest.raises(BestiaryError) as fault:
        discover(settings_for(pictures, finished.folder, seed=3, num_parts=None))
    assert str(fault.value) == (
        f"{finished.folder} contains a discovery with other settings (num_parts was 3, now auto; seed was 0, now 3): "
        "choose another --out, or give --restart to discard it"
    )


class Killed(BaseException):
    """Stands for a signal that ends the process: nothing may catch it."""


@pytest.mark.parametrize(
    "calls_before", [pytest.param(1, marks=pytest.mark.slow), 7, pytest.param(15, marks=pytest.mark.slow)]
)
def test_a_killed_run_goes_on_where_it_was(
    finished: DiscoveryResult, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls_before: int
) -> None:
    """Ends at some batch of either pass; the next run computes only what is missing and the result is the same."""
    calls = 0
    compute = DescriptorFeatures.__call__

    def counted(source: DescriptorFeatures, images: torch.Tensor) -> PatchGrid:
        nonlocal calls
        calls += 1
        if limit is not None and calls > limit:
            raise Killed
        return compute(source, images)

    monkeypatch.setattr(DescriptorFeatures, "__call__", counted)
    limit = calls_before
    with pytest.raises(Killed):
        discover(settings_for(pictures, tmp_path / "parts"))
    done = sorted((tmp_path / "parts" / "state").glob("*-0*.safetensors"))
    stamps = {path: path.stat().st_mtime_ns for path in done}
    assert not (tmp_path / "parts" / "report.json").exists()
    limit, calls = None, 0
    monkeypatch.setattr(discover_module.DiscoveryState, "remove_samples", lambda state: None)
    discover(settings_for(pictures, tmp_path / "parts"))
    assert {path: path.stat().st_mtime_ns for path in done} == stamps
    assert_same_result(tmp_path / "parts", finished.folder)


@pytest.mark.parametrize("step", ["write_maps", "write_discovery_page", "write_report"])
def test_a_run_killed_while_writing_results_goes_on(
    finished: DiscoveryResult, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def die(*args: object, **options: object) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(f"bestiary.trainer.discovery.result.{step}", die)
        discover(settings_for(pictures, tmp_path / "parts"))
    monkeypatch.setattr(discovery_passes, "describe_shard", die)
    discover(settings_for(pictures, tmp_path / "parts"))
    assert_same_result(tmp_path / "parts", finished.folder)


def test_each_picture_is_described_once_where_the_sample_covers_all(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    described = 0
    compute = DescriptorFeatures.__call__

    def counted(source: DescriptorFeatures, images: torch.Tensor) -> PatchGrid:
        nonlocal described
        described += len(images)
        return compute(source, images)

    monkeypatch.setattr(DescriptorFeatures, "__call__", counted)
    discover(settings_for(pictures, tmp_path / "parts", sample_patches=10_000))
    assert described == PICTURES + 1  # and one blank picture, which tells the size of the grid


def test_batch_size_changes_no_label(finished: DiscoveryResult, pictures: Path, tmp_path: Path) -> None:
    other = discover(settings_for(pictures, tmp_path / "parts", batch_size=16)).load()
    assert (other.maps.labels == finished.load().maps.labels).float().mean() > 0.995


def test_restart_begins_anew(pictures: Path, tmp_path: Path) -> None:
    first = discover(settings_for(pictures, tmp_path / "parts"))
    second = discover(settings_for(pictures, tmp_path / "parts", num_parts=2, restart=True))
    assert (len(first.part_names), len(second.part_names)) == (4, 3)
    assert second.load().maps.codes.shape == (PICTURES, 3)


def test_progress_counts_both_passes_up_to_the_end(pictures: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    discover(settings_for(pictures, tmp_path / "parts"), lambda done, total: seen.append((done, total)))
    total = PICTURES + 3 + 12
    assert seen[-1] == (total, total) and {entry[1] for entry in seen} == {total}
    assert [entry[0] for entry in seen] == sorted(entry[0] for entry in seen)


def test_names_from_a_file(pictures: Path, tmp_path: Path) -> None:
    names = tmp_path / "names.toml"
    names.write_text('[parts]\n0 = "crown"\n[kinds.crown]\n0 = "cardinal"\n')
    found = discover(settings_for(pictures, tmp_path / "parts", names=names, kinds=4)).load()
    assert found.codebook.part_names[0] == "crown" and found.codebook.kind_names[0] == {0: "cardinal"}
    assert found.codebook.num_kinds == (4, 4, 4, 4)
    assert found.report["parts"][0]["name"] == "crown"


@pytest.mark.usefixtures("careful_foreground")
def test_flipping_takes_the_surroundings(pictures: Path, finished: DiscoveryResult, tmp_path: Path) -> None:
    flipped = discover(settings_for(pictures, tmp_path / "parts", flip_foreground=True)).load()
    usual = finished.load()
    thing, surroundings = usual.maps.labels != 3, flipped.maps.labels != 3
    assert (thing ^ surroundings).float().mean() > 0.95


def test_a_folder_without_pictures(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").touch()
    with pytest.raises(BestiaryError) as fault:
        discover(settings_for(tmp_path / "empty", tmp_path / "parts"))
    assert str(fault.value) == (
        f"no pictures in {tmp_path / 'empty'} (found 1 x .txt): give a folder with jpg, png, webp, tif, bmp or gif files"
    )
    assert not (tmp_path / "parts").exists()


def test_a_folder_of_broken_pictures(tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    for name in "abcde":
        (tmp_path / "broken" / f"{name}.png").touch()
    with pytest.raises(BestiaryError) as fault:
        discover(settings_for(tmp_path / "broken", tmp_path / "parts"))
    assert str(fault.value) == (
        "none of 5 pictures could be read (a.png: the file is empty; b.png: the file is empty; c.png: the file is empty): "
        "give a folder of pictures"
    )


@pytest.mark.usefixtures("careful_foreground")
def test_pictures_without_a_foreground(tmp_path: Path) -> None:
    (tmp_path / "flat").mkdir()
    for number in range(8):
        noise = np.random.default_rng(number).integers(0, 255, (96, 96, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "flat" / f"{number}.png")
    with pytest.raises(BestiaryError) as fault:
        discover(settings_for(tmp_path / "flat", tmp_path / "parts", min_margin=0.99))
    assert str(fault.value).startswith("no foreground found")
    assert "--flip-foreground" in str(fault.value) and "--source" in str(fault.value)


def test_fewer_pictures_than_kinds(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(BestiaryError) as fault:
        discover(settings_for(pictures, tmp_path / "parts", kinds=100))
    assert str(fault.value) == (
        f"--kinds 100 is more than the {PICTURES + 3} pictures in {pictures}: give more pictures or fewer kinds"
    )
    with pytest.raises(BestiaryError, match="only .* pictures show it: give more pictures or request fewer kinds"):
        discover(settings_for(pictures, tmp_path / "parts", kinds=PICTURES + 1))


def folder_of(root: Path, *images: Image.Image) -> Path:
    root.mkdir()
    for number, image in enumerate(images):
        image.save(root / f"{number}.png")
    return root


@pytest.mark.parametrize("count", [1, 2])
def test_one_or_two_pictures_are_too_few(count: int, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "few", *[draw_thing(number) for number in range(count)])
    with pytest.raises(BestiaryError) as fault:
        discover(settings_for(folder, tmp_path / "parts"))
    assert str(fault.value) == (
        f"{count} picture{'s' if count > 1 else ''} in {folder}: parts are found by comparing pictures; "
        "give at least 3, better some dozens"
    )
    assert not (tmp_path / "parts").exists()


def test_black_pictures_show_nothing(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "black", *[Image.new("RGB", (64, 64)) for _ in range(4)])
    with pytest.raises(BestiaryError) as fault:
        discover(settings_for(folder, tmp_path / "parts"))
    assert str(fault.value) == (
        "no foreground found: all 4 pictures are one plain colour; give pictures that show an object"
    )


def test_a_black_picture_among_others_is_named_as_left_out(tmp_path: Path) -> None:
    drawn = [draw_thing(number) for number in range(6)]
    folder = folder_of(tmp_path / "mixed", Image.new("RGB", (64, 64)), *drawn)
    found = discover(settings_for(folder, tmp_path / "parts"))
    assert (found.images, found.skipped) == (6, 1)
    assert "0.png,it is one plain colour" in (tmp_path / "parts" / "skipped.csv").read_text()


@pytest.mark.parametrize("source", ["descriptor", "imagenet"])
def test_copies_of_one_picture_are_told(source: str, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "copies", *[draw_thing(1)] * 5)
    with pytest.raises(BestiaryError) as fault:
        discover(settings_for(folder, tmp_path / "parts", source=source))
    assert str(fault.value) == (
        f"all 5 pictures of {folder} are identical: parts are found by comparing different pictures of similar objects; "
        "give different pictures"
    )


def noisy(seed: int) -> Image.Image:
    """A drawn thing with the grain of a photograph."""
    pixels = np.asarray(draw_thing(seed)).astype(np.int16)
    grain = np.random.default_rng(seed).integers(-12, 13, pixels.shape)
    return Image.fromarray((pixels + grain).clip(0, 255).astype(np.uint8))


def test_colours_alone_on_photographs_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = folder_of(tmp_path / "photos", *[noisy(number) for number in range(6)])
    report = discover(settings_for(folder, tmp_path / "parts")).report
    assert any("The source descriptor uses only colour and texture" in text for text in report["warnings"])
    assert "Use --source imagenet or dinov2." in caplog.text
    page = (tmp_path / "parts" / "index.html").read_text(encoding="utf-8")
    assert "on photographs like these its parts are areas of colour" in page


def test_drawings_by_colours_alone_are_not_warned_of(finished: DiscoveryResult) -> None:
    assert not any("descriptor" in text for text in finished.report["warnings"])


def masks_of(root: Path, count: int, size: int = 96) -> Path:
    """White boxes around the left half of each thing."""
    root.mkdir()
    for number in range(count):
        mask = Image.new("L", (size, size))
        ImageDraw.Draw(mask).rectangle((size // 4, size // 8, size // 2, size - size // 8), fill=255)
        mask.save(root / f"{number}.png")
    return root


def test_masks_say_where_the_thing_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = folder_of(tmp_path / "pictures", *[draw_thing(number) for number in range(8)])
    masks = masks_of(tmp_path / "masks", 6)
    Image.new("L", (5, 5)).save(masks / "other.png")
    found = discover(settings_for(folder, tmp_path / "parts", masks=masks, num_parts=2)).load()
    shown = found.maps.labels[:6] != found.codebook.background
    assert bool(shown[:, 2:14, 4:8].all()) and not bool(shown[:, :, 9:].any())
    assert "2 of 8 pictures have no mask" in caplog.text and "6.png, 7.png" in caplog.text
    assert "1 masks in" in caplog.text and "other.png" in caplog.text


def test_transparency_is_a_mask(tmp_path: Path) -> None:
    drawn = []
    for number in range(5):
        cut = draw_thing(number).convert("RGBA")
        opacity = Image.new("L", cut.size)
        ImageDraw.Draw(opacity).rectangle((24, 12, 48, 84), fill=255)
        cut.putalpha(opacity)
        drawn.append(cut)
    folder = folder_of(tmp_path / "cut-outs", *drawn)
    found = discover(settings_for(folder, tmp_path / "parts", num_parts=2)).load()
    shown = found.maps.labels != found.codebook.background
    assert bool(shown[:, 2:14, 4:8].all()) and not bool(shown[:, :, 9:].any())


def test_masks_that_do_not_fit_are_told(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "pictures", *[draw_thing(number) for number in range(4)])
    small = masks_of(tmp_path / "small", 4, size=48)
    with pytest.raises(BestiaryError) as fault:
        discover(settings_for(folder, tmp_path / "parts", masks=small))
    assert str(fault.value) == (
        f"the mask {small / '0.png'} has 48 x 48 pixels, its picture 96 x 96: give a mask with the size of the picture"
    )
    (tmp_path / "none").mkdir()
    Image.new("L", (96, 96)).save(tmp_path / "none" / "bird.png")
    with pytest.raises(BestiaryError) as fault:
        discover(settings_for(folder, tmp_path / "parts2", masks=tmp_path / "none"))
    assert str(fault.value) == (
        f"no mask in {tmp_path / 'none'} belongs to any of 4 pictures: name the mask of 0.png 0.png.png or 0.png"
    )
    (tmp_path / "black").mkdir()
    for number in range(4):
        Image.new("L", (96, 96)).save(tmp_path / "black" / f"{number}.png")
    with pytest.raises(BestiaryError) as fault:
        discover(settings_for(folder, tmp_path / "parts3", masks=tmp_path / "black"))
    assert str(fault.value) == f"all 4 masks of pictures of {folder} are empty: paint the object white"
    # a mask that is damaged
    for number in range(4):
        (tmp_path / "black" / f"{number}.png").write_bytes(b"no picture")
    with pytest.raises(BestiaryError, match=r"the mask .*0.png of 0.png cannot be read: it is not a picture"):
        discover(settings_for(folder, tmp_path / "parts4", masks=tmp_path / "black"))


def test_masks_may_lie_beside_their_pictures(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "pictures", *[draw_thing(number) for number in range(4)])
    for number in range(4):
        Image.open(masks_of(tmp_path / f"m{number}", 1) / "0.png").save(folder / f"{number}_mask.png")
    found = discover(settings_for(folder, tmp_path / "parts", masks=folder, num_parts=2))
    assert found.images == 4
    assert not bool((found.load().maps.labels[:, :, 9:] != 2).any())


def test_the_page_says_what_was_found_and_where_it_is_unsure(finished: DiscoveryResult) -> None:
    report = finished.report
    page = (finished.folder / "index.html").read_text(encoding="utf-8")
    assert "Features: colour and texture only." in page
    assert len(report["confidence"]) == 4 and all(0 <= value <= 1 for value in report["confidence"])
    assert len(report["doubts"]) == 8 and "Where discovery is least sure" in page
    assert page.index("Where discovery is least sure") < page.index("Where the parts are")
    assert re.search(r"(sure|unsure) \(\d+% confidence\)", page)
    assert "1 x .csv" in page
    times = report["seconds_of"]
    assert times["features"] > 0 and times["clustering"] > 0
    assert abs(times["features"] + times["clustering"] - report["seconds"]) < 0.3
    assert f"{times['features']} s for reading pictures and computing features" in page


def test_a_base_model_that_is_not_read_is_told(
    pictures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    discover(settings_for(pictures, tmp_path / "parts", base="demo"))
    assert "--base demo was ignored: only --source diffusion uses a base model." in caplog.text


def test_features_that_are_no_numbers(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compute = DescriptorFeatures.__call__

    def broken(source: DescriptorFeatures, images: torch.Tensor) -> PatchGrid:
        return PatchGrid(compute(source, images).features * float("nan"))

    monkeypatch.setattr(DescriptorFeatures, "__call__", broken)
    with pytest.raises(BestiaryError) as fault:
        discover(settings_for(pictures, tmp_path / "parts", sample_patches=10_000))
    assert str(fault.value) == (
        "the features of bird 00.png are not finite numbers: choose another --dtype (fp32), or --source"
    )


def test_the_folder_of_pictures_as_output(pictures: Path) -> None:
    with pytest.raises(BestiaryError) as fault:
        discover(settings_for(pictures, pictures))
    assert str(fault.value) == f"--out {pictures} is the folder of pictures itself: choose another folder"


def test_an_output_that_cannot_be_written(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BestiaryError, match="could not write .*plan.json.*choose another --out folder"):
        discover(settings_for(pictures, tmp_path / "file" / "parts"))


def test_a_full_disk_leaves_a_state_that_goes_on(
    finished: DiscoveryResult, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, calls = os.replace, 0

    def full(source: Path, target: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise OSError(28, "No space left on device")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(BestiaryError, match="No space left on device; the existing file is unchanged"):
            discover(settings_for(pictures, tmp_path / "parts"))
    discover(settings_for(pictures, tmp_path / "parts"))
    assert_same_result(tmp_path / "parts", finished.folder)


@pytest.mark.parametrize(
    "changes", [{"num_parts": 1}, {"kinds": 0}, {"batch_size": 0}, {"source": "sift"}, {"part": 3}]
)
def test_settings_out_of_range(pictures: Path, tmp_path: Path, changes: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        settings_for(pictures, tmp_path, **changes)


def test_moved_and_unfinished_folders_are_told_apart(finished: DiscoveryResult, tmp_path: Path) -> None:
    with pytest.raises(BestiaryError) as fault:
        Discovery.load(tmp_path)
    assert str(fault.value) == f"{tmp_path} contains no discovery; give the folder of a finished `bestiary discover`"
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "plan.json").write_text("{}")
    with pytest.raises(BestiaryError, match="an unfinished discovery: run the same `bestiary discover` again"):
        Discovery.load(tmp_path)


PROGRAM = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import conftest
from bestiary.concepts.part_map import foreground
from bestiary.trainer.discovery.discover import DiscoverSettings, discover
foreground._TRAINING_STEPS = 15
discover(DiscoverSettings(images=Path(sys.argv[2]), out=Path(sys.argv[3]), source="descriptor", num_parts=3,
                          shard_images=5, batch_size=2, sample_patches=12 * 256))
"""


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    yield path


def test_two_processes_give_the_result_of_one(
    finished: DiscoveryResult, pictures: Path, tmp_path: Path, program: Path
) -> None:
    tests = Path(__file__).parents[2]
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
    ]
    command += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    outcome = subprocess.run(
        [*command, str(program), str(tests), str(pictures), str(tmp_path / "parts")],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        timeout=300,
    )
    assert outcome.returncode == 0, outcome.stderr[-3000:]
    assert_same_result(tmp_path / "parts", finished.folder)
