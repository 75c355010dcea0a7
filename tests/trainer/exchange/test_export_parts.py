"""Exports load in diffusers itself, and by the rules of ComfyUI and AUTOMATIC1111."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from bestiary.concepts.denoiser.lora_names import lora_layers
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.files.concept_file import read_header
from bestiary.concepts.part_dictionary.part_dictionary import PartDictionary
from bestiary.trainer.exchange import export_parts
from bestiary.trainer.exchange.export_parts import (
    embedding_for_a1111,
    embedding_for_comfyui,
    export_dictionary,
    token_names,
)
from safetensors.torch import load_file

LAYER = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"


def dictionary(widths: dict[str, int] | None = None, backbone: str = "sd15", **changes: object) -> PartDictionary:
    generator = torch.Generator().manual_seed(0)
    fields = {
        "backbone": backbone,
        "part_names": ("Kopf & Hals", "con"),
        "kind_names": ({0: "Blue Jay", 1: "blue-jay", 2: "鳥"}, {0: "../../etc/passwd"}),
        "background": None,
        "rows": torch.tensor([(0, 0), (0, 1), (0, 2), (0, 3), (1, 0)]),
        "embeddings": {n: torch.randn(5, w, generator=generator) for n, w in (widths or {"clip_l": 32}).items()},
        "lora": {f"{LAYER}.lora_down.weight": torch.randn(4, 32), f"{LAYER}.lora_up.weight": torch.randn(32, 4)},
        "id_base": 1,
    }
    return PartDictionary(**{**fields, **changes})


def test_file_names_are_plain_and_all_different() -> None:
    names = token_names(dictionary())
    assert names == ["kopf-hals-blue-jay", "kopf-hals-blue-jay-0-2", "kopf-hals-3", "kopf-hals-4", "con-etc-passwd"]
    long = dictionary(kind_names=({kind: "x" * 300 + str(kind) for kind in range(4)}, {}))
    assert len(set(token_names(long))) == 5
    assert max(map(len, token_names(long))) < 100


def test_single_encoder_files_hold_one_tensor(tmp_path: Path) -> None:
    ours = dictionary()
    written = export_dictionary(ours, tmp_path)
    assert [path.name for path in written[-2:]] == ["parts_lora.safetensors", "README.txt"]
    assert len(written) == 7
    for row, path in enumerate(written[:5]):
        tensors = load_file(str(path))
        assert list(tensors) == ["emb_params"]
        assert torch.equal(tensors["emb_params"], ours.embeddings["clip_l"][row : row + 1])
    assert all(path.is_relative_to(tmp_path) for path in written)
    assert read_header(written[0]).metadata["modelspec.architecture"] == "stable-diffusion-v1/textual-inversion"


def test_two_encoders_are_two_tensors_for_comfyui_and_a1111(tmp_path: Path) -> None:
    ours = dictionary({"clip_l": 32, "clip_g": 64}, "sdxl")
    path = export_dictionary(ours, tmp_path)[1]
    tensors = load_file(str(path))
    assert set(tensors) == {"clip_l", "clip_g"}
    for encoder in tensors:
        assert torch.equal(embedding_for_comfyui(tensors, encoder)[0], ours.embeddings[encoder][1])
        assert torch.equal(embedding_for_a1111(tensors, encoder)[0], ours.embeddings[encoder][1])
    assert 'load_textual_inversion(t["clip_g"]' in (tmp_path / "README.txt").read_text()


def test_rules_of_the_other_programs() -> None:
    many = {"a": torch.zeros(1, 2), "b": torch.ones(1, 2)}
    assert torch.equal(embedding_for_comfyui(many, "clip_l"), many["a"])
    with pytest.raises(BestiaryError, match=r"with \['a', 'b'\] is refused by AUTOMATIC1111"):
        embedding_for_a1111(many, "clip_l")


def test_the_lora_is_a_complete_kohya_file(tmp_path: Path) -> None:
    ours = dictionary(lora={**dictionary().lora, f"{LAYER}.alpha": torch.tensor(2.0)})
    path = export_dictionary(ours, tmp_path)[-2]
    (layer,) = lora_layers(load_file(str(path))).values()
    assert layer.scale == 0.5
    assert torch.equal(layer.down, ours.lora[f"{LAYER}.lora_down.weight"].half())
    metadata = read_header(path).metadata
    assert metadata["ss_network_dim"] == "4"
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1/lora"
    with pytest.raises(BestiaryError, match=f"{LAYER}.lora_up.weight does not fit half precision"):
        export_dictionary(dictionary(lora={name: tensor * 1e9 for name, tensor in dictionary().lora.items() if "up" in name} | {f"{LAYER}.lora_down.weight": torch.ones(4, 32)}), tmp_path)  # fmt: skip


def test_without_lora_there_is_no_lora_file(tmp_path: Path) -> None:
    assert not any("lora" in path.name for path in export_dictionary(dictionary(lora={}), tmp_path))


def test_a_file_that_comes_back_changed_is_no_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = export_parts.read_tensors
    monkeypatch.setattr(export_parts, "read_tensors", lambda path: {n: t + 1 for n, t in whole(path).items()})
    with pytest.raises(
        BestiaryError, match="kopf-hals-blue-jay.safetensors reads back differently from what was written"
    ):
        export_dictionary(dictionary(), tmp_path)


@pytest.mark.parametrize("change", [lambda t: {n: v * 2 for n, v in t.items()}, lambda t: dict(list(t.items())[1:])])
def test_a_lora_that_comes_back_changed_is_no_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change) -> None:
    whole = export_parts.read_tensors
    spoil = lambda path: change(whole(path)) if "lora" in path.name else whole(path)  # noqa: E731 - one expression
    monkeypatch.setattr(export_parts, "read_tensors", spoil)
    with pytest.raises(BestiaryError, match="parts_lora.safetensors reads back differently from what was written"):
        export_dictionary(dictionary(), tmp_path)


def test_an_unwritable_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(BestiaryError, match="could not write .*file"):
        export_dictionary(dictionary(), tmp_path / "file")


def test_the_guide_shows_odd_names_as_text_on_one_line(tmp_path: Path) -> None:
    odd = dictionary(kind_names=({0: "a\nb, <script>"}, {}))
    guide = export_dictionary(odd, tmp_path)[-1].read_text(encoding="utf-8").splitlines()
    assert "kopf-hals-a-b-script, Kopf & Hals, a b, <script>" in guide


@pytest.mark.train
def test_diffusers_loads_single_encoder_exports(tmp_path: Path, tiny_folder: Callable[[str], Path]) -> None:
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(tiny_folder("sd15"), safety_checker=None)
    width = pipe.text_encoder.config.hidden_size
    target = next(n for n, _ in pipe.unet.named_modules() if n.endswith("attn2.to_q"))
    layer = pipe.unet.get_submodule(target)
    stem = "lora_unet_" + target.replace(".", "_")
    down, up = torch.randn(4, layer.in_features).half(), torch.randn(layer.out_features, 4).half()
    lora = {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up, f"{stem}.alpha": torch.tensor(2.0)}
    ours = dictionary({"clip_l": width}, lora=lora)
    written = export_dictionary(ours, tmp_path)
    pipe.load_textual_inversion(str(written[2]), token="<bird>")
    number = pipe.tokenizer.convert_tokens_to_ids("<bird>")
    table = pipe.text_encoder.get_input_embeddings().weight
    assert torch.allclose(table[number], ours.embeddings["clip_l"][2].to(table.dtype))
    before = layer.weight.clone()
    pipe.load_lora_weights(str(written[-2]))
    pipe.fuse_lora()
    after = dict(pipe.unet.named_parameters())[f"{target}.base_layer.weight"]
    assert torch.allclose(after - before, 0.5 * up.float() @ down.float(), atol=1e-5)


@pytest.mark.train
def test_diffusers_loads_sdxl_exports_encoder_by_encoder(tmp_path: Path, tiny_folder: Callable[[str], Path]) -> None:
    from diffusers import StableDiffusionXLPipeline

    pipe = StableDiffusionXLPipeline.from_pretrained(tiny_folder("sdxl"))
    widths = {"clip_l": pipe.text_encoder.config.hidden_size, "clip_g": pipe.text_encoder_2.config.hidden_size}
    ours = dictionary(widths, "sdxl", lora={})
    tensors = load_file(str(export_dictionary(ours, tmp_path)[0]))
    for encoder, model, tokenizer in (
        ("clip_l", pipe.text_encoder, pipe.tokenizer),
        ("clip_g", pipe.text_encoder_2, pipe.tokenizer_2),
    ):
        pipe.load_textual_inversion(tensors[encoder], token="<bird>", text_encoder=model, tokenizer=tokenizer)
        row = model.get_input_embeddings().weight[tokenizer.convert_tokens_to_ids("<bird>")]
        assert torch.allclose(row, ours.embeddings[encoder][0].to(row.dtype))
