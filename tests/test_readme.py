"""What README.md and CONTRIBUTING.md say is true of the tree they stand in."""

import re
import subprocess
from pathlib import Path

from bestiary.trainer.__main__ import app
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
        words = line[line.index("bestiary ") :].split()[1:]
        verbs = [word for word in words[:2] if re.fullmatch(r"[a-z][a-z-]*", word)]
        answer = _help_of(verbs)
        for option in re.findall(r" (--[a-z-]+)(?=[ \n]|$)", line):
            assert option in answer, f"README shows {option!r} in {line!r}"


def _help_of(verbs: list[str]) -> str:
    runner = CliRunner(env={"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"})
    while verbs:
        outcome = runner.invoke(app, [*verbs, "--help"])
        if outcome.exit_code == 0:
            return outcome.output
        verbs = verbs[:-1]
    raise AssertionError("no such command")


def test_files_that_commands_show_are_where_the_commands_before_them_write() -> None:
    from bestiary.trainer.settings import RunSettings

    lines = [line for block in _shell_blocks() for line in block.splitlines()]
    (run,) = [re.search(r"--out (\S+)", line).group(1) for line in lines if line.startswith("bestiary train parts")]
    shown = {word for line in lines for word in line.split() if word.endswith(".safetensors")}
    assert shown == {f"{run}/{RunSettings().name}.safetensors"}
    found = re.search(r"--out (\S+)", next(line for line in lines if line.startswith("bestiary discover"))).group(1)
    assert all(f"--discovery {found}" in line for line in lines if "--discovery" in line)


def test_pictures_and_files_that_readme_links_exist() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    assert [target for target in targets if "://" not in target and not (ROOT / target).exists()] == []


def test_the_map_names_files_that_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    package, missing = None, []
    for line in text.splitlines():
        heading = re.match(r"\| `([\w/]+)/`:", line)
        package = heading.group(1) if heading else package
        for name in re.findall(r"`([\w*]+\.py)`", line) if package else []:
            if line.startswith("|") and not list((ROOT / package).glob(name)):
                missing.append(f"{package}/{name}")
    assert missing == []


def test_the_map_has_a_place_for_every_module() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    patterns = re.findall(r"`([\w*]+\.py)`", text)
    homeless = [
        f"{package}/{path.name}"
        for package in ("concepts", "demo", "nodes", "scenes", "trainer")
        for path in (ROOT / package).rglob("*.py")
        if path.name != "__init__.py" and not any(path.match(pattern) for pattern in patterns)
    ]
    assert homeless == []


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
