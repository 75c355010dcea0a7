"""Tests of the stage strips in a browser: dragging writes stages, typing moves the strip, and both are read as the server does."""

import random

import pytest
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.spectrum.attribute_presets import DEFAULT_PRESETS
from bestiary.concepts.spectrum.stage_bounds import StageBounds

STAGES = "/extensions/ComfyUI-Bestiary/js/stages/stages.mjs"


def set_field(desk, node, name, value):
    desk.page.evaluate(
        "([node, name, value]) => { const w = window[node].widgets.find((one) => one.name === name); w.value = value; w.callback?.(value) }",
        [node, name, value],
    )
    desk.page.wait_for_timeout(200)


def drag(desk, cells, first, last):
    cells.nth(first).hover()
    desk.page.mouse.down()
    for stage in range(first + 1, last + 1):
        cells.nth(stage).hover()
    desk.page.mouse.up()


def bring_into_view(desk, panel):
    top = panel.bounding_box()["y"]
    desk.page.evaluate(f"app.canvas.ds.offset[1] -= {top - 120} / app.canvas.ds.scale; app.canvas.setDirty(true, true)")
    desk.page.wait_for_timeout(400)


def test_drag_type_and_reload(desk):
    desk.build({"P": "BestiaryMixAttributes"}, [])
    strip = desk.page.locator(".bst-strips")
    cells = strip.locator('[data-reference="2"] .bst-cell')
    set_field(desk, "P", "takes_2", "")
    drag(desk, cells, 3, 5)
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


def test_the_strip_folds_and_keeps_the_layout_of_workflows_made_without_it(desk):
    desk.build({"P": "BestiaryMixAttributes"}, [])
    strip = desk.page.locator(".bst-strips")
    cell = strip.locator(".bst-cell").first
    cell.wait_for()
    height = desk.page.evaluate("P.size[1]")
    strip.get_by_role("button", name="Fold or unfold").click()
    cell.wait_for(state="hidden")
    assert desk.page.evaluate("P.size[1]") < height - 200
    desk.reload(P="BestiaryMixAttributes")
    strip.locator(".bst-tools").wait_for()
    assert cell.is_hidden()
    strip.get_by_role("button", name="Fold or unfold").click()
    cell.wait_for()
    assert desk.page.evaluate("P.size[1]") == pytest.approx(height, abs=30)
    # a workflow saved before there was a strip leaves no room for it
    desk.page.evaluate(
        """async () => {
            const saved = JSON.parse(JSON.stringify(app.graph.serialize()));
            for (const node of saved.nodes) { delete node.properties.bestiary_stages; node.size = [380, 420] }
            await app.loadGraphData(saved);
        }"""
    )
    strip.locator(".bst-tools").wait_for()
    assert cell.is_hidden()


def test_lines_of_a_prompt_are_dragged_and_typed(desk):
    desk.build({"P": "BestiarySpectrumPrompt"}, [])
    set_field(desk, "P", "stage_texts", "layout: a wide meadow\n3-5: <b>x</b>")
    panel = desk.page.locator(".bst-line-strips")
    rows = panel.locator(".bst-line-track")
    rows.nth(1).wait_for()
    bring_into_view(desk, panel)
    assert panel.locator(".bst-line-words").all_inner_texts() == ["a wide meadow", "<b>x</b>"]
    drag(desk, rows.nth(1).locator(".bst-cell"), 5, 7)
    assert desk.value("P", "stage_texts") == "layout: a wide meadow\n3-8: <b>x</b>"
    rows.nth(0).get_by_role("combobox").select_option("style")
    assert desk.value("P", "stage_texts") == "style: a wide meadow\n3-8: <b>x</b>"
    desk.shot(f"lines_{desk.label}")
    owners = panel.locator(".bst-result .bst-cell")
    assert "".join(owners.all_inner_texts()) == "··22222211"

    # the other side, and a new line for the stages nobody has
    panel.get_by_role("button", name="Negative").click()
    assert rows.count() == 0
    panel.get_by_role("button", name="Add a line").click()
    assert desk.value("P", "negative_stage_texts") == "1-10: …"
    # a line always keeps a stage
    cells = rows.first.locator(".bst-cell")
    drag(desk, cells, 0, 9)
    assert desk.value("P", "negative_stage_texts") == "10: …"
    desk.reload(P="BestiarySpectrumPrompt")
    pressed = desk.page.locator('.bst-line-strips .bst-line-track:nth-child(1) .bst-cell[aria-pressed="true"]')
    pressed.first.wait_for()
    assert pressed.all_inner_texts() == ["8", "9", "10"]


