"""Bad input through the program itself: one clear message, exit code 2, nothing run that a file asks for, nothing lost."""

import errno
import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from bestiary.concepts.part_dictionary.part_dictionary import PartDictionary
from bestiary.concepts.part_map import foreground
from bestiary.trainer.__main__ import main
from bestiary.trainer.demo.drawn_masks import draw_pictures
from bestiary.trainer.learning.discovery.discovery_folder import Discovery
from safetensors.torch import save_file

PROMPT = "a <head:0> bird"
QUICK = ("--steps", 1, "--device", "cpu", "--dtype", "fp32", "--progress", "off")


def make_dictionary(path: Path, width: int = 32, backbone: str = "bestiary-demo") -> Path:
    """A dictionary whose parts are those of the discovery made by `make_discovery`."""
    rows = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1], [1, 2], [2, 0]])
    vectors = torch.randn(len(rows), width, generator=torch.Generator().manual_seed(1)) * 0.1
    names = ("head", "body", "background")
    PartDictionary(backbone, names, ({0: "red"}, {}, {}), 2, rows, {"clip_l": vectors}).save(path)
    return path


def dictionary_of(found: Path, path: Path) -> Path:
    """A dictionary with a token for every part and kind of a discovery."""
    discovery = Discovery.load(found)
    names = discovery.codebook.part_names
    rows = torch.tensor([(part, kind) for part in range(len(names)) for kind in range(2)])
    vectors = torch.randn(len(rows), 32, generator=torch.Generator().manual_seed(1)) * 0.1
    nameless = tuple({} for _ in names)
    PartDictionary("bestiary-demo", names, nameless, len(names) - 1, rows, {"clip_l": vectors}).save(path)
    return path


@pytest.fixture
def birds(tmp_path: Path) -> Path:
    return make_dictionary(tmp_path / "birds.safetensors")


@pytest.fixture(autouse=True)
def quick_foreground(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreground, "_TRAINING_STEPS", 40)


@pytest.fixture(scope="module")
def discovered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `pictures` and what the program itself found in them, `found`."""
    folder = tmp_path_factory.mktemp("drawn")
    draw_pictures(folder, 8, seed=5)
    arguments = [folder / "pictures", "--out", folder / "found", "--source", "descriptor", "--parts", 3, "--kinds", 2]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(foreground, "_TRAINING_STEPS", 40)
        assert main(["discover", *map(str, arguments), "--device", "cpu", "--progress", "off"]) == 0
    return folder


@pytest.fixture
def found(tmp_path: Path, discovered: Path) -> Path:
    """A discovery of this test's own."""
    shutil.copytree(discovered, tmp_path / "drawn")
    return tmp_path / "drawn" / "found"


@pytest.fixture
def model(tmp_path: Path, tiny_folder: Callable[[str], Path]) -> Path:
    """A base model of this test's own, to be spoilt."""
    return Path(shutil.copytree(tiny_folder("bestiary-demo"), tmp_path / "model"))


# --- base models -----------------------------------------------------------------------------------------------------


def remove(model: Path) -> None:
    shutil.rmtree(model)


def empty(model: Path) -> None:
    shutil.rmtree(model)
    model.mkdir()


def put_a_file(model: Path) -> None:
    shutil.rmtree(model)
    model.write_bytes(b"not a folder")


def forget_the_settings(model: Path) -> None:
    (model / "unet" / "config.json").write_text("{}")


def break_the_settings(model: Path) -> None:
    (model / "vae" / "config.json").write_text("{ no json")


def cut_the_weights(model: Path) -> None:
    path = model / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])


def announce_a_giant_header(model: Path) -> None:
    path = model / "vae" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(struct.pack("<Q", 2**62) + path.read_bytes()[8:])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (remove, "does not exist: give a diffusers folder, or 'demo'"),
        (empty, "is not a diffusers folder: it has no model_index.json (found: nothing)"),
        (put_a_file, "give a diffusers folder"),
        (forget_the_settings, "unet/config.json lacks in_channels; unet/config.json lacks cross_attention_dim"),
        (break_the_settings, "is not readable JSON"),
        (cut_the_weights, "could not be loaded"),
        (announce_a_giant_header, "could not be loaded"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_base_models_that_cannot_be_used(fault, birds, model, tmp_path, spoil, message) -> None:
    spoil(model)
    line = fault("compose", birds, PROMPT, "--base", model, "--out", tmp_path / "new", *QUICK)
    assert message in line and str(model) in line
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("component", "donor"), [("text_encoder", "sdxl"), ("vae", "sd15")])
def test_base_models_mixed_of_two(fault, birds, model, tmp_path, tiny_folder, component, donor) -> None:
    shutil.rmtree(model / component)
    source = "text_encoder_2" if component == "text_encoder" else component
    shutil.copytree(tiny_folder(donor) / source, model / component)
    line = fault("compose", birds, PROMPT, "--base", model, "--out", tmp_path / "new", *QUICK)
    assert "parts of different models" in line and str(model) in line


