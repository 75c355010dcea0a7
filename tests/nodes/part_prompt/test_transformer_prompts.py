"""Parts in prompts of SD3 and Flux: a place in every text encoder, as core's `embedding:` has it, and dictionaries of other families."""

import logging
from pathlib import Path

import pytest
import torch
from bestiary.concepts.denoiser.backbone import get_backbone
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.part_dictionary.part_dictionary import PartDictionary
from bestiary.nodes.host.socket_types import SPANS_KEY, NamedDictionary
from safetensors.torch import save_file

from tests.nodes import tiny_transformers as tiny

WIDTHS = {
    "sd3": {"clip_l": tiny.CLIP_L, "clip_g": tiny.CLIP_G, "t5xxl": 4096},
    "flux": {"clip_l": tiny.CLIP_L, "t5xxl": tiny.FLUX_T5},
    "sd15": {"clip_l": tiny.CLIP_L},
}
CLIPS = {"sd3": tiny.sd3_clip, "flux": tiny.flux_clip}


def dictionary(name: str, **provenance: object) -> PartDictionary:
    """Two kinds of head with random vectors."""
    rng = torch.Generator().manual_seed(4)
    vectors = {encoder: torch.randn(2, width, generator=rng) for encoder, width in WIDTHS[name].items()}
    kinds = ({0: "red", 1: "blue"},)
    return PartDictionary(name, ("head",), kinds, None, torch.tensor([[0, 0], [0, 1]]), vectors, provenance=provenance)


def ours(clip: object, text: str, name: str) -> tuple[torch.Tensor, dict]:
    from bestiary.nodes.part_prompt.part_encoding import encode_part_prompt

    return encode_part_prompt(clip, text, {"d": dictionary(name)})[0]


def theirs(name: str, text: str, folder: Path, rows: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict]:
    """Core's own encoding with files in an embeddings folder: name -> weights of (red, blue)."""
    own = dictionary(name).embeddings
    for word, weights in rows.items():
        vectors = {encoder: (weights @ tensor).unsqueeze(0).contiguous() for encoder, tensor in own.items()}
        save_file(vectors, str(folder / f"{word}.safetensors"))
    clip = CLIPS[name]().clone()
    import copy

    clip.tokenizer = copy.copy(clip.tokenizer)
    for key, tokenizer in vars(clip.tokenizer).items():
        setattr(clip.tokenizer, key, copy.copy(tokenizer))
        getattr(clip.tokenizer, key).embedding_directory = [str(folder)]
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))[0]


@pytest.mark.parametrize("name", CLIPS)
def test_weighted_blended_and_repeated_mentions_equal_embedding_files(name: str, tmp_path: Path) -> None:
    rows = {"red": torch.tensor([1.0, 0.0]), "mix": torch.tensor([0.75, 0.25])}
    text = "a photo of a (<head:red>:1.3) bird <head:red> on <head:red*0.75+blue*0.25> snow"
    cond, facts = ours(CLIPS[name](), text, name)
    written = "a photo of a (embedding:red:1.3) bird embedding:red on embedding:mix snow"
    core, core_facts = theirs(name, written, tmp_path, rows)
    assert cond.shape == core.shape
    torch.testing.assert_close(cond, core, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(facts["pooled_output"], core_facts["pooled_output"], atol=1e-5, rtol=1e-5)
    plain = CLIPS[name]().encode_from_tokens_scheduled(CLIPS[name]().tokenize("a photo of a a bird a on a snow"))[0][0]
    assert not torch.allclose(cond, plain, atol=1e-2)


@pytest.mark.parametrize(
    ("name", "words", "expected"),
    [("sd3", 0, [(5,), (83,)]), ("flux", 0, [(6,)]), ("sd3", 90, None), ("flux", 90, None)],
)
def test_spans_are_columns_of_the_context(name: str, words: int, expected: list | None) -> None:
    text = "a photo of a " + "red " * words + "<head:red> bird"
    clip = CLIPS[name]()
    cond, facts = ours(clip, text, name)
    spans = [span.positions for span in facts[SPANS_KEY]]
    if expected is None:
        # CLIP cuts chunks of 75 words; T5 has one run, behind two chunks in SD3 and alone in Flux
        run = 5 + words + 1
        expected = [(77 + 5 + words - 75,), (2 * 77 + run,)] if name == "sd3" else [(run,)]
    assert spans == expected
    # the state in each column depends on the vector, those before T5's do not all
    other, _ = ours(clip, text.replace("red>", "blue>"), name)
    for (column,) in expected:
        assert float((cond - other)[0, column].abs().max()) > 1e-3


def test_dictionaries_of_other_families_are_refused_by_name() -> None:
    from bestiary.nodes.denoiser.model_backbone import check_backbone
    from bestiary.nodes.part_prompt.taught_clip import with_dictionary

    for clip, name, family in (
        (tiny.sd3_clip(), "sd15", "sd3"),
        (tiny.flux_clip(), "sd3", "flux"),
        (tiny.sd3_clip(), "flux", "sd3"),
    ):
        message = f"dictionary 'd' was trained for {name}, the connected CLIP is that of {family}: load the MODEL and CLIP of {name}"
        with pytest.raises(BestiaryError, match=message):
            ours(clip, "a <head:red>", name)
        with pytest.raises(BestiaryError, match=message):
            with_dictionary(clip, NamedDictionary("d", dictionary(name)))
    check_backbone(dictionary("sd3"), "d", tiny.sd3_model(), tiny.sd3_clip())
    with pytest.raises(BestiaryError, match="it is for a sd3 network, the MODEL is flux"):
        check_backbone(dictionary("sd3"), "d", tiny.flux_model(), tiny.sd3_clip())
    with pytest.raises(BestiaryError, match="learned with insertion = 'output', as rows of T5's output"):
        check_backbone(dictionary("flux", insertion="output"), "d", tiny.flux_model(), tiny.flux_clip())


def test_an_sd3_dictionary_on_stable_diffusion_is_refused_by_name(demo_model) -> None:
    with pytest.raises(BestiaryError, match="was trained for sd3, the connected CLIP is that of sd15"):
        ours(demo_model.clip, "a <head:red>", "sd3")


def test_without_t5_the_columns_that_are_left_act_and_that_is_said(caplog) -> None:
    clip = tiny.sd3_clip("t5xxl")
    with caplog.at_level(logging.WARNING):
        cond, facts = ours(clip, "a photo of a <head:red> bird", "sd3")
    assert cond.shape == (1, 77, 4096) and [span.positions for span in facts[SPANS_KEY]] == [(5,)]
    assert "This CLIP was loaded without t5xxl: learned vectors act through clip_l, clip_g alone." in caplog.text
    other, _ = ours(clip, "a photo of a <head:blue> bird", "sd3")
    assert float((cond - other)[0, 5].abs().max()) > 1e-3
    assert get_backbone("sd3").text_encoders[2].name == "t5xxl"
