"""Starts the sandbox, reports on it and removes it.

::

    client ── endpoints ── relay ──┬── servers (data directories "servers/…"): primaries and their standbys
                             │     │
                           state: which servers exist, and which are writers
                             │     │
    client ── base URL ── API: RDS over those servers, moto's services beside it

``up`` starts what does not run and removes what a killed ``up`` left; ``down`` removes everything. While the API runs,
only the API starts and stops servers. This module does so before the API starts, or after it has ended.
"""

from __future__ import annotations

import os
import secrets
import shutil
import stat
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import rdsrepl
from rdsrepl import config
from rdsrepl.errors import Error
from rdsrepl.sandbox import server_registry
from rdsrepl.sandbox.client_config import (
    CLUSTER,
    add_target,
    read_password,
    refuse_foreign_target,
    remove_target,
    write_aws_files,
    write_passfile,
)
from rdsrepl.sandbox.directory import SandboxDirectory, directory
from rdsrepl.sandbox.report import STATUSES_WITHOUT_SERVER, Report, read_records, read_report
from rdsrepl.sandbox.servers import binaries, processes, rds_roles, socket_dirs
from rdsrepl.sandbox.servers.binaries import Binaries
from rdsrepl.sandbox.servers.postgres_server import PostgresServer
from rdsrepl.sandbox.servers.processes import ProcessIdentity
from rdsrepl.sandbox.state import ProcessState, ServerState, State

_PROCESS_SECONDS: Final = 60.0
_SERVERS_SECONDS: Final = 60.0

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Removed:
    """What ``down`` removed.

    Attributes:
        was_there: whether the sandbox existed.
        target_removed: whether the configuration had its target.
    """

    was_there: bool
    target_removed: bool
    directory: str


def up(
    *,
    bin_dir: Path | None = None,
    standby: bool = True,
    default_group: bool = False,
    progress: Progress = lambda _: None,
) -> Report:
    """Create the sandbox, or start what does not run of an existing one; report on it.

    Args:
        bin_dir: the directory of the PostgreSQL programs; None selects the newest ones.
        standby: whether a new sandbox gets a standby.
        default_group: whether its cluster has the family's default parameter group, as a new cluster on RDS has;
            ``wal_level`` is ``replica`` then.
        progress: called with a line of text for each step.

    Raises:
        Error: the sandbox could not be created; nothing is left. Or an existing one could not be started; it stays as
            it is.
    """
    home = directory()
    refuse_foreign_target(home)
    with home.locked(lambda: progress("waiting for another command of the sandbox to end")) as lock:
        state = home.read()
        if state is not None and state.phase != "ready":
            progress("removing what a killed command left")
            _remove_everything(home, state)
            state = None
        if state is not None:
            return _start_stopped(home, state, progress)
        try:
            return _create(home, binaries.find(bin_dir), standby, default_group, lock, progress)
        except BaseException as exc:
            _remove_everything(home, home.read())
            home.remove()
            if isinstance(exc, Error) and exc.hint is not None and str(home.path) in exc.hint:
                # The hint names a log that was removed.
                exc.hint = "use other PostgreSQL programs: rdsrepl sandbox up --postgres-bin DIR"
            raise


def status() -> Report | None:
    """Return a report of the sandbox; None when it does not exist."""
    home = directory()
    state = home.read()
    return None if state is None else read_report(home, state)


def down(*, progress: Progress = lambda _: None) -> Removed:
    """Stop the processes of the sandbox and remove its files and its target, in whatever state it is.

    Raises:
        Error: a file could not be removed.
    """
    home = directory()
    if not home.path.is_dir():
        return Removed(False, False, str(home.path))
    with home.locked(lambda: progress("waiting for another command of the sandbox to end")):
        state = None
        # The processes are stopped also when the state cannot be read.
        with suppress(Error):
            state = home.read()
        was_there = state is not None or home.endpoint_file.exists() or bool(server_registry.data_dirs(home))
        if was_there:
            progress("stopping the servers")
        _remove_everything(home, state)
        try:
            target_removed = remove_target(home, state)
        finally:
            home.remove()
    return Removed(was_there or target_removed, target_removed, str(home.path))


def writer(home: SandboxDirectory | None = None) -> PostgresServer:
    """Return the server that is the writer of the first cluster now.

    Raises:
        Error: the sandbox does not exist, or that cluster was deleted.
    """
    home = home or directory()
    state = home.read()
    members = state.members(CLUSTER) if state is not None else ()
    if state is None or not members:
        raise Error(f"no sandbox in {home.path}", hint="rdsrepl sandbox up")
    return server_registry.server(home, state, members[0])


