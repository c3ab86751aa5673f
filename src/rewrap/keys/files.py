"""Keys in files that somebody mounts: External Secrets, a CSI driver.

Kubernetes swaps what is mounted by one rename of a link, so that a file is old or new and never half of both;
two files read one after the other need not be of one moment. So all are read again until twice the same is
seen. Whether a key is still what it was is asked by its bytes: a new file with the same ones is no news.
"""

from __future__ import annotations

import hmac
import json
import os
import re
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import anyio

from rewrap.errors import KeyAccessError
from rewrap.job import Job
from rewrap.keys.keyring import Doubt, Key, Keyring
from rewrap.keys.listed import Listed, Permission
from rewrap.keys.local import key_from, require_fit
from rewrap.keysections import VERSION, FileLabel, KeyFiles
from rewrap.pace.gate import Gate

MOST_BYTES = 1 << 20
"""Bytes of a file of keys: Kubernetes takes no more in a secret."""

LOOKS = 20
"""Looks at files that change all the while, before that counts as the fault it is."""

WIDE = stat.S_IWGRP | stat.S_IRWXO
"""Permissions that a file of keys needs for nobody: reading it is its owner's and its group's."""

CURRENT = ("current", "awscurrent")
"""Labels of the version that writers are meant to use, in small letters."""


@dataclass(frozen=True, slots=True)
class Found:
    """What is mounted for one version: its text, or what is wrong with it. `mode` is its file's.

    `named` is whether it is known at all which version it is.
    """

    where: str
    stored: bytes | None = field(default=None, repr=False)
    wrong: str = ""
    mode: int = 0
    labels: tuple[str, ...] = ()
    named: bool = True


async def open_keys(
    job: Job, required: Sequence[str], wanted: Sequence[str] | None, environ: Mapping[str, str]
) -> Keyring:
    """The versions required, and of those wanted what is mounted and holds a key; None wants every one."""
    mount = Mount(job, environ)
    found = await mount.found()
    named = [version for version, one in found.items() if one.named]
    keys: list[Key] = []
    for version in dict.fromkeys((*required, *(named if wanted is None else wanted))):
        try:
            keys.append(mount.key(version, found))
        except KeyAccessError:
            if version in required:
                raise
    keeper = MountKeeper(mount, keys)
    return Keyring(keys, known=named, keeper=keeper, doubts=_doubts(found, [key.version for key in keys]))


async def versions_of(job: Job, names: Sequence[str], environ: Mapping[str, str]) -> dict[str, str]:
    """The versions that those of these names that are labels point to now, by label."""
    if not _section(job).labels:
        return {}
    found = await Mount(job, environ).found()
    labelled = {label: version for version, one in found.items() for label in one.labels}
    return {name: labelled[name] for name in names if name in labelled and name not in found}


async def list_keys(job: Job, environ: Mapping[str, str]) -> list[Listed]:
    """Every version that is mounted. Raises KeyAccessError where the folder or the file cannot be read."""
    mount = Mount(job, environ)
    found = await mount.found()
    return [_listed(mount, version, found) for version in found]


def _listed(mount: Mount, version: str, found: Mapping[str, Found]) -> Listed:
    one = found[version]
    labels = {label.lower() for label in one.labels}
    named = any(label.lower() in CURRENT for each in found.values() for label in each.labels)
    key, state = None, one.wrong
    try:
        key, state = mount.key(version, found) if one.named else None, one.wrong or f"in {one.where}"
    except KeyAccessError as exc:
        state = exc.message.removeprefix(f'key version "{version}" ')
    return Listed(
        version,
        current=bool(labels & set(CURRENT)) if named else None,
        labels=one.labels,
        usable=key is not None,
        state=state,
        fingerprint=None if key is None else key.fingerprint,
        fingerprint_of="" if key is None else key.fingerprint_of,
        permissions=(Permission("open", "read", not one.wrong.startswith(_MISSING)),),
    )


def _doubts(found: Mapping[str, Found], versions: Sequence[str]) -> dict[str, list[Doubt]]:
    return {
        version: [
            Doubt(
                "warning",
                "key-mode",
                f"{found[version].where} has the mode {found[version].mode:04o}: others than its owner and "
                "its group may read it, or change it",
                "mount it with defaultMode: 0440, or chmod 440",
            )
        ]
        for version in versions
        if version in found and found[version].mode & WIDE
    }


def _section(job: Job) -> KeyFiles:
    assert job.keys.files is not None
    return job.keys.files


