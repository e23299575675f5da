"""What markets raise for a person to read: input that can be mended, and runs that can go on."""

from mechanisms.errors import BadInput

__all__ = ["BadInput", "Stopped"]


class Stopped(RuntimeError):
    """A run has stopped before its end; says in one line why, and how to go on. Exit code 1."""
