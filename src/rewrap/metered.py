"""The forecast of a store that charges by the request: what documents cost to read is measured, and what
patches cost is assumed, since that cannot be measured without writing."""

from __future__ import annotations

from rewrap.forecast import NOTHING, Forecast, Range, Sampled, Work

PATCH_UNITS = (6.0, 20.0)
"""Request units of one patch of a document of about 1 KB: assumed, few properties indexed and many."""

PATCH_S = (6e-4, 5e-3)
"""Seconds of one patch: assumed; the client's own work, and that over a slow line with 16 in flight."""

_CHECKPOINT_UNITS = 12.0
"""Request units of a batch's checkpoint, about."""

_FIXED_UNITS, _FIXED_S = 300.0, 15.0
"""What a run takes besides its documents, at most: the lock, proofs, what verify asks twice."""


def forecast_documents(rows: int, sampled: Sampled, work: Work, *, batch_size: int, shards: int) -> Forecast:
    """The cost of rotating one container of so many documents."""
    again = min(batch_size * shards, work.values)
    read = rows * sampled.read_units
    if not work.rows:
        return Forecast(Range(0, 0), NOTHING, NOTHING, NOTHING, NOTHING, NOTHING, NOTHING, Range(0, 0))
    seconds = Range(
        max(rows * sampled.read_s / max(1, shards), work.rows * max(sampled.reseal_s, PATCH_S[0])),
        # verify reads it twice more, at worst
        3 * rows * sampled.read_s + work.rows_most * (2 * sampled.reseal_s + PATCH_S[1]) + _FIXED_S,
    )
    units = Range(
        read + work.rows * PATCH_UNITS[0],
        3 * read
        # a lost patch is read before it is sent again
        + work.rows_most * (PATCH_UNITS[1] + sampled.read_units)
        + (1 + rows / batch_size) * _CHECKPOINT_UNITS
        + _FIXED_UNITS,
    )
    return Forecast(
        seconds=seconds,
        wal_bytes=NOTHING,
        growth_bytes=NOTHING,
        dead_rows=NOTHING,
        opens=Range(2 * work.values + work.probed, 2 * (work.values + again) + 2 * work.probed),
        seals=Range(work.values, work.values + again),
        request_units=units,
    )
