"""Turn the samples of a server into one series for each slot: points, forecast and limits. Pure: no I/O, no clock.

The charts of ``slot lag --plot``, ``slot watch`` and the HTML report all draw these series.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from statistics import median
from typing import Final

from rdsrepl.retention.assessment import Retention, SlotRetention
from rdsrepl.state.slot_history import Observation, SlotObservation
from rdsrepl.units import format_size

#: Two samples that are closer than this are connected.
_CONNECTED_SECONDS: Final = 900.0
#: Two samples that are further apart than this many times the usual distance near them have a gap between them.
_GAP_FACTOR: Final = 4.0
_NEIGHBOURS: Final = 4
#: A forecast is half as long as the history, but goes up to a failure that is at most twice as far away as the history
#: is long. A shorter history counts as a minute.
_SHORTEST_HISTORY_SECONDS: Final = 60.0
_USUAL_SHARE: Final = 0.5
_LONGEST_SHARE: Final = 2.0


@dataclass(frozen=True, slots=True)
class Point:
    """A number of bytes at one moment."""

    at: datetime
    size_bytes: int


Line = tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class Limit:
    """A number of retained bytes at which something breaks.

    Attributes:
        name: what the limit is: ``max_slot_wal_keep_size``, ``free storage``.
    """

    name: str
    size_bytes: int

    @property
    def text(self) -> str:
        """The limit with its size, for a person."""
        return f"{self.name} {format_size(self.size_bytes)}"


@dataclass(frozen=True, slots=True)
class SlotSeries:
    """What one slot retained over time, and what follows.

    Attributes:
        retained, undelivered: lines of points, oldest first; between two lines is a gap without samples.
        samples: the number of samples since the slot was created, drawn or not.
        forecast: the retained bytes from now on, if they grow as now; empty without a known rate.
        limits: the lowest first.
        now: the time of the last sample.
    """

    slot_name: str
    retained: tuple[Line, ...]
    undelivered: tuple[Line, ...]
    samples: int
    forecast: Line
    limits: tuple[Limit, ...]
    now: datetime

    @property
    def has_history(self) -> bool:
        """Whether there are two samples with a size, so that a picture shows something."""
        return sum(map(len, self.retained)) >= 2

    @property
    def start(self) -> datetime:
        """The time of the first point."""
        return min((line[0].at for line in (*self.retained, *self.undelivered)), default=self.now)

    @property
    def end(self) -> datetime:
        """The end of the forecast, or else the last sample."""
        return self.forecast[-1].at if self.forecast else self.now

    @property
    def highest_bytes(self) -> int:
        """The largest value of all points and of the forecast."""
        lines = (*self.retained, *self.undelivered, self.forecast)
        return max((point.size_bytes for line in lines for point in line), default=0)


def slot_series(
    history: Sequence[Observation], retention: Retention, one: SlotRetention, *, seconds: float | None = None
) -> SlotSeries:
    """Return the series of one slot.

    A slot that was dropped and created again begins with its creation.

    Args:
        history: the samples, oldest first; the last one is the current state.
        retention: the assessment of the current state.
        one: the slot.
        seconds: how much of the history to return; None returns all.
    """
    now = retention.wal.at
    known = _since_creation(_comparable(history), one.slot.slot_name)
    samples = len(known)
    if seconds is not None:
        known = [(sample, seen) for sample, seen in known if (now - sample.at).total_seconds() <= seconds]
    breaks = _gaps([sample.at for sample, _ in known])
    retained = _lines(
        [(sample.at, None if seen.restart_lsn is None else sample.lsn - seen.restart_lsn) for sample, seen in known],
        breaks,
    )
    undelivered = _lines(
        [
            # An invalidated slot has no WAL to deliver, whatever position it shows.
            (sample.at, None if None in (seen.restart_lsn, seen.confirmed_flush_lsn) else _undelivered(sample, seen))
            for sample, seen in known
        ],
        breaks,
    )
    started = known[0][0].at if known else now
    return SlotSeries(
        one.slot.slot_name,
        retained,
        undelivered,
        samples,
        _forecast(one, now, (now - started).total_seconds()),
        _limits(retention, history[-1:]),
        now,
    )


def _undelivered(sample: Observation, seen: SlotObservation) -> int:
    return sample.lsn - (seen.confirmed_flush_lsn or sample.lsn)


def _comparable(history: Sequence[Observation]) -> list[Observation]:
    """Return the samples whose times and WAL positions grow up to the newest one.

    A sample with a later time is from before the clock was set back. One with a later position is of a standby that
    was ahead, or of the WAL that a failover discarded: then no older sample is comparable either.
    """
    kept: list[Observation] = []
    for one in reversed(history):
        if not kept or (one.at < kept[-1].at and one.lsn <= kept[-1].lsn):
            kept.append(one)
        elif one.lsn > kept[-1].lsn and one.timeline != kept[-1].timeline:
            break
    kept.reverse()
    return kept


def _since_creation(history: Sequence[Observation], name: str) -> list[tuple[Observation, SlotObservation]]:
    """Return the samples of a slot; only those after it was created last."""
    known: list[tuple[Observation, SlotObservation]] = []
    for sample in history:
        seen = sample.slot(name)
        if seen is None:
            if not sample.partial:
                known.clear()
            continue
        if known and _is_another(known[-1][1], seen):
            known.clear()
        known.append((sample, seen))
    return known


def _is_another(before: SlotObservation, after: SlotObservation) -> bool:
    """Return whether a slot was dropped and created again between two samples: its counters started from zero."""
    if not before.counters or not after.counters:
        return False
    *old, old_reset = before.counters
    *new, new_reset = after.counters
    return old_reset == new_reset and any(
        isinstance(was, int) and isinstance(now, int) and now < was for was, now in zip(old, new, strict=False)
    )


def _gaps(times: Sequence[datetime]) -> list[bool]:
    """Return for each sample whether a gap is before it: far longer than the usual distance of the samples near it."""
    distances = [(after - before).total_seconds() for before, after in pairwise(times)]
    gaps = [False] * len(times)
    for number, distance in enumerate(distances):
        if distance > _CONNECTED_SECONDS:
            near = [*distances[max(0, number - _NEIGHBOURS) : number], *distances[number + 1 :][:_NEIGHBOURS]]
            gaps[number + 1] = not near or distance > _GAP_FACTOR * median(near)
    return gaps


def _lines(values: Sequence[tuple[datetime, int | None]], gaps: Sequence[bool]) -> tuple[Line, ...]:
    """Divide values into lines at gaps and unknown values."""
    lines: list[list[Point]] = [[]]
    for (at, size_bytes), gap in zip(values, gaps, strict=True):
        if (gap or size_bytes is None) and lines[-1]:
            lines.append([])
        if size_bytes is not None:
            lines[-1].append(Point(at, max(0, size_bytes)))
    return tuple(tuple(line) for line in lines if line)


def _forecast(one: SlotRetention, now: datetime, history_seconds: float) -> Line:
    if one.retained_bytes is None or one.growth is None or one.slot.is_lost:
        return ()
    span = max(_SHORTEST_HISTORY_SECONDS, history_seconds)
    earliest = next((item for item in one.breaks if item.what != "xid_wraparound" and item.seconds > 0), None)
    seconds = span * _USUAL_SHARE
    if earliest is not None and earliest.seconds <= span * _LONGEST_SHARE:
        seconds = earliest.seconds  # the whole way to the failure
    start = Point(now, one.retained_bytes)
    growth = one.growth.per_second
    if growth < 0 and one.retained_bytes + growth * seconds < 0:
        empty = now + timedelta(seconds=one.retained_bytes / -growth)
        return start, Point(empty, 0), Point(now + timedelta(seconds=seconds), 0)
    return start, Point(now + timedelta(seconds=seconds), max(0, round(one.retained_bytes + growth * seconds)))


def _limits(retention: Retention, current: Sequence[Observation]) -> tuple[Limit, ...]:
    """Return the limits of retained WAL. Slots share WAL: the disk has room for more than the largest slot has now."""
    limits = []
    wal, storage = retention.wal, retention.storage
    if wal.slot_keep_bytes is not None:
        limits.append(Limit("max_slot_wal_keep_size", wal.slot_keep_bytes))
    if storage is not None and not wal.in_recovery:
        # Of all slots: the assessment can be restricted to some.
        held = [seen.restart_lsn for sample in current for seen in sample.slots if seen.restart_lsn is not None]
        most = max(0, wal.lsn - min(held)) if held else 0
        limits.append(Limit("disk full at", most + storage.free_bytes + storage.may_grow_bytes))
    return tuple(sorted(limits, key=lambda limit: limit.size_bytes))
