"""What earlier runs saw of a server's slots, kept in the state directory: rates, sparklines, and proof of idleness.

``$XDG_STATE_HOME/rdsrepl/observations/<server>.jsonl``, a line a look, oldest first. It holds names and positions, no
secrets. A file that cannot be read or written costs the history and nothing else.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from rdsrepl.config import state_directory
from rdsrepl.errors import BadValue
from rdsrepl.lsn import Lsn
from rdsrepl.state import json_lines
from rdsrepl.state.json_lines import Damaged, moment, typed, whole

# Weeks of a check every five minutes with a few slots, a day with 200; and every command reads all of it.
_MOST_BYTES: Final = 2 << 20
# A look that waits for the history would be late; without this one the history is as good.
_LOCK_SECONDS: Final = 1.0


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
        return tuple(json_lines.read(_path(server), _observation, 2 * _MOST_BYTES))
    except OSError:
        return ()


def record(server: str, seen: Observation) -> bool:
    """Add a look to a server's history; return whether that could be done."""
    with contextlib.suppress(OSError):
        json_lines.append(
            _path(server), _document(seen), most_bytes=_MOST_BYTES, thin=_thinned, lock_seconds=_LOCK_SECONDS
        )
        return True
    return False


def _thinned(lines: list[bytes]) -> list[bytes]:
    """Leave out every second look of the older half, and make sure that room is won."""
    half = len(lines) // 2
    kept = lines[:half:2] + lines[half:]
    while kept and sum(map(len, kept)) > _MOST_BYTES * 3 // 4:
        kept = kept[::2] if len(kept) > 2 else kept[1:]
    return kept


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


def _observation(row: dict[str, Any]) -> Observation:
    timeline = row["timeline"]
    return Observation(
        moment(row["at"]),
        moment(row["started_at"]),
        None if timeline is None else whole(timeline),
        _lsn(row["lsn"]),
        whole(row["next_xid"]),
        tuple(_slot_seen(slot) for slot in typed(row["slots"], list)),
    )


def _slot_seen(values: object) -> SlotSeen:
    if len(typed(values, list)) != 7:
        raise Damaged("7 values of a slot are expected")
    name, active, restart, confirmed, age, holder, total = typed(values, list)
    return SlotSeen(
        typed(name, str),
        typed(active, bool),
        None if restart is None else _lsn(restart),
        None if confirmed is None else _lsn(confirmed),
        None if age is None else whole(age),
        None if holder is None else typed(holder, str),
        None if total is None else whole(total),
    )


def _text(lsn: Lsn | None) -> str | None:
    return None if lsn is None else str(lsn)


def _lsn(text: object) -> Lsn:
    try:
        return Lsn.parse(typed(text, str))
    except BadValue as exc:
        raise Damaged(exc.message) from None
