"""Calls to AWS, by boto3 in threads: identity, roles, pace, and what its errors mean.

A client is safe to use from several threads (a session is not). Its own retries are off: every attempt goes
through the gate. What an error says is read from its code alone, for its text may repeat what was sent.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import anyio
import boto3
from anyio import to_thread
from botocore.config import Config
from botocore.credentials import (
    AssumeRoleCredentialFetcher,
    CredentialProvider,
    CredentialResolver,
    DeferredRefreshableCredentials,
)
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    HTTPClientError,
    NoCredentialsError,
    NoRegionError,
    PartialCredentialsError,
    ProfileNotFound,
    SSLError,
    SSOError,
    TokenRetrievalError,
)
from botocore.exceptions import (
    ConnectionError as NoConnection,
)
from botocore.parsers import ResponseParserError
from botocore.session import get_session

from rewrap.errors import JobError, KeyAccessError, KeyRefused
from rewrap.keys.service import KeyService, Throttled, Unanswered
from rewrap.keysections import AwsKms, AwsSecret
from rewrap.pace.gate import Cap, Gate

CONNECT_S, READ_S = 10.0, 30.0
"""Seconds to wait for a connection, and for an answer."""

_THROTTLED = {
    "ThrottlingException",
    "ThrottledException",
    "Throttling",
    "TooManyRequestsException",
    "RequestLimitExceeded",
    "RequestThrottled",
    "SlowDown",
}

_NO_IDENTITY = {
    "UnrecognizedClientException",
    "InvalidClientTokenId",
    "InvalidSignatureException",
    "SignatureDoesNotMatch",
    "ExpiredToken",
    "ExpiredTokenException",
    "MissingAuthenticationToken",
    "MissingAuthenticationTokenException",
    "IncompleteSignature",
    "RequestExpired",
    "RequestTimeTooSkewed",
}

_LATER = {
    "KMSInternalException",
    "DependencyTimeoutException",
    "KeyUnavailableException",
    "InternalServiceError",
    "ServiceUnavailable",
}

_PERMISSIONS = {"re_encrypt": ("kms:ReEncryptFrom", "kms:ReEncryptTo")}
"""Permissions of operations that have others than one of their own name."""

_TELLING = ("botocore.endpoint", "botocore.parsers", "botocore.auth")
"""Loggers that write requests, answers and session tokens at DEBUG: secrets, whoever has asked for it."""

_ANSWERS = Mapping[str, Callable[[], KeyAccessError | None]]

Explain = Callable[[str, frozenset[str]], KeyAccessError | None]
"""What an error comes to, from its code and those of the caller's own words that its text has.

