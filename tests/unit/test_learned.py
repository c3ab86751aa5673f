"""What earlier runs make of a forecast: their figures in place of assumptions, within what is kept to."""

from __future__ import annotations

from dataclasses import fields, replace

from hypothesis import given
from hypothesis import strategies as st

from rewrap.derived import derivations
from rewrap.forecast import NOTHING, Forecast, Range, Sampled, Work
from rewrap.learned import (
    READ_ROW_S,
    REST_ROW_S,
    REST_ROW_UNITS,
    ROW_UNITS,
    ROW_VALUES,
    SEAL_VALUE_S,
    SWEEP_S,
    VALUE_CALLS,
    WAIT_ROW_S,
    WAL_VALUE_BYTES,
    WHOLE_RUN,
    Figure,
    Learned,
    Outlook,
    Quota,
    Sized,
    learn,
    margin,
)
from rewrap.ledgers.records import TableProgress
from rewrap.remaining import left_of

NOTES = '"public"."notes"'
ROWS = 10_000
WORK = Work(values=ROWS, rows=ROWS, rows_most=ROWS)
SIZED = Sized(NOTES, ROWS, WORK, Sampled(1_000, 1e-6, 5e-6, 80.0, 0.03), again=0)
PRIOR = Forecast(
    seconds=Range(0.1, 90.0), wal_bytes=Range(1e6, 2e7), growth_bytes=NOTHING, dead_rows=NOTHING,
    opens=Range(2 * ROWS, 2 * ROWS), seals=Range(ROWS, ROWS), remote_calls=Range(2 * ROWS, 3 * ROWS),
    request_units=Range(6 * ROWS, 21 * ROWS),
)  # fmt: skip


def figure(name: str, value: float, run: str = "one", relation: str = NOTES, samples: int = ROWS) -> Figure:
    return Figure(relation, name, run, value, samples)


SWEPT = figure(SWEEP_S, 100.0, relation=WHOLE_RUN)


def told(*figures: Figure, sized: Sized = SIZED, quotas: tuple[Quota, ...] = ()) -> Outlook:
    return learn(PRIOR, Learned(figures), sized, quotas)


def test_without_runs_a_forecast_is_what_it_was() -> None:
    """Nothing measured, nothing changed, nothing claimed."""
    found = told()
    assert (found.forecast, found.runs, found.quotas) == (PRIOR, {}, {})
    said = derivations([found])
    assert "assumed" in said["seconds"].kinds
    assert said["seconds"].runs == ()


def test_time_is_that_of_rows_and_of_values() -> None:
    """What reading and resealing took, with room at both ends, and more where runs differ."""
    one = told(figure(READ_ROW_S, 0.001), figure(SEAL_VALUE_S, 0.002), SWEPT)
    assert one.runs["seconds"] == ("one",)
    assert one.forecast.seconds.low == 30 / 1.5 * (1 - 0.5 / 100)
    # verification reads twice more, where no run has shown what it takes
    assert one.forecast.seconds.high == (30 + 20) * 1.5 + 10
    long = figure(REST_ROW_S, 0.01, relation=WHOLE_RUN)
    most = told(figure(READ_ROW_S, 0.001), figure(SEAL_VALUE_S, 0.002), long).forecast.seconds.high
    assert most == (30 + 100) * 1.5 + 10
    two = told(
        SWEPT, replace(SWEPT, run_id="two"),
        figure(READ_ROW_S, 0.001, "two"), figure(SEAL_VALUE_S, 0.004, "two"),
        figure(READ_ROW_S, 0.001), figure(SEAL_VALUE_S, 0.002),
    )  # fmt: skip
    assert two.runs["seconds"] == ("two", "one")
    assert two.forecast.seconds.low == one.forecast.seconds.low
    assert two.forecast.seconds.high > one.forecast.seconds.high + 25


def test_a_short_sweep_says_nothing_of_the_low_end() -> None:
    """Most of it was its start: a long one is faster by row, and nobody knows by how much."""
    short = replace(SWEPT, value=0.2)
    found = told(figure(READ_ROW_S, 0.01), figure(SEAL_VALUE_S, 0.02), short).forecast.seconds
    assert found.low == PRIOR.seconds.low
    assert found.high > 300


