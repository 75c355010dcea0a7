"""Tests of the training preview in a browser: live while a graph trains, and later out of the run's folder."""

import json

import pytest
from PIL import Image

EVIL = "<img src=x onerror='window.broken=1'>"
CHEAP = {"steps": 6, "batch_size": 2, "accumulation": 1, "token_lr": 0.3, "lora_lr": 1e-3, "attention_loss": "bce"}
CHEAP |= {"attention_weight": 0.2, "rank": 2, "seed": 1, "preview_every": 2, "recompute": False, "resume": "start anew"}
CHEAP |= {"more_settings": "run.preview_steps = 1\nrun.preview_count = 2"}


def made_run(server, name, steps=200, parts=("head", "wing", EVIL), previews=(20, 40, 60)):
    """A run as a training leaves it; the losses fall by halves."""
    folder = server.folder / "output" / "bestiary" / name
    (folder / "samples").mkdir(parents=True)
    (folder / "config.resolved.toml").write_text("[optimizer]\nsteps = 400\n")
    (folder / "curve_labels.json").write_text(json.dumps({"part_attention_loss": parts}))
    with (folder / "log.jsonl").open("w") as file:
        for step in range(1, steps + 1):
            losses = {"loss": 0.5 ** (step / 40), "noise_loss": 0.1, "attention_loss": 0.6 - step / 1000}
            own = [0.3 + place / 10 + 0.5 ** (step / 20) for place in range(len(parts))]
            record = {"step": step, **losses, "part_attention_loss": own, "steps_per_second": 2.0}
            file.write(json.dumps(record) + "\n")
    for step in previews:
        for ending, color in (("", (step, 90, 90)), ("-attention", (90, step, 90))):
            Image.new("RGB", (320, 200), color).save(folder / "samples" / f"step-{step:07d}{ending}.png")


def look_at(desk, name, block="BestiaryTrainParts"):
    desk.build({"P": block}, [])
    desk.page.evaluate(
        "(name) => { const w = P.widgets.find((one) => one.name === 'name'); w.value = name; w.callback?.(name) }", name
    )
    preview = desk.page.locator(".bst-training")
    preview.locator(".bst-run", has_text=name).wait_for()
    # wherever the frontend puts it inside its block, it comes into view
    top = preview.bounding_box()["y"]
    desk.page.evaluate(f"app.canvas.ds.offset[1] -= {top - 120} / app.canvas.ds.scale; app.canvas.setDirty(true, true)")
    desk.page.wait_for_timeout(300)
    return preview


def test_the_newest_run_of_a_name_is_shown_and_browsed(desk, server, request):
    name = f"shown_{desk.label}"
    made_run(desk.server, name)
    preview = look_at(desk, name)
    assert preview.locator(".bst-progress-text").inner_text() == "step 200 of 400 · 2 steps/s"
    assert preview.locator(".bst-line:not(.bst-faint)").count() == 3
    desk.shot(f"training_{desk.label}")

    # one curve per part, whose names are text
    preview.get_by_role("combobox", name="Curves to show").select_option("part_attention_loss")
    legend = preview.locator(".bst-legend .bst-chip")
    assert [text.split("\n")[0] for text in legend.all_inner_texts()] == ["head", "wing", EVIL]
    assert preview.locator(".bst-legend img, .bst-legend script").count() == 0
    legend.nth(1).click()
    assert preview.locator(".bst-line:not(.bst-faint)").count() == 2
    assert legend.nth(1).get_attribute("aria-pressed") == "false"
    chart = preview.locator(".bst-chart")
    assert chart.get_attribute("aria-label").startswith("Curves; last values: head 0.3")

    # logarithmic and smoothed, kept with the workflow
    before = preview.locator("path.bst-line").last.get_attribute("d")
    preview.get_by_role("checkbox", name="log").check()
    logarithmic = preview.locator("path.bst-line").last.get_attribute("d")
    preview.get_by_role("slider", name="Smooth").fill("0")
    rough = preview.locator("path.bst-line").last.get_attribute("d")
    assert len({before, logarithmic, rough}) == 3
    chart.press("Home")
    assert preview.locator(".bst-hint").inner_text().startswith("Step 1: head 1.27")
    chart.press("ArrowRight")
    assert preview.locator(".bst-hint").inner_text().startswith("Step 2: ")

    # back through the previews, pictures and heat maps
    picture = preview.locator("img.bst-sheet")
    scrub = preview.get_by_role("slider", name="Preview to show")
    assert scrub.get_attribute("aria-valuetext") == "step 60"
    scrub.fill("0")
    assert "step=20&sheet=pictures" in picture.get_attribute("src")
    preview.get_by_role("button", name="Heat maps").click()
    assert "step=20&sheet=attention" in picture.get_attribute("src")
    desk.page.wait_for_function("document.querySelector('img.bst-sheet').naturalWidth === 320")
    preview.get_by_role("button", name="Back to the latest").click()
    assert "step=60&sheet=attention" in picture.get_attribute("src")
    assert desk.page.evaluate("window.broken") is None

    desk.reload(P="BestiaryTrainParts")
    preview = desk.page.locator(".bst-training")
    preview.locator(".bst-run", has_text=name).wait_for()
    assert preview.get_by_role("checkbox", name="log").is_checked()
    assert preview.get_by_role("combobox", name="Curves to show").input_value() == "part_attention_loss"


