"""Latent cache: encoded once, resumed where it stopped, crops equal to crop-then-encode, clear faults."""

import errno
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from bestiary.concepts.errors import BestiaryError
from bestiary.trainer.learning.pictures import latent_cache
from bestiary.trainer.learning.pictures.image_files import fit_square, image_to_tensor, read_image
from bestiary.trainer.learning.pictures.latent_cache import MOMENTS_NAME, CacheSpec, open_cache, picture_stamps
from PIL import Image
from torch import Tensor


class PoolEncoder:
    """Stands in for an autoencoder: 8 x 8 means as mean, a constant as log-variance; counts its calls."""

    def __init__(self, fail_after: int | None = None) -> None:
        self.pictures, self.fail_after = 0, fail_after

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        if self.fail_after is not None and self.pictures >= self.fail_after:
            raise KeyboardInterrupt
        self.pictures += len(images)
        mean = F.avg_pool2d(images, 8)  # (B, 3, h, w)
        return mean, torch.full_like(mean, -3)


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(5):
        pixels = rng.integers(0, 255, (48 + 8 * number, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return sorted(folder.iterdir())


def spec_of(paths: list[Path], size: int = 48, flip: bool = False, model: str = "m") -> CacheSpec:
    stamps = picture_stamps(paths[0].parent, [path.name for path in paths])
    return CacheSpec(model, size, size // 8, 3, flip, stamps)


def test_pictures_are_encoded_once(tmp_path: Path, pictures: list[Path]) -> None:
    encoder, spec, reports = PoolEncoder(), spec_of(pictures), []
    for _ in range(2):
        cache = open_cache(
            tmp_path / "cache", spec, pictures, lambda: encoder, batch_size=2,
            on_progress=lambda done, total: reports.append((done, total)),
        )  # fmt: skip
    assert encoder.pictures == 5 and reports == [(2, 5), (4, 5), (5, 5)]
    square = image_to_tensor(fit_square(read_image(pictures[3]), 48)).unsqueeze(0)
    ours = cache.read([3], [0], [0], [0], 6)
    torch.testing.assert_close(ours[0, 0].float(), F.avg_pool2d(square, 8)[0], atol=1e-3, rtol=0)
    assert (ours[:, 1] == -3).all() and ours.dtype == torch.float16


def test_the_encoder_is_not_even_loaded_when_nothing_is_left(tmp_path: Path, pictures: list[Path]) -> None:
    open_cache(tmp_path, spec_of(pictures), pictures, PoolEncoder, batch_size=2)

    def refuse() -> PoolEncoder:
        raise AssertionError("loaded")

    open_cache(tmp_path, spec_of(pictures), pictures, refuse, batch_size=2)


def test_an_interrupted_cache_is_finished(tmp_path: Path, pictures: list[Path]) -> None:
    first, second = PoolEncoder(fail_after=2), PoolEncoder()
    with pytest.raises(KeyboardInterrupt):
        open_cache(tmp_path, spec_of(pictures), pictures, lambda: first, batch_size=2)
    ours = open_cache(tmp_path, spec_of(pictures), pictures, lambda: second, batch_size=2)
    assert (first.pictures, second.pictures) == (2, 3)
    theirs = open_cache(tmp_path / "other", spec_of(pictures), pictures, PoolEncoder, batch_size=5)
    assert np.array_equal(ours.moments, theirs.moments)


def test_another_model_size_or_picture_is_another_cache(pictures: list[Path]) -> None:
    known = {spec_of(pictures).fingerprint(), spec_of(pictures, model="n").fingerprint()}
    known |= {spec_of(pictures, size=64).fingerprint(), spec_of(pictures, flip=True).fingerprint()}
    Image.new("RGB", (70, 70)).save(pictures[0])
    known.add(spec_of(pictures).fingerprint())
    assert len(known) == 5


def test_a_crop_on_the_latent_grid_equals_crop_then_encode(tmp_path: Path, pictures: list[Path]) -> None:
    cache = open_cache(tmp_path, spec_of(pictures), pictures, PoolEncoder, batch_size=2)
    ours = cache.read([1], [0], [2], [1], 3)[:, 0].float()  # (1, C, 3, 3)
    pixels = image_to_tensor(fit_square(read_image(pictures[1]), 48)).unsqueeze(0)[..., 16:40, 8:32]
    torch.testing.assert_close(ours, PoolEncoder()(pixels)[0], atol=1e-3, rtol=0)


def test_crops_of_an_autoencoder_without_global_layers_differ_at_the_border_only(tmp_path: Path) -> None:
    """Convolutions see beyond a crop near its border alone; inside, cropping the cache equals encoding the crop."""
    from diffusers import AutoencoderTiny

    torch.manual_seed(0)
    widths = {"encoder_block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4}
    counts = {"num_encoder_blocks": (1,) * 4, "num_decoder_blocks": (1,) * 4}
    model = AutoencoderTiny(latent_channels=3, **widths, **counts).eval()

    def encode(images: Tensor) -> tuple[Tensor, Tensor]:
        latents = model.encode(images).latents
        return latents, torch.full_like(latents, -30)

    Image.fromarray(np.random.default_rng(1).integers(0, 255, (256, 256, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    paths = [tmp_path / "a.png"]
    cache = open_cache(tmp_path / "cache", spec_of(paths, size=256), paths, lambda: encode, batch_size=1)
    ours = cache.read([0], [0], [4], [3], 24)[:, 0].float()  # (1, 3, 24, 24)
    pixels = image_to_tensor(read_image(paths[0])).unsqueeze(0)[..., 32:224, 24:216]
    with torch.no_grad():
        theirs = encode(pixels)[0]
    difference, scale = (ours - theirs).abs(), theirs.std()
    assert difference[..., 8:16, 8:16].max() < 2e-3 * scale
    assert difference.square().mean().sqrt() < 0.5 * scale


def test_mirrored_views_are_encoded_too(tmp_path: Path, pictures: list[Path]) -> None:
    cache = open_cache(tmp_path, spec_of(pictures, flip=True), pictures, PoolEncoder, batch_size=2)
    assert cache.moments.shape[:2] == (5, 2)
    assert np.array_equal(cache.moments[:, 1], cache.moments[:, 0][..., ::-1])


@pytest.mark.train
def test_worker_processes_decode_the_same(tmp_path: Path, pictures: list[Path]) -> None:
    ours = open_cache(tmp_path / "a", spec_of(pictures), pictures, PoolEncoder, batch_size=2, workers=1)
    theirs = open_cache(tmp_path / "b", spec_of(pictures), pictures, PoolEncoder, batch_size=2)
    assert np.array_equal(ours.moments, theirs.moments)


def test_missing_pictures_are_counted_and_the_first_is_named(pictures: list[Path]) -> None:
    pictures[1].unlink()
    pictures[4].unlink()
    with pytest.raises(
        BestiaryError, match=r"2 of 5 discovered pictures are missing in .*pictures, first 1.png: restore them"
    ):
        spec_of(pictures)


def test_a_full_disk_is_told_before_encoding(
    tmp_path: Path, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.open

    def full(self: Path, mode: str = "r", *args: object, **kwargs: object) -> object:
        if self.name == MOMENTS_NAME:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", full)
    encoder = PoolEncoder()
    with pytest.raises(
        BestiaryError, match=r"cannot store 0 MiB of latents in .*: No space left on device; .*images.cache"
    ):
        open_cache(tmp_path / "cache", spec_of(pictures), pictures, lambda: encoder, batch_size=2)
    assert encoder.pictures == 0


def test_an_encoder_of_another_shape_is_told(tmp_path: Path, pictures: list[Path]) -> None:
    def wrong(images: Tensor) -> tuple[Tensor, Tensor]:
        return images[..., :2, :2], images[..., :2, :2]

    with pytest.raises(BestiaryError, match=r"returned moments \(2, 3, 2, 2\), expected \(2, 3, 6, 6\)"):
        open_cache(tmp_path, spec_of(pictures), pictures, lambda: wrong, batch_size=2)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e6])
def test_latents_that_are_not_finite_are_never_kept(tmp_path: Path, pictures: list[Path], value: float) -> None:
    """1e6 is finite, but not in the two bytes of a kept number."""

    def overflow(images: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = PoolEncoder()(images)
        if len(images) == 2 and not seen:
            mean[1, 0, 0, 0] = value
        seen.append(len(images))
        return mean, log_variance

    seen: list[int] = []
    spec = replace(spec_of(pictures), precision="float16")
    with pytest.raises(
        BestiaryError, match=r"not finite for 1.png, computed in float16; they were not stored. Set run.dtype = .fp32"
    ):
        open_cache(tmp_path / "cache", spec, pictures, lambda: overflow, batch_size=2)
    # whoever follows the advice starts with an empty cache, and so does who repairs the model
    full = replace(spec, precision="float32")
    assert full.fingerprint() != spec.fingerprint()
    for again in (full, spec):
        encoder = PoolEncoder()
        cache = open_cache(tmp_path / "cache", again, pictures, lambda: encoder, batch_size=2)  # noqa: B023 - called at once
        assert encoder.pictures == 5 and np.isfinite(cache.moments).all()


@pytest.mark.parametrize("lack", ["no folder", "no room"])
def test_without_shared_memory_pictures_are_decoded_here(
    tmp_path: Path, pictures: list[Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, lack: str
) -> None:
    monkeypatch.setattr(latent_cache.sys, "platform", "linux")
    if lack == "no folder":
        monkeypatch.setattr(latent_cache, "SHARED_MEMORY", str(tmp_path / "shm"))
    else:
        full = SimpleNamespace(f_bavail=1, f_frsize=4096)
        monkeypatch.setattr(latent_cache.os, "statvfs", lambda place: full, raising=False)
    with caplog.at_level("INFO", logger="bestiary"):
        open_cache(tmp_path / "cache", spec_of(pictures), pictures, PoolEncoder, batch_size=2, workers=2)
    assert "no shared memory for 2 worker processes (/dev/shm): pictures are decoded in this one" in caplog.text
