"""The one exception type for faults a user can mend."""


class BestiaryError(ValueError):
    """A fault in what the user gave: the message names the value, the cause and the remedy."""
