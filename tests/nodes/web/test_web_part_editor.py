"""Tests of the part-map editor in a browser: see the parts, rename, merge and drop them, and find all of it again."""

import time

import pytest
from bestiary.concepts.pictures.part_overlay import part_color

LINKS = [("D", 0, "P", 0), ("P", 3, "T", 0)]
NODES = {"D": "BestiaryDemoPictures", "P": "BestiaryDiscoverParts", "T": "PreviewAny"}
SETTINGS = {"num_parts": 3, "num_kinds": 2, "edits": "", "count": 10, "species": 4, "seed": 0}


def opened(desk):
    """The editor after a run; P is the block, `found` the names of its parts."""
    desk.build(NODES, LINKS)
    desk.page.evaluate(
        """(settings) => {
            for (const widget of [...D.widgets, ...P.widgets]) {
                // no seed moves by itself between two runs
                const value = widget.name === "control_after_generate" ? "fixed" : settings[widget.name];
                if (value === undefined) continue;
                widget.value = value;
                widget.callback?.(value);
            }
        }""",
        SETTINGS,
    )
    queue(desk)
    editor = desk.page.locator(".bst-part-editor")
    editor.locator(".bst-tree-row").first.wait_for(timeout=60_000)
    top = editor.bounding_box()["y"]
    desk.page.evaluate(f"app.canvas.ds.offset[1] -= {top - 120} / app.canvas.ds.scale; app.canvas.setDirty(true, true)")
    desk.page.wait_for_timeout(400)
    return editor, names(editor)


def queue(desk, status="success"):
    """Runs the graph and waits for its end."""
    before = set(desk.server.get("/history").json())
    desk.page.evaluate("app.queuePrompt(0)")
    until = time.monotonic() + 180
    while time.monotonic() < until:
        ended = {key: entry for key, entry in desk.server.get("/history").json().items() if key not in before}
        if ended:
            assert [entry["status"]["status_str"] for entry in ended.values()] == [status]
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


def says(desk, words, wrong=True):
    """Waits until the line below the rows says so."""
    kind = ".bst-hint.bst-wrong" if wrong else ".bst-hint:not(.bst-wrong)"
    desk.page.locator(f".bst-part-editor {kind}", has_text=words).wait_for(timeout=20_000)


def type_edits(desk, text):
    desk.page.evaluate(
        "(text) => { const w = P.widgets.find((one) => one.name === 'edits'); w.value = text; w.callback?.(text) }",
        text,
    )


def rename(desk, row, name):
    """Types another name for a row."""
    row.focus()
    desk.page.keyboard.press("F2")
    desk.page.keyboard.type(name)
    desk.page.keyboard.press("Enter")


def covered(desk, number=0):
    """What is drawn of a picture, once the pictures are there."""
    desk.page.wait_for_timeout(500)
    return desk.page.evaluate(f"document.querySelectorAll('.bst-maps canvas')[{number}].toDataURL()")


def test_parts_are_renamed_merged_and_dropped(desk):
    editor, found = opened(desk)
    assert len(found) == 4 and "background" in found
    assert editor.locator(".bst-maps canvas").count() == 8 and editor.locator(".bst-pages button").count() == 2
    desk.shot(f"part_editor_{desk.label}")
    # something is laid over the pictures, and the opacity takes it away
    before = covered(desk)
    editor.get_by_role("slider", name="Overlay").fill("0")
    assert covered(desk) != before

    # by keys: rename, mark two and merge
    rows = editor.locator(".bst-tree-row")
    rename(desk, rows.nth(0), "beak")
    becomes(desk, editor, ["beak", *found[1:]])
    assert desk.value("P", "edits") == f"rename {found[0]}, beak"
    rows.nth(0).focus()
    desk.page.keyboard.press("Space")
    desk.page.keyboard.press("ArrowDown")
    desk.page.keyboard.press("Space")
    desk.page.keyboard.press("Shift+M")
    becomes(desk, editor, ["beak", *found[2:]])
    assert editor.locator("[aria-selected='true']").count() == 0

    # by mouse: drop, take back
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


