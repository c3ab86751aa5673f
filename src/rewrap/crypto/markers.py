"""Markers: what values of a version begin with, and how a version is read from a value.

{version}:          "v1:" …            a template: the version is read from the value
enc:                "enc:" …           a constant, or nothing: only opening a value tells its version
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from rewrap.crypto.failures import LayoutError
from rewrap.packed import PART

MARKER_BYTES_MAX = 128
"""Longest marker looked for, in characters. Markers in the field are under 60; this bounds SQL's look."""

GROUP = "{version}"

NEVER = "(.)^"
"""A regular expression with one group that matches nothing, in Python and in Postgres."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

Value = str | bytes
"""A stored value: text, or bytes where the layout's encoding is `raw`."""


class Marker(Protocol):
    """What values begin with.

    `regex` is anchored, and its one group is the version; for Python and Postgres alike. Bytes are shown to
    it as Postgres' `encode(…, 'escape')` shows them.
    """

    @property
    def versioned(self) -> bool: ...

    @property
    def regex(self) -> str: ...

    def prefix_of(self, version: str) -> Value:
        """What values of this version begin with; LayoutError when it could not be recognised again."""
        ...

    def version_of(self, value: Value) -> str | None: ...


@dataclass(frozen=True)
class ConstantMarker:
    """The same beginning for every version, or none."""

    prefix: Value

    versioned: bool = False
    regex: str = NEVER

    def prefix_of(self, version: str) -> Value:
        return self.prefix

    def version_of(self, value: Value) -> str | None:
        return None


@dataclass(frozen=True)
class TemplateMarker:
    """A template with one `{version}`, and a delimiter after it.

    `foreign` are beginnings of values that are sealed otherwise, as a regular expression in the place of what
    stands before the version: such a value is under a version that no job has, its whole marker.
    """

    layout: str
    template: str
    pattern: str
    binary: bool
    foreign: str = ""

    versioned: bool = True

    @property
    def regex(self) -> str:
        before, after = self.template.split(GROUP)
        if self.foreign:
            # its own beginning is none of the others, so that only one way to read a value is left
            begun = f"(?:{escape(before)}|(?!{escape(before)})(?={self.foreign}))"
            return f"^{begun}({self.pattern}|{self.foreign}{self.pattern}){escape(after)}"
        return f"^{escape(before)}({self.pattern}){escape(after)}"

    @cached_property
    def _compiled(self) -> re.Pattern[str]:
        return re.compile(self.regex, re.ASCII)

    def prefix_of(self, version: str) -> Value:
        marker = self.template.replace(GROUP, version)
        prefix = marker.encode() if self.binary else marker
        if self.version_of(prefix) != version:
            raise LayoutError(
                f'version "{version}" does not fit the pattern "{shown(self.pattern)}" '
                f'of layout "{self.layout}"'
            )
        return prefix

    def version_of(self, value: Value) -> str | None:
        head = value[:MARKER_BYTES_MAX]
        found = self._compiled.match(head.decode("latin-1") if isinstance(head, bytes) else head)
        return found.group(1) if found else None


@dataclass(frozen=True)
class ApartMarker(TemplateMarker):
    """A version that is stored apart, and joined in front of the payload.

    Whatever stands there names a version, though it be none that the job could write: only nothing at all is
    no version.
    """

    @property
    def regex(self) -> str:
        # the beginning that is searched may be shorter than what stands there
        return f"^([^{PART}]+)(?:{PART}|$)"

    @cached_property
    def _form(self) -> re.Pattern[str]:
        return re.compile(super().regex, re.ASCII)

    def version_of(self, value: Value) -> str | None:
        assert isinstance(value, str)
        formed = self._form.match(value[:MARKER_BYTES_MAX])
        return formed.group(1) if formed else super().version_of(value)


def text_marker(
    layout: str, marker: str, pattern: str, *, binary: bool, apart: bool, foreign: str = ""
) -> Marker:
    """The marker that a template declares; `apart` when the version is stored apart, and joined to it.

    Raises LayoutError for one that could take one version for another.
    """
    if marker.count(GROUP) > 1:
        raise LayoutError(f'marker "{marker}" holds {GROUP} at most once')
    if _CONTROL.search(marker.removesuffix(PART) if apart else marker):
        raise LayoutError("a marker is without control characters")
    if binary and not re.fullmatch(r"[ -\[\]-~]*", marker):
        raise LayoutError(f'marker "{marker}" of bytes is printable ASCII without backslashes')
    if len(marker) > MARKER_BYTES_MAX:
        raise LayoutError(f"a marker has at most {MARKER_BYTES_MAX} characters")
    if GROUP not in marker:
        return ConstantMarker(marker.encode() if binary else marker)
    _, after = marker.split(GROUP)
    if not after:
        raise LayoutError(
            f'marker "{marker}" ends at the version, so v1 would match v10 too; end it with a delimiter'
        )
    if not pattern:
        if not apart:
            raise LayoutError(f'marker "{marker}" has a version; say by a pattern what versions look like')
        # any text up to what follows the version where it is stored
        pattern = "[^" + "".join(dict.fromkeys((escape(after[0]), PART))) + "]+"
    check_pattern(pattern, after)
    if apart:
        return ApartMarker(layout, marker, pattern, binary)
    if foreign:
        _check_foreign(foreign, marker.split(GROUP)[0])
    return TemplateMarker(layout, marker, pattern, binary, foreign)


def _check_foreign(foreign: str, before: str) -> None:
    """Raises LayoutError for beginnings that Python and Postgres may read otherwise, or that say nothing."""
    if re.search(r"[(){}|^$]", foreign):
        raise LayoutError(
            f'foreign beginnings "{shown(foreign)}" are without groups, braces and alternatives'
        )
    try:
        found = re.compile(foreign, re.ASCII)
    except re.error as exc:
        raise LayoutError(f'foreign beginnings "{shown(foreign)}": {exc}') from exc
    if not before or found.fullmatch(""):
        raise LayoutError("foreign beginnings stand for a text before the version, and are not empty")


def check_pattern(pattern: str, after: str) -> None:
    """Raises LayoutError for a version pattern that has groups, or runs over what follows the version."""
    if re.search(r"[(){}]", pattern):
        raise LayoutError(f'version pattern "{pattern}" is without groups and braces')
    try:
        compiled = re.compile(pattern, re.ASCII)
    except re.error as exc:
        raise LayoutError(f'version pattern "{pattern}": {exc}') from exc
    if compiled.fullmatch("") or any(compiled.fullmatch("v1" + char) for char in after[:1]):
        raise LayoutError(
            f'version pattern "{shown(pattern)}" also matches the delimiter "{shown(after)}", '
            "or nothing at all"
        )


def shown(text: str) -> str:
    """A text for a message, without control characters."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found.group()):02x}", text)


def escape(literal: str) -> str:
    """A literal for a regular expression, escaped so that Python and Postgres read it alike."""
    return re.sub(r"([^A-Za-z0-9_:,;=/@#~ -])", r"\\\1", literal)
