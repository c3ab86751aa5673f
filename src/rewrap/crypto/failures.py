"""What can be wrong with a descriptor, and with a stored value."""

from __future__ import annotations


class LayoutError(ValueError):
    """A descriptor that cannot be compiled; the text says why and what to write instead."""


class Malformed(Exception):
    """The value has the marker, but its payload is not in the layout's encoding, or is too short."""


class Unopenable(Exception):
    """The value parses, and the AEAD refuses it: bad tag, wrong key or wrong associated data."""


class Unsealable(ValueError):
    """A plaintext that a cipher does not take, whatever its key; the text says what it takes."""
