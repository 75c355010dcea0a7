"""The training loop for any objective that maps a batch to a loss, on one or several devices.

Independent of diffusers and accelerate. Objectives are modules that own all learned parameters; batches are pure
functions of (step, micro-step), so that a resumed run draws the same batches as an uninterrupted one.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import Field, dataclass
from typing import Any, ClassVar, Literal, NoReturn, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ....concepts.denoiser.denoiser import ProgressCallback
from ....concepts.errors import BestiaryError
from .learning_curves import CurveMeter, CurveWriter
from .processes import Parallel, SingleProcess
from .run_folder import RunFolder, SavedState
from .stop_signals import stop_signals

logger = logging.getLogger("bestiary")


@dataclass(frozen=True)
class LossReport:
    """Result of an objective for one batch."""

    total: Tensor
    """Scalar with a gradient."""
    curves: dict[str, Tensor]
    """Detached values to log: scalars, `(M,)`, or `(B, M)` to be averaged over B; NaN marks missing values."""


class Batch(Protocol):
    """Input of an objective: a dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def names(self) -> Sequence[str]:
        """File names of the pictures, for error messages."""
        ...


class Batches(Protocol):
    """Draws training batches."""

    def draw(self, step: int, micro_step: int) -> Batch:
        """The batch of an optimiser step and micro-step; deterministic in its arguments."""
        ...


@dataclass(frozen=True)
class LoopSettings:
    """Settings of the loop: optimisation, and intervals of log, states and previews."""

    steps: int
    accumulation: int = 1
    schedule: Literal["constant", "cosine"] = "constant"
    warmup: int = 0
    clip: float = 1.0
    betas: tuple[float, float] = (0.9, 0.999)
    ema: float = 0.0
    log_every: int = 10
    save_every: int = 200
    keep_states: int = 2
    preview_every: int = 0
    tensorboard: bool = False
    half_precision: bool = False
    """True for fp16 on CUDA: the loss is scaled up so that small gradients do not underflow."""


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that share a learning rate."""

    name: str
    parameters: Mapping[str, nn.Parameter]
    learning_rate: float
    weight_decay: float = 0.0


def schedule_factor(step: int, steps: int, warmup: int, schedule: Literal["constant", "cosine"]) -> float:
    """Factor on the learning rate at `step` (0-based): linear warm-up, then constant or a cosine to 0.01."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if schedule == "constant":
        return 1.0
    way = (step - warmup) / max(1, steps - warmup)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * way))


