"""Words of prompts in the context, by the core's own tokenizers: CLIP, T5 and language models with their chat templates."""

import functools
import importlib
from types import SimpleNamespace

import pytest
import torch
from bestiary.nodes.host.socket_types import WORDS_KEY
from bestiary.nodes.part_prompt.clip_tokens import PartMark, marked, part_spans
from bestiary.nodes.part_prompt.context_words import add_words, byte_letters, context_words
from bestiary.nodes.part_prompt.part_encoding import encode_part_prompt

TEXT = "user photo of a red hat, (blackbird:1.3), describe the hat 鳥"
TOKENIZERS = {
    "sd15": ("sd1_clip", "SD1Tokenizer"),
    "sdxl": ("sdxl_clip", "SDXLTokenizer"),
    "sd3": ("text_encoders.sd3_clip", "SD3Tokenizer"),
    "flux": ("text_encoders.flux", "FluxTokenizer"),
    "qwen": ("text_encoders.qwen_image", "QwenImageTokenizer"),
    "z_image": ("text_encoders.z_image", "ZImageTokenizer"),
    "anima": ("text_encoders.anima", "AnimaTokenizer"),
}
# tokens in front of the first word of the prompt, of the context as the network sees it
CUT_BY_QWEN = 34


@pytest.fixture(scope="module")
def clip_of():
    """`clip_of(family)`: a CLIP with the core's real tokenizer and no weights; skipped where this core has no such family."""
    import transformers

    # encoders of several families share their vocabulary's files, whose reading takes most of the time
    made = {}
    patch = pytest.MonkeyPatch()
    for kind in (transformers.T5TokenizerFast, transformers.Qwen2Tokenizer):
        patch.setattr(kind, "from_pretrained", functools.cache(kind.from_pretrained))

    def build(family: str) -> object:
        module, name = TOKENIZERS[family]
        if family not in made:
            try:
                made[family] = getattr(importlib.import_module(f"comfy.{module}"), name)()
            except ImportError:
                pytest.skip(f"this ComfyUI has no {family}")
        encoders = SimpleNamespace(clip_l=object(), clip_g=object(), t5xxl=object())
        return SimpleNamespace(tokenizer=made[family], cond_stage_model=encoders)

    yield build
    patch.undo()


def lengths(tokens: dict) -> dict[str, int]:
    return {key: sum(map(len, chunks)) for key, chunks in tokens.items()}


def words(clip: object, length: int | None = None, text: str = TEXT) -> tuple[object, dict]:
    tokens = clip.tokenizer.tokenize_with_weights(text)
    return context_words(clip, tokens, max(lengths(tokens).values()) if length is None else length), tokens


def ids_at(chunks: list, places: list[int]) -> list[int]:
    flat = [entry[0] for chunk in chunks for entry in chunk]
    return [flat[place] for place in places]


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_clip_words(clip_of, family):
    found, _ = words(clip_of(family))
    assert found.places("hat") == (6, 12)
    assert found.places("user") == (1,)


def test_words_of_the_embedded_model(demo_model):
    """Its tokens are whole words, without a mark for the space behind them."""
    text = "a photo of a creature , in a meadow"
    tokens = demo_model.clip.tokenize(text)
    found = context_words(demo_model.clip, tokens, lengths(tokens)["l"])
    assert found.places("meadow") == (9,) and found.places("photo of a") == (2, 3, 4)
    assert found.places("meadow creature") == () and found.places("adow") == ()
    assert found.names() == ["photo", "of", "creature", "in", "meadow"]


def test_t5_stands_behind_clip_in_sd3(clip_of):
    clip = clip_of("sd3")
    found, tokens = words(clip)
    own = clip.tokenizer.t5xxl.tokenizer("hat")["input_ids"][:-1]
    clip_places, t5_places = (
        [place for place in found.places("hat") if (place >= 77) == late] for late in (False, True)
    )
    assert clip_places == [6, 12]
    assert set(ids_at(tokens["t5xxl"], [place - 77 for place in t5_places])) <= {*own, 3, 12}
    assert len(t5_places) >= 2
    # without CLIP, or without T5, what is left begins the context
    clip.cond_stage_model.clip_l = clip.cond_stage_model.clip_g = None
    assert list(context_words(clip, tokens, 77).places("hat")) == [place - 77 for place in t5_places]
    clip.cond_stage_model.clip_l, clip.cond_stage_model.t5xxl = object(), None
    assert list(context_words(clip, tokens, 77).places("hat")) == clip_places


def test_two_chunks_of_clip_move_t5(clip_of):
    text = "a bird, " * 30 + "a zebra"
    found, tokens = words(clip_of("sd3"), text=text)
    assert lengths(tokens)["l"] == 154
    assert [place for place in found.places("zebra") if place < 154] == [77 + 1 + 5 * 3 + 1]
    assert [place for place in found.places("zebra") if place >= 154]


@pytest.mark.parametrize("family", ["flux", "anima"])
def test_only_t5_counts_where_clip_or_qwen_is_not_attended_to(clip_of, family):
    clip = clip_of(family)
    found, tokens = words(clip)
    places = found.places("hat")
    assert clip.tokenizer.t5xxl.tokenizer.decode(ids_at(tokens["t5xxl"], places)) == "hathat"
    assert max(places) < lengths(tokens)["t5xxl"]


