"""What may go wrong while a graph trains: out of memory reported with what to lower, and random generators left as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from ...concepts.errors import BestiaryError
from ...trainer.learning.parts.settings import TrainPartsSettings
from ...trainer.learning.run.run_settings import TrainingSettings

_WORDS = ("out of memory", "can't allocate memory", "not enough memory")

_TRAINING_FLAG = "in_training"
"""Of newer ComfyUIs' model management; by name, since older ones have none."""


@contextmanager
def memory_told(settings: TrainingSettings, image_size: int) -> Iterator[None]:
    """Turns a device's lack of memory into one message that says what to lower.

    Raises:
        BestiaryError: the memory was not enough.
    """
    advice = None
    try:
        yield
    except RuntimeError as fault:  # torch's own kind of it is a RuntimeError too
        if not isinstance(fault, torch.OutOfMemoryError) and not any(word in str(fault).lower() for word in _WORDS):
            raise
        advice = _advice(settings, image_size)
    if advice:
        import comfy.model_management

        comfy.model_management.soft_empty_cache()
        advised = BestiaryError(advice)
        try:
            raise advised
        finally:
            # the fault holds the tensors of the step
            advised.__context__ = None


def _advice(settings: TrainingSettings, image_size: int) -> str:
    batch = settings.optimizer.batch_size
    is_parts = isinstance(settings, TrainPartsSettings)
    lower = []
    if batch > 1:
        instead = "accumulation" if is_parts else "steps, or optimizer.accumulation in more_settings,"
        lower.append(f"batch_size {batch} (raise {instead} in its place)")
    if not settings.base.checkpointing:
        lower.append("memory by switching recompute on")
    if isinstance(settings, TrainPartsSettings):
        lower += [f"the image_size {image_size} of Training Images", f"rank {settings.lora.rank}"]
    else:
        lower.append(f"the image_size {image_size}")
    return f"out of memory in training: lower {', or '.join(lower)}, or close other programs that use the device"


@contextmanager
def host_in_training() -> Iterator[None]:
    """Tells a ComfyUI that wants to know it that a training runs: some of its layers then keep to what gradients can pass."""
    import comfy.model_management as host

    if not hasattr(host, _TRAINING_FLAG):
        yield
        return
    before = getattr(host, _TRAINING_FLAG)
    setattr(host, _TRAINING_FLAG, True)
    try:
        yield
    finally:
        setattr(host, _TRAINING_FLAG, before)


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Whatever draws random numbers inside, torch's and numpy's generators go on afterwards as if nothing had happened."""
    before = np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            np.random.set_state(before)