class TrainingState:
    """Parameters, AdamW's moments, the running average and the number of finished steps."""

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
        self.optimizer = torch.optim.AdamW(
            [
                {"params": list(g.parameters.values()), "lr": g.learning_rate, "weight_decay": g.weight_decay}
                for g in groups
            ],
            betas=betas,
            fused=True,
        )
        # the running average starts at the initial parameters
        self.average = {name: p.detach().clone() for name, p in self.parameters.items()} if ema else {}

    def set_learning_rates(self, factor: float) -> None:
        """Set every group's learning rate to `factor` times its full value."""
        for group, rate in zip(self.optimizer.param_groups, self._base_rates, strict=True):
            group["lr"] = rate * factor

    @torch.no_grad()
    def advance(self) -> None:
        """One optimiser step on the accumulated gradients, then an update of the running average."""
        if self._scaler is None:
            self.optimizer.step()
        else:
            self._scaler.step(self.optimizer)
            self._scaler.update()
        self.forget_gradients()
        self.step += 1
        if self._ema:
            # a smaller factor in the first steps, so that the average of a short run forgets its initial weights
            factor = min(self._ema, (1 + self.step) / (10 + self.step))
            torch._foreach_lerp_(list(self.average.values()), list(self.parameters.values()), 1 - factor)

    def forget_gradients(self) -> None:
        """Drop the gradients accumulated since the last step."""
        self.optimizer.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors of the state by name, in the shape of their parameters, and the random number generators."""
        found = {f"parameter.{name}": p for name, p in self.parameters.items()}
        found |= {f"average.{name}": tensor for name, tensor in self.average.items()}
        # AdamW creates the moments of a parameter in its first step: before that there are none
        for name, parameter in self.parameters.items():
            moments = self.optimizer.state.get(parameter, {})
            found |= {f"adam.{name}.{key}": value for key, value in moments.items()}
        found["random.torch"] = torch.get_rng_state()
        found["random.numpy"] = torch.from_numpy(np.random.get_state(legacy=False)["state"]["key"].astype(np.int64))
        if torch.cuda.is_available():
            found |= {f"random.cuda.{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
        return found

    def notes(self) -> dict[str, Any]:
        """The values of the state that are not tensors."""
        scaler = self._scaler.state_dict() if self._scaler else {}
        return {"scaler": scaler, "numpy_position": int(np.random.get_state(legacy=False)["state"]["pos"])}

    @torch.no_grad()
    def restore(self, saved: SavedState) -> None:
        """Load a saved state, whose tensors must have the shapes of this one.

        Raises:
            BestiaryError: the state is from other parameters (another base model, method or rank).
        """
        self._check_fit(saved)
        for name, parameter in self.parameters.items():
            parameter.copy_(saved.tensors[f"parameter.{name}"])
            # AdamW stores its step count as a tensor beside the two moments
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
        """Context in which the parameters are replaced by their running averages, if there are any."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        """Swap parameters and their averages (of equal shapes) in place."""
        for name, tensor in self.average.items():
            own = self.parameters[name].detach().clone()
            self.parameters[name].copy_(tensor)
            tensor.copy_(own)

    def _restore_random(self, saved: SavedState) -> None:
        """Restore the random number generators; numpy's state is its keys `(624,)` and a position in them."""
        torch.set_rng_state(saved.tensors["random.torch"])
        keys = saved.tensors["random.numpy"].numpy().astype(np.uint32)
        np.random.set_state(("MT19937", keys, saved.notes["numpy_position"], 0, 0.0))
        # with another number of GPUs their generators are left as they are: batches do not depend on them
        cuda = [saved.tensors[name] for name in sorted(saved.tensors) if name.startswith("random.cuda.")]
        if cuda and torch.cuda.is_available() and len(cuda) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(cuda)

    def _check_fit(self, saved: SavedState) -> None:
        wanted = {f"parameter.{name}": tuple(p.shape) for name, p in self.parameters.items()}
        wanted |= {f"average.{name}": tuple(p.shape) for name, p in self.average.items()}
        # report only the first mismatch: it implies that the whole state is from other settings
        for name, shape in wanted.items():
            found = saved.tensors.get(name)
            if found is None or tuple(found.shape) != shape:
                seen = "is missing" if found is None else f"has shape {tuple(found.shape)}"
                raise BestiaryError(
                    f"the saved state of step {saved.step} does not match: {name} {seen}, expected {shape}; "
                    "resume with the settings and the base model of the first start"
                )


class TrainingStopped(KeyboardInterrupt):
    """The user stopped the run; its state is saved."""

    def __init__(self, message: str, state: TrainingState | None = None) -> None:
        super().__init__(message)
        self.state = state
        """The state at the stop."""


