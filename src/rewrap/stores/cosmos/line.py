"""The line between a run and its worker processes: JSON values over a pair of sockets.

A frame is the length of its body in 4 bytes, big-endian, and a body: a JSON array of what was said since the
frame before. What is said within one turn of the event loop goes in one frame: of a few requests that become
due together, each costs a fraction of a system call.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from typing import Any

_LENGTH = 4

LATE = "late"
"""Told in place of an error: the leave had run out before a document could be sent."""


class Line(asyncio.Protocol):
    """One end. `heard` is given each value that the other end says, `ended` is called once nobody is."""

    def __init__(self, heard: Callable[[list[Any]], None], ended: Callable[[], None]) -> None:
        self._heard = heard
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._arrived = bytearray()
        self._to_say: list[Any] = []

    def say(self, value: list[Any]) -> None:
        """Sends a value, with all others of this turn."""
        if not self._to_say:
            self._loop.call_soon(self._send)
        self._to_say.append(value)

    async def over(self, end: socket.socket) -> None:
        """Connects it."""
        await self._loop.create_connection(lambda: self, sock=end)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _send(self) -> None:
        said, self._to_say = self._to_say, []
        if self._transport is None or self._transport.is_closing():
            return
        # half a character, which a document may hold, is an escape of its own in ASCII
        body = json.dumps(said, separators=(",", ":")).encode("ascii")
        self._transport.write(len(body).to_bytes(_LENGTH, "big") + body)

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._arrived += data
        while len(self._arrived) >= _LENGTH:
            end = _LENGTH + int.from_bytes(self._arrived[:_LENGTH], "big")
            if len(self._arrived) < end:
                return
            body = bytes(self._arrived[_LENGTH:end])
            del self._arrived[:end]
            for value in json.loads(body):
                self._heard(value)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._ended()


def told(partition: Any) -> list[Any]:
    """A partition key, as it goes over a line: its value, or the name of one of the SDK's signs."""
    from azure.cosmos.partition_key import NonePartitionKeyValue, NullPartitionKeyValue

    if partition is NonePartitionKeyValue:
        return ["none"]
    if partition is NullPartitionKeyValue:
        return ["null"]
    return ["is", partition]


def placed(told: list[Any]) -> Any:
    """The partition key, as the SDK takes it, of what went over a line."""
    from azure.cosmos.partition_key import NonePartitionKeyValue, NullPartitionKeyValue

    match told:
        case ["none"]:
            return NonePartitionKeyValue
        case ["null"]:
            return NullPartitionKeyValue
        case [_, value]:
            return value
    raise AssertionError("no partition key")
