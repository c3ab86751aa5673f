"""Nothing that rewrap prints or keeps holds plaintext, a stored value, a key or a password."""

from __future__ import annotations

import base64
import stat
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, urlsplit, urlunsplit

import pytest
import typer

from rewrap.cli.terminal import errors_shown
from tests.support.receiver import Receiver, Say
from tests.support.values import KEYS, box
from tests.support.workbench import TIMEOUT_S, Result, Workbench, wait_while

RUN = ("run", "--from", "v1", "--to", "v2", "--allow-unseen-target")
FLAGGED = ("--json", "--debug")
FLAGS = pytest.mark.parametrize("flags", [(), FLAGGED], ids=["plain", "json-debug"])

PLAINTEXT = "canary-plaintext"
OTHER_COLUMN = "canary-of-another-column"
PASSWORD = "canary-password"
CANARY_KEYS = {version: f"canary-key-of-version-{version}".ljust(32, "!").encode() for version in KEYS}
"""Printable key bytes, so that their raw form would be found in text too."""


class Guarded:
    """A bench with canaries in every place a secret can be, and a look at everything that comes out."""

    def __init__(self, bench: Workbench, receiver: Receiver) -> None:
        self.bench = bench
        self.role = "s_" + urlsplit(bench.dsn).path.strip("/")
        self.said: list[Result] = []
        self.stored: set[str] = set()
        self.receiver = receiver
        for version, key in CANARY_KEYS.items():
            bench.environ[f"KEY_{version.upper()}"] = key.hex()

    def notes(self, values: list[str | None], column: str = "text") -> None:
        self.bench.sql(
            f"CREATE TABLE notes (id bigint PRIMARY KEY, body {column}, other text DEFAULT '{OTHER_COLUMN}')"
        )
        self.bench.insert("notes", ["id", "body"], list(enumerate(values, 1)))
        self._note_stored()

    def rewrap(self, *arguments: str, **environ: str) -> Result:
        ran = self.bench.rewrap(*arguments, **environ)
        self.said.append(ran)
        return ran

    def _note_stored(self) -> None:
        """Remembers the payloads of stored values: ciphertext is nobody's to print either."""
        for body in self.bench.bodies().values():
            if body and len(body) > 40:
                self.stored.add(body.rpartition(":")[2])

    def check(self) -> None:
        """Fails with the names of the canaries that got out, and where."""
        self._note_stored()
        places = {f"{at}. command, stdout": ran.out.encode() for at, ran in enumerate(self.said, 1)}
        places |= {f"{at}. command, stderr": ran.err.encode() for at, ran in enumerate(self.said, 1)}
        for pattern in ("*ledger*", "*audit*", "*audit*/*"):
            for path in filter(Path.is_file, self.bench.folder.glob(pattern)):
                places[path.name] = path.read_bytes()
        places |= {f"{at}. message": got.body for at, got in enumerate(self.receiver.got, 1)}
        if self.bench.value("SELECT to_regclass('rewrap.shard')"):
            places["guard table"] = repr(self.bench.sql("SELECT s::text FROM rewrap.shard s")).encode()
        canaries = forms() | {f"stored value {at}": text.encode() for at, text in enumerate(self.stored)}
        assert not [
            f"{canary} in {place}"
            for canary, text in canaries.items()
            for place, content in places.items()
            if text in content
        ]


def forms() -> dict[str, bytes]:
    """Every canary, in the forms that it might be printed in."""
    found = {"plaintext": PLAINTEXT.encode(), "password": PASSWORD.encode(), "row": OTHER_COLUMN.encode()}
    for version, key in CANARY_KEYS.items():
        found |= {
            f"key {version} raw": key.rstrip(b"!"),
            f"key {version} hex": key.hex().encode(),
            f"key {version} HEX": key.hex().upper().encode(),
            f"key {version} base64": base64.b64encode(key).rstrip(b"="),
            f"key {version} base64url": base64.urlsafe_b64encode(key).rstrip(b"="),
            f"key {version} bytes": repr(bytes(list(key[:12])))[2:-1].encode(),
        }
    found["plaintext base64"] = base64.b64encode(PLAINTEXT.encode()).rstrip(b"=")[:-1]
    found["plaintext hex"] = PLAINTEXT.encode().hex().encode()
    return found


