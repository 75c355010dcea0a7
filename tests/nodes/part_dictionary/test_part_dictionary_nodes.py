"""Tests of the dictionary nodes through the queue of a real ComfyUI, on the embedded model."""

import dataclasses
import time
from pathlib import Path

import pytest
import torch
from bestiary.concepts.files.concept_file import write_concept_file
from bestiary.concepts.part_dictionary.part_dictionary import PartDictionary
from PIL import Image

SHIPPED = Path(__file__).parents[3] / "demo" / "concepts" / "creatures.safetensors"
FILE = "creatures.safetensors"


@pytest.fixture(scope="module")
def creatures() -> PartDictionary:
    return PartDictionary.load(SHIPPED)


@pytest.fixture(scope="module")
def first_kind(creatures) -> str:
    """part.kind of the first row, as a prompt writes it."""
    part, kind = creatures.rows[0].tolist()
    return f"{creatures.part_names[part]}.{kind + creatures.id_base}"


def load_graph(text: str, file: str = FILE, **inputs: object) -> dict:
    """Embedded model -> dictionary -> core encode, sample, decode, save."""
    model, clip = ["load", 0], ["load", 1]
    return {
        "demo": {"class_type": "BestiaryDemoModel", "inputs": {}},
        "load": {
            "class_type": "BestiaryLoadDictionary",
            "inputs": {"model": ["demo", 0], "clip": ["demo", 1], "file": file, "lora_strength": 1.0, **inputs},
        },
        "positive": {"class_type": "CLIPTextEncode", "inputs": {"clip": clip, "text": text}},
        "negative": {"class_type": "CLIPTextEncode", "inputs": {"clip": clip, "text": ""}},
        "latent": {"class_type": "EmptyLatentImage", "inputs": {"width": 128, "height": 128, "batch_size": 1}},
        "sample": {
            "class_type": "KSampler",
            "inputs": {
                "model": model,
                "positive": ["positive", 0],
                "negative": ["negative", 0],
                "latent_image": ["latent", 0],
                **{"seed": 1, "steps": 2, "cfg": 5.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0},
            },
        },
        "decode": {"class_type": "VAEDecode", "inputs": {"samples": ["sample", 0], "vae": ["demo", 2]}},
        "save": {"class_type": "SaveImage", "inputs": {"images": ["decode", 0], "filename_prefix": "dictionary"}},
    }


def picture(server, graph: dict) -> bytes:
    name = server.run(graph)["save"]["images"][0]["filename"]
    with Image.open(server.folder / "output" / name) as image:
        return image.convert("RGB").tobytes()


def put(server, dictionary: PartDictionary, name: str) -> str:
    dictionary.save(server.folder / "models" / "bestiary" / name)
    return name


def test_core_nodes_understand_the_parts(server, first_kind):
    plain = picture(server, load_graph("a creature"))
    named = picture(server, load_graph(f"a creature (embedding:creatures/{first_kind}:1.2)"))
    assert named != plain
    again = picture(server, load_graph(f"a creature (embedding:creatures/{first_kind}:1.2)", name="creatures"))
    assert again == named


def test_the_lora_acts_with_its_strength(server):
    text = "a red head"
    plain = load_graph(text)
    for encoder in ("positive", "negative"):
        plain[encoder]["inputs"]["clip"] = ["demo", 1]
    plain["sample"]["inputs"]["model"] = ["demo", 0]
    untouched = picture(server, plain)
    assert picture(server, load_graph(text, lora_strength=0.0)) == untouched
    assert picture(server, load_graph(text, lora_strength=1.0)) != untouched


def test_core_lora_loader_chains(server, creatures, first_kind):
    from safetensors.torch import save_file

    folder = server.folder / "models" / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(creatures.lora), folder / "again.safetensors")
    graph = load_graph(f"a embedding:creatures/{first_kind}", lora_strength=0.5)
    graph["lora"] = {
        "class_type": "LoraLoader",
        "inputs": {
            "model": ["load", 0],
            "clip": ["load", 1],
            "lora_name": "again.safetensors",
            "strength_model": 0.5,
            "strength_clip": 0.5,
        },
    }
    graph["sample"]["inputs"]["model"] = ["lora", 0]
    for encoder in ("positive", "negative"):
        graph[encoder]["inputs"]["clip"] = ["lora", 1]
    halves = picture(server, graph)
    whole = picture(server, load_graph(f"a embedding:creatures/{first_kind}"))
    differences = [abs(a - b) for a, b in zip(halves, whole, strict=True)]
    # two halves of a LoRA are the whole, up to rounding
    assert max(differences) <= 1


