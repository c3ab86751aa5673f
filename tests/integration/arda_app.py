"""The application's TokenCipher, played by a program of its own: nothing of rewrap is in it.

    arda_app.py make ROWS        a table of tenants with tokens, under AWSCURRENT and AWSPREVIOUS; one is NULL
    arda_app.py audit            every token, opened; exits 1 if one does not open
    arda_app.py mop ROWS         the coroutine's work, once, on so many rows
    arda_app.py live             reads, writes, mops up until stdin ends; then what it last wrote, and counts

It seals under AWSCURRENT, opens under the version that a value names, and re-encrypts by compare-and-swap
what it reads under another version: lazily, and in a coroutine over the whole table.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import random
import sys
from typing import Any

import asyncpg
import boto3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

TABLE = "tenant_email"

PAUSE_S = 0.003
"""Between two requests: enough of them, and some left to whoever else is at work."""

INFO = os.environ.get("ARDA_HKDF_INFO", "").encode()


class TokenCipher:
    """Keys by VersionId, fetched when they are first needed; the current one is looked up again and again."""

    def __init__(self) -> None:
        self.secret = f"{os.environ['INFRASTRUCTURE']}-{os.environ['PARTITION']}-I-EmailEncryptionKey"
        self.client = boto3.client("secretsmanager", endpoint_url=os.environ["ARDA_AWS_ENDPOINT"])
        self.keys: dict[str, AESGCM] = {}
        self.labels: dict[str, str] = {}
        self.refresh()

    def refresh(self) -> None:
        found = self.client.list_secret_version_ids(SecretId=self.secret)["Versions"]
        self.labels = {label: one["VersionId"] for one in found for label in one["VersionStages"]}

    @property
    def current(self) -> str:
        return self.labels["AWSCURRENT"]

    def key(self, version: str) -> AESGCM:
        if version not in self.keys:
            answer = self.client.get_secret_value(SecretId=self.secret, VersionId=version)
            text = json.loads(answer["SecretString"])["key"]
            self.keys[version] = AESGCM(HKDF(SHA256(), 32, None, INFO).derive(text.encode()))
        return self.keys[version]

    def seal(self, token: str, version: str | None = None) -> str:
        version, nonce = version or self.current, os.urandom(12)
        sealed = nonce + self.key(version).encrypt(nonce, token.encode(), None)
        return f"a1.k{version}:" + base64.urlsafe_b64encode(sealed).decode().rstrip("=")

    def open(self, value: str) -> str:
        marker, _, payload = value.partition(":")
        algorithm, _, version = marker.partition(".k")
        if algorithm != "a1":
            raise ValueError("another algorithm")
        sealed = base64.b64decode(payload + "=" * (-len(payload) % 4), altchars=b"-_")
        return self.key(version).decrypt(sealed[:12], sealed[12:], None).decode()

    def stale(self, value: str) -> bool:
        return not value.startswith(f"a1.k{self.current}:")


async def make(cipher: TokenCipher, rows: int) -> Any:
    connection = await connected()
    await connection.execute(
        f"CREATE TABLE {TABLE} (tenant_id int PRIMARY KEY, server_token text, sender text DEFAULT 'same')"
    )
    versions = [cipher.current, cipher.labels.get("AWSPREVIOUS", cipher.current)]
    records = [(at, cipher.seal(f"token of {at}", versions[at % 10 == 0])) for at in range(1, rows)]
    records.append((rows, None))
    await connection.copy_records_to_table(TABLE, columns=["tenant_id", "server_token"], records=records)
    await connection.close()
    return {"rows": rows}


async def audit(cipher: TokenCipher) -> Any:
    connection = await connected()
    rows = await connection.fetch(f"SELECT tenant_id, server_token FROM {TABLE} ORDER BY 1")
    await connection.close()
    return {row[0]: None if row[1] is None else cipher.open(row[1]) for row in rows}


class Live:
    """The application at work. It alone writes tokens, so that it knows what each must be."""

    def __init__(self, cipher: TokenCipher) -> None:
        self.cipher = cipher
        self.tokens: dict[int, str | None] = {}
        self.counts = dict.fromkeys(("written", "read", "lazily", "mopped", "lost", "unreadable"), 0)
        self.ended = asyncio.Event()

    async def run(self) -> Any:
        self.tokens = await audit(self.cipher)
        print("ready", flush=True)
        await asyncio.gather(self.serve(), self.mop_up(), self.wait())
        return {"tokens": self.tokens, **self.counts}

    async def wait(self) -> None:
        await asyncio.to_thread(sys.stdin.read)
        self.ended.set()

    async def serve(self) -> None:
        connection, choose = await connected(), random.Random(7)
        number = 0
        while not self.ended.is_set():
            number += 1
            await asyncio.sleep(PAUSE_S)
            if number % 50 == 1:
                await asyncio.to_thread(self.cipher.refresh)
            tenant = choose.choice(list(self.tokens))
            if choose.random() < 0.4:
                token = f"token {number} of {tenant}"
                await connection.execute(
                    f"UPDATE {TABLE} SET server_token = $2 WHERE tenant_id = $1",
                    tenant,
                    self.cipher.seal(token),
                )
                self.tokens[tenant] = token
                self.counts["written"] += 1
                continue
            value = await connection.fetchval(
                f"SELECT server_token FROM {TABLE} WHERE tenant_id = $1", tenant
            )
            self.counts["read"] += 1
            if value is not None:
                await self.renew(connection, tenant, value, "lazily")
        await connection.close()

    async def mop_up(self) -> None:
        connection = await connected()
        while not self.ended.is_set():
            rows = await connection.fetch(
                f"SELECT tenant_id, server_token FROM {TABLE} WHERE server_token IS NOT NULL "
                "AND NOT starts_with(server_token, $1) ORDER BY random() LIMIT 5",
                f"a1.k{self.cipher.current}:",
            )
            for tenant, value in rows:
                await self.renew(connection, tenant, value, "mopped")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.ended.wait(), 10 * PAUSE_S)
        await connection.close()

    async def mop_once(self, rows: int) -> Any:
        connection = await connected()
        for tenant, value in await connection.fetch(
            f"SELECT tenant_id, server_token FROM {TABLE} WHERE tenant_id <= $1", rows
        ):
            await self.renew(connection, tenant, value, "mopped")
        await connection.close()
        return self.counts

    async def renew(self, connection: Any, tenant: int, value: str, how: str) -> None:
        """Under AWSCURRENT what was read under another version, if it is still what was read."""
        try:
            token = self.cipher.open(value)
        except Exception:
            self.counts["unreadable"] += 1
            return
        if not self.cipher.stale(value):
            return
        done = await connection.execute(
            f"UPDATE {TABLE} SET server_token = $3 WHERE tenant_id = $1 AND server_token = $2",
            tenant, value, self.cipher.seal(token),
        )  # fmt: skip
        self.counts[how if done == "UPDATE 1" else "lost"] += 1


async def connected() -> Any:
    return await asyncpg.connect(os.environ["DATABASE_URL"])


def main() -> None:
    cipher = TokenCipher()
    what = sys.argv[1]
    work = {"make": lambda: make(cipher, int(sys.argv[2])), "audit": lambda: audit(cipher)}
    work["mop"] = lambda: Live(cipher).mop_once(int(sys.argv[2]))
    answer = asyncio.run(work[what]() if what in work else Live(cipher).run())
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
