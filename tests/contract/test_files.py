"""What holds of keys in mounted files: how they are found, what is refused, and a run that has them."""

from __future__ import annotations

import json
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import anyio
import pytest

from rewrap.errors import JobError, KeyAccessError, KeyRefused
from rewrap.events import Event
from rewrap.job import Job
from rewrap.keys import files
from rewrap.keys.keyring import Keyring
from rewrap.keys.listed import Listed
from rewrap.keys.open import open_keyring
from tests.support.inprocess import run_here
from tests.support.values import KEYS, box, unbox
from tests.support.workbench import Result, Workbench, wait_while

JOB = """
name = "test"
[stores.main]
kind = "postgres"
url = "${{DATABASE_URL}}"
[keys]
provider = "files"
recheck_s = 0.1
[keys.files]
{files}
[[targets]]
table = "notes"
fields = [{{ column = "body", layout = "libsodium-token" }}]
[pace]
batch_size = 10
{more}
[pace.health]
yield_to_others = false
"""

CANARY = "canary-of-what-is-in-a-file"


def job(folder: Path, text: str) -> Job:
    environ = {"DATABASE_URL": "postgresql://h/d"}
    return Job.parse(JOB.format(files=text, more=""), path=folder / "rewrap.toml", environ=environ)


def opened(of: Job, *versions: str, every: bool = False, **environ: str) -> Keyring:
    async def work() -> Keyring:
        return await open_keyring(of, versions, environ, wanted=None if every else [])

    return anyio.run(work)


def listed(of: Job, **environ: str) -> dict[str, Listed]:
    return {one.version: one for one in anyio.run(files.list_keys, of, environ)}


def refusal(of: Job, *versions: str) -> KeyAccessError:
    """The error of keys that cannot be had: with a hint, and nothing of what is in a file."""
    with pytest.raises(KeyAccessError) as caught:
        opened(of, *versions)
    assert caught.value.exit_code == 10
    assert caught.value.hint
    assert CANARY not in f"{caught.value.message} {caught.value.hint}"
    return caught.value


def mounted(folder: Path, contents: dict[str, str]) -> None:
    """Mounts files as a kubelet does: in a folder of their own, swapped by one rename of `..data`."""
    folder.mkdir(exist_ok=True)
    real = folder / f"..2026_{len(list(folder.iterdir()))}"
    real.mkdir()
    for name, content in contents.items():
        (real / name).write_text(content)
        (real / name).chmod(0o440)
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(f"..data/{name}")
    (folder / "..next").symlink_to(real.name)
    (folder / "..next").rename(folder / "..data")


HEX = {version: key.hex() for version, key in KEYS.items()}


def test_every_way_of_mounting_gives_the_same_keys(tmp_path: Path) -> None:
    """A file each, a JSON object in each, one object of all, and files named by their role."""
    mounted(tmp_path / "each", HEX)
    (tmp_path / "each" / ".v9.swp").write_text(CANARY)
    for version, text in HEX.items():
        folder = tmp_path / "folders" / version
        folder.mkdir(parents=True)
        (folder / "kek.json").write_text(json.dumps({"key": text, "comment": CANARY}))
    (tmp_path / "folders" / "README").write_text(CANARY)
    mounted(tmp_path / "all", {"keys.json": json.dumps(HEX)})
    mounted(tmp_path / "nested", {"keys.json": json.dumps({v: {"key": text} for v, text in HEX.items()})})
    for number, version in enumerate(("v1", "v2", "v3")):
        mounted(tmp_path / f"role{number}", {"key": HEX[version], "id": f"{version}\n"})
    roles = "\n".join(
        f'[keys.files.labels.r{n}]\nkey = "role{n}/key"\nversion = "role{n}/id"' for n in range(3)
    )
    ways = (
        'path = "each/{version}"',
        'path = "folders/{version}/kek.json"\nfield = "key"',
        'path = "all/keys.json"',
        'path = "nested/keys.json"\nfield = "key"',
        roles,
    )
    for way in ways:
        keyring = opened(job(tmp_path, way), "v1", every=True)
        assert {key.version: key.secret for key in keyring} == KEYS, way
        assert keyring.known == ("v1", "v2", "v3")
        wide = set() if way.startswith(('path = "each', 'path = "all', 'path = "nested', "[")) else set(KEYS)
        assert set(keyring.doubts) == wide


