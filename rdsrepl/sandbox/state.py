"""The state of the sandbox: which servers, endpoints and processes exist, and how they belong together. Pure data.

What RDS knows of them is in the records of the API. ``directory`` stores the state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from rdsrepl.sandbox.servers import processes
from rdsrepl.sandbox.servers.binaries import Binaries

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
