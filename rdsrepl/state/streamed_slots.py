"""Store the position of each slot that ``slot tail`` confirmed last, to detect a change of the slot since then.

``$XDG_STATE_HOME/rdsrepl/streamed/<server>-<slot>.json``, one object, replaced in one step. It is written **before** a
position is confirmed, so after a kill the stored position is at or after the slot's. It holds names and positions, no
secrets. If a file is damaged, or cannot be read or written, only this check is skipped.
"""

from __future__ import annotations

import contextlib
import json
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
from rdsrepl.state.json_lines import (
    Damaged,
    parse,
    parse_time,
    read_tail,
    replace_file,
    require_int64,
    require_type,
)

_MAX_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class SlotFingerprint:
    """Values that distinguish a slot from another slot that was created later with its name; None is unknown.

    Attributes:
        restart_lsn, catalog_xmin: they never decrease for one slot on one server.
        total_bytes: from ``pg_stat_replication_slots``; decreases only at a reset or a crash.
        stats_reset, started_at: the last reset, and the start of the server, as the server prints them.
    """

    restart_lsn: int | None
    catalog_xmin: int | None
    total_bytes: int | None
    stats_reset: str | None
    started_at: str | None

    def is_different_slot(self, later: SlotFingerprint) -> bool:
        """Return whether LATER, of the same name, server and timeline, is certainly a different slot, created since."""
        if self.restart_lsn is not None and later.restart_lsn is not None and later.restart_lsn < self.restart_lsn:
            return True
        if self.catalog_xmin is not None and later.catalog_xmin is not None:
            # Transaction IDs wrap around: the older one of two is less than 2^31 behind.
            behind = (self.catalog_xmin - later.catalog_xmin) % (1 << 32)
            if 0 < behind < 1 << 31:
                return True
        same_counter = self.started_at == later.started_at and self.stats_reset == later.stats_reset
        if self.total_bytes is None or later.total_bytes is None or not same_counter:
            return False
        return later.total_bytes < self.total_bytes


@dataclass(frozen=True, slots=True)
class StreamedSlot:
    """What the last run stored about a slot.

    Attributes:
        at: the time by this machine's clock.
        timeline, confirmed_lsn: the position up to which changes were confirmed, or were about to be confirmed.
        publications: the publications of the run; empty for plugins other than pgoutput.
        mark: the fingerprint of the slot.
        is_final: whether the run ended cleanly, with this entry on disk. After a crash of the machine, an entry that is
            not final can be older than the confirmed position.
    """

    at: datetime
    timeline: int
    confirmed_lsn: Lsn
    publications: tuple[str, ...]
    mark: SlotFingerprint
    is_final: bool


def load(system_id: str, slot_name: str) -> StreamedSlot | None:
    """Return what the last run on this machine stored; None if there is no entry, or no reliable one."""
    try:
        row = require_type(parse(read_tail(_path(system_id, slot_name), _MAX_BYTES)), dict)
        if (row["machine"], row["system_id"], row["slot"]) != (_machine(), system_id, slot_name):
            return None  # the state directory was copied from another machine
        streamed = _decoded(row)
        return streamed if streamed.is_final or row["boot"] == boot_id() else None
    except (OSError, Damaged, KeyError, ValueError):
        return None


def save(system_id: str, slot_name: str, streamed: StreamedSlot) -> bool:
    """Replace the entry of a slot; return whether that succeeded."""
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
        "boot": boot_id(),
        "restart_lsn": mark.restart_lsn,
        "catalog_xmin": mark.catalog_xmin,
        "total_bytes": mark.total_bytes,
        "stats_reset": mark.stats_reset,
        "started_at": mark.started_at,
    }
    try:
        replace_file(_path(system_id, slot_name), json.dumps(row).encode() + b"\n", sync=streamed.is_final)
    except (OSError, ValueError):
        return False
    return True


def delete(system_id: str, slot_name: str) -> None:
    """Remove the entry of a slot, because it was dropped."""
    with contextlib.suppress(OSError):
        _path(system_id, slot_name).unlink()


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
    """Return the identity of this machine: its machine ID, or else its host name."""
    with contextlib.suppress(OSError):
        if machine_id := Path("/etc/machine-id").read_text(encoding="ascii", errors="replace").strip():
            return machine_id
    return socket.gethostname()


@cache
def boot_id() -> str:
    """Return the identity of this boot of the machine; empty if the system does not report it."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii", errors="replace").strip()
    return ""
