"""One PostgreSQL server on loopback: made, started, cloned, promoted, stopped, removed.

The sandbox runs its writer and its standby with this, the tests theirs. A server listens on 127.0.0.1 with SCRAM
passwords, and on a unix socket in a directory only its owner may enter; there its superuser needs no password.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from rdsrepl.errors import Error, TimedOut
from rdsrepl.sandbox.servers import processes
from rdsrepl.sandbox.servers.binaries import Binaries
from rdsrepl.sandbox.servers.processes import ProcessIdentity
from rdsrepl.sandbox.servers.socket_dirs import PREFIX, is_socket_dir, make_socket_dir, new_socket_dir

if TYPE_CHECKING:
    from rdsrepl.config import Target
    from rdsrepl.postgres.connection import Connection

HOST: Final = "127.0.0.1"
# The readers' address on the writer's port: on RDS both endpoints of a cluster have one port. Linux only.
READER_HOST: Final = "127.0.0.2"
SUPERUSER: Final = "rdsadmin"
# Below the range from which systems take the ports of outgoing connections, so that none of those steals a server's
# port while it restarts.
PORTS: Final = range(20000, 32000)

StopMode = Literal["smart", "fast", "immediate"]

_SIGNALS: Final[Mapping[StopMode, signal.Signals]] = {
    "smart": signal.SIGTERM,
    "fast": signal.SIGINT,
    "immediate": signal.SIGQUIT,
}
_CONFIG_FILE: Final = "rdsrepl.conf"
_PGDATA: Final = "--pgdata={}"
# Where the control file says how the server is, the same in every version, and what it says of a primary.
_CONTROL_STATE: Final = 16
_IN_PRODUCTION: Final = 6
_SETTINGS: Final[Mapping[str, str]] = {
    "listen_addresses": HOST,
    "unix_socket_permissions": "0700",
    "wal_level": "logical",
    "max_wal_senders": "35",
    "max_replication_slots": "20",
    "hot_standby": "on",
    "hot_standby_feedback": "on",
    "password_encryption": "scram-sha-256",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "lc_messages": "C",
    "shared_buffers": "32MB",
    "jit": "off",
    # Other kinds leave a file behind, outside the data directory, when a server is killed.
    "dynamic_shared_memory_type": "mmap",
    "log_line_prefix": "%m [%p] %q%u@%d %a ",
}
_WITHOUT_FSYNC: Final[Mapping[str, str]] = {"fsync": "off", "full_page_writes": "off"}
# What PG* variables that are meant for another server would change.
_FIXED_KEYWORDS: Final[Mapping[str, str]] = {
    "hostaddr": "",
    "options": "",
    "sslmode": "disable",
    "gssencmode": "disable",
    "target_session_attrs": "any",
}
# What the owner of a database cannot change for a session that says it itself (ALTER DATABASE … SET).
ADMIN_OPTIONS: Final = "-c search_path= -c role=none -c default_transaction_read_only=off -c statement_timeout=0"
_BIND_ATTEMPTS: Final = 8
_BIND_FAILURE: Final = re.compile(r"could not bind|could not create any TCP/IP sockets|Address already in use")


@dataclass(slots=True)
class PostgresServer:
    """One PostgreSQL server: a data directory, and how to run it.

    The methods work from any process: which one runs is read from the data directory.

    Attributes:
        data_dir: made by ``initdb`` or ``clone``.
        binaries: the programs.
        port: on 127.0.0.1; 0 is a free one, chosen at the first start and kept.
        socket_dir: for the unix socket; None is a new short directory under the temporary one, removed by ``remove``.
        superuser: the role that ``initdb`` makes.
        settings: parameters on top of our own; written at each start.
        durable: whether files are fsynced. They need not be, to survive a killed server; only a crash of the machine
            costs what was not.
    """

    data_dir: Path
    binaries: Binaries
    port: int = 0
    socket_dir: Path | None = None
    superuser: str = SUPERUSER
    settings: dict[str, str] = field(default_factory=dict)
    durable: bool = False
    # What the servers of one sandbox hold open while they are being made: its lock.
    keep_open: tuple[int, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        self.data_dir = self.data_dir.absolute()

    @property
    def log_file(self) -> Path:
        """The server's log, beside its data directory."""
        return self.data_dir.with_name(self.data_dir.name + ".log")

    @property
    def process_file(self) -> Path:
        """Which process works on the data directory, beside it: the postmaster, or the program that makes it."""
        return self.data_dir.with_name(self.data_dir.name + ".process")

    @property
    def version(self) -> int:
        """The major version: 13 … 18."""
        return self.binaries.major

    @property
    def pid(self) -> int | None:
        """The postmaster's process id; None when it does not run."""
        postmaster = self._postmaster()
        return None if postmaster is None else postmaster.pid

    def is_running(self) -> bool:
        """Say whether the server's postmaster lives."""
        return self.pid is not None

    def exists(self) -> bool:
        """Say whether there is a complete data directory."""
        return (self.data_dir / _CONFIG_FILE).exists()

    def keywords(self, *, user: str | None = None, dbname: str = "postgres") -> dict[str, str]:
        """Return libpq's keywords for it: the superuser through the unix socket, any other role through TCP."""
        host = str(self._ensure_socket_dir()) if user in (None, self.superuser) else HOST
        return {"host": host, "port": str(self.port), "user": user or self.superuser, "dbname": dbname}

    def dsn(self, *, user: str | None = None, dbname: str = "postgres") -> str:
        """Return ``keywords`` as a connection string."""
        from psycopg.conninfo import make_conninfo

        return make_conninfo("", **self.keywords(user=user, dbname=dbname))

    def target(self, *, user: str | None = None, dbname: str = "postgres") -> Target:
        """Return ``keywords`` as a target that nothing in the environment turns elsewhere."""
        from rdsrepl.config import Target

        keywords = {**_FIXED_KEYWORDS, **self.keywords(user=user, dbname=dbname)}
        if keywords["user"] == self.superuser:
            keywords |= require_peer(self.binaries.launcher)
        return Target(f"server {self.data_dir.name}", keywords=keywords)

    def connect(self, *, user: str | None = None, dbname: str = "postgres", replication: bool = False) -> Connection:
        """Open an autocommit connection that the caller closes; see ``rdsrepl.postgres.connection.connect``."""
        from rdsrepl.postgres import connection

        return connection.connect(self.target(user=user, dbname=dbname), replication=replication)

    def administer(self) -> Connection:
        """Open the superuser's session for the sandbox's own statements; the caller closes it.

        The database belongs to the master user, who may set its parameters and make operators in it: the session has
        none of either.
        """
        from rdsrepl.postgres import connection

        target = self.target()
        return connection.connect(replace(target, keywords={**target.keywords, "options": ADMIN_OPTIONS}))

    def initdb(self) -> None:
        """Make the data directory: UTF8, SCRAM, the superuser without a password.

        Raises:
            Error: ``initdb`` failed; nothing is left.
        """
        self._make_data_dir()
        words = [
            self.binaries.program("initdb"),
            _PGDATA,
            f"--username={self.superuser}",
            "--encoding=UTF8",
            "--auth=trust",
            "--no-sync",
        ]
        try:
            try:
                self._run([*words, "--locale=C.UTF-8"])
            except Error:
                # Not every system has that locale; UTF8 it stays, letters outside ASCII just sort by code point.
                self._make_data_dir()
                self._run([*words, "--locale=C"])
            self._write_initial_files()
        except BaseException:
            shutil.rmtree(self.data_dir, ignore_errors=True)
            raise

    def clone(self, data_dir: Path, *, slot: str, settings: Mapping[str, str] | None = None) -> PostgresServer:
        """Make a standby of this running server, not yet started, which streams through the physical slot SLOT.

        From version 17 on it keeps the failover slots in step.

        Raises:
            Error: the copy failed; nothing is left.
        """
        standby = PostgresServer(
            data_dir,
            self.binaries,
            socket_dir=None if self.socket_dir is None else self._ensure_socket_dir(),
            superuser=self.superuser,
            settings={**self.settings, **(settings or {}), "primary_slot_name": slot},
            durable=self.durable,
            keep_open=self.keep_open,
        )
        standby.stream_from(self)
        if self.version >= 17:
            standby.settings.setdefault("sync_replication_slots", "on")
        standby._make_data_dir()
        try:
            standby._run(
                [
                    self.binaries.program("pg_basebackup"),
                    _PGDATA,
                    f"--host={self._ensure_socket_dir()}",
                    f"--port={self.port}",
                    f"--username={self.superuser}",
                    "--wal-method=stream",
                    "--checkpoint=fast",
                    "--create-slot",
                    f"--slot={slot}",
                    "--no-password",
                    "--no-sync",
                ]
            )
            standby._write_initial_files()
            standby.become_standby()
        except BaseException:
            shutil.rmtree(standby.data_dir, ignore_errors=True)
            raise
        return standby

    def stream_from(self, primary: PostgresServer) -> None:
        """Make PRIMARY the server that this standby streams from; takes effect at the next start."""
        pairs = {
            **primary.keywords(),
            **require_peer(primary.binaries.launcher),
            "application_name": self.data_dir.name,
        }
        # The database's name is what slot synchronisation connects to (17+).
        self.settings["primary_conninfo"] = " ".join(f"{key}={_conninfo_value(value)}" for key, value in pairs.items())

    def start(self, *, timeout_seconds: float = 60.0) -> None:
        """Start the server and wait until it takes connections; does nothing when it runs.

        Raises:
            Error: it did not start; the message is the last line of its log.
            TimedOut: it takes no connections yet; it goes on starting.
        """
        if self.is_running():
            self._wait_ready(timeout_seconds)
            return
        self._remove_stale_lock_files()
        chosen = self.port
        for attempt in range(_BIND_ATTEMPTS):
            self.port = chosen or free_port()
            self._configure()
            logged = self.log_file.stat().st_size if self.log_file.exists() else 0
            launcher = self.binaries.launcher
            with launcher.open_directory(self.data_dir) as (place, inherited):
                pid = processes.spawn(
                    launcher,
                    [self.binaries.program("postgres"), "-D", str(place)],
                    self.log_file,
                    note=self._note,
                    env=processes.server_environment(),
                    keep_open=inherited,
                )
            try:
                self._wait_ready(timeout_seconds, pid=pid)
                return
            except _ProcessEnded:
                with self.log_file.open("rb") as log:
                    log.seek(logged)
                    said = log.read().decode(errors="replace")
                if not _BIND_FAILURE.search(said) or attempt == _BIND_ATTEMPTS - 1:
                    raise _start_error(self, said) from None
                # Another program was faster. A port of our own choice is changed; a given one is waited for.
                if chosen:
                    time.sleep(0.1 * 2**attempt)

    def stop(self, mode: StopMode = "fast", *, timeout_seconds: float = 60.0) -> None:
        """Stop the server and wait until its process has ended; does nothing when it does not run.

        Raises:
            TimedOut: it still runs.
        """
        postmaster = self._postmaster()
        if postmaster is None:
            return
        pid = postmaster.pid
        postmaster.send(_SIGNALS[mode])
        if not processes.wait(lambda: not postmaster.is_running(), timeout_seconds):
            raise TimedOut(
                f"server {self.data_dir.name} (pid {pid}) still runs after {timeout_seconds:.0f} s",
                hint=f"its log: {self.log_file}",
            )

    def restart(self, mode: StopMode = "fast", *, timeout_seconds: float = 60.0) -> None:
        """Stop and start it, on the same port, with the settings as they are now."""
        self.stop(mode, timeout_seconds=timeout_seconds)
        self.start(timeout_seconds=timeout_seconds)

    def reload(self) -> None:
        """Write the settings and have the server read them; those that need a restart wait for it."""
        self._configure()
        if (postmaster := self._postmaster()) is not None:
            postmaster.send(signal.SIGHUP)

    def kill(self) -> None:
        """Kill the postmaster (SIGKILL), as a crash would; its children notice and end."""
        if (postmaster := self._postmaster()) is not None:
            postmaster.end(how=signal.SIGKILL)
            processes.wait(lambda: not processes.orphaned_processes(self.data_dir), 10.0)

    def promote(self, *, timeout_seconds: float = 60.0) -> None:
        """Make a standby a primary, and wait until it is one; it first replays all the WAL it has.

        Works where no session is possible, too: it is the postmaster who is told.

        Raises:
            TimedOut: it still is a standby.
            Error: it does not run, or ended meanwhile.
        """
        postmaster = self._postmaster()
        if postmaster is None:
            raise Error(f"server {self.data_dir.name} does not run", hint=f"its log: {self.log_file}")
        pid = postmaster.pid
        self._write("promote", "")
        postmaster.send(signal.SIGUSR1)
        if not processes.wait(lambda: self._in_production() or self.pid != pid, timeout_seconds):
            raise TimedOut(
                f"server {self.data_dir.name} is still a standby after {timeout_seconds:.0f} s",
                hint=f"its log: {self.log_file}",
            )
        if self.pid != pid:
            raise Error(f"server {self.data_dir.name} ended while it was promoted", hint=f"its log: {self.log_file}")
        for name in ("primary_conninfo", "primary_slot_name"):
            self.settings.pop(name, None)

    def become_standby(self) -> None:
        """Mark a stopped server as a standby; where it streams from is for ``follow`` to say."""
        self._write("standby.signal", "")

    @contextmanager
    def open_data_dirs(self, *others: PostgresServer) -> Iterator[tuple[Path, ...]]:
        """Yield paths of the data directory and of OTHERS', to read and write there as the servers' user."""
        launcher = self.binaries.launcher
        with ExitStack() as stack:
            places = [stack.enter_context(launcher.open_directory(server.data_dir))[0] for server in (self, *others)]
            stack.enter_context(launcher.as_server_user())
            yield tuple(places)

    def remove(self) -> None:
        """End every process of this server, whatever state it is in, and remove its files."""
        try:
            self.stop("fast", timeout_seconds=10.0)
        except TimedOut:
            with suppress(TimedOut):
                self.stop("immediate", timeout_seconds=10.0)
        self.kill_leftovers()
        if self.socket_dir is not None:
            self._remove_ensure_socket_dir()
            if self.socket_dir.name.startswith(PREFIX):
                with suppress(OSError):
                    self.socket_dir.rmdir()
        shutil.rmtree(self.data_dir, ignore_errors=True)
        self.log_file.unlink(missing_ok=True)
        self.process_file.unlink(missing_ok=True)

    def kill_leftovers(self) -> None:
        """End what a killed postmaster or a killed ``initdb`` left, and its one piece of shared memory."""
        if (recorded := self._recorded()) is not None:
            recorded.end(how=signal.SIGKILL)
        if not processes.wait(lambda: not processes.orphaned_processes(self.data_dir), 2.0):
            for process in processes.orphaned_processes(self.data_dir):
                process.end(how=signal.SIGKILL)
        lines = self._pid_file()
        if len(lines) >= 7 and len(parts := lines[6].split()) == 2:
            _free_shared_memory(key=parts[0], shmid=parts[1], creator=lines[0])

    def _remove_stale_lock_files(self) -> None:
        """Remove the lock files of a killed server, once nothing of it lives.

        PostgreSQL does so itself, unless another process has got the number, or nobody has taken note of the death.
        """
        if sys.platform.startswith("linux") and self._pid_file():
            self.kill_leftovers()
            with self.open_data_dirs() as (place,):
                (place / "postmaster.pid").unlink(missing_ok=True)
            self._remove_ensure_socket_dir()

    def _remove_ensure_socket_dir(self) -> None:
        if self.socket_dir is not None and is_socket_dir(self.socket_dir, self.binaries.launcher):
            for suffix in ("", ".lock"):
                (self.socket_dir / f".s.PGSQL.{self.port}{suffix}").unlink(missing_ok=True)

    def _in_production(self) -> bool:
        """Say whether the server, which runs, is a primary: by its control file, as pg_ctl does."""
        with self.open_data_dirs() as (place,), (place / "global" / "pg_control").open("rb") as file:
            return file.read(_CONTROL_STATE + 4)[_CONTROL_STATE:] == _IN_PRODUCTION.to_bytes(4, sys.byteorder)

    def _status(self) -> str:
        lines = self._pid_file()
        # The eighth line is what pg_ctl goes by, too.
        return lines[7] if len(lines) >= 8 else ""

    def _pid_file(self) -> list[str]:
        try:
            with self.open_data_dirs() as (place,):
                return [line.strip() for line in (place / "postmaster.pid").read_text().splitlines()]
        except (OSError, UnicodeDecodeError):
            return []

    def _note(self, process: ProcessIdentity) -> None:
        processes.write_private_file(self.process_file, json.dumps(asdict(process)))

    def _recorded(self) -> ProcessIdentity | None:
        """Return the process that was started last for this data directory."""
        try:
            return ProcessIdentity(**json.loads(self.process_file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def _postmaster(self) -> ProcessIdentity | None:
        """Return the server's postmaster; None when it does not run."""
        process = self._recorded()
        runs = process is not None and Path(process.command).name == "postgres" and process.is_running()
        return process if runs else None

    def _run(self, words: list[str]) -> None:
        """Run a program that makes the data directory, which its arguments call ``{}``."""
        launcher = self.binaries.launcher
        with launcher.open_directory(self.data_dir) as (place, inherited):
            processes.run(
                launcher,
                [word.replace("{}", str(place)) if word == _PGDATA else word for word in words],
                timeout_seconds=300.0,
                keep_open=(*self.keep_open, *inherited),
                note=self._note,
            )

    def _ensure_socket_dir(self) -> Path:
        if self.socket_dir is None:
            self.socket_dir = make_socket_dir(new_socket_dir(self.binaries.launcher), self.binaries.launcher)
        return self.socket_dir

    def _make_data_dir(self) -> None:
        shutil.rmtree(self.data_dir, ignore_errors=True)
        self.data_dir.mkdir(mode=0o700, parents=True)
        self.binaries.launcher.chown(self.data_dir)

    def _write_initial_files(self) -> None:
        """Make a fresh data directory one of ours: who may connect, and our file of settings."""
        self._write(
            "pg_hba.conf",
            "# type database user address method\n"
            f"local all {_hba_name(self.superuser)} trust\n"
            f"local replication {_hba_name(self.superuser)} trust\n"
            f"host all {_hba_name(self.superuser)} {HOST}/32 reject\n"
            f"host replication {_hba_name(self.superuser)} {HOST}/32 reject\n"
            f"host all all {HOST}/32 scram-sha-256\n"
            f"host replication all {HOST}/32 scram-sha-256\n",
        )
        included = f"include = '{_CONFIG_FILE}'\n"
        with self.open_data_dirs() as (place,):
            text = (place / "postgresql.conf").read_text(encoding="utf-8")
        if not text.endswith(included):
            self._write("postgresql.conf", text + included)
        self._configure()

    def _configure(self) -> None:
        settings = {
            **_SETTINGS,
            **({} if self.durable else _WITHOUT_FSYNC),
            "port": str(self.port or 5432),
            "unix_socket_directories": str(self._ensure_socket_dir()),
            **self.settings,
        }
        self._write(_CONFIG_FILE, "".join(f"{name} = {_quote(value)}\n" for name, value in settings.items()))

    def _write(self, name: str, text: str) -> None:
        with self.open_data_dirs() as (data_dir,):
            processes.write_private_file(data_dir / name, text)

    def _wait_ready(self, timeout_seconds: float, *, pid: int | None = None) -> None:
        deadline = time.monotonic() + timeout_seconds
        while True:
            status, lines = self._status(), self._pid_file()
            if status in ("ready", "standby") and lines and pid in (None, _number(lines[0])):
                with suppress(ValueError):
                    self.port = int(lines[3])
                return
            if pid is not None and processes.start_time(pid) is None:
                raise _ProcessEnded
            if time.monotonic() > deadline:
                raise TimedOut(
                    f"server {self.data_dir.name} takes no connections after {timeout_seconds:.0f} s",
                    hint=f"its log: {self.log_file}",
                )
            time.sleep(0.02)


def _number(text: str) -> int | None:
    return int(text) if text.isdecimal() and len(text) < 20 else None


class _ProcessEnded(Exception):
    """The postmaster ended while it was starting."""


def _start_error(server: PostgresServer, said: str) -> Error:
    lines = [line for line in said.splitlines() if re.search(r"(FATAL|PANIC|error):", line)] or said.splitlines()
    last = re.sub(r"^.*?(FATAL|PANIC|error):\s*", "", lines[-1]) if lines else "it said nothing"
    return Error(f"server {server.data_dir.name} did not start: {last}", hint=f"its log: {server.log_file}")


def require_peer(launcher: processes.Launcher) -> dict[str, str]:
    """Return what has libpq refuse a unix socket behind which there is not the servers' user."""
    return {} if launcher.user_name is None else {"requirepeer": launcher.user_name}


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on just now."""
    for _ in range(1000):
        port = random.choice(PORTS)
        with closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
                probe.listen(1)
            except OSError:
                continue
        return port
    raise Error(f"no free port on {HOST} between {PORTS.start} and {PORTS.stop}", hint="end what listens there")


def _free_shared_memory(*, key: str, shmid: str, creator: str) -> None:
    """Remove a killed server's System V segment, when it still is that one and nobody is attached."""
    try:
        rows = [line.split() for line in Path("/proc/sysvipc/shm").read_text(encoding="ascii").splitlines()]
    except OSError:
        return
    if not rows:
        return
    for values in rows[1:]:
        row = dict(zip(rows[0], values, strict=False))
        same = row.get("shmid") == shmid and int(row.get("key", "0")) & 0xFFFFFFFF == int(key) & 0xFFFFFFFF
        if same and row.get("nattch") == "0" and row.get("cpid") == creator:
            with suppress(OSError):
                subprocess.run(["ipcrm", "-m", shmid], capture_output=True, check=False)


def _quote(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "''") + "'"


def _conninfo_value(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _hba_name(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
