"""Tests of part vectors in a CLIP: the demo model, narrow SD1.5 and SDXL, through core's own encode nodes."""

import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.part_dictionary.part_dictionary import PartDictionary
from bestiary.nodes.host.comfy_version import embedding_answer
from bestiary.nodes.host.socket_types import SPANS_KEY, NamedDictionary, PartSpan
from bestiary.nodes.part_prompt.clip_tokens import (
    FillerToken,
    PartMark,
    dictionaries_of,
    filler_tokens,
    marked,
    part_spans,
)
from bestiary.nodes.part_prompt.taught_clip import with_dictionary


def gap(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return (ours - theirs).abs().max().item()


def word_rows(clip: object, *ids: int) -> dict[str, torch.Tensor]:
    """Embedding rows of plain tokens, per text encoder."""
    return {
        name: encoder.transformer.get_input_embeddings().weight[list(ids)].detach().clone()
        for name, encoder in clip.cond_stage_model.named_children()
    }


# 3329 is "bird", 2390 "sky", 1340 "wing", 2677 "tree"
def birds(clip: object, ids: tuple[int, ...] = (3329, 2390, 1340), **changes: object) -> PartDictionary:
    """Parts head (cardinal, blue jay, 2) and tail.fin; the vectors are rows of plain words."""
    rows = word_rows(clip, *ids, ids[0])
    settings = {
        "backbone": "sdxl" if "clip_g" in rows else "sd15",
        "part_names": ("head", "tail.fin", "untrained"),
        "kind_names": ({0: "cardinal", 1: "blue jay"}, {0: "No."}, {}),
        "background": None,
        "rows": torch.tensor([[0, 0], [0, 1], [0, 2], [1, 0]]),
        "embeddings": rows,
    }
    return PartDictionary(**{**settings, **changes})


@pytest.fixture(params=["sd15_model", "sdxl_model"])
def clip(request):
    return request.getfixturevalue(request.param).clip


def encode(clip: object, text: str) -> tuple[torch.Tensor, dict]:
    """What a core CLIPTextEncode gives."""
    import nodes

    return nodes.CLIPTextEncode().encode(clip, text)[0][0]


def word_of(clip: object, token: int) -> str:
    return clip.tokenizer.clip_l.inv_vocab[token].removesuffix("</w>")


@pytest.mark.parametrize("pattern", ["a {} bird", "a ({}:1.3) bird, (blue:0.7) sky", "{}", "a ((({})))", "x, {}\n(y)"])
def test_a_words_own_row_encodes_like_the_word(clip, pattern):
    taught = with_dictionary(clip, NamedDictionary("birds", birds(clip)))
    theirs, facts = encode(clip, pattern.format(word_of(clip, 3329)))
    ours, our_facts = encode(taught, pattern.format("embedding:birds/head.cardinal"))
    assert gap(ours, theirs) == 0
    if facts["pooled_output"] is not None:
        assert gap(our_facts["pooled_output"], facts["pooled_output"]) == 0


def test_the_demo_model_takes_part_vectors(demo_model):
    clip = demo_model.clip
    rows = word_rows(clip, 60)
    one = PartDictionary("bestiary-demo", ("head",), ({},), None, torch.tensor([[0, 4]]), rows)
    taught = with_dictionary(clip, NamedDictionary("mine", one))
    ours, _ = encode(taught, "a red (embedding:mine/head.4:1.2) blue")
    theirs, _ = encode(clip, f"a red ({clip.tokenizer.clip_l.inv_vocab[60]}:1.2) blue")
    assert gap(ours, theirs) == 0


def test_backslashes_part_a_dictionary_from_its_part_too(clip):
    taught = with_dictionary(clip, NamedDictionary("birds", birds(clip)))
    ours, _ = encode(taught, "a (embedding:birds\\head.cardinal:1.2) sky")
    theirs, _ = encode(taught, "a (embedding:birds/head.cardinal:1.2) sky")
    assert gap(ours, theirs) == 0


@pytest.mark.parametrize(
    "name, kind",
    [
        ("head.cardinal", 3329),
        ("HEAD.Cardinal", 3329),
        ("head.0", 3329),
        ("0.0", 3329),
        ("head.blue-jay", 2390),
        ("head.blue_jay", 2390),
        ("head.1", 2390),
        ("head.2", 1340),
        ("tail.fin.No.", 3329),
        ("tail.fin.0.", 3329),
        ("head.blue_jay,", 2390),
        ("head.2!?", 1340),
    ],
)
def test_names_and_numbers(sd15_model, name, kind):
    taught = with_dictionary(sd15_model.clip, NamedDictionary("my birds/2", birds(sd15_model.clip)))
    entries = taught.tokenize(f"a embedding:my_birds/2/{name} sky")["l"][0]
    vector = next(token for token, _ in entries if torch.is_tensor(token))
    assert gap(vector, word_rows(sd15_model.clip, kind)["clip_l"][0]) == 0


def test_text_behind_a_name_is_kept(sd15_model):
    clip = sd15_model.clip
    taught = with_dictionary(clip, NamedDictionary("birds", birds(clip)))
    word = word_of(clip, 3329)
    for text, plain in {
        "an embedding:birds/head.0, blue sky. x": f"an {word} , blue sky. x",
        "an embedding:birds/head.0\nblue": f"an {word} blue",
        "embedding:birds/head.0 embedding:birds/head.0": f"{word} {word}",
    }.items():
        assert gap(encode(taught, text)[0], encode(clip, plain)[0]) == 0


@pytest.mark.parametrize(
    "name, message",
    [
        ("beak.cardinal", r"embedding:birds/beak.cardinal: unknown part 'beak': choose .*'head'"),
        ("head.cardinel", r"unknown kind 'cardinel' of part 'head': choose 'cardinal'"),
        ("head.17", r"unknown kind 17 of part 'head': choose one of 0\.\.2; nearest: 2"),
        ("untrained.0", r"unknown part 'untrained'"),
        ("head", r"write part.kind after the slash; the parts are 'head', 'tail.fin'"),
        ("", r"write part.kind after the slash"),
    ],
)
def test_unknown_names_of_a_known_dictionary_are_told(sd15_model, name, message):
    taught = with_dictionary(sd15_model.clip, NamedDictionary("birds", birds(sd15_model.clip)))
    with pytest.raises(BestiaryError, match=message):
        encode(taught, f"a (embedding:birds/{name}:1.2) sky")


def test_other_names_fall_through_to_the_embeddings_folder(sd15_model, tmp_path):
    from safetensors.torch import save_file

    clip = sd15_model.clip.clone()
    rows = word_rows(clip, 2390, 1340)
    save_file({"emb_params": rows["clip_l"]}, tmp_path / "stock.safetensors")
    clip.tokenizer.clip_l.embedding_directory = [str(tmp_path)]
    try:
        taught = with_dictionary(clip, NamedDictionary("birds", birds(clip)))
        text = "a embedding:stock, (embedding:missing/head.0) sky"
        assert gap(encode(taught, text)[0], encode(clip, text)[0]) == 0
        assert gap(encode(taught, text)[0], encode(taught, "a sky")[0]) > 0
    finally:
        clip.tokenizer.clip_l.embedding_directory = []


def test_a_clip_without_an_embeddings_folder_learns_as_well(sd15_model):
    clip = sd15_model.clip.clone()
    clip.tokenizer.clip_l.embedding_directory = None
    try:
        taught = with_dictionary(clip, NamedDictionary("birds", birds(clip)))
        assert gap(encode(taught, "embedding:birds/head.0")[0], encode(clip, word_of(clip, 3329))[0]) == 0
        assert clip.tokenizer.clip_l.embedding_directory is None
    finally:
        clip.tokenizer.clip_l.embedding_directory = []


def test_the_original_stays_as_it_was(clip):
    before = encode(clip, "a embedding:birds/head.0 sky")[0]
    tokenizer, attributes = clip.tokenizer, dict(vars(clip.tokenizer.clip_l))
    with_dictionary(clip, NamedDictionary("birds", birds(clip)))
    assert clip.tokenizer is tokenizer
    assert vars(clip.tokenizer.clip_l) == attributes
    assert dictionaries_of(clip) == {}
    assert gap(encode(clip, "a embedding:birds/head.0 sky")[0], before) == 0


def test_dictionaries_chain(clip):
    first, second = birds(clip), birds(clip, (2390, 1340, 2677))
    one = with_dictionary(clip, NamedDictionary("first", first))
    both = with_dictionary(one, NamedDictionary("second", second))
    assert list(dictionaries_of(one)) == ["first"]
    assert list(dictionaries_of(both)) == ["first", "second"]
    assert dictionaries_of(both)["second"] is second
    ours = encode(both, "a embedding:first/head.0 embedding:second/head.0")[0]
    assert gap(ours, encode(clip, f"a {word_of(clip, 3329)} {word_of(clip, 2390)}")[0]) == 0
    with pytest.raises(BestiaryError, match=r"named 'FIRST' is already loaded \(first, second\)"):
        with_dictionary(both, NamedDictionary("FIRST", first))


def test_wrong_widths_are_refused_with_both_numbers(sd15_model, sdxl_model, demo_model):
    narrow = birds(sd15_model.clip)
    with pytest.raises(BestiaryError, match=r"clip_l \(32 wide\), the connected CLIP takes clip_l \(128 wide\)"):
        with_dictionary(demo_model.clip, NamedDictionary("birds", narrow))
    changed = birds(sdxl_model.clip)
    changed = birds(sdxl_model.clip, embeddings={**changed.embeddings, "clip_g": torch.zeros(4, 7)})
    with pytest.raises(BestiaryError, match=r"clip_g \(7 wide\).*takes clip_g \(64 wide\), clip_l \(32 wide\)"):
        with_dictionary(sdxl_model.clip, NamedDictionary("birds", changed))


def test_on_sdxl_a_part_with_clip_l_alone_gets_a_filler(sd15_model, sdxl_model):
    clip = sdxl_model.clip
    taught = with_dictionary(clip, NamedDictionary("birds", birds(sd15_model.clip)))
    tokens = taught.tokenize("blue (embedding:birds/head.0:1.5) sky")
    kinds = {name: [type(token) for token, _ in chunks[0]] for name, chunks in tokens.items()}
    place = kinds["l"].index(torch.Tensor)
    assert kinds["g"].index(FillerToken) == place
    assert int(tokens["g"][0][place][0]) == filler_tokens(clip)["clip_g"]
    assert tokens["g"][0][place][1] == tokens["l"][0][place][1] == 1.5
    assert tokens["g"][0][place + 1][0] == tokens["l"][0][place + 1][0]
    cond, facts = encode(taught, "blue (embedding:birds/head.0:1.5) sky")
    assert cond.shape == (1, 77, 96)
    assert facts[SPANS_KEY] == (PartSpan("head:cardinal", "head", (place,)),)


@torch.no_grad()
def test_conditionings_tell_where_parts_stand(clip):
    taught = with_dictionary(clip, NamedDictionary("birds", birds(clip)))
    facts = encode(taught, "a embedding:birds/head.1 embedding:birds/tail.fin.0 b embedding:birds/head.1")[1]
    assert facts[SPANS_KEY] == (
        PartSpan("head:blue jay", "head", (2,)),
        PartSpan("tail.fin:No.", "tail.fin", (3,)),
        PartSpan("head:blue jay", "head", (5,)),
    )
    assert SPANS_KEY not in encode(taught, "a plain bird")[1]


def test_long_prompts_count_places_over_all_chunks(clip):
    taught = with_dictionary(clip, NamedDictionary("birds", birds(clip)))
    text = "bird " * 80 + "embedding:birds/head.0 " + "sky " * 3
    cond, facts = encode(taught, text)
    assert cond.shape[1] == 154
    # 75 words fit beside start and end
    assert facts[SPANS_KEY][0].positions == (77 + 1 + 5,)
    theirs = encode(clip, text.replace("embedding:birds/head.0", word_of(clip, 3329)))[0]
    assert gap(cond, theirs) == 0


def test_lora_loaders_and_clip_skip_keep_what_the_clip_learned(clip):
    import nodes

    taught = with_dictionary(clip, NamedDictionary("birds", birds(clip)))
    later = nodes.CLIPSetLastLayer().set_last_layer(taught.clone().clone(), -2)[0]
    cond, facts = encode(later, "a embedding:birds/head.0")
    assert facts[SPANS_KEY][0].positions == (2,)
    assert list(dictionaries_of(later)) == ["birds"]
    theirs = encode(nodes.CLIPSetLastLayer().set_last_layer(clip, -2)[0], f"a {word_of(clip, 3329)}")[0]
    assert gap(cond, theirs) == 0


def test_text_of_sdxls_own_node_keeps_both_encoders_apart(sdxl_model):
    from comfy_extras.nodes_clip_sdxl import CLIPTextEncodeSDXL

    clip = with_dictionary(sdxl_model.clip, NamedDictionary("birds", birds(sdxl_model.clip)))
    encoder = CLIPTextEncodeSDXL()
    run = encoder.encode if hasattr(encoder, "encode") else encoder.execute
    texts = {"text_g": "a big embedding:birds/head.0", "text_l": "embedding:birds/head.0"}
    output = run(clip, 128, 128, 0, 0, 128, 128, **texts)
    conditioning = output[0] if isinstance(output, tuple) else output.args[0]
    assert [span.positions for span in conditioning[0][1][SPANS_KEY]] == [(1,), (3,)]


def test_marks_of_several_vectors_make_one_span():
    mark = PartMark("head:new", "head")
    run = [(marked(torch.zeros(4), mark), 1.0) for _ in range(2)]
    chunk = [(0, 1.0), *run, (1, 1.0)]
    assert part_spans({"l": [chunk]}) == (PartSpan("head:new", "head", (1, 2)),)
    assert part_spans([chunk]) == ()


def test_scheduled_hooks_record_as_well(sd15_model):
    import comfy.hooks

    taught = with_dictionary(sd15_model.clip, NamedDictionary("birds", birds(sd15_model.clip)))
    hooked = taught.clone()
    hooked.patcher.forced_hooks = comfy.hooks.create_hook_lora({}, 1.0, 1.0)
    hooked.use_clip_schedule = True
    entries = hooked.encode_from_tokens_scheduled(hooked.tokenize("a embedding:birds/head.0"), show_pbar=False)
    assert entries
    assert all(facts[SPANS_KEY][0].positions == (2,) for _, facts in entries)


def test_set_clip_hooks_takes_a_clip_that_learned_parts(sd15_model):
    import comfy.hooks
    from comfy_extras.nodes_hooks import SetClipHooks

    taught = with_dictionary(sd15_model.clip, NamedDictionary("birds", birds(sd15_model.clip)))
    hooks = comfy.hooks.create_hook_lora({}, 1.0, 1.0)
    (hooked,) = SetClipHooks().apply_hooks(taught, schedule_clip=True, apply_to_conds=True, hooks=hooks)
    ours, facts = encode(hooked, "a embedding:birds/head.0")
    assert gap(ours, encode(taught, "a embedding:birds/head.0")[0]) == 0
    assert facts[SPANS_KEY][0].positions == (2,)
    assert dictionaries_of(hooked) and type(hooked) is type(taught)


def test_clones_hand_on_what_comfyui_says_about_them(sd15_model):
    import copy

    base, asked = type(sd15_model.clip), []

    class TellingClip(base):
        """A CLIP whose clones take more than those of an older ComfyUI."""

        def clone(self, *args: object, **options: object) -> object:
            asked.append((args, options))
            made = base.clone(self)
            made.__class__ = TellingClip
            return made

    clip = copy.copy(sd15_model.clip)
    clip.__class__ = TellingClip
    taught = with_dictionary(clip, NamedDictionary("birds", birds(clip)))
    asked.clear()
    again = taught.clone(True, disable_dynamic=True)
    assert asked == [((True,), {"disable_dynamic": True})]
    assert type(again) is type(taught) and dictionaries_of(again)


@pytest.mark.parametrize("values", [2, 3])
def test_a_tokenizer_is_answered_in_the_form_of_its_own_search(sd15_model, values):
    import copy

    kind = type(sd15_model.clip.tokenizer.clip_l)

    class FormTokenizer(kind):
        """Searches as ComfyUI before 0.28 does, or as later ones do."""

        def _try_get_embedding(self, embedding_name: str) -> tuple:
            assert self.embedding_directory == [], "only what it gives was asked, no folder"
            return (None, embedding_name, "") if values == 3 else (None, "")

    clip = sd15_model.clip.clone()
    clip.tokenizer = copy.copy(clip.tokenizer)
    clip.tokenizer.clip_l = copy.copy(clip.tokenizer.clip_l)
    clip.tokenizer.clip_l.__class__ = FormTokenizer
    taught = with_dictionary(clip, NamedDictionary("birds", birds(clip)))
    vector, *names, rest = taught.tokenizer.clip_l._try_get_embedding("birds/head.cardinal, it sings")
    assert vector.shape == (32,) and rest == ", it sings"
    assert names == ["birds/head.cardinal"][: values - 2]


def test_other_packs_search_is_asked_for_other_names(sd15_model):
    import copy

    clip = sd15_model.clip.clone()
    clip.tokenizer = copy.copy(clip.tokenizer)
    clip.tokenizer.clip_l = copy.copy(clip.tokenizer.clip_l)
    row, inner = word_rows(clip, 2390)["clip_l"][0], clip.tokenizer.clip_l
    inner._try_get_embedding = lambda name: embedding_answer(inner, row, name, "")
    taught = with_dictionary(clip, NamedDictionary("birds", birds(clip)))
    ours = encode(taught, "embedding:theirs embedding:birds/head.0")[0]
    theirs = encode(sd15_model.clip, f"{word_of(clip, 2390)} {word_of(clip, 3329)}")[0]
    assert gap(ours, theirs) == 0


@pytest.mark.parametrize("pattern", ["a photo of {} , meadow", "({}:1.3) in a meadow", "{}", "a {} b"])
def test_mentions_in_a_plain_text_encode_are_understood(clip, pattern):
    taught = with_dictionary(clip, NamedDictionary("birds", birds(clip)))
    (ours, facts), (theirs, _) = encode(taught, pattern.format("<head:cardinal>")), encode(clip, pattern.format("bird"))
    assert gap(ours, theirs) < 1e-5
    assert [span.label for span in facts[SPANS_KEY]] == ["head:cardinal"]
    (ours, _) = encode(taught, pattern.format("<birds.head:0*0.5+blue jay*0.5>"))
    assert gap(ours, theirs) > 1e-3


def test_faults_in_mentions_of_known_parts_are_told_in_a_plain_text_encode(sd15_model):
    taught = with_dictionary(sd15_model.clip, NamedDictionary("birds", birds(sd15_model.clip)))
    with pytest.raises(BestiaryError, match="column 3: unknown kind 'robin' of part 'head': choose 'cardinal'"):
        encode(taught, "a <head:robin>")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a <lora:x:0.8> bird", "<lora:...> is plain text here: <lora:...> is the syntax of other programs"),
        ("a <beak:red> bird", "<beak:...> is plain text here: this CLIP knows no part of that name"),
        ("I <3: a bird", ""),
        ("a < b : c > d", ""),
        ("a \\<head:cardinal> bird", ""),
    ],
)
def test_other_angle_brackets_stay_text_in_a_plain_text_encode(sd15_model, caplog, text, told):
    clip = sd15_model.clip
    taught = with_dictionary(clip, NamedDictionary("birds", birds(clip)))
    assert gap(encode(taught, text)[0], encode(clip, text)[0]) == 0
    assert told in caplog.text and bool(caplog.text) == bool(told)


def test_part_prompt_writes_a_plain_bracket_on_a_clip_that_knows_parts(sd15_model):
    from bestiary.nodes.part_prompt.part_encoding import encode_part_prompt

    clip = sd15_model.clip
    taught = with_dictionary(clip, NamedDictionary("birds", birds(clip)))
    ((ours, _),) = encode_part_prompt(taught, "a \\<head:cardinal>", dictionaries_of(taught))
    assert gap(ours, encode(clip, "a <head:cardinal>")[0]) == 0
