"""One PostgreSQL server on loopback: create, start, clone, promote, stop and remove it.

The sandbox and the tests use it for all their servers. A server listens on 127.0.0.1 with SCRAM passwords, and on a
unix socket in a directory that only its owner may enter. There the superuser needs no password.

It is long because all operations share one state: the data directory, the port, and the process.
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
# The reader endpoint on the port of the writer: on RDS both endpoints of a cluster have the same port. Linux only.
READER_HOST: Final = "127.0.0.2"
SUPERUSER: Final = "rdsadmin"
# Below the range of ports for outgoing connections, so that none of those uses the port of a server while it restarts.
PORTS: Final = range(20000, 32000)

StopMode = Literal["smart", "fast", "immediate"]

_SIGNALS: Final[Mapping[StopMode, signal.Signals]] = {
    "smart": signal.SIGTERM,
    "fast": signal.SIGINT,
    "immediate": signal.SIGQUIT,
}
_CONFIG_FILE: Final = "rdsrepl.conf"
_PGDATA: Final = "--pgdata={}"
# The offset of the server's state in the control file, the same in every version, and its value for a primary.
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
    # The other types leave a file outside the data directory when a server is killed.
    "dynamic_shared_memory_type": "mmap",
    "log_line_prefix": "%m [%p] %q%u@%d %a ",
}
_WITHOUT_FSYNC: Final[Mapping[str, str]] = {"fsync": "off", "full_page_writes": "off"}
# Keywords that PG* variables for another server would change.
_FIXED_KEYWORDS: Final[Mapping[str, str]] = {
    "hostaddr": "",
    "options": "",
    "sslmode": "disable",
    "gssencmode": "disable",
    "target_session_attrs": "any",
}
# Settings that a session sets itself, so that the owner of the database cannot change them (ALTER DATABASE … SET).
ADMIN_OPTIONS: Final = "-c search_path= -c role=none -c default_transaction_read_only=off -c statement_timeout=0"
_BIND_ATTEMPTS: Final = 8
_BIND_FAILURE: Final = re.compile(r"could not bind|could not create any TCP/IP sockets|Address already in use")


@dataclass(slots=True)
class PostgresServer:
    """One PostgreSQL server: a data directory, and how to run it.

    The methods work in any process, because they read the process of the server from a file.

    Attributes:
        data_dir: created by ``initdb`` or ``clone``.
        binaries: the programs.
        port: the port on 127.0.0.1; 0 selects a free one at the first start, which is then kept.
        socket_dir: the directory of the unix socket; None creates one in the temporary directory, which ``remove``
            deletes.
        superuser: the role that ``initdb`` creates.
        settings: parameters in addition to the fixed ones; written at each start.
        durable: whether the server calls fsync. Without fsync, data survives a killed server, but not a crash of the
            machine.
    """

    data_dir: Path
    binaries: Binaries
    port: int = 0
    socket_dir: Path | None = None
    superuser: str = SUPERUSER
    settings: dict[str, str] = field(default_factory=dict)
    durable: bool = False
    # File descriptors that the programs that create the server inherit: the lock of the sandbox.
    keep_open: tuple[int, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        self.data_dir = self.data_dir.absolute()

    @property
    def log_file(self) -> Path:
        """The log of the server, beside its data directory."""
        return self.data_dir.with_name(self.data_dir.name + ".log")

    @property
    def process_file(self) -> Path:
        """Identifies the process that uses the data directory: the postmaster, or the program that creates it."""
        return self.data_dir.with_name(self.data_dir.name + ".process")

    @property
    def version(self) -> int:
        """The major version: 13 … 18."""
        return self.binaries.major

    @property
    def pid(self) -> int | None:
        """The process id of the postmaster; None when it does not run."""
        postmaster = self._postmaster()
        return None if postmaster is None else postmaster.pid

    def is_running(self) -> bool:
        """Return whether the postmaster runs."""
        return self.pid is not None

    def exists(self) -> bool:
        """Return whether there is a complete data directory."""
        return (self.data_dir / _CONFIG_FILE).exists()

    def keywords(self, *, user: str | None = None, dbname: str = "postgres") -> dict[str, str]:
        """Return libpq keywords: the superuser connects through the unix socket, any other role through TCP."""
        host = str(self._ensure_socket_dir()) if user in (None, self.superuser) else HOST
        return {"host": host, "port": str(self.port), "user": user or self.superuser, "dbname": dbname}

    def dsn(self, *, user: str | None = None, dbname: str = "postgres") -> str:
        """Return ``keywords`` as a connection string."""
        from psycopg.conninfo import make_conninfo

        return make_conninfo("", **self.keywords(user=user, dbname=dbname))

    def target(self, *, user: str | None = None, dbname: str = "postgres") -> Target:
        """Return ``keywords`` as a target that environment variables do not change."""
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
        """Open a superuser session for statements of the sandbox; the caller closes it.

        The master user owns the database and can set its parameters and create operators in it. The session ignores
        both.
        """
        from rdsrepl.postgres import connection

        target = self.target()
        return connection.connect(replace(target, keywords={**target.keywords, "options": ADMIN_OPTIONS}))

    def initdb(self) -> None:
        """Create the data directory: UTF8, SCRAM, a superuser without a password.

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
                # Not every system has that locale. The encoding is UTF8 with the locale C, too.
                self._make_data_dir()
                self._run([*words, "--locale=C"])
            self._write_initial_files()
        except BaseException:
            shutil.rmtree(self.data_dir, ignore_errors=True)
            raise

    def clone(self, data_dir: Path, *, slot: str, settings: Mapping[str, str] | None = None) -> PostgresServer:
        """Create a standby of this running server, which streams through the physical slot SLOT; do not start it.

        From version 17 on it synchronizes the failover slots.

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

    def stream_from(self, primary: PostgresServer, *, dbname: str | None = "postgres", port: int | None = None) -> None:
        """Set the server from which this standby streams, from its next start or reload on.

        Args:
            primary: the server.
            dbname: the database to which slot synchronization connects (17+); None synchronizes nothing.
            port: another port than that of the server: the standby cannot connect to it.
        """
        pairs = {
            **primary.keywords(dbname=dbname or ""),
            **require_peer(primary.binaries.launcher),
            "application_name": self.data_dir.name,
        }
        if not dbname:
            del pairs["dbname"]
        if port is not None:
            pairs["port"] = str(port)
        self.settings["primary_conninfo"] = " ".join(f"{key}={_conninfo_value(value)}" for key, value in pairs.items())

    def start(self, *, timeout_seconds: float = 60.0) -> None:
        """Start the server and wait until it accepts connections; do nothing when it runs.

        Raises:
            Error: the server did not start; the message is the last line of its log.
            TimedOut: the server does not accept connections yet; it continues to start.
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
                    text = log.read().decode(errors="replace")
                if not _BIND_FAILURE.search(text) or attempt == _BIND_ATTEMPTS - 1:
                    raise _start_error(self, text) from None
                # Another program uses the port. Wait for a given port; otherwise choose another one.
                if chosen:
                    time.sleep(0.1 * 2**attempt)

    def stop(self, mode: StopMode = "fast", *, timeout_seconds: float = 60.0) -> None:
        """Stop the server and wait until its process has ended; do nothing when it does not run.

        Raises:
            TimedOut: the server still runs.
        """
        postmaster = self._postmaster()
        if postmaster is None:
            return
        pid = postmaster.pid
        postmaster.send(_SIGNALS[mode])
        if not processes.wait(lambda: not postmaster.is_running(), timeout_seconds):
            raise TimedOut(
                f"timed out after {timeout_seconds:.0f} s: server {self.data_dir.name} (pid {pid}) still runs",
                hint=f"read its log: {self.log_file}",
            )

    def restart(self, mode: StopMode = "fast", *, timeout_seconds: float = 60.0) -> None:
        """Stop and start the server on the same port, with the current settings."""
        self.stop(mode, timeout_seconds=timeout_seconds)
        self.start(timeout_seconds=timeout_seconds)

    def reload(self) -> None:
        """Write the settings and reload them; settings that need a restart take effect then."""
        self._configure()
        if (postmaster := self._postmaster()) is not None:
            postmaster.send(signal.SIGHUP)

    def kill(self) -> None:
        """Kill the postmaster with SIGKILL, as in a crash, and wait until its child processes have ended."""
        if (postmaster := self._postmaster()) is not None:
            postmaster.end(how=signal.SIGKILL)
            processes.wait(lambda: not processes.orphaned_processes(self.data_dir), 10.0)

    def promote(self, *, timeout_seconds: float = 60.0) -> None:
        """Promote a standby and wait until it is a primary; it first replays all WAL that it has.

        This does not need a session: the postmaster gets a signal.

        Raises:
            TimedOut: the server is still a standby.
            Error: the server does not run, or ended during the promotion.
        """
        postmaster = self._postmaster()
        if postmaster is None:
            raise Error(f"server {self.data_dir.name} does not run", hint=f"read its log: {self.log_file}")
        pid = postmaster.pid
        self._write("promote", "")
        postmaster.send(signal.SIGUSR1)
        if not processes.wait(lambda: self._in_production() or self.pid != pid, timeout_seconds):
            raise TimedOut(
                f"timed out after {timeout_seconds:.0f} s: server {self.data_dir.name} is still a standby",
                hint=f"read its log: {self.log_file}",
            )
        if self.pid != pid:
            raise Error(
                f"server {self.data_dir.name} ended during its promotion", hint=f"read its log: {self.log_file}"
            )
        for name in ("primary_conninfo", "primary_slot_name"):
            self.settings.pop(name, None)

    def become_standby(self) -> None:
        """Mark a stopped server as a standby; ``stream_from`` sets its primary."""
        self._write("standby.signal", "")

    @contextmanager
    def open_data_dirs(self, *others: PostgresServer) -> Iterator[tuple[Path, ...]]:
        """Yield the paths of this data directory and those of other servers; use them as the user of the servers."""
        launcher = self.binaries.launcher
        with ExitStack() as stack:
            places = [stack.enter_context(launcher.open_directory(server.data_dir))[0] for server in (self, *others)]
            stack.enter_context(launcher.as_server_user())
            yield tuple(places)

    def remove(self) -> None:
        """Stop every process of this server, in whatever state it is, and remove its files."""
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
        """Kill the processes that a killed postmaster or ``initdb`` left, and free its shared memory."""
        if (recorded := self._recorded()) is not None:
            recorded.end(how=signal.SIGKILL)
        if not processes.wait(lambda: not processes.orphaned_processes(self.data_dir), 2.0):
            for process in processes.orphaned_processes(self.data_dir):
                process.end(how=signal.SIGKILL)
        lines = self._pid_file()
        if len(lines) >= 7 and len(parts := lines[6].split()) == 2:
            _free_shared_memory(key=parts[0], shmid=parts[1], creator=lines[0])

    def _remove_stale_lock_files(self) -> None:
        """Remove the lock files of a killed server after its processes have ended.

        PostgreSQL does so itself, but not when another process has the same id or the killed one is a zombie.
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
        """Return whether the running server is a primary, from its control file, as pg_ctl does."""
        with self.open_data_dirs() as (place,), (place / "global" / "pg_control").open("rb") as file:
            return file.read(_CONTROL_STATE + 4)[_CONTROL_STATE:] == _IN_PRODUCTION.to_bytes(4, sys.byteorder)

    def _status(self) -> str:
        lines = self._pid_file()
        # pg_ctl reads the eighth line, too.
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
        """Run a program that creates the data directory, which replaces ``{}`` in its arguments."""
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
        """Write who may connect, and the file with the settings, to a new data directory."""
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
                    f"timed out after {timeout_seconds:.0f} s: server {self.data_dir.name} does not accept connections",
                    hint=f"read its log: {self.log_file}",
                )
            time.sleep(0.02)


def _number(text: str) -> int | None:
    return int(text) if text.isdecimal() and len(text) < 20 else None


class _ProcessEnded(Exception):
    """The postmaster ended during its start."""


def _start_error(server: PostgresServer, text: str) -> Error:
    lines = [line for line in text.splitlines() if re.search(r"(FATAL|PANIC|error):", line)] or text.splitlines()
    last = re.sub(r"^.*?(FATAL|PANIC|error):\s*", "", lines[-1]) if lines else "it logged nothing"
    return Error(f"server {server.data_dir.name} did not start: {last}", hint=f"read its log: {server.log_file}")


def require_peer(launcher: processes.Launcher) -> dict[str, str]:
    """Return the keywords with which libpq refuses a unix socket of a process of another user."""
    return {} if launcher.user_name is None else {"requirepeer": launcher.user_name}


def free_port() -> int:
    """Return a port of 127.0.0.1 on which no process listens now.

    Raises:
        Error: no free port was found.
    """
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
    raise Error(
        f"no free port on {HOST} between {PORTS.start} and {PORTS.stop}", hint="stop programs that listen there"
    )


def _free_shared_memory(*, key: str, shmid: str, creator: str) -> None:
    """Remove the System V segment of a killed server when no process is attached to it."""
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
