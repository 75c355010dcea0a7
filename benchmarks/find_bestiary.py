"""Makes `import bestiary` give the pack around this folder where it is not installed; import this before it."""

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

if "bestiary" not in sys.modules and importlib.util.find_spec("bestiary") is None:
    _spec = importlib.util.spec_from_file_location(
        "bestiary", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert _spec and _spec.loader, "the pack begins with a Python file"
    sys.modules["bestiary"] = _pack = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(_pack)