def test_the_mouse_alone_merges_renames_and_takes_all_back(plain_desk):
    desk = plain_desk
    editor, found = opened(desk)
    for name in found[:2]:
        editor.get_by_role("checkbox", name=f"Mark {name}", exact=True).click()
    editor.get_by_role("button", name="Merge").click()
    becomes(desk, editor, [found[0], *found[2:]])
    editor.locator(".bst-tree-row .bst-tree-name").first.dblclick()
    field = editor.get_by_role("textbox", name=f"New name of {found[0]}")
    # a double click within the field chooses a word, it does not begin again
    field.dblclick()
    field.fill("two, in one")
    editor.locator(".bst-hint").click()
    becomes(desk, editor, ["two in one", *found[2:]])
    assert desk.value("P", "edits") == f"merge {found[0]}, {found[1]}\nrename {found[0]}, two in one"
    editor.get_by_role("button", name="Reset").click()
    becomes(desk, editor, found)
    assert desk.value("P", "edits") == ""
    assert editor.get_by_role("button", name="Reset").is_disabled()


def test_kinds_are_edited_and_typed_text_is_followed(plain_desk):
    desk = plain_desk
    editor, found = opened(desk)
    rows = editor.locator(".bst-tree-row")
    rows.nth(0).focus()
    desk.page.keyboard.press("ArrowRight")
    kinds = editor.locator(".bst-tree-kind")
    assert kinds.count() == 2 and rows.nth(0).get_attribute("aria-expanded") == "true"
    plain = covered(desk), covered(desk, 1), covered(desk, 2), covered(desk, 3)
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
    # pictures of the kind that is gone do not show the part any more
    desk.page.evaluate("document.activeElement.blur()")
    assert (covered(desk), covered(desk, 1), covered(desk, 2), covered(desk, 3)) != plain
    # Ctrl+Z takes back an edit, not a node; a remark is no edit
    type_edits(desk, desk.value("P", "edits") + "\n# a remark")
    desk.page.wait_for_timeout(500)
    rows.nth(0).focus()
    name = "() => document.activeElement.querySelector('.bst-tree-name')?.textContent"
    in_focus = desk.page.evaluate(name)
    desk.page.keyboard.press("Control+z")
    desk.page.wait_for_function("document.querySelectorAll('.bst-tree-kind').length === 2")
    assert desk.value("P", "edits") == f"rename {found[0]}:0, cardinal"
    # the graph's own undo, which would make all nodes anew, has not heard it
    desk.page.wait_for_timeout(1200)
    assert desk.page.evaluate("app.graph.nodes.includes(P)")
    assert desk.value("P", "edits") == f"rename {found[0]}:0, cardinal"
    # a part that covers other pictures may stand at another height among the rows: the focus goes with it
    assert in_focus and desk.page.evaluate(name) == in_focus

    type_edits(desk, f"rename {found[1]}, speckled")
    becomes(desk, editor, [found[0], "speckled", *found[2:]])


def slow_answers(desk, seconds):
    """Every description of a discovery comes that much later."""

    def late(route):
        time.sleep(seconds)
        route.continue_()

    desk.page.route("**/bestiary/discovered/*?*", late)


def test_quick_edits_wait_for_slow_answers(plain_desk):
    desk = plain_desk
    editor, found = opened(desk)
    slow_answers(desk, 0.7)
    rows = editor.locator(".bst-tree-row")
    for place, name in ((0, "beak"), (1, "trunk")):
        rename(desk, rows.nth(place), name)
    becomes(desk, editor, ["beak", "trunk", *found[2:]])
    assert desk.value("P", "edits") == f"rename {found[0]}, beak\nrename {found[1]}, trunk"
    # what was called so is something else after the first: told, not done
    rows.nth(0).focus()
    desk.page.keyboard.press("Delete")
    desk.page.keyboard.press("Delete")
    becomes(desk, editor, ["trunk", *found[2:]])
    says(desk, "Not applied: the parts have changed in the meantime.")
    assert desk.value("P", "edits").count("drop") == 1