def test_versions_are_sorted_as_people_count(tmp_path: Path) -> None:
    """v10 comes after v9, and a file's name need not be the version alone."""
    for number in (10, 9, 1):
        (tmp_path / f"kek-v{number}.hex").write_text(HEX["v1"])
    (tmp_path / "kek-.hex").write_text(HEX["v1"])
    assert list(listed(job(tmp_path, 'path = "kek-{version}.hex"'))) == ["v1", "v9", "v10"]


@pytest.mark.parametrize("version", ["../secret", "/etc/shadow", "..", "..data", ".v1", "a/b", ""])
def test_version_that_leads_elsewhere_is_refused(tmp_path: Path, version: str) -> None:
    """Whatever a command line names, no file outside of the folder is opened, nor a hidden one."""
    (tmp_path / "secret").write_text(HEX["v1"])
    mounted(tmp_path / "keys", HEX)
    (tmp_path / "keys" / ".v1").write_text(HEX["v1"])
    assert "is no version" in refusal(job(tmp_path, 'path = "keys/{version}"'), version).message


def test_what_is_no_key_is_refused_without_its_content(tmp_path: Path) -> None:
    """Each fault names its file and what to do, exits 10, and repeats nothing of what it found."""
    (tmp_path / "hex").write_text(CANARY)
    (tmp_path / "short").write_text("00ff")
    (tmp_path / "list.json").write_text(f'["{CANARY}"]')
    (tmp_path / "twice.json").write_text(f'{{"v1": "{CANARY}", "v1": "{CANARY}"}}')
    (tmp_path / "number.json").write_text('{"v1": 12345}')
    (tmp_path / "large").write_bytes(b"0" * (files.MOST_BYTES + 1))
    os.mkfifo(tmp_path / "pipe")
    each = job(tmp_path, 'path = "{version}"')
    assert "is not hex" in refusal(each, "hex").message
    assert "has 2 bytes" in refusal(each, "short").message
    assert "larger than" in refusal(each, "large").message
    assert "versions that are mounted are" in str(refusal(each, "v7").hint)
    assert "is missing" in refusal(each, "pipe").message
    for name in ("list.json", "twice.json", "hex"):
        assert "no JSON object" in refusal(job(tmp_path, f'path = "{name}"'), "v1").message
    assert "a text in JSON" in refusal(job(tmp_path, 'path = "number.json"'), "v1").message
    with_field = job(tmp_path, 'path = "{version}"\nfield = "key"')
    assert 'with a text "key"' in refusal(with_field, "hex").message
    assert "folder gone" in refusal(job(tmp_path, 'path = "gone/{version}"'), "v1").message
    assert "file gone.json" in refusal(job(tmp_path, 'path = "gone.json"'), "v1").message
    assert CANARY not in repr(listed(each)) + repr(opened(each))


def test_labels_name_versions_and_may_share_one(tmp_path: Path) -> None:
    """Before the first rotation both roles are one version; two keys of one version are refused."""
    way = """
[keys.files.labels.current]
key = "current/key"
version = "current/id"
[keys.files.labels.previous]
key = "previous/key"
version = "env:PREVIOUS"
"""
    of = job(tmp_path, way)
    mounted(tmp_path / "current", {"key": HEX["v2"], "id": "v2"})
    mounted(tmp_path / "previous", {"key": HEX["v1"]})
    found = listed(of, PREVIOUS="v1")
    assert {v: (one.labels, one.current, one.usable) for v, one in found.items()} == {
        "v2": (("current",), True, True),
        "v1": (("previous",), False, True),
    }
    labels = anyio.run(files.versions_of, of, ("current", "previous", "v1"), {"PREVIOUS": "v1"})
    assert labels == {"current": "v2", "previous": "v1"}
    # without its id nobody can say which version it is
    found = listed(of)
    assert not found["(previous)"].usable
    assert "PREVIOUS is not set" in found["(previous)"].state
    assert opened(of, every=True).known == ("v2",)
    assert "none of current, previous" in refusal(of, "(previous)").message
    clash = listed(of, PREVIOUS="v2")["v2"]
    assert not clash.usable
    assert clash.labels == ("current", "previous")
    mounted(tmp_path / "previous", {"key": HEX["v2"]})
    assert listed(of, PREVIOUS="v2")["v2"].labels == ("current", "previous")
    assert listed(of, PREVIOUS="v2")["v2"].usable