def _create(
    home: SandboxDirectory, programs: Binaries, standby: bool, default_group: bool, lock: int, progress: Progress
) -> Report:
    from rdsrepl.sandbox.api import seed

    version = ".".join(map(str, programs.version))
    progress(f"PostgreSQL {version} from {programs.bin_dir}")
    config_file = config.config_path()
    state = State(
        phase="building",
        bin_dir=str(programs.bin_dir),
        version=programs.version,
        socket_dir=str(socket_dirs.new_socket_dir(programs.launcher)),
        user=rds_roles.MASTER_USER,
        dbname=rds_roles.DATABASE,
        config_file=str(config_file),
        config_was_there=config_file.exists(),
    )
    home.write(state)
    state = seed.seed_cluster(home, state, CLUSTER, standby=standby, default_group=default_group)
    home.write(state)
    state = _make_socket_dir(home, state)
    home.servers_dir.mkdir(mode=0o700)
    # The API and the relay start while the servers are created.
    api = _spawn(home, "rdsrepl.sandbox.api", home.api_log)
    relay = _spawn(home, "rdsrepl.sandbox.relay", home.endpoint_log)

    progress("creating the writer")
    first, *others = state.servers
    primary = server_registry.server(home, state, first, (lock,))
    primary.initdb()
    primary.start()
    home.update(lambda now: now.with_server(replace(first, port=primary.port)))
    password = secrets.token_urlsafe(24)
    rds_roles.apply(primary, password)
    for entry in others:
        progress("creating the standby")
        copy = primary.clone(home.servers_dir / entry.name, slot=entry.slot or "", settings=dict(entry.settings))
        copy.start()
        home.update(lambda now, entry=entry, copy=copy: now.with_server(replace(entry, port=copy.port)))  # type: ignore[misc]

    progress("starting the endpoints and the API")
    _await_relay(home, relay)
    _await_api(home, api)
    state = _save_ports(home)
    write_passfile(home, state, password)
    write_aws_files(home)
    add_target(home, state)
    state = home.update(lambda now: replace(now, phase="ready"))
    return read_report(home, state)


def _start_stopped(home: SandboxDirectory, state: State, progress: Progress) -> Report:
    """Start what does not run of a complete sandbox."""
    for bin_dir in sorted({entry.bin_dir for entry in state.servers}):
        if not (Path(bin_dir) / "postgres").exists():
            raise Error(
                f"the PostgreSQL programs of the sandbox are no longer in {bin_dir}",
                hint="create the sandbox again: rdsrepl sandbox down && rdsrepl sandbox up",
            )
    state = _make_socket_dir(home, state)
    api = home.api()
    if api is not None and api.is_running():
        down = [entry.name for entry in state.servers if not _is_ready(home, state, entry)]
        if down:
            progress(f"waiting for {', '.join(down)}")
            processes.wait(lambda: _all_ready(home), _SERVERS_SECONDS)
    else:
        state = _start_servers(home, state, progress)
        progress("starting the API")
        _await_api(home, _spawn(home, "rdsrepl.sandbox.api", home.api_log, *([api.region] if api else [])))
    relay = home.relay()
    if relay is None or not relay.is_running():
        progress("starting the endpoints")
        password = read_password(home)
        _await_relay(home, _spawn(home, "rdsrepl.sandbox.relay", home.endpoint_log))
        write_passfile(home, _save_ports(home), password)
    state = _save_ports(home)
    write_aws_files(home)
    add_target(home, state)
    return read_report(home, state)


def _start_servers(home: SandboxDirectory, state: State, progress: Progress) -> State:
    """Start the servers that do not run, primaries first."""
    for entry in sorted(state.servers, key=lambda entry: entry.source is not None):
        server = server_registry.server(home, state, entry)
        if server.is_running() or not server.exists():
            continue
        progress(f"starting {entry.name}")
        try:
            server.start()
        except Error as exc:
            if entry.cluster == CLUSTER:
                raise
            progress(f"could not start {entry.name}: {exc}")
            continue
        port = server.port
        state = home.update(lambda now, entry=entry, port=port: now.with_server(replace(entry, port=port)))  # type: ignore[misc]
    return state


def _is_ready(home: SandboxDirectory, state: State, entry: ServerState) -> bool:
    return (
        server_registry.server(home, state, entry).is_running() or _status(home, entry.name) in STATUSES_WITHOUT_SERVER
    )


def _all_ready(home: SandboxDirectory) -> bool:
    state = home.read()
    return state is not None and all(_is_ready(home, state, entry) for entry in state.servers)


def _status(home: SandboxDirectory, name: str) -> str | None:
    from rdsrepl.sandbox.api.records import Instance

    instance = read_records(home).find(Instance, name)
    return instance.status if instance is not None else None


