"""Prompts with learned vectors: equality with transformers, places, weights, several chunks, two encoders."""

from collections.abc import Callable, Sequence

import pytest
import torch
from bestiary.concepts.denoiser.denoiser import EncoderLayout, PromptLayout, PromptPiece, chunks_of
from bestiary.concepts.errors import BestiaryError
from bestiary.trainer.model import text_conditioning
from torch import Tensor

BACKBONES = ("sd15", "sd2", "sdxl", "bestiary-demo")
VECTOR = PromptPiece(None)


def words(text: str) -> PromptPiece:
    return PromptPiece(text)


def ids_of(layout: PromptLayout) -> dict[str, Tensor]:
    return {name: own.ids for name, own in layout.items()}


def slots_of(layout: PromptLayout) -> Tensor:
    """Places (P,) of the vectors, the same in all encoders of Stable Diffusion."""
    first, *others = (own.slots for own in layout.values())
    assert all(torch.equal(first, other) for other in others)
    return first


def theirs(denoiser: object, name: str, ids: Tensor) -> object:
    """transformers' own forward of one encoder."""
    with torch.no_grad():
        return denoiser.text.models[name](input_ids=ids, output_hidden_states=True)


def overwritten(denoiser: object, name: str, ids: Tensor, places: Sequence[int], vectors: Tensor) -> object:
    """transformers' own forward with rows of the token embeddings overwritten by a hook."""

    def overwrite(_module: object, _inputs: object, output: Tensor) -> Tensor:
        output = output.clone()
        output[0, list(places)] = vectors
        return output

    handle = denoiser.text.models[name].get_input_embeddings().register_forward_hook(overwrite)
    try:
        return theirs(denoiser, name, ids)
    finally:
        handle.remove()


@pytest.mark.parametrize("backbone", BACKBONES)
def test_plain_prompts_equal_transformers(backbone: str, tiny_denoiser: Callable) -> None:
    denoiser = tiny_denoiser(backbone)
    tokens = denoiser.text.tokenize([words("a red bird head")])
    ours = denoiser.text.encode([tokens], None)
    outputs = {name: theirs(denoiser, name, ids) for name, ids in ids_of(tokens).items()}
    states = [
        outputs[spec.name].last_hidden_state if spec.output == "final" else outputs[spec.name].hidden_states[-2]
        for spec in denoiser.backbone.text_encoders
    ]
    torch.testing.assert_close(ours.context, torch.cat(states, dim=-1), atol=1e-5, rtol=1e-5)
    if backbone == "sdxl":
        torch.testing.assert_close(ours.pooled, outputs["clip_g"].text_embeds, atol=1e-5, rtol=1e-5)
    else:
        assert ours.pooled is None


@pytest.mark.parametrize("backbone", ("sd15", "sd2"))
def test_inserted_vectors_equal_a_manual_overwrite(backbone: str, tiny_denoiser: Callable) -> None:
    denoiser = tiny_denoiser(backbone)
    (spec,) = denoiser.backbone.text_encoders
    tokens = denoiser.text.tokenize([words("a "), VECTOR, words("bird of "), VECTOR])
    vectors = torch.randn(1, 2, spec.width)
    ours = denoiser.text.encode([tokens], denoiser.backbone.split_vector(vectors))
    expected = overwritten(denoiser, spec.name, ids_of(tokens)[spec.name], slots_of(tokens).tolist(), vectors[0])
    torch.testing.assert_close(ours.context, expected.last_hidden_state, atol=1e-5, rtol=1e-5)
    assert torch.equal(ours.columns, slots_of(tokens)[None, :, None])


