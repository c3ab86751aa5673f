"""NoteLett for tests: its containers, its application in Node, its keys, and a folder with its jobs."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicNumbers
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.support.cosmos import CosmosDatabase, node_program
from tests.support.vault import ADMIN, VaultEmulator
from tests.support.workbench import Result, Workbench

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "tests" / "integration" / "notelett.mjs"
JOBS = ("notelett-deks.toml", "notelett-reencrypt.toml")

CONTAINERS = {
    "dek_store": "/id",
    "notes": "/workspaceId",
    "artifacts": "/workspaceId",
    "prompts": "/userId",
    "agent_actions": "/workspaceId",
    "memories": "/userId",
}
"""The containers by their partition keys."""

CLASS_OF = {
    "no_version": "unmarked",
    "null_version": "unmarked",
    "number_version": "unmarked",
    "other_version": "other_version",
    "malformed": "quarantined",
    "unopenable": "quarantined",
    "null": "null",
}
"""The class that each of Node's odd records ends in; every other one is rewrapped."""

Told = dict[str, dict[str, dict[str, Any]]]
"""What Node says: {container: {id: what it is}}."""


@dataclass
class NoteLett:
    """The application over a database of its own, with the environment that it shares with rewrap."""

    cosmos: CosmosDatabase
    folder: Path
    vault: VaultEmulator | None = None
    """Where the MEK is; None for NoteLett outside of production, with the MEK in its environment."""
    bench: Workbench = field(init=False)
    meks: dict[str, dict[str, str]] = field(default_factory=dict, repr=False)
    old: str = "v1"
    new: str = "v2"
    name: str = ""
    """The MEK's name in the vault; one that no other test has, unless told."""
    more_deks: tuple[str, ...] = ()
    """Containers of DEK records besides dek_store."""

    def __post_init__(self) -> None:
        self.bench = Workbench("", self.folder)
        for job in JOBS:
            shutil.copy(ROOT / "jobs" / job, self.folder)
        for container, path in CONTAINERS.items():
            self.cosmos.container(container, path)
        for container in self.more_deks:
            self.cosmos.container(container, "/id")
        self.bench.environ |= self.cosmos.environ
        if self.vault is None:
            secret = {version: secrets.token_hex(32) for version in ("v1", "v2")}
            self.bench.environ |= {
                "FIELD_ENCRYPT_KEY_PROVIDER": "env",
                "FIELD_ENCRYPT_KEY": secret["v1"],
                "FIELD_ENCRYPT_KEY_V2": secret["v2"],
            }
            self.meks = {version: {"secret": each} for version, each in secret.items()}
            return
        self.name = self.name or self.vault.new_name()
        self.bench.environ |= self.vault.environ
        self.bench.environ |= {"FIELD_ENCRYPT_KEY_PROVIDER": "akv", "FIELD_ENCRYPT_MEK_NAME": self.name}
        self.old = self.mint()

    def mint(self) -> str:
        """A new version of the MEK in the vault, which is at once the latest."""
        assert self.vault is not None
        version = self.vault.create_version(self.name)
        public = RSAPublicNumbers(*reversed(self.vault.public_key(self.name, version))).public_key()
        pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
        self.meks[version] = {"public": pem, "vault": f"{self.vault.url}/keys/{self.name}/{version}"}
        self.new = version
        return version

    # the application

    def node(self, *arguments: str, version: str | None = None, forget: str = "") -> Told:
        """What notelett.mjs answers, writing under a version; `forget` is one whose MEK it has not."""
        done = subprocess.run(
            self._command(*arguments),
            env=self._environ(version or self.old, forget),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        told: Told = json.loads(done.stdout)
        return told

    @contextmanager
    def writing(self, seed: int = 1, *, new: int = 1_000, pause_ms: int = 4) -> Iterator[list[Told]]:
        """The application writes under the new version meanwhile; in the list, at the end, what it wrote."""
        told: list[Told] = []
        process = subprocess.Popen(
            self._command("write", str(seed), str(new), str(pause_ms)),
            env=self._environ(self.new, ""),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stderr is not None
            assert process.stderr.readline() == "writing\n", process.stderr.read()
            yield told
            out, err = process.communicate(timeout=120)
            assert process.returncode == 0, err
            told.append(json.loads(out))
        finally:
            if process.poll() is None:
                process.kill()
                process.communicate()

    def _command(self, *arguments: str) -> list[str]:
        node = node_program()
        assert node is not None
        return [node, str(PROGRAM), *arguments]

    def _environ(self, version: str, forget: str) -> dict[str, str]:
        meks = {each: dict(mek) for each, mek in self.meks.items() if each != forget}
        more = {}
        if self.vault is not None:
            for mek in meks.values():
                mek["token"] = self.vault.service.token(ADMIN)
            more = {"NODE_EXTRA_CA_CERTS": str(self.vault.ca)}
        return {
            **os.environ,
            **self.cosmos.environ,
            **more,
            "NOTELETT_MEKS": json.dumps(meks),
            "NOTELETT_MEK_VERSION": version,
            "NOTELETT_DEK_STORES": ",".join(("dek_store", *self.more_deks)),
        }

    # rewrap

    def rewrap(self, verb: str, *arguments: str, job: str = "notelett-deks.toml", **environ: str) -> Result:
        """`rewrap VERB JOB …`."""
        return self.bench.rewrap(*verb.split(), job, *arguments, **environ)

    def run(self, *arguments: str, job: str = "notelett-deks.toml", **environ: str) -> Result:
        versions = ("--from", self.old, "--to", self.new)
        return self.rewrap(
            "run", *versions, "--allow-unseen-target", "--json", *arguments, job=job, **environ
        )

    # the database

    def etags(self) -> dict[str, dict[str, str]]:
        """Each document's _etag, by container and id."""
        return {container: self.cosmos.etags(container) for container in CONTAINERS}

    def query(self, container: str, query: str) -> list[Any]:
        """The results of a query as somebody types it into Data Explorer."""
        headers = {
            "x-ms-documentdb-isquery": "True",
            "x-ms-documentdb-query-enablecrosspartition": "True",
            "Content-Type": "application/query+json",
        }
        path = f"dbs/{self.cosmos.name}/colls/{container}/docs"
        body = {"query": query, "parameters": []}
        answer, _ = self.cosmos.account.request("POST", path, body, headers=headers)
        found: list[Any] = answer["Documents"]
        return found


def merged(*parts: Told) -> Told:
    """What Node said, the last word on each document."""
    out: Told = {}
    for part in parts:
        for container, documents in part.items():
            if container not in ("marked", "lost"):
                out.setdefault(container, {}).update(documents)
    return out


def rotated(counts: dict[str, int]) -> dict[str, int]:
    """The classes that a run has counted; the one write that it tried first was current when it came by."""
    counts = dict(counts)
    counts["resealed"] = counts.get("resealed", 0) + counts.pop("current", 0)
    return counts


def expected_classes(made: Told) -> dict[str, int]:
    """The classes that a run should count of records of DEKs."""
    return dict(Counter(CLASS_OF.get(record["kind"], "resealed") for record in made["dek_store"].values()))
