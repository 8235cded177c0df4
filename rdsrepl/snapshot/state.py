"""The state of the snapshots of one slot: which were requested, and how far each table has come.

It has two forms with one document: a file (``FileStore``) and a row of a table (``table_store.TableStore``). The
process that streams the slot writes it; ``rdsrepl snapshot list`` reads it. A cursor in it decides which rows are not
read again, so a document that is damaged, or of another slot, database or server, is an error, and never a new start.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from hashlib import sha256
from io import FileIO
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from rdsrepl.config import state_directory
from rdsrepl.errors import BadState, BadValue, InUse, SinkFailed
from rdsrepl.postgres.sql_names import parse_name
from rdsrepl.postgres.table_structures import TableName
from rdsrepl.snapshot import requests
from rdsrepl.snapshot.requests import Malformed, Method, Request
from rdsrepl.state import json_lines
from rdsrepl.state.json_lines import Damaged, require_int64, require_type
from rdsrepl.text.escapes import shown

T = TypeVar("T")

#: How many unfinished snapshots a slot can have: every role of the database may request one.
MAX_UNFINISHED: Final = 100
_MAX_ENDED: Final = 50
_MAX_BYTES: Final = 256 << 20
_VERSION: Final = 1
LOCK_SECONDS: Final = 5.0


class Status(StrEnum):
    """How far a snapshot is."""

    requested = "requested"
    running = "running"
    paused = "paused"
    done = "done"
    cancelled = "cancelled"
    failed = "failed"

    @property
    def has_ended(self) -> bool:
        """Whether nothing follows, unless a failed snapshot is resumed."""
        return self in (Status.done, Status.cancelled, Status.failed)


@dataclass(frozen=True, slots=True)
class TableState:
    """How far one table of a snapshot is.

    Attributes:
        table: as in ``Request.tables``.
        cursor: the key of the last row that the output has, as the server prints its values; None: no row yet.
        rows: how many rows were written.
        estimated_rows: how many the table has, by its statistics; None is unknown.
        chunks: how many chunks were written.
        conflicts: how many rows of chunks were changed by the stream between their reading and their marker.
        read_again: keys of rows that a chunk by keys reads again.
        is_done: whether all rows were written.
        key: the columns of the cursor, with what defines their order.
        timeline, marker: of the last chunk's marker: a server that does not have it has undone what the chunk contains.
        method: how it is read; ``slot`` is only for a table without a key.
        sent: the columns with their types, and the row filter, of the rows that were read; empty is not known.
    """

    table: str
    cursor: tuple[str, ...] | None = None
    rows: int = 0
    estimated_rows: int | None = None
    chunks: int = 0
    conflicts: int = 0
    read_again: tuple[tuple[str, ...], ...] = ()
    is_done: bool = False
    key: tuple[str, ...] = ()
    timeline: int = 0
    marker: int = 0
    method: Method = Method.chunks
    sent: tuple[str, ...] = ()

    @property
    def is_incomplete(self) -> bool:
        """Whether the output has a TRUNCATE of the table, and not all rows and changes since."""
        return self.method is Method.slot and self.marker > 0 and not self.is_done

    def from_start(self) -> TableState:
        """Return the table as it is when it is read again from the start: its rows are counted again."""
        return replace(self, cursor=None, rows=0, chunks=0, conflicts=0, read_again=(), is_done=False)


@dataclass(frozen=True, slots=True)
class SnapshotState:
    """How far a snapshot is.

    Attributes:
        request: what was requested.
        status: how far it is.
        reason: why it failed or was paused by the streaming process; None otherwise.
        tables: the tables of the request, in its order; partitions stand for a partitioned table that is published by
            them.
        started_at: when its first chunk was read (UTC).
        ended_at: when it ended (UTC).
        running_seconds: for how long it ran, without pauses and stops.
        waits_for: what the streaming process waits for before it reads on, and what ends that; None otherwise.
    """

    request: Request
    status: Status = Status.requested
    reason: str | None = None
    tables: tuple[TableState, ...] = ()
    started_at: datetime | None = None
    ended_at: datetime | None = None
    running_seconds: float = 0.0
    waits_for: str | None = None

    @classmethod
    def new(cls, request: Request) -> SnapshotState:
        """Return the state of a request that was just received."""
        return cls(request, tables=tuple(TableState(table) for table in request.tables))

    def with_table(self, place: int, table: TableState) -> SnapshotState:
        """Return the snapshot with another state of the table at PLACE; the rate is that of the rows that count."""
        before, after = sum(one.rows for one in self.tables), table.rows - self.tables[place].rows
        seconds = self.running_seconds * (before + after) / before if after < 0 else self.running_seconds
        tables = (*self.tables[:place], table, *self.tables[place + 1 :])
        return replace(self, tables=tables, running_seconds=seconds)


@dataclass(frozen=True, slots=True)
class StreamIdentity:
    """Whose state it is.

    Attributes:
        system_identifier: of the server; its standbys have the same one.
        database, slot_name: the slot.
    """

    system_identifier: str
    database: str
    slot_name: str

    def __str__(self) -> str:
        return f"slot {self.slot_name} of database {self.database} on server {self.system_identifier}"


class Store(Protocol):
    """Where the streaming process keeps the state; only one process at a time."""

    def load(self) -> tuple[SnapshotState, ...]:
        """Claim the state for this process, until ``close``, and return it.

        Raises:
            BadState: it is damaged, or of another slot, database or server.
            InUse: another process has it.
        """
        ...

    def save(self, snapshots: Sequence[SnapshotState]) -> None:
        """Write the state to disk.

        Raises:
            InUse: another process claimed it.
            SinkFailed: it could not be written; the state before it is still there.
        """
        ...

    def close(self) -> None:
        """Release the state."""
        ...


@dataclass(frozen=True, slots=True)
class FilePlace:
    """The state is a file; None is the default file of the slot."""

    path: Path | None = None

    @property
    def tables(self) -> tuple[TableName, ...]:
        """The tables that have the state, which no output has."""
        return ()

    def __str__(self) -> str:
        return "the default file" if self.path is None else str(self.path)


@dataclass(frozen=True, slots=True)
class TablePlace:
    """The state is a row of a table in the slot's database."""

    schema: str
    table: str

    @property
    def tables(self) -> tuple[TableName, ...]:
        """The tables that have the state, which no output has."""
        return ((self.schema, self.table),)

    def __str__(self) -> str:
        return f"table:{requests.table_text(self.schema, self.table)}"


