"""Read all shards of a stream, also through resharding, and deaggregate records."""

from __future__ import annotations

import base64
import hashlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from heapq import nsmallest
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, Final

from rdsrepl.aws import session, streams
from rdsrepl.config import Aws
from rdsrepl.errors import BadValue, Error, Throttled, Unreachable

_AT_ONCE: Final = 10_000
# A shard allows five reads a second for all readers together.
_SHORTEST_SECONDS: Final = 0.25
# All shards without records together are read this often, each at least every few seconds.
_IDLE_READS_PER_SECOND: Final = 80
_LONGEST_SECONDS: Final = 5.0
_REFUSED_SECONDS: Final = 1.0
_OUTAGE_SECONDS: Final = 30.0
_THREADS: Final = 8
# A record may be read so long after PutRecords returned: "typically less than 1 second" (Kinesis developer guide).
_PUT_TO_GET_SECONDS: Final = 2.0
_AGGREGATED: Final = b"\xf3\x89\x9a\xc2"


@dataclass(frozen=True, slots=True)
class Received:
    """A record as its producer wrote it; an aggregated record contains several.

    Attributes:
        sequence_number: of the Kinesis record; the parts of an aggregated record share it.
    """

    shard_id: str
    sequence_number: str
    arrived: datetime
    partition_key: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Start:
    """Where to start: ``LATEST``, ``TRIM_HORIZON``, or ``AT_TIMESTAMP``."""

    kind: str
    moment: datetime | None = None

    @property
    def request(self) -> dict[str, Any]:
        """The parameters of GetShardIterator."""
        return {"ShardIteratorType": self.kind, **({"Timestamp": self.moment} if self.moment else {})}

    @classmethod
    def parse(cls, text: str, option: str) -> Start:
        """Return where an option says to start: ``latest``, ``trim-horizon`` or a time, UTC if it names no zone.

        Raises:
            BadValue: it is none of them.
        """
        word = text.lower().replace("_", "-")  # TRIM_HORIZON of the Kinesis API
        if word in ("latest", "trim-horizon"):
            return cls(text.upper().replace("-", "_"))
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            raise BadValue(
                f"{option} {text} is not latest, trim-horizon or a time",
                hint="for example 2026-01-31T12:00:00+00:00",
            ) from None
        return cls("AT_TIMESTAMP", moment if moment.tzinfo else moment.replace(tzinfo=UTC))


@contextmanager
def opened(aws: Aws, stream: str, start: Start) -> Iterator[ShardReader]:
    """Yield a reader of all shards of a stream.

    Args:
        aws: the identity.
        stream: the name or ARN of the stream.
        start: where to start.

    Raises:
        Error: AWS refused.
    """
    reader = ShardReader(aws, stream, start)
    try:
        yield reader
    finally:
        reader.stop()


@dataclass(slots=True)
class _Open:
    """A shard that is read.

    Attributes:
        hash_keys: those that the shard takes.
        start: where to start if no iterator is valid: the parameters of GetShardIterator.
        due_at: when to read it next, on the monotonic clock.
        failed_at: since when reading it fails; None while it succeeds.
        current_at: when the last read began that came to the end of the shard as it was; on the same clock.
    """

    shard_id: str
    hash_keys: range
    start: dict[str, Any]
    iterator: str | None = None
    due_at: float = 0.0
    failed_at: float | None = None
    current_at: float = -math.inf