def test_what_is_typed_wrong_is_told(plain_desk):
    plain_desk.build({"P": "BestiaryStageText"}, [])
    panel = plain_desk.page.locator(".bst-line-strips")
    says = panel.locator(".bst-hint").last
    for lines, words in (
        ("12: x", "“12: x” cannot be read: write stages, a colon and a text, such as 1-3: a dog."),
        ("no colon", "“no colon” cannot be read"),
        ("1-3: a\n3: b", "Stages 3 are given by number in two lines"),
        ("", "No stage has its own text yet"),
        ("layout: a", "Drag across the stages of a line."),
    ):
        set_field(plain_desk, "P", "lines", lines)
        assert says.inner_text().startswith(words)
    set_field(plain_desk, "P", "lines", "no colon")
    panel.locator(".bst-line-track .bst-cell").nth(1).click()
    assert plain_desk.value("P", "lines") == "2: no colon"
    set_field(plain_desk, "P", "stages", 120)
    assert says.inner_text() == "Only up to 40 stages can be shown."
    set_field(plain_desk, "P", "stages", 4)
    assert panel.locator(".bst-line-track .bst-cell").count() == 4
    # none of four stages has its middle in the first tenth
    set_field(plain_desk, "P", "lines", "layout: a")
    assert says.inner_text().startswith("“layout” contains no stage: none of the 4 stages")
    assert panel.locator(".bst-broken").count() == 1


def test_names_of_linked_presets_are_no_fault(plain_desk):
    desk = plain_desk
    nodes = {"P": "BestiaryStageText", "M": "BestiaryMixAttributes", "T": "PrimitiveString"}
    desk.build(nodes, [])
    desk.page.evaluate(
        """() => {
            for (const node of [P, M]) T.connect(0, node, node.inputs.findIndex((input) => input.name === "presets"));
            M.widgets.find((one) => one.name === "takes_1").callback?.();
        }"""
    )
    waits = "These stages come from linked presets; they are known only when the workflow runs."
    says = desk.page.locator(".bst-line-strips .bst-hint").last
    set_field(desk, "P", "lines", "colour: red\n9: blue")
    assert says.inner_text() == waits
    assert desk.page.locator(".bst-line-strips .bst-broken").count() == 0
    # without a colon it stays wrong, and without the link the name is
    set_field(desk, "P", "lines", "colour red")
    assert "cannot be read" in says.inner_text()
    set_field(desk, "M", "takes_1", "colour")
    assert desk.page.locator(".bst-strips .bst-hint", has_text=waits).count() == 1
    desk.page.evaluate("P.disconnectInput(P.inputs.findIndex((input) => input.name === 'presets'))")
    set_field(desk, "P", "lines", "colour: red")
    assert says.inner_text().startswith("“colour: red” cannot be read")


CHAIN = {"P": "BestiaryMixAttributes", "S": "BestiarySpectrumPrompt", "R": "Reroute", "Z": "ConditioningZeroOut"}
CHAIN |= {"K": "KSampler", "C": "SamplerCustom", "B": "BasicScheduler", "W": "BestiaryStagePreview"}