def test_sdxl_slices_and_pooled_position(tiny_denoiser: Callable) -> None:
    denoiser = tiny_denoiser("sdxl")
    tokens = denoiser.text.tokenize([words("a "), VECTOR, words("bird")])
    vectors = torch.randn(1, 1, 96)
    ours = denoiser.text.encode([tokens], denoiser.backbone.split_vector(vectors))
    place = slots_of(tokens).tolist()
    first = overwritten(denoiser, "clip_l", ids_of(tokens)["clip_l"], place, vectors[0, :, :32])
    second = overwritten(denoiser, "clip_g", ids_of(tokens)["clip_g"], place, vectors[0, :, 32:])
    torch.testing.assert_close(ours.context[..., :32], first.hidden_states[-2], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.context[..., 32:], second.hidden_states[-2], atol=1e-5, rtol=1e-5)
    end = denoiser.text.tokenizers["clip_g"].eos_token_id
    at_end = second.last_hidden_state[0, ids_of(tokens)["clip_g"][0].tolist().index(end)]
    expected = denoiser.text.models["clip_g"].text_projection(at_end)
    torch.testing.assert_close(ours.pooled[0], expected, atol=1e-5, rtol=1e-5)


def test_pads_follow_each_tokenizer(tiny_denoiser: Callable) -> None:
    denoiser = tiny_denoiser("sdxl")
    ids = ids_of(denoiser.text.tokenize([words("bird")]))
    end = denoiser.text.tokenizers["clip_l"].eos_token_id
    assert ids["clip_l"][0, 3:].unique().tolist() == [end]
    assert ids["clip_g"][0, 3:].unique().tolist() == [0]


def test_gradients_reach_the_vectors_only(tiny_denoiser: Callable) -> None:
    denoiser = tiny_denoiser("sdxl")
    tokens = denoiser.text.tokenize([VECTOR, words("bird")])
    vectors = torch.randn(2, 1, 96, requires_grad=True)
    text = denoiser.text.encode([tokens, tokens], denoiser.backbone.split_vector(vectors))
    (text.context.square().sum() + text.pooled.square().sum()).backward()
    assert (vectors.grad.abs().sum(-1) > 0).all()
    assert all(p.grad is None for model in denoiser.text.models.values() for p in model.parameters())


@pytest.mark.parametrize("backbone", ("sd15", "sdxl"))
def test_only_weighted_rows_change(backbone: str, tiny_denoiser: Callable) -> None:
    denoiser = tiny_denoiser(backbone)
    vectors = torch.randn(1, 1, denoiser.backbone.vector_width)
    plain = denoiser.text.tokenize([words("a "), VECTOR, words("bird")])
    weighted = denoiser.text.tokenize([words("a "), PromptPiece(None, 1.3), words("bird")])
    before = denoiser.text.encode([plain], denoiser.backbone.split_vector(vectors))
    after = denoiser.text.encode([weighted], denoiser.backbone.split_vector(vectors))
    place = slots_of(plain).item()
    others = [row for row in range(77) if row != place]
    assert torch.equal(before.context[:, others], after.context[:, others])
    empty = denoiser.text.encode([denoiser.text.tokenize([])], None).context[0, place]
    expected = empty + 1.3 * (before.context[0, place] - empty)
    torch.testing.assert_close(after.context[0, place], expected, atol=1e-5, rtol=1e-5)
    if backbone == "sdxl":
        assert torch.equal(before.pooled, after.pooled)


def test_long_prompts_take_more_chunks_each_encoded_alone(tiny_denoiser: Callable) -> None:
    denoiser = tiny_denoiser("sd15")
    long = denoiser.text.tokenize([words("bird " * 100), VECTOR])
    chunks = chunks_of(long)
    vectors = torch.randn(1, 1, 32)
    text = denoiser.text.encode([long], denoiser.backbone.split_vector(vectors))
    assert chunks == 2 and text.context.shape == (1, 2 * 77, 32)
    assert text.columns.item() >= 77
    own = long["clip_l"]
    first = {"clip_l": EncoderLayout(own.ids[:1], torch.zeros(0, dtype=torch.long), own.weights[:1])}
    alone = denoiser.text.encode([first], None)
    torch.testing.assert_close(text.context[:, :77], alone.context, atol=1e-6, rtol=1e-6)


def test_fixed_chunks_cut_and_fill(tiny_denoiser: Callable) -> None:
    denoiser = tiny_denoiser("sd15")
    cut = denoiser.text.tokenize([words("bird " * 100), VECTOR], chunks=1)
    assert slots_of(cut).tolist() == [-1] and ids_of(cut)["clip_l"].shape == (1, 77)
    assert ids_of(denoiser.text.tokenize([words("bird")], chunks=3))["clip_l"].shape == (3, 77)
    vector = torch.randn(1, 1, 32)
    assert torch.equal(
        denoiser.text.encode([cut], denoiser.backbone.split_vector(vector)).context,
        denoiser.text.encode([cut], denoiser.backbone.split_vector(vector + 1)).context,
    )


