"""What plaintexts look like, where no tag tells a right key from a wrong one."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from rewrap.crypto.failures import LayoutError

Validator = Callable[[bytes], bool]

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


def parse_validator(declared: str) -> Validator:
    """The validator that a layout declares: `utf8`, `json`, or `pattern:` and a regular expression."""
    if declared == "utf8":
        return _is_text
    if declared == "json":
        return _is_json
    kind, _, pattern = declared.partition(":")
    if kind != "pattern" or not pattern:
        raise LayoutError(f'plaintext "{declared}" is not "utf8", "json" or "pattern:" and an expression')
    try:
        compiled = re.compile(pattern, re.DOTALL)
    except re.error as exc:
        raise LayoutError(f'plaintext pattern "{pattern}": {exc}') from exc

    def fits(plain: bytes) -> bool:
        try:
            return compiled.fullmatch(plain.decode()) is not None
        except UnicodeDecodeError:
            return False

    return fits


def _is_text(plain: bytes) -> bool:
    """UTF-8 without control characters but tab and line ends: random bytes seldom are."""
    try:
        return _CONTROL.search(plain.decode()) is None
    except UnicodeDecodeError:
        return False


def _is_json(plain: bytes) -> bool:
    try:
        json.loads(plain)
    except (ValueError, RecursionError):
        return False
    return True
