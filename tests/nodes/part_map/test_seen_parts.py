"""What a codebook sees in pictures: each by itself, at their own size, under names people type."""

import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.features.patch_features import DescriptorFeatures, PatchGrid
from bestiary.concepts.part_map.part_map import PartMaps
from bestiary.nodes.part_map.part_pictures import as_squares
from bestiary.nodes.part_map.seen_parts import SeenParts, describe_images, joined_grids, see_parts

SOURCE = DescriptorFeatures(image_size=64, grid=8)


def seen_parts(**changes: object) -> SeenParts:
    labels = torch.zeros(1, 4, 4, dtype=torch.uint8)
    labels[0, :, 2:] = 1
    fields = {
        "part_names": ("head", "upper wing", "background"),
        "background": 2,
        "maps": PartMaps(labels, torch.tensor([[0, 1, -1]])),
        "size": (32, 48),
        "fit": "centre square",
        **changes,
    }
    return SeenParts(**fields)


def test_features_are_the_sources_own_rounded_as_stored(drawn_images):
    ours = describe_images(drawn_images, SOURCE, "centre square").features
    theirs = SOURCE(as_squares(drawn_images, 64, "centre square")).features.half().float()
    assert torch.equal(ours, theirs)


def test_pictures_are_counted_as_they_are_done(drawn_images):
    counts: list[int] = []
    describe_images(torch.cat([drawn_images, drawn_images[:3]]), SOURCE, "centre square", counts.append)
    assert sum(counts) == 11 and len(counts) == 2


def test_a_picture_does_not_depend_on_its_neighbours(drawn_images, small_codebook):
    together = see_parts(
        small_codebook, describe_images(drawn_images, SOURCE, "centre square"), (128, 128), "centre square"
    )
    for number in range(3):
        grid = describe_images(drawn_images[number : number + 1], SOURCE, "centre square")
        alone = see_parts(small_codebook, grid, (128, 128), "centre square")
        assert torch.equal(alone.maps.labels[0], together.maps.labels[number])
        assert torch.equal(alone.maps.codes[0], together.maps.codes[number])


def test_maps_are_those_of_the_codebook(drawn_images, small_codebook):
    grid = describe_images(drawn_images, SOURCE, "centre square")
    ours, theirs = see_parts(small_codebook, grid, (128, 128), "centre square").maps, small_codebook.segment(grid)
    assert torch.equal(ours.labels, theirs.labels) and torch.equal(ours.codes, theirs.codes)


def test_features_that_are_no_numbers_are_refused(drawn_images):
    class Broken(DescriptorFeatures):
        def __call__(self, images):
            return PatchGrid(torch.full((len(images), 8, 8, 4), float("nan")))

    with pytest.raises(BestiaryError) as fault:
        describe_images(drawn_images, Broken(64, 8), "centre square")
    assert str(fault.value) == (
        "the descriptor features of the pictures are not finite numbers: choose another feature source"
    )


def test_grids_are_joined_with_their_saliency():
    grids = [PatchGrid(torch.rand(n, 2, 2, 3), torch.rand(n, 2, 2)) for n in (1, 2)]
    joined = joined_grids(grids)
    assert joined.features.shape == (3, 2, 2, 3) and torch.equal(joined.saliency[1:], grids[1].saliency)
    assert joined_grids([PatchGrid(grid.features) for grid in grids]).saliency is None


def test_areas_lie_over_the_picture():
    areas = seen_parts().areas(0)
    assert areas.shape == (3, 32, 48)
    owner = areas.argmax(0)
    assert owner[16].tolist() == [2] * 8 + [0] * 16 + [1] * 16 + [2] * 8
    assert seen_parts().areas(0, (64, 96)).argmax(0)[::2, ::2][16].tolist() == owner[16].tolist()
    whole = seen_parts(fit="whole picture").areas(0).argmax(0)
    assert whole[16].tolist() == [0] * 24 + [1] * 24


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("head", [0]),
        (" Upper-Wing , head", [1, 0]),
        ("foreground", [0, 1]),
        ("head, foreground, background", [0, 1, 2]),
        ("2", [2]),
        ("head,head", [0]),
    ],
)
def test_parts_are_found_by_name_number_and_together(text, parts):
    assert seen_parts().find_parts(text) == parts


def test_a_part_called_foreground_is_itself():
    assert seen_parts(part_names=("foreground", "legs", "background")).find_parts("foreground") == [0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hed", "unknown part 'hed': choose 'head', 'upper wing', 'background', 'foreground', or a number of 0 to 2"),
        ("3", "unknown part '3': choose 'head', 'upper wing', 'background', 'foreground', or a number of 0 to 2"),
        (
            " , ",
            "no part given in ' , ': choose 'head', 'upper wing', 'background', 'foreground', or a number of 0 to 2",
        ),
    ],
)
def test_unknown_parts_are_told_with_the_choices(text, message):
    with pytest.raises(BestiaryError) as fault:
        seen_parts().find_parts(text)
    assert str(fault.value) == message
