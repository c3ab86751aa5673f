"""Takes the record of a run to where the job says. What cannot be delivered waits, and is said aloud.

A record never changes how a run ends: a rotation that is complete stays so when nobody could be told.
"""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewrap.audit.journal import (
    append,
    put,
    require_appendable,
    require_folder,
    waiting,
    waiting_folder,
)
from rewrap.audit.record import Listener
from rewrap.audit.rotationlog import append_row
from rewrap.audit.webhook import Webhook, signing_key
from rewrap.errors import UsageError
from rewrap.events import Notice, RunEnded
from rewrap.interfaces import Sink
from rewrap.job import Job


@dataclass(frozen=True, slots=True)
class Delivery:
    """How many records the webhook took, how many wait for it, and why they do."""

    sent: int
    waiting: int
    said: str = ""


class Auditor:
    """The places that a job's records go to, found to be usable before anything else is done."""

    def __init__(self, job: Job, environ: Mapping[str, str] = os.environ, *, note: str = "") -> None:
        """Raises UsageError where a record could not be kept, or the webhook's secret is missing.

        `note` is why the key is rotated, in the operator's words, for the rotation log.
        """
        section = job.audit
        assert section is not None
        self._file: Path | None = None
        self.webhook: Webhook | None = None
        self._folder = waiting_folder(job.path, job.name)
        self._note = note
        self._rows = [(job.folder / os.path.expanduser(one.file), one) for one in section.rows]
        for path, _ in self._rows:
            require_appendable(path, "audit.rows.file")
        if section.file:
            self._file = job.folder / os.path.expanduser(section.file)
            require_appendable(self._file)
        if section.webhook:
            key = _secret(section.secret, job.folder, environ) if section.secret else None
            self.webhook = Webhook(section.webhook, section.timeout_s, section.attempts, key)
            require_folder(self._folder)

    async def audited(
        self,
        listener: Listener,
        work: Callable[[Sink], Awaitable[RunEnded]],
        stopped: Callable[[], bool],
    ) -> RunEnded:
        """The end of a run, its record kept and sent; what `work` raises is recorded, and raised again."""
        try:
            ended = await work(listener)
        except Exception as exc:
            await self._tell(listener.failed(exc), listener, stopped)
            raise
        await self._tell(listener.ended(ended), listener, stopped)
        return ended

    async def _tell(self, record: dict[str, Any], sink: Sink, stopped: Callable[[], bool]) -> None:
        line = json.dumps(record, ensure_ascii=False)
        if self._file is not None:
            try:
                append(self._file, line)
            except OSError as exc:
                # what is on nobody's disk must at least be in somebody's log
                sink(
                    _warning(f"audit file {self._file} cannot be written: {exc.strerror}", f"record: {line}")
                )
        if record["complete"]:
            self._log(record, sink)
        if self.webhook is None:
            return
        try:
            put(
                self._folder,
                f"{record['ended_at']}-{record['event_id']}.json".replace(":", ""),
                line.encode(),
            )
        except OSError as exc:
            sink(
                _warning(f"audit folder {self._folder} cannot be written: {exc.strerror}", f"record: {line}")
            )
            answer = await self.webhook.post(record["event_id"], line.encode())
            if not answer.taken:
                sink(
                    _warning(f"audit webhook {self.webhook.shown} {answer.said}", "the record is lost to it")
                )
            return
        # whoever pressed Ctrl-C waits for this
        found = await self.deliver(attempts=1 if stopped() else None)
        if found.waiting:
            sink(
                _warning(
                    f"audit webhook {self.webhook.shown} {found.said}: {found.waiting} "
                    f"{'record waits' if found.waiting == 1 else 'records wait'} in {self._folder}",
                    "the rotation is not affected; the next run sends them, and so does rewrap audit send",
                )
            )

    def _log(self, record: dict[str, Any], sink: Sink) -> None:
        """The row of a rotation that is complete, in every log that the job names."""
        for path, section in self._rows:
            try:
                append_row(path, section, record, self._note)
            except OSError as exc:
                sink(
                    _warning(
                        f"rotation log {path} cannot be written: {exc.strerror}",
                        "the rotation is not affected; the same run again writes its row",
                    )
                )

    async def deliver(self, *, attempts: int | None = None) -> Delivery:
        """Sends the records that wait, oldest first, each removed once it was taken."""
        assert self.webhook is not None
        sent, said = 0, ""
        for place in waiting(self._folder):
            try:
                body = place.read_bytes()
            except OSError:
                # another process has sent it
                continue
            answer = await self.webhook.post(place.stem.rpartition("-")[2], body, attempts=attempts)
            if answer.taken:
                place.unlink(missing_ok=True)
                sent += 1
                continue
            said = answer.said
            if not answer.lasting:
                # whoever does not answer now will not take the next one either
                break
        return Delivery(sent, len(waiting(self._folder)), said)


def _secret(reference: str, folder: Path, environ: Mapping[str, str]) -> bytes:
    scheme, _, place = reference.partition(":")
    found = b""
    if scheme == "env":
        where = f"environment variable {place}"
        reason = "is not set"
        found = environ.get(place, "").encode("utf-8", "surrogateescape")
    else:
        where, reason = f"file {place}", "is empty"
        try:
            found = (folder / os.path.expanduser(place)).read_bytes()
        except OSError as exc:
            reason = f"cannot be read: {exc.strerror}"
    key = signing_key(found)
    if not key:
        raise UsageError(
            f"the audit webhook's secret is missing: {where} {reason}",
            hint="set it, or correct audit.secret; nothing was begun",
        )
    return key


def _warning(message: str, hint: str) -> Notice:
    return Notice(level="warning", message=message, hint=hint)
