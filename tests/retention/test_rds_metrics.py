"""The metrics of RDS: storage and WAL from CloudWatch, and the metrics that ``slot check`` publishes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rdsrepl.aws import metrics
from rdsrepl.config import Aws, Target
from rdsrepl.errors import BadValue
from rdsrepl.retention import rds_metrics
from tests import ROOT
from tests.fixtures.sandbox import Cloud

GIB = 1 << 30
PAGE = ROOT / "docs" / "retention.md"


def storage(
    found: dict[str, float], *, kind: str | None = None, allocated: int = 100, largest: int | None = None
) -> Any:
    cluster: Any = None if kind is None else SimpleNamespace(kind=kind)
    instance: Any = SimpleNamespace(allocated_storage_gib=allocated, max_allocated_storage_gib=largest)
    return rds_metrics.free_storage(found, cluster, None if kind else instance)


def test_metric_of_the_free_storage() -> None:
    assert storage({"FreeStorageSpace": 5.0}).free_bytes == 5
    both = storage({"FreeStorageSpace": 5.0, "FreeStorageSpaceLogVolume": 3.0}, largest=200)
    assert (both.free_bytes, both.may_grow_bytes) == (3, 0) and "log volume" in both.source
    assert storage({"FreeStorageSpace": 5.0}, largest=150).may_grow_bytes == 50 * GIB
    assert storage({"FreeStorageSpace": 5.0}, kind="multi_az_cluster").may_grow_bytes == 0
    assert storage({"FreeLocalStorage": 5.0}, kind="aurora") is None, "no WAL lies there"
    assert storage({"FreeLocalStorage": 5.0, "AuroraVolumeBytesLeftTotal": 9.0}, kind="aurora") is None, (
        "Aurora MySQL's"
    )
    assert storage({}) is None


def test_no_request_without_a_cluster_or_instance() -> None:
    assert rds_metrics.read(Target("x", aws=Aws(endpoint_url="http://127.0.0.1:1"))) == rds_metrics.RdsMetrics()


def test_metrics_of_the_writer(cloud: Cloud) -> None:
    done = cloud("-t", "sandbox", "slot", "lag", "-o", "json")
    assert done.code == 0 and done.json["storage"]["source"] == "CloudWatch"
    assert done.json["storage"]["free_bytes"] == done.json["metrics"]["FreeStorageSpace"] > GIB
    assert done.json["metrics"]["TransactionLogsDiskUsage"] > 0 and "ReplicationSlotDiskUsage" in done.json["metrics"]
    assert re.search(r"CloudWatch: [\d.]+ \w?B of WAL on disk, ", cloud("-t", "sandbox", "slot", "lag").out)
    sampled = cloud("-t", "sandbox", "slot", "watch", "--limit-looks", "1", "-o", "json")
    assert sampled.json["storage"]["source"] == "CloudWatch"
    by_hand = cloud("-t", "sandbox", "slot", "lag", "-o", "json", "--free-space", "7GB")
    assert by_hand.json["storage"] == {"free_bytes": 7 * GIB, "may_grow_bytes": 0, "source": "--free-space"}


@pytest.mark.parametrize(
    "verb",
    [("lag",), ("check",), ("prune", "--inactive-for", "1h", "--dry-run"), ("watch", "--limit-looks", "1")],
    ids=["lag", "check", "prune", "watch"],
)
def test_without_cloudwatch_the_command_continues_with_a_note(cloud: Cloud, verb: tuple[str, ...]) -> None:
    cloud.faults({"service": "cloudwatch", "code": "AccessDenied", "status": 403, "message": "not you", "times": 9})
    done = cloud("-t", "sandbox", "slot", *verb)
    assert done.code in (0, 8), done.err
    assert "could not read the free storage from CloudWatch" in done.err and "cloudwatch:GetMetricData" in done.err
    cloud.faults({"service": "cloudwatch", "code": "Throttling", "times": 99})
    throttled = cloud("-t", "sandbox", "slot", *verb)
    assert throttled.code in (0, 8) and "could not read the free storage from CloudWatch" in throttled.err


def test_put_metric_publishes_the_values_of_each_slot(cloud: Cloud) -> None:
    done = cloud("-t", "sandbox", "slot", "check", "--put-metric")
    assert done.code in (0, 8) and re.search(r"\d+ values published to CloudWatch, namespace rdsrepl", done.err)
    rows = cloud.client("cloudwatch").list_metrics(Namespace="rdsrepl")["Metrics"]
    assert {"RetainedBytes", "UndeliveredBytes", "InactiveSeconds", "XidAge"} >= {row["MetricName"] for row in rows} - {
        "SecondsToBreak"
    }
    retained = [row for row in rows if row["MetricName"] == "RetainedBytes"]
    dimensions = [{one["Name"]: one["Value"] for one in row["Dimensions"]} for row in retained]
    assert dimensions and all(one["DBClusterIdentifier"] == "sandbox" and one["SlotName"] for one in dimensions)
    other = cloud("-t", "sandbox", "slot", "check", "--put-metric", "--namespace", "AWS/RDS")
    assert other.code == 2 and "is reserved for AWS" in other.err
    cloud.faults(
        {"service": "cloudwatch", "operation": "PutMetricData", "code": "AccessDenied", "status": 403, "times": 9}
    )
    denied = cloud("-t", "sandbox", "slot", "check", "--put-metric")
    assert denied.code == 5 and "cloudwatch:PutMetricData" in denied.err


def test_many_values_are_published_in_several_calls(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    aws = Aws(region=cloud.program.env["AWS_REGION"], endpoint_url=cloud.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", cloud.credentials.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", cloud.credentials.secret_key)
    metrics.put(aws, "many", [metrics.Datum("M", float(n), "Count", {"SlotName": f"s{n}"}) for n in range(1100)])
    pages = cloud.client("cloudwatch").get_paginator("list_metrics").paginate(Namespace="many")
    assert len({row["Dimensions"][0]["Value"] for page in pages for row in page["Metrics"]}) == 1100
    with pytest.raises(BadValue):
        metrics.put(aws, " ", [])


def test_the_alarm_of_the_page(cloud: Cloud) -> None:
    found = re.search(r"^```sh alarm\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    assert found is not None
    env = {key: value for key, value in cloud.program.env.items() if key != "PYTHONWARNINGS"}
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    done = subprocess.run(["bash", "-ec", found[1]], env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    (alarm,) = cloud.client("cloudwatch").describe_alarms(AlarmNames=["shop_cdc-retained"])["MetricAlarms"]
    assert alarm["MetricName"] == "RetainedBytes" and alarm["TreatMissingData"] == "breaching"
