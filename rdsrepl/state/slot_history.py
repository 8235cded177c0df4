"""What earlier runs saw of a server's slots, kept in the state directory: rates, sparklines, and proof of idleness.

``$XDG_STATE_HOME/rdsrepl/observations/<server>.jsonl``, a line a look, oldest first. It holds names and positions, no
secrets. A file that cannot be read or written costs the history and nothing else. A file's name is made of the server's
system identifier and its address; within it, looks at one run of one server have the same start and timeline.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from rdsrepl.config import state_directory
from rdsrepl.errors import BadValue
from rdsrepl.lsn import Lsn
from rdsrepl.state import json_lines
from rdsrepl.state.json_lines import Damaged, parse_time, require_int64, require_type

# Weeks of a check every five minutes with a few slots, a day with 200; and every command reads all of it.
_MAX_BYTES: Final = 2 << 20
# A look that waits for the history would be late; without this one the history is as good.
_LOCK_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class SlotObservation:
    """One slot at one moment.

    Attributes:
        restart_lsn, confirmed_flush_lsn: where it stood; None where it had no such position, or was invalidated.
        xmin_age: the age of the older of ``xmin`` and ``catalog_xmin``, in transactions.
        holder: who consumed it, in words; None while nobody did.
        counters: ``Slot.counters`` (14): they move when somebody reads, confirmed or not.
    """

    slot_name: str
    active: bool
    restart_lsn: Lsn | None
    confirmed_flush_lsn: Lsn | None
    xmin_age: int | None
    holder: str | None = None
    counters: tuple[int | str | None, ...] | None = None

    @property
    def position(self) -> tuple[object, ...]:
        """What stays the same while nobody uses it."""
        return self.restart_lsn, self.confirmed_flush_lsn, self.counters


@dataclass(frozen=True)  # not slotted: the index is made when it is first asked for
class Observation:
    """One look at a server.

    Attributes:
        at: the server's clock.
        started_at: since when the server ran.
        timeline: None on a standby.
        lsn: the end of its WAL.
        next_xid: the next transaction's number.
        clock_skew_seconds: how far the server's clock was ahead of this machine's.
        partial: of the slots only those are left at which something had changed: that one is absent says nothing.
    """

    at: datetime
    started_at: datetime
    timeline: int | None
    lsn: Lsn
    next_xid: int
    slots: tuple[SlotObservation, ...]
    clock_skew_seconds: float = 0.0
    partial: bool = False

    def slot(self, name: str) -> SlotObservation | None:
        """Return one slot as it was; None where there was none of that name."""
        return self._by_name.get(name)

    @cached_property
    def _by_name(self) -> dict[str, SlotObservation]:
        return {seen.slot_name: seen for seen in self.slots}


def history(server: str) -> tuple[Observation, ...]:
    """Return what was seen of a server, oldest first; nothing where nothing can be read.

    Args:
        server: what identifies it, the same on every run: ``wal.history_key``.
    """
    try:
        return tuple(json_lines.read(_path(server), _observation, 2 * _MAX_BYTES))
    except OSError:
        return ()


def record(server: str, seen: Observation) -> bool:
    """Add a look to a server's history; return whether that could be done."""
    with contextlib.suppress(OSError):
        json_lines.append(_path(server), _document(seen), most_bytes=_MAX_BYTES, thin=_thin, lock_seconds=_LOCK_SECONDS)
        return True
    return False


def changed_slots(history: Sequence[Observation]) -> list[frozenset[str]]:
    """Return for each look the slots at which something had changed since the look before.

    A slot came, went, came into use, was left, was taken by somebody else, or moved although it was never seen in use.
    That a slot in use moves on is no change. The look before a change is one of its own: it ends what was before.
    """
    found: list[set[str]] = [set() for _ in history]
    known: dict[str, tuple[int, SlotObservation]] = {}
    for number, one in enumerate(history):
        gone = set() if one.partial else known.keys() - {seen.slot_name for seen in one.slots}
        for name in gone:
            found[known.pop(name)[0]].add(name)
        for seen in one.slots:
            before = known.get(seen.slot_name)
            if before is None and number:
                found[number].add(seen.slot_name)
            elif before is not None and not _is_same(before[1], seen):
                found[before[0]].add(seen.slot_name)
                found[number].add(seen.slot_name)
            known[seen.slot_name] = (number, seen)
    return [frozenset(names) for names in found]


def _is_same(old: SlotObservation, new: SlotObservation) -> bool:
    if old.active or new.active:
        return (old.active, old.holder) == (new.active, new.holder)
    return old.position == new.position


