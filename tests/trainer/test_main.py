"""The program: quick help from every way of starting it, exit codes, one line for a fault."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.part_dictionary.part_dictionary import PartDictionary
from bestiary.trainer import __main__ as program
from bestiary.trainer.commands import files as commands_files

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = [
    "demo",
    "discover",
    "parts",
    "train",
    "resume",
    "doctor",
    "compose",
    "scenes",
    "evaluate",
    "import",
    "export",
    "inspect",
]


def _only_line(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1, captured.err
    return captured.err.strip()


@pytest.mark.parametrize(
    "start",
    [[sys.executable, "-m", f"{ROOT.name}.trainer"], [sys.executable, str(ROOT / "trainer")]],
    ids=["as a module beside other packs", "as a folder, not installed"],
)
def test_help_without_installation(start):
    done = subprocess.run([*start, "--help"], cwd=ROOT.parent, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.split("Commands:")[1].splitlines() if line.strip()] == COMMANDS


def test_folder_run_as_a_script_reports_faults_too(tmp_path):
    command = [sys.executable, str(ROOT / "trainer"), "inspect", str(tmp_path / "nothing")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.startswith("bestiary: no file ") and "Traceback" not in done.stderr


def test_help_loads_no_heavy_library():
    heavy = ("torch", "diffusers", "transformers", "timm", "sklearn", "numpy", "PIL")
    script = f"import sys, bestiary.trainer.__main__; print([m for m in {heavy} if m in sys.modules])"
    root_as_pack = (
        "import importlib.util, sys; "
        f"s = importlib.util.spec_from_file_location('bestiary', {str(ROOT / '__init__.py')!r}, "
        f"submodule_search_locations=[{str(ROOT)!r}]); "
        "m = importlib.util.module_from_spec(s); sys.modules['bestiary'] = m; s.loader.exec_module(m); "
    )
    done = subprocess.run([sys.executable, "-c", root_as_pack + script], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("command", [[name, "--help"] for name in COMMANDS] + [["train", "parts", "--help"]])
def test_every_command_has_help(command, capsys):
    assert program.main(command) == 0
    assert "Usage: bestiary" in capsys.readouterr().out


def _options(group, path=()):
    commands = getattr(group, "commands", None)
    if commands:
        for name, command in commands.items():
            yield from _options(command, (*path, name))
    for parameter in group.params:
        for option in getattr(parameter, "opts", []):
            if option.startswith("-"):
                yield path, option


def test_options_are_long_only():
    options = list(_options(typer.main.get_command(program.app)))
    assert len(options) > 40
    assert [option for option in options if not option[1].startswith("--")] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "x", "--colour"], "No such option: --colour"),
        (["inspect"], "Missing argument"),
        (["birdwatch"], "No such command"),
        (["compose", "x", "y", "--count", "many"], "--count"),
        (["compose", "x", "y", "--dtype", "int8"], "--dtype"),
    ],
)
def test_wrong_usage_is_one_line_and_code_2(arguments, message, capsys):
    assert program.main(arguments) == 2
    line = _only_line(capsys)
    assert message in line and line.startswith("bestiary: ")


def test_no_arguments_show_the_commands(capsys):
    assert program.main([]) in (0, 2)
    captured = capsys.readouterr()
    assert "discover" in captured.out + captured.err


def _raising(monkeypatch: pytest.MonkeyPatch, fault: BaseException) -> None:
    def existing(path: Path, kind: str) -> Path:
        raise fault

    monkeypatch.setattr(commands_files, "existing", existing)


def test_user_fault_is_one_line_without_traceback(monkeypatch, capsys):
    _raising(monkeypatch, BestiaryError("the cause\nand the remedy"))
    assert program.main(["inspect", "x"]) == 2
    assert _only_line(capsys) == "bestiary: the cause and the remedy"


@pytest.mark.parametrize(
    ("option", "flag"),
    [("base", "--base"), ("captions.class_prompt", "--class-prompt"), ("method.min_snr", "--set method.min_snr=...")],
)
def test_faults_of_settings_name_the_option(option, flag, monkeypatch, capsys):
    def fail(*args: object, **options: object) -> None:
        raise BestiaryError("it is 3: take 2", option=option)

    monkeypatch.setattr(program, "app", fail)
    assert program.main(["inspect", "x"]) == 2
    assert capsys.readouterr().err == f"bestiary: it is 3: take 2 (see {flag})\n"


def test_file_fault_is_one_line(monkeypatch, capsys):
    _raising(monkeypatch, PermissionError(13, "Permission denied", "birds.safetensors"))
    assert program.main(["inspect", "x"]) == 2
    assert _only_line(capsys) == "bestiary: birds.safetensors: Permission denied"


def test_stop_by_the_user_is_code_130(monkeypatch, capsys):
    _raising(monkeypatch, KeyboardInterrupt())
    assert program.main(["inspect", "x"]) == 130
    assert "stopped" in _only_line(capsys)


def test_missing_extra_says_what_to_install(monkeypatch, capsys):
    _raising(monkeypatch, ModuleNotFoundError("No module named 'diffusers'", name="diffusers"))
    assert program.main(["inspect", "x"]) == 2
    assert "pip install" in _only_line(capsys)


@pytest.mark.parametrize(
    ("fault", "shown"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ..."), "CUDA out of memory"),
        (MemoryError(), "allocation failed"),
    ],
)
def test_memory_that_is_full_is_one_line_with_a_remedy(monkeypatch, capsys, fault, shown):
    _raising(monkeypatch, fault)
    assert program.main(["inspect", "x"]) == 2
    line = _only_line(capsys)
    assert line.startswith("bestiary: out of memory: use a smaller batch") and line.endswith(f"({shown})")


def test_other_faults_of_libraries_are_not_hidden(monkeypatch):
    _raising(monkeypatch, RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes"):
        program.main(["inspect", "x"])


def test_without_the_extra_the_command_says_what_to_install(tmp_path):
    program_without_typer = f"""
