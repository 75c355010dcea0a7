"""Prompts with learned parts, encoded by ComfyUI's CLIP: equal to core, to the embedding: form and to the trainer."""

import copy
from collections.abc import Sequence

import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.files.concept_file import write_tensors
from bestiary.concepts.part_dictionary.part_dictionary import PartDictionary
from bestiary.nodes.host.socket_types import SPANS_KEY, ChosenPart, ChosenParts, NamedDictionary, PartSpan

MODELS = ["demo_model", "sd15_model", "sdxl_model"]
BACKBONES = {"demo_model": "bestiary-demo", "sd15_model": "sd15", "sdxl_model": "sdxl"}
WORDS = ("red", "blue", "tail")
"""Words of one token in both vocabularies."""


@pytest.fixture(params=MODELS)
def case(request: pytest.FixtureRequest) -> tuple[object, PartDictionary]:
    """A CLIP, and a dictionary for it whose vectors are the rows of plain words."""
    clip = request.getfixturevalue(request.param).clip
    return clip, word_dictionary(clip, BACKBONES[request.param])


def word_dictionary(clip: object, backbone: str, encoders: Sequence[str] = ()) -> PartDictionary:
    embeddings = {}
    for key, chunks in clip.tokenize(" ".join(WORDS)).items():
        ids = [token for token, _ in chunks[0][1 : 1 + len(WORDS)]]
        assert len(set(ids)) == len(WORDS)
        table = getattr(clip.cond_stage_model, f"clip_{key}").transformer.get_input_embeddings().weight
        if not encoders or f"clip_{key}" in encoders:
            embeddings[f"clip_{key}"] = table[ids].detach().clone()
    rows = torch.tensor([(0, 0), (0, 1), (1, 2)])
    return PartDictionary(
        backbone, ("head", "wing"), ({0: WORDS[0], 1: WORDS[1]}, {2: WORDS[2]}), None, rows, embeddings
    )


def random_dictionary(like: PartDictionary) -> PartDictionary:
    generator = torch.Generator().manual_seed(3)
    embeddings = {name: torch.randn(table.shape, generator=generator) for name, table in like.embeddings.items()}
    return PartDictionary(like.backbone, like.part_names, like.kind_names, None, like.rows, embeddings)


def core(clip: object, text: str) -> list:
    """What ComfyUI's CLIPTextEncode does."""
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def ours(clip: object, text: str, dictionary: PartDictionary | None = None, **options: object) -> list:
    from bestiary.nodes.part_prompt.part_encoding import encode_part_prompt

    return encode_part_prompt(clip, text, {"birds": dictionary} if dictionary else {}, **options)


def assert_same(first: list, second: list) -> None:
    """Conditionings with a maximum difference of 0.0, pooled vectors included."""
    assert len(first) == len(second) == 1
    assert torch.equal(first[0][0], second[0][0])
    pooled = [entry[0][1]["pooled_output"] for entry in (first, second)]
    assert torch.equal(*pooled)


PLAIN = [
    "",
    "a photo of a bird",
    "a (red:1.3) bird, ((blue)) (tail:0.5)",
    "unclosed (bracket and a stray ) too",
    r"escaped \(brackets\) and a \\ backslash",
    "two\nlines, embedding:nothing_there and a < b",
    "a red blue tail bird, " * 20,
    "(a red blue tail bird:1.2), " * 20,
]


@pytest.mark.parametrize("text", PLAIN)
def test_a_prompt_without_mentions_equals_core(case, text):
    clip, dictionary = case
    assert_same(ours(clip, text, dictionary), core(clip, text))
    assert SPANS_KEY not in ours(clip, text)[0][1]


def test_an_escaped_angle_bracket_is_plain_text(case):
    clip, dictionary = case
    assert_same(ours(clip, r"a \<head:red> bird", dictionary), core(clip, "a <head:red> bird"))


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("a <head:red> bird", "a red bird"),
        ("<head:red>", "red"),
        ("<head:red><wing:tail> <head:blue>", "red tail blue"),
        ("a (<head:red>:1.3) bird", "a (red:1.3) bird"),
        ("a (big <head:red> bird:0.6), ((<wing:tail>))", "a (big red bird:0.6), ((tail))"),
        ("a <birds.head:0*0.0+1*1.0>, bird", "a blue, bird"),
        ("two\n<wing:2>\nlines \\(so\\)", "two\ntail\nlines \\(so\\)"),
    ],
)
def test_a_words_own_row_equals_the_word(case, text, plain):
    clip, dictionary = case
    assert_same(ours(clip, text, dictionary), core(clip, plain))


@pytest.mark.parametrize("vectors", ["words", "random"])
def test_the_embedding_form_in_core_gives_the_same(case, vectors):
    from bestiary.nodes.part_prompt.taught_clip import with_dictionary

    clip, dictionary = case
    dictionary = dictionary if vectors == "words" else random_dictionary(dictionary)
    taught = with_dictionary(clip, NamedDictionary("birds", dictionary))
    theirs = core(taught, "a (embedding:birds/head.red:1.2) bird, embedding:birds/wing.tail there")
    for one in (clip, taught):
        result = ours(one, "a (<birds.head:red>:1.2) bird, <birds.wing:tail> there", dictionary)
        assert_same(result, theirs)
        assert result[0][1][SPANS_KEY] == theirs[0][1][SPANS_KEY]


