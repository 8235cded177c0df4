"""``stream`` on the Kinesis of moto: create, show, read through resharding, deaggregate, delete."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from rdsrepl.aws import streams
from rdsrepl.config import Aws
from rdsrepl.tail.sinks.aggregation import aggregated
from tests.fixtures.kinesis import AWS
from tests.fixtures.sandbox import Cloud
from tests.workloads.kinesis_server import KinesisServer, hash_key


@pytest.fixture
def name(cloud: Cloud) -> Iterator[str]:
    """A free name; a stream with this name is deleted after the test."""
    made = f"s-{uuid.uuid4().hex[:10]}"
    yield made
    cloud.faults()
    cloud("stream", "delete", made, "--confirm", made)


def create(cloud: Cloud, name: str, shards: int = 2) -> None:
    done = cloud("stream", "create", name, "--shards", str(shards), "--yes")
    assert done.code == 0, done.err


def put(cloud: Cloud, name: str, *pairs: tuple[str, bytes]) -> None:
    records = [{"PartitionKey": key, "Data": data} for key, data in pairs]
    assert cloud.client("kinesis").put_records(StreamName=name, Records=records)["FailedRecordCount"] == 0


def read(cloud: Cloud, name: str, *more: str) -> list[Any]:
    done = cloud("stream", "tail", name, "--from", "trim-horizon", "--idle-exit", "0.5s", "-o", "json", *more)
    assert done.code == 0, done.err
    return done.lines


def test_create_show_list_delete(cloud: Cloud, name: str) -> None:
    create(cloud, name)
    assert name in cloud("stream", "list", "-o", "json").json
    shown = cloud("stream", "show", name, "-o", "json").json
    assert (shown["stream"]["mode"], shown["stream"]["shards"]) == ("PROVISIONED", 2)
    assert shown["stream"]["record_bytes"] == 1 << 20 and shown["write_throttles_last_hour"] == 0
    assert "partition key included" in cloud("stream", "show", name).out
    taken = cloud("stream", "create", name, "--yes")
    assert taken.code == 4 and f"stream show {name}" in taken.err
    unconfirmed = cloud("stream", "delete", name, "--yes")
    assert unconfirmed.code == 4 and "deletes the records" in unconfirmed.err
    assert cloud("stream", "delete", name, "--confirm", name).code == 0
    assert cloud("stream", "show", name).code == 3


def test_on_demand(cloud: Cloud, name: str) -> None:
    planned = cloud("stream", "create", name, "--dry-run", "-o", "json").json
    assert planned["steps"][0]["parameters"]["StreamModeDetails"] == {"StreamMode": "ON_DEMAND"}
    assert cloud("stream", "create", name, "--yes").code == 0
    assert cloud("stream", "show", name, "-o", "json").json["stream"]["mode"] == "ON_DEMAND"


def test_throttles_come_from_cloudwatch(cloud: Cloud, name: str) -> None:
    create(cloud, name)
    cloud.client("cloudwatch").put_metric_data(
        Namespace="AWS/Kinesis",
        MetricData=[
            {
                "MetricName": "WriteProvisionedThroughputExceeded",
                "Dimensions": [{"Name": "StreamName", "Value": name}],
                "Value": 7,
            }
        ],
    )
    assert cloud("stream", "show", name, "-o", "json").json["write_throttles_last_hour"] == 7
    cloud.faults({"service": "monitoring", "operation": "*", "code": "AccessDenied", "status": 403, "message": "no",
                  "times": 5})  # fmt: skip
    shown = cloud("stream", "show", name, "-o", "json")
    assert shown.code == 0 and shown.json["write_throttles_last_hour"] is None and "CloudWatch" in shown.err


def test_every_shard_is_read_in_its_order(cloud: Cloud, name: str) -> None:
    create(cloud, name, 3)
    put(cloud, name, *[(f"k{n % 7}", f"{n}".encode()) for n in range(50)])
    rows = read(cloud, name)
    assert len(rows) == 50 and len({row["shard_id"] for row in rows}) > 1
    for key in {row["partition_key"] for row in rows}:
        numbers = [int(row["data"]) for row in rows if row["partition_key"] == key]
        assert numbers == sorted(numbers)
    plain = cloud("stream", "tail", name, "--from", "TRIM_HORIZON", "--limit", "3")
    assert len(plain.out.splitlines()) == 3 and plain.out.replace("\n", "").isdigit()


@pytest.mark.parametrize("expire", [False, True], ids=["", "iterators expire"])
def test_resharding_is_followed_parents_before_children(cloud: Cloud, expire: bool) -> None:
    with KinesisServer("split", shards=2) as server:
        kinesis = boto3.client(
            "kinesis", endpoint_url=server.url, region_name="eu-west-1", aws_access_key_id="a",
            aws_secret_access_key="b",
        )  # fmt: skip
        for round_ in range(3):
            records = [{"PartitionKey": f"k{n}", "Data": f"{round_}".encode()} for n in range(20)]
            kinesis.put_records(StreamName="split", Records=records)
            if round_ < 2:
                server.split("split", round_)
        server.faults.expire_iterators = expire
        words = ("stream", "tail", "split", "--from", "trim-horizon", "--idle-exit", "1s", "-o", "json")
        done = cloud(*words, env={"AWS_ENDPOINT_URL": server.url})
    assert done.code == 0, done.err
    assert len(done.lines) == 60 and len({row["shard_id"] for row in done.lines}) == 6
    for key in {row["partition_key"] for row in done.lines}:
        assert [row["data"] for row in done.lines if row["partition_key"] == key] == ["0", "1", "2"]


def test_shards_whose_reads_are_throttled_are_read_later_and_completely(cloud: Cloud) -> None:
    """A shard answers five reads a second, to all its readers together."""
    with KinesisServer("busy", shards=30) as server:
        kinesis = boto3.client(
            "kinesis", endpoint_url=server.url, region_name="eu-west-1", aws_access_key_id="a",
            aws_secret_access_key="b",
        )  # fmt: skip
        kinesis.put_records(
            StreamName="busy", Records=[{"PartitionKey": f"k{n}", "Data": f"{n}".encode()} for n in range(240)]
        )
        server.faults.read_limits, server.faults.throttled_reads = True, 0.2
        words = ("stream", "tail", "busy", "--from", "trim-horizon", "--limit", "240", "-o", "json")
        done = cloud(*words, env={"AWS_ENDPOINT_URL": server.url})
    assert done.code == 0, done.err
    assert sorted(int(row["data"]) for row in done.lines) == list(range(240))


def test_the_sandbox_reshards_as_aws_does(cloud: Cloud, name: str) -> None:
    """A closed shard keeps its records and takes no more; readers come to its end."""
    create(cloud, name, 2)
    kinesis = cloud.client("kinesis")
    keys = [f"k{n}" for n in range(12)]

    def shard_ids(round_: int) -> set[str]:
        records = [{"PartitionKey": key, "Data": str(round_).encode()} for key in keys]
        return {row["ShardId"] for row in kinesis.put_records(StreamName=name, Records=records)["Records"]}

    first = sorted(shard_ids(0))
    kinesis.split_shard(StreamName=name, ShardToSplit=first[0], NewStartingHashKey=str(1 << 126))
    children = shard_ids(1) - set(first)
    assert first[0] not in children and len(children) == 2
    kinesis.merge_shards(StreamName=name, ShardToMerge=sorted(children)[1], AdjacentShardToMerge=first[1])
    assert shard_ids(2) & set(first) == set()
    rows = read(cloud, name)
    for key in keys:
        assert [row["data"] for row in rows if row["partition_key"] == key] == ["0", "1", "2"]
    assert {row["shard_id"] for row in rows if row["data"] == "0"} == set(first)


def _hash_keys(shard: Any) -> range:
    keys = shard["HashKeyRange"]
    return range(int(keys["StartingHashKey"]), int(keys["EndingHashKey"]) + 1)


def test_a_stream_with_more_shards_than_a_page_of_list_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kinesis refuses the name of the stream together with a token."""
    for variable, value in AWS.items():
        monkeypatch.setenv(variable, value)
    with KinesisServer("wide", shards=250) as server:
        aws = Aws(region="eu-west-1", endpoint_url=server.url)
        shards = streams.shards(aws, "wide")
    assert len(shards) == 250 and shards[-1].last_hash_key == (1 << 128) - 1