def fit(
    objective: nn.Module,
    groups: Sequence[ParameterGroup],
    batches: Batches,
    loop: LoopSettings,
    run: RunFolder,
    *,
    parallel: Parallel | None = None,
    on_progress: ProgressCallback | None = None,
    on_preview: Callable[[TrainingState], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    interruptions: tuple[type[BaseException], ...] = (),
) -> TrainingState:
    """Train `objective` from the newest state in `run`, or from the start.

    Args:
        interruptions: exceptions that a host raises in the middle of a step when its user stops; the step is discarded,
            and the run stops as for `should_stop`.

    Returns:
        The state after the last step.

    Raises:
        BestiaryError: the loss is not finite (the message gives step, batch and file names), a state cannot be written,
            all saved states are damaged, or another training is writing into `run`.
        TrainingStopped: Ctrl-C, `should_stop` or an interruption; the state is saved first.
    """
    parallel = parallel or SingleProcess()
    # set up: state, module, meters
    scaler = torch.amp.GradScaler("cuda") if loop.half_precision else None
    state = TrainingState(groups, betas=loop.betas, ema=loop.ema, scaler=scaler)
    alone = run.locked() if parallel.rank == 0 else nullcontext()
    with alone, stop_signals(should_stop) as stopped, _curve_writer(run, loop, parallel) as writer:
        _resume(state, run, parallel)
        module = parallel.wrap(objective)
        meter = CurveMeter()
        first_step, started = state.step, time.monotonic()
        # a stop requested during the setup must not wait for the first step
        if first_step < loop.steps and _stop_together(stopped, parallel, agree=False):
            _stop(state, run, loop.keep_states, parallel)
        for step in range(first_step, loop.steps):
            state.set_learning_rates(schedule_factor(step, loop.steps, loop.warmup, loop.schedule))
            # forward and backward
            names, losses = [], []
            try:
                for micro_step in range(loop.accumulation):
                    batch = batches.draw(step, micro_step)
                    with parallel.gradients(module, synchronise=micro_step == loop.accumulation - 1):
                        report = module(batch)
                        _backward(report.total / loop.accumulation, scaler)
                    meter.add(report.curves)
                    names.append(batch.names)
                    losses.append(report.total.detach())
            except interruptions:
                # gradients of an incomplete step are dropped: a resumed run repeats the whole step
                state.forget_gradients()
                _stop(state, run, loop.keep_states, parallel)
            # optimiser step: the only point where the host waits for the device
            norm = _clip_gradients(state, loop.clip, scaler)
            _check_finite(torch.stack(losses).mean(), norm, step, names, run, scaler is not None)
            state.advance()
            # log
            if state.step % loop.log_every == 0 or state.step == loop.steps:
                record = meter.read(parallel.sum)
                rate = (state.step - first_step) / (time.monotonic() - started)
                writer.write(state.step, record | {"gradient_norm": float(norm), "steps_per_second": round(rate, 3)})
            if on_progress:
                on_progress(state.step, loop.steps)
            # preview
            if on_preview and loop.preview_every and state.step % loop.preview_every == 0:
                on_preview(state)
            # save
            stop_now = _stop_together(stopped, parallel, state.step % loop.log_every == 0)
            if stop_now and state.step < loop.steps:
                _stop(state, run, loop.keep_states, parallel)
            if state.step % loop.save_every == 0 or state.step == loop.steps:
                _save(state, run, loop.keep_states, parallel)
    return state


def _resume(state: TrainingState, run: RunFolder, parallel: Parallel) -> None:
    saved = run.state_to_resume()
    # log lines after the saved state are from steps that are repeated now, possibly all of them
    if parallel.rank == 0:
        run.forget_log_after(0 if saved is None else saved.step)
    if saved is None:
        return
    state.restore(saved)
    if parallel.rank == 0:
        logger.info("continuing from step %d of %s", saved.step, run.path)


def _backward(loss: Tensor, scaler: torch.amp.GradScaler | None) -> None:
    """Accumulate the gradients of a scalar loss, scaled up for half precision."""
    (scaler.scale(loss) if scaler else loss).backward()


def _clip_gradients(state: TrainingState, limit: float, scaler: torch.amp.GradScaler | None) -> Tensor:
    """Clip the gradients to a joint norm of at most `limit`; returns the norm before clipping."""
    if scaler:
        scaler.unscale_(state.optimizer)
    return nn.utils.clip_grad_norm_(list(state.parameters.values()), limit)


def _check_finite(
    loss: Tensor, norm: Tensor, step: int, names: Sequence[Sequence[str]], run: RunFolder, scaled: bool
) -> None:
    """Raise an error before bad gradients reach the weights; overflows of a scaled loss only skip their step."""
    # one synchronisation with the device for loss and gradients together
    suspect = loss if scaled else loss + norm
    if torch.isfinite(suspect):
        return
    # any micro-step of this optimiser step may be the cause
    files = ", ".join(name for batch in names for name in batch)
    saved = run.newest_state()
    kept = f"the state of step {saved.step} is kept in {run.states}" if saved else "no state was saved yet"
    raise BestiaryError(
        f"the loss of step {step + 1} is not finite (loss {float(loss):g}, gradient norm {float(norm):g}); "
        f"its batch {step} contains {files}; {kept}. Check these pictures, lower the learning rates, "
        'or set run.dtype = "fp32"'
    )


@contextmanager
def _curve_writer(run: RunFolder, loop: LoopSettings, parallel: Parallel) -> Iterator[CurveWriter]:
    """Writes the log on the first process, nothing on the others."""
    writer = CurveWriter(run if parallel.rank == 0 else None, tensorboard=loop.tensorboard)
    try:
        yield writer
    finally:
        writer.close()


def _stop_together(stopped: Callable[[], bool], parallel: Parallel, agree: bool) -> bool:
    """True to stop now; several processes agree only at intervals, so that they do not synchronise at every step."""
    if parallel.size == 1:
        return stopped()
    return agree and bool(parallel.sum(torch.tensor(float(stopped()))))


def _stop(state: TrainingState, run: RunFolder, keep: int, parallel: Parallel) -> NoReturn:
    """Save the state, then end the run early."""
    _save(state, run, keep, parallel)
    logger.info("stopped at step %d; continue with `bestiary resume %s`", state.step, run.path)
    raise TrainingStopped(f"stopped at step {state.step}", state)


def _save(state: TrainingState, run: RunFolder, keep: int, parallel: Parallel) -> None:
    if parallel.rank == 0:
        run.save_state(state.step, state.tensors(), state.notes(), keep)
    parallel.wait()