def test_both_forms_in_one_prompt_are_recorded(case):
    from bestiary.nodes.part_prompt.taught_clip import with_dictionary

    clip, dictionary = case
    taught = with_dictionary(clip, NamedDictionary("birds", dictionary))
    result = ours(taught, "embedding:birds/head.red and <wing:tail>", dictionary)
    assert_same(result, core(clip, "red and tail"))
    assert result[0][1][SPANS_KEY] == (PartSpan("head:red", "head", (1,)), PartSpan("wing:tail", "wing", (3,)))


def test_spans_say_where_every_mention_stands(case):
    clip, dictionary = case
    result = ours(clip, "a (<head:red>:1.3) <birds.wing:2> bird <head:0*0.6+1*0.4> <head:red>", dictionary)
    assert result[0][1][SPANS_KEY] == (
        PartSpan("head:red", "head", (2,)),
        PartSpan("wing:tail", "wing", (3,)),
        PartSpan("head:red*0.6+blue*0.4", "head", (5,)),
        PartSpan("head:red", "head", (6,)),
    )


def test_mentions_in_later_chunks_count_all_positions_before_them(case):
    clip, dictionary = case
    words = " ".join(["red"] * 74)
    result = ours(clip, f"{words} <head:red><head:blue> a <wing:tail>", dictionary)
    assert result[0][0].shape[1] == 154
    assert [span.positions for span in result[0][1][SPANS_KEY]] == [(75,), (78,), (80,)]
    # a run of text moves to the next chunk as one, so the same words with their chunk's end written out
    assert_same(result, core(clip, f"{words} (red:1.0) (blue:1.0) (a:1.0) (tail:1.0)"))


def test_the_vector_alone_changes_the_encoding_behind_it(case):
    clip, dictionary = case
    text = "a photo of a <head:red> bird"
    first, second = ours(clip, text, dictionary), ours(clip, text, random_dictionary(dictionary))
    place = first[0][1][SPANS_KEY][0].positions[0]
    same = (first[0][0] == second[0][0]).all(-1)[0]
    assert bool(same[:place].all()) and not bool(same[place:].any())
    assert not torch.equal(first[0][1]["pooled_output"], second[0][1]["pooled_output"])


def test_embedding_files_stay_understood_beside_mentions(sd15_model, tmp_path):
    dictionary = word_dictionary(sd15_model.clip, "sd15")
    write_tensors(tmp_path / "style.safetensors", {"emb_params": dictionary.embeddings["clip_l"][1:]})
    clip = sd15_model.clip.clone()
    clip.tokenizer = copy.copy(clip.tokenizer)
    clip.tokenizer.clip_l = copy.copy(clip.tokenizer.clip_l)
    clip.tokenizer.clip_l.embedding_directory = [str(tmp_path)]
    result = ours(clip, "a <head:red> bird, (embedding:style:1.2), photo", dictionary)
    assert_same(result, core(sd15_model.clip, "a red bird, (blue tail:1.2), photo"))


@torch.no_grad()
@pytest.mark.parametrize(
    "text",
    [
        "a photo of a <head:red> <wing:tail>, meadow",
        "a (red <head:red>:1.4) head, (<wing:2>:0.7) (meadow)",
        "a <head:0*0.6+1*0.4> bird " * 15,
        "red tail " * 36 + "<head:red><head:blue> <wing:tail> in a meadow",
    ],
)
def test_the_trainer_encodes_alike(demo_model, text):
    from bestiary.concepts.part_prompt.part_prompt import parse_part_prompt, resolve_prompt
    from bestiary.trainer.model.backbones import load_denoiser

    denoiser = load_denoiser("demo", device="cpu", dtype="fp32")
    dictionary = random_dictionary(word_dictionary(demo_model.clip, "bestiary-demo"))
    resolved = resolve_prompt(parse_part_prompt(text), {"birds": dictionary})
    tokens = denoiser.text.tokenize(resolved.pieces)
    theirs = denoiser.text.encode([tokens], denoiser.backbone.split_vector(resolved.vectors[None]))
    result = ours(demo_model.clip, text, dictionary)
    assert (result[0][0] - theirs.context).abs().max().item() <= 1e-5
    positions = [span.positions[0] for span in result[0][1][SPANS_KEY]]
    assert positions == theirs.columns[0, :, 0].tolist()


def test_a_dictionary_for_clip_l_alone_leaves_a_plain_word_in_clip_g(sdxl_model):
    from bestiary.nodes.part_prompt.taught_clip import with_dictionary

    narrow = word_dictionary(sdxl_model.clip, "sd15", ["clip_l"])
    result = ours(sdxl_model.clip, "the <head:red> bird", narrow)
    width = narrow.vector_width
    assert torch.equal(result[0][0][..., :width], core(sdxl_model.clip, "the red bird")[0][0][..., :width])
    assert torch.equal(result[0][0][..., width:], core(sdxl_model.clip, "the a bird")[0][0][..., width:])
    assert result[0][1][SPANS_KEY] == (PartSpan("head:red", "head", (2,)),)
    taught = with_dictionary(sdxl_model.clip, NamedDictionary("birds", narrow))
    assert_same(result, core(taught, "the embedding:birds/head.red bird"))


