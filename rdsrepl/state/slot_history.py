"""Store samples of a server's slots in the state directory: for rates, sparklines and idle times.

``$XDG_STATE_HOME/rdsrepl/observations/<server>.jsonl``, one line for each sample, oldest first. It holds names and
positions, no secrets. If a file cannot be read or written, only the history is missing. The name of a file is made of
the server's system identifier and address; the samples of one run of one server have the same start and timeline.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property, lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from rdsrepl.config import state_directory
from rdsrepl.errors import BadValue
from rdsrepl.lsn import Lsn
from rdsrepl.state import json_lines
from rdsrepl.state.json_lines import Damaged, parse_time, require_int64, require_type

# A year of a check every five minutes with ten slots, a day with 200. Each forecast reads the whole file.
_MAX_BYTES: Final = 2 << 20
_HOUR_SECONDS, _DAY_SECONDS = 3600, 86_400
# How long all samples are kept, and then one an hour; before that one a day. The first that fits is used.
_SCHEDULES: Final = (
    (_DAY_SECONDS, 30 * _DAY_SECONDS),
    (6 * _HOUR_SECONDS, 7 * _DAY_SECONDS),
    (_HOUR_SECONDS, _DAY_SECONDS),
)
# How often every second sample of the older half is reduced then.
_HALVINGS: Final = 4
# ``retention.idleness`` takes a larger difference between two samples for a clock that was set.
_SKEW_STEP_SECONDS: Final = 10.0
_SEGMENT_BYTES: Final = 16 << 20
# A longer wait would delay the command; the history can do without one sample.
_LOCK_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class SlotObservation:
    """One slot at one moment.

    Attributes:
        restart_lsn, confirmed_flush_lsn: its positions; None if it has none, or is invalidated.
        xmin_age: the age of the older of ``xmin`` and ``catalog_xmin``, in transactions.
        holder: the session that uses it, for a person; None while it is inactive.
        counters: ``Slot.counters`` (14 and later); they change when a consumer reads, even without a confirmation.
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
        """The values that stay the same while the slot is not used."""
        return self.restart_lsn, self.confirmed_flush_lsn, self.counters


@dataclass(frozen=True)  # without slots: the index is created on first use
class Observation:
    """One sample of a server.

    Attributes:
        at: the time by the server's clock.
        started_at: the start of the server.
        timeline: the WAL timeline; None on a standby.
        lsn: the end of the WAL.
        next_xid: the next transaction ID.
        clock_skew_seconds: how far the server's clock was ahead of this machine's clock.
        partial: whether only the slots that changed are left; the absence of a slot then has no meaning.
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
        """Return one slot; None if it did not exist."""
        return self._by_name.get(name)

    @cached_property
    def _by_name(self) -> dict[str, SlotObservation]:
        return {seen.slot_name: seen for seen in self.slots}


def history(server: str) -> tuple[Observation, ...]:
    """Return the samples of a server, oldest first; empty if the file cannot be read.

    Args:
        server: identifies the server across runs: ``wal.history_key``.
    """
    try:
        return tuple(json_lines.read(history_file(server), decode, 2 * _MAX_BYTES))
    except OSError:
        return ()


def record(server: str, sample: Observation) -> bool:
    """Add a sample to the history of a server; return whether that succeeded."""
    with contextlib.suppress(OSError):
        json_lines.append(
            history_file(server), _document(sample), max_bytes=_MAX_BYTES, thin=_thin, lock_seconds=_LOCK_SECONDS
        )
        return True
    return False


def changed_slots(history: Sequence[Observation]) -> list[frozenset[str]]:
    """Return the slots that changed, for each sample.

    A slot changes when it is created, dropped, becomes active or inactive, gets another consumer, or moves while it is
    inactive. The movement of an active slot is not a change. The slot is also listed for the sample before the change,
    which is the last one of the former state.
    """
    changed: list[set[str]] = [set() for _ in history]
    known: dict[str, tuple[int, SlotObservation]] = {}
    for number, one in enumerate(history):
        gone = set() if one.partial else known.keys() - {seen.slot_name for seen in one.slots}
        for name in gone:
            changed[known.pop(name)[0]].add(name)
        for seen in one.slots:
            before = known.get(seen.slot_name)
            if before is None and number:
                changed[number].add(seen.slot_name)
            elif before is not None and not _is_same(before[1], seen):
                changed[before[0]].add(seen.slot_name)
                changed[number].add(seen.slot_name)
            known[seen.slot_name] = (number, seen)
    return [frozenset(names) for names in changed]


def _is_same(old: SlotObservation, new: SlotObservation) -> bool:
    if old.active or new.active:
        return (old.active, old.holder) == (new.active, new.holder)
    return old.position == new.position


def keep_changes(
    history: Sequence[Observation],
    kept: Sequence[bool],
    *,
    last_only: bool = False,
    also: Mapping[int, Collection[str]] | None = None,
) -> list[Observation]:
    """Return a history in which some samples are reduced to the slots that changed.

    Args:
        history: the samples, oldest first.
        kept: whether a sample stays complete.
        last_only: keep of the reduced samples only the last change and the last use of each slot: then at most two
            entries a slot remain besides the complete samples.
        also: slots that reduced samples keep besides, by the number of the sample.
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
    reduced = []
    for number, one in enumerate(history):
        if kept[number]:
            reduced.append(one)
            continue
        here = names[number].union((also or {}).get(number, ()))
        if rest := tuple(seen for seen in one.slots if seen.slot_name in here):
            reduced.append(replace(one, slots=rest, partial=True))
    return reduced


