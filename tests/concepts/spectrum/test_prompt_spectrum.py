"""What a spectrum holds, and what it refuses to hold."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from bestiary.concepts.denoiser.backbone import get_backbone
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.spectrum.prompt_spectrum import PromptSpectrum, check_spectrum_backbone, from_reference_order
from bestiary.concepts.spectrum.stage_bounds import StageBounds

Make = Callable[..., PromptSpectrum]


def test_shapes_of_shared_and_layered_vectors(make_spectrum: Make) -> None:
    shared, layered = make_spectrum(vectors=3), make_spectrum(vectors=2, layers=16)
    assert (shared.stages, shared.vectors, shared.layers, shared.vector_width) == (10, 3, None, 768)
    assert (layered.stages, layered.vectors, layered.layers) == (10, 2, 16)
    assert shared.matrix().shape == (10, 3, 768) and layered.matrix().shape == (10, 16, 2, 768)
    assert layered.stage_vectors(4).shape == (16, 2, 768)


def test_sdxl_stands_side_by_side_in_the_backbones_order(make_spectrum: Make) -> None:
    spectrum = make_spectrum(backbone="sdxl")
    assert {name: tensor.shape[-1] for name, tensor in spectrum.embeddings.items()} == {"clip_l": 768, "clip_g": 1280}
    assert torch.equal(spectrum.matrix()[..., :768], spectrum.embeddings["clip_l"])
    assert torch.equal(spectrum.matrix()[..., 768:], spectrum.embeddings["clip_g"])


def test_the_fallback_is_the_mean_over_stages_and_layers(make_spectrum: Make) -> None:
    spectrum = make_spectrum(vectors=2)
    assert torch.allclose(spectrum.mean_embedding()["clip_l"], spectrum.matrix().mean(0))
    layered = make_spectrum(layers=4)
    assert torch.allclose(layered.mean_embedding()["clip_l"], layered.matrix().mean((0, 1)))


def test_the_fallback_leaves_out_silent_stages_and_words(make_spectrum: Make) -> None:
    spectrum = replace(make_spectrum(stages=4), counts=(1, 0, 1, 1), words={3: "a dog"})
    assert torch.allclose(spectrum.mean_embedding()["clip_l"], spectrum.matrix()[[0, 2]].mean(0))
    silent = replace(make_spectrum(stages=2), counts=(0, 0))
    assert torch.isfinite(silent.mean_embedding()["clip_l"]).all()


def test_counts_cut_vectors_off(make_spectrum: Make) -> None:
    spectrum = replace(make_spectrum(stages=3, vectors=2), counts=(2, 1, 0))
    assert [spectrum.stage_vectors(stage).shape[0] for stage in range(3)] == [2, 1, 0]


def test_own_presets_choose_stages(make_spectrum: Make) -> None:
    spectrum = make_spectrum(presets={"pose": ((0.0, 0.2),)})
    assert spectrum.select("pose, 10") == (0, 1, 9)
    with pytest.raises(BestiaryError, match="unknown stages 'layout': choose 'pose'"):
        spectrum.select("layout")


def test_reference_order_turns_back_and_forth() -> None:
    vectors = torch.arange(10).view(10, 1)
    assert from_reference_order(vectors)[0].item() == 9  # used first, at the highest noise
    assert torch.equal(from_reference_order(from_reference_order(vectors)), vectors)


def _faulty(make: Make, **changes: object) -> PromptSpectrum:
    return replace(make(stages=4, vectors=2), **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embeddings": {"clip_g": torch.zeros(4, 2, 768)}}, "a sd15 spectrum needs vectors for clip_l; this one has clip_g"),
        ({"embeddings": {}}, "this one has none"),
        ({"embeddings": {"clip_l": torch.zeros(5, 2, 768)}}, r"a spectrum of 4 stages needs vectors .* got .*\(5, 2, 768\)"),
        ({"embeddings": {"clip_l": torch.zeros(4, 768)}}, r"needs vectors \(S, V, width\)"),
        ({"embeddings": {"clip_l": torch.zeros(4, 0, 768)}}, r"got .*\(4, 0, 768\)"),
        ({"counts": (1, 2)}, r"vectors used per stage \(1, 2\): give 4 numbers of 0 to 2"),
        ({"counts": (1, 2, 3, 0)}, "give 4 numbers of 0 to 2"),
        ({"words": {4: "x"}}, "words for stage 5: there are stages 1 to 4"),
        ({"neutral": {"clip_l": torch.zeros(1, 768)}}, r"neutral vectors 'clip_l' \(1, 768\) do not match"),
        ({"bypass": {"clip_l": torch.zeros(4, 1, 768)}}, "bypass vectors 'clip_l'"),
        ({"embeddings": {"clip_l": torch.full((4, 2, 768), torch.nan)}}, "the vectors 'clip_l' hold values that are not finite"),
        ({"neutral": {"clip_l": torch.full((2, 768), torch.inf)}}, "the neutral vectors 'clip_l' hold"),
        ({"backbone": "sd9"}, "unknown backbone 'sd9'"),
        ({"bounds": StageBounds.equal(3)}, "a spectrum of 3 stages needs"),
    ],
)  # fmt: skip
def test_contradictions_are_refused(make_spectrum: Make, changes: dict[str, object], message: str) -> None:
    with pytest.raises(BestiaryError, match=message):
        _faulty(make_spectrum, **changes)


def test_another_model_is_told(make_spectrum: Make) -> None:
    spectrum = make_spectrum()
    check_spectrum_backbone("corgi", spectrum, get_backbone("sd15"))
    with pytest.raises(BestiaryError, match="spectrum corgi was trained for sd15, but the base model is sdxl"):
        check_spectrum_backbone("corgi", spectrum, get_backbone("sdxl"))
    narrow = replace(spectrum, embeddings={"clip_l": torch.zeros(10, 1, 32)}, neutral={})
    with pytest.raises(BestiaryError, match=r"spectrum corgi holds vectors of widths \{'clip_l': 32\}"):
        check_spectrum_backbone("corgi", narrow, get_backbone("sd15"))
