"""Tests of the part-map editor in a browser: see the parts, rename, merge and drop them, and find all of it again."""

import time

import pytest

LINKS = [("D", 0, "P", 0), ("P", 3, "T", 0)]
NODES = {"D": "BestiaryDemoPictures", "P": "BestiaryDiscoverParts", "T": "PreviewAny"}


def opened(desk):
    """The editor after a run; P is the block, `found` the names of its parts."""
    desk.build(NODES, LINKS)
    desk.page.evaluate(
        """() => {
            const set = (name, value) => { const w = P.widgets.find((one) => one.name === name); w.value = value; w.callback?.(value) };
            set("num_parts", 3); set("num_kinds", 2); set("edits", "");
            const pictures = D.widgets.find((one) => typeof one.value === "number");
            pictures.value = 10;
        }"""
    )
    queue(desk)
    editor = desk.page.locator(".bst-part-editor")
    editor.locator(".bst-tree-row").first.wait_for(timeout=60_000)
    top = editor.bounding_box()["y"]
    desk.page.evaluate(f"app.canvas.ds.offset[1] -= {top - 120} / app.canvas.ds.scale; app.canvas.setDirty(true, true)")
    desk.page.wait_for_timeout(400)
    return editor, names(editor)


def queue(desk):
    """Runs the graph and waits for its end."""
    before = set(desk.server.get("/history").json())
    desk.page.evaluate("app.queuePrompt(0)")
    until = time.monotonic() + 60
    while time.monotonic() < until:
        ended = {key: entry for key, entry in desk.server.get("/history").json().items() if key not in before}
        if ended:
            assert [entry["status"]["status_str"] for entry in ended.values()] == ["success"]
            desk.page.wait_for_timeout(500)
            return
        desk.page.wait_for_timeout(100)
    raise TimeoutError("the graph did not end")


def names(editor):
    return editor.locator(".bst-tree-row[aria-level='1'] .bst-tree-name").all_inner_texts()


def becomes(desk, editor, wanted):
    """Waits until the parts are called so."""
    until = time.monotonic() + 20
    while names(editor) != wanted and time.monotonic() < until:
        desk.page.wait_for_timeout(100)
    assert names(editor) == wanted, editor.all_inner_texts()


def test_parts_are_renamed_merged_and_dropped(desk):
    editor, found = opened(desk)
    assert len(found) == 4 and "background" in found
    assert editor.locator(".bst-maps canvas").count() == 8 and editor.locator(".bst-pages button").count() == 2
    desk.shot(f"part_editor_{desk.label}")
    # something is laid over the pictures, and the opacity takes it away
    desk.page.wait_for_timeout(500)
    drawn = "(n) => document.querySelectorAll('.bst-maps canvas')[n].toDataURL()"
    covered = desk.page.evaluate(drawn, 0)
    editor.get_by_role("slider", name="Overlay").fill("0")
    desk.page.wait_for_timeout(300)
    assert desk.page.evaluate(drawn, 0) != covered

    # by keys: rename, mark two and merge
    rows = editor.locator(".bst-tree-row")
    rows.nth(0).focus()
    desk.page.keyboard.press("F2")
    desk.page.keyboard.type("beak")
    desk.page.keyboard.press("Enter")
    becomes(desk, editor, ["beak", *found[1:]])
    assert desk.value("P", "edits") == f"rename {found[0]}, beak"
    rows.nth(0).focus()
    desk.page.keyboard.press("Space")
    desk.page.keyboard.press("ArrowDown")
    desk.page.keyboard.press("Space")
    desk.page.keyboard.press("m")
    becomes(desk, editor, ["beak", *found[2:]])

    # by mouse: drop, take back, drop again by key
    editor.locator(".bst-tree-row", has_text=found[2]).click()
    editor.get_by_role("button", name="Drop").click()
    becomes(desk, editor, ["beak", *found[3:]])
    editor.get_by_role("button", name="Undo").click()
    becomes(desk, editor, ["beak", *found[2:]])
    desk.shot(f"part_editor_edited_{desk.label}")
    expected = f"rename {found[0]}, beak\nmerge beak, {found[1]}"
    assert desk.value("P", "edits") == expected

    # the graph works with it, the node is still there, and the workflow brings it back
    queue(desk)
    prompt = desk.prompt()
    (block,) = [entry for entry in prompt.values() if entry["class_type"] == "BestiaryDiscoverParts"]
    assert block["inputs"]["edits"] == expected
    desk.reload(P="BestiaryDiscoverParts")
    editor.locator(".bst-tree-row").first.wait_for(timeout=20_000)
    becomes(desk, editor, ["beak", *found[2:]])


def test_kinds_are_edited_and_typed_text_is_followed(plain_desk):
    desk = plain_desk
    editor, found = opened(desk)
    rows = editor.locator(".bst-tree-row")
    rows.nth(0).focus()
    desk.page.keyboard.press("ArrowRight")
    kinds = editor.locator(".bst-tree-kind")
    assert kinds.count() == 2 and rows.nth(0).get_attribute("aria-expanded") == "true"
    desk.page.keyboard.press("ArrowDown")
    desk.page.keyboard.press("Enter")
    desk.page.keyboard.type("cardinal")
    desk.page.keyboard.press("Enter")
    editor.locator(".bst-tree-kind", has_text="cardinal").wait_for()
    assert desk.value("P", "edits") == f"rename {found[0]}:0, cardinal"
    rows.nth(2).focus()
    desk.page.keyboard.press("Delete")
    desk.page.wait_for_function("document.querySelectorAll('.bst-tree-kind').length === 1")
    assert desk.value("P", "edits").endswith(f"\ndrop {found[0]}:1")
    assert desk.page.evaluate("app.graph.nodes.includes(P)")
    # Ctrl+Z takes back an edit, not a node
    rows.nth(0).focus()
    desk.page.keyboard.press("Control+z")
    desk.page.wait_for_function("document.querySelectorAll('.bst-tree-kind').length === 2")

    type_edits(desk, f"rename {found[1]}, wing")
    becomes(desk, editor, [found[0], "wing", *found[2:]])


def type_edits(desk, text):
    desk.page.evaluate(
        "(text) => { const w = P.widgets.find((one) => one.name === 'edits'); w.value = text; w.callback?.(text) }",
        text,
    )


@pytest.mark.parametrize(
    "text", ["drop <img src=x onerror='window.broken=1'>", "rename 0, <script>window.broken=1</script>"]
)
def test_a_line_that_does_not_fit_is_told_as_text(plain_desk, text):
    editor, _ = opened(plain_desk)
    type_edits(plain_desk, text)
    status = editor.locator(".bst-hint")
    plain_desk.page.wait_for_function("document.querySelector('.bst-part-editor .bst-wrong')")
    assert "edits, line 1 (" in status.inner_text() and "<" in status.inner_text()
    assert editor.locator("img, script").count() == 0
    assert not plain_desk.page.evaluate("Boolean(window.broken)")
