"""Stage Text, Intersect Range, Stage Preview and Find Attribute Stages: schemas, and graphs through a real ComfyUI."""

import re
from pathlib import Path

import pytest
import torch
from bestiary.concepts.spectrum.prompt_spectrum import PromptSpectrum
from bestiary.concepts.spectrum.stage_bounds import StageBounds

ROOT = Path(__file__).parents[3]
DEMO = {"demo": {"class_type": "BestiaryDemoModel", "inputs": {}}}


def shown(link: list) -> dict:
    return {"class_type": "PreviewAny", "inputs": {"source": link}}


def stage_text(lines: str, text: str, **inputs: object) -> dict:
    return {"class_type": "BestiaryStageText", "inputs": {"clip": ["demo", 1], "lines": lines, "text": text, **inputs}}


def preview(**inputs: object) -> dict:
    fixed = {"model": ["demo", 0], "scheduler": "karras", "steps": 10, "denoise": 1.0}
    return {"class_type": "BestiaryStagePreview", "inputs": {**fixed, **inputs}}


def size(batch: int = 1) -> dict:
    return {"class_type": "EmptyLatentImage", "inputs": {"width": 128, "height": 128, "batch_size": batch}}


def test_words_per_stage_are_limited_previewed_and_sampled(server):
    fixed = {"seed": 3, "steps": 4, "cfg": 4.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    links = {"model": ["demo", 0], "positive": ["cut", 0], "negative": ["plain", 0], "latent_image": ["size", 0]}
    cut = {"conditioning": ["text", 0], "start": 0.0, "end": 0.6, "outside": ["plain", 0]}
    outputs = server.run(
        {
            **DEMO,
            "size": size(),
            "text": stage_text("layout: a meadow\n3-5: a red bird", "a bird"),
            "plain": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["demo", 1], "text": "a bird"}},
            "cut": {"class_type": "BestiaryIntersectRange", "inputs": cut},
            "seen": preview(conditioning=["cut", 0], scheduler="simple"),
            "report": shown(["text", 1]),
            "cut_report": shown(["cut", 1]),
            "table": shown(["seen", 1]),
            "sample": {"class_type": "KSampler", "inputs": {**fixed, **links}},
            "save": {"class_type": "SaveLatent", "inputs": {"samples": ["sample", 0], "filename_prefix": "stages"}},
        }
    )
    assert outputs["report"]["text"][0].splitlines() == [
        "0-10 %: a meadow",
        "10-20 %: a bird",
        "20-50 %: a red bird",
        "50-100 %: a bird",
    ]
    assert outputs["cut_report"]["text"][0].startswith("4 of 4 stages act between 0 and 0.6 of the sampling.")
    assert "Steps 7-10 are in no stage: the filler acts there." in outputs["table"]["text"][0]
    assert len(list((server.folder / "output").glob("stages_*.latent"))) == 1


def test_the_preview_shows_a_picture_and_a_table(server):
    outputs = server.run({**DEMO, "seen": preview(), "table": shown(["seen", 1])})
    assert outputs["seen"]["images"][0]["filename"].endswith(".png")
    assert "Stages 3, 6, 8 are never reached" in outputs["table"]["text"][0]


def test_the_preview_counts_what_its_help_page_says(demo_model):
    from bestiary.nodes.spectrum.prompt_stage_nodes import BestiaryStagePreview

    def table(scheduler: str, **inputs: object) -> str:
        return BestiaryStagePreview.execute(demo_model.model, scheduler, 10, 1.0, **inputs).args[1]

    page = (ROOT / "web" / "docs" / "BestiaryStagePreview.md").read_text(encoding="utf-8")
    assert re.search(r"`karras` and 10 steps: stages 3, 6 and 8 of 10 are never reached", page)
    assert "Stages 3, 6, 8 are never reached" in table("karras")
    assert "never reached" not in table("simple")


def test_the_preview_shows_the_stages_of_a_spectrum(demo_model):
    from bestiary.nodes.host.socket_types import NamedSpectrum
    from bestiary.nodes.spectrum.prompt_stage_nodes import BestiaryStagePreview

    rows, bounds = torch.zeros(3, 1, 128), StageBounds((1000, 700, 200, 0))
    one = NamedSpectrum(
        "it", PromptSpectrum("bestiary-demo", {"clip_l": rows}, bounds, presets={"mood": ((0.0, 0.3),)})
    )
    output = BestiaryStagePreview.execute(demo_model.model, "simple", 10, 1.0, spectrum=one)
    counts = [line.split()[3] for line in output.args[1].splitlines()[2:5]]
    assert counts == ["3", "5", "2"]
    assert output.args[0].shape[0] == 1


def test_a_word_is_swept_over_the_stages(server):
    sweep = {
        "class_type": "BestiaryFindAttributeStages",
        "inputs": {
            "model": ["demo", 0],
            "clip": ["demo", 1],
            "vae": ["demo", 2],
            "latent": ["size", 0],
            "text": "a {word} bird",
            "word": "red",
            "otherwise": "blue",
            "negative_text": "",
            "seed": 1,
            "steps": 3,
            "cfg": 4.0,
            "sampler": "euler",
            "scheduler": "simple",
            "stages": 3,
            "attribute": "colour",
        },
    }
    outputs = server.run(
        {**DEMO, "size": size(2), "sweep": sweep, "presets": shown(["sweep", 0]), "table": shown(["sweep", 1])}
    )
    assert re.fullmatch(r"colour: \d.*%", outputs["presets"]["text"][0])
    assert len(outputs["table"]["text"][0].splitlines()) == 5
    assert outputs["sweep"]["images"][0]["filename"].endswith(".png")
    sweep["inputs"]["text"] = "a bird"
    message = server.fail({**DEMO, "size": size(2), "sweep": sweep, "presets": shown(["sweep", 0])})
    assert "Find Attribute Stages: text 'a bird' and word 'red': enter a word, and a text with {word}" in message


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (stage_text("1-2: a", ""), "Stage Text: stages 3-10 have no text: write a line for them"),
        (stage_text("1-12: a", "b"), "Stage Text: line 1: stage '1-12' does not exist: there are stages 1 to 10"),
        (preview(scheduler="karas"), "karas"),
        (preview(denoise=0.0), "Stage Preview: 10 steps with denoise 0: give at least 1 step"),
    ],
)
def test_faults_say_cause_and_remedy(server, node, message):
    nodes = {**DEMO, "node": node, "shown": shown(["node", 1])}
    try:
        assert message in server.fail(nodes)
    except RuntimeError as refused:
        # newer cores check the choices themselves
        assert message in str(refused)