def _make_socket_dir(home: SandboxDirectory, state: State) -> State:
    """Create the directory of the unix sockets when it does not exist; return the state that names it.

    A reboot of the machine empties the temporary directory, and then any user can create a directory of that name. Its
    owner could read the superuser's connections. So a directory of another name is created in that case, and servers
    that still run are stopped, because their sockets are in the old directory.
    """
    launcher = state.binaries.launcher
    path = Path(state.socket_dir)
    while not socket_dirs.is_socket_dir(path, launcher):
        if os.path.lexists(path):
            with suppress(OSError):  # created by an `up` that was killed at that moment
                path.rmdir()
            path = socket_dirs.new_socket_dir(launcher)
            for process in _api_and_relay(home):
                process.end()
            for entry in state.servers:
                server_registry.server(home, state, entry).stop("immediate")
            state = home.update(lambda now, path=path: replace(now, socket_dir=str(path)))  # type: ignore[misc]
        with suppress(FileExistsError):
            socket_dirs.make_socket_dir(path, launcher)
    return state


def _remove_everything(home: SandboxDirectory, state: State | None) -> None:
    """Stop every process and remove every file except the lock."""
    if state is not None and state.phase != "removing":
        home.write(replace(state, phase="removing"))
    # The API first, because it starts servers; then the programs that it runs, because they write files.
    for process in _api_and_relay(home):
        process.end(timeout_seconds=20.0)
    home.await_programs()
    socket_dir = None if state is None else Path(state.socket_dir)
    entries = {} if state is None else {entry.name: entry for entry in state.servers}
    data_dirs = server_registry.data_dirs(home)
    # Standbys first: a primary that stops waits for them.
    for data_dir in sorted(data_dirs, key=lambda path: path.name in entries and entries[path.name].source is None):
        entry = entries.get(data_dir.name)
        programs = entry.binaries if entry is not None else Binaries(Path(), (0,))
        PostgresServer(data_dir, programs, port=entry.port if entry is not None else 0, socket_dir=socket_dir).remove()
    if state is not None and socket_dir is not None and _is_own_socket_dir(state, socket_dir):
        shutil.rmtree(socket_dir, ignore_errors=True)
    for path in home.path.iterdir():
        # The state last: it names everything else that has to be removed.
        if path not in (home.lock_file, home.state_file):
            _delete(path)
    home.state_file.unlink(missing_ok=True)


def _is_own_socket_dir(state: State, socket_dir: Path) -> bool:
    with suppress(OSError, Error):
        if socket_dirs.is_socket_dir(socket_dir, state.binaries.launcher):
            return True
    with suppress(OSError):
        status = socket_dir.lstat()
        return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()
    return False


def _api_and_relay(home: SandboxDirectory) -> list[ProcessIdentity]:
    """Return the processes of the API and the relay, also those that did not write about themselves yet."""
    running: list[ProcessState] = list(home.spawned().values())
    for read in (home.api, home.relay):
        with suppress(Error):
            process = read()
            if process is not None:
                running.append(process)
    return [ProcessIdentity(process.pid, process.started, "rdsrepl.sandbox.") for process in running]


def _delete(path: Path) -> None:
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as exc:
        raise Error(f"could not remove {path}: {exc}", hint="remove it, then run again: rdsrepl sandbox down") from exc


def _spawn(home: SandboxDirectory, module: str, log: Path, *words: str) -> int:
    """Start the API or the relay; return its process id."""
    log.touch(mode=0o600)
    # The process runs in another directory, so it needs the path of an rdsrepl that is not installed.
    places = [str(Path(rdsrepl.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    extra = {"PYTHONPATH": os.pathsep.join(places), "PYTHONSAFEPATH": "1"}
    words = (sys.executable, "-m", module, str(home.path), *words)

    def note(process: ProcessIdentity) -> None:
        # So `down` stops it also when this process is killed before the new one writes where it listens.
        home.record_spawned(module, ProcessState(process.pid, process.started))

    return processes.spawn(processes.Launcher(), words, log, note=note, env={**processes.environment(), **extra})


def _await_relay(home: SandboxDirectory, pid: int) -> None:
    """Wait until the relay listens on every endpoint."""
    state = home.read()
    wanted = {endpoint.key for endpoint in state.endpoints} if state is not None else set()

    def listens() -> bool:
        relay = home.relay()
        return relay is not None and relay.pid == pid and wanted <= relay.ports.keys()

    _await_start(listens, pid, home.endpoint_log, "the endpoints")


def _await_api(home: SandboxDirectory, pid: int) -> None:
    """Wait until the API accepts requests."""

    def listens() -> bool:
        api = home.api()
        return api is not None and api.pid == pid

    _await_start(listens, pid, home.api_log, "the API")


def _await_start(listens: Callable[[], bool], pid: int, log: Path, what: str) -> None:
    processes.wait(lambda: listens() or processes.start_time(pid) is None, _PROCESS_SECONDS)
    if not listens():
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise Error(f"{what} did not start: {lines[-1] if lines else 'the log is empty'}", hint=f"read the log: {log}")


def _save_ports(home: SandboxDirectory) -> State:
    relay = home.relay()
    return home.update(lambda now: now.with_ports(relay.ports if relay is not None else {}))
