"""From settings to a training: what does not fit is told first; learning rates, starts and layers are as asked."""

from pathlib import Path

import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.trainer.learning.discovery.discovery_folder import write_maps
from bestiary.trainer.learning.parts.settings import load_recipe
from bestiary.trainer.learning.parts.token_start import word_spread
from bestiary.trainer.training.train_parts import PartTask
from bestiary.trainer.training.training_setup import TrainingSetup, prepare


@pytest.fixture
def found(tmp_path, make_discovery) -> Path:
    return make_discovery(tmp_path)


@pytest.fixture
def prepare_with(found, tiny_folder):
    def build(backbone: str = "bestiary-demo", **flags: object) -> TrainingSetup:
        known = {"images.size": 64, "run.preview_every": 0, "run.dtype": "fp32", "run.device": "cpu"}
        known |= {"discovery.folder": found, "base.path": str(tiny_folder(backbone))}
        return prepare(
            PartTask(load_recipe(None, known | {key.replace("__", "."): value for key, value in flags.items()}))
        )

    return build


def test_a_setup_trains_the_pictures_of_the_discovery(prepare_with) -> None:
    setup = prepare_with()
    assert setup.pictures.names == ("0.png", "1.png", "2.png", "sub/3.png", "4.png", "5.png")
    assert setup.spec.image_size == setup.image_size == 64 and setup.batches.plan.grid == 8
    report = setup.objective(setup.batches.draw(0, 0))
    assert torch.isfinite(report.total)


def test_the_autoencoder_is_freed_and_not_called_again(prepare_with) -> None:
    setup = prepare_with()
    assert setup.denoiser.vae is None
    with pytest.raises(BestiaryError, match="the autoencoder was dropped"):
        setup.denoiser.images.to_cache(torch.zeros(1, 3, 64, 64))
    for step in range(2 * len(setup.pictures.names)):  # more than an epoch without it
        assert len(setup.batches.draw(step, 0).names) == setup.batches.plan.batch_size
    decoding = prepare_with(run__preview_every=5)
    assert decoding.denoiser.vae.encoder is None and decoding.denoiser.vae.decoder is not None


def test_groups_have_their_own_rates_and_only_adapters_decay(prepare_with) -> None:
    setup = prepare_with(optimizer__token_lr=0.5, optimizer__projector_lr=1e-3, optimizer__lora_lr=1e-2, lora__rank=2)
    rates = {group.name: (group.learning_rate, group.weight_decay) for group in setup.groups}
    spread = word_spread(setup.denoiser)
    assert rates == {"tokens": (0.5 * spread, 0), "projector": (1e-3, 0), "lora": (1e-2, 1e-2)}
    learned = {id(p) for group in setup.groups for p in group.parameters.values()}
    assert learned == {id(parameter) for parameter in setup.objective.parameters()}


def test_without_adapters_or_projector_only_tokens_are_learned(prepare_with) -> None:
    setup = prepare_with(lora__rank=0, method__projector_depth=0, method__positional=False)
    assert [group.name for group in setup.groups] == ["tokens"]
    assert setup.denoiser.network.adapters.tensors() == {}


@pytest.mark.parametrize("depth", [0, 1, 2, 3])
def test_tokens_start_around_words(prepare_with, depth: int) -> None:
    setup = prepare_with(method__initial_words="head bird", method__initial_spread=0.5, method__projector_depth=depth)
    middle = setup.denoiser.text.word_vectors("head bird")["clip_l"].mean(0)
    vectors = setup.objective.projector.collapse().detach() - middle  # (M, K + 1, D)
    assert vectors.std().item() == pytest.approx(0.5 * word_spread(setup.denoiser), rel=0.1)
    exact = prepare_with(method__initial_words="head bird", method__initial_spread=0, method__projector_depth=depth)
    torch.testing.assert_close(exact.objective.projector.collapse(), middle.expand_as(vectors), atol=1e-4, rtol=1e-4)


