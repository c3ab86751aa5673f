"""The lock of Cosmos DB under faults: lost answers, clocks, lost documents, and what may not be created."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from rewrap.errors import LeaseHeld, LeaseLost, Rewound, StoreError, StoreUnavailable, UnsafeTarget
from rewrap.interfaces import Checkpoint, Claim
from rewrap.stores.cosmos.claiming import Claiming
from rewrap.stores.cosmos.guard import CosmosGuard
from rewrap.stores.cosmos.holder import Holder, this_host, this_process
from tests.contract.test_guard import COSMOS_JOB
from tests.support.cosmos import CosmosDatabase, CosmosEmulator
from tests.support.guards import Opened, opened
from tests.support.proxy import Answer, Drop, FaultProxy
from tests.support.values import KEYS, box, unbox
from tests.support.workbench import TIMEOUT_S, rewrap, wait_for, wait_while

T = TypeVar("T")


def environ_of(cosmos: CosmosDatabase, **more: str) -> dict[str, str]:
    keys = {f"KEY_{version.upper()}": key.hex() for version, key in KEYS.items()}
    return {**os.environ, **keys, **cosmos.environ, **more}


def with_guard(
    cosmos: CosmosDatabase, folder: Path, work: Callable[[Opened], Awaitable[T]], **more: str
) -> T:
    path = folder / "rewrap.toml"
    path.write_text(COSMOS_JOB)

    async def main() -> T:
        async with opened(path, environ_of(cosmos, **more)) as place:
            return await work(place)

    return asyncio.run(main())


@pytest.fixture
def notes(cosmos: CosmosDatabase) -> CosmosDatabase:
    cosmos.container("notes")
    cosmos.paths["rewrap"] = ["/relation"]
    return cosmos


def lease_of(cosmos: CosmosDatabase) -> dict[str, Any]:
    return cosmos.document("rewrap", "lease")


def test_answers_that_are_lost_change_nothing(
    notes: CosmosDatabase, cosmos_proxy: FaultProxy, tmp_path: Path
) -> None:
    """Each kind of write is carried out and its connection cut, in turn: the lock is one all the same."""

    async def work(place: Opened) -> None:
        # the lease and a shard are created without an answer, and then written over without one
        cosmos_proxy.add(Drop(applied=True), "create", times=3, every=1)
        first, _ = await place.claim("run1", "anna")
        cosmos_proxy.clear()
        for step in range(1, 7):
            cosmos_proxy.add(Drop(applied=True), "replace", times=1)
            await place.guard.beat()
            cosmos_proxy.add(Drop(applied=True), "replace", times=1)
            await place.save(first, Checkpoint(str(step), step, {}))
        cosmos_proxy.add(Drop(applied=True), "replace", times=1)
        for lease in await place.guard.begin_sweep(place.relation, 2):
            assert (lease.sweep, lease.cursor, lease.fence) == (2, None, first.fence)
        cosmos_proxy.add(Drop(applied=True), "replace", times=1)
        await place.guard.release(finished=True)

    with_guard(notes, tmp_path, work, COSMOS_ENDPOINT=cosmos_proxy.endpoint)
    assert cosmos_proxy.faults()["replace"] == 14
    assert cosmos_proxy.faults()["create"] == 3
    lease = lease_of(notes)
    assert (lease["released"], lease["finished"], lease["owner"]) == (True, True, "anna")


def test_a_line_that_loses_every_answer_does_not_keep_a_run_out(
    notes: CosmosDatabase, cosmos_proxy: FaultProxy, tmp_path: Path
) -> None:
    """Each write of a claim lands and is told by the repeated request alone: it is known for one's own."""

    async def work(place: Opened) -> None:
        first, _ = await place.claim("run1", "anna")
        await place.save(first, Checkpoint("5", 5, {}))
        await place.guard.release(finished=False)
        cosmos_proxy.add(Drop(applied=True), "replace", every=2)
        again, _ = await place.claim("run1", "ben")
        assert (again.cursor, again.rows) == ("5", 5)
        assert again.fence > first.fence

    with_guard(notes, tmp_path, work, COSMOS_ENDPOINT=cosmos_proxy.endpoint)
    assert cosmos_proxy.faults()["replace"] >= 2


