"""Training through the queue of a real ComfyUI: train, save, load and sample; cancel and resume; a child process."""

import json
import time

import numpy as np
import pytest
from bestiary.concepts.part_dictionary.part_dictionary import PartDictionary

CHEAP = {"steps": 3, "batch_size": 2, "accumulation": 1, "token_lr": 0.1, "lora_lr": 1e-3, "attention_loss": "bce"}
CHEAP |= {"attention_weight": 0.2, "rank": 2, "seed": 1, "preview_every": 0, "recompute": False, "resume": "start anew"}
CHEAP |= {"more_settings": "run.preview_steps = 1\nrun.preview_count = 2"}


def _drawn(server: object) -> list[str]:
    """Names of six drawn creatures in the server's input folder."""
    from bestiary.demo.creatures import held_out_set
    from PIL import Image

    names = []
    for number, drawing in enumerate(held_out_set(6, seed=1)):
        Image.fromarray(drawing.image).save(server.folder / "input" / f"creature{number}.png")
        names.append(f"creature{number}.png")
    return names


def _training(server: object, **choices: object) -> dict:
    """A graph up to Train Parts, node "train"."""
    names = _drawn(server)
    graph = {"base": {"class_type": "BestiaryDemoModel", "inputs": {}}}
    for number, name in enumerate(names):
        graph[f"load{number}"] = {"class_type": "LoadImage", "inputs": {"image": name}}
    before = ["load0", 0]
    for number in range(1, len(names)):
        graph[f"batch{number}"] = {
            "class_type": "ImageBatch",
            "inputs": {"image1": before, "image2": [f"load{number}", 0]},
        }
        before = [f"batch{number}", 0]
    found = {"feature_source": "descriptor", "num_parts": 2, "num_kinds": 1, "seed": 0, "flip_foreground": False}
    graph["discover"] = {"class_type": "BestiaryDiscoverParts", "inputs": {"images": before, **found}}
    graph["set"] = {
        "class_type": "BestiaryTrainingImages",
        "inputs": {"images": before, "codebook": ["discover", 0], "vae": ["base", 2], "image_size": 0, "mirror": False}
        | {"part_maps": ["discover", 1]},
    }
    objects = {"model": ["base", 0], "clip": ["base", 1], "vae": ["base", 2], "training_set": ["set", 0]}
    graph["train"] = {"class_type": "BestiaryTrainParts", "inputs": {**objects, "name": "wings", **CHEAP, **choices}}
    return graph


