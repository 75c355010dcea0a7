"""The server's side of fixtures/prompt_rules.json: mentions, names, merging and stages, as the browser states them again."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.part_dictionary.dictionary_merge import merge_dictionaries
from bestiary.concepts.part_prompt.mention_writing import written_kinds, written_mention
from bestiary.concepts.part_prompt.part_mention import PartMention, PromptError
from bestiary.concepts.part_prompt.part_prompt import parse_part_prompt, resolve_prompt, weigh_segments
from bestiary.concepts.spectrum.attribute_presets import DEFAULT_PRESETS, parse_presets, select_stages, stages_text
from bestiary.concepts.spectrum.stage_bounds import StageBounds
from bestiary.concepts.spectrum.stage_claims import stage_lines
from bestiary.concepts.spectrum.stage_mention import SpectrumMention, find_staged_mentions

# at import, because every case is a test of its own
RULES = json.loads((Path(__file__).parent / "fixtures" / "prompt_rules.json").read_text(encoding="utf-8"))

CAUSES = {
    "unclosed": "is not closed",
    "noColon": "has no colon",
    "noPart": "no part before the colon",
    "noKind": "no kind after the colon|does not name a kind",
    "noFactor": "needs a factor for every kind",
    "badFactor": "is not a factor",
    "stages": "cannot be used for parts here",
    "noName": "does not name a spectrum",
    "badStrength": "is not a strength",
    "noStages": "no stages after the @",
    "foreign": "syntax of other programs for loading a file",
    "unknownPart": "unknown part",
    "unknownDictionary": "unknown dictionary",
    "ambiguousPart": "in several dictionaries",
    "unknownKind": r"unknown kind|has no (trained )?kind \d",
    "ambiguousKind": "matches several kinds of part",
    "noStage": "does not exist",
    "badRange": "write a range with start before end",
    "unknown": "unknown stages",
    "unreadable": "^line",
    "empty": "selects no stage",
    "double": "are claimed by",
}
"""Cause -> words of the message that says so and no other."""


def cases(group: str) -> pytest.MarkDecorator:
    """One test for each case of a group."""
    return pytest.mark.parametrize("case", RULES[group], ids=lambda case: repr(case.get("text", case.get("first"))))


def faulted(work: object, expected: str) -> BestiaryError:
    """What `work` raises, with the cause that is expected."""
    with pytest.raises(BestiaryError, match=CAUSES[expected]) as caught:
        work()
    return caught.value


def weight_of(mention: object) -> dict:
    weight = round(mention.weight, 6)
    return {} if weight == 1 else {"weight": weight}


def stages_of(mention: object) -> dict:
    facts = {} if mention.stages is None else {"stages": mention.stages}
    return {**facts, **({"otherwise": mention.otherwise} if mention.otherwise else {})}


def part_facts(mention: PartMention, length: int) -> dict:
    kinds = [list(kind) for kind in mention.kinds]
    return {"column": mention.column, "length": length, "target": mention.target, "kinds": kinds}


@cases("mentions")
def test_mentions(case: dict):
    if "fault" in case:
        fault = faulted(lambda: parse_part_prompt(case["text"]), case["fault"]["cause"])
        assert isinstance(fault, PromptError) and fault.column == case["fault"]["column"], fault
        return
    from bestiary.concepts.part_prompt.part_mention import find_mentions

    lengths = {start + 1: end - start for start, (end, _) in find_mentions(case["text"]).items()}
    found = parse_part_prompt(case["text"]).mentions
    assert [{**part_facts(one, lengths[one.column]), **weight_of(one)} for one in found] == case["found"]


@cases("staged_mentions")
def test_mentions_of_staged_prompts(case: dict):
    if "fault" in case:
        fault = faulted(lambda: find_staged_mentions(case["text"]), case["fault"]["cause"])
        assert isinstance(fault, PromptError) and fault.column == case["fault"]["column"], fault
        return
    mentions = find_staged_mentions(case["text"])
    weighed = [one for one in weigh_segments(case["text"], mentions) if hasattr(one, "column")]
    found = []
    for one in weighed:
        length = mentions[one.column - 1][0] - one.column + 1
        if isinstance(one, SpectrumMention):
            facts = {"column": one.column, "length": length, "spectrum": one.name}
            facts |= {} if one.strength == 1 else {"strength": one.strength}
        else:
            facts = part_facts(one, length)
        found.append({**facts, **stages_of(one), **weight_of(one)})
    assert found == case["found"]


@cases("lookups")
def test_names_and_numbers(case: dict, ruled_dictionaries: dict):
    loaded = {name: ruled_dictionaries[name] for name in case["called"]}
    prompt = parse_part_prompt(case["text"])
    if "fault" in case:
        expected = case["fault"]
        fault = faulted(lambda: resolve_prompt(prompt, loaded), expected["cause"])
        assert fault.column == expected["column"]
        if expected["choice"]:
            assert re.search(rf"choose {re.escape(repr(expected['choice']))}", str(fault)), fault
        return
    (one,) = resolve_prompt(prompt, loaded).mentions
    owner = loaded[one.dictionary]
    kinds = [[kind + owner.id_base, factor] for kind, factor in one.kinds]
    assert {"dictionary": one.dictionary, "part": owner.part_names[one.part], "kinds": kinds} == case["found"]


@cases("written")
def test_written_mentions(case: dict, ruled_dictionaries: dict):
    loaded = {name: ruled_dictionaries[name] for name in case["called"]}
    name, owner = next((name, one) for name, one in loaded.items() if case["part"] in one.part_names)
    part = owner.part_names.index(case["part"])
    kinds = written_kinds(owner, part, tuple((kind - owner.id_base, factor) for kind, factor in case["kinds"]))
    written = written_mention(name, case["part"], kinds, case["weight"])
    # the browser leaves the dictionary's name out where there is one only
    short = written if len(loaded) > 1 else written.replace(f"<{name}.", "<", 1)
    assert short == case["text"]
    # and what is written is read back
    (one,) = resolve_prompt(parse_part_prompt(case["text"]), loaded).mentions
    assert (one.dictionary, one.part, one.weight) == (name, part, case["weight"])
    assert [(kind + owner.id_base, factor) for kind, factor in one.kinds] == [
        (kind, pytest.approx(factor, abs=1e-6)) for kind, factor in case["kinds"]
    ]


@cases("merges")
def test_merged_dictionaries(case: dict, ruled_dictionaries: dict):
    merged, _ = merge_dictionaries(ruled_dictionaries[case["first"]], ruled_dictionaries[case["second"]])
    parts = range(len(merged.part_names))
    kinds = {
        merged.part_names[part]: {
            str(kind + merged.id_base): merged.kind_names[part].get(kind) for kind in merged.kinds_of(part)
        }
        for part in parts
        if merged.kinds_of(part)
    }
    facts = {"part_names": list(merged.part_names), "background": merged.part_names[merged.background]}
    assert {**facts, "id_base": merged.id_base, "kinds": kinds} == {
        name: case[name] for name in (*facts, "id_base", "kinds")
    }


@cases("selections")
def test_selections_of_stages(case: dict):
    presets = case.get("presets", DEFAULT_PRESETS)
    bounds = StageBounds.equal(case["stages"])
    if "fault" in case:
        faulted(lambda: select_stages(case["text"], bounds, presets), case["fault"])
    else:
        assert [stage + 1 for stage in select_stages(case["text"], bounds, presets)] == case["chosen"]


@cases("written_selections")
def test_written_selections(case: dict):
    assert stages_text(tuple(stage - 1 for stage in case["chosen"])) == case["text"]
    assert [stage + 1 for stage in select_stages(case["text"], StageBounds.equal(10))] == sorted(case["chosen"])


@cases("presets")
def test_typed_presets(case: dict):
    bounds = StageBounds.equal(case["stages"])
    if "fault" in case:
        with pytest.raises(BestiaryError):
            parse_presets(case["text"], bounds)
        return
    read = parse_presets(case["text"], bounds)
    assert list(read) == list(case["presets"])
    for name, ranges in read.items():
        assert [list(one) for one in ranges] == [pytest.approx(one) for one in case["presets"][name]]


@cases("lines")
def test_lines_of_stages(case: dict):
    bounds = StageBounds.equal(case["stages"])
    if "fault" not in case:
        found = stage_lines(case["text"], bounds, DEFAULT_PRESETS)
        assert [found.get(stage) for stage in range(case["stages"])] == case["owners"]
        return
    expected = case["fault"]
    fault = faulted(lambda: stage_lines(case["text"], bounds, DEFAULT_PRESETS), expected["cause"])
    if expected["cause"] == "double":
        claimed = stages_text(tuple(stage - 1 for stage in expected["stages_claimed"]))
        one, other = expected["between"]
        assert f"stages {claimed} are claimed by line {one} and by line {other}" in str(fault)
    else:
        assert str(fault).startswith(f"line {expected['line']}")
        assert ("selects no stage" in str(fault)) == (expected["cause"] == "empty")


def test_a_cause_is_told_from_every_other():
    words = [word for pattern in CAUSES.values() for word in pattern.split("|")]
    assert len(set(words)) == len(words)
    used = {
        case["fault"] if isinstance(case["fault"], str) else case["fault"]["cause"]
        for group in ("mentions", "staged_mentions", "lookups", "selections", "lines")
        for case in RULES[group]
        if "fault" in case
    }
    assert used == set(CAUSES)
