"""The one error for input that a person can mend."""


class BadInput(ValueError):
    """Says in one line what is wrong, where, and how to mend it; the command line exits with 2."""
