"""A Key Vault for tests: the one in AZURE_KEYVAULT_TEST_URL, or the tests' own behind the fault proxy."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import itertools
import os
import secrets
import ssl
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from azure.core.credentials import TokenCredential
from azure.core.credentials_async import AsyncTokenCredential
from azure.keyvault.keys import KeyClient
from azure.keyvault.keys.crypto import CryptographyClient, KeyWrapAlgorithm
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.support.keyvault import (
    ALL_PERMISSIONS,
    READ_AND_UNWRAP,
    TENANT,
    KeyVaultServer,
    KeyVaultService,
)
from tests.support.proxy import FaultProxy, vault_kind

ADMIN = "tests"
"""The client id that makes keys."""

USER = "rewrap"
"""The client id that a run has: it reads and unwraps, unless told otherwise."""

_NUMBERS = itertools.count(1)


class VaultServer:
    """A vault, and what tests do to its keys, by Microsoft's own client."""

    def __init__(self, url: str, ca: Path | None = None) -> None:
        self.url = url
        self.ca = ca
        """A file with the authority that its certificate is of; None: a public one."""

    @classmethod
    def of_environment(cls) -> VaultServer | None:
        """The vault of AZURE_KEYVAULT_TEST_URL, with a principal that may create, update and delete keys."""
        url = os.environ.get("AZURE_KEYVAULT_TEST_URL")
        return cls(url.rstrip("/")) if url else None

    @property
    def environ(self) -> dict[str, str]:
        """The variables that a run finds the vault and its credential by."""
        return {"AZURE_KEYVAULT_URL": self.url}

    @property
    def client_options(self) -> dict[str, Any]:
        """Arguments of every client of Microsoft's."""
        return {} if self.ca is None else {"connection_verify": str(self.ca)}

    def credential(self) -> AsyncTokenCredential:
        """A new credential of the run's principal, to be closed."""
        from azure.identity.aio import DefaultAzureCredential

        return DefaultAzureCredential()

    @contextlib.contextmanager
    def admin_credential(self) -> Iterator[TokenCredential]:
        from azure.identity import DefaultAzureCredential

        with DefaultAzureCredential() as credential:
            yield credential

    @contextlib.contextmanager
    def admin(self) -> Iterator[KeyClient]:
        with (
            self.admin_credential() as credential,
            KeyClient(self.url, credential, **self.client_options) as client,
        ):
            yield client

    def new_name(self) -> str:
        """A key's name that no other test has."""
        return f"rewrap-test-{os.getpid()}-{next(_NUMBERS)}-{secrets.token_hex(3)}"

    def create_version(self, name: str, size: int = 2048) -> str:
        """Makes a key or a new version of it, which is at once the latest, and returns the version's id."""
        with self.admin() as client:
            return str(client.create_rsa_key(name, size=size).properties.version)

    def enable(self, name: str, version: str, enabled: bool = True) -> None:
        with self.admin() as client:
            client.update_key_properties(name, version, enabled=enabled)

    def disable(self, name: str, version: str) -> None:
        self.enable(name, version, enabled=False)

    def versions(self, name: str) -> set[str]:
        with self.admin() as client:
            return {str(each.version) for each in client.list_properties_of_key_versions(name)}

    def delete(self, name: str) -> None:
        """Deletes a key with all its versions."""
        with self.admin() as client:
            client.begin_delete_key(name).wait()

    def public_key(self, name: str, version: str) -> tuple[int, int]:
        """Modulus and exponent."""
        with self.admin() as client:
            key = client.get_key(name, version).key
        return int.from_bytes(key.n, "big"), int.from_bytes(key.e, "big")  # type: ignore[attr-defined]  # set by the SDK's deserializer

    def wrap(self, name: str, version: str, secret: bytes, algorithm: str = "RSA-OAEP-256") -> bytes:
        """A wrapped DEK, as an application makes it."""
        with self._crypto(name, version) as client:
            return bytes(client.wrap_key(KeyWrapAlgorithm(algorithm), secret).encrypted_key)

    def unwrap(self, name: str, version: str, wrapped: bytes, algorithm: str = "RSA-OAEP-256") -> bytes:
        """What is in a wrapped DEK; the client's HttpResponseError where it does not open."""
        with self._crypto(name, version) as client:
            return bytes(client.unwrap_key(KeyWrapAlgorithm(algorithm), wrapped).key)

    @contextlib.contextmanager
    def _crypto(self, name: str, version: str) -> Iterator[CryptographyClient]:
        with self.admin_credential() as credential:
            key = f"{self.url}/keys/{name}/{version}"
            with CryptographyClient(key, credential, **self.client_options) as client:
                yield client


