"""DreamBooth of DeepFloyd IF on a tiny cascade: both stages train, resume, show previews, and leave files that their readers load."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.trainer.__main__ import main
from bestiary.trainer.composing.picture_making import SamplingChoice
from bestiary.trainer.evaluation.dreambooth_pictures import SubjectModel, load_subject
from bestiary.trainer.evaluation.evaluate_dreambooth import EvaluateDreamBoothSettings, evaluate_dreambooth
from bestiary.trainer.learning.denoiser.low_picture import enlarge, lowered
from bestiary.trainer.learning.dreambooth.dreambooth_settings import TrainDreamBoothSettings, load_dreambooth_recipe
from bestiary.trainer.learning.dreambooth.dreambooth_setup import DreamBoothAdapter, save_adapter
from bestiary.trainer.learning.run.fit import TrainingStopped
from bestiary.trainer.model import t5_text
from bestiary.trainer.training.doctor import examine
from bestiary.trainer.training.tasks import resume_training
from bestiary.trainer.training.train_dreambooth import DreamBoothTask, train_dreambooth
from bestiary.trainer.training.training_setup import prepare
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

pytestmark = pytest.mark.train
Make = Callable[..., TrainDreamBoothSettings]


def _pictures(folder: Path, count: int, seed: int = 0) -> Path:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for number in range(count):
        small = Image.fromarray(rng.integers(0, 255, (8, 10, 3), dtype=np.uint8))
        small.resize((80, 64), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def settings_for(cascade, tmp_path: Path) -> Make:
    """`settings_for("first" | "second", out, **changes)`: a short training of a stage."""
    thing, kind = _pictures(tmp_path / "thing", 3), _pictures(tmp_path / "kind", 4, seed=1)

    def make(stage: str, out: str = "run", **changes: object) -> TrainDreamBoothSettings:
        values: dict[str, object] = {
            "images.instance": thing, "images.class_images": kind, "images.class_count": 4, "base.path": str(getattr(cascade, stage)),
            "run.out": tmp_path / out, "run.device": "cpu", "run.dtype": "fp32", "run.preview_every": 0, "run.estimate_memory": False,
            "run.tensorboard": False, "run.log_every": 1, "optimizer.steps": 2, "optimizer.batch_size": 1, "lora.rank": 8, "lora.alpha": 16.0,
            "captions.instance_prompt": "a photo of sks dog", "captions.class_prompt": "a photo of a dog", "optimizer.lora_lr": 1e-2,
        }  # fmt: skip
        if stage == "second":
            values |= {
                "base.text_encoder": cascade.first / "text_encoder",
                "base.tokenizer": cascade.first / "tokenizer",
            }
        return load_dreambooth_recipe(None, values | changes)

    return make


def _lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("stage", "layers"), [("first", 24), ("second", 36)])
def test_a_stage_trains_and_diffusers_loads_what_it_leaves(
    settings_for: Make, cascade, stage: str, layers: int
) -> None:
    """By diffusers' own loader and PEFT: alpha 16 at rank 8 doubles every update, exactly."""
    pytest.importorskip("peft")
    from diffusers import UNet2DConditionModel
    from diffusers.loaders import StableDiffusionLoraLoaderMixin

    settings = settings_for(stage, **{"run.preview_every": 2, "run.preview_steps": 2, "run.preview_count": 2})
    trained = train_dreambooth(settings)
    lines = _lines(trained.run.path)
    assert len(lines) == 2
    for line in lines:
        assert line["loss"] == pytest.approx(line["instance_loss"] + line["prior_loss"], abs=1e-6)
    assert Image.open(trained.run.samples / "step-0000002.png").width > 160
    with safe_open(trained.path, "pt") as file:
        notes = {name: json.loads(text) for name, text in file.metadata().items() if name.startswith("bestiary.")}
    assert notes["bestiary.backbone"] == ("if-i" if stage == "first" else "if-ii")
    assert (notes["bestiary.variance_type"], notes["bestiary.text_norm"]) == ("fixed_small", "lower-strip")
    assert (notes["bestiary.stage"], notes["bestiary.autoencoder"]) == ("I" if stage == "first" else "II", "pixels")
    tensors = load_file(trained.path)
    assert sum(name.endswith(".alpha") for name in tensors) == layers
    unet = UNet2DConditionModel.from_pretrained(getattr(cascade, stage) / "unet", torch_dtype=torch.float32)
    expected = {}
    for name, _ in unet.named_modules():
        stem = "lora_unet_" + name.replace(".", "_")
        if f"{stem}.alpha" in tensors:
            update = tensors[f"{stem}.lora_up.weight"] @ tensors[f"{stem}.lora_down.weight"]
            assert update.abs().max() > 0
            expected[name] = unet.get_submodule(name).weight + 2 * update
    assert len(expected) == layers
    state, alphas, metadata = StableDiffusionLoraLoaderMixin.lora_state_dict(
        trained.run.export, weight_name="diffusers_lora.safetensors", return_lora_metadata=True
    )
    with safe_open(trained.run.export / "diffusers_lora.safetensors", "pt") as file:
        told = file.metadata()
    assert {name: json.loads(text) for name, text in told.items() if name.startswith("bestiary.")} == notes
    assert sorted(metadata["unet.target_modules"]) == ["add_k_proj", "add_v_proj", "to_k", "to_out.0", "to_q", "to_v"]
    StableDiffusionLoraLoaderMixin.load_lora_into_unet(state, alphas, unet, metadata=metadata)
    unet.fuse_lora()
    for name, weight in expected.items():
        layer = unet.get_submodule(name)
        assert torch.allclose(getattr(layer, "base_layer", layer).weight, weight, atol=1e-6), name
    guide = (trained.run.export / "README.txt").read_text()
    assert "fixed_small" in guide and "Load DeepFloyd IF" in guide