def sealed(number: int, version: str = "v1", *, length: int = 0) -> str:
    return box(f"{PLAINTEXT} {number} ".ljust(length, "x"), version, CANARY_KEYS[version])


@pytest.fixture
def guarded(bench: Workbench) -> Iterator[Guarded]:
    """The bench with canaries, connected by a role whose password is one; checked at the end of the test."""
    receiver = Receiver()
    found = Guarded(bench, receiver)
    bench.sql(f"CREATE ROLE {found.role} SUPERUSER LOGIN PASSWORD '{PASSWORD}'")
    parts = urlsplit(bench.dsn)
    netloc = f"{found.role}:{quote(PASSWORD)}@{parts.hostname}:{parts.port}"
    bench.environ["DATABASE_URL"] = urlunsplit(parts._replace(netloc=netloc))
    try:
        yield found
        found.check()
    finally:
        receiver.close()
        bench.sql(f"DROP OWNED BY {found.role}")
        bench.sql(f"DROP ROLE {found.role}")


def test_the_look_would_find_a_leak(guarded: Guarded, capsys: pytest.CaptureFixture[str]) -> None:
    """The check itself is tried: each canary is found when it is there."""
    guarded.notes([sealed(1)])
    for text in [*forms().values(), next(iter(guarded.stored)).encode()]:
        guarded.said = [Result(0, "", f"… {text.decode()} …")]
        with pytest.raises(AssertionError):
            guarded.check()
    guarded.said = []


@FLAGS
def test_good_run_says_nothing_secret(guarded: Guarded, flags: tuple[str, ...]) -> None:
    """Plan, run, status and verify over good values, from the first to the last."""
    guarded.notes([sealed(i) for i in range(50)] + [None, sealed(51, "v2")])
    assert guarded.rewrap(*RUN, *flags).code == 0
    for command in {(): ["status"], FLAGGED: ["plan --from v1 --to v2", "verify --deep"]}[flags]:
        assert guarded.rewrap(*command.split(), *flags).code == 0


def test_audit_says_nothing_secret(guarded: Guarded) -> None:
    """Records of runs that end well, leave values, are refused and fail: in the file, sent and waiting."""
    guarded.notes([*(sealed(i) for i in range(50)), PLAINTEXT, f"v1:{PLAINTEXT}", f"v9:{PLAINTEXT}"])
    guarded.bench.environ["HOOK"] = guarded.receiver.url
    guarded.receiver.answers = [Say(200), Say(200), Say(400)]
    guarded.bench.job(more='[audit]\nfile = "audit.jsonl"\nwebhook = "${HOOK}"\n')
    assert guarded.rewrap(*RUN, "--sample", "20").code == 4
    assert guarded.rewrap("resume", *FLAGGED).code == 3
    guarded.bench.sql(f"UPDATE notes SET body = 'v1:{PLAINTEXT}' || body WHERE id < 30")
    assert guarded.rewrap(*RUN, *FLAGGED).code == 3
    assert guarded.rewrap(*RUN, KEY_V1=CANARY_KEYS["v3"].hex()).code == 10
    guarded.bench.sql("DROP TABLE notes")
    assert guarded.rewrap(*RUN).code == 2
    guarded.bench.notes([sealed(1)])
    lines = (guarded.bench.folder / "audit.jsonl").read_text().splitlines()
    assert len(lines) == 5
    assert len(guarded.receiver.got) >= 5


def test_dry_run_says_nothing_secret(guarded: Guarded) -> None:
    """A dry run opens and seals everything, and shows counts alone."""
    guarded.notes([sealed(i) for i in range(50)])
    assert guarded.rewrap(*RUN, "--dry-run", *FLAGGED).code == 0