import importlib.abc, runpy, sys
class Hide(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "typer":
            raise ModuleNotFoundError("hidden", name=name)
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "typer" else find_spec(name, package)
sys.meta_path.insert(0, Hide())
runpy.run_path({str(ROOT / "trainer")!r}, run_name="__main__")
"""
    command = [sys.executable, "-c", "import importlib.util\n" + program_without_typer]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1 and 'pip install "bestiary[trainer]"' in done.stderr


def test_a_fault_of_the_program_itself_is_not_hidden(monkeypatch):
    _raising(monkeypatch, ModuleNotFoundError("No module named 'bestiary.gone'", name="bestiary.gone"))
    with pytest.raises(ModuleNotFoundError):
        program.main(["inspect", "x"])


def _run(arguments: list[str | bytes], **environment: str) -> subprocess.CompletedProcess:
    """The program in a process of its own, with what it writes as bytes."""
    command = [sys.executable, str(ROOT / "trainer"), *arguments]
    return subprocess.run(command, capture_output=True, check=False, env={**os.environ, **environment})


def _dictionary(folder: Path) -> Path:
    folder.mkdir(parents=True)
    rows, vectors = torch.tensor([[0, 0]]), {"clip_l": torch.ones(1, 768)}
    PartDictionary("sd15", ("head",), ({},), None, rows, vectors).save(folder / "birds.safetensors")
    return folder / "birds.safetensors"


def test_a_console_that_knows_few_letters_ends_no_command(tmp_path: Path) -> None:
    # as Windows consoles often are
    few = {"PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"}
    told = _run(["export", str(_dictionary(tmp_path / "\u9ce5"))], **few)
    assert told.returncode == 0 and b"\\u9ce5" in told.stdout, told.stderr
    assert all(line.startswith(b"wrote ") for line in told.stdout.splitlines())


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names are text in these file systems")
def test_a_name_that_is_no_text_ends_no_command(tmp_path: Path) -> None:
    _dictionary(tmp_path / "made").parent.rename(Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff")))
    told = _run(["export", os.fsencode(tmp_path) + b"/\xff/birds.safetensors"])
    assert told.returncode == 0 and b"\\udcff" in told.stdout, told.stderr
    missing = _run(["inspect", os.fsencode(tmp_path) + b"/\xff/none.safetensors"])
    assert missing.returncode == 2 and missing.stderr.startswith(b"bestiary: no file ")
    assert missing.stderr.count(b"\n") == 1
