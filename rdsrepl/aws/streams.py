"""Kinesis data streams."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from rdsrepl.aws import session
from rdsrepl.config import Aws
from rdsrepl.errors import BadValue, NotAvailable

# What a record may have where the stream says nothing else (MaxRecordSizeInKiB).
_RECORD_KIB: Final = 1024
_USABLE: Final = frozenset({"ACTIVE", "UPDATING"})


@dataclass(frozen=True, slots=True)
class Stream:
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


def get(aws: Aws, name: str) -> Stream:
    """Return one stream.

    Args:
        aws: the identity.
        name: the stream's name or ARN.

    Raises:
        BadValue: there can be no stream of that name.
        NotFound: there is none in the region.
    """
    answer = session.call(aws, "kinesis", "DescribeStreamSummary", reference(name))
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


def require_usable(stream: Stream) -> None:
    """Refuse to write to a stream that takes nothing now.

    Raises:
        NotAvailable: it is being made or deleted.
    """
    if stream.status not in _USABLE:
        raise NotAvailable(
            f"stream {stream.name} is {stream.status}",
            hint="wait until it is ACTIVE" if stream.status == "CREATING" else "it is going away: name another",
        )


def _stream(row: Mapping[str, Any]) -> Stream:
    return Stream(
        name=row["StreamName"],
        arn=row["StreamARN"],
        status=row["StreamStatus"],
        mode=(row.get("StreamModeDetails") or {}).get("StreamMode", "PROVISIONED"),
        shards=row.get("OpenShardCount", 0),
        record_bytes=(row.get("MaxRecordSizeInKiB") or _RECORD_KIB) * 1024,
        retention_hours=row.get("RetentionPeriodHours", 0),
        encryption=row.get("EncryptionType") or "NONE",
    )
