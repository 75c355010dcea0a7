"""Tests of the embedded model in ComfyUI's classes: parity with diffusers and transformers, and real queue runs."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from bestiary.concepts.errors import BestiaryError

BASE = Path(__file__).parents[3] / "demo" / "base_model"


def gap(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return (ours - theirs).abs().max().item()


@torch.no_grad()
def test_the_denoiser_predicts_what_diffusers_does(demo_model):
    from diffusers import UNet2DConditionModel

    reference = UNet2DConditionModel.from_pretrained(BASE / "unet", torch_dtype=torch.float32)
    noise = torch.Generator().manual_seed(0)
    x = torch.randn(2, 8, 16, 16, generator=noise)
    context = torch.randn(2, 77, reference.config.cross_attention_dim, generator=noise)
    times = torch.tensor([7.0, 900.0])
    ours = demo_model.model.model.diffusion_model(x, times, context=context)
    theirs = reference(x, times.long(), context).sample
    assert gap(ours, theirs) <= 2e-6


@torch.no_grad()
@pytest.mark.parametrize("text", ["", "a red striped head, blue wing.", "unheard words ; a , of " * 3])
def test_the_text_encoder_says_what_transformers_does(demo_model, text):
    from transformers import AutoTokenizer, CLIPTextModel

    tokenizer = AutoTokenizer.from_pretrained(BASE / "tokenizer")
    reference = CLIPTextModel.from_pretrained(BASE / "text_encoder", torch_dtype=torch.float32)
    ids = torch.tensor([tokenizer(text, padding="max_length", truncation=True, max_length=77)["input_ids"]])
    tokens = demo_model.clip.tokenize(text)
    assert [token for token, _ in tokens["l"][0]] == ids[0].tolist()
    ours = demo_model.clip.encode_from_tokens(tokens)
    assert gap(ours, reference(ids).last_hidden_state) <= 2e-6


@torch.no_grad()
def test_the_autoencoder_draws_and_reads_what_diffusers_does(demo_model):
    from diffusers import AutoencoderTiny

    reference = AutoencoderTiny.from_pretrained(BASE / "vae", torch_dtype=torch.float32)
    noise = torch.Generator().manual_seed(0)
    latents, images = torch.randn(1, 8, 16, 16, generator=noise), torch.rand(1, 64, 128, 3, generator=noise)
    theirs = (reference.decode(latents).sample / 2 + 0.5).clamp(0, 1)
    assert gap(demo_model.vae.decode(latents).movedim(-1, 1), theirs) <= 3e-6
    theirs = reference.encode(images.movedim(-1, 1) * 2 - 1).latents
    assert gap(demo_model.vae.encode(images), theirs) <= 3e-6


def test_latents_are_scaled_as_the_config_says(demo_model):
    scale = json.loads((BASE / "vae" / "config.json").read_text())["scaling_factor"]
    latents = torch.ones(1, 8, 2, 2)
    inner = demo_model.model.model.process_latent_in(latents)
    assert gap(inner, latents * scale) == 0
    assert gap(demo_model.model.model.process_latent_out(inner), latents) < 1e-6


def test_previews_have_the_colours_of_the_picture(demo_model, monkeypatch):
    import latent_preview
    from bestiary.demo.creatures import held_out_set
    from comfy.cli_args import LatentPreviewMethod, args

    drawn = next(iter(held_out_set(1, seed=77))).image
    image = torch.from_numpy(drawn.copy())[None] / 255
    latents = demo_model.model.model.process_latent_in(demo_model.vae.encode(image))
    small = torch.nn.functional.adaptive_avg_pool2d(image.movedim(-1, 1), latents.shape[2:])[0].movedim(0, -1)
    for method in (LatentPreviewMethod.Auto, LatentPreviewMethod.Latent2RGB, LatentPreviewMethod.TAESD):
        monkeypatch.setattr(args, "preview_method", method)
        previewer = latent_preview.get_previewer(torch.device("cpu"), demo_model.model.model.latent_format)
        preview = torch.from_numpy(np.array(previewer.decode_latent_to_preview(latents))) / 255
        error, spread = (preview - small).pow(2).mean(), (small - small.mean((0, 1))).pow(2).mean()
        assert error < 0.5 * spread
    monkeypatch.setattr(args, "preview_method", LatentPreviewMethod.NoPreviews)
    assert latent_preview.get_previewer(torch.device("cpu"), demo_model.model.model.latent_format) is None


def test_the_noise_schedule_is_the_one_it_was_trained_with(demo_model):
    from diffusers import DDIMScheduler

    theirs = DDIMScheduler.from_pretrained(BASE / "scheduler").alphas_cumprod
    sigmas = demo_model.model.model.model_sampling.sigmas
    assert gap(1 / (1 + sigmas**2), theirs) < 1e-6


def test_everything_is_float32_and_can_be_trained(demo_model):
    with torch.inference_mode():
        from bestiary.nodes.demo.demo_model import load_demo_model

        model, clip, vae = load_demo_model()
    for module in (model.model, clip.cond_stage_model, vae.first_stage_model):
        assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}
        assert not any(parameter.is_inference() for parameter in module.parameters())


def test_two_nodes_share_one_set_of_weights(tmp_path):
    from bestiary.nodes.demo.demo_model import load_demo_model

    folder = tmp_path / "base_model"
    shutil.copytree(BASE, folder)
    with ThreadPoolExecutor(4) as pool:
        loaded = list(pool.map(lambda _: load_demo_model(folder), range(4)))
    assert len({id(model.model) for model, _, _ in loaded}) == 1
    assert len({id(clip.cond_stage_model) for _, clip, _ in loaded}) == 1
    # patches of one caller stay with that caller
    assert len({id(model) for model, _, _ in loaded}) == 4


def test_long_prompts_and_weights_take_more_chunks(demo_model):
    tokens = demo_model.clip.tokenize("(a red head:1.3) " * 40)
    assert [len(chunk) for chunk in tokens["l"]] == [77, 77]
    assert {weight for token, weight in tokens["l"][0] if token != tokens["l"][0][0][0]} == {1.0, 1.3}
    assert demo_model.clip.encode_from_tokens(tokens).shape == (1, 154, 128)


def test_clip_skip_takes_an_earlier_layer(demo_model):
    earlier = demo_model.clip.clone()
    earlier.clip_layer(-2)
    tokens = demo_model.clip.tokenize("a red head")
    assert gap(earlier.encode_from_tokens(tokens), demo_model.clip.encode_from_tokens(tokens)) > 1e-3


def test_broken_folders_are_told(tmp_path):
    from bestiary.nodes.demo.demo_model import load_demo_model

    with pytest.raises(BestiaryError, match="unet/config.json of the embedded model cannot be read"):
        load_demo_model(tmp_path)
    folder = tmp_path / "base_model"
    shutil.copytree(BASE, folder)
    config = json.loads((folder / "unet" / "config.json").read_text())
    config["down_block_types"] = ["DownBlock2D", *config["down_block_types"][1:]]
    (folder / "unet" / "config.json").write_text(json.dumps(config))
    with pytest.raises(BestiaryError, match="expected cross-attention on every level"):
        load_demo_model(folder)


def test_weights_without_a_place_are_told(tmp_path):
    from bestiary.nodes.demo.demo_model import load_demo_model
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "base_model"
    shutil.copytree(BASE, folder)
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({**load_file(path), "surplus": torch.zeros(1)}, path)
    with pytest.raises(BestiaryError, match="unet of the embedded model contains 1 weights .* such as 'surplus'"):
        load_demo_model(folder)


def text_to_image(size: tuple[int, int] = (128, 128), batch: int = 1, **sampler: object) -> dict:
    """API-format graph of core nodes around the embedded model."""
    settings = {"seed": 1, "steps": 2, "cfg": 5.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    return {
        "load": {"class_type": "BestiaryDemoModel", "inputs": {}},
        "positive": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["load", 1], "text": "a (red:1.2) head"}},
        "negative": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["load", 1], "text": ""}},
        "latent": {
            "class_type": "EmptyLatentImage",
            "inputs": {"width": size[0], "height": size[1], "batch_size": batch},
        },
        "sample": {
            "class_type": "KSampler",
            "inputs": {
                "model": ["load", 0],
                "positive": ["positive", 0],
                "negative": ["negative", 0],
                "latent_image": ["latent", 0],
                **settings,
                **sampler,
            },
        },
        "decode": {"class_type": "VAEDecode", "inputs": {"samples": ["sample", 0], "vae": ["load", 2]}},
        "save": {"class_type": "SaveImage", "inputs": {"images": ["decode", 0], "filename_prefix": "demo"}},
    }


@pytest.mark.parametrize("size, batch", [((128, 128), 1), ((96, 160), 2)])
def test_core_nodes_make_pictures(server, size, batch):
    from PIL import Image

    pictures = server.run(text_to_image(size, batch))["save"]["images"]
    assert len(pictures) == batch
    with Image.open(server.folder / "output" / pictures[0]["filename"]) as picture:
        assert picture.size == size
        assert picture.getextrema() != ((0, 0),) * 3


def test_a_picture_is_repainted_and_the_clip_skipped(server, tmp_path):
    from PIL import Image

    source = tmp_path / "source.png"
    Image.new("RGB", (128, 128), (200, 60, 30)).save(source)
    shutil.copy(source, server.folder / "input" / "source.png")
    graph = text_to_image(denoise=0.5)
    graph["skip"] = {"class_type": "CLIPSetLastLayer", "inputs": {"clip": ["load", 1], "stop_at_clip_layer": -2}}
    graph["positive"]["inputs"]["clip"] = ["skip", 0]
    graph["image"] = {"class_type": "LoadImage", "inputs": {"image": "source.png"}}
    graph["latent"] = {"class_type": "VAEEncode", "inputs": {"pixels": ["image", 0], "vae": ["load", 2]}}
    assert len(server.run(graph)["save"]["images"]) == 1


def test_the_same_graph_twice_gives_the_same_pixels(server):
    from PIL import Image

    pixels = []
    for prefix in ("first", "second"):
        # another name makes the saving run again; a changed and restored seed makes the sampler run again
        server.run(text_to_image(seed=7))
        graph = text_to_image(seed=8)
        graph["save"]["inputs"]["filename_prefix"] = prefix
        name = server.run(graph)["save"]["images"][0]["filename"]
        pixels.append(Image.open(server.folder / "output" / name).tobytes())
    assert pixels[0] == pixels[1]