def test_rows_that_were_made_to_wait_are_in_the_high_end_alone() -> None:
    """Others' load may be gone the next time, or may not."""
    free = told(figure(READ_ROW_S, 0.001), figure(SEAL_VALUE_S, 0.002)).forecast.seconds
    waited = told(
        figure(READ_ROW_S, 0.001), figure(SEAL_VALUE_S, 0.002), figure(WAIT_ROW_S, 0.01)
    ).forecast.seconds  # fmt: skip
    assert waited.low == free.low
    assert waited.high == free.high + 100 * 1.5


def test_the_further_it_reaches_the_wider_it_is() -> None:
    """A thousand rows say less of a hundred million than of two thousand."""
    assert margin(1_000, 500) == margin(1_000, 1_000) < margin(1_000, 100_000) < margin(1_000, 10**8)
    assert margin(1_000, 10**8, cost=True) < margin(1_000, 10**8)


def test_what_a_patch_is_charged_is_the_sweeps_charge_less_that_of_reading() -> None:
    """Sixty thousand units for ten thousand documents, of which a half was resealed."""
    figures = (figure(ROW_UNITS, 6.03), figure(ROW_VALUES, 0.5))
    seen = Learned(figures).patch_units(NOTES, 0.03)
    assert seen is not None
    assert round(seen.low, 6) == round(seen.high, 6) == 12
    units = told(*figures, figure(REST_ROW_UNITS, 0.1, relation=WHOLE_RUN)).forecast.request_units
    assert units.low == (300 + ROWS * seen.low) / 1.1
    assert units.high == (300 + ROWS * seen.high + 1_000) * 1.1 + 300
    assert Learned((figures[0], figure(ROW_VALUES, 0.001))).patch_units(NOTES, 0.03) is None


def test_log_is_bounded_above_by_what_was_logged() -> None:
    """Others wrote too: a run's own share may be less, and is never said to be more than is counted."""
    found = told(figure(WAL_VALUE_BYTES, 500.0)).forecast.wal_bytes
    assert found == Range(PRIOR.wal_bytes.low, 500 * ROWS * 1.1)
    assert told(figure(WAL_VALUE_BYTES, 1e6)).forecast.wal_bytes == PRIOR.wal_bytes


def test_calls_that_several_values_share_are_fewer() -> None:
    """Where a tenth of the calls was made, a tenth may be made again."""
    found = told(figure(VALUE_CALLS, 0.2)).forecast.remote_calls
    assert found.low < 0.2 * ROWS < found.high < PRIOR.remote_calls.high


def test_a_vaults_calls_keep_their_own_low_end() -> None:
    """What a run took under another quota is no lower bound."""
    found = told(
        figure(READ_ROW_S, 0.001), figure(SEAL_VALUE_S, 0.1), sized=replace(SIZED, remote=True)
    ).forecast.seconds  # fmt: skip
    assert found.low == PRIOR.seconds.low
    assert found.high > 1_000


def test_a_quota_is_kept_however_fast_the_rest_is() -> None:
    """Its time is the least there is; at worst the work comes on top."""
    quota = Quota("rows", 100.0, "max_rate of 100 rows/s")
    found = told(figure(READ_ROW_S, 1e-5), figure(SEAL_VALUE_S, 2e-5), quotas=(quota,))
    assert found.forecast.seconds.low == ROWS / 100 - 1
    assert found.forecast.seconds.high > ROWS / 100
    assert derivations([found])["seconds"].kinds == ("quota", "measured")
    units = told(quotas=(Quota("request_units", 400.0, "max_rus of 400 RU/s"),))
    assert units.forecast.seconds.low == 6 * ROWS / 400 - 1


@given(st.lists(st.tuples(
    st.sampled_from([READ_ROW_S, SEAL_VALUE_S, WAIT_ROW_S, WAL_VALUE_BYTES, ROW_UNITS, ROW_VALUES,
                     VALUE_CALLS]),
    st.sampled_from(["a", "b"]), st.floats(0, 1e6), st.integers(1, 10**9)), max_size=12),
    st.integers(0, 10**9), st.booleans(), st.none() | st.floats(0.1, 1e6))  # fmt: skip
