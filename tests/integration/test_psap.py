"""The PSAP rotation with jobs/psap.toml, over rows that PHP's sodium wrote and afterwards reads."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pytest

from tests.support.values import KEYS
from tests.support.workbench import TIMEOUT_S, Result, Workbench, wait_while

HERE = Path(__file__).parent
JOB = HERE.parent.parent / "jobs" / "psap.toml"

COLUMNS = {"incidents": "title", "cfs_incidents": "raw_xml", "incident_communications": "body"}
"""The encrypted column of each table."""

CLASS_OF = {
    "null": "null",
    "unmarked": "unmarked",
    "malformed": "quarantined",
    "unopenable": "quarantined",
    "other_version": "other_version",
    "current": "current",
    "plaintext": "plaintext",
}
"""The class that each of PHP's kinds ends in; every other kind is resealed."""

PUBLISHED_CHECK = [
    "SELECT count(*) FROM incidents WHERE title LIKE 'v1:%'",
    "SELECT count(*) FROM cfs_incidents WHERE raw_xml LIKE 'v1:%'",
]
"""What the application's runbook counts after a rotation."""

ON_V1 = {"LIBSODIUM_ENCRYPTION_KEY_VERSION": "v1"}
ON_V2 = {"LIBSODIUM_ENCRYPTION_KEY_VERSION": "v2"}
"""Environments of the application, before and after its switch to the new key."""

Stored = dict[str, dict[str, dict[str, Any]]]
"""What PHP says of its rows: {table: {id: {"kind": …, "plain": base64 or None}}}."""

Rows = dict[str, dict[str, tuple[Any, ...]]]
"""{table: {id: (the encrypted column, all the others, the transaction that wrote the row)}}."""


@dataclass(frozen=True)
class Psap:
    """The application's database, its environment, its folder with the job, and PHP."""

    bench: Workbench
    php: str

    def __post_init__(self) -> None:
        shutil.copy(JOB, self.bench.folder)
        self.bench.environ |= {
            "LIBSODIUM_ENCRYPTION_KEY": KEYS["v1"].hex(),
            "LIBSODIUM_ENCRYPTION_KEY_V2": KEYS["v2"].hex(),
        }

    @property
    def ledger(self) -> Path:
        return self.bench.folder / "psap.rewrap-ledger.sqlite"

    def rewrap(self, *arguments: str, **environ: str) -> Result:
        """`rewrap VERB psap.toml …`, where the first argument is the verb."""
        verb, *rest = arguments
        return self.bench.rewrap(*verb.split(), "psap.toml", *rest, **environ)

    def run(self, *arguments: str, **environ: str) -> Result:
        return self.rewrap("run", "--from", "v1", "--to", "v2", "--json", *arguments, **environ)

    def application(self, *arguments: str, **environ: str) -> Stored:
        """What psap.php answers."""
        done = self._php(*arguments, **environ)
        assert done.returncode == 0, done.stderr
        answer: Stored = json.loads(done.stdout)
        return answer

    def refused(self, *arguments: str, **environ: str) -> str:
        """The error psap.php ends with."""
        done = self._php(*arguments, **environ)
        assert done.returncode == 1, done.stdout
        return done.stderr

    def _php(self, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.php, str(HERE / "psap.php"), *arguments],
            env={**self.bench.environ, **environ},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def rows(self) -> Rows:
        """Every row as it is stored."""
        return {
            table: {
                row["id"]: (row["value"], row["others"], row["written_by"])
                for row in self.bench.sql(
                    f"SELECT id::text AS id, {column} AS value, xmin::text AS written_by, "
                    f"(to_jsonb(t) - '{column}')::text AS others FROM {table} AS t"
                )
            }
            for table, column in COLUMNS.items()
        }

    def rotated_incidents(self) -> int:
        count: int = self.bench.value("SELECT count(*) FROM incidents WHERE starts_with(title, 'v2:')")
        return count


def merged(*parts: Stored) -> Stored:
    """What PHP said, the last word on each row."""
    out: Stored = {table: {} for table in COLUMNS}
    for part in parts:
        for table, rows in part.items():
            out[table] |= rows
    return out


def plains(stored: Stored) -> dict[tuple[str, str], str | None]:
    """The plaintexts of all rows, by table and id."""
    return {(table, key): row["plain"] for table, rows in stored.items() for key, row in rows.items()}


def kinds(stored: Stored) -> Counter[str]:
    """How many rows there are of each kind."""
    return Counter(row["kind"] for rows in stored.values() for row in rows.values())


