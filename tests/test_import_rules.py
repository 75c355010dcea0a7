"""The arrows between our packages, and what each may import from outside, read from the syntax trees."""

import ast
import re
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
    "nodes": HEAVY,
}
LIGHT_TRAINER_MODULES = (
    *("__init__", "fit", "settings", "launch", "run_folder", "recipe_file", "training_state", "learning_curves"),
    *("stop_signals", "objective_setup", "part_objective", "training_kinds", "token_start", "concept_images"),
    *("latent_cache", "image_files", "discovery_folder", "discovery_schema", "finished_parts"),
    *("preview_sheets", "contact_sheet"),
    *("heat_maps", "attention_capture", "progress_report", "prompt_encoding", "spectrum_settings"),
    *("spectrum_objective", "spectrum_objective_setup", "spectrum_images", "spectrum_sheet", "model_folder"),
    *("mask_files", "companion_files", "discovery_doubts", "part_names"),
)
"""What the graph shares with the command line: none of them, nor what they import, loads a library that holds models."""


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


def _trainer_modules(source: str) -> set[str]:
    """Modules of the trainer that a file of nodes/ imports."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.level == 2 and node.module:
            package, _, module = node.module.partition(".")
            if package == "trainer":
                found |= {module.split(".")[0]} if module else {alias.name for alias in node.names}
    return found


@pytest.mark.parametrize("package", ALLOWED_OURS)
def test_arrows_between_our_packages(package: str) -> None:
    faults = {
        str(path.relative_to(ROOT)): sorted(wrong)
        for path in _modules(package)
        if (wrong := (_targets_of(path) & set(ALLOWED_OURS)) - ALLOWED_OURS[package] - {package})
    }
    assert faults == {}


@pytest.mark.parametrize("package", BANNED_OUTSIDE)
def test_outside_libraries(package: str) -> None:
    faults = {
        str(path.relative_to(ROOT)): sorted(wrong)
        for path in _modules(package)
        if (wrong := _outside_imports(path) & BANNED_OUTSIDE[package])
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


def test_nodes_use_only_the_light_modules_of_the_trainer() -> None:
    faults = {
        str(path.relative_to(ROOT)): sorted(wrong)
        for path in _modules("nodes")
        if (wrong := _trainer_modules(path.read_text(encoding="utf-8")) - set(LIGHT_TRAINER_MODULES))
    }
    assert faults == {}


def test_a_heavy_module_of_the_trainer_is_found() -> None:
    assert _trainer_modules("from ..trainer.composing.compose import compose") == {"compose"}
    assert _trainer_modules("def f():\n    from ..trainer import fit, sampling") == {"fit", "sampling"}


def test_modules_that_the_graph_shares_stay_light() -> None:
    faults = {
        name: sorted(wrong)
        for name in LIGHT_TRAINER_MODULES
        if (wrong := _outside_imports(ROOT / "trainer" / f"{name}.py") & HEAVY)
    }
    assert faults == {}


def _siblings(source: str) -> set[str]:
    """Modules of its own package that a file imports when it is loaded or run, those for type checkers left out."""
    found = set()
    for node in ast.walk(ast.parse(re.sub(r"(?m)^if TYPE_CHECKING:\n(    .*\n)+", "", source))):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            found |= {node.module.split(".")[0]} if node.module else {alias.name for alias in node.names}
    return found


def test_modules_that_the_graph_shares_import_only_each_other() -> None:
    faults = {
        name: sorted(wrong)
        for name in LIGHT_TRAINER_MODULES
        if (wrong := _siblings((ROOT / "trainer" / f"{name}.py").read_text("utf-8")) - set(LIGHT_TRAINER_MODULES))
    }
    assert faults == {}
    assert _siblings("from .a import b\n\nif TYPE_CHECKING:\n    from .c import d\n\nfrom . import e\n") == {"a", "e"}


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
