"""Registers the pack as `bestiary` the way ComfyUI loads one: without its folder on the module search path."""

import importlib.util
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def _register_pack() -> None:
    spec = importlib.util.spec_from_file_location(
        "bestiary", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["bestiary"] = module
    spec.loader.exec_module(module)


# `python -m pytest` puts the working folder first on the search path, where our nodes/ would hide ComfyUI's nodes.py
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT.resolve()]
_register_pack()
# a shell that starts us in the background has Ctrl-C ignored, and every child would inherit that
signal.signal(signal.SIGINT, signal.default_int_handler)
