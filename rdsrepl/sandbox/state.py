"""What the sandbox remembers between commands: one directory, one file in it, one lock.

Everything the sandbox makes is named in the file before it is made, so that ``down`` can undo whatever a crash left.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from rdsrepl.errors import Error, TimedOut
from rdsrepl.sandbox import processes

FORMAT: Final = 1
LOCK_WAIT_SECONDS: Final = 180.0

Role = Literal["writer", "reader"]
Phase = Literal["building", "ready", "removing"]


@dataclass(frozen=True, slots=True)
class ServerState:
    """One server: its data directory is ``name`` under the sandbox's."""

    name: str
    role: Role
    port: int = 0


@dataclass(frozen=True, slots=True)
class State:
    """The sandbox as it was made.

    Attributes:
        phase: ``building`` until everything is there; a sandbox found in it was left by a crash.
        bin_dir: where the PostgreSQL programs are.
        version: theirs.
        socket_dir: the servers' unix sockets; only the owner may enter.
        user: the master user.
        dbname: the database that belongs to it.
        writer_port: the writer endpoint's port; 0 before it is known.
        reader_port: the reader endpoint's; None without a standby.
        config_file: where the ``sandbox`` target was written.
        config_was_there: whether that file existed before.
        servers: the writer first.
    """

    phase: Phase
    bin_dir: str
    version: tuple[int, ...]
    socket_dir: str
    user: str
    dbname: str
    writer_port: int
    reader_port: int | None
    config_file: str
    config_was_there: bool
    servers: tuple[ServerState, ...]

    def with_role(self, role: Role) -> tuple[ServerState, ...]:
        """Return the servers behind one endpoint."""
        return tuple(server for server in self.servers if server.role == role)

    def with_server(self, server: ServerState) -> State:
        """Return the state with one server's entry replaced."""
        return replace(self, servers=tuple(server if old.name == server.name else old for old in self.servers))


@dataclass(frozen=True, slots=True)
class EndpointState:
    """The endpoint process: its id, when it started (``processes.started``), the ports it listens on."""

    pid: int
    started: str
    writer_port: int
    reader_port: int | None

    def is_running(self) -> bool:
        """Say whether that very process lives."""
        return processes.started(self.pid) == self.started


@dataclass(frozen=True, slots=True)
class Directory:
    """The sandbox's directory and the files in it."""

    path: Path

    @property
    def state_file(self) -> Path:
        """``State`` as JSON."""
        return self.path / "state.json"

    @property
    def endpoint_file(self) -> Path:
        """``EndpointState`` as JSON, written by the endpoint itself when it listens."""
        return self.path / "endpoint.json"

    @property
    def endpoint_log(self) -> Path:
        """What the endpoint says."""
        return self.path / "endpoint.log"

    @property
    def lent_file(self) -> Path:
        """The roles that hold the REPLICATION attribute on loan from the endpoint."""
        return self.path / "lent.json"

    @property
    def passfile(self) -> Path:
        """The master user's password, in the form of libpq's ``.pgpass``."""
        return self.path / "pgpass"

    @property
    def lock_file(self) -> Path:
        """Held by the command at work, and by the programs it runs."""
        return self.path / "lock"

    def read(self) -> State | None:
        """Return what is remembered; None where there is no sandbox.

        Raises:
            Error: the file is not one this version wrote.
        """
        fields = self._load(self.state_file)
        if fields is None:
            return None
        try:
            if fields.pop("format") != FORMAT:
                raise ValueError("another format")
            servers = tuple(ServerState(**server) for server in fields.pop("servers"))
            return State(**{**fields, "version": tuple(fields["version"]), "servers": servers})
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            raise Error(
                f"{self.state_file} was written by another version of rdsrepl: {exc}",
                hint="remove that sandbox: rdsrepl sandbox down",
            ) from exc

    def write(self, state: State) -> None:
        """Remember STATE, in one step."""
        self.save(self.state_file, {"format": FORMAT, **asdict(state)})

    def endpoint(self) -> EndpointState | None:
        """Return what the endpoint last said of itself."""
        fields = self._load(self.endpoint_file)
        with suppress(TypeError):
            return None if fields is None else EndpointState(**fields)
        return None

    def save(self, path: Path, value: object) -> None:
        """Replace a file of the directory in one step; for the owner's eyes only."""
        new = path.with_name(f"{path.name}.{os.getpid()}.new")
        with processes.umask(0o077):
            new.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
        new.replace(path)

    def _load(self, path: Path) -> dict[str, Any] | None:
        try:
            loaded = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except NotADirectoryError:
            return None
        except (OSError, ValueError) as exc:
            raise Error(f"{path} cannot be read: {exc}", hint="remove that sandbox: rdsrepl sandbox down") from exc
        return loaded if isinstance(loaded, dict) else {}

    @contextmanager
    def locked(self, waiting: Callable[[], None]) -> Iterator[int]:
        """Hold the sandbox for one command; yield the lock's file descriptor.

        A program that inherits the descriptor holds the lock, too: when a command is killed, its ``initdb`` keeps the
        next one waiting instead of writing into what that one removes.

        Args:
            waiting: called once when another command has it.

        Raises:
            TimedOut: the other command does not end.
        """
        descriptor = self._open_lock(waiting)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _open_lock(self, waiting: Callable[[], None]) -> int:
        deadline = time.monotonic() + LOCK_WAIT_SECONDS
        said = False
        while True:
            try:
                self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
                descriptor = os.open(self.lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except FileNotFoundError:  # a `down` removed the directory between the two lines
                continue
            except OSError as exc:
                raise Error(
                    f"the sandbox's directory cannot be used: {exc}", hint="set RDSREPL_SANDBOX_DIR to another"
                ) from exc
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # A `down` may have removed the file we opened; then the lock is worth nothing.
                if os.fstat(descriptor).st_ino == self.lock_file.stat().st_ino:
                    return descriptor
                os.close(descriptor)
                continue
            except FileNotFoundError:
                os.close(descriptor)
                continue
            except BlockingIOError:
                os.close(descriptor)
            if not said:
                waiting()
                said = True
            if time.monotonic() > deadline:
                raise TimedOut(
                    f"another rdsrepl sandbox command has been at work for {LOCK_WAIT_SECONDS:.0f} s",
                    hint="wait for it, or end it",
                )
            time.sleep(0.1)

    def vanish(self) -> None:
        """Remove the directory and the lock in it, and the directories above it that we made and that are empty."""
        self.lock_file.unlink(missing_ok=True)
        with suppress(OSError):
            self.path.rmdir()
            for parent in list(self.path.parents)[:2]:
                if parent.name == "rdsrepl":
                    parent.rmdir()


def directory() -> Directory:
    """Return the sandbox's directory: ``RDSREPL_SANDBOX_DIR``, or under ``XDG_STATE_HOME``."""
    if explicit := os.environ.get("RDSREPL_SANDBOX_DIR"):
        return Directory(Path(explicit).absolute())
    base = os.environ.get("XDG_STATE_HOME")
    return Directory((Path(base) if base else Path.home() / ".local" / "state") / "rdsrepl" / "sandbox")
