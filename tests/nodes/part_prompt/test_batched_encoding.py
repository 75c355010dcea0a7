"""Prompts encoded together: each gets what it gets alone, and what cannot be joined is encoded alone."""

import pytest
import torch

MODELS = ["demo_model", "sd15_model", "sdxl_model"]


@pytest.fixture(params=MODELS)
def clip(request: pytest.FixtureRequest) -> object:
    return request.getfixturevalue(request.param).clip


def together(clip: object, texts: list[str], **options: object) -> list:
    from bestiary.nodes.part_prompt.batched_encoding import encode_together

    return encode_together(clip, [clip.tokenize(text) for text in texts], **options)


def alone(clip: object, text: str) -> dict:
    return clip.encode_from_tokens(clip.tokenize(text), return_pooled=True, return_dict=True)


def test_each_prompt_gets_what_it_gets_alone(clip):
    texts = ["", "a red bird", "a (blue:1.4) bird", "a bird, " * 40, "a red bird"]
    for result, text in zip(together(clip, texts), texts, strict=True):
        theirs = alone(clip, text)
        assert torch.equal(result.cond, theirs["cond"])
        assert (result.facts["pooled_output"] - theirs["pooled_output"]).abs().max() < 1e-5


def test_one_prompt_is_encoded_exactly_as_by_core(clip):
    (result,) = together(clip, ["a (red:1.2) bird"])
    theirs = alone(clip, "a (red:1.2) bird")
    assert torch.equal(result.cond, theirs["cond"])
    assert torch.equal(result.facts["pooled_output"], theirs["pooled_output"])


def test_no_prompts_give_nothing(clip):
    assert together(clip, []) == []


def test_many_prompts_are_encoded_in_several_calls(sd15_model, monkeypatch):
    monkeypatch.setattr("bestiary.nodes.part_prompt.batched_encoding.MOST_CHUNKS", 3)
    rows: list[int] = []
    encoder = sd15_model.clip.cond_stage_model.clip_l
    handle = encoder.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    texts = ["a bird", "a bird, " * 40, "red", "blue", "tail"]
    results = together(sd15_model.clip, texts)
    handle.remove()
    assert rows == [3, 3]
    for result, text in zip(results, texts, strict=True):
        assert torch.equal(result.cond, alone(sd15_model.clip, text)["cond"])


def test_states_before_the_last_norm_are_those_of_the_prompt(sd15_model):
    from bestiary.nodes.part_prompt.batched_encoding import last_norm

    clip = sd15_model.clip
    norm = last_norm(clip.cond_stage_model.clip_l)
    for texts in (["a bird"], ["a red bird", "a bird, " * 40, "a (blue:1.5) bird"]):
        for result in together(clip, texts, with_states=True):
            states = result.states["clip_l"]  # (C, 77, D)
            assert states.shape[0] * 77 == result.cond.shape[1]
        plain = together(clip, texts[:1], with_states=True)[0]
        assert torch.allclose(norm(plain.states["clip_l"]).flatten(0, 1), plain.cond[0], atol=1e-6)


def test_encoders_that_disagree_about_chunks_are_encoded_alone(sdxl_model):
    from bestiary.nodes.part_prompt.batched_encoding import encode_together

    clip = sdxl_model.clip
    first, second = clip.tokenize("a red bird"), clip.tokenize("a blue bird")
    first = {"l": first["l"], "g": first["g"] + first["g"]}
    calls: list[int] = []
    handle = clip.cond_stage_model.clip_l.register_forward_pre_hook(lambda _, given: calls.append(len(given[0])))
    results = encode_together(clip, [first, second])
    handle.remove()
    assert calls == [1, 1]
    assert torch.equal(results[1].cond, alone(clip, "a blue bird")["cond"])


def test_results_that_say_more_are_taken_one_by_one(sd15_model):
    """An encoding with an attention mask, as of other kinds of text encoders, cannot be cut into prompts."""
    clip = sd15_model.clip.clone()
    plain = type(clip).encode_from_tokens

    class Masking(type(clip)):
        def encode_from_tokens(self, tokens: object, **options: object) -> dict:
            encoded = plain(self, tokens, **options)
            return {**encoded, "attention_mask": torch.ones(1, encoded["cond"].shape[1])}

    clip.__class__ = Masking
    for result, text in zip(together(clip, ["red", "a bird, " * 40]), ["red", "a bird, " * 40], strict=True):
        assert result.facts["attention_mask"].shape[1] == result.cond.shape[1]
        assert torch.equal(result.cond, alone(sd15_model.clip, text)["cond"])


def test_a_pooled_vector_of_unknown_origin_is_asked_for_one_by_one(sd15_model):
    clip = sd15_model.clip.clone()
    plain = type(clip).encode_from_tokens

    class Doubling(type(clip)):
        def encode_from_tokens(self, tokens: object, **options: object) -> dict:
            encoded = plain(self, tokens, **options)
            return {**encoded, "pooled_output": encoded["pooled_output"] * 2}

    clip.__class__ = Doubling
    results = together(clip, ["red", "blue"])
    for result, text in zip(results, ["red", "blue"], strict=True):
        assert torch.equal(result.facts["pooled_output"], 2 * alone(sd15_model.clip, text)["pooled_output"])


def test_nothing_stays_on_the_encoders_after_a_fault(sd15_model):
    from bestiary.nodes.part_prompt.batched_encoding import encode_together

    encoder = sd15_model.clip.cond_stage_model.clip_l
    with pytest.raises(AttributeError):
        encode_together(sd15_model.clip, [{"l": [[(object(), 1.0)] * 77]}], with_states=True)
    assert not encoder._forward_hooks
    assert not encoder.transformer.text_model.final_layer_norm._forward_pre_hooks