def test_a_process_may_not_write_by_an_old_beat(
    notes: CosmosDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With less than a request's time left of the lease it is refused, by a clock that counts sleep."""
    now = [1_000.0]
    monkeypatch.setattr("rewrap.stores.cosmos.guard.elapsed_s", lambda: now[0])

    async def work(place: Opened) -> None:
        guard = place.guard
        assert isinstance(guard, CosmosGuard)
        with pytest.raises(LeaseLost):
            guard.still_held()
        lease, _ = await place.claim("run1", "anna", ttl_s=30.0)
        assert guard.request_timeout_s == 10.0
        now[0] += 19.9
        guard.still_held()
        now[0] += 0.2
        with pytest.raises(StoreUnavailable, match="confirmed 20 s ago"):
            guard.still_held()
        before = notes.etags("rewrap")
        with pytest.raises(StoreUnavailable):
            await place.save(lease, Checkpoint("3", 3, {}))
        assert notes.etags("rewrap") == before
        # nobody has taken it: confirmed once more, it is as good as before
        await guard.beat()
        guard.still_held()
        await place.save(lease, Checkpoint("3", 3, {}))
        await guard.release(finished=False)
        with pytest.raises(LeaseLost):
            guard.still_held()

    with_guard(notes, tmp_path, work)


def test_a_machine_that_slept_is_told_by_the_boot_clock() -> None:
    """The clock is the one that goes on while the machine is suspended, where there is such a one."""
    from rewrap.stores.cosmos import holder

    if hasattr(time, "CLOCK_BOOTTIME"):
        assert holder._CLOCK == time.CLOCK_BOOTTIME
    assert abs(holder.elapsed_s() - time.clock_gettime(holder._CLOCK)) < 1


def test_a_holder_elsewhere_is_waited_for(notes: CosmosDatabase, tmp_path: Path) -> None:
    """Another machine's lease runs out by the server's clock; then its last requests are waited for."""

    async def work(place: Opened) -> None:
        guard = place.guard
        assert isinstance(guard, CosmosGuard)
        await place.claim("run1", "anna", ttl_s=2.0)
        told = lease_of(notes)
        # as a machine elsewhere would have written it, and this process, that is alive, plays no part
        elsewhere = {"host": "elsewhere", "pid": 1, "started": "1"}
        notes.replace("rewrap", {**told, "holder": elsewhere, "lease_s": 600.0})
        async with opened(tmp_path / "rewrap.toml", environ_of(notes)) as other:
            with pytest.raises(LeaseHeld):
                await other.claim("run1", "ben", ttl_s=2.0)
            beaten = time.monotonic()
            notes.replace("rewrap", {**told, "holder": elsewhere, "timeout_s": 5.0})
            await asyncio.sleep(3.1)
            await other.claim("run1", "ben", ttl_s=2.0)
            # the lease of 2 s, and 5 s for a request; no less, whatever the clocks' seconds are
            assert time.monotonic() - beaten >= 6.9
            assert any("was not given back" in notice for notice in other.guard.notices)

    with_guard(notes, tmp_path, work)


def test_a_wait_that_was_cut_short_is_waited_out(notes: CosmosDatabase, tmp_path: Path) -> None:
    """Who took over from a holder elsewhere died while waiting for it: the next one waits for the rest."""

    async def work(place: Opened) -> None:
        await place.claim("run1", "anna")
        told = lease_of(notes)
        free = int(Path("/proc/sys/kernel/pid_max").read_text()) + 1
        dead = {"host": this_host(), "pid": free, "started": "1"}
        quiet_until = int(time.time()) + 4
        notes.replace("rewrap", {**told, "holder": dead, "quiet_until": quiet_until})
        await place.claim("run1", "ben")
        # the server's clock has no fractions of a second
        assert time.time() >= quiet_until - 1
        assert any("was not given back" in notice for notice in place.guard.notices)

    with_guard(notes, tmp_path, work)


@pytest.mark.parametrize("step", ["beat", "save", "sweep", "lease", "release"])
def test_lost_documents_are_an_error_and_never_success(
    notes: CosmosDatabase, tmp_path: Path, step: str
) -> None:
    """The guard's container is deleted in mid-run: whatever comes next says so."""

    async def work(place: Opened) -> None:
        lease, _ = await place.claim("run1", "anna")
        notes.drop("rewrap")
        steps: dict[str, Callable[[], Awaitable[Any]]] = {
            "beat": place.guard.beat,
            "save": lambda: place.save(lease, Checkpoint("1", 1, {})),
            "sweep": lambda: place.guard.begin_sweep(place.relation, 2),
            "lease": lambda: place.guard.lease(place.relation, 0),
            "release": lambda: place.guard.release(finished=True),
        }
        with pytest.raises(StoreError, match="are gone") as raised:
            await steps[step]()
        assert not isinstance(raised.value, StoreUnavailable)

    with_guard(notes, tmp_path, work)


def test_an_emulator_that_started_empty_is_told(own_cosmos_emulator: CosmosEmulator, tmp_path: Path) -> None:
    """The server comes back without anything: the run ends with an error."""
    emulator = own_cosmos_emulator
    with CosmosDatabase(emulator.endpoint, emulator.key, "app") as database:
        database.container("notes")

        async def work(place: Opened) -> None:
            lease, _ = await place.claim("run1", "anna")
            emulator.restart()
            with pytest.raises(StoreError, match="are gone"):
                await place.guard.beat()
            with pytest.raises(StoreError, match="are gone"):
                await place.save(lease, Checkpoint("1", 1, {}))

        with_guard(database, tmp_path, work)


def test_a_lease_that_was_set_back_is_told(notes: CosmosDatabase, tmp_path: Path) -> None:
    """An older lease than this run's is there again: the database was restored."""

    async def work(place: Opened) -> None:
        await place.claim("run1", "anna")
        lease = lease_of(notes)
        notes.replace("rewrap", {**lease, "fence": lease["fence"] - 1})
        with pytest.raises(StoreError, match="restored"):
            await place.guard.beat()

    with_guard(notes, tmp_path, work)


def test_a_checkpoint_that_was_set_back_rewinds(notes: CosmosDatabase, tmp_path: Path) -> None:
    """The server lost acknowledged checkpoints: reading goes on from the one that it kept."""

    async def work(place: Opened) -> None:
        lease, _ = await place.claim("run1", "anna")
        await place.save(lease, Checkpoint("1", 1, {}))
        kept = notes.document("rewrap", "shard-0")
        await place.save(lease, Checkpoint("2", 2, {}))
        notes.replace("rewrap", kept)
        with pytest.raises(Rewound):
            await place.save(lease, Checkpoint("3", 3, {}))
        again = await place.guard.lease(place.relation, 0)
        assert (again.cursor, again.rows) == ("1", 1)
        await place.save(again, Checkpoint("2", 2, {}))

    with_guard(notes, tmp_path, work)


def test_a_container_made_anew_is_read_from_its_start(notes: CosmosDatabase, tmp_path: Path) -> None:
    """A checkpoint belongs to a container and not to its name."""

    async def work(place: Opened) -> None:
        lease, _ = await place.claim("run1", "anna")
        await place.save(lease, Checkpoint("1", 1, {}))
        await place.guard.release(finished=False)
        notes.drop("notes")
        notes.container("notes")
        again, _ = await place.claim("run1", "anna again")
        assert again.cursor is None
        assert any("was deleted and made anew" in notice for notice in place.guard.notices)

    with_guard(notes, tmp_path, work)


def test_a_claim_that_died_between_lease_and_shards_starts_over(
    notes: CosmosDatabase, tmp_path: Path
) -> None:
    """Shards that are not all there, or another run's, are written anew."""

    async def work(place: Opened) -> None:
        lease, _ = await place.claim("run1", "anna")
        await place.save(lease, Checkpoint("1", 1, {}))
        await place.guard.release(finished=False)
        notes.delete("rewrap", notes.document("rewrap", "shard-1"))
        first, second = await place.claim("run1", "anna again")
        assert (first.cursor, second.cursor) == (None, None)
        assert second.range.lower == "5"

    with_guard(notes, tmp_path, work)


@pytest.mark.parametrize("before", [False, True])
def test_one_lock_that_cannot_be_had_leaves_the_others(
    cosmos: CosmosDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    """A claim on two containers holds both or none: the first is given back as it was found."""
    for name in ("notes", "other"):
        cosmos.container(name)
    cosmos.paths["rewrap"] = ["/relation"]
    take = Claiming.take

    async def too_late(self: Claiming, relation: str, claim: Claim) -> Any:
        if relation.endswith("/other"):
            raise LeaseHeld("another was quicker")
        return await take(self, relation, claim)

    async def work(place: Opened) -> None:
        ranges = place.asking("x", "x").ranges[place.relation]
        if before:
            lease, _ = await place.claim("run0", "zoe")
            await place.save(lease, Checkpoint("3", 3, {}))
            await place.guard.release(finished=False)
        with monkeypatch.context() as patched:
            patched.setattr(Claiming, "take", too_late)
            both = dict.fromkeys([place.relation, f"{cosmos.name}/other"], ranges)
            with pytest.raises(LeaseHeld, match="quicker"):
                await place.guard.claim(place.asking("run1", "anna", ranges=both, abandon="run0"))
        lease_doc = lease_of(cosmos)
        assert lease_doc["released"]
        if before:
            assert (lease_doc["run_id"], lease_doc["finished"]) == ("run0", False)
            again, _ = await place.claim("run0", "zoe again")
            assert again.cursor == "3"
        else:
            # no run of ours has begun, and nobody is told to finish it
            await place.claim("run3", "ben", to_version="v9")

    with_guard(cosmos, tmp_path, work)


def test_a_guard_that_may_not_be_created_names_the_command(
    notes: CosmosDatabase, cosmos_proxy: FaultProxy, tmp_path: Path
) -> None:
    """403 for the container: the error says what an owner has to run."""
    cosmos_proxy.add(
        Answer(403, body='{"code": "Forbidden", "message": "no"}'), "container", path="/colls/?$"
    )

    async def work(place: Opened) -> None:
        with pytest.raises(StoreError, match="could not be made") as raised:
            await place.claim("run1", "anna")
        hint = raised.value.hint or ""
        assert "az cosmosdb sql container create" in hint
        assert f"--database-name {notes.name} --name rewrap --partition-key-path /relation" in hint

    with_guard(notes, tmp_path, work, COSMOS_ENDPOINT=cosmos_proxy.endpoint)


@pytest.mark.parametrize(
    ("made", "says"),
    [((["/id"], {}), "is partitioned by /id"), ((["/relation"], {"defaultTtl": 60}), "documents expire")],
)
def test_a_container_that_is_not_the_guards_is_refused(
    cosmos: CosmosDatabase, tmp_path: Path, made: tuple[list[str], dict[str, Any]], says: str
) -> None:
    """One of that name with another partition key, or whose documents vanish, holds no lock."""
    cosmos.container("notes")
    paths, more = made
    cosmos.container("rewrap", *paths, **more)

    async def work(place: Opened) -> None:
        with pytest.raises(UnsafeTarget, match=says):
            await place.claim("run1", "anna")

    with_guard(cosmos, tmp_path, work)


# the process that holds


def test_this_process_is_not_gone() -> None:
    """A holder that runs is not taken for dead, whatever else is not known of it."""
    me = this_process()
    assert me.host
    assert not me.gone
    assert not Holder.of(json.loads(json.dumps(me.as_json()))).gone


def test_a_dead_process_is_gone_even_before_it_is_waited_for() -> None:
    """Killed and still a zombie; then collected; then another process might have its number."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        stat = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        holder = Holder(this_host(), process.pid, stat[19])
        assert not holder.gone
        assert Holder(this_host(), process.pid, str(int(stat[19]) - 1)).gone
        process.kill()
        wait_for(lambda: holder.gone)
    finally:
        process.kill()
        process.wait(TIMEOUT_S)
    assert holder.gone


@pytest.mark.parametrize(
    "told",
    [None, {}, {"host": "elsewhere", "pid": 2**22 + 7, "started": "1"}, {"host": "", "pid": 1, "started": ""},
     {"host": 5, "pid": "1", "started": None}, {"host": "x", "pid": True, "started": "1"}],
)  # fmt: skip
def test_what_is_not_known_is_not_gone(told: object) -> None:
    """A holder of another machine, or of which a document says nothing usable, is waited for."""
    assert not Holder.of(told).gone


def test_a_number_that_no_process_has_on_this_machine_is_gone() -> None:
    """The kernel says so itself; nothing need be read of it."""
    free = int(Path("/proc/sys/kernel/pid_max").read_text()) + 1
    assert Holder(this_host(), free, "1").gone


# whole runs

DEKS = """
name = "test"
[stores.main]
kind = "cosmos"
endpoint = "${COSMOS_ENDPOINT}"
key = "env:COSMOS_KEY"
database = "${COSMOS_DATABASE}"
settle_s = 0
in_flight = 2
[keys.versions.v1]
material = "env:KEY_V1"
[keys.versions.v2]
material = "env:KEY_V2"
[pace]
batch_size = 10
[limits]
lease_s = 4
[[targets]]
container = "notes"
fields = [{ column = "body", layout = "libsodium-token" }]
"""

RUN = ["run", "--from", "v1", "--to", "v2", "--allow-unseen-target"]


@contextlib.contextmanager
def started(folder: Path, environ: dict[str, str], *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A command in the background; killed at the end if it still runs."""
    process = subprocess.Popen(
        [sys.executable, "-m", "rewrap", *arguments],
        cwd=folder, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.kill()
        process.communicate(timeout=TIMEOUT_S)


def ran(folder: Path, environ: dict[str, str], *arguments: str) -> tuple[int, str]:
    found = rewrap(arguments, folder, environ)
    return found.code, found.out + found.err


def resealed(notes: CosmosDatabase) -> int:
    return sum(document["body"].startswith("v2:") for document in notes.documents("notes"))


@pytest.fixture
def running(notes: CosmosDatabase, tmp_path: Path) -> dict[str, str]:
    """The environment of a job over 300 notes."""
    (tmp_path / "rewrap.toml").write_text(DEKS)
    notes.upsert("notes", *({"id": f"n{at}", "body": box(f"note {at}")} for at in range(300)))
    return environ_of(notes, NO_COLOR="1")


def test_rule_08_a_frozen_run_writes_nothing_after_it_was_replaced(
    notes: CosmosDatabase, tmp_path: Path, running: dict[str, str]
) -> None:
    """SIGSTOP past the lease, another run finishes, SIGCONT: the first writes no document and exits 11."""
    with started(tmp_path, running, *RUN, "--max-rate", "10") as frozen:
        wait_while(frozen, lambda: resealed(notes) > 10)
        code, said = ran(tmp_path, running, *RUN)
        assert code == 11, said
        assert "is being worked on by run" in said
        frozen.send_signal(signal.SIGSTOP)
        time.sleep(5.5)
        code, said = ran(tmp_path, running, *RUN)
        assert code == 0, said
        after = notes.etags("notes")
        frozen.send_signal(signal.SIGCONT)
        _, err = frozen.communicate(timeout=TIMEOUT_S)
    assert frozen.returncode == 11, err
    assert notes.etags("notes") == after
    assert {unbox(one["body"]).decode() for one in notes.documents("notes")} == {
        f"note {at}" for at in range(300)
    }


def test_a_killed_run_is_resumed_at_once(
    notes: CosmosDatabase, tmp_path: Path, running: dict[str, str]
) -> None:
    """SIGKILL in mid-run: on this machine nobody waits for the lease."""
    with started(tmp_path, running, *RUN, "--max-rate", "10") as killed:
        wait_while(killed, lambda: resealed(notes) > 10)
        killed.kill()
        killed.wait(TIMEOUT_S)
    assert notes.document("rewrap", "lease")["released"] is False
    code, said = ran(tmp_path, running, "resume")
    assert code == 0, said
    assert "was not given back" not in said
    assert resealed(notes) == 300
    lease = notes.document("rewrap", "lease")
    assert (lease["released"], lease["finished"]) == (True, True)
    # what was done before is in the counts, and was not read again
    assert "300 rows" in said


def test_a_replica_that_lags_has_not_lost_the_lock(
    notes: CosmosDatabase, cosmos_proxy: FaultProxy, tmp_path: Path
) -> None:
    """404 with 1002 says "not yet": nobody concludes from it that a document is gone."""
    not_yet = Answer(404, {"x-ms-substatus": "1002"}, '{"code": "NotFound", "message": "not yet"}')

    async def work(place: Opened) -> None:
        await place.claim("run1", "anna")
        rule = cosmos_proxy.add(not_yet, "read", times=2)
        assert (await place.guard.lease(place.relation, 0)).cursor is None
        assert rule.befallen == 2
        cosmos_proxy.add(not_yet, "read")
        with pytest.raises(StoreUnavailable):
            await place.guard.lease(place.relation, 0)

    with_guard(notes, tmp_path, work, COSMOS_ENDPOINT=cosmos_proxy.endpoint)
