"""Everybody who keeps keys, in one shape: two versions of a key, and an application that sealed under them.

A keeper's key material is `canaries`: no text of rewrap's may hold it.
"""

from __future__ import annotations

import json
import os
import secrets
from base64 import b64decode, b64encode
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from rewrap.job import Job
from tests.support.aws import REGION, AwsServer, aws_error
from tests.support.proxy import FaultProxy, forbidden, slowed_down
from tests.support.token import PIN, SoftToken
from tests.support.transit import RATE_LIMITED, RULES, TransitEngine
from tests.support.vault import VaultEmulator

JOB = """
name = "test"
[stores.main]
kind = "postgres"
url = "postgresql://h/d"
{keys}
[layouts.it]
marker = "{{version}}#"
version = "[A-Za-z0-9-]+"
encoding = "base64"
cipher = "{cipher}"
[[targets]]
table = "notes"
fields = [{{ column = "body", layout = "it" }}]
"""


@dataclass
class Keeper:
    """What a provider has to do with the keys of one keeper.

    `wrap` and `unwrap` are the application's own, without rewrap. `lose` takes the old version away, or
    disables it. Of a service, `deny` and `throttle` have it refuse the call by which values are opened or
    keys are fetched; `permission` is what its refusal has to name.
    """

    keys: str
    cipher: str
    old: str
    new: str
    wrap: Callable[[str, bytes], bytes]
    unwrap: Callable[[str, bytes], bytes]
    lose: Callable[[], object]
    canaries: list[bytes] = field(default_factory=list)
    deny: Callable[[], object] | None = None
    throttle: Callable[[], object] | None = None
    throttled: Callable[[], int] = lambda: 0
    permission: str = ""

    @property
    def job(self) -> Job:
        return Job.parse(JOB.format(keys=self.keys, cipher=self.cipher), path=Path("rewrap.toml"))


class _Bytes:
    """Keys whose bytes come into the process: AES-256, as an application of any language would use it."""

    def __init__(self, *versions: str) -> None:
        self.keys = {version: secrets.token_bytes(32) for version in versions}

    def wrap(self, version: str, plain: bytes) -> bytes:
        nonce = secrets.token_bytes(12)
        return nonce + AESGCM(self.keys[version]).encrypt(nonce, plain, None)

    def unwrap(self, version: str, wrapped: bytes) -> bytes:
        return AESGCM(self.keys[version]).decrypt(wrapped[:12], wrapped[12:], None)


def local(request: pytest.FixtureRequest) -> Keeper:
    """Environment variables."""
    monkeypatch: pytest.MonkeyPatch = request.getfixturevalue("monkeypatch")
    own = _Bytes("v1", "v2")
    sections = ""
    for version, key in own.keys.items():
        monkeypatch.setenv(f"KEEPER_{version}", key.hex())
        sections += f'[keys.versions.{version}]\nmaterial = "env:KEEPER_{version}"\n'
    return Keeper(
        sections, "aes-256-gcm", "v1", "v2", own.wrap, own.unwrap,
        lambda: monkeypatch.delenv("KEEPER_v1"), list(own.keys.values()),
    )  # fmt: skip


def files(request: pytest.FixtureRequest) -> Keeper:
    """A folder with a file for each version."""
    folder: Path = request.getfixturevalue("tmp_path")
    own = _Bytes("v1", "v2")
    for version, key in own.keys.items():
        (folder / f"{version}.key").write_text(key.hex())
    return Keeper(
        f'[keys]\nprovider = "files"\n[keys.files]\npath = "{folder}/{{version}}.key"',
        "aes-256-gcm", "v1", "v2", own.wrap, own.unwrap,
        (folder / "v1.key").unlink, list(own.keys.values()),
    )  # fmt: skip


def key_vault(request: pytest.FixtureRequest) -> Keeper:
    """Two versions of an RSA key in a Key Vault."""
    monkeypatch: pytest.MonkeyPatch = request.getfixturevalue("monkeypatch")
    vault: VaultEmulator = request.getfixturevalue("vault_emulator")
    for name, value in vault.environ.items():
        monkeypatch.setenv(name, value)
    # the identity libraries have read SSL_CERT_FILE already
    monkeypatch.setattr("rewrap.keys.azure.DefaultAzureCredential", vault.credential)
    name = vault.new_name()
    old, new = vault.create_version(name), vault.create_version(name)
    return Keeper(
        f'[keys]\nprovider = "azure-key-vault"\nvault = "{vault.url}"\nname = "{name}"',
        "rsa-oaep-256", old, new,
        lambda version, plain: vault.wrap(name, version, plain),
        lambda version, wrapped: vault.unwrap(name, version, wrapped),
        lambda: vault.disable(name, old),
        [vault.service.principals["rewrap"].secret.encode()],
        deny=lambda: vault.proxy.add(forbidden(), "unwrapkey"),
        throttle=lambda: vault.proxy.add(slowed_down(1), "unwrapkey", times=2),
        throttled=lambda: _refused(vault.proxy),
        permission="keys/unwrapKey",
    )  # fmt: skip


