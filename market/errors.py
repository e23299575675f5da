"""The error for input that a person can mend, under the name by which markets raise it."""

from mechanisms.errors import BadInput

__all__ = ["BadInput"]
