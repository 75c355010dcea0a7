"""Part, Combine Parts and Part Prompt, in this process and through the queue of a real ComfyUI."""

import dataclasses
import re
from pathlib import Path

import pytest
import torch
from bestiary.concepts.part_dictionary.part_dictionary import PartDictionary
from bestiary.concepts.part_prompt.mention_writing import written_kinds

DEMO = Path(__file__).parents[3] / "demo" / "concepts" / "creatures.safetensors"


@pytest.fixture(scope="module")
def creatures() -> PartDictionary:
    """The shipped dictionary; its names change with every training, so tests read them from here."""
    return PartDictionary.load(DEMO)


def named(dictionary: PartDictionary, part: int, kind: int) -> tuple[str, str]:
    """How a prompt writes a part and its n-th trained kind."""
    number = dictionary.kinds_of(part)[kind]
    return dictionary.part_names[part], written_kinds(dictionary, part, ((number, 1.0),))


def base_graph(file: str = "creatures.safetensors") -> dict:
    return {
        "demo": {"class_type": "BestiaryDemoModel", "inputs": {}},
        "load": {
            "class_type": "BestiaryLoadDictionary",
            "inputs": {"model": ["demo", 0], "clip": ["demo", 1], "file": file, "lora_strength": 1.0},
        },
    }


def shown(link: list) -> dict:
    return {"class_type": "PreviewAny", "inputs": {"source": link}}


def part(name: str, kind: str, **more: object) -> dict:
    return {
        "class_type": "BestiaryPart",
        "inputs": {"dictionary": ["load", 2], "part": name, "kind": kind, "weight": 1.0, **more},
    }


def prompt(text: str, **links: list) -> dict:
    return {"class_type": "BestiaryPartPrompt", "inputs": {"clip": ["load", 1], "text": text, **links}}


