"""One Arda partition: its secret in AWS as moto has it, its database, its job, and the application."""

from __future__ import annotations

import json
import secrets
import shutil
import string
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.aws import AwsServer
from tests.support.workbench import TIMEOUT_S, Result, Workbench

ROOT = Path(__file__).parent.parent.parent

APPLICATION = ROOT / "tests" / "integration" / "arda_app.py"

PLAIN = string.ascii_letters + string.digits


def payload(**more: str) -> str:
    """What CDK provisions: 64 characters without punctuation."""
    return json.dumps({"key": "".join(secrets.choice(PLAIN) for _ in range(64)), **more})


class Arda:
    """A partition with two versions, `older` (AWSPREVIOUS) and `old` (AWSCURRENT), and an empty database."""

    def __init__(self, bench: Workbench, aws: AwsServer, **more: str) -> None:
        self.bench, self.aws = bench, aws
        self.client = aws.client("secretsmanager")
        partition = aws.new_name().replace("rewrap-test", "p")
        self.secret = f"Arda-{partition}-I-EmailEncryptionKey"
        bench.environ |= {
            **aws.environ,
            "INFRASTRUCTURE": "Arda",
            "PARTITION": partition,
            "ARDA_AWS_ENDPOINT": aws.endpoint,
            "ARDA_HKDF_INFO": "arda email token",
        }
        for name in ("arda.toml", "arda-mounted.toml"):
            shutil.copy(ROOT / "jobs" / name, bench.folder)
        made = self.client.create_secret(Name=self.secret, SecretString=payload(**more))
        self.older = made["VersionId"]
        put = self.client.put_secret_value(SecretId=self.secret, SecretString=payload(**more))
        self.old = put["VersionId"]

    @property
    def labels(self) -> dict[str, str]:
        """The version that each label is at."""
        found = self.client.list_secret_version_ids(SecretId=self.secret)["Versions"]
        return {label: one["VersionId"] for one in found for label in one["VersionStages"]}

    def key(self, version: str) -> str:
        """What the secret holds, as it is stored."""
        answer = self.client.get_secret_value(SecretId=self.secret, VersionId=version)
        return str(answer["SecretString"])

    def rewrap(self, *arguments: str) -> Result:
        """`rewrap VERB arda.toml …`; the first argument is the verb, of one word or two."""
        verb, *rest = arguments
        return self.bench.rewrap(*verb.split(), "arda.toml", *rest)

    def application(self, *arguments: str) -> Any:
        """What the application answers."""
        done = subprocess.run(
            [sys.executable, str(APPLICATION), *arguments],
            env=self.bench.environ,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    @contextmanager
    def living(self) -> Iterator[dict[str, Any]]:
        """The application at work meanwhile; afterwards the dict holds what it says of itself."""
        told: dict[str, Any] = {}
        process = subprocess.Popen(
            [sys.executable, str(APPLICATION), "live"],
            env=self.bench.environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "ready\n"
            yield told
            out, _ = process.communicate("", timeout=TIMEOUT_S)
            told.update(json.loads(out))
        finally:
            if process.poll() is None:
                process.kill()
                process.communicate()

    def count(self, version: str) -> int:
        found: int = self.bench.value(
            "SELECT count(*) FROM tenant_email WHERE starts_with(server_token, $1)", f"a1.k{version}:"
        )
        return found
