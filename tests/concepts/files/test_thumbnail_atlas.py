"""The thumbnail atlas: tiles come back, broken pictures are refused."""

import io

import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.files.thumbnail_atlas import ThumbnailAtlas
from PIL import Image

COLOURS = {(0, 3): (250, 10, 10), (0, 7): (10, 250, 10), (2, 1): (10, 10, 250)}


def coloured(size: tuple[int, int] = (40, 40)) -> dict[tuple[int, int], Image.Image]:
    return {pair: Image.new("RGB", size, colour) for pair, colour in COLOURS.items()}


def test_tiles_come_back_through_tensors() -> None:
    tensors = ThumbnailAtlas.from_images(coloured(), 32).to_tensors()
    assert tensors["picture"].dtype == torch.uint8
    atlas = ThumbnailAtlas.from_tensors(tensors)
    for pair, colour in COLOURS.items():
        tile = atlas.tile(*pair)
        assert tile.size == (32, 32)
        assert all(abs(a - b) < 25 for a, b in zip(tile.getpixel((16, 16)), colour, strict=True))
    assert atlas.tile(2, 3) is None


def test_pictures_keep_their_shape_on_black() -> None:
    tile = ThumbnailAtlas.from_images({(0, 0): Image.new("L", (80, 20), 255)}, 40).tile(0, 0)
    assert min(tile.getpixel((20, 20))) > 200
    assert max(tile.getpixel((20, 2))) < 50


def test_many_tiles_shrink_to_the_largest_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bestiary.concepts.files.thumbnail_atlas.LARGEST_EDGE", 100)
    images = {(0, kind): Image.new("RGB", (8, 8)) for kind in range(90)}
    atlas = ThumbnailAtlas.from_images(images, 32)
    assert atlas.tile_size == 10
    assert atlas.tile(0, 89).size == (10, 10)


def test_a_selection_takes_new_pairs() -> None:
    atlas = ThumbnailAtlas.from_images(coloured(), 32).restricted_to({(2, 1): (5, 5), (9, 9): (6, 6)})
    assert atlas.index == ((5, 5),)
    assert atlas.tile(5, 5).getpixel((16, 16))[2] > 200
    assert ThumbnailAtlas.from_images(coloured(), 32).restricted_to({}) is None


def test_an_empty_atlas_is_refused() -> None:
    with pytest.raises(BestiaryError, match="needs at least one thumbnail"):
        ThumbnailAtlas.from_images({})


def test_broken_atlases_are_refused() -> None:
    good = ThumbnailAtlas.from_images(coloured(), 32).to_tensors()
    with pytest.raises(BestiaryError, match=r"expected picture, index and shape, got \['index', 'shape'\]"):
        ThumbnailAtlas.from_tensors({name: good[name] for name in ("index", "shape")})
    with pytest.raises(BestiaryError, match="7 bytes are not a WebP picture"):
        ThumbnailAtlas.from_tensors({**good, "picture": torch.zeros(7, dtype=torch.uint8)})
    with pytest.raises(BestiaryError, match="the picture is 64x64 pixels, 3 tiles of 99999 pixels in 2 columns"):
        ThumbnailAtlas.from_tensors({**good, "shape": torch.tensor([99999, 2])})
    with pytest.raises(BestiaryError, match="3 tiles of 32 pixels in 0 columns"):
        ThumbnailAtlas.from_tensors({**good, "shape": torch.tensor([32, 0])})


def test_other_picture_formats_are_not_opened() -> None:
    stream = io.BytesIO()
    Image.new("RGB", (64, 64)).save(stream, "PNG")
    good = ThumbnailAtlas.from_images(coloured(), 32).to_tensors()
    good["picture"] = torch.frombuffer(bytearray(stream.getvalue()), dtype=torch.uint8)
    with pytest.raises(BestiaryError, match="are not a WebP picture"):
        ThumbnailAtlas.from_tensors(good)


def test_a_cut_picture_fails_clearly_when_shown() -> None:
    whole = ThumbnailAtlas.from_images({(0, 0): Image.effect_noise((200, 200), 90)}, 200)
    cut = ThumbnailAtlas(whole.webp[: len(whole.webp) // 2], whole.index, whole.tile_size, whole.columns)
    with pytest.raises(BestiaryError, match="the thumbnails are broken"):
        ThumbnailAtlas.from_tensors(cut.to_tensors()).tile(0, 0)


def test_a_pillow_without_webp_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Image.Image, *args: object, **options: object) -> None:
        raise KeyError("WEBP")

    monkeypatch.setattr(Image.Image, "save", refuse)
    with pytest.raises(BestiaryError, match=r"the installed Pillow cannot write WebP \('WEBP'\): update Pillow"):
        ThumbnailAtlas.from_images({(0, 0): Image.new("RGB", (8, 8))})
