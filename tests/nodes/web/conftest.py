"""Pages of a real ComfyUI in headless Chromium: the installed frontend and, where BESTIARY_FRONTEND names one, another."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
OTHER_FRONTEND = os.environ.get("BESTIARY_FRONTEND")
"""Folder with an unpacked frontend: what --front-end-root takes."""
FRONTENDS = ["installed", "other"] if OTHER_FRONTEND else ["installed"]
SHOTS = os.environ.get("BESTIARY_SCREENSHOTS")
"""Folder for screenshots to be looked at; none are kept without it."""
OURS = "/extensions/ComfyUI-Bestiary/"
PLAIN = {"Comfy.ColorPalette": "dark", "Bestiary.Favourites": "[]"}
"""Settings that tests change, as every test finds them."""


@pytest.fixture(scope="session")
def browser() -> Iterator[object]:
    """Headless Chromium; tests skip without it or without playwright."""
    if CHROMIUM is None:
        pytest.skip("the browser tests need Chromium: install the package chromium")
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="the browser tests need playwright: pip install playwright"
    )
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", *os.environ.get("FLAGS", "").split()]
        )
        yield running
        running.close()


@pytest.fixture(scope="session")
def other_server(tmp_path_factory: pytest.TempPathFactory, server: object) -> Iterator[object]:
    """A ComfyUI with the frontend that BESTIARY_FRONTEND names."""
    start = type(server).__init__.__globals__["start_server"]
    running = start(tmp_path_factory.mktemp("other"), "--front-end-root", OTHER_FRONTEND)
    yield running
    running.process.terminate()
    running.process.wait(20)


class Desk:
    """One open page with the graph editor, and what went wrong on it."""

    def __init__(self, page: object, server: object, vue: bool) -> None:
        self.page, self.server, self.vue = page, server, vue
        page.set_default_timeout(60_000)  # two suites at once on a machine of two cores
        self.failed = False
        self.faults: list[str] = []
        self.loaded: list[str] = []
        page.on("pageerror", lambda fault: self.faults.append(f"{fault} {fault.stack}"))
        # what one widget's fault is told by, so that it stops no other
        page.on(
            "console", lambda line: self.faults.append(f"{OURS} {line.text}") if "[Bestiary]" in line.text else None
        )
        page.on("response", lambda answer: self.loaded.append(answer.url) if OURS in answer.url else None)
        # before the page opens: nodes change over only with a fresh page
        self.choose_nodes()
        page.goto(server.address)
        self.ready()

    def choose_nodes(self) -> None:
        """Settings of this page as the server gives them to pages that are opened or loaded anew."""
        settings = {
            "Comfy.VueNodes.Enabled": self.vue,
            "Comfy.TutorialCompleted": True,
            "Comfy.Workflow.Persist": False,
        }
        self.server.post("/settings", json={**settings, **PLAIN})

    def clear(self) -> None:
        """What an earlier test has left on the page goes."""
        self.choose_nodes()
        self.page.unroute_all()
        self.page.keyboard.press("Escape")
        self.page.mouse.move(5, 500)
        # settings last: dictionaries and spectra are read anew with an empty graph
        self.page.evaluate("() => { app.canvas.setGraph(app.graph.rootGraph ?? app.graph); app.graph.clear() }")
        self.page.evaluate("() => document.activeElement?.blur()")
        self.set(**PLAIN)
        self.page.wait_for_timeout(200)
        self.faults.clear()
        self.loaded.clear()

    def ready(self) -> None:
        self.page.wait_for_function(
            "Boolean(window.app?.graph && window.app.extensionManager && app.canvas?.graph)", timeout=150_000
        )
        self.page.wait_for_function("Boolean(LiteGraph.registered_node_types.BestiaryPartPrompt)", timeout=150_000)
        self.page.wait_for_timeout(1000)
        self.page.keyboard.press("Escape")

    def set(self, **settings: object) -> None:
        self.page.evaluate(
            "async (all) => { for (const [k, v] of Object.entries(all)) await app.extensionManager.setting.set(k, v) }",
            settings,
        )

    def build(self, nodes: dict[str, str], links: list[tuple[str, int, str, int]]) -> None:
        """A graph of named nodes, reachable in the page as window.NAME."""
        self.page.evaluate(
            """([nodes, links]) => {
                app.graph.clear();
                // newer frontends give a workflow that has no number another one whenever it is loaded
                app.graph.id = window.workflow ??= crypto.randomUUID();
                Object.entries(nodes).forEach(([name, kind], place) => {
                    const node = LiteGraph.createNode(kind);
                    node.pos = [40 + 520 * (place % 3), 80 + 700 * Math.floor(place / 3)];
                    app.graph.add(node);
                    window[name] = node;
                });
                for (const [from, slot, to, input] of links) window[from].connect(slot, window[to], input);
                const [left, top] = (nodes.P ? window.P : window[Object.keys(nodes)[0]]).pos;
                app.canvas.ds.offset = [620 - left, 90 - top];
                app.canvas.ds.scale = 0.9;
                app.canvas.setDirty(true, true);
            }""",
            [nodes, links],
        )
        self.page.wait_for_timeout(400)

    def value(self, node: str, widget: str) -> object:
        return self.page.evaluate(f"{node}.widgets.find((one) => one.name === '{widget}').value")

    def prompt(self) -> dict:
        """The graph as it would be queued."""
        return self.page.evaluate("async () => (await app.graphToPrompt()).output")

    def reload(self, **names: str) -> None:
        """The workflow saved and loaded again; `names` maps page names to node types."""
        self.page.evaluate(
            "async () => { const saved = JSON.parse(JSON.stringify(app.graph.serialize())); await app.loadGraphData(saved) }"
        )
        self.page.wait_for_timeout(600)
        for name, kind in names.items():
            self.page.evaluate(
                f"() => {{ window.{name} = app.graph.nodes.find((node) => node.comfyClass === '{kind}') }}"
            )

    def shot(self, name: str) -> None:
        if SHOTS:
            Path(SHOTS).mkdir(parents=True, exist_ok=True)
            self.page.screenshot(path=f"{SHOTS}/{name}.png")

    def own_faults(self) -> list[str]:
        return [fault for fault in self.faults if OURS in fault]


@pytest.fixture(scope="session")
def pages(browser: object) -> Iterator[dict]:
    """Open pages by server and kind of node: opening one takes longer than most tests."""
    desks: dict[tuple[str, bool], Desk] = {}
    yield desks
    for desk in desks.values():
        desk.page.context.close()


def _desk(request: pytest.FixtureRequest, browser: object, server: object, vue: bool) -> Iterator[Desk]:
    """A page without a graph; none of our scripts may fail on it.

    It is the page of the test before if that went well, unless the module sets `OWN_PAGES`.
    """
    pages = request.getfixturevalue("pages")
    desk = pages.pop((server.address, vue), None)
    if desk:
        desk.clear()
    else:
        context = browser.new_context(viewport={"width": 1500, "height": 1000})
        desk = Desk(context.new_page(), server, vue)
    yield desk
    if desk.failed or desk.own_faults() or getattr(request.module, "OWN_PAGES", False):
        desk.page.context.close()
    else:
        pages[server.address, vue] = desk
    assert desk.own_faults() == []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """A page on which a test failed is not used again."""
    report = yield
    for value in getattr(item, "funcargs", {}).values():
        if isinstance(value, Desk) and report.failed:
            value.failed = True
    return report


@pytest.fixture(
    params=[(f, v) for f in FRONTENDS for v in (False, True)], ids=lambda p: f"{p[0]}-{'vue' if p[1] else 'classic'}"
)
def desk(request: pytest.FixtureRequest, browser: object, server: object) -> Iterator[Desk]:
    """The editor in every frontend, with canvas nodes and with Vue nodes."""
    frontend, vue = request.param
    where = server if frontend == "installed" else request.getfixturevalue("other_server")
    for desk in _desk(request, browser, where, vue):
        desk.label = f"{frontend}_{'vue' if vue else 'classic'}"
        yield desk


@pytest.fixture
def plain_desk(request: pytest.FixtureRequest, browser: object, server: object) -> Iterator[Desk]:
    """The editor in the installed frontend with canvas nodes, for what is the same everywhere."""
    yield from _desk(request, browser, server, False)


@pytest.fixture(scope="session")
def dictionary_facts(server: object) -> dict:
    """What the server says of the shipped dictionary, its parts in the order of the page."""
    facts = json.loads(server.get("/bestiary/dictionary/creatures.safetensors").text)
    order = ["head", "body", "wing", "legs", "tail", "background"]
    facts["parts"].sort(key=lambda part: order.index(part["name"]))
    return facts
