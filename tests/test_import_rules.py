"""The arrows between our packages, and what each may import from outside, read from the syntax trees."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

ALLOWED_OURS = {
    "concepts": set(),
    "scenes": {"concepts"},
    "demo": {"concepts"},
    "trainer": {"concepts", "scenes", "demo"},
    "nodes": {"concepts", "scenes", "demo", "trainer"},
}
HOST = {"comfy", "comfy_api", "comfy_extras", "folder_paths", "server", "nodes"}
HEAVY = {"diffusers", "transformers", "peft", "accelerate"}
BANNED_OUTSIDE = {
    "concepts": HOST | HEAVY,
    "scenes": HOST | HEAVY,
    "demo": HOST | HEAVY,
    "trainer": HOST,
    "trainer/learning": HOST | HEAVY,
    "nodes": HEAVY,
}
LEARNING = "trainer.learning"
"""The room that the graph shares with the command line: nothing in it, nor what it imports, loads a library that holds models."""
ON_THEIR_OWN = {"concepts.errors", "concepts.name_search"}
"""Modules beside the rooms that every room may import."""


def _modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def _relative_targets(source: str, depth: int) -> set[str]:
    """Top-level packages of ours that a file `depth` folders below the root reaches by relative imports."""
    targets = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.level > depth:
            first = node.module.split(".")[0] if node.module else None
            targets |= {first} if first else {alias.name for alias in node.names}
    return targets


def _targets_of(path: Path) -> set[str]:
    return _relative_targets(path.read_text(encoding="utf-8"), len(path.relative_to(ROOT).parts) - 1)


def _outside_imports(path: Path, *, module_level: bool = False) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = set()
    for node in tree.body if module_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.split(".")[0])
    return found


def _own_imports(source: str, package: tuple[str, ...]) -> set[str]:
    """What a file of `package`, such as ("nodes", "host"), imports of ours: `trainer.learning.run.fit`, with or without a name in it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = (*package[: len(package) - node.level + 1], *(node.module.split(".") if node.module else ()))
            found |= {".".join((*base, alias.name)) for alias in node.names}
    return found


def _own_imports_of(path: Path) -> set[str]:
    return _own_imports(path.read_text(encoding="utf-8"), path.relative_to(ROOT).parts[:-1])


def _within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def _room(module: str) -> str:
    """The folder that holds a module, `trainer.learning` being a house of rooms; a file beside the rooms is one by itself."""
    parts = module.split(".")
    floor = 3 if _within(module, LEARNING) else 2
    return ".".join(parts[:floor])


@pytest.mark.parametrize("package", ALLOWED_OURS)
def test_arrows_between_our_packages(package: str) -> None:
    faults = {
        str(path.relative_to(ROOT)): sorted(wrong)
        for path in _modules(package)
        if (wrong := (_targets_of(path) & set(ALLOWED_OURS)) - ALLOWED_OURS[package] - {package})
    }
    assert faults == {}


LOADED_WHEN_ASKED_FOR = {"nodes/deepfloyd_if/if_model.py": {"diffusers"}}
"""A model that ComfyUI has no code for: inside a function, and its absence is told with the command that installs it."""


@pytest.mark.parametrize("package", BANNED_OUTSIDE)
def test_outside_libraries(package: str) -> None:
    faults = {
        str(path.relative_to(ROOT)): sorted(wrong)
        for path in _modules(package)
        if (
            wrong := (_outside_imports(path) & BANNED_OUTSIDE[package])
            - LOADED_WHEN_ASKED_FOR.get(path.relative_to(ROOT).as_posix(), set())
        )
    }
    assert faults == {}


def test_nobody_imports_the_pack_by_name() -> None:
    faults = [
        str(path.relative_to(ROOT))
        for package in ALLOWED_OURS
        for path in _modules(package)
        if "bestiary" in _outside_imports(path) and path.name != "__main__.py"
    ]
    assert faults == []


@pytest.mark.parametrize("package", ["nodes", "trainer/learning"])
def test_of_the_trainer_only_learning_is_imported(package: str) -> None:
    """By the graph, and by what the graph shares with the command line."""
    faults = {
        str(path.relative_to(ROOT)): sorted(wrong)
        for path in _modules(package)
        if (
            wrong := {
                name for name in _own_imports_of(path) if _within(name, "trainer") and not _within(name, LEARNING)
            }
        )
    }
    assert faults == {}


