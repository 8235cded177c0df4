"""The document that has the state of the snapshots of one slot, in a file or in a row of a table."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

from rdsrepl.errors import BadState
from rdsrepl.snapshot import requests
from rdsrepl.snapshot.requests import Malformed, Method
from rdsrepl.snapshot.state import SnapshotState, Status, StreamIdentity, TableState, without_old
from rdsrepl.state import json_lines
from rdsrepl.state.json_lines import Damaged, require_int64, require_type
from rdsrepl.text.escapes import shown

T = TypeVar("T")

_VERSION: Final = 1


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