def test_steps_of_the_linked_sampler(desk):
    desk.build(CHAIN, [("P", 0, "S", 1), ("S", 0, "R", 0), ("R", 0, "Z", 0)])
    note = desk.page.locator(".bst-step-note").first
    cells = desk.page.locator(".bst-strips").first.locator(".bst-steps .bst-cell")
    note.get_by_text("Connect a sampler to this node").wait_for()
    assert set(cells.all_inner_texts()) == {"?"}
    for name, value in (("steps", 20), ("scheduler", "normal")):
        set_field(desk, "K", name, value)
    # through a spectrum prompt, a reroute and another block
    desk.page.evaluate("Z.connect(0, K, 1)")
    again(desk)
    note.get_by_text("20 steps of KSampler, normal.").wait_for()
    assert cells.all_inner_texts() == ["2"] * 10
    set_field(desk, "K", "steps", 5)
    again(desk)
    note.get_by_text("Never reached").wait_for()
    assert cells.all_inner_texts().count("!") == 5
    assert desk.page.locator(".bst-strips").first.locator('.bst-steps [data-steps="0"]').count() == 5
    desk.shot(f"steps_{desk.label}")

    # sigmas of a scheduler; without one nothing is known
    desk.page.evaluate("() => { K.disconnectInput(1); Z.connect(0, C, 1) }")
    again(desk)
    note.get_by_text("known only when the workflow runs").wait_for()
    desk.page.evaluate("() => { B.connect(0, C, 4) }")
    set_field(desk, "B", "steps", 30)
    set_field(desk, "B", "scheduler", "karras")
    again(desk)
    note.get_by_text("30 steps of SamplerCustom, karras.").wait_for()
    assert sum(int(text) if text.isdigit() else 0 for text in cells.all_inner_texts()) == 30
    desk.page.evaluate("() => { C.disconnectInput(1); Z.connect(0, W, 1) }")
    again(desk)
    note.get_by_text("Stage Preview, normal.").wait_for()


def again(desk):
    """What a person's click does."""
    desk.page.evaluate("() => { P.onConnectionsChange?.() }")
    desk.page.wait_for_timeout(300)


@pytest.mark.parametrize("other", ["ModelSamplingSD3", "UNETLoader"])
def test_a_model_with_other_noise_is_unknown(plain_desk, other):
    nodes = {"P": "BestiaryStageText", "K": "KSampler", "M": other}
    plain_desk.build(nodes, [("P", 0, "K", 1), ("M", 0, "K", 0)])
    again(plain_desk)
    plain_desk.page.locator(".bst-step-note").get_by_text("known only when the workflow runs").wait_for()


def test_steps_of_the_included_transformer_are_those_of_its_flow(plain_desk):
    nodes = {"P": "BestiaryStageText", "K": "KSampler", "L": "BestiaryDemoModel"}
    plain_desk.build(nodes, [("P", 0, "K", 1), ("L", 0, "K", 0)])
    for name, value in (("steps", 20), ("scheduler", "karras")):
        set_field(plain_desk, "K", name, value)
    again(plain_desk)
    note = plain_desk.page.locator(".bst-step-note").first
    cells = plain_desk.page.locator(".bst-strips").first.locator(".bst-steps .bst-cell")
    note.get_by_text("20 steps of KSampler, karras.").wait_for()
    usual = cells.all_inner_texts()
    set_field(plain_desk, "L", "shape", "dit")
    again(plain_desk)
    note.get_by_text("Noise levels of a flow with shift 3.").wait_for()
    shown = cells.all_inner_texts()
    assert shown != usual and sum(int(text) for text in shown if text.isdigit()) == 20


def typed_lines(seed):
    """Lines as people write them, some wrong."""
    draw = random.Random(seed)
    items = ["layout", "content", "Material", "style", "1", "3-5", "7-10", "0%-30%", "25-50%", "9", "2-2", "11", "fur"]
    lines = [
        f"{', '.join(draw.choice(items) for _ in range(draw.randint(1, 2)))}: words {number}"
        for number in range(draw.randint(0, 4))
    ]
    return draw.choice(["\n", "\r\n", "\n\n"]).join(lines)


def test_who_has_a_stage_is_decided_as_on_the_server(plain_desk):
    from bestiary.concepts.spectrum.stage_claims import stage_lines

    texts = [typed_lines(seed) for seed in range(200)]
    read = """async ([path, texts]) => {
        const { assignStages, readLines } = await import(path);
        return texts.map((text) => {
            const lines = readLines(text, 10);
            if (lines.some(({ claims }) => !claims)) return null;
            const { owners, double } = assignStages(lines.map(({ claims }) => claims), 10);
            return double.length ? null : owners.map((owner) => (owner < 0 ? null : lines[owner].words));
        });
    }"""
    refused = 0
    for text, ours in zip(texts, plain_desk.page.evaluate(read, [STAGES, texts]), strict=True):
        if ours is None:
            refused += 1
            with pytest.raises(BestiaryError):
                stage_lines(text, StageBounds.equal(10), DEFAULT_PRESETS)
            continue
        theirs = stage_lines(text, StageBounds.equal(10), DEFAULT_PRESETS)
        assert ours == [theirs.get(stage) for stage in range(10)], text
    assert 20 < refused < 180
