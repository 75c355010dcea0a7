"""Staged prompts in ComfyUI's encoding: equal to its own node where nothing is staged, one batch, every vector in its place."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from bestiary.concepts.denoiser.denoiser import PromptPiece
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.part_dictionary.part_dictionary import PartDictionary
from bestiary.concepts.spectrum.prompt_spectrum import PromptSpectrum
from bestiary.concepts.spectrum.stage_bounds import StageBounds
from bestiary.concepts.spectrum.staged_prompt import PromptSources
from bestiary.nodes.host.socket_types import SPANS_KEY, WORDS_KEY

BACKBONES = {"demo_model": "bestiary-demo", "sd15_model": "sd15", "sdxl_model": "sdxl"}


@pytest.fixture(params=list(BACKBONES))
def case(request: pytest.FixtureRequest) -> tuple[object, str]:
    """A CLIP and the name of its backbone."""
    return request.getfixturevalue(request.param).clip, BACKBONES[request.param]


def word_row(clip: object, word: str) -> dict[str, torch.Tensor]:
    """The embedding `(W,)` of a word of one token, by text encoder."""
    rows = {}
    for key, chunks in clip.tokenize(word).items():
        table = getattr(clip.cond_stage_model, f"clip_{key}").transformer.get_input_embeddings().weight
        rows[f"clip_{key}"] = table[chunks[0][1][0]].detach().clone().float()
    return rows


def word_spectrum(clip: object, backbone: str, words: list[str]) -> PromptSpectrum:
    """A spectrum that says a plain word at each stage."""
    rows = [word_row(clip, word) for word in words]
    embeddings = {name: torch.stack([row[name] for row in rows]).unsqueeze(1) for name in rows[0]}  # (S, 1, W)
    return PromptSpectrum(backbone, embeddings, StageBounds.equal(len(words)))


def encode(clip: object, text: str, negative: str = "", lines: str = "", **fields: object) -> tuple[list, list, str]:
    from bestiary.nodes.spectrum.spectrum_prompts import PromptOptions, TypedSide, encode_typed_sides

    options = fields.pop("options", PromptOptions())
    sides = [TypedSide(text, lines), TypedSide(negative)]
    (positive, other), report = encode_typed_sides(clip, sides, PromptSources(**fields), options)
    return positive, other, report


def core(clip: object, text: str) -> list:
    """What ComfyUI's CLIPTextEncode does."""
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def assert_same(first: list, second: list) -> None:
    """A maximum difference of 0.0, and the same options beside the places of words, which ComfyUI does not tell."""
    assert len(first) == len(second) == 1
    assert torch.equal(first[0][0], second[0][0])
    assert first[0][1].keys() - {WORDS_KEY} == second[0][1].keys()
    assert torch.equal(first[0][1]["pooled_output"], second[0][1]["pooled_output"])


@contextmanager
def counted_batches(clip: object) -> Iterator[dict[str, list[int]]]:
    """Rows of every call of the text encoders while inside."""
    calls: dict[str, list[int]] = {}
    handles = []
    for name in ("clip_l", "clip_g"):
        if hasattr(clip.cond_stage_model, name):
            kept = calls.setdefault(name, [])
            encoder = getattr(clip.cond_stage_model, name)
            handles.append(encoder.register_forward_pre_hook(lambda _, given, kept=kept: kept.append(len(given[0]))))
    yield calls
    for handle in handles:
        handle.remove()


PLAIN = [
    "",
    "a photo of a bird",
    "*, a (red:1.3) bird, ((blue)) (tail:0.5)",
    r"escaped \(brackets\) and a \\ backslash",
    "two\nlines,  embedding:nothing_there [deemphasised] and a < b",
    "a red blue tail bird, " * 20,
    "dog's photorealistic yarn-style cat, " * 12,
]


@pytest.mark.parametrize("text", PLAIN)
def test_a_text_without_mentions_equals_core_on_both_sides(case, text):
    clip, _ = case
    positive, negative, _ = encode(clip, text, text)
    assert_same(positive, core(clip, text))
    assert_same(negative, core(clip, text))


def test_ten_equal_stages_are_one_entry_equal_to_the_plain_prompt(case):
    clip, backbone = case
    spectra = {"it": word_spectrum(clip, backbone, ["red"] * 10)}
    positive, _, report = encode(clip, "a photo of a (<it>:1.3) bird, (blue)", spectra=spectra)
    assert positive[0][1].pop(SPANS_KEY)[0].positions == (5,)
    assert_same(positive, core(clip, "a photo of a (red:1.3) bird, (blue)"))
    assert report == "0-100 %: a photo of a (<it>:1.3) bird, (blue:1.1)"


