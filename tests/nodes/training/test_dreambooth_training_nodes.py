"""Learning one subject through the queue of a real ComfyUI: train, apply, sample; cancel and resume; the node explains itself."""

import io

from PIL import Image

CHEAP = {"name": "drake", "instance_prompt": "a {} creature", "class_prompt": "a creature", "steps": 3, "rank": 2}
CHEAP |= {"lora_lr": 0.05, "batch_size": 1, "prior": "auto", "prior_weight": 1.0, "vectors": 1, "image_size": 0}
CHEAP |= {"seed": 1, "preview_every": 2, "recompute": False, "resume": "start anew", "initial_words": "red"}
CHEAP |= {"more_settings": "run.preview_steps = 1\nrun.preview_count = 1"}
CONSTANT = 'optimizer.schedule = "constant"\nrun.preview_steps = 1\nrun.preview_count = 1'


def _training(**choices: object) -> dict:
    """A graph of two pictures of the subject and three of its class up to Train DreamBooth, node "train"."""
    graph = {"base": {"class_type": "BestiaryDemoModel", "inputs": {}}}
    for name, count, seed in (("drawn", 2, 1), ("others", 3, 5)):
        graph[name] = {"class_type": "BestiaryDemoPictures", "inputs": {"count": count, "seed": seed}}
    objects = {"model": ["base", 0], "clip": ["base", 1], "vae": ["base", 2], "images": ["drawn", 0]}
    inputs = {**objects, "class_images": ["others", 0], **CHEAP, **choices}
    graph["train"] = {"class_type": "BestiaryTrainDreamBooth", "inputs": inputs}
    return graph


def _sampling(graph: dict, name: str, model: list, clip: list, text: str) -> dict:
    """Adds an image of a text, saved under `name`."""
    for place, words in (("yes", text), ("no", "")):
        graph[f"{name}_{place}"] = {"class_type": "CLIPTextEncode", "inputs": {"clip": clip, "text": words}}
    size = {"width": 128, "height": 128, "batch_size": 1}
    graph[f"{name}_latent"] = {"class_type": "EmptyLatentImage", "inputs": size}
    sampler = {"seed": 1, "steps": 3, "cfg": 2.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    sampler |= {"model": model, "latent_image": [f"{name}_latent", 0]}
    sampler |= {"positive": [f"{name}_yes", 0], "negative": [f"{name}_no", 0]}
    graph[f"{name}_sample"] = {"class_type": "KSampler", "inputs": sampler}
    graph[f"{name}_decode"] = {
        "class_type": "VAEDecode",
        "inputs": {"samples": [f"{name}_sample", 0], "vae": ["base", 2]},
    }
    save = {"images": [f"{name}_decode", 0], "filename_prefix": name}
    graph[f"{name}_save"] = {"class_type": "SaveImage", "inputs": save}
    return graph


def _pixels(server: object, shown: dict) -> bytes:
    """Pixels of a saved picture; the file itself also holds the graph."""
    content = server.get("/view", params=shown["images"][0]).content
    return Image.open(io.BytesIO(content)).convert("RGB").tobytes()


def test_a_subject_is_learned_applied_and_sampled(server, log_of) -> None:
    graph = _training()
    graph["applied"] = {
        "class_type": "LoraModelLoader",
        "inputs": {"model": ["base", 0], "lora": ["train", 1], "strength_model": 1.0},
    }
    # newer cores ask whether to bypass it
    asked = server.get("/object_info/LoraModelLoader").json()["LoraModelLoader"]["input"]["required"]
    graph["applied"]["inputs"] |= {"bypass": False} if "bypass" in asked else {}
    text = "a embedding:drake_identifier creature"
    _sampling(graph, "ours", ["train", 0], ["train", 4], text)
    _sampling(graph, "core", ["applied", 0], ["train", 4], text)
    _sampling(graph, "plain", ["base", 0], ["train", 4], text)
    outputs = server.run(graph)
    assert "adapters on" in outputs["train"]["text"][0] and outputs["train"]["images"]
    pictures = {name: _pixels(server, outputs[f"{name}_save"]) for name in ("ours", "core", "plain")}
    # core's own loader makes the same of LORA_MODEL; the model is as it was
    assert pictures["ours"] == pictures["core"] != pictures["plain"]
    lines = log_of(server, "drake")
    assert [line["step"] for line in lines] == [1, 2, 3] and all(line["prior_loss"] > 0 for line in lines)
    shown = server.get("/bestiary/newest_run/drake?kind=dreambooth").json()
    assert shown["run"] == "drake"


def test_a_cancelled_training_is_resumed(server, log_of, cancelled_in_training) -> None:
    graph = _training(name="long", steps=100_000, preview_every=0, more_settings=CONSTANT)
    reached = cancelled_in_training(server, graph, "long")
    assert reached >= 2 and (server.folder / "models" / "loras" / "long_stopped.safetensors").is_file()
    graph["train"]["inputs"] |= {"resume": "long", "steps": reached + 1}
    assert f"learned in {reached + 1} steps" in server.run(graph)["train"]["text"][0]
    assert [record["step"] for record in log_of(server, "long")] == list(range(1, reached + 2))


def test_the_node_explains_itself(server) -> None:
    facts = server.get("/object_info/BestiaryTrainDreamBooth").json()["BestiaryTrainDreamBooth"]
    inputs = {**facts["input"]["required"], **facts["input"]["optional"]}
    assert facts["description"] and facts["category"] == "Bestiary/train"
    assert all(len(fact) > 1 and fact[1].get("tooltip") for fact in inputs.values())
    assert list(facts["output"]) == ["MODEL", "LORA_MODEL", "LOSS_MAP", "IMAGE", "CLIP", "STRING"]
    assert server.get("/extensions/ComfyUI-Bestiary/docs/BestiaryTrainDreamBooth.md").status_code == 200