def test_several_dictionaries_chain(server, creatures, first_kind):
    file = put(server, dataclasses.replace(creatures, lora={}), "other birds.safetensors")
    graph = load_graph(f"embedding:creatures/{first_kind} embedding:other_birds/{first_kind}")
    graph["second"] = {
        "class_type": "BestiaryLoadDictionary",
        "inputs": {"model": ["load", 0], "clip": ["load", 1], "file": file, "lora_strength": 1.0},
    }
    graph["sample"]["inputs"]["model"] = ["second", 0]
    for encoder in ("positive", "negative"):
        graph[encoder]["inputs"]["clip"] = ["second", 1]
    assert picture(server, graph) == picture(
        server, load_graph(f"embedding:creatures/{first_kind} embedding:creatures/{first_kind}")
    )
    graph["second"]["inputs"]["name"] = "Creatures"
    assert "a dictionary named 'Creatures' is already loaded (creatures)" in server.fail(graph)


def test_unknown_parts_stop_with_the_choices(server, creatures):
    message = server.fail(load_graph("a embedding:creatures/nonsense.1"))
    assert "embedding:creatures/nonsense.1: unknown part 'nonsense': choose " in message
    assert creatures.part_names[int(creatures.rows[0, 0])] in message
    # the queue goes on
    assert picture(server, load_graph("a creature"))


@pytest.mark.parametrize("file", ["../../evil", "../../evil.safetensors", "/etc/passwd", "creature.safetensors", ""])
def test_files_outside_or_missing_are_refused_before_anything_runs(server, file):
    with pytest.raises(RuntimeError, match="no part dictionary .* in models/bestiary; choose .*creatures.safetensors"):
        server.submit(load_graph("a creature", file=file))


def test_a_codebook_and_a_foreign_file_are_no_dictionaries(server):
    with pytest.raises(RuntimeError, match="no part dictionary 'creatures.parts.safetensors'"):
        server.submit(load_graph("a creature", file="creatures.parts.safetensors"))
    write_concept_file(
        server.folder / "models" / "bestiary" / "spectrum.safetensors", {"x": torch.zeros(1)}, {"kind": "spectrum"}
    )
    with pytest.raises(RuntimeError, match="no part dictionary 'spectrum.safetensors'"):
        server.submit(load_graph("a creature", file="spectrum.safetensors"))


def test_a_dictionary_of_another_backbone_is_refused_with_the_reason(server, creatures):
    foreign = dataclasses.replace(
        creatures, backbone="sd15", embeddings={"clip_l": torch.zeros(len(creatures.rows), 768)}, lora={}
    )
    message = server.fail(load_graph("a", file=put(server, foreign, "foreign.safetensors")))
    assert "dictionary 'foreign' was trained for sd15, the connected model is bestiary-demo" in message
    assert "clip_l (768 wide), the CLIP has clip_l (128 wide)" in message
    assert "it expects 4 latent channels, the MODEL has 8" in message


def test_a_lora_that_reaches_nothing_is_refused(server, creatures):
    strange = {f"lora_unet_nose.lora_{side}.weight": torch.ones(2, 2) for side in ("up", "down")}
    file = put(server, dataclasses.replace(creatures, lora=strange), "strange.safetensors")
    assert "none of the 1 LoRA layers belongs to this model" in server.fail(load_graph("a", file=file))


def test_new_and_changed_files_are_seen(server, creatures, first_kind):
    file = put(server, creatures, "changing.safetensors")
    options = server.get("/object_info/BestiaryLoadDictionary").json()["BestiaryLoadDictionary"]["input"]["required"]
    listed = options["file"][1]["options"] if isinstance(options["file"][0], str) else options["file"][0]
    assert {file, FILE} <= set(listed)
    assert not [name for name in listed if name.endswith(".parts.safetensors")]
    graph = load_graph(f"a embedding:changing/{first_kind}", file=file)
    before = picture(server, graph)
    time.sleep(0.02)
    changed = {name: -tensor for name, tensor in creatures.embeddings.items()}
    put(server, dataclasses.replace(creatures, embeddings=changed), file)
    assert picture(server, graph) != before


