"""What README.md and CONTRIBUTING.md say is true of the tree they stand in."""

import ast
import json
import re
import subprocess
from pathlib import Path

import pytest
from bestiary.trainer.__main__ import app
from PIL import Image
from typer.testing import CliRunner

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def _shell_blocks() -> list[str]:
    return re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)


def _set_up_commands() -> list[str]:
    return [line for block in _shell_blocks() for line in block.splitlines() if "venv" in line]


def test_exactly_two_set_up_commands() -> None:
    demo, tests = _set_up_commands()
    assert "[trainer]" in demo and "bestiary demo" in demo
    assert "[test]" in tests and "pytest" in tests


def test_every_command_and_option_that_readme_shows_exists() -> None:
    shown = [line.split("#")[0] for block in _shell_blocks() for line in block.splitlines() if "bestiary " in line]
    assert len(shown) >= 5
    for line in shown:
        _check_command(line)


def test_every_command_recipe_and_template_of_the_page_about_spectra_exists() -> None:
    page = (ROOT / "docs" / "spectra.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```sh\n(.*?)```", page.replace("\\\n", " "), flags=re.DOTALL)
    shown = [line for block in blocks for line in block.splitlines()]
    assert len(shown) >= 8
    for line in shown:
        _check_command(line)
    recipes = set(re.findall(r"`(spectrum_(?:demo|sd\w+))`", page)) | set(re.findall(r"--recipe (\S+)", page))
    assert len(recipes) == 3 and all((ROOT / "trainer" / "recipes" / f"{name}.toml").is_file() for name in recipes)
    (templates,) = re.findall(r"the templates (.*?) run without", page, flags=re.DOTALL)
    named = re.findall(r"`(\w+)`", templates)
    assert len(named) >= 5 and all((ROOT / "example_workflows" / f"{name}.json").is_file() for name in named)
    assert [link for link in re.findall(r"\]\(([^)]+)\)", page) if not (ROOT / "docs" / link).exists()] == []


def _check_command(line: str) -> None:
    """A shown command exists with every option it is shown with."""
    words = line[line.index("bestiary ") :].split()[1:]
    verbs = [word for word in words[:2] if re.fullmatch(r"[a-z][a-z-]*", word)]
    answer = _help_of(verbs)
    for option in re.findall(r" (--[a-z-]+)(?=[ \n]|$)", line):
        assert option in answer, f"{option!r} is shown in {line!r}"


def _help_of(verbs: list[str]) -> str:
    runner = CliRunner(env={"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"})
    while verbs:
        outcome = runner.invoke(app, [*verbs, "--help"])
        if outcome.exit_code == 0:
            return outcome.output
        verbs = verbs[:-1]
    raise AssertionError("no such command")


def test_files_that_commands_show_are_where_the_commands_before_them_write() -> None:
    from bestiary.trainer.learning.run.run_settings import RunSettings

    lines = [line for block in _shell_blocks() for line in block.splitlines()]
    (run,) = [re.search(r"--out (\S+)", line).group(1) for line in lines if line.startswith("bestiary train parts")]
    (learned,) = [line for line in lines if line.startswith("bestiary train spectrum")]
    spectrum = "/".join(re.search(pattern, learned).group(1) for pattern in (r"--out (\S+)", r"--name (\S+)"))
    shown = {word for line in lines for word in line.split() if word.endswith(".safetensors")}
    assert shown == {f"{run}/{RunSettings().name}.safetensors", f"{spectrum}.safetensors"}
    found = re.search(r"--out (\S+)", next(line for line in lines if line.startswith("bestiary discover"))).group(1)
    assert all(f"--discovery {found}" in line for line in lines if "--discovery" in line)


def test_pictures_and_files_that_readme_links_exist() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    assert [target for target in targets if "://" not in target and not (ROOT / target).exists()] == []