Place = FilePlace | TablePlace


def parse_place(text: str | None) -> Place:
    """Return the place that ``--state`` names: FILE or ``table:SCHEMA.NAME``; None is the default file.

    Raises:
        BadValue: it is neither.
    """
    if text is None:
        return FilePlace()
    if text.startswith("table:"):
        return parse_table(text.removeprefix("table:"))
    if not text or "\0" in text or Path(text).is_dir():
        raise BadValue(f"--state {text} is not a file", hint="give a file, or table:SCHEMA.NAME")
    return FilePlace(Path(text).absolute())


def parse_table(text: str) -> TablePlace:
    """Return the table that SCHEMA.NAME names.

    Raises:
        BadValue: it is not such a name.
    """
    parts = parse_name(text)
    if len(parts) != 2:
        raise BadValue(
            f"the table {text} for the state of snapshots has no schema",
            hint="name it with its schema, for example rdsrepl.snapshots",
        )
    return TablePlace(parts[0], parts[1])


def default_file(owner: StreamIdentity) -> Path:
    """Return the file of a slot in the state directory."""
    server, database = (sha256(text.encode()).hexdigest() for text in (owner.system_identifier, owner.database))
    return state_directory() / "snapshots" / f"{server[:16]}-{database[:8]}-{owner.slot_name}.json"


def forget(owner: StreamIdentity) -> None:
    """Remove the default file of a slot that was dropped: a slot that is created later with its name has other changes.

    A cursor of the old slot would leave out rows whose changes nothing has sent.
    """
    with contextlib.suppress(OSError):
        default_file(owner).unlink(missing_ok=True)


