"""Makes the records of fresh DEKs: durable, read back and opened before anything is sealed with one."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from rewrap.deks import DekRecord, DekStore, NewRecord
from rewrap.engine.dekring import DEK_BYTES, DekWrapping, Document, FreshDek
from rewrap.engine.retry import quiet, until_reachable
from rewrap.errors import ResealMismatch, StoreError

T = TypeVar("T")

ATTEMPTS_MAX = 8
"""Ids tried for a document's new record. Another than the first is needed where a record with that id is
there that is not under the new version any more."""


@dataclass(frozen=True)
class Mint:
    """Answers what attempts ask about the DEKs of one `[deks.NAME]`. `patience_s` is for a store away."""

    wrapping: DekWrapping
    store: DekStore
    patience_s: float

    async def records(self, ids: Sequence[str]) -> list[DekRecord | None]:
        """The records of some ids, in their order; None where there is none."""
        found = await self._patiently(lambda: self.store.find(ids))
        return [found.get(one) for one in ids]

    async def fresh(self, documents: Sequence[Document]) -> list[FreshDek]:
        """A fresh DEK for each document, whose record is there to stay.

        A record that an earlier attempt left behind is used: its id is the same, and its DEK was used for
        nothing else.
        """
        kept: dict[Document, FreshDek] = {}
        for attempt in range(ATTEMPTS_MAX):
            left = [document for document in documents if document not in kept]
            if not left:
                break
            kept |= await self._minted(left, attempt)
        if len(kept) < len(set(documents)):
            raise StoreError(
                f'"{self.wrapping.section.table}" has records with the ids of new ones already, which do not '
                f"open under {self.wrapping.to_version}",
                hint="somebody changes them while the run is at work; stop that, then rewrap resume",
            )
        return [kept[document] for document in documents]

    async def _minted(self, documents: Sequence[Document], attempt: int) -> dict[Document, FreshDek]:
        """Those of some documents whose record has an attempt's id, and opens under the new version."""
        wrapping = self.wrapping
        made = {
            document: FreshDek(wrapping.new_id(document, attempt), os.urandom(len(document.old) or DEK_BYTES))
            for document in documents
        }
        # a keeper that is asked to wrap is asked as one that is asked to open
        new = await wrapping.keyring.resolved(
            lambda: [wrapping.wrapped(document, fresh.id, fresh.dek) for document, fresh in made.items()]
        )
        added = await self._patiently(lambda: self.store.add(new))
        found = await self._patiently(lambda: self.store.find([record.id for record in new]))
        current = {
            name: record
            for name, record in found.items()
            if wrapping.version_in(record) == wrapping.to_version
        }
        opened = await wrapping.keyring.resolved(partial(wrapping.opened, current))
        out: dict[Document, FreshDek] = {}
        for (document, fresh), record in zip(made.items(), new, strict=True):
            self._check_kept(record, fresh, found.get(record.id), opened.get(record.id), added)
            dek = opened.get(record.id)
            if isinstance(dek, bytes) and len(dek) == len(fresh.dek):
                out[document] = FreshDek(fresh.id, dek)
        return out

    def _check_kept(
        self, sent: NewRecord, fresh: FreshDek, there: DekRecord | None, opened: object, added: set[str]
    ) -> None:
        """Raises unless a record that was made now is there, and opens to what was wrapped."""
        if there is None:
            raise StoreError(
                f'a new record of "{self.wrapping.section.table}" is not there after it was made',
                hint="something deletes it, or a time to live ends it; or replicas lag by more than "
                "stores.*.settle_s: raise that, then rewrap resume"
                if self.wrapping.section.in_container
                else "something deletes or hides it: a trigger, a rule, row-level security",
            )
        if (sent.id in added or there.wrapped == sent.wrapped) and opened != fresh.dek:
            raise ResealMismatch(
                f'a new DEK in "{self.wrapping.section.table}" does not open to what was wrapped; no value '
                "was sealed with it",
                hint="what its wrapping is bound to may be changed by the store: a trigger, a default; see "
                "the layout's aad",
            )

    async def _patiently(self, attempt: Callable[[], Awaitable[T]]) -> T:
        return await until_reachable(attempt, self.patience_s, quiet)
