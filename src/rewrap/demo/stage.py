"""The demonstration: a key is rotated under a live application, and the run is killed midway."""

import asyncio
import contextlib
import json
import secrets
import tempfile
import time
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rewrap.demo.application import Application, Audit, TableModel, Tally
from rewrap.demo.command import Command
from rewrap.demo.documents import DATABASE, Documents
from rewrap.demo.emulator import KEY, CosmosEmulator
from rewrap.demo.errors import DemoError
from rewrap.demo.narrator import Narrator
from rewrap.demo.pair import Pair
from rewrap.demo.postgres import EmbeddedPostgres

TABLES = (
    TableModel("messages", key="uuid"),
    TableModel("contacts", key="bigint"),
    TableModel("documents", key="bigint", aad="account_id"),
)

# The share of values under the new key at which the run is killed.
KILL_AT = 0.4

# Seconds that the run would take at least if it were not killed: on no machine is it over before.
AT_LEAST_S = 6.0

# Seconds that the application writes before the rotation, and goes on writing after it.
BEFORE_S = 0.7
AFTER_S = 1.0

# Seconds between two looks at how far the run is.
LOOK_S = 0.1

JOB = """\
name = "demo"

# a demonstration is to be short, and its application is busy: without this the run would leave it the server
[pace.health]
yield_to_others = false

[stores.main]
kind = "postgres"
url = "${DATABASE_URL}"

[keys.versions.v1]
material = "env:REWRAP_DEMO_KEY_V1"
encoding = "hex"

[keys.versions.v2]
material = "env:REWRAP_DEMO_KEY_V2"
encoding = "hex"

[layouts.secretbox]
marker = "{version}:"
version = "v[0-9]+"
encoding = "base64"
cipher = "secretbox"

[layouts.aead]
marker = "{version}:"
version = "v[0-9]+"
encoding = "base64"
cipher = "aes-256-gcm"
aad = "{account_id}"

[[targets]]
table = "messages"
key = "id"
fields = [{ column = "body", layout = "secretbox" }]

[[targets]]
table = "contacts"
key = "id"
fields = [{ column = "body", layout = "secretbox" }]

[[targets]]
table = "documents"
key = "id"
fields = [{ column = "body", layout = "aead" }]
"""

DOCUMENTS = f"""
[stores.documents]
kind = "cosmos"
endpoint = "${{REWRAP_DEMO_COSMOS_ENDPOINT}}"
key = "env:REWRAP_DEMO_COSMOS_KEY"
database = "{DATABASE}"
settle_s = 1.0

[layouts.wrapped]
encoding = "base64"
cipher = "aes-256-gcm"

[[targets]]
store = "documents"
container = "deks"
fields = [{{ column = "wrappedDek", layout = "wrapped", version = {{ column = "mekVersion" }} }}]
"""
"""What the job has besides, with documents in Cosmos DB: records of DEKs, whose wrapping changes."""

DEKS = 3_000
"""Records of DEKs that are loaded: the emulator's pages cost the more the more documents it has."""


@dataclass(slots=True)
class Result:
    """What was measured. `reasons` is empty when everything that must be 0 is 0."""

    rows: int = 0
    values: int = 0
    lost: int = 0
    undecryptable: int = 0
    stale: int = 0
    unopenable: int = 0
    other_columns_wrong: int = 0
    application_errors: int = 0
    killed_at_values: int = 0
    writes_during_run: int = 0
    p99_ms_before: float = 0.0
    p99_ms_during: float = 0.0
    load_s: float = 0.0
    rotation_s: float = 0.0
    verify_s: float = 0.0
    audit_s: float = 0.0
    seconds: float = 0.0
    reasons: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, object]:
        """The machine-readable summary; fields may be added, never changed or removed."""
        first = {
            "type": "demo",
            "rows": self.rows,
            "lost": self.lost,
            "undecryptable": self.undecryptable,
            "stale": self.stale,
            "seconds": round(self.seconds, 2),
        }
        return first | {
            "values": self.values,
            "unopenable": self.unopenable,
            "other_columns_wrong": self.other_columns_wrong,
            "application_errors": self.application_errors,
            "killed_at_values": self.killed_at_values,
            "writes_during_run": self.writes_during_run,
            "p99_ms_before": round(self.p99_ms_before, 2),
            "p99_ms_during": round(self.p99_ms_during, 2),
            "load_s": round(self.load_s, 2),
            "rotation_s": round(self.rotation_s, 2),
            "verify_s": round(self.verify_s, 2),
            "audit_s": round(self.audit_s, 2),
            "reasons": self.reasons,
        }


