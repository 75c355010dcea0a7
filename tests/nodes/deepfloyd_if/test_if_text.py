"""Tests of the T5 encoder that DeepFloyd IF reads, as ComfyUI's CLIP, against transformers."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from safetensors.torch import load_file, save_file


def load(source, width=32):
    from bestiary.nodes.deepfloyd_if.if_text import load_text

    return load_text(source, width)


def weights_of(cascade):
    (file,) = (cascade.first / "text_encoder").glob("*.safetensors")
    return load_file(file)


@torch.no_grad()
@pytest.mark.parametrize(
    ("prompt", "plain"),
    [
        ("", ""),
        ("  A photo of SKS dog ", "a photo of sks dog"),
        ("a <head:42> bird", "a <head:42> bird"),
        ("word " * 200, "word " * 200),
    ],
)
def test_states_are_those_of_transformers(cascade, prompt, plain):
    import comfy.text_encoders.sd3_clip as core
    from transformers import AutoTokenizer, T5EncoderModel

    clip = load(cascade.first / "text_encoder")
    tokenizer = AutoTokenizer.from_pretrained(f"{core.__file__.rsplit('/', 1)[0]}/t5_tokenizer")
    read = tokenizer(plain.strip(), padding="max_length", truncation=True, max_length=77, return_tensors="pt")
    tokens = clip.tokenize(prompt)
    assert [piece for piece, _ in tokens["t5xxl"][0]] == read["input_ids"][0].tolist()
    reference = T5EncoderModel.from_pretrained(cascade.first / "text_encoder", torch_dtype=torch.float32)
    theirs = reference(read["input_ids"], attention_mask=read["attention_mask"]).last_hidden_state
    ours = clip.encode_from_tokens_scheduled(tokens)[0][0]
    assert ours.shape == (1, 77, 32)
    assert (ours - theirs).abs().max() <= 1e-5


def test_a_long_prompt_is_cut_with_a_warning(cascade, caplog):
    tokens = load(cascade.first / "text_encoder").tokenize("word " * 200)
    assert len(tokens["t5xxl"][0]) == 77
    assert tokens["t5xxl"][0][-1] == (1, 1.0)
    assert "77 pieces" in caplog.text


def test_names_of_embedding_files_keep_their_case():
    from bestiary.nodes.deepfloyd_if.if_text import _lowered

    assert _lowered(" A Dog embedding:Art/MyFile Of Mine") == "a dog embedding:Art/MyFile of mine"
    assert _lowered("Embedding: nothing") == "embedding: nothing"


@torch.no_grad()
def test_one_file_gives_the_same_states_as_the_folder(cascade, tmp_path):
    file = tmp_path / "t5xxl.safetensors"
    save_file(weights_of(cascade), file)
    ours, folder = (
        clip.encode_from_tokens_scheduled(clip.tokenize("a dog"))[0][0]
        for clip in (load(file), load(cascade.first / "text_encoder"))
    )
    assert torch.equal(ours, folder)


@torch.no_grad()
def test_shards_are_read_together(cascade, tmp_path):
    tensors = weights_of(cascade)
    names = sorted(tensors)
    for number, some in enumerate((names[::2], names[1::2])):
        save_file({name: tensors[name] for name in some}, tmp_path / f"model-0000{number + 1}-of-00002.safetensors")
    # a half-precision copy beside them is left alone
    save_file({name: torch.zeros_like(tensor) for name, tensor in tensors.items()}, tmp_path / "model.fp16.safetensors")
    ours = load(tmp_path)
    states = ours.encode_from_tokens_scheduled(ours.tokenize("a dog"))[0][0]
    whole = load(cascade.first / "text_encoder")
    assert torch.equal(states, whole.encode_from_tokens_scheduled(whole.tokenize("a dog"))[0][0])


@torch.no_grad()
def test_scaled_eight_bit_files_are_read(cascade, tmp_path):
    scaled = {}
    for name, tensor in weights_of(cascade).items():
        if ".block." in name and name.endswith(".weight") and tensor.ndim == 2 and "relative" not in name:
            scale = tensor.abs().max() / 448
            scaled[name] = (tensor / scale).to(torch.float8_e4m3fn)
            scaled[name.replace(".weight", ".scale_weight")] = scale.clone()
        else:
            scaled[name] = tensor
    scaled["scaled_fp8"] = torch.zeros(0, dtype=torch.float8_e4m3fn)
    save_file(scaled, tmp_path / "t5xxl_scaled.safetensors")
    clip, whole = load(tmp_path / "t5xxl_scaled.safetensors"), load(cascade.first / "text_encoder")
    ours, theirs = (one.encode_from_tokens_scheduled(one.tokenize("a dog"))[0][0] for one in (clip, whole))
    assert (ours - theirs).abs().mean() <= 0.05 * theirs.abs().mean()


def test_other_files_are_refused_with_what_they_are(cascade, tmp_path):
    tensors = weights_of(cascade)
    cases = {
        "is not a T5 encoder": {"text_model.embeddings.token_embedding.weight": torch.zeros(4, 4)},
        "token rows": {**tensors, "shared.weight": torch.zeros(100, 32)},
        "lacks 1 weights": {name: t for name, t in tensors.items() if name != "encoder.final_layer_norm.weight"},
    }
    for number, (words, content) in enumerate(cases.items()):
        save_file(content, tmp_path / f"{number}.safetensors")
        with pytest.raises(BestiaryError, match=words):
            load(tmp_path / f"{number}.safetensors")
    with pytest.raises(BestiaryError, match="reads 4096"):
        load(cascade.first / "text_encoder", 4096)
    with pytest.raises(BestiaryError, match="does not exist"):
        load(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BestiaryError, match="holds no weights"):
        load(tmp_path / "empty")
    (tmp_path / "cut.safetensors").write_bytes(b"\x00" * 100)
    with pytest.raises(BestiaryError, match="could not be read"):
        load(tmp_path / "cut.safetensors")


def test_a_folder_without_text_encoder_says_so(cascade, tmp_path):
    from bestiary.trainer.learning.denoiser.if_folder import read_if_folder

    folder = tmp_path / "IF"
    shutil.copytree(cascade.first, folder)
    shutil.rmtree(folder / "text_encoder")
    assert read_if_folder(folder).text_encoder is None
    assert json.loads((folder / "unet" / "config.json").read_text())["encoder_hid_dim"] == 32
