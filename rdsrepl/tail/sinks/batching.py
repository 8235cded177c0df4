"""Decides which records to send when, so that the records of one key arrive in order. Pure: no I/O, no clock.

A key has at most one item in flight: the next one waits until that is acknowledged, so a record that is refused and
sent again stays before the later ones of its key. Different keys do not wait for each other. With aggregation, all
records that wait for a key go as one item.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import count
from typing import Final

# A fifth of PutRecords's limit: larger requests are not faster, and each is in memory twice while it is sent.
REQUEST_BYTES: Final = 2 << 20
# The approximate memory of a queued record, without its bytes.
RECORD_OVERHEAD_BYTES: Final = 250
# The size of a user record in an aggregated one, without its data: tags and lengths.
AGGREGATION_OVERHEAD_BYTES: Final = 20


class PendingBatch:
    """A batch that was handed over: its number, and how many of its records are not acknowledged yet."""

    __slots__ = ("left", "number")

    def __init__(self, number: int, left: int) -> None:
        self.number = number
        self.left = left


class Record:
    """One line to send: partition key, data, the batch it belongs to, how often it was refused."""

    __slots__ = ("batch", "data", "key", "refusals")

    def __init__(self, key: str, data: bytes, batch: PendingBatch) -> None:
        self.key = key
        self.data = data
        self.batch = batch
        self.refusals = 0


Item = list[Record]


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of a request, and the maximum batching delay of a record.

    Attributes:
        records: items in a request.
        request_bytes: of a request's data and keys.
        linger_seconds: how long the first record waits for others.
        aggregate_bytes: the maximum size of an aggregated item; None sends each record separately.
    """

    records: int = 500
    request_bytes: int = REQUEST_BYTES
    linger_seconds: float = 0.01
    aggregate_bytes: int | None = None


@dataclass(slots=True)
class Dispatch:
    """Holds the records that were accepted and are not acknowledged.

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
    _behind: dict[str, deque[Record] | None] = field(default_factory=dict)
    _again: list[tuple[float, int, Item]] = field(default_factory=list)
    _serial: count[int] = field(default_factory=count)
    _due: float | None = None

    def accept(self, number: int, records: Iterable[tuple[str, bytes]], now: float) -> None:
        """Accept a batch; its records are (partition key, data) in commit order."""
        batch = PendingBatch(number, 0)
        ready, behind = self._ready, self._behind
        size = 0
        for key, data in records:
            record = Record(key, data, batch)
            batch.left += 1
            size += len(data) + len(key) + RECORD_OVERHEAD_BYTES
            if key not in behind:
                behind[key] = None
                ready.append(record)
            elif (waiting := behind[key]) is None:
                behind[key] = deque((record,))
            else:
                waiting.append(record)
        self.pending_bytes += size
        self._batches.append(batch)
        if ready and self._due is None:
            self._due = now + self.limits.linger_seconds
        if not batch.left:
            self._advance()

    def due_in(self, now: float) -> float | None:
        """Return in how many seconds a record is to be sent; None if none waits."""
        if len(self._ready) >= self.limits.records:
            return 0.0
        times = [self._again[0][0]] if self._again else []
        if self._due is not None:
            times.append(self._due)
        return max(0.0, min(times) - now) if times else None

    def take(self, now: float, *, flush: bool = False) -> list[Item]:
        """Return the items of the next request; empty if none is due.

        Args:
            now: the time, on the clock of ``accept``.
            flush: send what waits, without a delay.
        """
        items: list[Item] = []
        size = 0
        while self._again and self._again[0][0] <= now and len(items) < self.limits.records:
            weight = self._weight(self._again[0][2])
            if items and size + weight > self.limits.request_bytes:
                return items
            size += weight
            items.append(heapq.heappop(self._again)[2])
        ready = self._ready
        early = self._due is not None and now < self._due and len(ready) < self.limits.records
        if early and not flush and not items:
            return items
        aggregate = self.limits.aggregate_bytes
        while ready and len(items) < self.limits.records:
            first = ready[0]
            weight = len(first.data) + len(first.key)
            if items and size + weight > self.limits.request_bytes:
                break
            item = [ready.popleft()]
            if aggregate is not None and (waiting := self._behind[first.key]):
                weight += AGGREGATION_OVERHEAD_BYTES
                while waiting and weight + len(waiting[0].data) + AGGREGATION_OVERHEAD_BYTES <= aggregate:
                    weight += len(waiting[0].data) + AGGREGATION_OVERHEAD_BYTES
                    item.append(waiting.popleft())
            size += weight
            items.append(item)
        self._due = now if ready else None
        return items

    def acknowledged(self, items: Iterable[Item], now: float) -> None:
        """Record that these were acknowledged; the next records of their keys may be sent."""
        ready, behind = self._ready, self._behind
        size = 0
        finished = False
        for item in items:
            for record in item:
                size += len(record.data) + len(record.key) + RECORD_OVERHEAD_BYTES
                batch = record.batch
                batch.left -= 1
                if not batch.left:
                    finished = True
            key = item[0].key
            waiting = behind[key]
            if waiting:
                ready.append(waiting.popleft())
            else:
                del behind[key]
        self.pending_bytes -= size
        if ready and self._due is None:
            # These have waited already.
            self._due = now
        if finished:
            self._advance()

    def refused(self, item: Item, due: float) -> None:
        """Record that this item was refused; it is sent again when DUE, before later records of its key."""
        item[0].refusals += 1
        heapq.heappush(self._again, (due, next(self._serial), item))

    @staticmethod
    def _weight(item: Item) -> int:
        return len(item[0].key) + sum(len(record.data) + AGGREGATION_OVERHEAD_BYTES for record in item)

    def _advance(self) -> None:
        batches = self._batches
        while batches and not batches[0].left:
            self.durable = batches.popleft().number