@FLAGS
def test_looking_says_nothing_secret(guarded: Guarded, flags: tuple[str, ...]) -> None:
    """Check, plan, discover and what it writes: forms, counts and fingerprints, and never a value."""
    guarded.notes([*(sealed(i) for i in range(50)), sealed(51, "v2"), PLAINTEXT, f"v1:{PLAINTEXT}"])
    bench = guarded.bench
    versions = ("--from", "v1", "--to", "v2")
    assert guarded.rewrap("check", *versions, *flags).code == 0
    assert guarded.rewrap("plan", *versions, *flags).code == 0
    assert guarded.rewrap("discover", "--write", "found.toml", *flags).code == 0
    assert guarded.rewrap("discover", bench.environ["DATABASE_URL"], *flags).code == 0
    assert guarded.rewrap("job", "init", "--write", "first.toml", *flags).code == 0
    bench.sql(
        "ALTER TABLE notes ADD CONSTRAINT only_old CHECK (id < 0 OR starts_with(body, 'v1:')) NOT VALID"
    )
    assert guarded.rewrap("check", *versions, *flags).code == 1
    for name in ("found.toml", "first.toml"):
        guarded.said.append(Result(0, (bench.folder / name).read_text(), ""))


@FLAGS
def test_quarantine_says_where_and_never_what(guarded: Guarded, flags: tuple[str, ...]) -> None:
    """Values that do not open, parse or are nobody's are named by row; their bytes stay where they are."""
    broken = sealed(2)[:-6] + "AAAA=="
    guarded.notes([*(sealed(i) for i in range(50)), broken, f"v1:{PLAINTEXT}", PLAINTEXT, sealed(9)[3:]])
    assert guarded.rewrap(*RUN, *flags).code == 3
    for command in {
        (): ["quarantine list", "quarantine show", "quarantine retry", "verify --deep"],
        FLAGGED: ["quarantine show", "quarantine waive --all --reason known", "status", "verify"],
    }[flags]:
        assert guarded.rewrap(*command.split(), *flags).code in (0, 3)
    assert any("malformed" in ran.out for ran in guarded.said)


@pytest.mark.parametrize(
    ("wrong", "flags"),
    [
        (CANARY_KEYS["v3"].hex(), ()),
        (CANARY_KEYS["v3"].hex(), FLAGGED),
        (CANARY_KEYS["v1"].hex()[:-2], FLAGGED),
        (base64.b64encode(CANARY_KEYS["v1"]).decode(), FLAGGED),
    ],
    ids=["another", "another-json-debug", "short-json-debug", "base64-json-debug"],
)
def test_wrong_key_is_refused_without_a_word_of_it(
    guarded: Guarded, wrong: str, flags: tuple[str, ...]
) -> None:
    """A key that opens nothing is shown by its fingerprint, one that is none is not shown at all."""
    guarded.notes([sealed(i) for i in range(50)])
    assert guarded.rewrap(*RUN, *flags, KEY_V1=wrong).code == 10
    assert not any(wrong in ran.out + ran.err for ran in guarded.said)


@FLAGS
def test_row_in_the_servers_detail_is_not_passed_on(guarded: Guarded, flags: tuple[str, ...]) -> None:
    """Postgres puts the whole failing row into DETAIL: one such row goes to quarantine as a number."""
    guarded.notes([sealed(i) for i in range(50)])
    guarded.bench.sql("ALTER TABLE notes ADD CHECK (id <> 50 OR starts_with(body, 'v1:'))")
    assert guarded.rewrap(*RUN, *flags).code == 3
    guarded.rewrap("quarantine", "list", *flags)
    assert any("rejected" in ran.out for ran in guarded.said)


@FLAGS
def test_refusal_of_every_row_is_shown_by_names_alone(guarded: Guarded, flags: tuple[str, ...]) -> None:
    """A constraint that refuses the very first new value ends the run, naming the constraint."""
    guarded.notes([sealed(i) for i in range(50)])
    guarded.bench.sql("ALTER TABLE notes ADD CONSTRAINT only_old CHECK (starts_with(body, 'v1:'))")
    ran = guarded.rewrap(*RUN, *flags)
    assert ran.code == 1
    assert "23514" in ran.err
    assert "only_old" in ran.err


@FLAGS
def test_column_too_short_says_nothing_secret(guarded: Guarded, flags: tuple[str, ...]) -> None:
    """A value that no longer fits is refused by the server, and put aside without being shown."""
    values: list[str | None] = [sealed(i) for i in range(50)]
    values[-1] = sealed(50, length=60)
    guarded.bench.job(more='[keys.versions.v10]\nmaterial = "env:KEY_V3"')
    guarded.notes(values, f"varchar({len(values[-1])})")
    arguments = ("run", "--from", "v1", "--to", "v10", "--allow-unseen-target")
    assert guarded.rewrap(*arguments, *flags).code == 3
    guarded.rewrap("quarantine", "list", *flags)
    assert any("rejected" in ran.out for ran in guarded.said)


