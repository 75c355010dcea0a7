"""Progress of long work on its node, and the point where Cancel takes effect."""

from __future__ import annotations


class GraphProgress:
    """The progress bar of one node; every step checks for a cancellation first."""

    def __init__(self, node_id: str | None) -> None:
        """`node_id`: from the hidden inputs of the node; None outside a graph."""
        self._node_id = node_id
        self._bar = None
        self._total = self._done = 0

    def begin(self, total: int) -> None:
        """Starts at 0 of `total` steps."""
        import comfy.utils

        self._total, self._done = total, 0
        self._bar = comfy.utils.ProgressBar(total, node_id=self._node_id)

    def add(self, steps: int = 1) -> None:
        """Advance by `steps`, before or after the work.

        Raises:
            InterruptProcessingException: the user cancelled.
        """
        import comfy.model_management

        comfy.model_management.throw_exception_if_processing_interrupted()
        self._done = min(self._total, self._done + steps)
        if self._bar is not None:
            self._bar.update_absolute(self._done, self._total)

    def finish(self) -> None:
        """Set the progress to the end, including steps that were not needed."""
        self.add(self._total - self._done)
