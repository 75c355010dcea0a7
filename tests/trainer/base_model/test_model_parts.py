"""Tests of the base model's modules, tokenizer and export."""

import json
from pathlib import Path

import pytest
import torch
from bestiary.demo.attribute_judge import JUDGE_FILE
from bestiary.demo.captions import caption_of, vocabulary
from bestiary.demo.species import HELD_OUT_SPECIES, Scene
from bestiary.trainer.base_model.denoiser_shapes import LATENT_CHANNELS, TEXT_WIDTH, build_scheduler
from bestiary.trainer.base_model.model_parts import (
    build_base_model,
    build_tokenizer,
    encode_captions,
    export_base_model,
    load_base_model,
    load_text_weights,
)
from diffusers import StableDiffusionPipeline

SHIPPED, SHIPPED_DIT = (Path(__file__).parents[3] / "demo" / name for name in ("base_model", "base_model_dit"))


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "base_model"
    model = build_base_model(0)
    size = export_base_model(model, 0.37, folder)
    return model, folder, size


def test_the_end_token_has_the_highest_id_and_pads():
    tokenizer = build_tokenizer()
    assert len(tokenizer) == len(vocabulary()) + 3
    assert tokenizer.eos_token_id == len(tokenizer) - 1 == tokenizer.pad_token_id
    ids = encode_captions(tokenizer, ["a red bird, cyan", ""])
    assert ids.shape == (2, 77)
    words = tokenizer.convert_ids_to_tokens(ids[0, :7].tolist())
    assert words == ["<|startoftext|>", "a", "red", "bird", ",", "cyan", "<|endoftext|>"]
    assert ids[1].tolist() == [tokenizer.bos_token_id] + [tokenizer.eos_token_id] * 76


def test_strange_words_read_as_unknown_and_long_captions_keep_their_end():
    tokenizer = build_tokenizer()
    assert tokenizer("a zebra").input_ids[2] == tokenizer.unk_token_id == 0
    ids = encode_captions(tokenizer, ["red " * 200])
    assert ids.shape == (1, 77) and ids[0, -1] == tokenizer.eos_token_id


def test_full_captions_fit_into_77_tokens():
    tokenizer = build_tokenizer()
    longest = max(len(tokenizer(caption_of(s, Scene("mountains", "night"))).input_ids) for s in HELD_OUT_SPECIES)
    assert longest <= 77


def test_modules_have_the_fixed_shapes():
    model = build_base_model(0)
    latents = model.autoencoder.encode(torch.zeros(1, 3, 128, 128)).latents
    assert latents.shape == (1, LATENT_CHANNELS, 16, 16)
    ids = encode_captions(model.tokenizer, ["a bird"])
    context = model.text_encoder(input_ids=ids).last_hidden_state
    assert context.shape == (1, 77, TEXT_WIDTH)
    noise = model.denoiser(latents, torch.tensor([10]), encoder_hidden_states=context).sample
    assert noise.shape == latents.shape


def test_weights_come_from_the_seed():
    ours, theirs, other = (build_base_model(seed).denoiser.conv_in.weight for seed in (3, 3, 4))
    assert torch.equal(ours, theirs) and not torch.equal(ours, other)


def test_the_schedule_is_that_of_stable_diffusion():
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    torch.testing.assert_close(build_scheduler().alphas_cumprod, torch.cumprod(1 - betas, 0))


def test_an_export_is_small_and_loads_as_a_pipeline(export):
    model, folder, size = export
    assert size <= 20_000_000
    assert size == sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline("a photo of a bird", num_inference_steps=2, height=128, width=128).images[0]
    assert image.size == (128, 128)


def test_an_export_keeps_weights_and_scale_and_leaves_the_model_in_fp32(export):
    model, folder, _ = export
    assert model.denoiser.conv_in.weight.dtype == torch.float32
    loaded = load_base_model(folder)
    assert loaded.autoencoder.config.scaling_factor == pytest.approx(0.37)
    torch.testing.assert_close(loaded.denoiser.conv_in.weight, model.denoiser.conv_in.weight, atol=1e-3, rtol=1e-3)
    assert loaded.tokenizer("a red bird").input_ids == model.tokenizer("a red bird").input_ids


def test_an_export_names_no_machine_and_no_version_bound_class(export):
    _, folder, _ = export
    for path in folder.rglob("*.json"):
        text = path.read_text(encoding="utf-8")
        assert "_name_or_path" not in text and "TokenizersBackend" not in text, path
    config = json.loads((folder / "text_encoder" / "config.json").read_text(encoding="utf-8"))
    assert config.get("dtype", "float32") == "float32"
    assert not list(folder.parent.glob(".*.part"))


@pytest.mark.parametrize(("name", "folder"), [("unet", SHIPPED), ("dit", SHIPPED_DIT)])
def test_the_shipped_model_is_of_this_shape_and_vocabulary_and_small(name, folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in [*files, JUDGE_FILE]) <= 20_000_000
    shipped, fresh = load_base_model(folder), build_base_model(0, name)
    for part in ("autoencoder", "denoiser", "text_encoder"):
        theirs = {key: value.shape for key, value in getattr(fresh, part).state_dict().items()}
        assert {key: value.shape for key, value in getattr(shipped, part).state_dict().items()} == theirs
    assert shipped.tokenizer.get_vocab() == fresh.tokenizer.get_vocab()
    assert "dB PSNR" in (folder / "README.md").read_text(encoding="utf-8")


def test_a_transformer_starts_with_the_text_weights_of_the_shipped_model():
    model, shipped = build_base_model(0, "dit"), load_base_model(SHIPPED)
    before = model.text_encoder.text_projection.weight.clone()
    ids = encode_captions(model.tokenizer, ["a red bird, cyan"])
    theirs = shipped.text_encoder(ids).last_hidden_state
    assert not torch.allclose(model.text_encoder(ids).last_hidden_state, theirs, atol=0.1)
    load_text_weights(model)
    torch.testing.assert_close(model.text_encoder(ids).last_hidden_state, theirs)
    assert torch.equal(model.text_encoder.text_projection.weight, before)
