"""Kinesis data streams."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from rdsrepl.aws import session
from rdsrepl.config import Aws, Target
from rdsrepl.errors import BadValue, NotAvailable, NotFound, Unreachable
from rdsrepl.plan import AwsCall, Condition, Plan, Wait, require_same
from rdsrepl.text.commands import command

# What a record may have where the stream says nothing else (MaxRecordSizeInKiB).
_RECORD_KIB: Final = 1024
_USABLE: Final = frozenset({"ACTIVE", "UPDATING"})


@dataclass(frozen=True, slots=True)
class KinesisStream:
    """A stream, as DescribeStreamSummary gives it.

    Attributes:
        mode: ``PROVISIONED`` or ``ON_DEMAND``.
        record_bytes: how large a record may be, its partition key included.
        encryption: ``NONE`` or ``KMS``.
    """

    name: str
    arn: str
    status: str
    mode: str
    shards: int
    record_bytes: int
    retention_hours: int
    encryption: str


@dataclass(frozen=True, slots=True)
class Shard:
    """A shard, as ListShards gives it.

    Attributes:
        parents: the shards it was split from, or merged of; some may be gone already.
        is_open: whether it still takes records.
    """

    shard_id: str
    parents: tuple[str, ...]
    is_open: bool


def ls(aws: Aws) -> tuple[str, ...]:
    """Return the names of the region's streams (ListStreams).

    Raises:
        Error: AWS refused.
    """
    return tuple(str(name) for name in session.pages(aws, "kinesis", "ListStreams", "StreamNames"))


def shards(aws: Aws, name: str) -> tuple[Shard, ...]:
    """Return a stream's shards, closed ones that still hold records included (ListShards).

    Raises:
        NotFound: there is no such stream.
    """
    found = []
    for row in session.pages(aws, "kinesis", "ListShards", "Shards", reference(name)):
        parents = (row.get("ParentShardId"), row.get("AdjacentParentShardId"))
        is_open = "EndingSequenceNumber" not in row["SequenceNumberRange"]
        found.append(Shard(row["ShardId"], tuple(parent for parent in parents if parent), is_open))
    return tuple(found)


def create(aws: Aws, name: str, *, shards: int | None, record_kib: int | None, timeout_seconds: float) -> Plan:
    """Plan to make a stream and wait until it is active (CreateStream).

    Args:
        aws: the identity.
        name: the stream's name.
        shards: how many; None is on-demand.
        record_kib: how large a record may be, in KiB; None is AWS's default.
        timeout_seconds: how long the wait may take.

    Raises:
        BadValue: there can be no stream of that name.
        AlreadyExists: there is one, and it differs or is being deleted. One that is as asked for is waited for.
    """
    if "StreamARN" in reference(name):
        raise BadValue(f"{name!r} is an ARN", hint="a new stream has a name only")
    mode = "ON_DEMAND" if shards is None else "PROVISIONED"
    title = f"create stream {name}"
    wait = Wait(f"wait until stream {name} is active", partial(_active, name=name), timeout_seconds)
    try:
        there = get(aws, name)
    except NotFound:
        pass
    else:
        compared: dict[str, tuple[object, object]] = {
            "status": (there.status, there.status if there.status != "DELETING" else "ACTIVE"),
            "mode": (there.mode, mode),
            # While it is being made it has no shards yet.
            "shards": (there.shards, None if there.status == "CREATING" else shards),
            "record size": (there.record_bytes // 1024, record_kib),
        }
        require_same(f"stream {name}", compared, hint=f"look at it: {command('stream show {}', name)}")
        if there.status == "ACTIVE":
            return Plan(title, (), unchanged="it exists already, as asked for")
        return Plan(title, (wait,), (f"stream {name} exists already: it is waited for",))
    request: dict[str, Any] = {"StreamName": name, "StreamModeDetails": {"StreamMode": mode}}
    request |= {} if shards is None else {"ShardCount": shards}
    request |= {} if record_kib is None else {"MaxRecordSizeInKiB": record_kib}
    return Plan(title, (AwsCall(title, "kinesis", "CreateStream", request), wait))


def delete(stream: KinesisStream, *, timeout_seconds: float) -> Plan:
    """Plan to delete a stream and wait until it is gone (DeleteStream)."""
    request = {"StreamARN": stream.arn}
    return Plan(
        f"delete stream {stream.name}",
        (
            AwsCall(f"delete stream {stream.name}", "kinesis", "DeleteStream", request),
            Wait(f"wait until stream {stream.name} is gone", partial(_gone, name=stream.name), timeout_seconds),
        ),
        warnings=(f"its records of the last {stream.retention_hours} hours are lost, read or not",),
    )


def _active(target: Target, *, name: str) -> Condition:
    stream = get(target.aws, name)
    facts = {"arn": stream.arn, "shards": str(stream.shards)}
    return Condition(stream.status == "ACTIVE", f"stream {stream.status}", facts=facts)


def _gone(target: Target, *, name: str) -> Condition:
    try:
        stream = get(target.aws, name)
    except NotFound:
        return Condition(True, "gone")
    return Condition(False, f"stream {stream.status}")


def get(aws: Aws, name: str) -> KinesisStream:
    """Return one stream.

    Args:
        aws: the identity.
        name: the stream's name or ARN.

    Raises:
        BadValue: there can be no stream of that name, or its ARN is of another region than ours.
        NotFound: there is none in the region.
        Unreachable: something else than Kinesis answers there.
    """
    named = reference(name)
    if "StreamARN" in named and (here := session.region(aws)) not in (None, there := name.split(":")[3]):
        raise BadValue(f"stream {name} is not in region {here}", hint=f"--region {there}")
    answer = session.call(aws, "kinesis", "DescribeStreamSummary", named)
    if "StreamDescriptionSummary" not in answer:
        raise Unreachable(
            "DescribeStreamSummary: what answered is not Kinesis",
            hint="check --endpoint-url, AWS_ENDPOINT_URL, or endpoint_url in the target",
        )
    return _stream(answer["StreamDescriptionSummary"])


def reference(name: str) -> dict[str, str]:
    """Return what a request calls a stream by: StreamName, or StreamARN.

    Raises:
        BadValue: there can be no stream of that name.
    """
    if re.fullmatch(r"arn:aws[\w-]*:kinesis:[\w-]+:\d{12}:stream/[a-zA-Z0-9_.-]{1,128}", name):
        return {"StreamARN": name}
    if not re.fullmatch(r"[a-zA-Z0-9_.-]{1,128}", name):
        raise BadValue(
            f"{name!r} cannot be a stream's name", hint="1 to 128 letters, digits, '_', '.', '-'; or the stream's ARN"
        )
    return {"StreamName": name}


def require_usable(stream: KinesisStream) -> None:
    """Refuse to write to a stream that takes nothing now.

    Raises:
        NotAvailable: it is being made or deleted.
    """
    if stream.status not in _USABLE:
        raise NotAvailable(
            f"stream {stream.name} is {stream.status}",
            hint=f"wait until it is ACTIVE: {command('stream show {}', stream.name)}"
            if stream.status == "CREATING"
            else "it is going away: name another (rdsrepl stream list)",
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
    )