@pytest.mark.parametrize(
    ("component", "stem"),
    [("unet", "diffusion_pytorch_model"), ("vae", "diffusion_pytorch_model"), ("text_encoder", "")],
)
def test_hostile_weights_of_a_base_model_run_nothing(fault, birds, model, tmp_path, component, stem, bomb) -> None:
    mark = tmp_path / "was-run"
    (weights,) = (model / component).glob("*.safetensors")
    weights.unlink()
    torch.save({"weight": bomb(mark)}, model / component / f"{stem or 'pytorch_model'}.bin")
    line = fault("compose", birds, PROMPT, "--base", model, "--out", tmp_path / "new", *QUICK)
    assert not mark.exists()
    assert "a .bin file in it is broken or asks for more than tensors" in line or "could not be loaded" in line
    assert str(model) in line and "weights_only" not in line


def test_a_report_that_lacks_entries_is_told(fault, found, snapshot) -> None:
    (found / "report.json").write_text(json.dumps({"images_folder": str(found.parent / "pictures")}))
    before = snapshot(found)
    assert "report.json is damaged (it lacks images, skipped, " in fault("parts", "drop", found, "background")
    assert snapshot(found) == before


def test_every_command_that_takes_a_base_model_names_a_missing_one(fault, birds, tmp_path, make_discovery) -> None:
    found, gone = make_discovery(tmp_path), tmp_path / "gone"
    pictures = found.parent / "pictures"
    commands = [
        ("compose", birds, PROMPT),
        ("train", "parts", "--discovery", found, "--out", tmp_path / "run"),
        ("doctor", "--discovery", found),
        ("discover", pictures, "--source", "diffusion", "--out", tmp_path / "parts"),
        ("evaluate", "parts", birds, "--discovery", found),
    ]
    for command in commands:
        assert f"{gone} does not exist" in fault(*command, "--base", gone), command


# --- files that are not what they should be --------------------------------------------------------------------------


def test_dictionaries_of_another_backbone(fault, tmp_path, make_discovery, tiny_folder) -> None:
    found = make_discovery(tmp_path)
    other, wide = make_dictionary(tmp_path / "a.safetensors", backbone="sd15"), make_dictionary(tmp_path / "b", 48)
    base = ("--base", tiny_folder("bestiary-demo"))
    for command in (("compose", other, PROMPT), ("evaluate", "parts", other, "--discovery", found)):
        out = ("--out", tmp_path / "new")
        assert "was trained for sd15, but the base model is bestiary-demo" in fault(*command, *base, *out, *QUICK)
    line = fault("compose", wide, PROMPT, *base, "--out", tmp_path / "new", *QUICK)
    assert "holds vectors of widths {'clip_l': 48}" in line


def test_unknown_parts_and_kinds(fault, birds, found, tmp_path, tiny_folder) -> None:
    base = ("--base", tiny_folder("bestiary-demo"), "--out", tmp_path / "new", *QUICK)
    assert "column 3: unknown part 'haed': choose 'head'" in fault("compose", birds, "a <haed:0>", *base)
    assert "column 1: unknown kind 7 of part 'head'" in fault("compose", birds, "<head:7>", *base)
    assert "unknown part 'tail': choose " in fault("compose", birds, PROMPT, "--negative", "<tail:0>", *base)
    assert "unknown part 'antler'" in fault("parts", "drop", found, "antler")
    assert "unknown kind '9'" in fault("parts", "merge", found, "0:0", "0:9")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("command", [["inspect"], ["import", "partcraft"]])
