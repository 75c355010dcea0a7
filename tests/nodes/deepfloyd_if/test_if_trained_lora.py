"""A LoRA that `bestiary train dreambooth` leaves for DeepFloyd IF, loaded by ComfyUI's own loader, and the conditioning it was trained with."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from bestiary.concepts.denoiser.denoiser import PromptPiece
from bestiary.concepts.errors import BestiaryError
from bestiary.trainer.learning.denoiser.if_folder import read_if_folder
from PIL import Image
from safetensors.torch import load_file

PROMPT = "a photo of sks dog"


def trained(cascade, folder, stage):
    """What two steps left, and a model of the trainer with it."""
    from bestiary.trainer.learning.dreambooth.dreambooth_settings import load_dreambooth_recipe
    from bestiary.trainer.model.if_denoiser import load_if
    from bestiary.trainer.training.train_dreambooth import train_dreambooth

    (folder / "thing").mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "thing" / "a.png")
    texts = {"text_encoder": cascade.first / "text_encoder", "tokenizer": cascade.first / "tokenizer"}
    path = cascade[stage - 1]
    values = {
        "images.instance": folder / "thing", "base.path": str(path), "run.out": folder / "run", "run.device": "cpu", "run.dtype": "fp32",
        "run.preview_every": 0, "run.estimate_memory": False, "run.tensorboard": False, "optimizer.steps": 2, "optimizer.lora_lr": 0.05,
        "lora.rank": 8, "lora.alpha": 16.0, "method.prior": "model", "captions.instance_prompt": PROMPT,
        **{f"base.{name}": place for name, place in texts.items()},
    }  # fmt: skip
    done = train_dreambooth(load_dreambooth_recipe(None, values))
    model = load_if(path, [PROMPT, ""], folder / "texts", device=torch.device("cpu"), dtype=torch.float32, **texts)
    model.network.adapters.load(load_file(done.path))
    return done.path, model


@torch.no_grad()
@pytest.mark.parametrize("stage", [1, 2])
def test_core_loads_it_and_predicts_what_the_trainer_does(cascade, tmp_path, stage):
    import comfy.model_management as manager
    import comfy.sd
    import comfy.utils
    from bestiary.nodes.deepfloyd_if.if_model import load_model

    with torch.inference_mode(False), torch.enable_grad():
        path, trainer = trained(cascade, tmp_path, stage)
    size = 32 * stage
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    guide, level = torch.rand(2, 3, size, size), torch.tensor([250, 7])
    said = trainer.text.encode([trainer.text.tokenize([PromptPiece(PROMPT)])] * 2, None)
    times = torch.tensor([0.01, 0.9])
    ours = trainer.network.predict(x, times, said.with_extras(guide=guide, level=level)).prediction
    model = load_model(read_if_folder(cascade[stage - 1]), False)
    tensors = comfy.utils.load_torch_file(str(path))
    patched, _ = comfy.sd.load_lora_for_models(model, None, tensors, 1.0, 0.0)
    assert len(patched.patches) == sum(name.endswith(".alpha") for name in tensors)
    given = {"context": said.context} if stage == 1 else {"context": said.context, "y": level}
    inputs = x if stage == 1 else torch.cat([x, guide], 1)
    manager.load_models_gpu([patched])
    theirs = patched.model.diffusion_model(inputs, times * 1000 - 1, **given)
    manager.unload_all_models()
    plain = model.model.diffusion_model(inputs, times * 1000 - 1, **given)
    assert (theirs - plain).abs().max() > 1e-3
    assert (ours - theirs).abs().max() <= 1e-5


@torch.no_grad()
def test_the_graph_says_what_the_training_said(cascade, tmp_path):
    """With T5's real tokenizer, whose files ComfyUI has: prompts of every length, `<head:42>` among them."""
    from pathlib import Path

    import comfy.text_encoders.sd3_clip as core
    from bestiary.nodes.deepfloyd_if.if_text import load_text
    from bestiary.trainer.model.t5_text import encode_sentences, read_sentences

    tokenizer, encoder = Path(core.__file__).parent / "t5_tokenizer", cascade.first / "text_encoder"
    prompts = ["  A photo of SKS dog", "", "A photo of <head:42>", "word " * 200]
    sentences = read_sentences(tokenizer, prompts)
    states = encode_sentences(encoder, sentences, 32, torch.device("cpu"), torch.float32)
    clip = load_text(encoder, 32)
    for prompt in prompts:
        row = [sentence.text for sentence in sentences].index(prompt.lower().strip())
        tokens = clip.tokenize(prompt)
        assert [piece for piece, _ in tokens["t5xxl"][0]] == list(sentences[row].ids)
        assert (clip.encode_from_tokens_scheduled(tokens)[0][0][0] - states[row]).abs().max() <= 1e-5
    assert {sentence.text: sentence.unknown for sentence in sentences}["a photo of <head:42>"] == ("<head:42>",)


