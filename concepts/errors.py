"""The exception type for errors that a user can fix."""


class BestiaryError(ValueError):
    """An error in the user's input: the message gives the value, the cause and the remedy."""

    def __init__(self, message: object = "", *, option: str | None = None) -> None:
        """`option`: the setting that the error is about, such as method.min_snr, so that commands and nodes can name their own."""
        super().__init__(message)
        self.option = option