def secrets_manager(request: pytest.FixtureRequest) -> Keeper:
    """Two versions of a secret."""
    aws: AwsServer = request.getfixturevalue("aws")
    own, admin, name = _Bytes(), aws.client("secretsmanager"), aws.new_name()
    admin.create_secret(Name=name)
    made = []
    for _ in range(2):
        key = secrets.token_bytes(32)
        stored = json.dumps({"key": key.hex()})
        made.append(admin.put_secret_value(SecretId=name, SecretString=stored)["VersionId"])
        own.keys[made[-1]] = key
    return Keeper(
        f'[keys]\nprovider = "aws-secrets-manager"\n[keys.aws-secrets-manager]\nsecret = "{name}"\n'
        f'field = "key"\nencoding = "hex"\nregion = "{REGION}"\nendpoint = "{aws.endpoint}"',
        "aes-256-gcm", made[0], made[1], own.wrap, own.unwrap,
        lambda: admin.delete_secret(SecretId=name),
        [*own.keys.values(), os.environ["AWS_SECRET_ACCESS_KEY"].encode()],
        deny=lambda: aws.proxy.add(aws_error("AccessDeniedException"), "GetSecretValue"),
        throttle=lambda: aws.proxy.add(aws_error("ThrottlingException"), "GetSecretValue", times=1),
        throttled=lambda: _refused(aws.proxy),
        permission="secretsmanager:GetSecretValue",
    )  # fmt: skip


def kms(request: pytest.FixtureRequest) -> Keeper:
    """Two keys in KMS."""
    aws: AwsServer = request.getfixturevalue("aws")
    admin = aws.client("kms")
    arns = {version: admin.create_key()["KeyMetadata"]["Arn"] for version in ("v1", "v2")}
    named = ", ".join(f'{version} = "{arn}"' for version, arn in arns.items())
    return Keeper(
        f'[keys]\nprovider = "aws-kms"\n[keys.aws-kms]\nkeys = {{ {named} }}\nregion = "{REGION}"\n'
        f'endpoint = "{aws.endpoint}"',
        "aws-kms", "v1", "v2",
        lambda version, plain: admin.encrypt(KeyId=arns[version], Plaintext=plain)["CiphertextBlob"],
        lambda version, raw: admin.decrypt(KeyId=arns[version], CiphertextBlob=raw)["Plaintext"],
        lambda: admin.disable_key(KeyId=arns["v1"].rpartition("/")[2]),
        [os.environ["AWS_SECRET_ACCESS_KEY"].encode()],
        deny=lambda: aws.proxy.add(aws_error("AccessDeniedException"), "ReEncrypt"),
        throttle=lambda: aws.proxy.add(aws_error("ThrottlingException"), "ReEncrypt", times=1),
        throttled=lambda: _refused(aws.proxy),
        permission="kms:ReEncrypt",
    )  # fmt: skip


def transit(request: pytest.FixtureRequest) -> Keeper:
    """Two versions of a key in a transit engine."""
    monkeypatch: pytest.MonkeyPatch = request.getfixturevalue("monkeypatch")
    engine: TransitEngine = request.getfixturevalue("transit")
    name = engine.new_key()
    token = engine.token(RULES.format(name=name), name)
    monkeypatch.setenv("KEEPER_TOKEN", token)

    def wrap(version: str, plain: bytes) -> bytes:
        return b64decode(engine.encrypt(name, int(version), plain).rpartition(":")[2])

    def unwrap(version: str, wrapped: bytes) -> bytes:
        return engine.decrypt(name, f"vault:v{version}:{b64encode(wrapped).decode()}")

    return Keeper(
        f'[keys]\nprovider = "vault-transit"\n[keys.vault-transit]\naddress = "{engine.address}"\n'
        f'name = "{name}"\ntoken = "env:KEEPER_TOKEN"',
        "vault-transit", "1", "2", wrap, unwrap,
        lambda: engine.configure(name, min_decryption_version=2),
        [token.encode(), engine.root.encode()],
        deny=lambda: engine.permit(name, RULES.format(name=name).replace("/rewrap/", "/decrypt/")),
        throttle=lambda: engine.proxy.add(RATE_LIMITED, "rewrap", times=1),
        throttled=lambda: _refused(engine.proxy),
        permission=f'path "transit/rewrap/{name}" {{ capabilities = ["update"] }}',
    )  # fmt: skip


def pkcs11(request: pytest.FixtureRequest) -> Keeper:
    """Two keys in a token."""
    soft: SoftToken = request.getfixturevalue("soft")
    name = f"keeper-{secrets.token_hex(4)}"
    keys = [soft.create(f"{name}-{version}") for version in ("v1", "v2")]
    return Keeper(
        f'[keys]\nprovider = "pkcs11"\n[keys.pkcs11]\nmodule = "{soft.module}"\ntoken = "{soft.name}"\n'
        f'pin = "env:HSM_PIN"\nlabel = "{name}-{{version}}"',
        "aes-key-wrap", "v1", "v2",
        lambda version, plain: soft.wrap(f"{name}-{version}", plain),
        lambda version, wrapped: soft.unwrap(f"{name}-{version}", wrapped),
        lambda: soft.destroy(f"{name}-v1"),
        [*keys, PIN.encode()],
    )  # fmt: skip


def _refused(proxy: FaultProxy) -> int:
    """How many requests were told that they were too many."""
    return sum(1 for one in proxy.seen if one.fault)


KEEPERS: dict[str, Callable[[pytest.FixtureRequest], Keeper]] = {
    "local": local,
    "files": files,
    "azure-key-vault": key_vault,
    "aws-secrets-manager": secrets_manager,
    "aws-kms": kms,
    "vault-transit": transit,
    "pkcs11": pkcs11,
}
SERVICES = [name for name in KEEPERS if name not in ("local", "files", "pkcs11")]
"""Those that can refuse a call and throttle."""
