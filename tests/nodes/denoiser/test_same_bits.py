"""Trainings through ComfyUI's own models give the numbers they gave when `tests/trainer/learning/fixtures/same_bits.json` was recorded."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

CASES = Path(__file__).parents[2] / "trainer" / "learning" / "test_same_bits.py"


@pytest.fixture(scope="module")
def cases() -> ModuleType:
    """The trainings of the command line's test."""
    spec = importlib.util.spec_from_file_location("same_bits_cases", CASES)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("kind", ("demo", "sd15", "sdxl"))
@pytest.mark.parametrize("learned", ("parts", "spectrum"))
def test_trainings_in_the_graph_have_the_same_bits(
    kind: str, learned: str, cases: ModuleType, request: pytest.FixtureRequest
) -> None:
    from bestiary.nodes.denoiser.comfy_denoiser import ComfyDenoiser

    denoiser = ComfyDenoiser(*request.getfixturevalue(f"{kind}_model"))
    # narrow models have no layer on the usual grid
    narrow = {} if kind == "demo" else {"attention_loss.downsampling": (2,), "method.part_words": ""}
    cases.STEPS = 5
    with denoiser.training():
        if learned == "parts":
            cases.train_parts_on(f"graph {kind}", denoiser, **narrow)
        else:
            cases.train_spectrum_on(f"graph {kind}", denoiser)