def _sampling(graph: dict, name: str, model: list, clip: list) -> dict:
    """Adds an image sampled from MODEL and CLIP, saved under `name`."""
    graph[f"{name}_text"] = {"class_type": "CLIPTextEncode", "inputs": {"clip": clip, "text": "a red bird"}}
    graph[f"{name}_empty"] = {"class_type": "CLIPTextEncode", "inputs": {"clip": clip, "text": ""}}
    graph[f"{name}_latent"] = {
        "class_type": "EmptyLatentImage",
        "inputs": {"width": 128, "height": 128, "batch_size": 1},
    }
    sampler = {"seed": 1, "steps": 2, "cfg": 2.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    sampler |= {"model": model, "latent_image": [f"{name}_latent", 0]}
    sampler |= {"positive": [f"{name}_text", 0], "negative": [f"{name}_empty", 0]}
    graph[f"{name}_sample"] = {"class_type": "KSampler", "inputs": sampler}
    graph[f"{name}_decode"] = {
        "class_type": "VAEDecode",
        "inputs": {"samples": [f"{name}_sample", 0], "vae": ["base", 2]},
    }
    graph[f"{name}_save"] = {
        "class_type": "SaveImage",
        "inputs": {"images": [f"{name}_decode", 0], "filename_prefix": name},
    }
    return graph


def _file(server: object, shown: dict) -> bytes:
    image = shown["images"][0]
    return server.get("/view", params=image).content


def _pixels(server: object, shown: dict) -> bytes:
    """Pixels of a saved picture; the file itself also holds the graph."""
    import io

    from PIL import Image

    return Image.open(io.BytesIO(_file(server, shown))).convert("RGB").tobytes()


def _apart(server: object, one: dict, other: dict) -> int:
    """The largest difference of two saved pictures, in 8-bit steps."""
    first, second = (np.frombuffer(_pixels(server, shown), np.uint8).astype(int) for shown in (one, other))
    return int(np.abs(first - second).max())


def test_a_graph_trains_saves_loads_and_samples_in_one_run(server) -> None:
    graph = _training(server)
    graph["save"] = {
        "class_type": "BestiarySaveDictionary",
        "inputs": {"dictionary": ["train", 0], "filename": "wings"},
    }
    graph["losses"] = {"class_type": "LossGraphNode", "inputs": {"loss": ["train", 3], "filename_prefix": "loss"}}
    _sampling(graph, "plain", ["base", 0], ["base", 1])
    _sampling(graph, "taught", ["train", 1], ["train", 2])
    # loaded from the file that the same run has written
    load = {"model": ["base", 0], "clip": ["base", 1], "file": ["save", 0], "lora_strength": 1.0}
    graph["load"] = {"class_type": "BestiaryLoadDictionary", "inputs": load}
    _sampling(graph, "loaded", ["load", 0], ["load", 1])
    for name in ("taught", "loaded"):
        graph[f"{name}_text"]["inputs"]["text"] = "a photo of embedding:wings/0.0"
    outputs = server.run(graph)
    assert outputs["save"]["text"] == ["models/bestiary/wings.safetensors"]
    assert "tokens learned in 3 steps" in outputs["train"]["text"][0]
    learned = PartDictionary.load(server.folder / "models" / "bestiary" / "wings.safetensors")
    assert learned.backbone == "bestiary-demo" and learned.provenance["steps"] == 3
    # a file holds half precision
    assert _apart(server, outputs["loaded_save"], outputs["taught_save"]) <= 3
    assert _apart(server, outputs["loaded_save"], outputs["plain_save"]) > 20
    # a second queue run beside an untrained picture
    again = server.run(_sampling({"base": graph["base"]}, "again", ["base", 0], ["base", 1]))
    assert _pixels(server, outputs["plain_save"]) == _pixels(server, again["again_save"])
    log = (server.folder / "output" / "bestiary" / "wings" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in log] == [1, 2, 3]


def test_a_cancelled_training_is_resumed(server) -> None:
    plain = server.run(
        _sampling({"base": {"class_type": "BestiaryDemoModel", "inputs": {}}}, "a", ["base", 0], ["base", 1])
    )
    graph = _training(server, name="long", steps=100_000)
    prompt_id = server.submit(graph)
    run = server.folder / "output" / "bestiary" / "long"
    until = time.monotonic() + 120
    while time.monotonic() < until and not (
        (run / "log.jsonl").exists() and (run / "log.jsonl").read_text().count("\n") >= 2
    ):
        time.sleep(0.05)
    server.post("/interrupt")
    entry = server.wait(prompt_id)
    assert any(name == "execution_interrupted" for name, _ in entry["status"]["messages"])
    reached = len((run / "log.jsonl").read_text().splitlines())
    stopped = PartDictionary.load(server.folder / "models" / "bestiary" / "long_stopped.safetensors")
    assert stopped.provenance["steps"] == reached >= 2
    graph["train"]["inputs"] |= {"resume": "long", "steps": reached + 2}
    outputs = server.run(_sampling(graph, "b", ["base", 0], ["base", 1]))
    assert f"tokens learned in {reached + 2} steps" in outputs["train"]["text"][0]
    assert _pixels(server, outputs["b_save"]) == _pixels(server, plain["a_save"])
    steps = [json.loads(line)["step"] for line in (run / "log.jsonl").read_text().splitlines()]
    assert steps == list(range(1, reached + 3))


def test_the_standalone_trainer_runs_as_a_child(server) -> None:
    graph = _training(server)
    inputs = {"training_set": ["set", 0], "name": "apart", "base": "demo", **CHEAP}
    graph["train"] = {"class_type": "BestiaryTrainInBackground", "inputs": inputs}
    outputs = server.run(graph, seconds=300)
    file = outputs["train"]["text"][0]
    assert file == "models/bestiary/apart.safetensors"
    learned = PartDictionary.load(server.folder / file)
    assert learned.backbone == "bestiary-demo" and learned.provenance["steps"] == 3
    assert (server.folder / "output" / "bestiary" / "apart" / "config.resolved.toml").is_file()


def test_a_cancelled_child_leaves_its_state(server) -> None:
    graph = _training(server)
    inputs = {"training_set": ["set", 0], "name": "halted", "base": "demo", **CHEAP, "steps": 100_000}
    graph["train"] = {"class_type": "BestiaryTrainInBackground", "inputs": inputs}
    prompt_id = server.submit(graph)
    log = server.folder / "output" / "bestiary" / "halted" / "log.jsonl"
    until = time.monotonic() + 200
    while time.monotonic() < until and not (log.exists() and log.read_text().count("\n") >= 2):
        time.sleep(0.1)
    server.post("/interrupt")
    entry = server.wait(prompt_id)
    assert any(name == "execution_interrupted" for name, _ in entry["status"]["messages"]), entry["status"]
    states = [path.name for path in (log.parent / "state").iterdir()]
    assert len(states) == 1 and int(states[0][5:12]) >= 2


def test_what_is_wrong_is_told_before_anything_is_trained(server) -> None:
    graph = _training(server, name="../evil")
    assert "Train Parts: '../evil' cannot be used as the name of a training" in server.fail(graph)
    graph = _training(server, resume="nowhere")
    # newer versions refuse a value that their menus do not offer, older ones leave it to us
    try:
        message = server.fail(graph)
    except RuntimeError as refused:
        message = str(refused)
    assert "nowhere" in message
    graph = _training(server)
    inputs = {"training_set": ["set", 0], "name": "apart", **CHEAP, "base": "/nowhere/model"}
    graph["train"] = {"class_type": "BestiaryTrainInBackground", "inputs": inputs}
    message = server.fail(graph)
    assert (
        "Train Parts in Own Process: the training program ended with code 2" in message and "/nowhere/model" in message
    )


@pytest.mark.parametrize("node", ["BestiaryTrainingImages", "BestiaryTrainParts", "BestiaryTrainInBackground"])
def test_nodes_explain_themselves(server, node: str) -> None:
    facts = server.get(f"/object_info/{node}").json()[node]
    inputs = {**facts["input"]["required"], **facts["input"].get("optional", {})}
    assert facts["description"] and facts["category"] == "Bestiary/train"
    assert all(len(fact) > 1 and fact[1].get("tooltip") for fact in inputs.values())
    assert not set(inputs) & set(facts["output_name"])
    assert server.get(f"/extensions/ComfyUI-Bestiary/docs/{node}.md").status_code == 200
