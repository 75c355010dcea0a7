"""Staged prompts: what stands in the prompt at every timestep, compared with what was asked for."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from bestiary.concepts.denoiser.denoiser import PromptPiece
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.part_dictionary.part_dictionary import PartDictionary
from bestiary.concepts.part_prompt.part_mention import PromptError
from bestiary.concepts.part_prompt.part_prompt import parse_part_prompt, resolve_prompt
from bestiary.concepts.spectrum.prompt_spectrum import PromptSpectrum
from bestiary.concepts.spectrum.stage_algebra import keep_stages, merge_by_attribute, say_words
from bestiary.concepts.spectrum.stage_bounds import StageBounds
from bestiary.concepts.spectrum.staged_prompt import (
    PromptSources,
    StagedPrompt,
    parse_stage_texts,
    plain_staged_prompt,
    resolve_staged_prompt,
)

Make = Callable[..., PromptSpectrum]
MIDDLES = [950 - 100 * stage for stage in range(10)]
"""A timestep in the middle of each of ten stages, in generation order."""


def _text(prompt: StagedPrompt, timestep: int) -> str:
    """Text at a timestep, `#` for a learned vector."""
    stage = prompt.stages[int(prompt.bounds.stage_of(torch.tensor(timestep)))]
    return "".join("#" if piece.text is None else piece.text for piece in stage.pieces)


def _vectors(prompt: StagedPrompt, timestep: int) -> torch.Tensor:
    return prompt.stages[int(prompt.bounds.stage_of(torch.tensor(timestep)))].vectors


@pytest.fixture
def birds() -> PartDictionary:
    """Heads 17 (cardinal) and 18."""
    return PartDictionary(
        "sd15", ("head",), ({17: "cardinal"},), None, torch.tensor([[0, 17], [0, 18]]), {"clip_l": torch.eye(2, 768)}
    )


def test_every_stage_holds_its_own_vectors(make_spectrum: Make) -> None:
    corgi = make_spectrum(vectors=2)
    prompt = resolve_staged_prompt("a photo of a <corgi>", PromptSources({"corgi": corgi}))
    assert prompt.bounds == corgi.bounds
    for stage, timestep in enumerate(MIDDLES):
        assert _text(prompt, timestep) == "a photo of a ##"
        assert torch.equal(_vectors(prompt, timestep), corgi.matrix()[stage])


def test_a_prompt_without_mentions_is_one_stage_and_like_a_part_prompt() -> None:
    text = r"a (red:1.2) bird, embedding:x, \(so\), *, two  spaces" + "\nnew line"
    staged = resolve_staged_prompt(text, PromptSources())
    assert staged.bounds.stages == 1
    assert staged.stages[0].pieces == resolve_prompt(parse_part_prompt(text), {}).pieces


def test_equal_stages_are_one_stage_and_one_encode(make_spectrum: Make) -> None:
    same = replace(make_spectrum(), embeddings={"clip_l": torch.ones(10, 1, 768)})
    prompt = resolve_staged_prompt("a <corgi>", PromptSources({"corgi": same}))
    assert prompt.bounds.stages == 1 and len(prompt.distinct()[0]) == 1


def test_two_contents_are_encoded_twice_however_often_they_alternate(make_spectrum: Make) -> None:
    pair = replace(
        make_spectrum(), embeddings={"clip_l": (torch.arange(10) % 2).view(10, 1, 1).expand(10, 1, 768).float()}
    )
    contents, rows = resolve_staged_prompt("a <corgi>", PromptSources({"corgi": pair})).distinct()
    assert len(contents) == 2 and rows == (0, 1) * 5


def test_a_spectrum_on_some_stages_only(make_spectrum: Make) -> None:
    corgi = make_spectrum()
    prompt = resolve_staged_prompt("a <corgi@layout|dog> here", PromptSources({"corgi": corgi}))
    assert prompt.bounds.edges == (1000, 900, 0)
    assert _text(prompt, 950) == "a # here" and _text(prompt, 50) == "a dog here"
    silent = resolve_staged_prompt("a <corgi@2-10> here", PromptSources({"corgi": corgi}))
    assert _text(silent, 950) == "a  here"


def test_presets_reproduce_the_published_lists(make_spectrum: Make) -> None:
    # the authors' lists count from the end: `*` at k = 9 for layout, at 0..7 for content, at 0..4 for material
    corgi = make_spectrum()
    for attribute, shown in (("layout", [9]), ("content", list(range(8))), ("material", list(range(5)))):
        prompt = resolve_staged_prompt(f"<corgi@{attribute}> a dog", PromptSources({"corgi": corgi}))
        told = ["#" in _text(prompt, 1000 * k // 10 + 50) for k in range(10)]
        assert told == [k in shown for k in range(10)]


def test_parts_on_stages(make_spectrum: Make, birds: PartDictionary) -> None:
    sources = PromptSources({"corgi": make_spectrum()}, {"birds": birds})
    prompt = resolve_staged_prompt("a <head:cardinal@layout,8-10> bird", sources)
    assert [_text(prompt, t) for t in MIDDLES] == ["a # bird", *["a  bird"] * 6, *["a # bird"] * 3]
    assert torch.equal(_vectors(prompt, 950), birds.vector(0, 17).unsqueeze(0))
    both = resolve_staged_prompt("<corgi> and <birds.head:18@layout>", sources)
    assert torch.equal(_vectors(both, 950), torch.stack([sources.spectra["corgi"].matrix()[0, 0], birds.vector(0, 18)]))
    assert _text(both, 50) == "# and "


def test_stage_numbers_of_parts_count_in_the_spectrums_stages(make_spectrum: Make, birds: PartDictionary) -> None:
    sources = PromptSources({"corgi": make_spectrum(stages=4)}, {"birds": birds})
    prompt = resolve_staged_prompt("<corgi> <head:17@4>", sources)
    assert [_text(prompt, t) for t in (999, 251, 249)] == ["# ", "# ", "# #"]


def test_edits_at_a_share_of_the_way() -> None:
    prompt = resolve_staged_prompt("[a cat:a dog:0.5] runs", PromptSources())
    assert prompt.bounds.edges == (1000, 500, 0)
    assert _text(prompt, 500) == "a cat runs" and _text(prompt, 499) == "a dog runs"
    assert resolve_staged_prompt("[a:b:0] [c:d:1]", PromptSources()).bounds.stages == 1


def test_a_spectrum_taken_away_by_an_edit(make_spectrum: Make) -> None:
    sources = PromptSources({"corgi": make_spectrum()})
    prompt = resolve_staged_prompt("a [<corgi>:dog:0.15]", sources)
    assert [_text(prompt, t) for t in (950, 860, 840)] == ["a #", "a #", "a dog"]


def test_weights_go_around_mentions_and_words(make_spectrum: Make) -> None:
    corgi = say_words(make_spectrum(), {9: "dog"})
    prompt = resolve_staged_prompt("a (<corgi>:1.3)", PromptSources({"corgi": corgi}))
    assert prompt.stages[0].pieces == (PromptPiece("a "), PromptPiece(None, 1.3))
    assert prompt.stages[-1].pieces == (PromptPiece("a "), PromptPiece("dog", 1.3))


def test_words_at_all_stages_are_the_plain_prompt(make_spectrum: Make) -> None:
    corgi = keep_stages(make_spectrum(), [], "dog")
    prompt = resolve_staged_prompt("a <corgi>, happy", PromptSources({"corgi": corgi}))
    assert prompt.bounds.stages == 1
    assert prompt.stages[0].pieces == (PromptPiece("a dog, happy"),)


def test_several_references_in_one_prompt(make_spectrum: Make) -> None:
    a, b, c = make_spectrum(100), make_spectrum(200), make_spectrum(300)
    mix = merge_by_attribute({"layout": a, "content": b, "style": c})
    prompt = resolve_staged_prompt("a <mix>", PromptSources({"mix": mix}))
    chosen = [a, None, b, b, b, b, b, c, c, c]
    for stage, timestep in enumerate(MIDDLES):
        owner = chosen[stage]
        assert torch.equal(_vectors(prompt, timestep), b.neutral_matrix() if owner is None else owner.matrix()[stage])


def test_overrides_and_repeated_stages(make_spectrum: Make) -> None:
    corgi = make_spectrum()
    sources = PromptSources({"corgi": corgi})
    prompt = resolve_staged_prompt(
        "a <corgi>", sources, overrides={0: "a wide meadow", 9: 3, 3: "a <corgi>, wool", 5: 0}
    )
    assert _text(prompt, 950) == "a wide meadow"
    assert _text(prompt, 650) == "a #, wool"
    # what stage 4 learned, not the text that replaced it; likewise stage 1
    assert _text(prompt, 50) == "a #" and torch.equal(_vectors(prompt, 50), corgi.matrix()[3])
    assert torch.equal(_vectors(prompt, 450), corgi.matrix()[0])


def test_overrides_without_any_spectrum() -> None:
    prompt = resolve_staged_prompt("a bird", PromptSources(), overrides=parse_stage_texts("1-2: a meadow\n10: =1"))
    assert [_text(prompt, t) for t in (999, 800, 799, 50)] == ["a meadow", "a meadow", "a bird", "a bird"]


def test_stage_texts() -> None:
    found = parse_stage_texts("layout: wide: so\n\n3-4:  a bird \n4: =7", StageBounds.equal(10))
    assert found == {0: "wide: so", 2: "a bird", 3: 6}
    with pytest.raises(BestiaryError, match="line 2, 'nothing': write stages, a colon and a text"):
        parse_stage_texts("1: a\nnothing")
    with pytest.raises(BestiaryError, match="line 1: stage '11' does not exist"):
        parse_stage_texts("11: a")
    with pytest.raises(BestiaryError, match="line 1: unknown stages 'blue'"):
        parse_stage_texts("1: =blue")


def test_strength_in_the_prompt(make_spectrum: Make) -> None:
    corgi = make_spectrum()
    prompt = resolve_staged_prompt("<corgi*0>", PromptSources({"corgi": corgi}))
    assert prompt.bounds.stages == 1 and torch.equal(prompt.stages[0].vectors, corgi.neutral_matrix())


def test_layers_are_kept_and_bypass_stands_beside(make_spectrum: Make) -> None:
    layered = make_spectrum(stages=2, layers=4)
    layered = replace(layered, bypass=dict(layered.embeddings))
    sources = PromptSources({"x": layered, "y": make_spectrum()})
    prompt = resolve_staged_prompt("<x> <y>", sources)
    assert prompt.layers == 4
    assert prompt.stages[0].vectors.shape == (4, 2, 768)
    assert torch.equal(prompt.stages[0].vectors[:, 1], sources.spectra["y"].matrix()[0].expand(4, 768))
    assert prompt.stages[0].bypass[:, 1].abs().max() == 0
    assert torch.equal(prompt.stages[0].bypass[:, :1], layered.stage_vectors(0))


def test_a_plain_prompt_made_by_hand() -> None:
    prompt = plain_staged_prompt([PromptPiece(None)], torch.ones(1, 8))
    assert prompt.bounds.stages == 1 and prompt.layers is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a <corgy>", "column 3: unknown spectrum 'corgy': choose 'corgi', 'cat'"),
        ("<corgi@pose>", "column 1: unknown stages 'pose': choose 'layout'"),
        ("<corgi@11>", "column 1: stage '11' does not exist: there are stages 1 to 10"),
        ("x <head:17>", "column 3: .*no part dictionary is loaded"),
        ("[a <nobody>:b:0.5]", "column 4: unknown spectrum 'nobody'"),
        ("<cat*0.5>", "column 1: the strength of this spectrum cannot be changed: it has no neutral vectors"),
    ],
)
def test_faults_in_prompts(make_spectrum: Make, text: str, message: str) -> None:
    sources = PromptSources({"corgi": make_spectrum(), "cat": make_spectrum(neutral=None)})
    with pytest.raises(PromptError, match=message):
        resolve_staged_prompt(text, sources)


def test_unknown_placeholders_without_any_spectrum() -> None:
    with pytest.raises(PromptError, match="column 3: <corgi> refers to a spectrum, but none is loaded"):
        resolve_staged_prompt("a <corgi>", PromptSources())


def test_overrides_for_stages_that_do_not_exist(make_spectrum: Make) -> None:
    sources = PromptSources({"corgi": make_spectrum()})
    with pytest.raises(BestiaryError, match="text for stage 12: there are stages 1 to 10"):
        resolve_staged_prompt("a <corgi>", sources, overrides={11: "x"})
    with pytest.raises(BestiaryError, match="text for stage 0: there are stages 1 to 10"):
        resolve_staged_prompt("a <corgi>", sources, overrides={0: -1})


def test_different_models_in_one_prompt(make_spectrum: Make) -> None:
    sources = PromptSources({"a": make_spectrum(), "b": make_spectrum(backbone="sd2")})
    with pytest.raises(BestiaryError, match="of different base models cannot be used in one prompt"):
        resolve_staged_prompt("x", sources)


def test_a_prompt_has_the_shift_of_its_spectra(make_spectrum: Make) -> None:
    known = {"a": make_spectrum(shift=3.0), "b": make_spectrum()}
    assert resolve_staged_prompt("a <a> and a <b>", PromptSources(known)).shift == 3.0
    assert resolve_staged_prompt("a bird", PromptSources()).shift is None
    known["b"] = make_spectrum(shift=1.0)
    with pytest.raises(BestiaryError, match="different shifts"):
        resolve_staged_prompt("a <a> and a <b>", PromptSources(known))
