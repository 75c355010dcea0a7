"""Published checkpoints, made up in their published shapes, become dictionaries and codebooks."""

import itertools
from pathlib import Path

import pytest
import torch
from bestiary.concepts.denoiser.lora_names import lora_layers
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.part_dictionary.part_dictionary import PartDictionary
from bestiary.concepts.part_dictionary.token_projector import TokenProjector
from bestiary.concepts.part_map.part_codebook import PartCodebook
from bestiary.concepts.part_prompt.part_prompt import parse_part_prompt, resolve_prompt
from bestiary.trainer.exchange.import_partcraft import LAYOUTS, import_partcraft
from safetensors.torch import save_file
from torch import Tensor

STEM = "mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_k_lora"


def mapper(width: int = 768, parts: int = 8, kinds: int = 256, depth: int = 1) -> dict[str, Tensor]:
    torch.manual_seed(0)
    tensors = {"embedding.weight": torch.randn(parts * (kinds + 1), width), "pe": torch.randn(parts, width)}
    for level in range(depth):
        tensors[f"projection.{2 * level}.weight"] = torch.randn(width, width) / width**0.5
        tensors[f"projection.{2 * level}.bias"] = torch.zeros(width)
    return tensors


def lora() -> dict[str, Tensor]:
    return {f"{STEM}.down.weight": torch.randn(4, 8), f"{STEM}.up.weight": torch.randn(8, 4)}


def kmeans(background: int, width: int = 768) -> dict[str, Tensor]:
    coarse = torch.randn(8, width)
    coarse[background] = -1
    tensors = {"fg.centroids": torch.randn(2, width), "coarse.centroids": coarse}
    return {**tensors, **{f"fine.{part}.centroids": torch.randn(16, width) for part in range(8)}}


@pytest.fixture
def published(tmp_path: Path) -> list[Path]:
    torch.save(lora(), tmp_path / "pytorch_model.bin")
    torch.save(mapper(), tmp_path / "pytorch_model_1.bin")
    save_file(kmeans(7), str(tmp_path / "kmeans.safetensors"))
    return [tmp_path / name for name in ("pytorch_model.bin", "pytorch_model_1.bin", "kmeans.safetensors")]


def test_birds_in_any_order_of_files(tmp_path: Path, published: list[Path]) -> None:
    names = tmp_path / "names.txt"
    names.write_text("\n".join(f"species {number}" for number in range(1, 17)) + "\ncardinal\n" + "x\n" * 183)
    tables = set()
    for order in itertools.permutations(published):
        out = tmp_path / "out" / "birds.safetensors"
        imported = import_partcraft(order, out, names="cub", class_names=names)
        tables.add(out.read_bytes())
    assert len(tables) == 1
    assert imported.written == (out, tmp_path / "out" / "birds.parts.safetensors")
    ours = PartDictionary.load(out)
    assert ours.backbone == "sd15"
    assert len(ours.rows) == 5 * 200 + 256
    assert [ours.part_names[part] for part in (0, 1, 2, 4, 6, 7)] == [
        "body",
        "tail",
        "head",
        "wing",
        "leg",
        "background",
    ]
    assert ours.kinds_of(3) == ours.kinds_of(5) == ()
    assert ours.kinds_of(2) == tuple(range(200))
    assert ours.kinds_of(7) == tuple(range(256))
    assert ours.find_kind(2, "cardinal") == ours.find_kind(2, "17") == 16
    assert len(lora_layers(ours.lora)) == 1


def test_vectors_are_those_of_the_projector(published: list[Path], tmp_path: Path) -> None:
    dictionary = import_partcraft(published[:2], tmp_path / "x.safetensors", names="cub").dictionary
    theirs = TokenProjector.from_state_dict(mapper())(torch.tensor(2), torch.tensor(16))
    (ours,) = resolve_prompt(parse_part_prompt("<head:17>"), {"birds": dictionary}).vectors
    assert (ours - theirs).norm() / theirs.norm() < 1e-6


