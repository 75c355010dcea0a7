"""DreamBooth training on narrow models: what learns, what is written, how the class is kept, how it stops and goes on."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import bestiary
import numpy as np
import pytest
import torch
from bestiary.concepts.denoiser.lora_names import lora_layers, resolve_lora
from bestiary.concepts.errors import BestiaryError
from bestiary.trainer.__main__ import main
from bestiary.trainer.evaluation.dreambooth_pictures import load_subject
from bestiary.trainer.learning.dreambooth.dreambooth_settings import TrainDreamBoothSettings, load_dreambooth_recipe
from bestiary.trainer.learning.run.fit import TrainingStopped
from bestiary.trainer.learning.run.processes import SingleProcess
from bestiary.trainer.training import class_pictures
from bestiary.trainer.training.doctor import examine
from bestiary.trainer.training.tasks import resume_training
from bestiary.trainer.training.train_dreambooth import DreamBoothTask, train_dreambooth
from bestiary.trainer.training.training_setup import prepare
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file


def _pictures(folder: Path, count: int, seed: int = 0) -> Path:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for number in range(count):
        Image.fromarray(rng.integers(0, 255, (64, 80, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Three pictures of 80 x 64."""
    return _pictures(tmp_path / "pictures", 3)


@pytest.fixture
def of_class(tmp_path: Path) -> Path:
    """Four pictures of the class."""
    return _pictures(tmp_path / "class", 4, seed=1)


def _settings(base: Path | str, source: Path, out: Path, **changes: object) -> TrainDreamBoothSettings:
    values: dict[str, object] = {
        "images.instance": source, "images.size": 64, "images.class_count": 4, "base.path": str(base), "run.out": out, "run.device": "cpu",
        "run.dtype": "fp32", "run.preview_every": 0, "run.estimate_memory": False, "run.tensorboard": False, "run.log_every": 1,
        "optimizer.steps": 4, "optimizer.batch_size": 2, "captions.instance_prompt": "a red bird", "captions.class_prompt": "a bird",
        "lora.rank": 4, "lora.alpha": 8.0, "optimizer.lora_lr": 1e-2,
    }  # fmt: skip
    return load_dreambooth_recipe(None, values | changes)


def _lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("backbone", ["sd15", "sd2", "sdxl", "bestiary-demo"])
def test_every_backbone_trains_and_its_lora_loads_back(
    tiny_folder: Callable, tiny_denoiser: Callable, pictures: Path, of_class: Path, tmp_path: Path, backbone: str
) -> None:
    settings = _settings(tiny_folder(backbone), pictures, tmp_path / "run", **{"images.class_images": of_class})
    trained = train_dreambooth(settings)
    tensors = load_file(trained.path)
    layers = lora_layers(tensors)
    assert {layer.scale for layer in layers.values()} == {2.0} and any(layer.up.any() for layer in layers.values())
    # every adapter reaches a layer of a model that is loaded afresh
    assert tiny_denoiser(backbone).network.adapters.load(tensors) == len(layers)
    lines = _lines(trained.run.path)
    assert len(lines) == 4
    for line in lines:
        assert line["loss"] == pytest.approx(line["instance_loss"] + line["prior_loss"], abs=1e-6)
    with safe_open(trained.path, "pt") as file:
        notes = file.metadata()
    assert json.loads(notes["bestiary.kind"]) == "dreambooth" and json.loads(notes["bestiary.backbone"]) == backbone
    assert json.loads(notes["bestiary.class_pictures"]) == 4 and notes["ss_network_alpha"] == "8.0"
    content = hashlib.sha256()
    for path in [*sorted(pictures.iterdir()), *sorted(of_class.iterdir())]:
        content.update(hashlib.sha256(path.read_bytes()).digest())
    assert json.loads(notes["bestiary.data"]) == content.hexdigest()[:16]
    assert json.loads(notes["bestiary.version"]) == bestiary.__version__
    assert {path.name for path in trained.exports} == {"diffusers_lora.safetensors", "README.txt"}


