"""Sentences through a T5 encoder, which is loaded for that alone and released before anything else is loaded.

Letters: U sentences, L positions, D width of the states.
"""

import gc
import hashlib
import importlib.util
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, T5Config, T5EncoderModel

from ...concepts.errors import BestiaryError
from ...concepts.name_search import shown_name
from ..learning.denoiser.encoded_texts import EncodedTexts, Sentence, TextSource, load_texts, save_texts
from ..learning.denoiser.if_folder import TEXT_LENGTH, IFFolder, normalised
from ..learning.denoiser.t5_weights import TABLE, read_t5, t5_identity, t5_shape

logger = logging.getLogger("bestiary")
_TOKENIZER_FILES = ("spiece.model", "tokenizer.json")
_RARE_WORD = re.compile("▁[a-z]{1,3}")


def encoded_texts(
    folder: IFFolder,
    texts: Sequence[str],
    cache: Path,
    *,
    text_encoder: Path | None,
    tokenizer: Path | None,
    device: torch.device,
    dtype: torch.dtype,
) -> EncodedTexts:
    """Encodings of texts for a stage of DeepFloyd IF: from the cache, or by its T5 encoder, of which nothing is left afterwards.

    Args:
        folder: the stage.
        cache: folder in which encodings are kept.
        text_encoder: folder or file of the encoder; None takes the stage's own.
        tokenizer: folder of the tokenizer; None looks in the stage's folder, then beside the encoder.
        device, dtype: of the encoder; float16 becomes bfloat16, since T5 overflows in float16.

    Raises:
        BestiaryError: no encoder or tokenizer is there, one cannot be read, or a text holds letters that T5 does not know.
    """
    encoder = text_encoder or folder.text_encoder
    if encoder is None:
        raise BestiaryError(
            f"{folder.path} holds no text_encoder: set base.text_encoder to a T5 v1.1 XXL encoder, such as ComfyUI's "
            "models/text_encoders/t5xxl_fp16.safetensors, or to the text_encoder folder of the other stage"
        )
    place = _tokenizer_folder(folder, encoder, tokenizer)
    dtype = torch.bfloat16 if dtype == torch.float16 else dtype
    source = TextSource(t5_identity(encoder), _content_of(place), str(dtype).removeprefix("torch."))
    kept = cache / source.cache_name(texts)
    found = load_texts(kept, texts)
    if found is None:
        sentences = read_sentences(place, texts)
        found = EncodedTexts(sentences, encode_sentences(encoder, sentences, folder.text_width, device, dtype))
        save_texts(found, source, kept)
    _check_known(found)
    for sentence in found.sentences.values():
        if sentence.pieces > TEXT_LENGTH:
            logger.warning("%s", too_long(sentence))
    return found.to(device)


def read_sentences(tokenizer: Path, texts: Sequence[str]) -> list[Sentence]:
    """Every distinct text, normalised, as the tokenizer of a folder cuts it; a longer one is cut off at 77 pieces, its end among them.

    Raises:
        BestiaryError: the tokenizer cannot be read.
    """
    read = load_tokenizer(tokenizer)
    sentences = []
    for text in sorted({normalised(text) for text in texts}):
        ids = list(read(text, add_special_tokens=False, verbose=False)["input_ids"])
        words = {word: list(read(word, add_special_tokens=False)["input_ids"]) for word in text.split()}
        unknown = tuple(word for word, own in words.items() if read.unk_token_id in own)
        shown = [*ids[: TEXT_LENGTH - 1], read.eos_token_id]
        padded = shown + [read.pad_token_id] * (TEXT_LENGTH - len(shown))
        counted = tuple((word, len(own)) for word, own in words.items())
        sentences.append(Sentence(text, tuple(padded), len(ids) + 1, counted, unknown))
    return sentences


