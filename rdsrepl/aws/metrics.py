"""CloudWatch metrics: read the latest values and sums, publish values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from rdsrepl.aws import session
from rdsrepl.config import Aws
from rdsrepl.errors import BadValue

_NAMESPACE: Final = "AWS/RDS"
_PERIOD_SECONDS: Final = 60
# PutMetricData takes 1,000 data and 1 MB a call; one datum here is under 500 bytes.
_DATA_A_CALL: Final = 500


@dataclass(frozen=True, slots=True)
class Datum:
    """A value of a metric to publish, in a CloudWatch unit: ``Bytes``, ``Seconds``, ``Count``."""

    name: str
    value: float
    unit: str
    dimensions: Mapping[str, str]


def latest(
    aws: Aws, names: Sequence[str], dimensions: Mapping[str, str], *, within_seconds: float = 900
) -> dict[str, float]:
    """Return the latest value of each metric, in its CloudWatch unit; without a value it is absent (GetMetricData).

    Args:
        aws: the identity.
        names: at most 500.
        dimensions: such as ``{"DBInstanceIdentifier": "orders"}``.
        within_seconds: older values are ignored; RDS publishes one a minute, some minutes late.

    Raises:
        Error: AWS refused.
    """
    # Without Unit: with another unit than the metric's, CloudWatch returns no data.
    pairs = [{"Name": key, "Value": value} for key, value in dimensions.items()]
    queries: list[dict[str, Any]] = [
        {
            "Id": f"m{number}",
            "MetricStat": {
                "Metric": {"Namespace": _NAMESPACE, "MetricName": name, "Dimensions": pairs},
                "Period": _PERIOD_SECONDS,
                "Stat": "Average",
            },
        }
        for number, name in enumerate(names)
    ]
    if not queries:
        return {}
    now = datetime.now(UTC)
    request: dict[str, Any] = {
        "MetricDataQueries": queries,
        "StartTime": now - timedelta(seconds=within_seconds),
        "EndTime": now + timedelta(seconds=_PERIOD_SECONDS),
        "ScanBy": "TimestampDescending",
    }
    values: dict[str, float] = {}
    while True:
        answer = session.call(aws, "cloudwatch", "GetMetricData", request)
        for result in answer.get("MetricDataResults", ()):
            name = names[int(result["Id"][1:])]
            points = sorted(zip(result["Timestamps"], result["Values"], strict=True), reverse=True)
            if points:
                values.setdefault(name, float(points[0][1]))
        if not answer.get("NextToken"):
            return values
        request["NextToken"] = answer["NextToken"]


def total(aws: Aws, namespace: str, name: str, dimensions: Mapping[str, str], *, within_seconds: int = 3600) -> float:
    """Return the sum of a metric over a period; 0 without data (GetMetricStatistics).

    Raises:
        Error: AWS refused.
    """
    now = datetime.now(UTC)
    request = {
        "Namespace": namespace,
        "MetricName": name,
        "Dimensions": [{"Name": key, "Value": value} for key, value in dimensions.items()],
        "StartTime": now - timedelta(seconds=within_seconds),
        "EndTime": now + timedelta(seconds=_PERIOD_SECONDS),
        "Period": _PERIOD_SECONDS,
        "Statistics": ["Sum"],
    }
    answer = session.call(aws, "cloudwatch", "GetMetricStatistics", request)
    return float(sum(point["Sum"] for point in answer.get("Datapoints", ())))


def put(aws: Aws, namespace: str, data: Sequence[Datum]) -> None:
    """Publish values, all with the current time (PutMetricData).

    Raises:
        BadValue: the namespace is reserved for AWS.
        Error: AWS refused.
    """
    if namespace.startswith("AWS/") or not namespace.strip():
        raise BadValue(
            f"namespace {namespace!r} is reserved for AWS", hint="choose a name that does not begin with AWS/"
        )
    now = datetime.now(UTC)
    rows = [
        {
            "MetricName": datum.name,
            "Dimensions": [{"Name": key, "Value": value} for key, value in datum.dimensions.items()],
            "Timestamp": now,
            "Value": datum.value,
            "Unit": datum.unit,
        }
        for datum in data
    ]
    for start in range(0, len(rows), _DATA_A_CALL):
        request = {"Namespace": namespace, "MetricData": rows[start : start + _DATA_A_CALL]}
        session.call(aws, "cloudwatch", "PutMetricData", request)
