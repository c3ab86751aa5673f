"""`[keys]` in a job file: who keeps the keys of a rotation, and what has to be known to ask for them.

Each provider but the local one has a table of its own: `[keys.aws-kms]`. What is for another provider is not
looked at, so that one file may serve where there is a vault and where there is none.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StringConstraints

from rewrap.crypto.aad import AadTemplate
from rewrap.crypto.layout import Layout
from rewrap.targets import Section

_REFERENCE = re.compile(r"(env:[A-Za-z_][A-Za-z0-9_]*|file:.+)")

_ADDRESS = re.compile(r"(https://[A-Za-z0-9.-]+|http://(localhost|127\.[0-9.]+|\[::1\]))(:[0-9]+)?/?")

_NAMES = {
    "name": re.compile(r"\w([\w.-]*\w)?", re.ASCII),
    "mount": re.compile(r"(\w([\w.-]*\w)?/)*\w([\w.-]*\w)?/?", re.ASCII),
}
"""Of a transit engine and its keys: what Vault takes as a name, and nothing that leads to another path."""

_KMS_KEY = re.compile(
    r"(arn:[a-z0-9-]+:kms:[a-z0-9-]+:[0-9]{12}:)?alias/[A-Za-z0-9/_-]+"
    r"|(arn:[a-z0-9-]+:kms:[a-z0-9-]+:[0-9]{12}:key/)?(mrk-[0-9a-f-]{32,36}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12})"
)
"""How KMS names a key: an alias or an id, as such or in an ARN."""

Text = Annotated[str, StringConstraints(max_length=200)]

MaybeText = Annotated[Text | None, BeforeValidator(lambda value: None if value == "" else value)]
"""An empty text is none, so that a variable may leave it open: `"${AWS_PROFILE:-}"`."""

Encoding = Literal["hex", "base64", "raw", "utf8", "pem"]


def _reference(value: object) -> object:
    # the message never repeats the value: whoever writes a key here must not find it in a log
    if not isinstance(value, str) or not _REFERENCE.fullmatch(value):
        raise ValueError('write "env:NAME" or "file:PATH"; a key itself never stands in a job file')
    return value


Reference = Annotated[str, BeforeValidator(_reference)]

Refusal = tuple[str, str, str]
"""The field that is lacking or wrong, why, and what to do."""


class KeyVersion(Section):
    """`[keys.versions.NAME]`: where one version's bytes are, and how they are written."""

    material: Reference
    encoding: Encoding = "hex"
    index: Reference | None = None


class AwsSecret(Section):
    """`[keys.aws-secrets-manager]`: a secret whose versions are the key's, by their ids.

    `field` is the member of a JSON object that holds the key; without it the secret is the key. Versions that
    the identity may not read are fetched as `fallback_role`.
    """

    secret: Text = ""
    field: Text | None = None
    encoding: Encoding = "utf8"
    region: MaybeText = None
    endpoint: MaybeText = None
    profile: MaybeText = None
    role: MaybeText = None
    fallback_role: MaybeText = None

    def refused(self) -> Refusal | None:
        if not self.secret:
            return "secret", "is missing", "it is the secret's name or ARN"
        return None


class AwsKms(Section):
    """`[keys.aws-kms]`: symmetric keys, each under the name that stands for it as a version.

    `keys` gives a key's id, ARN or alias by version; a version that is not there is itself the id or ARN.
    """

    keys: dict[str, Text] = Field(default_factory=dict)
    region: MaybeText = None
    endpoint: MaybeText = None
    profile: MaybeText = None
    role: MaybeText = None

    def refused(self) -> Refusal | None:
        for version, key in self.keys.items():
            if not _KMS_KEY.fullmatch(key):
                hint = "it is a key's id, its ARN, or an alias: alias/orders-2026"
                return f"keys.{version}", "names no key", hint
        return None

    def key_of(self, version: str) -> str | None:
        """What names a version's key to KMS; None where nothing does, or only an alias of no version."""
        if version in self.keys:
            return self.keys[version]
        # an alias may move: it is no version, and has to be given a name
        return version if _KMS_KEY.fullmatch(version) and "alias/" not in version else None


class FileLabel(Section):
    """`[keys.files.labels.NAME]`: a file whose name says what its key is for, and not which version it is."""

    key: Text
    version: Text


