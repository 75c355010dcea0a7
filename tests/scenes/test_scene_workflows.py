"""Shipped workflows of scenes: how they paint, and what stands between Compose Scene and Restore Subjects."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "workflows"
FILES = sorted(path for path in FOLDER.glob("*.api.json") if "BestiaryComposeScene" in path.read_text("utf-8"))


def _nodes(path: Path) -> dict[str, dict]:
    return json.loads(path.read_text("utf-8"))


def _linked(node: dict) -> Iterator[str]:
    for value in node["inputs"].values():
        if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str):
            yield value[0]


def _between(nodes: dict[str, dict], last: str) -> set[str]:
    """Classes on the ways back from what was decoded to Compose Scene, which ends a way."""
    seen, waiting = set(), [nodes[last]["inputs"]["decoded"][0]]
    while waiting:
        name = waiting.pop()
        if name not in seen and nodes[name]["class_type"] != "BestiaryComposeScene":
            seen.add(name)
            waiting += _linked(nodes[name])
    return {nodes[name]["class_type"] for name in seen}


def test_workflows_of_scenes_are_there() -> None:
    names = {path.name.split(".")[0] for path in FILES}
    assert names >= {"scene_repaint", "scene_training_set", "scene_sdxl_inpaint"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name.split(".")[0])
def test_the_place_is_kept_where_not_all_of_it_is_painted(path: Path) -> None:
    """VAEEncodeForInpaint greys the place before it is encoded: right only where everything is forgotten."""
    nodes = _nodes(path)
    strengths = [node["inputs"]["denoise"] for node in nodes.values() if "denoise" in node["inputs"]]
    if any(strength < 1 for strength in strengths):
        assert "VAEEncodeForInpaint" not in {node["class_type"] for node in nodes.values()}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name.split(".")[0])
def test_any_model_fits_between_compose_and_restore(path: Path) -> None:
    nodes = _nodes(path)
    loaders = {"BestiaryDemoModel", "BestiaryLoadDictionary", "BestiarySubject"}
    for name, node in nodes.items():
        if node["class_type"] == "BestiaryRestoreSubjects":
            own = {kind for kind in _between(nodes, name) if kind.startswith("Bestiary")}
            assert own <= loaders, own


def test_nine_channel_models_get_the_place_and_a_soft_mask() -> None:
    kinds = {node["class_type"] for node in _nodes(FOLDER / "scene_sdxl_inpaint.api.json").values()}
    assert kinds >= {
        "InpaintModelConditioning",
        "DifferentialDiffusion",
        "BestiaryRestoreSubjects",
        "BestiaryJudgeScene",
    }
