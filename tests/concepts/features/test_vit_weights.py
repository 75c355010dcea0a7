"""Weights of vision transformers: looked for without the network, fetched once, given up soon."""

import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.features import vit_weights
from bestiary.concepts.features.vit_weights import DINO_MODEL, cached_weights, fetch_weights, hub_name


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *where: None)


def test_a_name_without_its_training_is_completed() -> None:
    assert hub_name(DINO_MODEL) == "timm/vit_base_patch14_dinov2.lvd142m"
    assert hub_name("vit_small_patch14_reg4_dinov2") == "timm/vit_small_patch14_reg4_dinov2.lvd142m"
    with pytest.raises(BestiaryError, match="timm has no weights for a model 'vit_of_mine': give a name of a vision"):
        hub_name("vit_of_mine")


def test_what_the_cache_holds_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cached_weights() is None
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *where: f"/cache/{where[1]}")
    monkeypatch.setattr("huggingface_hub.hf_hub_download", pytest.fail)
    assert fetch_weights() == cached_weights() == Path("/cache/model.safetensors")


def test_the_size_is_told_before_it_is_fetched(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", lambda url, timeout: SimpleNamespace(size=346_000_000))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *where: "/cache/new.safetensors")
    assert fetch_weights() == Path("/cache/new.safetensors")
    assert f"downloading the weights of {DINO_MODEL} once: 346 MB from timm/{DINO_MODEL}" in caplog.text


def test_without_a_network_the_remedy_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(url: str, timeout: float) -> None:
        raise OSError("network is unreachable")

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", refuse)
    with pytest.raises(BestiaryError) as fault:
        fetch_weights()
    assert str(fault.value) == (
        f"the weights of {DINO_MODEL} are not on this machine and could not be downloaded (OSError: network is unreachable): "
        "give --weights FILE, connect to the network, or choose the source imagenet, which needs no network"
    )


def test_a_network_that_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    assert vit_weights.PATIENCE < 15
    monkeypatch.setattr(vit_weights, "PATIENCE", 0.2)
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", lambda url, timeout: time.sleep(5))
    begun = time.monotonic()
    with pytest.raises(BestiaryError, match="no answer within 0 seconds"):
        fetch_weights()
    assert time.monotonic() - begun < 3


def test_a_broken_download_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*where: str) -> None:
        raise ConnectionError("reset by peer")

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", lambda url, timeout: SimpleNamespace(size=None))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", broken)
    with pytest.raises(
        BestiaryError, match="could not be downloaded .*reset by peer.*: try again, or choose the source imagenet"
    ):
        fetch_weights()
