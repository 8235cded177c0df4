"""The sandbox as a whole: brought up, looked at, taken down.

::

    client ── endpoints ── relay ──┬── servers (data directories "servers/…"): primaries and their standbys
                             │     │
                           state: which server is whose, and which is the writer
                             │     │
    client ── base URL ── API: RDS over those servers, moto's services beside it

``up`` finishes what an earlier one began, or starts again what ended; ``down`` undoes whatever it finds. While the API
runs, it alone starts and stops servers; what is done here is done before it starts, or after it has ended.
"""

from __future__ import annotations

import os
import secrets
import shutil
import stat
import sys
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import rdsrepl
from rdsrepl import config
from rdsrepl.errors import Error, Refused
from rdsrepl.sandbox import credentials, server_registry
from rdsrepl.sandbox.servers import binaries, postgres_server, processes, rds_roles
from rdsrepl.sandbox.servers.binaries import Binaries
from rdsrepl.sandbox.servers.postgres_server import HOST, READER_HOST, Server
from rdsrepl.sandbox.servers.processes import Identity
from rdsrepl.sandbox.state import Directory, EndpointState, ProcessState, ServerState, State, directory

if TYPE_CHECKING:
    from rdsrepl.sandbox.api.records import Cluster, Records

TARGET: Final = "sandbox"
CLUSTER: Final = "sandbox"
PROFILE: Final = "sandbox"
_PROCESS_SECONDS: Final = 20.0
_SERVERS_SECONDS: Final = 60.0

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class ServerReport:
    """One server, which is one DB instance, as it is now.

    Attributes:
        name: the instance's identifier.
        role: ``reader`` when it is a standby.
        cluster: whose member it is.
        status: what RDS says of it; None when the API has no record of it.
        endpoint_port: the instance endpoint's; None before it listens.
        in_recovery: whether it is a standby; None when it does not answer.
        streaming: whether it receives WAL from its source; None when it is no standby, or does not answer.
        replay_lag_bytes: what it has received and not yet replayed.
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
        status: what RDS says of it.
        port: the writer endpoint's; None before it listens.
        reader_port: the reader endpoint's; None without one.
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
        state: ``running``; ``degraded`` when a part of it is not; ``stopped``; ``incomplete`` when ``up`` was killed.
        port: the writer endpoint's of the cluster that the sandbox begins with; 0 when that was deleted.
        endpoint_url: of RDS, and of moto's services.
        plugins: the output plugins that the servers have.
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


@dataclass(frozen=True, slots=True)
class Removed:
    """What ``down`` found and removed."""

    was_there: bool
    target_removed: bool
    directory: str


def up(
    *,
    bin_dir: Path | None = None,
    standby: bool = True,
    default_group: bool = False,
    say: Say = lambda _: None,
) -> Report:
    """Bring the sandbox up, or report the one that is.

    Args:
        bin_dir: PostgreSQL's programs; None is the newest found.
        standby: whether a new sandbox gets a standby.
        default_group: whether its cluster has the family's default parameter group, with which ``wal_level`` is
            ``replica``, as a new cluster on RDS has.
        say: told what goes on, a line at a time.

    Raises:
        Error: it could not be made; nothing is left. Or one that was there could not be started; it is left as it was.
    """
    home = directory()
    _refuse_foreign_target(home)
    with home.locked(lambda: say("another rdsrepl sandbox command is at work; waiting for it")) as lock:
        state = home.read()
        if state is not None and state.phase != "ready":
            say("removing what an earlier, killed command left")
            _clear(home, state)
            state = None
        if state is not None:
            return _revive(home, state, say)
        try:
            return _build(home, binaries.find(bin_dir), standby, default_group, lock, say)
        except BaseException as exc:
            _clear(home, home.read())
            home.vanish()
            if isinstance(exc, Error) and exc.hint is not None and str(home.path) in exc.hint:
                exc.hint = "other programs may do: rdsrepl sandbox up --postgres-bin DIR"  # the log named is gone
            raise


def status() -> Report | None:
    """Report the sandbox as it is; None where there is none."""
    home = directory()
    state = home.read()
    return None if state is None else _report(home, state)


def down(*, say: Say = lambda _: None) -> Removed:
    """End the sandbox's processes and remove its files and its target, whatever state it is in.

    Raises:
        Error: something could not be removed.
    """
    home = directory()
    if not home.path.is_dir():
        return Removed(False, False, str(home.path))
    with home.locked(lambda: say("another rdsrepl sandbox command is at work; waiting for it")):
        state = None
        # A state that cannot be read is no reason to keep its processes.
        with suppress(Error):
            state = home.read()
        was_there = state is not None or home.endpoint_file.exists() or bool(server_registry.data_dirs(home))
        if was_there:
            say("stopping the servers")
        _clear(home, state)
        try:
            target_removed = _remove_target(home, state)
        finally:
            home.vanish()
    return Removed(was_there or target_removed, target_removed, str(home.path))


def variables(report: Report) -> dict[str, str]:
    """Return the variables that lead libpq to the writer and AWS's clients to the API; the password stays in a file."""
    return {
        "PGHOST": report.host,
        "PGPORT": str(report.port),
        "PGUSER": report.user,
        "PGDATABASE": report.dbname,
        "PGPASSFILE": report.passfile,
        # Another user may listen on the port while the sandbox is down, and ask for the password as it is (libpq 16).
        "PGREQUIREAUTH": "scram-sha-256",
        "AWS_PROFILE": report.profile,
        "AWS_CONFIG_FILE": report.aws_config_file,
        "AWS_SHARED_CREDENTIALS_FILE": report.aws_credentials_file,
        "AWS_ENDPOINT_URL": report.endpoint_url,
        "AWS_REGION": report.region,
        "AWS_DEFAULT_REGION": report.region,
    }