@pytest.mark.parametrize("text", ["<head:0>", "<head:201>", "<head:257>", "<unused 3:1>", "<3:1>", "<background:257>"])
def test_untrained_rows_cannot_be_asked_for(published: list[Path], tmp_path: Path, text: str) -> None:
    dictionary = import_partcraft(published[:2], tmp_path / "x.safetensors", names="cub").dictionary
    with pytest.raises(BestiaryError, match="unknown (kind|part)"):
        resolve_prompt(parse_part_prompt(text), {"birds": dictionary})


def test_dogs_have_eight_parts_and_120_classes(tmp_path: Path) -> None:
    path = tmp_path / "dreamcreature-sd1.5-dog" / "hash_mapper.pth"
    path.parent.mkdir()
    torch.save(mapper(), path)
    dictionary = import_partcraft([path], tmp_path / "x.safetensors").dictionary
    assert dictionary.part_names == ("eye", "background", "neck", "ear", "body", "leg", "nose", "forehead")
    assert len(dictionary.rows) == 7 * 120 + 256
    with pytest.raises(BestiaryError, match="unknown kind 121 of part 'nose': choose one of 1..120"):
        dictionary.find_kind(6, "121")


@pytest.mark.parametrize(("width", "backbone"), [(1024, "sd2"), (2048, "sdxl")])
def test_the_width_tells_the_backbone(tmp_path: Path, width: int, backbone: str) -> None:
    layout = tmp_path / "parts.toml"
    layout.write_text("classes = 3\nid_base = 0\n[parts]\nhead = 1\n")
    save_file(mapper(width, 2, 4, depth=0), str(tmp_path / "model_1.safetensors"))
    dictionary = import_partcraft(
        [tmp_path / "model_1.safetensors"], tmp_path / "x.safetensors", names=layout
    ).dictionary
    assert dictionary.backbone == backbone
    assert dictionary.rows.tolist() == [[1, 0], [1, 1], [1, 2]]
    assert dictionary.background is None
    assert [len(tensor[0]) for tensor in dictionary.embeddings.values()] == {"sd2": [1024], "sdxl": [768, 1280]}[
        backbone
    ]


def test_captions_tell_the_rows_of_an_unlabelled_training(tmp_path: Path) -> None:
    torch.save(mapper(kinds=10), tmp_path / "m.bin")
    layout = tmp_path / "parts.toml"
    layout.write_text('classes = 1\nbackground = "bg"\n[parts]\nhead = 0\nbg = 7\n')
    (tmp_path / "caps.txt").write_text("0:3 7:9\n0:3 2:1\n")
    out = tmp_path / "x.safetensors"
    dictionary = import_partcraft([tmp_path / "m.bin"], out, names=layout, captions=tmp_path / "caps.txt").dictionary
    assert dictionary.rows.tolist() == [[0, 3], [2, 1], [7, 9]]
    assert dictionary.id_base == 0
    (tmp_path / "caps.txt").write_text("0:10\n")
    with pytest.raises(BestiaryError, match="caps.txt names 1 pairs, the mapper has 10 kinds per part"):
        import_partcraft([tmp_path / "m.bin"], out, names=layout, captions=tmp_path / "caps.txt")


def test_the_codebook_finds_its_background_by_itself(published: list[Path], tmp_path: Path) -> None:
    imported = import_partcraft(published, tmp_path / "x.safetensors", names="cub", foreground_cluster=1)
    ours = PartCodebook.load(imported.written[1])
    assert ours.background == 7
    assert ours.part_names[2] == "head"
    assert ours.num_kinds == (16,) * 8
    assert ours.foreground.index == 1
    assert torch.equal(ours.parts.centroids[7], -torch.ones(768))
    save_file(kmeans(1), str(tmp_path / "kmeans.safetensors"))
    with pytest.raises(BestiaryError, match="has its background in part 1, the names in part 7"):
        import_partcraft(published, tmp_path / "y.safetensors", names="cub")
    assert not (tmp_path / "y.safetensors").exists()


