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


@pytest.fixture(scope="session")
def browser() -> Iterator[object]:
    """Headless Chromium; tests skip without it or without playwright."""
    if CHROMIUM is None:
        pytest.skip("the browser tests need Chromium: install the package chromium")
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="the browser tests need playwright: pip install playwright"
    )
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
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
        self.faults: list[str] = []
        self.loaded: list[str] = []
        page.on("pageerror", lambda fault: self.faults.append(f"{fault} {fault.stack}"))
        # what one widget's fault is told by, so that it stops no other
        page.on(
            "console", lambda line: self.faults.append(f"{OURS} {line.text}") if "[Bestiary]" in line.text else None
        )
        page.on("response", lambda answer: self.loaded.append(answer.url) if OURS in answer.url else None)
        # before the page opens: nodes change over only with a fresh page
        settings = {"Comfy.VueNodes.Enabled": vue, "Comfy.TutorialCompleted": True, "Comfy.Workflow.Persist": False}
        server.post("/settings", json={**settings, "Comfy.ColorPalette": "dark", "Bestiary.Favourites": "[]"})
        page.goto(server.address)
        self.ready()

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


@pytest.fixture(
    params=[(f, v) for f in FRONTENDS for v in (False, True)], ids=lambda p: f"{p[0]}-{'vue' if p[1] else 'classic'}"
)
def desk(request: pytest.FixtureRequest, browser: object, server: object) -> Iterator[Desk]:
    """The editor in every frontend, with canvas nodes and with Vue nodes; none of our scripts may fail on it."""
    frontend, vue = request.param
    where = server if frontend == "installed" else request.getfixturevalue("other_server")
    context = browser.new_context(viewport={"width": 1500, "height": 1000})
    desk = Desk(context.new_page(), where, vue)
    desk.label = f"{frontend}_{'vue' if vue else 'classic'}"
    yield desk
    context.close()
    assert desk.own_faults() == []


@pytest.fixture
def plain_desk(browser: object, server: object) -> Iterator[Desk]:
    """The editor in the installed frontend with canvas nodes, for what is the same everywhere."""
    context = browser.new_context(viewport={"width": 1500, "height": 1000})
    desk = Desk(context.new_page(), server, False)
    yield desk
    context.close()
    assert desk.own_faults() == []


@pytest.fixture(scope="session")
def dictionary_facts(server: object) -> dict:
    """What the server says of the shipped dictionary, its parts in the order of the page."""
    facts = json.loads(server.get("/bestiary/dictionary/creatures.safetensors").text)
    order = ["head", "body", "wing", "legs", "tail", "background"]
    facts["parts"].sort(key=lambda part: order.index(part["name"]))
    return facts