def test_batches_of_unequal_length_are_filled(tiny_denoiser: Callable) -> None:
    denoiser = tiny_denoiser("sdxl")
    short = denoiser.text.tokenize([words("a bird")])
    long = denoiser.text.tokenize([words("a "), VECTOR, words("bird " * 100)])
    text = denoiser.text.encode([short, long], denoiser.backbone.split_vector(torch.randn(2, 1, 96)))
    assert text.context.shape == (2, 154, 96) and text.columns.tolist() == [[[-1]], [[slots_of(long).item()]]]
    alone = denoiser.text.encode([short], None)
    torch.testing.assert_close(text.context[:1, :77], alone.context, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(text.pooled[:1], alone.pooled, atol=1e-5, rtol=1e-5)


def test_known_prompts_are_not_encoded_again(tiny_denoiser: Callable) -> None:
    denoiser = tiny_denoiser("sd15")
    calls = []
    core = denoiser.text.models["clip_l"]
    layer = getattr(core, "text_model", core).encoder.layers[0].mlp
    layer.register_forward_hook(lambda _module, inputs, _output: calls.append(len(inputs[0])))
    tokens = denoiser.text.tokenize([words("a bird")])
    first = denoiser.text.encode([tokens, tokens], None)
    second = denoiser.text.encode([tokens], None)
    assert calls == [1]
    assert torch.equal(first.context[1:], second.context)


def test_tokens_known_from_inference_serve_training(tiny_denoiser: Callable) -> None:
    denoiser = tiny_denoiser("sd15")
    with torch.inference_mode():
        denoiser.text.encode([denoiser.text.tokenize([])], None)
    context = denoiser.text.encode([denoiser.text.tokenize([])], None).context
    (context * torch.ones(32, requires_grad=True)).sum().backward()


def test_word_vectors_are_embedding_rows_side_by_side(tiny_denoiser: Callable) -> None:
    denoiser = tiny_denoiser("sdxl")
    rows = denoiser.text.word_vectors("red bird")
    vocabulary = denoiser.text.tokenizers["clip_l"].get_vocab()
    ids = [vocabulary["red</w>"], vocabulary["bird</w>"]]
    expected = [denoiser.text.models[name].get_input_embeddings().weight[ids] for name in ("clip_l", "clip_g")]
    assert all(torch.equal(rows[name], own) for name, own in zip(("clip_l", "clip_g"), expected, strict=True))
    with pytest.raises(BestiaryError, match="' ' holds no word the tokenizer knows"):
        denoiser.text.word_vectors(" ")


def test_two_tokenizers_may_cut_words_differently(tiny_denoiser: Callable, monkeypatch) -> None:
    denoiser = tiny_denoiser("sdxl")
    cut = iter([[5], [5, 6]])
    monkeypatch.setattr(text_conditioning.TransformersEncoder, "plain_ids", lambda self, words: next(cut))
    assert {name: len(own) for name, own in denoiser.text.word_vectors("head").items()} == {"clip_l": 1, "clip_g": 2}


def test_wrong_vectors_are_refused(tiny_denoiser: Callable) -> None:
    denoiser = tiny_denoiser("sd15")
    tokens = denoiser.text.tokenize([VECTOR, words("bird"), VECTOR])
    with pytest.raises(BestiaryError, match="places for 2 learned vectors, but none were given"):
        denoiser.text.encode([tokens], None)
    with pytest.raises(BestiaryError, match=r"got \(1, 1, 32\)"):
        denoiser.text.encode([tokens], {"clip_l": torch.zeros(1, 1, 32)})
    with pytest.raises(
        BestiaryError, match="768 wide, but clip_l of sd15 takes 32: this dictionary was learned for another"
    ):
        denoiser.text.encode([tokens], {"clip_l": torch.zeros(1, 2, 768)})
