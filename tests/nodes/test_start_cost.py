"""What the pack brings into a ComfyUI that starts: no heavy library. Its seconds are benchmarks/bench_import_time.py."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


def benchmark() -> object:
    """The benchmark as a module."""
    path = ROOT / "benchmarks" / "bench_import_time.py"
    spec = importlib.util.spec_from_file_location("bench_import_time", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def started() -> dict:
    """Modules that a fresh process gains by the pack after ComfyUI's own are there."""
    folder = next(Path(place) for place in sys.path if (Path(place) / "comfy_api").is_dir())
    return benchmark().measure_start(folder)


def test_the_pack_loads_with_all_its_nodes(started):
    from bestiary.nodes.registration import NODES

    assert started["nodes"] == len(NODES)
    assert any(name.endswith(".nodes.registration") for name in started["modules"])


def test_no_heavy_library_comes_in(started):
    assert benchmark().heavy_modules(started["modules"]) == []


def test_nothing_but_the_pack_comes_in(started):
    own = str(ROOT).replace(".", "_x_")
    foreign = {name.split(".")[0] for name in started["modules"] if not name.startswith(own)}
    assert foreign - set(sys.stdlib_module_names) - {"einops", "safetensors"} == set(), json.dumps(sorted(foreign))


@pytest.mark.parametrize(
    ("modules", "expected"),
    [
        (["timm.models", "timm", "json"], ["timm"]),
        (["sklearn.cluster", "peft", "accelerate.utils", "diffusers"], ["accelerate", "diffusers", "peft", "sklearn"]),
        (["transformers.models.clip.modeling_clip"], ["transformers.models.clip"]),
        (["transformers", "transformers.utils", "torch.nn", "timmy"], []),
    ],
)
def test_heavy_libraries_are_recognised(modules, expected):
    assert benchmark().heavy_modules(modules) == expected