def sampling(positive: list, prefix: str) -> dict:
    """Two steps of the embedded model from a conditioning to a latent file."""
    numbers = {"seed": 3, "steps": 2, "cfg": 4.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    links = {"model": ["load", 0], "positive": positive, "negative": ["negative", 0], "latent_image": ["size", 0]}
    return {
        "negative": prompt("dark"),
        "size": {"class_type": "EmptyLatentImage", "inputs": {"width": 128, "height": 128, "batch_size": 2}},
        "sample": {"class_type": "KSampler", "inputs": {**numbers, **links}},
        "save": {"class_type": "SaveLatent", "inputs": {"samples": ["sample", 0], "filename_prefix": prefix}},
    }


def text_of(outputs: dict, node: str) -> str:
    return outputs[node]["text"][0]


def test_combine_parts_keeps_the_order_of_its_sockets():
    from bestiary.nodes.host.socket_types import ChosenPart, ChosenParts
    from bestiary.nodes.part_prompt.part_prompt_nodes import BestiaryCombineParts

    one = {name: ChosenParts((ChosenPart("birds", name, "1"),)) for name in ("head", "wing", "tail", "legs")}
    output = BestiaryCombineParts.execute(part_6=one["tail"], part_2=one["wing"], part_1=one["head"], chain=one["legs"])
    assert output.args[1] == "<birds.legs:1> <birds.head:1> <birds.wing:1> <birds.tail:1>"
    assert [chosen.part for chosen in output.args[0].parts] == ["legs", "head", "wing", "tail"]


def test_columns_of_faults_count_in_the_text_as_typed(demo_model, creatures):
    from bestiary.concepts.errors import BestiaryError
    from bestiary.nodes.host.socket_types import NamedDictionary
    from bestiary.nodes.part_prompt.chosen_parts import draw_random
    from bestiary.nodes.part_prompt.part_prompt_nodes import BestiaryPartPrompt

    named_dictionary = NamedDictionary("creatures", creatures)
    drawn = draw_random(named_dictionary, "all", 0xFFFFFFFFFFFFFFFF, 1.0)[0]
    with pytest.raises(BestiaryError, match="prompt, column 11: unknown part 'beak'"):
        BestiaryPartPrompt.execute(demo_model.clip, "a {parts} <beak:1>", drawn, named_dictionary)


def test_parts_go_through_the_queue_into_a_prompt(server, creatures):
    (first, first_kind), (second, second_kind) = named(creatures, 0, 0), named(creatures, 1, 1)
    graph = base_graph() | {
        "head": part(first, first_kind, weight=1.2),
        "body": part(second, second_kind),
        "both": {"class_type": "BestiaryCombineParts", "inputs": {"part_1": ["head", 0], "part_2": ["body", 0]}},
        "prompt": prompt("a photo of a {parts} bird", parts=["both", 0]),
        "typed": prompt(f"a photo of a (<{first}:{first_kind}>:1.2) <{second}:{second_kind}> bird"),
        "text": shown(["prompt", 1]),
        "linked": shown(["prompt", 0]),
        "by_hand": shown(["typed", 0]),
    }
    outputs = server.run(graph)
    written = f"(<creatures.{first}:{first_kind}>:1.2) <creatures.{second}:{second_kind}>"
    assert text_of(outputs, "text") == f"a photo of a {written} bird"
    assert text_of(outputs, "linked") == text_of(outputs, "by_hand")
    assert f"part='{first}', positions=" in text_of(outputs, "linked")


def test_a_part_from_two_sources_is_said_on_the_block(server, creatures):
    name, kind = named(creatures, 0, 0)
    graph = base_graph()
    graph["part"] = {
        "class_type": "BestiaryPart",
        "inputs": {"dictionary": ["load", 2], "part": name, "kind": kind, "weight": 1.0},
    }
    inputs = {"clip": ["load", 1], "text": f"a <{name}:{kind}> bird", "parts": ["part", 0]}
    graph["prompt"] = {"class_type": "BestiaryPartPrompt", "inputs": inputs}
    graph["shown"] = shown(["prompt", 1])
    (notice,) = server.run(graph)["prompt"]["bestiary_notice"]
    assert notice.startswith(f"part {name!r} is named twice, by connection as <creatures.{name}:")


def test_a_sampler_draws_the_same_from_a_part_prompt_and_from_core(server, creatures):
    name, kind = named(creatures, 0, 0)
    core = {
        "class_type": "CLIPTextEncode",
        "inputs": {"clip": ["load", 1], "text": f"a (embedding:creatures/{name}.{kind.replace(' ', '-')}:1.2) bird"},
    }
    server.run(base_graph() | {"positive": core} | sampling(["positive", 0], "core"))
    ours = prompt(f"a (<{name}:{kind}>:1.2) bird")
    server.run(base_graph() | {"positive": ours} | sampling(["positive", 0], "ours"))
    first, second = server.latent("core"), server.latent("ours")
    assert first.shape == (2, 8, 16, 16) and bool(torch.isfinite(first).all())
    assert torch.equal(first, second)


def test_the_same_prompt_queued_twice_gives_the_same(server, creatures):
    name, kind = named(creatures, 0, 0)
    seen = []
    for space in ("", " "):
        # a trailing space makes ComfyUI run it again and changes no token
        graph = base_graph() | {"positive": prompt(f"a <{name}:{kind}>{space}"), "show": shown(["positive", 0])}
        seen.append(text_of(server.run(graph), "show"))
    assert seen[0] == seen[1]


def test_a_blend_in_one_node(server, creatures):
    name, first = named(creatures, 0, 0)
    second = named(creatures, 0, 1)[1]
    graph = base_graph() | {"part": part(name, first, blend_with=second, blend_amount=0.4), "text": shown(["part", 1])}
    assert text_of(server.run(graph), "text") == f"<creatures.{name}:{first}*0.6+{second}*0.4>"


def test_a_clip_without_the_dictionary_takes_linked_parts(server, creatures):
    name, kind = named(creatures, 0, 0)
    plain = {"clip": ["demo", 1], "text": "a {parts}", "parts": ["part", 0]}
    linked = {"clip": ["demo", 1], "text": f"a <creatures.{name}:{kind}>", "dictionary": ["load", 2]}
    graph = base_graph() | {
        "part": part(name, kind),
        "parts": {"class_type": "BestiaryPartPrompt", "inputs": plain},
        "dictionary": {"class_type": "BestiaryPartPrompt", "inputs": linked},
        "one": shown(["parts", 0]),
        "other": shown(["dictionary", 0]),
    }
    outputs = server.run(graph)
    assert text_of(outputs, "one") == text_of(outputs, "other")


@pytest.fixture(scope="module")
def untrained(server, creatures) -> str:
    """Name of a dictionary file in which the second part has no trained kind."""
    rows = creatures.rows[:, 0] != 1
    embeddings = {name: table[rows] for name, table in creatures.embeddings.items()}
    lacking = dataclasses.replace(creatures, rows=creatures.rows[rows], embeddings=embeddings, thumbnails=None)
    lacking.save(server.folder / "models" / "bestiary" / "lacking.safetensors")
    return "lacking.safetensors"


def test_every_fault_stops_with_one_clear_message_and_the_queue_goes_on(server, creatures, untrained):
    name, kind = named(creatures, 0, 0)
    count = len(creatures.kinds_of(0))
    highest = max(creatures.kinds_of(0)) + creatures.id_base
    both = {"one": part(name, kind), "two": part(name, kind)}
    combine = {"class_type": "BestiaryCombineParts", "inputs": {"part_1": ["one", 0], "part_2": ["two", 0]}}
    nothing = {"class_type": "BestiaryCombineParts", "inputs": {}}
    plain_clip = {"class_type": "BestiaryPartPrompt", "inputs": {"clip": ["demo", 1], "text": f"a <{name}:{kind}>"}}
    faults = [
        ({"x": part(name, "no such kind")}, f"unknown kind 'no such kind' of part '{name}': choose"),
        ({"x": part("beak", kind)}, f"unknown part 'beak': choose .*'{name}'"),
        (
            {"x": part(name, str(highest + 1))},
            f"unknown kind {highest + 1} of part '{name}': choose one of .*nearest: {highest}",
        ),
        ({"x": part(name, "")}, f"no kind of part '{name}' is given: enter one, for example "),
        ({"x": prompt(f"a <{name}:no such kind>")}, "prompt, column 3: unknown kind 'no such kind'"),
        ({"x": prompt("a bird <beak:1>")}, "prompt, column 8: unknown part 'beak'"),
        ({"x": prompt(f"a <{name}:{kind}")}, "prompt, column 3: .* is not closed"),
        ({"x": prompt(f"a <other.{name}:{kind}>")}, "unknown dictionary 'other': choose 'creatures'"),
        ({"x": plain_clip}, "no part dictionary is loaded: send the CLIP through Load Part Dictionary"),
        ({**both, "x": combine}, f"part '{name}' is requested twice, as .*allow_repeats"),
        ({"x": nothing}, "no part is connected: connect at least one"),
    ]
    assert count > 0
    for nodes, message in faults:
        assert re.search(message, server.fail(base_graph() | nodes | {"show": shown(["x", 0])})), message
    missing = creatures.part_names[1]
    said = server.fail(base_graph(untrained) | {"x": part(missing, "0"), "show": shown(["x", 0])})
    assert re.search(f"unknown part '{missing}': choose", said) and f"'{missing}'," not in said
    graph = base_graph() | {**both, "x": combine, "show": shown(["x", 1])}
    combine["inputs"]["allow_repeats"] = True
    mention = f"<creatures.{name}:{kind}>"
    assert text_of(server.run(graph), "show") == f"{mention} {mention}"


def test_faulty_graphs_are_refused_before_they_run(server, creatures):
    name, kind = named(creatures, 0, 0)
    unlinked = part(name, kind)
    del unlinked["inputs"]["dictionary"]
    for node, message in [
        (unlinked, "Required input is missing.*dictionary"),
        (part(name, kind, weight=11.0), "bigger than max of 10.0"),
        (part(name, kind, blend_with=kind, blend_amount=1.5), "bigger than max of 1.0"),
        ({"class_type": "BestiaryPartPrompt", "inputs": {"text": "a bird"}}, "Required input is missing.*clip"),
        (prompt("a {parts}", parts=["load", 2]), "received_type\\(BESTIARY_DICTIONARY\\) mismatch"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            server.submit(base_graph() | {"x": node, "show": shown(["x", 0])})
