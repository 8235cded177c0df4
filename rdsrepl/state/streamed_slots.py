"""What this machine's last run of ``slot tail`` confirmed of each slot, to notice what happened to the slot since.

``$XDG_STATE_HOME/rdsrepl/streamed/<server>-<slot>.json``, one object, replaced in one step. It is written **before** a
position is confirmed, so a run that is killed leaves a position that is at or beyond the slot's. It holds names and
positions, no secrets. A file that is damaged, or cannot be read or written, costs this comparison and nothing else.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from rdsrepl.config import state_directory
from rdsrepl.lsn import Lsn
from rdsrepl.state.json_lines import Damaged, open_regular, parse, parse_time, read_tail, require_int64, require_type

_MAX_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class SlotFingerprint:
    """What tells a slot from another one that was made later under its name; None is not known.

    Attributes:
        restart_lsn, catalog_xmin: they never go back in one slot on one server.
        total_bytes: of ``pg_stat_replication_slots``; goes back at a reset or a crash alone.
        stats_reset, started_at: the last reset, and since when the server runs, as the server prints them.
    """

    restart_lsn: int | None
    catalog_xmin: int | None
    total_bytes: int | None
    stats_reset: str | None
    started_at: str | None

    def is_another(self, later: SlotFingerprint) -> bool:
        """Say whether LATER, of the same name, server and timeline, is for certain another slot, made since."""
        if self.restart_lsn is not None and later.restart_lsn is not None and later.restart_lsn < self.restart_lsn:
            return True
        if self.catalog_xmin is not None and later.catalog_xmin is not None:
            # Transaction ids wrap around: of two, the older one is less than 2^31 behind.
            behind = (self.catalog_xmin - later.catalog_xmin) % (1 << 32)
            if 0 < behind < 1 << 31:
                return True
        same_counter = self.started_at == later.started_at and self.stats_reset == later.stats_reset
        if self.total_bytes is None or later.total_bytes is None or not same_counter:
            return False
        return later.total_bytes < self.total_bytes


@dataclass(frozen=True, slots=True)
class StreamedSlot:
    """What the last run left.

    Attributes:
        at: this machine's clock.
        timeline, confirmed_lsn: up to where changes were confirmed, or were about to be.
        publications: those it was streamed with; none for other plugins than pgoutput.
        mark: the slot as it was.
        is_final: the run ended in order, and this is on disk. What a crash of the machine left may be older than
            what was confirmed.
    """

    at: datetime
    timeline: int
    confirmed_lsn: Lsn
    publications: tuple[str, ...]
    mark: SlotFingerprint
    is_final: bool


def load(system_id: str, slot_name: str) -> StreamedSlot | None:
    """Return what this machine's last run left; None where there is nothing, or nothing that can be relied on."""
    try:
        row = require_type(parse(read_tail(_path(system_id, slot_name), _MAX_BYTES)), dict)
        if (row["machine"], row["system_id"], row["slot"]) != (_machine(), system_id, slot_name):
            return None  # the state directory was copied here
        found = _decoded(row)
        return found if found.is_final or row["boot"] == _boot() else None
    except (OSError, Damaged, KeyError, ValueError):
        return None


def save(system_id: str, slot_name: str, streamed: StreamedSlot) -> bool:
    """Replace what is remembered; return whether that could be done."""
    mark = streamed.mark
    row: dict[str, Any] = {
        "slot": slot_name,
        "system_id": system_id,
        "timeline": streamed.timeline,
        "confirmed_lsn": str(streamed.confirmed_lsn),
        "publications": list(streamed.publications),
        "at": streamed.at.isoformat(),
        "final": streamed.is_final,
        "machine": _machine(),
        "boot": _boot(),
        "restart_lsn": mark.restart_lsn,
        "catalog_xmin": mark.catalog_xmin,
        "total_bytes": mark.total_bytes,
        "stats_reset": mark.stats_reset,
        "started_at": mark.started_at,
    }
    try:
        _replace(_path(system_id, slot_name), row, sync=streamed.is_final)
    except (OSError, ValueError):
        return False
    return True


def delete(system_id: str, slot_name: str) -> None:
    """Remember nothing of a slot: it is dropped."""
    with contextlib.suppress(OSError):
        _path(system_id, slot_name).unlink()


def _replace(path: Path, row: Mapping[str, Any], *, sync: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open_regular(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW) as file:
            file.write(json.dumps(row).encode() + b"\n")
            if sync:
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _decoded(row: Mapping[str, Any]) -> StreamedSlot:
    mark = SlotFingerprint(
        _number(row["restart_lsn"]),
        _number(row["catalog_xmin"]),
        _number(row["total_bytes"]),
        _text(row["stats_reset"]),
        _text(row["started_at"]),
    )
    publications = tuple(require_type(name, str) for name in require_type(row["publications"], list))
    lsn = Lsn.parse(require_type(row["confirmed_lsn"], str))
    return StreamedSlot(
        parse_time(row["at"]), require_int64(row["timeline"]), lsn, publications, mark, require_type(row["final"], bool)
    )


def _number(value: object) -> int | None:
    return None if value is None else require_int64(value)


def _text(value: object) -> str | None:
    return None if value is None else require_type(value, str)


def _path(system_id: str, slot_name: str) -> Path:
    return state_directory() / "streamed" / f"{sha256(system_id.encode()).hexdigest()[:16]}-{slot_name}.json"


@cache
def _machine() -> str:
    """Return what tells this machine from another: the operating system's id of it, or else its name."""
    with contextlib.suppress(OSError):
        if found := Path("/etc/machine-id").read_text(encoding="ascii", errors="replace").strip():
            return found
    return socket.gethostname()


@cache
def _boot() -> str:
    """Return what tells this start of the machine from another; empty where the system does not say."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii", errors="replace").strip()
    return ""
