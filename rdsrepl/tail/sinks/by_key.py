"""Sends each record separately, so that the records of one partition key arrive in order. Pure: no I/O, no clock.

A key has at most one record in flight: the next one waits until that is acknowledged, so a record that is refused and
sent again stays before the later ones of its key. Different keys do not wait for each other.
"""

from __future__ import annotations

import heapq
import re
from binascii import b2a_base64
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count, islice, repeat
from json.encoder import encode_basestring_ascii as quote
from operator import itemgetter
from typing import Final, NamedTuple

from rdsrepl.tail.sinks.batching import RECORD_OVERHEAD_BYTES, Limits
from rdsrepl.tail.sinks.pacing import Pace

# Keys that are the same in JSON.
_PLAIN: Final = re.compile(rb"[ !#-\[\]-~]*").fullmatch
_base64: Final = partial(b2a_base64, newline=False)


class PendingBatch:
    """A batch that was handed over.

    Attributes:
        number: its number.
        left: how many of its records are not acknowledged yet.
        refusals: how often the record of a key was refused that is in flight or is to be sent again.
    """

    __slots__ = ("left", "number", "refusals")

    def __init__(self, number: int, left: int) -> None:
        self.number = number
        self.left = left
        self.refusals: dict[bytes, int] = {}


class _Line(NamedTuple):
    key: bytes
    data: bytes
    batch: PendingBatch


class Record(_Line):
    """One line to send: partition key, data, the batch it belongs to."""

    __slots__ = ()

    changes: Final = 1

    @property
    def refusals(self) -> int:
        """How often it was refused."""
        return self.batch.refusals.get(self.key, 0)


# These run for each change, without an operation of Python.
_record: Final = partial(tuple.__new__, Record)
_key: Final = itemgetter(0)
_data: Final = itemgetter(1)
_batch: Final = itemgetter(2)


def _bytes(records: Sequence[tuple[bytes, bytes] | Record]) -> int:
    """Return the bytes of keys and data."""
    return sum(map(len, map(_key, records))) + sum(map(len, map(_data, records)))


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
        keys = list(map(_key, records))
        made: Iterable[Record] = map(_record, zip(keys, map(_data, records), repeat(batch)))
        new = dict.fromkeys(keys)
        if len(new) == len(keys) and behind.keys().isdisjoint(new):
            behind.update(new)
            ready.extend(made)
        else:
            self._accept_each(made)
        self.pending_bytes += _bytes(records) + len(records) * RECORD_OVERHEAD_BYTES
        self._batches.append(batch)
        if ready and self._due is None:
            self._due = now + self.limits.linger_seconds
        if not records:
            self._advance()

    def _accept_each(self, records: Iterable[Record]) -> None:
        """Accept records of which some wait for others of their key."""
        ready, behind = self._ready, self._behind
        for record in records:
            key = record.key
            if key not in behind:
                behind[key] = None
                ready.append(record)
            elif (waiting := behind[key]) is None:
                behind[key] = deque((record,))
            else:
                waiting.append(record)

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
        first = list(islice(ready, most - len(records)))
        if size + (first_bytes := _bytes(first)) <= most_bytes:
            size += first_bytes
            records += first
            for _ in first:
                ready.popleft()
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
        acknowledged = entries
        if again:
            for position, due in again.items():
                record = entries[position]
                record.batch.refusals[record.key] = record.refusals + 1
                heapq.heappush(self._again, (due, next(self._serial), record))
            acknowledged = [record for position, record in enumerate(entries) if position not in again]
        for batch, records in Counter(map(_batch, acknowledged)).items():
            batch.left -= records
            if batch.refusals:
                for record in acknowledged:
                    batch.refusals.pop(record.key, None)
        keys = list(map(_key, acknowledged))
        for key, waiting in zip(keys, map(behind.pop, keys), strict=True):
            if waiting:
                ready.append(waiting.popleft())
                behind[key] = waiting
        self.pending_bytes -= _bytes(acknowledged) + len(acknowledged) * RECORD_OVERHEAD_BYTES
        self._pace.answered(len(acknowledged), len(again), now)
        if ready and self._due is None:
            # These have waited already.
            self._due = now
        self._advance()

    @staticmethod
    def memory(entries: Sequence[Record], /) -> int:
        """Return the bytes of their keys and data."""
        return _bytes(entries)

    @staticmethod
    def encoded(entries: Sequence[Record], /) -> bytes:
        """Return them as PutRecords has them."""
        keys = list(map(_key, entries))
        if not _PLAIN(b"".join(keys)):
            keys = [quote(key.decode())[1:-1].encode() for key in keys]
        fields = zip(map(_base64, map(_data, entries)), keys, strict=True)
        return b'{"Data":"%b"}' % b'"},{"Data":"'.join(map(b'","PartitionKey":"'.join, fields))

    def _advance(self) -> None:
        batches = self._batches
        while batches and not batches[0].left:
            self.durable = batches.popleft().number
