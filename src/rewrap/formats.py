"""The `[keys]` and `[layouts]` of a job file: under which keys values are sealed, and how they are stored."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StringConstraints, model_validator

from rewrap.crypto.indexes import BlindIndex, parse_index
from rewrap.crypto.layout import Layout, LayoutError, builtin_descriptors, builtin_layouts, compiled
from rewrap.errors import JobError
from rewrap.targets import IndexSection, Name, Section

_REFERENCE = re.compile(r"(env:[A-Za-z_][A-Za-z0-9_]*|file:.+)")

Text = Annotated[str, StringConstraints(max_length=200)]


def _reference(value: object) -> object:
    # the message never repeats the value: whoever writes a key here must not find it in a log
    if not isinstance(value, str) or not _REFERENCE.fullmatch(value):
        raise ValueError('write "env:NAME" or "file:PATH"; a key itself never stands in a job file')
    return value


Reference = Annotated[str, BeforeValidator(_reference)]


class KeyVersion(Section):
    """`[keys.versions.NAME]`: where one version's bytes are, and how they are written."""

    material: Reference
    encoding: Literal["hex", "base64", "raw", "utf8", "pem"] = "hex"
    index: Reference | None = None


class Keys(Section):
    """`[keys]`: the provider and its versions.

    `local` names its versions here. In `azure-key-vault` they are those of the key `name` in `vault`;
    `max_calls_per_s`, `in_flight` and `patience_s` are how hard the vault is asked, `reopen` the share of
    new values that it opens again before they are written.

    `env` and `akv` are the same two, for a job that describes both and has a variable choose.
    """

    provider: Literal["local", "azure-key-vault", "env", "akv"] = "local"
    versions: dict[str, KeyVersion] = Field(default_factory=dict)
    vault: Name | None = None
    name: Annotated[str, StringConstraints(pattern=r"^[0-9A-Za-z-]{1,127}$")] | None = None
    max_calls_per_s: Annotated[float, Field(gt=0, le=10_000)] | None = None
    in_flight: Annotated[int, Field(ge=1, le=256)] = 16
    patience_s: Annotated[float, Field(ge=1, le=3_600)] = 300.0
    reopen: Annotated[float, Field(gt=0, le=1)] = 1.0

    @model_validator(mode="before")
    @classmethod
    def _chosen(cls, told: Any) -> Any:
        """What is said of the provider that is chosen, as if nothing were said of the other."""
        if not isinstance(told, dict) or told.get("provider") not in ("env", "akv"):
            return told
        if told["provider"] == "akv":
            return {**told, "provider": "azure-key-vault", "versions": {}}
        return {**{name: each for name, each in told.items() if name not in _OF_A_VAULT}, "provider": "local"}

    @property
    def remote(self) -> bool:
        """Whether the keys stay where they are: only their public halves come here."""
        return self.provider != "local"

    def refused(self) -> tuple[str, str, str] | None:
        """The first field that does not suit the provider: which, why, and what to do; None when all do."""
        if not self.remote:
            if not self.versions:
                # as a required field would be refused
                given = "versions" in self.model_fields_set
                return "versions", "is empty" if given else "is missing", "see docs/job-file.md"
            for field in _OF_A_VAULT:
                if field in self.model_fields_set:
                    return (
                        field,
                        "is for keys in a vault",
                        'leave it out, or set provider = "azure-key-vault"',
                    )
            return None
        if self.versions:
            return (
                "versions", "are the vault's own",
                "leave them out; rewrap check shows them, and --from and --to name them",
            )  # fmt: skip
        if self.vault is None:
            return "vault", "is missing", 'write vault = "${AZURE_KEYVAULT_URL}"'
        if not re.fullmatch(r"https://[A-Za-z0-9.-]+(:[0-9]+)?/?", self.vault):
            return (
                "vault",
                "is no address of a vault",
                "it is https:// and a name: https://NAME.vault.azure.net",
            )
        if self.name is None:
            return "name", "is missing", "it is the key's name in the vault"
        return None


def refused_remote(layout: Layout, first: str) -> tuple[str, str] | None:
    """Why a layout cannot be used with keys in a vault, and what to do; `first` is the job's first cipher."""
    cipher = layout.cipher.name
    if not cipher.startswith("rsa-oaep"):
        return (
            f'layout "{layout.name}" needs the bytes of its key, and a vault keeps them',
            'its cipher has to be "rsa-oaep-256" or "rsa-oaep"',
        )
    if cipher != first:
        return (
            f'layout "{layout.name}" is under {cipher}, and the first field under {first}',
            "a vault is asked for one algorithm in a job: make it two jobs",
        )
    return None


_OF_A_VAULT = ("vault", "name", "max_calls_per_s", "in_flight", "patience_s", "reopen")


class LayoutSection(Section):
    """`[layouts.NAME]`: a stored format, or a built-in one with some fields of its own (`like`)."""

    like: Name | None = None
    marker: Text | None = None
    version: Name | None = None
    encoding: Name | None = None
    cipher: Name | None = None
    aad: Name | None = None
    order: Text | None = None
    separator: Text | None = None
    nonce_bytes: int | None = None
    kdf: dict[str, str | int] | None = None
    plaintext: Text | None = None
    framing: Text | None = None


class IndexKind(Section):
    """`[indexes.NAME]`: how a blind index is computed."""

    kind: Name
    name: Name | None = None
    bits: int | None = None
    encoding: Name | None = None
    normalize: Name | None = None
    slow: bool | None = None
    passes: int | None = None
    memory_kib: int | None = None
    info: Text | None = None
    table: Name | None = None
    column: Name | None = None


def compile_index(
    sections: Mapping[str, IndexKind], used: IndexSection, path: Path, *, key_apart: bool
) -> BlindIndex:
    """The blind index of a field. Raises JobError, which names the one that is wrong."""
    if used.index not in sections:
        known = ", ".join(sections) or "none"
        raise JobError(
            f'job file {path}: there is no index "{used.index}"', hint=f"known: {known}; see docs/job-file.md"
        )
    try:
        return parse_index(sections[used.index].model_dump(), used.column, key_apart=key_apart)
    except LayoutError as exc:
        raise JobError(f"job file {path}: indexes.{used.index}: {exc}", hint="see docs/layouts.md") from None


def compile_layouts(sections: Mapping[str, LayoutSection], path: Path) -> dict[str, Layout]:
    """The built-in layouts and a job's own, by name. Raises JobError, which names the one that is wrong."""
    layouts = dict(builtin_layouts())
    for name, section in sections.items():
        where = f"job file {path}: layouts.{name}"
        declared: dict[str, Any] = {}
        if section.like is not None:
            known = builtin_descriptors()
            if section.like not in known:
                raise JobError(
                    f'{where}.like: there is no built-in layout "{section.like}"',
                    hint=f"built-in layouts: {', '.join(sorted(known))}",
                )
            declared.update(known[section.like])
        declared.update(section.model_dump(exclude={"like"}, exclude_none=True))
        for key in ("encoding", "cipher"):
            if key not in declared:
                raise JobError(f"{where}.{key}: is missing", hint="see docs/layouts.md")
        try:
            layouts[name] = compiled(name, declared)
        except LayoutError as exc:
            raise JobError(f"{where}: {exc}", hint="see docs/layouts.md") from None
    return layouts
