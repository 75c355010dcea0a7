"""Embeddings of every age and program: one reader, the same answer of inspect and import."""

from pathlib import Path

import numpy as np
import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.trainer.exchange.embedding_file import chosen, read_embeddings
from bestiary.trainer.exchange.import_spectrum import import_textual_inversion
from bestiary.trainer.exchange.inspect_file import describe_file
from safetensors.torch import save_file

VECTORS = torch.linspace(-1, 1, 2 * 768).reshape(2, 768)
LORA = {"lora_unet_a_to_q.lora_down.weight": torch.ones(4, 8), "lora_unet_a_to_q.lora_up.weight": torch.ones(8, 4)}


class FromAppleGpu:
    """Pickles as torch 1.12 wrote tensors of Apple GPUs."""

    def __reduce__(self) -> tuple:
        rebuild = torch._utils._rebuild_device_tensor_from_numpy
        return rebuild, (VECTORS.numpy(), torch.float32, "mps:0", False)


FORMS = {
    "one tensor": VECTORS,
    "one parameter": torch.nn.Parameter(VECTORS),
    "a list of tensors": [VECTORS[0], VECTORS[1]],
    "a list of dictionaries": [{"<a>": VECTORS[0]}, {"<b>": VECTORS[1]}],
    "a dictionary": {"<owl>": VECTORS},
    "an array": {"<owl>": VECTORS.numpy()},
    "an array alone": np.asarray(VECTORS),
    "a tensor of an Apple GPU": {"<owl>": FromAppleGpu()},
    "a1111": {"string_to_param": {"*": VECTORS}, "string_to_token": {"*": 265}, "name": "owl", "step": 500},
    "a1111 with a container": {
        "string_to_param": torch.nn.ParameterDict({"*": torch.nn.Parameter(VECTORS)}),
        "name": "owl",
    },
    "half precision": {"<owl>": VECTORS.half()},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("modern", [True, False])
def test_every_form_gives_the_same_vectors(tmp_path: Path, form: str, modern: bool) -> None:
    path = tmp_path / "owl.pt"
    torch.save(FORMS[form], path, _use_new_zipfile_serialization=modern)
    spectrum = import_textual_inversion(path)
    assert torch.allclose(spectrum.embeddings["clip_l"][0], VECTORS, atol=1e-3)
    assert describe_file(path)["what"].startswith("textual inversion embedding")


def test_several_placeholders_are_chosen_by_name(tmp_path: Path) -> None:
    path = tmp_path / "two.safetensors"
    save_file({"<owl>": VECTORS, "<wren>": -VECTORS}, str(path))
    with pytest.raises(BestiaryError, match=r"holds 2 embeddings \(<owl>, <wren>\): choose one with --name"):
        import_textual_inversion(path)
    for name in ("<wren>", "wren"):
        assert torch.equal(import_textual_inversion(path, name).embeddings["clip_l"][0], -VECTORS)
    with pytest.raises(BestiaryError, match="holds no embedding 'lark': it has <owl>, <wren>"):
        import_textual_inversion(path, "lark")
    told = describe_file(path)
    assert len(told["tokens"]) == 2 and "--name" in told["remedy"]


def test_embeddings_that_a_lora_carries(tmp_path: Path) -> None:
    path = tmp_path / "l.safetensors"
    bundle = {"bundle_emb.owl.string_to_param.*": VECTORS, "bundle_emb.wren.clip_l": -VECTORS}
    bundle |= {"bundle_emb.wren.clip_g": torch.zeros(2, 1280)}
    save_file({**LORA, **bundle}, str(path))
    told = describe_file(path)
    assert (
        told["what"] == "LoRA"
        and any("owl: 2 of width 768" in line for line in told["embeddings"])
        and "--name" in told["remedy"]
    )
    assert torch.equal(import_textual_inversion(path, "owl").embeddings["clip_l"][0], VECTORS)
    assert import_textual_inversion(path, "wren").backbone == "sdxl"
    save_file(LORA, str(path))
    with pytest.raises(BestiaryError, match=r"holds no embedding: it is a table of 2 tensors \(lora_unet_a_to_q"):
        import_textual_inversion(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3}, "it is a table without tensors"),
        ([], "it is a list without tensors"),
        (torch.zeros(400, 768), r"it is one tensor of 1 tensors \(tensor \[400, 768\]\)"),
        (torch.zeros(2, dtype=torch.long), "it is one tensor"),
        ({"layer.weight": torch.zeros(3, 768)}, "it is a table of 1 tensors"),
        ("hello", "it is something else without tensors"),
    ],
)
def test_other_content_is_named(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(BestiaryError, match=f"x.pt holds no embedding: {message}"):
        read_embeddings(tmp_path / "x.pt")


def test_the_only_embedding_needs_no_name(tmp_path: Path) -> None:
    assert chosen({"owl": {"": VECTORS}}, None, tmp_path)[0] == "owl"


def test_scales_and_forms_of_loras_are_told(tmp_path: Path) -> None:
    pair = {
        f"unet.a.to_q.lora_{side}.weight": tensor for side, tensor in (("A", torch.ones(4, 8)), ("B", torch.ones(8, 4)))
    }
    save_file(
        pair,
        str(tmp_path / "a.safetensors"),
        {"lora_adapter_metadata": '{"unet.lora_alpha": 16, "unet.use_rslora": true}'},
    )
    assert describe_file(tmp_path / "a.safetensors")["alpha"] == "in the header: scale 8.0"
    save_file({**pair, "unet.a.to_q.lora_magnitude_vector": torch.ones(8)}, str(tmp_path / "b.safetensors"))
    assert "the LoRA holds DoRA" in describe_file(tmp_path / "b.safetensors")["beware"]
