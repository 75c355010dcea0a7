import torch
from bestiary.concepts.features.patch_features import PatchGrid
from bestiary.concepts.part_map.sample_views import MOST_VIEWS, look_again, viewed_pictures
from torch import Tensor


class RowsAndColumns:
    """A source whose features are the mean colour of patches of 16 pixels."""

    def __call__(self, images: Tensor) -> PatchGrid:
        assert images.shape[1:] == (3, 128, 128)
        return PatchGrid(torch.nn.functional.avg_pool2d(images, 16).permute(0, 2, 3, 1))


def ramps(count: int) -> list[tuple[int, Tensor]]:
    """Pictures whose red says the row and whose green says the column of a pixel, 0..1."""
    line = (torch.arange(128) + 0.5) / 128
    image = torch.stack([line.view(-1, 1).expand(128, 128), line.expand(128, 128), torch.zeros(128, 128)])
    return [(3 * number, image) for number in range(count)]


def test_every_patch_of_a_view_knows_the_patch_of_the_picture_it_shows() -> None:
    views = look_again(ramps(19), RowsAndColumns(), seed=1)
    assert views.picture.tolist() == list(range(0, 57, 3))
    shown = views.grid.features  # (19, 8, 8, 3)
    rows, columns = views.place // 8, views.place % 8
    # half a patch, and the resampling
    assert float((shown[..., 0] - (rows + 0.5) / 8).abs().max()) < 0.5 / 8 + 0.02
    assert float((shown[..., 1] - (columns + 0.5) / 8).abs().max()) < 0.5 / 8 + 0.02
    # mirrored: columns fall from left to right; windows differ
    assert bool((columns.diff(dim=2) <= 0).all()) and len(views.place[:, 0, 0].unique()) > 3
    maps = torch.arange(64).view(1, 8, 8).expand(57, 8, 8)
    assert torch.equal(views.carried(maps), views.place)


def test_windows_depend_on_the_seed_alone_and_no_picture_gives_no_view() -> None:
    first, again, other = (look_again(ramps(5), RowsAndColumns(), seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.place, again.place) and torch.equal(first.grid.features, again.grid.features)
    assert not torch.equal(first.place, other.place)
    assert look_again([], RowsAndColumns(), seed=1) is None


def test_at_most_so_many_pictures_are_seen_again_evenly_spread() -> None:
    assert viewed_pictures(5) == [0, 1, 2, 3, 4]
    many = viewed_pictures(1000)
    assert len(many) == MOST_VIEWS == len(set(many)) and many[0] == 0 and many[-1] == 999