def row_of(stored: Stored, kind: str) -> tuple[str, str]:
    """Table and id of the one row of a kind."""
    ((table, key),) = [
        (table, key) for table, rows in stored.items() for key, row in rows.items() if row["kind"] == kind
    ]
    return table, key


def expected_classes(made: Stored) -> dict[str, dict[str, dict[str, int]]]:
    """The classes that a run should count, in the shape of its last event."""
    return {
        table: {column: dict(Counter(CLASS_OF.get(row["kind"], "resealed") for row in made[table].values()))}
        for table, column in COLUMNS.items()
    }


def counted(verified: Result) -> dict[str, dict[str, dict[str, int]]]:
    """Verify's classes, in the shape of a run's last event."""
    return {
        event["target"]: {event["field"]: event["classes"]}
        for event in verified.events
        if event["type"] == "field_verdict"
    }


@pytest.fixture
def psap(bench: Workbench, php: str) -> Psap:
    """The application over an empty database."""
    return Psap(bench, php)


@dataclass(frozen=True)
class Rotation:
    """One whole rotation over ordinary and odd rows, as it was seen from outside at each step."""

    psap: Psap
    made: Stored
    before: Rows
    rehearsed: Result
    left_by_dry_run: tuple[Rows, list[str], list[str]]
    ran: Result
    after: Rows
    verified: Result
    listed: Result
    read: Stored
    read_with_one_key: Stored


@pytest.fixture(scope="module")
def rotation(server_dsn: str, php: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rotation]:
    """Made once, since each step takes a second; the tests below only look at it."""
    folder = tmp_path_factory.mktemp("psap")
    admin = Workbench(server_dsn, folder)
    name = f"psap_rotation_{os.getpid()}"
    admin.sql(f"CREATE DATABASE {name}")
    try:
        dsn = urlunsplit(urlsplit(server_dsn)._replace(path=f"/{name}"))
        yield _rotate(Psap(Workbench(dsn, folder), php))
    finally:
        admin.sql(f"DROP DATABASE {name} WITH (FORCE)")


def _rotate(psap: Psap) -> Rotation:
    made = merged(psap.application("make", "1400"), psap.application("odd"))
    before = psap.rows()
    rehearsed = psap.run("--dry-run")
    schemas = [row["nspname"] for row in psap.bench.sql("SELECT nspname FROM pg_namespace")]
    left_by_dry_run = psap.rows(), [path.name for path in psap.bench.folder.iterdir()], schemas
    ran = psap.run()
    after = psap.rows()
    return Rotation(
        psap=psap,
        made=made,
        before=before,
        rehearsed=rehearsed,
        left_by_dry_run=left_by_dry_run,
        ran=ran,
        after=after,
        verified=psap.rewrap("verify", "--deep", "--json"),
        listed=psap.rewrap("quarantine list", "--json"),
        read=psap.application("read"),
        # step 7 of the runbook, taken too early
        read_with_one_key=psap.application("read", LIBSODIUM_ENCRYPTION_KEY=KEYS["v2"].hex()),
    )


def test_dry_run_tells_the_outcome_and_writes_nothing(rotation: Rotation) -> None:
    """A dry run counts what the run then does, and leaves no row, file or schema behind."""
    rows, files, schemas = rotation.left_by_dry_run
    assert rotation.rehearsed.code == 3, rotation.rehearsed.err
    assert rotation.rehearsed.event("run_ended")["outcomes"] == expected_classes(rotation.made)
    assert rows == rotation.before
    assert not [name for name in files if "ledger" in name]
    assert "rewrap" not in schemas


def test_every_value_ends_in_its_class_and_odd_ones_make_exit_3(rotation: Rotation) -> None:
    """Each kind of value that PHP stored is counted as what it is, and the run is not called complete."""
    assert rotation.ran.code == 3, rotation.ran.err
    ended = rotation.ran.event("run_ended")
    assert ended["outcomes"] == expected_classes(rotation.made)
    assert ended["state"] == "incomplete"


def test_php_reads_every_value_that_could_be_opened_before(rotation: Rotation) -> None:
    """With both keys PHP opens each value to what it had sealed: empty, 1 MB, non-ASCII and all."""
    readable = {key: plain for key, plain in plains(rotation.made).items() if plain is not None}
    now = plains(rotation.read)
    assert {key: now[key] for key in readable} == readable
    resealed = [
        rotation.read[table][key]["kind"]
        for table, rows in rotation.made.items()
        for key, row in rows.items()
        if row["kind"] not in CLASS_OF
    ]
    assert resealed
    assert set(resealed) == {"v2"}


