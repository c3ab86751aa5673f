"""Budgets of accounts and vaults that several processes share, over a ledger in Postgres."""

from __future__ import annotations

import contextlib
from pathlib import Path

from rewrap.pace.shared import PIECE_S
from tests.integration.test_vault import RECORDS, Deks, deks
from tests.support.budgets import busiest_second
from tests.support.cosmos import CosmosDatabase
from tests.support.cosmosbench import LIMITS, NOTES, CosmosBench, expected, note
from tests.support.proxy import FaultProxy
from tests.support.vault import VaultEmulator
from tests.support.workbench import Workbench

__all__ = ["deks"]

UNITS_PER_S = 200.0

CALLS_PER_S = 12.0

COUNT = 40

CHARGES = {"patch": 10.0, "query": 5.0, "read": 1.0, "replace": 10.0, "create": 10.0, "container": 1.0}
"""Request units that the proxy charges."""


def test_two_runs_share_the_request_units_of_an_account(
    bench: Workbench, cosmos: CosmosDatabase, cosmos_proxy: FaultProxy, tmp_path: Path
) -> None:
    """By what requests cost in truth, while both are at work."""
    cosmos_proxy.charges = dict(CHARGES)
    jobs = []
    for name in ("notes", "others"):
        folder = tmp_path / name
        folder.mkdir()
        job = CosmosBench(folder, cosmos, cosmos_proxy)
        job.environ["REWRAP_LEDGER_URL"] = bench.dsn
        shared = f"{LIMITS}[pace.shared.account]\nrate = {UNITS_PER_S}\n"
        path = job.job(NOTES.replace("notes", name), shared, store=f'guard_container = "rewrap-{name}"')
        path.write_text(path.read_text().replace('name = "test"', f'name = "{name}"'))
        cosmos.container(name, "/owner")
        cosmos.upsert(name, *(note(number) for number in range(COUNT)))
        jobs.append(job)
    cosmos_proxy.seen.clear()
    run = ["run", "--from", "v1", "--to", "v2", "--allow-unseen-target", "--json"]
    with contextlib.ExitStack() as stack:
        started = [stack.enter_context(job.started(*run)) for job in jobs]
        said = [one.communicate(timeout=120) for one in started]
        assert [one.returncode for one in started] == [0, 0], [one[1] for one in said]
    for name, job in zip(("notes", "others"), jobs, strict=True):
        assert set(job.bodies_of(name)) == set(expected(COUNT))
        assert all(body.startswith("v2:") for body in job.bodies_of(name).values())
    patches = [
        sorted(one.at for one in cosmos_proxy.seen if one.kind == "patch" and f"/{name}/" in one.path)
        for name in ("notes", "others")
    ]
    # before its first patch and after its last a run looks, locks, and verifies
    since, until = max(at[0] for at in patches), min(at[-1] for at in patches)
    uses = [(one.at, one.charge) for one in cosmos_proxy.seen if since <= one.at <= until]
    assert busiest_second(uses) <= UNITS_PER_S + 2 * UNITS_PER_S * PIECE_S
    assert "shared budget account, 200 RU/s for all" in said[0][0]
    found = [tuple(row) for row in bench.sql("SELECT name, unit, rate FROM rewrap_bucket")]
    assert found == [("account", "RU", UNITS_PER_S)]


def test_calls_to_a_vault_draw_on_a_shared_budget(deks: Deks, vault_emulator: VaultEmulator) -> None:
    """Each attempt, whatever it is for; and the progress says so."""
    deks.bench.environ["REWRAP_LEDGER_URL"] = deks.bench.dsn
    path = deks.bench.folder / "rewrap.toml"
    path.write_text(path.read_text() + f"\n[pace.shared.vault]\nkeys = true\nrate = {CALLS_PER_S}\n")
    done = deks.run()
    assert done.code == 0, done.err
    assert deks.under == {deks.new: RECORDS}
    # the first ones prove the keys, before there is a run; each record takes at least two
    calls = sorted(one.at for one in vault_emulator.proxy.seen if one.kind == "unwrapkey")[-2 * RECORDS + 8 :]
    assert busiest_second([(at, 1.0) for at in calls]) <= CALLS_PER_S + CALLS_PER_S * PIECE_S
    assert "shared budget vault, 12 calls/s for all" in done.out
    found = [tuple(row) for row in deks.bench.sql("SELECT name, unit, rate FROM rewrap_bucket")]
    assert found == [("vault", "calls", CALLS_PER_S)]
