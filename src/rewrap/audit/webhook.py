"""Posts a record to a webhook, signed after the Standard Webhooks specification if there is a secret.

    POST URL
    content-type: application/json
    webhook-id: <the record's event_id>
    webhook-timestamp: <seconds since 1970>
    webhook-signature: v1,base64( HMAC-SHA256( secret, id ‖ "." ‖ timestamp ‖ "." ‖ body ) )

A receiver may get a record twice, with the same id: after an answer that was lost it is sent again.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

import anyio

from rewrap.audit.section import is_loopback

FIRST_PAUSE_S = 0.5
"""Seconds before the second attempt; twice as many before each further one, with up to a half added."""

PAUSE_MAX_S = 30.0
"""Seconds that a server may ask us to wait: a run should end, and what is not delivered is kept."""

AGAIN = frozenset({408, 425, 429})
"""Statuses besides 5xx after which another attempt may be taken."""

Sleep = Callable[[float], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Answer:
    """How it ended: `said` is empty when the record was taken. `lasting` when trying again is no use."""

    said: str = ""
    lasting: bool = False

    @property
    def taken(self) -> bool:
        return not self.said


def signing_key(secret: bytes) -> bytes:
    """The key in a secret: what follows `whsec_` in base64, or else its bytes as they are."""
    secret = secret.strip()
    if secret.startswith(b"whsec_"):
        try:
            return base64.b64decode(secret.removeprefix(b"whsec_"), validate=True)
        except binascii.Error:
            pass
    return secret


def headers_of(event_id: str, body: bytes, key: bytes | None, at: int) -> dict[str, str]:
    """What is sent with a record at a moment, in seconds since 1970."""
    headers = {
        "content-type": "application/json",
        "user-agent": "rewrap",
        "webhook-id": event_id,
        "webhook-timestamp": str(at),
    }
    if key is not None:
        signed = hmac.digest(key, f"{event_id}.{at}.".encode() + body, hashlib.sha256)
        headers["webhook-signature"] = "v1," + base64.b64encode(signed).decode()
    return headers


@dataclass(frozen=True, slots=True)
class Webhook:
    """One webhook, and how long it is tried. Its URL may hold a token, and is never shown."""

    url: str
    timeout_s: float
    attempts: int
    key: bytes | None = None
    sleep: Sleep = anyio.sleep

    def __repr__(self) -> str:
        return f"<Webhook {self.shown}>"

    @property
    def shown(self) -> str:
        """The URL as far as it may be shown: scheme, host and port."""
        parts = urlsplit(self.url)
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        return f"{parts.scheme}://{host}" + (f":{parts.port}" if parts.port else "")

    async def post(self, event_id: str, body: bytes, *, attempts: int | None = None) -> Answer:
        """Tries a few times, with pauses between. Never raises for what the other side does."""
        answer = Answer("it was not tried")
        tries = attempts or self.attempts
        for attempt in range(tries):
            answer, asked_s = await self._once(event_id, body)
            if answer.taken or answer.lasting or attempt + 1 == tries:
                break
            pause_s = FIRST_PAUSE_S * 2**attempt * (1 + random.random() / 2)  # noqa: S311 - spreads retries
            await self.sleep(min(PAUSE_MAX_S, max(pause_s, asked_s)))
        return answer

    async def _once(self, event_id: str, body: bytes) -> tuple[Answer, float]:
        """The answer to one attempt, and the seconds that the server asks for before the next."""
        # 0.2 s that only a job with a webhook should wait for
        import aiohttp
        from yarl import URL

        headers = headers_of(event_id, body, self.key, int(time.time()))
        try:
            async with (
                aiohttp.ClientSession(
                    timeout=aiohttp.ClientTimeout(total=self.timeout_s),
                    cookie_jar=aiohttp.DummyCookieJar(),
                    # a proxy is for the world outside
                    trust_env=not is_loopback(urlsplit(self.url)),
                ) as session,
                session.post(
                    # what is said in percents stays so: a signed URL must arrive as it was given
                    URL(self.url, encoded=True),
                    data=body,
                    headers=headers,
                    # a redirect would carry the record to somewhere that the job does not name
                    allow_redirects=False,
                ) as response,
            ):
                # the body is not read: it may be endless, and says nothing that we would repeat
                return _judged(response.status), _asked_s(response.headers.get("retry-after", ""))
        except TimeoutError:
            return Answer(f"no answer in {self.timeout_s:g} s"), 0.0
        except (aiohttp.ClientError, OSError, ValueError) as exc:
            return Answer(f"cannot be reached ({type(exc).__name__})"), 0.0


def _judged(status: int) -> Answer:
    if 200 <= status < 300:
        return Answer()
    if 300 <= status < 400:
        return Answer(f"answers with a redirect ({status}), which is not followed", lasting=True)
    return Answer(f"answers {status}", lasting=status < 500 and status not in AGAIN)


def _asked_s(text: str) -> float:
    return float(text) if text.isascii() and text.isdigit() and len(text) < 6 else 0.0