class KeyFiles(Section):
    """`[keys.files]`: files that External Secrets or a CSI driver mounts.

    `path` has `{version}` in it, one file for each; or it is one JSON object of all versions. Where files are
    named by their role (`current`, `previous`), `labels` says where each one's key and version are. `field`
    is the member of a JSON object in each that holds the key.
    """

    path: Text = ""
    field: Text | None = None
    encoding: Encoding = "hex"
    labels: dict[str, FileLabel] = Field(default_factory=dict)

    def refused(self) -> Refusal | None:
        if self.labels:
            if self.path:
                return "path", "and labels do not go together", "leave out the one that is not mounted"
            return None
        if not self.path:
            return "path", "is missing", 'write path = "/run/keys/{version}", or a JSON file of all versions'
        if self.path.count(VERSION) > 1:
            return "path", f"has {VERSION} in it more than once", "one part of the path names the version"
        return None


VERSION = "{version}"
"""Stands for a version in a path."""


class Pkcs11(Section):
    """`[keys.pkcs11]`: AES keys in a token, by label: `label` has `{version}` in it."""

    module: Text = ""
    token: Text = ""
    pin: Reference | None = None
    label: Text = "{version}"

    def refused(self) -> Refusal | None:
        for name, hint in (
            ("module", "it is the path of the token's library: /usr/lib/softhsm/libsofthsm2.so"),
            ("token", "it is the token's label"),
            ("pin", 'write pin = "env:NAME" or "file:PATH"'),
        ):
            if not getattr(self, name):
                return name, "is missing", hint
        if "{version}" not in self.label:
            return "label", "has no {version} in it", 'write label = "orders-kek-{version}"'
        return None


class Transit(Section):
    """`[keys.vault-transit]`: a key of the transit engine of HashiCorp Vault or OpenBao."""

    address: Text = ""
    name: Text = ""
    token: Reference | None = None
    mount: Text = "transit"
    namespace: Text | None = None

    def refused(self) -> Refusal | None:
        if self.address and not _ADDRESS.fullmatch(self.address):
            return (
                "address",
                "is no address that a token may be sent to",
                "it is https:// and a host; http:// would send it in clear, and is for this machine alone",
            )
        for name, form in _NAMES.items():
            given = getattr(self, name)
            if given and not form.fullmatch(given):
                return name, "is no name of one", "it is made of letters, digits, '.', '_' and '-'"
        for name, hint in (
            ("address", 'write address = "${VAULT_ADDR}"'),
            ("name", "it is the key's name in the transit engine"),
            ("token", 'write token = "env:VAULT_TOKEN" or "file:PATH"'),
        ):
            if not getattr(self, name):
                return name, "is missing", hint
        return None


_SHORT = {"env": "local", "akv": "azure-key-vault"}
"""Short names of providers, as applications call them in their own settings."""

CIPHERS = {
    "azure-key-vault": ("rsa-oaep-256", "rsa-oaep"),
    "aws-kms": ("aws-kms",),
    "vault-transit": ("vault-transit",),
    "pkcs11": ("aes-key-wrap", "aes-key-wrap-pad"),
}
"""The ciphers of keys that stay where they are, by who keeps them. Of all others the bytes come here."""

_LISTING = {"azure-key-vault": "keys/list", "aws-secrets-manager": "secretsmanager:ListSecretVersionIds"}

_ELSEWHERE_ONLY = {"aws-kms", "vault-transit"}
"""Ciphers that nobody but a keeper has."""


def _provider(value: object) -> object:
    return _SHORT.get(value, value) if isinstance(value, str) else value


Provider = Literal[
    "local", "files", "azure-key-vault", "aws-secrets-manager", "aws-kms", "vault-transit", "pkcs11"
]


