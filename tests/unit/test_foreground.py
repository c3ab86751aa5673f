"""Yielding to others: when it begins and ends, and what share of the time it leaves."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from rewrap.pace.foreground import (
    CALM_EVERY_S,
    CALM_S,
    FIRST_SHARE,
    GONE_S,
    LARGEST,
    LEAST_SHARE,
    MOST_SHARE,
    SMALLEST,
    Foreground,
)

LOOK_S = 0.25
PROBE_S = 0.05


class Server:
    """A probe takes `alone` seconds, and beside our work what `cost` makes of the share times that."""

    def __init__(self, busy: int = 4, alone: float = 0.002, cost: Callable[[float], float] = lambda _: 1.0):
        self.busy, self.alone, self.cost = busy, alone, cost
        self.now = 100.0
        self.foreground = Foreground(self.now)
        self.calm_s = 0.0

    def pass_time(self, seconds: float) -> None:
        until = self.now + seconds
        next_look = self.now
        while self.now < until:
            if self.now >= next_look:
                self.foreground.seen(self.busy, self.now)
                next_look = self.now + LOOK_S
            self.calm_s += PROBE_S if self.foreground.calm else 0.0
            factor = 1.0 if self.foreground.calm else self.cost(self.foreground.share)
            self.foreground.probed(self.alone * factor, self.now)
            self.now += PROBE_S


def test_who_is_there_at_the_start_is_yielded_to_at_once() -> None:
    """The first look is enough: nobody is run over for a second."""
    server = Server()
    server.foreground.seen(1, server.now)
    assert server.foreground.present


def test_one_statement_later_is_no_application() -> None:
    """A look that finds somebody, between looks that find nobody, changes nothing."""
    foreground = Foreground(0.0)
    for at, busy in enumerate([0, 0, 1, 0, 0, 0, 1, 0]):
        foreground.seen(busy, at * LOOK_S)
        assert not foreground.present
    foreground.seen(1, 9 * LOOK_S)
    assert foreground.present


def test_speed_comes_back_when_the_others_have_gone() -> None:
    """After two seconds without anybody, and not before."""
    server = Server()
    server.pass_time(5)
    server.busy = 0
    server.pass_time(GONE_S - 2 * LOOK_S)
    assert server.foreground.present
    server.pass_time(1)
    assert not server.foreground.present
    assert not server.foreground.calm


def test_share_grows_while_nobody_notices() -> None:
    """Up to the most there is, and never beyond."""
    server = Server()
    server.pass_time(60)
    assert server.foreground.share == MOST_SHARE


def test_share_falls_while_others_wait_for_us() -> None:
    """Down to the least there is: a run always goes on."""
    server = Server(cost=lambda _: 3.0)
    server.pass_time(60)
    assert server.foreground.share == LEAST_SHARE


def test_share_finds_where_others_begin_to_notice() -> None:
    """It stays about where a probe takes half as long again."""
    server = Server(cost=lambda share: 1 + 2 * share / 0.2)
    server.pass_time(120)
    assert 0.02 <= server.foreground.share <= 0.08


def test_a_server_that_is_slow_by_itself_is_no_reason_to_go_slower() -> None:
    """What others do to each other is in both measurements."""
    server = Server(alone=0.2)
    server.pass_time(60)
    assert server.foreground.share == MOST_SHARE


def test_pauses_to_measure_take_little_time() -> None:
    """A third of a second in ten."""
    server = Server()
    server.pass_time(120)
    assert 0 < server.calm_s <= 120 * (CALM_S + 3 * PROBE_S) / CALM_EVERY_S


def test_a_new_load_is_measured_anew() -> None:
    """What was learnt beside another load may be too much."""
    server = Server()
    server.pass_time(60)
    server.busy = 0
    server.pass_time(5)
    server.busy = 2
    server.pass_time(LOOK_S * 1.5)
    assert server.foreground.share == FIRST_SHARE
    assert server.foreground.calm


@pytest.mark.parametrize("row_s", [1e-7, 1e-5, 2e-5, 1e-4, 1e-3, 10.0])
def test_batches_are_small_and_of_few_sizes(row_s: float) -> None:
    """Each size is a statement of its own to the server."""
    allowed = Foreground(0.0).allowance(row_s)
    assert allowed.batch_size in (50, 100, 200, 400)
    assert SMALLEST <= allowed.batch_size <= LARGEST
    assert allowed.rows_per_s >= 1
    # read and written, a row takes no more than the share of a second
    assert allowed.rows_per_s * 2 * row_s <= FIRST_SHARE or allowed.rows_per_s == 1


def test_before_anything_is_known_of_a_row_little_is_done() -> None:
    assert Foreground(0.0).allowance(None).batch_size == SMALLEST