class ShardReader:
    """Reads all shards; threads make the calls, and only the caller's thread changes the state.

    The records of a shard come in the order of their sequence numbers. A shard is read after its parents were read to
    their ends. There is no order across other shards. Several shards are read at the same time, the one first that
    was not read for the longest time; at most that many answers, of up to 10 MiB each, are in memory. A batch has the
    records of one shard.
    """

    def __init__(self, aws: Aws, stream: str, start: Start) -> None:
        self._aws = aws
        self._stream = stream
        self._start = start
        self._client = session.client_without_retries(aws, "kinesis")
        self._open: dict[str, _Open] = {}
        self._started: set[str] = set()
        self._ended: set[str] = set()
        self._unread: set[str] = set()
        self._passed: set[str] = set()
        self._start_shards(streams.shards(aws, stream), first=True)
        self._wanted: SimpleQueue[tuple[str, str | None, dict[str, Any]] | None] = SimpleQueue()
        self._answers: SimpleQueue[tuple[str, float, dict[str, Any] | Error]] = SimpleQueue()
        self._reading: set[str] = set()
        self._threads = min(_THREADS, max(1, len(self._open)))
        for number in range(self._threads):
            Thread(target=self._work, name=f"shards-{number}", daemon=True).start()

    def stop(self) -> None:
        """Let the threads end after their current call."""
        for _ in range(self._threads):
            self._wanted.put(None)

    def batches(self) -> Iterator[list[Received]]:
        """Yield batches of records without end; an empty batch after each pause without records.

        Raises:
            Error: AWS refused.
        """
        paused_at = time.monotonic()
        while True:
            if batch := self._next():
                yield batch
                paused_at = time.monotonic()
            pause = time.monotonic() - paused_at
            # Not before each shard was read once: the caller may stop when no more records come.
            if pause >= (_LONGEST_SECONDS if self._unread else _SHORTEST_SECONDS):
                yield []
                paused_at = time.monotonic()

    def stored_before(self, moment: float = -math.inf) -> Iterator[list[Received]]:
        """Yield batches until all records were yielded whose PutRecords was answered before a moment; later ones too.

        A shard has them when a read that began later than the moment, and later than the time in which a record
        becomes readable, came to the end of the shard (``MillisBehindLatest`` is 0), or when the caller found a later
        record in it (``pass_by``). A closed shard has them at its end. The shards that were read must take all hash
        keys together: the children of a closed shard may not be listed yet.

        Args:
            moment: on the monotonic clock; by default each shard is read once to its end.

        Raises:
            Error: AWS refused.
        """
        self._passed.clear()
        while True:
            if batch := self._next():
                yield batch
            if self._has_all(moment):
                self._start_shards(streams.shards(self._aws, self._stream), first=False)
                if self._has_all(moment):
                    return

    def pass_by(self, shard_id: str) -> None:
        """Take note that a record was yielded that was stored in a shard after the moment of ``stored_before``."""
        self._passed.add(shard_id)

    def _has_all(self, moment: float) -> bool:
        readable = moment + _PUT_TO_GET_SECONDS
        shards = self._open.values()
        if any(shard.current_at <= readable and shard.shard_id not in self._passed for shard in shards):
            return False
        end = 0
        for keys in sorted((shard.hash_keys for shard in shards), key=lambda keys: keys.start):
            if keys.start > end:
                return False
            end = max(end, keys.stop)
        return end == streams.HASH_KEYS

    def _next(self) -> list[Received]:
        """Return the records of the next answer; none if there is no answer for a moment."""
        self._request()
        with suppress(Empty):
            shard_id, began, answer = self._answers.get(timeout=_SHORTEST_SECONDS / 4)
            self._reading.discard(shard_id)
            return self._received(self._open[shard_id], began, answer)
        return []

    def _request(self) -> None:
        """Ask for the shards that are due, as many as there are threads; the longest overdue first."""
        now = time.monotonic()
        due = (shard for shard in self._open.values() if shard.due_at <= now and shard.shard_id not in self._reading)
        for shard in nsmallest(self._threads - len(self._reading), due, key=lambda shard: shard.due_at):
            self._reading.add(shard.shard_id)
            self._wanted.put((shard.shard_id, shard.iterator, shard.start))

    def _received(self, shard: _Open, began: float, answer: dict[str, Any] | Error) -> list[Received]:
        """Take the answer of a read: return the records, and say when to read the shard again.

        Raises:
            Error: AWS refused, and a repetition cannot help.
        """
        now = time.monotonic()
        if isinstance(answer, Error):
            self._failed(shard, answer, now)
            return []
        shard.failed_at = None
        self._unread.discard(shard.shard_id)
        rows = answer["Records"]
        if rows:
            last = rows[-1]["SequenceNumber"]
            shard.start = {"ShardIteratorType": "AFTER_SEQUENCE_NUMBER", "StartingSequenceNumber": last}
        shard.iterator = answer.get("NextShardIterator")
        behind = rows or answer.get("MillisBehindLatest")
        if not answer.get("MillisBehindLatest"):
            shard.current_at = began
        shard.due_at = now + (_SHORTEST_SECONDS if behind else self._idle_seconds)
        batch = [one for row in rows for one in received(shard.shard_id, row, shard.hash_keys)]
        if shard.iterator is None:
            del self._open[shard.shard_id]
            self._ended.add(shard.shard_id)
            children = [streams.child_shard(row) for row in answer.get("ChildShards") or ()]
            listed = {one.shard_id: one for one in (*children, *streams.shards(self._aws, self._stream))}
            self._start_shards(listed.values(), first=False)
        return batch

    @property
    def _idle_seconds(self) -> float:
        """The time between two reads of a shard without records: a read costs 2 ms of CPU."""
        return min(_LONGEST_SECONDS, max(_SHORTEST_SECONDS, len(self._open) / _IDLE_READS_PER_SECOND))

    def _failed(self, shard: _Open, error: Error, now: float) -> None:
        if error.aws_code == "ExpiredIteratorException":
            shard.iterator = None
            return
        shard.failed_at = since = now if shard.failed_at is None else shard.failed_at
        # Other readers of the shard use its limits as well; a read of 10 MiB uses that of five seconds.
        is_throttled = error.aws_code == "ProvisionedThroughputExceededException" or isinstance(error, Throttled)
        if not is_throttled and (not isinstance(error, Unreachable) or now - since > _OUTAGE_SECONDS):
            raise error
        shard.due_at = now + _REFUSED_SECONDS

    def _start_shards(self, shards: Iterable[streams.Shard], *, first: bool) -> None:
        """Start every shard whose parents are finished."""
        shards = tuple(shards)
        existing = {shard.shard_id for shard in shards}
        for shard in shards:
            if shard.shard_id in self._started:
                continue
            if first and self._start.kind == "LATEST":
                due, start = shard.is_open, self._start
                if not due:
                    # Skip its records; its children can start.
                    self._started.add(shard.shard_id)
                    self._ended.add(shard.shard_id)
            else:
                due = all(parent in self._ended or parent not in existing for parent in shard.parents)
                start = Start("TRIM_HORIZON") if self._start.kind == "LATEST" else self._start
            if due:
                self._started.add(shard.shard_id)
                self._unread.add(shard.shard_id)
                self._open[shard.shard_id] = _Open(shard.shard_id, shard.hash_keys, start.request)

    def _work(self) -> None:
        """Read the wanted shards; runs in a thread."""
        while (wanted := self._wanted.get()) is not None:
            shard_id, iterator, start = wanted
            began = time.monotonic()
            try:
                self._answers.put((shard_id, began, self._get(shard_id, iterator, start)))
            except Error as exc:
                self._answers.put((shard_id, began, exc))

    def _get(self, shard_id: str, iterator: str | None, start: Mapping[str, Any]) -> dict[str, Any]:
        if iterator is None:
            where = {**streams.reference(self._stream), "ShardId": shard_id, **start}
            iterator = str(self._call("GetShardIterator", self._client.get_shard_iterator, where)["ShardIterator"])
        return self._call("GetRecords", self._client.get_records, {"ShardIterator": iterator, "Limit": _AT_ONCE})

    def _call(self, operation: str, method: Callable[..., dict[str, Any]], request: dict[str, Any]) -> dict[str, Any]:
        try:
            return method(**request)
        except Exception as exc:
            raise session.translate(exc, "kinesis", operation, self._aws) from exc


