"""Training sets of the graph: squares, moments, parts, masks and classes as the command line would have them."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.part_map.part_map import PartMaps
from torch import Tensor


@pytest.fixture
def build(sd15_model, drawn_images: Tensor, small_codebook) -> Callable[..., object]:
    """`build(images=..., **options)` -> a training set of the drawn creatures at 64 pixels."""

    def make(images: list[Tensor] | None = None, mirror: bool = False, size: int = 64, **options: object) -> object:
        from bestiary.nodes.host.graph_progress import GraphProgress
        from bestiary.nodes.host.socket_types import NamedCodebook
        from bestiary.nodes.training.training_set import TrainingSetChoice, build_training_set

        choice = TrainingSetChoice(size, mirror)
        given = [drawn_images] if images is None else images
        with torch.inference_mode():  # as ComfyUI's executor runs nodes
            return build_training_set(
                given, NamedCodebook("drawn", small_codebook), sd15_model.vae, choice, GraphProgress(None), **options
            )

    return make


def test_pictures_become_squares_moments_and_codes(build, small_codebook) -> None:
    made = build()
    count = len(made.names)
    assert made.squares.shape == (count, 64, 64, 3) and made.moments.shape == (count, 1, 2, 4, 8, 8)
    assert made.moments.dtype == np.float16 and np.isfinite(made.moments).all()
    assert made.kinds.codes.shape == (count, 3) and made.kinds.part_names == small_codebook.part_names
    assert made.image_size == 64 and not made.flip and made.names[0].startswith("picture ")


def test_squares_are_what_the_command_line_reads(build, drawn_images: Tensor, tmp_path) -> None:
    from bestiary.trainer.learning.pictures.image_files import fit_square, read_image
    from PIL import Image

    wide = torch.cat([drawn_images[:1], drawn_images[:1]], dim=2)[:, :, 20:210]
    made = build([wide, drawn_images[1:]])
    Image.fromarray((wide[0] * 255).round().byte().numpy()).save(tmp_path / "wide.png")
    theirs = np.asarray(fit_square(read_image(tmp_path / "wide.png", 64), 64))
    assert np.array_equal(made.squares[0], theirs)


def test_mirrored_views_are_encoded_too(build) -> None:
    made = build(mirror=True)
    assert made.flip and made.moments.shape[1] == 2
    assert not np.array_equal(made.moments[:, 0], made.moments[:, 1])


def test_the_same_inputs_give_the_same_fingerprint(build) -> None:
    assert build().fingerprint() == build().fingerprint() != build(mirror=True).fingerprint()


def test_given_maps_are_taken_as_they_are(build, small_codebook) -> None:
    from bestiary.nodes.part_map.seen_parts import seen_from_maps

    made = build()
    maps = PartMaps(made.maps.labels.flip(2), made.maps.codes)
    seen = [seen_from_maps(small_codebook, PartMaps(maps.labels[i : i + 4], maps.codes[i : i + 4]), (128, 128), "centre square") for i in (0, 4)]  # fmt: skip
    assert np.array_equal(build(part_maps=seen).kinds.labels, maps.labels.numpy())
    with pytest.raises(BestiaryError, match="4 part maps for 8 pictures: connect the maps of these pictures"):
        build(part_maps=seen[:1])
    squeezed = seen_from_maps(small_codebook, maps, (128, 128), "whole picture")
    with pytest.raises(
        BestiaryError, match="the part maps cover the whole picture: make them with fit 'centre square'"
    ):
        build(part_maps=[squeezed])
    other = small_codebook.with_names(("beak", "body", "background"), small_codebook.kind_names)
    with pytest.raises(BestiaryError, match="the part maps have the parts beak, body, background, the codebook head, "):
        build(part_maps=[seen_from_maps(other, maps, (128, 128), "centre square")])


def test_what_lies_outside_a_mask_is_background(build, small_codebook) -> None:
    plain = build()
    whole, half = torch.ones(8, 128, 128), torch.ones(8, 128, 128)
    half[:, :, 64:] = 0
    assert np.array_equal(build(masks=[whole]).kinds.labels, plain.kinds.labels)
    made = build(masks=[half])
    assert (made.kinds.labels[:, :, 4:] == small_codebook.background).all()
    assert np.array_equal(made.kinds.labels[:, :, :4], plain.kinds.labels[:, :, :4])
    # a part without any patch left has no code
    for row, labels in enumerate(made.kinds.labels):
        for part in range(3):
            assert (made.kinds.codes[row, part] >= 0) <= bool((labels == part).any())
    with pytest.raises(BestiaryError, match="2 masks for 8 pictures: connect one mask per picture"):
        build(masks=[whole[:2]])
    with pytest.raises(BestiaryError, match="mask 1 has 64 x 64 pixels, its picture 128 x 128: resize it"):
        build(masks=[torch.ones(8, 64, 64)])


def test_classes_become_kinds(build) -> None:
    from bestiary.nodes.training.training_set import split_classes

    names = ["wren", "lark"] * 4
    made = build(classes=names)
    assert made.kinds.kind_names[0] == {0: "lark", 1: "wren"} and made.kinds.notes == {"ids": "class"}
    assert split_classes(["wren\nlark\n"]) == ["wren", "lark"] and split_classes(["a", "b"]) == ["a", "b"]
    assert split_classes(None) is None
    with pytest.raises(BestiaryError, match="1 classes for 8 pictures: give one name per picture"):
        build(classes=["wren"])


def test_captions_are_in_the_published_form(build) -> None:
    from bestiary.concepts.part_prompt.caption_file import parse_captions
    from bestiary.nodes.training.training_set import captions_of

    made = build()
    assert np.array_equal(parse_captions(captions_of(made), 3).numpy(), made.kinds.codes)


def test_sizes_that_do_not_fit_are_told(build) -> None:
    with pytest.raises(BestiaryError, match="image_size 60: choose 64 or more, in steps of 8"):
        build(size=60)


def test_a_set_without_a_size_is_trained_at_the_size_of_the_model(build, sd15_model, drawn_images: Tensor) -> None:
    """The latents of SDXL look like those of Stable Diffusion, so that the VAE alone does not tell."""
    from bestiary.nodes.host.graph_progress import GraphProgress
    from bestiary.nodes.training.training_set import NATIVE_SIZES, at_size

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(NATIVE_SIZES, 4, 64)
        made = build(size=0, mirror=True)
    assert made.image_size == 64
    larger = at_size(made, 96, sd15_model.vae, GraphProgress(None))
    asked = build(size=96, mirror=True)
    assert np.array_equal(larger.squares, asked.squares) and np.array_equal(larger.moments, asked.moments)
    assert larger.fingerprint() == asked.fingerprint() and at_size(larger, 96, None, GraphProgress(None)) is larger
    # a size that was asked for stays
    assert at_size(asked, 64, sd15_model.vae, GraphProgress(None)) is asked
    # a training that encodes by itself needs the squares alone
    bare = at_size(made, 96, None, GraphProgress(None))
    assert bare.squares.shape[1] == 96 and bare.fingerprint() != made.fingerprint()


@pytest.mark.parametrize("kind", ["graph", "own process"])
def test_trainings_ask_for_the_size_of_their_model(kind: str, build, sdxl_model, monkeypatch, tmp_path) -> None:
    from dataclasses import replace
    from types import SimpleNamespace

    import folder_paths
    from bestiary.nodes.training import training_job
    from bestiary.nodes.training.graph_fit import GraphModel

    class Asked(Exception):
        pass

    def asked(made: object, size: int, vae: object, progress: object) -> None:
        raise Asked(size)

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    monkeypatch.setattr(training_job, "at_size", asked)
    made = replace(build(), images=())
    choices = {"name": "birds"}
    if kind == "graph":
        with pytest.raises(Asked, match="^1024$"):
            training_job.run_graph_training(GraphModel(*sdxl_model), made, choices, None)
        return
    (tmp_path / "model_index.json").touch()
    record = SimpleNamespace(backbone=SimpleNamespace(image_size=1024))
    monkeypatch.setattr(training_job, "read_model_folder", lambda folder: record)
    with pytest.raises(Asked, match="^1024$"):
        training_job.run_background_training(made, str(tmp_path), choices, None)
