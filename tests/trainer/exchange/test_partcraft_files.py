"""PartCraft's files are told apart by their content."""

import os
import sys
import types
from pathlib import Path

import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.trainer.exchange.partcraft_files import holds_safetensors, read_partcraft_file
from safetensors.torch import save_file


def mapper() -> dict[str, torch.Tensor]:
    return {"embedding.weight": torch.randn(6, 4), "pe": torch.randn(2, 4)}


def lora() -> dict[str, torch.Tensor]:
    stem = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora"
    return {f"{stem}.down.weight": torch.randn(4, 8), f"{stem}.up.weight": torch.randn(8, 4)}


def kmeans(monkeypatch: pytest.MonkeyPatch, parts: int = 3, width: int = 5) -> dict[str, object]:
    """Objects of a library that is not there when the file is read."""
    module = types.ModuleType("torchpq.clustering.KMeans")
    module.KMeans = type("KMeans", (torch.nn.Module,), {"__module__": module.__name__})
    for name in ("torchpq", "torchpq.clustering"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)

    def level(k: int) -> torch.nn.Module:
        model = module.KMeans()
        model.register_buffer("centroids", torch.arange(width * k, dtype=torch.float32).view(width, k))
        return model

    fine = [level(4 + part) for part in range(parts)]
    return {"foreground_background": level(2), "coarse_kmeans": level(parts), "fine_kmeans": fine}


@pytest.mark.parametrize(
    ("name", "kind"), [("pytorch_model.bin", "lora"), ("x.pth", "mapper"), ("model_1.safetensors", "mapper")]
)
def test_names_do_not_matter(tmp_path: Path, name: str, kind: str) -> None:
    tensors = {"lora": lora(), "mapper": mapper()}[kind]
    save = save_file if name.endswith("safetensors") else torch.save
    save(tensors, str(tmp_path / name))
    ours = read_partcraft_file(tmp_path / name)
    assert ours.kind == kind
    assert all(torch.equal(ours.tensors[key], tensors[key]) for key in tensors)
    assert holds_safetensors(tmp_path / name) == name.endswith("safetensors")


def test_wrapped_names_are_unwrapped(tmp_path: Path) -> None:
    torch.save({f"module.{name}": tensor for name, tensor in mapper().items()}, tmp_path / "x.bin")
    assert read_partcraft_file(tmp_path / "x.bin").tensors.keys() == mapper().keys()


def test_kmeans_without_its_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(kmeans(monkeypatch), tmp_path / "pretrained_kmeans.pth")
    for name in [name for name in sys.modules if name.startswith("torchpq")]:
        monkeypatch.delitem(sys.modules, name)
    ours = read_partcraft_file(tmp_path / "pretrained_kmeans.pth")
    assert ours.kind == "kmeans"
    shapes = {name: tuple(tensor.shape) for name, tensor in ours.tensors.items()}
    assert shapes == {
        "fg.centroids": (2, 5), "coarse.centroids": (3, 5),
        "fine.0.centroids": (4, 5), "fine.1.centroids": (5, 5), "fine.2.centroids": (6, 5),
    }  # fmt: skip
    assert ours.tensors["fg.centroids"][1].tolist() == [1, 3, 5, 7, 9]
    save_file(ours.tensors, str(tmp_path / "kmeans.safetensors"))
    assert read_partcraft_file(tmp_path / "kmeans.safetensors").kind == "kmeans"


def test_incomplete_and_crooked_kmeans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = kmeans(monkeypatch)
    path = tmp_path / "k.pth"
    torch.save({**whole, "foreground_background": None}, path)
    with pytest.raises(BestiaryError, match="incomplete k-means file: it lacks foreground_background.centroids"):
        read_partcraft_file(path)
    torch.save({**whole, "fine_kmeans": []}, path)
    with pytest.raises(BestiaryError, match="it lacks fine_kmeans"):
        read_partcraft_file(path)
    whole["coarse_kmeans"].centroids = torch.full((7, 3), float("nan"))
    torch.save(whole, path)
    with pytest.raises(BestiaryError, match=r"do not fit together or are not finite: .*'coarse.centroids': \(3, 7\)"):
        read_partcraft_file(path)


class Bomb:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple:
        return os.system, (self.command,)


def test_a_bomb_among_kmeans_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = tmp_path / "marker"
    torch.save({**kmeans(monkeypatch), "bonus": Bomb(f"touch {marker}")}, tmp_path / "k.pth")
    with pytest.raises(
        BestiaryError, match=r"k.pth was not loaded: it asks for (posix|nt).system, which files of tensors"
    ):
        read_partcraft_file(tmp_path / "k.pth")
    assert not marker.exists()


def test_other_files_are_refused(tmp_path: Path) -> None:
    save_file({"emb_params": torch.zeros(1)}, str(tmp_path / "x.safetensors"))
    with pytest.raises(
        BestiaryError, match="x.safetensors is not a PartCraft file: it holds emb_params; expected a mapper"
    ):
        read_partcraft_file(tmp_path / "x.safetensors")
    torch.save({"epoch": 3}, tmp_path / "x.bin")
    with pytest.raises(BestiaryError, match=r"x.bin holds a dictionary with 'epoch' \(int\)"):
        read_partcraft_file(tmp_path / "x.bin")
    with pytest.raises(BestiaryError, match="could not read"):
        read_partcraft_file(tmp_path / "gone")
