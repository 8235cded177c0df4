"""Sends each record separately, so that the records of one partition key arrive in order. Pure: no I/O, no clock.

A key has at most one record in flight: the next one waits until that is acknowledged, so a record that is refused and
sent again stays before the later ones of its key. Different keys do not wait for each other.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count

from rdsrepl.tail.sinks.batching import RECORD_OVERHEAD_BYTES, Limits, entry
from rdsrepl.tail.sinks.pacing import Pace


class PendingBatch:
    """A batch that was handed over: its number, and how many of its records are not acknowledged yet."""

    __slots__ = ("left", "number")

    def __init__(self, number: int, left: int) -> None:
        self.number = number
        self.left = left


class Record:
    """One line to send: partition key, data, the batch it belongs to, how often it was refused."""

    __slots__ = ("batch", "data", "key", "refusals")

    def __init__(self, key: bytes, data: bytes, batch: PendingBatch) -> None:
        self.key = key
        self.data = data
        self.batch = batch
        self.refusals = 0

    def __len__(self) -> int:
        return 1

    @property
    def memory(self) -> int:
        """The bytes of its key and data."""
        return len(self.key) + len(self.data)

    def json(self) -> bytes:
        """Return it as an entry of PutRecords."""
        return entry(self.data, self.key)


@dataclass(slots=True)
class KeyDispatch:
    """A dispatch that keeps the order of each partition key.

    Attributes:
        durable: the number up to which every batch is acknowledged.
        pending_bytes: the approximate memory of the records.
    """

    limits: Limits
    durable: int = 0
    pending_bytes: int = 0
    _batches: deque[PendingBatch] = field(default_factory=deque)
    # The first record of each key that has none in flight.
    _ready: deque[Record] = field(default_factory=deque)
    # The keys with a record that is ready, in flight or to be sent again, each with the records that wait for it. None
    # instead of an empty deque, which takes more memory than most records.
    _behind: dict[bytes, deque[Record] | None] = field(default_factory=dict)
    # Refused records by the time when they are due, and those that are due by their age.
    _again: list[tuple[float, int, Record]] = field(default_factory=list)
    _overdue: list[tuple[int, int, Record]] = field(default_factory=list)
    _serial: count[int] = field(default_factory=count)
    _due: float | None = None
    _pace: Pace = field(default_factory=Pace)

    def accept(self, number: int, records: Sequence[tuple[bytes, bytes]], now: float) -> None:
        """Accept a batch; its records are (partition key, data) in commit order."""
        batch = PendingBatch(number, len(records))
        ready, behind = self._ready, self._behind
        size = 0
        for key, data in records:
            record = Record(key, data, batch)
            size += len(data) + len(key)
            if key not in behind:
                behind[key] = None
                ready.append(record)
            elif (waiting := behind[key]) is None:
                behind[key] = deque((record,))
            else:
                waiting.append(record)
        self.pending_bytes += size + len(records) * RECORD_OVERHEAD_BYTES
        self._batches.append(batch)
        if ready and self._due is None:
            self._due = now + self.limits.linger_seconds
        if not records:
            self._advance()

    def due_in(self, now: float) -> float | None:
        """Return in how many seconds a record is to be sent; None if none waits."""
        times = [self._again[0][0]] if self._again else []
        if self._due is not None:
            times.append(self._due)
        if self._overdue or len(self._ready) >= self.limits.records:
            times.append(now)
        return max(0.0, self._pace.resumes_at - now, min(times) - now) if times else None

    def take(self, now: float, *, flush: bool = False) -> list[Record]:
        """Return the records of the next request, refused ones first, the oldest first; empty if none is due."""
        records: list[Record] = []
        if now < self._pace.resumes_at:
            return records
        size = 0
        most_bytes = self.limits.request_bytes
        most = min(self.limits.records, self._pace.records or self.limits.records)
        overdue = self._overdue
        while self._again and self._again[0][0] <= now:
            _, serial, record = heapq.heappop(self._again)
            heapq.heappush(overdue, (record.batch.number, serial, record))
        while overdue and len(records) < most:
            record = overdue[0][2]
            size += len(record.data) + len(record.key)
            if records and size > most_bytes:
                break
            records.append(heapq.heappop(overdue)[2])
        ready = self._ready
        early = self._due is not None and now < self._due and len(ready) < most
        if early and not flush and not records:
            return records
        while ready and len(records) < most:
            record = ready[0]
            size += len(record.data) + len(record.key)
            if records and size > most_bytes:
                break
            records.append(ready.popleft())
        if records:
            self._pace.sent(now)
        self._due = now if ready else None
        return records

    def answered(
        self, entries: Sequence[Record], again: Mapping[int, float], _shard_ids: Sequence[str], now: float, /
    ) -> None:
        """Record the answer: the next records of the acknowledged keys may be sent, the refused ones are sent again."""
        ready, behind = self._ready, self._behind
        size = 0
        finished = False
        for position, record in enumerate(entries):
            if again and position in again:
                record.refusals += 1
                heapq.heappush(self._again, (again[position], next(self._serial), record))
                continue
            key = record.key
            size += len(record.data) + len(key)
            batch = record.batch
            batch.left -= 1
            if not batch.left:
                finished = True
            if waiting := behind[key]:
                ready.append(waiting.popleft())
            else:
                del behind[key]
        acknowledged = len(entries) - len(again)
        self.pending_bytes -= size + acknowledged * RECORD_OVERHEAD_BYTES
        self._pace.answered(acknowledged, len(again), now)
        if ready and self._due is None:
            # These have waited already.
            self._due = now
        if finished:
            self._advance()

    def _advance(self) -> None:
        batches = self._batches
        while batches and not batches[0].left:
            self.durable = batches.popleft().number
