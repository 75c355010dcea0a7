"""Plain words of a prompt on UNets: recorded and confined as parts at the same places are, and clear refusals."""

import comfy.sample
import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.nodes.attention.attention_record import AttentionRecord
from bestiary.nodes.attention.model_patching import confine_part, record_attention
from bestiary.nodes.attention.part_regions import make_region
from bestiary.nodes.host.socket_types import SPANS_KEY, PartSpan
from bestiary.nodes.part_prompt.part_encoding import encode_part_prompt
from torch import Tensor

TEXT = "a red bird, a bird on a tree"


@pytest.fixture(params=["sd15", "sdxl"])
def loaded(request):
    return request.getfixturevalue(f"{request.param}_model")


def sample(loaded: object, model: object, text: str = TEXT, spans: tuple = (), negative: str = "a tree") -> Tensor:
    positive = encode_part_prompt(loaded.clip, text, {})
    if spans:
        positive[0][1][SPANS_KEY] = spans
    noise = torch.randn(1, 4, 16, 24, generator=torch.Generator().manual_seed(3))
    prompts = positive, encode_part_prompt(loaded.clip, negative, {})
    with torch.inference_mode():
        return comfy.sample.sample(
            model, noise, 1, 5.0, "euler", "normal", *prompts, torch.zeros_like(noise), seed=4, disable_pbar=True
        )


def left_half() -> Tensor:
    mask = torch.zeros(1, 16, 24)
    mask[..., :12] = 1
    return mask


def test_words_are_recorded_like_parts_at_their_places(loaded):
    plain = sample(loaded, loaded.model)
    record = AttentionRecord("all", words=("bird", "red bird"))
    assert torch.equal(sample(loaded, record_attention(loaded.model, record)), plain)
    parts = AttentionRecord("all")
    spans = PartSpan("bird:x", "bird", (3, 6)), PartSpan("red:y", "red", (2, 3))
    sample(loaded, record_attention(loaded.model, parts), spans=spans)
    ours, theirs = record.find(), parts.find()
    assert [part.title for part in ours.parts] == ["bird", "red bird"]
    assert theirs.maps.min() > 0
    assert torch.equal(ours.maps, theirs.maps)


def test_words_of_the_negative_prompt_on_request(sd15_model):
    record = AttentionRecord("all", negative=True, words=("tree",))
    sample(sd15_model, record_attention(sd15_model.model, record))
    assert [part.title for part in record.find().parts] == ["tree", "tree (negative)"]


def test_a_word_is_confined_like_a_part_at_its_places(loaded):
    word = make_region("bird", left_half(), 1.0, 0, 1, 0)
    part = make_region("bird:x", left_half(), 1.0, 0, 1, 0)
    record = AttentionRecord("all", words=("bird",))
    ours = sample(loaded, record_attention(confine_part(loaded.model, word), record))
    spans = (PartSpan("bird:x", "bird", (3, 6)),)
    assert torch.equal(ours, sample(loaded, confine_part(loaded.model, part), spans=spans))
    maps = record.find().maps[0, 0, 0]
    assert maps[:, :12].sum() / maps.sum() > 0.9


def test_a_word_of_the_embedded_transformer_is_confined_and_all_of_the_picture_or_strength_0_change_nothing(
    demo_dit_model,
):
    caption = "a photo of a creature with red striped crested head , blue plain slim body , in a meadow"
    prompts = [encode_part_prompt(demo_dit_model.clip, text, {}) for text in (caption, "")]
    noise = torch.randn(1, 8, 16, 16, generator=torch.Generator().manual_seed(3))
    left = torch.zeros(1, 16, 16)
    left[..., :8] = 1

    def draw(model: object) -> Tensor:
        with torch.inference_mode():
            return comfy.sample.sample(
                model, noise, 6, 3.0, "euler", "simple", *prompts, torch.zeros_like(noise), seed=4, disable_pbar=True
            )

    plain, record = draw(demo_dit_model.model), AttentionRecord("auto", words=("head",))
    for mask, strength in ((torch.ones(1, 16, 16), 1.0), (left, 0.0)):
        idle = make_region("head", mask, strength, 0, 1, 0)
        assert torch.equal(draw(confine_part(demo_dit_model.model, idle)), plain)
    region = make_region("head", left, 1.0, 0, 1, 0)
    confined = draw(record_attention(confine_part(demo_dit_model.model, region), record))
    maps = record.find().maps[0, 0, 0]  # (8, 8)
    assert not torch.equal(confined, plain)
    assert maps[:, :4].sum() / maps.sum() > 0.9


def test_a_part_comes_before_a_word_of_its_name(sd15_model):
    region = make_region("bird", left_half(), 1.0, 0, 1, 0)
    span = PartSpan("bird:x", "bird", (9,))
    record = AttentionRecord("all", words=("bird",))
    sample(sd15_model, record_attention(confine_part(sd15_model.model, region), record), spans=(span,))
    part, word = record.find().maps[0, 0]
    assert part[:, :12].sum() / part.sum() > 0.9
    assert word[:, :12].sum() / word.sum() < 0.7


def test_an_idle_word_region_changes_nothing(sd15_model):
    plain = sample(sd15_model, sd15_model.model)
    for mask, strength in ((torch.ones(1, 4, 4), 1.0), (left_half(), 0.0)):
        region = make_region("bird", mask, strength, 0, 1, 0)
        assert torch.equal(sample(sd15_model, confine_part(sd15_model.model, region)), plain)


def test_words_that_no_prompt_holds_are_told(sd15_model):
    record = AttentionRecord("all", words=("brid",))
    with pytest.raises(
        BestiaryError, match="Attention Maps: no prompt .* the word 'brid'; choose one of 'bird', 'red'"
    ):
        sample(sd15_model, record_attention(sd15_model.model, record))
    region = make_region("brid", left_half(), 1.0, 0, 1, 0)
    with pytest.raises(BestiaryError, match="contains the part or word 'brid'; choose one of 'bird'"):
        sample(sd15_model, confine_part(sd15_model.model, region))


def test_a_prompt_that_says_no_words_is_told(sd15_model):
    record = AttentionRecord("all", words=("bird",))
    patched = record_attention(sd15_model.model, record)
    states = sd15_model.clip.encode_from_tokens_scheduled(sd15_model.clip.tokenize(TEXT))
    noise = torch.zeros(1, 4, 8, 8)
    with pytest.raises(BestiaryError, match="says where its words stand.*encode the prompt with Part Prompt"):
        comfy.sample.sample(patched, noise, 1, 5.0, "euler", "normal", states, states, noise, seed=4, disable_pbar=True)
