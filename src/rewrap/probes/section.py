"""`[[probe]]` in a job file: a question with a known answer, put to the application or its database."""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, StringConstraints, model_validator

from rewrap.targets import Section

Text = Annotated[str, StringConstraints(min_length=1, max_length=10_000)]

_OF_KIND = {"sql": ("query",), "http": ("url",), "command": ("argv",)}

_ALSO = {"sql": ("expect",), "http": ("status", "contains"), "command": ("exit_code",)}


class ProbeSection(Section):
    """`[[probe]]`: a query, a URL or a command, and what it must answer.

    Not part of the job's identity: add one at any time.
    """

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,62}$")]
    kind: Literal["sql", "http", "command"]
    timeout_s: Annotated[float, Field(gt=0, le=600)] = 10.0
    query: Annotated[Text | None, Field(repr=False)] = None
    expect: Annotated[str | int | bool | None, Field(repr=False)] = None
    url: Annotated[Text | None, Field(repr=False)] = None
    status: Annotated[int, Field(ge=100, le=599)] = 200
    contains: Annotated[Text | None, Field(repr=False)] = None
    argv: Annotated[list[Text] | None, Field(repr=False)] = None
    exit_code: Annotated[int, Field(ge=0, le=255)] = 0

    @model_validator(mode="after")
    def _fits_its_kind(self) -> ProbeSection:
        for field in _OF_KIND[self.kind]:
            if not getattr(self, field):
                raise ValueError(f'a probe of kind "{self.kind}" has a field "{field}"')
        allowed = {"name", "kind", "timeout_s", *_OF_KIND[self.kind], *_ALSO[self.kind]}
        strange = sorted(self.model_fields_set - allowed)
        if strange:
            raise ValueError(f'a probe of kind "{self.kind}" has no field "{strange[0]}"')
        if self.kind == "sql" and self.expect is None:
            raise ValueError('a probe of kind "sql" has a field "expect"')
        if self.url is not None:
            _check_url(self.url)
        return self


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        # without the url: it may hold a token
        raise ValueError("url is http:// or https://, with a host")
