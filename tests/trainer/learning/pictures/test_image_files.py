"""Picture files of every kind people have: decoded to upright RGB, or refused with a reason that helps."""

import os
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.trainer.learning.pictures import image_files
from bestiary.trainer.learning.pictures.image_files import (
    UnreadableImage,
    fit_square,
    image_to_tensor,
    list_images,
    picture_size,
    read_image,
    scan_images,
)
from PIL import Image

RED, GREEN, WHITE = (255, 0, 0), (0, 128, 0), (255, 255, 255)


def two_halves(width: int = 40, height: int = 20) -> Image.Image:
    """Red on the left, green on the right."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(GREEN, (width // 2, 0, width, height))
    return image


def png_claiming(path: Path, width: int, height: int) -> Path:
    """A PNG of a few bytes whose header claims a picture of any size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    )
    return path


def reason_of(path: Path) -> str:
    with pytest.raises(UnreadableImage) as fault:
        read_image(path)
    assert str(fault.value) == f"{path}: {fault.value.reason}"
    return fault.value.reason


def test_folders_are_searched_in_a_fixed_order_with_spaces_and_unicode(tmp_path: Path) -> None:
    for name in ("b.png", "a b/ä ö.JPG", "a b/1.webp", "vögel/x.tif", ".hidden/y.png", "__MACOSX/z.png", "a b/._m.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    for name in ("labels.csv", "notes.txt", "more.txt", "README"):
        (tmp_path / name).touch()
    found = [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path)]
    assert found == ["b.png", "a b/1.webp", "a b/ä ö.JPG", "vögel/x.tif"]
    assert scan_images(tmp_path).other_files == {".csv": 1, ".txt": 2, "no suffix": 1}


def test_left_out_folders_and_loops_of_links(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "deep").mkdir()
    for name in ("a.png", "out/b.png", "deep/c.png"):
        (tmp_path / name).touch()
    (tmp_path / "deep" / "back").symlink_to(tmp_path)
    assert scan_images(tmp_path, [tmp_path / "out"]).names == ["a.png", "deep/c.png"]


def test_names_that_no_list_can_hold_are_reported(tmp_path: Path) -> None:
    (tmp_path / "a\nb.png").touch()
    with open(os.fsencode(tmp_path) + b"/\xff.png", "wb"):
        pass
    scan = scan_images(tmp_path)
    assert scan.names == []
    assert sorted(scan.unreadable) == [
        ("\\udcff.png", "its name is not valid Unicode: rename the file"),
        ("a\\nb.png", "its name contains a line break: rename the file"),
    ]


def test_every_file_that_is_no_picture_is_kept_with_a_reason(tmp_path: Path) -> None:
    for name in ("a.png", "notes.txt", "b.CR2", "README", "c.HEIC"):
        (tmp_path / name).touch()
    scan = scan_images(tmp_path)
    assert scan.names == ["a.png", "c.HEIC"] and scan.other_files == {".cr2": 1, ".txt": 1, "no suffix": 1}
    # pictures of kinds that are never read stand with those that cannot be
    assert scan.unreadable == [("b.CR2", ".cr2 is not a supported picture format")]
    assert scan.others == [
        ("README", "a name without suffix is not a supported picture format"),
        ("notes.txt", ".txt is not a supported picture format"),
    ]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
def test_a_pipe_among_pictures_is_passed_over(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    two_halves().save(tmp_path / "a.png")
    scan = scan_images(tmp_path)
    assert scan.names == ["a.png"]
    assert scan.unreadable == [("pipe.png", "it is a pipe, a socket or a device, not a file")]
    # opening it would wait for ever
    assert reason_of(tmp_path / "pipe.png") == "it is a pipe, a socket or a device, not a file"


def test_heic_names_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "a.heic").write_bytes(bytes(4) + b"ftypheic" + bytes(40))
    assert reason_of(tmp_path / "a.heic") == (
        "it is a HEIC picture: install pillow-heif (`pip install pillow-heif`), or save it as JPEG or PNG"
    )
    # telephones and mail programs rename: what is a JPEG is read as one
    two_halves().save(tmp_path / "b.jpg", quality=95)
    (tmp_path / "b.jpg").rename(tmp_path / "b.HEIC")
    assert read_image(tmp_path / "b.HEIC").size == (40, 20)


def test_heic_is_read_where_its_library_is(tmp_path: Path) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.from_pillow(two_halves(64, 32)).save(tmp_path / "a.heic", quality=95)
    red, green, blue = read_image(tmp_path / "a.heic").getpixel((10, 10))
    assert red > 220 and green < 40 and blue < 40 and picture_size(tmp_path / "a.heic") == (64, 32)