@pytest.mark.parametrize(("stage", "prior"), [("first", "pictures"), ("second", "off")])
def test_ten_and_ten_steps_are_twenty(settings_for: Make, tmp_path: Path, stage: str, prior: str) -> None:
    changes = {"optimizer.steps": 20, "run.save_every": 5, "method.prior": prior, "captions.dropout": 0.3, "images.flip": True,
               "images.margin": 0.25}  # fmt: skip
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    whole = train_dreambooth(settings_for(stage, "whole", **changes))

    def stop(done: int, total: int) -> None:
        if done == 10:
            os.kill(os.getpid(), 2)

    with pytest.raises(TrainingStopped):
        train_dreambooth(settings_for(stage, "halves", **changes), on_progress=stop)
    resumed = resume_training(tmp_path / "halves")
    torch.set_num_threads(threads)
    assert resumed.path.read_bytes() == whole.path.read_bytes()
    curves = [[line["loss"] for line in _lines(tmp_path / name)] for name in ("halves", "whole")]
    assert len(curves[0]) == 20 and curves[0] == curves[1]


def test_the_second_stage_learns_from_its_pictures_made_small(settings_for: Make) -> None:
    setup = prepare(DreamBoothTask(settings_for("second")))
    batches, alphas = setup.batches, setup.denoiser.level_alphas
    batch = batches.draw(3, 0)
    assert batch.guide.shape == (2, 3, 64, 64) and batch.levels.shape == (2,)
    noises = []
    for step in range(12):
        drawn = batches.draw(step, 0)
        low = enlarge(lowered(drawn.moments[:, 0].float()), (64, 64))
        alpha = alphas[drawn.levels].view(-1, 1, 1, 1)
        noises.append((drawn.guide - alpha.sqrt() * low) / (1 - alpha).sqrt())
        # not the noise of the diffusion
        assert abs(float((noises[-1] * drawn.noise[:, 1]).mean())) <= 0.04
    noise = torch.cat(noises)
    # of 24 pictures with 12,288 values each: the error of a sample's deviation is 0.0013
    assert abs(float(noise.std()) - 1) <= 0.01 and abs(float(noise.mean())) <= 0.01
    # every row has its own
    assert len({round(float(row.sum()), 3) for row in noise}) == len(noise)
    again = batches.draw(3, 0)
    assert torch.equal(again.guide, batch.guide) and torch.equal(again.levels, batch.levels)
    levels = torch.cat([batches.draw(step, 0).levels for step in range(120)])
    assert levels.min() < 50 and levels.max() > 950 and abs(float(levels.float().mean()) - 499.5) < 80


