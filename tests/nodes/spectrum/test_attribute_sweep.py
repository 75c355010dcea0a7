"""Which stages carry a word: shares of a known change, the proposal, and every fault."""

import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.spectrum.attribute_presets import format_presets, parse_presets
from bestiary.concepts.spectrum.stage_bounds import StageBounds
from torch import Tensor


class Progress:
    """Counts instead of drawing a bar."""

    def __init__(self) -> None:
        self.total = self.done = 0

    def begin(self, total: int) -> None:
        self.total = total

    def add(self, steps: int = 1) -> None:
        self.done += steps


def settings(**fields: object) -> object:
    from bestiary.nodes.spectrum.attribute_sweep import SweepSettings

    return SweepSettings(**{"text": "a {word} bird", "word": "red", "stages": 5, **fields})


def sweep_with(loaded: object, weights: list[float], **fields: object) -> tuple[object, Progress]:
    """A sweep over a sampler that answers by stage: the picture turns red by the weight of every stage with the word."""
    from bestiary.nodes.spectrum.attribute_sweep import picture_features, sweep_word

    words = settings(**fields)
    with_word = loaded.clip.encode_from_tokens_scheduled(loaded.clip.tokenize(f"a {words.word} bird"))[0][0]
    bounds = StageBounds.equal(len(weights))

    def sample(positive: list, negative: list) -> Tensor:
        latent = torch.zeros(2, 4, 4, 4)
        for stage, middle in enumerate(
            (a + b) / 2 for a, b in zip(bounds.fractions, bounds.fractions[1:], strict=False)
        ):
            acting = [
                cond
                for cond, options in positive
                if "default" not in options
                and options.get("start_percent", 0.0) <= middle <= options.get("end_percent", 1.0)
            ]
            assert len(acting) == 1
            latent += weights[stage] * torch.equal(acting[0], with_word)
        return latent

    def see(latents: Tensor) -> tuple[Tensor, Tensor]:
        pictures = latents.mean(1, keepdim=True).permute(0, 2, 3, 1).expand(-1, -1, -1, 3) / 10
        return picture_features(pictures), pictures

    progress = Progress()
    return sweep_word(loaded.model, loaded.clip, words, sample, see, progress), progress


def test_shares_are_those_of_a_known_change(sd15_model):
    sweep, progress = sweep_with(sd15_model, [0.0, 1.0, 2.0, 1.0, 0.0])
    assert torch.allclose(sweep.scores, torch.tensor([0.0, 0.25, 0.5, 0.25, 0.0]), atol=1e-5)
    assert torch.allclose(sweep.sizes, sweep.scores, atol=1e-5)
    assert sweep.carrying == (1, 2, 3)
    assert sweep.preset() == {"red": ((0.2, 0.8),)} or format_presets(sweep.preset()) == "red: 20%-80%"
    assert sweep.pictures.shape == (7, 4, 4, 3)
    assert (progress.total, progress.done) == (7, 7)


def test_the_proposal_is_read_back_by_the_presets(sd15_model):
    sweep, _ = sweep_with(sd15_model, [2.0, 0.0, 0.0, 2.0, 2.0], attribute="colour")
    text = format_presets(sweep.preset())
    assert text == "colour: 0%-20%, 60%-100%"
    assert list(parse_presets(text)) == ["colour"]


def test_the_table_marks_the_stages_that_carry_the_word(sd15_model):
    sweep, _ = sweep_with(sd15_model, [0.0, 3.0, 1.0, 0.0, 0.0])
    lines = sweep.table().splitlines()
    assert lines[0].split() == ["stage", "share", "size"]
    assert lines[2].split() == ["2", "75.0%", "0.75", "carries", "it"]
    assert lines[3].split() == ["3", "25.0%", "0.25"]
    assert lines[-1] == "stages 2: red: 20%-40%"


def test_a_change_elsewhere_has_a_size_but_no_share():
    from bestiary.nodes.spectrum.attribute_sweep import change_shares

    without, stage, everywhere = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 3.0]]), torch.tensor([[1.0, 0.0]])
    shares, sizes = change_shares(torch.stack([without, stage, everywhere]))
    assert shares.tolist() == [0.0]
    assert sizes.tolist() == [3.0]


def test_pictures_are_averaged_one_by_one():
    from bestiary.nodes.spectrum.attribute_sweep import change_shares

    # the second picture changes ten times as much, and counts as much as the first
    features = torch.tensor([[[0.0], [0.0]], [[1.0], [0.0]], [[1.0], [10.0]]])
    shares, _ = change_shares(features)
    assert shares.tolist() == [0.5]


def test_a_word_that_changes_nothing_is_told(sd15_model):
    with pytest.raises(BestiaryError, match="the word has no effect, even at all stages"):
        sweep_with(sd15_model, [0.0] * 5)


def test_a_word_that_no_stage_carries_is_told():
    from bestiary.nodes.spectrum.attribute_sweep import Sweep

    sweep = Sweep(
        settings(stages=2), StageBounds.equal(2), torch.tensor([-0.1, 0.0]), torch.ones(2), torch.zeros(4, 2, 2, 3)
    )
    assert sweep.carrying == ()
    with pytest.raises(BestiaryError, match="the word 'red' at a single stage has no measurable part of the effect"):
        sweep.preset()


@pytest.mark.parametrize("fields", [{"text": "a bird"}, {"word": " "}])
def test_a_text_without_a_place_is_told(sd15_model, fields):
    with pytest.raises(BestiaryError, match=r"enter a word, and a text with \{word\} in its place"):
        sweep_with(sd15_model, [1.0] * 5, **fields)


def test_labels_tell_every_picture(sd15_model):
    from bestiary.nodes.spectrum.attribute_sweep import sweep_labels

    sweep, _ = sweep_with(sd15_model, [0.0, 3.0, 1.0, 0.0, 0.0])
    assert list(sweep_labels(sweep)) == [
        "without",
        "stage 1: 0%",
        "stage 2: 75%",
        "stage 3: 25%",
        "stage 4: 0%",
        "stage 5: 0%",
        "everywhere",
    ]
