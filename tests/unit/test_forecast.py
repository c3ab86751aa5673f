"""The arithmetic of a forecast: what makes it dearer makes it dearer, and low is never above high."""

from __future__ import annotations

from dataclasses import fields, replace

from hypothesis import given
from hypothesis import strategies as st

from rewrap.forecast import (
    PAGE,
    Calls,
    Forecast,
    IndexShape,
    Range,
    Sampled,
    Server,
    TableShape,
    Work,
    forecast,
    hot_share,
    whole,
    with_calls,
)
from rewrap.metered import forecast_documents

ROWS = 100_000
TABLE = TableShape(
    rows=ROWS, pages=1_500, row_bytes=116.0, indexes=(IndexShape("pkey", 2_260_992, False),),
    spread=False, autovacuum=None, logical=False, identity_full=False,
)  # fmt: skip
SERVER = Server(max_wal_bytes=2**30, checkpoint_s=300.0, full_page_writes=True)
SAMPLED = Sampled(rows=1_000, read_s=2e-6, reseal_s=5e-6, new_bytes=80.0)
WORK = Work(values=ROWS, rows=ROWS, rows_most=ROWS)


def of(
    table: TableShape = TABLE, server: Server = SERVER, sampled: Sampled = SAMPLED, work: Work = WORK
) -> Forecast:
    return forecast(table, server, sampled, work, batch_size=1_000, shards=4)


def test_every_new_version_of_a_row_goes_to_the_log() -> None:
    """At least the new values' bytes, and with whole pages at most some multiple of the table."""
    found = of()
    assert found.wal_bytes.low > ROWS * SAMPLED.new_bytes * 0.5
    assert found.wal_bytes.high < 10 * TABLE.pages * PAGE


def test_index_on_an_encrypted_column_costs_more() -> None:
    """No row stays on its page, and each index gets an entry for each row."""
    roomy = replace(TABLE, pages=4_000)
    indexed = replace(roomy, indexes=(*roomy.indexes, IndexShape("by_body", 12_000_000, True)))
    assert hot_share(roomy).high > 0.9
    assert hot_share(indexed) == Range(0, 0)
    assert of(indexed).wal_bytes.low > of(roomy).wal_bytes.low
    assert of(indexed).growth_bytes.high > of(roomy).growth_bytes.high


def test_full_pages_leave_no_room() -> None:
    """A packed table moves all of its rows, and doubles; one with room keeps its size."""
    assert hot_share(TABLE).low == 0
    assert of().growth_bytes.low > 0.5 * ROWS * 116
    assert of(replace(TABLE, pages=4_000)).growth_bytes.low == 0


def test_pages_after_checkpoints_are_only_in_the_high_end() -> None:
    """Without full_page_writes the high end is lower, and the low end the same."""
    without = of(server=replace(SERVER, full_page_writes=False))
    assert without.wal_bytes.low == of().wal_bytes.low
    assert without.wal_bytes.high < of().wal_bytes.high - TABLE.pages * PAGE


def test_keys_in_no_order_touch_pages_after_each_checkpoint() -> None:
    """A table that is walked in another order than it lies in has its pages logged again and again."""
    small = replace(SERVER, max_wal_bytes=2**24)
    assert of(replace(TABLE, spread=True), small).wal_bytes.high > 2 * of(server=small).wal_bytes.high


def test_autovacuum_may_clear_on_the_way() -> None:
    """The low end of dead rows is where the server begins to clear them."""
    assert of(replace(TABLE, autovacuum=20_050.0)).dead_rows.low <= 20_050
    assert of().dead_rows.low > 0.8 * ROWS


def test_subscribers_get_whole_rows() -> None:
    """Logical decoding takes the whole row; REPLICA IDENTITY FULL the old one too."""
    roomy = replace(TABLE, pages=4_000)
    logical = replace(roomy, logical=True)
    assert of(logical).wal_bytes.low > of(roomy).wal_bytes.low
    assert of(replace(logical, identity_full=True)).wal_bytes.high > of(logical).wal_bytes.high


def test_large_values_are_stored_in_chunks() -> None:
    """What is not stored in the row is written once more beside it."""
    found = of(sampled=replace(SAMPLED, new_bytes=12_000.0))
    assert ROWS * 12_000 * 0.8 < found.wal_bytes.low < ROWS * 12_000 * 1.3
    assert found.growth_bytes.high > ROWS * 12_000


def test_key_operations() -> None:
    """Each value is opened, sealed, and opened again; what names no version is opened to find out."""
    found = of(work=Work(values=500, rows=500, rows_most=500, probed=700))
    assert (found.seals.low, found.opens.low) == (500, 2 * 500 + 700)
    assert found.seals.high == 500 + 4 * 1_000
    assert found.remote_calls == Range(0, 0)


