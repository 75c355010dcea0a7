"""What the pack brings into a ComfyUI that starts: no heavy library. Its seconds are benchmarks/bench_import_time.py."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
SHOWN = {
    *("concepts.errors", "concepts.name_search", "concepts.features.vit_weights", "concepts.pictures.square_fit"),
    *("concepts.files.atomic_file", "concepts.files.concept_file", "concepts.files.concept_names"),
    *("concepts.files.pack", "concepts.files.wrong_download"),
    *("concepts.spectrum.attribute_presets", "concepts.spectrum.stage_bounds", "nodes.attention.attention_layers"),
    *("nodes.part_dictionary.dictionary_loading", "nodes.part_map.feature_choice", "nodes.part_map.part_inputs"),
    *("nodes.part_map.part_pictures", "nodes.runs.training_runs"),
    *("nodes.spectrum.spectrum_files", "nodes.spectrum.stage_ranges", "nodes.spectrum.stage_schedule"),
    *("nodes.registration", "nodes.scenes.segmentation_weights", "nodes.web_routes"),
}
"""Beside the node files and the room nodes/host, the modules of ours that schemas show or registering needs."""


def needed_to_run() -> set[str]:
    """All others: they come in with the first node, or answer to a browser, that needs them."""
    paths = [path for package in ("concepts", "nodes") for path in (ROOT / package).rglob("*.py")]
    names = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in paths
        if path.name != "__init__.py" and not path.name.endswith("_nodes.py")
    }
    return {name for name in names - SHOWN if not name.startswith("nodes.host.")}


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


def test_what_only_running_nodes_need_waits_for_them(started):
    assert sorted(benchmark().own_modules(started["modules"]) & needed_to_run()) == []


def test_neither_trainer_nor_drawn_world_comes_in(started):
    packages = {name.split(".")[0] for name in benchmark().own_modules(started["modules"])}
    assert packages == {"concepts", "nodes"}


def test_what_is_shown_is_there_and_the_method_waits():
    assert [name for name in sorted(SHOWN) if not (ROOT / f"{name.replace('.', '/')}.py").is_file()] == []
    assert needed_to_run() >= {"concepts.part_map.part_discovery", "nodes.denoiser.comfy_denoiser"}
    assert len(needed_to_run()) > 100


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