@torch.no_grad()
def encode_sentences(
    encoder: Path, sentences: Sequence[Sentence], text_width: int, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """States `(U, L, D)` on the CPU; the encoder is loaded and released in here."""
    logger.info("encoding %d sentences with the T5 encoder %s on %s in %s", len(sentences), encoder, device, dtype)
    model = load_t5(encoder, text_width, dtype)
    nn.Module.to(model, device)
    states = [
        # each alone, as in sampling: a batch would round otherwise
        model(torch.tensor([one.ids]).to(device), attention_mask=one.mask.unsqueeze(0).to(device)).last_hidden_state[0]
        for one in sentences
    ]
    encoded = torch.stack(states).cpu()  # (U, L, D)
    if not torch.isfinite(encoded).all():
        raise BestiaryError(
            f"{encoder} gives numbers that are not finite in {dtype}: set run.dtype to bf16 or fp32, or choose another file"
        )
    del model, states
    # cycles between modules would keep the weights until some later collection
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return encoded


def load_t5(source: Path, text_width: int, dtype: torch.dtype) -> T5EncoderModel:
    """The encoder of a folder or file, frozen, on the CPU.

    Raises:
        BestiaryError: see `t5_weights.read_t5`; weights are missing, or unknown ones are there.
    """
    weights = read_t5(source, text_width, dtype)
    sizes: dict[str, Any] = dict(t5_shape(weights))
    gated = sizes.pop("is_gated_act")
    config = T5Config(
        **sizes,
        feed_forward_proj="gated-gelu" if gated else "relu",
        dropout_rate=0.0,
        is_encoder_decoder=False,
        use_cache=False,
    )
    # without storage first, so that weights are held once
    with torch.device("meta"):
        model = T5EncoderModel(config)
    outcome = model.load_state_dict(
        {**weights, "encoder.embed_tokens.weight": weights[TABLE]}, strict=False, assign=True
    )
    if outcome.missing_keys or outcome.unexpected_keys:
        some = ", ".join(sorted([*outcome.missing_keys, *outcome.unexpected_keys])[:3])
        raise BestiaryError(
            f"{source} lacks {len(outcome.missing_keys)} weights of its T5 encoder and holds {len(outcome.unexpected_keys)} unknown ones "
            f"({some}): download it again"
        )
    return model.eval().requires_grad_(False)


def load_tokenizer(folder: Path) -> Any:
    """The T5 tokenizer of a folder with tokenizer.json or spiece.model.

    Raises:
        BestiaryError: it cannot be read; where only spiece.model is there, the message names what reading it needs.
    """
    if not (folder / "tokenizer.json").is_file():
        lacking = [name for name in ("google.protobuf", "sentencepiece") if not _can_import(name)]
        if lacking:
            raise BestiaryError(
                f"{folder / 'spiece.model'} needs {' and '.join(lacking)} to be read: run `python -m pip install protobuf sentencepiece`, "
                "or set base.tokenizer to a folder with T5's tokenizer.json"
            )
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, ImportError, RuntimeError) as fault:
        raise BestiaryError(f"the T5 tokenizer in {folder} could not be read ({fault}): download it again") from fault


def _can_import(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # google, above protobuf
        return False


def _tokenizer_folder(folder: IFFolder, encoder: Path, given: Path | None) -> Path:
    beside = encoder if encoder.is_dir() else encoder.parent
    places = [given] if given else [folder.path / "tokenizer", beside, beside.parent / "tokenizer"]
    for place in places:
        if any((place / name).is_file() for name in _TOKENIZER_FILES):
            return place
    raise BestiaryError(
        f"no T5 tokenizer ({' or '.join(_TOKENIZER_FILES)}) in {', '.join(map(str, places))}: download the tokenizer folder of DeepFloyd "
        "IF, or set base.tokenizer to ComfyUI's comfy/text_encoders/t5_tokenizer"
    )


def _content_of(folder: Path) -> str:
    """Sixteen hex digits of a tokenizer's files."""
    digest = hashlib.sha256()
    for name in _TOKENIZER_FILES:
        if (folder / name).is_file():
            digest.update(name.encode() + (folder / name).read_bytes())
    return digest.hexdigest()[:16]


def rare_piece(folder: IFFolder, prompt: str, *, text_encoder: Path | None, tokenizer: Path | None) -> str:
    """A piece of T5's vocabulary that means next to nothing: the rarest word of up to three letters that `prompt` does not hold.

    Pieces are numbered from frequent to rare. DreamBooth (arXiv 2208.12242, section 3.1) takes numbers 5,000 to 10,000 of T5's vocabulary at
    random; the words of up to three letters among them have a meaning (`sky`, `cow`, `max`), the rarest of all has hardly any (`jpl`).

    Raises:
        BestiaryError: no tokenizer is there, it cannot be read, or none of its pieces is such a word.
    """
    read = load_tokenizer(_tokenizer_folder(folder, text_encoder or folder.text_encoder or folder.path, tokenizer))
    words = {number: piece[1:] for piece, number in read.get_vocab().items() if _RARE_WORD.fullmatch(piece)}
    said = normalised(prompt).split()
    free = {number: word for number, word in words.items() if word not in said}
    if not free:
        raise BestiaryError(
            'captions.identifier is "auto", but the T5 tokenizer has no free piece of up to three letters: name a word such as sks',
            option="captions.identifier",
        )
    return free[max(free)]


def too_long(sentence: Sentence) -> str:
    """What is said of a sentence that is cut off, here as in a graph."""
    return (
        f"DeepFloyd IF reads {TEXT_LENGTH} pieces of a prompt, this one has {sentence.pieces}: the rest is cut off; shorten "
        f"{sentence.text[:60]!r}"
    )


def _check_known(texts: EncodedTexts) -> None:
    for sentence in texts.sentences.values():
        if sentence.unknown:
            words = ", ".join(map(shown_name, sentence.unknown))
            raise BestiaryError(
                f"the T5 encoder of DeepFloyd IF has no piece for letters in {words}: they would be lost. Leave out letters such as < and "
                "emoji: head:42 in place of <head:42>",
                option="captions.instance_prompt",
            )
