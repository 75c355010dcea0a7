"""Other forward functions for single modules while a block lasts: nothing global changes, and all is put back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

Forward = Callable[..., Any]


class ForwardOverrides:
    """Replaced `forward` functions of modules that others share; `take_off` leaves every module as it was."""

    def __init__(self) -> None:
        """Nothing is replaced yet."""
        self._before: dict[nn.Module, Forward | None] = {}

    def put(self, module: nn.Module, build: Callable[[Forward], Forward]) -> None:
        """Replace a module's forward by `build(its forward)`; a module that has been replaced already is left alone."""
        if module in self._before:
            return
        original = module.forward
        # another extension may have put its own function into the instance
        self._before[module] = module.__dict__.get("forward")
        module.forward = build(original)

    def take_off(self) -> None:
        """Put every forward back."""
        for module, before in self._before.items():
            if before is None:
                module.__dict__.pop("forward", None)
            else:
                module.forward = before
        self._before.clear()
