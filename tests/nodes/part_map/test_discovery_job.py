"""Discovery in the graph: the same as the method called directly; every fault of pictures and masks told."""

from dataclasses import replace

import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.features.patch_features import DescriptorFeatures
from bestiary.concepts.part_map.part_discovery import MOST_STAGES, discover_parts
from bestiary.nodes.host.graph_progress import GraphProgress
from bestiary.nodes.part_map.discovery_job import DiscoveryChoice, doubts, find_parts, part_confidence, unsure_pictures
from bestiary.nodes.part_map.part_reports import discovery_text
from bestiary.nodes.part_map.seen_parts import describe_images

SOURCE = DescriptorFeatures(image_size=64, grid=8)
CHOICE = DiscoveryChoice(num_parts=2, num_kinds=2, seed=4)


def find(images, masks=None, choice=CHOICE, progress=None):
    return find_parts(images, masks, SOURCE, choice, progress or GraphProgress(None))


def test_it_is_the_method_called_directly(drawn_images):
    grid = describe_images(drawn_images, SOURCE, "centre square")
    codebook, maps = discover_parts(grid, spec=SOURCE.spec, num_parts=2, num_kinds=2, seed=4)
    with torch.inference_mode():  # as the executor calls nodes
        found = find([drawn_images])
    assert torch.equal(found.seen[0].maps.labels, maps.labels) and torch.equal(found.seen[0].maps.codes, maps.codes)
    assert all(torch.equal(a, b) for a, b in zip(found.codebook.fine, codebook.fine, strict=True))
    assert found.codebook.feature_spec == SOURCE.spec


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


def test_plain_pictures_are_told():
    with pytest.raises(BestiaryError) as fault:
        find([torch.full((2, 64, 64, 3), 0.5)], choice=DiscoveryChoice(num_parts=16))
    assert str(fault.value) == (
        "no foreground found: all 2 pictures are one plain colour; connect pictures of an object"
    )


class RealFeatures(DescriptorFeatures):
    """Stands for the source imagenet."""

    name = "imagenet"


def test_features_of_photographs_need_three_different_pictures(drawn_images):
    source = RealFeatures(image_size=64, grid=8)
    with pytest.raises(BestiaryError, match="2 pictures in the input images: parts are found by comparing"):
        find_parts([drawn_images[:2]], None, source, CHOICE, GraphProgress(None))
    with pytest.raises(BestiaryError, match="all 4 pictures of the input images are identical"):
        find_parts([drawn_images[:1].expand(4, -1, -1, -1)], None, source, CHOICE, GraphProgress(None))


def test_parts_are_named_by_place_in_words(drawn_images):
    names = find([drawn_images]).codebook.part_names
    assert names[2] == "background"
    assert set(" ".join(names[:2]).split()) <= {
        *("top", "upper", "middle", "lower", "bottom", "left", "right", "large", "small", "1", "2")
    }


def test_hardly_anything_found_is_told(drawn_images):
    found = find([drawn_images])
    for entry in found.seen:
        entry.maps.labels[:] = 2
    assert "In 8 of 8 pictures no foreground was found." in doubts(found.codebook, found.seen)


def test_confidence_and_the_pictures_to_look_at_are_told(drawn_images):
    found = find([drawn_images])
    sure = part_confidence(found)
    assert len(sure) == 3 and all(0 <= value <= 1 for value in sure)
    unsure = unsure_pictures(found, 2)
    assert len(unsure) == 2 and all(line.startswith("picture ") for line in unsure)
    text = discovery_text(found.codebook, found.seen, None, confidence=sure, unsure=unsure)
    assert f"{sure[0]:.0%} confidence" in text and f"Check first: {unsure[0]}; {unsure[1]}." in text
    assert part_confidence(replace(found, sure=None)) == unsure_pictures(replace(found, sure=None)) == []


def test_bad_entries_of_a_list_are_numbered(drawn_images):
    broken = drawn_images[:2].clone()
    broken[1, 0, 0, 0] = float("nan")
    with pytest.raises(BestiaryError, match="picture 2 of 2 in entry 2 of the list contains NaN or infinity"):
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
            "all 8 foreground masks are empty: paint the object white, or leave the input foreground unconnected",
        ),
        (
            [torch.full((8, 128, 128), float("nan"))],
            "foreground mask 1 contains NaN or infinity: check the node that made it",
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