def test_a_renamed_file_stops_with_the_nearest_names(server, creatures):
    old = server.folder / "models" / "bestiary" / put(server, creatures, "before.safetensors")
    graph = load_graph("a creature", file=old.name)
    server.run(graph)
    old.rename(old.with_name("before_2.safetensors"))
    with pytest.raises(RuntimeError, match=r"no part dictionary 'before.safetensors'.*choose 'before_2.safetensors'"):
        server.submit(graph)


def merge_graph(filename: str, **inputs: object) -> dict:
    graph = load_graph("a creature")
    graph["merge"] = {
        "class_type": "BestiaryMergeDictionaries",
        "inputs": {"first": ["load", 2], "second": ["load", 2], **inputs},
    }
    graph["info"] = {"class_type": "BestiaryDictionaryInfo", "inputs": {"dictionary": ["merge", 0]}}
    graph["file"] = {
        "class_type": "BestiarySaveDictionary",
        "inputs": {"dictionary": ["merge", 0], "filename": filename},
    }
    return {name: node for name, node in graph.items() if name in ("demo", "load", "merge", "info", "file")}


def test_merged_dictionaries_are_shown_saved_and_loaded_again(server, creatures):
    outputs = server.run(merge_graph("sub/both", first_strength=0.5, second_strength=0.25, name="both ways"))
    text = outputs["info"]["text"][0]
    assert f"vectors: {2 * len(creatures.rows)}" in text
    assert "dictionary: both ways" in text
    assert len(outputs["info"]["images"]) == 1
    assert outputs["file"]["text"] == ["models/bestiary/sub/both.safetensors"]
    merged = PartDictionary.load(server.folder / "models" / "bestiary" / "sub" / "both.safetensors")
    assert len(merged.rows) == 2 * len(creatures.rows)
    part, kind = merged.rows[-1].tolist()
    asked = f"{merged.part_names[part]}.{kind + merged.id_base}"
    server.run(load_graph(f"embedding:both/{asked}", file="sub/both.safetensors"))


def test_a_saved_file_is_never_overwritten(server):
    for number, name in enumerate(["kept.safetensors", "kept_2.safetensors", "kept_3.safetensors"]):
        graph = merge_graph("kept", name=f"run {number}")
        assert server.run(graph)["file"]["text"] == [f"models/bestiary/{name}"]


@pytest.mark.parametrize("filename", ["../../evil", "/tmp/evil", "", "sub/../../evil"])
def test_saving_stays_inside_the_folder(server, filename):
    before = set(server.folder.parent.rglob("*evil*"))
    assert "give a file name inside models/bestiary" in server.fail(merge_graph(filename))
    assert set(server.folder.parent.rglob("*evil*")) == before


def test_a_merged_dictionary_is_applied_without_a_file(server, creatures, first_kind):
    graph = load_graph(f"a (embedding:joined/{first_kind}:1.1)")
    graph["merge"] = {
        "class_type": "BestiaryMergeDictionaries",
        "inputs": {"first": ["load", 2], "second": ["load", 2], "second_strength": 0.0},
    }
    graph["apply"] = {
        "class_type": "BestiaryApplyDictionary",
        "inputs": {
            **{"model": ["demo", 0], "clip": ["demo", 1], "dictionary": ["merge", 0]},
            **{"lora_strength": 1.0, "name": "joined"},
        },
    }
    graph["sample"]["inputs"]["model"] = ["apply", 0]
    for encoder in ("positive", "negative"):
        graph[encoder]["inputs"]["clip"] = ["apply", 1]
    ours = picture(server, graph)
    theirs = picture(server, load_graph(f"a (embedding:creatures/{first_kind}:1.1)"))
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) <= 1


def test_names_that_a_prompt_cannot_hold_are_refused(server):
    message = server.fail(load_graph("a creature", name="my:birds"))
    assert "'my:birds' cannot be used as the name of a dictionary in prompts" in message


def test_fingerprints_survive_links():
    from bestiary.nodes.part_dictionary.part_dictionary_nodes import BestiaryLoadDictionary

    assert BestiaryLoadDictionary.fingerprint_inputs(model=None, clip=None, file=None) == ""