def test_parts_start_at_the_words_that_fit_them(prepare_with) -> None:
    setup = prepare_with(method__part_words="head red bird", method__initial_spread=0)
    starts = setup.objective.projector.collapse()[:, 0]  # (M, D)
    words = torch.stack([setup.denoiser.text.word_vectors(word)["clip_l"].mean(0) for word in ("head", "red", "bird")])
    near = torch.cdist(starts, words) < 1e-3  # (M, W)
    assert near[:2].any(1).all() and near.sum() == 2  # two different words, and none for the background


def test_two_text_encoders_share_one_vector(prepare_with) -> None:
    setup = prepare_with("sdxl", images__size=128)
    assert setup.objective.projector.width == 32 + 64
    assert torch.isfinite(setup.objective(setup.batches.draw(0, 0)).total)


def test_unknown_layers_are_told_with_those_there_are(prepare_with) -> None:
    with pytest.raises(
        BestiaryError, match=r"attention_loss.layers: mid.attn9 do not exist in this model; it has down_blocks"
    ):
        prepare_with(attention_loss__layers=["mid.attn9"])
    with pytest.raises(
        BestiaryError, match=r"attention_loss.downsampling: \[16\] do not occur in this model; it has \[1, 2\]"
    ):
        prepare_with(attention_loss__downsampling=[1, 16])
    chosen = prepare_with(attention_loss__downsampling=[2]).objective.attention.layers
    assert chosen and all(name.endswith("attn2") for name in chosen)


def test_missing_pictures_are_told(prepare_with, found) -> None:
    (found.parent / "pictures" / "4.png").unlink()
    with pytest.raises(BestiaryError, match=r"1 of 6 discovered pictures are missing in .*pictures, first 4.png"):
        prepare_with()


def test_a_folder_of_other_pictures_is_told(prepare_with, tmp_path) -> None:
    (tmp_path / "other").mkdir()
    with pytest.raises(BestiaryError, match=r"0.png is missing there"):
        prepare_with(images__folder=tmp_path / "other")


def test_a_discovery_without_parts_is_told(prepare_with, found) -> None:
    from bestiary.concepts.part_map.part_map import PartMaps

    maps = PartMaps(torch.full((6, 8, 8), 2, dtype=torch.uint8), torch.full((6, 3), -1))
    write_maps(found / "part_maps.safetensors", [maps], 6, (8, 8), 3)
    with pytest.raises(BestiaryError, match=r"no picture of .*found shows a part: look at its index.html"):
        prepare_with()


def test_pictures_without_parts_are_left_out(prepare_with) -> None:
    setup = prepare_with(method__background=False)
    assert len(setup.pictures.names) == 5 and setup.pictures.left_out == 1
    assert "2.png" not in setup.pictures.names
    assert all(part != 2 for part, _ in setup.pictures.kinds.rows())


def test_classes_become_kinds(found) -> None:
    flags = {"discovery.folder": found, "method.ids": "class", "images.labels": found.parent / "labels.csv"}
    kinds = PartTask(load_recipe(None, flags)).pictures.kinds
    assert kinds.kind_names[0] == {0: "lark", 1: "wren"}
    whole = PartTask(load_recipe(None, {**flags, "method.kind": "textual_inversion"})).pictures.kinds
    assert whole.part_names == ("whole",) and whole.codes[:, 0].tolist() == [0, 1, 0, 1, 0, 1]


def test_a_margin_makes_room_for_crops(prepare_with) -> None:
    setup = prepare_with(images__margin=0.25, images__flip=True)
    assert setup.spec.image_size == 80 and setup.cache.moments.shape == (6, 2, 2, 8, 10, 10)
    assert setup.batches.draw(0, 0).moments.shape[-1] == 8


def test_textual_inversion_reads_no_attention(prepare_with) -> None:
    setup = prepare_with(method__kind="textual_inversion")
    assert setup.objective.attention is None and setup.batches.draw(0, 0).masks.all()
