"""Run docs/walkthrough.md as written: each way to a stream. The benchmark ``aws_cli`` runs what is for the aws CLI."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.fixtures.sandbox import Cloud
from tests.fixtures.walkthrough import blocks, run


def rows(path: Path) -> list[Any]:
    return [json.loads(line)["after"] for line in path.read_text().splitlines()]


def missing(call: Callable[[], object]) -> bool:
    try:
        call()
    except ClientError as exc:
        return "NotFound" in exc.response["Error"]["Code"]
    return False


def test_the_page_has_every_way() -> None:
    assert {way: len(blocks(way)) for way in ("multi-az", "aurora", "instance", "aws-cli")} == {
        "multi-az": 6,
        "aurora": 2,
        "instance": 2,
        "aws-cli": 4,
    }


@pytest.mark.parametrize("way", ["multi-az", "aurora", "instance"])
def test_from_nothing_to_a_stream(cloud: Cloud, tmp_path: Path, way: str) -> None:
    for block in blocks(way):
        run(cloud, block, tmp_path)
    elephant, slot = {"id": 1, "item": "elephant"}, {"id": 2, "item": "slot"}
    streamed = rows(tmp_path / "changes.jsonl")
    if way == "multi-az":
        # At least once: changes that were confirmed just before a failover can be repeated.
        assert [row for number, row in enumerate(streamed) if row not in streamed[:number]] == [elephant, slot]
    else:
        assert streamed == [elephant]
    rds = cloud.client("rds")
    assert missing(lambda: rds.describe_db_clusters(DBClusterIdentifier="orders"))
    assert missing(lambda: rds.describe_db_instances(DBInstanceIdentifier="orders"))
    if way == "multi-az":
        kept = rds.describe_db_cluster_snapshots(DBClusterSnapshotIdentifier="orders-final")["DBClusterSnapshots"]
        assert kept[0]["DBClusterIdentifier"] == "orders"
        rds.delete_db_cluster_snapshot(DBClusterSnapshotIdentifier="orders-final")
    elif way == "instance":
        rds.delete_db_snapshot(DBSnapshotIdentifier="orders-final")