def test_diffusers_loads_the_export_with_its_scale(
    tiny_folder: Callable, pictures: Path, of_class: Path, tmp_path: Path
) -> None:
    """By diffusers' own loader and PEFT: alpha 8 at rank 4 doubles every update."""
    pytest.importorskip("peft")
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel

    settings = _settings(tiny_folder("sd15"), pictures, tmp_path / "run", **{"images.class_images": of_class})
    trained = train_dreambooth(settings)
    unet = UNet2DConditionModel.from_pretrained(tiny_folder("sd15") / "unet", torch_dtype=torch.float32)
    names = [name for name, _ in unet.named_modules()]
    expected = {
        name: unet.get_submodule(name).weight + layer.scale * layer.up @ layer.down
        for name, layer in resolve_lora(load_file(trained.path), names).items()
    }
    state, alphas, metadata = StableDiffusionPipeline.lora_state_dict(
        trained.run.export, weight_name="diffusers_lora.safetensors", return_lora_metadata=True
    )
    StableDiffusionPipeline.load_lora_into_unet(state, alphas, unet, metadata=metadata)
    unet.fuse_lora()
    for name, weight in expected.items():
        layer = unet.get_submodule(name)
        assert torch.allclose(getattr(layer, "base_layer", layer).weight, weight, atol=1e-6), name


def test_only_missing_pictures_of_the_class_are_made(
    tiny_folder: Callable, pictures: Path, of_class: Path, tmp_path: Path
) -> None:
    before = {path.name: path.read_bytes() for path in of_class.iterdir()}
    (of_class / "notes.txt").write_text("mine")
    settings = _settings(
        tiny_folder("sd15"), pictures, tmp_path / "run", **{"images.class_images": of_class, "images.class_count": 6}
    )
    train_dreambooth(settings)
    after = {path.name: path.read_bytes() for path in of_class.iterdir()}
    assert {name: after[name] for name in before} == before and after["notes.txt"] == b"mine"
    assert after.keys() - before.keys() == {"notes.txt", "class-00000.png", "class-00001.png"}
    # a second run finds them all
    train_dreambooth(settings)
    assert {path.name: path.read_bytes() for path in of_class.iterdir()} == after


