"""The state of the sandbox: one directory, one state file in it, one lock.

Everything that the sandbox creates is written to the state file first, so that ``down`` can remove it after a crash.
The state says which servers and endpoints exist and how they belong together. What RDS knows of them is in the records
of the API.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

from rdsrepl.config import home_directory
from rdsrepl.errors import Error, Refused, TimedOut
from rdsrepl.sandbox.servers import processes
from rdsrepl.sandbox.servers.binaries import Binaries

FORMAT: Final = 2
LOCK_WAIT_SECONDS: Final = 180.0
# File systems store times with a resolution of milliseconds; one second is safe on all of them.
_RECENT_SECONDS: Final = 1.0

Role = Literal["writer", "reader"]
EndpointKind = Literal["writer", "reader", "instance", "reader-host"]
Phase = Literal["building", "ready", "removing"]


@dataclass(frozen=True, slots=True)
class ServerState:
    """One server; its data directory is ``servers/NAME``.

    Attributes:
        name: the identifier of the instance.
        bin_dir: the directory of its programs.
        version: the version of the programs.
        cluster: the cluster that it is a member of.
        source: the server whose WAL it streams; None for a primary.
        slot: the physical slot through which it streams when it is a standby.
        port: 0 before the first start.
        settings: its parameters, in addition to ``server_registry.base_settings``.
        is_cut_off: whether a test keeps this standby from connecting to its source.
    """

    name: str
    bin_dir: str
    version: tuple[int, ...]
    cluster: str | None = None
    source: str | None = None
    slot: str | None = None
    port: int = 0
    settings: Mapping[str, str] = field(default_factory=dict)
    is_cut_off: bool = False

    @property
    def binaries(self) -> Binaries:
        """The programs."""
        return Binaries(Path(self.bin_dir), self.version)

    @property
    def role(self) -> Role:
        """``reader`` for a standby, else ``writer``."""
        return "reader" if self.source else "writer"


@dataclass(frozen=True, slots=True)
class EndpointState:
    """A port that stays the same while servers are created, removed and promoted.

    Attributes:
        kind: what it connects to: the writer of a cluster, its readers, or one instance; ``reader-host`` connects to
            the readers on the writer's port of another address.
        of: the identifier of the cluster or the instance.
        port: 0 before the relay listens; for a ``reader-host`` also when the machine does not have that address.
    """

    kind: EndpointKind
    of: str
    port: int = 0

    @property
    def key(self) -> str:
        """Identifies the endpoint: ``writer:orders``."""
        return f"{self.kind}:{self.of}"


@dataclass(frozen=True, slots=True)
class State:
    """The sandbox as it was created.

    Attributes:
        phase: ``building`` until everything exists; after a crash it stays so.
        bin_dir: the directory of the PostgreSQL programs of the first cluster.
        version: the version of the programs.
        socket_dir: the directory of the unix sockets; only the owner may enter.
        user: the master user of the first cluster.
        dbname: the database of that user.
        config_file: the configuration file with the target ``sandbox``.
        config_was_there: whether that file existed before.
        servers: all servers.
        endpoints: all endpoints.
    """

    phase: Phase
    bin_dir: str
    version: tuple[int, ...]
    socket_dir: str
    user: str
    dbname: str
    config_file: str
    config_was_there: bool
    servers: tuple[ServerState, ...] = ()
    endpoints: tuple[EndpointState, ...] = ()

    @property
    def binaries(self) -> Binaries:
        """The programs."""
        return Binaries(Path(self.bin_dir), self.version)

    def server(self, name: str) -> ServerState | None:
        """Return the entry of a server."""
        return next((server for server in self.servers if server.name == name), None)

    def members(self, cluster: str) -> tuple[ServerState, ...]:
        """Return the servers of a cluster, the writer first."""
        return tuple(sorted((s for s in self.servers if s.cluster == cluster), key=lambda s: s.source is not None))

    def primary_of(self, server: ServerState) -> ServerState:
        """Return the primary whose WAL a server streams, directly or through other standbys; a primary itself."""
        seen = {server.name}
        while server.source and server.source not in seen and (source := self.server(server.source)) is not None:
            seen.add(source.name)
            server = source
        return server

    def family(self, server: ServerState) -> str:
        """Return the name of a primary with its standbys: the name of its cluster, else its own."""
        primary = self.primary_of(server)
        return primary.cluster or primary.name

    def backends(self, endpoint: EndpointState) -> tuple[ServerState, ...]:
        """Return the servers that an endpoint connects to now; for a cluster without readers that is the writer."""
        if endpoint.kind == "instance":
            return tuple(server for server in self.servers if server.name == endpoint.of)
        members = self.members(endpoint.of)
        if endpoint.kind == "writer":
            return tuple(server for server in members if server.role == "writer")
        return tuple(server for server in members if server.role == "reader") or members

    def port(self, kind: EndpointKind, of: str) -> int | None:
        """Return the port of an endpoint; None when it does not exist or does not listen yet."""
        return next((e.port for e in self.endpoints if (e.kind, e.of) == (kind, of)), None) or None

    def with_server(self, server: ServerState) -> State:
        """Return the state with the entry of a server replaced or added."""
        if self.server(server.name) is None:
            return replace(self, servers=(*self.servers, server))
        return replace(self, servers=tuple(server if old.name == server.name else old for old in self.servers))

    def without_server(self, name: str) -> State:
        """Return the state without a server and its endpoint."""
        return replace(
            self,
            servers=tuple(server for server in self.servers if server.name != name),
            endpoints=tuple(e for e in self.endpoints if (e.kind, e.of) != ("instance", name)),
        )

    def with_writer(self, cluster: str, name: str) -> State:
        """Return the state in which a member is the writer of its cluster, and the other members stream from it."""
        state = self
        for server in self.members(cluster):
            state = state.with_server(replace(server, source=None if server.name == name else name))
        return state

    def with_endpoints(self, *endpoints: EndpointState) -> State:
        """Return the state with endpoints added; those that exist keep their ports."""
        known = {endpoint.key for endpoint in self.endpoints}
        return replace(self, endpoints=(*self.endpoints, *(e for e in endpoints if e.key not in known)))

    def with_ports(self, ports: Mapping[str, int]) -> State:
        """Return the state with the ports on which the relay listens, by the keys of the endpoints."""
        return replace(self, endpoints=tuple(replace(e, port=ports.get(e.key, e.port)) for e in self.endpoints))


@dataclass(frozen=True, slots=True)
class ProcessState:
    """A process of the sandbox: its id and its start time (``processes.start_time``)."""

    pid: int
    started: str

    def is_running(self) -> bool:
        """Return whether this process still runs."""
        return processes.start_time(self.pid) == self.started


@dataclass(frozen=True, slots=True)
class RelayState(ProcessState):
    """The process of the relay: the ports on which it listens, by the keys of the endpoints."""

    ports: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class ApiState(ProcessState):
    """The process of the API: the port of its base URL, and its region."""

    port: int
    region: str


@dataclass(frozen=True, slots=True)
class SandboxDirectory:
    """The directory of the sandbox and the files in it."""

    path: Path

    @property
    def state_file(self) -> Path:
        """``State`` as JSON."""
        return self.path / "state.json"

    @property
    def servers_dir(self) -> Path:
        """The data directories and logs of the servers."""
        return self.path / "servers"

    @property
    def endpoint_file(self) -> Path:
        """``RelayState`` as JSON; the relay writes it when it listens."""
        return self.path / "endpoint.json"

    @property
    def endpoint_log(self) -> Path:
        """The log of the relay."""
        return self.path / "endpoint.log"

    @property
    def api_file(self) -> Path:
        """``ApiState`` as JSON; the API writes it when it listens."""
        return self.path / "api.json"

    @property
    def api_log(self) -> Path:
        """The log of the API."""
        return self.path / "api.log"

    @property
    def aws_file(self) -> Path:
        """The records of the API: parameter groups, clusters, instances."""
        return self.path / "aws.json"

    @property
    def aws_config_file(self) -> Path:
        """The shared AWS config file with the profile ``sandbox``."""
        return self.path / "aws" / "config"

    @property
    def aws_credentials_file(self) -> Path:
        """The shared AWS credentials file with the profile ``sandbox``."""
        return self.path / "aws" / "credentials"

    @property
    def credentials_file(self) -> Path:
        """The keys that sign requests to the API (``credentials``)."""
        return self.path / "credentials.json"

    @property
    def programs_lock_file(self) -> Path:
        """Locked, shared, by the programs that the API runs, so that ``down`` can wait for them."""
        return self.path / "programs.lock"

    @property
    def spawned_file(self) -> Path:
        """The processes that ``up`` started last, as JSON."""
        return self.path / "spawned.json"

    @property
    def state_lock_file(self) -> Path:
        """Locked during a change of the state."""
        return self.path / "state.lock"

    @property
    def granted_roles_file(self) -> Path:
        """The roles to which the relay granted the REPLICATION attribute, as JSON."""
        return self.path / "granted_roles.json"

    @property
    def passfile(self) -> Path:
        """The password of the master user, in the format of ``.pgpass``."""
        return self.path / "pgpass"

    @property
    def lock_file(self) -> Path:
        """Locked by the running command and by the programs that it runs."""
        return self.path / "lock"

    def check_owner(self) -> None:
        """Refuse a directory to which another user may write: the state names programs that are run.

        Raises:
            Refused: another user owns the directory, or may write to it.
        """
        for status in (self.path.lstat(), self.path.stat()):
            writable = not stat.S_ISLNK(status.st_mode) and status.st_mode & 0o022
            if status.st_uid != os.geteuid() or writable:
                raise Refused(
                    f"the sandbox directory {self.path} belongs to another user, or other users may write to it",
                    hint="set RDSREPL_SANDBOX_DIR to a directory that does not exist yet",
                )

    def read(self) -> State | None:
        """Return the state; None when the sandbox does not exist.

        Raises:
            Error: another version wrote the state file.
            Refused: another user may have written it.
        """
        with suppress(FileNotFoundError, NotADirectoryError):
            self.check_owner()
        fields = self._load(self.state_file)
        if fields is None:
            return None
        try:
            if fields.pop("format") != FORMAT:
                raise ValueError("another format")
            servers = tuple(ServerState(**{**s, "version": tuple(s["version"])}) for s in fields.pop("servers"))
            endpoints = tuple(EndpointState(**endpoint) for endpoint in fields.pop("endpoints"))
            version = tuple(fields.pop("version"))
            return State(**fields, version=version, servers=servers, endpoints=endpoints)
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            raise Error(
                f"the format of {self.state_file} is not that of this version of rdsrepl: {exc}",
                hint="remove that sandbox: rdsrepl sandbox down",
            ) from exc

    def write(self, state: State) -> None:
        """Write the state, in one step."""
        self.save(self.state_file, {"format": FORMAT, **asdict(state)})

    def update(self, change: Callable[[State], State]) -> State:
        """Change the state under a lock, and return the new state.

        Raises:
            Error: the sandbox was removed, or is being removed.
        """
        gone = Error(f"the sandbox in {self.path} was removed", hint="create it again: rdsrepl sandbox up")
        try:
            lock = self.state_lock_file.open("a")
        except FileNotFoundError:
            raise gone from None
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            state = self.read()
            if state is None or state.phase == "removing":
                raise gone
            changed = change(state)
            if changed != state:
                self.write(changed)
        return changed

    def relay(self) -> RelayState | None:
        """Return what the relay last wrote about itself."""
        fields = self._load(self.endpoint_file)
        with suppress(TypeError):
            return None if fields is None else RelayState(**fields)
        return None

    def api(self) -> ApiState | None:
        """Return what the API last wrote about itself."""
        fields = self._load(self.api_file)
        with suppress(TypeError):
            return None if fields is None else ApiState(**fields)
        return None

    def record_spawned(self, module: str, process: ProcessState) -> None:
        """Record a process that was just started, until it writes about itself."""
        noted = {name: asdict(other) for name, other in self.spawned().items()}
        self.save(self.spawned_file, {**noted, module: asdict(process)})

    def spawned(self) -> dict[str, ProcessState]:
        """Return the processes that were started last, by module."""
        with suppress(Error, TypeError):
            return {module: ProcessState(**fields) for module, fields in (self._load(self.spawned_file) or {}).items()}
        return {}

    @contextmanager
    def programs(self) -> Iterator[int]:
        """Yield the file descriptor of a lock, which PostgreSQL programs that the API runs inherit."""
        with self.programs_lock_file.open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)
            yield lock.fileno()

    def await_programs(self) -> None:
        """Wait up to a minute until those programs have ended; they may run longer than a killed API."""
        with suppress(FileNotFoundError), self.programs_lock_file.open("r") as lock:

            def free() -> bool:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    return False
                return True

            processes.wait(free, 60.0)

    def save(self, path: Path, value: object) -> None:
        """Replace a file of the directory by a value as JSON, in one step; only the owner may read it."""
        processes.write_private_file(path, json.dumps(value, indent=2) + "\n")

    def _load(self, path: Path) -> dict[str, Any] | None:
        try:
            loaded = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except NotADirectoryError:
            return None
        except (OSError, ValueError) as exc:
            raise Error(f"could not read {path}: {exc}", hint="remove that sandbox: rdsrepl sandbox down") from exc
        return loaded if isinstance(loaded, dict) else {}

    @contextmanager
    def locked(self, waiting: Callable[[], None]) -> Iterator[int]:
        """Hold the lock of the sandbox for one command; yield the file descriptor of the lock.

        A program that inherits the descriptor holds the lock, too. So when a command is killed, the next command waits
        for the ``initdb`` of the killed one instead of removing the directory that it writes.

        Args:
            waiting: called once when another command holds the lock.

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
        notified = False
        while True:
            try:
                self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
                self.check_owner()
                descriptor = os.open(self.lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            except FileNotFoundError:  # a `down` removed the directory between the two lines
                continue
            except OSError as exc:
                raise Error(
                    f"could not use the sandbox directory: {exc}", hint="set RDSREPL_SANDBOX_DIR to another directory"
                ) from exc
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # A `down` may have removed the file that was opened; then the lock protects nothing.
                if os.fstat(descriptor).st_ino == self.lock_file.stat().st_ino:
                    return descriptor
                os.close(descriptor)
                continue
            except FileNotFoundError:
                os.close(descriptor)
                continue
            except BlockingIOError:
                os.close(descriptor)
            if not notified:
                waiting()
                notified = True
            if time.monotonic() > deadline:
                raise TimedOut(
                    f"timed out after {LOCK_WAIT_SECONDS:.0f} s: another command of the sandbox is running",
                    hint="wait until it ends, or stop it",
                )
            time.sleep(0.1)

    def remove(self) -> None:
        """Remove the directory and the lock in it, and the empty rdsrepl directories above it."""
        self.lock_file.unlink(missing_ok=True)
        with suppress(OSError):
            self.path.rmdir()
            for parent in list(self.path.parents)[:2]:
                if parent.name == "rdsrepl":
                    parent.rmdir()


class StateReader:
    """Reads the state again only after it changed, for a process that needs it many times a second."""

    def __init__(self, directory: SandboxDirectory) -> None:
        self._directory = directory
        self._stamp: tuple[int, int] | None = None
        self._state: State | None = None

    def read(self) -> State | None:
        """Return the state; the last one if the sandbox was removed, None if there was none.

        Raises:
            Error: another version wrote the state file.
            Refused: another user may have written it.
        """
        with suppress(OSError):
            status = self._directory.state_file.stat()
            stamp = (status.st_ino, status.st_mtime_ns)
            # A file that was replaced twice in a moment can have the inode and the time of the first one.
            if stamp != self._stamp or time.time() - status.st_mtime < _RECENT_SECONDS:
                self._state, self._stamp = self._directory.read(), stamp
        return self._state


def directory() -> SandboxDirectory:
    """Return the directory of the sandbox: ``RDSREPL_SANDBOX_DIR``, or one under ``XDG_STATE_HOME``."""
    if explicit := os.environ.get("RDSREPL_SANDBOX_DIR"):
        return SandboxDirectory(Path(explicit).absolute())
    base = os.environ.get("XDG_STATE_HOME")
    return SandboxDirectory((Path(base) if base else home_directory() / ".local" / "state") / "rdsrepl" / "sandbox")
