"""Parts and spectra learned on a graph's SD3 and Flux: the losses of the command line, models untouched, a LoRA that reaches every layer."""

import copy
import logging
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from bestiary.concepts.errors import BestiaryError

from tests.nodes import tiny_transformers as tiny

KINDS = ("sd3", "flux")
TEXTS: dict[str, object] = {}
"""Text sides of the command line by family."""


def connected(kind: str) -> object:
    from bestiary.nodes.training.graph_fit import GraphModel

    if kind == "sd3":
        return GraphModel(tiny.sd3_model("dual attention"), tiny.sd3_clip(), tiny.picture_vae())
    return GraphModel(tiny.flux_model(), tiny.flux_clip(), tiny.picture_vae())


def over_diffusers(loaded: object) -> object:
    """The command line's denoiser with the same weights, text encoders of transformers included."""
    from bestiary.nodes.denoiser.comfy_denoiser import ComfyDenoiser
    from bestiary.trainer.model.flux_denoiser import FluxDenoiser
    from bestiary.trainer.model.sd3_denoiser import SD3Denoiser
    from bestiary.trainer.model.transformer_network import TransformerParts
    from diffusers import AutoencoderKL

    record = ComfyDenoiser(loaded.model, loaded.clip).backbone
    if record.name not in TEXTS:
        TEXTS[record.name] = tiny.text_reference(loaded.clip, record)
    is_flux = record.name == "flux"
    scale = loaded.model.model.latent_format
    blocks = {"down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",)}
    # only its scale is used: latents are cached
    vae = AutoencoderKL(**blocks, block_out_channels=(32,), latent_channels=16, scaling_factor=scale.scale_factor, shift_factor=scale.shift_factor)  # fmt: skip
    network = copy.deepcopy(tiny.flux_reference() if is_flux else tiny.sd3_reference("dual attention"))
    parts = TransformerParts(network, vae, TEXTS[record.name])
    return (FluxDenoiser if is_flux else SD3Denoiser)(record, parts)


@pytest.fixture(scope="module")
def training_set(drawn_images: torch.Tensor, small_codebook: object) -> object:
    from bestiary.nodes.host.graph_progress import GraphProgress
    from bestiary.nodes.host.socket_types import NamedCodebook
    from bestiary.nodes.training.training_set import TrainingSetChoice, build_training_set

    codebook = NamedCodebook("drawn", small_codebook)
    return build_training_set(
        [drawn_images[:4]], codebook, tiny.picture_vae(), TrainingSetChoice(64), GraphProgress(None)
    )


def part_settings(made: object, **choices: object) -> object:
    from bestiary.nodes.training.training_job import graph_settings

    given = {"name": "parts", "steps": 6, "batch_size": 2, "accumulation": 1, "token_lr": 1e-3, "lora_lr": 1e-4}
    given |= {"attention_weight": 0.2, "rank": 2, "seed": 3, "preview_every": 0, **choices}
    return graph_settings(given, made)


def train(loaded: object, made: object, settings: object) -> object:
    from bestiary.nodes.runs.training_runs import open_run
    from bestiary.nodes.training.graph_fit import train_in_graph
    from bestiary.nodes.training.graph_training import PartsInGraph

    run = open_run("parts", "start anew", settings, made.fingerprint())
    with torch.inference_mode():  # as ComfyUI's executor runs nodes
        return train_in_graph(loaded, PartsInGraph(made, settings), run)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("insertion", ["input", "output"])
