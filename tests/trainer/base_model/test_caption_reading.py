"""Tests of the reading loss: which words belong to a part, what it rewards, what it teaches."""

import pytest
import torch
from bestiary.demo.captions import caption_of
from bestiary.demo.species import HELD_OUT_SPECIES, PARTS, Scene
from bestiary.trainer.base_model.caption_reading import ATTRIBUTE_WORDS, ReadingLoss, slot_embeddings
from bestiary.trainer.base_model.model_parts import build_base_model, encode_captions


@pytest.fixture(scope="module")
def model():
    return build_base_model(0)


def _slots(model, captions: list[str], *, merged: bool = False) -> torch.Tensor:
    ids = encode_captions(model.tokenizer, captions)
    return ReadingLoss(model).merge(ids, torch.full((len(captions),), merged))


def _read(model, caption: str, *, merged: bool = False) -> dict[str, set[str]]:
    """Part word -> attribute words that the loss asks for at it."""
    slots = _slots(model, [caption], merged=merged)
    targets = ReadingLoss(model).targets(slots)[0]
    words = model.tokenizer.convert_ids_to_tokens(slots[0, :, 0].tolist())
    return {
        words[place]: {ATTRIBUTE_WORDS[n] for n in targets[place].nonzero()[:, 0].tolist()}
        for place in targets.any(dim=-1).nonzero()[:, 0].tolist()
    }


@pytest.mark.parametrize("merged", [False, True])
def test_a_full_caption_is_read_part_by_part(model, merged):
    species = HELD_OUT_SPECIES[0]
    theirs = {part: {getattr(species.look(part), a) for a in ("color", "pattern", "shape")} for part in PARTS}
    assert _read(model, caption_of(species, Scene("snow", "night")), merged=merged) == theirs


def test_merged_words_share_the_place_of_their_part(model):
    vocabulary = model.tokenizer.get_vocab()
    plain, merged = (_slots(model, ["a red plain head , blue bird"], merged=m)[0].tolist() for m in (False, True))
    words = [[model.tokenizer.convert_ids_to_tokens(one) for one in slot if one >= 0] for slot in merged[1:7]]
    assert words == [["a"], ["head", "red", "plain"], [","], ["blue"], ["bird"], [model.tokenizer.eos_token]]
    assert all(slot[1:] == [-1, -1, -1] for slot in plain) and len(plain) == len(merged) == 77
    assert plain[2][0] == vocabulary["red"]


def test_embeddings_of_a_place_are_added_up():
    table = torch.tensor([[1.0, 0.0], [0.0, 2.0], [5.0, 5.0]])
    slots = torch.tensor([[[0, 1, -1, -1], [2, -1, -1, -1]]])
    assert slot_embeddings(table, slots).tolist() == [[[1.0, 2.0], [5.0, 5.0]]]


def test_words_left_out_and_words_of_a_neighbour_are_not_asked_for(model):
    read = _read(model, "a photo of a red head blue plain slim body tail , striped wing , legs")
    assert read == {"head": {"red"}, "body": {"blue", "plain", "slim"}, "wing": {"striped"}}


def test_captions_without_parts_cost_nothing(model):
    slots = _slots(model, ["", "a photo of a bird , in a meadow"])
    context = torch.randn(2, 77, 128, requires_grad=True)
    loss = ReadingLoss(model)(context, slots)
    loss.backward()
    assert float(loss.detach()) == 0 and not context.grad.any()


def test_output_that_carries_the_right_words_loses_least(model):
    slots = _slots(model, ["a red head , a blue body"])
    reading = ReadingLoss(model)
    right = 1000 * reading.targets(slots) @ reading.embeddings.weight[reading.words].detach()  # (1, 77, D)
    wrong = right.roll(4, dims=1)
    assert reading(right, slots).item() < 0.01 < reading(wrong, slots).item()


def test_a_few_steps_teach_the_text_encoder_to_read():
    model = build_base_model(1)
    reading, encoder = ReadingLoss(model), model.text_encoder
    ids = encode_captions(model.tokenizer, ["a red plain head , blue striped body", "blue plain head , red wing"])
    slots = reading.merge(ids, torch.zeros(2, dtype=torch.bool))
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=2e-3)
    losses = []
    for _ in range(12):
        loss = reading(encoder(input_ids=ids).last_hidden_state, slots)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]
