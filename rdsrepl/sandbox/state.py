"""What the sandbox remembers between commands: one directory, one file in it, one lock.

Everything the sandbox makes is named in the file before it is made, so that ``down`` can undo whatever a crash left.
The file says which server is whose and which endpoint leads where; what RDS knows of them beyond that is the API's.
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

from rdsrepl.errors import Error, Refused, TimedOut
from rdsrepl.sandbox.servers import processes
from rdsrepl.sandbox.servers.binaries import Binaries

FORMAT: Final = 2
LOCK_WAIT_SECONDS: Final = 180.0

Role = Literal["writer", "reader"]
EndpointKind = Literal["writer", "reader", "instance", "reader-host"]
Phase = Literal["building", "ready", "removing"]


@dataclass(frozen=True, slots=True)
class ServerState:
    """One server: its data directory is ``servers/NAME`` under the sandbox's.

    Attributes:
        name: the instance's identifier.
        bin_dir: where its programs are.
        version: theirs.
        cluster: the cluster it is a member of.
        source: the server whose WAL it streams; None is a primary.
        slot: the physical slot it streams through, where it is or becomes a standby.
        port: 0 before it was first started.
        settings: its parameters, beyond those every server of the sandbox has.
    """

    name: str
    bin_dir: str
    version: tuple[int, ...]
    cluster: str | None = None
    source: str | None = None
    slot: str | None = None
    port: int = 0
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def binaries(self) -> Binaries:
        """The programs."""
        return Binaries(Path(self.bin_dir), self.version)

    @property
    def role(self) -> Role:
        """``reader`` when it is a standby."""
        return "reader" if self.source else "writer"


@dataclass(frozen=True, slots=True)
class EndpointState:
    """A port that stays while servers come, go and change their roles.

    Attributes:
        kind: what it leads to: a cluster's writer, its readers, or one instance; ``reader-host`` leads to the readers
            on the writer's port of another address.
        of: the identifier of the cluster or the instance.
        port: 0 is any free one, and where there is no such address, none.
    """

    kind: EndpointKind
    of: str
    port: int = 0

    @property
    def key(self) -> str:
        """What tells it from the others: ``writer:orders``."""
        return f"{self.kind}:{self.of}"


@dataclass(frozen=True, slots=True)
class State:
    """The sandbox as it was made.

    Attributes:
        phase: ``building`` until everything is there; a sandbox found in it was left by a crash.
        bin_dir: where the PostgreSQL programs are that it was made with.
        version: theirs.
        socket_dir: the servers' unix sockets; only the owner may enter.
        user: the master user of the cluster that the sandbox begins with.
        dbname: the database that belongs to it.
        config_file: where the ``sandbox`` target was written.
        config_was_there: whether that file existed before.
        servers: all of them.
        endpoints: all of them.
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
        """Return one server's entry."""
        return next((server for server in self.servers if server.name == name), None)

    def members(self, cluster: str) -> tuple[ServerState, ...]:
        """Return a cluster's servers, the writer first."""
        return tuple(sorted((s for s in self.servers if s.cluster == cluster), key=lambda s: s.source is not None))

    def primary_of(self, server: ServerState) -> ServerState:
        """Return the primary at the end of a server's line of sources; itself where it is one."""
        seen = {server.name}
        while server.source and server.source not in seen and (above := self.server(server.source)) is not None:
            seen.add(above.name)
            server = above
        return server

    def family(self, server: ServerState) -> str:
        """Return what all servers of one primary share, whichever of them is that: the cluster's name, or its own."""
        primary = self.primary_of(server)
        return primary.cluster or primary.name

    def backends(self, endpoint: EndpointState) -> tuple[ServerState, ...]:
        """Return the servers an endpoint leads to now; a cluster without readers has its writer read."""
        if endpoint.kind == "instance":
            return tuple(server for server in self.servers if server.name == endpoint.of)
        members = self.members(endpoint.of)
        if endpoint.kind == "writer":
            return tuple(server for server in members if server.role == "writer")
        return tuple(server for server in members if server.role == "reader") or members

    def port(self, kind: EndpointKind, of: str) -> int | None:
        """Return an endpoint's port; None where there is no such endpoint, or it does not listen yet."""
        return next((e.port for e in self.endpoints if (e.kind, e.of) == (kind, of)), None) or None

    def with_server(self, server: ServerState) -> State:
        """Return the state with one server's entry replaced, or added."""
        if self.server(server.name) is None:
            return replace(self, servers=(*self.servers, server))
        return replace(self, servers=tuple(server if old.name == server.name else old for old in self.servers))

    def without_server(self, name: str) -> State:
        """Return the state without one server and its endpoint."""
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
        """Return the state with endpoints added; one that is there keeps its port."""
        known = {endpoint.key for endpoint in self.endpoints}
        return replace(self, endpoints=(*self.endpoints, *(e for e in endpoints if e.key not in known)))

    def with_ports(self, ports: Mapping[str, int]) -> State:
        """Return the state with the ports on which the relay says it listens, by the endpoints' keys."""
        return replace(self, endpoints=tuple(replace(e, port=ports.get(e.key, e.port)) for e in self.endpoints))


