"""What an error of AWS, or none of its answers, comes to: each its own message, and nothing secret in any."""

from __future__ import annotations

import os
import ssl
import threading
from collections.abc import Awaitable, Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import anyio
import pytest

from rewrap.errors import JobError, KeyAccessError, RewrapError
from rewrap.keys.aws import Aws
from rewrap.keys.service import Throttled, Unanswered
from rewrap.keysections import AwsKms
from rewrap.pace.gate import Cap
from tests.support.vault import make_certificates

CANARY = "canary-of-a-secret"


@pytest.fixture(autouse=True)
def identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """One in the environment, and nothing of this machine's."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in {
        "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
        "AWS_SECRET_ACCESS_KEY": CANARY,
        "AWS_REGION": "eu-central-1",
        "AWS_DEFAULT_REGION": "eu-central-1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)


class Answering(HTTPServer):
    """Gives one answer to whatever is asked."""

    def __init__(self, status: int, body: str) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                self.send_response(status)
                self.send_header("Content-Type", "application/x-amz-json-1.1")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *_: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@pytest.fixture
def answering() -> Iterator[Callable[..., Answering]]:
    """Starts such servers, and stops them at the end."""
    servers: list[Answering] = []

    def start(status: int, body: str, tls: ssl.SSLContext | None = None) -> Answering:
        server = Answering(status, body)
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def error(code: str) -> str:
    return f'{{"__type": "{code}", "Message": "{CANARY}"}}'


def made(section: AwsKms, **given: Any) -> Aws:
    return Aws(
        "kms", section, what="AWS KMS", shown="aws kms", limit=Cap(100.0, "of the tests"),
        calls_per_s=None, in_flight=2, **{"patience_s": 1.0, **given},
    )  # fmt: skip


def refused(aws: Aws, operation: str = "describe_key", **given: Any) -> RewrapError:
    """The error that a call ends with; it has a hint, and no secret."""

    async def work() -> None:
        try:
            await aws.call(operation, **{"KeyId": "alias/k", **given})
        finally:
            await aws.close()

    with pytest.raises(RewrapError) as caught:
        anyio.run(work)
    told = f"{caught.value.message}\n{caught.value.hint}"
    assert caught.value.hint
    assert CANARY not in told
    return caught.value


def code_of(found: RewrapError) -> str:
    assert isinstance(found, KeyAccessError)
    assert found.exit_code == 10
    return found.code


def test_without_credentials_it_says_how_to_sign_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is sent: there is nothing to sign it with."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    found = refused(made(AwsKms(endpoint="http://127.0.0.1:9")))
    assert code_of(found) == "key-no-identity"
    assert "aws sso login" in str(found.hint)


def test_half_of_the_credentials_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that is missing beside another."""
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert code_of(refused(made(AwsKms(endpoint="http://127.0.0.1:9")))) == "key-no-identity"


def test_a_profile_that_is_not_there_is_told() -> None:
    """It is not the same as having no credentials."""
    found = refused(made(AwsKms(profile="nobody")))
    assert code_of(found) == "key-no-identity"
    assert "no such profile" in found.message
    assert "aws configure list-profiles" in str(found.hint)


def test_without_a_region_it_says_where_one_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """That is for the job file or the environment: exit 2."""
    monkeypatch.delenv("AWS_REGION")
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    found = refused(made(AwsKms()))
    assert isinstance(found, JobError)
    assert found.exit_code == 2
    assert "no region is set" in found.message


def test_an_endpoint_that_is_no_address_is_told() -> None:
    """Before anything is sent anywhere."""
    found = refused(made(AwsKms(endpoint="kms.example")))
    assert isinstance(found, JobError)
    assert "endpoint is no address" in found.message


def test_a_refused_connection_is_given_up_after_the_patience(unused_port: int) -> None:
    """Waited for, since a service comes back; and then told."""
    found = refused(made(AwsKms(endpoint=f"http://127.0.0.1:{unused_port}")))
    assert code_of(found) == "key-away"
    assert "cannot be reached" in found.message


@pytest.fixture
def unused_port() -> int:
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        return server.server_port


def test_a_certificate_that_is_not_trusted_is_told_at_once(
    answering: Callable[..., Answering], tmp_path: Path
) -> None:
    """Trying again would not make it trusted."""
    _, certificate = make_certificates(tmp_path)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    server = answering(200, "{}", tls)
    found = refused(made(AwsKms(endpoint=server.endpoint.replace("http:", "https:"))))
    assert code_of(found) == "key-away"
    assert "AWS_CA_BUNDLE" in str(found.hint)


