"""What previews of a part training show: the same pictures every time, what is made of their tokens, where tokens look."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image


@pytest.fixture(scope="module")
def prepared(demo_model, drawn_images, small_codebook) -> tuple:
    """Training set of six drawings, settings and set-up on the demo model."""
    from bestiary.nodes.denoiser.comfy_denoiser import ComfyDenoiser
    from bestiary.nodes.host.graph_progress import GraphProgress
    from bestiary.nodes.host.socket_types import NamedCodebook
    from bestiary.nodes.training.graph_training import PartsInGraph
    from bestiary.nodes.training.training_job import graph_settings
    from bestiary.nodes.training.training_set import TrainingSetChoice, build_training_set

    codebook, choice = NamedCodebook("drawn", small_codebook), TrainingSetChoice(128)
    made = build_training_set([drawn_images[:6]], codebook, demo_model.vae, choice, GraphProgress(None))
    more = "run.preview_steps = 2\nrun.preview_count = 2"
    settings = graph_settings({"name": "birds", "rank": 0, "seed": 1, "more_settings": more}, made)
    task, denoiser = PartsInGraph(made, settings), ComfyDenoiser(*demo_model)
    with torch.random.fork_rng():
        return made, settings, denoiser, task, task.set_up(denoiser)


@pytest.fixture
def previews(prepared, tmp_path: Path) -> object:
    from types import SimpleNamespace

    from bestiary.nodes.training.node_previews import NodePreviews
    from bestiary.trainer.learning.run.run_folder import RunFolder

    _, _, denoiser, task, training = prepared
    progress = SimpleNamespace(should_stop=lambda: False, interruption=KeyboardInterrupt)
    return NodePreviews(training, denoiser, task.origin(), RunFolder.create(tmp_path / "run"), progress)


def _drawn(previews: object, prepared: tuple) -> tuple[Image.Image, ...]:
    with prepared[2].training():
        return previews._sheets()


def test_pictures_and_heat_maps_are_two_sheets(previews, prepared) -> None:
    made = prepared[0]
    pictures, attention = _drawn(previews, prepared)
    # two rows of two; then a row for each part
    assert (pictures.width // 160, pictures.height // 160) == (2, 2)
    assert (attention.width // 160, attention.height // 160) == (2, len(made.kinds.part_names))
    again = _drawn(previews, prepared)
    assert all(np.array_equal(one, other) for one, other in zip((pictures, attention), again, strict=True))


def test_real_pictures_stand_above_those_that_are_made(previews, prepared) -> None:
    from bestiary.trainer.learning.parts.preview_sheets import varied_rows

    made, settings = prepared[:2]
    first = varied_rows(made.kinds.codes, settings.run.preview_count)[0]
    tile = np.asarray(_drawn(previews, prepared)[0])[12 : 12 + 160, 12 : 12 + 160].astype(float)
    real = np.asarray(made.picture(first).resize((160, 160), Image.Resampling.LANCZOS)).astype(float)
    assert np.abs(tile - real).max() < 1


def test_without_an_attention_loss_there_are_no_heat_maps(previews, prepared, monkeypatch) -> None:
    training = prepared[4]
    monkeypatch.setattr(training.objective, "attention", None)
    assert len(_drawn(previews, prepared)) == 1


def test_a_picture_becomes_an_image_of_the_graph() -> None:
    from bestiary.nodes.training.node_previews import as_image

    image = as_image(Image.new("RGBA", (4, 2), (255, 0, 51, 9)))
    assert image.shape == (1, 2, 4, 3) and image.dtype == torch.float32
    assert image[0, 1, 3].tolist() == pytest.approx([1.0, 0.0, 0.2])
