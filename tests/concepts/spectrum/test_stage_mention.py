"""The grammar of staged prompts: mentions, stages, edits, and what stays plain text."""

import pytest
from bestiary.concepts.part_prompt.part_mention import PartMention, PromptError
from bestiary.concepts.spectrum.stage_mention import SpectrumMention, find_edits, find_staged_mentions, masked


def _only(text: str) -> SpectrumMention | PartMention:
    ((_, mention),) = find_staged_mentions(text).values()
    return mention


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("<corgi>", SpectrumMention("corgi", 1)),
        ("a <corgi*0.7>", SpectrumMention("corgi", 3, 0.7)),
        ("<my dog@layout>", SpectrumMention("my dog", 1, stages="layout")),
        ("<corgi@1-3, 8|a dog: red>", SpectrumMention("corgi", 1, stages="1-3, 8", otherwise="a dog: red")),
        (r"<a\*b*0.5>", SpectrumMention("a*b", 1, 0.5)),
        (r"<a\@b>", SpectrumMention("a@b", 1)),
        ("<head:cardinal>", PartMention("head", (("cardinal", 1.0),), 1)),
        ("<head:cardinal@layout,content>", PartMention("head", (("cardinal", 1.0),), 1, stages="layout,content")),
        (
            "<head:17*0.6+18*0.4@3|head>",
            PartMention("head", (("17", 0.6), ("18", 0.4)), 1, stages="3", otherwise="head"),
        ),
        (r"<head:a\@b@2>", PartMention("head", (("a@b", 1.0),), 1, stages="2")),
    ],
)
def test_mentions(text: str, wanted: SpectrumMention | PartMention) -> None:
    assert _only(text) == wanted


@pytest.mark.parametrize("text", [r"\<corgi>", "a < b", "< >", "<>", "3 <  4 and 5"])
def test_plain_text(text: str) -> None:
    assert find_staged_mentions(text) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a <corgi", "column 3: '<corgi' is not closed"),
        ("<corgi@>", "column 7: no stages after the @: write for example @layout"),
        ("<head:17@ |x>", "column 9: no stages after the @"),
        ("<corgi*much>", "column 8: 'much' is not a strength: write a number such as 0.6"),
        ("<@layout>", "does not name a spectrum: write <name>"),
        ("<head:17*x@2>", "'x' is not a factor"),
    ],
)
def test_faults_point_at_their_place(text: str, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        find_staged_mentions(text)


def _read_at(text: str, way: float) -> str:
    return masked(text, find_edits(text, find_staged_mentions(text)), way).replace("\0", "")


@pytest.mark.parametrize(
    ("text", "before", "after"),
    [
        ("[a cat:a dog:0.5] runs", "a cat runs", "a dog runs"),
        ("x [red:0.5]", "x ", "x red"),
        ("x [red::0.5]", "x red", "x "),
        ("[(a:1.2):(b:1.3):0.5]", "(a:1.2)", "(b:1.3)"),
        ("[<corgi>:<head:17>:0.5]", "<corgi>", "<head:17>"),
        ("[a:[b:c:0.9]:0.5]", "a", "b"),
        ("[[a:b:0.1]:c:0.5]", "b", "c"),
    ],
)
def test_edits(text: str, before: str, after: str) -> None:
    assert (_read_at(text, 0.4), _read_at(text, 0.6)) == (before, after)


def test_the_inner_edit_changes_later() -> None:
    assert [_read_at("[a:[b:c:0.9]:0.5]", way) for way in (0, 0.49, 0.5, 0.89, 0.9, 1)] == [
        "a",
        "a",
        "b",
        "b",
        "c",
        "c",
    ]


@pytest.mark.parametrize("text", ["[cat]", "[a:b]", "[a:b:c]", "(x:0.5)", "[a:b:c:0.5]", "x]", "[x", "a:0.5]"])
def test_brackets_that_are_no_edit_stay(text: str) -> None:
    assert _read_at(text, 0.3) == text


def test_escaped_brackets_lose_only_the_backslash() -> None:
    assert _read_at(r"\[a:b:0.5\]", 0.7) == "[a:b:0.5]"
    assert _read_at(r"[\[a\]:b:0.5]", 0.1) == "[a]"
    assert _read_at(r"\\[a:b:0.5]", 0.9) == r"\\b"


def test_steps_are_refused_with_the_remedy() -> None:
    with pytest.raises(PromptError, match=r"column 6: 10 is not a fraction of the schedule: write 0 to 1"):
        find_edits("[a:b:10]", {})
    with pytest.raises(PromptError, match="-1 is not a fraction"):
        find_edits("[a:b:-1]", {})


def test_places_stay_where_they_were() -> None:
    text = "[a cat:a dog:0.5] <corgi>"
    blanked = masked(text, find_edits(text, find_staged_mentions(text)), 0.9)
    assert len(blanked) == len(text) and blanked.index("<corgi>") == text.index("<corgi>")
