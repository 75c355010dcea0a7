"""Attention nodes in a real ComfyUI: heat maps over the queue, cached samplers, regions, refusals, and the queue goes on."""

import io

import numpy as np
import pytest
from bestiary.concepts.part_dictionary.part_dictionary import PartDictionary
from PIL import Image

DICTIONARY = "creatures.safetensors"


@pytest.fixture(scope="module")
def mentions() -> list[tuple[str, str]]:
    """Part name and label of two parts that the shipped dictionary holds."""
    from bestiary.nodes.host.concept_folders import SHIPPED

    dictionary = PartDictionary.load(SHIPPED / DICTIONARY)
    parts = sorted({part for part, _ in dictionary.row_of} - {dictionary.background})[:2]
    kinds = [dictionary.kind_label(part, dictionary.kinds_of(part)[0]) for part in parts]
    return [
        (dictionary.part_names[part], f"{dictionary.part_names[part]}:{kind}")
        for part, kind in zip(parts, kinds, strict=True)
    ]


def graph(mentions: list, seed: int = 1, batch: int = 1, **show: object) -> dict:
    """Sampling of two parts in one step more than one, its record, and the heat maps over the decoded picture."""
    text = "a " + " ".join(f"<{label}>" for _, label in mentions)
    sampler = {"seed": seed, "steps": 2, "cfg": 4.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    wires = {"model": ["maps", 0], "positive": ["text", 0], "negative": ["none", 0], "latent_image": ["empty", 0]}
    nodes = {
        "demo": ("BestiaryDemoModel", {}),
        "load": (
            "BestiaryLoadDictionary",
            {"model": ["demo", 0], "clip": ["demo", 1], "file": DICTIONARY, "lora_strength": 1.0},
        ),
        "text": ("BestiaryPartPrompt", {"clip": ["load", 1], "text": text}),
        "none": ("CLIPTextEncode", {"clip": ["load", 1], "text": ""}),
        "empty": ("EmptyLatentImage", {"width": 192, "height": 128, "batch_size": batch}),
        "maps": ("BestiaryAttentionMaps", {"model": ["load", 0]}),
        "sample": ("KSampler", {**sampler, **wires}),
        "decode": ("VAEDecode", {"samples": ["sample", 0], "vae": ["demo", 2]}),
        "show": (
            "BestiaryShowAttention",
            {"record": ["maps", 1], "latent": ["sample", 0], "image": ["decode", 0], **show},
        ),
    }
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}


def with_regions(mentions: list, **region: object) -> dict:
    made = graph(mentions)
    made["mask"] = {"class_type": "SolidMask", "inputs": {"value": 1.0, "width": 96, "height": 128}}
    made["dark"] = {"class_type": "SolidMask", "inputs": {"value": 0.0, "width": 192, "height": 128}}
    composite = {"destination": ["dark", 0], "source": ["mask", 0], "x": 0, "y": 0, "operation": "add"}
    made["left"] = {"class_type": "MaskComposite", "inputs": composite}
    settings = {"model": ["maps", 0], "mask": ["left", 0], "part": mentions[0][0], **region}
    made["region"] = {"class_type": "BestiaryPartRegions", "inputs": settings}
    made["sample"]["inputs"]["model"] = ["region", 0]
    return made


def pictures(server, shown: dict) -> list[np.ndarray]:
    files = [server.get("/view", params=file).content for file in shown["images"]]
    return [np.asarray(Image.open(io.BytesIO(content)).convert("RGB")) for content in files]


def middle(line: str) -> int:
    """Percent from the left, of a line of the text."""
    return int(line.split("middle ")[1].split(" %")[0])


def lines_of(outputs: dict) -> list[str]:
    return outputs["show"]["text"][0].splitlines()


