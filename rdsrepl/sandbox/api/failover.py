"""The files of a failover: a standby gets what it needs to take over without losing changes or logical slots.

Both servers are stopped, and on the same machine. So the new writer gets all WAL of the old one, its saved logical
slots, and the files that decoding needs. In this way the slots of a Multi-AZ cluster survive a failover on every
version. The slot synchronization of PostgreSQL (17+) covers less.
"""

from __future__ import annotations

import re
import shutil
import signal
import struct
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rdsrepl.errors import Error, TimedOut
from rdsrepl.sandbox.servers import processes
from rdsrepl.sandbox.servers.postgres_server import PostgresServer
from rdsrepl.sandbox.servers.processes import ProcessIdentity

# A server that stops waits until consumers of logical slots confirm. After this time they are disconnected.
_CONSUMERS_SECONDS: Final = 0.3
_STOP_SECONDS: Final = 10.0
_PAUSE_SECONDS: Final = 10.0

# The start of pg_control, the same since version 11, with the last checkpoint and its redo position.
_CONTROL_FILE: Final = struct.Struct("=Q I I i 4x q Q Q")
# pg_replslot/NAME/state: a header (magic, checksum, version, length) and the slot as it is in memory.
_SLOT_FILE: Final = struct.Struct("=4I 64s I i I I Q")
_PERSISTENT: Final = 0
# The first page of a segment: magic, info, timeline, page address.
_PAGE_HEADER: Final = struct.Struct("=H H I Q")
_SEGMENT: Final = re.compile(r"[0-9A-F]{24}")


@dataclass(frozen=True, slots=True)
class SavedSlot:
    """A logical slot as a stopped server saved it.

    Attributes:
        restart_lsn: the oldest WAL that it needs.
    """

    name: str
    restart_lsn: int


def redo_lsn(data_dir: Path) -> int:
    """Return the position at which the recovery of a stopped server starts.

    Raises:
        Error: the control file cannot be read.
    """
    try:
        fields = _CONTROL_FILE.unpack_from((data_dir / "global" / "pg_control").read_bytes())
    except (OSError, struct.error) as exc:
        raise Error(f"could not read the control file of {data_dir.name}: {exc}") from exc
    return int(fields[6])


def saved_slots(data_dir: Path) -> list[SavedSlot]:
    """Return the logical slots that a stopped server has after a start."""
    slots = []
    for directory in sorted((data_dir / "pg_replslot").glob("*")):
        with suppress(OSError, struct.error):
            fields = _SLOT_FILE.unpack_from((directory / "state").read_bytes())
            database, persistency, restart_lsn = fields[5], fields[6], fields[9]
            if database and persistency == _PERSISTENT and not directory.name.endswith(".tmp"):
                slots.append(SavedSlot(directory.name, restart_lsn))
    return slots


def copy_missing(old: PostgresServer, new: PostgresServer, received: int | None) -> list[str]:
    """Copy to a stopped standby the files of its stopped primary that it lacks; return the logical slots it got.

    Args:
        old: the primary, stopped or crashed.
        new: the standby, stopped.
        received: the position up to which the standby has the WAL; None when it is not known.

    Raises:
        Error: a file cannot be read or written.
    """
    try:
        with new.open_data_dirs(old) as (target, source):
            slots = saved_slots(source)
            complete = received if received is not None else redo_lsn(target)
            needed = min((slot.restart_lsn for slot in slots if slot.restart_lsn), default=complete)
            _copy_wal(source / "pg_wal", target / "pg_wal", complete, needed)
            for part in ("snapshots", "mappings"):
                _copy_missing_files(source / "pg_logical" / part, target / "pg_logical" / part)
            for slot in slots:
                place = target / "pg_replslot" / slot.name
                shutil.rmtree(place, ignore_errors=True)
                place.mkdir(mode=0o700)
                shutil.copyfile(source / "pg_replslot" / slot.name / "state", place / "state")
                (place / "state").chmod(0o600)
    except OSError as exc:
        raise Error(f"could not copy files from {old.data_dir.name} to {new.data_dir.name}: {exc}") from exc
    return [slot.name for slot in slots]


def remove_slots(server: PostgresServer) -> None:
    """Remove every slot of a stopped server that becomes a standby: no process would advance them there."""
    with server.open_data_dirs() as (place,):
        for directory in (place / "pg_replslot").glob("*"):
            shutil.rmtree(directory, ignore_errors=True)


