"""Turns an entry of the state into the ``PostgresServer`` that it describes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Final

from rdsrepl.sandbox.directory import SandboxDirectory
from rdsrepl.sandbox.servers.binaries import Binaries
from rdsrepl.sandbox.servers.postgres_server import PostgresServer
from rdsrepl.sandbox.state import ServerState, State

_SYNC_DATABASE: Final = "rds.logical_slot_sync_dbname"
# A unix socket of this port does not exist, so a connection to it fails at once.
_CLOSED_PORT: Final = 1


def server(home: SandboxDirectory, state: State, entry: ServerState, keep_open: tuple[int, ...] = ()) -> PostgresServer:
    """Return a server of the sandbox, ready to be created or started.

    Args:
        home: the directory of the sandbox.
        state: contains the source of the server.
        entry: the server.
        keep_open: file descriptors that the programs that create the server inherit.
    """
    programs = entry.binaries
    made = PostgresServer(
        home.servers_dir / entry.name,
        programs,
        port=entry.port,
        socket_dir=Path(state.socket_dir),
        settings={**base_settings(programs), **entry.settings},
        keep_open=keep_open,
    )
    source = state.server(entry.source) if entry.source else None
    if source is not None:
        if entry.slot:
            made.settings["primary_slot_name"] = entry.slot
        primary = server(home, state, source)
        # RDS has the name of the database from 17 on: slot synchronization connects to it.
        database = entry.settings.get(_SYNC_DATABASE)
        made.stream_from(primary, dbname=database, port=_CLOSED_PORT if entry.is_cut_off else None)
    return made


@cache
def base_settings(programs: Binaries) -> Mapping[str, str]:
    """Return the settings of every server of the sandbox; parameter groups override them."""
    settings = {
        # A standby on the same machine reports its position and reconnects sooner than by default.
        "wal_receiver_status_interval": "1s",
        "wal_retrieve_retry_interval": "200ms",
        # The default of PostgreSQL and of RDS.
        "hot_standby_feedback": "off",
    }
    if programs.has_parameter("output_plugin_libraries"):
        settings["output_plugin_libraries"] = "pgoutput,test_decoding,wal2json"
    return settings


def data_dirs(home: SandboxDirectory) -> list[Path]:
    """Return the data directories that exist, whether or not the state names them."""
    return sorted(path for path in home.servers_dir.glob("*") if path.is_dir())
