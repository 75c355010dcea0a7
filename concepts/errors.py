"""The one exception type for faults a user can mend."""


class BestiaryError(ValueError):
    """A fault in what the user gave: the message names the value, the cause and the remedy."""

    def __init__(self, message: object = "", *, option: str | None = None) -> None:
        """`option`: the setting or input the fault is about, such as method.min_snr, for a face that has its own word for it."""
        super().__init__(message)
        self.option = option