def test_imports_of_any_level_are_resolved() -> None:
    assert _own_imports("from ...trainer.composing.compose import make", ("nodes", "host")) == {
        "trainer.composing.compose.make"
    }
    assert _own_imports("def f():\n    from ..trainer.model import sampling", ("nodes",)) == {"trainer.model.sampling"}
    assert _own_imports("from . import fit\nfrom ..parts.settings import A", ("trainer", "learning", "run")) == {
        "trainer.learning.run.fit",
        "trainer.learning.parts.settings.A",
    }
    assert not _within("trainer.learning_curves", LEARNING) and _within("trainer.learning.run.fit", LEARNING)


def test_rooms_stand_above_each_other() -> None:
    """No room imports one that stands, over however many others, on it; imports inside functions and for types count too."""
    arrows: dict[str, set[str]] = {}
    for package in ALLOWED_OURS:
        for path in _modules(package):
            here = _room(".".join(path.relative_to(ROOT).with_suffix("").parts))
            arrows.setdefault(here, set())
            arrows[here] |= {_room(name) for name in _own_imports_of(path)} - ON_THEIR_OWN - {here}
    assert len(arrows) > 35 and not [room for room in arrows["trainer.learning.run"] if _within(room, "trainer")]
    assert list(graphlib.TopologicalSorter(arrows).static_order())
    with pytest.raises(graphlib.CycleError):
        list(graphlib.TopologicalSorter({**arrows, "concepts.files": {"nodes.host"}}).static_order())


def _file_arrows(modules: dict[str, Path]) -> dict[str, set[str]]:
    """Module -> modules it imports, inside functions and for types too; a package stands for its `__init__`."""
    arrows = {}
    for name, path in modules.items():
        asked = _own_imports_of(path)
        arrows[name] = {module for one in asked for module in (one, one.rpartition(".")[0]) if module in modules} - {
            name
        }
    return arrows


def test_files_stand_above_each_other() -> None:
    """No file imports one that imports it again, over however many others."""
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): path
        for package in ALLOWED_OURS
        for path in _modules(package)
    }
    arrows = _file_arrows(modules)
    assert sum(map(len, arrows.values())) > 1000
    assert list(graphlib.TopologicalSorter(arrows).static_order())
    with pytest.raises(graphlib.CycleError):
        list(graphlib.TopologicalSorter({**arrows, "concepts.errors": {"nodes.registration"}}).static_order())


def test_timm_and_scikit_learn_are_never_imported_at_module_level() -> None:
    faults = [
        str(path.relative_to(ROOT))
        for path in _modules("concepts")
        if _outside_imports(path, module_level=True) & {"timm", "sklearn"}
    ]
    assert faults == []


@pytest.mark.parametrize(
    "line", ["from ..trainer import settings", "from .. import trainer", "from ..trainer.learning.run.fit import x"]
)
def test_an_arrow_against_the_rules_is_found(line: str) -> None:
    assert _relative_targets(line, depth=1) == {"trainer"}


def test_an_import_of_the_host_is_found(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.py"
    wrong.write_text("def f():\n    import comfy.utils\n")
    assert _outside_imports(wrong) & HOST == {"comfy"}
    assert _outside_imports(wrong, module_level=True) == set()


def test_every_method_module_imports_without_host_and_trainer_libraries() -> None:
    """Imports concepts, scenes and demo in a process where the heavy libraries cannot be found."""
    names = [
        ".".join(("bestiary", *path.relative_to(ROOT).with_suffix("").parts))
        for package in ("concepts", "scenes", "demo")
        for path in _modules(package)
        if path.name != "__init__.py"
    ]
    program = f"""
import importlib, importlib.abc, importlib.util, sys
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {HOST | HEAVY | {"timm", "sklearn"}!r}:
            raise ImportError("refused: " + name)
sys.meta_path.insert(0, Refuse())
spec = importlib.util.spec_from_file_location("bestiary", {str(ROOT / "__init__.py")!r},
    submodule_search_locations=[{str(ROOT)!r}])
sys.modules["bestiary"] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
for name in {names!r}:
    importlib.import_module(name)
"""
    outcome = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT.parent)
    assert outcome.returncode == 0, outcome.stderr[-2000:]


def test_the_root_folder_is_not_on_the_module_search_path() -> None:
    assert str(ROOT) not in sys.path
