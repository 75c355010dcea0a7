"""Discovery in the graph: the same as the method called directly; every fault of pictures and masks told."""

import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.parts.part_discovery import MOST_STAGES, discover_parts
from bestiary.concepts.patch_features import DescriptorFeatures
from bestiary.nodes.discovery_job import DiscoveryChoice, doubts, find_parts
from bestiary.nodes.graph_progress import GraphProgress
from bestiary.nodes.part_sight import describe_images

SOURCE = DescriptorFeatures(image_size=64, grid=8)
CHOICE = DiscoveryChoice(num_parts=2, num_kinds=2, seed=4)


@pytest.fixture(autouse=True)
def short_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bestiary.concepts.parts.foreground._TRAINING_STEPS", 30)


def find(images, masks=None, choice=CHOICE, progress=None):
    return find_parts(images, masks, SOURCE, choice, progress or GraphProgress(None))


def test_it_is_the_method_called_directly(drawn_images):
    grid = describe_images(drawn_images, SOURCE, "centre square")
    codebook, maps = discover_parts(grid, spec=SOURCE.spec, num_parts=2, num_kinds=2, seed=4)
    with torch.inference_mode():  # as the executor calls nodes
        found = find([drawn_images])
    assert torch.equal(found.seen[0].maps.labels, maps.labels) and torch.equal(found.seen[0].maps.codes, maps.codes)
    assert all(torch.equal(a, b) for a, b in zip(found.codebook.fine, codebook.fine, strict=True))
    assert found.codebook.feature_spec == SOURCE.spec and found.codebook.part_names == codebook.part_names


def test_lists_of_different_sizes_keep_their_entries(drawn_images):
    wide = torch.nn.functional.pad(drawn_images[5:], (0, 0, 30, 42))
    found = find([drawn_images[:5], wide])
    assert [entry.size for entry in found.seen] == [(128, 128), (128, 200)]
    assert [len(entry.maps.labels) for entry in found.seen] == [5, 3]
    assert found.seen[1].areas(0).shape == (3, 128, 200)
    assert not any(tensor.is_inference() for tensor in found.codebook.fine)


def test_marked_foregrounds_are_used(drawn_images):
    masks = torch.zeros(8, 128, 128)
    masks[:, :, :64] = 1
    grid = describe_images(drawn_images, SOURCE, "centre square")
    shares = torch.zeros(8, 8, 8)
    shares[:, :, :4] = 1
    theirs, maps = discover_parts(grid, spec=SOURCE.spec, num_parts=2, num_kinds=2, seed=4, foreground_masks=shares)
    for grouped in ([masks], [masks[:3], masks[3:]], list(masks)):
        assert torch.equal(find([drawn_images], grouped).seen[0].maps.labels, maps.labels)
    assert theirs.statistics["foreground_share"] < 0.6


def test_progress_covers_pictures_and_stages(drawn_images, monkeypatch):
    import comfy.utils

    events: list[tuple[int, int]] = []
    monkeypatch.setattr(
        comfy.utils, "PROGRESS_BAR_HOOK", lambda done, total, *rest, **more: events.append((done, total))
    )
    find([drawn_images])
    total = 8 + 4 * MOST_STAGES
    assert events[:3] == [(8, total), (12, total), (16, total)] and events[-1] == (total, total)
    assert [done for done, _ in events] == sorted(done for done, _ in events)
    events.clear()
    find([drawn_images], [torch.ones(8, 128, 128)])
    assert len(events) < MOST_STAGES and events[-1] == (total, total)


@pytest.mark.parametrize("stage", [0, 1, 5])
def test_cancel_takes_hold_between_pieces_of_work(stage, drawn_images, monkeypatch):
    import comfy.model_management
    import comfy.utils

    events: list[int] = []

    def cancel(done: int, *rest: object, **more: object) -> None:
        events.append(done)
        if len(events) > stage:
            comfy.model_management.interrupt_current_processing()

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", cancel)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        find([drawn_images])
    assert len(events) == stage + 1


def test_one_picture_is_enough(drawn_images):
    choice = DiscoveryChoice(num_parts=2)
    found = find_parts([drawn_images[:1]], None, DescriptorFeatures(), choice, GraphProgress(None))
    assert found.codebook.num_kinds[2] == 1 and len(found.seen[0].maps.labels) == 1


def test_fewer_pictures_than_kinds_are_told(drawn_images):
    with pytest.raises(BestiaryError) as fault:
        find([drawn_images[:3]], choice=DiscoveryChoice(num_parts=2, num_kinds=9))
    assert "9 kinds of part" in str(fault.value) and "pictures show it: give more pictures" in str(fault.value)


def test_no_foreground_is_told():
    with pytest.raises(BestiaryError, match="no foreground found: .* of 128 patches, too few for 16 parts"):
        find([torch.full((2, 64, 64, 3), 0.5)], choice=DiscoveryChoice(num_parts=16))


def test_bad_entries_of_a_list_are_numbered(drawn_images):
    broken = drawn_images[:2].clone()
    broken[1, 0, 0, 0] = float("nan")
    with pytest.raises(BestiaryError, match="picture 2 of 2 in entry 2 of the list holds values that are not numbers"):
        find([drawn_images, broken])


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ([torch.ones(3, 128, 128)], "3 foreground masks for 8 pictures: connect one mask per picture, or none"),
        (
            [torch.ones(8, 64, 64)],
            "foreground mask 1 has 64 x 64 pixels, its picture 128 x 128: resize the mask (Load Image gives a 64 x 64 one "
            "for pictures without transparency: leave it unconnected)",
        ),
        (
            [torch.zeros(8, 128, 128)],
            "all 8 foreground masks are empty: mark the thing in white, or leave the input foreground unconnected",
        ),
        (
            [torch.full((8, 128, 128), float("nan"))],
            "foreground mask 1 holds values that are not numbers: check the node that made it",
        ),
    ],
)
def test_bad_masks_are_told(drawn_images, masks, message):
    with pytest.raises(BestiaryError) as fault:
        find([drawn_images], masks)
    assert str(fault.value) == message


def test_a_doubtful_foreground_is_said(small_codebook):
    from dataclasses import replace

    assert doubts(replace(small_codebook, statistics={"foreground_margin": 0.5})) is None
    said = doubts(replace(small_codebook, statistics={"foreground_margin": 0.1}))
    assert (
        said.startswith("The foreground is doubtful: it covers the centre only 0.10 more") and "flip_foreground" in said
    )