class VaultEmulator(VaultServer):
    """The tests' own: real RSA, versions, permissions, limits, and any fault that `proxy` can make.

    `proxy` counts requests by kind: token, key, versions, unwrapkey, … A run in a process of its own finds it
    by `environ`, through DefaultAzureCredential and a client secret.
    """

    def __init__(self) -> None:
        super().__init__("")
        self.service = KeyVaultService()
        self._server = KeyVaultServer(self.service)
        self._folder = tempfile.TemporaryDirectory(prefix="rewrap-vault-")
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self._server.start()
        self._stack.callback(self._folder.cleanup)
        self._stack.callback(self._server.stop)
        folder = Path(self._folder.name)
        self.ca, certificate = make_certificates(folder)
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(certificate)
        self.proxy = self._stack.enter_context(
            FaultProxy(self._server.endpoint, vault_kind, tls=tls, keeps_host=True)
        )
        self.url = self.proxy.endpoint
        self.permit()
        self.service.principal(ADMIN, ALL_PERMISSIONS)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def permit(self, *permissions: str) -> None:
        """What a run may do from now on: get, list, wrapKey and unwrapKey unless told."""
        self.service.principal(USER, frozenset(permissions) or READ_AND_UNWRAP)

    def reset(self) -> None:
        """No rule, no limit, nothing counted, the permissions of the start; keys stay."""
        self.proxy.reset()
        self.service.limit(None)
        self.permit()

    @property
    def environ(self) -> dict[str, str]:
        return {
            **super().environ,
            "AZURE_TENANT_ID": TENANT,
            "AZURE_CLIENT_ID": USER,
            "AZURE_CLIENT_SECRET": self.service.principals[USER].secret,
            "AZURE_AUTHORITY_HOST": self.url,
            "SSL_CERT_FILE": str(self.ca),
        }

    def credential(self) -> AsyncTokenCredential:
        from azure.identity.aio import ClientSecretCredential

        secret = self.service.principals[USER].secret
        return ClientSecretCredential(TENANT, USER, secret, authority=self.url, **self.client_options)

    @contextlib.contextmanager
    def admin_credential(self) -> Iterator[TokenCredential]:
        # not azure-identity's: in its synchronous form it asks a public host about the authority first
        yield _Token(self.service.token(ADMIN))


class _Token:
    """A credential of one token."""

    def __init__(self, token: str) -> None:
        self._token = token

    def get_token(self, *_scopes: str, **_options: Any) -> Any:
        from azure.core.credentials import AccessToken

        return AccessToken(self._token, int(datetime.datetime.now().timestamp()) + 3600)


def make_certificates(folder: Path) -> tuple[Path, Path]:
    """An authority, and a certificate of it with its key for 127.0.0.1 and localhost: two PEM files."""
    now = datetime.datetime.now(datetime.UTC)
    authority_key, server_key = (
        ec.generate_private_key(ec.SECP256R1()),
        ec.generate_private_key(ec.SECP256R1()),
    )
    authority_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "rewrap tests")])

    def certificate(key: ec.EllipticCurvePrivateKey, name: x509.Name, ca: bool) -> x509.CertificateBuilder:
        usage = dict.fromkeys(
            ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"), False
        ) | {"encipher_only": False, "decipher_only": False}
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(authority_name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=2))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(
                x509.KeyUsage(digital_signature=not ca, key_cert_sign=ca, crl_sign=ca, **usage), critical=True
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False
            )
        )

    authority = certificate(authority_key, authority_name, True).sign(authority_key, hashes.SHA256())
    addresses = [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost")]
    server_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    server = (
        certificate(server_key, server_name, False)
        .add_extension(x509.SubjectAlternativeName(addresses), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    ca, chain = folder / "ca.pem", folder / "server.pem"
    ca.write_bytes(authority.public_bytes(pem))
    chain.touch(mode=0o600)
    chain.write_bytes(
        server_key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + server.public_bytes(pem)
    )
    return ca, chain