def compact(history: Sequence[Observation], detail_seconds: float, hourly_seconds: float) -> list[Observation]:
    """Return a history with fewer old samples: after some time one an hour, later one a day.

    Idle times do not change: besides the first sample of each hour or day, every change of a slot is kept, and the
    first sample of each run of the server and of each setting of a clock. Of the retained WAL of each slot, the largest
    and the smallest value of each hour or day are kept, if they differ from the first one by more than a WAL segment.

    Args:
        history: the samples, oldest first.
        detail_seconds: younger samples are all kept.
        hourly_seconds: older samples are reduced to one a day.
    """
    if not history:
        return []
    gone = _disappearances(history)
    end = history[-1].at
    kept = [number in gone for number in range(len(history))]
    periods: dict[tuple[object, ...], list[int]] = {}
    for number, one in enumerate(history):
        age = (end - one.at).total_seconds()
        if age <= detail_seconds:
            kept[number] = True
            continue
        length = _HOUR_SECONDS if age <= hourly_seconds else _DAY_SECONDS
        # Clocks that differ by more than their tolerance are in different steps of it.
        skew = one.clock_skew_seconds // _SKEW_STEP_SECONDS
        key = (length, one.at.timestamp() // length, one.started_at, one.timeline, skew)
        periods.setdefault(key, []).append(number)
    extremes: dict[int, set[str]] = {}
    for numbers in periods.values():
        first = next((number for number in numbers if not history[number].partial), None)
        if first is not None:
            kept[first] = True
        for name, number in _extremes(history, numbers, first):
            extremes.setdefault(number, set()).add(name)
    return keep_changes(history, kept, also=extremes)


def _disappearances(history: Sequence[Observation]) -> set[int]:
    """Return the first complete samples without a slot that existed: only these show that it was dropped."""
    found: set[int] = set()
    known: set[str] = set()
    for number, one in enumerate(history):
        names = {seen.slot_name for seen in one.slots}
        if one.partial:
            known |= names
        else:
            if known - names:
                found.add(number)
            known = names
    return found


def _extremes(history: Sequence[Observation], numbers: Sequence[int], first: int | None) -> Iterator[tuple[str, int]]:
    """Yield the slots of some samples, each with the samples in which it retained the most and the least WAL."""
    values: dict[str, list[tuple[int, int]]] = {}
    for number in numbers:
        one = history[number]
        for seen in one.slots:
            if seen.restart_lsn is not None:
                values.setdefault(seen.slot_name, []).append((one.lsn - seen.restart_lsn, number))
    for name, sizes in values.items():
        usual = next((size for size, number in sizes if number == first), None)
        for size, number in (max(sizes), min(sizes)):
            if usual is None or abs(size - usual) > _SEGMENT_BYTES:
                yield name, number


def _thin(lines: list[bytes]) -> list[bytes]:
    """Reduce the history until a quarter of the file is free: old samples first, by ``compact``."""
    samples = []
    for line in lines:
        with contextlib.suppress(Damaged, KeyError):
            samples.append(decode(require_type(json_lines.parse(line), dict)))
    room = _MAX_BYTES * 3 // 4
    for detail, hourly in _SCHEDULES:
        thinned = compact(samples, detail, hourly)
        if sum(map(len, kept := _lines(thinned))) <= room:
            return kept
    for _ in range(_HALVINGS):  # many slots, or samples that are seconds apart
        half = len(thinned) // 2
        thinned = keep_changes(thinned, [number >= half or number % 2 == 0 for number in range(len(thinned))])
        if sum(map(len, kept := _lines(thinned))) <= room:
            return kept
    newest = len(samples) // 2
    while sum(map(len, kept)) > room and newest < len(samples):
        # Too many changes: keep of older samples only the last change of each slot.
        newest = (newest + len(samples) + 1) // 2
        kept = _lines(keep_changes(samples, [number >= newest for number in range(len(samples))], last_only=True))
    while sum(map(len, kept)) > room:  # thousands of slots that no longer exist
        del kept[: len(kept) // 2 + 1]
    return kept


def _lines(samples: Sequence[Observation]) -> list[bytes]:
    return [json.dumps(_document(one), separators=(",", ":")).encode() + b"\n" for one in samples]


def history_file(server: str) -> Path:
    """Return the file of a server's samples."""
    return state_directory() / "observations" / f"{sha256(server.encode()).hexdigest()[:16]}.jsonl"


def _document(sample: Observation) -> dict[str, Any]:
    return {
        "at": sample.at.isoformat(),
        "started_at": sample.started_at.isoformat(),
        "timeline": sample.timeline,
        "lsn": str(sample.lsn),
        "next_xid": sample.next_xid,
        "skew": round(sample.clock_skew_seconds, 1),
        **({"partial": True} if sample.partial else {}),
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
            for slot in sample.slots
        ],
    }


def decode(row: dict[str, Any]) -> Observation:
    """Return the sample of a line.

    Raises:
        Damaged, KeyError: the line does not have the expected form.
    """
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
        raise Damaged("expected: 7 values of a slot")
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
    if not set(map(type, numbers)) <= {int, type(None)}:
        raise Damaged("expected: integers")
    known = [number for number in numbers if number is not None]
    for number in (min(known), max(known)) if known else ():
        require_int64(number)
    return (*numbers, None if reset is None else require_type(reset, str))


def _text(lsn: Lsn | None) -> str | None:
    return None if lsn is None else str(lsn)


def _lsn(text: object) -> Lsn:
    return _parsed(require_type(text, str))


@lru_cache(maxsize=8192)  # slots that are not used have the same positions in each sample
def _parsed(text: str) -> Lsn:
    try:
        return Lsn.parse(text)
    except BadValue as exc:
        raise Damaged(exc.message) from None
