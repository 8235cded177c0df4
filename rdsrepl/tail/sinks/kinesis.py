"""Kinesis as a sink: at least once, and in order for each partition key, also when Kinesis refuses records.

A dispatch decides what to send when; the threads here send it. After throttling, server errors and lost connections
the refused records are retried without a limit, with jitter. An error that no retry can fix stops the tail; nothing is
confirmed that Kinesis has not acknowledged.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rdsrepl.aws import streams
from rdsrepl.aws.streams import KinesisStream
from rdsrepl.config import Aws
from rdsrepl.errors import Error, Unreachable
from rdsrepl.tail.formats.partition_keys import keyed_records
from rdsrepl.tail.sinks.batching import REQUEST_BYTES, Dispatch, Entry, Limits
from rdsrepl.tail.sinks.by_key import KeyDispatch
from rdsrepl.tail.sinks.by_shard import ShardDispatch
from rdsrepl.tail.sinks.oversize import Oversize
from rdsrepl.tail.sinks.put_records import Answer, PutRecordsClient
from rdsrepl.tail.sinks.shard_map import ShardMap
from rdsrepl.tail.wakeup import WakeupPipe

_FIRST_DELAY_SECONDS: Final = 0.02
# Of a record that is refused while Kinesis answers. The confirmed position waits for it, and the limits of a shard are
# by the second.
_LONGEST_DELAY_SECONDS: Final = 0.2
# While requests fail as a whole.
_LONGEST_OUTAGE_DELAY_SECONDS: Final = 5.0
_NOTE_EVERY_SECONDS: Final = 10.0
# The most bytes that a character of a line has in UTF-8.
_BYTES_OF_CHARACTER: Final = 4
# The KPL's default: large enough to save records, small enough for a shard's limit of 1 MiB/s.
_AGGREGATE_BYTES: Final = 51_200


@dataclass(slots=True)
class KinesisCounts:
    """What was sent so far.

    Attributes:
        records: changes that were acknowledged.
        stored: Kinesis records that were acknowledged; with aggregation, each has several changes.
        requests: sent, answered or not.
        retries: changes that were sent again.
        throttles: retries that were throttled.
        shortened: changes whose largest values were left out.
        dead_letters: changes that were written to the dead-letter file.
    """

    records: int = 0
    stored: int = 0
    requests: int = 0
    retries: int = 0
    throttles: int = 0
    shortened: int = 0
    dead_letters: int = 0


class KinesisSink:
    """Writes keyed lines to a stream from its own threads."""

    def __init__(
        self,
        aws: Aws,
        stream: KinesisStream,
        *,
        linger_seconds: float,
        aggregate: bool,
        requests: int,
        oversize: Oversize,
        note: Callable[[str], None],
    ) -> None:
        """Start the threads.

        Args:
            aws: the AWS account and region.
            stream: the data stream.
            linger_seconds: the maximum batching delay of a record.
            aggregate: whether the records of a shard are aggregated.
            requests: how many may be in progress at the same time.
            oversize: handles records that exceed the stream's limit.
            note: called at an interval while Kinesis refuses all records.

        Raises:
            Error: the shards cannot be listed, which aggregation needs.
        """
        limits = Limits(
            linger_seconds=linger_seconds,
            request_bytes=max(REQUEST_BYTES, stream.record_bytes),
            aggregate_bytes=min(stream.record_bytes, _AGGREGATE_BYTES),
        )
        self.counts = KinesisCounts()
        self._aws = aws
        self._stream = stream
        self._by_shard = ShardDispatch(limits, self._shards()) if aggregate else None
        self._dispatch: Dispatch[Any] = self._by_shard or KeyDispatch(limits)
        self._oversize = oversize
        self._note = note
        self._noted_at = 0.0
        self._failure: Error | None = None
        self._finishing = False
        self._closed = False
        self._changed = threading.Condition()
        self.wakeup = WakeupPipe()
        self._client = PutRecordsClient(aws, stream, self._dispatch, with_shards=aggregate)
        self._threads = [
            threading.Thread(target=self._work, name=f"kinesis-{number}", daemon=True) for number in range(requests)
        ]
        for thread in self._threads:
            thread.start()

    def put(self, number: int, lines: Sequence[str] | Sequence[bytes]) -> None:
        """Accept batch NUMBER of keyed lines.

        Raises:
            Error: an earlier batch could not be written, or a record of this one is too large.
        """
        if self._failure is not None:
            raise self._failure
        records = keyed_records(lines)
        if max(map(len, lines), default=0) > self._stream.record_bytes // _BYTES_OF_CHARACTER:
            records = list(self._fitting(records))
        with self._changed:
            self._dispatch.accept(number, records, time.monotonic())
            self._changed.notify()
        if not records:
            self.wakeup.wake()

    def _fitting(self, records: Sequence[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, bytes]]:
        """Yield the records as far as the stream takes them; the others are shortened or kept elsewhere."""
        limit = self._stream.record_bytes
        for key, data in records:
            if len(data) + len(key) <= limit:
                yield key, data
            elif (fitting := self._oversize.fit(key.decode(), data, limit)) is None:
                self.counts.dead_letters += 1
            else:
                self.counts.shortened += 1
                yield key, fitting

    @property
    def pending_bytes(self) -> int:
        """The approximate memory of what is not acknowledged."""
        return self._dispatch.pending_bytes

    @property
    def durable(self) -> int:
        """The number up to which Kinesis has acknowledged every record.

        Raises:
            Error: Kinesis refuses with an error that no retry can fix.
        """
        if self._failure is not None:
            raise self._failure
        return self._dispatch.durable

    def finish(self) -> None:
        """Send without batching delay from now on."""
        with self._changed:
            self._finishing = True
            self._changed.notify_all()

    def close(self) -> None:
        """Stop sending."""
        if self._closed:
            return
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(timeout=0.5)
        self._oversize.close()
        if not any(thread.is_alive() for thread in self._threads):
            self.wakeup.close()

    def _work(self) -> None:
        try:
            while (entries := self._next()) is not None:
                if entries:
                    self._send(entries)
                else:
                    self._reshard()
        except Error as exc:
            self._fail(exc)
        except Exception as exc:  # noqa: BLE001 - a thread that ends without an error would block the tail
            self._fail(Error(f"could not write to stream {self._stream.name}: {exc!r}", hint="please report it"))

    def _next(self) -> list[Entry] | None:
        """Wait for the next request's entries; an empty list asks for the map of the shards, None is the end."""
        with self._changed:
            while not self._closed and self._failure is None:
                now = time.monotonic()
                due = self._dispatch.due_in(now)
                if due is not None and (due == 0.0 or self._finishing):
                    entries: list[Entry] = self._dispatch.take(now, flush=self._finishing)
                    if entries:
                        self.counts.requests += 1
                        self._changed.notify()  # there may be more for the next thread
                        return entries
                    if self._by_shard is not None and self._by_shard.wants_map(now):
                        return []
                self._changed.wait(due)
            return None

    def _send(self, entries: list[Entry]) -> None:
        longest, outage = _LONGEST_DELAY_SECONDS, ""
        try:
            answer = self._client.put(entries)
        except Unreachable as exc:
            outage = exc.aws_code or exc.message
            answer = Answer(dict.fromkeys(range(len(entries)), outage))
            longest = _LONGEST_OUTAGE_DELAY_SECONDS
        now = time.monotonic()
        # Each record has its own delay: other shards may have capacity, and retries must not coincide. After an outage
        # they go together again.
        fewest = min(entry.refusals for entry in entries) if outage else 0
        common = now + _delay(fewest, longest)
        again = {n: common if outage else now + _delay(entries[n].refusals, longest) for n in answer.refused}
        with self._changed:
            self._dispatch.answered(entries, again, answer.shard_ids, now)
            self._count(entries, answer)
            self._changed.notify()
        if len(again) == len(entries) and now - self._noted_at > _NOTE_EVERY_SECONDS:
            self._noted_at = now
            why = outage or ", ".join(sorted(set(answer.refused.values())))
            hint = "" if self._by_shard or "Throughput" not in why else "; --aggregate sends fewer records"
            note = f"stream {self._stream.name} refuses all records ({why}); retrying, the slot keeps its WAL"
            self._note(note + hint)
        self.wakeup.wake()

    def _count(self, entries: list[Entry], answer: Answer) -> None:
        counts = self.counts
        counts.records += sum(entry.changes for entry in entries)
        counts.stored += len(entries) - len(answer.refused)
        for position, code in answer.refused.items():
            again = entries[position].changes
            counts.records -= again
            counts.retries += again
            if "Throughput" in code or "Throttl" in code:
                counts.throttles += again

    def _shards(self) -> ShardMap:
        """Return the map of the stream's shards (ListShards).

        Raises:
            Unreachable: AWS does not answer, or shows no open shard.
            Error: AWS refuses.
        """
        shards = ShardMap.of(streams.shards(self._aws, self._stream.arn))
        if not shards.open_ids:
            raise Unreachable(f"stream {self._stream.name} has no open shard", hint="retry when it is ACTIVE")
        return shards

    def _reshard(self) -> None:
        """Read the map of the shards again, and distribute the records that wait."""
        assert self._by_shard is not None
        try:
            shards = self._shards()
        except Unreachable:
            with self._changed:
                self._by_shard.map_failed(time.monotonic() + random.uniform(0.5, 1.0))
                self._changed.notify()
            return
        with self._changed:
            again = self._by_shard.reshard(shards, time.monotonic())
            self.counts.records -= again
            self.counts.retries += again
            self._changed.notify()
        self.wakeup.wake()

    def _fail(self, failure: Error) -> None:
        with self._changed:
            self._failure = self._failure or failure
            self._changed.notify_all()
        self.wakeup.wake()


def _delay(refusals: int, longest: float) -> float:
    """Return the time until the next attempt, in seconds, with jitter."""
    delay = min(longest, _FIRST_DELAY_SECONDS * 2 ** min(refusals, 10))
    return random.uniform(delay / 10, delay)
