"""Texts as typed: mentions, edits, lines and clocks of both sides, the README modes of ProSpect, and every fault."""

import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.part_dictionary.part_dictionary import PartDictionary
from bestiary.concepts.part_prompt.part_mention import PromptError
from bestiary.concepts.spectrum.prompt_spectrum import PromptSpectrum
from bestiary.concepts.spectrum.stage_bounds import StageBounds
from bestiary.concepts.spectrum.staged_prompt import PromptSources
from bestiary.nodes.host.socket_types import NamedSpectrum
from torch import Tensor

WIDTH = 32


def spectrum(seed: int = 0, width: int = WIDTH, stages: int = 10) -> PromptSpectrum:
    rows = torch.randn(stages, 1, width, generator=torch.Generator().manual_seed(seed))
    neutral = {"clip_l": torch.zeros(1, width)}
    return PromptSpectrum("sd15", {"clip_l": rows}, StageBounds.equal(stages), neutral=neutral)


def birds(width: int = WIDTH) -> PartDictionary:
    rows = torch.randn(2, width, generator=torch.Generator().manual_seed(4))
    kinds = ({0: "cardinal", 1: "blue jay"},)
    return PartDictionary("sd15", ("head",), kinds, None, torch.tensor([(0, 0), (0, 1)]), {"clip_l": rows})


def read(text: str, lines: str = "", spectra: dict | None = None, **options: object) -> object:
    from bestiary.nodes.spectrum.spectrum_prompts import PromptOptions, TypedSide, read_side

    sources = PromptSources({"corgi": spectrum()} if spectra is None else spectra, {"birds": birds()})
    return read_side(TypedSide(text, lines), sources, PromptOptions(**options))


def vectors_of(side: object) -> list[Tensor | None]:
    """The vector at each stage, None where there is none."""
    return [stage.vectors[0] if len(stage.vectors) else None for stage in side.prompt.stages]


def texts_of(side: object) -> list[str]:
    return ["".join(piece.text or "*" for piece in stage.pieces) for stage in side.prompt.stages]


def test_a_mention_holds_the_vector_of_its_stage():
    side = read("a photo of a <corgi>")
    assert all(torch.equal(a, b[0]) for a, b in zip(vectors_of(side), spectrum().matrix(), strict=True))
    assert side.plain_text is None


