"""The forms of a field: each way its values may be stored, as a layout and a version.

A rotation that changes the layout has two of them at once: values of the old layout, under whatever version,
are on their way to one version of the new layout. What names its version in a marker can be told, and
counted by SQL, by what it begins with; what does not can only be told by opening it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

from rewrap.crypto.encodings import RAW, TEXT_ENCODINGS
from rewrap.crypto.layout import Layout, LayoutError, Value

_TELLING_BYTES = 5
"""Bytes of a marker that one value in 2^40 begins with by chance. Tink's marker has as many."""

_FILLERS = ("A", "0", "=")


@dataclass(frozen=True)
class Named:
    """A form with a marker: what its values begin with. `new` if its layout is the one that values get."""

    layout: Layout
    version: str
    prefix: Value
    new: bool


@dataclass(frozen=True)
class Forms:
    """One field's layouts before and after a rotation, and the job's versions, the new one first."""

    old: Layout
    new: Layout
    versions: tuple[str, ...]

    @property
    def changes(self) -> bool:
        """Whether the layout changes."""
        return self.old != self.new

    @property
    def probed(self) -> bool:
        """Whether some values name no version, so that only opening them tells which one they are under."""
        return not (self.old.versioned and self.new.versioned)

    @property
    def layouts(self) -> tuple[Layout, ...]:
        """The new layout, and the old one if it is another."""
        return (self.new, self.old) if self.changes else (self.new,)

    @cached_property
    def named(self) -> tuple[Named, ...]:
        """The forms that a marker names, the target's first."""
        return tuple(
            Named(layout, version, layout.prefix_of(version), layout is self.new)
            for layout in self.layouts
            if layout.versioned
            for version in self.versions
            if fits(layout, version)
        )

    def named_by(self, head: Value) -> tuple[str, bool] | None:
        """The version that a value's marker names, and whether in the new layout; None without a marker."""
        for form in self.named:
            if begins_with(head, form.prefix):
                return form.version, form.new
        for layout in self.layouts:
            version = layout.version_of(head)
            if version is not None:
                return version, layout is self.new
        return None


def fits(layout: Layout, version: str) -> bool:
    """Whether the layout's marker can name a version, if it names one at all."""
    try:
        layout.prefix_of(version)
    except LayoutError:
        return False
    return True


def refused_change(old: Layout, new: Layout, versions: Sequence[str]) -> tuple[str, str] | None:
    """Why a field's layout cannot change from one to the other, and what to do; None when it can.

    A value of one layout must not be taken for one of the other: it would be counted as done, or fail to
    open.
    """
    if old == new:
        return None
    if (old.encoding == RAW) != (new.encoding == RAW):
        return (
            f'layout "{old.name}" stores {_kind(old)}, and layout "{new.name}" {_kind(new)}',
            "a change of layout does not change a column's type; choose an encoding for the same type",
        )
    if old.frame_bytes and not new.frame_bytes:
        return (
            f'values in layout "{old.name}" say beside the ciphertext how their plaintext was packed, and '
            f'layout "{new.name}" has no place for it',
            "keep to a layout of the same framing; the application has to write such values anew itself",
        )
    reason = _mistakable(old, new, versions)
    if reason is None:
        return None
    return (
        reason,
        'give the new layout a marker that no old value begins with, such as "gcm:{version}:"; a version '
        "that is stored apart does not tell the layout",
    )


def _kind(layout: Layout) -> str:
    return "bytes" if layout.encoding == RAW else "text"


def _mistakable(old: Layout, new: Layout, versions: Sequence[str]) -> str | None:
    if old.versioned and new.versioned:
        return _same_beginning(old, new, versions)
    for named, unnamed in ((old, new), (new, old)):
        if not named.versioned:
            continue
        for version in versions:
            if fits(named, version) and _may_begin(unnamed, named.prefix_of(version)):
                return (
                    f'values in layout "{unnamed.name}", which name no version, may begin like those under '
                    f'"{version}" in layout "{named.name}"'
                )
    return None


def _same_beginning(old: Layout, new: Layout, versions: Sequence[str]) -> str | None:
    for one in (version for version in versions if fits(old, version)):
        for other in (version for version in versions if fits(new, version)):
            before, after = old.prefix_of(one), new.prefix_of(other)
            if begins_with(before, after) or begins_with(after, before):
                return (
                    f'values under "{one}" in layout "{old.name}" begin like those under "{other}" in '
                    f'layout "{new.name}"'
                )
    return None


def _may_begin(unnamed: Layout, marker: Value) -> bool:
    """Whether values of a layout that names no version can begin like a marker, other than by rare chance."""
    constant = unnamed.prefix_of("")
    if begins_with(constant, marker):
        return True
    if not begins_with(marker, constant):
        return False
    rest = marker[len(constant) :]
    if isinstance(rest, bytes):
        return len(rest) < _TELLING_BYTES
    # an encoding is asked itself what it takes: what it refuses, however it goes on, is no payload
    tried = (rest + filler * count for filler in _FILLERS for count in range(9))
    return any(_decodes(unnamed.encoding, text) for text in tried)


def _decodes(encoding: str, text: str) -> bool:
    try:
        TEXT_ENCODINGS[encoding].decode([text])
    except (ValueError, KeyError):
        return False
    return True


def begins_with(value: Value, prefix: Value) -> bool:
    """Whether a value begins with a prefix of its own kind."""
    return type(value) is type(prefix) and value.startswith(cast("Any", prefix))
