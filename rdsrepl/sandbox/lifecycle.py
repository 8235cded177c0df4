"""The sandbox as a whole: brought up, looked at, taken down.

::

    client ── writer endpoint ──┬── writer (data directory "writer-1")
    client ── reader endpoint ──┼── standby ("reader-1"), streams from the writer
                                └── state file: which server is which

``up`` finishes what an earlier one began, or starts again what ended; ``down`` undoes whatever it finds.
"""

from __future__ import annotations

import os
import secrets
import shutil
import sys
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Final, Literal

import rdsrepl
from rdsrepl import config
from rdsrepl.errors import Error, Refused
from rdsrepl.sandbox import binaries, likeness, processes, servers
from rdsrepl.sandbox.binaries import Binaries
from rdsrepl.sandbox.servers import HOST, Server
from rdsrepl.sandbox.state import Directory, ServerState, State, directory

TARGET: Final = "sandbox"
WRITER: Final = "writer-1"
READER: Final = "reader-1"
# Named as RDS names those of its replicas.
STANDBY_SLOT: Final = "rds_local_db_reader_1"
_ENDPOINT_SECONDS: Final = 20.0

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class ServerReport:
    """One server as it is now.

    Attributes:
        role: the endpoint that leads to it.
        in_recovery: whether it is a standby; None when it does not answer.
        streaming: whether it receives WAL from the writer; None when it is no standby, or does not answer.
        replay_lag_bytes: what it has received and not yet replayed.
    """

    name: str
    role: Literal["writer", "reader"]
    running: bool
    pid: int | None
    port: int
    in_recovery: bool | None
    streaming: bool | None
    replay_lag_bytes: int | None
    data_dir: str
    log_file: str


@dataclass(frozen=True, slots=True)
class Report:
    """The sandbox as it is now; the document that ``up`` and ``status`` print.

    Attributes:
        state: ``running``; ``degraded`` when a part of it is not; ``stopped``; ``incomplete`` when ``up`` was killed.
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
    version: str
    plugins: tuple[str, ...]
    endpoint_pid: int | None
    servers: tuple[ServerReport, ...]
    bin_dir: str
    directory: str


@dataclass(frozen=True, slots=True)
class Removed:
    """What ``down`` found and removed."""

    was_there: bool
    target_removed: bool
    directory: str


def up(*, bin_dir: Path | None = None, standby: bool = True, say: Say = lambda _: None) -> Report:
    """Bring the sandbox up, or report the one that is.

    Args:
        bin_dir: PostgreSQL's programs; None is the newest found.
        standby: whether a new sandbox gets a standby.
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
            return _build(home, binaries.find(bin_dir), standby, lock, say)
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
        was_there = state is not None or home.endpoint_file.exists() or bool(_data_dirs(home))
        if was_there:
            say("stopping the servers")
        _clear(home, state)
        try:
            target_removed = _remove_target(home, state)
        finally:
            home.vanish()
    return Removed(was_there or target_removed, target_removed, str(home.path))


def variables(report: Report) -> dict[str, str]:
    """Return the libpq variables that lead to the writer; the password stays in a file."""
    return {
        "PGHOST": report.host,
        "PGPORT": str(report.port),
        "PGUSER": report.user,
        "PGDATABASE": report.dbname,
        "PGPASSFILE": report.passfile,
    }


def writer(home: Directory | None = None) -> Server:
    """Return the server that is the writer now, for superuser's work on it.

    Raises:
        Error: there is no sandbox.
    """
    home = home or directory()
    state = home.read()
    if state is None:
        raise Error(f"no sandbox in {home.path}", hint="rdsrepl sandbox up")
    return _server(home, state, state.with_role("writer")[0])


