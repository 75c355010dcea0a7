import numpy as np
import pytest
from bestiary.concepts.errors import BestiaryError
from bestiary.scenes.scene_captions import (
    CaptionOptions,
    checked_caption,
    joined,
    plural,
    scene_caption,
    subject_list,
    token_caption,
    with_article,
)
from bestiary.scenes.scene_layout import Placement, SceneLayout
from bestiary.scenes.scene_relations import relations
from bestiary.scenes.subject import Subject


def subject(name, words="", **fields):
    return Subject(name, np.full((4, 4, 4), 255, np.uint8), words, **fields)


CAT, DOG, OWL = subject("cat"), subject("dog"), subject("owl")


@pytest.mark.parametrize(
    ("subjects", "place", "caption"),
    [
        ([CAT], "", "a photo of a cat"),
        ([CAT, DOG], "in a garden", "a photo of a cat and a dog in a garden"),
        ([CAT, OWL, DOG], "", "a photo of a cat, an owl and a dog"),
        ([CAT, subject("cat 2", "cat"), DOG], "on a beach", "a photo of two cats and a dog on a beach"),
    ],
)
def test_grammar(subjects, place, caption):
    assert scene_caption(subjects, place) == caption
    assert token_caption(subjects, place) == caption


def test_counts_with_number_words():
    one, two = ("", "cat"), ("", "dog")
    assert subject_list([one], counted=True) == "one cat"
    assert subject_list([one, two, one], counted=True) == "two cats and one dog"
    assert joined(["a", "b", "c"]) == "a, b and c" and joined([]) == ""


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("cat", "a cat"), ("owl", "an owl"), ("hour glass", "an hour glass"), ("unicorn", "a unicorn"),
        ("umbrella", "an umbrella"), ("uninteresting cat", "an uninteresting cat"), ("European hare", "a European hare"),
        ("Apple", "an Apple"), ("the moon", "the moon"), ("scissors", "a pair of scissors"), ("one-eyed cat", "a one-eyed cat"),
        ("used car", "a used car"), ("unidentified cat", "an unidentified cat"), ("utensil", "a utensil"), ("<head:owl> bird", "a <head:owl> bird"),
    ],
)  # fmt: skip
def test_articles(words, expected):
    assert with_article(words) == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("cat", "cats"), ("fox", "foxes"), ("puppy", "puppies"), ("monkey", "monkeys"), ("wolf", "wolves"), ("sheep", "sheep"),
        ("Mouse", "Mice"), ("potted plant", "potted plants"), ("bowl of fruit", "bowls of fruit"), ("snowman", "snowmen"),
        ("human", "humans"), ("cat in a hat", "cats in a hat"), ("bus", "buses"), ("jellyfish", "jellyfishes"),
    ],
)  # fmt: skip
def test_plurals(words, expected):
    assert plural(words) == expected


def test_trigger_words_are_said_once_each_and_never_counted_together():
    subjects = [CAT, subject("cat 2", "cat"), DOG]
    options = CaptionOptions(triggers={"cat": "sks", "cat 2": "ohwx"})
    assert scene_caption(subjects, "in a garden", options) == "a photo of sks cat, ohwx cat and a dog in a garden"
    twice = CaptionOptions(triggers={"cat": "sks"}, repeat=2, prefix="comp")
    assert scene_caption([CAT, DOG], "here", twice) == "comp a photo of sks cat and a dog, sks cat and a dog here"


def test_tokens_stand_in_our_own_column_alone_grouped_by_subject():
    bird, beast = subject("b", "<head:cardinal> <wing:3> bird"), subject("c", "<head:7> beast")
    options = CaptionOptions(triggers={"b": "sks"})
    assert token_caption([bird, beast], "in a wood", options) == (
        "a photo of a <head:cardinal> <wing:3> bird and a <head:7> beast in a wood"
    )
    assert scene_caption([bird, beast], "in a wood", options) == "a photo of sks bird and a beast in a wood"
    assert scene_caption([subject("only", "<head:1>")]) == "a photo of an only"
    # what is learned by itself is not counted with others of its kind
    twins = [bird, subject("d", bird.words)]
    assert token_caption(twins).endswith("a <head:cardinal> <wing:3> bird and a <head:cardinal> <wing:3> bird")
    assert scene_caption(twins) == "a photo of two birds"