None: what it comes to otherwise. A word tells which of two keys an error is of; nothing else of the text is
ever taken."""


ALLOW_WHERE = "in its policy, and in the key's"
"""Where a permission is granted: across accounts, both have to grant it."""


class Aws:
    """One service of AWS, as one identity. `shown` is the key and its place, `what` the service in reasons.

    Close it after use; not to be used from two event loops.
    """

    def __init__(
        self,
        service: str,
        section: AwsKms | AwsSecret,
        *,
        what: str,
        shown: str,
        limit: Cap,
        calls_per_s: float | None,
        in_flight: int,
        patience_s: float,
    ) -> None:
        self._name, self._section = service, section
        self.shown = shown
        self.service = KeyService(
            what, shown, calls_per_s=calls_per_s, limit=limit, in_flight=in_flight, patience_s=patience_s
        )
        self._threads = anyio.CapacityLimiter(in_flight)
        self._config = Config(
            retries={"total_max_attempts": 1},
            connect_timeout=CONNECT_S,
            read_timeout=READ_S,
            max_pool_connections=in_flight,
        )
        for name in _TELLING:
            logging.getLogger(name).addFilter(_above_debug)
        logging.getLogger("botocore.credentials").addFilter(_without_traceback)
        self._clients: dict[str | None, Any] = {}
        self._patience_s = patience_s
        self._away: dict[str, tuple[float, KeyAccessError]] = {}
        self.calls: Counter[str] = Counter()

    @property
    def gate(self) -> Gate:
        return self.service.gate

    async def close(self) -> None:
        for client in self._clients.values():
            client.close()

    async def call(
        self,
        operation: str,
        *,
        key: str = "",
        role: str | None = None,
        answers: _ANSWERS | None = None,
        explain: Explain | None = None,
        words: Sequence[str] = (),
        cost: float = 1.0,
        **given: Any,
    ) -> dict[str, Any] | None:
        """The answer of one operation, `get_secret_value`, as `role` if one is given.

        `answers` says what some error codes come to: an error, or None in place of an answer. So does
        `explain`, which is told which of `words` the error's text has. `key` is whose call it counts as.
        Raises KeyAccessError.
        """
        role = role or self._section.role
        self._require_not_away(role)
        method = partial(getattr(await self._client(role), operation), **given)

        async def attempt() -> dict[str, Any] | None:
            self.calls[key] += 1
            try:
                found: dict[str, Any] = await to_thread.run_sync(
                    method, abandon_on_cancel=True, limiter=self._threads
                )
            except ClientError as exc:
                code, status = _code(exc), exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
                if exc.operation_name == "AssumeRole" and is_denied(code):
                    raise self._no_role(role or "") from None
                if answers is not None and code in answers:
                    refusal = answers[code]()
                    if refusal is None:
                        return None
                    raise refusal from None
                if exc.operation_name == "AssumeRole":
                    raise self._explained("assume_role", code, status, "sts") from None
                said = frozenset(word for word in words if word in str(exc))
                own = None if explain is None else explain(code, said)
                raise own or self._explained(operation, code, status, self._name) from None
            except BotoCoreError as exc:
                raise self._untold(exc) from None
            except ResponseParserError:
                raise Unanswered("answers with what is no answer of AWS") from None
            return found

        try:
            return await self.service.call(operation, attempt, cost=cost)
        except KeyAccessError as exc:
            if exc.code == "key-away" and role is not None:
                self._away[role] = (time.monotonic(), exc)
            raise

    def _require_not_away(self, role: str | None) -> None:
        """Raises what was said when patience with a role was over a moment ago.

        Whoever asks for one version after the other would else wait as long for each, and ever longer.
        """
        since, exc = self._away.get(role or "", (0.0, None))
        if exc is not None and time.monotonic() - since <= self._patience_s:
            raise KeyAccessError(exc.message, hint=exc.hint, code=exc.code)

    async def _client(self, role: str | None) -> Any:
        if role not in self._clients:
            try:
                self._clients[role] = await to_thread.run_sync(self._made, role)
            except BotoCoreError as exc:
                error = self._untold(exc)
                raise error if isinstance(error, KeyAccessError | JobError) else self._no_identity() from None
            except ValueError:
                # what botocore raises for an address that is none
                raise JobError(
                    f"{self.shown}: its endpoint is no address",
                    hint="it is https:// and a name; or leave it out",
                ) from None
        return self._clients[role]

    def _made(self, role: str | None) -> Any:
        section = self._section
        session = get_session()
        if section.profile:
            session.set_config_variable("profile", section.profile)
        if role is not None:
            fetcher = AssumeRoleCredentialFetcher(
                partial(session.create_client, endpoint_url=section.endpoint, config=self._config),
                session.get_credentials(),
                role,
                extra_args={"RoleSessionName": "rewrap"},
            )
            session.register_component("credential_provider", CredentialResolver([_Role(fetcher)]))
            session._credentials = None
        return boto3.Session(botocore_session=session, region_name=section.region).client(
            self._name, endpoint_url=section.endpoint, config=self._config
        )

    def _explained(self, operation: str, code: str, status: int, service: str) -> Exception:
        """What an error comes to, by its code."""
        if code in _THROTTLED or status == 429:
            return Throttled()
        if code in _LATER or status >= 500:
            return Unanswered(f"answers {status or code}")
        if code in _NO_IDENTITY:
            return self._no_identity()
        own = f"{service}:{''.join(part.capitalize() for part in operation.split('_'))}"
        permission = " or ".join(_PERMISSIONS.get(operation, (own,)))
        if is_denied(code):
            return KeyAccessError(
                f"{self.shown}: this identity may not {permission}",
                hint=f"allow it {permission} {ALLOW_WHERE}",
                code="key-not-permitted",
            )
        return self.refused(f"is refused: {service} answers {code or status} to {operation}", "key-refused")

    def _untold(self, exc: BotoCoreError) -> Exception:
        """What it comes to that there was no answer."""
        if isinstance(exc, NoCredentialsError | PartialCredentialsError | CredentialRetrievalError):
            return self._no_identity()
        if isinstance(exc, TokenRetrievalError | SSOError):
            return self._no_identity()
        if isinstance(exc, ProfileNotFound):
            return KeyAccessError(
                f"{self.shown}: AWS's configuration here has no such profile",
                hint="aws configure list-profiles shows those it has; set profile, or AWS_PROFILE",
                code="key-no-identity",
            )
        if isinstance(exc, NoRegionError):
            return JobError(
                f"{self.shown}: no region is set", hint="set region in its section, or AWS_REGION"
            )
        if isinstance(exc, SSLError):
            return KeyAccessError(
                f"{self.shown}: the certificate shown there is not trusted here",
                hint="check the endpoint; where a proxy opens TLS, name its authority in AWS_CA_BUNDLE",
                code="key-away",
            )
        if isinstance(exc, NoConnection | HTTPClientError):
            return Unanswered("does not answer")
        return self.refused(f"cannot be asked ({type(exc).__name__})", "key-refused")

    def _no_identity(self) -> KeyAccessError:
        return KeyAccessError(
            f"{self.shown}: no identity that AWS accepts is at hand",
            hint="sign in with aws sso login, or set a profile, a role, or AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY; see docs/keys.md",
            code="key-no-identity",
        )

    def _no_role(self, role: str) -> KeyAccessError:
        return KeyAccessError(
            f"{self.shown}: this identity may not sts:AssumeRole {role}",
            hint="allow it sts:AssumeRole on that role, and name it in the role's trust policy",
            code="key-no-role",
        )

    def refused(self, what: str, code: str, hint: str | None = None) -> KeyRefused:
        return KeyRefused(
            f"{self.shown} {what}", hint=hint or "see what AWS's own log says of the call", code=code
        )


def _above_debug(record: logging.LogRecord) -> bool:
    return record.levelno > logging.DEBUG


def _without_traceback(record: logging.LogRecord) -> bool:
    # botocore warns of a role that it could not assume with all that AWS wrote; the error is told in any case
    return record.exc_info is None


class _Role(CredentialProvider):  # type: ignore[misc]  # botocore has no types
    """Credentials of an assumed role, fetched anew before they expire."""

    METHOD = "assume-role"

    def __init__(self, fetcher: AssumeRoleCredentialFetcher) -> None:
        super().__init__()
        self._fetcher = fetcher

    def load(self) -> DeferredRefreshableCredentials:
        return DeferredRefreshableCredentials(self._fetcher.fetch_credentials, self.METHOD)


def is_denied(code: str) -> bool:
    """Whether an error says that the identity may not."""
    return code in ("AccessDeniedException", "AccessDenied")


def _code(exc: ClientError) -> str:
    code = exc.response.get("Error", {}).get("Code", "")
    return code if isinstance(code, str) and code.replace(".", "").isalnum() and len(code) <= 60 else ""
