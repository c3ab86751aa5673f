"""Where records are kept: a file that only grows, and a folder of those that a webhook has not taken yet."""

from __future__ import annotations

import fcntl
import os
import stat
from pathlib import Path

from rewrap.errors import UsageError


def waiting_folder(job_path: Path, job_name: str) -> Path:
    """Where the records of a job wait for its webhook: beside the job, named after it."""
    return job_path.parent / f"{job_name}.rewrap-audit-waiting"


def require_appendable(path: Path, what: str = "audit.file") -> None:
    """Raises UsageError where no record could be appended. Leaves the file there, empty if it is new."""
    try:
        os.close(opened(path))
    except OSError as exc:
        raise UsageError(
            f"audit file {path} cannot be written: {exc.strerror}",
            hint=f"correct {what}, or make its folder; nothing was begun",
        ) from None


def require_folder(folder: Path) -> None:
    """Raises UsageError where records could not wait."""
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        folder.chmod(0o700)
    except OSError as exc:
        raise UsageError(
            f"audit folder {folder} cannot be made: {exc.strerror}",
            hint="records wait beside the job until the webhook has taken them; make that folder writable",
        ) from None


def append(path: Path, line: str) -> None:
    """Adds a line, on disk when this returns; OSError when it is not.

    One that a crash cut short keeps a line of its own.
    """
    handle = opened(path)
    try:
        # several jobs may share a file
        fcntl.flock(handle, fcntl.LOCK_EX)
        size = os.fstat(handle).st_size
        cut = size > 0 and os.pread(handle, 1, size - 1) != b"\n"
        left = b"\n" * cut + line.encode() + b"\n"
        while left:
            left = left[os.write(handle, left) :]
        os.fsync(handle)
    finally:
        os.close(handle)


def put(folder: Path, name: str, body: bytes) -> Path:
    """Keeps a record until it is taken away, on disk when this returns; OSError when it is not."""
    place = folder / name
    making = folder / f"{name}.part"
    handle = os.open(making, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(handle, "wb", closefd=False) as out:
            out.write(body)
        os.fsync(handle)
    finally:
        os.close(handle)
    making.rename(place)
    _sync_folder(folder)
    return place


def waiting(folder: Path) -> list[Path]:
    """The records that wait, oldest first."""
    return sorted(folder.glob("*.json"))


def opened(path: Path) -> int:
    """A file to append to, made if it is new; OSError where nothing would be kept."""
    fresh = not path.exists()
    handle = os.open(path, os.O_CREAT | os.O_RDWR | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        # a pipe or a device keeps nothing
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(0, "it is not a file")
        if fresh:
            os.fchmod(handle, 0o600)
            _sync_folder(path.absolute().parent)
    except BaseException:
        os.close(handle)
        raise
    return handle


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