def test_a_run_by_labels_keeps_to_the_versions_they_stood_for(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels are asked once: they may be swapped while the run is at work, as long as both keys are there."""
    roles = ("current", "previous")
    sections = "".join(
        f'[keys.files.labels.{role}]\nkey = "{role}/key"\nversion = "{role}/id"\n' for role in roles
    )

    def mount(current: str, previous: str) -> None:
        for role, version in zip(roles, (current, previous), strict=True):
            mounted(bench.folder / role, {"key": HEX[version], "id": f"{version}\n"})

    mount("v2", "v1")
    (bench.folder / "rewrap.toml").write_text(JOB.format(files=sections, more=""))
    bench.notes([box(f"note {n}") for n in range(12)])
    look, looks = files.MountKeeper.still_there, []

    async def still_there(self: files.MountKeeper) -> None:
        mount("v1", "v2")
        looks.append(self)
        await look(self)

    monkeypatch.setattr(files.MountKeeper, "still_there", still_there)
    ended = run_here(bench, from_versions="previous", to_version="current")
    assert looks
    assert (ended.exit_code, under(bench, "v2")) == (0, 12)
    # the other way round now: back to v1
    monkeypatch.undo()
    ended = run_here(bench, from_versions="previous", to_version="current")
    assert (ended.exit_code, under(bench, "v1")) == (0, 12)


def test_files_are_read_as_of_one_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A swap between two reads is seen, and read again; what never rests is given up."""
    mounted(tmp_path / "now", {"key": HEX["v1"], "id": "v1"})
    of = job(tmp_path, '[keys.files.labels.current]\nkey = "now/key"\nversion = "now/id"')
    real, calls = files.Mount._read, []

    def read(self: files.Mount, name: str) -> files.Found:
        calls.append(name)
        if len(calls) == 2:
            # between its id and its key
            mounted(tmp_path / "now", {"key": HEX["v2"], "id": "v2"})
        return real(self, name)

    monkeypatch.setattr(files.Mount, "_read", read)
    keyring = opened(of, every=True)
    assert {key.version: key.secret for key in keyring} == {"v2": KEYS["v2"]}

    def restless(self: files.Mount, name: str) -> files.Found:
        calls.append(name)
        version = ("v1", "v2")[len(calls) // 2 % 2]
        mounted(tmp_path / "now", {"key": HEX[version], "id": version})
        return real(self, name)

    monkeypatch.setattr(files.Mount, "_read", restless)
    assert "changes while it is read" in refusal(of, "v1").message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is missing"),
        ('path = "{version}/{version}"', "more than once"),
        ('path = "x"\nlabels = { now = { key = "k", version = "v" } }', "do not go together"),
    ],
)
def test_section_that_cannot_be_is_refused(tmp_path: Path, text: str, said: str) -> None:
    """What is missing or too much is said with its field, exit 2."""
    with pytest.raises(JobError) as caught:
        job(tmp_path, text)
    assert said in caught.value.message
    assert "keys.files.path" in caught.value.message


def test_budget_of_calls_is_refused_where_none_are_made(tmp_path: Path) -> None:
    """Files are not called: a shared budget of the keys would be drawn on by nobody."""
    text = 'path = "{version}"\n[pace.shared.vault]\nrate = 10\nkeys = true'
    with pytest.raises(JobError) as caught:
        job(tmp_path, text)
    assert "no calls are made" in caught.value.message


# a run whose keys are watched

ROWS = 400

SLOW = ("--max-rate", "40")
"""Ten seconds of work, whatever the machine: it is met at work."""

RUN = ("run", "--from", "v1", "--to", "v2", "--allow-unseen-target", "--json")


@pytest.fixture
def slow(bench: Workbench) -> Workbench:
    """Notes under v1, and their keys in a mount."""
    mounted(bench.folder / "keys", HEX)
    text = JOB.format(files='path = "keys/{version}"', more="")
    (bench.folder / "rewrap.toml").write_text(text)
    bench.notes([box(f"note {n}") for n in range(ROWS)])
    return bench


def under(bench: Workbench, version: str) -> int:
    return sum(str(body).startswith(f"{version}:") for body in bench.bodies().values())


