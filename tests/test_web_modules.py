"""Tests of the browser's modules: every import leads to a file that exports the name, in one direction, without circles."""

from __future__ import annotations

import graphlib
import re
from pathlib import Path

import pytest

JS = Path(__file__).parent.parent / "web" / "js"
ROOMS = {
    "host": set(),
    "parts": {"host"},
    "stages": {"host", "parts"},
    "training": {"host"},
    "attention": {"host"},
    "scenes": {"host"},
}
"""Rooms, and which others the modules of each may import; scripts that ComfyUI loads may import all of them."""
HOST_SCRIPTS = {"app.js", "api.js"}
"""Modules of ComfyUI's page, served beside /extensions."""

IMPORT = re.compile(r'^(?:import|export) (?:\{ ([^}]*) \} from )?"([^"]+)";$', re.MULTILINE)
ANY_IMPORT = re.compile(r"^\s*import\b|^export\b.*\bfrom\b|\bimport\(", re.MULTILINE)
EXPORT = re.compile(r"^export (?:async )?(?:function\*?|class|const|let) (\w+)", re.MULTILINE)


def sources() -> list[Path]:
    return sorted([*JS.rglob("*.js"), *JS.rglob("*.mjs")])


def imports(path: Path) -> list[tuple[Path, set[str]]]:
    """Files of ours that a source imports, and the names it takes from each."""
    text = path.read_text(encoding="utf-8")
    found = IMPORT.findall(text)
    assert len(found) == len(ANY_IMPORT.findall(text)), f"{path}: an import is written in a form this test cannot read"
    ours = []
    for names, address in found:
        target = (path.parent / address).resolve()
        if target.parent == JS.resolve().parent.parent.parent / "scripts":
            assert target.name in HOST_SCRIPTS, f"{path}: {address}"
        else:
            ours.append((target, {name.split(" as ")[0] for name in names.split(", ") if name}))
    return ours


@pytest.mark.parametrize("path", sources(), ids=lambda path: path.relative_to(JS).as_posix())
def test_every_import_leads_to_an_exported_name(path: Path):
    for target, names in imports(path):
        assert target.is_file(), f"{path} imports {target}, which does not exist"
        missing = names - set(EXPORT.findall(target.read_text(encoding="utf-8")))
        assert not missing, f"{path}: {target} does not export {missing}"


def test_no_module_imports_itself_by_way_of_others():
    graph = {path.resolve(): {target for target, _ in imports(path)} for path in sources()}
    # raises CycleError with the circle
    assert len(list(graphlib.TopologicalSorter(graph).static_order())) == len(graph)


def test_rooms_import_only_the_rooms_below():
    assert {path.parent.name for path in JS.rglob("*.mjs")} == set(ROOMS)
    for path in JS.rglob("*.mjs"):
        room = path.parent.name
        used = {target.parent.name for target, _ in imports(path)} - {room}
        assert used <= ROOMS[room], f"{path.relative_to(JS)} imports from {used - ROOMS[room]}"


def test_only_scripts_that_comfyui_loads_lie_above_the_rooms():
    """ComfyUI loads every .js file below web/, and an .mjs file only where another imports it."""
    assert {path.suffix for path in JS.iterdir() if path.is_file()} == {".js"}
    assert list(JS.glob("*/**/*.js")) == []
    used = {target for path in sources() for target, _ in imports(path)}
    assert {path.resolve() for path in JS.rglob("*.mjs")} == used
