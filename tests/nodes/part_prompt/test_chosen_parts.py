"""Parts picked in the graph: their vectors, their text, and putting them together."""

import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.part_dictionary.part_dictionary import PartDictionary
from bestiary.concepts.part_prompt.part_prompt import parse_part_prompt, resolve_prompt
from bestiary.nodes.host.socket_types import ChosenPart, ChosenParts, NamedDictionary

ROWS = [(0, 0), (0, 1), (1, 3), (2, 0), (2, 5)]


def birds(name: str = "birds", background: int | None = 2, **changes: object) -> NamedDictionary:
    fields = {
        "backbone": "sd15",
        "part_names": ("head", "wing", "background", "never trained"),
        "kind_names": ({0: "blue jay", 1: "a+b"}, {}, {0: "sea"}, {}),
        "background": background,
        "rows": torch.tensor(ROWS),
        "embeddings": {"clip_l": torch.randn(5, 6, generator=torch.Generator().manual_seed(0))},
        **changes,
    }
    return NamedDictionary(name, PartDictionary(**fields))


def chosen(part: str, kind: str = "0", vector: torch.Tensor | None = None, dictionary: str = "birds") -> ChosenParts:
    return ChosenParts((ChosenPart(dictionary, part, kind, 1.0, vector),))


def test_a_chosen_part_is_what_its_text_says():
    from bestiary.nodes.part_prompt.chosen_parts import choose_kinds, written_part

    named = birds()
    ours = choose_kinds(named, 0, ((0, 0.6), (1, 0.4)), 1.2)
    assert (ours.part, ours.kind, ours.weight) == ("head", r"blue jay*0.6+a\+b*0.4", 1.2)
    assert written_part(ours) == r"(<birds.head:blue jay*0.6+a\+b*0.4>:1.2)"
    theirs = resolve_prompt(parse_part_prompt(written_part(ours)), {"birds": named.dictionary})
    assert torch.equal(ours.vector, theirs.vectors[0])
    assert theirs.mentions[0].weight == 1.2


@pytest.mark.parametrize(
    ("part", "background", "parts"),
    [("all", 2, ["head", "wing"]), (" ALL ", None, ["head", "wing", "background"]), ("background", 2, ["background"])],
)
def test_random_parts_and_the_dictionary_that_holds_them(part, background, parts):
    from bestiary.nodes.part_prompt.chosen_parts import draw_random, written_parts

    named = birds(background=background)
    drawn, extended = draw_random(named, part, 7, 1.0)
    assert [one.part for one in drawn.parts] == parts
    assert written_parts(drawn) == " ".join(f"<birds.{name}:random 7>" for name in parts)
    resolved = resolve_prompt(parse_part_prompt(written_parts(drawn)), {extended.name: extended.dictionary})
    assert torch.equal(resolved.vectors, torch.stack([one.vector for one in drawn.parts]))
    assert extended.dictionary.provenance["new_kinds"] == [{"drawn_from": "birds", "seed": 7, "spread": 1.0}]
    assert len(named.dictionary.rows) == 5


def test_one_part_is_drawn_alike_alone_and_among_all_and_spread_0_is_the_mean():
    from bestiary.nodes.part_prompt.chosen_parts import draw_random

    named = birds()
    alone, among = draw_random(named, "head", 7, 1.0)[0], draw_random(named, "all", 7, 1.0)[0]
    assert torch.equal(alone.parts[0].vector, among.parts[0].vector)
    mean = draw_random(named, "head", 7, 0.0)[0].parts[0]
    assert torch.equal(mean.vector, named.dictionary.mean_and_std(0)[0])
    assert mean.kind == "random 7 spread 0"


def test_a_dictionary_of_background_alone_draws_that():
    from bestiary.nodes.part_prompt.chosen_parts import draw_random

    rows = torch.tensor([(2, 0), (2, 5), (2, 6)])
    named = birds(rows=rows, embeddings={"clip_l": torch.zeros(3, 6)})
    assert [one.part for one in draw_random(named, "all", 1, 1.0)[0].parts] == ["background"]


def test_faults_of_random_kinds_are_told():
    from bestiary.nodes.part_prompt.chosen_parts import draw_random

    with pytest.raises(BestiaryError, match="unknown part 'beak': choose .*'head'"):
        draw_random(birds(), "beak", 1, 1.0)
    with pytest.raises(BestiaryError, match="spread is -1.0: enter a number of at least 0"):
        draw_random(birds(), "head", 1, -1.0)


