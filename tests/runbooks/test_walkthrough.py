"""Run docs/walkthrough.md as written: each way to a stream, and the commands of the aws CLI."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests import ROOT
from tests.fixtures.sandbox import Cloud

PAGE = ROOT / "docs" / "walkthrough.md"


@dataclass(frozen=True)
class Block:
    """A fenced block of the page: its way, its expected exit code, its commands."""

    way: str
    code: int
    commands: str


def blocks(way: str) -> list[Block]:
    found = re.findall(r"^```sh ([\w-]+)(?: exit=(\d+))?\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
    return [Block(name, int(code or 0), commands) for name, code, commands in found if name == way]


def run(cloud: Cloud, block: Block, directory: Path) -> str:
    env = {name: value for name, value in cloud.program.env.items() if name != "PYTHONWARNINGS"}
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    script = f"set -eo pipefail\n{block.commands}"
    done = subprocess.run(
        ["bash", "-c", script], env=env, cwd=directory, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == block.code, f"{block.commands}\n{done.stdout}\n{done.stderr}"
    return done.stdout


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


def test_the_aws_cli_does_the_same_and_sees_the_same(cloud: Cloud, tmp_path: Path) -> None:
    group, failover, delete, tidy = blocks("aws-cli")
    run(cloud, group, tmp_path)
    before = available(cloud)
    assert before["cluster"]["parameter_group"] == "orders-logical"
    assert before["cluster"]["engine_version"].startswith("16.")
    assert len(before["members"]) == 3
    values = {
        row["name"]: row["value"]
        for row in cloud("param-group", "show", "orders-logical", "-o", "json").json["parameters"]
        if row["source"] == "user"
    }
    assert values == {"rds.logical_replication": "1", "max_wal_senders": "40"}
    shown = cloud("psql", "--cluster", "orders", "--", "-Atc", "SHOW wal_level")
    assert shown.out == "logical\n", shown.err

    run(cloud, failover, tmp_path)
    after = available(cloud, other_than=before["members"][0]["instance_id"])
    assert after["members"][0]["role"] == "writer"
    run(cloud, delete, tmp_path)
    deadline = time.monotonic() + 120
    while cloud("cluster", "show", "orders").code != 3:
        assert time.monotonic() < deadline
        time.sleep(0.3)
    run(cloud, tidy, tmp_path)
    assert cloud("param-group", "show", "orders-logical").code == 3
    cloud.client("rds").delete_db_cluster_snapshot(DBClusterSnapshotIdentifier="orders-final")


def available(cloud: Cloud, other_than: str | None = None) -> Any:
    """Wait until the cluster is available with another writer; return the output of ``cluster show``."""
    deadline = time.monotonic() + 120
    while True:
        shown = cloud("cluster", "show", "orders", "-o", "json")
        if shown.code == 0:
            found = shown.json
            states = {found["cluster"]["status"], *(member["status"] for member in found["members"])}
            if states == {"available"} and found["members"][0]["instance_id"] != other_than:
                return found
        assert time.monotonic() < deadline, shown.out + shown.err
        time.sleep(0.3)