@pytest.mark.parametrize("modern", [True, False])
def test_hostile_pickles_run_nothing(fault, tmp_path, command, modern, bomb) -> None:
    mark, path = tmp_path / "was-run", tmp_path / "mapper.bin"
    torch.save({"embedding.weight": torch.zeros(2, 2), "x": bomb(mark)}, path, _use_new_zipfile_serialization=modern)
    assert "asks for " in fault(*command, path, *(["--out", tmp_path / "x"] if command[0] == "import" else []))
    path.write_bytes(pickle.dumps(bomb(mark)))
    fault(*command, path)
    assert not mark.exists() and not (tmp_path / "x").exists()


def test_a_hostile_checkpoint_of_the_feature_source_runs_nothing(fault, tmp_path, make_discovery, bomb) -> None:
    found, mark, path = make_discovery(tmp_path), tmp_path / "was-run", tmp_path / "dino.pth"
    torch.save({"pos_embed": bomb(mark)}, path)
    out = ("--out", tmp_path / "parts", "--device", "cpu")
    line = fault("discover", found.parent / "pictures", "--source", "dinov2", "--weights", path, *out)
    assert not mark.exists()
    assert "dino.pth" in line and "open" in line


@pytest.mark.parametrize(
    "content",
    [struct.pack("<Q", 2**62) + b"{}", struct.pack("<Q", 40 << 20) + b"{" * 100, b"\xff" * 64, b""],
    ids=["giant", "longer than the file", "noise", "empty"],
)
def test_giant_and_broken_headers(fault, found, tmp_path, content, snapshot) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    for command in (["inspect", path], ["export", path], ["import", "partcraft", path], ["compose", path, PROMPT]):
        assert "x.safetensors" in fault(*command), command
    for name in ("codebook.parts.safetensors", "part_maps.safetensors"):
        whole = (found / name).read_bytes()
        (found / name).write_bytes(content)
        before = snapshot(found)
        assert name in fault("parts", "drop", found, "0")
        assert name in fault("train", "parts", "--discovery", found, "--out", tmp_path / "run")
        assert snapshot(found) == before
        (found / name).write_bytes(whole)
    assert not (tmp_path / "run").exists()


def test_a_state_that_is_no_state_is_told_by_resume(fault, tmp_path) -> None:
    assert "holds no run" in fault("resume", tmp_path)
    assert f"no folder {tmp_path / 'gone'}" in fault("resume", tmp_path / "gone")


# --- places that cannot be written to --------------------------------------------------------------------------------


def _mapper(path: Path) -> Path:
    tensors = {"embedding.weight": torch.randn(8 * 201, 768), "pe": torch.randn(8, 768)}
    save_file(tensors, str(path))
    return path


@pytest.fixture
def prepared(
    tmp_path: Path, birds: Path, found: Path, tiny_folder: Callable[[str], Path]
) -> dict[str, Callable[[], tuple[list[object], Path]]]:
    """`prepared[name]()` -> (command, folder it writes to); earlier results lie in that folder."""
    first, second = (name for name in Discovery.load(found).codebook.part_names[:2])

    def export() -> tuple[list[object], Path]:
        (tmp_path / "exported").mkdir()
        (tmp_path / "exported" / "notes.txt").write_text("mine")
        return ["export", birds, "--out", tmp_path / "exported"], tmp_path / "exported"

    def convert() -> tuple[list[object], Path]:
        (tmp_path / "imported").mkdir()
        (tmp_path / "imported" / "cub.safetensors").write_text("earlier")
        mapper = _mapper(tmp_path / "mapper.safetensors")
        out = tmp_path / "imported" / "cub.safetensors"
        return ["import", "partcraft", mapper, "--names", "cub", "--out", out], out.parent

    def rename() -> tuple[list[object], Path]:
        return ["parts", "rename", found, first, "beak"], found

    def merge() -> tuple[list[object], Path]:
        return ["parts", "merge", found, first, second], found

    def compose() -> tuple[list[object], Path]:
        out = tmp_path / "pictures"
        out.mkdir()
        (out / "0001.png").write_bytes(b"earlier")
        base = ("--base", tiny_folder("bestiary-demo"), "--size", 64)
        return ["compose", birds, PROMPT, "--out", out, *base, *QUICK], out

    def evaluate() -> tuple[list[object], Path]:
        out = tmp_path / "evaluation"
        out.mkdir()
        (out / "evaluation.json").write_text("earlier")
        base = ("--base", tiny_folder("bestiary-demo"), "--discovery", found, "--count", 1, "--guidance", 1)
        return [
            "evaluate",
            "parts",
            dictionary_of(found, tmp_path / "of.safetensors"),
            "--out",
            out,
            *base,
            *QUICK,
        ], out

    def train() -> tuple[list[object], Path]:
        runs = tmp_path / "runs"
        (runs / "birds").mkdir(parents=True)
        (runs / "birds" / "config.resolved.toml").write_text("earlier")
        arguments = ["train", "parts", "--discovery", found, "--out", runs / "birds", "--steps", 1, "--device", "cpu"]
        arguments += ["--dtype", "fp32", "--base", tiny_folder("bestiary-demo"), "--progress", "off"]
        for setting in ("images.size=64", "run.preview_every=0", "run.estimate_memory=false", "run.tensorboard=false"):
            arguments += ["--set", setting]
        return arguments, runs

    def discover() -> tuple[list[object], Path]:
        pictures, out = found.parent / "pictures", tmp_path / "found-anew"
        options = ("--source", "descriptor", "--kinds", 2, "--parts", 2, "--device", "cpu", "--progress", "off")
        return ["discover", pictures, "--out", out, *options], out

    def demo() -> tuple[list[object], Path]:
        return ["demo", "--out", tmp_path / "demo", "--progress", "off"], tmp_path / "demo"

    made = (export, convert, rename, merge, compose, evaluate, train, discover, demo)
    return {prepare.__name__: prepare for prepare in made}


