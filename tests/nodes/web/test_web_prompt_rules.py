"""The browser's side of fixtures/prompt_rules.json: mentions, names, merging and stages are read as the server reads them."""

from pathlib import Path

import pytest

READ = (Path(__file__).parent / "read_prompt_rules.js").read_text(encoding="utf-8")
JS = "/extensions/ComfyUI-Bestiary/js"

CAUSES = {"unknownDictionary": "unknownPart", "ambiguousPart": "unknownPart", "ambiguousKind": "unknownKind"}
"""Causes of the server -> what the browser says where it does not tell them apart."""


def stated(group: str, case: dict) -> dict:
    """What a case expects of the browser: a fault's place is where the mention begins, and no stage's fault has a cause."""
    if "fault" not in case:
        names = ("found", "chosen", "presets", "owners", "part_names", "background", "id_base", "kinds")
        names = ("text",) if group in ("written", "written_selections") else names
        return {
            name: case[name] for name in names if name in case and not (group == "selections" and name == "presets")
        }
    if group in ("selections", "presets"):
        return {"fault": True}
    fault = case["fault"]
    if group == "lines":
        return {"fault": {name: value for name, value in fault.items() if name != "between" and value is not None}}
    place = {"cause": CAUSES.get(fault["cause"], fault["cause"]), "begins": fault.get("begins", fault["column"])}
    return {"fault": {**place, "nearest": fault["nearest"]} if group == "lookups" else place}


def test_every_case_is_read_as_it_is_stated(plain_desk, prompt_rules, ruled_dictionaries, tmp_path):
    from bestiary.nodes.part_dictionary.dictionary_listing import list_dictionary

    facts = {}
    for name, dictionary in ruled_dictionaries.items():
        dictionary.save(tmp_path / f"{name}.safetensors")
        facts[name] = list_dictionary(tmp_path / f"{name}.safetensors")
    read = plain_desk.page.evaluate(READ, {"rules": prompt_rules, "facts": facts, "js": JS})
    assert set(read) == {group for group, cases in prompt_rules.items() if group not in ("about", "dictionaries")}
    wrong = []
    for group, results in read.items():
        for case, result in zip(prompt_rules[group], results, strict=True):
            expected = stated(group, case)
            assert expected, (group, case)
            # ranges are edges of stages, in floating point
            same = matches(result, expected) if group == "presets" else result == expected
            if not same:
                wrong.append((group, case.get("text", case.get("first")), result, expected))
    assert wrong == []


def matches(result: dict, expected: dict) -> bool:
    if "fault" in expected or "fault" in result:
        return result == expected
    return list(result["presets"]) == list(expected["presets"]) and all(
        ranges == [pytest.approx(one) for one in expected["presets"][name]]
        for name, ranges in result["presets"].items()
    )
