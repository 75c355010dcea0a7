"""DreamBooth adapters judged on tiny models: figures against the formula, what is left out, datasets as they are published."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.trainer.__main__ import main
from bestiary.trainer.evaluation import evaluate_dreambooth as module
from bestiary.trainer.evaluation.clip_judge import ClipJudge
from bestiary.trainer.evaluation.dreambooth_pictures import load_subject, without_identifier
from bestiary.trainer.evaluation.evaluate_dreambooth import EvaluateDreamBoothSettings, evaluate_dreambooth
from bestiary.trainer.evaluation.likeness_judges import DinoJudge
from bestiary.trainer.learning.dreambooth.dreambooth_settings import load_dreambooth_recipe
from bestiary.trainer.training.train_dreambooth import train_dreambooth
from PIL import Image
from safetensors.torch import save_file

TINY = "vit_tiny_patch16_224"


def _pictures(folder: Path, count: int, seed: int = 0) -> Path:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for number in range(count):
        Image.fromarray(rng.integers(0, 255, (64, 80, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def lpips_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """AlexNet and its linear weights, both random."""
    folder = tmp_path_factory.mktemp("lpips")
    torch.manual_seed(0)
    shapes = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}
    layers = {f"features.{n}.weight": torch.randn(o, i, k, k) * 0.05 for n, (o, i, k) in shapes.items()}
    layers |= {f"features.{n}.bias": torch.zeros(shape[0]) for n, shape in shapes.items()}
    torch.save(layers, folder / "alexnet-owt-7be5be79.pth")
    linear = {f"lin{n}.model.1.weight": torch.rand(1, o, 1, 1) for n, (o, _, _) in enumerate(shapes.values())}
    torch.save(linear, folder / "alex.pth")
    return folder


@pytest.fixture(scope="module")
def trained(tiny_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA with an identifier of two vectors, learned in two steps."""
    folder = tmp_path_factory.mktemp("trained")
    values: dict[str, object] = {
        "images.instance": _pictures(folder / "pictures", 2), "images.size": 64, "base.path": str(tiny_folder("sd15")),
        "run.out": folder / "run", "run.device": "cpu", "run.dtype": "fp32", "run.preview_every": 0, "run.estimate_memory": False,
        "run.tensorboard": False, "run.name": "robin", "optimizer.steps": 2, "optimizer.lora_lr": 1e-2, "method.prior": "off",
        "method.vectors": 2, "captions.instance_prompt": "a photo of a {} bird", "captions.class_prompt": "a photo of a bird",
    }  # fmt: skip
    return train_dreambooth(load_dreambooth_recipe(None, values)).path


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Two subjects, laid out as google/dreambooth is."""
    folder = tmp_path / "google" / "dataset"
    for number, name in enumerate(("robin", "boot")):
        _pictures(folder / name, 2, seed=number)
    one = "'a {0} {1} in the snow'.format(unique_token, class_token)"
    other = "'a red {0} {1}'.format(unique_token, class_token)"
    live = "'a {0} {1} wearing a hat'.format(unique_token, class_token)"
    text = "Classes\n\nsubject_name,class\nrobin,bird\nboot,old boot\n\nPrompts\n\nObject Prompts\n\nprompt_list = [\n"
    text += f"{one},\n{other}\n]\n\nLive Subject Prompts\n\nprompt_list = [\n{live}\n]\n"
    (folder / "prompts_and_classes.txt").write_text(text)
    return folder.parent


def _settings(adapters: Path, out: Path, **changes: object) -> EvaluateDreamBoothSettings:
    values = {"adapters": adapters, "out": out, "count": 2, "class_count": 2, "steps": 2, "guidance": 1, "size": 64}
    return EvaluateDreamBoothSettings(**(values | {"device": "cpu", "dino_model": TINY} | changes))


def test_every_figure_is_that_of_the_pictures_on_disk(
    trained: Path, tiny_clip: Path, tiny_dino: Path, lpips_folder: Path, tmp_path: Path
) -> None:
    images, out = _pictures(tmp_path / "real", 3, seed=5), tmp_path / "out"
    settings = _settings(
        trained,
        out,
        images=images,
        prompts=("a {} bird in the snow",),
        clip=str(tiny_clip),
        dino=tiny_dino,
        lpips=lpips_folder,
    )
    page = evaluate_dreambooth(settings)
    record = json.loads((out / "evaluation.json").read_text())
    ((subject,), (row,)) = record["subjects"], record["subjects"][0]["prompts"]
    assert record["counts"] == {"subjects": 1, "prompts": [1], "pictures": 2} and record["left_out"] == {}
    # once more, by hand
    made, kind = (
        [Image.open(path).convert("RGB") for path in sorted((out / "pictures" / "robin").glob(f"{stem}-*.png"))]
        for stem in ("00", "class")
    )
    real = [Image.open(path).convert("RGB") for path in sorted(images.iterdir())]
    dino, clip = DinoJudge.load(tiny_dino, TINY), ClipJudge.load(str(tiny_clip))
    for judge, name in ((dino, "dino"), (clip, "clip_i")):
        seen, known = judge.pictures(made), judge.pictures(real)
        assert row[name] == pytest.approx(float((seen @ known.T).mean()), abs=1e-6)
        pairs = [known[a] @ known[b] for a in range(3) for b in range(3) if a != b]
        assert subject["real"][name] == pytest.approx(float(torch.stack(pairs).mean()), abs=1e-6)
    text = clip.texts(["a bird in the snow"])
    assert row["clip_t"] == pytest.approx(float((clip.pictures(made) @ text.T).mean()), abs=1e-6)
    assert subject["pres"] == pytest.approx(float((dino.pictures(kind) @ dino.pictures(real).T).mean()), abs=1e-6)
    assert row["div"] > 0 and len(kind) == 2
    rows = list(csv.DictReader((out / "evaluation.csv").open()))
    assert [one["prompt"] for one in rows] == ["a {} bird in the snow", "real", "class"]
    assert float(rows[0]["dino"]) == row["dino"] and float(rows[2]["dino"]) == subject["pres"]
    html = page.read_text()
    assert html.count("data:image/") == 4 and "CLIP-T" in html and "real pictures" in html


def test_the_published_dataset_is_understood_as_it_is(
    trained: Path, tiny_clip: Path, dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    evaluate_dreambooth(_settings(trained, out, images=dataset, clip=str(tiny_clip)))
    record = json.loads((out / "evaluation.json").read_text())
    # one of the two subjects has a LoRA
    assert [one["subject"] for one in record["subjects"]] == ["robin"] and record["counts"]["pictures"] == 4
    assert [row["prompt"] for row in record["subjects"][0]["prompts"]] == ["a {} bird in the snow", "a red {} bird"]
    assert set(record["mean"]) == {"clip_i", "clip_t", "real_clip_i"}
    with pytest.raises(BestiaryError, match="holds pictures of other settings"):
        evaluate_dreambooth(_settings(trained, out, images=dataset, clip=str(tiny_clip), steps=3))


def test_pictures_that_are_there_are_not_made_again(
    trained: Path, tiny_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = _pictures(tmp_path / "real", 2)
    settings = _settings(trained, tmp_path / "out", images=images, clip=str(tiny_clip), prompts=("a {} bird",))
    evaluate_dreambooth(settings)
    first = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    (tmp_path / "out" / "pictures" / "robin" / "00-00001.png").unlink()
    made: list[list[int]] = []
    sample = module.SubjectModel.sample

    def counted(self: object, subject: object, prompt: str, seeds: list[int], *more: object) -> torch.Tensor:
        made.append(list(seeds))
        return sample(self, subject, prompt, seeds, *more)

    monkeypatch.setattr(module.SubjectModel, "sample", counted)
    evaluate_dreambooth(settings)
    assert made == [[1]]
    again = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    # up to rounding, since it is made in other company
    assert again["mean"] == pytest.approx(first["mean"], abs=1e-3)


def test_missing_weights_are_named_with_their_remedy(
    trained: Path, tiny_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "nothing"))
    settings = _settings(trained, tmp_path / "out", images=_pictures(tmp_path / "real", 2), prompts=("a {} bird",))
    with pytest.raises(BestiaryError, match="nothing can be judged") as fault:
        evaluate_dreambooth(settings)
    for remedy in ("--dino", "hf download openai/clip-vit-base-patch32", "--lpips"):
        assert remedy in str(fault.value)
    # one judge is enough; the others' columns are empty
    page = evaluate_dreambooth(settings.model_copy(update={"clip": str(tiny_clip)}))
    record = json.loads(page.with_name("evaluation.json").read_text())
    assert set(record["left_out"]) == {"dino, pres", "div"} and record["subjects"][0]["prompts"][0]["dino"] is None
    assert "Not judged: div" in page.read_text()
    # what was named must be there
    with pytest.raises(BestiaryError, match="DIV needs"):
        evaluate_dreambooth(settings.model_copy(update={"lpips": tmp_path}))


def test_the_drawn_world_needs_no_weights(tmp_path: Path) -> None:
    """Through the command line, on the embedded model."""
    pictures = _pictures(tmp_path / "pictures", 2)
    out = tmp_path / "runs"
    common = ["--set", "method.prior=off", "--steps", "1", "--set", "run.tensorboard=false", "--progress", "off"]
    main(["train", "dreambooth", str(pictures), "--recipe", "dreambooth_demo", "--out", str(out / "one"), *common])
    lora, result = out / "one" / "creature.safetensors", tmp_path / "evaluation"
    command = ["evaluate", "dreambooth", str(lora), "--drawn", "ember lark", "--count", "2", "--class-count", "2"]
    main([*command, "--steps", "2", "--guidance", "1", "--progress", "off", "--out", str(result)])
    drawn = json.loads((result / "evaluation.json").read_text())["drawn"]
    assert set(drawn) == {
        "color", "pattern", "shape", "place", "change", "class_diversity", "class_diversity_of_untouched",
    }  # fmt: skip
    assert all(0 <= drawn[name] <= 1 for name in ("color", "pattern", "shape", "place", "change"))
    assert drawn["class_diversity_of_untouched"] == pytest.approx(1, abs=0.2)
    assert len(list((result / "real").glob("*.png"))) == 5


def test_wrong_files_are_one_clear_error(trained: Path, dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(BestiaryError, match="has a learned identifier, but .* is missing"):
        alone = tmp_path / "alone.safetensors"
        alone.write_bytes(trained.read_bytes())
        load_subject(alone)
    other = tmp_path / "other.safetensors"
    save_file({"x": torch.zeros(1)}, other)
    with pytest.raises(BestiaryError, match="was not written by `bestiary train dreambooth`"):
        load_subject(other)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(BestiaryError, match="holds no LoRA"):
        module.find_subjects(empty)
    (dataset / "dataset" / "robin").rename(dataset / "dataset" / "wren")
    with pytest.raises(BestiaryError, match="robin"):
        evaluate_dreambooth(_settings(trained, tmp_path / "out", images=dataset))


def test_a_subject_tells_its_identifier_and_noun(trained: Path) -> None:
    subject = load_subject(trained)
    assert (subject.identifier, subject.class_noun) == ("", "bird")
    assert {name: tuple(vectors.shape) for name, vectors in subject.vectors.items()} == {"clip_l": (2, 32)}
    assert without_identifier("a {} bird in the snow") == "a bird in the snow"