def test_parts_are_combined_in_their_order():
    from bestiary.nodes.part_prompt.chosen_parts import combine_parts

    head, wing = chosen("head"), chosen("wing")
    assert combine_parts([None, wing, None, head]).parts == (*wing.parts, *head.parts)
    assert combine_parts([combine_parts([head]), wing]) == combine_parts([head, wing])


def test_faults_of_combinations_are_told():
    from bestiary.nodes.part_prompt.chosen_parts import combine_parts

    with pytest.raises(BestiaryError, match="no part is connected: connect at least one"):
        combine_parts([None, None])
    twice = [chosen("head"), chosen("wing"), chosen("Head", "4", dictionary="dogs")]
    message = "part 'Head' is requested twice, as <birds.head:0> and <dogs.Head:4>: disconnect one of them"
    with pytest.raises(BestiaryError, match=message):
        combine_parts(twice)
    assert len(combine_parts(twice, allow_repeats=True).parts) == 3
    # the very same part through two links is two as well
    with pytest.raises(BestiaryError, match="part 'head' is requested twice"):
        combine_parts([twice[0], twice[0]])


@pytest.mark.parametrize(
    ("template", "linked", "prompt"),
    [
        ("a photo of a {parts} bird", True, "a photo of a <birds.head:0> <birds.wing:3> bird"),
        ("a bird", True, "a bird <birds.head:0> <birds.wing:3>"),
        (" ", True, "<birds.head:0> <birds.wing:3>"),
        (
            "({parts}:1.2) and {parts}",
            True,
            "(<birds.head:0> <birds.wing:3>:1.2) and " + "<birds.head:0> <birds.wing:3>",
        ),
        ("a photo of a {parts} bird", False, "a photo of a bird"),
        ("{parts}", False, ""),
        ("a {wild} bird", False, "a {wild} bird"),
    ],
)
def test_templates(template, linked, prompt):
    from bestiary.nodes.part_prompt.chosen_parts import fill_template

    parts = ChosenParts((*chosen("head").parts, *chosen("wing", "3").parts)) if linked else None
    assert fill_template(template, parts) == prompt


def test_parts_with_a_vector_are_found_by_their_mention():
    from bestiary.concepts.part_prompt.part_mention import find_mentions
    from bestiary.nodes.part_prompt.chosen_parts import key_of, parts_by_mention

    with_vector = ChosenPart("my.birds", "head", "random 7", 1.3, torch.ones(6))
    found = parts_by_mention(ChosenParts((with_vector, ChosenPart("my.birds", "wing", "3"))))
    assert list(found.values()) == [with_vector]
    for text in (r"<my\.birds.head:random 7>", r"< My\.Birds.HEAD : Random_7 >", r"<my\.birds.head:random 7*1>"):
        ((_, mention),) = find_mentions(text).values()
        assert key_of(mention) in found
    assert parts_by_mention(None) == {}


def test_parts_written_alike_must_be_alike():
    from bestiary.nodes.part_prompt.chosen_parts import parts_by_mention

    same = [chosen("head", "random 7", torch.ones(6)).parts[0] for _ in range(2)]
    assert len(parts_by_mention(ChosenParts(tuple(same)))) == 1
    other = chosen("head", "random 7", torch.zeros(6)).parts[0]
    with pytest.raises(
        BestiaryError, match="two different parts have the same mention <birds.head:random 7>: load their"
    ):
        parts_by_mention(ChosenParts((same[0], other)))


@pytest.mark.parametrize(
    ("typed", "linked", "notice"),
    [
        ([("head", "<head:0>"), ("wing", "<wing:3>")], None, None),
        ([("wing", "<wing:3>")], chosen("head"), None),
        (
            [("Head", "<Head:1>")],
            chosen("head"),
            "part 'Head' is named twice, by connection as <birds.head:0> and in the text as <Head:1>: "
            "remove one of them, unless you want both",
        ),
        (
            [("wing", "<wing:3>"), ("wing", "<wing:0>")],
            chosen("head"),
            "part 'wing' is named twice, in the text as <wing:3> and in the text as <wing:0>: "
            "remove one of them, unless you want both",
        ),
        # two heads that Combine Parts was allowed to put together
        ([("wing", "<wing:3>")], ChosenParts(chosen("head").parts + chosen("head", "1").parts), None),
    ],
)
def test_a_part_named_twice_is_said(typed, linked, notice):
    from bestiary.nodes.part_prompt.chosen_parts import repeat_notice

    assert repeat_notice(typed, linked) == notice