class Keys(Section):
    """`[keys]`: the provider and its versions.

    `local` names its versions here. In `azure-key-vault` they are those of the key `name` in `vault`; every
    other provider has a table of its own. `max_calls_per_s`, `in_flight` and `patience_s` are how hard a
    service is asked, `reopen` the share of new values that it opens again before they are written. Keys whose
    bytes came from a provider are looked at again every `recheck_s` seconds of a run.
    """

    provider: Annotated[Provider, BeforeValidator(_provider)] = "local"
    versions: dict[str, KeyVersion] = Field(default_factory=dict)
    vault: Text | None = None
    name: Text | None = None
    aws_secret: AwsSecret | None = Field(default=None, alias="aws-secrets-manager")
    aws_kms: AwsKms | None = Field(default=None, alias="aws-kms")
    files: KeyFiles | None = None
    pkcs11: Pkcs11 | None = None
    transit: Transit | None = Field(default=None, alias="vault-transit")
    max_calls_per_s: Annotated[float, Field(gt=0, le=10_000)] | None = None
    in_flight: Annotated[int, Field(ge=1, le=256)] = 16
    patience_s: Annotated[float, Field(ge=1, le=3_600)] = 300.0
    reopen: Annotated[float, Field(gt=0, le=1)] = 1.0
    recheck_s: Annotated[float, Field(ge=0.1, le=3_600)] = 30.0

    @property
    def provided(self) -> bool:
        """Whether the versions are those of a provider, and not named in the job file."""
        return self.provider != "local"

    @property
    def where(self) -> str:
        """Where versions are that the provider lists, for a message."""
        return "in the vault" if self.provider == "azure-key-vault" else "there"

    @property
    def called(self) -> bool:
        """Whether they are in a service that takes calls."""
        return self.provider not in ("local", "files")

    @property
    def remote(self) -> bool:
        """Whether the keys stay where they are: their bytes never come here."""
        return self.provider in CIPHERS

    @property
    def wraps_remotely(self) -> bool:
        """Whether wrapping takes a call too, since there is no public half to do it with here."""
        return self.remote and self.provider != "azure-key-vault"

    @property
    def listing(self) -> str:
        """The permission that it takes to list versions, as the provider calls it."""
        return _LISTING.get(self.provider, "the right to list versions")

    @property
    def section(self) -> AwsSecret | AwsKms | KeyFiles | Pkcs11 | Transit | None:
        """The provider's own table; None where it has none, or it is not there."""
        return {
            "aws-secrets-manager": self.aws_secret,
            "aws-kms": self.aws_kms,
            "files": self.files,
            "pkcs11": self.pkcs11,
            "vault-transit": self.transit,
        }.get(self.provider)

    @property
    def identity(self) -> dict[str, Any]:
        """What it is that makes up a job. Not a provider's versions: another one there changes nothing."""
        if not self.provided:
            # without defaults: a field that a later version adds must not change what an old file is
            return {v: k.model_dump(exclude_defaults=True) for v, k in sorted(self.versions.items())}
        if self.section is None:
            return {"provider": self.provider, "vault": self.vault, "name": self.name}
        place = self.section.model_dump(exclude_defaults=True, exclude=_HOW_TO_ASK)
        return {"provider": self.provider, **place}

    def refused(self) -> Refusal | None:
        """The first field that the provider lacks: which, why, and what to do; None when it has all."""
        if not self.provided:
            if self.versions:
                return None
            # as a required field would be refused
            given = "versions" in self.model_fields_set
            return "versions", "is empty" if given else "is missing", "see docs/job-file.md"
        if self.provider == "azure-key-vault":
            return self._vault_refused()
        if self.section is None:
            return self.provider, "is missing", "see docs/keys.md"
        lacking = self.section.refused()
        return None if lacking is None else (f"{self.provider}.{lacking[0]}", *lacking[1:])

    def _vault_refused(self) -> Refusal | None:
        if not self.vault:
            return "vault", "is missing", 'write vault = "${AZURE_KEYVAULT_URL}"'
        if not re.fullmatch(r"https://[A-Za-z0-9.-]+(:[0-9]+)?/?", self.vault):
            return (
                "vault",
                "is no address of a vault",
                "it is https:// and a name: https://NAME.vault.azure.net",
            )
        if not self.name or not re.fullmatch(r"[0-9A-Za-z-]{1,127}", self.name):
            wrong = "is no name of a key" if self.name else "is missing"
            return "name", wrong, "it is the key's name in the vault: letters, digits and -"
        return None


_HOW_TO_ASK = {
    "region", "endpoint", "profile", "role", "fallback_role", "pin", "token", "module", "address", "keys",
}  # fmt: skip
"""Fields that say how a keeper is reached, and may change in the middle of a rotation.

So may `keys`, which may get further versions; that a version is still the same key, its commitment shows."""


def refused_cipher(keys: Keys, layout: Layout, first: str) -> tuple[str, str] | None:
    """Why a layout cannot be used with these keys, and what to do; `first` is the job's first cipher."""
    cipher = layout.cipher.name
    if cipher == "aws-kms" and isinstance(layout.aad, AadTemplate):
        return (
            f'layout "{layout.name}" is bound to a text, and KMS binds to an object of texts',
            'write aad = { tenant = "{tenant_id}" }: its members are those of the encryption context',
        )
    if not keys.remote:
        if cipher in _ELSEWHERE_ONLY:
            return f'layout "{layout.name}" is under {cipher}', f'it takes keys.provider = "{cipher}"'
        return None
    known = CIPHERS[keys.provider]
    if cipher not in known:
        keeper = "a vault keeps them" if keys.provider == "azure-key-vault" else f"{keys.provider} keeps them"
        shown = " or ".join(f'"{name}"' for name in known)
        return (
            f'layout "{layout.name}" needs the bytes of its key, and {keeper}',
            f"its cipher has to be {shown}",
        )
    if cipher != first:
        asked = "a vault" if keys.provider == "azure-key-vault" else keys.provider
        return (
            f'layout "{layout.name}" is under {cipher}, and the first field under {first}',
            f"{asked} is asked for one algorithm in a job: make it two jobs",
        )
    return None
