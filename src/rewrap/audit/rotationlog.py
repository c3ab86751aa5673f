"""The rotation log: a table in Markdown for people, with one row for each rotation that completed.

A row ends in a comment that no reader of Markdown shows. It names the rotation: its job, the version it went
to, and those it came from, with their keys. By it a rotation that a log ends with is not logged again,
whichever process completes it: one that went on after a crash, or a later one that found nothing left to do.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rewrap.audit.journal import opened
from rewrap.audit.section import PLACES, RowSection

_PLACE = re.compile(r"\{([a-z_]+)\}")

_COMMENT = re.compile(r"<!-- rewrap ([0-9a-f]{16}) ([0-9a-f]{16}) ([0-9a-f]{16}) -->")
"""Digests of the job, of where the rotation went, and of where from."""


def append_row(path: Path, section: RowSection, record: Mapping[str, Any], note: str) -> bool:
    """Adds the row of a rotation that a record says is complete, on disk when this returns.

    False where the log ends, as far as this job goes, with the same rotation. OSError when it cannot be
    written.
    """
    head = _row(section.columns)
    rule = "|" + " --- |" * len(section.columns)
    mine, *rotation = _names(record)
    values = _values(record, note)
    cells = [_PLACE.sub(lambda found: values[found.group(1)], form) for form in section.columns.values()]
    handle = opened(path)
    try:
        # several jobs may share a log, and two processes may end at once
        fcntl.flock(handle, fcntl.LOCK_EX)
        with os.fdopen(os.dup(handle), "rb") as reader:
            reader.seek(0)
            text = reader.read().decode("utf-8", "replace")
        told = [[found[2], found[3]] for found in _COMMENT.finditer(text) if found[1] == mine]
        # after "any" other versions may be meant than before, though it is the same rotation
        idle = values["resealed"] == "0" and told and told[-1][0] == rotation[0]
        if idle or told[-1:] == [rotation]:
            return False
        lines = text.splitlines()
        inside = bool(lines) and lines[-1].startswith("|") and _holds(lines, head, rule)
        left = "" if not text or text.endswith("\n") else "\n"
        if not inside:
            left += ("\n" if text else "") + f"{head}\n{rule}\n"
        # one write: what a crash cuts short is a line without the comment, and is logged again
        body = (left + _row(cells, f" <!-- rewrap {mine} {' '.join(rotation)} -->") + "\n").encode()
        while body:
            body = body[os.write(handle, body) :]
        os.fsync(handle)
    finally:
        os.close(handle)
    return True


def _holds(lines: Sequence[str], head: str, rule: str) -> bool:
    """Whether the last table of a text has this head, so that a row may simply follow."""
    start = len(lines)
    while start and lines[start - 1].startswith("|"):
        start -= 1
    return lines[start : start + 2] == [head, rule]


def _row(cells: Sequence[str] | Mapping[str, str], comment: str = "") -> str:
    return "| " + " | ".join(_escaped(cell) for cell in cells) + f"{comment} |"


def _escaped(text: str) -> str:
    """A cell: what would end it, or the row, or be taken for markup, stands for itself."""
    text = " ".join(text.split())
    text = "".join(char if char.isprintable() else "\ufffd" for char in text)
    return re.sub(r"([\\|`*<>\[\]])", r"\\\1", text)


def _names(record: Mapping[str, Any]) -> tuple[str, str, str]:
    """What a comment says: versions may have the same names every time, their keys do not."""
    prints, to_version = record["fingerprints"], record["to_version"]
    left = sorted((version, prints.get(version)) for version in record["from_versions"])
    went = [record["origin"], to_version, prints.get(to_version)]
    return _digest([record["job"]]), _digest(went), _digest(left)


def _digest(what: Any) -> str:
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]


def _values(record: Mapping[str, Any], note: str) -> dict[str, str]:
    """What each place of PLACES stands for."""
    counts = record["counts"].values()
    prints = record["fingerprints"]
    to_version = record["to_version"]
    values = {
        "date": record["ended_at"][:10],
        "timestamp": record["ended_at"],
        "operator": record["operator"],
        "job": record["job"],
        "run_id": record["run_id"] or "",
        "targets": ", ".join(record["targets"]),
        "from_versions": ", ".join(record["from_versions"]),
        "to_version": to_version,
        "from_fingerprints": ", ".join(prints.get(one, "") for one in record["from_versions"]),
        "to_fingerprint": prints.get(to_version, ""),
        "to_text_fingerprint": record["text_fingerprints"].get(to_version, ""),
        "reason": note or record["reason"],
        "resealed": str(sum(one.get("resealed", 0) for one in counts) + (record["resealed_late"] or 0)),
    }
    assert values.keys() == PLACES
    return values