def writer(home: Directory | None = None) -> Server:
    """Return the server that is the writer now of the cluster the sandbox begins with, for superuser's work on it.

    Raises:
        Error: there is no sandbox, or that cluster was deleted.
    """
    home = home or directory()
    state = home.read()
    members = state.members(CLUSTER) if state is not None else ()
    if state is None or not members:
        raise Error(f"no sandbox in {home.path}", hint="rdsrepl sandbox up")
    return server_registry.server(home, state, members[0])


def _build(home: Directory, programs: Binaries, standby: bool, default_group: bool, lock: int, say: Say) -> Report:
    from rdsrepl.sandbox.api import seed

    version = ".".join(map(str, programs.version))
    say(f"PostgreSQL {version} from {programs.bin_dir}")
    config_file = config.config_path()
    state = State(
        phase="building",
        bin_dir=str(programs.bin_dir),
        version=programs.version,
        socket_dir=str(postgres_server.new_socket_dir(processes.launcher(programs.program("postgres")))),
        user=rds_roles.MASTER_USER,
        dbname=rds_roles.DATABASE,
        config_file=str(config_file),
        config_was_there=config_file.exists(),
    )
    home.write(state)
    state = seed.found(home, state, CLUSTER, standby=standby, default_group=default_group)
    home.write(state)
    state = _make_socket_dir(home, state)
    home.servers_dir.mkdir(mode=0o700)
    # They take a moment to start, which the servers' making is as well.
    api = _spawn(home, "rdsrepl.sandbox.api", home.api_log, seed.REGION)
    relay = _spawn(home, "rdsrepl.sandbox.relay", home.endpoint_log)

    say("making the writer")
    first, *others = state.servers
    primary = server_registry.server(home, state, first, (lock,))
    primary.initdb()
    primary.start()
    home.update(lambda now: now.with_server(replace(first, port=primary.port)))
    password = secrets.token_urlsafe(24)
    rds_roles.apply(primary, password)
    for entry in others:
        say("making the standby")
        copy = primary.clone(home.servers_dir / entry.name, slot=entry.slot or "", settings=dict(entry.settings))
        copy.start()
        home.update(lambda now, entry=entry, copy=copy: now.with_server(replace(entry, port=copy.port)))  # type: ignore[misc]

    say("starting the endpoints and the API")
    _await_relay(home, relay)
    _await_api(home, api)
    state = _remember_ports(home)
    _write_passfile(home, state, password)
    _write_aws_files(home)
    _add_target(home, state)
    state = home.update(lambda now: replace(now, phase="ready"))
    return _report(home, state)


