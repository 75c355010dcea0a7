"""What a MODEL predicts, its schedule with other nodes' patches, and models that cannot be trained."""

from types import SimpleNamespace

import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from torch import nn


def test_a_patched_schedule_is_read(sd15_model) -> None:
    import comfy.model_sampling as kinds
    from bestiary.nodes.denoiser.denoiser_record import discrete_process

    class Velocity(kinds.ModelSamplingDiscrete, kinds.V_PREDICTION):
        pass

    model, patched = sd15_model.model.clone(), Velocity(sd15_model.model.model.model_config)
    patched.set_sigmas(torch.linspace(0.1, 9, 100))
    model.add_object_patch("model_sampling", patched)
    schedule = discrete_process(model)
    assert schedule.prediction == "v_prediction" and len(schedule.alphas_cumprod) == 100
    torch.testing.assert_close(
        schedule.snr(torch.tensor([0.01, 1.0])), torch.tensor([100.0, 1 / 81]), rtol=1e-4, atol=0
    )
    assert discrete_process(sd15_model.model).prediction == "epsilon"


def test_other_kinds_of_prediction_are_told(sd15_model) -> None:
    import comfy.model_sampling as kinds
    from bestiary.nodes.denoiser.denoiser_record import discrete_process

    class Flow(kinds.ModelSamplingDiscreteFlow, kinds.CONST):
        pass

    class Clean(kinds.ModelSamplingDiscrete, kinds.X0):
        pass

    for kind in (Flow, Clean):
        model = sd15_model.model.clone()
        model.add_object_patch("model_sampling", kind(sd15_model.model.model.model_config))
        with pytest.raises(BestiaryError, match="this MODEL predicts EPS: connect one that predicts noise or velocity"):
            discrete_process(model)


def test_unknown_text_encoders_are_told(sd15_model) -> None:
    from bestiary.nodes.denoiser.denoiser_record import detect_backbone

    with pytest.raises(
        BestiaryError, match="this CLIP has the text encoders clip_g: known are clip_l; clip_h; clip_l, clip_g"
    ):
        detect_backbone(sd15_model.model, {"clip_g": 64})


def test_models_that_are_no_unet_are_told() -> None:
    from bestiary.nodes.denoiser.unet_layers import read_unet_layers

    with pytest.raises(
        BestiaryError, match="this MODEL is a Linear: connect a Stable Diffusion 1.5, 2 or XL checkpoint"
    ):
        read_unet_layers(nn.Linear(1, 1), {})


def test_vaes_that_make_no_pictures_are_told() -> None:
    from bestiary.nodes.denoiser.comfy_autoencoder import ComfyAutoencoder

    audio = SimpleNamespace(first_stage_model=nn.Linear(1, 1), latent_dim=1, output_channels=2)
    with pytest.raises(
        BestiaryError, match=r"this VAE \(Linear\) makes no pictures: connect the VAE of an image checkpoint"
    ):
        ComfyAutoencoder(audio)


def test_the_fingerprint_of_a_vae_follows_its_weights(sd15_model, sdxl_model, demo_model) -> None:
    from bestiary.nodes.denoiser.comfy_autoencoder import ComfyAutoencoder

    found = {
        kind: ComfyAutoencoder(model.vae).fingerprint() for kind, model in (("sd15", sd15_model), ("demo", demo_model))
    }
    assert found["sd15"] != found["demo"] and ComfyAutoencoder(sd15_model.vae).fingerprint() == found["sd15"]
    weight = sd15_model.vae.first_stage_model.quant_conv.weight
    before = weight.detach().clone()
    try:
        weight.data[0, 0] += 1
        assert ComfyAutoencoder(sd15_model.vae).fingerprint() != found["sd15"]
    finally:
        weight.data.copy_(before)
