"""Registers the pack as `bestiary` the way ComfyUI loads one: without its folder on the module search path."""

import importlib.util
import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

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


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One thread, since sums of several have no fixed order, and torch's generator at seed 0."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def prompt_rules() -> dict:
    """The cases of fixtures/prompt_rules.json, which the server's tests and the browser's read."""
    return json.loads((ROOT / "tests" / "fixtures" / "prompt_rules.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def ruled_dictionaries(prompt_rules: dict) -> dict:
    """Name -> the part dictionary that the cases describe; kinds are written there by the numbers people type."""
    import torch
    from bestiary.concepts.part_dictionary.part_dictionary import PartDictionary

    made = {}
    for name, facts in prompt_rules["dictionaries"].items():
        kinds = [
            {int(number) - facts["id_base"]: kind for number, kind in part["kinds"].items()} for part in facts["parts"]
        ]
        rows = torch.tensor([(part, kind) for part, named in enumerate(kinds) for kind in named])  # (R, 2)
        made[name] = PartDictionary(
            backbone="bestiary-demo",
            part_names=tuple(part["name"] for part in facts["parts"]),
            kind_names=tuple({kind: text for kind, text in named.items() if text is not None} for named in kinds),
            background=facts["background"],
            rows=rows,
            embeddings={"clip_l": torch.ones(len(rows), 128)},
            id_base=facts["id_base"],
        )
    return made
