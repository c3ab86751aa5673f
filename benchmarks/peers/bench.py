"""peers: rewrap beside what people write for themselves, and beside other tools, in the same rounds."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Iterable, Mapping
from functools import partial

import asyncpg

from benchmarks.command import rotate, warm_up
from benchmarks.data import SAMPLE, SECRETBOX, TABLE, TEXT, Column, Data, Shape
from benchmarks.errors import BenchError
from benchmarks.floor import run_floor
from benchmarks.journal import Journal, Line
from benchmarks.measure import cost_of_program, run_program, summarise
from benchmarks.options import ROOT, Options
from benchmarks.peers.roster import PEERS, Peer, lockbox_sealing
from benchmarks.rounds import Rounds, run_rounds
from benchmarks.server import QUIET, programs_with_pgcrypto, running
from benchmarks.values import Keys, plaintext

ROWS = 500_000
QUICK_ROWS = 5_000
ROUNDS = 3

FLOOR = "floor"


def run(journal: Journal, options: Options) -> None:
    rows = options.rows_or(ROWS, QUICK_ROWS)
    rounds = options.rounds_or(ROUNDS)
    with running(QUIET, programs=programs_with_pgcrypto()) as server:
        missing = {peer.name: lack for peer in PEERS if (lack := peer.missing(server))}
        peers = {peer.name: peer for peer in PEERS if peer.name not in missing}
        sizes = {name: _rows_of(peer, rows) for name, peer in peers.items()}
        setting = options.setting(server)
        journal.record(type="setting", **setting, rows=rows, rounds=rounds, peer_rows=sizes, missing=missing)
        for name, lack in missing.items():
            journal.say(f"MISSING: {name}: {lack}")
        data = Data(server, Keys.fresh(), rows)
        journal.say(f"sealing {rows:,} rows, and the peers' own forms")
        data.load(secretbox=True)
        for peer in peers.values():
            _make_form(data, peer.form, sizes[peer.name])
        warm_up(data, TEXT, rows)
        measured = run_rounds(journal, _runs(data, rows, peers, sizes), rounds)
    journal.summarise(rows=rows, rounds=rounds, **_summary(measured), missing=sorted(missing))


def _runs(
    data: Data, rows: int, peers: Mapping[str, Peer], sizes: Mapping[str, int]
) -> dict[str, Callable[[], Line]]:
    """Every run by its name. Each makes its table first."""

    def floor() -> Line:
        data.renew(TEXT)
        return run_floor(data, TEXT, rows).as_json()

    def rewrap(shape: Shape) -> Line:
        data.renew(shape)
        return rotate(data, shape, rows).as_json()

    runs: dict[str, Callable[[], Line]] = {FLOOR: floor}
    runs |= {shape.name: partial(rewrap, shape) for shape in (TEXT, SECRETBOX)}
    return runs | {name: partial(_run_peer, data, peer, sizes[name]) for name, peer in peers.items()}


def _rows_of(peer: Peer, rows: int) -> int:
    return max(200, int(rows * peer.share))


def _run_peer(data: Data, peer: Peer, rows: int) -> Line:
    """One run of a peer on a fresh table, checked; BenchError when what it left is wrong."""
    shape = Shape(peer.name, (Column(form=peer.form),))
    data.renew(shape, rows)
    environ = {**os.environ, "DATABASE_URL": data.server.dsn, **data.keys.environ}
    cost, ended = cost_of_program(
        data.server, rows, lambda: run_program(peer.command, environ=environ, folder=ROOT)
    )
    if ended.code != 0:
        raise BenchError(f"exit code {ended.code}: {' / '.join(ended.err.strip().splitlines()[-2:])}")
    said = json.loads(ended.out.strip().splitlines()[-1])
    if said["rows"] != rows or not 0 < said["seconds"] <= ended.seconds:
        raise BenchError(f"it says {said}, and had {rows:,} rows and {ended.seconds:.1f} s")
    _check(data, shape, peer.form, rows)
    return cost.as_json() | {
        "seconds": round(said["seconds"], 3),
        "program_seconds": round(ended.seconds, 3),
        "rows_per_s": round(rows / said["seconds"]),
    }


def _make_form(data: Data, form: str, rows: int) -> None:
    """Table source_FORM of the first rows, for values that are not in table `source`."""
    if form in ("gcm", "box"):
        return
    server = data.server
    server.execute(f"CREATE TABLE source_{form} (n bigint PRIMARY KEY, value text NOT NULL)")
    if form == "lockbox":
        environ = {**os.environ, "DATABASE_URL": server.dsn, **data.keys.environ}
        ended = run_program(lockbox_sealing(rows), environ=environ, folder=ROOT)
        if ended.code != 0:
            raise BenchError(f"Lockbox sealed nothing: {' / '.join(ended.err.strip().splitlines()[-2:])}")
    elif form == "cbc":
        server.execute("CREATE EXTENSION IF NOT EXISTS pgcrypto")
        sealed = ((number, data.keys.seal_cbc("v1", plaintext(number))) for number in range(1, rows + 1))
        asyncio.run(_copy(server.dsn, "source_cbc", sealed))
    else:
        server.execute("CREATE EXTENSION IF NOT EXISTS pgcrypto")
        plain = ((number, plaintext(number).decode()) for number in range(1, rows + 1))
        asyncio.run(_copy(server.dsn, "source_pgp", plain))
        passphrase = data.keys.environ["KEY_V1"]
        server.execute(
            "UPDATE source_pgp SET value = 'v1:' || translate(encode("
            f"pgp_sym_encrypt(value, '{passphrase}'), 'base64'), E'\\n', '')"
        )


def _check(data: Data, shape: Shape, form: str, rows: int) -> None:
    """All values are new, and a sample of them opens under the new key."""
    if form == "lockbox":
        # it writes no version
        changes = f"{TABLE} JOIN source_lockbox ON n = id AND ciphertext <> value"
        changed = data.server.value(f"SELECT count(*) FROM {changes}")
        if changed != rows:
            raise BenchError(f"{changed:,} of {rows:,} values are changed")
    else:
        data.check_markers(shape, rows)
    if form != "pgp":
        data.check_sample(shape, rows)
        return
    query = (
        "SELECT id, pgp_sym_decrypt(decode(substr(ciphertext, 4), 'base64'), $1) AS plain"
        f" FROM {TABLE} ORDER BY random() LIMIT {SAMPLE // 4}"
    )
    for row in data.server.fetch(query, data.keys.environ["KEY_V2"]):
        if row["plain"].encode() != plaintext(row["id"]):
            raise BenchError(f"the value of row {row['id']} is not what was sealed")


async def _copy(dsn: str, table: str, records: Iterable[tuple[int, str]]) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.copy_records_to_table(table, records=records, columns=["n", "value"])
    finally:
        await connection.close()


def _summary(measured: Rounds) -> Line:
    times_faster, ranges = summarise(
        {peer.name: measured.ratios(peer.partner, peer.name) for peer in PEERS}, digits=2
    )
    rates = {name: measured.figures(name, "rows_per_s") for name in list(measured.lines)}
    rows_per_s, _ = summarise({name: figures for name, figures in rates.items() if figures}, digits=0)
    return {"times_faster": times_faster, "rows_per_s": rows_per_s, "ranges": ranges}
