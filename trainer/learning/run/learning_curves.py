"""Curves of a training: averaged on the device between two log lines, then written to log.jsonl and tensorboard."""

import importlib.util
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from .run_folder import RunFolder


class CurveMeter:
    """Averages values of any shape over the batches since the last reading, without waiting for the device."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self, curves: Mapping[str, Tensor]) -> None:
        """Add the values of one batch: scalars, vectors (M,), or (B, M) averaged over B; NaN counts as not seen."""
        for name, value in curves.items():
            value = value.detach().float()
            # NaN entries count neither in the sum nor in the number
            seen = torch.isfinite(value)
            total, count = torch.where(seen, value, 0.0), seen.float()
            if value.ndim == 2:
                total, count = total.sum(0), count.sum(0)  # (M,)
            self._sums[name] = self._sums[name] + total if name in self._sums else total
            self._counts[name] = self._counts[name] + count if name in self._counts else count

    def read(self, sum_over_processes: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> dict[str, Any]:
        """Means by name in the shape that was added, `None` for entries without values; then reset."""
        record = {}
        # sum over processes before dividing: each may have seen different parts
        for name in self._sums:
            mean = sum_over_processes(self._sums[name]) / sum_over_processes(self._counts[name])
            record[name] = _without_nan(mean.cpu().tolist())
        self._sums, self._counts = {}, {}
        return record


class CurveWriter:
    """Writes readings to the run's log and, if installed, to tensorboard."""

    def __init__(self, run: RunFolder | None, *, tensorboard: bool) -> None:
        self._run = run
        self._board = None
        if run is not None and tensorboard and importlib.util.find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(run.path / "tensorboard"))

    def write(self, step: int, record: Mapping[str, Any]) -> None:
        """One line of the log; lists become one tensorboard curve per entry."""
        if self._run is None:
            return
        self._run.log({"step": step, **record})
        # tensorboard is optional: the log has all values
        if self._board is None:
            return
        for name, value in record.items():
            for label, number in _flat(name, value):
                self._board.add_scalar(label, number, step)

    def close(self) -> None:
        """Finish the tensorboard file."""
        if self._board is not None:
            self._board.close()


def _without_nan(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_nan(entry) for entry in value]
    return round(value, 7) if math.isfinite(value) else None


def _flat(name: str, value: Any) -> list[tuple[str, float]]:
    if isinstance(value, list):
        return [pair for i, entry in enumerate(value) for pair in _flat(f"{name}/{i}", entry)]
    return [] if value is None else [(name, float(value))]