def test_all_can_be_taken_back_and_brought_again(plain_desk):
    desk = plain_desk
    editor, found = opened(desk)
    rows = editor.locator(".bst-tree-row")
    for name in ("beak", "trunk"):
        rename(desk, rows.nth(0), name)
        becomes(desk, editor, [name, *found[1:]])
    says(desk, "Edited since the last run: run the workflow to apply the edits.", wrong=False)
    rows.nth(0).focus()
    for key, name in (("z", "beak"), ("z", found[0]), ("y", "beak"), ("Shift+z", "trunk")):
        desk.page.keyboard.press(f"Control+{key}")
        becomes(desk, editor, [name, *found[1:]])
    editor.get_by_role("button", name="Reset").click()
    becomes(desk, editor, found)
    assert desk.page.evaluate("document.querySelector('.bst-part-editor').contains(document.activeElement)")
    editor.get_by_role("button", name="Undo").click()
    becomes(desk, editor, ["trunk", *found[1:]])
    queue(desk)
    says(desk, "Edits are stored as text in the field edits", wrong=False)


def test_linked_edits_are_shown_as_the_run_used_them(plain_desk):
    desk = plain_desk
    editor, found = opened(desk)
    desk.page.evaluate(
        """(text) => {
            const words = LiteGraph.createNode("PrimitiveStringMultiline");
            app.graph.add(words);
            words.widgets[0].value = text;
            words.connect(0, P, P.inputs.findIndex((input) => input.name === "edits"));
        }""",
        f"rename {found[0]}, beak",
    )
    says(desk, "The edits come from a linked text: change them there.", wrong=False)
    queue(desk)
    becomes(desk, editor, ["beak", *found[1:]])
    for name in ("Rename", "Merge", "Drop", "Undo", "Reset"):
        assert editor.get_by_role("button", name=name).is_disabled()
    editor.locator(".bst-tree-row").first.focus()
    for key in ("F2", "Delete", "Control+z"):
        desk.page.keyboard.press(key)
    desk.page.wait_for_timeout(400)
    assert editor.get_by_role("textbox").count() == 0 and names(editor) == ["beak", *found[1:]]
    assert desk.value("P", "edits") == ""


def test_the_part_under_the_pointer_is_shown_and_chosen(plain_desk):
    desk = plain_desk
    editor, _ = opened(desk)
    plain = covered(desk, 1)
    box = editor.locator(".bst-maps canvas").first.bounding_box()
    title = ""
    for share in (0.5, 0.4, 0.6, 0.3, 0.7):
        place = box["x"] + box["width"] * share, box["y"] + box["height"] * 0.55
        desk.page.mouse.move(*place)
        title = desk.page.evaluate("document.querySelector('.bst-maps canvas').title")
        if title not in ("", "background"):
            break
    assert covered(desk, 1) != plain
    desk.page.mouse.click(*place)
    row = desk.page.evaluate("document.activeElement.querySelector('.bst-tree-name').textContent")
    assert title == row and row in names(editor) and row != "background"
    desk.page.mouse.move(box["x"] - 60, box["y"] - 100)
    desk.page.evaluate("document.activeElement.blur()")
    assert covered(desk, 1) == plain


@pytest.mark.parametrize("width", [400, 640, 1100])
def test_rows_and_buttons_stay_within_the_block(plain_desk, width):
    desk = plain_desk
    editor, found = opened(desk)
    desk.page.evaluate(f"P.setSize([{width}, P.size[1]]); app.canvas.setDirty(true, true)")
    desk.page.wait_for_timeout(500)
    panel = editor.bounding_box()
    for inside in (editor.get_by_role("button", name="Drop"), editor.get_by_role("treeitem").nth(len(found) - 1)):
        box = inside.bounding_box()
        assert panel["y"] < box["y"] and box["y"] + box["height"] <= panel["y"] + panel["height"]
    desk.shot(f"part_editor_wide_{width}")


def test_one_of_many_blocks_finds_its_parts_again(plain_desk):
    desk = plain_desk
    opened(desk)
    desk.build(
        {**NODES, "Q": "BestiaryDiscoverParts", "R": "BestiaryDiscoverParts", "U": "PreviewAny", "W": "PreviewAny"},
        LINKS,
    )
    desk.page.evaluate(
        """(settings) => {
            for (const block of [Q, R]) D.connect(0, block, 0);
            Q.connect(3, U, 0);
            R.connect(3, W, 0);
            [P, Q, R].forEach((block, place) => {
                for (const widget of block.widgets) {
                    const value = { ...settings, seed: place, control_after_generate: "fixed" }[widget.name];
                    if (value !== undefined) widget.value = value;
                }
            });
            for (const widget of D.widgets) {
                const value = { count: 10, seed: 0, control_after_generate: "fixed" }[widget.name];
                if (value !== undefined) widget.value = value;
            }
        }""",
        SETTINGS,
    )
    queue(desk)
    # as after the page was opened anew: the blocks know no key, and a run that is cached says nothing
    for block in "PQR":
        desk.page.evaluate(f"delete {block}.properties.bestiary_part_editor.key")
    desk.reload(P="BestiaryDiscoverParts")
    desk.page.wait_for_function(
        "document.querySelectorAll('.bst-part-editor [aria-level=\"1\"]').length === 12", timeout=20_000
    )


