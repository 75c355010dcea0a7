"""Places painted anew by our own loop: what is kept, seeds, strength, and requests that cannot be met."""

from collections.abc import Callable

import pytest
import torch
from bestiary.concepts.denoiser.denoiser import Conditioning, PromptPiece
from bestiary.concepts.errors import BestiaryError
from bestiary.trainer.model.repainting import repaint_images
from torch import Tensor

SIZE = 64


@pytest.fixture(scope="module", params=["sd15", "sdxl", "bestiary-demo"])
def denoiser(request: pytest.FixtureRequest, tiny_denoiser: Callable) -> object:
    return tiny_denoiser(request.param)


def encoded(denoiser: object, text: str) -> Conditioning:
    return denoiser.text.encode([denoiser.text.tokenize([PromptPiece(text)])], None)


@pytest.fixture
def picture() -> Tensor:
    return torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def right_half() -> Tensor:
    mask = torch.zeros(1, SIZE, SIZE)
    mask[..., SIZE // 2 :] = 1
    return mask


def test_what_is_kept_is_what_the_autoencoder_makes_of_it(denoiser, picture) -> None:
    nothing = repaint_images(
        denoiser, encoded(denoiser, "a red bird"), None, picture, torch.zeros(1, SIZE, SIZE), seeds=[1], steps=4
    )
    images = denoiser.images
    plain = images.decode(images.from_cache(images.to_cache(picture)))
    torch.testing.assert_close(nothing, plain, atol=1e-5, rtol=0)


def test_latents_outside_the_mask_stay_to_the_last_bit(denoiser, picture, right_half, monkeypatch) -> None:
    seen: list[Tensor] = []
    decode = denoiser.images.decode
    monkeypatch.setattr(denoiser.images, "decode", lambda latents: seen.append(latents) or decode(latents))
    prompt = encoded(denoiser, "a red bird")
    repaint_images(denoiser, prompt, None, picture, right_half, seeds=[1], steps=4, strength=1.0)
    kept = denoiser.images.from_cache(denoiser.images.to_cache(picture))
    half = kept.shape[-1] // 2
    assert torch.equal(seen[0][..., :half], kept[..., :half])
    assert not torch.allclose(seen[0][..., half:], kept[..., half:], atol=1e-2)


def test_the_seed_decides_and_strength_grows_the_change(denoiser, picture, right_half) -> None:
    prompt = encoded(denoiser, "a red bird")
    same = {"steps": 10, "guidance": 1.0}

    def made(seed: int, strength: float) -> Tensor:
        return repaint_images(denoiser, prompt, None, picture, right_half, seeds=[seed], strength=strength, **same)

    assert torch.equal(made(1, 0.5), made(1, 0.5))
    assert not torch.allclose(made(1, 0.5), made(2, 0.5), atol=1e-3)
    plain = denoiser.images.decode(denoiser.images.from_cache(denoiser.images.to_cache(picture)))
    weak, strong = ((made(1, strength) - plain).abs()[..., SIZE // 2 :].mean() for strength in (0.1, 0.9))
    assert weak < strong


def test_a_batch_is_its_pictures_one_by_one(denoiser, picture, right_half) -> None:
    prompt, other = encoded(denoiser, "a red bird"), encoded(denoiser, "head")
    same = {"steps": 4, "guidance": 2.0}
    both = repaint_images(
        denoiser, prompt, other, picture.expand(2, -1, -1, -1), right_half.expand(2, -1, -1), seeds=[1, 2], **same
    )
    second = repaint_images(denoiser, prompt, other, picture, right_half, seeds=[2], **same)
    torch.testing.assert_close(both[1:], second, atol=1e-4, rtol=0)


def test_every_step_is_reported(denoiser, picture, right_half) -> None:
    steps: list[tuple[int, int]] = []
    repaint_images(
        denoiser, encoded(denoiser, "head"), None, picture, right_half, seeds=[1], steps=10, strength=0.3,
        on_step=lambda done, total: steps.append((done, total)),
    )  # fmt: skip
    assert steps == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({"strength": 0.0}, "strength 0 above 0"),
        ({"strength": 1.5}, "strength 1.5 above 0 and at most 1"),
        ({"steps": 0}, "steps 0 must be at least 1"),
        ({"seeds": [1, 2]}, "there are 2 seeds"),
        ({"masks": torch.zeros(1, 32, 64)}, r"masks \(1, 32, 64\)"),
        ({"images": torch.zeros(1, 3, 60, 60), "masks": torch.zeros(1, 60, 60)}, "picture size 60 x 60: both edges"),
    ],
)
def test_requests_that_cannot_be_met(changed, fault, denoiser, picture, right_half) -> None:
    request = {"images": picture, "masks": right_half, "seeds": [1], "steps": 2, "strength": 0.5} | changed
    with pytest.raises(BestiaryError, match=fault):
        repaint_images(denoiser, encoded(denoiser, "head"), None, **request)
