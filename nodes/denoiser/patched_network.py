"""What ComfyUI's networks have in common while we compute with them: a patched clone, its device, and hooks that stay on for a training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ...concepts.denoiser.adapters import Adapters
from ...concepts.denoiser.backbone import Backbone
from ...concepts.errors import BestiaryError
from ...trainer.learning.denoiser.attention_capture import AttentionCapture
from .forward_overrides import ForwardOverrides


class NetworkHooks(ABC):
    """What hangs on a network's modules: adapters, and attention that can be asked for columns."""

    def __init__(self, adapters: Adapters) -> None:
        """Nothing is attached."""
        self.adapters = adapters
        """Adapters of the layers; they may change while the hooks are on."""
        self.recompute = False
        """Compute blocks again in the backward pass instead of keeping their activations."""
        self._capture: AttentionCapture | None = None

    @abstractmethod
    def put_on(self, overrides: ForwardOverrides) -> None:
        """Hang everything on the modules; adapters and `recompute` may still change afterwards."""

    @contextmanager
    def reading(self, capture: AttentionCapture | None) -> Iterator[None]:
        """Collect attention columns into `capture` as long as the context lasts, and not in a later backward pass."""
        self._capture = capture
        try:
            yield
        finally:
            self._capture = None
            if capture is not None:
                capture.open = False


class PatchedNetwork:
    """The network of a ModelPatcher; the patches on the MODEL (LoRA and so on) stay in force."""

    def __init__(self, patcher: Any, backbone: Backbone, hooks: NetworkHooks) -> None:
        """`patcher`: a clone of the MODEL, on which we may hang things; `hooks`: those, not yet attached."""
        self._patcher, self._backbone, self._hooks = patcher, backbone, hooks
        self._overrides = ForwardOverrides()
        self._training = False

    @property
    def adapters(self) -> Adapters:
        """Adapters that were added here; those of the MODEL stay."""
        return self._hooks.adapters

    @property
    def device(self) -> torch.device:
        """Where the network computes."""
        return torch.device(self._patcher.load_device)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype in which the network computes."""
        base = self._patcher.model
        return base.manual_cast_dtype or base.get_dtype()

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """Recompute activations in the backward pass, or keep them."""
        self._hooks.recompute = enabled

    @contextmanager
    def in_training(self) -> Iterator[None]:
        """Hooks stay on for a whole training, so that no call of it puts them on and off; all weights must be loaded.

        Raises:
            BestiaryError: two trainings run on one network.
        """
        self.check_idle()
        self._training = True
        try:
            self._hooks.put_on(self._overrides)
            yield
        finally:
            self._overrides.take_off()
            self._training = False

    @property
    def is_training(self) -> bool:
        """Whether a training runs, which has loaded everything."""
        return self._training

    def check_idle(self) -> None:
        """Raises BestiaryError while a training runs."""
        if self._training:
            raise BestiaryError("a training runs on this MODEL already: wait for its end or cancel it")

    @contextmanager
    def _hooked(self) -> Iterator[None]:
        """The hooks on the modules for one call, unless a training keeps them there."""
        if self._training:
            yield
            return
        # the modules are shared with the graph: everything comes off again
        self._hooks.put_on(self._overrides)
        try:
            yield
        finally:
            self._overrides.take_off()

    def _load(self) -> None:
        import comfy.model_management

        if not self._training:
            comfy.model_management.load_models_gpu([self._patcher])
