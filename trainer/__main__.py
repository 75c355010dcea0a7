"""The program `bestiary` with all its commands, whose implementations are imported only when they run.

Exit codes: 0 success, 2 an error that the user can fix (one line says how), 130 stopped by the user.
"""

import importlib.util
import io
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast


def _run_uninstalled() -> int:
    """Make the pack importable as `bestiary` when this folder is run as a script, and run the program from there."""
    root = Path(__file__).resolve().parent.parent
    script_folder = str(root / "trainer")
    # remove the script's own folder: its modules would shadow others of the same name
    sys.path[:] = [entry for entry in sys.path if entry != script_folder]
    places = [str(root)]
    spec = importlib.util.spec_from_file_location("bestiary", root / "__init__.py", submodule_search_locations=places)
    if spec is None or spec.loader is None:
        raise ImportError(f"{root} has no loadable __init__.py: install the pack again")
    module = importlib.util.module_from_spec(spec)
    sys.modules["bestiary"] = module
    spec.loader.exec_module(module)
    return importlib.import_module("bestiary.trainer.__main__").main()


if not __package__:
    sys.exit(_run_uninstalled())

if importlib.util.find_spec("typer") is None:
    sys.stderr.write('bestiary: the command line needs typer: install it with `pip install "bestiary[trainer]"`\n')
    sys.exit(2)

import typer  # noqa: E402
from typer.core import TyperGroup  # noqa: E402

from ..concepts.errors import BestiaryError  # noqa: E402
from .commands import demo, discover, files, scenes, train, use  # noqa: E402
from .learning.run.stop_signals import listen_for_stop  # noqa: E402

# typer depended on click and later vendored it: the base class of the public BadParameter is right for both
_UsageFault = cast("type[typer.BadParameter]", typer.BadParameter.__mro__[2])

_EXTRA = ("diffusers", "transformers", "accelerate")
_NO_MEMORY = "out of memory: use a smaller batch or size; for training also base.checkpointing=true or a smaller recipe"
_COMMANDS = (
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
)


class _InOrderOfWork(TyperGroup):
    """Lists commands in the order of the workflow, not alphabetically."""

    def list_commands(self, ctx: Any) -> list[str]:
        # the class of `ctx` is typer's or click's, depending on the version of typer
        return sorted(super().list_commands(ctx), key=_COMMANDS.index)


app = typer.Typer(
    cls=_InOrderOfWork,
    name="bestiary",
    help="Learn the parts of things from pictures and recombine them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["--help"]},
)
app.add_typer(demo.app, name="demo")
discover.register(app)
train.register(app)
use.register(app)
scenes.register(app)
files.register(app)


_FLAGS = {
    "base": "--base",
    "images.class_images": "--class-images",
    "captions.instance_prompt": "--prompt",
    "captions.class_prompt": "--class-prompt",
}
"""`BestiaryError.option` -> the flag that sets it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; errors that the user can fix become one line on stderr."""
    listen_for_stop()
    # limited encodings (cp1252) and undecodable file names must not crash a command that has done its work
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("httpx", "PIL", "timm"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        result = app(args=None if arguments is None else list(arguments), prog_name="bestiary", standalone_mode=False)
    # newer versions of typer turn Ctrl-C into the exit code 130, older ones raise
    except (KeyboardInterrupt, typer.Abort):
        result = 130
    except _UsageFault as fault:
        # a command group without arguments prints its help, which has several lines
        if "NoArgsIsHelp" in type(fault).__name__:
            typer.echo(fault.format_message(), err=True)
            return 2
        return _failed(f"{fault.format_message()} (see `bestiary --help`)", 2)
    except BestiaryError as fault:
        return _failed(_worded(fault), 2)
    except ModuleNotFoundError as fault:
        # a missing extra is for the user to install; any other missing module is a bug and keeps its traceback
        if (fault.name or "").split(".")[0] not in _EXTRA:
            raise
        return _failed(f'this command needs {fault.name}: install it with `pip install "bestiary[trainer]"`', 2)
    except OSError as fault:
        return _failed(f"{fault.filename or 'a file'}: {fault.strerror or fault}", 2)
    except (MemoryError, RuntimeError) as fault:
        # torch's OutOfMemoryError, matched by name so that torch need not be imported here
        if not isinstance(fault, MemoryError) and type(fault).__name__ != "OutOfMemoryError":
            raise
        return _failed(f"{_NO_MEMORY} ({str(fault).split('. ')[0] or 'allocation failed'})", 2)
    if result == 130:
        return _failed("stopped; run the same command again (or `bestiary resume RUN`) to continue", 130)
    return result if isinstance(result, int) else 0


def _worded(fault: BestiaryError) -> str:
    """The message of an error, with the command-line option it refers to."""
    if fault.option is None:
        return str(fault)
    # what has no flag of its own is a setting of the recipe
    return f"{fault} (see {_FLAGS.get(fault.option, f'--set {fault.option}=...')})"


def _failed(message: str, code: int) -> int:
    over_progress = "\r\x1b[2K" if sys.stderr.isatty() else ""
    typer.echo(f"{over_progress}bestiary: {' '.join(message.split())}", err=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
