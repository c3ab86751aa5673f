"""Job files: TOML in, a validated `Job` out.

Errors name the TOML path and the fix. Key fields take only `env:` and `file:` references, so that no key is
ever written into a job; `${NAME}` stands for an environment variable in every other string.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    Field,
    PrivateAttr,
    StringConstraints,
    ValidationError,
)

from rewrap.audit.section import AuditSection
from rewrap.crypto.layout import Layout, LayoutError
from rewrap.envelopes import DekSection, PlacedSection, refused_deks, refused_envelope, with_wrapped
from rewrap.errors import JobError, UsageError
from rewrap.formats import (
    IndexKind,
    LayoutSection,
    compile_index,
    compile_layouts,
)
from rewrap.forms import Forms, fits, refused_change
from rewrap.joberrors import job_error
from rewrap.keysections import Keys, refused_cipher
from rewrap.limits import Limits
from rewrap.pace.section import Pace, refused_shared
from rewrap.probes.section import ProbeSection
from rewrap.storage import CosmosStore, PostgresStore, StoreSection
from rewrap.targets import FieldSection, Section, TargetSection, elements_apart, refused_places
from rewrap.untouched import UntouchedSection, Witnessed, refused_untouched, witnessed

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")
"""`${NAME}`, or `${NAME:-text}` with what stands for it where it is not set."""


class Job(Section):
    """What to rotate: stores, keys, layouts, targets. Load one with `Job.load(path)`.

    `digest` identifies the job in a ledger: it covers targets, layouts, key versions and stores' kinds, and
    neither pace nor limits, so that changing the batch size does not orphan a ledger.
    """

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
    stores: Annotated[dict[str, StoreSection], Field(min_length=1)]
    keys: Keys
    layouts: dict[str, LayoutSection] = Field(default_factory=dict)
    indexes: dict[str, IndexKind] = Field(default_factory=dict)
    targets: Annotated[list[TargetSection], Field(min_length=1)]
    untouched: list[UntouchedSection] = Field(default_factory=list)
    deks: dict[str, DekSection] = Field(default_factory=dict)
    pace: Pace = Pace()
    limits: Limits = Limits()
    probe: list[ProbeSection] = Field(default_factory=list)
    audit: AuditSection | None = None

    _path: Path = PrivateAttr(default=Path("rewrap.toml"))
    _layouts: dict[str, Layout] = PrivateAttr(default_factory=dict)
    _found: tuple[str, ...] = PrivateAttr(default=())

    @classmethod
    def load(cls, path: str | Path, environ: Mapping[str, str] = os.environ) -> Job:
        """The job in a file. Raises JobError, which names the file, the TOML path and the fix."""
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as exc:
            raise JobError(
                f"job file {path}: {exc.strerror}",
                hint="name the job file: rewrap COMMAND JOB.toml (the default is rewrap.toml)",
            ) from None
        except UnicodeDecodeError:
            raise JobError(
                f"job file {path} is not UTF-8 text", hint="name the job file, not a ledger or a key file"
            ) from None
        return cls.parse(text, path=path, environ=environ)

    @classmethod
    def parse(
        cls, text: str, *, path: str | Path = "rewrap.toml", environ: Mapping[str, str] = os.environ
    ) -> Job:
        """The job in a string; relative `file:` references start at the folder of `path`."""
        path = Path(path)
        try:
            declared = tomllib.loads(text)
        except tomllib.TOMLDecodeError as exc:
            raise JobError(f"job file {path}: {exc}", hint="this is not valid TOML") from None
        _refuse_written_passwords(declared, path)
        try:
            job = cls.model_validate(_substitute(declared, environ, path))
        except ValidationError as exc:
            raise job_error(exc, path, cls) from None
        job._path = path
        job._check_keys()
        job._layouts = compile_layouts(job.layouts, path)
        job._check_targets()
        job._check_deks()
        return job

    def with_pace(self, **changes: float | None) -> Job:
        """The same job at another pace, as far as it is given; its digest stays the same."""
        given = {name: value for name, value in changes.items() if value is not None}
        return self.model_copy(update={"pace": self.pace.given_over(given)})

    def with_versions(self, versions: Iterable[str]) -> Job:
        """The same job, which knows key versions that its file does not name; its digest stays the same."""
        job = self.model_copy()
        job._found = tuple(dict.fromkeys((*self._found, *versions)))
        return job

    @property
    def versions(self) -> tuple[str, ...]:
        """The key versions that are known: those of the file, and what a vault or a command line named."""
        named = () if self.keys.provided else tuple(self.keys.versions)
        return tuple(dict.fromkeys((*named, *self._found)))

    def shards_at_once(self, store: str) -> int:
        """Shards that may work side by side in a store; in Postgres each takes two connections."""
        section = self.stores[store]
        if isinstance(section, CosmosStore):
            return self.pace.shards
        return max(1, min(self.pace.shards, (section.max_connections - 4) // 2))

    def of_store(self, name: str) -> Job:
        """The same job, restricted to one of its stores and the targets there: what an adapter works on."""
        targets = [target for target in self.targets if self.store_of(target) == name]
        untouched = [one for one in self.untouched if one.store in (None, name)]
        mine = {"stores": {name: self.stores[name]}, "targets": targets, "untouched": untouched}
        return self.model_copy(update=mine)

    def store_of(self, target: TargetSection | PlacedSection) -> str:
        """The name of the store that a target is in, or something else."""
        return target.store if target.store is not None else next(iter(self.stores))

    @property
    def path(self) -> Path:
        return self._path

    @property
    def folder(self) -> Path:
        return self._path.parent

    @property
    def postgres(self) -> PostgresStore:
        """The one store of a job that has only one, in Postgres (see `of_store`)."""
        (section,) = self.stores.values()
        assert isinstance(section, PostgresStore)
        return section

    @property
    def cosmos(self) -> CosmosStore:
        """The one store of a job that has only one, in Cosmos (see `of_store`)."""
        (section,) = self.stores.values()
        assert isinstance(section, CosmosStore)
        return section

    def layout(self, name: str) -> Layout:
        return self._layouts[name]

    def old_layout(self, entry: FieldSection) -> Layout:
        """How a field's values are stored before a rotation, with what is apart joined to them."""
        return self._joined(entry, entry.layout)

    def new_layout(self, entry: FieldSection) -> Layout:
        """How a field's values are stored after a rotation: as before it, or in another layout."""
        return self._joined(entry, entry.to_layout or entry.layout)

    def forms(self, entry: FieldSection, to_version: str) -> Forms:
        """The ways in which a field's values may be stored on their way to a version."""
        versions = dict.fromkeys((to_version, *self.versions))
        return Forms(self.old_layout(entry), self.new_layout(entry), tuple(versions))

    def _joined(self, entry: FieldSection, name: str) -> Layout:
        layout = self._layouts[name]
        indexes = tuple(
            compile_index(self.indexes, used, self._path, key_apart=self._index_keys_apart)
            for used in entry.indexes
        )
        return layout.joined(entry.apart, entry.version.form if entry.version else None, indexes)

    @property
    def _index_keys_apart(self) -> bool:
        """Whether blind indexes have secrets of their own."""
        return not self.keys.provided and any(one.index is not None for one in self.keys.versions.values())

    @property
    def digest(self) -> str:
        """SHA-256 over what a ledger's cursors depend on, in hex."""
        identity = {
            "name": self.name,
            "keys": self.keys.identity,
            "layouts": {n: self._layouts[n].identity for n in sorted(self._counted_layouts)},
            "targets": [target.identity for target in self.targets],
            "stores": {n: s.kind for n, s in sorted(self.stores.items())},
        }
        if self.deks:
            identity["deks"] = {n: one.identity for n, one in sorted(self.deks.items())}
        if self.indexes:
            identity["indexes"] = {n: one.model_dump(exclude_none=True) for n, one in self.indexes.items()}
        if self.untouched:
            identity["untouched"] = [one.model_dump(exclude_defaults=True) for one in self.untouched]
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()

    @property
    def _counted_layouts(self) -> set[str]:
        """The layouts that make up a job: its own, those in use, and the first that was ever built in."""
        used = {name for target in self.targets for entry in target.fields for name in entry.layouts}
        used |= {one.wrapped.layout for one in self.deks.values() if one.wrapped is not None}
        return {"libsodium-token", *self.layouts, *used}

    @property
    def witnessed(self) -> tuple[Witnessed, ...]:
        """What is fingerprinted before a run, and again by a deep verification."""
        return witnessed(self.targets, self.untouched, self.stores)

    @property
    def quiesced(self) -> list[str]:
        """The tables whose readers know one key only."""
        return [target.table for target in self.targets if target.quiesced]

    @property
    def keyed(self) -> list[FieldSection]:
        """The fields that the job's keys themselves seal: those of targets, or their DEKs' in records."""
        own = [entry for target in self.targets if target.dek is None for entry in target.fields]
        return [*own, *(one.wrapped for one in self.deks.values() if one.wrapped is not None)]

    @property
    def key_lengths(self) -> frozenset[int]:
        """The key lengths, in bytes, that the layouts in use take; none when all derive their keys."""
        used = (self.layout(name) for entry in self.keyed for name in entry.layouts)
        return frozenset(length for layout in used for length in layout.key_lengths)

    @property
    def wraps_by_rsa(self) -> bool:
        """Whether some layout in use takes RSA keys."""
        used = (self.layout(name) for entry in self.keyed for name in entry.layouts)
        return any(layout.cipher.name.startswith("rsa-oaep") for layout in used)

    @property
    def rewraps_in_place(self) -> bool:
        """Whether no unwrapped key has to come here: whoever keeps the keys may rewrap in one go."""
        same = all(entry.to_layout in (None, entry.layout) for entry in self.keyed)
        wrapped = any(one.wrapped is not None for one in self.deks.values())
        return self.keys.wraps_remotely and same and not wrapped

    @property
    def remote_cipher(self) -> str:
        """The one cipher of a job whose keys are in a vault."""
        return self.layout(self.keyed[0].layout).cipher.name

    def resolve_from(self, spec: str, to_version: str) -> tuple[str, ...]:
        """The versions a `--from` names: one, or several with commas."""
        known = self.versions
        versions = split_versions(spec)
        for version in [*versions, to_version]:
            if version not in known:
                raise UsageError(
                    f'job "{self.name}" has no key version "{version}"',
                    hint=f"versions {self.keys.where} are {', '.join(known) or 'none'}"
                    if self.keys.provided
                    else f"versions in the job are {', '.join(known)}; "
                    f"add [keys.versions.{version}] to {self._path.name}",
                )
        if to_version in versions:
            raise UsageError(
                f'--from and --to both name "{to_version}"',
                hint="--from is the version that values leave, --to the one they get",
            )
        if not versions:
            raise UsageError("--from names no version", hint=f"versions are {', '.join(known)}")
        self._check_versions(versions, to_version)
        return tuple(dict.fromkeys(versions))

    def _check_versions(self, from_versions: list[str], to_version: str) -> None:
        if self.keys.provided:
            # the file named no versions to look at
            for at, target in enumerate(self.targets):
                for place, entry in enumerate(target.fields):
                    self._check_forms(at, target, place, entry)
        for entry in self.keyed:
            old, new = self.old_layout(entry), self.new_layout(entry)
            # a new layout may have been in use before: what is in it only, the old one need not name
            named = [(old, version) for version in from_versions if not fits(new, version)]
            for layout, version in (*named, (new, to_version)):
                try:
                    layout.prefix_of(version)
                except LayoutError as exc:
                    raise JobError(str(exc), hint=f"correct layouts.{layout.name}.version") from None

    def _check_keys(self) -> None:
        unsuited = self.keys.refused()
        if unsuited is not None:
            where, message, hint = unsuited
            raise self._error(f"keys.{where}", message, hint)
        if self.keys.remote and self.indexes:
            raise self._error(
                "indexes", "blind indexes are computed with a secret, and a key in a vault gives none",
                "rotate targets with blind indexes in a job with local keys",
            )  # fmt: skip
        lacking = [name for name, section in self.keys.versions.items() if section.index is None]
        if self._index_keys_apart and lacking:
            raise self._error(
                f"keys.versions.{lacking[0]}.index",
                "is missing",
                "blind indexes have a key for every version",
            )

    def _check_targets(self) -> None:
        seen: set[str] = set()
        for at, target in enumerate(self.targets):
            if target.table in seen:
                raise self._error(
                    f"targets[{at}].table", f'table "{target.table}" is named twice',
                    "list all its columns in one target",
                )  # fmt: skip
            seen.add(target.table)
            self._check_store(f"targets[{at}]", target)
            if target.in_container and target.key is not None:
                raise self._error(
                    f"targets[{at}].key",
                    "a document is found by its id and its partition key",
                    "leave key out",
                )
            reason = refused_places(target) or refused_envelope(target)
            if reason is not None:
                raise self._error(f"targets[{at}].fields", *reason)
            for place, entry in enumerate(target.fields):
                self._check_layouts(f"targets[{at}].fields[{place}]", target, entry)
                self._check_forms(at, target, place, entry)
        refused = refused_untouched(self.targets, self.untouched, self.stores) or refused_shared(
            self.pace.shared, self.stores, remote=self.keys.called
        )
        if refused is not None:
            raise self._error(*refused)

    def _check_store(self, where: str, placed: TargetSection | PlacedSection) -> None:
        stores = ", ".join(self.stores)
        if placed.store is None and len(self.stores) > 1:
            raise self._error(
                f"{where}.store", "is missing: the job has more than one store", f"stores are {stores}"
            )
        if placed.store is not None and placed.store not in self.stores:
            raise self._error(f"{where}.store", f'there is no store "{placed.store}"', f"stores are {stores}")
        section = self.stores[self.store_of(placed)]
        if isinstance(section, CosmosStore) != placed.in_container:
            right, wrong = ("container", "table") if not placed.in_container else ("table", "container")
            raise self._error(
                f"{where}.{wrong}", f'"{self.store_of(placed)}" is a store of kind {section.kind}',
                f'write {right} = "{placed.table}"',
            )  # fmt: skip

    def _check_deks(self) -> None:
        for name, section in self.deks.items():
            self._check_store(f"deks.{name}", section)
            for at, place in enumerate(section.referenced_by):
                self._check_store(f"deks.{name}.referenced_by[{at}]", place)
            whole = self.deks[name] = with_wrapped(section, self.targets, self.store_of)
            if whole.wrapped is not None:
                self._check_layouts(f"deks.{name}.wrapped", whole.target, whole.wrapped)
        reason = refused_deks(self.deks, self.targets, self.store_of, self.old_layout)
        if reason is not None:
            raise self._error(*reason)

    def _check_layouts(self, where: str, target: TargetSection, entry: FieldSection) -> None:
        written = {place.column for field in target.fields for _, place in field.places}
        for key, name in zip(("layout", "to_layout"), entry.layouts, strict=False):
            if name not in self._layouts:
                own = ", ".join(sorted(self.layouts)) or "none of its own"
                hint = f"known: {own}, and the built-in ones of docs/layouts.md"
                raise self._error(f"{where}.{key}", f'there is no layout "{name}"', hint)
            keyed = target.dek is None
            reason = refused_cipher(self.keys, self._layouts[name], self.remote_cipher) if keyed else None
            if reason is not None:
                raise self._error(f"{where}.{key}", *reason)
            try:
                aad = self._joined(entry, name).aad
            except LayoutError as exc:
                raise self._error(f"{where}.{key}", str(exc), "see docs/layouts.md") from None
            clash = set(aad.columns if aad else ()) & written
            if clash:
                raise self._error(
                    f"{where}.{key}",
                    f'its aad names the encrypted column "{min(clash)}"',
                    "associated data come from columns that this job does not rewrite",
                )

    def _check_forms(self, at: int, target: TargetSection, place: int, entry: FieldSection) -> None:
        """Refuses a change of layout in which a value could be taken for one of the other layout."""
        reason = elements_apart(entry)
        if reason is None and entry.many and self.forms(entry, "").probed:
            reason = "its values name no version, and elements are not probed", "give the layout a marker"
        if reason is not None:
            raise self._error(f"targets[{at}].fields[{place}].path", *reason)
        reason = refused_change(self.old_layout(entry), self.new_layout(entry), self.versions)
        if reason is not None:
            raise self._error(f"targets[{at}].fields[{place}].to_layout", *reason)
        layouts = (self.old_layout(entry), self.new_layout(entry))
        if target.unmarked == "reseal" and not all(layout.cipher.authenticated for layout in layouts):
            raise self._error(
                f"targets[{at}].unmarked",
                f'field "{entry.name}" is under a cipher without authentication: plaintext may seem to open',
                "leave unmarked out, and have the application seal such values anew",
            )
        if target.unmarked == "reseal" and self.forms(entry, "").probed:
            raise self._error(
                f"targets[{at}].unmarked",
                f'column "{entry.name}" is in a layout whose values name no version: none of them is marked',
                "leave unmarked out; what opens under an old key is resealed in any case",
            )

    def _error(self, where: str, message: str, hint: str) -> JobError:
        return JobError(f"job file {self._path}: {where}: {message}", hint=hint)


