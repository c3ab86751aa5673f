"""The line between a run and its workers carries every value as it is."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest
from azure.cosmos.partition_key import NonePartitionKeyValue, NullPartitionKeyValue
from hypothesis import given, settings
from hypothesis import strategies as st

from rewrap.stores.cosmos.line import Line, placed, told

TEXT = st.text(st.characters(exclude_categories=()), max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)


def carried(values: list[list[Any]]) -> list[list[Any]]:
    """What arrives at the other end."""

    async def work() -> list[list[Any]]:
        here, there = socket.socketpair()
        heard: list[list[Any]] = []
        ended = asyncio.Event()
        near, far = Line(lambda _: None, lambda: None), Line(heard.append, ended.set)
        await near.over(here)
        await far.over(there)
        for value in values:
            near.say(value)
        while len(heard) < len(values):
            await asyncio.sleep(0)
        near.close()
        await ended.wait()
        return heard

    return asyncio.run(work())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(JSON, max_size=3), min_size=1, max_size=5))
def test_what_is_said_arrives_as_it_is(values: list[list[Any]]) -> None:
    """Half characters, numbers of any size and empty texts included, in the order in which they were said."""
    assert carried(values) == values


def test_a_large_document_arrives_whole() -> None:
    """More than a socket takes at once."""
    values = [["send", at, {"body": "ä" * 2_000_000}] for at in range(3)]
    assert carried(values) == values


def test_what_is_said_after_the_end_goes_nowhere() -> None:
    """The other end may have gone in the same moment."""

    async def work() -> None:
        here, there = socket.socketpair()
        ended = asyncio.Event()
        line = Line(lambda _: None, ended.set)
        await line.over(here)
        there.close()
        line.say(["send"])
        await ended.wait()
        line.say(["send"])
        await asyncio.sleep(0.01)

    asyncio.run(work())


@pytest.mark.parametrize(
    "partition", ["t", "", 1, 1.5, True, ["t", {}], NonePartitionKeyValue, NullPartitionKeyValue]
)
def test_a_partition_key_is_the_same_at_the_other_end(partition: Any) -> None:
    """A value, one for each level, or the SDK's own sign for none and for null."""
    ((arrived,),) = carried([[told(partition)]])
    again = placed(arrived)
    assert again == partition
    assert type(again) is type(partition)
