"""`[pace.health]` and `[[pace.probe]]` of a job file: when a run goes slower, and when it waits."""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, StringConstraints, model_validator

from rewrap.targets import Section

MIB = 2**20
GIB = 2**30

Text = Annotated[str, StringConstraints(min_length=1, max_length=10_000)]


class Threshold(Section):
    """Above `slow` a run goes slower, from `pause` on it waits; what is left out does not happen."""

    slow: Annotated[float, Field(gt=0)] | None = None
    pause: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _in_order(self) -> Threshold:
        if self.slow is not None and self.pause is not None and self.slow >= self.pause:
            raise ValueError("slow is below pause")
        return self


Limit = Threshold | Literal[False]
"""A threshold; false switches the signal off."""


class Health(Section):
    """`[pace.health]`: what a Postgres server may come to before a run goes slower or waits.

    `yield_to_others` gives way to other sessions at work on the server.
    """

    yield_to_others: bool = True
    replica_lag_s: Limit = Threshold(slow=5.0, pause=30.0)
    replica_lag_bytes: Limit = Threshold(slow=64.0 * MIB, pause=256.0 * MIB)
    wal_bytes_per_s: Limit = False
    slot_bytes: Limit = Threshold(slow=4.0 * GIB, pause=16.0 * GIB)
    dead_share: Limit = Threshold(slow=0.7)
    vacuum: bool = False
    blocked: Limit = Threshold(slow=3.0, pause=20.0)
    latency_s: Limit = Threshold(slow=0.5, pause=5.0)


class LoadProbe(Section):
    """`[[pace.probe]]`: a number that a query or a URL gives, and what it may come to."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,62}$")]
    kind: Literal["sql", "http"]
    query: Annotated[Text | None, Field(repr=False)] = None
    url: Annotated[Text | None, Field(repr=False)] = None
    slow: Annotated[float, Field()] | None = None
    pause: Annotated[float, Field()] | None = None
    every_s: Annotated[float, Field(ge=0.2, le=600)] = 2.0
    timeout_s: Annotated[float, Field(gt=0, le=60)] = 5.0

    @model_validator(mode="after")
    def _fits_its_kind(self) -> LoadProbe:
        wanted, other = ("query", "url") if self.kind == "sql" else ("url", "query")
        if not getattr(self, wanted) or getattr(self, other):
            raise ValueError(f'a probe of kind "{self.kind}" has a field "{wanted}" and no "{other}"')
        if self.slow is None and self.pause is None:
            raise ValueError("has slow, pause or both")
        if self.slow is not None and self.pause is not None and self.slow >= self.pause:
            raise ValueError("slow is below pause")
        if self.url is not None and not _is_url(self.url):
            # without the url: it may hold a token
            raise ValueError("url is http:// or https://, with a host")
        return self

    @property
    def threshold(self) -> Threshold:
        return Threshold.model_construct(slow=self.slow, pause=self.pause)


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
