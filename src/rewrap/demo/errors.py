"""The one error of the demonstration."""

from rewrap.errors import RewrapError


class DemoError(RewrapError):
    """The demonstration cannot go on: one line, and a hint."""