@FLAGS
def test_lost_connection_says_nothing_secret(guarded: Guarded, flags: tuple[str, ...]) -> None:
    """What breaks off in the middle of a statement is reported by the table's name."""
    bench = guarded.bench
    guarded.notes([sealed(i) for i in range(50)])
    bench.job(more="[limits]\nreconnect_s = 0")
    with bench.started(*RUN, "--max-rate", "2", *flags) as running:
        wait_while(running, lambda: bench.bodies()[1].startswith("v2:"))
        # it comes back at once, and is not let in again
        bench.sql(f"ALTER ROLE {guarded.role} NOLOGIN")
        bench.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name ~ '^rewrap'")
        out, err = running.communicate(timeout=TIMEOUT_S)
    guarded.said.append(Result(running.returncode, out, err))
    assert running.returncode == 1
    assert "error: " in err
    assert "[28000]" in err


def test_wrong_password_is_not_shown_in_frames(guarded: Guarded) -> None:
    """Connecting fails deep in the driver, which has the password; --debug shows where, and not with what."""
    guarded.notes([sealed(1)])
    url = guarded.bench.environ["DATABASE_URL"].replace(PASSWORD, PASSWORD + "-mistyped")
    ran = guarded.rewrap(*RUN, "--debug", DATABASE_URL=url)
    assert ran.code == 1
    assert "connection.py" in ran.err


@pytest.mark.parametrize("debug", [False, True])
def test_defect_of_our_own_does_not_print_its_message(
    guarded: Guarded, capsys: pytest.CaptureFixture[str], debug: bool
) -> None:
    """An exception nobody foresaw may carry a value: its class and frames are shown, its text is not."""
    guarded.notes([sealed(1)])
    canary = "-".join(["canary", "plaintext"])
    with pytest.raises(typer.Exit) as left, errors_shown(as_json=True, debug=debug):
        raise RuntimeError(canary)
    said = capsys.readouterr()
    guarded.said.append(Result(left.value.exit_code, said.out, said.err))
    assert left.value.exit_code == 1
    assert "error: internal error (RuntimeError)" in said.err


def test_ledger_is_its_owners_alone(bench: Workbench) -> None:
    """The ledger names rows: its file, log and index are 0600 from the first moment, whatever the umask."""
    bench.notes([box(f"note {i}") for i in range(40)])
    with bench.started(*RUN, "--max-rate", "2") as running:
        wait_while(running, lambda: bench.bodies()[1].startswith("v2:"))
        files = sorted(bench.folder.glob("*ledger*"))
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in files}
        assert running.poll() is None
    assert set(modes.values()) == {0o600}
    assert len(modes) == 3, modes


def test_ledger_made_readable_is_closed_again(bench: Workbench) -> None:
    """A ledger that was copied with an open mode is closed before a run writes to it."""
    bench.notes([box("note")])
    assert bench.run().code == 0
    bench.ledger.chmod(0o644)
    assert bench.run().code == 0
    assert stat.S_IMODE(bench.ledger.stat().st_mode) == 0o600


def test_key_files_are_read_and_not_repeated(guarded: Guarded, tmp_path: Path) -> None:
    """Keys from files, in each encoding, stay as unseen as those from variables."""
    forms_of = {
        "v1": ("raw", CANARY_KEYS["v1"]),
        "v2": ("base64", base64.b64encode(CANARY_KEYS["v2"])),
    }
    job = guarded.bench.job()
    text = job.read_text()
    for version, (encoding, content) in forms_of.items():
        (tmp_path / f"{version}.key").write_bytes(content)
        text = text.replace(f'"env:KEY_{version.upper()}"', f'"file:{version}.key"\nencoding = "{encoding}"')
    job.write_text(text)
    guarded.notes([sealed(i) for i in range(20)])
    assert guarded.rewrap(*RUN, "--json", "--debug").code == 0
