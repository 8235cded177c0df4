"""What runs in the sandbox now: the document that ``sandbox up`` and ``sandbox status`` print."""

from __future__ import annotations

from contextlib import closing, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from rdsrepl.errors import Error
from rdsrepl.sandbox import server_registry
from rdsrepl.sandbox.directory import SandboxDirectory
from rdsrepl.sandbox.servers.postgres_server import HOST
from rdsrepl.sandbox.state import ServerState, State

if TYPE_CHECKING:
    from rdsrepl.sandbox.api.records import Cluster, Records
from rdsrepl.sandbox.client_config import CLUSTER, PROFILE, TARGET, api_region, api_url


@dataclass(frozen=True, slots=True)
class ServerReport:
    """One server, which is one DB instance, as it is now.

    Attributes:
        name: the identifier of the instance.
        role: ``reader`` for a standby.
        cluster: the cluster that it is a member of.
        status: the status that RDS reports; None when the API has no record of it.
        endpoint_port: the port of the instance endpoint; None before the relay listens.
        in_recovery: whether it is a standby; None when it does not answer.
        streaming: whether it receives WAL from its source; None when it is not a standby or does not answer.
        replay_lag_bytes: WAL that it received and did not replay yet.
    """

    name: str
    role: Literal["writer", "reader"]
    cluster: str | None
    status: str | None
    endpoint_port: int | None
    running: bool
    pid: int | None
    port: int
    in_recovery: bool | None
    streaming: bool | None
    replay_lag_bytes: int | None
    data_dir: str
    log_file: str


@dataclass(frozen=True, slots=True)
class ClusterReport:
    """One DB cluster as it is now.

    Attributes:
        status: the status that RDS reports.
        port: the port of the writer endpoint; None before the relay listens.
        reader_port: the port of the reader endpoint; None without one.
        members: the instances, the writer first.
    """

    name: str
    engine: str
    version: str
    status: str
    parameter_group: str
    port: int | None
    reader_port: int | None
    members: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """The sandbox as it is now; the document that ``up`` and ``status`` print.

    Attributes:
        state: ``running``; ``degraded`` when a part does not run; ``stopped``; ``incomplete`` when ``up`` was killed.
        port: the port of the writer endpoint of the first cluster; 0 when that cluster was deleted.
        endpoint_url: the base URL of RDS and of the services of moto.
        plugins: the output plugins of the servers.
    """

    state: Literal["running", "degraded", "stopped", "incomplete"]
    target: str
    host: str
    port: int
    reader_port: int | None
    user: str
    dbname: str
    passfile: str
    endpoint_url: str
    region: str
    profile: str
    aws_config_file: str
    aws_credentials_file: str
    version: str
    plugins: tuple[str, ...]
    endpoint_pid: int | None
    api_pid: int | None
    clusters: tuple[ClusterReport, ...]
    servers: tuple[ServerReport, ...]
    bin_dir: str
    directory: str


# In these statuses of an instance its server does not have to run.
STATUSES_WITHOUT_SERVER: Final = ("creating", "deleting", "failed", "incompatible-parameters", "stopped")


def read_report(home: SandboxDirectory, state: State) -> Report:
    """Return the sandbox as it is now."""
    from rdsrepl.sandbox.api.records import Cluster, Instance

    endpoint, api = home.relay(), home.api()
    endpoint_pid = endpoint.pid if endpoint is not None and endpoint.is_running() else None
    api_pid = api.pid if api is not None and api.is_running() else None
    records = read_records(home)
    statuses = {instance.identifier: instance.status for instance in records.all(Instance)}
    reports = tuple(_server_report(home, state, entry, statuses.get(entry.name)) for entry in state.servers)
    alive = [
        endpoint_pid is not None,
        api_pid is not None,
        *(r.running and r.in_recovery is not None for r in reports if r.status not in STATUSES_WITHOUT_SERVER),
    ]
    if state.phase != "ready":
        condition: Literal["running", "degraded", "stopped", "incomplete"] = "incomplete"
    else:
        condition = "running" if all(alive) else "degraded" if any(alive) else "stopped"
    plugins = [name for name in ("test_decoding", "wal2json") if state.binaries.has_plugin(name)]
    return Report(
        state=condition,
        target=TARGET,
        host=HOST,
        port=state.port("writer", CLUSTER) or 0,
        reader_port=state.port("reader", CLUSTER),
        user=state.user,
        dbname=state.dbname,
        passfile=str(home.passfile),
        endpoint_url=api_url(home),
        region=api_region(home),
        profile=PROFILE,
        aws_config_file=str(home.aws_config_file),
        aws_credentials_file=str(home.aws_credentials_file),
        version=".".join(map(str, state.version)),
        plugins=("pgoutput", *plugins),
        endpoint_pid=endpoint_pid,
        api_pid=api_pid,
        clusters=tuple(_cluster_report(state, cluster) for cluster in records.all(Cluster)),
        servers=reports,
        bin_dir=state.bin_dir,
        directory=str(home.path),
    )


def read_records(home: SandboxDirectory) -> Records:
    """Return the records as the API last wrote them."""
    from rdsrepl.sandbox.api.records import Records
    from rdsrepl.sandbox.api.store import Store

    return Records(Store(home.aws_file))


def _cluster_report(state: State, cluster: Cluster) -> ClusterReport:
    return ClusterReport(
        name=cluster.identifier,
        engine=cluster.engine,
        version=cluster.version,
        status=cluster.status,
        parameter_group=cluster.parameter_group,
        port=state.port("writer", cluster.identifier),
        reader_port=state.port("reader", cluster.identifier),
        members=tuple(entry.name for entry in state.members(cluster.identifier)),
    )


_RECOVERY_STATUS: Final = """
    SELECT pg_is_in_recovery(),
           EXISTS (SELECT FROM pg_catalog.pg_stat_wal_receiver WHERE status = 'streaming'),
           pg_wal_lsn_diff(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())::bigint
"""


def _server_report(home: SandboxDirectory, state: State, entry: ServerState, status: str | None) -> ServerReport:
    import psycopg

    server = server_registry.server(home, state, entry)
    pid = server.pid
    in_recovery = streaming = lag = None
    if pid is not None:
        # A server that is stopping does not answer.
        with suppress(Error, psycopg.Error), closing(server.administer()) as conn:
            row = conn.execute(_RECOVERY_STATUS).fetchone()
            assert row is not None
            in_recovery = bool(row[0])
            streaming, lag = (bool(row[1]), row[2]) if in_recovery else (None, None)
    return ServerReport(
        name=entry.name,
        role=entry.role,
        cluster=entry.cluster,
        status=status,
        endpoint_port=state.port("instance", entry.name),
        running=pid is not None,
        pid=pid,
        port=entry.port,
        in_recovery=in_recovery,
        streaming=streaming,
        replay_lag_bytes=lag,
        data_dir=str(server.data_dir),
        log_file=str(server.log_file),
    )