def perform(narrator: Narrator, *, rows: int, seed: int, cosmos: bool = False) -> Result:
    """Plays the whole demonstration on servers of its own and returns what it measured.

    With `cosmos` there are documents in a Cosmos DB emulator besides, in the same job. Raises DemoError when
    it could not be played to the end. Nothing is left behind.
    """
    began = time.monotonic()
    narrator.step("A Postgres of our own" + (", and a Cosmos DB emulator" if cosmos else ""))
    with contextlib.ExitStack() as stack:
        # first: it may not be installed
        emulator = stack.enter_context(CosmosEmulator()) if cosmos else None
        server = stack.enter_context(EmbeddedPostgres())
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="rewrap-demo-"))
        release = server.psql("SHOW server_version").strip()
        took = time.monotonic() - began
        narrator.fact(f"Postgres {release} on 127.0.0.1:{server.port}, started in {took:.1f} s")
        keys = {version: secrets.token_bytes(32) for version in ("v1", "v2")}
        tables = Application(server.dsn(), TABLES, keys, "v1", seed=seed)
        application: Application | Pair = tables
        environment = {
            "DATABASE_URL": server.dsn(),
            "REWRAP_DEMO_KEY_V1": keys["v1"].hex(),
            "REWRAP_DEMO_KEY_V2": keys["v2"].hex(),
        }
        if emulator is not None:
            narrator.fact(f"Cosmos DB emulator on {emulator.endpoint.removeprefix('http://')}, in memory")
            documents = Documents(emulator.endpoint, KEY, keys, "v1", seed=seed)
            application = Pair(tables, documents, min(DEKS, max(1, rows)))
            environment["REWRAP_DEMO_COSMOS_ENDPOINT"] = emulator.endpoint
            environment["REWRAP_DEMO_COSMOS_KEY"] = KEY
        play = _Play(application, Path(directory), environment, narrator)
        result = asyncio.run(play.perform(rows))
    result.seconds = time.monotonic() - began
    return result


