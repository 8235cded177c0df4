"""What earlier runs saw of a server's slots, kept in the state directory: rates, sparklines, and proof of idleness.

``$XDG_STATE_HOME/rdsrepl/observations/<server>.jsonl``, a line a look, oldest first. It holds names and positions, no
secrets. A file that cannot be read or written costs the history and nothing else.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from rdsrepl.config import state_directory
from rdsrepl.lsn import Lsn

# Weeks of a check every five minutes with a few slots, a day with 200; and every command reads all of it.
_MOST_BYTES: Final = 2 << 20


@dataclass(frozen=True, slots=True)
class SlotSeen:
    """One slot at one moment.

    Attributes:
        restart_lsn, confirmed_flush_lsn: where it stood; None where it had no such position.
        xmin_age: the age of the older of ``xmin`` and ``catalog_xmin``, in transactions.
        holder: who consumed it, in words; None while nobody did.
        total_bytes: what was decoded for it (14): it moves when somebody reads, confirmed or not.
    """

    slot_name: str
    active: bool
    restart_lsn: Lsn | None
    confirmed_flush_lsn: Lsn | None
    xmin_age: int | None
    holder: str | None = None
    total_bytes: int | None = None


@dataclass(frozen=True)  # not slotted: the index is made when it is first asked for
class Observation:
    """One look at a server.

    Attributes:
        at: the server's clock.
        started_at: since when the server ran.
        timeline: None on a standby.
        lsn: the end of its WAL.
        next_xid: the next transaction's number.
    """

    at: datetime
    started_at: datetime
    timeline: int | None
    lsn: Lsn
    next_xid: int
    slots: tuple[SlotSeen, ...]

    def slot(self, name: str) -> SlotSeen | None:
        """Return one slot as it was; None where there was none of that name."""
        return self._by_name.get(name)

    @cached_property
    def _by_name(self) -> dict[str, SlotSeen]:
        return {seen.slot_name: seen for seen in self.slots}


def history(server: str) -> tuple[Observation, ...]:
    """Return what was seen of a server, oldest first; nothing where nothing can be read.

    Args:
        server: what identifies it, the same on every run: its system identifier, or else its address.
    """
    try:
        lines = _path(server).read_bytes().splitlines()
    except OSError:
        return ()
    return tuple(found for line in lines if (found := _read(line)) is not None)


def record(server: str, seen: Observation) -> bool:
    """Add a look to a server's history; return whether that could be done."""
    path = _path(server)
    line = json.dumps(_document(seen), separators=(",", ":")).encode() + b"\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "r+b", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if file.seek(0, os.SEEK_END) + len(line) > _MOST_BYTES:
                _thin_out(file)
            file.write(line)
    except OSError:
        return False
    return True


def _thin_out(file: Any) -> None:
    """Leave out every second look of the older half, and make sure that room is won."""
    file.seek(0)
    lines = file.read().splitlines(keepends=True)
    half = len(lines) // 2
    kept = lines[:half:2] + lines[half:]
    while kept and sum(map(len, kept)) > _MOST_BYTES * 3 // 4:
        kept = kept[::2] if len(kept) > 2 else kept[1:]
    file.seek(0)
    file.truncate()
    file.write(b"".join(kept))


def _path(server: str) -> Path:
    return state_directory() / "observations" / f"{sha256(server.encode()).hexdigest()[:16]}.jsonl"


def _document(seen: Observation) -> dict[str, Any]:
    return {
        "at": seen.at.isoformat(),
        "started_at": seen.started_at.isoformat(),
        "timeline": seen.timeline,
        "lsn": str(seen.lsn),
        "next_xid": seen.next_xid,
        "slots": [
            [
                slot.slot_name,
                slot.active,
                _text(slot.restart_lsn),
                _text(slot.confirmed_flush_lsn),
                slot.xmin_age,
                slot.holder,
                slot.total_bytes,
            ]
            for slot in seen.slots
        ],
    }


def _read(line: bytes) -> Observation | None:
    with contextlib.suppress(ValueError, KeyError, TypeError):
        row = json.loads(line)
        return Observation(
            datetime.fromisoformat(row["at"]),
            datetime.fromisoformat(row["started_at"]),
            row["timeline"],
            Lsn.parse(row["lsn"]),
            row["next_xid"],
            tuple(
                SlotSeen(name, active, _lsn(restart), _lsn(confirmed), age, holder, total)
                for name, active, restart, confirmed, age, holder, total in row["slots"]
            ),
        )
    return None


def _text(lsn: Lsn | None) -> str | None:
    return None if lsn is None else str(lsn)


def _lsn(text: str | None) -> Lsn | None:
    return None if text is None else Lsn.parse(text)