@pytest.mark.parametrize("steps", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_losses_of_parts_are_those_of_the_command_line(
    kind: str, insertion: str, steps: int, training_set, command_line_losses: Callable, untouched: Callable
) -> None:
    from bestiary.trainer.learning.parts.objective_setup import set_up_parts
    from bestiary.trainer.learning.pictures.latent_cache import LatentCache

    loaded, made = connected(kind), training_set
    more = f'method.insertion = "{insertion}"'
    settings = part_settings(made, steps=steps, recompute=kind == "flux", more_settings=more)
    check = untouched(loaded)
    ours = train(loaded, made, settings)
    check()
    cache = LatentCache(made.moments)
    theirs = command_line_losses(lambda: set_up_parts(settings, over_diffusers(loaded), made.names, made.kinds, cache))
    assert len(ours.losses) == len(theirs) == steps
    assert np.abs(np.array(ours.losses) - np.array(theirs)).max() < 1e-4
    assert ours.concept.insertion == insertion
    assert ours.concept.backbone == kind and len(ours.concept.embeddings) == (3 if kind == "sd3" else 2)
    assert ours.concept.provenance["shift"] == pytest.approx(3.0 if kind == "sd3" else 3.158193)


@pytest.mark.parametrize("kind", KINDS)
def test_the_trained_lora_reaches_the_model_and_every_layer_of_core(kind: str, training_set, caplog) -> None:
    """The patched MODEL predicts what the adapters said, and core loads the exported names without a word."""
    import comfy.lora
    from bestiary.concepts.denoiser.denoiser import Conditioning
    from bestiary.concepts.denoiser.lora_names import from_kohya
    from bestiary.concepts.denoiser.low_rank import LoraSpec
    from bestiary.nodes.denoiser.comfy_denoiser import ComfyDenoiser
    from bestiary.nodes.denoiser.lora_loading import apply_lora

    loaded = connected(kind)
    ours = ComfyDenoiser(loaded.model, loaded.clip)
    parameters, rng = ours.network.adapters.add(LoraSpec(2, 3.0)), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for own in parameters.values():
            own.copy_(torch.randn(own.shape, generator=rng) * 0.1)
    tensors, record = ours.network.adapters.tensors(), ours.backbone
    text = Conditioning.of(torch.randn(1, 5, record.context_width, generator=rng), pooled=torch.randn(1, sum(s.width for s in record.text_encoders if s.pooled), generator=rng))  # fmt: skip
    latents, times = torch.randn(1, 16, 4, 4, generator=rng), torch.tensor([0.4])
    with torch.no_grad():
        adapted = ours.network.predict(latents, times, text).prediction
        ours.network.adapters.unload()
        plain = ours.network.predict(latents, times, text).prediction
        applied = apply_lora(loaded.model, tensors, 1.0)
        merged = ComfyDenoiser(applied.model, loaded.clip).network.predict(latents, times, text).prediction
    assert applied.reached == applied.given == len(parameters) // 2
    assert float((adapted - merged).abs().max()) < 1e-4 < float((adapted - plain).abs().max())
    known = comfy.lora.model_lora_keys_unet(loaded.model.model, {})
    for spelled in (tensors, from_kohya(tensors, "transformer")):
        with caplog.at_level(logging.WARNING):
            patches = comfy.lora.load_lora(dict(spelled), known)
        assert len(patches) == len(parameters) // 2 and "lora key not loaded" not in caplog.text


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_losses_of_spectra_are_those_of_the_command_line(
    kind: str, steps: int, drawn_images, command_line_losses: Callable, untouched: Callable
) -> None:
    from bestiary.nodes.host.graph_progress import GraphProgress
    from bestiary.nodes.runs.training_runs import open_run
    from bestiary.nodes.training.graph_fit import train_in_graph
    from bestiary.nodes.training.graph_spectrum_training import SpectrumInGraph
    from bestiary.nodes.training.spectrum_job import spectrum_settings
    from bestiary.nodes.training.spectrum_pictures import prepare_pictures
    from bestiary.trainer.learning.pictures.latent_cache import LatentCache
    from bestiary.trainer.learning.spectrum.spectrum_objective_setup import set_up_spectrum

    loaded = connected(kind)
    given = {"name": "pet", "initial_words": "red bird", "stages": 4, "vectors": 1, "steps": steps, "batch_size": 2}
    settings = spectrum_settings({**given, "vector_lr": 0.03, "image_size": 64, "seed": 3, "preview_every": 0})
    check = untouched(loaded)
    with torch.inference_mode():
        pictures = prepare_pictures([drawn_images[:2]], None, loaded.vae, 64, False, GraphProgress(None))
        run = open_run("pet", "start anew", settings, pictures.fingerprint())
        ours = train_in_graph(loaded, SpectrumInGraph(pictures, settings), run)
    check()
    theirs = command_line_losses(
        lambda: set_up_spectrum(settings, over_diffusers(loaded), pictures.names, LatentCache(pictures.moments))
    )
    assert len(ours.losses) == len(theirs) == steps
    assert np.abs(np.array(ours.losses) - np.array(theirs)).max() < 1e-4
    assert ours.concept.shift == pytest.approx(3.0 if kind == "sd3" else np.exp(1.15)) and ours.concept.stages == 4


def test_cancel_leaves_the_model_as_it_was(
    training_set, cancelled_in_step_three: Callable, untouched: Callable
) -> None:
    loaded = connected("flux")
    check, settings = untouched(loaded), part_settings(training_set, steps=5)
    cancelled_in_step_three(lambda: train(loaded, training_set, settings))
    check()


def test_quantised_weights_and_a_missing_encoder(training_set) -> None:
    from bestiary.nodes.denoiser.comfy_denoiser import ComfyDenoiser

    patcher = tiny.flux_model.__wrapped__()
    layer = patcher.model.diffusion_model.double_blocks[0].img_mlp[0]
    layer.weight = torch.nn.Parameter(layer.weight.data.to(torch.float8_e4m3fn), requires_grad=False)
    with (
        pytest.raises(BestiaryError, match="quantised weights cannot be trained on"),
        ComfyDenoiser(patcher, tiny.flux_clip()).training(),
    ):
        pass
    loaded = replace(connected("sd3"), clip=tiny.sd3_clip("t5xxl"))
    learned = train(loaded, training_set, part_settings(training_set, steps=1))
    assert "This CLIP was loaded without t5xxl" in learned.text
    assert learned.concept.provenance["without_text_encoders"] == ["t5xxl"] and np.isfinite(learned.losses).all()
