"""Asks a job's probes. What they answer is compared and thrown away: it may hold plaintext."""

from __future__ import annotations

import http.client
import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import anyio

from rewrap.errors import StoreError
from rewrap.probes.section import ProbeSection
from rewrap.stores.postgres.connection import Address, close, connect, translated

ANSWER_BYTES_MAX = 2**20
"""Bytes of an HTTP answer that are searched for the text that must appear."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Whether a probe passed, how long it took, and what was wrong in words of our own."""

    name: str
    kind: str
    passed: bool
    seconds: float
    said: str


async def ask(
    probes: Sequence[ProbeSection], address: Address | None, folder: os.PathLike[str]
) -> list[Answer]:
    """Every probe's answer, in order. SQL is asked of the database at `address`.

    Never raises for what a probe does.
    """
    answers = []
    for probe in probes:
        started = time.monotonic()
        try:
            with anyio.fail_after(probe.timeout_s):
                wrong = await _wrong(probe, address, folder)
        except TimeoutError:
            wrong = f"no answer in {probe.timeout_s:g} s"
        except StoreError as exc:
            wrong = f"the query failed [{exc.sqlstate}]" if exc.sqlstate else "the database cannot be reached"
        except OSError as exc:
            wrong = f"cannot be asked: {exc.strerror or type(exc).__name__}"
        except Exception as exc:
            # the message of a library may repeat what was answered
            wrong = f"cannot be asked ({type(exc).__name__})"
        seconds = round(time.monotonic() - started, 3)
        answers.append(Answer(probe.name, probe.kind, not wrong, seconds, wrong or "as expected"))
    return answers


async def _wrong(probe: ProbeSection, address: Address | None, folder: os.PathLike[str]) -> str:
    """What is wrong with a probe's answer; empty when it is as expected."""
    if probe.kind == "sql":
        return await _ask_sql(probe, address)
    if probe.kind == "http":
        return await anyio.to_thread.run_sync(_ask_http, probe, abandon_on_cancel=True)
    return await _run_command(probe, folder)


async def _ask_sql(probe: ProbeSection, address: Address | None) -> str:
    if address is None:
        return "the job has no Postgres store to ask"
    connection = await connect(
        address,
        application_name="rewrap probe",
        # an application is asked as it asks: its policies apply
        row_security="on",
        default_transaction_read_only="on",
        statement_timeout=f"{max(1, int(probe.timeout_s * 1_000))}ms",
    )
    try:
        with translated(f'probe "{probe.name}"'):
            found = await connection.fetchval(probe.query)
    finally:
        await close(connection)
    return "" if _text(found) == _text(probe.expect) else "the query answers something else"


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value)


def _ask_http(probe: ProbeSection) -> str:
    parts = urlsplit(probe.url or "")
    secure = parts.scheme == "https"
    kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=probe.timeout_s)
    try:
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("GET", path, headers={"User-Agent": "rewrap", "Accept": "*/*"})
        response = connection.getresponse()
        body = response.read(ANSWER_BYTES_MAX) if probe.contains else b""
    finally:
        connection.close()
    if response.status != probe.status:
        return f"status {response.status}, not {probe.status}"
    if probe.contains and probe.contains.encode() not in body:
        return "the text that must appear does not"
    return ""


async def _run_command(probe: ProbeSection, folder: os.PathLike[str]) -> str:
    done = await anyio.run_process(
        list(probe.argv or ()),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
        cwd=folder,
    )
    return "" if done.returncode == probe.exit_code else f"exit {done.returncode}, not {probe.exit_code}"
