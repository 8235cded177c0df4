"""What may be sent when, so that the records of one key arrive in order whatever fails. Pure: no I/O, no clock.

A key has at most one item on its way: the next one waits until that is acknowledged, so a record that is refused and
sent again can never be overtaken by a later one of its key. Different keys do not wait for each other. With
aggregation everything that waits for a key goes as one item.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import count
from typing import Final

# A fifth of what PutRecords takes in one request: larger ones gain nothing, and each is in memory twice on its way.
REQUEST_BYTES: Final = 2 << 20
# What a queued record takes beside its bytes, about.
RECORD_OVERHEAD_BYTES: Final = 250
# What a user record takes in an aggregated one beside its data: tags and lengths.
AGGREGATION_OVERHEAD_BYTES: Final = 20


class PendingBatch:
    """What was handed over as one: its number, and how many of its records are not acknowledged yet."""

    __slots__ = ("left", "number")

    def __init__(self, number: int, left: int) -> None:
        self.number = number
        self.left = left


class Record:
    """One line on its way: partition key, data, the batch it belongs to, how often it was refused."""

    __slots__ = ("batch", "data", "key", "refusals")

    def __init__(self, key: str, data: bytes, batch: PendingBatch) -> None:
        self.key = key
        self.data = data
        self.batch = batch
        self.refusals = 0


Item = list[Record]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a request may hold, and how long a record may wait for company.

    Attributes:
        records: items in a request.
        request_bytes: data and keys of a request.
        linger_seconds: how long the first record waits for more.
        aggregate_bytes: how large an aggregated item may be; None sends every record by itself.
    """

    records: int = 500
    request_bytes: int = REQUEST_BYTES
    linger_seconds: float = 0.01
    aggregate_bytes: int | None = None


@dataclass(slots=True)
class Dispatch:
    """The records that were accepted and are not acknowledged.

    Attributes:
        durable: the number up to which every batch is acknowledged.
        pending_bytes: what the records take, about.
    """

    limits: Limits
    durable: int = 0
    pending_bytes: int = 0
    _batches: deque[PendingBatch] = field(default_factory=deque)
    # The first record of each key that has none on its way.
    _ready: deque[Record] = field(default_factory=deque)
    # A key is in here while a record of it is ready, on its way or to be sent again; with those that wait for that.
    # None instead of an empty deque, which takes more than most records do.
    _behind: dict[str, deque[Record] | None] = field(default_factory=dict)
    _again: list[tuple[float, int, Item]] = field(default_factory=list)
    _serial: count[int] = field(default_factory=count)
    _due: float | None = None

    def accept(self, number: int, records: Iterable[tuple[str, bytes]], now: float) -> None:
        """Take a batch; its records are (partition key, data) in commit order."""
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
        """Return in how many seconds something is to be sent; None where nothing waits."""
        if len(self._ready) >= self.limits.records:
            return 0.0
        times = [self._again[0][0]] if self._again else []
        if self._due is not None:
            times.append(self._due)
        return max(0.0, min(times) - now) if times else None

    def take(self, now: float, *, flush: bool = False) -> list[Item]:
        """Return the next request's items; none where nothing is due.

        Args:
            now: the time, on the clock of ``accept``.
            flush: send what there is, however little.
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
        """Take note that these arrived; the next records of their keys may go."""
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
            # They have waited already.
            self._due = now
        if finished:
            self._advance()

    def refused(self, item: Item, due: float) -> None:
        """Take note that this one did not arrive; it goes again when DUE, before anything later of its key."""
        item[0].refusals += 1
        heapq.heappush(self._again, (due, next(self._serial), item))

    @staticmethod
    def _weight(item: Item) -> int:
        return len(item[0].key) + sum(len(record.data) + AGGREGATION_OVERHEAD_BYTES for record in item)

    def _advance(self) -> None:
        batches = self._batches
        while batches and not batches[0].left:
            self.durable = batches.popleft().number
