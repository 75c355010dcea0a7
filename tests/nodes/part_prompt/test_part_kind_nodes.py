"""Blend Kinds and Random Kind through the queue of a real ComfyUI."""

import re
from pathlib import Path

import pytest
import torch
from bestiary.concepts.part_dictionary.part_dictionary import PartDictionary
from bestiary.concepts.part_prompt.mention_writing import written_kinds
from bestiary.nodes.host.socket_types import NamedDictionary

DEMO = Path(__file__).parents[3] / "demo" / "concepts" / "creatures.safetensors"


@pytest.fixture(scope="module")
def creatures() -> PartDictionary:
    """The shipped dictionary; its names change with every training, so tests read them from here."""
    return PartDictionary.load(DEMO)


@pytest.fixture(scope="module")
def kinds(creatures: PartDictionary) -> tuple[str, str, str]:
    """Name of the first part and of two of its kinds."""
    first, second = creatures.kinds_of(0)[:2]
    names = (written_kinds(creatures, 0, ((kind, 1.0),)) for kind in (first, second))
    return creatures.part_names[0], *names


def graph(**nodes: dict) -> dict:
    return {
        "demo": {"class_type": "BestiaryDemoModel", "inputs": {}},
        "load": {
            "class_type": "BestiaryLoadDictionary",
            "inputs": {
                "model": ["demo", 0],
                "clip": ["demo", 1],
                "file": "creatures.safetensors",
                "lora_strength": 1.0,
            },
        },
        **nodes,
    }


def blend(part: str, first: str, second: str, amount: float) -> dict:
    names = {"dictionary": ["load", 2], "part": part, "first_kind": first, "second_kind": second}
    return {"class_type": "BestiaryBlendKinds", "inputs": {**names, "amount": amount}}


def random_kind(part: str, seed: int, spread: float, source: str = "load", output: int = 2) -> dict:
    numbers = {"dictionary": [source, output], "part": part, "seed": seed, "spread": spread}
    return {"class_type": "BestiaryRandomKind", "inputs": numbers}


def prompt(text: str, **links: list) -> dict:
    return {"class_type": "BestiaryPartPrompt", "inputs": {"clip": ["load", 1], "text": text, **links}}


def shown(link: list) -> dict:
    return {"class_type": "PreviewAny", "inputs": {"source": link}}


def text_of(outputs: dict, node: str) -> str:
    return outputs[node]["text"][0]


def test_the_ends_of_a_blend_are_its_kinds_exactly(creatures, kinds):
    from bestiary.nodes.part_prompt.part_kind_nodes import BestiaryBlendKinds

    name, first, second = kinds
    for amount, kind, row in ((0.0, first, 0), (1.0, second, 1)):
        chosen, text = BestiaryBlendKinds.execute(NamedDictionary("c", creatures), name, first, second, amount).args
        assert text == f"<c.{name}:{kind}>"
        assert torch.equal(chosen.parts[0].vector, creatures.vector(0, creatures.kinds_of(0)[row]))


def test_a_blend_goes_through_the_queue(server, kinds):
    name, first, second = kinds
    typed = f"a <{name}:{first}*0.7+{second}*0.3>"
    outputs = server.run(
        graph(
            blend=blend(name, first, second, 0.3),
            prompt=prompt("a {parts}", parts=["blend", 0]),
            typed=prompt(typed),
            text=shown(["blend", 1]),
            linked=shown(["prompt", 0]),
            by_hand=shown(["typed", 0]),
        )
    )
    assert text_of(outputs, "text") == f"<creatures.{name}:{first}*0.7+{second}*0.3>"
    assert text_of(outputs, "linked") == text_of(outputs, "by_hand")


def test_random_kinds_can_be_linked_and_named_in_text(server, creatures, kinds):
    name = kinds[0]
    outputs = server.run(
        graph(
            random=random_kind(name, 7, 1.0),
            linked=prompt("a {parts}", parts=["random", 0]),
            named=prompt(f"a <{name}:random 7>", dictionary=["random", 2]),
            applied={
                "class_type": "BestiaryApplyDictionary",
                "inputs": {
                    "model": ["demo", 0],
                    "clip": ["demo", 1],
                    "dictionary": ["random", 2],
                    "lora_strength": 1.0,
                },
            },
            taught={
                "class_type": "BestiaryPartPrompt",
                "inputs": {"clip": ["applied", 1], "text": f"a <{name}:random 7>"},
            },
            other=prompt("a {parts}", parts=["again", 0]),
            again=random_kind(name, 8, 1.0),
            everything=random_kind("all", 7, 0.5),
            text=shown(["random", 1]),
            all_text=shown(["everything", 1]),
            one=shown(["linked", 0]),
            two=shown(["named", 0]),
            three=shown(["taught", 0]),
            four=shown(["other", 0]),
        )
    )
    assert text_of(outputs, "text") == f"<creatures.{name}:random 7>"
    assert text_of(outputs, "one") == text_of(outputs, "two") == text_of(outputs, "three")
    assert text_of(outputs, "one") != text_of(outputs, "four")
    drawn = re.findall(r"<creatures\.(.+?):random 7 spread 0\.5>", text_of(outputs, "all_text"))
    trained = [index for index in range(len(creatures.part_names)) if creatures.kinds_of(index)]
    assert drawn == [creatures.part_names[index] for index in trained if index != creatures.background]


def test_a_second_draw_from_the_grown_dictionary_gets_a_name_of_its_own(server, kinds):
    name = kinds[0]
    outputs = server.run(
        graph(
            first=random_kind(name, 7, 1.0),
            second=random_kind(name, 7, 1.0, "first", 2),
            text=shown(["second", 1]),
        )
    )
    assert text_of(outputs, "text") == f"<creatures.{name}:random 7 (2)>"


def test_every_fault_stops_with_one_clear_message_and_the_queue_goes_on(server, kinds):
    name, first, second = kinds
    combine = {"class_type": "BestiaryCombineParts", "inputs": {"part_1": ["x1", 0], "part_2": ["x2", 0]}}
    combine["inputs"]["allow_repeats"] = True
    alike = {
        # the same name for two kinds: drawn from the dictionary before and after it grew by another kind
        "other": random_kind(name, 9, 1.0),
        "x1": random_kind(name, 7, 1.0),
        "x2": random_kind(name, 7, 1.0, "other", 2),
        "both": combine,
        "x": prompt("a {parts}", parts=["both", 0]),
    }
    faults = [
        ({"x": blend(name, first, "no such kind", 0.5)}, f"unknown kind 'no such kind' of part '{name}'"),
        ({"x": blend(name, "", second, 0.5)}, f"no kind of part '{name}' is given"),
        ({"x": blend("beak", first, second, 0.5)}, f"unknown part 'beak': choose .*'{name}'"),
        ({"x": random_kind("beak", 7, 1.0)}, f"unknown part 'beak': choose .*'{name}'"),
        ({"x": prompt(f"a <{name}:random 7>")}, "prompt, column 3: unknown kind 'random 7'"),
        (alike, f"two different parts have the same mention <creatures.{name}:random 7>"),
    ]
    for nodes, message in faults:
        assert re.search(message, server.fail(graph(**nodes, show=shown(["x", 0])))), message
    for node in (blend(name, first, second, 1.5), random_kind(name, 7, -1.0), random_kind(name, -1, 1.0)):
        with pytest.raises(RuntimeError, match="than m(ax|in) of"):
            server.submit(graph(x=node, show=shown(["x", 1])))
    good = graph(x=blend(name, first, second, 1.0), show=shown(["x", 1]))
    assert text_of(server.run(good), "show") == f"<creatures.{name}:{second}>"