def test_a_vector_of_another_width_is_refused_with_both_widths(sd15_model, sdxl_model):
    wide = word_dictionary(sdxl_model.clip, "sdxl")
    with pytest.raises(BestiaryError, match=r"<head:red> is a vector of 96 numbers, but this CLIP takes 32 \(clip_l\)"):
        ours(sd15_model.clip, "a <head:red>", wide)
    table = {"clip_l": torch.zeros(3, 40)}
    odd = PartDictionary("sd15", wide.part_names, wide.kind_names, None, wide.rows, table)
    with pytest.raises(
        BestiaryError, match=r"40 numbers, but this CLIP takes 32 \(clip_l\) \+ 64 \(clip_g\): the part"
    ):
        ours(sdxl_model.clip, "a <head:red>", odd)


def test_parts_that_bring_their_vector_go_before_the_dictionary(case):
    from bestiary.nodes.part_prompt.chosen_parts import parts_by_mention

    clip, dictionary = case
    brought = ChosenPart("birds", "head", "random 7", vector=dictionary.vector(0, 1))
    over = ChosenPart("birds", "head", "red", vector=dictionary.vector(0, 1))
    carried = parts_by_mention(ChosenParts((brought, over)))
    assert_same(ours(clip, "a <Birds.head:Random_7> bird", carried=carried), core(clip, "a blue bird"))
    assert_same(ours(clip, "a <birds.head:red>, <head:red>", dictionary, carried=carried), core(clip, "a blue, red"))


def test_the_clip_stays_as_it_was(case):
    clip, dictionary = case

    def state() -> list[dict]:
        inner = [one for name, one in vars(clip.tokenizer).items() if hasattr(one, "_try_get_embedding")]
        return [dict(vars(one)) for one in (clip, clip.tokenizer, *inner)]

    before = state()
    assert len(before) >= 3
    first = ours(clip, "a <head:red> bird", dictionary)
    assert_same(first, ours(clip, "a <head:red> bird", dictionary))
    with pytest.raises(BestiaryError):
        ours(clip, "a <head:rot> bird", dictionary)
    assert state() == before


def test_clip_skip_and_hooks_of_the_clip_are_kept(sd15_model):
    dictionary = word_dictionary(sd15_model.clip, "sd15")
    clip = sd15_model.clip.clone()
    clip.clip_layer(-2)
    assert_same(ours(clip, "a <head:red> bird", dictionary), core(clip, "a red bird"))
    assert not torch.equal(core(clip, "a red bird")[0][0], core(sd15_model.clip, "a red bird")[0][0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a <head:rot> bird", "prompt, column 3: unknown kind 'rot' of part 'head': choose .*'red'"),
        ("a bird <beak:red>", "prompt, column 8: unknown part 'beak': choose .*'head'"),
        ("a <dogs.head:red>", "prompt, column 3: unknown dictionary 'dogs': choose 'birds'"),
        ("a <head:99>", "unknown kind 99 of part 'head': choose one of 0..1; nearest: 1"),
        ("a <head red", "prompt, column 3: .* is not closed"),
    ],
)
def test_faults_in_a_prompt_are_told(sd15_model, text, message):
    with pytest.raises(BestiaryError, match=message):
        ours(sd15_model.clip, text, word_dictionary(sd15_model.clip, "sd15"))


def test_a_mention_without_any_dictionary_says_where_to_get_one(sd15_model):
    message = "prompt, column 3: <head:...> refers to a part, but no part dictionary is loaded: send the CLIP through Load Part"
    with pytest.raises(BestiaryError, match=message):
        ours(sd15_model.clip, "a <head:red>")
    with pytest.raises(BestiaryError, match="the CLIP input is empty"):
        ours(None, "a bird")


def test_a_clip_without_our_encoders_is_refused(sd15_model):
    dictionary = word_dictionary(sd15_model.clip, "sd15")
    other = copy.copy(sd15_model.clip)
    other.cond_stage_model = torch.nn.ModuleDict({"gemma2_2b": sd15_model.clip.cond_stage_model.clip_l})
    with pytest.raises(
        BestiaryError, match="this CLIP has the text encoders gemma2_2b, but part tokens are trained for clip_l"
    ):
        ours(other, "a <head:red>", dictionary)


def test_a_tokenizer_that_loses_mentions_is_told(sd15_model):
    dictionary = word_dictionary(sd15_model.clip, "sd15")
    clip = sd15_model.clip.clone()
    clip.tokenizer = copy.copy(clip.tokenizer)
    clip.tokenizer.tokenize_with_weights = lambda text, *_, **__: {"l": [[(49406, 1.0), (49407, 1.0)]]}
    with pytest.raises(BestiaryError, match="did not place each of 1 learned vectors once"):
        ours(clip, "a <head:red>", dictionary)
