"""Plays Aether's secrets service: it seals and opens with one key, and knows no other.

A program of its own, with nothing of rewrap's: `python aether_service.py VERB …`, with DATABASE_URL and the
keys in its environment.

    make COUNT     the tables, with so many rows each; prints what was sealed
    odd            rows of (a) that no key opens, or that were never sealed
    read           prints what every value opens to: null where it does not
    write ID…      seals new payloads for these secrets; one that is not there is inserted
    serve          answers GET /readyz with 200 if a value of each table opens; prints its port
"""

from __future__ import annotations

import asyncio
import base64
import http.server
import json
import os
import sys
import uuid
from typing import Any

import asyncpg
from cryptography.exceptions import InvalidTag
from cryptography.fernet import Fernet, InvalidToken
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

TABLES = """
CREATE TABLE secrets (id bigint PRIMARY KEY, account_id uuid NOT NULL, payload text, label text);
CREATE TABLE secret_records (id uuid PRIMARY KEY, account_id uuid NOT NULL, encrypted_data_key text NOT NULL,
                             master_key_id text NOT NULL, ciphertext text NOT NULL, nonce text NOT NULL);
CREATE TABLE integration_tokens (id bigint PRIMARY KEY, token text NOT NULL, made timestamptz DEFAULT now());
"""

Opened = dict[str, dict[str, Any]]


def key() -> bytes:
    return base64.b64decode(os.environ["SECRET_ENCRYPTION_KEY"])


def fernet() -> Fernet:
    return Fernet(os.environ["FERNET_KEY"])


def sealed(account: str, payload: object) -> str:
    nonce = os.urandom(12)
    return base64.b64encode(
        nonce + AESGCM(key()).encrypt(nonce, json.dumps(payload).encode(), account.encode())
    ).decode()


def opened(account: str, value: str) -> Any:
    try:
        raw = base64.b64decode(value, validate=True)
        return json.loads(AESGCM(key()).decrypt(raw[:12], raw[12:], account.encode()))
    except (InvalidTag, ValueError):
        return None


def context(account: str) -> bytes:
    return json.dumps({"account_id": account}, sort_keys=True, separators=(",", ":")).encode()


def enveloped(account: str, text: str) -> tuple[str, str, str, str]:
    dek, key_nonce, nonce = os.urandom(32), os.urandom(12), os.urandom(12)
    wrapped = base64.b64encode(key_nonce + AESGCM(key()).encrypt(key_nonce, dek, context(account)))
    payload = AESGCM(dek).encrypt(nonce, text.encode(), None)
    version = os.environ.get("MASTER_KEY_VERSION", "v1")
    return (
        wrapped.decode(),
        f"local/aether-secrets:{version}",
        base64.b64encode(payload).decode(),
        base64.b64encode(nonce).decode(),
    )


def unenveloped(row: Any) -> Any:
    wrapped = base64.b64decode(row["encrypted_data_key"])
    try:
        dek = AESGCM(key()).decrypt(wrapped[:12], wrapped[12:], context(str(row["account_id"])))
    except InvalidTag:
        return None
    nonce, payload = base64.b64decode(row["nonce"]), base64.b64decode(row["ciphertext"])
    return AESGCM(dek).decrypt(nonce, payload, None).decode()


def untokened(token: str) -> Any:
    try:
        return fernet().decrypt(token.encode()).decode()
    except InvalidToken:
        return None


async def make(db: asyncpg.Connection, count: int) -> Opened:
    await db.execute(TABLES)
    accounts = [str(uuid.uuid4()) for _ in range(7)]
    told: Opened = {"secrets": {}, "secret_records": {}, "integration_tokens": {}}
    rows: dict[str, list[tuple[Any, ...]]] = {name: [] for name in told}
    for at in range(1, count + 1):
        account, payload = accounts[at % 7], {"user": f"u{at}", "password": "pä55" * (at % 5)}
        rows["secrets"].append((at, account, sealed(account, payload), f"label {at}"))
        told["secrets"][str(at)] = payload
        record = str(uuid.uuid4())
        rows["secret_records"].append((record, account, *enveloped(account, f"record {at}")))
        told["secret_records"][record] = f"record {at}"
        # an old time: a token that had expired must not open again
        token = fernet().encrypt_at_time(f"token {at}".encode(), 1_700_000_000 + at).decode()
        rows["integration_tokens"].append((at, token))
        told["integration_tokens"][str(at)] = f"token {at}"
    await db.copy_records_to_table("secrets", records=rows["secrets"])
    await db.copy_records_to_table("secret_records", records=rows["secret_records"])
    await db.copy_records_to_table(
        "integration_tokens", records=rows["integration_tokens"], columns=["id", "token"]
    )
    return told


async def odd(db: asyncpg.Connection) -> Opened:
    """-1 was sealed for another account, -2 never, -3 is empty."""
    account = str(uuid.uuid4())
    rows = [(-1, sealed("another", {"user": "moved"})), (-2, "not sealed at all"), (-3, None)]
    await db.executemany(
        "INSERT INTO secrets VALUES ($1, $3, $2, 'odd')", [(key, value, account) for key, value in rows]
    )
    return {}


async def read(db: asyncpg.Connection) -> Opened:
    return {
        "secrets": {
            str(row["id"]): row["payload"] and opened(str(row["account_id"]), row["payload"])
            for row in await db.fetch("SELECT id, account_id, payload FROM secrets")
        },
        "secret_records": {
            str(row["id"]): unenveloped(row) for row in await db.fetch("SELECT * FROM secret_records")
        },
        "integration_tokens": {
            str(row["id"]): untokened(row["token"])
            for row in await db.fetch("SELECT id, token FROM integration_tokens")
        },
    }


async def write(db: asyncpg.Connection, ids: list[str]) -> Opened:
    account = await db.fetchval("SELECT account_id FROM secrets LIMIT 1")
    told: Opened = {"secrets": {}}
    for name in ids:
        payload = {"user": f"new {name}"}
        mine = await db.fetchval("SELECT account_id FROM secrets WHERE id = $1", int(name)) or account
        await db.execute(
            "INSERT INTO secrets VALUES ($1, $2, $3, 'new') ON CONFLICT (id) DO UPDATE SET payload = $3",
            int(name), mine, sealed(str(mine), payload),
        )  # fmt: skip
        told["secrets"][name] = payload
    return told


def serve() -> None:
    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = asyncio.run(connected("read", []))
            good = all(any(value is not None for value in values.values()) for values in found.values())
            self.send_response(200 if good else 503)
            self.end_headers()

        def log_message(self, *_words: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Answers)
    print(server.server_port, flush=True)
    server.serve_forever()


async def connected(verb: str, words: list[str]) -> Opened:
    db = await asyncpg.connect(
        os.environ["DATABASE_URL"], server_settings={"application_name": "secrets-service"}
    )
    try:
        match verb:
            case "make":
                return await make(db, int(words[0]))
            case "odd":
                return await odd(db)
            case "write":
                return await write(db, words)
            case _:
                return await read(db)
    finally:
        await db.close()


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve()
    print(json.dumps(asyncio.run(connected(sys.argv[1], sys.argv[2:]))))