@pytest.mark.parametrize(
    ("text", "lines", "learned"),
    [
        # the four uses in ProSpect's README, whose lists begin at the last stage
        ("a corgi", "", []),
        ("a <corgi@layout|dog>", "", [0]),
        ("a <corgi@content|teddy>", "", [2, 3, 4, 5, 6, 7, 8, 9]),
        ("a <corgi@material|dog>", "", [5, 6, 7, 8, 9]),
        ("a dog", "layout: a <corgi>", [0]),
    ],
)
def test_presets_put_the_concept_at_the_stages_of_the_reference(text, lines, learned):
    side = read(text, lines)
    rows = spectrum().matrix()
    found = {}
    for stage, place in zip(side.prompt.stages, side.prompt.bounds.edges, strict=False):
        if len(stage.vectors):
            found[10 - place // 100] = stage.vectors[0]
    assert sorted(found) == learned
    assert all(torch.equal(vector, rows[stage, 0]) for stage, vector in found.items())


def test_typed_presets_serve_the_spectra_too():
    rows = spectrum().matrix()
    side = read("a <corgi@layout|dog>", presets="layout: 4-5")
    assert side.prompt.bounds.edges == (1000, 700, 600, 500, 0)
    assert [vector is not None for vector in vectors_of(side)] == [False, True, True, False]
    assert torch.equal(torch.stack([one for one in vectors_of(side) if one is not None]), rows[3:5, 0])
    # names that the presets do not say stay those of the spectrum, new ones are understood
    assert texts_of(read("<corgi@material|dog>", presets="layout: 4-5")) == ["dog", *["*"] * 5]
    assert texts_of(read("<corgi@mood|dog>", presets="mood: 10")) == ["dog", "*"]
    with pytest.raises(PromptError, match="unknown stages 'mood'"):
        read("<corgi@mood|dog>", presets="layout: 4-5")


@pytest.mark.parametrize("stages", [1, 4])
def test_stage_lines_where_no_stage_lies(demo_model, stages):
    from bestiary.nodes.spectrum.spectrum_prompts import PromptOptions, encode_stage_lines

    with pytest.raises(BestiaryError, match=f"line 1: 'layout' selects no stage: none of the {stages} stages"):
        encode_stage_lines(demo_model.clip, "layout: a meadow", "a bird", PromptOptions(stages=stages), {})
    with pytest.raises(BestiaryError, match="line 1: 'layout' selects no stage"):
        encode_stage_lines(demo_model.clip, "1: =layout", "a bird", PromptOptions(stages=stages), {})


@pytest.mark.parametrize("text", ["a <lora:x:0.8>", "a <lora:a+b*c:1>", "a <LoRA:x>"])
def test_tags_of_other_programs_say_where_loras_go(text):
    with pytest.raises(
        PromptError, match="column 3: <lora:...> is the syntax of other programs .* put the node Load LoRA"
    ):
        read(text.replace("LoRA", "lora"))
    with pytest.raises(PromptError, match="put the node Hypernetwork Loader"):
        read("a <hypernet:x:1>")


def test_a_line_that_repeats_a_stage_gives_its_learned_vector_whatever_the_order():
    rows = spectrum().matrix()
    for lines in ("2: =9\n9: =2", "9: =2\n2: =9"):
        side = read("a <corgi>", lines)
        assert torch.equal(vectors_of(side)[1], rows[8, 0])
        assert torch.equal(vectors_of(side)[8], rows[1, 0])


def test_strength_lies_between_the_words_and_the_learned_vector():
    rows = spectrum().matrix()
    zero, half, full = (vectors_of(read(f"a <corgi*{s}>"))[0] for s in ("0", "0.5", "1"))
    assert torch.equal(full, rows[0, 0])
    assert torch.equal(zero, torch.zeros(WIDTH))
    assert 0 < half.norm() < full.norm()


def test_parts_and_edits_change_on_the_way():
    side = read("[a cat:a dog:0.4] with <head:cardinal@layout,material>", spectra={})
    assert side.prompt.bounds.edges == (1000, 900, 600, 500, 0)
    assert texts_of(side) == ["a cat with *", "a cat with ", "a dog with ", "a dog with *"]


def test_references_of_several_spectra_stand_at_their_stages():
    spectra = {"a": spectrum(1), "b": spectrum(2), "c": spectrum(3)}
    side = read("<a@layout><b@3-5><c@material>", spectra=spectra)
    found = [None if v is None else v for v in vectors_of(side)]
    owners = ["a", None, "b", "b", "b", "c", "c", "c", "c", "c"]
    for stage, (owner, vector) in enumerate(zip(owners, found, strict=True)):
        assert (vector is None) == (owner is None)
        assert owner is None or torch.equal(vector, spectra[owner].matrix()[stage, 0])


def test_lines_count_in_the_stages_of_the_spectrum_else_in_those_asked_for():
    assert read("a <corgi>", "4: a dog", spectra={"corgi": spectrum(stages=4)}).prompt.bounds.stages == 4
    side = read("a dog", "4: a cat", stages=4)
    assert side.prompt.bounds.edges == (1000, 250, 0)
    assert read("a dog", "mood: a cat", presets="mood: 50%-100%").prompt.bounds.edges == (1000, 500, 0)


def test_equal_neighbours_are_one_entry_and_one_encode():
    side = read("a dog", "\n".join(f"{stage}: a dog" for stage in range(1, 11)))
    assert side.prompt.bounds.stages == 1
    side = read("a dog", "1-5: a cat")
    assert len(side.prompt.distinct()[0]) == 2


def test_the_report_tells_every_stage():
    from bestiary.nodes.spectrum.spectrum_prompts import stage_report

    assert (
        stage_report(read("a (<corgi@layout>:1.2) in snow")) == "0-10 %: a (<corgi>:1.2) in snow\n10-100 %: a  in snow"
    )
    assert stage_report(read("", "1: a <head:cardinal>")).splitlines() == [
        "0-10 %: a <head:cardinal>",
        "10-100 %: (nothing)",
    ]


def test_the_report_tells_stages_without_a_step(sd15_model):
    from bestiary.nodes.spectrum.spectrum_prompts import stage_report
    from bestiary.nodes.spectrum.stage_ranges import StageTiming
    from bestiary.nodes.spectrum.stage_schedule import sampler_sigmas

    sigmas = sampler_sigmas(sd15_model.model, "euler", "simple", 4, 1.0)
    side = read("a <corgi>", timing=StageTiming("steps", sd15_model.model, sigmas))
    lines = stage_report(side).splitlines()
    assert sum("(no step falls into it)" in line for line in lines) == 6


def test_negatives_may_be_staged_too(sd15_model):
    from bestiary.nodes.spectrum.spectrum_prompts import PromptOptions, TypedSide, encode_typed_sides

    sides = [TypedSide("a dog"), TypedSide("ugly", "layout: a <corgi>")]
    (positive, negative), _ = encode_typed_sides(
        sd15_model.clip, sides, PromptSources({"corgi": spectrum()}), PromptOptions()
    )
    assert [len(positive), len(negative)] == [1, 3]


# --- faults ---------------------------------------------------------------------------------------------------------


def test_an_unknown_placeholder_tells_column_and_choices():
    with pytest.raises(PromptError, match=r"column 6: unknown spectrum 'corgy': choose 'corgi'"):
        read("a of <corgy>")
    with pytest.raises(PromptError, match="<corgi> refers to a spectrum, but none is loaded"):
        read("a <corgi>", spectra={})
    with pytest.raises(BestiaryError, match="bill"):
        read("a <bill:cardinal>")


def test_stages_that_do_not_exist_are_told():
    with pytest.raises(PromptError, match=r"column 3: stage '12' does not exist: there are stages 1 to 10"):
        read("a <corgi@12>")
    with pytest.raises(BestiaryError, match=r"line 1: stage '11' does not exist: there are stages 1 to 10"):
        read("a dog", "11: a cat")
    with pytest.raises(BestiaryError, match="stages 2-3 are claimed by line 1 and by line 2"):
        read("a dog", "1-3: a cat\n2-4: a cow")


def test_a_spectrum_or_part_of_another_width_is_refused(sd15_model):
    from bestiary.nodes.spectrum.spectrum_prompts import PromptOptions, TypedSide, encode_typed_sides

    def encode(sources: PromptSources, clip: object = sd15_model.clip) -> None:
        encode_typed_sides(clip, [TypedSide("a dog")], sources, PromptOptions())

    with pytest.raises(
        BestiaryError, match=r"spectrum 'corgi' .*clip_l \(768 wide\); the connected CLIP needs clip_l \(32"
    ):
        encode(PromptSources({"corgi": spectrum(width=768)}))
    with pytest.raises(BestiaryError, match=r"dictionary 'birds' holds vectors for clip_l \(768 wide\)"):
        encode(PromptSources({}, {"birds": birds(768)}))
    with pytest.raises(BestiaryError, match="the CLIP input is empty"):
        encode(PromptSources(), None)


def test_two_spectra_of_one_name_are_refused():
    from bestiary.nodes.spectrum.spectrum_prompts import spectra_by_name

    one, other = NamedSpectrum("Corgi", spectrum()), NamedSpectrum("corgi", spectrum(1))
    assert list(spectra_by_name([None, one, None])) == ["Corgi"]
    with pytest.raises(BestiaryError, match="two connected spectra are named 'corgi'"):
        spectra_by_name([one, other])


def test_plain_lines_need_a_text_for_every_stage(sd15_model):
    from bestiary.nodes.spectrum.spectrum_prompts import PromptOptions, encode_stage_lines

    def encode(lines: str, text: str = "") -> tuple[list, str]:
        return encode_stage_lines(sd15_model.clip, lines, text, PromptOptions(stages=4), {})

    conditioning, report = encode("1-2: a cat\n3-4: a dog")
    assert [len(conditioning), report] == [3, "0-50 %: a cat\n50-100 %: a dog"]
    assert encode("1-2: a cat", "a dog")[1] == report
    with pytest.raises(BestiaryError, match="stages 3-4 have no text: write a line for them"):
        encode("1-2: a cat")