def test_nothing_in_scope_costs_nothing() -> None:
    """A table that is done already is read, and no more."""
    found = of(work=Work(0, 0, 0))
    assert found.wal_bytes == found.growth_bytes == Range(0, 0)
    assert found.seals.low == 0
    assert whole([found]).wal_bytes == Range(0, 0)


def test_whole_run_is_the_sum_and_what_it_costs_once() -> None:
    one = of()
    total = whole([one, one])
    assert total.wal_bytes.low == 2 * one.wal_bytes.low
    assert total.wal_bytes.high > 2 * one.wal_bytes.high
    assert total.seconds.low > 2 * one.seconds.low


@given(
    rows=st.integers(0, 10**9),
    pages=st.integers(0, 10**8),
    row_bytes=st.floats(24, 8_000),
    new_bytes=st.floats(0, 10**7),
    share=st.floats(0, 1),
    spread=st.booleans(),
    holds=st.booleans(),
    index_bytes=st.integers(0, 10**11),
    autovacuum=st.none() | st.floats(0, 10**9),
)
def test_low_is_never_above_high(
    rows: int, pages: int, row_bytes: float, new_bytes: float, share: float, spread: bool, holds: bool,
    index_bytes: int, autovacuum: float | None,
) -> None:  # fmt: skip
    """Whatever the catalog says, each figure is a range of numbers that are not negative."""
    table = replace(
        TABLE, rows=rows, pages=pages, row_bytes=row_bytes, spread=spread, autovacuum=autovacuum,
        indexes=(IndexShape("i", index_bytes, holds),),
    )  # fmt: skip
    busy = int(rows * share)
    found = of(table, sampled=replace(SAMPLED, new_bytes=new_bytes), work=Work(busy, busy, rows))
    for entry in fields(Forecast):
        one = getattr(found, entry.name)
        assert 0 <= one.low <= one.high, (entry.name, one)


def test_calls_to_a_vault_take_their_time() -> None:
    """Two a value where each is opened again, at no more a second than the budget."""
    work = Work(values=2_000, rows=2_000, rows_most=2_000)
    calls = Calls(per_s=50.0, reopen=1.0, keys=2, proof=50)
    found = with_calls(of(work=work), work, calls, batch_size=100, shards=4)
    assert found.remote_calls == Range(4_000, 2 * 2_400 + 50)
    assert found.seconds.low >= 4_000 / 50
    assert found.seconds.high >= of(work=work).seconds.high + found.remote_calls.high / 50


def test_a_sample_opened_again_takes_fewer_calls() -> None:
    """One a value for what is opened, and the share of the new ones."""
    work = Work(values=2_000, rows=2_000, rows_most=2_000)
    calls = Calls(per_s=50.0, reopen=0.1, keys=2, proof=0)
    assert with_calls(of(work=work), work, calls, batch_size=1, shards=1).remote_calls.low == 2_200


def test_a_repeated_batch_is_no_more_than_there_is() -> None:
    """A few values in a batch of a thousand are repeated once, and not a thousand times."""
    work = Work(values=10, rows=10, rows_most=10)
    calls = Calls(per_s=50.0, reopen=1.0, keys=2, proof=0)
    assert with_calls(of(work=work), work, calls, batch_size=1_000, shards=4).remote_calls.high == 40


@given(
    st.integers(1, 10**7), st.integers(0, 10**7), st.floats(0, 50), st.floats(0, 0.1), st.integers(1, 32)
)  # fmt: skip
def test_a_containers_forecast_is_low_below_high_and_dearer_where_reading_is(
    documents: int, in_scope: int, units: float, read_s: float, shards: int
) -> None:
    """Request units grow with what reading charges, and with the documents that are patched."""
    rows = min(in_scope, documents)
    work = Work(values=rows, rows=rows, rows_most=rows)

    def told(read_units: float, some: Work) -> Forecast:
        sampled = Sampled(100, read_s, 1e-5, 300.0, read_units)
        return forecast_documents(documents, sampled, some, batch_size=1_000, shards=shards)

    one = told(units, work)
    for entry in fields(Forecast):
        each: Range = getattr(one, entry.name)
        assert 0 <= each.low <= each.high
    assert one.wal_bytes.high == one.dead_rows.high == 0
    dearer = told(units + 1, work)
    assert (dearer.request_units.low > one.request_units.low) is (rows > 0)
    less = told(units, Work(values=rows // 2, rows=rows // 2, rows_most=rows // 2))
    assert (less.request_units.high < one.request_units.high) is (rows > 0)
    # nothing of it goes to a log, and so nothing fixed of one is added
    assert whole([one]) == one