def _build(home: Directory, programs: Binaries, standby: bool, lock: int, say: Say) -> Report:
    version = ".".join(map(str, programs.version))
    say(f"PostgreSQL {version} from {programs.bin_dir}")
    config_file = config.config_path()
    state = State(
        phase="building",
        bin_dir=str(programs.bin_dir),
        version=programs.version,
        socket_dir=str(servers.new_socket_dir()),
        user=likeness.MASTER_USER,
        dbname=likeness.DATABASE,
        writer_port=0,
        reader_port=None,
        config_file=str(config_file),
        config_was_there=config_file.exists(),
        servers=(ServerState(WRITER, "writer"), *((ServerState(READER, "reader"),) if standby else ())),
    )
    home.write(state)
    _make_socket_dir(state)
    if processes.launcher(programs.program("postgres")).user is not None:
        # Another user's servers have to pass; what is in here has its own modes.
        home.path.chmod(0o711)

    say("making the writer")
    primary = _server(home, state, state.servers[0], (lock,))
    primary.initdb()
    primary.start()
    state = state.with_server(replace(state.servers[0], port=primary.port))
    home.write(state)
    password = secrets.token_urlsafe(24)
    likeness.apply(primary, password)

    if standby:
        say("making the standby")
        copy = primary.clone(home.path / READER, slot=STANDBY_SLOT)
        copy.start()
        state = state.with_server(replace(state.servers[1], port=copy.port))
        home.write(state)

    say("starting the endpoints")
    state = _start_endpoint(home, state)
    _write_passfile(home, state, password)
    _add_target(home, state)
    state = replace(state, phase="ready")
    home.write(state)
    return _report(home, state)


def _revive(home: Directory, state: State, say: Say) -> Report:
    """Start what has ended of a complete sandbox."""
    programs = _programs(state)
    if not (programs.bin_dir / "postgres").exists():
        raise Error(
            f"the sandbox's PostgreSQL is gone from {programs.bin_dir}",
            hint="make it anew: rdsrepl sandbox down, then rdsrepl sandbox up",
        )
    for entry in state.servers:
        server = _server(home, state, entry)
        if not server.is_running():
            say(f"starting {entry.name}")
            _make_socket_dir(state)
            server.start()
            state = state.with_server(replace(entry, port=server.port))
            home.write(state)
    endpoint = home.endpoint()
    if endpoint is None or not endpoint.is_running():
        say("starting the endpoints")
        password = _read_password(home)
        state = _start_endpoint(home, state)
        _write_passfile(home, state, password)
        home.write(state)
    _add_target(home, state)
    return _report(home, state)


def _make_socket_dir(state: State) -> None:
    path = Path(state.socket_dir)
    if not path.exists():  # a reboot empties the temporary directory
        servers.make_socket_dir(path)
        processes.launcher(_programs(state).program("postgres")).own(path)


def _clear(home: Directory, state: State | None) -> None:
    """End every process and remove every file but the lock."""
    if state is not None and state.phase != "removing":
        home.write(replace(state, phase="removing"))
    endpoint = None
    with suppress(Error):
        endpoint = home.endpoint()
    if endpoint is not None:
        processes.end(endpoint.pid, endpoint.started)
    programs = Binaries(Path(), (0,)) if state is None else _programs(state)
    socket_dir = None if state is None else Path(state.socket_dir)
    ports = {} if state is None else {entry.name: entry.port for entry in state.servers}
    # Standbys first: the writer waits for them at its end.
    for data_dir in sorted(_data_dirs(home), key=lambda path: path.name == WRITER):
        Server(data_dir, programs, port=ports.get(data_dir.name, 0), socket_dir=socket_dir).remove()
    if socket_dir is not None:
        shutil.rmtree(socket_dir, ignore_errors=True)
    for path in home.path.iterdir():
        # The state goes last: without it nobody would know of the rest.
        if path not in (home.lock_file, home.state_file):
            _delete(path)
    home.state_file.unlink(missing_ok=True)


def _delete(path: Path) -> None:
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as exc:
        raise Error(f"{path} cannot be removed: {exc}", hint="remove it, then rdsrepl sandbox down again") from exc


def _data_dirs(home: Directory) -> list[Path]:
    return [path for name in (WRITER, READER) if (path := home.path / name).is_dir()]


def _programs(state: State) -> Binaries:
    return Binaries(Path(state.bin_dir), state.version)


@cache
def _settings(programs: Binaries) -> Mapping[str, str]:
    # 30 s is what RDS has.
    settings = {
        "wal_sender_timeout": "30s",
        "wal_receiver_timeout": "30s",
        # A standby on the same machine need not be patient: it says what it has, and comes back after a restart, soon.
        "wal_receiver_status_interval": "1s",
        "wal_retrieve_retry_interval": "200ms",
    }
    if programs.knows("output_plugin_libraries"):
        settings["output_plugin_libraries"] = "pgoutput,test_decoding,wal2json"
    return settings


