"""The page of a set, opened in a browser: what it shows, and what its filter leaves."""

import shutil
from collections.abc import Iterator

import numpy as np
import pytest
from bestiary.scenes import layout_solver
from bestiary.trainer.scenes import build_set as module
from PIL import Image

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture
def page() -> Iterator[object]:
    if CHROMIUM is None:
        pytest.skip("the browser tests need Chromium: install the package chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="the browser tests need playwright")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser.new_page(viewport={"width": 1200, "height": 900})
        browser.close()


def test_the_filter_shows_one_subject_place_or_the_rejected(recipe, tmp_path, page, build, monkeypatch) -> None:
    places = tmp_path / "places"
    places.mkdir()
    for name, color in (("garden", "green"), ("beach <b>", "yellow")):
        Image.new("RGB", (128, 96), color).save(places / f"{name}.png")
    solve, calls = layout_solver.solve_measured, []

    def sometimes(*arguments: object) -> object:
        calls.append(1)
        if len(calls) == 4:
            raise module.BestiaryError("no layout of <17>")
        return solve(*arguments)

    monkeypatch.setattr(module, "solve_measured", sometimes)
    out = tmp_path / "pets"
    options = ["--set", "per_scene=[1]", "--background", str(places), "--set", "evaluation.share=0.25"]
    assert build(recipe, out, *options, "--set", "evaluation.count=1") == 1
    faults: list[str] = []
    page.on("pageerror", lambda fault: faults.append(str(fault)))
    page.on("requestfailed", lambda request: faults.append(request.url))
    page.goto((out / "index.html").as_uri())

    def shown() -> list[str]:
        return [text for text in page.locator("h2:visible").all_text_contents()]

    everything = ["000001", "000002", "000003", "000005", "000006", "eval/000001", "Rejected scenes"]
    assert shown() == everything
    choose = page.locator("#only")
    names = {}
    for choice in choose.locator("option").evaluate_all("all => all.map(one => one.value)"):
        choose.select_option(choice)
        names[choice] = shown()
    assert set(names) >= {"", "subject cat", "subject dog", "place in a garden", "evaluation", "rejected"}
    assert (
        names[""] == everything and names["evaluation"] == ["eval/000001"] and names["rejected"] == ["Rejected scenes"]
    )
    scenes = set(everything) - {"Rejected scenes"}
    assert set(names["subject cat"]) | set(names["subject dog"]) == scenes
    assert not set(names["subject cat"]) & set(names["subject dog"])
    assert 0 < len(names["place in a garden"]) < len(scenes)
    choose.select_option("")
    # every picture is there, also those that wait until they are seen
    page.locator("summary").first.click()
    sizes = page.evaluate(
        "async () => { const all = [...document.images]; for (const one of all) one.loading = 'eager';"
        " await Promise.all(all.map(one => one.decode())); return all.map(one => one.naturalWidth); }"
    )
    assert len(sizes) > 3 * 6 and all(sizes) and not faults


def test_boxes_lie_over_what_they_name(recipe, tmp_path, page, build) -> None:
    out = tmp_path / "pets"
    assert build(recipe, out, "--count", "1") == 0
    page.goto((out / "index.html").as_uri())
    labels = np.asarray(Image.open(out / "instances/000001.png"))
    rows, columns = np.nonzero(labels == 1)
    picture = page.locator(".boxed:has(svg) img").bounding_box()
    box = page.locator(".boxed svg rect").first.bounding_box()
    scale = picture["width"] / labels.shape[1]
    assert box["x"] - picture["x"] == pytest.approx(columns.min() * scale, abs=2)
    assert box["y"] - picture["y"] == pytest.approx(rows.min() * scale, abs=2)
    assert box["width"] == pytest.approx((columns.max() + 1 - columns.min()) * scale, abs=4)