def test_marks_of_one_state_do_not_hold_for_the_next(plain_desk):
    desk = plain_desk
    editor, _ = opened(desk)
    rows = editor.locator(".bst-tree-row")
    rows.nth(0).focus()
    desk.page.keyboard.press("ArrowRight")
    desk.page.keyboard.press("ArrowDown")
    desk.page.keyboard.press("ArrowDown")
    desk.page.keyboard.press("Space")
    assert rows.nth(2).get_attribute("aria-selected") == "true"
    desk.page.keyboard.press("ArrowUp")
    desk.page.keyboard.press("Delete")
    desk.page.wait_for_function("document.querySelectorAll('.bst-tree-kind').length === 1")
    # what was kind 1 is kind 0 now: nothing is marked that was not chosen
    assert editor.locator("[aria-selected='true']").count() == 0
    assert editor.get_by_role("button", name="Merge").is_disabled()


def test_an_edit_that_does_not_fit_is_told_and_not_written(plain_desk):
    desk = plain_desk
    editor, found = opened(desk)
    rows = editor.locator(".bst-tree-row")
    rename(desk, rows.nth(0), found[1])
    says(desk, f"two parts would be called '{found[1]}'")
    assert names(editor) == found and desk.value("P", "edits") == ""
    # the background stays
    editor.locator(".bst-tree-row", has_text="background").click()
    assert editor.get_by_role("button", name="Drop").is_disabled()
    desk.page.keyboard.press("Delete")
    says(desk, "The background cannot be dropped.")
    assert desk.value("P", "edits") == "" and desk.page.evaluate("app.graph.nodes.includes(P)")


def test_faulty_typed_edits_end_the_run_and_the_parts_are_shown_all_the_same(plain_desk):
    desk = plain_desk
    editor, _ = opened(desk)
    type_edits(desk, "drop the part that is not there")
    # other pictures, so that another discovery is made
    desk.page.evaluate("D.widgets.find((one) => one.name === 'seed').value = 9")
    before = desk.page.evaluate("P.properties.bestiary_part_editor.key")
    queue(desk, "error")
    desk.page.wait_for_function("(key) => P.properties.bestiary_part_editor.key !== key", arg=before, timeout=20_000)
    says(desk, "edits, line 1 ('drop the part that is not there')")
    assert editor.locator(".bst-tree-row").count() == 4
    desk.page.evaluate("document.querySelector('.comfy-modal-close, .p-dialog-close-button')?.click()")


def test_another_workflow_shows_nothing_of_this_one(plain_desk):
    desk = plain_desk
    editor, found = opened(desk)
    type_edits(desk, f"rename {found[0]}, beak")
    becomes(desk, editor, ["beak", *found[1:]])
    saved = desk.page.evaluate("JSON.parse(JSON.stringify(app.graph.serialize()))")
    other = {**saved, "id": "00000000-1111-2222-3333-444444444444"}
    other["nodes"] = [{**node, "properties": {"bestiary_part_editor": {"open": True}}} for node in saved["nodes"]]
    desk.page.evaluate("async (graph) => app.loadGraphData(graph)", other)
    says(desk, "Run the workflow to see the discovered parts.", wrong=False)
    assert editor.locator(".bst-tree-row").count() == 0
    # a discovery that is gone is told as such, and the first one is still there
    for node in other["nodes"]:
        node["properties"] = {"bestiary_part_editor": {"open": True, "key": "0123456789abcdef"}}
    desk.page.evaluate("async (graph) => app.loadGraphData(graph)", other)
    says(desk, "The discovery is no longer in memory.", wrong=False)
    desk.page.evaluate("async (graph) => app.loadGraphData(graph)", saved)
    becomes(desk, editor, ["beak", *found[1:]])


