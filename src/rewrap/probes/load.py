"""Asks a URL for a number. What else it answers is thrown away."""

from __future__ import annotations

import http.client
import math
from urllib.parse import urlsplit

from rewrap.pace.thresholds import LoadProbe

ANSWER_BYTES_MAX = 1_000
"""Bytes of an answer that a number is looked for in."""


class NoNumber(Exception):
    """A probe gave no number. The text is ours: an answer may hold anything."""


def number_of(value: object) -> float:
    """A probe's answer as a number."""
    try:
        number = float(str(value).strip())
    except ValueError:
        raise NoNumber("answers no number") from None
    if math.isnan(number):
        # of nothing measured there is no percentile
        raise NoNumber("answers no number")
    return number


def ask_url(probe: LoadProbe) -> float:
    """The number that a URL answers with; blocks. Raises NoNumber, and OSError where nobody is there."""
    parts = urlsplit(probe.url or "")
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=probe.timeout_s)
    try:
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("GET", path, headers={"User-Agent": "rewrap", "Accept": "*/*"})
        response = connection.getresponse()
        body = response.read(ANSWER_BYTES_MAX)
    except http.client.HTTPException:
        raise NoNumber("answers no HTTP") from None
    finally:
        connection.close()
    if response.status != http.client.OK:
        raise NoNumber(f"answers status {response.status}")
    return number_of(body.decode("utf-8", "replace"))
