"""Connections to Postgres: how they are opened, and what their failures become.

Every setting travels as a startup parameter, never as a session SET: behind a transaction pooler a SET
would leak to the application.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import asyncpg

from rewrap.errors import StoreError, StoreUnavailable, UnsafeTarget

Connection = Any
"""An asyncpg connection; its stubs make every row generic, which the hot path has no use for."""

CONNECT_TIMEOUT_S = 10.0

PEER_SILENCE_S = 60
"""Seconds after which a peer that answers nothing, not even to the kernel, is taken for gone."""

_FRAMEWORK_PARAMETERS = frozenset({"serverversion", "charset", "schema", "pgbouncer", "pool_timeout"})
"""Query parameters that frameworks (Doctrine, Prisma) put in a DATABASE_URL and no server knows."""

_TRANSPORT_STATES = frozenset({"57P01", "57P02", "57P03", "57P05"})
"""SQLSTATEs of a server that is going down or coming up."""

BASE_SETTINGS = {
    "application_name": "rewrap",
    # a policy that would hide rows becomes an error instead
    "row_security": "off",
    "default_transaction_isolation": "read committed",
    "statement_timeout": "0",
    # who must not wait long says so itself
    "lock_timeout": "0",
    # a shorter one ends a verification in the middle; none would let a frozen process keep its locks
    "idle_in_transaction_session_timeout": "10min",
    "jit": "off",
    # what a literal means must not depend on the role
    "standard_conforming_strings": "on",
    # what a constraint's text looks like neither: fences are recognised by it
    "quote_all_identifiers": "off",
    # these decide the text of keys and of associated data, whatever the role's own settings are
    "timezone": "UTC",
    "datestyle": "ISO, YMD",
    "intervalstyle": "postgres",
    "extra_float_digits": "1",
    "bytea_output": "hex",
}


@dataclass(frozen=True, slots=True)
class Address:
    """Where a database is. The URL may hold a password: it is shown without one."""

    url: str = field(repr=False)
    password: str | None = field(default=None, repr=False)

    @property
    def shown(self) -> str:
        """The URL with neither password nor query, for people."""
        parts = urlsplit(self.url)
        host = parts.hostname or dict(parse_qsl(parts.query)).get("host", "local socket")
        port = f":{parts.port}" if parts.port else ""
        return f"{host}{port}{parts.path}"


def address_of(url: str, password: str | None = None) -> Address:
    """The address in a URL as applications write it: driver suffixes and framework parameters dropped."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise StoreError(
            "the store's url cannot be read",
            hint="write postgresql://user@host:port/database",
        ) from None
    scheme = parts.scheme.partition("+")[0]
    if scheme not in ("postgres", "postgresql", "pgsql", "postgis"):
        raise StoreError(
            f'the store\'s url has the scheme "{scheme[:20]}", not postgresql',
            hint="write postgresql://user@host:port/database",
        )
    if "@" in parts.path + parts.query + parts.fragment or (parts.fragment and "@" in url):
        # the password holds a character that ends it early: what follows would be shown as a path
        raise StoreError(
            "the store's url cannot be read: its password holds a character that must be escaped",
            hint="write / ? # and @ in a password as %2F %3F %23 and %40, or use stores.*.password",
        )
    kept = [
        (name, value)
        for name, value in parse_qsl(parts.query, keep_blank_values=True)
        if name.lower() not in _FRAMEWORK_PARAMETERS
    ]
    return Address(urlunsplit(("postgresql", parts.netloc, parts.path, urlencode(kept), "")), password)


async def connect(address: Address, **settings: str) -> Connection:
    """An open connection with rewrap's settings; `settings` add to them or replace them."""
    with translated(f"database {address.shown}"):
        connection = await asyncpg.connect(
            address.url,
            password=address.password,
            timeout=CONNECT_TIMEOUT_S,
            server_settings={**BASE_SETTINGS, **settings},
        )
    _watch_peer(connection)
    return connection


