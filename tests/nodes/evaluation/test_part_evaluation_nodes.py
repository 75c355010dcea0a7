"""The evaluation node in a real ComfyUI: its figures are those of the metrics on what the codebook sees."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from bestiary.concepts.part_dictionary.part_dictionary import PartDictionary
from bestiary.concepts.part_map.part_map import ABSENT
from bestiary.concepts.part_map.part_metrics import code_similarity, exact_match_rate
from bestiary.nodes.host.graph_progress import GraphProgress
from bestiary.nodes.host.socket_types import NamedCodebook
from bestiary.nodes.part_map.part_inputs import segment
from bestiary.nodes.part_map.part_pictures import as_pictures

ROWS = [(part, kind) for part in range(3) for kind in range(2)]


def node(name: str, /, **inputs: object) -> dict:
    return {"class_type": name, "inputs": inputs}


def dictionary(**changes: object) -> PartDictionary:
    fields = {
        "backbone": "bestiary-demo",
        "part_names": ("head", "body", "background"),
        "kind_names": ({0: "cardinal", 1: "blue jay"}, {}, {}),
        "background": 2,
        "rows": torch.tensor(ROWS),
        "embeddings": {"clip_l": torch.zeros(len(ROWS), 128)},
        **changes,
    }
    return PartDictionary(**fields)


@pytest.fixture(scope="module")
def files(server, drawn_images, small_codebook) -> None:
    """Two pictures, a codebook and dictionaries in the server's folders."""
    for number, picture in enumerate(as_pictures(drawn_images[:2])):
        picture.save(server.folder / "input" / f"creature{number}.png")
    models = server.folder / "models" / "bestiary"
    small_codebook.save(models / "small.parts.safetensors")
    dictionary().save(models / "small.safetensors")
    more = torch.tensor([*ROWS, (1, 7)])
    dictionary(rows=more, embeddings={"clip_l": torch.zeros(7, 128)}).save(models / "more.safetensors")


def judged(
    prompt: str, book: str = "small.parts.safetensors", names: str = "small.safetensors", **inputs: object
) -> dict:
    return {
        "one": node("LoadImage", image="creature0.png"),
        "two": node("LoadImage", image="creature1.png"),
        "both": node("ImageBatch", image1=["one", 0], image2=["two", 0]),
        "book": node("BestiaryLoadCodebook", codebook_name=book),
        "demo": node("BestiaryDemoModel"),
        "names": node("BestiaryLoadDictionary", model=["demo", 0], clip=["demo", 1], file=names, lora_strength=1.0),
        "judge": node(
            "BestiaryEvaluateParts",
            images=["both", 0],
            codebook=["book", 0],
            dictionary=["names", 2],
            prompt=prompt,
            **inputs,
        ),
        "emr": node("PreviewAny", source=["judge", 0]),
        "cosim": node("PreviewAny", source=["judge", 1]),
        "show": node("PreviewImage", images=["judge", 3]),
    }


def test_figures_are_those_of_the_metrics_on_what_is_seen(server, files, drawn_images, small_codebook):
    outputs = server.run(judged("a photo of a <head:blue jay> (<body:0>:1.2) bird"))
    named = NamedCodebook("small", small_codebook)
    _, seen = segment(drawn_images[:2], named, None, "centre square", GraphProgress(None))
    found, wanted = seen.maps.codes[:, :2], torch.tensor([[1, 0], [1, 0]])
    assert float(outputs["emr"]["text"][0]) == float(exact_match_rate(found, wanted))
    theirs = float(code_similarity(found, wanted, small_codebook.kind_similarity))
    assert float(outputs["cosim"]["text"][0]) == pytest.approx(theirs)
    report = outputs["judge"]["text"][0]
    assert "2 pictures, 2 asked parts" in report and "head: asked blue jay" in report
    assert len(outputs["show"]["images"]) == 2


def test_asking_for_what_is_seen_scores_one(server, files, drawn_images, small_codebook):
    named = NamedCodebook("small", small_codebook)
    _, seen = segment(drawn_images[:1], named, None, "centre square", GraphProgress(None))
    codes = seen.maps.codes[0].tolist()
    prompt = " ".join(f"<{part}:{code}>" for part, code in enumerate(codes) if code != ABSENT)
    graph = judged(prompt)
    graph["judge"]["inputs"]["images"] = ["one", 0]
    outputs = server.run(graph)
    assert float(outputs["emr"]["text"][0]) == 1.0
    assert float(outputs["cosim"]["text"][0]) == pytest.approx(1.0, abs=1e-6)
    assert "miss" not in outputs["judge"]["text"][0] and "not present" not in outputs["judge"]["text"][0]


def test_picked_parts_are_asked_for(server, files):
    graph = judged("", parts=["part", 0])
    graph["part"] = node("BestiaryPart", dictionary=["names", 2], part="body", kind="1", weight=1.0)
    by_part = server.run(graph)
    by_text = server.run(judged("<body:1>"))
    assert by_part["judge"]["text"] == by_text["judge"]["text"]


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (judged("a bird"), "Evaluate Parts: the prompt 'a bird' requests no part and no part is connected"),
        (judged("<beak:1>"), "Evaluate Parts: prompt, column 1: unknown part 'beak': choose"),
        (judged("<head:9>"), "Evaluate Parts: prompt, column 1: unknown kind 9 of part 'head'"),
        (
            judged("<head:0>", names="more.safetensors"),
            "Evaluate Parts: dictionary 'more' has kinds that the codebook lacks: body:7.",
        ),
        (judged("<head:0>", fit="crop"), "Evaluate Parts: unknown fit 'crop'"),
    ],
)
def test_faults_are_one_clear_message(graph, message, server, files):
    server.refuse(graph, message)


def test_overlays_of_one_picture_have_its_width(server, files, drawn_images):
    graph = judged("<head:0>")
    graph["judge"]["inputs"]["images"] = ["one", 0]
    place = server.run(graph)["show"]["images"][0]
    answer = server.get("/view", params={key: place[key] for key in ("filename", "subfolder", "type")})
    from io import BytesIO

    from PIL import Image

    shown = np.asarray(Image.open(BytesIO(answer.content)))
    assert shown.shape[1] == 512 and shown.shape[0] > 512
