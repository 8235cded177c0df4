"""Read every shard of a stream, through resharding, and take aggregated records apart."""

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
# A shard allows five reads a second, to all its readers together.
_PAUSE_SECONDS: Final = 0.25
_AGGREGATED: Final = b"\xf3\x89\x9a\xc2"


@dataclass(frozen=True, slots=True)
class Received:
    """A record as it was put; of an aggregated one, each of its parts.

    Attributes:
        sequence_number: of the record as Kinesis has it; parts share it.
    """

    shard_id: str
    sequence_number: str
    arrived: datetime
    partition_key: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Start:
    """Where to begin: ``LATEST``, ``TRIM_HORIZON``, or ``AT_TIMESTAMP``."""

    kind: str
    moment: datetime | None = None

    @property
    def request(self) -> dict[str, Any]:
        """What GetShardIterator calls it."""
        return {"ShardIteratorType": self.kind, **({"Timestamp": self.moment} if self.moment else {})}


def read(aws: Aws, stream: str, start: Start) -> Iterator[list[Received]]:
    """Yield what comes, batch after batch and for ever; an empty batch after each round without a record.

    Within a shard the order is that of its sequence numbers, and a shard is read when its parents were read to their
    ends; across shards there is none.

    Args:
        aws: the identity.
        stream: its name or ARN.
        start: where to begin.

    Raises:
        Error: AWS refused.
    """
    reader = _Reader(aws, stream, start)
    while True:
        began = time.monotonic()
        nothing = True
        for batch in reader.round():
            nothing = False
            yield batch
        if nothing:
            yield []
        time.sleep(max(0.0, _PAUSE_SECONDS - (time.monotonic() - began)))


class _Reader:
    def __init__(self, aws: Aws, stream: str, start: Start) -> None:
        self._aws = aws
        self._stream = stream
        self._start = start
        self._iterators: dict[str, str] = {}
        self._last: dict[str, str] = {}
        self._begun: set[str] = set()
        self._ended: set[str] = set()
        self._begin(streams.shards(aws, stream), first=True)

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
                self._begin(streams.shards(self._aws, self._stream), first=False)

    def _begin(self, shards: tuple[streams.Shard, ...], *, first: bool) -> None:
        """Begin with every shard whose turn it is."""
        there = {shard.shard_id for shard in shards}
        for shard in shards:
            if shard.shard_id in self._begun:
                continue
            if first and self._start.kind == "LATEST":
                due, start = shard.is_open, self._start
                if not due:
                    # What came before does not count, and does not hold back what comes after.
                    self._begun.add(shard.shard_id)
                    self._ended.add(shard.shard_id)
            else:
                due = all(parent in self._ended or parent not in there for parent in shard.parents)
                start = Start("TRIM_HORIZON") if self._start.kind == "LATEST" else self._start
            if due:
                self._begun.add(shard.shard_id)
                self._iterators[shard.shard_id] = self._iterator(shard.shard_id, start.request)

    def _get(self, shard_id: str) -> dict[str, Any] | None:
        request = {"ShardIterator": self._iterators[shard_id], "Limit": _AT_ONCE}
        try:
            return session.call(self._aws, "kinesis", "GetRecords", request)
        except AwsError as exc:
            if exc.aws_code != "ExpiredIteratorException":
                raise
        last = self._last.get(shard_id)
        again = (
            self._start.request
            if last is None
            else {"ShardIteratorType": "AFTER_SEQUENCE_NUMBER", "StartingSequenceNumber": last}
        )
        self._iterators[shard_id] = self._iterator(shard_id, again)
        return None

    def _iterator(self, shard_id: str, start: Mapping[str, Any]) -> str:
        request = {**streams.reference(self._stream), "ShardId": shard_id, **start}
        return str(session.call(self._aws, "kinesis", "GetShardIterator", request)["ShardIterator"])


def received(shard_id: str, row: Mapping[str, Any]) -> Iterator[Received]:
    """Take a record of GetRecords apart, if it is an aggregated one.

    Raises:
        Error: it is, and the library that knows the format is not installed.
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
            "the stream has aggregated records, which the package aws_kinesis_agg takes apart",
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
