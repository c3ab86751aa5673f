"""What a failed request becomes: an error of the project's, sorted by status.

3xx, 204, a page of HTML        StoreError: it is not Cosmos DB that answers
400, 413                        ValueRefused for a write: one of its values is not taken; else BadRequest
401, 403                        StoreError, with what to grant
404                             Missing: the document; NoContainer (404.1003): what should hold it
409, 412                        Changed: the document is not the one that was read, or is there already
429                             Throttled
403.3, 403.1008, 404.1002       StoreUnavailable: the account fails over, or a replica lags behind
408, 410, 449, 5xx, no answer   StoreUnavailable: another attempt may do
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rewrap.errors import SchemaMismatch, StoreBusy, StoreError, StoreUnavailable, ValueRefused

READ_ROLE = "Cosmos DB Built-in Data Reader"
WRITE_ROLE = "Cosmos DB Built-in Data Contributor"
"""Roles of the data plane: those of the control plane (Contributor, Owner) do not open documents."""


_MOVING = frozenset({(403, 3), (403, 1008), (404, 1002)})
"""No refusal and no absence: writes go elsewhere now, or what was written is not seen yet."""

_NO_OWNER = 1003


class Missing(StoreError):
    """404: the document is not there."""


class NoContainer(SchemaMismatch):
    """404.1003: the container that should hold it is not there."""


class BadRequest(StoreError):
    """400: the server does not take what it was asked."""


class Changed(StoreError):
    """412 or 409: somebody wrote it first; perhaps this very request, whose first answer was lost."""


class Throttled(StoreBusy):
    """429, for longer than an attempt waits."""


@contextmanager
def translated(subject: str, *, writes: bool = False) -> Iterator[None]:
    """Turns the SDK's errors into the project's. Neither documents nor keys are in what they say."""
    from azure.core.exceptions import AzureError, ClientAuthenticationError, HttpResponseError

    try:
        yield
    except ClientAuthenticationError as exc:
        # azure-identity's own errors are of this class, and have no status where nobody was asked
        raise refused(subject, exc.status_code or 401, writes=writes) from None
    except HttpResponseError as exc:
        status = exc.status_code or 0
        if status < 400:
            raise unreachable(subject, "its answer was cut short") from None
        raise of_status(subject, status, getattr(exc, "sub_status", None), writes=writes) from None
    except AzureError as exc:
        raise unreachable(subject, type(exc).__name__) from None
    except (OSError, TimeoutError) as exc:
        raise unreachable(subject, type(exc).__name__) from None


@contextmanager
def expected(what: str, where: str) -> Iterator[None]:
    """Turns 404 into the error of a job that names what is not there."""
    try:
        yield
    except Missing:
        raise SchemaMismatch(
            f"{where} has no {what}", hint="see stores.*.database and targets.container, and the endpoint"
        ) from None


def of_status(subject: str, status: int, sub_status: int | None, *, writes: bool = False) -> StoreError:
    """The error that an answer's status means."""
    if (status, sub_status) in _MOVING:
        return _busy(subject, status, sub_status)
    if status in (401, 403):
        return refused(subject, status, sub_status, writes=writes)
    if status == 404 and sub_status == _NO_OWNER:
        return NoContainer(
            f"{subject} is not there", hint="see stores.*.database, targets.container and the endpoint"
        )
    if status == 404:
        return Missing(f"{subject} is not there", hint="see that the job's database and container exist")
    if status in (409, 412):
        return Changed(f"{subject} was changed meanwhile")
    if status == 429:
        return Throttled(
            f"{subject} is throttled: its request units are used up",
            hint="raise its throughput, or lower stores.*.max_rus or stores.*.in_flight; then rewrap resume",
        )
    if status in (400, 413) and writes:
        what = "is larger than it takes (413)" if status == 413 else "is refused (400)"
        return ValueRefused(f"{subject}: a document {what}", hint="a document holds at most 2 MB")
    if status in (400, 413):
        return BadRequest(f"{subject} does not take a query ({status})", hint="please report it")
    return _busy(subject, status, sub_status)


def _busy(subject: str, status: int, sub_status: int | None) -> StoreUnavailable:
    named = f"{status}.{sub_status}" if sub_status else f"{status}"
    return StoreUnavailable(
        f"{subject} answered {named}", hint="the store is busy or moving; rewrap resume goes on from here"
    )


def refused(subject: str, status: int, sub_status: int | None = None, *, writes: bool = False) -> StoreError:
    """The error of a request that lacks a right, with the role that has it."""
    if status == 401:
        return StoreError(
            f"{subject} refuses this key or identity (401)",
            hint="see stores.*.key and its environment variable; without a key, that azure-identity finds an "
            "identity of the account's tenant; and this machine's clock: signatures are valid for 15 minutes",
        )
    role = WRITE_ROLE if writes else READ_ROLE
    detail = f"403.{sub_status}" if sub_status else "403"
    return StoreError(
        f"{subject} does not permit this ({detail})",
        hint=f'an identity needs the data-plane role "{role}" (az cosmosdb sql role assignment create), a '
        "key has to be a read-write one, and the account's firewall has to let this machine in",
    )


def lost_place(subject: str) -> StoreError:
    """The error of a server that refuses its own tokens again and again."""
    return StoreError(
        f"{subject}: the server does not go on where it was",
        hint="it does not take the tokens that it gave; see the account's health, then rewrap resume",
    )


def elsewhere(host: str, status: int) -> StoreError:
    """The error of an answer that Cosmos DB does not give."""
    return StoreError(
        f"{host} is no Cosmos DB, or something answers in its place ({status})",
        hint="see stores.*.endpoint, and what is between this machine and the account: a proxy, a login page",
    )


def unreachable(subject: str, what: str) -> StoreUnavailable:
    return StoreUnavailable(
        f"{subject} does not answer ({what})", hint="see stores.*.endpoint, the network and the firewall"
    )