def training(server):
    """An API graph of a short training on drawn creatures; node 60 trains."""
    from bestiary.demo.creatures import held_out_set

    graph = {"1": {"class_type": "BestiaryDemoModel", "inputs": {}}}
    before = None
    for number, drawing in enumerate(held_out_set(4, seed=1)):
        name, key = f"drawn{number}.png", f"{10 + number}"
        Image.fromarray(drawing.image).save(server.folder / "input" / name)
        graph[key] = {"class_type": "LoadImage", "inputs": {"image": name}}
        if before:
            inputs = {"image1": before, "image2": [key, 0]}
            key = f"{30 + number}"
            graph[key] = {"class_type": "ImageBatch", "inputs": inputs}
        before = [key, 0]
    found = {"feature_source": "descriptor", "num_parts": 2, "num_kinds": 1, "seed": 0, "flip_foreground": False}
    graph["50"] = {"class_type": "BestiaryDiscoverParts", "inputs": {"images": before, **found}}
    prepared = {"images": before, "codebook": ["50", 0], "vae": ["1", 2], "image_size": 0, "mirror": False}
    graph["51"] = {"class_type": "BestiaryTrainingImages", "inputs": {**prepared, "part_maps": ["50", 1]}}
    objects = {"model": ["1", 0], "clip": ["1", 1], "vae": ["1", 2], "training_set": ["51", 0]}
    graph["60"] = {"class_type": "BestiaryTrainParts", "inputs": {**objects, **CHEAP}}
    return graph


def test_curves_and_previews_follow_a_training_and_outlast_the_page(desk):
    page, name = desk.page, f"live_{desk.label}"
    graph = training(desk.server)
    graph["60"]["inputs"]["name"] = name
    page.evaluate(
        "async (graph) => { await app.loadApiJson(graph, 'training'); window.P = app.graph.getNodeById(60) }", graph
    )
    page.evaluate(
        "app.canvas.ds.scale = 0.8; app.canvas.ds.offset = [60 - P.pos[0], 60 - P.pos[1]]; app.canvas.setDirty(true, true)"
    )
    page.wait_for_timeout(500)
    # what the block said, each time it changed
    page.evaluate(
        """() => {
            window.said = [];
            const status = document.querySelector('.bst-progress-text');
            new MutationObserver(() => said.push(status.textContent)).observe(status, {childList: true});
            app.queuePrompt(0);
        }"""
    )
    preview = page.locator(".bst-training")
    preview.locator(".bst-progress-text", has_text="step 6 of 6 ·").wait_for(timeout=120_000)
    page.wait_for_function("document.querySelector('.bst-scrub output').textContent === 'step 6'", timeout=20_000)
    said = page.evaluate("said")
    assert any("elapsed" in text and "left" in text for text in said), said
    log = (desk.server.folder / "output" / "bestiary" / name / "log.jsonl").read_text().splitlines()
    assert len(log) == 6
    desk.shot(f"trained_{desk.label}")
    assert preview.locator("path.bst-line").count() >= 3
    saved = page.evaluate("JSON.parse(JSON.stringify(app.graph.serialize()))")
    page.reload()
    desk.ready()
    page.evaluate("async (saved) => { await app.loadGraphData(saved) }", saved)
    preview.locator(".bst-progress-text", has_text="step 6 of 6").wait_for()
    assert "step=6&sheet=pictures" in preview.locator("img.bst-sheet").get_attribute("src")


