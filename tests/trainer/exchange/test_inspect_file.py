"""Inspecting files: ours in detail, common foreign ones by name, hostile ones without harm."""

import json
import os
from pathlib import Path

import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.files.concept_file import write_concept_file
from bestiary.concepts.files.thumbnail_atlas import ThumbnailAtlas
from bestiary.concepts.part_dictionary.part_dictionary import PartDictionary
from bestiary.concepts.part_map.foreground import CentroidForeground
from bestiary.concepts.part_map.part_codebook import PartCodebook
from bestiary.concepts.part_map.part_model import CentroidParts
from bestiary.trainer.exchange.inspect_file import describe_file, description_text
from PIL import Image
from safetensors.torch import save_file

LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"


def test_a_dictionary_in_detail(tmp_path: Path) -> None:
    path = tmp_path / "d.safetensors"
    PartDictionary(
        backbone="sdxl",
        part_names=("head", "gone", "sky\x1b[31m"),
        kind_names=({kind: f"kind {kind}" for kind in range(10)}, {}, {}),
        background=2,
        rows=torch.tensor([(0, kind) for kind in range(10)] + [(2, 4)]),
        embeddings={"clip_l": torch.zeros(11, 4), "clip_g": torch.zeros(11, 6)},
        lora={"lora_unet_a.lora_down.weight": torch.ones(4, 2), "lora_unet_a.lora_up.weight": torch.ones(2, 4)},
        thumbnails=ThumbnailAtlas.from_images({(0, 3): Image.new("RGB", (32, 32))}, 32),
        provenance={"base": "x", "long": "y" * 5000},
        id_base=1,
    ).save(path)
    ours = describe_file(path)
    assert ours["what"] == "Bestiary part dictionary"
    assert ours["tokens"] == 11
    assert ours["widths"] == {"clip_l": 4, "clip_g": 6}
    assert [entry["part"] for entry in ours["parts"]] == ["head", "sky\x1b[31m"]
    assert ours["parts"][0]["ids"] == "1..10"
    assert ours["parts"][0]["names"][-1] == "and 2 more"
    assert ours["parts"][1]["background"]
    assert ours["lora"] == "1 layers, rank 4"
    assert ours["thumbnails"] == 1
    text = description_text(ours)
    assert "\x1b" not in text
    assert "part head; number 0; kinds 10; ids 1..10; names kind 0, kind 1" in text
    assert "(5,000 characters)" in text
    assert json.loads(json.dumps(ours))["backbone"] == "sdxl"


def test_a_codebook_and_other_kinds_of_ours(tmp_path: Path) -> None:
    codebook = PartCodebook(
        feature_spec={"name": "descriptor"},
        width=3,
        grid=(4, 4),
        part_names=("head", "background"),
        background=1,
        foreground=CentroidForeground(torch.randn(2, 3), 0),
        parts=CentroidParts(torch.randn(2, 3), torch.arange(2)),
        fine=(torch.randn(5, 3), torch.randn(2, 3)),
        kind_names=({0: "owl"}, {}),
        statistics={"inertia": 0.5},
    )
    codebook.save(tmp_path / "c.parts.safetensors")
    ours = describe_file(tmp_path / "c.parts.safetensors")
    assert ours["what"] == "Bestiary part codebook"
    assert ours["parts"][0] == {"part": "head", "number": 0, "kinds": 5, "names": ["owl"]}
    assert ours["grid"] == "4x4"
    write_concept_file(tmp_path / "maps", {"labels": torch.zeros(2, 3)}, {"kind": "part-maps", "note": "x"})
    other = describe_file(tmp_path / "maps")
    assert other["what"] == "Bestiary part-maps"
    assert other["note"] == "x"
    assert other["first_tensors"] == [{"name": "labels", "type": "F32", "shape": [2, 3]}]
    assert "name labels; type F32; shape 2, 3" in description_text(other)


@pytest.mark.parametrize(
    ("key", "naming"),
    [
        ("lora_unet_x_to_q.lora_{}.weight", "kohya"),
        (LAYER + ".processor.to_q_lora.{}.weight", "PartCraft and old diffusers"),
        ("unet." + LAYER + ".to_q.lora_{}.weight", "peft"),
        ("unet." + LAYER + ".to_q.lora.{}.weight", "old diffusers (lora)"),
        (LAYER + ".to_q.lora_layer.{}.weight", "old diffusers (lora_layer)"),
    ],
)
def test_lora_files_of_any_naming(tmp_path: Path, key: str, naming: str) -> None:
    down, up = ("A", "B") if naming == "peft" else ("down", "up")
    tensors = {key.format(down): torch.zeros(4, 8), key.format(up): torch.zeros(8, 4)}
    save_file(tensors, str(tmp_path / "x.safetensors"), {"ss_network_dim": "4", "ss_tag_frequency": "z" * 10})
    torch.save(tensors, tmp_path / "x.bin")
    for path in (tmp_path / "x.safetensors", tmp_path / "x.bin"):
        ours = describe_file(path)
        assert (ours["what"], ours["naming"], ours["layers"], ours["rank"]) == ("LoRA", naming, 1, "4")
    assert describe_file(tmp_path / "x.safetensors")["metadata"] == {"ss_network_dim": "4"}