def keep_changes(history: Sequence[Observation], kept: Sequence[bool], *, last_only: bool = False) -> list[Observation]:
    """Return a history without some of its looks, of which the slots stay at which something had changed.

    Args:
        history: oldest first.
        kept: which of the looks stay whole.
        last_only: of the others only each slot's last change and its last use stay: then there are never more than two
            entries a slot besides the whole looks.
    """
    names = changed_slots(history)
    if last_only:
        last: dict[tuple[str, bool], int] = {}
        for number, one in enumerate(history):
            for name in names[number]:
                last[name, False] = number
            last.update({(seen.slot_name, True): number for seen in one.slots if seen.active})
        wanted: list[set[str]] = [set() for _ in history]
        for (name, _), number in last.items():
            wanted[number].add(name)
        names = [frozenset(one) for one in wanted]
    found = []
    for number, one in enumerate(history):
        if kept[number]:
            found.append(one)
        elif rest := tuple(seen for seen in one.slots if seen.slot_name in names[number]):
            found.append(replace(one, slots=rest, partial=True))
    return found


def _thin(lines: list[bytes]) -> list[bytes]:
    """Leave out every second look of the older half, but for what had changed, and make sure that room is won."""
    looks = []
    for line in lines:
        with contextlib.suppress(Damaged, KeyError):
            looks.append(_observation(require_type(json_lines.parse(line), dict)))
    half = len(looks) // 2
    kept = _lines(keep_changes(looks, [number >= half or number % 2 == 0 for number in range(len(looks))]))
    newest = half
    while sum(map(len, kept)) > _MAX_BYTES * 3 // 4 and newest < len(looks):
        # So much changes all the time that all of it is too much: of older looks only each slot's last change stays.
        newest = (newest + len(looks) + 1) // 2
        kept = _lines(keep_changes(looks, [number >= newest for number in range(len(looks))], last_only=True))
    while sum(map(len, kept)) > _MAX_BYTES * 3 // 4:  # thousands of slots that are long gone
        del kept[: len(kept) // 2 + 1]
    return kept


def _lines(looks: Sequence[Observation]) -> list[bytes]:
    return [json.dumps(_document(one), separators=(",", ":")).encode() + b"\n" for one in looks]


def _path(server: str) -> Path:
    return state_directory() / "observations" / f"{sha256(server.encode()).hexdigest()[:16]}.jsonl"


def _document(seen: Observation) -> dict[str, Any]:
    return {
        "at": seen.at.isoformat(),
        "started_at": seen.started_at.isoformat(),
        "timeline": seen.timeline,
        "lsn": str(seen.lsn),
        "next_xid": seen.next_xid,
        "skew": round(seen.clock_skew_seconds, 1),
        **({"partial": True} if seen.partial else {}),
        "slots": [
            [
                slot.slot_name,
                slot.active,
                _text(slot.restart_lsn),
                _text(slot.confirmed_flush_lsn),
                slot.xmin_age,
                slot.holder,
                slot.counters,
            ]
            for slot in seen.slots
        ],
    }


def _observation(row: dict[str, Any]) -> Observation:
    timeline = row["timeline"]
    return Observation(
        parse_time(row["at"]),
        parse_time(row["started_at"]),
        None if timeline is None else require_int64(timeline),
        _lsn(row["lsn"]),
        require_int64(row["next_xid"]),
        tuple(_slot_seen(slot) for slot in require_type(row["slots"], list)),
        _seconds(row["skew"]),
        require_type(row.get("partial", False), bool),
    )


def _seconds(value: object) -> float:
    return require_type(value, float) if isinstance(value, float) else float(require_int64(value))


def _slot_seen(values: object) -> SlotObservation:
    if len(require_type(values, list)) != 7:
        raise Damaged("7 values of a slot are expected")
    name, active, restart, confirmed, age, holder, counters = require_type(values, list)
    return SlotObservation(
        require_type(name, str),
        require_type(active, bool),
        None if restart is None else _lsn(restart),
        None if confirmed is None else _lsn(confirmed),
        None if age is None else require_int64(age),
        None if holder is None else require_type(holder, str),
        None if counters is None else _counters(counters),
    )


def _counters(values: object) -> tuple[int | str | None, ...]:
    *numbers, reset = require_type(values, list) or [None]
    return (
        *(None if number is None else require_int64(number) for number in numbers),
        None if reset is None else require_type(reset, str),
    )


def _text(lsn: Lsn | None) -> str | None:
    return None if lsn is None else str(lsn)


def _lsn(text: object) -> Lsn:
    try:
        return Lsn.parse(require_type(text, str))
    except BadValue as exc:
        raise Damaged(exc.message) from None
