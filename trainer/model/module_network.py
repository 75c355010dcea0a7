"""What networks over a module of diffusers share: frozen weights, where they compute, recomputation."""

from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint


class ModuleNetwork:
    """The core of a `Network` whose weights are one module of diffusers."""

    def __init__(self, module: Any, edge: Any) -> None:
        """Take over the module and freeze it: only adapters and learned vectors ever get gradients.

        `edge`: its first or last layer, which is never quantised or replaced and stands for all.
        """
        # the classes of diffusers share none that says what all of them have
        self._module: Any = module.eval().requires_grad_(False)
        self._edge: Any = edge

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._edge.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype in which the module computes."""
        return self._edge.weight.dtype

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """Recompute activations in the backward pass (about a third more work for much less memory), or keep them."""
        if not enabled:
            self._module.disable_gradient_checkpointing()
            return
        # nothing in the denoiser draws random numbers, so their state need not be fetched from the device
        self._module.enable_gradient_checkpointing(partial(checkpoint, use_reentrant=False, preserve_rng_state=False))