def test_parts_that_a_kcl_discards_are_not_shown(cloud: Cloud, name: str) -> None:
    """A producer stored them in the wrong shard while the stream was resharded, and then again in the right one."""
    create(cloud, name, 2)
    first, second = (_hash_keys(shard) for shard in cloud.client("kinesis").list_shards(StreamName=name)["Shards"])
    here = next(f"k{n}" for n in range(100) if hash_key(f"k{n}") in first)
    there = next(f"k{n}" for n in range(100) if hash_key(f"k{n}") in second)
    data = aggregated([(here.encode(), b"kept", 0), (there.encode(), b"discarded", 0)])
    record = {"PartitionKey": "a", "ExplicitHashKey": str(first.start), "Data": data}
    cloud.client("kinesis").put_records(StreamName=name, Records=[record])
    assert [(row["partition_key"], row["data"]) for row in read(cloud, name)] == [(here, "kept")]


def test_aggregated_records_come_one_by_one(cloud: Cloud, name: str) -> None:
    create(cloud, name, 1)
    put(cloud, name, ("a", aggregated([(b"hot", f"part {n}".encode(), 0) for n in range(3)])), ("cold", b"whole"))
    rows = read(cloud, name)
    assert [(row["partition_key"], row["data"]) for row in rows] == [
        ("hot", "part 0"),
        ("hot", "part 1"),
        ("hot", "part 2"),
        ("cold", "whole"),
    ]


def test_binary_data_is_base64(cloud: Cloud, name: str) -> None:
    create(cloud, name, 1)
    put(cloud, name, ("k", b"\xff\x00"))
    assert read(cloud, name)[0]["data_base64"] == "/wA="


