"""`[audit]` in a job file: where the record of every run goes."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated
from urllib.parse import SplitResult, urlsplit

from pydantic import BeforeValidator, Field, StringConstraints, field_validator, model_validator

from rewrap.keysections import Reference
from rewrap.targets import Section

Text = Annotated[str, StringConstraints(max_length=2_000)]


def _checked(value: object) -> object:
    # the message never repeats the URL: it may hold a token
    if not isinstance(value, str) or not value:
        return value
    try:
        parts = urlsplit(value)
        usable = bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or parts.scheme not in ("http", "https"):
        raise ValueError("a webhook is an https:// URL with a host")
    if parts.username is not None or parts.password is not None:
        raise ValueError("a webhook's URL names no user and no password; sign its messages: secret = …")
    if parts.scheme == "http" and not is_loopback(parts):
        raise ValueError("a webhook is https://; http:// only to this machine itself (127.0.0.1, localhost)")
    return value


def is_loopback(parts: SplitResult) -> bool:
    """Whether a URL leads to this machine itself, by what it says and not by what a name resolves to."""
    host = parts.hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


PLACES = frozenset(
    {
        "date", "timestamp", "operator", "job", "run_id", "targets", "from_versions", "to_version",
        "from_fingerprints", "to_fingerprint", "to_text_fingerprint", "reason", "resealed",
    }
)  # fmt: skip
"""What a column of a rotation log may name."""


class RowSection(Section):
    """`[[audit.rows]]`: a table in Markdown that gets one row for each rotation that completed.

    `columns` are its columns in their order, each with a text in which `{date}` and the like stand for what
    the record says.
    """

    file: Annotated[Text, StringConstraints(min_length=1)]
    columns: Annotated[dict[str, Text], Field(min_length=1, max_length=30)]

    @field_validator("columns")
    @classmethod
    def _known(cls, columns: dict[str, str]) -> dict[str, str]:
        for form in columns.values():
            for name in re.findall(r"\{([^{}]*)\}?", form):
                if name not in PLACES:
                    raise ValueError(f"a column may name {', '.join(sorted(PLACES))}")
        return columns


class AuditSection(Section):
    """`[audit]`: where the record of every run goes. Not part of the job's identity: change it at any time.

    An empty `file` or `webhook` is none, so that a variable may leave it open: `"${AUDIT_URL:-}"`.
    """

    file: Text = ""
    webhook: Annotated[Text, BeforeValidator(_checked), Field(repr=False)] = ""
    secret: Reference | None = None
    rows: list[RowSection] = Field(default_factory=list)
    timeout_s: Annotated[float, Field(gt=0, le=60)] = 10.0
    attempts: Annotated[int, Field(ge=1, le=10)] = 4

    @model_validator(mode="after")
    def _goes_somewhere(self) -> AuditSection:
        if not {"file", "webhook", "rows"} & self.model_fields_set:
            raise ValueError("names neither a file nor a webhook, and no rows")
        return self
