"""Tests of typing in a prompt: suggestions of parts, kinds, spectra and stages, and underlines under what nothing linked knows."""

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
    desk.page.locator(".bst-status", has_text=f"Unknown part “{name}x”.").first.wait_for()
    desk.shot(f"faults_{desk.label}")
    # what is written is looked at a moment later, and the line of faults is made anew
    desk.page.wait_for_timeout(500)
    status.get_by_role("button").first.click()
    assert desk.value("P", "text").startswith(f"<{name}:{kinds['written'][0]}> and <{name}:99999>")
    desk.page.wait_for_timeout(500)
    status.get_by_role("button").first.click()
    assert f"<{name}:{kinds['written'][-1]}>" in desk.value("P", "text")
    desk.page.wait_for_timeout(200)
    assert lines.count() == 0


def test_a_press_that_began_on_a_repair_ends_on_it(desk, first_part):
    box, status = open_box(desk), desk.page.locator(".bst-status").first
    name, kind = first_part["written"], first_part["kinds"]["written"][0]
    box.fill(f"<{name}x:{kind}> and more")
    repair = status.get_by_role("button").first
    repair.hover()
    desk.page.mouse.down()
    # whatever makes the line of faults anew meanwhile
    desk.page.evaluate("document.querySelector('textarea').dispatchEvent(new InputEvent('input', { bubbles: true }))")
    desk.page.wait_for_timeout(300)
    desk.page.mouse.up()
    desk.page.wait_for_function("document.querySelectorAll('.bst-picker .bst-fault').length === 0")
    assert desk.value("P", "text") == f"<{name}:{kind}> and more"


def test_a_prompt_of_comfyui_tells_what_its_taught_clip_does_not_know(desk, first_part):
    nodes = {"L": "BestiaryDemoModel", "D": "BestiaryLoadDictionary", "R": "Reroute", "P": "CLIPTextEncode"}
    desk.build(
        {**nodes, "Q": "CLIPTextEncode", "T": "BestiaryTrainParts"},
        [("L", 0, "D", 0), ("L", 1, "D", 1), ("D", 1, "R", 0), ("R", 0, "P", 0), ("L", 1, "Q", 0)],
    )
    desk.page.wait_for_timeout(500)
    name, kind = first_part["written"], first_part["kinds"]["written"][0]
    box, lines = desk.page.locator("textarea").first, desk.page.locator(".bst-mirror u")
    notes = desk.page.locator(".bst-box-note .bst-fault")
    understood = f"I <3 you, a < b, <{name}> <{name}:{kind}> and ({name}:1.2)"
    box.fill(f"<{name}x:{kind}> {understood} <lora:x:0.8>")
    notes.nth(1).wait_for()
    assert lines.all_text_contents() == [f"<{name}x:{kind}>", "<lora:x:0.8>"]
    assert notes.first.inner_text().startswith(f"Unknown part “{name}x”.")
    assert "Load LoRA" in notes.nth(1).inner_text() and notes.nth(1).get_by_role("button").count() == 0
    desk.shot(f"plain_prompt_{desk.label}")
    notes.first.get_by_role("button", name=f"Use <{name}:{kind}>").click()
    desk.page.wait_for_function("document.querySelectorAll('.bst-box-note .bst-fault').length === 1")
    assert desk.value("P", "text") == f"<{name}:{kind}> {understood} <lora:x:0.8>"
    box.fill(understood)
    desk.page.wait_for_function("!document.querySelector('.bst-box-note .bst-fault')")
    assert lines.count() == 0 and box.get_attribute("aria-invalid") == "false"
    # what a training will teach is known only then, and a CLIP that learned nothing knows of no parts
    box.fill(f"<{name}x:{kind}>")
    notes.first.wait_for()
    desk.page.evaluate("() => { D.connect(1, T, 1); T.connect(2, P, 0) }")
    desk.page.wait_for_function("!document.querySelector('.bst-box-note .bst-fault')")
    desk.page.evaluate("L.connect(1, P, 0)")
    desk.page.wait_for_timeout(300)
    assert notes.count() == 0 and lines.count() == 0


SPECTRUM = {"L": "BestiaryDemoModel", "D": "BestiaryLoadDictionary", "S": "BestiaryLoadSpectrum"}
SPECTRUM |= {"M": "BestiaryMixAttributes", "R": "Reroute", "P": "BestiarySpectrumPrompt"}
SPECTRUM_LINKS = [
    ("L", 0, "D", 0),
    ("L", 1, "D", 1),
    ("D", 1, "P", 0),
    ("S", 0, "R", 0),
    ("R", 0, "P", 1),
    ("M", 0, "P", 2),
]


def open_spectrum_prompt(desk):
    """The first box of a prompt that knows a spectrum called lark, one called mix, and a dictionary."""
    desk.build(SPECTRUM, SPECTRUM_LINKS)
    desk.page.evaluate(
        "() => { const w = S.widgets.find((one) => one.name === 'name'); w.value = 'lark'; w.callback?.('lark'); P.onConnectionsChange() }"
    )
    box = desk.page.locator("textarea").nth(
        desk.page.evaluate(
            "[...document.querySelectorAll('textarea')].findIndex((box) => box.value === 'a photo of a <name>')"
        )
    )
    # what is linked is known a little later
    desk.page.locator(".bst-mirror u", has_text="<name>").wait_for(state="attached")
    return box