def test_processes_share_the_missing_pictures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two make every second one each; together they make what one process makes."""
    barrier = threading.Barrier(2, timeout=20)

    class Rank(SingleProcess):
        def wait(self) -> None:
            barrier.wait()

    def sample(*_places, seeds, **_others):
        return SimpleNamespace(images=torch.stack([torch.full((3, 8, 8), seed / 8) for seed in seeds]))

    def make(place: str, parallel: SingleProcess | None) -> list[str]:
        model = SimpleNamespace(text=SimpleNamespace(encode=lambda *_: None, tokenize=lambda *_, **__: None))
        return class_pictures.make_missing(model, "a dog", tmp_path / place, 5, size=8, at_once=2, parallel=parallel)

    monkeypatch.setattr(class_pictures, "sample_images", sample)
    alone = make("alone", None)
    with ThreadPoolExecutor(2) as pool:
        shared = list(pool.map(lambda rank: make("shared", Rank(rank, 2)), range(2)))
    assert shared == [alone, alone] and len(alone) == 5
    for name in alone:
        assert (tmp_path / "shared" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()


def test_without_a_folder_the_pictures_lie_beside_the_run_and_serve_the_next(
    tiny_folder: Callable, pictures: Path, tmp_path: Path
) -> None:
    settings = _settings(tiny_folder("sd15"), pictures, tmp_path / "runs" / "one")
    train_dreambooth(settings)
    (made,) = (tmp_path / "runs").glob("class_*")
    stamps = {path.name: path.stat().st_mtime_ns for path in made.iterdir()}
    assert len(stamps) == 4
    train_dreambooth(_settings(tiny_folder("sd15"), pictures, tmp_path / "runs" / "two"))
    assert {path.name: path.stat().st_mtime_ns for path in made.iterdir()} == stamps


def test_ten_and_ten_steps_are_twenty(tiny_folder: Callable, pictures: Path, of_class: Path, tmp_path: Path) -> None:
    changes = {
        "images.class_images": of_class, "images.margin": 0.25, "images.flip": True, "captions.dropout": 0.3, "method.vectors": 2,
        "captions.instance_prompt": "a {} bird", "optimizer.steps": 20, "optimizer.accumulation": 2, "run.save_every": 5,
    }  # fmt: skip
    whole = train_dreambooth(_settings(tiny_folder("bestiary-demo"), pictures, tmp_path / "whole", **changes))

    def stop(done: int, total: int) -> None:
        if done == 10:
            os.kill(os.getpid(), 2)

    with pytest.raises(TrainingStopped):
        train_dreambooth(
            _settings(tiny_folder("bestiary-demo"), pictures, tmp_path / "halves", **changes), on_progress=stop
        )
    resumed = resume_training(tmp_path / "halves")
    for name in ("dreambooth.safetensors", "dreambooth_identifier.safetensors"):
        ours, theirs = load_file(resumed.path.with_name(name)), load_file(whole.path.with_name(name))
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert [line["loss"] for line in _lines(tmp_path / "halves")] == [
        line["loss"] for line in _lines(tmp_path / "whole")
    ]


def test_ten_and_ten_steps_are_twenty_on_stable_diffusion(
    tiny_folder: Callable, pictures: Path, of_class: Path, tmp_path: Path
) -> None:
    """A plain word, pictures of the class, random crops: the model's shape is that of SD 1.5, its widths are small."""
    changes = {
        "images.class_images": of_class, "images.margin": 0.25, "optimizer.steps": 20, "optimizer.batch_size": 1, "run.save_every": 10,
    }  # fmt: skip
    whole = train_dreambooth(_settings(tiny_folder("sd15"), pictures, tmp_path / "whole", **changes))

    def stop(done: int, total: int) -> None:
        if done == 10:
            os.kill(os.getpid(), 2)

    with pytest.raises(TrainingStopped):
        train_dreambooth(_settings(tiny_folder("sd15"), pictures, tmp_path / "halves", **changes), on_progress=stop)
    assert resume_training(tmp_path / "halves").path.read_bytes() == whole.path.read_bytes()
    curves = [[line["loss"] for line in _lines(tmp_path / name)] for name in ("halves", "whole")]
    assert len(curves[0]) == 20 and curves[0] == curves[1]


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Two wide pictures, a tall one and a square one; the left half of each is white in its mask."""
    folder, masks, rng = tmp_path / "mixed", tmp_path / "mixed_masks", np.random.default_rng(5)
    folder.mkdir(), masks.mkdir()
    for name, (wide, high) in {"a": (260, 70), "b": (240, 64), "c": (64, 250), "d": (90, 90)}.items():
        Image.fromarray(rng.integers(0, 255, (high, wide, 3), dtype=np.uint8)).save(folder / f"{name}.png")
        half = np.zeros((high, wide), np.uint8)
        half[:, : wide // 2] = 255
        Image.fromarray(half).save(masks / f"{name}.png")
    return folder


def _in_buckets(base: Path, mixed: Path, of_class: Path, out: Path, **changes: object) -> TrainDreamBoothSettings:
    given = {
        "images.size": 128,
        "images.buckets": True,
        "images.class_images": of_class,
        "images.masks": mixed.with_name("mixed_masks"),
    }
    return _settings(base, mixed, out, **(given | {"optimizer.batch_size": 1} | changes))


def test_mixed_shapes_train_in_batches_of_one_shape(
    tiny_folder: Callable, mixed: Path, of_class: Path, tmp_path: Path
) -> None:
    settings = _in_buckets(tiny_folder("sd15"), mixed, of_class, tmp_path / "run")
    setup = prepare(DreamBoothTask(settings))
    shapes = {"a.png": (8, 32), "b.png": (8, 32), "c.png": (32, 8), "d.png": (16, 16)}
    seen = []
    for step in range(4):
        batch = setup.batches.draw(step, 0)
        (thing, of_kind), (height, width) = batch.names, batch.moments.shape[-2:]
        assert (height, width) == shapes[thing] and of_kind.startswith("../class/")
        assert batch.sizes[0].tolist() == [8 * height, 8 * width, 0, 0, 8 * height, 8 * width]
        assert batch.masks[0, 0, :, : width // 2 - 1].min() == 1 and batch.masks[0, 0, :, width // 2 + 1 :].max() == 0
        assert batch.masks[1].min() == 1 and torch.isfinite(setup.objective(batch).total)
        seen.append(thing)
    assert sorted(seen) == sorted(shapes)
    (line,) = [line for line in setup.task.findings(setup) if line.startswith("sizes:")]
    assert "in 3 shapes (2 at 256 x 64, 1 at 128 x 128, 1 at 64 x 256 px)" in line


def test_a_width_and_a_height_are_one_shape_for_all(
    tiny_folder: Callable, mixed: Path, of_class: Path, tmp_path: Path
) -> None:
    changes = {"images.buckets": False, "images.size": "128x64"}
    setup = prepare(
        DreamBoothTask(_in_buckets(tiny_folder("bestiary-demo"), mixed, of_class, tmp_path / "run", **changes))
    )
    batch = setup.batches.draw(0, 0)
    assert batch.moments.shape[-2:] == (8, 16) and batch.sizes[0].tolist() == [64, 128, 0, 0, 64, 128]
    assert setup.origin.square(0).size == (128, 64)
    (line,) = [line for line in setup.task.findings(setup) if line.startswith("sizes:")]
    assert "in 1 shapes (4 at 128 x 64 px)" in line


def test_a_resumed_training_in_buckets_is_the_uninterrupted_one(
    tiny_folder: Callable, mixed: Path, of_class: Path, tmp_path: Path
) -> None:
    base, changes = tiny_folder("bestiary-demo"), {"optimizer.steps": 4, "images.margin": 0.25}
    whole = train_dreambooth(_in_buckets(base, mixed, of_class, tmp_path / "whole", **changes))

    def stop(done: int, total: int) -> None:
        if done == 2:
            os.kill(os.getpid(), 2)

    with pytest.raises(TrainingStopped):
        train_dreambooth(_in_buckets(base, mixed, of_class, tmp_path / "halves", **changes), on_progress=stop)
    assert resume_training(tmp_path / "halves").path.read_bytes() == whole.path.read_bytes()
    assert [line["loss"] for line in _lines(tmp_path / "halves")] == [line["loss"] for line in _lines(whole.run.path)]


def test_a_learned_identifier_has_a_file_of_its_own(
    tiny_folder: Callable, pictures: Path, of_class: Path, tmp_path: Path
) -> None:
    changes = {"images.class_images": of_class, "method.vectors": 2, "captions.instance_prompt": "a {} bird"}
    trained = train_dreambooth(_settings(tiny_folder("sdxl"), pictures, tmp_path / "run", **changes))
    vectors = load_file(trained.path.with_name("dreambooth_identifier.safetensors"))
    assert {name: tuple(tensor.shape)[0] for name, tensor in vectors.items()} == {"clip_l": 2, "clip_g": 2}


def test_the_models_own_predictions_keep_the_class_without_pictures(
    tiny_folder: Callable, pictures: Path, tmp_path: Path
) -> None:
    trained = train_dreambooth(_settings(tiny_folder("sd15"), pictures, tmp_path / "run", **{"method.prior": "model"}))
    lines = _lines(trained.run.path)
    # nothing has moved at the first step
    assert lines[0]["prior_loss"] == 0 and lines[-1]["prior_loss"] > 0
    assert not list(tmp_path.glob("class_*"))


def test_adapters_are_switched_off_for_the_target_and_come_back(
    tiny_folder: Callable, pictures: Path, tmp_path: Path
) -> None:
    settings = _settings(tiny_folder("sd15"), pictures, tmp_path / "run", **{"method.prior": "model"})
    setup = prepare(DreamBoothTask(settings))
    objective, batch = setup.objective, setup.batches.draw(0, 0)
    for parameter in objective.adapters:
        parameter.data.normal_(0, 0.05)
    adapters = setup.denoiser.network.adapters
    text = objective.encode(batch.prompts, (1,) * len(batch.texts))
    with torch.no_grad(), adapters.switched_off():
        bare = setup.denoiser.network.predict(batch.noise[:, 1], batch.times, text).prediction
    adapted = setup.denoiser.network.predict(batch.noise[:, 1], batch.times, text).prediction
    assert not torch.allclose(bare, adapted)
    adapters_after = setup.denoiser.network.predict(batch.noise[:, 1], batch.times, text).prediction
    assert torch.equal(adapted, adapters_after)


def test_masks_are_cut_as_their_pictures_are(tiny_folder: Callable, pictures: Path, tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    masks.mkdir()
    half = np.zeros((64, 80), np.uint8)
    half[:, :40] = 255
    for number in range(3):
        Image.fromarray(half).save(masks / f"{number}.png")
    settings = _settings(
        tiny_folder("sd15"), pictures, tmp_path / "run", **{"images.masks": masks, "method.prior": "off"}
    )
    setup = prepare(DreamBoothTask(settings))
    batch = setup.batches.draw(0, 0)
    assert batch.masks is not None and batch.masks[..., 0].min() == 1 and batch.masks[..., -1].max() == 0


def test_batches_hold_as_many_of_the_class_and_every_picture_in_turn(
    tiny_folder: Callable, pictures: Path, of_class: Path, tmp_path: Path
) -> None:
    settings = _settings(tiny_folder("sd15"), pictures, tmp_path / "run", **{"images.class_images": of_class})
    setup = prepare(DreamBoothTask(settings))
    drawn = [setup.batches.draw(step, 0) for step in range(6)]
    assert all(batch.of_class.tolist() == [False, False, True, True] for batch in drawn)
    things = [name for batch in drawn for name in batch.names[:2]]
    assert sorted(things) == sorted(["0.png", "1.png", "2.png"] * 4)
    again = setup.batches.draw(3, 0)
    assert torch.equal(again.noise, drawn[3].noise) and again.names == drawn[3].names
    assert torch.equal(again.times, drawn[3].times)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"captions.class_prompt": "A red bird"}, "class_prompt equals"),
        ({"method.vectors": 1}, "needs {} exactly once"),
        ({"captions.instance_prompt": "a {} bird"}, "method.vectors is 0"),
        ({"captions.class_prompt": "a {}"}, "must not name the identifier"),
        ({"optimizer.lora_lr": 0.0}, "nothing would be learned"),
        ({"captions.identifier": "sks"}, "captions.instance_prompt 'a red bird' lacks the identifier 'sks': write it"),
        ({"captions.identifier": "re"}, "lacks the identifier 're'"),
        ({"captions.identifier": "bird"}, "captions.class_prompt 'a bird' holds the identifier 'bird': leave it out"),
        ({"captions.instance_prompt": "bird"}, "captions.instance_prompt 'bird' lacks an identifier: all its words"),
        (
            {
                "captions.identifier": "red",
                "method.vectors": 1,
                "captions.instance_prompt": "a {} bird",
            },
            "captions.identifier is 'red', but method.vectors learns one",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes: dict, words: str) -> None:
    values = {"captions.instance_prompt": "a red bird", "captions.class_prompt": "a bird"}
    with pytest.raises(BestiaryError) as fault:
        load_dreambooth_recipe(None, values | changes)
    assert words in str(fault.value)


def test_a_named_identifier_may_be_several_words_and_is_kept(
    tiny_folder: Callable, pictures: Path, tmp_path: Path
) -> None:
    changes = {"method.prior": "off", "captions.identifier": "Red one", "captions.instance_prompt": "a red one, bird"}
    settings = _settings(tiny_folder("bestiary-demo"), pictures, tmp_path / "run", **changes, **{"optimizer.steps": 1})
    assert load_subject(train_dreambooth(settings).path).identifier == "Red one"


def test_the_doctor_times_one_missing_picture_of_the_class_and_makes_no_others(
    tiny_folder: Callable, pictures: Path, of_class: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in of_class.iterdir()}
    changes = {"images.class_images": of_class, "images.class_count": 64}
    settings = _settings(tiny_folder("bestiary-demo"), pictures, tmp_path / "run", **changes)
    clock = iter(range(0, 10_000, 7))
    monkeypatch.setattr(class_pictures, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    told = "\n".join(examine(DreamBoothTask(settings)))
    # looks at the clock: before the picture, in its making, and after it
    assert "class: 59 more are made before the first step, in about 13:46 (one took 14.0 s)" in told
    after = {path.name: path.read_bytes() for path in of_class.iterdir()}
    assert {name: after[name] for name in before} == before and after.keys() - before.keys() == {"class-00000.png"}
    full = settings.model_copy(update={"images": settings.images.model_copy(update={"class_count": 5})})
    assert "more are made" not in "\n".join(examine(DreamBoothTask(full)))


def test_bad_material_is_one_clear_error(pictures: Path, tmp_path: Path) -> None:
    base = "demo"  # a tokenizer that knows no other words than its own
    cases = {
        "more tokens than": {"captions.class_prompt": "bird " * 90},
        "lies inside images.instance": {"images.class_images": pictures / "class"},
        "method.initial_words": {
            "method.vectors": 1, "captions.instance_prompt": "a {} creature", "method.initial_words": "zyxw",
        },
    }  # fmt: skip
    for words, changes in cases.items():
        with pytest.raises(BestiaryError, match=words):
            train_dreambooth(_settings(base, pictures, tmp_path / "run", **changes))
    with pytest.raises(BestiaryError, match="does not know"):
        train_dreambooth(_settings(base, pictures, tmp_path / "run", **{"captions.instance_prompt": "a zyxw creature"}))
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(BestiaryError, match="no picture to learn from"):
        train_dreambooth(_settings(base, empty, tmp_path / "run"))
    file = tmp_path / "file.txt"
    file.write_text("x")
    with pytest.raises(BestiaryError, match="is a file"):
        train_dreambooth(_settings(base, pictures, tmp_path / "run", **{"images.class_images": file}))


def test_strange_files_between_the_pictures_are_left_out(tiny_folder: Callable, pictures: Path, tmp_path: Path) -> None:
    (pictures / "caption.txt").write_text("a bird")
    (pictures / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    Image.new("RGBA", (70, 70), (255, 0, 0, 128)).save(pictures / "alpha.png")
    Image.new("CMYK", (70, 70)).save(pictures / "print.jpg")
    Image.new("RGB", (1, 1)).save(pictures / "dot.png")
    Image.new("I;16", (70, 70), 40_000).save(pictures / "deep.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (70, 90)).save(pictures / "turned.jpg", exif=turned)
    (pictures / "Thumbs.db").write_bytes(b"thumbnails")
    settings = _settings(tiny_folder("sd15"), pictures, tmp_path / "run", **{"method.prior": "off"})
    setup = prepare(DreamBoothTask(settings))
    instance = setup.pictures.instance
    assert instance.names == ("0.png", "1.png", "2.png", "alpha.png", "deep.png", "print.jpg", "turned.jpg")
    assert {name for name, _ in instance.skipped} >= {"broken.png", "dot.png"}
    assert np.isfinite(setup.cache.moments).all() and len(setup.cache.moments) == 7


def test_a_full_disk_while_pictures_of_the_class_are_made_loses_nothing(
    tiny_folder: Callable,
    pictures: Path,
    of_class: Path,
    tmp_path: Path,
    spoil_writes: Callable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = {path.name: path.read_bytes() for path in of_class.iterdir()}
    settings = _settings(
        tiny_folder("sd15"), pictures, tmp_path / "run", **{"images.class_images": of_class, "images.class_count": 6}
    )
    with monkeypatch.context() as patched:
        spoil_writes(patched, of_class, errno.ENOSPC)
        with pytest.raises(
            BestiaryError, match="could not write .*class-00000.png: No space left.*Free some disk space"
        ):
            train_dreambooth(settings)
    assert {path.name: path.read_bytes() for path in of_class.iterdir()} == before
    # with room again the same training makes the rest
    train_dreambooth(settings)
    assert len(list(of_class.iterdir())) == 6


def test_quantised_models_are_refused_for_training(tiny_folder: Callable, pictures: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_folder("sd15"), tmp_path / "model")
    (weights,) = (folder / "unet").glob("*.safetensors")
    save_file({name: tensor.to(torch.float8_e4m3fn) for name, tensor in load_file(weights).items()}, weights)
    with pytest.raises(BestiaryError, match="F8_E4M3, which are for sampling: training needs the fp16, bf16 or fp32"):
        train_dreambooth(_settings(folder, pictures, tmp_path / "run", **{"method.prior": "off"}))
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    with pytest.raises(BestiaryError, match="is a GGUF file.*give a diffusers folder"):
        train_dreambooth(_settings(file, pictures, tmp_path / "run", **{"method.prior": "off"}))


def test_the_command_trains_checks_and_resumes(
    tiny_folder: Callable, pictures: Path, of_class: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    command = ["train", "dreambooth", pictures, "--prompt", "a red bird", "--class-prompt", "a bird", "--class-images", of_class,
               "--base", tiny_folder("sd15"), "--out", run, "--steps", 2, "--name", "my bird", "--progress", "off",
               "--set", "images.size=64", "--set", "images.class_count=4", "--set", "run.preview_every=1", "--set", "run.preview_steps=2",
               "--set", "run.dtype=fp32"]  # fmt: skip
    assert main([*map(str, command), "--check"]) == 0
    said = capsys.readouterr().out
    assert "class: 'a bird', 4 pictures" in said and "memory: about" in said and not run.exists()
    assert main(list(map(str, command))) == 0
    assert (run / "my bird.safetensors").is_file()
    assert Image.open(run / "samples" / "step-0000002.png").width > 3 * 160
    shutil.rmtree(run / "export")
    assert main(["resume", str(run), "--progress", "off"]) == 0
    assert (run / "export" / "diffusers_lora.safetensors").is_file()