def test_a_lora_for_another_model_is_refused_by_our_loader(cascade, tmp_path, sd15_model):
    from bestiary.nodes.deepfloyd_if.if_model import load_model
    from bestiary.nodes.denoiser.lora_loading import apply_lora

    first, second = (load_model(read_if_folder(folder), False) for folder in cascade)
    layers = "down_blocks.1.attentions.0"
    of_if = {
        f"unet.{layers}.add_k_proj.lora_A.weight": torch.ones(4, 32),
        f"unet.{layers}.add_k_proj.lora_B.weight": torch.ones(64, 4),
    }
    of_sd = {
        f"unet.{layers}.transformer_blocks.0.attn2.to_q.lora_A.weight": torch.ones(4, 32),
        f"unet.{layers}.transformer_blocks.0.attn2.to_q.lora_B.weight": torch.ones(32, 4),
    }
    assert apply_lora(first, of_if, 1.0).reached == 1
    with pytest.raises(BestiaryError, match="the LoRA is for DeepFloyd IF, this model is Stable Diffusion"):
        apply_lora(sd15_model.model, of_if, 1.0)
    with pytest.raises(BestiaryError, match="the LoRA is for Stable Diffusion, this model is DeepFloyd IF"):
        apply_lora(second, of_sd, 1.0)


@pytest.mark.parametrize(("stage", "other"), [(0, "if-ii"), (1, "if-i")])
def test_core_refuses_a_lora_of_the_other_stage_by_its_name(cascade, tmp_path, monkeypatch, stage, other):
    """Through ComfyUI's Load LoRA (Model), which reads no header; the layer has the same name and shape in both stages."""
    import folder_paths
    from bestiary.nodes.deepfloyd_if.if_model import load_model
    from bestiary.trainer.learning.dreambooth.dreambooth_setup import DreamBoothAdapter, save_adapter

    import nodes

    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path)], {".safetensors"}))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    name = "lora_unet_down_blocks_1_attentions_0_add_k_proj"
    for backbone in ("if-i", "if-ii"):
        tensors = {f"{name}.lora_down.weight": torch.randn(4, 32), f"{name}.lora_up.weight": torch.ones(64, 4)}
        notes = {"rank": 4, "alpha": 4.0, "backbone": backbone}
        save_adapter(DreamBoothAdapter(tensors, {}, notes), tmp_path / f"dog {backbone}.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"x" * 40)
    model = load_model(read_if_folder(cascade[stage]), False)
    own = {"if-i": "if-ii", "if-ii": "if-i"}[other]
    loader = nodes.LoraLoaderModelOnly()
    with pytest.raises(
        BestiaryError,
        match=rf"the LoRA 'dog {other}.safetensors' was trained on stage I+ of DeepFloyd IF, this model is stage",
    ):
        loader.load_lora_model_only(model, f"dog {other}.safetensors", 1.0)
    assert not model.patches
    (patched,) = loader.load_lora_model_only(model, f"dog {own}.safetensors", 1.0)
    assert len(patched.patches) == 1 and type(patched) is type(model)
