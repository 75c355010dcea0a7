"""The whole way with real features: discover, name the parts, train, compose, all by the commands that people type."""

from pathlib import Path

import pytest
from bestiary.concepts.part_dictionary.part_dictionary import PartDictionary
from bestiary.trainer.__main__ import main
from bestiary.trainer.demo.drawn_masks import draw_pictures
from bestiary.trainer.learning.discovery.discovery_folder import Discovery
from PIL import Image

pytestmark = pytest.mark.train


def test_from_pictures_to_new_pictures(tmp_path: Path) -> None:
    draw_pictures(tmp_path / "drawn", 12, seed=5)
    found, run, made = tmp_path / "found", tmp_path / "run", tmp_path / "made"
    quiet = ["--device", "cpu", "--progress", "off"]
    discover = ["discover", str(tmp_path / "drawn" / "pictures"), "--out", str(found), "--source", "imagenet"]
    assert main([*discover, "--parts", "3", "--kinds", "2", *quiet]) == 0
    before = Discovery.load(found)
    assert before.report["source"]["name"] == "imagenet" and before.codebook.feature_spec["weights_sha256"]
    first = before.codebook.part_names[0]
    assert main(["parts", "rename", str(found), first, "head"]) == 0
    assert main(["parts", "rename", str(found), "head:0", "crested"]) == 0
    assert Discovery.load(found).codebook.part_names[0] == "head"
    # the embedded miniature model, as many steps as its recipe has, few pictures a step
    train = ["train", "parts", "demo", "--discovery", str(found), "--base", "demo", "--out", str(run), "--steps", "300"]
    for setting in ("optimizer.batch_size=1", 'method.part_words=""', "run.tensorboard=false"):
        train += ["--set", setting]
    assert main([*train, *quiet]) == 0
    written = next(run.glob("*.safetensors"))
    dictionary = PartDictionary.load(written)
    assert dictionary.part_names[0] == "head" and dictionary.provenance["steps"] == 300
    order = ["compose", str(written), "a photo of a <head:crested> creature", "--out", str(made), "--steps", "2"]
    assert main([*order, "--base", "demo", *quiet]) == 0
    pictures = list(made.glob("*.png"))
    assert len(pictures) == 1
    assert Image.open(pictures[0]).size == (128, 128)
