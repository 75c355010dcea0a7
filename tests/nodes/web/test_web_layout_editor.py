"""Tests of the layout editor in a browser: cut-outs dragged, resized, turned, mirrored, put in order, and all of it undone."""

import json
import time

import pytest

NODES = {"A": "BestiaryDemoPictures", "B": "BestiaryDemoPictures", "S": "BestiarySubject", "U": "BestiarySubject"}
NODES |= {"L": "BestiarySolveLayout", "P": "BestiaryEditLayout"}
LINKS = [("A", 0, "S", 0), ("B", 0, "U", 0), ("S", 0, "L", 0), ("L", 0, "P", 0)]
SETTINGS = {
    "A": {"count": 1, "seed": 0, "first": 0},
    "B": {"count": 1, "seed": 0, "first": 3},
    "S": {"name": "left", "size": "medium"},
    "U": {"name": "right", "size": "medium"},
    "L": {"width": 256, "height": 128, "count": 2, "seed": 1, "coverage": 0.4, "ground": 0.7, "flip": False},
    "P": {"edits": ""},
}


@pytest.fixture
def editor(desk):
    """The editor after a run; P is the block."""
    desk.build(NODES, LINKS)
    desk.page.evaluate(
        """(settings) => {
            const input = (node, name) => node.inputs.findIndex((one) => one.name === name);
            A.connect(2, S, input(S, "mask"));
            B.connect(2, U, input(U, "mask"));
            S.connect(0, U, input(U, "subjects"));
            U.connect(0, L, input(L, "subjects"));
            U.connect(0, P, input(P, "subjects"));
            for (const [name, values] of Object.entries(settings)) for (const widget of window[name].widgets) {
                const value = widget.name === "control_after_generate" ? "fixed" : values[widget.name];
                if (value === undefined) continue;
                widget.value = value;
                widget.callback?.(value);
            }
        }""",
        SETTINGS,
    )
    queue(desk)
    found = desk.page.locator(".bst-layout-editor")
    found.locator(".bst-subject").nth(1).wait_for(timeout=60_000)
    box = found.bounding_box()
    desk.page.evaluate(
        "([x, y]) => { app.canvas.ds.offset[0] -= x / app.canvas.ds.scale; app.canvas.ds.offset[1] -= y / app.canvas.ds.scale; "
        "app.canvas.setDirty(true, true) }",
        [box["x"] - 500, box["y"] - 150],
    )
    desk.page.wait_for_timeout(500)
    return found


def queue(desk):
    before = set(desk.server.get("/history").json())
    desk.page.evaluate("app.queuePrompt(0)")
    until = time.monotonic() + 120
    while time.monotonic() < until:
        ended = {key: entry for key, entry in desk.server.get("/history").json().items() if key not in before}
        if ended:
            assert [entry["status"]["status_str"] for entry in ended.values()] == ["success"], ended
            return next(iter(ended.values()))["outputs"]
        desk.page.wait_for_timeout(100)
    raise TimeoutError("the graph did not end")


def edits(desk):
    text = desk.value("P", "edits")
    return json.loads(text) if text else {}


def drag(desk, source, across, down):
    """By the pointer, from the middle of an element, in pixels of the page."""
    box = source.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    desk.page.mouse.move(x, y)
    desk.page.mouse.down()
    desk.page.mouse.move(x + across / 2, y + down / 2)
    desk.page.mouse.move(x + across, y + down)
    desk.page.mouse.up()
    desk.page.wait_for_timeout(150)


def test_subjects_are_dragged_resized_turned_and_all_is_undone(desk, editor):
    stage, left = editor.locator(".bst-scene"), editor.locator("[data-subject=left]")
    assert editor.locator(".bst-hint").inner_text() == "All subjects lie on the canvas."
    desk.shot(f"layout_editor_{desk.label}")
    scale = 256 / stage.bounding_box()["width"]
    own = left.evaluate("(one) => parseFloat(one.style.left)")
    drag(desk, left, 20, -10)
    moved = edits(desk)["0"]["left"]
    assert set(moved) == {"x", "y"}
    assert abs(moved["x"] - own * 2.56 - 20 * scale) < 1.5
    drag(desk, editor.locator(".bst-resize"), 15, 15)
    assert edits(desk)["0"]["left"]["width"] > 0
    drag(desk, editor.locator(".bst-turn"), 40, 20)
    assert 5 < edits(desk)["0"]["left"]["turn"] < 90
    desk.shot(f"layout_editor_turned_{desk.label}")
    for _ in range(3):
        editor.get_by_role("button", name="Undo").click()
    assert edits(desk) == {} and editor.get_by_role("button", name="Undo").is_disabled()


def test_keys_move_mirror_and_order_the_chosen_subject(desk, editor):
    right = editor.locator("[data-subject=right]")
    right.focus()
    desk.page.keyboard.press("Shift+ArrowUp")
    desk.page.keyboard.press("ArrowLeft")
    desk.page.keyboard.press("f")
    desk.page.keyboard.press(".")
    desk.page.keyboard.press("+")
    changed = edits(desk)["0"]["right"]
    assert changed["flip"] is True and changed["turn"] == 5 and {"x", "y", "width"} <= set(changed)
    order = [one.evaluate("(one) => one.style.zIndex") for one in (editor.locator("[data-subject=left]"), right)]
    desk.page.keyboard.press("PageUp" if order[1] == "0" else "PageDown")
    after = [one.evaluate("(one) => one.style.zIndex") for one in (editor.locator("[data-subject=left]"), right)]
    assert after == order[::-1]
    desk.page.keyboard.press("z")
    assert [
        one.evaluate("(one) => one.style.zIndex") for one in (editor.locator("[data-subject=left]"), right)
    ] == order
    assert desk.page.evaluate("document.activeElement.dataset.subject") == "right"


def test_limits_are_shown_and_the_run_uses_the_edits(desk, editor):
    left = editor.locator("[data-subject=left]")
    drag(desk, left, -250, 0)
    assert "left leaves the canvas" in editor.locator(".bst-hint.bst-wrong").inner_text()
    assert "bst-faulty" in left.get_attribute("class")
    before = edits(desk)
    # another layout has edits of its own
    editor.get_by_role("button", name="Next layout").click()
    assert "Layout 2 of 2" in editor.inner_text() and editor.get_by_role("button", name="Reset").is_disabled()
    queue(desk)
    desk.reload(P="BestiaryEditLayout")
    assert edits(desk) == before
    queue(desk)
    desk.page.locator(".bst-layout-editor .bst-subject").nth(1).wait_for(timeout=30_000)
    desk.page.locator(".bst-layout-editor").get_by_role("button", name="Reset").click()
    assert edits(desk) == {}