def test_many_edits_are_shown_too(plain_desk):
    desk = plain_desk
    editor, found = opened(desk)
    chain = [found[0], *(f"Schnäbelchen {number}" for number in range(300))]
    type_edits(desk, "\n".join(f"rename {before}, {now}" for before, now in zip(chain, chain[1:], strict=False)))
    becomes(desk, editor, [chain[-1], *found[1:]])


def test_parts_have_the_colours_of_the_overlays(plain_desk):
    ours = plain_desk.page.evaluate(
        """async () => {
            const { partColor } = await import("/extensions/ComfyUI-Bestiary/js/parts/part_maps.mjs");
            return Array.from({ length: 40 }, (_, part) => partColor(part));
        }"""
    )
    assert ours == [list(part_color(part)) for part in range(40)]


def test_light_theme(plain_desk):
    desk = plain_desk
    editor, _ = opened(desk)
    colors = "(e) => [getComputedStyle(e).backgroundColor, getComputedStyle(e).color]"
    dark = editor.evaluate(colors)
    desk.set(**{"Comfy.ColorPalette": "light"})
    desk.page.wait_for_timeout(600)
    light = editor.evaluate(colors)
    assert dark[0] != light[0] and dark[1] != light[1]
    desk.shot("part_editor_light")


@pytest.mark.parametrize(
    "text",
    [
        "drop <img src=x onerror='window.broken=1'>",
        "rename 0, <script>window.broken=1</script>",
        "rename 0, \"><svg onload='window.broken=1'>",
    ],
)
def test_a_line_that_does_not_fit_is_told_as_text(plain_desk, text):
    editor, _ = opened(plain_desk)
    type_edits(plain_desk, text)
    says(plain_desk, "edits, line 1 (")
    assert "<" in editor.locator(".bst-hint").inner_text()
    assert editor.locator("img, script, svg[onload]").count() == 0
    assert not plain_desk.page.evaluate("Boolean(window.broken)")


def test_names_that_look_like_markup_are_shown_as_text(plain_desk):
    desk = plain_desk
    editor, found = opened(desk)
    hostile = "&lt;b&gt; ${1+1} {count} %s ' \" \\"
    type_edits(desk, f"rename {found[0]}, {hostile}\nrename {hostile}:0, __proto__")
    becomes(desk, editor, [hostile, *found[1:]])
    editor.locator(".bst-tree-row").first.focus()
    desk.page.keyboard.press("ArrowRight")
    assert editor.locator(".bst-tree-kind .bst-tree-name").first.inner_text() == "__proto__"


def test_colours_stay_with_their_part_and_names_become_readable(plain_desk):
    editor, found = opened(plain_desk)
    rows = editor.locator(".bst-tree-row")
    dots = {name: rows.nth(place).locator(".bst-dot").get_attribute("style") for place, name in enumerate(found)}
    # a part that comes before another in number goes
    order = plain_desk.page.evaluate(
        """async () => {
            const { describeDiscovery } = await import("/extensions/ComfyUI-Bestiary/js/parts/discoveries.mjs");
            const facts = await describeDiscovery(P.properties.bestiary_part_editor.key, "");
            return facts.edited.filter(({ background }) => !background).map(({ name }) => name);
        }"""
    )
    type_edits(plain_desk, f"drop {order[0]}\nrename {order[1]}, top2")
    editor.locator(".bst-tree-name", has_text="top2").wait_for(timeout=20_000)
    kept = [name for name in names(editor) if name not in ("background", "top2")]
    for name in kept:
        place = names(editor).index(name)
        assert rows.nth(place).locator(".bst-dot").get_attribute("style") == dots[name]
    assert rows.nth(names(editor).index("top2")).locator(".bst-dot").get_attribute("style") == dots[order[1]]

    editor.get_by_role("button", name="Readable names").click()
    editor.locator(".bst-tree-name", has_text="upper 2").wait_for(timeout=20_000)
    assert plain_desk.value("P", "edits").endswith("\nrename top2, upper 2")
    assert editor.get_by_role("button", name="Readable names").is_hidden()
