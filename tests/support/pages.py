"""Pages of systems: what they show of a command, and whether it is what the command prints."""

from __future__ import annotations

import re

from tests.cli.test_readme import shape

_OF_ONE_KEY = (
    (r"sha256:[0-9a-f]{16}", "sha256:FINGERPRINT"),
    (r"fingerprint [0-9a-f]{16}", "fingerprint HEX"),
    (r"rewrap-keep-[0-9a-f]{8}", "KEPT"),
    (r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", "VERSION"),
    (r"\b[0-9a-f]{32}\b", "VERSION"),
)
"""What is another with every key and version."""


def _likened(text: str) -> list[str]:
    """Lines without ids of versions, fingerprints and the width of columns."""
    text = "\n".join(shape(text))
    for pattern, name in _OF_ONE_KEY:
        text = re.sub(pattern, name, text)
    return text.splitlines()


def shown_as(shown: str, printed: str) -> bool:
    """Whether output is what the page shows; `…` stands for any text in a line, alone for any lines."""
    pattern = ""
    for line in _likened(shown):
        pattern += r"(?:.*\n)*" if line == "…" else re.escape(line).replace("…", ".*") + "\n"
    return re.fullmatch(pattern, "".join(f"{line}\n" for line in _likened(printed))) is not None