class FileStore:
    """The state in a file, which is replaced in one step; ``FILE.lock`` beside it is locked by this process."""

    def __init__(self, path: Path, owner: StreamIdentity) -> None:
        self.path = path.resolve()  # a symbolic link stays one
        self._owner = owner
        self._lock: FileIO | None = None

    def load(self) -> tuple[SnapshotState, ...]:
        """Lock and read the file; see ``Store``."""
        if self._lock is None:
            self._lock = self._locked()
        return read_file(self.path, self._owner) or ()

    def save(self, snapshots: Sequence[SnapshotState]) -> None:
        """Replace the file; see ``Store``."""
        assert self._lock is not None, "load() claims the file"
        try:
            json_lines.replace_file(self.path, encode(self._owner, snapshots).encode(), sync=True)
            json_lines.sync_directory(self.path.parent)
        except OSError as exc:
            raise _not_written(self.path, exc) from exc

    def close(self) -> None:
        """Release the lock; see ``Store``."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _locked(self) -> FileIO:
        path = self.path.with_name(f"{self.path.name}.lock")
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            file = json_lines.open_regular(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, own=True)
        except OSError as exc:
            raise _not_written(path, exc) from exc
        try:
            json_lines.lock(file, path, LOCK_SECONDS, time.monotonic() + LOCK_SECONDS)
        except TimeoutError as exc:
            file.close()
            raise InUse(
                f"the snapshot state {shown(str(self.path))} is in use: {exc.strerror}",
                hint="stop that process, or give another file: --state FILE",
            ) from exc
        except BaseException:
            file.close()
            raise
        return file


def _not_written(path: Path, exc: OSError) -> SinkFailed:
    return SinkFailed(
        f"could not write the snapshot state {shown(str(path))}: {exc.strerror or exc}",
        hint="make the directory writable, or give another file: --state FILE",
    )


def read_file(path: Path, owner: StreamIdentity) -> tuple[SnapshotState, ...] | None:
    """Return the state in a file, without a claim on it; None if there is no file.

    Raises:
        BadState: it cannot be read, is damaged, or is of another slot, database or server.
    """
    name = shown(str(path))
    try:
        with json_lines.open_regular(path, os.O_RDONLY, own=True) as file:
            content = file.read(_MAX_BYTES + 1) or b""
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise BadState(
            f"could not read the snapshot state {name}: {exc.strerror or exc}",
            hint="give a file of your own: --state FILE",
        ) from exc
    return decode(content, owner, where=name)


def without_old(snapshots: Sequence[SnapshotState]) -> tuple[SnapshotState, ...]:
    """Return snapshots without those that ended long ago: every role can request any number of them."""
    ended = [one for one in snapshots if one.status.has_ended]
    left_out = {one.request.id for one in ended[: max(0, len(ended) - _MAX_ENDED)]}
    return tuple(one for one in snapshots if one.request.id not in left_out)


def encode(owner: StreamIdentity, snapshots: Sequence[SnapshotState]) -> str:
    """Return the document of a state; snapshots that ended long ago are left out."""
    document: dict[str, Any] = {
        "version": _VERSION,
        "system_identifier": owner.system_identifier,
        "database": owner.database,
        "slot": owner.slot_name,
        "snapshots": [_encoded(one) for one in without_old(snapshots)],
    }
    return json.dumps({**document, "checksum": _checksum(document)}) + "\n"


def decode(
    content: bytes | str, owner: StreamIdentity, *, where: str, remedy: str = "move it away, or give another --state"
) -> tuple[SnapshotState, ...]:
    """Return the state of a document.

    Args:
        content: the document.
        owner: whose it must be.
        where: the file or table, for errors.
        remedy: how to begin without it.

    Raises:
        BadState: it is damaged, of another slot, database or server, or a newer version wrote it.
    """
    try:
        document = require_type(json_lines.parse(content), dict)
        version = require_type(document["version"], int)
        if version > _VERSION:
            raise BadState(
                f"{where} was written by a newer version of this program", hint="use that version, or another --state"
            )
        checksum = require_int64(document.pop("checksum"))
        if checksum != _checksum(document):
            raise Damaged("its checksum is not right")
        found = StreamIdentity(
            *(require_type(document[name], str) for name in ("system_identifier", "database", "slot"))
        )
        if found != owner:
            raise BadState(
                f"{where} is the snapshot state of {shown(str(found))}, not of {shown(str(owner))}",
                hint=f"if nothing needs its snapshots: {remedy}",
            )
        return tuple(_decoded(require_type(row, dict), owner) for row in require_type(document["snapshots"], list))
    except (Damaged, Malformed, KeyError) as exc:
        reason = f"{exc.args[0]} is missing" if isinstance(exc, KeyError) else str(exc)
        raise BadState(
            f"{where} is damaged: {shown(reason)}; how far its snapshots are is not known",
            hint=f"start the snapshots again after this: {remedy}",
        ) from None


def _checksum(document: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(document, sort_keys=True).encode())


def _encoded(one: SnapshotState) -> dict[str, Any]:
    return {
        "request": requests.request_fields(one.request),
        "status": one.status.value,
        "reason": one.reason,
        "started_at": None if one.started_at is None else one.started_at.isoformat(),
        "ended_at": None if one.ended_at is None else one.ended_at.isoformat(),
        "running_seconds": float(one.running_seconds),
        "waits_for": one.waits_for,
        "tables": [
            {
                "table": table.table,
                "cursor": None if table.cursor is None else list(table.cursor),
                "rows": table.rows,
                "estimated_rows": table.estimated_rows,
                "chunks": table.chunks,
                "conflicts": table.conflicts,
                "read_again": [list(key) for key in table.read_again],
                "is_done": table.is_done,
                "key": list(table.key),
                "timeline": table.timeline,
                "marker": table.marker,
                "sent": list(table.sent),
                "method": table.method.value,
            }
            for table in one.tables
        ],
    }


def _decoded(row: dict[str, Any], owner: StreamIdentity) -> SnapshotState:
    request = requests.request_of(require_type(row["request"], dict))
    tables = tuple(_decoded_table(require_type(table, dict)) for table in require_type(row["tables"], list))
    status = require_type(row["status"], str)
    if request.slot != owner.slot_name or status not in Status.__members__:
        raise Damaged("it has a snapshot of another slot, or a status that is not known")
    return SnapshotState(
        request,
        Status(status),
        _optional(row["reason"], lambda value: require_type(value, str)),
        tables,
        _optional(row["started_at"], json_lines.parse_time),
        _optional(row["ended_at"], json_lines.parse_time),
        require_type(row["running_seconds"], float),
        _optional(row.get("waits_for"), lambda value: require_type(value, str)),  # added later
    )


def _decoded_table(row: dict[str, Any]) -> TableState:
    return TableState(
        table=require_type(row["table"], str),
        cursor=_optional(row["cursor"], _key),
        rows=require_int64(row["rows"]),
        estimated_rows=_optional(row["estimated_rows"], require_int64),
        chunks=require_int64(row["chunks"]),
        conflicts=require_int64(row["conflicts"]),
        read_again=tuple(_key(key) for key in require_type(row["read_again"], list)),
        is_done=require_type(row["is_done"], bool),
        key=_key(row["key"]),
        timeline=require_int64(row["timeline"]),
        marker=require_int64(row["marker"]),
        method=_method(row.get("method", Method.chunks.value)),  # an earlier version did not write it
        sent=_key(row.get("sent", [])),
    )


def _method(value: object) -> Method:
    if (name := require_type(value, str)) not in Method.__members__:
        raise Damaged("it has a method that is not known")
    return Method(name)


def _key(value: object) -> tuple[str, ...]:
    return tuple(require_type(part, str) for part in require_type(value, list))


def _optional(value: object, decoded: Callable[[object], T]) -> T | None:
    return None if value is None else decoded(value)