def test_pictures_of_help_pages_lie_beside_them_and_are_small() -> None:
    pages = sorted((ROOT / "web" / "docs").glob("*.md"))
    shown = {name for page in pages for name in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", page.read_text(encoding="utf-8"))}
    assert shown == {path.name for path in (ROOT / "web" / "docs").glob("*.jpg")}
    for name in shown:
        picture = ROOT / "web" / "docs" / name
        assert Image.open(picture).width <= 640 and picture.stat().st_size <= 40_000


def _registered_modules() -> list[str]:
    """Names of the modules whose nodes nodes/registration.py lists, by room, such as demo/demo_model_nodes; read without ComfyUI."""
    tree = ast.parse((ROOT / "nodes" / "registration.py").read_text(encoding="utf-8"))
    spread = [node.value for node in ast.walk(tree) if isinstance(node, ast.Starred)]
    rooms = {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level == 1
        for alias in node.names
    }
    listed = [value.value.id for value in spread if isinstance(value, ast.Attribute) and value.attr == "NODES"]
    return [f"{rooms[name]}/{name}" for name in listed]


def _node_names() -> list[str]:
    """Display names of all registered nodes: their ids from the syntax trees of their modules, their texts from the locale."""
    texts = json.loads((ROOT / "locales" / "en" / "nodeDefs.json").read_text(encoding="utf-8"))
    names = []
    for module in _registered_modules():
        tree = ast.parse((ROOT / "nodes" / f"{module}.py").read_text(encoding="utf-8"))
        calls = [
            node for node in ast.walk(tree) if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "schema"
        ]
        assert calls, f"nodes/{module}.py holds no schema"
        constants = {
            target.id: node.value.value
            for node in tree.body
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for call in calls:
            fields = {word.arg: word.value for word in call.keywords}
            node_id = fields["node_id"]
            name = constants[node_id.id] if isinstance(node_id, ast.Name) else ast.literal_eval(node_id)
            named = texts[name]["display_name"]
            names.append(named.removesuffix(" (Bestiary)"))
    return names


def test_the_table_of_nodes_is_that_of_the_registration() -> None:
    table = README.split("<!-- nodes -->")[1].split("\n\n")[0]
    shown = re.findall(r"\*\*([^*]+)\*\*", table)
    assert len(_registered_modules()) >= 7
    assert sorted(shown) == sorted(_node_names())


def test_templates_that_readme_names_exist() -> None:
    named = re.findall(r"`(\w+_\w+)`", README.split("## In ComfyUI")[1].split("\n## ")[0])
    assert len(named) >= 2
    assert [name for name in named if not (ROOT / "example_workflows" / f"{name}.json").exists()] == []


def test_pictures_of_the_registry_are_in_the_tree() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for field, ratio in (("Icon", 1), ("Banner", 21 / 9)):
        (link,) = re.findall(
            rf'^{field} = "https://raw.githubusercontent.com/[\w-]+/ComfyUI-Bestiary/main/(.+)"$', project, re.M
        )
        picture = Image.open(ROOT / link)
        assert picture.width / picture.height == pytest.approx(ratio, rel=0.01)
        assert (ROOT / link).stat().st_size < 100_000
        if field == "Icon":
            assert picture.width <= 400


CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PACKAGES = ("concepts", "demo", "nodes", "scenes", "trainer")


def test_the_map_has_one_line_for_every_room_and_for_files_beside_rooms() -> None:
    lines = [line for line in CONTRIBUTING.splitlines() if line.startswith("| `")]
    named = [name for line in lines for name in re.findall(r"`([\w/.]+)`", line.split("|")[1])]
    houses = {"concepts", "nodes", "trainer"}
    paths = [path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    rooms = {f"{path.parent.as_posix()}/" for path in paths} - {f"{house}/" for house in houses}
    beside = {path.as_posix() for path in paths if path.parent.as_posix() in houses and path.name != "__init__.py"}
    rooms |= {f"{path.parent.relative_to(ROOT).as_posix()}/" for path in (ROOT / "web" / "js").glob("*/*.mjs")}
    headings = {f"{house}/" for house in houses} | {"web/js/"}
    assert sorted(name for name in named if name not in headings) == sorted(rooms | beside | {"trainer/recipes/"})


def test_the_map_and_its_walks_name_files_and_functions_that_exist() -> None:
    files = set(re.findall(r"`([\w/]+/[\w]+\.\w+)`", CONTRIBUTING)) - {"trainer/__main__.py"}
    assert len(files) > 25 and [name for name in files if not (ROOT / name).is_file()] == []
    walks = CONTRIBUTING.split("# Walks")[1].split("\n# ")[0]
    told = re.findall(r"`([\w/]+\.py)`\s+\(((?:`\w+`(?:, )?)+)\)", walks)
    assert len(told) > 8
    missing = [
        f"{file}: {name}"
        for file, names in told
        for name in re.findall(r"\w+", names)
        if f"def {name}(" not in (ROOT / file).read_text(encoding="utf-8")
    ]
    assert missing == []


def test_no_machine_path_in_tracked_files() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        return  # an archive without git
    guilty = []
    for name in filter(None, listed.stdout.split("\0")):
        content = (ROOT / name).read_bytes()
        if re.search(rb"(?<![\w.])/(work|farm|root)/", content) and name != "tests/test_readme.py":
            guilty.append(name)
    assert guilty == []
