"""The peers: how each is started, what its values look like, how many rows it gets."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.server import Server

HERE = Path(__file__).resolve().parent

_RUBY = ["ruby", str(HERE / "lockbox_rotate.rb")]


@dataclass(frozen=True, slots=True)
class Peer:
    """A peer. `form` is of its values; `partner` is the run of rewrap that it is compared with.

    `share` is the part of rewrap's rows that it gets: enough for some seconds, and the same rows from the
    first one on. `missing` says what is not there, or nothing.
    """

    name: str
    title: str
    command: list[str]
    form: str
    partner: str
    share: float
    missing: Callable[[Server], str | None]


def lockbox_sealing(rows: int) -> list[str]:
    """The program that makes Lockbox's own ciphertexts."""
    return [*_RUBY, "seal", str(rows)]


def _module(name: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", f"benchmarks.peers.{name}", *arguments]


def _without_psycopg(_: Server) -> str | None:
    return None if importlib.util.find_spec("psycopg") else "the Python package psycopg"


def _without_php(_: Server) -> str | None:
    test = 'exit(extension_loaded("pdo_pgsql") && extension_loaded("sodium") ? 0 : 1);'
    return None if _succeeds("php", "-r", test) else "php with pdo_pgsql and sodium (php-cli, php-pgsql)"


def _without_lockbox(_: Server) -> str | None:
    # before Active Support: its old versions use Logger without asking for it
    test = 'require "stringio"; require "logger"; require "active_record"; require "pg"; require "lockbox"'
    packages = "ruby-lockbox, ruby-activerecord, ruby-pg"
    return None if _succeeds("ruby", "-e", test) else f"ruby with Lockbox, Active Record and pg ({packages})"


def _without_pgcrypto(server: Server) -> str | None:
    there = server.value("SELECT count(*) FROM pg_available_extensions WHERE name = 'pgcrypto'")
    return None if there else "a Postgres with the extension pgcrypto (postgresql)"


def _succeeds(*command: str) -> bool:
    if shutil.which(command[0]) is None:
        return False
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _without_pgcrypto_client(server: Server) -> str | None:
    return _without_psycopg(server) or _without_pgcrypto(server)


PEERS = (
    Peer(
        "psycopg_update_each",
        "psycopg: SELECT 500, UPDATE each",
        _module("psycopg_update_each"),
        "gcm",
        "text",
        1 / 10,
        _without_psycopg,
    ),
    Peer(
        "psycopg_executemany",
        "psycopg: executemany of 500",
        _module("psycopg_executemany"),
        "gcm",
        "text",
        1 / 5,
        _without_psycopg,
    ),
    Peer(
        "sqlalchemy_orm",
        "SQLAlchemy ORM: 500 objects a flush",
        _module("sqlalchemy_orm"),
        "gcm",
        "text",
        1 / 5,
        _without_psycopg,
    ),
    Peer(
        "php_sodium",
        "PHP: sodium and PDO, 500 a transaction",
        ["php", str(HERE / "php_sodium.php")],
        "box",
        "secretbox",
        1 / 10,
        _without_php,
    ),
    Peer(
        "lockbox_rotate",
        "Ruby: Lockbox.rotate",
        [*_RUBY, "rotate"],
        "lockbox",
        "text",
        1 / 25,
        _without_lockbox,
    ),
    Peer(
        "pgcrypto_encrypt_iv",
        "pgcrypto: encrypt_iv (no authentication)",
        _module("pgcrypto", "iv"),
        "cbc",
        "text",
        1 / 5,
        _without_pgcrypto_client,
    ),
    Peer(
        "pgcrypto_pgp_sym",
        "pgcrypto: pgp_sym_encrypt",
        _module("pgcrypto", "pgp"),
        "pgp",
        "text",
        1 / 50,
        _without_pgcrypto_client,
    ),
)
