"""AWS for tests: moto's server in a process of its own, and the fault proxy in front of it."""

from __future__ import annotations

import itertools
import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import boto3

from tests.support.proxy import Answer, FaultProxy

REGION = "eu-central-1"

_NUMBERS = itertools.count(1)

STARTED_S = 60.0
"""Seconds that a loaded machine may take to start the server."""


def aws_kind(method: str, path: str, headers: Mapping[str, str]) -> str:
    """The operation that a request names: Decrypt, GetSecretValue, …; the service's for those without one."""
    target = next((value for name, value in headers.items() if name.lower() == "x-amz-target"), "")
    return target.rpartition(".")[2] or "sts"


def aws_error(code: str, status: int = 400) -> Answer:
    """What AWS answers when it refuses."""
    body = json.dumps({"__type": code, "message": "refused on cue"})
    return Answer(status, {"Content-Type": "application/x-amz-json-1.1", "x-amzn-errortype": code}, body)


class AwsServer:
    """KMS, Secrets Manager and STS as moto has them; `endpoint` is the proxy's, which refuses on cue."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self.upstream = f"http://127.0.0.1:{self._port}"
        self.proxy = FaultProxy(self.upstream, aws_kind, keeps_host=True)

    @property
    def endpoint(self) -> str:
        return self.proxy.endpoint

    @property
    def environ(self) -> dict[str, str]:
        """The variables that an identity is found by; AWS's own files are not looked at."""
        return {
            "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
            "AWS_SECRET_ACCESS_KEY": "canary-aws-secret-access-key",
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.awsserver", "-H", "127.0.0.1", "-p", str(self._port)],
            cwd=Path(__file__).parents[2],
            env={**os.environ, **self.environ},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        limit = time.monotonic() + STARTED_S
        while True:
            try:
                with urllib.request.urlopen(f"{self.upstream}/moto-api/data.json", timeout=2):
                    break
            except OSError:
                if time.monotonic() > limit or self._process.poll() is not None:
                    raise
                time.sleep(0.05)
        self.proxy.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self.proxy.__exit__(*exc)
        self._process.terminate()
        self._process.wait(20)

    def client(self, service: str) -> Any:
        """An administrator's client, past the proxy."""
        return boto3.client(
            service,
            endpoint_url=self.upstream,
            region_name=REGION,
            aws_access_key_id="admin",
            aws_secret_access_key="admin",
        )

    def new_name(self) -> str:
        """A name that no other test has."""
        return f"rewrap-test-{os.getpid()}-{next(_NUMBERS)}-{secrets.token_hex(3)}"