@pytest.mark.parametrize(
    ("tensors", "shown"),
    [
        ({"emb_params": (3, 768)}, ["emb_params: 3 of width 768, SD1.5 (or CLIP-L of SDXL)"]),
        ({"<owl>": (1024,)}, ["<owl>: 1 of width 1024, SD2"]),
        (
            {"clip_l": (2, 768), "clip_g": (2, 1280)},
            ["clip_g: 2 of width 1280, CLIP-G of SDXL", "clip_l: 2 of width 768, SD1.5 (or CLIP-L of SDXL)"],
        ),
    ],
)
def test_textual_inversion_embeddings(tmp_path: Path, tensors: dict[str, tuple], shown: list[str]) -> None:
    save_file({name: torch.zeros(shape) for name, shape in tensors.items()}, str(tmp_path / "x.safetensors"))
    ours = describe_file(tmp_path / "x.safetensors")
    assert ours["what"] == "textual inversion embedding"
    assert sorted(ours["tokens"]) == shown


def test_embeddings_of_a1111_are_read_without_running_them(tmp_path: Path) -> None:
    content = {"string_to_param": {"*": torch.zeros(2, 768)}, "name": "owl", "step": 500, "string_to_token": {"*": 265}}
    torch.save(content, tmp_path / "owl.pt")
    ours = describe_file(tmp_path / "owl.pt")
    assert ours["what"] == "textual inversion embedding (AUTOMATIC1111)"
    assert ours["tokens"] == {"*": [2, 768]}


def test_published_mappers_and_kmeans(tmp_path: Path) -> None:
    mapper = {"embedding.weight": torch.zeros(12, 6), "pe": torch.zeros(2, 6)}
    mapper |= {"projection.0.weight": torch.zeros(6, 6), "projection.0.bias": torch.zeros(6)}
    save_file(mapper, str(tmp_path / "model_1.safetensors"))
    torch.save(mapper, tmp_path / "pytorch_model_1.bin")
    for name in ("model_1.safetensors", "pytorch_model_1.bin"):
        ours = describe_file(tmp_path / name)
        told = [ours[key] for key in ("what", "parts", "kinds", "width", "depth")]
        assert told == ["PartCraft mapper", 2, 5, 6, 1]
    save_file({"coarse.centroids": torch.zeros(8, 5)}, str(tmp_path / "k.safetensors"))
    assert describe_file(tmp_path / "k.safetensors")["parts"] == 8
    plain = {"_buffers": {"centroids": torch.ones(5, 3)}}
    torch.save({"foreground_background": plain, "coarse_kmeans": plain, "fine_kmeans": [plain]}, tmp_path / "k.pth")
    assert describe_file(tmp_path / "k.pth")["what"] == "PartCraft k-means"


def test_unknown_files_are_listed(tmp_path: Path) -> None:
    save_file({f"layer{n}": torch.zeros(2) for n in range(20)}, str(tmp_path / "x.safetensors"), {"note": "hello"})
    ours = describe_file(tmp_path / "x.safetensors")
    assert ours["what"] == "safetensors file of an unknown kind"
    assert ours["tensors"] == 20
    assert len(ours["first_tensors"]) == 12
    assert ours["metadata"] == {"note": "hello"}
    torch.save([1, {"a": torch.zeros(3)}], tmp_path / "x.pt")
    told = describe_file(tmp_path / "x.pt")
    assert told["what"] == "torch file of an unknown kind (list)"
    assert told["first_tensors"][0]["name"] == "1.a"


class Bomb:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple:
        return os.system, (self.command,)


def test_hostile_files_give_one_error_and_run_nothing(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    torch.save({"string_to_param": Bomb(f"touch {marker}")}, tmp_path / "x.pt")
    with pytest.raises(BestiaryError, match=r"x.pt was not loaded: it asks for (posix|nt).system"):
        describe_file(tmp_path / "x.pt")
    assert not marker.exists()
    (tmp_path / "y").write_bytes(b"\xff" * 8 + b"{")
    with pytest.raises(BestiaryError, match="y is not a safetensors file"):
        describe_file(tmp_path / "y")
    with pytest.raises(BestiaryError, match="could not read .*gone"):
        describe_file(tmp_path / "gone")
    (tmp_path / "z.png").write_bytes(b"\x89PNG....")
    with pytest.raises(BestiaryError, match="z.png is neither a torch file nor a pickle"):
        describe_file(tmp_path / "z.png")