def _revive(home: Directory, state: State, say: Say) -> Report:
    """Start what has ended of a complete sandbox."""
    for bin_dir in sorted({entry.bin_dir for entry in state.servers}):
        if not (Path(bin_dir) / "postgres").exists():
            raise Error(
                f"the sandbox's PostgreSQL is gone from {bin_dir}",
                hint="make it anew: rdsrepl sandbox down, then rdsrepl sandbox up",
            )
    state = _make_socket_dir(home, state)
    api = home.api()
    if api is not None and api.is_running():
        down = [entry.name for entry in state.servers if not _is_up(home, state, entry)]
        if down:
            say(f"waiting for {', '.join(down)}")
            processes.wait(lambda: _all_up(home), _SERVERS_SECONDS)
    else:
        state = _start_servers(home, state, say)
        say("starting the API")
        _await_api(home, _spawn(home, "rdsrepl.sandbox.api", home.api_log, *([api.region] if api else [])))
    relay = home.relay()
    if relay is None or not relay.is_running():
        say("starting the endpoints")
        password = _read_password(home)
        _await_relay(home, _spawn(home, "rdsrepl.sandbox.relay", home.endpoint_log))
        _write_passfile(home, _remember_ports(home), password)
    state = _remember_ports(home)
    _write_aws_files(home)
    _add_target(home, state)
    return _report(home, state)


def _start_servers(home: Directory, state: State, say: Say) -> State:
    """Start what has ended, primaries first."""
    for entry in sorted(state.servers, key=lambda entry: entry.source is not None):
        server = server_registry.server(home, state, entry)
        if server.is_running() or not server.exists():
            continue
        say(f"starting {entry.name}")
        try:
            server.start()
        except Error as exc:
            if entry.cluster == CLUSTER:
                raise
            say(f"{entry.name} stays down: {exc}")
            continue
        port = server.port
        state = home.update(lambda now, entry=entry, port=port: now.with_server(replace(entry, port=port)))  # type: ignore[misc]
    return state


def _is_up(home: Directory, state: State, entry: ServerState) -> bool:
    return server_registry.server(home, state, entry).is_running() or _status(home, entry.name) in _NOT_TO_BE_UP


# What an instance is that need not run, in RDS's words.
_NOT_TO_BE_UP: Final = ("creating", "deleting", "failed", "incompatible-parameters", "stopped")


def _all_up(home: Directory) -> bool:
    state = home.read()
    return state is not None and all(_is_up(home, state, entry) for entry in state.servers)


def _status(home: Directory, name: str) -> str | None:
    from rdsrepl.sandbox.api.records import Instance

    found = _records(home).find(Instance, name)
    return found.status if found is not None else None


def _make_socket_dir(home: Directory, state: State) -> State:
    """Make the directory of the unix sockets where it is missing; return the state that names it.

    A reboot empties the temporary directory, and then anybody can make one of that name. Who holds it hears what the
    superuser says: so another is made then, and what still runs, with its sockets out of reach, is ended.
    """
    way = processes.launcher(_programs(state).program("postgres"))
    path = Path(state.socket_dir)
    while not postgres_server.is_socket_dir(path, way):
        if os.path.lexists(path):
            with suppress(OSError):  # made by an `up` that was killed just then
                path.rmdir()
            path = postgres_server.new_socket_dir(way)
            for process in _python_processes(home):
                process.end()
            for entry in state.servers:
                server_registry.server(home, state, entry).stop("immediate")
            state = home.update(lambda now, path=path: replace(now, socket_dir=str(path)))  # type: ignore[misc]
        with suppress(FileExistsError):
            postgres_server.make_socket_dir(path, way)
    return state


def _clear(home: Directory, state: State | None) -> None:
    """End every process and remove every file but the lock."""
    if state is not None and state.phase != "removing":
        home.write(replace(state, phase="removing"))
    # The API first, as it starts servers, and then what its programs are about to make.
    for process in _python_processes(home):
        process.end(timeout_seconds=20.0)
    home.await_programs()
    socket_dir = None if state is None else Path(state.socket_dir)
    entries = {} if state is None else {entry.name: entry for entry in state.servers}
    data_dirs = server_registry.data_dirs(home)
    # Standbys first: a primary waits for them at its end.
    for data_dir in sorted(data_dirs, key=lambda path: path.name in entries and entries[path.name].source is None):
        entry = entries.get(data_dir.name)
        programs = Binaries(Path(entry.bin_dir), entry.version) if entry is not None else Binaries(Path(), (0,))
        Server(data_dir, programs, port=entry.port if entry is not None else 0, socket_dir=socket_dir).remove()
    if state is not None and socket_dir is not None and _is_ours(state, socket_dir):
        shutil.rmtree(socket_dir, ignore_errors=True)
    for path in home.path.iterdir():
        # The state goes last: without it nobody would know of the rest.
        if path not in (home.lock_file, home.state_file):
            _delete(path)
    home.state_file.unlink(missing_ok=True)


