"""The one training loop: over any objective that maps a batch to a loss, on one device or many.

Knows neither diffusers nor accelerate. Objectives are modules that own every learned parameter; batches are pure
functions of (step, micro-step), so that a resumed run draws what an uninterrupted one would have drawn.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import Field, dataclass
from typing import Any, ClassVar, Literal, NoReturn, Protocol

import torch
from torch import Tensor, nn

from ....concepts.denoiser.denoiser import ProgressCallback
from ....concepts.errors import BestiaryError
from .learning_curves import CurveMeter, CurveWriter
from .run_folder import RunFolder
from .stop_signals import stop_signals
from .training_state import ParameterGroup, TrainingState, schedule_factor

logger = logging.getLogger("bestiary")


@dataclass(frozen=True)
class LossReport:
    """What an objective says of one batch."""

    total: Tensor
    """Scalar with a gradient."""
    curves: dict[str, Tensor]
    """Detached values to log: scalars, `(M,)`, or `(B, M)` to be averaged over B; NaN marks what is not shown."""


class Batch(Protocol):
    """What an objective is called with: a dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def names(self) -> Sequence[str]:
        """File names of the pictures, for error messages."""
        ...


class Batches(Protocol):
    """Draws training batches."""

    def draw(self, step: int, micro_step: int) -> Batch:
        """The batch of an optimiser step and micro-step: the same whenever it is asked for."""
        ...


class Parallel(Protocol):
    """Several processes that train one model."""

    @property
    def rank(self) -> int:
        """Number of this process, from 0."""
        ...

    @property
    def size(self) -> int:
        """Number of processes."""
        ...

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module, with gradients averaged over all processes in its backward pass."""
        ...

    def gradients(self, module: nn.Module, synchronise: bool) -> AbstractContextManager[Any]:
        """Context of a forward and backward pass; without `synchronise` gradients stay local."""
        ...

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum of a tensor over all processes, in its shape."""
        ...

    def wait(self) -> None:
        """Return when all processes have come here."""
        ...


@dataclass(frozen=True)
class SingleProcess:
    """One process: nothing to synchronise."""

    rank: int = 0
    size: int = 1

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module itself."""
        return module

    def gradients(self, module: nn.Module, synchronise: bool) -> AbstractContextManager[Any]:
        """No context is needed."""
        return nullcontext()

    def sum(self, tensor: Tensor) -> Tensor:
        """The tensor itself, in its shape."""
        return tensor

    def wait(self) -> None:
        """Return at once."""


@dataclass(frozen=True)
class LoopSettings:
    """How long and how to optimise, and how often to write."""

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
    """True for fp16 on CUDA: the loss is scaled up so that small gradients survive."""


class TrainingStopped(KeyboardInterrupt):
    """The user stopped the run; its state is saved."""

    def __init__(self, message: str, state: TrainingState | None = None) -> None:
        super().__init__(message)
        self.state = state
        """What was learned until then."""


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
        interruptions: what a host raises out of the middle of a step when its user stops; the step is then undone, and
            the run stops as for `should_stop`.

    Returns:
        The state after the last step.

    Raises:
        BestiaryError: the loss is not finite (step, batch and file names are told), a state cannot be written, no saved
            state is whole, or another training writes into `run` now.
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
        # whoever stops before the first step waits for none
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
                # half a step's gradients reach no weight: a resumed run does the step again
                state.forget_gradients()
                _stop(state, run, loop.keep_states, parallel)
            # optimiser step: the one place where the host waits for the device
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
    # what the log says of later steps belongs to a run that was cut off, perhaps before its first state
    if parallel.rank == 0:
        run.forget_log_after(0 if saved is None else saved.step)
    if saved is None:
        return
    state.restore(saved)
    if parallel.rank == 0:
        logger.info("going on from step %d of %s", saved.step, run.path)


def _backward(loss: Tensor, scaler: torch.amp.GradScaler | None) -> None:
    """Add the gradients of a scalar loss, scaled up where half precision needs it."""
    (scaler.scale(loss) if scaler else loss).backward()


def _clip_gradients(state: TrainingState, limit: float, scaler: torch.amp.GradScaler | None) -> Tensor:
    """Scale all gradients down to a joint norm of at most `limit`; returns the norm before."""
    if scaler:
        scaler.unscale_(state.optimizer)
    return nn.utils.clip_grad_norm_(list(state.parameters.values()), limit)


def _check_finite(
    loss: Tensor, norm: Tensor, step: int, names: Sequence[Sequence[str]], run: RunFolder, scaled: bool
) -> None:
    """Stop before bad gradients reach the weights; a scaled loss may overflow now and then, its step is skipped."""
    # one question to the device for loss and gradients together
    suspect = loss if scaled else loss + norm
    if torch.isfinite(suspect):
        return
    # every micro-step of the optimiser step may be the culprit
    files = ", ".join(name for batch in names for name in batch)
    saved = run.newest_state()
    kept = f"the state of step {saved.step} is kept in {run.states}" if saved else "no state had been saved yet"
    raise BestiaryError(
        f"the loss of step {step + 1} is not finite (loss {float(loss):g}, gradient norm {float(norm):g}); "
        f"its batch {step} held {files}; {kept}. Look at these pictures, lower the learning rates, "
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
    """Whether to stop now; several processes agree on it now and then, so that none waits for another every step."""
    if parallel.size == 1:
        return stopped()
    return agree and bool(parallel.sum(torch.tensor(float(stopped()))))


def _stop(state: TrainingState, run: RunFolder, keep: int, parallel: Parallel) -> NoReturn:
    """Save, then end the run before its last step."""
    _save(state, run, keep, parallel)
    logger.info("stopped at step %d; `bestiary resume %s` goes on from there", state.step, run.path)
    raise TrainingStopped(f"stopped at step {state.step}", state)


def _save(state: TrainingState, run: RunFolder, keep: int, parallel: Parallel) -> None:
    if parallel.rank == 0:
        run.save_state(state.step, state.tensors(), state.notes(), keep)
    parallel.wait()
