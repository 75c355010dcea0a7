"""Tests of the stage strip in a browser: dragging writes stages, typing moves the strip, and both are read as the server does."""

from bestiary.concepts.spectrum.attribute_presets import select_stages
from bestiary.concepts.spectrum.stage_bounds import StageBounds

TEXTS = ["layout", "content", "style, 3", "1-3, 7", "0%-30%", "material", "10"]


def test_drag_type_and_reload(desk):
    desk.build({"P": "BestiaryMixAttributes"}, [])
    strip = desk.page.locator(".bst-strips")
    cells = strip.locator('[data-reference="2"] .bst-cell')
    desk.page.evaluate(
        "() => { const w = P.widgets.find((one) => one.name === 'takes_2'); w.value = ''; w.callback?.('') }"
    )
    desk.page.wait_for_timeout(200)
    cells.nth(3).hover()
    desk.page.mouse.down()
    cells.nth(4).hover()
    cells.nth(5).hover()
    desk.page.mouse.up()
    assert desk.value("P", "takes_2") == "4-6"
    desk.shot(f"stages_{desk.label}")
    cells.nth(4).focus()
    desk.page.keyboard.press("Space")
    assert desk.value("P", "takes_2") == "4, 6"
    desk.page.wait_for_timeout(200)
    # nothing else was written
    assert [desk.value("P", name) for name in ("takes_1", "presets", "name")] == ["layout", "", "mix"]
    desk.reload(P="BestiaryMixAttributes")
    pressed = desk.page.locator('.bst-strips [data-reference="2"] .bst-cell[aria-pressed="true"]')
    pressed.first.wait_for()
    assert pressed.all_inner_texts() == ["4", "6"]


def test_stages_are_read_as_the_server_reads_them(plain_desk):
    read = """async (texts) => {
        const { readStages } = await import("/extensions/ComfyUI-Bestiary/js/stages.mjs");
        return texts.map((text) => [...readStages(text, 10)].sort((a, b) => a - b));
    }"""
    ours = plain_desk.page.evaluate(read, TEXTS)
    assert ours == [list(select_stages(text, StageBounds.equal(10))) for text in TEXTS]
