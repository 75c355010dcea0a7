"""Tests of typing in a prompt: suggestions of parts and kinds, and underlines under what no dictionary knows."""

import pytest

CREATURE = {"L": "BestiaryDemoModel", "D": "BestiaryLoadDictionary", "P": "BestiaryPartPrompt"}
LINKS = [("L", 0, "D", 0), ("L", 1, "D", 1), ("D", 1, "P", 0)]


@pytest.fixture
def first_part(dictionary_facts):
    return dictionary_facts["parts"][0]


def open_box(desk):
    desk.build(CREATURE, LINKS)
    desk.page.locator(".bst-tile").first.wait_for()
    return desk.page.locator("textarea").first


def test_a_part_and_its_kind_are_completed_by_keys(desk, first_part):
    box, options = open_box(desk), desk.page.locator(".bst-suggestion")
    box.fill("a ")
    box.press("End")
    box.press_sequentially(f"<{first_part['name'][:3]}")
    assert options.first.locator(".bst-name").inner_text() == first_part["written"]
    box.press("Enter")
    assert desk.value("P", "text") == f"a <{first_part['written']}:"
    desk.page.wait_for_timeout(300)
    desk.shot(f"autocomplete_{desk.label}")
    assert options.count() == len(first_part["kinds"]["numbers"])
    box.press("ArrowDown")
    assert box.get_attribute("aria-activedescendant") == options.nth(1).get_attribute("id")
    box.press("Tab")
    assert desk.value("P", "text") == f"a <{first_part['written']}:{first_part['kinds']['written'][1]}>"
    assert options.first.is_hidden()


def test_escape_closes_the_list_and_the_mouse_takes_a_choice(plain_desk, first_part):
    box, options = open_box(plain_desk), plain_desk.page.locator(".bst-suggestion")
    box.fill("")
    box.press_sequentially("<")
    box.press("Escape")
    assert options.first.is_hidden()
    box.press_sequentially(first_part["name"][:2])
    options.first.click()
    assert plain_desk.value("P", "text") == f"<{first_part['written']}:"


def test_unknown_names_are_underlined_and_the_nearest_is_offered(desk, first_part):
    box = open_box(desk)
    name, kinds = first_part["written"], first_part["kinds"]
    box.fill(f"<{name}x:{kinds['written'][0]}> and <{name}:99999> and <{name}:{kinds['written'][0]}> a < b")
    lines = desk.page.locator(".bst-mirror u")
    lines.nth(1).wait_for(state="attached")
    assert lines.all_text_contents() == [f"<{name}x:{kinds['written'][0]}>", f"<{name}:99999>"]
    status = desk.page.locator(".bst-status").first
    assert f"There is no part “{name}x”." in status.inner_text()
    desk.shot(f"faults_{desk.label}")
    status.get_by_role("button").first.click()
    assert desk.value("P", "text").startswith(f"<{name}:{kinds['written'][0]}> and <{name}:99999>")
    status.get_by_role("button").first.click()
    assert f"<{name}:{kinds['written'][-1]}>" in desk.value("P", "text")
    desk.page.wait_for_timeout(200)
    assert lines.count() == 0


MENTIONS = [
    "<head:17>",
    "<a.b\\.c:blue jay*0.25+x\\+y*.75>",
    "(<head:17>:1.3) and (<0:1>)",
    "a < b and <> and \\<x:1> < head : 17 >",
    "<head:1*+0.5+2*0.5>",
]


REFUSED = ["<head:17", "<head>", "<:3>", "<head: >", "<head:a+b>", "<head:a*x>", "<head:1@layout>"]


def test_the_grammar_is_that_of_the_server(plain_desk):
    from bestiary.concepts.errors import BestiaryError
    from bestiary.concepts.parts.part_prompt import parse_part_prompt

    find = """async (texts) => {
        const { findMentions } = await import("/extensions/ComfyUI-Bestiary/js/mentions.mjs");
        return texts.map(findMentions);
    }"""
    for text, ours in zip(MENTIONS, plain_desk.page.evaluate(find, MENTIONS), strict=True):
        theirs = parse_part_prompt(text).mentions
        assert [(one["target"], one["start"] + 1, round(one["weight"], 6)) for one in ours] == [
            (one.target, one.column, round(one.weight, 6)) for one in theirs
        ], text
        kinds = [[(kind["text"], kind["factor"]) for kind in one["kinds"]] for one in ours]
        assert kinds == [list(one.kinds) for one in theirs], text
    for text, ours in zip(REFUSED, plain_desk.page.evaluate(find, REFUSED), strict=True):
        assert len(ours) == 1 and ours[0]["fault"], text
        with pytest.raises(BestiaryError):
            parse_part_prompt(text)