@pytest.mark.parametrize("block", ["BestiaryTrainParts", "BestiaryTrainInBackground"])
def test_without_a_run_it_says_what_will_be_here(plain_desk, block):
    plain_desk.build({"P": block}, [])
    preview = plain_desk.page.locator(".bst-training")
    preview.locator(".bst-hint", has_text="Curves, pictures and heat maps of the training appear here").wait_for()
    assert preview.locator(".bst-chart").is_hidden() and preview.locator(".bst-previews").is_hidden()


def test_a_workflow_made_without_it_keeps_its_layout_and_it_unfolds(plain_desk):
    desk = plain_desk
    made_run(desk.server, "older", steps=3, previews=())
    preview = look_at(desk, "older")
    desk.page.evaluate(
        """async () => {
            const saved = JSON.parse(JSON.stringify(app.graph.serialize()));
            delete saved.nodes[0].properties.bestiary_training;
            saved.nodes[0].size = [400, 500];
            await app.loadGraphData(saved);
        }"""
    )
    desk.page.wait_for_timeout(600)
    assert preview.locator(".bst-chart").is_hidden()
    assert desk.page.evaluate("app.graph.nodes[0].size[1]") <= 560
    preview.get_by_role("button", name="Fold or unfold").click()
    preview.locator(".bst-line").first.wait_for()
    preview.get_by_role("button", name="Fold or unfold").click()
    assert preview.locator(".bst-chart").is_hidden()


def test_what_cannot_be_read_is_told(plain_desk):
    folder = plain_desk.server.folder / "output" / "bestiary" / "broken"
    folder.mkdir(parents=True)
    (folder / "config.resolved.toml").write_text("not toml [")
    (folder / "log.jsonl").write_bytes(b"\xff\xfe{}\n[1, 2\n")
    preview = look_at(plain_desk, "broken")
    assert preview.locator(".bst-progress-text").inner_text() == "step 0 of ?"


NUMBERS = [0.000123456, 1234.5, 0, 12]


def test_smoothing_and_ticks(plain_desk):
    given = """async (numbers) => {
        const chart = await import("/extensions/ComfyUI-Bestiary/js/training/loss_chart.mjs");
        return {
            short: numbers.map(chart.shortNumber),
            smooth: chart.smoothed([1, null, 0, 0], 0.5),
            same: chart.smoothed([1, null, 3], 0),
            ticks: chart.ticks(0, 1),
            logs: chart.logTicks(0.02, 3),
        };
    }"""
    found = plain_desk.page.evaluate(given, NUMBERS)
    assert found["short"] == ["0.000123", "1230", "0", "12"]
    # means weighted by 1/2, 1/4, 1/8, whose weights are brought to 1
    assert found["smooth"] == [1, None, pytest.approx(1 / 3), pytest.approx(1 / 7)]
    assert found["same"] == [1, None, 3]
    assert found["ticks"] == [0, 0.5, 1] and found["logs"] == [0.02, 0.05, 0.1, 0.2, 0.5, 1, 2]


def test_a_cancelled_run_says_where_its_file_is_and_how_to_go_on(plain_desk):
    name = "halted"
    made_run(plain_desk.server, name)
    (plain_desk.server.folder / "models" / "bestiary" / f"{name}_stopped.safetensors").write_bytes(b"")
    preview = look_at(plain_desk, name)
    words = f"Stopped at step 200. The result so far is models/bestiary/{name}_stopped.safetensors"
    hint = preview.locator(".bst-hint.bst-notice", has_text=words)
    hint.wait_for()
    assert f"select {name} in the field resume" in hint.inner_text()
    assert hint.evaluate(
        "(hint) => hint.scrollHeight <= hint.clientHeight + 1 && hint.scrollWidth <= hint.clientWidth + 1"
    )
    plain_desk.shot("stopped")
