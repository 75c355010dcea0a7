"""Learning a spectrum through the queue of a real ComfyUI: train, save, load and sample; cancel and resume; what is wrong is told."""

import io

import numpy as np
import pytest
from bestiary.concepts.spectrum.spectrum_file import load_spectrum
from PIL import Image

CHEAP = {"initial_words": "creature", "stages": 4, "vectors": 1, "steps": 3, "batch_size": 2, "vector_lr": 1.0}
CHEAP |= {"image_size": 0, "seed": 1, "preview_every": 2, "recompute": False, "resume": "start anew"}
CHEAP |= {"more_settings": "run.preview_steps = 1\nrun.preview_count = 1"}
CONSTANT = 'optimizer.schedule = "constant"\nrun.preview_steps = 1\nrun.preview_count = 1'


def _training(server: object, **choices: object) -> dict:
    """A graph of two pictures of different sizes up to Train Spectrum, node "train"."""
    graph = {"base": {"class_type": "BestiaryDemoModel", "inputs": {}}}
    graph["drawn"] = {"class_type": "BestiaryDemoPictures", "inputs": {"count": 2, "seed": 1}}
    objects = {"model": ["base", 0], "clip": ["base", 1], "vae": ["base", 2], "images": ["drawn", 0]}
    inputs = {**objects, "name": "moth", **CHEAP, **choices}
    graph["train"] = {"class_type": "BestiaryTrainSpectrum", "inputs": inputs}
    return graph


