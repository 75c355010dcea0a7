"""What the pack brings into a ComfyUI that starts: no heavy library. Its seconds are benchmarks/bench_import_time.py."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
NEEDED_TO_RUN = {
    *(
        "concepts.denoiser.attention_maps",
        "concepts.pictures.color_scale",
        "concepts.denoiser.lora_names",
        "concepts.denoiser.lora_sum",
    ),
    *(
        "concepts.part_dictionary.dictionary_merge",
        "concepts.part_prompt.mention_writing",
        "concepts.part_dictionary.new_kinds",
    ),
    *("concepts.denoiser.part_attention_patch", "concepts.part_prompt.part_mention", "concepts.part_map.part_metrics"),
    *("concepts.part_prompt.part_prompt", "concepts.spectrum.stage_algebra", "concepts.spectrum.stage_claims"),
    *("concepts.spectrum.stage_mention", "concepts.spectrum.staged_prompt", "concepts.denoiser.token_insertion"),
    *(
        "nodes.evaluation.requested_parts",
        "nodes.evaluation.part_judging",
        "nodes.part_prompt.chosen_parts",
        "nodes.part_prompt.part_encoding",
        "nodes.part_prompt.clip_tokens",
    ),
    *(
        "nodes.denoiser.lora_loading",
        "nodes.part_dictionary.dictionary_report",
        "nodes.attention.attention_record",
        "nodes.attention.attention_sampling",
    ),
    *(
        "nodes.attention.attention_sheet",
        "nodes.attention.attention_view",
        "nodes.attention.attention_pictures",
        "nodes.attention.model_patching",
    ),
    *(
        "nodes.attention.part_regions",
        "nodes.spectrum.spectrum_prompts",
        "nodes.spectrum.staged_encoding",
        "nodes.part_prompt.batched_encoding",
    ),
    *(
        "nodes.spectrum.layer_prompts",
        "nodes.spectrum.stage_picture",
        "nodes.spectrum.attribute_sweep",
        "nodes.spectrum.sweep_sampling",
    ),
    *(
        "concepts.denoiser.backbone",
        "concepts.denoiser.denoiser",
        "concepts.part_map.kmeans",
        "concepts.features.patch_features",
        "concepts.files.safe_pickle",
    ),
    *("concepts.files.thumbnail_atlas", "concepts.part_map.part_codebook", "concepts.part_dictionary.part_dictionary"),
    *("concepts.part_map.part_discovery", "concepts.pictures.part_overlay", "concepts.part_map.codebook_edits"),
    *("concepts.spectrum.prompt_spectrum", "concepts.spectrum.spectrum_file", "nodes.part_map.codebook_files"),
    *(
        "nodes.part_map.discovery_job",
        "nodes.part_map.found_parts",
        "nodes.part_map.part_drawing",
        "nodes.part_map.part_mask",
        "nodes.part_map.part_reports",
    ),
    *(
        "nodes.part_map.seen_parts",
        "nodes.spectrum.plain_embeddings",
        "nodes.denoiser.model_backbone",
        "nodes.part_map.picture_encoding",
    ),
    *(
        "nodes.part_dictionary.dictionary_listing",
        "nodes.runs.run_listing",
        "nodes.spectrum.spectrum_listing",
        "nodes.spectrum.stage_counts",
    ),
    *("nodes.runs.training_curves",),
    *(
        "nodes.denoiser.comfy_denoiser",
        "nodes.demo.demo_model",
        "nodes.training.training_set",
        "nodes.training.training_job",
        "nodes.training.spectrum_job",
    ),
}
"""Modules of ours that no schema shows: they come in with the first node, or answer to a browser, that needs them."""


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
    assert sorted(benchmark().own_modules(started["modules"]) & NEEDED_TO_RUN) == []


def test_neither_trainer_nor_drawn_world_comes_in(started):
    packages = {name.split(".")[0] for name in benchmark().own_modules(started["modules"])}
    assert packages == {"concepts", "nodes"}


def test_what_shall_wait_is_there_at_all():
    assert [name for name in sorted(NEEDED_TO_RUN) if not (ROOT / f"{name.replace('.', '/')}.py").is_file()] == []


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
