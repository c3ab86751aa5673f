"""The operating system account that a demo server runs as."""

import os
import re
import stat
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

from rewrap.demo.errors import DemoError


@dataclass(frozen=True, slots=True)
class Account:
    """Who runs the programs of a server: this process's own user, or `nobody` for root.

    Postgres refuses to run as root. Both fields are None for an ordinary user.
    """

    uid: int | None = None
    gid: int | None = None

    @classmethod
    def of_server(cls) -> Self:
        """The account for a server started by this process."""
        if os.geteuid() != 0:
            return cls()
        import pwd

        try:
            nobody = pwd.getpwnam("nobody")
        except KeyError:
            return cls(65534, 65534)
        return cls(nobody.pw_uid, nobody.pw_gid)

    def make_directory(self, prefix: str) -> Path:
        """A fresh directory, mode 0700, under TMPDIR or, out of reach, /var/tmp."""
        candidates = dict.fromkeys([tempfile.gettempdir(), "/var/tmp", "/tmp"])  # noqa: S108
        for parent in (Path(name).resolve() for name in candidates):
            if not parent.is_dir() or not os.access(parent, os.W_OK):
                continue
            if all(self._passes(step) for step in [parent, *parent.parents]):
                directory = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
                self.own(directory)
                return directory
        raise DemoError(
            "no temporary directory that the server's account can reach",
            hint="set TMPDIR to a directory that every user may enter",
        )

    def own(self, path: Path) -> None:
        """Gives the account a path, and everything below a directory."""
        if self.uid is None or self.gid is None:
            return
        os.chown(path, self.uid, self.gid, follow_symlinks=False)
        for folder, folders, files in os.walk(path):
            for name in [*folders, *files]:
                os.chown(os.path.join(folder, name), self.uid, self.gid, follow_symlinks=False)

    def start(
        self,
        command: Sequence[str],
        directory: Path,
        *,
        stdin: int = subprocess.DEVNULL,
        output: int | IO[bytes] = subprocess.DEVNULL,
    ) -> subprocess.Popen[bytes]:
        """A program that runs on by itself, deaf to the terminal's Ctrl-C."""
        return subprocess.Popen(
            command,
            stdin=stdin,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=directory,
            env=_environment(),
            user=self.uid,
            group=self.gid,
            extra_groups=None if self.uid is None else [],
            start_new_session=True,
            umask=0o077,
        )

    def run(
        self,
        command: Sequence[str],
        directory: Path,
        *,
        text: str = "",
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """A program that ended, given `text` on its stdin; OSError when it cannot be started."""
        return subprocess.run(
            command,
            input=text,
            capture_output=True,
            text=True,
            check=False,
            cwd=directory,
            env=_environment() | dict(environment or {}),
            user=self.uid,
            group=self.gid,
            extra_groups=None if self.uid is None else [],
            umask=0o077,
        )

    def can_run(self, programs: Path, directory: Path) -> bool:
        """Whether the account can run a Postgres from `programs` and read the files beside it."""
        # initdb reads postgres.bki, which may be closed even where the programs are not.
        script = (
            '"$1/postgres" --version && "$1/psql" --version && '
            'test -r "$(find "$1/../share" -name postgres.bki)"'
        )
        return self.run(["/bin/sh", "-c", script, "sh", str(programs)], directory).returncode == 0

    def _passes(self, directory: Path) -> bool:
        """Whether the account may walk through a directory, by its mode bits."""
        if self.uid is None:
            return os.access(directory, os.X_OK)
        status = directory.stat()
        if status.st_uid == self.uid:
            return bool(status.st_mode & stat.S_IXUSR)
        if status.st_gid == self.gid:
            return bool(status.st_mode & stat.S_IXGRP)
        return bool(status.st_mode & stat.S_IXOTH)


def _environment() -> dict[str, str]:
    """This process's environment without what would steer libpq, and with English messages."""
    kept = {name: value for name, value in os.environ.items() if not re.match("PG|LC_|LANG", name)}
    return kept | {"LC_ALL": "C"}
