"""Records: one recording for each sampling, found again by its latent; steps averaged."""

import copy

import pytest
import torch
from bestiary.concepts.denoiser.part_attention_patch import PartMapSum
from bestiary.concepts.errors import BestiaryError
from bestiary.nodes.attention.attention_record import (
    KEPT_SAMPLINGS,
    AttentionRecord,
    RecordedPart,
    RecordedSampling,
    Recording,
    signature_of,
)

PARTS = (RecordedPart("head:a", "head"), RecordedPart("wing:b", "wing"))


def one_evaluation(value: float, held: tuple[bool, bool] = (True, True)) -> PartMapSum:
    maps = PartMapSum(2, 2, (4, 4), torch.device("cpu"))
    columns = torch.full((2, 2, 16), value) * torch.tensor(held).view(1, 2, 1)
    maps.add(columns, (4, 4), held)
    return maps


def latent(seed: int = 0) -> torch.Tensor:
    return torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(seed))


def finished(values: list[float], seed: int = 0) -> RecordedSampling:
    recording = Recording(PARTS, len(values))
    for step, value in enumerate(values):
        recording.add(step, one_evaluation(value))
    return recording.finished(latent(seed), (16, 16))


def test_steps_are_averaged_over_the_asked_range():
    sampling = finished([0.1, 0.2, 0.6])
    assert sampling.maps.shape == (3, 2, 2, 4, 4)
    maps, held = sampling.mean(1, 2)
    assert held.tolist() == [True, True]
    assert maps.flatten().tolist() == pytest.approx([0.15] * 64)
    assert sampling.mean(3, 10000)[0].max().item() == pytest.approx(0.6)
    assert sampling.mean(2, 2)[0].max().item() == pytest.approx(0.2)


def test_only_steps_that_hold_a_part_count_for_it():
    recording = Recording(PARTS, 3)
    recording.add(0, one_evaluation(0.2))
    recording.add(1, one_evaluation(0.4, (True, False)))
    sampling = recording.finished(latent(), (16, 16))
    maps, held = sampling.mean(1, 3)
    assert maps[:, 0].mean().item() == pytest.approx(0.3)
    assert maps[:, 1].mean().item() == pytest.approx(0.2)
    assert sampling.held.tolist() == [[True, True], [True, False], [False, False]]
    assert sampling.mean(2, 3)[1].tolist() == [True, False]


def test_several_evaluations_of_a_step_are_averaged():
    recording = Recording(PARTS, 1)
    recording.add(0, one_evaluation(0.2))
    recording.add(0, one_evaluation(0.4))
    assert recording.finished(latent(), (16, 16)).maps.mean().item() == pytest.approx(0.3)


@pytest.mark.parametrize(("first", "last"), [(4, 4), (0, 2), (3, 2)])
def test_steps_that_were_not_taken_are_told(first, last):
    with pytest.raises(BestiaryError, match=f"no steps from first_step {first} to last_step {last}; .* steps 1 to 3"):
        finished([0.1, 0.2, 0.3]).mean(first, last)


def test_a_sampling_without_parts_is_an_empty_one():
    sampling = Recording((), 2).finished(latent(), (16, 16))
    assert sampling.maps.shape == (2, 2, 0, 1, 1)


def test_samplings_are_found_by_their_latent():
    record = AttentionRecord()
    for seed in range(3):
        record.keep(finished([seed / 10 + 0.1], seed))
    for seed in range(3):
        assert record.find(latent(seed)).maps.mean().item() == pytest.approx(seed / 10 + 0.1)
    assert record.find() is record.samplings[-1]
    # rounded on its way here
    assert record.find(latent(1).to(torch.bfloat16)).maps.mean().item() == pytest.approx(0.2)


@pytest.mark.parametrize("other", [latent(9), latent(0)[:1], torch.zeros(2, 4, 16, 16), latent(0) * float("nan")])
def test_latents_that_were_not_recorded_are_told(other):
    record = AttentionRecord()
    record.keep(finished([0.1]))
    with pytest.raises(
        BestiaryError,
        match="is not one of the 1 recorded samplings; connect the output of a sampler that uses the MODEL",
    ):
        record.find(other)


def test_the_nearest_latent_counts():
    record = AttentionRecord()
    near = latent() + 0.001 * latent(1)
    for value, given in ((0.1, latent()), (0.2, near)):
        recording = Recording(PARTS, 1)
        recording.add(0, one_evaluation(value))
        record.keep(recording.finished(given, (16, 16)))
    assert record.find(latent()).maps.mean().item() == pytest.approx(0.1)
    assert record.find(near).maps.mean().item() == pytest.approx(0.2)


def test_the_same_result_again_replaces_the_old_and_few_are_kept():
    record = AttentionRecord()
    for seed in (0, 1, 0):
        record.keep(finished([0.1 + seed], seed))
    assert len(record.samplings) == 2
    assert record.find().maps.mean().item() == pytest.approx(0.1)
    for seed in range(10):
        record.keep(finished([0.1], seed))
    assert len(record.samplings) == KEPT_SAMPLINGS


def test_an_empty_record_says_what_to_do():
    with pytest.raises(
        BestiaryError, match="Show Attention: the record is empty; sample with the MODEL .* LATENT or the"
    ):
        AttentionRecord().find()


def test_copies_of_a_record_are_the_record():
    record = AttentionRecord("all")
    assert copy.deepcopy({"records": (record,)})["records"][0] is record
    assert repr(record) == "AttentionRecord(all, 0 samplings)"


def test_signatures_do_not_depend_on_layout_or_dtype():
    assert torch.equal(signature_of(latent().to(torch.float64)), signature_of(latent()))
    assert torch.equal(signature_of(latent().transpose(2, 3).contiguous().transpose(2, 3)), signature_of(latent()))
    assert signature_of(torch.zeros(2, 4, 9, 7)).shape == (1, 8, 8, 8)


def test_titles_tell_the_negative_prompt():
    assert RecordedPart("head:a", "head").title == "head:a"
    assert RecordedPart("head:a", "head", negative=True).title == "head:a (negative)"