@dataclass(frozen=True, slots=True)
class ProcessState:
    """A process of the sandbox's: its id, when it started (``processes.started``)."""

    pid: int
    started: str

    def is_running(self) -> bool:
        """Say whether that very process lives."""
        return processes.start_time(self.pid) == self.started


@dataclass(frozen=True, slots=True)
class RelayState(ProcessState):
    """The relay process behind the endpoints: the ports it listens on, by the endpoints' keys."""

    ports: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class ApiState(ProcessState):
    """The API's process: the port of its base URL, the region it is."""

    port: int
    region: str


@dataclass(frozen=True, slots=True)
class SandboxDirectory:
    """The sandbox's directory and the files in it."""

    path: Path

    @property
    def state_file(self) -> Path:
        """``State`` as JSON."""
        return self.path / "state.json"

    @property
    def servers_dir(self) -> Path:
        """The servers' data directories and logs."""
        return self.path / "servers"

    @property
    def endpoint_file(self) -> Path:
        """``RelayState`` as JSON, written by the relay itself when it listens."""
        return self.path / "endpoint.json"

    @property
    def endpoint_log(self) -> Path:
        """What the relay says."""
        return self.path / "endpoint.log"

    @property
    def api_file(self) -> Path:
        """``ApiState`` as JSON, written by the API itself when it listens."""
        return self.path / "api.json"

    @property
    def api_log(self) -> Path:
        """What the API says."""
        return self.path / "api.log"

    @property
    def aws_file(self) -> Path:
        """What the API remembers: groups, clusters, instances."""
        return self.path / "aws.json"

    @property
    def aws_config_file(self) -> Path:
        """The shared config file of AWS's tools, with the profile ``sandbox``."""
        return self.path / "aws" / "config"

    @property
    def aws_credentials_file(self) -> Path:
        """The shared credentials file of AWS's tools, with the profile ``sandbox``."""
        return self.path / "aws" / "credentials"

    @property
    def credentials_file(self) -> Path:
        """What requests to the API are signed with (``credentials``)."""
        return self.path / "credentials.json"

    @property
    def programs_lock_file(self) -> Path:
        """Held, shared, by the programs that the API runs: what is left of them is waited for."""
        return self.path / "programs.lock"

    @property
    def spawned_file(self) -> Path:
        """The processes that ``up`` started last."""
        return self.path / "spawned.json"

    @property
    def state_lock_file(self) -> Path:
        """Held for the moment of a change to the state."""
        return self.path / "state.lock"

    @property
    def granted_roles_file(self) -> Path:
        """The roles that hold the REPLICATION attribute on loan from the endpoint."""
        return self.path / "granted_roles.json"

    @property
    def passfile(self) -> Path:
        """The master user's password, in the form of libpq's ``.pgpass``."""
        return self.path / "pgpass"

    @property
    def lock_file(self) -> Path:
        """Held by the command at work, and by the programs it runs."""
        return self.path / "lock"

    def check_owner(self) -> None:
        """Refuse a directory in which another user may put files: the state names programs that are run.

        Raises:
            Refused: it is another user's, or others may write to it.
        """
        for found in (self.path.lstat(), self.path.stat()):
            writable = not stat.S_ISLNK(found.st_mode) and found.st_mode & 0o022
            if found.st_uid != os.geteuid() or writable:
                raise Refused(
                    f"the sandbox's directory {self.path} belongs to another user, or others may write to it",
                    hint="set RDSREPL_SANDBOX_DIR to a directory that does not exist yet",
                )

    def read(self) -> State | None:
        """Return what is remembered; None where there is no sandbox.

        Raises:
            Error: the file is not one this version wrote.
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
                f"{self.state_file} was written by another version of rdsrepl: {exc}",
                hint="remove that sandbox: rdsrepl sandbox down",
            ) from exc

    def write(self, state: State) -> None:
        """Remember STATE, in one step."""
        self.save(self.state_file, {"format": FORMAT, **asdict(state)})

    def update(self, change: Callable[[State], State]) -> State:
        """Change what is remembered, while other processes may do so as well; return it.

        Raises:
            Error: the sandbox is gone, or is being removed.
        """
        gone = Error(f"the sandbox in {self.path} is gone", hint="make it anew: rdsrepl sandbox up")
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
        """Return what the relay last said of itself."""
        fields = self._load(self.endpoint_file)
        with suppress(TypeError):
            return None if fields is None else RelayState(**fields)
        return None

    def api(self) -> ApiState | None:
        """Return what the API last said of itself."""
        fields = self._load(self.api_file)
        with suppress(TypeError):
            return None if fields is None else ApiState(**fields)
        return None

    def record_spawned(self, module: str, process: ProcessState) -> None:
        """Remember a process that was just started, until it says of itself what it is."""
        noted = {name: asdict(other) for name, other in self.spawned().items()}
        self.save(self.spawned_file, {**noted, module: asdict(process)})

    def spawned(self) -> dict[str, ProcessState]:
        """Return the processes that were started last, by their modules."""
        with suppress(Error, TypeError):
            return {module: ProcessState(**fields) for module, fields in (self._load(self.spawned_file) or {}).items()}
        return {}

    @contextmanager
    def programs(self) -> Iterator[int]:
        """Yield a file descriptor for PostgreSQL's programs to hold while they run on the API's behalf."""
        with self.programs_lock_file.open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)
            yield lock.fileno()

    def await_programs(self) -> None:
        """Wait until none of those programs runs any more, also where the API was killed; a minute at the most."""
        with suppress(FileNotFoundError), self.programs_lock_file.open("r") as lock:

            def free() -> bool:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    return False
                return True

            processes.wait(free, 60.0)

    def save(self, path: Path, value: object) -> None:
        """Replace a file of the directory in one step; for the owner's eyes only."""
        processes.write_private_file(path, json.dumps(value, indent=2) + "\n")

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
                self.check_owner()
                descriptor = os.open(self.lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
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

    def remove(self) -> None:
        """Remove the directory and the lock in it, and the directories above it that we made and that are empty."""
        self.lock_file.unlink(missing_ok=True)
        with suppress(OSError):
            self.path.rmdir()
            for parent in list(self.path.parents)[:2]:
                if parent.name == "rdsrepl":
                    parent.rmdir()


def directory() -> SandboxDirectory:
    """Return the sandbox's directory: ``RDSREPL_SANDBOX_DIR``, or under ``XDG_STATE_HOME``."""
    if explicit := os.environ.get("RDSREPL_SANDBOX_DIR"):
        return SandboxDirectory(Path(explicit).absolute())
    base = os.environ.get("XDG_STATE_HOME")
    return SandboxDirectory((Path(base) if base else Path.home() / ".local" / "state") / "rdsrepl" / "sandbox")
