"""The training step against a re-creation of PartCraft's: gradients, kernels, waits and activation memory."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
SHALLOW = {"unet_channels": (32, 64, 64, 64), "vae_channels": (32, 32, 32, 32), "text_layers": 2, "dino_layers": 1}


@pytest.fixture(scope="module")
def benchmark() -> Iterator[object]:
    """`benchmark(name)` -> a module of the benchmarks folder, which is no package."""
    sys.path.insert(0, str(BENCHMARKS))
    before = set(sys.modules)

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    yield load
    sys.path.remove(str(BENCHMARKS))
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(BENCHMARKS)):
            del sys.modules[name]


@pytest.mark.parametrize("columns", ("one_hot", "lse"))
def test_loss_and_gradient_equal_the_reference(columns: str, benchmark: object) -> None:
    cases = benchmark("training_case")
    case = cases.build_case(cases.CaseSize(256, 2, **SHALLOW), columns)
    theirs, ours = case.run_reference(), case.run_ours()
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)
    assert case.our_parameters.keys() == case.reference_parameters.keys()
    assert len(case.our_parameters) == 32 * 8 + 4  # adapters, table, positional vectors, projector's weight and bias
    assert case.gradient_error() <= 1e-5


def test_no_waits_and_fewer_kernels_than_the_reference(benchmark: object) -> None:
    cases, dispatch = benchmark("training_case"), benchmark("bench_dispatch")
    case = cases.build_case(cases.CaseSize(256, 2, **{**SHALLOW, "text_layers": 12, "dino_layers": 12}))
    theirs, ours = dispatch.count(case.run_reference), dispatch.count(case.run_ours)
    assert ours.syncs == 0, dict(ours.waits)
    assert theirs.waits["nonzero"] == 32 and theirs.waits["_local_scalar_dense"] == 5
    assert ours.kernels / theirs.kernels <= dispatch.GOAL


def test_the_counter_counts(benchmark: object) -> None:
    dispatch = benchmark("bench_dispatch")
    values = torch.arange(6.0)
    counter = dispatch.count(lambda: (values.view(2, 3) + 1, values[values > 2], values.sum().item()))
    assert counter.operations["add"] == 1 and counter.views["view"] == 1
    assert dict(counter.waits) == {"index": 1, "_local_scalar_dense": 1}


def test_the_meter_finds_the_high_water_mark(benchmark: object) -> None:
    meter = benchmark("memory_meter").MemoryMeter()
    weight = torch.ones(1000)
    meter.ignore(weight)
    with meter:
        first = weight + 1  # 4000 bytes
        second = first * 2
        del first
        view = second[:10]
        third = weight.mul_(2) + 1
    assert meter.peak == 8000 and meter.current == 8000
    assert view.shape == (10,) and third.shape == (1000,)


def test_activation_memory_of_sd15(benchmark: object) -> None:
    report = benchmark("activation_memory").compare("sd15")
    assert report["met"], report
    theirs, ours = report["gib_reference_ours"]
    assert theirs == pytest.approx(2.726, rel=0.02) and ours == pytest.approx(0.771, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("name", ("sdxl", "sdxl-checkpointing"))
def test_activation_memory_of_sdxl(name: str, benchmark: object) -> None:
    report = benchmark("activation_memory").compare(name)
    assert report["met"], report
