"""Training captions: order, sentences, dropping, supervised kinds."""

import numpy as np
import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.part_prompt.part_captions import CaptionStyle, build_part_caption, supervised_codes
from bestiary.concepts.part_prompt.prompt_templates import PHOTO_TEMPLATES

CODES = torch.tensor([65, 185, 246, -1, 101, -1, 192, 211])


def many(style: CaptionStyle, count: int = 400, codes: torch.Tensor = CODES, seed: int = 0) -> list:
    rng = np.random.default_rng(seed)
    return [build_part_caption(codes, rng, style) for _ in range(count)]


def text_of(caption) -> str:
    return "".join("*" if piece.text is None else piece.text for piece in caption.pieces)


def test_there_are_27_different_templates_with_one_place_each() -> None:
    assert len(set(PHOTO_TEMPLATES)) == 27
    assert all(template.count("{}") == 1 for template in PHOTO_TEMPLATES)


def test_shuffling_changes_the_order_but_not_the_set() -> None:
    captions = many(CaptionStyle())
    assert {frozenset(zip(c.parts, c.kinds, strict=True)) for c in captions} == {
        frozenset([(0, 65), (1, 185), (2, 246), (4, 101), (6, 192), (7, 211)])
    }
    assert len({c.parts for c in captions}) > 100
    assert {c.parts for c in many(CaptionStyle(shuffle=False))} == {(0, 1, 2, 4, 6, 7)}


def test_half_of_the_captions_are_sentences() -> None:
    captions = many(CaptionStyle(), 2000)
    bare = sum(text_of(c) == "******" for c in captions)
    assert 0.45 < bare / 2000 < 0.55
    sentences = {text_of(c) for c in captions} - {"******"}
    assert sentences == {template.format("******") for template in PHOTO_TEMPLATES}


def test_the_class_noun_follows_the_tokens() -> None:
    always = CaptionStyle(template_probability=1, templates=("the {} again",), class_noun="bird")
    assert text_of(many(always, 1)[0]) == "the ****** bird again"
    never = CaptionStyle(template_probability=0, templates=(), class_noun="bird")
    assert text_of(many(never, 1)[0]) == "****** bird"


def test_dropping_keeps_half_or_a_count_and_never_nothing() -> None:
    counts = [len(c.parts) for c in many(CaptionStyle(drop_probability=0.5), 2000)]
    assert set(counts) == {3, 6}
    assert 0.45 < counts.count(3) / 2000 < 0.55
    assert {len(c.parts) for c in many(CaptionStyle(drop_probability=1, keep_count=2))} == {2}
    two = torch.tensor([3, -1, 4])
    assert {len(c.parts) for c in many(CaptionStyle(drop_probability=1), codes=two)} == {1}
    one = torch.tensor([-1, 4])
    assert {c.parts for c in many(CaptionStyle(drop_probability=1), codes=one)} == {(1,)}


def test_dropping_after_shuffling_spares_no_part() -> None:
    kept = {part for c in many(CaptionStyle(drop_probability=1, keep_count=1)) for part in c.parts}
    assert kept == {0, 1, 2, 4, 6, 7}


def test_a_seed_fixes_every_caption() -> None:
    style = CaptionStyle(drop_probability=0.5)
    assert many(style, seed=3) == many(style, seed=3)
    assert many(style, seed=3) != many(style, seed=4)


def test_codes_and_places_come_back_in_part_order() -> None:
    caption = build_part_caption(CODES, np.random.default_rng(1), CaptionStyle(drop_probability=1))
    codes = caption.codes(8)
    assert all(codes[part] == CODES[part] for part in caption.parts)
    assert (codes >= 0).sum() == len(caption.parts) == 3
    places = caption.places_by_part(torch.tensor([11, 12, -1]), 8)
    assert [places[part].item() for part in caption.parts] == [11, 12, -1]
    assert places.sum() == 11 + 12 - 1 - 5


def test_supervised_kinds_replace_all_but_background_and_absent() -> None:
    codes = torch.tensor([[5, -1, 7], [1, 2, 3]])
    ours = supervised_codes(codes, torch.tensor([90, 91]), background=2)
    assert ours.tolist() == [[90, -1, 7], [91, 91, 3]]
    assert supervised_codes(codes, torch.tensor([90, 91]), None).tolist() == [[90, -1, 90], [91, 91, 91]]
    assert codes.tolist() == [[5, -1, 7], [1, 2, 3]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"template_probability": 1.5}, "template_probability is 1.5"),
        ({"drop_probability": -0.1}, "drop_probability is -0.1"),
        ({"templates": ("a photo",)}, "templates need exactly one {} each: 'a photo'"),
        ({"templates": ()}, "templates need exactly one {} each: 'none was given'"),
        ({"keep_count": 0}, "keep_count is 0"),
    ],
)
def test_wrong_styles_show_the_value(arguments: dict, message: str) -> None:
    with pytest.raises(BestiaryError, match=message):
        CaptionStyle(**arguments)


def test_a_picture_without_parts_cannot_be_captioned() -> None:
    with pytest.raises(BestiaryError, match=r"codes \[-1, -1\] shows no part"):
        build_part_caption(torch.tensor([-1, -1]), np.random.default_rng(0))


def test_things_of_a_picture_stand_one_after_the_other_each_with_its_noun() -> None:
    codes = np.array([1, 2, -1, -1, -1, -1, 0, -1, 3, 4, 4, 4])  # the second of four slots shows nothing
    style = CaptionStyle(template_probability=0, class_noun="bird")
    orders = set()
    for seed in range(12):
        caption = build_part_caption(codes, np.random.default_rng(seed), style, slots=4)
        slots = [column // 3 for column in caption.parts]
        order = list(dict.fromkeys(slots))
        # once a thing is left it does not come again
        assert [slot for slot in order for _ in range(slots.count(slot))] == slots and sorted(order) == [0, 2, 3]
        assert caption.kinds == tuple(codes[list(caption.parts)])
        texts = [piece.text for piece in caption.pieces if piece.text]
        assert texts == [" bird , a ", " bird and a ", " bird"]
        orders.add(tuple(order))
    assert len(orders) > 2


def test_one_thing_is_captioned_as_without_slots() -> None:
    alone, among = np.array([1, 2, 0]), np.array([1, 2, 0, -1, -1, -1])
    style = CaptionStyle(drop_probability=0.5)
    for seed in range(8):
        ours = build_part_caption(among, np.random.default_rng(seed), style, slots=2)
        assert ours == build_part_caption(alone, np.random.default_rng(seed), style)


def test_dropped_parts_are_dropped_from_every_thing() -> None:
    codes = np.array([1, 1, 1, 1, 2, 2, 2, 2])
    caption = build_part_caption(codes, np.random.default_rng(0), CaptionStyle(drop_probability=1.0), slots=2)
    assert sorted(column // 4 for column in caption.parts) == [0, 0, 1, 1]
