"""Training batches: pure functions of the step, masks aligned under crops and flips, shares of processes add up."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from bestiary.concepts.denoiser.denoiser import EncoderLayout, PromptLayout, PromptPiece
from bestiary.concepts.denoiser.process import DiscreteProcess
from bestiary.concepts.part_prompt.part_captions import CaptionStyle
from bestiary.trainer.learning.parts.concept_images import BatchPlan, ConceptImages
from bestiary.trainer.learning.parts.training_kinds import TrainingKinds
from bestiary.trainer.learning.pictures.latent_cache import LatentCache

COUNT, CELLS = 7, 8
PLAN = BatchPlan(
    batch_size=3, accumulation=2, latent_size=6, grid=6, process=DiscreteProcess(torch.linspace(0.999, 0.01, 1000), "epsilon"), timesteps="stratified",
    unconditional=0.0, seed=5,
)  # fmt: skip


def tokenize(pieces: Sequence[PromptPiece]) -> PromptLayout:
    """One token per piece; text is token 1, a vector's place token 0."""
    ids = torch.zeros(1, 12, dtype=torch.long)
    places = [place for place, piece in enumerate(pieces) if piece.text is None]
    for place, piece in enumerate(pieces):
        ids[0, place] = piece.text is not None
    return {"clip_l": EncoderLayout(ids, torch.tensor(places, dtype=torch.long), torch.ones(1, 12))}