def _server(home: Directory, state: State, entry: ServerState, keep_open: tuple[int, ...] = ()) -> Server:
    """Return one of the sandbox's servers, ready to be made or started."""
    server = Server(
        home.path / entry.name,
        _programs(state),
        port=entry.port,
        socket_dir=Path(state.socket_dir),
        settings=dict(_settings(_programs(state))),
        keep_open=keep_open,
    )
    if entry.role == "reader":
        server.settings["primary_slot_name"] = STANDBY_SLOT
        if server.version >= 17:
            server.settings["sync_replication_slots"] = "on"
        server.follow(_server(home, state, state.with_role("writer")[0]))
    return server


def _start_endpoint(home: Directory, state: State) -> State:
    """Start the relay process and wait until it listens; return the state with its ports."""
    home.endpoint_file.unlink(missing_ok=True)
    logged = home.endpoint_log.stat().st_size if home.endpoint_log.exists() else 0
    home.endpoint_log.touch(mode=0o600)
    words = [sys.executable, "-m", "rdsrepl.sandbox.endpoint", str(home.path)]
    # It runs in another directory, so an rdsrepl that is not installed has to be named.
    places = [str(Path(rdsrepl.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    extra = {"PYTHONPATH": os.pathsep.join(places), "PYTHONSAFEPATH": "1"}
    pid = processes.spawn(processes.Launcher(), words, home.endpoint_log, extra=extra)
    processes.wait(lambda: home.endpoint() is not None or processes.started(pid) is None, _ENDPOINT_SECONDS)
    endpoint = home.endpoint()
    if endpoint is None:
        said = home.endpoint_log.read_text(encoding="utf-8", errors="replace")[logged:].strip().splitlines()
        raise Error(f"the endpoints did not start: {said[-1] if said else 'no word from them'}")
    return replace(state, writer_port=endpoint.writer_port, reader_port=endpoint.reader_port)


def _write_passfile(home: Directory, state: State, password: str) -> None:
    ports = [state.writer_port, *([state.reader_port] if state.reader_port else [])]
    with processes.umask(0o077):
        home.passfile.write_text(
            "".join(f"{HOST}:{port}:*:{state.user}:{password}\n" for port in ports), encoding="utf-8"
        )


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
    return None if target is None else {**target.keywords, "dsn": target.dsn}


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
    settings = {
        "host": HOST,
        "hostaddr": HOST,  # and not PGHOSTADDR's
        "port": str(state.writer_port),
        "dbname": state.dbname,
        "user": state.user,
        "passfile": str(home.passfile),
        "sslmode": "disable",
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
    endpoint = home.endpoint()
    endpoint_pid = endpoint.pid if endpoint is not None and endpoint.is_running() else None
    reports = tuple(_server_report(home, state, entry) for entry in state.servers)
    alive = [endpoint_pid is not None, *(report.running and report.in_recovery is not None for report in reports)]
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
        port=state.writer_port,
        reader_port=state.reader_port,
        user=state.user,
        dbname=state.dbname,
        passfile=str(home.passfile),
        version=".".join(map(str, state.version)),
        plugins=("pgoutput", *plugins),
        endpoint_pid=endpoint_pid,
        servers=reports,
        bin_dir=state.bin_dir,
        directory=str(home.path),
    )


_HOW_IT_IS: Final = """
    SELECT pg_is_in_recovery(),
           EXISTS (SELECT FROM pg_stat_wal_receiver WHERE status = 'streaming'),
           pg_wal_lsn_diff(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())::bigint
"""


def _server_report(home: Directory, state: State, entry: ServerState) -> ServerReport:
    server = Server(home.path / entry.name, _programs(state), port=entry.port, socket_dir=Path(state.socket_dir))
    pid = server.pid
    in_recovery = streaming = lag = None
    if pid is not None:
        with suppress(Error), closing(server.connect()) as conn:
            row = conn.execute(_HOW_IT_IS).fetchone()
            assert row is not None
            in_recovery = bool(row[0])
            streaming, lag = (bool(row[1]), row[2]) if in_recovery else (None, None)
    return ServerReport(
        name=entry.name,
        role=entry.role,
        running=pid is not None,
        pid=pid,
        port=entry.port,
        in_recovery=in_recovery,
        streaming=streaming,
        replay_lag_bytes=lag,
        data_dir=str(server.data_dir),
        log_file=str(server.log_file),
    )
