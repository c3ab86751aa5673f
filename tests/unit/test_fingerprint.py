"""Fingerprints: sorted entries compared as streams, however they are cut."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from hypothesis import given
from hypothesis import strategies as st

from rewrap.fingerprint import ENTRY_BYTES, Difference, compared, entry

ROWS = st.dictionaries(st.integers(0, 60), st.integers(0, 3), max_size=60)
CUTS = st.lists(st.integers(1, 40), max_size=30)


async def stream(entries: list[bytes], cuts: list[int]) -> AsyncIterator[bytes]:
    at = 0
    for cut in [*cuts, len(entries) + 1]:
        part = b"".join(entries[at : at + cut])
        at += cut
        if part:
            yield part


def entries(rows: dict[int, int]) -> list[bytes]:
    return sorted(entry([str(k).encode()], [None if v == 3 else bytes(v)]) for k, v in rows.items())


def difference(before: list[bytes], now: list[bytes], cuts: list[int], others: list[int]) -> Difference:
    return asyncio.run(compared(stream(before, cuts), stream(now, others)))


@given(before=ROWS, now=ROWS, cuts=CUTS, others=CUTS)
def test_rows_are_told_apart_however_the_streams_are_cut(
    before: dict[int, int], now: dict[int, int], cuts: list[int], others: list[int]
) -> None:
    """Same, changed, new and gone, as two dictionaries have it."""
    found = difference(entries(before), entries(now), cuts, others)
    both = before.keys() & now.keys()
    assert found.unchanged == sum(before[k] == now[k] for k in both)
    assert found.changed == sum(before[k] != now[k] for k in both)
    assert found.inserted == len(now.keys() - before.keys())
    assert found.deleted == len(before.keys() - now.keys())
    assert (found.before.rows, found.now.rows) == (len(before), len(now))
    assert found.same == (before == now)


@given(twice=st.lists(st.integers(0, 2), max_size=12), cuts=CUTS)
def test_rows_whose_keys_are_the_same_are_counted_one_by_one(twice: list[int], cuts: list[int]) -> None:
    """Keys that are not unique, or begin alike, lose no row: each change is one."""
    before = sorted(entry([b"k"], [bytes(v)]) for v in twice)
    now = sorted(entry([b"k"], [bytes(v + 1)]) for v in twice)
    found = difference(before, now, cuts, [1] * len(now))
    assert found.unchanged + found.changed == len(twice)
    assert (found.inserted, found.deleted) == (0, 0)
    assert found.same == (not twice)


def test_entry_tells_what_is_absent_from_what_is_empty() -> None:
    """NULL, the empty text, and the same bytes in another column are four different rows."""
    rows = {
        entry([b"1"], [None, b""]),
        entry([b"1"], [b"", None]),
        entry([b"1"], [None, None]),
        entry([b"1"], [b"", b""]),
        entry([b"1", b""], [b""]),
        entry([b"1"], [b"\x01"]),
    }
    assert len(rows) == 6
    assert {len(one) for one in rows} == {ENTRY_BYTES}
