"""What a training never does twice: encode a picture, look for parts, or tokenise a caption it knows."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from bestiary.trainer.discovery import feature_sources
from bestiary.trainer.learning.denoiser.prompt_encoding import PromptEncoding
from bestiary.trainer.learning.parts.concept_images import ConceptImages
from bestiary.trainer.learning.parts.settings import TrainPartsSettings, load_recipe
from bestiary.trainer.model.autoencoder import Autoencoder
from bestiary.trainer.training.train_parts import train_parts


@pytest.fixture
def settings(
    tmp_path: Path, make_discovery: Callable[..., Path], tiny_folder: Callable[[str], Path]
) -> TrainPartsSettings:
    """Nine steps of two pictures: three epochs of six pictures."""
    flags = {
        "discovery.folder": make_discovery(tmp_path), "base.path": str(tiny_folder("bestiary-demo")), "images.size": 64,
        "images.cache": tmp_path / "cache", "images.flip": True, "images.margin": 0.25, "images.encode_batch": 4,
        "run.out": tmp_path / "run", "run.device": "cpu", "run.dtype": "fp32", "run.preview_every": 0,
        "run.estimate_memory": False, "run.tensorboard": False, "optimizer.steps": 9, "optimizer.accumulation": 1,
        "captions.shuffle": False, "captions.templates": 0.0, "lora.rank": 2,
    }  # fmt: skip
    return load_recipe(None, flags)


def test_three_epochs_encode_every_picture_once_and_read_no_features(settings, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded, seen, tokenised = [], [], []
    encode, tokenize = Autoencoder.to_cache, PromptEncoding.tokenize
    draw = ConceptImages.draw

    def counted_encode(self: Autoencoder, images: object) -> object:
        encoded.append(len(images))
        return encode(self, images)

    def counted_tokenize(self: PromptEncoding, pieces: list, chunks: int | None = None) -> object:
        tokenised.append(tuple(pieces))
        return tokenize(self, pieces, chunks)

    def counted_draw(self: object, step: int, micro_step: int) -> object:
        batch = draw(self, step, micro_step)
        seen.extend(batch.names)
        return batch

    def refuse(*args: object, **options: object) -> object:
        raise AssertionError("a training looked for parts again")

    monkeypatch.setattr(Autoencoder, "to_cache", counted_encode)
    monkeypatch.setattr(PromptEncoding, "tokenize", counted_tokenize)
    monkeypatch.setattr(ConceptImages, "draw", counted_draw)
    monkeypatch.setattr(feature_sources, "build_feature_source", refuse)
    monkeypatch.setattr(feature_sources, "DinoFeatures", refuse)
    known = set(sys.modules)
    train_parts(settings)
    assert sum(encoded) == 2 * 6  # each picture and its mirror image
    counts = {name: seen.count(name) for name in set(seen)}
    assert len(counts) == 6 and min(counts.values()) >= 3
    captions = [pieces for pieces in tokenised if any(piece.text is None for piece in pieces)]
    assert len(captions) == len(set(captions))
    assert "timm" not in set(sys.modules) - known
    encoded.clear()
    train_parts(settings)
    assert encoded == []  # the cache of the first run serves the second