def make(views: int = 1, cells: int = CELLS, style: CaptionStyle | None = None, **plan: object) -> ConceptImages:
    """Pictures whose first latent channel holds row * 1000 + y * 10 + x, and whose labels say the same cell by cell."""
    places = np.arange(cells)[:, None] * 10 + np.arange(cells)  # (h, w)
    moments = np.zeros((COUNT, views, 2, 2, cells, cells), dtype=np.float16)
    for row in range(COUNT):
        moments[row, 0, 0, 0] = places
        moments[row, 0, 0, 1] = row
    if views == 2:
        moments[:, 1] = moments[:, 0][..., ::-1]
    labels = np.broadcast_to((places // 10 * 2 + places % 10) % 3, (COUNT, cells, cells)).astype(np.uint8)
    codes = np.stack([np.arange(COUNT) % 2, np.arange(COUNT) % 3, np.zeros(COUNT, dtype=np.int64)], axis=1)
    kinds = TrainingKinds(("a", "b", "c"), ({}, {}, {}), 2, labels, codes, {})
    names = [f"{row}.png" for row in range(COUNT)]
    return ConceptImages(names, LatentCache(moments), kinds, tokenize, style or CaptionStyle(), replace(PLAN, **plan))


def test_a_batch_is_a_function_of_the_step() -> None:
    ours, theirs = make().draw(4, 1), make().draw(4, 1)
    assert ours.names == theirs.names and torch.equal(ours.noise, theirs.noise)
    assert torch.equal(ours.times, theirs.times) and torch.equal(ours.codes, theirs.codes)
    other = make().draw(5, 1)
    assert not torch.equal(ours.noise, other.noise)
    assert not torch.equal(ours.noise[0], ours.noise[1])
    assert ours.noise.std().item() == pytest.approx(1, abs=0.1)


def test_an_epoch_shows_every_picture_once() -> None:
    images = make(batch_size=1, accumulation=1)
    for epoch in range(3):
        names = [images.draw(epoch * COUNT + step, 0).names[0] for step in range(COUNT)]
        assert sorted(names) == [f"{row}.png" for row in range(COUNT)]
    orders = {tuple(images.draw(epoch * COUNT + step, 0).names[0] for step in range(COUNT)) for epoch in range(3)}
    assert len(orders) == 3


@pytest.mark.parametrize("views", [1, 2])
def test_masks_lie_where_their_latents_lie(views: int) -> None:
    images, flipped, corners = make(views=views), 0, set()
    for step in range(12):
        batch = images.draw(step, 0)
        places = batch.moments[:, 0, 0].round().long()  # (B, 6, 6)
        labels = batch.masks.float().argmax(1)  # (B, 6, 6)
        assert torch.equal(labels, (places // 10 * 2 + places % 10) % 3)
        flipped += int((places[:, 0, 0] % 10 > places[:, 0, 1] % 10).sum())
        corners |= {int(place) for place in places[:, 0, 0]}
    assert (flipped > 0) == (views == 2)
    assert len(corners) > 4  # crops move


def test_labels_of_a_coarser_grid_are_read_under_the_cells_centres() -> None:
    images = make(latent_size=8, grid=4)
    labels = images.draw(0, 0).masks.float().argmax(1)[0]  # (4, 4)
    cells = torch.tensor([1, 3, 5, 7])
    assert torch.equal(labels, (cells[:, None] * 2 + cells) % 3)


def test_parts_that_a_crop_cuts_off_leave_caption_and_codes() -> None:
    images = make(latent_size=1, grid=1)
    batch = images.draw(0, 0)
    shown = batch.masks[:, :, 0, 0]  # (B, M)
    assert torch.equal(batch.codes >= 0, shown)
    for prompt, codes in zip(batch.prompts, batch.codes, strict=True):
        assert torch.equal(prompt["clip_l"].slots >= 0, codes >= 0)


def test_places_are_in_the_order_of_parts_whatever_the_order_of_words() -> None:
    images, orders = make(style=CaptionStyle(template_probability=0)), set()
    for step in range(6):
        for prompt in images.draw(step, 0).prompts:
            assert sorted(prompt["clip_l"].slots.tolist()) == [0, 1, 2]
            orders.add(tuple(prompt["clip_l"].slots.tolist()))
    assert len(orders) > 2


def test_dropped_tokens_leave_the_codes() -> None:
    batch = make(style=CaptionStyle(drop_probability=1.0)).draw(0, 0)
    assert ((batch.codes >= 0).sum(1) == 1).all()
    kept = make(style=CaptionStyle(drop_probability=1.0, keep_count=2)).draw(0, 0)
    assert ((kept.codes >= 0).sum(1) == 2).all()


def test_a_share_of_captions_is_empty() -> None:
    images = make(unconditional=0.5, batch_size=50, accumulation=1)
    empty = (images.draw(0, 0).codes < 0).all(1).float().mean()
    assert 0.25 < empty < 0.75
    assert (make(unconditional=0.0).draw(0, 0).codes >= 0).any(1).all()


def test_two_processes_draw_what_one_large_batch_holds() -> None:
    whole = make(batch_size=6, accumulation=1).draw(2, 0)
    shares = [make(batch_size=3, accumulation=1, processes=2, rank=rank).draw(2, 0) for rank in (0, 1)]
    for name in ("moments", "noise", "times", "codes", "masks"):
        assert torch.equal(torch.cat([getattr(share, name) for share in shares]), getattr(whole, name)), name
    accumulated = [make().draw(2, micro_step) for micro_step in (0, 1)]
    assert torch.equal(torch.cat([part.noise for part in accumulated]), whole.noise)


def test_stratified_timesteps_cover_the_schedule_evenly() -> None:
    images = make(batch_size=5, accumulation=2)
    drawn = torch.cat([images.draw(3, micro_step).times for micro_step in (0, 1)])
    assert sorted(((drawn - 5e-4) * 10).long().tolist()) == list(range(10))
    uniform = make(batch_size=500, accumulation=1, timesteps="uniform").draw(0, 0).times
    assert uniform.min() > 0 and uniform.max() <= 1 and uniform.mean().item() == pytest.approx(0.5, abs=0.06)


def test_captions_are_tokenised_once() -> None:
    calls = []

    def counting(pieces: Sequence[PromptPiece]) -> PromptLayout:
        calls.append(tuple(pieces))
        return tokenize(pieces)

    images = make()
    images._tokenize = counting
    for step in range(40):
        images.draw(step, 0)
    assert len(calls) == len(set(calls)) <= 28


def test_backbones_are_told_where_a_crop_lies() -> None:
    batch = make().draw(0, 0)
    corner = (batch.moments[:, 0, 0, 0, 0] // 10, batch.moments[:, 0, 0, 0, 0] % 10)
    assert torch.equal(batch.sizes[:, 2], corner[0].float() * 8) and torch.equal(
        batch.sizes[:, 3], corner[1].float() * 8
    )
    assert batch.sizes[:, [0, 1, 4, 5]].tolist() == [[64, 64, 48, 48]] * 3


def test_fixed_batches_do_not_change() -> None:
    ours, theirs = make().fixed([1, 4], 0.251), make().fixed([1, 4], 0.251)
    assert ours.names == ("1.png", "4.png") and torch.equal(ours.noise, theirs.noise)
    assert ours.times.tolist() == pytest.approx([0.251, 0.251]) and (ours.codes >= 0).all()
    assert ours.moments[0, 0, 0, 0, 0] == 11  # cut from the middle