def test_the_variance_is_no_part_of_the_loss(settings_for: Make) -> None:
    setup = prepare(DreamBoothTask(settings_for("first")))
    batch, unet = setup.batches.draw(0, 0), setup.denoiser.network.unet
    before = setup.objective(batch).total.item()
    with torch.no_grad():
        unet.conv_out.weight[3:] += 1
    assert setup.objective(batch).total.item() == before
    with torch.no_grad():
        unet.conv_out.weight[:3] += 1
    assert setup.objective(batch).total.item() != before


def test_missing_pictures_of_the_class_are_made_by_the_first_stage(settings_for: Make, tmp_path: Path) -> None:
    kind = tmp_path / "kind"
    before = {path.name: path.read_bytes() for path in kind.iterdir()}
    train_dreambooth(settings_for("first", **{"images.class_count": 6, "optimizer.steps": 1}))
    made = {path.name: path for path in kind.iterdir() if path.name not in before}
    assert set(made) == {"class-00000.png", "class-00001.png"}
    assert {name: (kind / name).read_bytes() for name in before} == before
    pixels = np.asarray(Image.open(made["class-00000.png"]))
    assert pixels.shape == (32, 32, 3) and pixels.std() > 1


@pytest.mark.parametrize(("stage", "other"), [("second", "if-i"), ("first", "if-ii")])
def test_a_lora_of_the_other_stage_is_refused_by_name(
    settings_for: Make, tmp_path: Path, stage: str, other: str
) -> None:
    """Though its only layer has the same name and shape in both."""
    setup = prepare(DreamBoothTask(settings_for(stage, **{"method.prior": "off"})))
    name = "lora_unet_down_blocks_1_attentions_0_add_k_proj"
    tensors = {f"{name}.lora_down.weight": torch.ones(4, 32), f"{name}.lora_up.weight": torch.ones(64, 4)}
    denoiser, choice = setup.denoiser, SamplingChoice(2, 1.0)
    denoiser.network.adapters.unload()
    for backbone in (other, denoiser.backbone.name):
        notes = {"rank": 4, "alpha": 4.0, "backbone": backbone, "instance_prompt": "a photo of sks dog"}
        save_adapter(DreamBoothAdapter(tensors, {}, notes), tmp_path / f"{backbone}.safetensors")
    model = SubjectModel(denoiser, choice)
    stages = {"if-i": "stage I of DeepFloyd IF", "if-ii": "stage II of DeepFloyd IF"}
    words = f"the LoRA '{other}' was trained on {stages.pop(other)}, this model is {stages.popitem()[1]}:.*load a LoRA"
    with pytest.raises(BestiaryError, match=words):
        model.wear(load_subject(tmp_path / f"{other}.safetensors"))
    model.wear(load_subject(tmp_path / f"{denoiser.backbone.name}.safetensors"))
    assert [len(denoiser.network.adapters.of("down_blocks.1.attentions.0.add_k_proj"))] == [1]


def test_an_adapter_of_the_first_stage_is_evaluated(
    settings_for: Make, cascade, tiny_dino: Path, tmp_path: Path
) -> None:
    """All prompts are encoded before its UNet is loaded; the second stage, which only enlarges, is refused."""
    trained = train_dreambooth(settings_for("first"))
    values = {"adapters": trained.path, "images": tmp_path / "thing", "prompts": ("a {} dog in a bucket",), "count": 2}
    values |= {
        "class_count": 2,
        "dino": tiny_dino,
        "dino_model": "vit_tiny_patch16_224",
        "steps": 2,
        "device": "cpu",
        "dtype": "fp32",
    }
    page = evaluate_dreambooth(EvaluateDreamBoothSettings(**values, base=str(cascade.first), out=tmp_path / "judged"))
    record = json.loads(page.with_name("evaluation.json").read_text())
    assert record["counts"] == {"subjects": 1, "prompts": [1], "pictures": 2} and -1 <= record["mean"]["dino"] <= 1
    with pytest.raises(
        BestiaryError, match="is stage II of DeepFloyd IF, which only enlarges: give a folder of stage I"
    ):
        evaluate_dreambooth(EvaluateDreamBoothSettings(**values, base=str(cascade.second), out=tmp_path / "other"))


