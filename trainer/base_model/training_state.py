"""State of one training stage: weights, optimizer, moving average and step, kept in one file that is renamed into place."""

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
    """How one stage is run: everything but the data and the modules."""

    seed: int
    """Fixes batches and noise of every step."""
    steps: int
    """Optimizer steps in all, those of earlier starts included."""
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
        """Context of the forward pass; without effect in float32."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def speeded(self, function: Callable) -> Callable:
        """`function`, compiled if the plan says so."""
        return torch.compile(function) if self.compiled else function

    def expired(self) -> bool:
        """Whether the time that was given is used up."""
        return self.deadline is not None and time.monotonic() > self.deadline


class StageState:
    """Modules under training with their AdamW, their moving average (EMA) and the number of finished steps."""

    def __init__(self, modules: dict[str, nn.Module], path: Path, *, learning_rate: float, ema_decay: float) -> None:
        self.modules, self.path = modules, path
        self.learning_rate, self.ema_decay = learning_rate, ema_decay
        self.parameters = [p for module in modules.values() for p in module.parameters()]
        # the moving average starts where the weights do
        self.averages = [p.detach().clone() for p in self.parameters]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=learning_rate, betas=(0.9, 0.99), weight_decay=1e-3, fused=True
        )
        self.step = 0
        self.seconds = 0.0
        self._since = time.monotonic()

    def descend(self, loss: torch.Tensor, share: float) -> float:
        """One optimizer step at `share` of the learning rate; returns the gradient norm before clipping at 1."""
        # clipped at norm 1, with the learning rate of this step
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * share
        self.optimizer.step()
        self.step += 1
        # the average follows closely at first, when weights still move far
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
        """Writes everything a later process needs to go on at the next step."""
        self._count_time()
        # everything that the next step depends on
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
        """Takes over a saved state; returns False where none exists."""
        if not self.path.exists():
            return False
        content = torch.load(self.path, map_location="cpu", weights_only=True)
        for name, module in self.modules.items():
            module.load_state_dict(content["modules"][name])
        with torch.no_grad():
            for average, kept in zip(self.averages, content["averages"], strict=True):
                average.copy_(kept)
        # a saved state brings its own flags along; the fused step stays as chosen here
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
    """Random numbers of one step: the same after a resume as without one."""
    return torch.Generator().manual_seed((seed * 7 + stage) * 1_000_003 + step)


class RunLog:
    """Appends one JSON object per line to log.jsonl."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, **fields: object) -> None:
        """Adds a line with the given fields and the time of day."""
        line = json.dumps({**fields, "time": time.strftime("%Y-%m-%dT%H:%M:%S")})
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