def _sampling(graph: dict, name: str, positive: list) -> dict:
    """Adds an image sampled from a conditioning, saved under `name`."""
    graph[f"{name}_empty"] = {"class_type": "CLIPTextEncode", "inputs": {"clip": ["base", 1], "text": ""}}
    size = {"width": 128, "height": 128, "batch_size": 1}
    graph[f"{name}_latent"] = {"class_type": "EmptyLatentImage", "inputs": size}
    sampler = {"seed": 1, "steps": 4, "cfg": 2.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    sampler |= {"model": ["base", 0], "latent_image": [f"{name}_latent", 0]}
    sampler |= {"positive": positive, "negative": [f"{name}_empty", 0]}
    graph[f"{name}_sample"] = {"class_type": "KSampler", "inputs": sampler}
    decode = {"samples": [f"{name}_sample", 0], "vae": ["base", 2]}
    graph[f"{name}_decode"] = {"class_type": "VAEDecode", "inputs": decode}
    save = {"images": [f"{name}_decode", 0], "filename_prefix": name}
    graph[f"{name}_save"] = {"class_type": "SaveImage", "inputs": save}
    return graph


def _prompted(graph: dict, name: str, spectrum: list) -> dict:
    """Adds an image of a spectrum, which its texts call <moth>."""
    inputs = {"clip": ["base", 1], "text": "a photo of a <moth>", "negative_text": "", "spectrum_1": spectrum}
    graph[f"{name}_prompt"] = {"class_type": "BestiarySpectrumPrompt", "inputs": inputs}
    return _sampling(graph, name, [f"{name}_prompt", 0])


def _plain(graph: dict, name: str) -> dict:
    graph[f"{name}_text"] = {"class_type": "CLIPTextEncode", "inputs": {"clip": ["base", 1], "text": "a red bird"}}
    return _sampling(graph, name, [f"{name}_text", 0])


def _pixels(server: object, shown: dict) -> bytes:
    """Pixels of a saved picture; the file itself also holds the graph."""
    content = server.get("/view", params=shown["images"][0]).content
    return Image.open(io.BytesIO(content)).convert("RGB").tobytes()


def _apart(server: object, one: dict, other: dict) -> int:
    """The largest difference of two saved pictures, in 8-bit steps."""
    first, second = (np.frombuffer(_pixels(server, shown), np.uint8).astype(int) for shown in (one, other))
    return int(np.abs(first - second).max())


def test_a_graph_trains_saves_loads_and_samples_in_one_run(server, log_of) -> None:
    graph = _training(server)
    save = {"spectrum": ["train", 0], "filename": "moth"}
    graph["save"] = {"class_type": "BestiarySaveSpectrum", "inputs": save}
    # the menu of files takes the name that the same run gives
    graph["load"] = {"class_type": "BestiaryLoadSpectrum", "inputs": {"file": ["save", 0]}}
    graph["losses"] = {"class_type": "LossGraphNode", "inputs": {"loss": ["train", 1], "filename_prefix": "loss"}}
    graph["shown"] = {"class_type": "PreviewImage", "inputs": {"images": ["train", 2]}}
    graph["told"] = {"class_type": "PreviewAny", "inputs": {"source": ["train", 3]}}
    for name, spectrum in (("trained", ["train", 0]), ("loaded", ["load", 0])):
        _prompted(graph, name, spectrum)
    outputs = server.run(_plain(graph, "plain"))
    assert outputs["save"]["text"] == ["saved as moth.safetensors"] and outputs["told"]["text"] == ["moth"]
    assert "4 stages learned in 3 steps" in outputs["train"]["text"][0]
    learned = load_spectrum(server.folder / "models" / "bestiary" / "moth.safetensors")
    assert learned.backbone == "bestiary-demo" and learned.provenance["steps"] == 3 and learned.stages == 4
    # a file holds half precision
    assert _apart(server, outputs["loaded_save"], outputs["trained_save"]) <= 3
    assert _apart(server, outputs["loaded_save"], outputs["plain_save"]) > 20
    assert [record["step"] for record in log_of(server, "moth")] == [1, 2, 3]
    # the model is as it was before, in a run of its own
    again = server.run(_plain({"base": graph["base"]}, "again"))
    assert _pixels(server, again["again_save"]) == _pixels(server, outputs["plain_save"])


def test_a_cancelled_training_is_resumed(server, log_of, cancelled_in_training) -> None:
    before = server.run(_plain({"base": {"class_type": "BestiaryDemoModel", "inputs": {}}}, "a"))
    # no preview on the way, and a rate that does not depend on the number of steps: where Cancel comes is not known
    graph = _training(server, name="long", steps=100_000, preview_every=0, more_settings=CONSTANT)
    reached = cancelled_in_training(server, graph, "long")
    stopped = load_spectrum(server.folder / "models" / "bestiary" / "long_stopped.safetensors")
    assert stopped.provenance["steps"] == reached >= 2
    # bit for bit as if nobody had stopped it, on one thread
    steps = reached + 2
    graph["train"]["inputs"] |= {"resume": "long", "steps": steps}
    outputs = server.run(_plain(graph, "b"))
    assert f"4 stages learned in {steps} steps" in outputs["train"]["text"][0]
    assert _pixels(server, outputs["b_save"]) == _pixels(server, before["a_save"])
    server.run(_training(server, name="whole", steps=steps, preview_every=0, more_settings=CONSTANT))
    assert [record["step"] for record in log_of(server, "long")] == list(range(1, steps + 1))
    assert [record["loss"] for record in log_of(server, "long")] == [
        record["loss"] for record in log_of(server, "whole")
    ]
    runs = server.folder / "output" / "bestiary"
    ours, theirs = (load_spectrum(runs / run / f"{run}.safetensors") for run in ("long", "whole"))
    assert ours.provenance["steps"] == theirs.provenance["steps"] == steps and ours.matrix().equal(theirs.matrix())


def test_pictures_of_several_sizes_and_masks_are_taken(server) -> None:
    graph = _training(server, name="masked", preview_every=0)
    for number, size in enumerate((96, 160)):
        picture = Image.new("RGBA", (size, 128), (200, 40, 40, 255))
        # LoadImage gives what is clear as white
        picture.paste((0, 0, 255, 0), (20, 20, 80, 80))
        picture.save(server.folder / "input" / f"masked{number}.png")
        graph[f"load{number}"] = {"class_type": "LoadImage", "inputs": {"image": f"masked{number}.png"}}
    graph["train"]["inputs"] |= {"images": ["load0", 0], "foreground": ["load0", 1]}
    assert "4 stages learned" in server.run(graph)["train"]["text"][0]
    graph["train"]["inputs"] |= {"images": ["load1", 0]}
    assert "Train Spectrum: mask 1 has 96 x 128 pixels, its picture 160 x 128: resize it" in server.fail(graph)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"name": "../evil"}, "Train Spectrum: '../evil' cannot be used as the name of a training"),
        (
            {"initial_words": "creature zebra"},
            "initial words: bestiary-demo does not know 'zebra'; name what the pictures",
        ),
        ({"more_settings": "optimizer.stepz = 4"}, "optimizer.stepz: no such key; did you mean 'steps'?"),
        ({"more_settings": "optimizer steps 4"}, "more_settings is not valid TOML"),
        ({"more_settings": 'images.source = "x"'}, "more_settings: images.source is decided by what is connected"),
        ({"image_size": 72, "more_settings": "images.size = 32"}, "images.size = 32"),
        ({"resume": "moth", "stages": 9}, "run moth was started with stages 4, not 9: set what it had"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_trained(server, choices: dict, message: str, log_of) -> None:
    if "resume" in choices and not log_of(server, "moth"):
        server.run(_training(server, preview_every=0))
    before = sorted(path.name for path in (server.folder / "output" / "bestiary").glob("*"))
    assert message in server.fail(_training(server, **choices))
    assert sorted(path.name for path in (server.folder / "output" / "bestiary").glob("*")) == before


def test_a_run_of_another_kind_is_not_gone_on_with(server) -> None:
    """Newer versions refuse a value that their menus do not offer, older ones leave it to us."""
    run = server.folder / "output" / "bestiary" / "birds"
    run.mkdir(parents=True)
    (run / "config.resolved.toml").write_text('# training set 0\n[run]\nname = "birds"\n')
    try:
        message = server.fail(_training(server, resume="birds"))
    except RuntimeError as refused:
        message = str(refused)
    assert "birds" in message
    menus = {
        node: server.get(f"/object_info/{node}").json()[node]["input"]["required"]["resume"]
        for node in ("BestiaryTrainParts", "BestiaryTrainSpectrum")
    }
    options = {node: menu[1]["options"] if menu[0] == "COMBO" else menu[0] for node, menu in menus.items()}
    assert "birds" in options["BestiaryTrainParts"] and "birds" not in options["BestiaryTrainSpectrum"]


def test_a_wrong_link_to_the_menu_of_files_is_refused(server) -> None:
    graph = {"base": {"class_type": "BestiaryDemoModel", "inputs": {}}}
    graph["load"] = {"class_type": "BestiaryLoadSpectrum", "inputs": {"file": ["base", 0]}}
    graph["info"] = {"class_type": "PreviewAny", "inputs": {"source": ["load", 1]}}
    with pytest.raises(RuntimeError, match=r"received_type\(MODEL\) mismatch input_type\(COMBO,STRING\)"):
        server.submit(graph)


def test_the_node_explains_itself(server) -> None:
    facts = server.get("/object_info/BestiaryTrainSpectrum").json()["BestiaryTrainSpectrum"]
    inputs = {**facts["input"]["required"], **facts["input"]["optional"]}
    assert facts["description"] and facts["category"] == "Bestiary/train"
    assert all(len(fact) > 1 and fact[1].get("tooltip") for fact in inputs.values())
    assert list(facts["output"]) == ["BESTIARY_SPECTRUM", "LOSS_MAP", "IMAGE", "STRING"]
    assert server.get("/extensions/ComfyUI-Bestiary/docs/BestiaryTrainSpectrum.md").status_code == 200