COMMANDS = ("export", "convert", "rename", "merge", "compose", "evaluate", "train", "discover", "demo")


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC], ids=["read-only", "full"])
@pytest.mark.parametrize("name", COMMANDS)
def test_places_that_take_nothing(fault, prepared, monkeypatch, name: str, number: int, snapshot, spoil_writes) -> None:
    command, place = prepared[name]()
    before = snapshot(place)
    with monkeypatch.context() as patch:
        spoil_writes(patch, place, number)
        line = fault(*command)
    assert os.strerror(number) in line and str(place) in line
    after = snapshot(place)
    assert {path: after.get(path) for path in before} == before
    assert [path for path in after if ".part" in Path(path).suffix or path.startswith(".edit")] == []


@pytest.mark.parametrize("name", ["export", "convert", "rename", "merge", "compose"])
def test_writes_interrupted_by_the_user(fault, prepared, monkeypatch, name: str, snapshot) -> None:
    command, place = prepared[name]()
    before = snapshot(place)

    def interrupt(source: object, target: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupt)
        patch.setattr(os, "link", interrupt)
        assert "stopped" in fault(*command, code=130)
    after = snapshot(place)
    assert {path: after.get(path) for path in before} == before
    assert [path for path in after if path.endswith(".part") or path.startswith(".edit")] == []
    assert main([str(argument) for argument in command]) == 0


@pytest.fixture
def denoisers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[object]]:
    """Counts evaluations of the denoiser."""
    from bestiary.trainer.model.diffusers_denoiser import UnetNetwork

    calls: list[object] = []
    predict = UnetNetwork.predict

    def counted(self: UnetNetwork, *args: object, **options: object) -> object:
        calls.append(self)
        return predict(self, *args, **options)

    monkeypatch.setattr(UnetNetwork, "predict", counted)
    return calls


@pytest.mark.parametrize("name", ["compose", "evaluate", "train"])
def test_a_place_that_cannot_be_written_to_is_told_before_the_work(
    fault, prepared, denoisers, monkeypatch, name, spoil_writes
) -> None:
    command, place = prepared[name]()
    with monkeypatch.context() as patch:
        spoil_writes(patch, place, errno.EROFS)
        fault(*command)
    assert denoisers == []


def test_what_a_full_disk_stopped_goes_on_afterwards(fault, prepared, monkeypatch, spoil_writes) -> None:
    command, place = prepared["discover"]()
    with monkeypatch.context() as patch:
        spoil_writes(patch, place, errno.ENOSPC)
        fault(*command)
    assert main([str(argument) for argument in command]) == 0
    assert len(Discovery.load(place).image_paths) == 8
    assert json.loads((place / "report.json").read_text())["images"] == 8
