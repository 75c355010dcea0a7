"""A training on its node: progress bar with time left, previews, and Cancel as a question that the loop asks.

ComfyUI's progress bar raises its interruption from inside; here it is remembered, so that the loop ends its step, saves,
and only then the graph stops. Where a server shows nodes, each receives how far its run is (`EVENT`), a few times a second at
most; curves and pictures are then read from the run folder (run_listing.py).
"""

from __future__ import annotations

import logging
import time

from PIL import Image

from ...trainer.learning.run.progress_report import duration
from ..host.running_graph import running_server

logger = logging.getLogger("bestiary")
SECONDS_BETWEEN_LINES = 10.0
SECONDS_BETWEEN_EVENTS = 0.5
PREVIEW_EDGE = 512
EVENT = "bestiary.training"
"""What the browser is sent: node, run (null while not known), step, total, and seconds passed and left."""


class TrainingProgress:
    """The face of one training."""

    def __init__(self, node_id: str | None, first_step: int = 0, run: str | None = None, what: str = "parts") -> None:
        """`first_step`: steps that an earlier run did, which took no time now; `run`: name of the run folder; `what` is learned."""
        self._node_id, self._first, self._what = node_id, first_step, what
        self.run = run
        self._bar = None
        self._started = self._last_line = time.monotonic()
        self._last_event = -SECONDS_BETWEEN_EVENTS
        self._preview: Image.Image | None = None
        self.cancelled = False

    def step(self, done: int, total: int) -> None:
        """`done` of `total` steps are behind us."""
        now = time.monotonic()
        text = self._text(done, total, now)
        self._show(done, total, self._preview)
        self._preview = None
        self.tell(text)
        if done == total or now - self._last_event >= SECONDS_BETWEEN_EVENTS:
            self._send(done, total, now)
        if done == total or now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = now
            logger.info("training %s: %s", self._what, text)

    def preview(self, picture: Image.Image, done: int, total: int) -> None:
        """Show a picture on the node."""
        self._show(done, total, picture)
        self._send(done, total, time.monotonic())

    @property
    def interruption(self) -> type[BaseException]:
        """What ComfyUI raises when the user pressed Cancel; an Exception in older versions, not in newer ones."""
        import comfy.model_management

        return comfy.model_management.InterruptProcessingException

    def should_stop(self) -> bool:
        """Whether the user pressed Cancel; from then on always."""
        import comfy.model_management

        # asked without taking the mark away, which belongs to ComfyUI
        self.cancelled = self.cancelled or comfy.model_management.processing_interrupted()
        return self.cancelled

    def stop(self) -> None:
        """End the graph as ComfyUI's Cancel does.

        Raises:
            InterruptProcessingException: always.
        """
        import comfy.model_management

        comfy.model_management.interrupt_current_processing(False)
        raise comfy.model_management.InterruptProcessingException

    def _show(self, done: int, total: int, picture: Image.Image | None) -> None:
        import comfy.model_management
        import comfy.utils

        if self._bar is None:
            self._bar = comfy.utils.ProgressBar(total, node_id=self._node_id)
        shown = None if picture is None else ("JPEG", picture, PREVIEW_EDGE)
        try:
            self._bar.update_absolute(done, total, shown)
        except comfy.model_management.InterruptProcessingException:
            self.cancelled = True

    def _text(self, done: int, total: int, now: float) -> str:
        passed, left = self._seconds(done, total, now)
        return f"step {done} of {total}, {duration(passed)} passed, {duration(left)} left"

    def _seconds(self, done: int, total: int, now: float) -> tuple[float, float]:
        """Seconds that passed and that are left."""
        passed = now - self._started
        return passed, passed / max(1, done - self._first) * (total - done)

    def tell(self, text: str) -> None:
        """Words below the node, where a server shows them."""
        server = running_server()
        if server is not None and self._node_id is not None and hasattr(server, "send_progress_text"):
            server.send_progress_text(text, self._node_id)

    def _send(self, done: int, total: int, now: float) -> None:
        server = running_server()
        self._last_event = now
        if server is None or self._node_id is None:
            return
        passed, left = self._seconds(done, total, now)
        facts = {"node": self._node_id, "run": self.run, "step": done, "total": total}
        facts |= {"passed": round(passed, 1), "left": round(left, 1)}
        server.send_sync(EVENT, facts, getattr(server, "client_id", None))