def _watch_peer(connection: Connection) -> None:
    """Has the kernel notice a peer that vanished without a word, which else takes hours."""
    peer = connection._transport.get_extra_info("socket")
    if peer is None or peer.family not in (socket.AF_INET, socket.AF_INET6):
        return
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        ("TCP_KEEPIDLE", PEER_SILENCE_S // 2),
        ("TCP_KEEPINTVL", PEER_SILENCE_S // 6),
        ("TCP_USER_TIMEOUT", PEER_SILENCE_S * 1_000),
    ):
        if hasattr(socket, option):
            peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


async def close(connection: Connection) -> None:
    """Closes a connection that may already be broken."""
    try:
        await connection.close(timeout=2)
    except (TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
        connection.terminate()


@contextmanager
def translated(subject: str) -> Iterator[None]:
    """Turns a driver's exceptions into ours. `subject` is what was worked on, for the message.

    Postgres puts row values into messages and DETAIL, so only the SQLSTATE, its name and the names of
    objects get through, and the original is cut off from the traceback.
    """
    try:
        yield
    except asyncpg.PostgresError as exc:
        raise _store_error(exc, subject) from None
    except asyncpg.InternalClientError:
        # what the driver says when a server dies in the middle of an answer
        raise _unavailable(subject, "the connection broke off") from None
    except asyncpg.InterfaceError as exc:
        if "closed" in str(exc) or "connection" in str(exc):
            raise _unavailable(subject, "the connection was lost") from None
        raise StoreError(f"{subject}: the driver refused the call ({type(exc).__name__})") from None
    except (TimeoutError, OSError, asyncio.IncompleteReadError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else ""
        if isinstance(exc, ConnectionRefusedError):
            reason = "connection refused"
        raise _unavailable(subject, reason or "no answer") from None


def _unavailable(subject: str, reason: str) -> StoreUnavailable:
    return StoreUnavailable(
        f"{subject} cannot be reached: {reason}",
        hint="check that the server runs and that the url, host and port are right",
    )


def _store_error(exc: asyncpg.PostgresError, subject: str) -> StoreError:
    state = exc.sqlstate or ""
    condition = type(exc).__name__.removesuffix("Error")
    named = [
        f"{label} {value}"
        for label, value in (
            ("schema", exc.schema_name),
            ("table", exc.table_name),
            ("column", exc.column_name),
            ("constraint", exc.constraint_name),
        )
        if value
    ]
    about = f" ({', '.join(named)})" if named else ""
    message = f"{subject}: {condition} [{state}]{about}"
    if state.startswith("08") or state in _TRANSPORT_STATES:
        if "unsupported startup parameter" in str(exc):
            return UnsafeTarget(
                f"{subject}: this is a connection pooler, not a Postgres server",
                hint="point the store's url at the server itself: rewrap sets its own session "
                "parameters and must not share sessions with the application",
                sqlstate=state,
            )
        return StoreUnavailable(message, hint="the server went away; rewrap resume", sqlstate=state)
    hint = {
        "22021": "a text there is not UTF-8, which a database with the encoding SQL_ASCII lets in; find such "
        "values, and convert them or leave the column out",
        "28P01": "the password was refused; check the variable the url or password comes from",
        "28000": "the server refuses this role or host; check pg_hba.conf and the url",
        "3D000": "the database does not exist; check the url",
        "42P01": "it was dropped or renamed meanwhile; rewrap resume goes on with what is there",
        "42501": "the role lacks a privilege; rewrap needs SELECT and UPDATE on each target "
        "and a schema of its own (see docs/privileges.md)",
        "55P03": "somebody holds a lock on it (see pg_locks); try again when it is released",
        "25006": "the role or the database is read-only by default (default_transaction_read_only); use a "
        "role that may write, or say for this one: ALTER ROLE … SET default_transaction_read_only = off",
        "42703": "a column was renamed or dropped meanwhile; compare the job file's names with the table",
        "42883": "a type was changed meanwhile, or cannot be compared; see rewrap check, then run again",
        "42804": "a column's type was changed while rewrap was at work; run again",
        "53100": "the server's disk is full; free some of it, then rewrap resume",
        "53300": "the server has no free connections; lower stores.*.max_connections or pace.shards",
    }.get(state)
    return StoreError(message, hint=hint, sqlstate=state)
