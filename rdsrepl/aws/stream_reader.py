"""Read all shards of a stream, also through resharding, and deaggregate records."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from rdsrepl.aws import session, streams
from rdsrepl.config import Aws
from rdsrepl.errors import AwsError, Error

_AT_ONCE: Final = 10_000
# A shard allows five reads a second for all readers together.
_PAUSE_SECONDS: Final = 0.25
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


def read(aws: Aws, stream: str, start: Start) -> Iterator[list[Received]]:
    """Yield batches of records without end; an empty batch after each round without records.

    The records of a shard come in the order of their sequence numbers. A shard is read after its parents were read to
    their ends. There is no order across other shards.

    Args:
        aws: the identity.
        stream: the name or ARN of the stream.
        start: where to start.

    Raises:
        Error: AWS refused.
    """
    reader = _Reader(aws, stream, start)
    while True:
        started = time.monotonic()
        is_empty = True
        for batch in reader.round():
            is_empty = False
            yield batch
        if is_empty:
            yield []
        time.sleep(max(0.0, _PAUSE_SECONDS - (time.monotonic() - started)))


class _Reader:
    def __init__(self, aws: Aws, stream: str, start: Start) -> None:
        self._aws = aws
        self._stream = stream
        self._start = start
        self._iterators: dict[str, str] = {}
        self._last: dict[str, str] = {}
        self._started: set[str] = set()
        self._ended: set[str] = set()
        self._start_shards(streams.shards(aws, stream), first=True)

    def round(self) -> Iterator[list[Received]]:
        """Read each shard once."""
        for shard_id in list(self._iterators):
            answer = self._get(shard_id)
            if answer is None:
                continue
            rows = answer["Records"]
            if rows:
                self._last[shard_id] = rows[-1]["SequenceNumber"]
                yield [one for row in rows for one in received(shard_id, row)]
            if following := answer.get("NextShardIterator"):
                self._iterators[shard_id] = following
            else:
                del self._iterators[shard_id]
                self._ended.add(shard_id)
                self._start_shards(streams.shards(self._aws, self._stream), first=False)

    def _start_shards(self, shards: tuple[streams.Shard, ...], *, first: bool) -> None:
        """Start every shard whose parents are finished."""
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
                self._iterators[shard.shard_id] = self._iterator(shard.shard_id, start.request)

    def _get(self, shard_id: str) -> dict[str, Any] | None:
        request = {"ShardIterator": self._iterators[shard_id], "Limit": _AT_ONCE}
        try:
            return session.call(self._aws, "kinesis", "GetRecords", request)
        except AwsError as exc:
            if exc.aws_code != "ExpiredIteratorException":
                raise
        last = self._last.get(shard_id)
        resume = (
            self._start.request
            if last is None
            else {"ShardIteratorType": "AFTER_SEQUENCE_NUMBER", "StartingSequenceNumber": last}
        )
        self._iterators[shard_id] = self._iterator(shard_id, resume)
        return None

    def _iterator(self, shard_id: str, start: Mapping[str, Any]) -> str:
        request = {**streams.reference(self._stream), "ShardId": shard_id, **start}
        return str(session.call(self._aws, "kinesis", "GetShardIterator", request)["ShardIterator"])


def received(shard_id: str, row: Mapping[str, Any]) -> Iterator[Received]:
    """Yield a record of GetRecords, or the parts of an aggregated record.

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
        yield Received(shard_id, number, arrived, part["partitionKey"], base64.b64decode(part["data"]))
