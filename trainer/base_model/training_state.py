"""State of one training stage: weights, optimizer, moving average and step, saved atomically in one file."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ...concepts.files.atomic_file import replacing


@dataclass(frozen=True)
class StagePlan:
    """Settings of one stage, without its data and modules."""

    seed: int
    """Fixes batches and noise of every step."""
    steps: int
    """Total optimizer steps, including those of earlier starts."""
    batch: int
    """Pictures per step."""
    save_every: int
    """Steps between two saved states."""
    decay_from: float = 0.7
    """Share of the steps after which the learning rate falls."""
    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.bfloat16
    """Number type of the forward pass; weights and optimizer stay fp32."""
    compiled: bool = False
    """Whether the forward pass goes through torch.compile."""
    deadline: float | None = None
    """Value of time.monotonic() after which the stage saves and stops."""

    def autocast(self) -> AbstractContextManager:
        """Autocast context of the forward pass; disabled for float32."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def speeded(self, function: Callable) -> Callable:
        """`function`, compiled with torch.compile if `compiled` is set."""
        return torch.compile(function) if self.compiled else function

    def expired(self) -> bool:
        """True after the deadline."""
        return self.deadline is not None and time.monotonic() > self.deadline


class StageState:
    """Modules under training with their AdamW, their moving average (EMA) and the number of finished steps."""

    def __init__(self, modules: dict[str, nn.Module], path: Path, *, learning_rate: float, ema_decay: float) -> None:
        self.modules, self.path = modules, path
        self.learning_rate, self.ema_decay = learning_rate, ema_decay
        self.parameters = [p for module in modules.values() for p in module.parameters()]
        # the moving average starts at the initial weights
        self.averages = [p.detach().clone() for p in self.parameters]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=learning_rate, betas=(0.9, 0.99), weight_decay=1e-3, fused=True
        )
        self.step = 0
        self.seconds = 0.0
        self._since = time.monotonic()

    def descend(self, loss: torch.Tensor, share: float) -> float:
        """One optimizer step at `share` of the learning rate; returns the gradient norm before clipping at 1."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * share
        self.optimizer.step()
        self.step += 1
        # a smaller decay in the first steps, while the weights still change quickly
        decay = min(self.ema_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(self.averages, [p.detach() for p in self.parameters], 1 - decay)
        return float(norm)

    def swap_averages(self) -> None:
        """Exchanges weights and moving averages in place; call again to undo."""
        with torch.no_grad():
            for parameter, average in zip(self.parameters, self.averages, strict=True):
                kept = parameter.detach().clone()
                parameter.copy_(average)
                average.copy_(kept)

    def save(self) -> None:
        """Writes everything a later process needs to continue at the next step."""
        self._count_time()
        content = {
            "step": self.step,
            "seconds": self.seconds,
            "modules": {name: module.state_dict() for name, module in self.modules.items()},
            "averages": self.averages,
            "optimizer": self.optimizer.state_dict(),
        }
        with replacing(self.path) as temporary:
            torch.save(content, temporary)

    def load(self) -> bool:
        """Loads the saved state; returns False if there is none."""
        if not self.path.exists():
            return False
        content = torch.load(self.path, map_location="cpu", weights_only=True)
        for name, module in self.modules.items():
            module.load_state_dict(content["modules"][name])
        with torch.no_grad():
            for average, kept in zip(self.averages, content["averages"], strict=True):
                average.copy_(kept)
        # load_state_dict also restores the saved flags: set the fused step again
        self.optimizer.load_state_dict(content["optimizer"])
        for group in self.optimizer.param_groups:
            group["fused"] = True
        self.step, self.seconds = content["step"], content["seconds"]
        return True

    def _count_time(self) -> None:
        now = time.monotonic()
        self.seconds, self._since = self.seconds + now - self._since, now


def rate_share(step: int, total: int, *, warmup: int = 100, decay_from: float = 0.7) -> float:
    """Share of the peak learning rate: linear warm-up, constant, then a half cosine to 2 % over the last part."""
    if step < warmup:
        return (step + 1) / warmup
    start = decay_from * total
    if step < start:
        return 1.0
    progress = min((step - start) / max(total - start, 1), 1.0)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress))


def step_generator(seed: int, stage: int, step: int) -> torch.Generator:
    """Generator of one step; independent of earlier steps, so that a resumed run draws the same numbers."""
    return torch.Generator().manual_seed((seed * 7 + stage) * 1_000_003 + step)


class RunLog:
    """Appends one JSON object per line to log.jsonl."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, **fields: object) -> None:
        """Appends a line with the given fields and the local time."""
        line = json.dumps({**fields, "time": time.strftime("%Y-%m-%dT%H:%M:%S")})
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