def test_latest_reads_new_records_and_a_signal_ends_it(cloud: Cloud, name: str, tmp_path: Path) -> None:
    create(cloud, name, 1)
    put(cloud, name, ("k", b"before"))
    out = tmp_path / "out"
    with out.open("wb") as file:
        process = cloud.program.start("stream", "tail", name, stdout=file)
    try:
        deadline = time.monotonic() + 120
        while b"after" not in out.read_bytes():
            assert time.monotonic() < deadline
            put(cloud, name, ("k", b"after"))
            time.sleep(0.3)
    finally:
        process.terminate()
        assert process.wait(120) == 0
    assert b"before" not in out.read_bytes()


def test_a_start_time(cloud: Cloud, name: str) -> None:
    create(cloud, name, 1)
    put(cloud, name, ("k", b"x"))
    done = cloud("stream", "tail", name, "--from", "2020-01-01", "--idle-exit", "0.5s")
    assert done.out == "x\n"


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("show", "nope"), 3, "region eu-west-1"),
        (("show", "a b"), 2, "1 to 128"),
        (("create", "a b"), 2, "1 to 128"),
        (("create", "arn:aws:kinesis:eu-west-1:123456789012:stream/x"), 2, "not a name"),
        (("tail", "nope"), 3, "stream list"),
        (("tail", "nope", "--from", "yesterday"), 2, "trim-horizon"),
        (("delete", "nope"), 3, "stream list"),
        (("policy", "a b"), 2, "1 to 128"),
    ],
)
def test_bad_arguments(cloud: Cloud, words: tuple[str, ...], code: int, message: str) -> None:
    failed = cloud("stream", *words, *(["--yes"] if words[0] == "create" else []))
    assert failed.code == code and message in failed.err


@pytest.mark.parametrize(
    ("side", "actions"),
    [
        ("writer", {"kinesis:DescribeStreamSummary", "kinesis:ListShards", "kinesis:PutRecords"}),
        (
            "reader",
            {"kinesis:DescribeStreamSummary", "kinesis:ListShards", "kinesis:GetShardIterator", "kinesis:GetRecords"},
        ),
    ],
)
def test_policy(cloud: Cloud, side: str, actions: set[str]) -> None:
    words = ("stream", "policy", "changes", "--for", side, "--account", "123456789012")
    document = cloud(*words, "--region", "eu-west-1").json
    assert {action for statement in document["Statement"] for action in statement["Action"]} == actions
    assert {resource for statement in document["Statement"] for resource in statement["Resource"]} == {
        "arn:aws:kinesis:eu-west-1:123456789012:stream/changes"
    }
    with_key = json.dumps(cloud(*words, "--kms-key", "abc").json)
    assert ("kms:GenerateDataKey" if side == "writer" else "kms:Decrypt") in with_key


@pytest.mark.parametrize(
    ("action", "words"),
    [
        ("ListStreams", ("list",)),
        ("DescribeStreamSummary", ("show", "{name}")),
        ("DescribeStreamSummary", ("create", "{name}", "--yes")),
        ("DescribeStreamSummary", ("delete", "{name}", "--confirm", "{name}")),
        ("DescribeStreamSummary", ("tail", "{name}")),
        ("CreateStream", ("create", "{name}-2", "--yes")),
        ("DeleteStream", ("delete", "{name}", "--confirm", "{name}")),
        ("ListShards", ("tail", "{name}")),
        ("GetShardIterator", ("tail", "{name}")),
        ("GetRecords", ("tail", "{name}")),
    ],
)
def test_a_missing_permission_is_named(cloud: Cloud, name: str, action: str, words: tuple[str, ...]) -> None:
    create(cloud, name, 1)
    # AWS names the missing permission, which can be another action than the call.
    right = "kms:Decrypt" if action == "GetRecords" else f"kinesis:{action}"
    user = "arn:aws:iam::123456789012:user/cdc"
    cloud.faults({"service": "kinesis", "operation": action, "code": "AccessDeniedException", "status": 400,
                  "message": f"User: {user} is not authorized to perform: {right} on resource: x"})  # fmt: skip
    failed = cloud("stream", *(word.format(name=name) for word in words))
    assert failed.code == 5 and f"the identity lacks {right}; print the policy" in failed.err
    cloud.faults()
    assert cloud("stream", "list", "-o", "json").json.count(name) == 1, "nothing was changed"


def test_an_endpoint_that_is_not_kinesis(cloud: Cloud) -> None:
    with KinesisServer("changes") as server:
        server.faults.page = (200, b"<html>Welcome</html>")
        failed = cloud("stream", "tail", "changes", env={"AWS_ENDPOINT_URL": server.url})
    assert failed.code == 5 and "not Kinesis" in failed.err and "endpoint" in failed.err


def test_an_arn_names_the_region(cloud: Cloud, name: str) -> None:
    create(cloud, name, 1)
    arn = cloud("stream", "show", name, "-o", "json").json["stream"]["arn"]
    assert cloud("stream", "show", arn, "-o", "json").json["stream"]["name"] == name
    failed = cloud("stream", "show", arn, "--region", "us-east-1")
    assert failed.code == 2 and "--region eu-west-1" in failed.err
    assert cloud("stream", "show", name, "--region", "us-east-1").code == 3
