"""Finding mentions and taking them apart."""

import pytest
from bestiary.concepts.part_prompt.part_mention import PromptError, find_mentions, last_plain, next_plain, unescaped


def only(text: str) -> tuple[str, tuple]:
    (mention,) = (content for _, content in find_mentions(text).values())
    return mention.target, mention.kinds


@pytest.mark.parametrize(
    ("text", "target", "kinds"),
    [
        ("<head:cardinal>", "head", (("cardinal", 1.0),)),
        ("<head:17>", "head", (("17", 1.0),)),
        ("<0:17>", "0", (("17", 1.0),)),
        ("<head:blue jay>", "head", (("blue jay", 1.0),)),
        ("<birds.head:17>", "birds.head", (("17", 1.0),)),
        ("< head : 17 >", "head", (("17", 1.0),)),
        ("<head:17*0.6+18*0.4>", "head", (("17", 0.6), ("18", 0.4))),
        ("<head: 17 * .5 + blue jay*0.5 >", "head", (("17", 0.5), ("blue jay", 0.5))),
        ("<head:17*1.5+18*-0.5>", "head", (("17", 1.5), ("18", -0.5))),
        ("<head:17*+0.5+18*+.5>", "head", (("17", 0.5), ("18", 0.5))),
        ("<head:17*0.25>", "head", (("17", 0.25),)),
        ("<head:a:b>", "head", (("a:b", 1.0),)),
        (r"<he\:ad:a\*b\+c\@d\>>", r"he\:ad", (("a*b+c@d>", 1.0),)),
        ("<head:jay (male)>", "head", (("jay (male)", 1.0),)),
        ("<2:-1>", "2", (("-1", 1.0),)),
        ("<head:../../etc/passwd>", "head", (("../../etc/passwd", 1.0),)),
    ],
)
def test_well_formed_mentions(text: str, target: str, kinds: tuple) -> None:
    assert only(text) == (target, kinds)


@pytest.mark.parametrize(
    "text", ["a < b", "a <", "10:30 > 9", r"\<head:17>", "a < b > c", "x <= y"[:3], "<>", "", "0:16", "a:b"]
)
def test_plain_text_holds_no_mention(text: str) -> None:
    assert find_mentions(text) == {}


@pytest.mark.parametrize(
    ("text", "column", "message"),
    [
        ("a <head:>", 3, "'<head:>' has no kind after the colon: write <head:name> or <head:17>"),
        ("a <head:  >", 3, "has no kind after the colon"),
        ("a <head", 3, r"'<head' is not closed: write <part:kind>, or \\< for a literal <"),
        ("i <3 birds", 3, "'<3 birds' is not closed"),
        ("<head:1 <tail:2>", 1, "'<head:1 ' is not closed"),
        ("<b>bold", 1, "'<b>' has no colon"),
        ("<:17>", 1, "'<:17>' has no part before the colon"),
        ("<head:17*x>", 10, r"'x' is not a factor: write a number such as 0.6, or \\\* for a literal \*"),
        ("<head:17*>", 10, "'' is not a factor"),
        ("<head:17*nan+18*1>", 10, "'nan' is not a factor"),
        ("<head:17*inf>", 10, "'inf' is not a factor"),
        ("<head:17*1e999>", 10, "'1e999' is not a factor"),
        ("<head:17+18>", 7, r"a blend needs a factor for every kind: write '17\*0.5\+18\*0.5'"),
        ("<head:17*0.5+>", 14, "'' does not name a kind"),
        ("<head:+17*0.5>", 7, "'' does not name a kind"),
        ("<head:*0.5>", 7, r"'\*0.5' does not name a kind"),
        ("owl <head:17@0-3>", 13, r"stages \('@0-3'\) cannot be used for parts here: remove them"),
    ],
)
def test_malformed_mentions_say_column_cause_and_remedy(text: str, column: int, message: str) -> None:
    with pytest.raises(PromptError, match=rf"^prompt, column {column}: .*{message}") as caught:
        find_mentions(text)
    assert caught.value.column == column


def test_ends_and_starts_of_mentions() -> None:
    text = "a <x:1><y:2>"
    assert {start: end for start, (end, _) in find_mentions(text).items()} == {2: 7, 7: 12}


def test_backslashes_hide_characters() -> None:
    assert next_plain(r"a\:b:c", ":", 0) == 4
    assert next_plain("abc", ":", 0) == 3
    assert last_plain(r"a*b*c\*d", "*") == 3
    assert last_plain("abc", "*") == -1
    assert unescaped(r"a\:\\b") == r"a:\b"
