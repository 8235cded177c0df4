"""Remember the marker of a switchover, so that a run that ended after the promotion can still prove the slots.

One JSON object a line, in ``<state directory>/switchovers.jsonl``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from rdsrepl.config import state_directory
from rdsrepl.errors import BadValue, Refused
from rdsrepl.lsn import Lsn
from rdsrepl.state import json_lines

_MAX_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Switchover:
    """A switchover whose consumers and standby had reached the marker.

    Attributes:
        at: when that was.
        system_identifier: of both servers.
        new: the label of the server to promote.
        marker_lsn: the end of the WAL after the last transaction.
        next_xid, prepared: of the old primary; while both are the same, no transaction that wrote has ended since.
        slots: where each consumer was.
    """

    at: datetime
    system_identifier: str
    new: str
    marker_lsn: Lsn
    next_xid: int
    slots: Mapping[str, Lsn]
    prepared: tuple[int, ...] = ()


def path() -> Path:
    """Return the file."""
    return state_directory() / "switchovers.jsonl"


def save(one: Switchover) -> None:
    """Write a switchover to disk, before its promotion.

    Raises:
        Refused: the file is not writable.
    """
    row = {
        "time": one.at.isoformat(),
        "system_identifier": one.system_identifier,
        "new": one.new,
        "marker_lsn": str(one.marker_lsn),
        "next_xid": one.next_xid,
        "slots": {name: str(lsn) for name, lsn in one.slots.items()},
        "prepared": list(one.prepared),
    }
    try:
        json_lines.append(path(), row, sync=True, max_bytes=_MAX_BYTES, thin=lambda lines: lines[-100:])
    except OSError as exc:
        raise _not_writable(exc) from exc


def require_writable() -> None:
    """Make sure, before the writers are stopped, that a switchover can be recorded; create the file.

    Raises:
        Refused: it cannot.
    """
    try:
        path().parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        json_lines.open_regular(path(), os.O_RDWR | os.O_CREAT | os.O_APPEND).close()
    except OSError as exc:
        raise _not_writable(exc) from exc


def _not_writable(exc: OSError) -> Refused:
    return Refused(
        f"could not write {path()}: {exc.strerror or exc}; nothing is promoted without it",
        hint="make the directory writable, or set RDSREPL_STATE_DIR to another directory",
    )


def last(system_identifier: str, *, new: str | None = None, before: Lsn | None = None) -> Switchover | None:
    """Return the last switchover that this machine prepared; None without one.

    Args:
        system_identifier: of both servers.
        new: only to this server.
        before: only one whose marker is at or before this position.
    """
    try:
        found = json_lines.read(path(), _decode, _MAX_BYTES)
    except OSError:
        return None
    wanted = [
        one
        for one in found
        if one.system_identifier == system_identifier
        and new in (None, one.new)
        and (before is None or one.marker_lsn <= before)
    ]
    return wanted[-1] if wanted else None


def now() -> datetime:
    """Return this machine's clock."""
    return datetime.now(UTC)


def _decode(row: dict[str, Any]) -> Switchover:
    try:
        return Switchover(
            json_lines.parse_time(row["time"]),
            json_lines.require_type(row["system_identifier"], str),
            json_lines.require_type(row["new"], str),
            Lsn.parse(json_lines.require_type(row["marker_lsn"], str)),
            json_lines.require_int64(row["next_xid"]),
            {
                name: Lsn.parse(json_lines.require_type(lsn, str))
                for name, lsn in json_lines.require_type(row["slots"], dict).items()
            },
            tuple(json_lines.require_int64(xid) for xid in json_lines.require_type(row.get("prepared", []), list)),
        )
    except BadValue as exc:
        raise json_lines.Damaged(exc.message) from None