def _is_ours(state: State, socket_dir: Path) -> bool:
    with suppress(OSError, Error):
        if postgres_server.is_socket_dir(socket_dir, processes.launcher(_programs(state).program("postgres"))):
            return True
    with suppress(OSError):
        found = socket_dir.lstat()
        return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
    return False


def _python_processes(home: Directory) -> list[Identity]:
    """Return the API's and the relay's processes, also those that have not said a word yet."""
    found: list[ProcessState] = list(home.spawned().values())
    for said in (home.api, home.relay):
        with suppress(Error):
            process = said()
            if process is not None:
                found.append(process)
    return [Identity(process.pid, process.started, "rdsrepl.sandbox.") for process in found]


def _delete(path: Path) -> None:
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as exc:
        raise Error(f"{path} cannot be removed: {exc}", hint="remove it, then rdsrepl sandbox down again") from exc


def _programs(state: State) -> Binaries:
    return Binaries(Path(state.bin_dir), state.version)


def _spawn(home: Directory, module: str, log: Path, *words: str) -> int:
    """Start one of the sandbox's own processes; return its id."""
    log.touch(mode=0o600)
    # It runs in another directory, so an rdsrepl that is not installed has to be named.
    places = [str(Path(rdsrepl.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    extra = {"PYTHONPATH": os.pathsep.join(places), "PYTHONSAFEPATH": "1"}
    words = (sys.executable, "-m", module, str(home.path), *words)

    def note(process: Identity) -> None:
        # So that it is ended also when we are killed before it has said where it listens.
        home.note_spawned(module, ProcessState(process.pid, process.started))

    return processes.spawn(processes.Launcher(), words, log, note=note, env={**processes.environment(), **extra})


def _await_relay(home: Directory, pid: int) -> None:
    """Wait until the relay listens on every endpoint."""
    state = home.read()
    wanted = {endpoint.key for endpoint in state.endpoints} if state is not None else set()

    def listens() -> bool:
        relay = home.relay()
        return relay is not None and relay.pid == pid and wanted <= relay.ports.keys()

    _await(listens, pid, home.endpoint_log, "the endpoints")


def _await_api(home: Directory, pid: int) -> None:
    """Wait until the API takes requests."""

    def listens() -> bool:
        api = home.api()
        return api is not None and api.pid == pid

    _await(listens, pid, home.api_log, "the API")


def _await(listens: Callable[[], bool], pid: int, log: Path, what: str) -> None:
    processes.wait(lambda: listens() or processes.started(pid) is None, _PROCESS_SECONDS)
    if not listens():
        said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise Error(f"{what} did not start: {said[-1] if said else 'no word from there'}", hint=f"the log: {log}")


def _remember_ports(home: Directory) -> State:
    relay = home.relay()
    return home.update(lambda now: now.with_ports(relay.ports if relay is not None else {}))


def _base_url(home: Directory) -> str:
    api = home.api()
    return f"http://{HOST}:{api.port if api is not None else 0}"


def _region(home: Directory) -> str:
    api = home.api()
    return api.region if api is not None else ""


def _write_aws_files(home: Directory) -> None:
    """Write the profile for AWS's own tools."""
    own = credentials.make(home)
    files = {
        home.aws_config_file: f"[profile {PROFILE}]\nregion = {_region(home)}\nendpoint_url = {_base_url(home)}\n",
        home.aws_credentials_file: (
            f"[{PROFILE}]\naws_access_key_id = {own.access_key}\naws_secret_access_key = {own.secret_key}\n"
        ),
    }
    with processes.umask(0o077):
        for path, text in files.items():
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")


def _write_passfile(home: Directory, state: State, password: str) -> None:
    hosts = [
        (READER_HOST if endpoint.kind == "reader-host" else HOST, endpoint.port)
        for endpoint in state.endpoints
        if endpoint.port and _of_first_cluster(state, endpoint)
    ]
    with processes.umask(0o077):
        home.passfile.write_text(
            "".join(f"{host}:{port}:*:{state.user}:{password}\n" for host, port in hosts), encoding="utf-8"
        )


def _of_first_cluster(state: State, endpoint: EndpointState) -> bool:
    return endpoint.of == CLUSTER or endpoint.of in {entry.name for entry in state.members(CLUSTER)}


def _read_password(home: Directory) -> str:
    try:
        return home.passfile.read_text(encoding="utf-8").splitlines()[0].rpartition(":")[2]
    except (OSError, IndexError) as exc:
        raise Error(
            f"the sandbox's password is gone: {home.passfile}", hint="make it anew: rdsrepl sandbox down, then up"
        ) from exc


def _own_target() -> Mapping[str, str] | None:
    """Return the settings of the target called ``sandbox``; None where there is none."""
    target = config.load().targets.get(TARGET)
    if target is None:
        return None
    aws = {key: value for key, value in asdict(target.aws).items() if value is not None}
    return {**target.keywords, **aws, "dsn": target.dsn}


def _refuse_foreign_target(home: Directory) -> None:
    """Refuse to replace a target of that name which somebody else wrote."""
    settings = _own_target()
    if settings is None or settings.get("passfile") == str(home.passfile):
        return
    # One whose passfile is gone was another sandbox's, which did not end by `down`.
    stale = settings.get("host") == HOST and "passfile" in settings and not Path(settings["passfile"]).exists()
    if not stale:
        raise Refused(
            f"{config.config_path()} has a target {TARGET!r} that leads elsewhere",
            hint="give that target another name, or set XDG_CONFIG_HOME to another directory for the sandbox",
        )


def _add_target(home: Directory, state: State) -> None:
    if state.port("writer", CLUSTER) is None:
        return  # that cluster was deleted; the target is left as it was
    settings = {
        "host": HOST,
        "hostaddr": HOST,  # and not PGHOSTADDR's
        "port": str(state.port("writer", CLUSTER)),
        "dbname": state.dbname,
        "user": state.user,
        "passfile": str(home.passfile),
        "sslmode": "disable",
        "region": _region(home),
        "profile": PROFILE,
        "endpoint_url": _base_url(home),
        "aws_credentials_file": str(home.aws_credentials_file),
        "aws_config_file": str(home.aws_config_file),
        "cluster": CLUSTER,
    }
    if _own_target() != {**settings, "dsn": ""}:
        config.add_target(TARGET, settings)


def _remove_target(home: Directory, state: State | None) -> bool:
    settings = _own_target()
    if settings is None or settings.get("passfile") != str(home.passfile):
        return False
    config.remove_target(TARGET)
    path = config.config_path()
    if state is not None and not state.config_was_there and state.config_file == str(path):
        rest = config.load()
        if not rest.targets and rest.current is None and path.read_text(encoding="utf-8").strip() in ("", "targets:"):
            path.unlink()
            with suppress(OSError):
                path.parent.rmdir()
    return True


def _report(home: Directory, state: State) -> Report:
    from rdsrepl.sandbox.api.records import Cluster, Instance

    endpoint, api = home.relay(), home.api()
    endpoint_pid = endpoint.pid if endpoint is not None and endpoint.is_running() else None
    api_pid = api.pid if api is not None and api.is_running() else None
    records = _records(home)
    statuses = {instance.identifier: instance.status for instance in records.all(Instance)}
    reports = tuple(_server_report(home, state, entry, statuses.get(entry.name)) for entry in state.servers)
    alive = [
        endpoint_pid is not None,
        api_pid is not None,
        *(r.running and r.in_recovery is not None for r in reports if r.status not in _NOT_TO_BE_UP),
    ]
    if state.phase != "ready":
        condition: Literal["running", "degraded", "stopped", "incomplete"] = "incomplete"
    else:
        condition = "running" if all(alive) else "degraded" if any(alive) else "stopped"
    programs = _programs(state)
    plugins = [name for name in ("test_decoding", "wal2json") if programs.has_plugin(name)]
    return Report(
        state=condition,
        target=TARGET,
        host=HOST,
        port=state.port("writer", CLUSTER) or 0,
        reader_port=state.port("reader", CLUSTER),
        user=state.user,
        dbname=state.dbname,
        passfile=str(home.passfile),
        endpoint_url=_base_url(home),
        region=_region(home),
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


def _records(home: Directory) -> Records:
    """Return what the API last wrote."""
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


_HOW_IT_IS: Final = """
    SELECT pg_is_in_recovery(),
           EXISTS (SELECT FROM pg_catalog.pg_stat_wal_receiver WHERE status = 'streaming'),
           pg_wal_lsn_diff(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())::bigint
"""


def _server_report(home: Directory, state: State, entry: ServerState, status: str | None) -> ServerReport:
    import psycopg

    server = server_registry.server(home, state, entry)
    pid = server.pid
    in_recovery = streaming = lag = None
    if pid is not None:
        # One that ends just now has nothing more to say.
        with suppress(Error, psycopg.Error), closing(server.administer()) as conn:
            row = conn.execute(_HOW_IT_IS).fetchone()
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
