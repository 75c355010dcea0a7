"""What is particular to DeepFloyd IF in a DreamBooth training on the command line: how it is loaded, checked, and described."""

import logging
from collections.abc import Iterator
from pathlib import Path

from ...concepts.errors import BestiaryError
from ..learning.denoiser.if_folder import (
    LICENCE_NOTE,
    NORMALISATION,
    TEXT_LENGTH,
    IFFolder,
    is_if_folder,
    normalised,
    read_if_folder,
)
from ..learning.dreambooth.dreambooth_settings import AUTO, PLACE, TrainDreamBoothSettings
from ..model.backbones import choose_device, choose_dtype, find_model
from ..model.if_denoiser import IFDenoiser, load_if
from ..model.t5_text import rare_piece, too_long

logger = logging.getLogger("bestiary")
PIECES = 3
"""Pieces of an identifier above which it is a word that the text encoder spells."""
PIXELS = "pixels"
"""What cached pictures of IF are encoded with."""


def is_if(settings: TrainDreamBoothSettings) -> bool:
    """Whether the base model is a stage of DeepFloyd IF.

    Raises:
        BestiaryError: settings for DeepFloyd IF alone, and the model is another one.
    """
    base = settings.base
    path = find_model(base.path)
    if is_if_folder(path):
        return True
    only = [name for name in ("stage", "text_encoder", "tokenizer") if getattr(base, name) is not None]
    if only and (path / "unet").is_dir():
        raise BestiaryError(
            f"base.{only[0]} is for DeepFloyd IF, but base.path {base.path} holds another model: give a folder such as IF-I-M-v1.0, or "
            "leave the setting out",
            option=f"base.{only[0]}",
        )
    if only:
        read_if_folder(path)  # says what is missing
    return False


def with_identifier(settings: TrainDreamBoothSettings) -> TrainDreamBoothSettings:
    """The settings with a rare piece of T5 for the identifier "auto", also in the prompt; others as they are.

    Raises:
        BestiaryError: the base model is no stage of DeepFloyd IF, or it has no tokenizer.
    """
    captions, base = settings.captions, settings.base
    if captions.identifier != AUTO:
        return settings
    if not is_if(settings):
        raise BestiaryError(
            f'captions.identifier is "auto", which takes a rare piece of DeepFloyd IF\'s text encoder, but base.path {base.path} holds another '
            f"model: name a word such as sks in place of {PLACE}, or set method.vectors = 1 and leave captions.identifier out",
            option="captions.identifier",
        )
    folder = read_if_folder(find_model(base.path))
    word = rare_piece(folder, captions.class_prompt, text_encoder=base.text_encoder, tokenizer=base.tokenizer)
    logger.info("identifier: %s", word)
    named = {"identifier": word, "instance_prompt": captions.instance_prompt.replace(PLACE, word)}
    return settings.model_copy(update={"captions": captions.model_copy(update=named)})


def load_stage(settings: TrainDreamBoothSettings, class_pictures: int, cache: Path) -> IFDenoiser:
    """The stage of a training, with all its sentences encoded.

    Args:
        class_pictures: how many pictures of the class there are.
        cache: folder in which encodings are kept.

    Raises:
        BestiaryError: settings that do not fit this model; see `if_denoiser.load_if`.
    """
    base, run, captions = settings.base, settings.run, settings.captions
    path = find_model(base.path)
    _check_settings(settings, read_if_folder(path), class_pictures)
    device = choose_device(run.device)
    return load_if(
        path,
        [captions.instance_prompt, captions.class_prompt, ""],
        cache,
        device=device,
        dtype=choose_dtype(run.dtype, device),
        stage=base.stage,
        text_encoder=base.text_encoder,
        tokenizer=base.tokenizer,
    )


def _check_settings(settings: TrainDreamBoothSettings, folder: IFFolder, class_pictures: int) -> None:
    images, method = settings.images, settings.method
    if images.size not in (None, folder.image_size):
        raise BestiaryError(
            f"images.size is {images.size}, but stage {folder.stage} of DeepFloyd IF draws {folder.image_size} pixels and learns from no other "
            "size: leave it out",
            option="images.size",
        )
    if images.buckets:
        raise BestiaryError(
            "images.buckets is true, but DeepFloyd IF is trained on squares alone: leave it out",
            option="images.buckets",
        )
    if method.vectors:
        raise BestiaryError(
            f"method.vectors is {method.vectors}, but DeepFloyd IF is trained with plain words alone: set it to 0 and name a word such as sks",
            option="method.vectors",
        )
    if folder.stage == "II" and method.prior == "pictures" and class_pictures < images.class_count:
        raise BestiaryError(
            f"images.class_images holds {class_pictures} of {images.class_count} pictures of the class, and stage II of DeepFloyd IF, which "
            'enlarges, cannot make the others: give a folder of pictures, lower images.class_count, or set method.prior = "model"',
            option="images.class_images",
        )


def notes_of(denoiser: IFDenoiser, settings: TrainDreamBoothSettings) -> dict[str, object]:
    """What the file says of a LoRA for this model: whoever samples with it must not read the variance, which was not trained."""
    encoder = settings.base.text_encoder
    return {
        "stage": denoiser.stage,
        "variance_type": "fixed_small",
        "text_norm": NORMALISATION,
        "text_length": TEXT_LENGTH,
        "text_encoder": "text_encoder" if encoder is None else encoder.name,
    }


def findings_of(denoiser: IFDenoiser, settings: TrainDreamBoothSettings) -> Iterator[str]:
    """What the doctor says of the licence and the sentences."""
    yield f"licence: {LICENCE_NOTE}"
    sentences = denoiser.texts.sentences
    yield f"texts: {len(sentences)} sentences encoded, the T5 encoder is released"
    for sentence in sentences.values():
        if sentence.pieces > TEXT_LENGTH:
            yield f"texts: {too_long(sentence)}"
    named, plain = (
        sentences[normalised(text)] for text in (settings.captions.instance_prompt, settings.captions.class_prompt)
    )
    known = {word for word, _ in plain.words}
    for word, pieces in named.words:
        if word not in known and pieces > PIECES:
            yield (
                f"identifier: T5 cuts {word!r} into {pieces} pieces, which share their meaning with other words; one of up to {PIECES} pieces is "
                "learned faster"
            )
