"""Previews of a training on its node: with averaged weights, in their files, cut short by Cancel, the model back in its place."""

from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image


class _HostStop(BaseException):
    """What a newer ComfyUI raises out of any layer."""


class _State:
    """A state that notes whether its averages are in place."""

    def __init__(self, step: int) -> None:
        self.step, self.is_averaged = step, False

    @contextmanager
    def averaged(self) -> object:
        self.is_averaged = True
        yield
        self.is_averaged = False


@pytest.fixture
def previews(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    """Previews of two sheets, whose `told` are the calls."""
    from bestiary.nodes.training import node_previews
    from bestiary.trainer.learning.run.run_folder import RunFolder

    def sampled(*given: object, seeds: range, on_step: object, **choices: object) -> torch.Tensor:
        on_step(1, 2)
        if made.fault:
            raise made.fault
        return torch.ones(len(seeds))

    def sheets(origin: object, sample: object) -> tuple[Image.Image, ...]:
        told.append(("draw", made.state.is_averaged, torch.is_grad_enabled()))
        assert len(sample(object(), range(3))) == 3
        return Image.new("RGB", (40, 20), "red"), Image.new("RGB", (30, 10), "blue")

    told: list[tuple] = []
    progress = SimpleNamespace(
        should_stop=lambda: made.stop,
        preview=lambda picture, *steps: told.append(("shown", picture.size, *steps)),
        interruption=_HostStop,
        cancelled=False,
    )
    monkeypatch.setattr(node_previews, "sample_ddim", sampled)
    denoiser = SimpleNamespace(make_room=lambda: told.append(("room",)), empty_conditioning=object)
    settings = SimpleNamespace(
        optimizer=SimpleNamespace(steps=9), run=SimpleNamespace(preview_steps=2, preview_guidance=1.0)
    )
    training = SimpleNamespace(sheets=sheets, settings=settings, image_size=64)
    made = node_previews.NodePreviews(training, denoiser, None, RunFolder.create(tmp_path / "run"), progress)
    made.told, made.stop, made.fault, made.state = told, False, None, _State(4)
    return made


def test_sheets_are_kept_shown_and_stacked(previews, tmp_path: Path) -> None:
    previews.show(previews.state)
    assert previews.told == [("draw", True, False), ("room",), ("shown", (40, 30), 4, 9)]
    assert not previews.state.is_averaged
    samples = tmp_path / "run" / "samples"
    assert Image.open(samples / "step-0000004.png").size == (40, 20)
    assert Image.open(samples / "step-0000004-attention.png").size == (30, 10)
    assert previews.latest.getpixel((5, 5)) == (255, 0, 0) and previews.latest.getpixel((5, 25)) == (0, 0, 255)
    assert previews.latest.getpixel((35, 25)) not in ((255, 0, 0), (0, 0, 255))  # paper


def test_cancel_cuts_a_preview_short(previews, tmp_path: Path) -> None:
    previews.stop = True
    previews.show(previews.state)
    assert previews.sheet() is None and previews.latest is None
    assert not previews.state.is_averaged and list((tmp_path / "run" / "samples").iterdir()) == []


def test_cancel_raised_by_the_model_itself_cuts_a_preview_short_too(previews) -> None:
    previews.fault = _HostStop()
    assert previews.sheet() is None and previews._progress.cancelled


def test_the_model_has_its_place_again_after_a_fault(previews) -> None:
    previews.fault = RuntimeError("no")
    with pytest.raises(RuntimeError, match="no"):
        previews.sheet()
    assert previews.told[-1] == ("room",)