def test_whole_rows_stay_identical_but_for_the_resealed_value(rotation: Rotation) -> None:
    """A resealed row changes in its encrypted column alone; every other row is not even written."""
    for table, rows in rotation.made.items():
        before, after = rotation.before[table], rotation.after[table]
        assert after.keys() == before.keys() == rows.keys()
        for key, row in rows.items():
            if row["kind"] in CLASS_OF:
                assert after[key] == before[key], (table, row["kind"])
            else:
                assert after[key][0].startswith("v2:")
                assert after[key][1] == before[key][1], (table, row["kind"])


def test_verify_counts_the_same_classes_as_the_run(rotation: Rotation) -> None:
    """Verify's own count of each column agrees with the run's, class by class."""
    assert rotation.verified.code == 3, rotation.verified.err
    classes = expected_classes(rotation.made)
    for fields in classes.values():
        for counts in fields.values():
            counts["current"] = counts.get("current", 0) + counts.pop("resealed")
    assert counted(rotation.verified) == classes
    verdict = rotation.verified.event("verdict")
    assert (verdict["stale"], verdict["unopenable"], verdict["complete"]) == (0, 0, False)
    assert verdict["values"] == sum(len(rows) for rows in rotation.made.values())


def test_quarantine_names_exactly_the_broken_rows_and_why(rotation: Rotation) -> None:
    """Of all odd values only the truncated one and the one under another key are put aside."""
    assert rotation.listed.code == 0, rotation.listed.err
    found = {
        (event["relation"], event["row_id"], event["field"], event["reason"], event["version"])
        for event in rotation.listed.events
    }
    assert len(rotation.listed.events) == 2
    assert found == {
        (f'"public"."{table}"', key, COLUMNS[table], kind, "v1")
        for kind in ("malformed", "unopenable")
        for table, key in [row_of(rotation.made, kind)]
    }


def test_no_output_holds_keys_plaintext_or_stored_values(rotation: Rotation) -> None:
    """Nothing that was stored or sealed, and no key, is printed by a command or kept in the ledger."""
    results = (rotation.rehearsed, rotation.ran, rotation.verified, rotation.listed)
    said = "".join(result.out + result.err for result in results)
    kept = b"".join(path.read_bytes() for path in rotation.psap.bench.folder.glob("*ledger*"))
    secrets = [key.hex() for key in KEYS.values()]
    secrets += ["Main St", "on scene", "before prefixes", "never sealed", "v1:is how"]
    secrets += [value[0][-24:] for table in rotation.before.values() for value in table.values() if value[0]]
    assert not [secret for secret in secrets if secret in said]
    assert kept
    assert not [secret for secret in secrets if secret.encode() in kept]


def test_unprefixed_value_is_lost_when_the_v1_slot_gets_the_new_key(rotation: Rotation) -> None:
    """Why step 7 waits for unmarked to be 0: PHP then takes the ciphertext for what the caller wrote."""
    table, key = row_of(rotation.made, "unmarked")
    assert rotation.read[table][key] == rotation.made[table][key]
    assert rotation.read_with_one_key[table][key]["kind"] == "plaintext"
    assert rotation.read_with_one_key[table][key]["plain"] != rotation.made[table][key]["plain"]
    assert rotation.verified.event("verdict")["unmarked"] == 1


def test_run_and_deep_verify_exit_0_once_the_odd_values_are_repaired(psap: Psap) -> None:
    """Deleting or saving the odd values anew is all it takes; the plain text that stays does not count."""
    made = merged(psap.application("make", "40"), psap.application("odd"))
    assert psap.run().code == 3
    deleted = [row_of(made, "malformed"), row_of(made, "other_version")]
    for table, key in deleted:
        psap.bench.sql(f"DELETE FROM {table} WHERE id = '{key}'")
        del made[table][key]
    for kind in ("unopenable", "unmarked"):
        table, key = row_of(made, kind)
        made = merged(made, psap.application("save", table, f"mended {kind}", key, **ON_V2))
    ran = psap.run()
    assert ran.code == 0, ran.err + ran.out
    verified = psap.rewrap("verify", "--deep", "--json")
    verdict = verified.event("verdict")
    assert verified.code == 0, verified.err
    assert (verdict["stale"], verdict["quarantined"], verdict["plaintext"]) == (0, 0, 1)
    assert plains(psap.application("read")) == plains(made)