def split_versions(spec: str) -> list[str]:
    """The versions in a `--from`."""
    return [part.strip() for part in spec.split(",") if part.strip()]


def _substitute(value: Any, environ: Mapping[str, str], path: Path, where: str = "") -> Any:
    """`value` with every `${NAME}` in its strings replaced; key references are left as they are."""
    if isinstance(value, dict):
        return {
            key: _substitute(entry, environ, path, f"{where}.{key}" if where else key)
            for key, entry in value.items()
        }
    if isinstance(value, list):
        return [_substitute(entry, environ, path, f"{where}[{at}]") for at, entry in enumerate(value)]
    if (
        not isinstance(value, str)
        or where.endswith((".material", ".password"))
        or (where.startswith("keys.versions.") and where.endswith(".index"))
        or (where.startswith("stores.") and where.endswith(".key"))
    ):
        return value

    def replace(found: re.Match[str]) -> str:
        name, otherwise = found.groups()
        if name not in environ:
            if otherwise is not None:
                return str(otherwise)
            raise JobError(
                f"job file {path}: {where}: environment variable {name} is not set",
                hint=f"set {name}, or write the value in place of ${{{name}}}",
            )
        return environ[name]

    return _VARIABLE.sub(replace, value)


def _refuse_written_passwords(declared: Mapping[str, Any], path: Path) -> None:
    stores = declared.get("stores")
    for name, store in stores.items() if isinstance(stores, dict) else ():
        url = store.get("url") if isinstance(store, dict) else None
        if isinstance(url, str) and _holds_password(url):
            raise JobError(
                f"job file {path}: stores.{name}.url: a password is written in the URL",
                hint='write url = "${DATABASE_URL}", or leave the password out of the URL and set '
                'password = "env:PGPASSWORD" or password = "file:PATH"',
            )


def _holds_password(url: str) -> bool:
    """Whether a URL, as the file has it, holds a password that is not `${NAME}` as a whole."""
    authority = re.split(r"[/?#]", url.partition("://")[2], maxsplit=1)[0]
    written = [authority.rpartition("@")[0].partition(":")[2]]
    written += re.findall(r"[?&](?:ssl)?password=([^&#]*)", url, re.IGNORECASE)
    return any(text and not _VARIABLE.fullmatch(text) for text in written)