def test_every_stage_holds_what_its_word_says(case):
    clip, backbone = case
    words = ["red", "blue", "tail", "bird", "head", "red", "blue", "wing", "bird", "tail"]
    spectra = {"it": word_spectrum(clip, backbone, words)}
    with counted_batches(clip) as calls:
        positive, negative, _ = encode(clip, "a photo of a <it>, snow", spectra=spectra)
    entries = [entry for entry in positive if "default" not in entry[1]]
    assert len(entries) == 10
    assert len(positive) == 11
    for (cond, options), word in zip(entries, words, strict=True):
        ((wanted, facts),) = core(clip, f"a photo of a {word}, snow")
        assert torch.equal(cond, wanted)
        # one row of a larger product differs in the last bit
        assert (options["pooled_output"] - facts["pooled_output"]).abs().max() < 1e-5
    ranges = [(options["start_percent"], options["end_percent"]) for _, options in entries]
    assert ranges == list(StageBounds.equal(10).percent_ranges())
    assert_same(negative, core(clip, ""))
    # the six different words in one batch, the negative on its own
    assert all(sorted(rows) == [1, 6] for rows in calls.values()), calls


def test_ten_different_stages_are_encoded_as_one_batch_and_an_edited_one_alone(case):
    clip, backbone = case
    generator = torch.Generator().manual_seed(0)
    rows = word_row(clip, "red")
    embeddings = {name: torch.randn(10, 1, len(row), generator=generator) for name, row in rows.items()}
    spectra = {"it": PromptSpectrum(backbone, embeddings, StageBounds.equal(10))}
    with counted_batches(clip) as calls:
        plain = encode(clip, "a <it>", spectra=spectra)[0]
    assert all(sorted(rows) == [1, 10] for rows in calls.values())
    edited = encode(clip, "a <it>", lines="7: a dog", spectra=spectra)[0]
    changed = [stage for stage in range(10) if not torch.equal(plain[stage][0], edited[stage][0])]
    assert changed == [6]


def test_soft_boundaries_add_no_entry_and_no_encode(sd15_model):
    from bestiary.concepts.spectrum.stage_algebra import with_soft_bounds

    clip = sd15_model.clip
    one = word_spectrum(clip, "sd15", ["red", "blue", "tail", "bird"])
    counts = []
    for spectrum in (one, with_soft_bounds(one, 0.5)):
        with counted_batches(clip) as calls:
            positive = encode(clip, "a <it>", spectra={"it": spectrum})[0]
        counts.append((len(positive), sorted(calls["clip_l"])))
    assert counts == [(5, [1, 4])] * 2


def test_pooled_vectors_differ_per_stage(sdxl_model):
    clip = sdxl_model.clip
    spectra = {"it": word_spectrum(clip, "sdxl", ["red", "blue"])}
    positive = encode(clip, "a <it>", spectra=spectra)[0]
    assert positive[0][1]["pooled_output"].shape == (1, 64)
    assert not torch.equal(positive[0][1]["pooled_output"], positive[1][1]["pooled_output"])


def test_long_prompts_are_chunked_and_stay_apart(case):
    clip, backbone = case
    spectra = {"it": word_spectrum(clip, backbone, ["red", "blue", "tail"])}
    filling = "a bird, " * 30
    positive = encode(clip, f"{filling}<it>", lines="2: a bird", spectra=spectra)[0]
    lengths = [cond.shape[1] for cond, options in positive if "default" not in options]
    assert lengths == [154, 77, 154]
    for (cond, _), text in zip(positive, (f"{filling}red", "a bird", f"{filling}tail"), strict=False):
        assert torch.equal(cond, core(clip, text)[0][0])


def test_the_filler_says_what_the_longest_stage_says(sd15_model):
    clip = sd15_model.clip
    positive = encode(clip, "a bird", lines="1-7: a red bird")[0]
    assert positive[-1][1]["default"] is True
    assert torch.equal(positive[-1][0], positive[0][0])
    from bestiary.nodes.spectrum.spectrum_prompts import PromptOptions

    without = encode(clip, "a bird", lines="1-7: a red bird", options=PromptOptions(filler=False))[0]
    assert [len(positive), len(without)] == [3, 2]


def test_the_clip_is_left_as_it_was(sd15_model):
    clip = sd15_model.clip
    before, tokenizer = copy.copy(vars(clip)), dict(vars(clip.tokenizer))
    spectra = {"it": word_spectrum(clip, "sd15", ["red", "blue"])}
    first = encode(clip, "a <it>", spectra=spectra)[0]
    assert vars(clip) == before
    assert vars(clip.tokenizer) == tokenizer
    assert not clip.cond_stage_model.clip_l._forward_hooks
    second = encode(clip, "a <it>", spectra=spectra)[0]
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first, second, strict=True))


