"""What long and hostile prompts cost: counted steps grow with the text, and what would cost too much is refused."""

import sys
from collections.abc import Callable

import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.part_dictionary.part_dictionary import PartDictionary
from bestiary.concepts.part_prompt.part_prompt import parse_part_prompt, resolve_prompt
from bestiary.concepts.spectrum.prompt_spectrum import PromptSpectrum
from bestiary.concepts.spectrum.stage_bounds import StageBounds
from bestiary.concepts.spectrum.stage_claims import stage_lines, typed_presets
from bestiary.concepts.spectrum.staged_prompt import PromptSources, parse_stage_texts, resolve_staged_prompt

BOUNDS = StageBounds.equal(10)
PRESETS = {"layout": ((0.0, 0.1),), "content": ((0.2, 1.0),)}


def spectrum() -> PromptSpectrum:
    vectors = torch.arange(10.0 * 768).view(10, 1, 768)
    return PromptSpectrum("sd15", {"clip_l": vectors}, BOUNDS, neutral={"clip_l": torch.ones(1, 768)})


def dictionary(parts: int) -> PartDictionary:
    rows = torch.tensor([(part, 0) for part in range(parts)])
    names = tuple(f"part {part}" for part in range(parts))
    vectors = torch.arange(float(parts)).view(-1, 1).expand(-1, 768)
    return PartDictionary("sd15", names, tuple({0: "red"} for _ in names), None, rows, {"clip_l": vectors})


SOURCES = PromptSources({"a": spectrum()}, {"birds": dictionary(3)})


def calls(work: Callable[[], object]) -> int:
    """Calls of functions, in Python and in C, that a piece of work makes; refusing it is work too."""
    count = 0

    def note(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        work()
    except BestiaryError:
        pass
    finally:
        sys.setprofile(None)
    return count


TEXTS = {
    "brackets around mentions": lambda n: "(<1:0>:1.2) " * n,
    "brackets in brackets": lambda n: "(" * n + "<a>" + ")" * n,
    "edits in edits": lambda n: "[" * n + "<a>" + ":0.5]" * n,
    "edits behind one another": lambda n: "[red:blue:0.5]" * n,
    "plain square brackets": lambda n: "[x:" * n + "<a>" + "]" * n,
    "one spectrum often": lambda n: "<a>" * n,
    "stages often": lambda n: "<a@1,2|dog>" * n,
    "open mentions": lambda n: "< " * n,
    "signs": lambda n: "<1:" + "*+" * n + "1>",
    "dots": lambda n: "<" + "a." * n + "b:1>",
    "escapes": lambda n: "\\<" * n,
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_four_times_the_text_costs_four_times_the_steps(text: Callable[[int], str]) -> None:
    for work in (
        lambda prompt: resolve_staged_prompt(prompt, SOURCES),
        lambda prompt: resolve_prompt(parse_part_prompt(prompt), SOURCES.dictionaries),
    ):
        short, long = (calls(lambda work=work, n=n: work(text(n))) for n in (200, 800))
        assert long <= 5 * short, (short, long)


def test_lines_of_stages_cost_as_many_steps_as_there_are_lines() -> None:
    short, long = (calls(lambda n=n: stage_lines("layout: a\n" * n, BOUNDS, PRESETS)) for n in (200, 800))
    assert long <= 5 * short, (short, long)
    with pytest.raises(BestiaryError, match="line 1001: the limit is 1000 lines with stages"):
        stage_lines("layout: a\n" * 5000, BOUNDS, PRESETS)


def test_a_prompt_costs_the_same_with_three_parts_and_with_ten_thousand() -> None:
    text = "a <part 1:red> (<2:0>:1.2) bird with <birds.part 0:red*0.5+0*0.5>"
    counts = []
    for parts in (3, 10_000):
        owner = dictionary(parts)
        resolve_prompt(parse_part_prompt(text), {"birds": owner})  # names are gathered once
        counts.append(calls(lambda owner=owner: resolve_prompt(parse_part_prompt(text), {"birds": owner})))
    assert counts[1] == counts[0]


def test_gathering_ten_thousand_names_costs_some_steps_for_each() -> None:
    few, many = dictionary(100), dictionary(10_000)
    short, long = (calls(lambda one=one: one.find_kind(one.find_part("part 7"), "red")) for one in (few, many))
    assert long <= 110 * short, (short, long)


def test_vectors_of_a_prompt_are_those_of_its_dictionary() -> None:
    owner = dictionary(5)
    text = "<1:0> <part 3:red*0.25+0*0.75> <2:0*0.5+0*-0.5>"
    ours = resolve_prompt(parse_part_prompt(text), {"birds": owner}).vectors
    theirs = torch.stack([owner.vector(1, 0), owner.vector(3, 0), torch.zeros(768)])
    assert torch.equal(ours, theirs)


REFUSED = {
    "<a>" * 30_000: "contains too many trained vectors: over all stages they have more than 16,777,216 numbers",
    "x" * 100_000
    + "".join(f"[a:b:0.{share}]" for share in range(10, 60)): "too long for its stages: 100,500 characters",
    "".join(
        f"<a*0.{number:04d}>" for number in range(1, 400)
    ): "column 2561: more than 256 different spectra and strengths",
    f"<{'a' * 2000}:1>": "column 1: 'a+…' has 2,000 characters, names have at most 1,000",
    f"<1:{'a' * 2000}>": "column 4: 'a+…' has 2,000 characters, names have at most 1,000",
    f"<{'a' * 2000}>": "column 2: 'a+…' has 2,000 characters, names have at most 1,000",
    "[" * 70 + "x" + ":0.5]" * 70: "prompt edits nest deeper than 64",
    f"<a@{'1,' * 300}1>": "301 stages separated by commas .* write at most 256",
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_would_cost_too_much_is_refused(text: str) -> None:
    with pytest.raises(BestiaryError, match=REFUSED[text]):
        resolve_staged_prompt(text, SOURCES)


def test_more_attributes_than_anyone_needs() -> None:
    lines = "\n".join(f"attribute {number}: 1" for number in range(300))
    with pytest.raises(BestiaryError, match="line 257 of the presets: the limit is 256 attributes"):
        typed_presets(lines, BOUNDS, PRESETS)


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_attributes_in_which_no_stage_lies(stages: int) -> None:
    bounds = StageBounds.equal(stages)
    message = f"line 2: 'layout' selects no stage: none of the {stages} stages has its middle in it; write stage"
    for lines in ("\nlayout: a meadow", "\n1: =layout"):
        with pytest.raises(BestiaryError, match=message):
            parse_stage_texts(lines, bounds, PRESETS)
        with pytest.raises(BestiaryError, match=message):
            stage_lines(lines, bounds, PRESETS)


def test_a_mention_at_an_attribute_in_which_no_stage_lies() -> None:
    few = PromptSpectrum("sd15", {"clip_l": torch.ones(2, 1, 768)}, StageBounds.equal(2), presets=PRESETS)
    with pytest.raises(BestiaryError, match="column 3: 'layout' selects no stage: none of the 2 stages"):
        resolve_staged_prompt("a <a@layout>", PromptSources({"a": few}))