def test_heat_maps_come_over_the_queue(server, mentions):
    made = graph(mentions, batch=2)
    made["maps"]["inputs"]["words"] = "a"
    outputs = server.run(made)
    lines = lines_of(outputs)
    assert lines[0] == "steps 1 to 2 of 2"
    titles = [line.split(": ")[0] for line in lines[1:]]
    shown = [*(label.split(": ")[0] for _, label in mentions), "a"]
    assert titles == [f"picture {n}, {title}" for n in (1, 2) for title in shown]
    sheets = pictures(server, outputs["show"])
    assert len(sheets) == 2
    assert sheets[0].shape == sheets[1].shape
    assert sheets[0].std() > 10


def test_queueing_twice_and_a_cached_sampler_give_the_same(server, mentions):
    first = lines_of(server.run(graph(mentions, seed=11)))
    # another opacity: the sampler is cached, this node runs again on the record it keeps
    again = lines_of(server.run(graph(mentions, seed=11, opacity=0.3)))
    assert again == first
    other = lines_of(server.run(graph(mentions, seed=12)))
    assert other != first
    assert lines_of(server.run(graph(mentions, seed=11, opacity=0.5))) == first


def test_a_picture_alone_and_a_latent_alone_are_enough(server, mentions):
    both = lines_of(server.run(graph(mentions, seed=21)))
    for left_out in ("latent", "image"):
        made = graph(mentions, seed=21)
        del made["show"]["inputs"][left_out]
        assert lines_of(server.run(made)) == both


def test_regions_move_attention_and_idle_ones_do_not(server, mentions):
    plain = lines_of(server.run(graph(mentions)))
    inside = lines_of(server.run(with_regions(mentions, strength=1.0, feather=8)))
    idle = lines_of(server.run(with_regions(mentions, strength=0.0)))
    assert idle == plain
    assert middle(inside[1]) < 40 < middle(plain[1])


def test_a_recorded_picture_is_the_plain_one(server, mentions):
    made = graph(mentions, seed=31)
    made["plain"] = {"class_type": "KSampler", "inputs": {**made["sample"]["inputs"], "model": ["load", 0]}}
    made["plain_decoded"] = {"class_type": "VAEDecode", "inputs": {"samples": ["plain", 0], "vae": ["demo", 2]}}
    for name, source in (("saved", "decode"), ("plain_saved", "plain_decoded")):
        made[name] = {"class_type": "PreviewImage", "inputs": {"images": [source, 0]}}
    outputs = server.run(made)
    ours, theirs = (pictures(server, outputs[name])[0] for name in ("saved", "plain_saved"))
    assert np.array_equal(ours, theirs)


def test_faults_name_the_value_and_the_queue_goes_on(server, mentions):
    names = ", ".join(repr(name) for name in (mentions[0][0],))
    assert names in server.fail(with_regions(mentions, part="antenna"))
    assert "no prompt of this sampler contains the part or word 'antenna'" in server.fail(
        with_regions(mentions, part="antenna")
    )
    empty = with_regions(mentions)
    empty["region"]["inputs"]["mask"] = ["dark", 0]
    empty["dark"]["inputs"]["width"] = 64
    assert "is empty, so the part cannot appear anywhere" in server.fail(empty)
    wrong = graph(mentions)
    wrong["maps"]["inputs"]["layers"] = "../../evil"
    server.refuse(wrong, "no cross-attention at layers '../../evil'; choose auto, all, full")
    assert "no part 'antenna' was recorded" in server.fail(graph(mentions, parts="antenna"))
    assert lines_of(server.run(graph(mentions, seed=41)))[0] == "steps 1 to 2 of 2"


def test_a_record_that_nothing_filled_says_what_to_do(server, mentions):
    made = graph(mentions, seed=51)
    made["sample"]["inputs"]["model"] = ["load", 0]
    # the record still holds what earlier graphs sampled, but nothing of this latent
    assert "recorded samplings; connect the output of a sampler that uses the MODEL" in server.fail(made)
    made["maps"]["inputs"]["layers"] = "half"
    assert "the record is empty; sample with the MODEL" in server.fail(made)


def test_help_pages_are_served(server):
    for name in ("AttentionMaps", "ShowAttention", "PartRegions"):
        page = server.get(f"/extensions/ComfyUI-Bestiary/docs/Bestiary{name}.md")
        assert page.status_code == 200
        assert page.text.startswith("# ")