def test_spans_tell_where_spectra_and_parts_stand(sd15_model):
    clip = sd15_model.clip
    row = word_row(clip, "tail")["clip_l"]
    birds = PartDictionary(
        "sd15", ("head",), ({0: "cardinal"},), None, torch.tensor([(0, 0)]), {"clip_l": row.unsqueeze(0)}
    )
    spectra = {"it": word_spectrum(clip, "sd15", ["red", "blue"])}
    positive = encode(clip, "a <it> bird with <head:cardinal@2>", spectra=spectra, dictionaries={"birds": birds})[0]
    spans = [[(span.label, span.part, span.positions) for span in options[SPANS_KEY]] for _, options in positive]
    assert spans[0] == [("it", "it", (2,))]
    assert spans[1] == [("it", "it", (2,)), ("head:cardinal", "head", (5,))]
    assert torch.equal(positive[1][0], core(clip, "a blue bird with tail")[0][0])


def test_plain_words_are_found_at_their_own_places_in_every_stage(case):
    clip, backbone = case
    spectra = {"it": word_spectrum(clip, backbone, ["red", "blue"])}
    positive, negative, _ = encode(clip, "a <it> bird with (tail:1.2), snow", "blue bird", spectra=spectra)
    # two stages, and the filler for what no stage covers
    assert len(positive) == 3
    for _, options in positive:
        words = options[WORDS_KEY]
        assert [words.places(word) for word in ("bird", "tail", "red")] == [(3,), (5,), ()]
    assert negative[0][1][WORDS_KEY].places("bird") == (2,)
    # words behind two learned vectors stand one place further
    pairs = {name: rows.repeat(1, 2, 1) for name, rows in spectra["it"].embeddings.items()}  # (S, 2, W)
    spectra = {"it": PromptSpectrum(backbone, pairs, StageBounds.equal(2))}
    positive = encode(clip, "a <it> bird", spectra=spectra)[0]
    assert [options[WORDS_KEY].places("bird") for _, options in positive] == [(4,)] * len(positive)


def test_attention_maps_take_plain_words_of_a_spectrum_prompt(demo_model):
    from bestiary.nodes.attention.attention_record import AttentionRecord
    from bestiary.nodes.attention.model_patching import check_words

    spectra = {"it": word_spectrum(demo_model.clip, "bestiary-demo", ["red", "blue"])}
    prompts = {"positive": [facts for _, facts in encode(demo_model.clip, "a <it> bird", spectra=spectra)[0]]}
    check_words(AttentionRecord("auto", words=("bird",)), prompts)
    with pytest.raises(BestiaryError, match="tail"):
        check_words(AttentionRecord("auto", words=("tail",)), prompts)


def test_written_pieces_keep_weights_and_plain_brackets():
    from bestiary.nodes.spectrum.staged_encoding import written_pieces

    vector = torch.ones(4)
    pieces = [PromptPiece("a (b) < c "), PromptPiece(None, 1.21), PromptPiece(" d", 0.5)]
    text, (mention,) = written_pieces(pieces, vector.unsqueeze(0), {vector.numpy().tobytes(): ("it", "part")})
    assert text == r"a \(b\) \< c (<it>:1.21)( d:0.5)"
    assert text[mention.start : mention.end] == "<it>"
    assert (mention.label, mention.part) == ("it", "part")


def test_a_missing_clip_is_told():
    from bestiary.nodes.spectrum.staged_encoding import encode_sides

    with pytest.raises(BestiaryError, match="the CLIP input is empty"):
        encode_sides(None, [])


def test_a_clip_with_a_lora_that_changes_on_the_way_gives_every_stage_its_keyframes(sd15_model):
    import comfy.hooks

    clip = sd15_model.clip.clone()
    group = comfy.hooks.HookGroup()
    group.add(comfy.hooks.WeightHook())
    frames = comfy.hooks.HookKeyframeGroup()
    for start in (0.0, 0.6):
        frames.add(comfy.hooks.HookKeyframe(strength=1.0 - start, start_percent=start))
    group.set_keyframes_on_hooks(frames)
    clip.patcher.forced_hooks = group
    clip.use_clip_schedule = True
    clip.apply_hooks_to_conds = group
    positive = encode(clip, "a bird", lines="1-5: a red bird")[0]
    ranges = [
        (o["start_percent"], o["end_percent"], o["clip_start_percent"]) for _, o in positive if "default" not in o
    ]
    half = StageBounds.from_fractions([0.5]).percents()[1]
    assert ranges == [(0.0, half, 0.0), (half, 1.0, 0.0), (half, 1.0, 0.6)]
