"""Starting from anywhere, and what starting costs: light imports, the module and the installed command, lint that guards both."""

import importlib.metadata
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = (
    "torch",
    "diffusers",
    "transformers",
    "peft",
    "accelerate",
    "timm",
    "sklearn",
    "numpy",
    "PIL",
    "pydantic",
    "typer",
)
GRAPH_HEAVY = ("diffusers", "transformers", "peft", "accelerate", "timm", "sklearn", "typer")
LOAD_AS_COMFYUI = f"""
import importlib.util, sys, time
started = time.process_time()
spec = importlib.util.spec_from_file_location("bestiary", {str(ROOT / "__init__.py")!r},
    submodule_search_locations=[{str(ROOT)!r}])
sys.modules["bestiary"] = pack = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pack)
"""


def _run(program: str, **variables: str) -> str:
    environment = {**os.environ, **variables}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT.parent, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


def test_the_pack_and_its_trainer_import_nothing_heavy_and_quickly() -> None:
    answer = _run(
        LOAD_AS_COMFYUI
        + "import bestiary.trainer, bestiary.concepts, bestiary.demo, bestiary.scenes\n"
        + f"print([name for name in {HEAVY} if name in sys.modules], time.process_time() - started < 0.3)"
    )
    assert answer == "[] True"


def test_modules_that_the_graph_shares_load_no_library_of_the_trainer() -> None:
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in (ROOT / "trainer" / "learning").rglob("*.py")
    ]
    assert len(modules) > 30
    answer = _run(
        LOAD_AS_COMFYUI
        + "".join(f"import bestiary.{module}\n" for module in sorted(modules))
        + f"print([name for name in {GRAPH_HEAVY} if name in sys.modules])"
    )
    assert answer == "[]"


def test_importing_every_method_module_downloads_and_starts_nothing() -> None:
    modules = [
        ".".join(("bestiary", *path.relative_to(ROOT).with_suffix("").parts))
        for package in ("concepts", "demo", "scenes")
        for path in sorted((ROOT / package).rglob("*.py"))
        if path.stem != "__init__"
    ]
    answer = _run(
        "import socket\n"
        "def refuse(*a, **k): raise AssertionError('network')\n"
        "socket.socket.connect = refuse\n" + LOAD_AS_COMFYUI + f"import importlib\nfor n in {modules!r}:\n"
        "    importlib.import_module(n)\n"
        f"print([name for name in {GRAPH_HEAVY} if name in sys.modules])"
    )
    assert answer == "[]"


@pytest.mark.parametrize("name", ["ComfyUI-Bestiary", "bestiary", "comfyui_bestiary-main"])
def test_the_module_starts_beside_other_packs_under_any_folder_name(tmp_path: Path, name: str) -> None:
    custom_nodes = tmp_path / "custom_nodes"
    custom_nodes.mkdir()
    (custom_nodes / name).symlink_to(ROOT, target_is_directory=True)
    command = [sys.executable, "-m", f"{name}.trainer", "--help"]
    done = subprocess.run(command, cwd=custom_nodes, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Usage: bestiary" in done.stdout and "discover" in done.stdout


def test_the_installed_command_starts(tmp_path: Path) -> None:
    try:
        importlib.metadata.distribution("bestiary")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("bestiary is not installed in this environment")
    program = Path(sysconfig.get_path("scripts")) / ("bestiary.exe" if os.name == "nt" else "bestiary")
    for command in ([str(program)], [sys.executable, "-m", "bestiary.trainer"]):
        done = subprocess.run([*command, "--help"], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "Usage: bestiary" in done.stdout


def _ruff(place: str, source: str) -> str:
    """What lint says of a source as if it stood at `place`."""
    command = [
        sys.executable,
        "-m",
        "ruff",
        "check",
        "--output-format",
        "concise",
        "--no-cache",
        "--stdin-filename",
        place,
        "-",
    ]
    done = subprocess.run(command, input=source, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode in (0, 1), done.stderr
    return done.stdout


@pytest.mark.parametrize("package", ["concepts", "concepts/files", "scenes", "demo", "trainer", "trainer/learning/run"])
def test_lint_refuses_an_import_of_the_host(package: str) -> None:
    pytest.importorskip("ruff")
    for line in ("import comfy.utils", "import nodes", "from folder_paths import models_dir", "import comfy_api"):
        source = f'"""Wrong."""\n\n{line}\n\nUSED = {line.split()[1].split(".")[0] if line.startswith("import") else "models_dir"}\n'
        assert "TID251" in _ruff(f"{package}/wrong.py", source), line
    own = '"""Right."""\n\nfrom ..nodes import registration\n\nUSED = registration\n'
    assert "TID251" not in _ruff(f"{package}/right.py", own)


@pytest.mark.parametrize(
    "package", ["concepts", "concepts/files", "scenes", "demo", "nodes/host", "trainer/learning/run"]
)
def test_lint_refuses_the_trainers_libraries_elsewhere(package: str) -> None:
    pytest.importorskip("ruff")
    source = '"""Wrong."""\n\n\ndef load() -> object:\n    """Load."""\n    import diffusers.models\n\n    return diffusers\n'
    assert "TID251" in _ruff(f"{package}/wrong.py", source)
    assert "TID251" not in _ruff("trainer/right.py", source)
    assert "TID251" not in _ruff("trainer/model/right.py", source)


def test_tests_never_hide_comfyuis_modules(tmp_path: Path) -> None:
    """ComfyUI's `nodes.py` and our folder `nodes` have one name: with both at hand, a test gets ComfyUI's."""
    (tmp_path / "nodes.py").write_text("WHOSE = 'the host'\n")
    program = f"""
import runpy, sys
sys.path[:0] = ["", {str(ROOT)!r}, {str(tmp_path)!r}]
runpy.run_path({str(ROOT / "tests" / "conftest.py")!r})
import nodes
print(nodes.WHOSE)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "the host", done.stderr
