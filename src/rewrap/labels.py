"""Names and texts by which a row says which key its values are under. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rewrap.model import MASK

_OF_A_KEY = re.compile(
    r"(?:^|_)(?:key|kek|dek|mek|cmk|kms|enc|encryption|cipher|crypto|master_key|wrapping_key)"
    r"_?(?:version|ver|id|no|number)$|(?:^|_)kid$"
)

_SHOWABLE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/+=-]{0,99}")

_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


def shown_version(version: str, known: Sequence[str]) -> str:
    """A stored version for a report: as it is if it is known, or looks like one; else masked.

    Where a version should be anything may stand: somebody's words, or what a terminal would act on.
    """
    return version if version in known or _SHOWABLE.fullmatch(version) else MASK


def values_are(number: int) -> str:
    """So many values are, in words."""
    return "1 value is" if number == 1 else f"{number:,} values are"


def names_a_key(name: str) -> bool:
    """Whether a name is that of a version of a key: `key_version`, `ssn_kid`, `dekId`."""
    return _OF_A_KEY.search(_HUMP.sub("_", name).lower()) is not None


def parse_labels(labels: Sequence[str]) -> tuple[str | None, dict[str, str]] | None:
    """The form in which texts name a version, None for the version alone, and the version of each.

    None where they are not all alike.
    """
    parsed = {label: re.fullmatch(r"(.*?)((?:v|k)?[0-9]+)", label) for label in labels}
    versions = {label: found.group(2) for label, found in parsed.items() if found}
    heads = {found.group(1) for found in parsed.values() if found}
    if not labels or len(versions) != len(parsed) or len(heads) != 1:
        return None
    head = heads.pop()
    return (f"{head}{{version}}" if head else None), versions