def test_stopped_rotation_can_be_rolled_back_and_run_again(psap: Psap) -> None:
    """Ctrl-C, the application back on v1: every row stays readable, and the next run takes them all."""
    made = merged(
        psap.application("make", "3000"), psap.application("save", "incidents", "first under v2", **ON_V2)
    )
    arguments = ["run", "psap.toml", "--from", "v1", "--to", "v2", "--max-rate", "100"]
    with psap.bench.started(*arguments) as running:
        wait_while(running, lambda: psap.rotated_incidents() > 100)
        running.send_signal(signal.SIGINT)
        running.communicate(timeout=TIMEOUT_S)
        assert running.returncode == 4
    assert 100 < psap.rotated_incidents() < 3000
    assert psap.rewrap("status", "--json").event("status")["run"]["state"] == "interrupted"

    (rotated,) = psap.bench.sql("SELECT id::text FROM incidents WHERE starts_with(title, 'v2:') LIMIT 1")
    made = merged(
        made,
        psap.application("save", "incidents", "changed after the rollback", rotated["id"], **ON_V1),
        psap.application("save", "incident_communications", "new after the rollback", **ON_V1),
    )
    read = psap.application("read", **ON_V1)
    assert plains(read) == plains(made)
    assert set(kinds(read)) == {"v1", "v2"}

    ran = psap.run()
    assert ran.code == 0, ran.err + ran.out
    assert ran.event("run_started")["resumed"] is True
    read = psap.application("read")
    assert plains(read) == plains(made)
    assert set(kinds(read)) == {"v2"}


def test_published_check_says_0_where_verify_says_not_complete(psap: Psap) -> None:
    """Two LIKEs pass over a value without a prefix and over a third table; verify names both."""
    psap.application("make", "40", **ON_V2)
    for _ in range(3):
        psap.application("save", "incident_communications", "from a worker left on v1", **ON_V1)
    psap.bench.sql(
        "UPDATE incidents SET title = (SELECT substr(body, 4) FROM incident_communications "
        "WHERE starts_with(body, 'v1:') LIMIT 1) WHERE id = (SELECT id FROM incidents LIMIT 1)"
    )
    assert [psap.bench.value(query) for query in PUBLISHED_CHECK] == [0, 0]
    verified = psap.rewrap("verify", "--to", "v2", "--json")
    assert verified.code == 3, verified.err
    assert verified.event("verdict")["reasons"] == [
        "incidents.title: 1 sealed but without a marker",
        "incident_communications.body: 3 still under an old version",
    ]


def test_unprefixed_values_are_resealed_where_the_job_says_so(psap: Psap) -> None:
    """With unmarked = "reseal" nothing needs the old key any more, and step 7 loses no value."""
    made = psap.application("make", "40")
    psap.bench.sql("UPDATE incidents SET title = substr(title, 4) WHERE priority = 1")
    job = psap.bench.folder / "psap.toml"
    wanted = 'table = "incidents"\nunmarked = "reseal"'
    assert job.read_text().count('table = "incidents"') == 1
    job.write_text(job.read_text().replace('table = "incidents"', wanted))
    ran = psap.run("--allow-unseen-target")
    assert ran.code == 0, ran.err + ran.out
    assert ran.event("run_ended")["outcomes"]["incidents"] == {"title": {"resealed": 40}}
    read = psap.application("read", LIBSODIUM_ENCRYPTION_KEY=KEYS["v2"].hex())
    assert plains(read) == plains(made)
    assert set(kinds(read)) == {"v2"}


def test_fence_keeps_php_from_writing_the_old_version(psap: Psap) -> None:
    """After verify --fence a worker that was left on v1 is refused by the database; v2 goes through."""
    psap.application("make", "8", **ON_V2)
    fenced = psap.rewrap("verify", "--to", "v2", "--fence", "--json")
    assert fenced.code == 0, fenced.err
    for table, column in COLUMNS.items():
        assert f"rewrap_fence_{column}" in psap.refused("save", table, "late", **ON_V1)
        psap.application("save", table, "in time", **ON_V2)


def test_next_rotation_starts_from_a_v1_slot_that_holds_the_v2_key(psap: Psap) -> None:
    """Step 7 leaves one key in two slots; the rotation to v3 takes every value of it all the same."""
    psap.bench.environ |= {
        "LIBSODIUM_ENCRYPTION_KEY": KEYS["v2"].hex(),
        "LIBSODIUM_ENCRYPTION_KEY_V3": KEYS["v3"].hex(),
    }
    made = merged(
        psap.application("make", "40", **ON_V2),
        psap.application("save", "incidents", "first under v3", LIBSODIUM_ENCRYPTION_KEY_VERSION="v3"),
    )
    ran = psap.rewrap("run", "--from", "v2", "--to", "v3", "--json")
    assert ran.code == 0, ran.err + ran.out
    read = psap.application("read")
    assert plains(read) == plains(made)
    assert set(kinds(read)) == {"v3"}
