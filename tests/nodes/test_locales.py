"""Tests of the texts that people see: complete in every language, and given out by ComfyUI."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
LANGUAGES = sorted(folder.name for folder in (ROOT / "locales").iterdir() if folder.is_dir())


def read(language, name):
    return json.loads((ROOT / "locales" / language / name).read_text(encoding="utf-8"))


def leaves(tree, above=""):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def test_there_are_two_languages():
    assert {"en", "de"} <= set(LANGUAGES)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_text_has_the_same_places_to_fill_in(language):
    theirs, ours = dict(leaves(read("en", "main.json"))), dict(leaves(read(language, "main.json")))
    assert ours.keys() == theirs.keys()
    filled = {key: sorted(re.findall(r"\{(\w+)\}", text)) for key, text in ours.items()}
    assert filled == {key: sorted(re.findall(r"\{(\w+)\}", text)) for key, text in theirs.items()}


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_node_input_and_output_has_a_name(server, language):
    listed = server.get("/object_info").json()
    nodes = {name: facts for name, facts in listed.items() if name.startswith("Bestiary")}
    named = read(language, "nodeDefs.json")
    assert named.keys() == nodes.keys()
    for name, facts in nodes.items():
        inputs = {**facts["input"].get("required", {}), **facts["input"].get("optional", {})}
        entry = named[name]
        assert entry["display_name"].strip()
        assert entry.get("inputs", {}).keys() == inputs.keys(), name
        assert set(entry.get("outputs", {})) == {str(n) for n in range(len(facts["output"]))}, name
    # the frontend reads these four as its own, but between braces and quotes
    assert [text for _, text in leaves(named) if re.search(r"[{}@|]", re.sub(r"\{'[{}@|]'\}", "", text))] == []


def test_schemas_and_browser_read_the_same_english(server):
    schema = server.get("/object_info/BestiaryPartPrompt").json()["BestiaryPartPrompt"]
    texts = read("en", "nodeDefs.json")["BestiaryPartPrompt"]
    assert (schema["display_name"], schema["description"]) == (texts["display_name"], texts["description"])
    assert schema["output_name"] == [output["name"] for output in texts["outputs"].values()]
    # braces are written for the browser's reader
    assert schema["input"]["optional"]["parts"][1]["tooltip"] == "Parts to insert at {parts}."
    assert texts["inputs"]["parts"]["tooltip"] == "Parts to insert at {'{'}parts{'}'}."


def explained(nodes):
    """Every text that explains a node, an input or an output: (node, place in its locale entry)."""
    for name, facts in nodes.items():
        if facts["description"]:
            yield name, ("description",)
        for key, spec in {**facts["input"].get("required", {}), **facts["input"].get("optional", {})}.items():
            if len(spec) > 1 and spec[1].get("tooltip"):
                yield name, ("inputs", key, "tooltip")
        for slot, text in enumerate(facts.get("output_tooltips") or ()):
            if text:
                yield name, ("outputs", str(slot), "tooltip")


@pytest.mark.parametrize("language", [language for language in LANGUAGES if language != "en"])
def test_every_description_and_tooltip_is_translated(server, language):
    listed = server.get("/object_info").json()
    texts = list(explained({name: facts for name, facts in listed.items() if name.startswith("Bestiary")}))
    assert len(texts) > 200
    named = read(language, "nodeDefs.json")
    missing = []
    for name, path in texts:
        entry = named[name]
        for key in path:
            entry = entry.get(key, {}) if isinstance(entry, dict) else {}
        if not (isinstance(entry, str) and entry.strip()):
            missing.append(".".join((name, *path)))
    assert missing == []


def test_german_texts_call_other_nodes_by_their_german_names():
    nodes = read("de", "nodeDefs.json")
    names = {entry["display_name"] for entry in nodes.values()}
    assert {quoted for _, text in leaves(nodes) for quoted in re.findall("„([^“]+)“", text)} - names == set()


def test_every_text_that_a_script_asks_for_is_there():
    texts = {key.removeprefix("bestiary."): text for key, text in leaves(read("en", "main.json"))}
    scripts = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "web" / "js").glob("*js"))
    asked = set(re.findall(r'\bt\(\s*"([\w.]+)"', scripts))
    assert asked and asked - texts.keys() == set()


def test_comfyui_gives_the_texts_out(server):
    given = server.get("/i18n").json()
    for language in LANGUAGES:
        assert given[language]["bestiary"] == read(language, "main.json")["bestiary"]
        assert given[language]["nodeDefs"]["BestiaryPart"] == read(language, "nodeDefs.json")["BestiaryPart"]
