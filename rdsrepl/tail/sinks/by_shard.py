"""Aggregates all records of a shard, so that they arrive in order for every partition key. Pure: no I/O, no clock.

A shard has at most one aggregated record in flight, so a record that is refused and sent again stays before the later
ones of its shard, and nothing is kept for each key. The aggregated record is addressed by the hash key of its first
user record.

While a stream is resharded the map is out of date, and Kinesis stores an aggregated record in another shard than
expected. Then nothing more is sent until every answer is there and the new map is known; the user records that the
consumers of that shard discard are distributed again, before all later ones (as the KPL's ``Retrier`` does).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Final

from rdsrepl.tail.sinks.aggregation import FIXED_BYTES, RECORD_BYTES, aggregated
from rdsrepl.tail.sinks.batching import RECORD_OVERHEAD_BYTES, Limits, entry
from rdsrepl.tail.sinks.shard_map import ShardMap, hash_key

# Partition key, data, and the number of the batch.
UserRecord = tuple[bytes, bytes, int]
# The KPL's partition key of aggregated records; the explicit hash key selects the shard.
_KEY: Final = b"a"
# The delay after the map did not have the shard that Kinesis named.
_UNKNOWN_SHARD_SECONDS: Final = 0.5


class Aggregate:
    """The user records of one Kinesis record, their memory, their shard by the map, how often it was refused."""

    __slots__ = ("memory", "records", "refusals", "shard_id")

    def __init__(self, shard_id: str, records: list[UserRecord], memory: int, refusals: int = 0) -> None:
        self.shard_id = shard_id
        self.records = records
        self.memory = memory
        self.refusals = refusals

    @property
    def changes(self) -> int:
        """The number of its records."""
        return len(self.records)

    def json(self) -> bytes:
        """Return it as an entry of PutRecords; a single record is not aggregated."""
        key, data, _ = self.records[0]
        plain = entry(data, key) if len(self.records) == 1 else entry(aggregated(self.records), _KEY)
        return b'%b,"ExplicitHashKey":"%d"}' % (plain[:-1], int.from_bytes(hash_key(key), "big"))


@dataclass(slots=True)
class _OpenShard:
    """What goes to one shard.

    Attributes:
        shard_id: the shard.
        queue: the records that wait.
        aggregate: in flight, or refused and to be sent again.
        is_sent: whether it is in flight.
        due: when the next one is to be sent.
    """

    shard_id: str
    queue: deque[UserRecord] = field(default_factory=deque)
    aggregate: Aggregate | None = None
    is_sent: bool = False
    due: float | None = None

    @property
    def first_number(self) -> int | None:
        """The number of the oldest batch that it has a record of."""
        if self.aggregate is not None:
            return self.aggregate.records[0][2]
        return self.queue[0][2] if self.queue else None


class ShardDispatch:
    """A dispatch that aggregates the records of each shard.

    Attributes:
        durable: the number up to which every batch is acknowledged.
        pending_bytes: the approximate memory of the records.
    """

    def __init__(self, limits: Limits, shards: ShardMap) -> None:
        self.durable = 0
        self.pending_bytes = 0
        self._limits = limits
        self._last = 0
        # Aggregated records that Kinesis stored in another shard than expected, each with that shard.
        self._misplaced: list[tuple[Aggregate, str]] = []
        self._is_stale = False
        self._is_asked = False
        self._asked_due = 0.0
        self._use(shards)

    def _use(self, shards: ShardMap) -> None:
        self._shards = shards
        self._open = [_OpenShard(shard_id) for shard_id in shards.open_ids]

    def accept(self, number: int, records: Sequence[tuple[bytes, bytes]], now: float) -> None:
        """Accept a batch; its records are (partition key, data) in commit order."""
        self._last = number
        if not records:
            self._advance()
            return
        self.pending_bytes += _memory(records)
        self._distribute([(key, data, number) for key, data in records], now + self._limits.linger_seconds)

    def _distribute(self, records: Sequence[UserRecord], due: float) -> None:
        shards = self._open
        if len(shards) == 1:
            shards[0].queue.extend(records)
        else:
            append = [shard.queue.append for shard in shards]
            position = self._shards.position
            for record in records:
                append[position(hash_key(record[0]))](record)
        for shard in shards:
            if shard.due is None and shard.queue:
                shard.due = due

    def due_in(self, now: float) -> float | None:
        """Return in how many seconds an aggregated record is to be sent; None if none waits."""
        if self._is_stale:
            return max(0.0, self._asked_due - now) if self._can_ask else None
        due = [shard.due for shard in self._open if shard.due is not None and not shard.is_sent]
        return max(0.0, min(due) - now) if due else None

    def take(self, now: float, *, flush: bool = False) -> list[Aggregate]:
        """Return an aggregated record for each shard that is due, the longest due first."""
        if self._is_stale:
            return []
        due = [
            (shard.due, number)
            for number, shard in enumerate(self._open)
            if shard.due is not None and not shard.is_sent and (shard.due <= now or (flush and shard.aggregate is None))
        ]
        taken: list[Aggregate] = []
        size = 0
        for _, number in sorted(due):
            shard = self._open[number]
            if shard.aggregate is None:
                shard.aggregate = self._pack(shard)
            size += shard.aggregate.memory
            if taken and (size > self._limits.request_bytes or len(taken) == self._limits.records):
                break
            shard.is_sent = True
            taken.append(shard.aggregate)
        return taken

    def _pack(self, shard: _OpenShard) -> Aggregate:
        queue = shard.queue
        records = [queue.popleft()]
        key, data, _ = records[0]
        size, most = len(key) + len(data) + RECORD_BYTES, self._limits.aggregate_bytes - FIXED_BYTES
        while queue:
            key, data, _ = queue[0]
            larger = size + len(key) + len(data) + RECORD_BYTES
            if larger > most:
                break
            size = larger
            records.append(queue.popleft())
        memory = size + len(records) * (RECORD_OVERHEAD_BYTES - RECORD_BYTES)
        return Aggregate(shard.shard_id, records, memory)

    def answered(
        self, entries: Sequence[Aggregate], again: Mapping[int, float], shard_ids: Sequence[str], now: float, /
    ) -> None:
        """Record the answer: the shards of the acknowledged ones are free, the refused ones are sent again."""
        sent = {shard.aggregate: shard for shard in self._open if shard.is_sent}
        for position, aggregate in enumerate(entries):
            shard = sent[aggregate]
            shard.is_sent = False
            if position in again:
                shard.due = again[position]
                shard.aggregate = self._halved(shard, aggregate)
                continue
            shard.aggregate = None
            # What waits has waited long enough.
            shard.due = now if shard.queue else None
            if (stored := shard_ids[position]) == aggregate.shard_id:
                self.pending_bytes -= aggregate.memory
            else:
                self._misplaced.append((aggregate, stored))
                self._is_stale = True
        self._advance()

    @staticmethod
    def _halved(shard: _OpenShard, refused: Aggregate) -> Aggregate:
        """Return what is sent again: half of the records, which may still fit into this second of the shard."""
        count = max(1, len(refused.records) // 2)
        records = refused.records[:count]
        shard.queue.extendleft(reversed(refused.records[count:]))
        return Aggregate(refused.shard_id, records, _memory(records), refused.refusals + 1)

    @staticmethod
    def memory(entries: Sequence[Aggregate], /) -> int:
        """Return the approximate bytes of their records."""
        return sum(aggregate.memory for aggregate in entries)

    @staticmethod
    def encoded(entries: Sequence[Aggregate], /) -> bytes:
        """Return them as PutRecords has them."""
        return b",".join(aggregate.json() for aggregate in entries)

    def _advance(self) -> None:
        numbers = [number for shard in self._open if (number := shard.first_number) is not None]
        numbers += [aggregate.records[0][2] for aggregate, _ in self._misplaced]
        self.durable = min(numbers) - 1 if numbers else self._last

    @property
    def _can_ask(self) -> bool:
        return self._is_stale and not self._is_asked and not any(shard.is_sent for shard in self._open)

    def wants_map(self, now: float) -> bool:
        """Return whether the caller is to read the shards now, and call ``reshard`` or ``map_failed``."""
        if not self._can_ask or now < self._asked_due:
            return False
        self._is_asked = True
        return True

    def map_failed(self, due: float) -> None:
        """Record that the shards could not be read; they are wanted again when DUE."""
        self._is_asked = False
        self._asked_due = due

    def reshard(self, shards: ShardMap, now: float) -> int:
        """Distribute what is not delivered over the shards of a new map.

        Returns:
            How many user records are sent again because the consumers of the shard that has them discard them.
        """
        waiting: list[UserRecord] = []
        due = now
        for aggregate, stored in self._misplaced:
            if stored not in shards.ranges:
                # ListShards does not show it yet. Everything is sent again, a little later.
                due = now + _UNKNOWN_SHARD_SECONDS
            discarded = [record for record in aggregate.records if shards.discards(stored, hash_key(record[0]))]
            self.pending_bytes -= aggregate.memory - _memory(discarded)
            waiting += discarded
        again = len(waiting)
        for shard in self._open:
            if shard.aggregate is not None:
                waiting += shard.aggregate.records
            waiting += shard.queue
        # The records of a key come from the queue of one shard, where they are in order.
        waiting.sort(key=itemgetter(2))
        self._misplaced = []
        self._is_stale = self._is_asked = False
        self._use(shards)
        self._distribute(waiting, due)
        self._advance()
        return again


def _memory(records: Sequence[tuple[bytes, bytes] | UserRecord]) -> int:
    return sum(len(record[0]) + len(record[1]) for record in records) + len(records) * RECORD_OVERHEAD_BYTES