class Mount:
    """The files that a job's `[keys.files]` names."""

    def __init__(self, job: Job, environ: Mapping[str, str]) -> None:
        self._job, self._environ = job, environ
        self._section = _section(job)
        look: Callable[[], dict[str, Found]] = self._in_one
        if self._section.labels:
            look = self._by_label
        elif VERSION in self._section.path:
            look = self._by_name
        self._look = look

    async def found(self) -> dict[str, Found]:
        """What there is of each version, all of one moment. Raises KeyAccessError where nobody can tell."""
        return await anyio.to_thread.run_sync(self._settled, abandon_on_cancel=True)

    def key(self, version: str, found: Mapping[str, Found]) -> Key:
        """The key of a version. Raises KeyAccessError, which names its place and never what is there."""
        one = found.get(version)
        if one is None or not one.named:
            raise self._missing(version, found)
        if one.stored is None:
            raise KeyAccessError(
                f'key version "{version}" {one.wrong}',
                hint="check the mount and its permissions; a relative path starts at the job file",
            )
        key = key_from(
            version, one.stored, self._section.encoding, self._job.key_lengths,
            where=one.where, setting="keys.files.encoding",
        )  # fmt: skip
        require_fit(key, self._job, "keys.files.encoding")
        return key

    def _missing(self, version: str, found: Mapping[str, Found]) -> KeyAccessError:
        if VERSION in self._section.path:
            if not _is_name(version):
                return KeyAccessError(
                    f'"{version}" is no version of a key in a file',
                    hint="it is a part of the file's name: no slash, and no dot at its beginning",
                )
            where = f"there is no file {self._section.path.replace(VERSION, version)}"
        elif self._section.labels:
            where = f"none of {', '.join(self._section.labels)} is of that version"
        else:
            where = f"it is not in file {self._section.path}"
        named = [version for version, one in found.items() if one.named]
        return KeyAccessError(
            f'key version "{version}" is missing: {where}',
            hint=f"versions that are mounted are {', '.join(named) or 'none'}",
        )

    def _settled(self) -> dict[str, Found]:
        before = self._look()
        for _ in range(LOOKS):
            now = self._look()
            if now == before:
                return now
            before = now
        raise KeyAccessError(
            f"{self._shown} changes while it is read, again and again",
            hint="whoever writes there replaces files by a rename, and not all the time",
            code="key-away",
        )

    @property
    def _shown(self) -> str:
        return self._section.path or "what keys.files.labels names"

    def _path(self, text: str) -> Path:
        return self._job.folder / os.path.expanduser(text)

    # the three ways in which keys are mounted; each is one look

    def _by_name(self) -> dict[str, Found]:
        parts = Path(self._section.path).parts
        at = next(number for number, part in enumerate(parts) if VERSION in part)
        folder = Path(*parts[:at])
        head, _, tail = parts[at].partition(VERSION)
        pattern = re.compile(f"{re.escape(head)}(.+){re.escape(tail)}", re.DOTALL)
        try:
            names = os.listdir(self._path(str(folder)))
        except OSError as exc:
            raise KeyAccessError(
                f"keys are missing: folder {folder}: {exc.strerror}",
                hint="check that it is mounted, and its permissions; a relative path starts at the job file",
            ) from None
        found: dict[str, Found] = {}
        for name in sorted(names, key=_numbered):
            named = None if name.startswith("..") else pattern.fullmatch(name)
            if named is None or not _is_name(named[1]):
                continue
            one = self._read(str(Path(folder, name, *parts[at + 1 :])))
            if not one.wrong.endswith(_NO_FILE):
                found[named[1]] = self._member(one)
        return found

    def _in_one(self) -> dict[str, Found]:
        whole = self._read(self._section.path)
        if whole.stored is None:
            raise KeyAccessError(
                f"keys are missing: {whole.wrong}",
                hint="check that it is mounted, and its permissions; a relative path starts at the job file",
            )
        keys = _object(whole.stored)
        if keys is None:
            raise KeyAccessError(
                f"keys are missing: {whole.where} is no JSON object of keys by version",
                hint='write {"v1": "…", "v2": "…"}, or keys.files.path with {version} in it',
            )
        found, inner = {}, self._section.field
        for version in sorted(filter(_is_text, keys), key=_numbered):
            # with a field, each version has an object of its own
            holder, name = (keys, version) if inner is None else (keys[version], inner)
            found[version] = self._of_object(holder, name, whole)
        return found

    def _by_label(self) -> dict[str, Found]:
        found: dict[str, Found] = {}
        for label, places in self._section.labels.items():
            version, one = self._labelled(label, places)
            other = found.get(version)
            labels = (*(other.labels if other is not None else ()), label)
            if other is not None and other.stored != one.stored:
                one = Found(one.where, wrong=f"is two keys: {' and '.join(labels)} differ")
            found[version] = replace(one, labels=labels)
        return found

    def _labelled(self, label: str, places: FileLabel) -> tuple[str, Found]:
        """A label's version, and its key; the label in brackets where nothing names the version."""
        if places.version.startswith("env:"):
            where = f"environment variable {places.version[4:]}"
            text, wrong = self._environ.get(places.version[4:]), f"{_MISSING}{where} is not set"
        else:
            named = self._read(places.version)
            where, wrong = named.where, named.wrong
            text = None if named.stored is None else named.stored.decode("utf-8", "replace")
        version = (text or "").strip()
        if not _is_text(version):
            return f"({label})", Found(where, wrong=wrong or f"{_MISSING}{where} names none", named=False)
        return version, self._member(self._read(places.key))

    def _member(self, one: Found) -> Found:
        """The key that the text of a file holds."""
        if self._section.field is None or one.stored is None:
            return one
        return self._of_object(_object(one.stored), self._section.field, one)

    def _of_object(self, holder: Any, name: str, one: Found) -> Found:
        text = holder.get(name) if isinstance(holder, dict) else None
        if isinstance(text, str):
            return Found(one.where, text.encode("utf-8", "surrogatepass"), "", one.mode)
        what = f'a JSON object with a text "{name}"' if self._section.field else "a text in JSON"
        return Found(one.where, wrong=f"in {one.where} is not {what}", mode=one.mode)

    def _read(self, name: str) -> Found:
        where = f"file {name}"
        try:
            # what is no file, a pipe for one, would be waited for
            opened = os.open(self._path(name), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            with os.fdopen(opened, "rb") as file:
                status = os.fstat(opened)
                if not stat.S_ISREG(status.st_mode):
                    return Found(where, wrong=f"{_MISSING}{where} {_NO_FILE}")
                stored = file.read(MOST_BYTES + 1)
        except (NotADirectoryError, ValueError):
            return Found(where, wrong=f"{_MISSING}{where} {_NO_FILE}")
        except OSError as exc:
            return Found(where, wrong=f"{_MISSING}{where}: {exc.strerror}")
        if len(stored) > MOST_BYTES:
            return Found(where, wrong=f"in {where} is larger than {MOST_BYTES:,} bytes")
        return Found(where, stored, "", stat.S_IMODE(status.st_mode))


_MISSING, _NO_FILE = "is missing: ", "is no file"

_LONGEST = 200
"""Characters of a version's name, as everywhere in a job."""


class MountKeeper:
    """Watches the keys of a run where they are mounted."""

    def __init__(self, mount: Mount, keys: Sequence[Key]) -> None:
        self._mount = mount
        self._commitments = {key.version: key.commitment for key in keys}
        self.gate = Gate("the files of keys", "looks", 1)

    async def still_there(self) -> None:
        """Raises KeyAccessError when a key in use is gone, or another."""
        found = await self._mount.found()
        for version, commitment in self._commitments.items():
            key = self._mount.key(version, found)
            if not hmac.compare_digest(key.commitment, commitment):
                raise KeyAccessError(
                    f'key version "{version}" in {found[version].where} is not the key that it was',
                    hint="one name must not stand for two keys; restore the first one",
                    code="key-changed",
                )

    async def close(self) -> None:
        """There is nothing to end."""


def _is_text(version: str) -> bool:
    """Whether a version may be shown, and kept."""
    return bool(version) and version.isprintable() and len(version) <= _LONGEST


def _is_name(version: str) -> bool:
    """Whether a version may be a part of a file's name: it leads nowhere else, and is nothing hidden."""
    return _is_text(version) and not version.startswith(".") and "/" not in version


def _numbered(name: str) -> list[tuple[int, str]]:
    """Sorts v10 behind v9."""
    return [(int(digits or -1), text) for text, digits in re.findall(r"([^0-9]*)([0-9]{0,18})", name)]


def _object(stored: bytes) -> dict[str, Any] | None:
    """A JSON object, each of its names once; None for anything else."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError
        return found

    try:
        found = json.loads(stored, object_pairs_hook=once)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
