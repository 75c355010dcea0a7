"""DINO and LPIPS as judges: equal pictures, order of pictures, the reference's own numbers where it is installed."""

import numpy as np
import pytest
import torch
from bestiary.trainer.evaluation.likeness_judges import DinoJudge, LpipsJudge, mean_cosine, mean_cosine_within
from PIL import Image


def _picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (70, 64, 3), dtype=np.uint8))


@pytest.fixture
def dino() -> DinoJudge:
    """Features are the colours of a grid."""
    return DinoJudge(lambda x: torch.nn.functional.adaptive_avg_pool2d(x, 4).flatten(1), 32)


@pytest.fixture
def lpips() -> LpipsJudge:
    """Five random convolutions of AlexNet's shapes."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((64, 3, 11), (192, 64, 5), (384, 192, 3), (256, 384, 3), (256, 256, 3))
    layers = [(torch.randn(o, i, k, k, generator=generator) * 0.05, torch.zeros(o)) for o, i, k in shapes]
    return LpipsJudge(layers, [torch.rand(o, generator=generator) for o, _, _ in shapes])


def test_equal_pictures_are_one_and_have_no_diversity(dino: DinoJudge, lpips: LpipsJudge) -> None:
    same = dino.pictures([_picture(0)] * 3)
    assert mean_cosine(same, same) == pytest.approx(1, abs=1e-6) and mean_cosine_within(same) == pytest.approx(
        1, abs=1e-6
    )
    images = torch.rand(1, 3, 64, 64).expand(3, -1, -1, -1)
    assert lpips.diversity(images) == 0
    assert lpips.diversity(torch.rand(3, 3, 64, 64)) > 0


def test_the_order_of_pictures_does_not_matter(dino: DinoJudge, lpips: LpipsJudge) -> None:
    some, real = ([_picture(n) for n in numbers] for numbers in ((0, 1, 2), (3, 4)))
    there = mean_cosine(dino.pictures(some), dino.pictures(real))
    assert mean_cosine(dino.pictures(some[::-1]), dino.pictures(real[::-1])) == pytest.approx(there, abs=1e-6)
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    assert lpips.diversity(images[[2, 0, 1]]) == pytest.approx(lpips.diversity(images), rel=1e-5)


def test_one_picture_has_no_pairs(dino: DinoJudge) -> None:
    assert mean_cosine_within(dino.pictures([_picture(0)])) is None


def test_distances_are_those_of_the_reference(lpips: LpipsJudge) -> None:
    """Package lpips, with our weights in place of its own."""
    theirs = pytest.importorskip("lpips").LPIPS(net="alex", pnet_rand=True, pretrained=False, verbose=False).eval()
    slices = [
        next(m for m in part.modules() if isinstance(m, torch.nn.Conv2d))
        for part in (theirs.net.slice1, theirs.net.slice2, theirs.net.slice3, theirs.net.slice4, theirs.net.slice5)
    ]
    for conv, lin, (weight, bias), own in zip(slices, theirs.lins, lpips._convolutions, lpips._linear, strict=True):
        conv.weight.data, conv.bias.data = weight.clone(), bias.clone()
        lin.model[-1].weight.data = own.view(1, -1, 1, 1).clone()
    first, second = torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = theirs(first, second, normalize=True).flatten()
    assert torch.allclose(lpips.distance(first, second), expected, rtol=1e-4, atol=1e-6)