def test_sizes_are_those_of_the_upright_picture(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    two_halves().save(tmp_path / "turned.jpg", exif=exif)
    two_halves().save(tmp_path / "a.png")
    assert picture_size(tmp_path / "turned.jpg") == (20, 40) == read_image(tmp_path / "turned.jpg").size
    assert picture_size(tmp_path / "a.png") == (40, 20)
    with pytest.raises(UnreadableImage, match="it no longer exists"):
        picture_size(tmp_path / "none.png")


@pytest.mark.parametrize(("name", "state"), [("missing", "does not exist"), ("file", "is a file")])
def test_a_folder_that_is_none(tmp_path: Path, name: str, state: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BestiaryError) as fault:
        list_images(tmp_path / name)
    assert str(fault.value) == f"image folder {tmp_path / name} {state}: give a folder of pictures"


@pytest.mark.parametrize("suffix", [".png", ".webp", ".bmp", ".tiff", ".gif", ".ppm"])
def test_common_formats_give_the_same_pixels(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"picture{suffix}"
    two_halves().save(path, **({"lossless": True} if suffix == ".webp" else {}))
    assert np.array_equal(np.asarray(read_image(path)), np.asarray(two_halves()))


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (20, 20), (255, 0, 0, 0))
    clear.paste((0, 128, 0, 255), (10, 0, 20, 20))
    clear.save(tmp_path / "rgba.png")
    palette = two_halves(20, 20).quantize(4)
    palette.save(tmp_path / "palette.png", transparency=palette.getpixel((0, 0)))
    Image.new("LA", (20, 20), (0, 0)).save(tmp_path / "grey.png")
    keyed = two_halves(20, 20)
    keyed.save(tmp_path / "keyed.png", transparency=RED)
    for name in ("rgba", "palette", "keyed"):
        image = read_image(tmp_path / f"{name}.png")
        assert image.mode == "RGB"
        assert (image.getpixel((2, 2)), image.getpixel((15, 2))) == (WHITE, GREEN), name
    assert read_image(tmp_path / "grey.png").getpixel((0, 0)) == WHITE


@pytest.mark.parametrize("mode", ["1", "L", "P", "YCbCr"])
def test_other_colour_modes(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("picture.jpg" if mode == "YCbCr" else "picture.png")
    Image.new("L", (20, 20), 255).convert("RGB").convert(mode).save(path)
    assert read_image(path).getpixel((10, 10)) == WHITE


@pytest.mark.parametrize("suffix", [".jpg", ".tif"])
def test_cmyk(tmp_path: Path, suffix: str) -> None:
    Image.new("CMYK", (20, 20), (0, 255, 255, 0)).save(tmp_path / f"red{suffix}")
    red, green, blue = read_image(tmp_path / f"red{suffix}").getpixel((10, 10))
    assert red > 250 and green < 5 and blue < 5


def test_sixteen_bits_and_floats_keep_their_range(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 400).reshape(20, 20)
    Image.fromarray(ramp.astype(np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray((ramp / 65535).astype(np.float32)).save(tmp_path / "unit.tif")
    Image.fromarray((ramp / 257).astype(np.float32)).save(tmp_path / "byte.tif")
    Image.fromarray(ramp.astype(np.int32)).save(tmp_path / "long.tif")
    dark = np.zeros((20, 20), np.uint16)
    dark[0, 0] = 255
    Image.fromarray(dark).save(tmp_path / "dark.png")
    for name in ("deep.png", "unit.tif", "byte.tif", "long.tif"):
        ours = np.asarray(read_image(tmp_path / name))[..., 0].astype(float)
        assert np.abs(ours - ramp / 257).max() <= 0.51, name
    assert read_image(tmp_path / "dark.png").getpixel((0, 0)) == (1, 1, 1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_rotation_tags_are_applied(tmp_path: Path, orientation: int) -> None:
    upright = np.asarray(two_halves())
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: np.rot90(upright, 2).transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(np.asarray(read_image(tmp_path / "turned.png")), upright)


def test_a_broken_rotation_tag_counts_as_upright(tmp_path: Path) -> None:
    two_halves().save(tmp_path / "a.jpg", exif=b"Exif\x00\x00garbage of no meaning", quality=95)
    assert read_image(tmp_path / "a.jpg").size == (40, 20)


def test_an_animation_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (20, 20), color) for color in (RED, GREEN)]
    for name in ("a.gif", "a.webp", "a.png"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        red, green, blue = read_image(tmp_path / name).getpixel((10, 10))
        assert red > 240 and green < 12 and blue < 12, name


def test_files_that_are_no_pictures(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.png").write_text("this is no picture")
    (tmp_path / "fake.jpg").write_bytes(b"\xff\xd8\xff" + b"no jpeg at all")
    assert reason_of(tmp_path / "empty.jpg") == "the file is empty"
    assert reason_of(tmp_path / "text.png") == "it is not a picture, or its format is not supported here"
    assert reason_of(tmp_path / "fake.jpg").startswith("it is ")
    assert reason_of(tmp_path / "gone.jpg") == "it no longer exists"


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".gif", ".tif"])
def test_files_cut_short(tmp_path: Path, suffix: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    noise.save(tmp_path / f"whole{suffix}")
    content = (tmp_path / f"whole{suffix}").read_bytes()
    (tmp_path / f"cut{suffix}").write_bytes(content[: len(content) // 2])
    reason = reason_of(tmp_path / f"cut{suffix}")
    assert reason.startswith(("it is truncated", "it is damaged", "it is not a picture"))
    assert str(tmp_path) not in reason


def test_every_damaged_byte_is_survived(tmp_path: Path) -> None:
    """Flips bytes all over small files of each format: a picture or a reason, never another exception."""
    generator = np.random.default_rng(1)
    survived = 0
    for suffix in (".png", ".jpg", ".gif", ".tif", ".webp", ".bmp"):
        two_halves().save(tmp_path / f"a{suffix}")
        content = np.frombuffer((tmp_path / f"a{suffix}").read_bytes(), np.uint8)
        for _ in range(60):
            broken = content.copy()
            broken[generator.integers(0, min(len(broken), 400), 3)] = generator.integers(0, 256, 3)
            (tmp_path / f"broken{suffix}").write_bytes(broken.tobytes())
            try:
                survived += read_image(tmp_path / f"broken{suffix}").mode == "RGB"
            except UnreadableImage as fault:
                assert fault.reason
    assert survived > 30


def test_pictures_too_small_or_too_large_to_decode(tmp_path: Path) -> None:
    two_halves(40, 8).save(tmp_path / "small.png")
    assert reason_of(tmp_path / "small.png") == "40 x 8 pixels are too few: at least 16 x 16 are required"
    bomb = png_claiming(tmp_path / "bomb.png", 12000, 9000)
    assert reason_of(bomb) == "12000 x 9000 pixels are too many: resize it to at most 90 million pixels"
    giant = png_claiming(tmp_path / "giant.png", 200_000, 200_000)
    assert reason_of(giant) == "it has too many pixels: resize it to at most 90 million pixels"


def test_a_huge_jpeg_is_decoded_at_a_fraction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_files, "MAX_PIXELS", 1_000_000)
    monkeypatch.setattr(image_files, "_DRAFT_EDGE", 256)
    two_halves(4000, 2000).save(tmp_path / "huge.jpg")
    assert read_image(tmp_path / "huge.jpg").size == (1000, 500)
    monkeypatch.setattr(image_files, "MAX_JPEG_PIXELS", 2_000_000)
    assert reason_of(tmp_path / "huge.jpg") == "4000 x 2000 pixels are too many: resize it to at most 2 million pixels"


def test_a_jpeg_far_beyond_the_size_pillow_accepts_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two_halves(4000, 2000).save(tmp_path / "huge.jpg")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)
    with pytest.raises(Image.DecompressionBombError):
        Image.open(tmp_path / "huge.jpg")
    assert read_image(tmp_path / "huge.jpg", at_least=120).size == (500, 250)


def test_decoding_at_a_fraction_keeps_twice_the_asked_edge(tmp_path: Path) -> None:
    two_halves(800, 600).save(tmp_path / "a.jpg")
    assert [read_image(tmp_path / "a.jpg", edge).size for edge in (64, 100, 200, None)] == [
        (200, 150),
        (400, 300),
        (800, 600),
        (800, 600),
    ]


def test_a_file_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two_halves().save(tmp_path / "a.png")

    def refuse(*args: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(UnreadableImage) as fault:
        read_image(tmp_path / "a.png")
    assert fault.value.reason == "it cannot be read: check its permissions"


def test_a_decoder_out_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two_halves().save(tmp_path / "a.png")

    def fail(image: Image.Image) -> None:
        raise MemoryError

    monkeypatch.setattr(image_files, "_rgb", fail)
    assert reason_of(tmp_path / "a.png") == "there is not enough memory to decode it"


def test_the_centre_square_is_kept() -> None:
    wide = Image.new("RGB", (60, 20), RED)
    wide.paste(GREEN, (20, 0, 40, 20))
    assert fit_square(wide, 20).getcolors() == [(400, GREEN)]
    assert fit_square(wide.rotate(90, expand=True), 20).getcolors() == [(400, GREEN)]
    assert fit_square(two_halves(20, 20), 20).tobytes() == two_halves(20, 20).tobytes()
    assert fit_square(two_halves(5000, 17), 32).size == (32, 32)


def test_tensor_has_channels_first_and_unit_range() -> None:
    ours = image_to_tensor(two_halves(4, 2))
    assert ours.shape == (3, 2, 4) and ours.dtype == torch.float32
    assert ours[:, 0, 0].tolist() == [1.0, 0.0, 0.0]
    assert ours[1, 1, 3].item() == pytest.approx(128 / 255)
