"""Everything of a training that changes from step to step, and how it is saved and restored bit for bit."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ....concepts.errors import BestiaryError
from .run_folder import SavedState


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that share a learning rate."""

    name: str
    parameters: Mapping[str, nn.Parameter]
    learning_rate: float
    weight_decay: float = 0.0


def schedule_factor(step: int, steps: int, warmup: int, schedule: Literal["constant", "cosine"]) -> float:
    """Share of the full learning rate at `step` (0-based): linear warm-up, then constant or a cosine to 0.01."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if schedule == "constant":
        return 1.0
    way = (step - warmup) / max(1, steps - warmup)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * way))


class TrainingState:
    """Parameters, AdamW's moments, the running average and the count of steps done."""

    def __init__(
        self,
        groups: Sequence[ParameterGroup],
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        ema: float = 0.0,
        scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        self.step = 0
        self.parameters = {f"{g.name}.{name}": p for g in groups for name, p in g.parameters.items()}
        self._base_rates = [group.learning_rate for group in groups]
        self._ema = ema
        self._scaler = scaler
        # one group per learning rate
        self.optimizer = torch.optim.AdamW(
            [
                {"params": list(g.parameters.values()), "lr": g.learning_rate, "weight_decay": g.weight_decay}
                for g in groups
            ],
            betas=betas,
            fused=True,
        )
        # the running average starts where the parameters do
        self.average = {name: p.detach().clone() for name, p in self.parameters.items()} if ema else {}

    def set_learning_rates(self, factor: float) -> None:
        """Scale every group's learning rate by `factor` of its full value."""
        for group, rate in zip(self.optimizer.param_groups, self._base_rates, strict=True):
            group["lr"] = rate * factor

    @torch.no_grad()
    def advance(self) -> None:
        """One optimiser step on the gradients that have been gathered; then the average follows."""
        if self._scaler is None:
            self.optimizer.step()
        else:
            self._scaler.step(self.optimizer)
            self._scaler.update()
        self.forget_gradients()
        self.step += 1
        if self._ema:
            # young averages follow fast, so that a short run is not held back by its first weights
            factor = min(self._ema, (1 + self.step) / (10 + self.step))
            torch._foreach_lerp_(list(self.average.values()), list(self.parameters.values()), 1 - factor)

    def forget_gradients(self) -> None:
        """Drop the gradients that have been gathered since the last step."""
        self.optimizer.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors of the state by name, in the shape of their parameters; random number generators included."""
        found = {f"parameter.{name}": p for name, p in self.parameters.items()}
        found |= {f"average.{name}": tensor for name, tensor in self.average.items()}
        # moments appear with the first step of a parameter
        for name, parameter in self.parameters.items():
            moments = self.optimizer.state.get(parameter, {})
            found |= {f"adam.{name}.{key}": value for key, value in moments.items()}
        found["random.torch"] = torch.get_rng_state()
        found["random.numpy"] = torch.from_numpy(np.random.get_state(legacy=False)["state"]["key"].astype(np.int64))
        if torch.cuda.is_available():
            found |= {f"random.cuda.{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
        return found

    def notes(self) -> dict[str, Any]:
        """The state's plain values."""
        scaler = self._scaler.state_dict() if self._scaler else {}
        return {"scaler": scaler, "numpy_position": int(np.random.get_state(legacy=False)["state"]["pos"])}

    @torch.no_grad()
    def restore(self, saved: SavedState) -> None:
        """Take over a saved state; every tensor must have the shape it is to fill.

        Raises:
            BestiaryError: it belongs to other parameters (another base model, method or rank).
        """
        self._check_fit(saved)
        for name, parameter in self.parameters.items():
            parameter.copy_(saved.tensors[f"parameter.{name}"])
            # AdamW keeps its count of steps as a tensor beside the two moments
            prefix = f"adam.{name}."
            moments = {k.removeprefix(prefix): v for k, v in saved.tensors.items() if k.startswith(prefix)}
            self.optimizer.state[parameter] = {key: value.to(parameter.device) for key, value in moments.items()}
        for name, tensor in self.average.items():
            tensor.copy_(saved.tensors[f"average.{name}"])
        self.step = saved.step
        self._restore_random(saved)
        if self._scaler and saved.notes["scaler"]:
            self._scaler.load_state_dict(saved.notes["scaler"])

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """While it lasts the parameters are their running averages; without an average nothing changes."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        """Swap parameters and their averages, of one shape each, in place."""
        for name, tensor in self.average.items():
            own = self.parameters[name].detach().clone()
            self.parameters[name].copy_(tensor)
            tensor.copy_(own)

    def _restore_random(self, saved: SavedState) -> None:
        """Random number generators as saved; numpy's state is its keys `(624,)` and a position among them."""
        torch.set_rng_state(saved.tensors["random.torch"])
        keys = saved.tensors["random.numpy"].numpy().astype(np.uint32)
        np.random.set_state(("MT19937", keys, saved.notes["numpy_position"], 0, 0.0))
        # another number of GPUs than before: their generators start anew, batches do not depend on them
        cuda = [saved.tensors[name] for name in sorted(saved.tensors) if name.startswith("random.cuda.")]
        if cuda and torch.cuda.is_available() and len(cuda) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(cuda)

    def _check_fit(self, saved: SavedState) -> None:
        wanted = {f"parameter.{name}": tuple(p.shape) for name, p in self.parameters.items()}
        wanted |= {f"average.{name}": tuple(p.shape) for name, p in self.average.items()}
        # the first that does not fit tells that all of it belongs to other settings
        for name, shape in wanted.items():
            found = saved.tensors.get(name)
            if found is None or tuple(found.shape) != shape:
                seen = "is missing" if found is None else f"has shape {tuple(found.shape)}"
                raise BestiaryError(
                    f"the saved state of step {saved.step} does not fit: {name} {seen}, {shape} is needed; "
                    "resume with the settings and the base model of the first start"
                )
