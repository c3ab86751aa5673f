"""Aether's database, its jobs and its service: what the tests of that rotation work on."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support.workbench import Result, Workbench

ROOT = Path(__file__).parents[2]

SERVICE = ROOT / "tests" / "integration" / "aether_service.py"

JOBS = {
    "secrets": "aether.toml",
    "secret_records": "aether-envelopes.toml",
    "integration_tokens": "aether-fernet.toml",
}
"""The job of each table."""

FLAG = "--acknowledge-quiesced"

Told = dict[str, dict[str, Any]]
"""What the service says that its values open to: {table: {id: plaintext, or None}}."""


def new_key(size: int = 32) -> str:
    """A key as the runbook makes it: `openssl rand -base64`, with the end of its line."""
    return base64.b64encode(os.urandom(size)).decode() + "\n"


class Aether:
    """The jobs in a folder of their own, both keys in the operator's environment."""

    def __init__(self, bench: Workbench, *, old_bytes: int = 32, new_bytes: int = 32) -> None:
        self.bench = bench
        for name in JOBS.values():
            shutil.copy(ROOT / "jobs" / name, bench.folder)
        self.old, self.new = new_key(old_bytes), new_key(new_bytes)
        self.old_fernet, self.new_fernet = (
            base64.urlsafe_b64encode(os.urandom(32)).decode() for _ in range(2)
        )
        bench.environ |= {
            "SECRET_ENCRYPTION_KEY": self.new,
            "SECRET_ENCRYPTION_KEY_PREVIOUS": self.old,
            "FERNET_KEY": self.new_fernet,
            "FERNET_KEY_PREVIOUS": self.old_fernet,
        }

    def _environ(self, *, new: bool) -> dict[str, str]:
        """The service's own environment: one key of each kind."""
        kept = {name: self.bench.environ[name] for name in ("PATH", "DATABASE_URL")}
        return {
            **kept,
            "SECRET_ENCRYPTION_KEY": self.new if new else self.old,
            "FERNET_KEY": self.new_fernet if new else self.old_fernet,
        }

    def service(self, *words: str, new: bool = False) -> Told:
        """What the service answers, started with the old key or with the new one."""
        done = subprocess.run(
            [sys.executable, str(SERVICE), *words],
            env=self._environ(new=new), capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        told: Told = json.loads(done.stdout)
        return told

    @contextlib.contextmanager
    def serving(self, *, new: bool) -> Iterator[str]:
        """The service at work; gives the address that tells whether it reads."""
        process = subprocess.Popen(
            [sys.executable, str(SERVICE), "serve"],
            env=self._environ(new=new), stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{int(process.stdout.readline())}/readyz"
        finally:
            process.kill()
            process.communicate(timeout=60)

    def rewrap(self, verb: str, table: str = "secrets", *arguments: str, **environ: str) -> Result:
        """`rewrap VERB JOB …`, with the job of a table."""
        return self.bench.rewrap(*verb.split(), JOBS[table], *arguments, **environ)

    def run(self, table: str = "secrets", *arguments: str, **environ: str) -> Result:
        """A run from v1 to v2, the new key vouched for, events as JSON."""
        return self.rewrap(
            "run",
            table,
            "--from",
            "v1",
            "--to",
            "v2",
            "--allow-unseen-target",
            "--json",
            *arguments,
            **environ,
        )

    def stored(self, table: str) -> dict[str, dict[str, Any]]:
        """The rows of a table as they are."""
        rows = self.bench.sql(f"SELECT id::text AS id, to_jsonb(t) AS row FROM {table} AS t")
        return {row["id"]: json.loads(row["row"]) for row in rows}

    def audited(self) -> list[dict[str, Any]]:
        text = (self.bench.folder / "aether-audit.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()]