def test_braces_and_line_breaks():
    odd = subject("odd", "{place} {} {0}\ncat")
    assert scene_caption([odd], "in {x}") == "a photo of a {place} {} {0} cat in {x}"
    assert scene_caption([CAT], "x", CaptionOptions("{a} {subjects}, {place}")) == "{a} a cat, x"
    assert scene_caption([CAT], "", CaptionOptions("{subjects} {place}, nice")) == "a cat, nice"


def _layout(*placements):
    return SceneLayout(400, 300, placements)


def test_relations_from_boxes():
    left, right = Placement("cat", 10, 100, 80, 100), Placement("dog", 200, 90, 100, 110)
    options = CaptionOptions(relations=True)
    assert scene_caption([CAT, DOG], "in a garden", options, _layout(left, right)) == (
        "a photo of a cat and a dog in a garden, the cat to the left of the dog"
    )
    near = Placement("cat", 190, 150, 80, 120, z=1)
    assert relations(_layout(near, right)) == [("cat", "in front of", "dog")]
    assert relations(_layout(near, right), {"cat": "on:dog"}) == [("cat", "on", "dog")]
    # the one that is painted first is not in front
    assert relations(_layout(Placement("cat", 190, 150, 80, 120, z=-1), right)) == []
    chain = _layout(left, Placement("dog", 120, 90, 80, 110), Placement("owl", 220, 90, 80, 110))
    assert scene_caption([CAT, DOG, OWL], "", options, chain).endswith(
        ", the cat to the left of the dog and the dog to the left of the owl"
    )
    twins = [subject("a", "cat"), subject("b", "cat")]
    both = _layout(Placement("a", 0, 0, 50, 50), Placement("b", 200, 0, 50, 50))
    assert scene_caption(twins, "", options, both) == "a photo of two cats"


TEMPLATE = "a photo of a cat and a dog"


@pytest.mark.parametrize(
    ("answer", "caption"),
    [
        (' "A dog chases\n a Cat {fast}." ', "A dog chases a Cat {fast}."),
        ("Caption: cats and dogs", "cats and dogs"),
        ("a cat alone", TEMPLATE),
        ("a category of dogs", TEMPLATE),
        ("", TEMPLATE),
        ("cat dog " * 500, TEMPLATE),
    ],
)
def test_captions_of_language_models(answer, caption):
    assert checked_caption(answer, [CAT, DOG], TEMPLATE) == caption


def test_trigger_words_go_back_into_captions_of_language_models():
    triggers = {"cat": "sks", "cat 2": "ohwx"}
    cats = [CAT, subject("cat 2", "cat"), subject("bear", "teddy bear"), subject("cub", "bear")]
    answer = "a cat and a second cat with a teddy bear and a bear; the cat sleeps"
    assert checked_caption(answer, cats, "x", triggers | {"cub": "zwx"}) == (
        "a sks cat and a second ohwx cat with a teddy bear and a zwx bear; the cat sleeps"
    )
    # two subjects with trigger words cannot hide in a plural, and one bear is not two
    assert checked_caption("two cats, a teddy bear, a bear", cats, "x", triggers) == "x"
    assert checked_caption("a cat, a cat and a teddy bear", cats, "x") == "x"
    assert checked_caption("two cats, a teddy bear, a bear", cats, "x") == "two cats, a teddy bear, a bear"


def test_what_is_no_caption():
    with pytest.raises(BestiaryError, match="needs a subject"):
        scene_caption([])
    with pytest.raises(BestiaryError, match="does not say where the subjects stand"):
        CaptionOptions("a photo")
    with pytest.raises(BestiaryError, match="repeat 4"):
        CaptionOptions(repeat=4)