def test_low_is_never_above_high(
    measured: list[tuple[str, str, float, int]], rows: int, remote: bool, cap: float | None
) -> None:
    """Whatever runs measured."""
    figures = tuple(Figure(NOTES, name, run, value, samples) for name, run, value, samples in measured)
    sized = replace(SIZED, rows=rows, work=Work(rows, rows, rows), remote=remote)
    quotas = () if cap is None else (Quota("rows", cap, "max_rate"),)
    found = told(*figures, sized=sized, quotas=quotas).forecast
    for entry in fields(Forecast):
        one: Range = getattr(found, entry.name)
        assert 0 <= one.low <= one.high, entry.name


# what is left


def entry(done: int, rows_per_s: float = 0.0, *, finished: bool = False) -> TableProgress:
    tally = {"body": {"resealed": done // 2, "current": done - done // 2}}
    return TableProgress(NOTES, 1, ROWS, done, done // 2, tally, finished, rows_per_s)


def test_left_is_what_was_not_read_at_the_pace_of_now() -> None:
    """Six thousand rows at a hundred a second, and what verification takes."""
    rest = figure(REST_ROW_S, 0.002, "earlier", WHOLE_RUN)
    found = left_of("now", [entry(4_000, 100.0)], Learned((rest,)), running=True)
    assert found.forecast.seconds.low == 60 / 1.5
    assert found.forecast.seconds.high == 60 * 1.5 + 10 + 20 * 1.5
    assert found.derived["seconds"].runs == ("earlier",)
    assert set(found.derived) == {"seconds"}


def test_left_costs_what_this_run_has_measured_of_half_the_rows() -> None:
    """Half of what was read was resealed, so half of what is left will be; an earlier run has no say."""
    figures = (
        figure(READ_ROW_S, 0.001, "now"), figure(SEAL_VALUE_S, 0.002, "now"),
        figure(WAL_VALUE_BYTES, 400.0, "now"), figure(WAL_VALUE_BYTES, 9_000.0, "earlier"),
        figure(ROW_UNITS, 7.0, "now"), figure(VALUE_CALLS, 2.0, "now"), replace(SWEPT, run_id="now"),
    )  # fmt: skip
    found = left_of("now", [entry(4_000)], Learned(figures), running=False)
    assert found.forecast.wal_bytes == Range(3_000 * 400 / 1.5, 3_000 * 400 * 1.5)
    assert found.forecast.request_units == Range(6_000 * 7 / 1.5, 6_000 * 7 * 1.5)
    assert found.forecast.remote_calls == Range(3_000 * 2 / 1.5, 3_000 * 2 * 1.5)
    assert found.forecast.seconds.low == 12 / 1.5 * (1 - 0.5 / 100)
    assert found.derived["wal_bytes"].runs == ("now",)


def test_left_keeps_to_a_quota_but_for_what_is_in_hand() -> None:
    """Rows that were let through, and are not settled yet, count as left: they no longer wait."""
    quota = Quota("rows", 100.0, "max_rate of 100 rows/s")
    found = left_of("now", [entry(4_000, 5_000.0)], Learned(), running=True, quotas=[quota])
    assert found.forecast.seconds.low == 60 - 5
    assert found.forecast.seconds.high > 60
    assert "quota" in found.derived["seconds"].kinds


def test_left_knows_no_time_where_nothing_was_measured() -> None:
    """A figure that nobody knows is not there."""
    assert left_of("now", [entry(0)], Learned(), running=True).derived == {}


def test_left_when_all_is_read_is_verification() -> None:
    """No row is left: from nothing to what other runs took for their ends."""
    rest = figure(REST_ROW_S, 0.001, "earlier", WHOLE_RUN)
    found = left_of("now", [entry(ROWS, finished=True)], Learned((rest,)), running=True)
    assert found.forecast.seconds == Range(0, 10 + 10 * 1.5)