@pytest.mark.parametrize(("family", "encoder", "cut"), [("qwen", "qwen25_7b", CUT_BY_QWEN), ("z_image", "qwen3_4b", 0)])
def test_chat_templates_are_counted_and_never_searched(clip_of, family, encoder, cut):
    clip = clip_of(family)
    tokens = clip.tokenizer.tokenize_with_weights(TEXT)
    found = context_words(clip, tokens, lengths(tokens)[encoder] - cut)
    inner = getattr(clip.tokenizer, encoder).tokenizer

    def spelt(word: str) -> str:
        return inner.decode(ids_at(tokens[encoder], [place + cut for place in found.places(word)])).strip()

    assert spelt("hat") == "hat hat"
    assert spelt("red hat") == "red hat"
    assert spelt("blackbird") == "blackbird"
    assert spelt("鳥") == "鳥"
    # words of the template itself: the prompt's own ones are the only ones
    assert spelt("user") == "user"
    assert spelt("describe") == "describe"
    assert found.places("user") == (0 if family == "qwen" else 3,)
    assert found.places("assistant") == found.places("im_start") == ()


def test_qwen_image_cuts_its_template_where_we_count(clip_of):
    clip = clip_of("qwen")
    qwen = importlib.import_module("comfy.text_encoders.qwen_image")
    tokens = clip.tokenizer.tokenize_with_weights(TEXT)
    count = lengths(tokens)["qwen25_7b"]

    class Encoder(torch.nn.Module):
        def encode_token_weights(self, pairs):
            return torch.arange(float(count)).view(1, -1, 1), None, {"attention_mask": torch.ones(1, count)}

    # the core's own cutting, over states that are their places
    model = qwen.QwenImageTEModel.__new__(qwen.QwenImageTEModel)
    torch.nn.Module.__init__(model)
    model.clip, model.clip_name, model.qwen25_7b = "qwen25_7b", "qwen25_7b", Encoder()
    states = model.encode_token_weights(tokens)[0]
    found = add_words(clip, tokens, [[states, {}]])[0][1][WORDS_KEY]
    inner = clip.tokenizer.qwen25_7b.tokenizer
    original = [int(states[0, place, 0]) for place in found.places("red hat")]
    assert inner.decode(ids_at(tokens["qwen25_7b"], original)).strip() == "red hat"


def test_a_picture_in_the_prompt_moves_what_follows(clip_of):
    clip = clip_of("qwen")
    tokens = clip.tokenizer.tokenize_with_weights("a red hat", images=[torch.zeros(1, 8, 8, 3)])
    count = lengths(tokens)["qwen25_7b"]
    # as if the picture took 9 places and 64 tokens of the template were cut
    found = context_words(clip, tokens, count + 8 - 64)
    entries = [entry[0] for entry in tokens["qwen25_7b"][0]]
    wanted = [
        i
        for i, token in enumerate(entries)
        if isinstance(token, int) and "hat" in clip.tokenizer.qwen25_7b.inv_vocab[token]
    ]
    assert [place - 8 + 64 for place in found.places("hat")] == wanted[-1:]


@pytest.mark.parametrize(
    ("family", "missing", "expected"),
    [
        ("sd15", (), [(5,)]),
        ("sdxl", (), [(5,)]),
        ("sd3", (), [(5,), (83, 84)]),
        ("sd3", ("clip_l", "clip_g"), [(6, 7)]),
        ("sd3", ("t5xxl",), [(5,)]),
        ("flux", (), [(6, 7)]),
    ],
)
def test_parts_stand_where_the_network_sees_them(clip_of, family, missing, expected):
    clip = clip_of(family)
    for name in missing:
        setattr(clip.cond_stage_model, name, None)
    tokens = clip.tokenizer.tokenize_with_weights("a photo of a bird")
    mark = PartMark("head:a", "head")
    # one vector in CLIP, two in T5
    places = {key: (6, 7) if key == "t5xxl" else (5,) for key in tokens}
    filled = {
        key: [[(marked(torch.zeros(4), mark), 1.0) if i in places[key] else entry for i, entry in enumerate(chunks[0])]]
        for key, chunks in tokens.items()
    }
    assert [span.positions for span in part_spans(filled, clip)] == expected


def test_an_unknown_layout_says_nothing(clip_of):
    clip = clip_of("sd15")
    assert context_words(clip, {"pile_t5xl": []}, 77) is None
    assert context_words(clip, [], 77) is None
    assert add_words(clip, {"pile_t5xl": []}, [[torch.zeros(1, 77, 8), {}]])[0][1] == {}


def test_every_byte_has_its_letter():
    assert sorted(byte_letters().values()) == list(range(256))


def test_prompts_with_and_without_parts_say_where_their_words_stand(sd15_model):
    ((_, facts),) = encode_part_prompt(sd15_model.clip, "a red bird \\<3", {})
    assert facts[WORDS_KEY].places("red bird") == (2, 3)