def test_shipped_class_names_fit(published: list[Path], tmp_path: Path) -> None:
    assert {name: layout.classes for name, layout in LAYOUTS.items()} == {"cub": 200, "dogs": 120}
    short = tmp_path / "names.txt"
    short.write_text("a\nb\n")
    with pytest.raises(BestiaryError, match="names.txt has 2 names, the checkpoint has 200 classes"):
        import_partcraft(published, tmp_path / "x.safetensors", names="cub", class_names=short)
    with pytest.raises(BestiaryError, match="could not read .*gone.txt"):
        import_partcraft(published, tmp_path / "x.safetensors", names="cub", class_names=tmp_path / "gone.txt")


def test_misfits_are_explained(published: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "x.safetensors"
    with pytest.raises(BestiaryError, match=r"the mapper .* is missing .*; got pytorch_model.bin \(lora\)"):
        import_partcraft(published[:1], out, names="cub")
    with pytest.raises(BestiaryError, match="are both a lora: give one of each kind"):
        import_partcraft([published[0], *published], out, names="cub")
    with pytest.raises(BestiaryError, match="cannot tell the data set .* say cub or dogs"):
        import_partcraft(published[1:2], out)
    with pytest.raises(BestiaryError, match="cats is neither cub, dogs nor a readable TOML"):
        import_partcraft(published, out, names="cats")
    torch.save(mapper(100, 8, 256), tmp_path / "odd.bin")
    with pytest.raises(
        BestiaryError, match=r"tokens of width 100; known are 768 \(sd15\), 1024 \(sd2\), 2048 \(sdxl\)"
    ):
        import_partcraft([tmp_path / "odd.bin"], out, names="cub")
    torch.save(mapper(768, 6, 256), tmp_path / "few.bin")
    with pytest.raises(BestiaryError, match="few.bin has 6 parts of 256 kinds, but the names speak of 200 classes"):
        import_partcraft([tmp_path / "few.bin"], out, names="cub")
    torch.save({**mapper(), "pe": torch.zeros(8, 5)}, tmp_path / "bad.bin")
    with pytest.raises(BestiaryError, match=r"bad.bin: the tensor .pe. is a tensor of float32 \[8, 5\]"):
        import_partcraft([tmp_path / "bad.bin"], out, names="cub")
    with pytest.raises(BestiaryError, match="foreground cluster 2"):
        import_partcraft(published, out, names="cub", foreground_cluster=2)
    assert not out.exists()


def test_a_checkpoint_is_never_overwritten_by_its_import(tmp_path: Path) -> None:
    for name in ("mapper.safetensors", "x.parts.safetensors"):
        save_file(mapper() if name.startswith("mapper") else kmeans(7), str(tmp_path / name))
    sources = [tmp_path / "mapper.safetensors", tmp_path / "x.parts.safetensors"]
    before = [path.read_bytes() for path in sources]
    for out in (sources[0], tmp_path / "x.safetensors"):
        with pytest.raises(BestiaryError, match="is one of the checkpoints to be imported: choose another --out"):
            import_partcraft(sources, out, names="cub")
    assert [path.read_bytes() for path in sources] == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mapper.safetensors", "x.parts.safetensors"]


def test_broken_layout_files_say_the_field(published: list[Path], tmp_path: Path) -> None:
    layout = tmp_path / "parts.toml"
    layout.write_text("clases = 3\n[parts]\nhead = 0\n")
    with pytest.raises(BestiaryError, match="parts.toml does not describe the parts: classes: .*clases: Extra"):
        import_partcraft(published, tmp_path / "x.safetensors", names=layout)
    layout.write_text('classes = 3\nbackground = "bg"\n[parts]\nhead = 0\n')
    with pytest.raises(BestiaryError, match="background 'bg' is not among the parts head"):
        import_partcraft(published[:2], tmp_path / "x.safetensors", names=layout)