def put_aside(bench: Workbench) -> int:
    with closing(sqlite3.connect(bench.ledger, timeout=30)) as ledger:
        return int(ledger.execute("SELECT count(*) FROM rewrap_exception").fetchone()[0])


def test_run_ends_when_its_key_is_gone_or_another_and_goes_on_when_it_is_back(slow: Workbench) -> None:
    """Exit 10 at a checkpoint, nothing put aside; the same bytes in new files are no news; resume ends it."""
    folder = slow.folder / "keys"
    with slow.started(*RUN, *SLOW) as process:
        wait_while(process, lambda: under(slow, "v2"))
        mounted(folder, HEX)
        some = under(slow, "v2")
        wait_while(process, lambda: under(slow, "v2") >= some + 20)
        (folder / "v1").unlink()
        gone = Result(process.wait(60), *process.communicate(timeout=60))
    assert gone.code == 10, gone.err
    assert 'key version "v1" is missing' in gone.event("error")["message"]
    assert "rewrap resume" in gone.event("error")["hint"]
    assert put_aside(slow) == 0
    done = under(slow, "v2")
    assert some + 20 <= done < ROWS
    # every row that was written stands behind a checkpoint
    assert slow.swept() == done
    early = slow.rewrap("resume", "--json")
    assert (early.code, under(slow, "v2")) == (10, done)

    (folder / "v1").symlink_to("..data/v1")
    with slow.started("resume", "--json", *SLOW) as process:
        wait_while(process, lambda: under(slow, "v2") > done)
        mounted(folder, {**HEX, "v2": HEX["v3"]})
        other = Result(process.wait(60), *process.communicate(timeout=60))
    assert other.code == 10, other.err
    assert 'key version "v2" in file keys/v2 is not the key that it was' in other.event("error")["message"]
    assert put_aside(slow) == 0
    # nothing was written under the other key
    assert {unbox(str(body)).partition(b" ")[0] for body in slow.bodies().values()} == {b"note"}

    mounted(folder, HEX)
    (folder / "v2").chmod(0o644)
    found = slow.rewrap("check", "--from", "v1", "--to", "v2", "--json").events
    wide = [one["subject"] for one in found if one.get("code") == "key-mode"]
    assert wide == ["key v2"]
    unnamed = slow.rewrap("check").out
    assert "is there; --from and --to have it tried" in unnamed
    assert "vault" not in unnamed
    finished = slow.rewrap("resume", "--json")
    assert finished.code == 0, finished.err
    assert finished.event("run_ended")["outcomes"]["notes"]["body"] == {"resealed": ROWS}
    assert put_aside(slow) == 0
    assert [unbox(str(body)) for _, body in sorted(slow.bodies().items())] == [
        f"note {n}".encode() for n in range(ROWS)
    ]
    for result in (gone, early, other, finished):
        assert not [text for text in HEX.values() if text in result.out + result.err]


@pytest.mark.parametrize(("nth", "done"), [(1, 0), (2, 12)], ids=["before the first write", "at the end"])
def test_keys_are_looked_at_before_the_first_write_and_at_the_end(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch, nth: int, done: int
) -> None:
    """However seldom keys are looked at: a run neither begins nor ends with a key that is gone by then.

    What was done before stays done, even where the keeper calls the key refused.
    """
    mounted(bench.folder / "keys", HEX)
    text = JOB.format(files='path = "keys/{version}"', more="").replace("recheck_s = 0.1", "")
    (bench.folder / "rewrap.toml").write_text(text)
    bench.notes([box(f"note {n}") for n in range(12)])
    looks = []

    async def still_there(self: files.MountKeeper) -> None:
        looks.append(self)
        if len(looks) == nth:
            raise KeyRefused('key version "v1" is disabled', hint="enable it", code="key-disabled")

    monkeypatch.setattr(files.MountKeeper, "still_there", still_there)
    events: list[Event] = []
    with pytest.raises(KeyAccessError) as caught:
        run_here(bench, events=events)
    assert not isinstance(caught.value, KeyRefused)
    assert (caught.value.code, caught.value.exit_code) == ("key-disabled", 10)
    assert (under(bench, "v2"), bench.swept()) == (done, done)
    assert not [event for event in events if event.type in ("verdict", "run_ended")]
    finished = run_here(bench, resume=True)
    assert (finished.exit_code, len(looks)) == (0, nth + 2)
    assert finished.outcomes["notes"]["body"] == {"resealed": 12}
