"""Learned vectors in the place of what text encoders say: places, weights, starts, gradients, and files that remember it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from bestiary.concepts.denoiser.denoiser import PromptPiece
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.part_dictionary.dictionary_merge import merge_dictionaries
from bestiary.concepts.part_dictionary.part_dictionary import PartDictionary
from bestiary.trainer.composing.picture_making import enter_prompts
from bestiary.trainer.learning.denoiser.prompt_encoding import use_insertion
from bestiary.trainer.model.diffusers_denoiser import NoTextEncoders

PIECES = [PromptPiece("a photo of a"), PromptPiece(None), PromptPiece("bird")]


@pytest.fixture(scope="module")
def sd3(tiny_denoiser: Callable[[str], object]) -> object:
    denoiser = tiny_denoiser("sd3")
    use_insertion(denoiser.text, "output")
    return denoiser


def vectors(denoiser: object) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    encoders = denoiser.backbone.text_encoders
    return {spec.name: torch.randn(1, 1, spec.width, generator=rng).requires_grad_() for spec in encoders}


def test_vectors_stand_in_their_columns_and_nothing_else_changes(sd3: object) -> None:
    layout, given = sd3.text.tokenize(PIECES), vectors(sd3)
    encoded = sd3.text.encode([layout], given)
    plain = sd3.text._encode_plain([layout]).context
    clip, t5 = encoded.columns[0, 0].tolist()
    row = torch.cat([given["clip_l"], given["clip_g"]], dim=-1)[0, 0]
    assert torch.equal(encoded.context[0, clip], row) and torch.equal(encoded.context[0, t5], given["t5xxl"][0, 0])
    rest = [place for place in range(154) if place not in (clip, t5)]
    assert torch.equal(encoded.context[0, rest], plain[0, rest])
    encoded.context.square().sum().backward()
    assert all(torch.allclose(own.grad, 2 * own) for own in given.values())


def test_a_weight_leads_away_from_the_empty_prompt(sd3: object) -> None:
    given = {name: own.detach() for name, own in vectors(sd3).items()}
    heavy = sd3.text.encode([sd3.text.tokenize([PIECES[0], PromptPiece(None, 1.5), PIECES[2]])], given)
    empty = sd3.text.encode([sd3.text.tokenize([])], None).context
    place = heavy.columns[0, 0, 1]
    expected = empty[0, place] + 1.5 * (given["t5xxl"][0, 0] - empty[0, place])
    torch.testing.assert_close(heavy.context[0, place], expected, atol=1e-5, rtol=1e-5)


def test_starts_are_what_the_encoders_say_of_words(sd3: object) -> None:
    said = sd3.text.word_vectors("red bird")
    context = sd3.text.encode([sd3.text.tokenize([PromptPiece("red bird")])], None).context[0]
    assert len(said["t5xxl"]) == 2 and torch.equal(said["t5xxl"], context[77:79])
    assert torch.equal(said["clip_l"], context[1 : 1 + len(said["clip_l"]), :32])


def test_files_remember_it_and_do_not_mix(sd3: object, tmp_path: Path) -> None:
    def dictionary(**provenance: object) -> PartDictionary:
        rows = {name: own.detach()[0] for name, own in vectors(sd3).items()}
        return PartDictionary("sd3", ("head",), ({},), None, torch.tensor([[0, 0]]), rows, provenance=provenance)

    behind, before = dictionary(insertion="output"), dictionary()
    behind.save(tmp_path / "a.parts.safetensors")
    assert PartDictionary.load(tmp_path / "a.parts.safetensors").insertion == "output" and before.insertion == "input"
    enter_prompts(sd3, {"before": before})
    assert sd3.text.insertion == "input"
    enter_prompts(sd3, {"behind": behind})
    assert sd3.text.insertion == "output"
    with pytest.raises(
        BestiaryError,
        match=r"at different places \(a at the output, b at the input\): use such files in prompts of their own",
    ):
        enter_prompts(sd3, {"a": behind, "b": before})
    with pytest.raises(
        BestiaryError, match="enter prompts at the text encoders' output, those of the second at the input"
    ):
        merge_dictionaries(behind, before)
    with pytest.raises(
        BestiaryError,
        match='method.insertion = "output": this model takes learned vectors before its text encoders alone',
    ):
        use_insertion(NoTextEncoders(), "output")
