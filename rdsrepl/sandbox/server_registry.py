"""The sandbox's servers as its state has them: from an entry to a ``Server`` that can be started."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from rdsrepl.sandbox.servers.binaries import Binaries
from rdsrepl.sandbox.servers.postgres_server import PostgresServer
from rdsrepl.sandbox.state import SandboxDirectory, ServerState, State


def server(home: SandboxDirectory, state: State, entry: ServerState, keep_open: tuple[int, ...] = ()) -> PostgresServer:
    """Return one of the sandbox's servers, ready to be made or started.

    Args:
        home: the sandbox's directory.
        state: where the server's source is found.
        entry: the server.
        keep_open: file descriptors that the programs which make it hold open.
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
    above = state.server(entry.source) if entry.source else None
    if above is not None:
        if entry.slot:
            made.settings["primary_slot_name"] = entry.slot
        made.stream_from(server(home, state, above))
    return made


@cache
def base_settings(programs: Binaries) -> Mapping[str, str]:
    """Return what every server of the sandbox has before its parameter groups say otherwise."""
    settings = {
        # A standby on the same machine need not be patient: it says what it has, and comes back after a restart, soon.
        "wal_receiver_status_interval": "1s",
        "wal_retrieve_retry_interval": "200ms",
    }
    if programs.has_parameter("output_plugin_libraries"):
        settings["output_plugin_libraries"] = "pgoutput,test_decoding,wal2json"
    return settings


def data_dirs(home: SandboxDirectory) -> list[Path]:
    """Return the data directories that are there, whatever the state says."""
    return sorted(path for path in home.servers_dir.glob("*") if path.is_dir())
