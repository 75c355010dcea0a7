"""Pictures of a concept: which are found, how masks are cut, and batches that serve every stage and picture equally."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from bestiary.concepts.denoiser.denoiser import EncoderLayout
from bestiary.concepts.denoiser.process import DiscreteProcess
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.spectrum.stage_bounds import StageBounds
from bestiary.trainer.learning.pictures.latent_cache import LatentCache
from bestiary.trainer.learning.spectrum.spectrum_images import (
    SpectrumImages,
    SpectrumPlan,
    find_pictures,
    read_masks,
    square_mask,
)
from PIL import Image

PROMPTS = tuple(
    {"clip_l": EncoderLayout(torch.full((1, 3), n), torch.zeros(1).long(), torch.ones(1, 3))} for n in range(2)
)
PROCESS = DiscreteProcess(torch.linspace(0.999, 0.01, 1000), "epsilon")


def _plan(**changes: object) -> SpectrumPlan:
    values = {"batch_size": 4, "accumulation": 1, "latent_size": 4, "bounds": StageBounds.equal(4), "prompts": PROMPTS,
              "process": PROCESS}  # fmt: skip
    return SpectrumPlan(**{**values, "seed": 3, **changes})


def _images(count: int = 3, views: int = 2, edge: int = 6, masks: bool = False, **changes: object) -> SpectrumImages:
    """Pictures whose moments say where they come from: row, view, and place in the cached square."""
    rows, view, y, x = np.meshgrid(range(count), range(views), range(edge), range(edge), indexing="ij")
    # a mirrored view holds mirrored places
    x = np.where(view == 1, edge - 1 - x, x)
    # small enough for float16
    place = (200 * rows + 100 * view + 10 * y + x).astype(np.float16)  # (N, V, H, W)
    moments = np.stack([place, np.zeros_like(place)], axis=2)[:, :, :, None]  # (N, V, 2, 1, H, W)
    given = (10 * y[:, 0] + np.arange(edge)).astype(np.float32) / 100 if masks else None  # (N, H, W)
    names = [f"{number}.png" for number in range(count)]
    return SpectrumImages(names, LatentCache(moments), _plan(**changes), given)


def test_a_folder_gives_its_readable_pictures_in_order(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("b.png", "a.png", "sub/c.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (80, 80)).save(tmp_path / name)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    found = find_pictures(tmp_path)
    assert found.names == ("a.png", "b.png", "sub/c.jpg") and found.folder == tmp_path
    assert [name for name, _ in found.skipped] == ["broken.png"] and "broken.png is left out" in caplog.text
    assert find_pictures(tmp_path / "b.png").paths == [tmp_path / "b.png"]


def test_masks_are_cut_like_their_pictures(tmp_path: Path) -> None:
    picture = Image.new("L", (160, 80), 0)
    picture.paste(255, (40, 0, 80, 80))  # the left half of the centre square
    picture.convert("RGB").save(tmp_path / "a.png")
    Image.new("RGB", (80, 80)).save(tmp_path / "b.jpg")
    found = find_pictures(tmp_path / "a.png")
    (mask,) = read_masks(tmp_path, found, 8)
    assert mask.shape == (8, 8) and mask.dtype == np.float32
    assert (mask[:, :3] > 0.99).all() and (mask[:, 5:] < 0.01).all()
    assert np.array_equal(mask, square_mask(picture.convert("RGB"), 8, "it"))
    assert read_masks(None, found, 8) is None
    with pytest.raises(BestiaryError, match="^the mask of a is black all over: white is what is learned from$"):
        square_mask(Image.new("RGB", (64, 64)), 8, "the mask of a")


def _thing(edge: int, left: int, right: int) -> Image.Image:
    picture = Image.new("L", (edge, edge), 0)
    picture.paste(255, (left, 0, right, edge))
    return picture


def test_masks_belong_to_pictures_by_their_whole_path(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pictures, masks = tmp_path / "pictures", tmp_path / "masks"
    # names of one stem in different subfolders and with different endings
    placed = {"a/b.jpg": (0, 20), "c/b.jpg": (20, 40), "c/b.png": (40, 80), "d.png": (0, 80)}
    for name, (left, right) in placed.items():
        (pictures / name).parent.mkdir(parents=True, exist_ok=True)
        (masks / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (80, 80)).save(pictures / name)
        _thing(80, left, right).save(masks / (f"{name}.png" if name != "a/b.jpg" else "a/b_mask.png"))
    _thing(80, 0, 80).save(masks / "e.png")
    found = find_pictures(pictures)
    with caplog.at_level("INFO", logger="bestiary"):
        cut = read_masks(masks, found, 8)
    covered = {name: mask.mean() for name, mask in zip(found.names, cut, strict=True)}
    assert covered == pytest.approx({name: (right - left) / 80 for name, (left, right) in placed.items()}, abs=0.02)
    assert "4 masks cover 50% of their pictures on average, from 25% of a/b.jpg to 100% of d.png" in caplog.text
    assert f"masks without a picture in {masks}: e.png" in caplog.text


def test_transparency_is_a_mask_and_other_shapes_are_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Image.new("RGB", (80, 80)).save(tmp_path / "a.jpg")
    cut_out = Image.new("RGBA", (80, 80), (255, 255, 255, 0))
    cut_out.paste((255, 255, 255, 255), (0, 0, 40, 80))
    cut_out.save(tmp_path / "a_mask.png")
    # the mask lies beside its picture and is no picture itself
    found = find_pictures(tmp_path, tmp_path)
    assert found.names == ("a.jpg",) and found.skipped == ()
    with caplog.at_level("INFO", logger="bestiary"):
        (mask,) = read_masks(tmp_path, found, 8)
    assert mask[:, :3].min() > 0.99 and mask[:, 5:].max() < 0.01 and "the mask covers 50% of a.jpg" in caplog.text
    cut_out.resize((40, 40)).save(tmp_path / "a_mask.png")
    with pytest.raises(BestiaryError, match="a_mask.png has 40 x 40 pixels, its picture 80 x 80: "):
        read_masks(tmp_path, found, 8)
    (tmp_path / "a_mask.png").unlink()
    (tmp_path / "other").mkdir()
    with pytest.raises(
        BestiaryError, match=r"no mask for a\.jpg in .*: give every picture a mask \(a\.jpg\.png or a\.png\)"
    ):
        read_masks(tmp_path / "other", found, 8)


def test_masks_in_a_subfolder_are_no_pictures_of_the_concept(tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    Image.new("RGB", (80, 80)).save(tmp_path / "a.png")
    _thing(80, 0, 40).save(tmp_path / "masks" / "a.png")
    assert find_pictures(tmp_path, tmp_path / "masks").names == ("a.png",)


def test_every_file_left_out_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Image.new("RGB", (80, 80)).save(tmp_path / "a.jpg")
    for name in ("b.CR2", "notes.txt", "c.heic"):
        (tmp_path / name).write_bytes(b"something else")
    found = find_pictures(tmp_path)
    assert [name for name, _ in found.skipped] == ["b.CR2", "c.heic", "notes.txt"] and found.names == ("a.jpg",)
    assert "notes.txt is left out: .txt is not a supported picture format" in caplog.text
    caplog.clear()
    for number in range(30):
        (tmp_path / f"{number:02}.txt").touch()
    find_pictures(tmp_path)
    assert caplog.text.count("is left out") == 20 and "13 more files are left out" in caplog.text
    caplog.clear()
    assert len(find_pictures(tmp_path, warn=False).skipped) == 33 and not caplog.text


def test_every_stage_and_every_picture_has_its_turn() -> None:
    images = _images()
    drawn = [images.draw(step, 0) for step in range(12)]
    stages = Counter(stage for batch in drawn for stage in batch.stages)
    names = Counter(name for batch in drawn for name in batch.names)
    assert set(stages.values()) == {12} and set(names.values()) == {16} and len(names) == 3
    # all stages before any again, in an order that changes
    assert all(sorted(batch.stages) == [0, 1, 2, 3] for batch in drawn)
    assert len({batch.stages for batch in drawn}) > 3
    bounds = StageBounds.equal(4)
    assert all(bounds.stage_at(batch.times).tolist() == list(batch.stages) for batch in drawn)


def test_micro_steps_are_parts_of_one_larger_batch() -> None:
    whole, parts = _images(batch_size=4), _images(batch_size=2, accumulation=2)
    for step in range(3):
        batch, halves = whole.draw(step, 0), [parts.draw(step, micro) for micro in range(2)]
        assert torch.equal(torch.cat([half.noise for half in halves]), batch.noise)
        assert halves[0].stages + halves[1].stages == batch.stages
        assert halves[0].names + halves[1].names == batch.names


def test_another_seed_draws_another_batch() -> None:
    first, second = _images().draw(0, 0), _images(seed=4).draw(0, 0)
    assert not torch.equal(first.noise, second.noise)
    again = _images().draw(0, 0)
    assert torch.equal(first.noise, again.noise) and torch.equal(first.times, again.times)


def test_crops_masks_and_sizes_belong_together() -> None:
    images = _images(masks=True)
    seen = set()
    for step in range(10):
        batch = images.draw(step, 0)
        for row, name in enumerate(batch.names):
            place = batch.moments[row, 0, 0].float()  # (h, w)
            first = int(place[0, 0])
            number, view, top = first // 200, first % 200 // 100, first % 100 // 10
            assert name == f"{number}.png"
            # the mask says where a cell lies in the picture as it is, mirrored or not
            assert torch.allclose(batch.masks[row, 0] * 100, place % 100, atol=0.1)
            left = int(place[0].min() % 10) if view == 0 else 5 - int(place[0].max() % 10)
            assert batch.sizes[row].tolist() == [48, 48, 8 * top, 8 * left, 32, 32]
            seen.add((view, top, left))
    assert {view for view, _, _ in seen} == {0, 1} and len({top for _, top, _ in seen}) == 3


def test_sentences_are_drawn_with_their_prompts() -> None:
    images = _images()
    drawn = [images.draw(step, 0) for step in range(8)]
    numbers = Counter(number for batch in drawn for number in batch.templates)
    assert set(numbers) == {0, 1}
    for batch in drawn:
        assert [int(prompt["clip_l"].ids[0, 0]) for prompt in batch.prompts] == list(batch.templates)
    assert len(images) == 3 and images.names == ("0.png", "1.png", "2.png")
