"""Tests of telling models apart: the embedded one, narrow SD1.5 and SDXL."""

import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.part_dictionary.part_dictionary import PartDictionary
from bestiary.nodes.denoiser.model_backbone import backbone_of, check_backbone, prediction_of, text_widths


def dictionary(backbone: str, widths: dict[str, int], **provenance: object) -> PartDictionary:
    vectors = {name: torch.ones(1, width) for name, width in widths.items()}
    return PartDictionary(
        backbone, ("head",), ({},), None, torch.tensor([[0, 0]]), vectors, provenance=dict(provenance)
    )


SD15, SDXL, DEMO = {"clip_l": 32}, {"clip_l": 32, "clip_g": 64}, {"clip_l": 128}


def test_widths_are_read_off_the_embeddings(demo_model, sd15_model, sdxl_model):
    assert text_widths(demo_model.clip) == DEMO
    assert text_widths(sd15_model.clip) == SD15
    assert text_widths(sdxl_model.clip) == SDXL


def test_known_backbones_are_named_and_others_are_not(demo_model, sd15_model):
    assert backbone_of(demo_model.model, demo_model.clip) == "bestiary-demo"
    # SD1.5 in shape, but of no known width
    assert backbone_of(sd15_model.model, sd15_model.clip) is None


def test_fitting_dictionaries_pass(demo_model, sd15_model, sdxl_model):
    check_backbone(dictionary("bestiary-demo", DEMO), "mine", demo_model.model, demo_model.clip)
    check_backbone(dictionary("sd15", SD15, prediction="epsilon"), "mine", sd15_model.model, sd15_model.clip)
    check_backbone(dictionary("sdxl", SDXL), "mine", sdxl_model.model, sdxl_model.clip)


@pytest.mark.parametrize(
    "backbone, widths, target, reasons",
    [
        ("sd15", {"clip_l": 768}, "sd15_model", [r"clip_l \(768 wide\), the CLIP has clip_l \(32 wide\)"]),
        ("sd15", {"clip_l": 768}, "demo_model", ["it expects 4 latent channels, the MODEL has 8", "connected model is bestiary-demo"]),
        ("bestiary-demo", DEMO, "sd15_model", ["it expects 8 latent channels, the MODEL has 4", "connected model is another one"]),
        ("sd15", SD15, "sdxl_model", ["its texts are 32 wide, the MODEL reads 96", "without size conditioning, this has 1600"]),
        ("sdxl", SDXL, "sd15_model", [r"clip_g \(64 wide\), clip_l \(32 wide\), the CLIP has clip_l", "with size conditioning"]),
        ("sd2", {"clip_h": 32}, "sd15_model", [r"for clip_h \(32 wide\), the CLIP has clip_l \(32 wide\)"]),
    ],
)  # fmt: skip
def test_dictionaries_of_other_models_are_refused(backbone, widths, target, reasons, request):
    loaded = request.getfixturevalue(target)
    for reason in reasons:
        with pytest.raises(BestiaryError, match=reason):
            check_backbone(dictionary(backbone, widths), "mine", loaded.model, loaded.clip)


def test_another_prediction_is_refused(sd15_model):
    assert prediction_of(sd15_model.model) == "epsilon"
    wrong = dictionary("sd15", SD15, prediction="v_prediction")
    with pytest.raises(BestiaryError, match="trained on v_prediction, the MODEL predicts epsilon"):
        check_backbone(wrong, "mine", sd15_model.model, sd15_model.clip)


def test_a_clip_of_one_model_with_the_denoiser_of_another_is_told(sd15_model, sdxl_model):
    with pytest.raises(BestiaryError, match="its texts are 32 wide, the MODEL reads 96"):
        check_backbone(dictionary("sd15", SD15), "mine", sdxl_model.model, sd15_model.clip)