def stop(server: PostgresServer) -> None:
    """Stop a server as RDS does, without waiting for slow consumers of its logical slots.

    Raises:
        TimedOut: the server still runs.
    """
    if not server.is_running():
        return
    consumers: list[ProcessIdentity] = []
    query = (
        "SELECT active_pid FROM pg_catalog.pg_replication_slots WHERE slot_type = 'logical' AND active_pid IS NOT NULL"
    )
    with suppress(Error), closing(server.administer()) as conn:
        pids = [row[0] for row in conn.execute(query).fetchall()]
        consumers = [ProcessIdentity(consumer, processes.start_time(consumer) or "", "") for consumer in pids]
    try:
        server.stop("fast", timeout_seconds=_CONSUMERS_SECONDS)
        return
    except TimedOut:
        for consumer in consumers:
            consumer.send(signal.SIGTERM)
    try:
        server.stop("fast", timeout_seconds=_STOP_SECONDS)
    except TimedOut:
        server.stop("immediate", timeout_seconds=_STOP_SECONDS)


def received_lsn(standby: PostgresServer) -> int | None:
    """Return the position up to which a running standby received WAL; None when it is not known."""
    query = "SELECT pg_wal_lsn_diff(pg_last_wal_receive_lsn(), '0/0')::numeric::text"
    with suppress(Error), closing(standby.administer()) as conn:
        row = conn.execute(query).fetchone()
        return int(row[0]) if row is not None and row[0] is not None else None
    return None


def create_physical_slots(primary: PostgresServer, wanted: list[str]) -> None:
    """Create the physical slots for standbys that do not exist yet.

    Raises:
        Error: the server refused.
    """
    with closing(primary.administer()) as conn:
        for name in wanted:
            conn.execute(
                "SELECT pg_create_physical_replication_slot(%s, true)"
                " WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_replication_slots WHERE slot_name = %s)",
                [name, name],
            )


def is_streaming(primary: PostgresServer, standby: str) -> bool:
    """Return whether a standby streams from its primary and has caught up."""
    query = (
        "SELECT EXISTS (SELECT FROM pg_catalog.pg_stat_replication WHERE application_name = %s AND state = 'streaming')"
    )
    with suppress(Error), closing(primary.administer()) as conn:
        row = conn.execute(query, [standby]).fetchone()
        return row is not None and bool(row[0])
    return False


def disconnect(standby: PostgresServer) -> None:
    """End the WAL receiver of a standby, which then connects with its current settings.

    Raises:
        Error: the server refused.
    """
    with closing(standby.administer()) as conn:
        conn.execute("SELECT pg_terminate_backend(pid) FROM pg_catalog.pg_stat_wal_receiver")


def set_replay(standby: PostgresServer, *, replays: bool) -> None:
    """Let a standby replay WAL, or keep it from that until its next restart.

    Raises:
        Error: the server refused.
        TimedOut: it still replays.
    """
    with closing(standby.administer()) as conn:
        if replays:
            conn.execute("SELECT pg_wal_replay_resume() WHERE pg_is_in_recovery()")
            return
        conn.execute("SELECT pg_wal_replay_pause() WHERE pg_is_in_recovery()")
        paused = (
            "SELECT pg_get_wal_replay_pause_state() = 'paused' WHERE pg_is_in_recovery()"
            if standby.version >= 14
            else "SELECT true"
        )

        def has_paused() -> bool:
            row = conn.execute(paused).fetchone()
            return row is not None and bool(row[0])

        if not processes.wait(has_paused, _PAUSE_SECONDS, 0.02):
            raise TimedOut(f"timed out after {_PAUSE_SECONDS:.0f} s: server {standby.data_dir.name} still replays WAL")


def _copy_wal(old: Path, new: Path, complete: int, needed: int) -> None:
    for history in old.glob("*.history"):
        if not (new / history.name).exists():
            _copy_file(history, new / history.name)
    for segment, number, size in _segments(old):
        # The standby has only the beginning of the segment that it was receiving.
        lacks = not (new / segment.name).exists() and number >= needed // size
        if lacks or number >= complete // size:
            _copy_file(segment, new / segment.name)


def _segments(pg_wal: Path) -> Iterator[tuple[Path, int, int]]:
    """Yield the segments with their numbers and sizes, without those that are recycled and contain older WAL."""
    for path in sorted(pg_wal.iterdir()):
        if not _SEGMENT.fullmatch(path.name):
            continue
        size = path.stat().st_size
        number = int(path.name[8:16], 16) * (2**32 // size) + int(path.name[16:], 16)
        with path.open("rb") as file:
            head = file.read(_PAGE_HEADER.size)
        if len(head) == _PAGE_HEADER.size and _PAGE_HEADER.unpack(head)[3] == number * size:
            yield path, number, size


def _copy_missing_files(old: Path, new: Path) -> None:
    for path in old.iterdir() if old.is_dir() else ():
        if path.is_file() and not (new / path.name).exists():
            _copy_file(path, new / path.name)


def _copy_file(source: Path, target: Path) -> None:
    new = target.with_name(target.name + ".new")
    shutil.copyfile(source, new)
    new.chmod(0o600)
    new.replace(target)