def test_spectra_attributes_and_parts_are_completed(desk, first_part):
    box, options = open_spectrum_prompt(desk), desk.page.locator(".bst-suggestion")
    names = options.locator(".bst-name")
    box.fill("a ")
    box.press("End")
    box.press_sequentially("<")
    assert names.all_inner_texts()[:2] == ["lark", "mix"]
    box.press_sequentially("la")
    box.press("Enter")
    assert desk.value("P", "text") == "a <lark>"
    box.press("ArrowLeft")
    box.press_sequentially("@")
    assert names.all_inner_texts()[:5] == ["layout", "content", "material", "style", "1"]
    desk.shot(f"spectrum_complete_{desk.label}")
    box.press_sequentially("la")
    box.press("Tab")
    assert desk.value("P", "text") == "a <lark@layout>"
    box.press("End")
    box.press_sequentially(f" <{first_part['name'][:3]}")
    box.press("Enter")
    box.press("Enter")
    kind = f"{first_part['written']}:{first_part['kinds']['written'][0]}"
    assert desk.value("P", "text") == f"a <lark@layout> <{kind}>"
    box.press("ArrowLeft")
    box.press_sequentially("@1,sty")
    box.press("Enter")
    assert desk.value("P", "text") == f"a <lark@layout> <{kind}@1,style>"
    assert options.first.is_hidden()


def test_unknown_spectra_and_stages_are_underlined_and_repaired(desk, first_part):
    box = open_spectrum_prompt(desk)
    part, kind = first_part["written"], first_part["kinds"]["written"][0]
    right = f"<lark> <lark@layout> <{part}:{kind}@2-3> a < b"
    box.fill(f"<larc> <lark@lyout> <{part}x:{kind}@style> {right}")
    lines = desk.page.locator(".bst-mirror u")
    lines.nth(2).wait_for(state="attached")
    assert lines.all_text_contents() == ["<larc>", "<lark@lyout>", f"<{part}x:{kind}@style>"]
    faults = desk.page.locator(".bst-line-strips .bst-fault")
    faults.nth(2).wait_for(state="attached")
    wanted = ["Unknown spectrum “larc”.", "Unknown stages “lyout”.", f"Unknown part “{part}x”."]
    for told, text in zip(faults.all_text_contents(), wanted, strict=True):
        assert told.startswith(text)
    top = faults.first.bounding_box()["y"]
    desk.page.evaluate(f"app.canvas.ds.offset[1] -= {top - 500} / app.canvas.ds.scale; app.canvas.setDirty(true, true)")
    desk.page.wait_for_timeout(300)
    for left in (2, 1, 0):
        faults.first.get_by_role("button").click()
        desk.page.wait_for_function(f"document.querySelectorAll('.bst-line-strips .bst-fault').length === {left}")
    assert desk.value("P", "text") == f"<lark> <lark@layout> <{part}:{kind}@style> {right}"


@pytest.mark.parametrize(
    ("text", "selected", "keys", "wanted"),
    [
        ("a <head:17> bird", (5, 5), ["ArrowUp", "ArrowUp"], "a (<head:17>:1.1) bird"),
        ("a <head:blue jay> bird", (13, 13), ["ArrowDown"], "a (<head:blue jay>:0.95) bird"),
        ("a <head:17> bird", (2, 6), ["ArrowUp", "ArrowDown"], "a <head:17> bird"),
        ("(<head:17>:1.3)", (12, 12), ["ArrowDown"], "(<head:17>:1.25)"),
        ("a <head:17> and <wing:3> b", (4, 18), ["ArrowUp", "ArrowUp"], "a (<head:17> and <wing:3>:1.1) b"),
        # words alone stay ComfyUI's
        ("a red <head:17>", (3, 3), ["ArrowUp"], "a (red:1.05) <head:17>"),
    ],
)
def test_keys_weigh_whole_mentions(plain_desk, text, selected, keys, wanted):
    box = open_box(plain_desk)
    box.fill(text)
    box.evaluate("(box, [start, end]) => { box.focus(); box.setSelectionRange(start, end) }", list(selected))
    for key in keys:
        box.press(f"Control+{key}")
    assert plain_desk.value("P", "text") == wanted


def test_every_text_box_has_a_label(desk):
    desk.build({"P": "BestiarySpectrumPrompt", "Q": "BestiaryPartPrompt"}, [])
    desk.page.wait_for_function(
        """() => {
            const boxes = [...document.querySelectorAll("textarea")].filter((box) => box.offsetParent);
            const named = boxes.map((box) => box.labels?.[0]?.textContent || box.ariaLabel);
            return named.length >= 6 && named.every(Boolean);
        }"""
    )
    if desk.vue:
        shown = "box.labels?.[0] ?? box.parentElement.querySelector('.bst-box-label')"
        texts = desk.page.evaluate(f"[...document.querySelectorAll('textarea')].map((box) => ({shown})?.textContent)")
        assert texts[:3] == ["text", "negative text", "stage texts"] and None not in texts
    desk.shot(f"labels_{desk.label}")
