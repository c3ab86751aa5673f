"""What a check says about an account and its containers. Nothing is written.

That documents may be written is proven by a patch that cannot land: it names an etag that none has, and an
identity without the right is refused before anybody looks at etags.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from email.utils import parsedate_to_datetime
from typing import Any

from rewrap.errors import SchemaMismatch, StoreError, StoreUnavailable, UnsafeTarget
from rewrap.events import Finding
from rewrap.job import Job
from rewrap.model import Role, Table
from rewrap.stores.cosmos.client import Account, Query
from rewrap.stores.cosmos.container import addressable
from rewrap.stores.cosmos.counting import steps_to
from rewrap.stores.cosmos.faults import Changed, Missing
from rewrap.stores.cosmos.holder import Holder
from rewrap.stores.cosmos.records import LEASE, Records
from rewrap.stores.cosmos.shape import Shape
from rewrap.stores.cosmos.survey import Surveyed, identify, survey_one
from rewrap.stores.cosmos.throughput import said
from rewrap.targets import TargetSection

NO_ETAG = '"00000000-0000-0000-0000-000000000000"'
"""An etag that no document has."""

_NOBODY = "rewrap-check"
"""Where there is no document to try, the name of one that is not there either."""

_LOOKED_AT = 100
"""Documents among which one is looked for that a request can name."""


def finding(severity: str, code: str, subject: str, reason: str, hint: str | None = None) -> Finding:
    return Finding(severity=severity, code=code, subject=subject, reason=reason, hint=hint)


async def inspect(account: Account, job: Job) -> tuple[list[Surveyed], list[Finding]]:
    """The containers that a run would take, and everything there is to say about them and the account.

    Raises StoreError when the account cannot be reached, or refuses this identity altogether.
    """
    found = [one async for one in _account(account, job)]
    fit: list[Surveyed] = []
    if any(one.code == "no-database" for one in found):
        return fit, found
    for target in job.targets:
        one, said = await _container(account, job, target)
        found += said
        if one is not None:
            fit.append(one)
    sound = not any(one.code == "several-write-regions" for one in found)
    return fit if sound else [], found


async def _account(account: Account, job: Job) -> AsyncIterator[Finding]:
    subject, region = f"account {account.host}", await account.region()
    shown = f"database {account.database}; writes go to {region.write_region or 'its one region'}"
    yield finding("info", "account", subject, shown)
    try:
        await identify(account)
    except (UnsafeTarget, SchemaMismatch) as exc:
        code = "several-write-regions" if isinstance(exc, UnsafeTarget) else "no-database"
        yield finding("error", code, subject, exc.message, exc.hint)
        if code == "no-database":
            return
    yield await _throughput(account)
    if region.consistency == "Strong":
        yield finding("info", "consistency", subject, "reads are strong: what verify counts is what there is")
    else:
        yield finding(
            "info", "consistency", subject,
            f"reads are of {region.consistency or 'unknown'} consistency: a replica may lag, and verify "
            f"counts again after {job.cosmos.settle_s:g} s where nothing was left",
            "stores.*.settle_s sets that pause; make it longer than replicas lag",
        )  # fmt: skip
    yield finding(
        "info", "change-feed", subject,
        "who reads the change feed cannot be seen from here; every document that is written appears there",
        "tell the owners of functions and connectors on these containers",
    )  # fmt: skip
    for one in await _guard(account, job):
        yield one


async def _throughput(account: Account) -> Finding:
    hint = "stores.*.max_rus or stores.*.share bounds what it takes, for the application's sake"
    try:
        found = await account.provisioned()
    except StoreError:
        found = []
    if found:
        return finding(
            "info", "throughput", account.subject, said(found, account.cap), None if account.cap else hint
        )  # fmt: skip
    return finding(
        "info", "throughput", account.subject,
        "no provisioned throughput can be read: a serverless account has none, and an identity of the data "
        "plane may not; " + said([], account.cap),
        None if account.cap else hint,
    )  # fmt: skip


async def _guard(account: Account, job: Job) -> list[Finding]:
    records = Records(account, job.cosmos.guard_container)
    subject = records.subject
    try:
        there = await records.exists()
    except UnsafeTarget as exc:
        return [finding("error", "not-the-guard", subject, exc.message, exc.hint)]
    if not there and job.cosmos.key is None:
        return [
            finding(
                "error", "no-guard", subject,
                "is not there, and an identity without the account's key cannot make a container",
                f"have an owner run: {records.command}",
            )
        ]  # fmt: skip
    if not there:
        return [finding("info", "guard-made", subject, "is not there; the first run makes it")]
    found = [finding("info", "guard", subject, "is there")]
    refused = await _refused(account, job.cosmos.guard_container, _NOBODY, _NOBODY)
    if refused is not None:
        found.append(finding("error", "guard-closed", subject, refused.message, refused.hint))
        return found
    for target in job.targets:
        relation = account.container(target.table).relation
        lease = await records.read(relation, LEASE)
        if lease is not None and await _works(account, job, lease):
            found.append(
                finding(
                    "warning", "busy", f"container {target.table}",
                    f"is being worked on by run {lease['run_id']} ({lease['owner']})",
                    "a run that is started now leaves with code 11; see rewrap status there",
                )
            )  # fmt: skip
    return found


async def _works(account: Account, job: Job, lease: Mapping[str, Any]) -> bool:
    if lease["released"] or Holder.of(lease.get("holder")).gone:
        return False
    date = await account.container(job.cosmos.guard_container).date()
    return bool(parsedate_to_datetime(date).timestamp() - lease["_ts"] < lease["lease_s"])


async def _container(
    account: Account, job: Job, target: TargetSection
) -> tuple[Surveyed | None, list[Finding]]:
    subject = f"container {target.table}"
    try:
        one = await survey_one(account, job, target)
    except (SchemaMismatch, UnsafeTarget) as exc:
        return None, [
            finding(
                "error",
                "refused",
                subject,
                _without(exc.message, account.container(target.table).relation),
                exc.hint,
            )
        ]
    except StoreUnavailable:
        raise
    except StoreError as exc:
        return None, [finding("error", "unreadable", subject, exc.message, exc.hint)]
    found = [*_set_up(one, subject), *_indexing(one, subject)]
    name, partition = await _some_document(account, one.table, one.shape)
    refused = await _refused(account, target.table, name, partition)
    if refused is None:
        found.append(
            finding("info", "may-write", subject, "may be written, as a patch shows that cannot land")
        )
    else:
        found.append(finding("error", "no-write", subject, refused.message, refused.hint))
    return one, found


def _set_up(one: Surveyed, subject: str) -> Iterable[Finding]:
    table, properties = one.table, one.properties
    paths = properties["partitionKey"]["paths"]
    number = table.estimated_rows
    if number:
        yield finding(
            "info", "documents", subject, f"holds {number:,} documents, partitioned by {', '.join(paths)}"
        )
    else:
        yield finding("info", "empty", subject, f"is empty; it is partitioned by {', '.join(paths)}")
    if len(paths) > 1:
        yield finding(
            "warning", "hierarchical-key", subject,
            "has a hierarchical partition key, with which rewrap is untested",
            "try a copy of it first; see docs/cosmos.md",
        )  # fmt: skip
    if properties.get("defaultTtl") is not None:
        yield finding(
            "warning", "expiry", subject,
            "lets documents expire, and each write moves the moment that this is counted from",
            "what a run writes stays for longer than it would have; tell who relies on it",
        )  # fmt: skip
    unique = {
        path for key in properties.get("uniqueKeyPolicy", {}).get("uniqueKeys", []) for path in key["paths"]
    }
    for path in sorted(unique & {_policy_path(steps) for steps in _written(table)}):
        yield finding(
            "warning", "unique-ciphertext", subject,
            f"{path} is a unique key: each value is sealed anew, so it no longer finds two that are alike",
            "if it was to keep plaintexts apart, that needs a blind index",
        )  # fmt: skip


def _indexing(one: Surveyed, subject: str) -> Iterable[Finding]:
    policy = one.properties.get("indexingPolicy", {})
    for field in one.table.fields:
        marker = field.parts[0]
        if not indexed(policy, steps_to(marker), many=field.many):
            yield finding(
                "warning", "not-indexed", subject,
                f'"{field.name}": {_policy_path(steps_to(marker))}, which names the version, is not indexed: '
                "each question of verify costs as much as reading every document",
                "include the path in the indexing policy for the time of the rotation",
            )  # fmt: skip
        payload = next(part for part in field.parts if part.role is Role.PAYLOAD)
        if payload is not marker and indexed(policy, steps_to(payload), many=field.many):
            yield finding(
                "info", "ciphertext-indexed", subject,
                f'"{field.name}": {_policy_path(steps_to(payload))} is indexed, and each patch pays for it',
                "an index over ciphertext finds nothing; exclude the path if nobody looks values up by it",
            )  # fmt: skip


def indexed(policy: Mapping[str, Any], steps: tuple[str | int, ...], *, many: bool = False) -> bool:
    """Whether a policy has a scalar at some steps indexed: the most precise path that covers it decides.

    Elements of arrays are `[]` in a policy: with `many` the steps may have left one out.
    """
    if not policy.get("automatic", True):
        return False
    names = ["[]" if isinstance(step, int) else str(step) for step in steps]
    included = _precision(policy.get("includedPaths", [{"path": "/*"}]), names, many)
    excluded = _precision(policy.get("excludedPaths", []), names, many)
    return included > excluded


def _precision(paths: Iterable[Mapping[str, Any]], names: list[str], many: bool) -> float:
    """How precisely the closest of some paths covers a scalar; -1 when none does."""
    best = -1.0
    for entry in paths:
        told = [part.strip('"') for part in entry["path"].strip("/").split("/")]
        end = told.pop()
        steps = [part for part in told if part != "[]"] if many else told
        mine = [name for name in names if name != "[]"] if many else names
        if end == "?" and steps == mine:
            # `?` is a scalar itself, and more precise than all that is beneath
            best = max(best, len(steps) + 0.5)
        elif end == "*" and steps == mine[: len(steps)]:
            best = max(best, float(len(steps)))
    return best


async def _some_document(account: Account, table: Table, shape: Shape) -> tuple[str, Any]:
    """The id and the partition key of some document; of none where there is none that can be named."""
    answer = await account.container(table.name).query(Query("SELECT * FROM c WHERE true"), limit=_LOOKED_AT)
    some = next((one for one in answer.found if addressable(one["id"])), None)
    if some is None:
        return shape.place_of(_NOBODY if shape.by_id else (_NOBODY, *('""' for _ in shape.partition)))
    return shape.place_of(shape.key_of(some))


async def _refused(account: Account, container: str, name: str, partition: Any) -> StoreError | None:
    """Why documents of a container may not be written; None when they may."""
    nothing = [{"op": "set", "path": "/rewrap", "value": None}]
    try:
        await account.container(container).patch(name, partition, nothing, NO_ETAG)
    except (Changed, Missing):
        return None
    except StoreUnavailable:
        raise
    except StoreError as exc:
        return exc
    raise StoreError(
        f"container {container} takes a patch whatever etag it names",
        hint="this server does not compare etags: nothing can be rotated there safely",
    )


def _written(table: Table) -> Iterable[tuple[str | int, ...]]:
    # what is in an array's elements is no unique key
    return (steps_to(part) for field in table.fields for part in field.parts if not field.many)


def _policy_path(steps: tuple[str | int, ...]) -> str:
    return "/" + "/".join("[]" if isinstance(step, int) else step for step in steps)


def _without(message: str, relation: str) -> str:
    """A message without the container that it begins with: the finding names it already."""
    return message.removeprefix(f"container {relation}").removeprefix(":").strip()
