"""Kinesis data streams: read, create, delete."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, Final

from rdsrepl.aws import session
from rdsrepl.config import Aws, Target
from rdsrepl.errors import BadValue, NotAvailable, NotFound, Unreachable
from rdsrepl.plan import AwsCall, Condition, Plan, Wait, require_same
from rdsrepl.text.commands import command
from rdsrepl.text.counts import counted

# The largest record if the stream does not set MaxRecordSizeInKiB.
_RECORD_KIB: Final = 1024
#: How many hash keys there are; the open shards of a stream take all of them.
HASH_KEYS: Final = 1 << 128
_USABLE: Final = frozenset({"ACTIVE", "UPDATING"})


@dataclass(frozen=True, slots=True)
class KinesisStream:
    """A stream, as DescribeStreamSummary returns it.

    Attributes:
        mode: ``PROVISIONED`` or ``ON_DEMAND``.
        record_bytes: the largest record, with its partition key.
        retention_hours: how long a record is kept.
        encryption: ``NONE`` or ``KMS``.
        created_at: when the stream was created.
    """

    name: str
    arn: str
    status: str
    mode: str
    shards: int
    record_bytes: int
    retention_hours: int
    encryption: str
    created_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Shard:
    """A shard, as ListShards returns it.

    Attributes:
        parents: the shards that it was split or merged from; they may not exist any more.
        is_open: whether it accepts records.
        first_hash_key: the start of its range, from 0.
        last_hash_key: the end, inclusive.
    """

    shard_id: str
    parents: tuple[str, ...]
    is_open: bool
    first_hash_key: int
    last_hash_key: int

    @property
    def hash_keys(self) -> range:
        """The hash keys that it takes."""
        return range(self.first_hash_key, self.last_hash_key + 1)


def ls(aws: Aws) -> tuple[str, ...]:
    """Return the names of the streams in the region (ListStreams).

    Raises:
        Error: AWS refused.
    """
    return tuple(str(name) for name in session.pages(aws, "kinesis", "ListStreams", "StreamNames"))


def shards(aws: Aws, name: str) -> tuple[Shard, ...]:
    """Return the shards of a stream, with closed shards that still hold records (ListShards).

    Raises:
        NotFound: the stream does not exist.
    """
    return tuple(
        _shard(
            row,
            parents=(row.get("ParentShardId"), row.get("AdjacentParentShardId")),
            is_open="EndingSequenceNumber" not in row["SequenceNumberRange"],
        )
        for row in _listed_shards(aws, name)
    )


def child_shard(row: Mapping[str, Any]) -> Shard:
    """Return a child of a closed shard, as GetRecords returns it at the end of the shard (``ChildShards``).

    ListShards may show it later.
    """
    return _shard(row, parents=row["ParentShards"], is_open=True)


def _shard(row: Mapping[str, Any], *, parents: Iterable[str | None], is_open: bool) -> Shard:
    keys = row["HashKeyRange"]
    first, last = int(keys["StartingHashKey"]), int(keys["EndingHashKey"])
    return Shard(row["ShardId"], tuple(parent for parent in parents if parent), is_open, first, last)


def _listed_shards(aws: Aws, name: str) -> Iterator[Mapping[str, Any]]:
    request: dict[str, Any] = reference(name)
    while request:
        answer = session.call(aws, "kinesis", "ListShards", request)
        yield from answer["Shards"]
        # Botocore's paginator repeats the name, which Kinesis refuses together with a token.
        request = {"NextToken": answer["NextToken"]} if answer.get("NextToken") else {}


def create(aws: Aws, name: str, *, shards: int | None, record_kib: int | None, timeout_seconds: float) -> Plan:
    """Plan to create a stream and wait until it is active (CreateStream).

    Args:
        aws: the identity.
        name: the name of the stream.
        shards: the number of shards; None for on-demand mode.
        record_kib: the largest record in KiB; None for the AWS default.
        timeout_seconds: the timeout of the wait.

    Raises:
        BadValue: the name is not valid.
        AlreadyExists: a stream with this name exists, and differs or is being deleted.
    """
    if "StreamARN" in reference(name):
        raise BadValue(f"{name!r} is an ARN, not a name", hint="give the name of the new stream")
    mode = "ON_DEMAND" if shards is None else "PROVISIONED"
    title = f"create stream {name}"
    wait = Wait(f"wait until stream {name} is active", partial(_active, name=name), timeout_seconds)
    try:
        existing = get(aws, name)
    except NotFound:
        pass
    else:
        compared: dict[str, tuple[object, object]] = {
            "status": (existing.status, existing.status if existing.status != "DELETING" else "ACTIVE"),
            "mode": (existing.mode, mode),
            # A stream that is being created has no shards yet.
            "shards": (existing.shards, None if existing.status == "CREATING" else shards),
            "record size": (existing.record_bytes // 1024, record_kib),
        }
        require_same(f"stream {name}", compared, hint=f"show it: {command('stream show {}', name)}")
        if existing.status == "ACTIVE":
            return Plan(title, (), unchanged="the stream already exists as requested")
        return Plan(title, (wait,), (f"stream {name} already exists: the plan only waits for it",))
    request: dict[str, Any] = {"StreamName": name, "StreamModeDetails": {"StreamMode": mode}}
    request |= {} if shards is None else {"ShardCount": shards}
    request |= {} if record_kib is None else {"MaxRecordSizeInKiB": record_kib}
    return Plan(title, (AwsCall(title, "kinesis", "CreateStream", request, effect="create"), wait))


def delete(stream: KinesisStream, *, timeout_seconds: float) -> Plan:
    """Plan to delete a stream and wait until it is deleted (DeleteStream)."""
    request = {"StreamARN": stream.arn}
    return Plan(
        f"delete stream {stream.name}",
        (
            AwsCall(f"delete stream {stream.name}", "kinesis", "DeleteStream", request, effect="drop"),
            Wait(f"wait until stream {stream.name} is deleted", partial(_deleted, name=stream.name), timeout_seconds),
        ),
        warnings=(f"deletes the records of the last {counted(stream.retention_hours, 'hour')}",),
    )


def _active(target: Target, *, name: str) -> Condition:
    stream = get(target.aws, name)
    facts = {"arn": stream.arn, "shards": str(stream.shards)}
    return Condition(stream.status == "ACTIVE", f"stream {stream.status}", facts=facts)


def _deleted(target: Target, *, name: str) -> Condition:
    try:
        stream = get(target.aws, name)
    except NotFound:
        return Condition(True, "deleted")
    return Condition(False, f"stream {stream.status}")


def get(aws: Aws, name: str) -> KinesisStream:
    """Return one stream.

    Args:
        aws: the identity.
        name: the name or ARN of the stream.

    Raises:
        BadValue: the name is not valid, or the ARN names another region.
        NotFound: the stream does not exist in the region.
        Unreachable: the endpoint is not Kinesis.
    """
    named = reference(name)
    if "StreamARN" in named and (configured := session.region(aws)) not in (None, region := name.split(":")[3]):
        raise BadValue(f"stream {name} is not in region {configured}", hint=f"use --region {region}")
    answer = session.call(aws, "kinesis", "DescribeStreamSummary", named)
    if "StreamDescriptionSummary" not in answer:
        raise Unreachable(
            "DescribeStreamSummary: the endpoint is not Kinesis",
            hint="check --endpoint-url, AWS_ENDPOINT_URL, or endpoint_url in the target",
        )
    return _stream(answer["StreamDescriptionSummary"])


def reference(name: str) -> dict[str, str]:
    """Return the request parameter that identifies a stream: StreamName, or StreamARN.

    Raises:
        BadValue: the name is not valid.
    """
    if re.fullmatch(r"arn:aws[\w-]*:kinesis:[\w-]+:\d{12}:stream/[a-zA-Z0-9_.-]{1,128}", name):
        return {"StreamARN": name}
    if not re.fullmatch(r"[a-zA-Z0-9_.-]{1,128}", name):
        raise BadValue(
            f"{name!r} is not a valid stream name", hint="use 1 to 128 letters, digits, '_', '.', '-', or an ARN"
        )
    return {"StreamName": name}


def require_usable(stream: KinesisStream) -> None:
    """Refuse to write to a stream that accepts no records.

    Raises:
        NotAvailable: the stream is being created or deleted.
    """
    if stream.status not in _USABLE:
        raise NotAvailable(
            f"stream {stream.name} is {stream.status}",
            hint=f"wait until it is ACTIVE: {command('stream show {}', stream.name)}"
            if stream.status == "CREATING"
            else "choose another stream: rdsrepl stream list",
        )


def _stream(row: Mapping[str, Any]) -> KinesisStream:
    return KinesisStream(
        name=row["StreamName"],
        arn=row["StreamARN"],
        status=row["StreamStatus"],
        mode=(row.get("StreamModeDetails") or {}).get("StreamMode", "PROVISIONED"),
        shards=row.get("OpenShardCount", 0),
        record_bytes=(row.get("MaxRecordSizeInKiB") or _RECORD_KIB) * 1024,
        retention_hours=row.get("RetentionPeriodHours", 0),
        encryption=row.get("EncryptionType") or "NONE",
        created_at=row.get("StreamCreationTimestamp"),
    )
