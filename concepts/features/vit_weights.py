"""Published weights of timm's vision transformers: lookup in the local cache, and download on request."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ..errors import BestiaryError

log = logging.getLogger(__name__)

DINO_MODEL = "vit_base_patch14_dinov2.lvd142m"
"""timm's name of the default vision transformer of the source `dinov2`."""
WEIGHTS_FILE = "model.safetensors"
PATIENCE = 12.0
"""Seconds to wait for an answer of the network."""
Result = TypeVar("Result")


def hub_name(model: str) -> str:
    """Repository of a model's weights; a name without a tag (`.lvd142m`) is completed by timm.

    Raises:
        BestiaryError: timm is missing, or does not know the model.
    """
    if "." in model:
        return f"timm/{model}"
    try:
        import timm
    except ImportError as fault:
        raise BestiaryError("the source dinov2 needs timm: pip install timm, or choose another source") from fault
    config = timm.get_pretrained_cfg(model) if timm.is_model(model) else None
    if config is None or not config.hf_hub_id:
        raise BestiaryError(f"timm has no weights for a model {model!r}: give a name of a vision transformer")
    return str(config.hf_hub_id)


def cached_weights(model: str = DINO_MODEL) -> Path | None:
    """Weights in timm's download cache, or None; never uses the network."""
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(hub_name(model), WEIGHTS_FILE)
    return Path(cached) if isinstance(cached, str) else None


def fetch_weights(
    model: str = DINO_MODEL, *, remedy: str = "choose the source imagenet, which needs no network"
) -> Path:
    """Weights from the cache, or downloaded to it; logs their size, and shows the progress bar of huggingface_hub.

    Args:
        remedy: alternative to suggest in the message without a network.

    Raises:
        BestiaryError: no network, no answer within `PATIENCE` seconds, or no such weights.
    """
    if (cached := cached_weights(model)) is not None:
        return cached
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    repository = hub_name(model)
    # a short metadata request first: the download itself would retry for minutes without a network
    address = hf_hub_url(repository, WEIGHTS_FILE)
    about = _within(PATIENCE, lambda: get_hf_file_metadata(address, timeout=PATIENCE), model, remedy)
    log.warning("downloading the weights of %s once: %d MB from %s", model, round((about.size or 0) / 1e6), repository)
    try:
        return Path(hf_hub_download(repository, WEIGHTS_FILE))
    except Exception as fault:  # the library raises those of several HTTP libraries
        raise BestiaryError(
            f"the weights of {model} could not be downloaded ({_short(fault)}): try again, or {remedy}"
        ) from fault


def _within(seconds: float, ask: Callable[[], Result], model: str, remedy: str) -> Result:
    """Result of a network request with a hard time limit; failures become BestiaryError."""
    found: list[Result] = []
    faults: list[Exception] = []

    def run() -> None:
        try:
            found.append(ask())
        except Exception as fault:
            faults.append(fault)

    # DNS lookups ignore timeouts: run in a daemon thread, which is abandoned after the time limit
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if found:
        return found[0]
    reason = _short(faults[0]) if faults else f"no answer within {seconds:.0f} seconds"
    raise BestiaryError(
        f"the weights of {model} are not on this machine and could not be downloaded ({reason}): give --weights FILE, "
        f"connect to the network, or {remedy}"
    ) from (faults[0] if faults else None)


def _short(fault: BaseException) -> str:
    lines = str(fault).strip().splitlines()
    return f"{type(fault).__name__}: {lines[0][:160]}" if lines else type(fault).__name__