class _Play:
    """The acts, in order, around one application and one job file."""

    def __init__(
        self,
        application: Application | Pair,
        directory: Path,
        environment: Mapping[str, str],
        narrator: Narrator,
    ) -> None:
        self._application = application
        self._job = directory / "rewrap.toml"
        self._environment = environment
        self._narrator = narrator
        self._result = Result()

    async def perform(self, rows: int) -> Result:
        try:
            return await self._perform(rows)
        finally:
            if isinstance(self._application, Pair):
                await self._application.close()

    async def _perform(self, rows: int) -> Result:
        self._job.write_text(_job(isinstance(self._application, Pair)))
        await self._load(rows)
        self._application.start()
        try:
            before = await self._write_before()
            during = await self._rotate()
            await asyncio.sleep(AFTER_S)
        finally:
            await self._application.stop()
        after = self._application.tally()
        self._judge_application(before, during, after)
        await self._verify()
        await self._audit()
        return self._result

    async def _load(self, rows: int) -> None:
        narrator, result = self._narrator, self._result
        narrator.step("An application with encrypted rows")
        per_table = max(1, rows // len(TABLES))
        with narrator.waiting("sealing rows under v1"):
            await self._application.create()
            result.load_s = await _seconds(self._application.load(per_table))
        names = ", ".join(table.name for table in TABLES)
        narrator.fact(f"{per_table * len(TABLES):,} rows in {names} ({result.load_s:.1f} s)")
        narrator.fact("messages and contacts: libsodium secretbox; documents: AES-256-GCM bound to")
        narrator.fact("the row's account. The application shares no code with rewrap.")
        if isinstance(self._application, Pair):
            narrator.fact(
                f"In Cosmos DB {self._application.deks:,} DEKs, wrapped with AES-256-GCM, and notes under"
            )
            narrator.fact("them. The DEKs are wrapped anew; in the end every note is opened and compared.")

    async def _write_before(self) -> Tally:
        narrator = self._narrator
        narrator.step("It never stops: inserts, updates, moves between accounts, deletes")
        await asyncio.sleep(BEFORE_S)
        before = self._application.tally()
        narrator.fact(f"{before.writes / before.seconds:,.0f} writes/s under v1, {_latency(before)}")
        # First the writers, then the rows: the order that rewrap's runbook asks for.
        self._application.switch("v2")
        narrator.fact("switched its writers to v2; every loaded row is still under v1")
        return before

    async def _rotate(self) -> Tally:
        """Run, kill, resume; the application's tally from the beginning to the end of it."""
        narrator, result = self._narrator, self._result
        self._application.tally()
        began = time.monotonic()
        narrator.step("rewrap rotates the rows, and is killed on the way")
        options = ["--from", "v1", "--to", "v2", "--allow-unseen-target"]
        rate = sum((await self._application.versions()).values()) / AT_LEAST_S
        run = await self._start(["run", self._job.name, *options, "--max-rate", f"{max(1.0, rate):.0f}"])
        try:
            await self._watch(run)
        finally:
            await run.kill()
        narrator.fact("SIGKILL")
        counts = await self._application.versions()
        result.killed_at_values = counts.get("v2", 0)
        narrator.fact(f"left behind: {_share(counts)}")

        narrator.step("It goes on from its last checkpoint")
        resume = await self._start(["resume", self._job.name])
        self._expect_zero("rewrap resume", await resume.wait())
        result.rotation_s = time.monotonic() - began
        during = self._application.tally()
        narrator.fact(f"{during.writes:,} writes by the application meanwhile, {_latency(during)}")
        return during

    async def _watch(self, run: Command) -> None:
        """Returns once enough values are under the new key."""
        with self._narrator.waiting("waiting for the first values") as show:
            while run.running:
                counts = await self._application.versions()
                show(_share(counts))
                if counts.get("v2", 0) >= KILL_AT * sum(counts.values()):
                    return
                await asyncio.sleep(LOOK_S)
        raise DemoError(
            f"rewrap run ended with exit code {await run.wait()} before it could be killed",
            hint="with more --rows it takes longer",
        )

    async def _verify(self) -> None:
        """rewrap's own proof: an independent count, and every value opened."""
        narrator, result = self._narrator, self._result
        narrator.step("rewrap verify opens every value, with code of its own")
        verify = await self._start(["verify", self._job.name, "--to", "v2", "--deep", "--json"])
        self._expect_zero("rewrap verify", await verify.wait())
        result.verify_s = time.monotonic() - verify.began
        verdict = _verdict(verify.printed)
        result.values = verdict["values"]
        result.stale = verdict["stale"]
        result.unopenable = verdict["unopenable"]
        narrator.fact(
            f"{result.values:,} values, {result.stale:,} stale, {result.unopenable:,} that do not"
            f" open ({result.verify_s:.1f} s)"
        )
        self._expect(result.stale == 0, f"{result.stale} values are stale")
        self._expect(result.unopenable == 0, f"{result.unopenable} values do not open for rewrap")

    async def _audit(self) -> None:
        """The application's proof: every row holds what its last writer wrote."""
        narrator, result = self._narrator, self._result
        narrator.step("The application audits every row against what it wrote")
        began = time.monotonic()
        with narrator.waiting("opening every row"):
            audit: Audit = await self._application.audit()
        result.audit_s = time.monotonic() - began
        result.rows = audit.rows
        result.lost = audit.lost
        result.undecryptable = audit.undecryptable
        result.other_columns_wrong = audit.other_columns_wrong
        narrator.fact(
            f"{audit.rows:,} rows, {audit.lost:,} lost, {audit.undecryptable:,} that do not open"
            f" ({result.audit_s:.1f} s)"
        )
        self._expect(audit.lost == 0, f"{audit.lost} updates were lost")
        self._expect(audit.undecryptable == 0, f"{audit.undecryptable} values do not open")
        self._expect(
            audit.other_columns_wrong == 0,
            f"{audit.other_columns_wrong} rows have another column wrong",
        )
        elsewhere = sum(audit.by_version.values()) - audit.by_version.get("v2", 0)
        self._expect(elsewhere == 0, f"the application still opens {elsewhere} values without v2")
        self._expect(
            audit.rows == result.values,
            f"rewrap counted {result.values} values where the application has {audit.rows}",
        )

    def _judge_application(self, before: Tally, during: Tally, after: Tally) -> None:
        result, errors = self._result, self._application.errors
        result.p99_ms_before = before.p99_ms
        result.p99_ms_during = during.p99_ms
        result.writes_during_run = during.writes
        result.application_errors = len(errors)
        self._expect(during.writes > 0, "the application wrote nothing during the rotation")
        self._expect(after.writes > 0, "the application wrote nothing after the rotation")
        for error in sorted(set(errors)):
            self._expect(False, f"the application saw an error, {errors.count(error)} times: {error}")

    async def _start(self, arguments: list[str]) -> Command:
        self._narrator.command(" ".join(["rewrap", *arguments]))
        return await Command.start(arguments, self._job.parent, self._environment, self._show)

    def _show(self, line: str) -> None:
        # Lines of JSON are for this program; what they say is shown as a fact.
        if not line.startswith("{"):
            self._narrator.output(line)

    def _expect_zero(self, command: str, exit_code: int) -> None:
        self._expect(exit_code == 0, f"{command} ended with exit code {exit_code}")

    def _expect(self, true: bool, otherwise: str) -> None:
        if not true:
            self._result.reasons.append(otherwise)


def _job(cosmos: bool) -> str:
    if not cosmos:
        return JOB
    return JOB.replace("[[targets]]\n", '[[targets]]\nstore = "main"\n') + DOCUMENTS


def _verdict(printed: list[str]) -> dict[str, int]:
    """The counts in the last line of `rewrap verify --json`; DemoError if one is not there."""
    try:
        verdict = json.loads(printed[-1])
        if verdict["type"] != "verdict":
            raise ValueError
        return {name: int(verdict[name]) for name in ("values", "stale", "unopenable")}
    except (IndexError, KeyError, TypeError, ValueError) as exc:
        raise DemoError("rewrap verify printed no verdict") from exc


def _share(counts: Mapping[str, int]) -> str:
    total = sum(counts.values())
    new = counts.get("v2", 0)
    return f"{new:,} of {total:,} values under v2 ({new / max(1, total):.0%})"


def _latency(tally: Tally) -> str:
    return f"p50 {tally.p50_ms:.1f} ms, p99 {tally.p99_ms:.1f} ms"


async def _seconds(work: Awaitable[None]) -> float:
    began = time.monotonic()
    await work
    return time.monotonic() - began
