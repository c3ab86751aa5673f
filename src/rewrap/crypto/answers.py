"""What a pure computation needs from outside: it asks, and is run again with the answers; it never waits.

Opening a value under a key that never leaves a vault takes a call, and a thousand values take a thousand.
Made one by one they would take turns, and everything that opens a value would wait. So whoever opens values
asks the answers at hand. What is not among them is noted and treated as if it did not open; once the attempt
has ended, everything noted is asked for in one go, side by side, and the attempt is made again from its start
(`rewrap.keys.resolving`). An attempt changes nothing but what it returns.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from random import SystemRandom
from typing import Any


class Unresolved(ValueError):
    """What was asked for is not known yet: the attempt in hand will be made again."""


@dataclass
class Answers:
    """The answers known for one attempt, and what it has found missing. Gone when the attempt has ended.

    `known` is by source and item: a key and what was wrapped under it, say. `made` is what the attempt has
    made at random, by what it was made of: made again it has to be the same, or it would never be opened.
    `made_of` is what was wrapped where the key is kept, and what it was made of, by key and item.
    `reopen` is the share of what was made that is asked for like anything else; the rest is believed.
    """

    known: dict[tuple[Hashable, Hashable], Any] = field(default_factory=dict, repr=False)
    missing: dict[Hashable, dict[Hashable, None]] = field(default_factory=dict, repr=False)
    made: dict[Hashable, list[bytes]] = field(default_factory=dict, repr=False)
    made_of: dict[Hashable, bytes] = field(default_factory=dict, repr=False)
    reopen: float = 1.0
    _used: Counter[Hashable] = field(default_factory=Counter, repr=False)

    def begin(self) -> None:
        """Starts an attempt: nothing is missing yet."""
        self.missing.clear()
        self._used.clear()

    def of(self, source: Hashable, items: Sequence[Hashable]) -> list[Any]:
        """The answer to each item; notes those that are not known, and raises Unresolved."""
        unknown = [item for item in items if (source, item) not in self.known]
        if unknown:
            self.missing.setdefault(source, {}).update(dict.fromkeys(unknown))
            raise Unresolved
        return [self.known[source, item] for item in items]

    def same(self, source: Hashable, item: Hashable, make: Callable[[], bytes]) -> bytes:
        """What `make` gives; the same again in the next attempt, for the same use of the same thing."""
        what = source, item
        at = self._used[what]
        self._used[what] += 1
        there = self.made.setdefault(what, [])
        if at == len(there):
            there.append(make())
            if self.reopen < 1.0 and _SAMPLE.random() >= self.reopen:
                self.known[source, there[at]] = item
        return there[at]

    def uses(self, source: Hashable, items: Sequence[tuple[Hashable, ...]]) -> list[Any]:
        """The answer to each item, with the number of its use behind it: the same item twice is two."""
        numbered = []
        for item in items:
            at = self._used[source, item]
            self._used[source, item] += 1
            numbered.append((*item, at))
        return self.of(source, numbered)

    def made_of_plain(self, key: bytes, source: Hashable, item: Hashable, plain: bytes) -> None:
        """Notes what was wrapped, so that its opening can be compared; of some, that it need not be asked."""
        if (key, item) in self.made_of:
            return
        self.made_of[key, item] = plain
        if self.reopen < 1.0 and _SAMPLE.random() >= self.reopen:
            self.known[source, item] = plain


_SAMPLE = SystemRandom()


AT_HAND: ContextVar[Answers | None] = ContextVar("answers at hand", default=None)
"""The answers of the attempt that is being made; None outside of any."""


def answers(source: Hashable, items: Sequence[Hashable]) -> list[Any]:
    """The answers at hand to some items.

    Raises Unresolved where one is not known: whoever runs the attempt makes it again. Outside of any attempt
    nobody would, and it is a plain ValueError.
    """
    at_hand = AT_HAND.get()
    if at_hand is None:
        raise ValueError("there is nobody to ask")
    return at_hand.of(source, items)


def same_again(source: Hashable, item: Hashable, make: Callable[[], bytes]) -> bytes:
    """Something random that a source turns back into `item`; the same when the attempt is made again."""
    at_hand = AT_HAND.get()
    return make() if at_hand is None else at_hand.same(source, item, make)


def used_again(source: Hashable, items: Sequence[tuple[Hashable, ...]]) -> list[Any]:
    """The answers at hand to some items, each use of the same item on its own. Raises as `answers`."""
    if not items:
        return []
    at_hand = AT_HAND.get()
    if at_hand is None:
        raise ValueError("there is nobody to ask")
    return at_hand.uses(source, items)