def received(shard_id: str, row: Mapping[str, Any], hash_keys: range) -> Iterator[Received]:
    """Yield a record of GetRecords, or the parts of an aggregated record whose hash key is one of the shard.

    The KCL discards the other parts as well: while a stream was resharded, a producer stored them in the wrong shard,
    and then stored them again.

    Raises:
        Error: the record is aggregated, and the library for the format is not installed.
    """
    data: bytes = row["Data"]
    number, arrived = row["SequenceNumber"], row["ApproximateArrivalTimestamp"]
    if not data.startswith(_AGGREGATED):
        yield Received(shard_id, number, arrived, row["PartitionKey"], data)
        return
    try:
        from aws_kinesis_agg.deaggregator import iter_deaggregate_records
    except ImportError as exc:
        raise Error(
            "the stream has aggregated records, and the package aws_kinesis_agg is not installed",
            hint="install it: pip install 'rdsrepl[kinesis]'",
        ) from exc
    inner = {
        "kinesisSchemaVersion": "1.0",
        "sequenceNumber": number,
        "partitionKey": row["PartitionKey"],
        "approximateArrivalTimestamp": arrived.timestamp(),
        "data": base64.b64encode(data),
    }
    outer = dict.fromkeys(
        ("eventID", "eventSource", "eventVersion", "eventName", "invokeIdentityArn", "awsRegion", "eventSourceARN"), ""
    )
    for one in iter_deaggregate_records([{**outer, "kinesis": inner}]):
        part = one["kinesis"]
        hashed = part.get("explicitHashKey")
        if hashed is None:
            hashed = int.from_bytes(hashlib.md5(part["partitionKey"].encode(), usedforsecurity=False).digest(), "big")
        if int(hashed) not in hash_keys:
            continue
        yield Received(shard_id, number, arrived, part["partitionKey"], base64.b64decode(part["data"]))