def test_a_second_run_never_loads_the_text_encoder(settings_for: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    first = train_dreambooth(settings_for("first", "one"))
    monkeypatch.setattr(t5_text, "load_t5", lambda *given: pytest.fail("loaded again"))
    second = train_dreambooth(settings_for("first", "two"))
    ours, theirs = load_file(second.path), load_file(first.path)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_doctor_looks_at_licence_texts_memory_and_a_forward_pass(settings_for: Make) -> None:
    long = "a photo of xyzzyq dog " + "word " * 90
    found = "\n".join(
        examine(
            DreamBoothTask(settings_for("first", **{"run.estimate_memory": True, "captions.instance_prompt": long}))
        )
    )
    for words in ("non-commercial research only", "3 sentences encoded", "reads 77 pieces of a prompt", "T5 cuts 'xyzzyq' into",
                  "memory: about", "first forward pass: loss", "class: 'a photo of a dog', 4 pictures"):  # fmt: skip
        assert words in found
    assert "T5 cuts" not in "\n".join(examine(DreamBoothTask(settings_for("first"))))


@pytest.mark.parametrize(
    ("stage", "changes", "words"),
    [
        ("first", {"base.stage": "II"}, "is stage I of DeepFloyd IF .*but base.stage is II"),
        ("second", {"base.stage": "I"}, "is stage II of DeepFloyd IF .*but base.stage is I"),
        ("first", {"images.size": 64}, "images.size is 64, but stage I of DeepFloyd IF draws 32 pixels"),
        ("first", {"method.vectors": 1, "captions.instance_prompt": "a {} dog"}, "trained with plain words alone"),
        ("first", {"images.buckets": True}, "images.buckets is true, but DeepFloyd IF is trained on squares alone"),
        ("second", {"images.class_count": 9}, "holds 4 of 9 pictures of the class, and stage II"),
        ("first", {"captions.instance_prompt": "a photo of <head:42> dog"}, "no piece for letters in '<head:42>'"),
        ("first", {"lora.targets": ["to_x"]}, "lora.targets names 'to_x'"),
    ],
)
def test_what_does_not_fit_is_one_clear_error(settings_for: Make, stage: str, changes: dict, words: str) -> None:
    with pytest.raises(BestiaryError, match=words):
        train_dreambooth(settings_for(stage, **changes))


def test_a_rare_piece_is_taken_as_the_identifier(settings_for: Make) -> None:
    """It stands in the run's recipe as a word, so that a resumed run has the same."""
    auto = {"captions.identifier": "auto", "captions.instance_prompt": "a photo of {} dog"}
    named = DreamBoothTask(settings_for("first", **auto)).settings.captions
    assert 1 <= len(named.identifier) <= 3 and named.identifier not in ("a", "of", "dog")
    assert named.instance_prompt == f"a photo of {named.identifier} dog"
    with pytest.raises(BestiaryError, match='identifier is "auto", .*but base.path demo holds another model'):
        DreamBoothTask(settings_for("first", **{"base.path": "demo", **auto}))
    with pytest.raises(BestiaryError, match="write {} once in captions.instance_prompt"):
        settings_for("first", **{"captions.identifier": "auto"})


def test_settings_of_if_are_refused_for_other_models(settings_for: Make) -> None:
    with pytest.raises(BestiaryError, match="base.stage is for DeepFloyd IF, but base.path demo holds another model"):
        train_dreambooth(settings_for("first", **{"base.path": "demo", "base.stage": "I"}))


def test_a_stage_without_text_encoder_asks_for_one(settings_for: Make, cascade) -> None:
    settings = settings_for("second")
    bare = settings.model_copy(update={"base": settings.base.model_copy(update={"text_encoder": None})})
    with pytest.raises(BestiaryError, match="holds no text_encoder: set base.text_encoder to a T5"):
        train_dreambooth(bare)


def test_the_command_trains_by_a_recipe(cascade, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    thing = _pictures(tmp_path / "thing", 2)
    command = ["train", "dreambooth", thing, "--recipe", "dreambooth_if_i", "--base", cascade.first, "--prompt", "a photo of sks dog",
               "--class-prompt", "a photo of a dog", "--out", tmp_path / "run", "--steps", 1, "--batch-size", 1, "--progress", "off",
               "--set", "run.preview_every=0", "--set", "run.dtype=fp32", "--set", "method.prior=model"]  # fmt: skip
    assert main(list(map(str, command))) == 0
    assert (tmp_path / "run" / "dreambooth.safetensors").is_file()
    assert main(["resume", str(tmp_path / "run"), "--progress", "off"]) == 0
