"""From a record to heat maps, masks and figures: the right sampling, parts and steps, and refusals that say why."""

import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.nodes.attention.attention_record import AttentionRecord, RecordedPart, RecordedSampling, signature_of
from bestiary.nodes.attention.attention_view import AttentionView, view_attention

PARTS = (RecordedPart("head:a", "head"), RecordedPart("wing:b", "wing"), RecordedPart("head:a", "head", True))


def latent(seed: int = 0) -> torch.Tensor:
    return torch.randn(2, 4, 16, 24, generator=torch.Generator().manual_seed(seed))


def record_of(parts: tuple = PARTS, seed: int = 0) -> AttentionRecord:
    """Part p of every picture looks at column p of the grid in the first half of 4 steps, at column p + 3 after."""
    maps = torch.full((4, 2, len(parts), 4, 6), 0.001)
    for part in range(len(parts)):
        maps[:2, :, part, :, part] = 0.1
        maps[2:, :, part, :, part + 3] = 0.1
    held = torch.ones(4, len(parts), dtype=torch.bool)
    if len(parts) > 1:
        held[2:, 1] = False
    record = AttentionRecord()
    record.keep(RecordedSampling(parts, maps, held, (16, 24), signature_of(latent(seed))))
    return record


def view(record: AttentionRecord | None = None, **changes: object) -> AttentionView:
    settings = {"latent": latent(), "image": torch.rand(2, 128, 192, 3), "parts": "", "first": 1, "last": 10000}
    settings |= {"opacity": 0.6, "threshold": 0.0, **changes}
    return view_attention(record_of() if record is None else record, **settings)


def test_a_frame_and_a_mask_for_every_part_of_every_picture():
    shown = view()
    assert shown.frames.shape[0] == 6 and shown.frames.shape[2:] == (672, 3)
    assert shown.masks.shape == (6, 128, 192)
    assert shown.overviews.shape[0] == 2
    for tensor in (shown.frames, shown.overviews, shown.masks):
        assert tensor.dtype == torch.float32
        assert tensor.min() >= 0 and tensor.max() <= 1


def test_masks_are_bright_where_the_part_looked_in_these_steps():
    early, late = view(parts="head:a", last=2).masks[0], view(parts="head:a", first=3).masks[0]
    assert early[:, :32].mean() > 0.7 > 0.2 > early[:, 64:].mean()
    assert late[:, 96:128].mean() > 0.7 > 0.2 > late[:, :64].mean()


def test_a_threshold_makes_masks_hard():
    mask = view(parts="wing", last=2, threshold=0.5).masks
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    assert 0.1 < mask.mean() < 0.25


@pytest.mark.parametrize(
    ("names", "titles"),
    [
        ("wing", ["wing:b"]),
        ("Wing:B, head", ["wing:b", "head:a", "head:a (negative)"]),
        ("head:a (negative)", ["head:a (negative)"]),
        ("head\nhead;wing", ["head:a", "head:a (negative)", "wing:b"]),
        (" , ", ["head:a", "wing:b", "head:a (negative)"]),
    ],
)
def test_parts_are_chosen_by_name_in_the_asked_order(names, titles):
    lines = [line for line in view(parts=names).text.splitlines() if line.startswith("picture 1")]
    assert [line.split(", ", 1)[1].split(": ")[0] for line in lines] == titles


def test_the_text_says_how_strong_and_where():
    lines = view(parts="head:a", last=2).text.splitlines()
    assert lines[0] == "steps 1 to 2 of 4"
    assert lines[1].startswith("picture 1, head:a: 10 % of the attention at its peak, 1.8 % on average, middle 11 % ")
    assert lines[1].endswith("from the left and 50 % from the top")


def test_parts_without_prompt_in_these_steps_are_left_out_unless_asked_for():
    assert len(view(first=3).frames) == 4
    with pytest.raises(
        BestiaryError, match="Show Attention: nothing was recorded of wing:b in steps 3 to 4; choose more"
    ):
        view(first=3, last=4, parts="wing")


def test_without_a_picture_the_ground_is_dark_and_masks_are_as_large_as_it():
    shown = view(image=None)
    assert shown.masks.shape == (6, 128, 192)
    assert shown.frames.shape[0] == 6
    assert shown.overviews.shape != view().overviews.shape


def test_the_latent_says_which_sampling_is_meant():
    record = record_of(PARTS[:1], seed=1)
    record.keep(record_of(PARTS[:2]).samplings[0])
    assert len(view(record, latent=latent(1)).frames) == 2
    assert len(view(record, latent=latent(0)).frames) == 4
    assert len(view(record, latent=None).frames) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latent": None, "image": None}, "connect the LATENT of the sampler, its decoded IMAGE, or both"),
        ({"image": torch.zeros(3, 64, 64, 3)}, "3 pictures are connected, but the sampling made 2"),
        (
            {"latent": latent(7)},
            r"this LATENT of shape \(2, 4, 16, 24\) is not one of the 1 recorded samplings; connect the output",
        ),
        ({"parts": "hed"}, "no part 'hed' was recorded; available: 'head', "),
        ({"first": 9}, "no steps from first_step 9 to last_step 10000; the sampling had steps 1 to 4"),
    ],
)
def test_faults_are_told(changes, message):
    with pytest.raises(BestiaryError, match=f"Show Attention: {message}"):
        view(**changes)


def test_prompts_without_parts_are_told():
    with pytest.raises(BestiaryError, match="contain no part tokens; write them with Part Prompt"):
        view(record_of(()))