@pytest.mark.parametrize(
    ("status", "code", "operation", "comes_to", "said"),
    [
        (400, "AccessDeniedException", "describe_key", "key-not-permitted", "kms:DescribeKey"),
        (
            400,
            "AccessDeniedException",
            "re_encrypt",
            "key-not-permitted",
            "kms:ReEncryptFrom or kms:ReEncryptTo",
        ),
        (403, "UnrecognizedClientException", "describe_key", "key-no-identity", "no identity"),
        (403, "ExpiredTokenException", "describe_key", "key-no-identity", "no identity"),
        (400, "RequestTimeTooSkewed", "describe_key", "key-no-identity", "no identity"),
        (
            400,
            "UnsupportedOperationException",
            "describe_key",
            "key-refused",
            "UnsupportedOperationException",
        ),
        (400, f"{CANARY}-and-more", "describe_key", "key-refused", "answers 400"),
    ],
)
def test_a_refusal_is_told_by_its_code(
    answering: Callable[..., Answering], status: int, code: str, operation: str, comes_to: str, said: str
) -> None:
    """With the permission that is lacking; of the text nothing is repeated, for it may hold what was sent."""
    given = {"CiphertextBlob": b"x", "DestinationKeyId": "k"} if operation == "re_encrypt" else {"KeyId": "k"}
    aws = made(AwsKms(endpoint=answering(status, error(code)).endpoint))

    async def work() -> None:
        await aws.call(operation, **given)

    with pytest.raises(KeyAccessError) as caught:
        anyio.run(work)
    assert caught.value.code == comes_to
    assert said in caught.value.message
    assert CANARY not in caught.value.message + str(caught.value.hint)


def attempt_of(aws: Aws) -> BaseException:
    """What one attempt raises, before anybody waits for it."""
    found: list[BaseException] = []

    async def once(operation: str, attempt: Callable[[], Awaitable[object]], *, cost: float = 1.0) -> None:
        try:
            await attempt()
        except Exception as exc:
            found.append(exc)

    async def work() -> None:
        aws.service.call = once  # type: ignore[method-assign,assignment]  # one attempt, and no patience
        await aws.call("describe_key", KeyId="k")
        await aws.close()

    anyio.run(work)
    return found[0]


@pytest.mark.parametrize(
    ("status", "body", "comes_to"),
    [
        (400, error("ThrottlingException"), Throttled),
        (429, "{}", Throttled),
        (500, error("KMSInternalException"), Unanswered),
        (400, error("KeyUnavailableException"), Unanswered),
        (400, error("DependencyTimeoutException"), Unanswered),
        (503, "<html>", Unanswered),
    ],
)
def test_what_may_pass_is_for_another_try(
    answering: Callable[..., Answering], status: int, body: str, comes_to: type[Exception]
) -> None:
    """Throttling slows the pace; what is not answered is only waited for."""
    assert type(attempt_of(made(AwsKms(endpoint=answering(status, body).endpoint)))) is comes_to


def test_a_role_that_may_not_be_assumed_is_told_as_such(
    answering: Callable[..., Answering], caplog: pytest.LogCaptureFixture
) -> None:
    """It is not the service's permission that is lacking. botocore's log does not tell what AWS wrote."""
    body = (
        f"<ErrorResponse><Error><Code>AccessDenied</Code><Message>{CANARY}</Message></Error></ErrorResponse>"
    )
    section = AwsKms(endpoint=answering(403, body).endpoint, role="arn:aws:iam::123456789012:role/rotator")
    found = refused(made(section))
    assert code_of(found) == "key-no-role"
    assert "sts:AssumeRole" in found.message
    assert CANARY not in caplog.text
    assert "trust policy" in str(found.hint)


def test_a_word_of_the_text_is_told_and_nothing_else(answering: Callable[..., Answering]) -> None:
    """Which of two keys an error is of: by the names that the caller has of them."""
    body = error("DisabledException").replace(CANARY, f"key-one is disabled, {CANARY}")
    told: list[tuple[str, frozenset[str]]] = []

    def explain(code: str, said: frozenset[str]) -> KeyAccessError:
        told.append((code, said))
        return KeyAccessError("it is disabled", hint="enable it", code="key-disabled")

    aws = made(AwsKms(endpoint=answering(400, body).endpoint))
    found = refused(aws, explain=explain, words=("key-one", "key-two"))
    assert code_of(found) == "key-disabled"
    assert told == [("DisabledException", frozenset({"key-one"}))]
