"""Changes to Kinesis: in order for each key, none lost, none confirmed that Kinesis has not acknowledged."""

from __future__ import annotations

import io
import json
import random
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rdsrepl.aws.streams import KinesisStream
from rdsrepl.config import Aws
from rdsrepl.errors import Refused
from rdsrepl.tail.formats.partition_keys import SEPARATOR, keyed_records
from rdsrepl.tail.sinks.batching import Limits
from rdsrepl.tail.sinks.by_key import KeyDispatch, PendingBatch, Record
from rdsrepl.tail.sinks.oversize import Oversize
from rdsrepl.tail.sinks.put_records import Answer, PutRecordsClient
from tests.benchmarks.kinesis_faults import FaultLoad, stream_with_faults
from tests.fixtures.kinesis import AWS, STREAM, confirmed, events, is_before, slot_of, wal_end, words
from tests.fixtures.postgres import Database
from tests.fixtures.program import Program
from tests.fixtures.sandbox import Cloud
from tests.fixtures.waiting import wait_until
from tests.workloads.kcl_consumer import delivered
from tests.workloads.kinesis_server import KinesisServer, reshard

# The order of sending: pure.


class World:
    """An endpoint in memory that refuses at random; time is a number."""

    def __init__(self, seed: int, limits: Limits) -> None:
        self.random = random.Random(seed)
        self.dispatch = KeyDispatch(limits)
        self.now = 0.0
        self.arrived: list[tuple[bytes, bytes]] = []
        self.on_their_way: list[list[Record]] = []

    def step(self, flush: bool) -> None:
        if self.on_their_way and self.random.random() < 0.5:
            records = self.on_their_way.pop(self.random.randrange(len(self.on_their_way)))
            again = {n: self.now + self.random.random() for n in range(len(records)) if self.random.random() < 0.3}
            kept = [record for n, record in enumerate(records) if n not in again]
            for record in self.random.sample(kept, len(kept)):  # PutRecords guarantees no order
                self.arrived.append((record.key, record.data))
            self.dispatch.answered(records, again, [], self.now)
        elif records := self.dispatch.take(self.now, flush=flush):
            keys = [record.key for record in records]
            busy = [record.key for other in self.on_their_way for record in other]
            assert len(keys) == len(set(keys)) and not set(keys) & set(busy), "a key is in one place at a time"
            self.on_their_way.append(records)
        self.now += self.random.random() / 20


@given(
    seed=st.integers(0, 1 << 30),
    batches=st.lists(st.lists(st.integers(0, 6), max_size=30), min_size=1, max_size=12),
    most=st.integers(1, 8),
)
def test_order_per_key_and_no_loss_with_any_refusals(seed: int, batches: list[list[int]], most: int) -> None:
    world = World(seed, Limits(records=most, request_bytes=200, linger_seconds=0.01))
    sent: list[tuple[bytes, bytes]] = []
    ends: list[int] = []
    number = 0
    for number, keys in enumerate(batches, 1):
        records = [(f"k{key}".encode(), f"{number}.{position}".encode()) for position, key in enumerate(keys)]
        sent += records
        ends.append(len(sent))
        world.dispatch.accept(number, records, world.now)
        for _ in range(3):
            world.step(flush=False)
            assert set(sent[: ends[world.dispatch.durable - 1]] if world.dispatch.durable else []) <= set(world.arrived)
    for _ in range(20_000):
        if world.dispatch.durable == number:
            break
        world.step(flush=True)
    assert world.dispatch.durable == number and world.dispatch.pending_bytes == 0
    assert sorted(world.arrived) == sorted(sent), "each once: nothing was refused after it had arrived"
    for key in {key for key, _ in sent}:
        assert [d for k, d in world.arrived if k == key] == [d for k, d in sent if k == key]


def test_a_single_record_waits_no_longer_than_the_batching_delay() -> None:
    dispatch = KeyDispatch(Limits(linger_seconds=0.01))
    dispatch.accept(1, [(b"k", b"x")], 5.0)
    assert dispatch.take(5.005) == [] and dispatch.due_in(5.005) == pytest.approx(0.005)
    assert [record.data for record in dispatch.take(5.011)] == [b"x"]
    assert dispatch.due_in(5.011) is None, "the next of its key may not go yet"


def test_a_full_request_is_sent_at_once() -> None:
    dispatch = KeyDispatch(Limits(records=3))
    dispatch.accept(1, [(f"k{n}".encode(), b"x") for n in range(7)], 0.0)
    assert [len(dispatch.take(0.0)) for _ in range(2)] == [3, 3]


def test_an_empty_batch_is_durable_in_order() -> None:
    dispatch = KeyDispatch(Limits())
    dispatch.accept(1, [(b"k", b"x")], 0.0)
    dispatch.accept(2, [], 0.0)
    assert dispatch.durable == 0
    dispatch.answered(dispatch.take(1.0), {}, [], 1.0)
    assert dispatch.durable == 2


def test_refused_records_go_first_and_the_oldest_of_them_before_the_others() -> None:
    """The confirmed position waits for the oldest record."""
    dispatch = KeyDispatch(Limits(records=3, linger_seconds=0.0))
    for number in range(1, 10):
        dispatch.accept(number, [(f"k{number}".encode(), b"x")], 0.0)
    first, second = dispatch.take(0.0), dispatch.take(0.0)
    dispatch.answered(second, {0: 1.0, 1: 1.0}, [], 0.5)
    dispatch.answered(first, {0: 1.1}, [], 0.5)
    assert [record.key for record in dispatch.take(1.2)] == [b"k1", b"k4", b"k5"]


def test_a_shard_at_its_limit_is_not_pressed() -> None:
    """1,000 records a second are accepted; what is refused is about as much."""
    dispatch = KeyDispatch(Limits(linger_seconds=0.0))
    dispatch.accept(1, [(str(n).encode(), b"x") for n in range(10_000)], 0.0)
    now, room, accepted, refused = 0.0, 1000, 0, 0
    while accepted < 9_000:
        if int(now + 0.005) > int(now):
            room = 1000
        now += 0.005
        if not (records := dispatch.take(now)):
            continue
        again = dict.fromkeys(range(room, len(records)), now + 0.1)
        room -= len(records) - len(again)
        accepted += len(records) - len(again)
        refused += len(again)
        dispatch.answered(records, again, [], now)
    assert now < 10 and refused < 1.5 * accepted, (now, refused)


def test_a_key_that_kinesis_refuses_is_hashed_never_cut() -> None:
    def key(text: str) -> bytes:
        ((found, data),) = keyed_records([f"{text}{SEPARATOR}line\n"])
        assert data == b"line"
        return found

    assert key("x" * 256) == b"x" * 256
    assert key("é" * 256) == "é".encode() * 256
    assert len(key("x" * 257)) == 64 and key("x" * 257) != key("x" * 257 + "y")
    assert len(key("\udcff")) == 64


def test_drop_columns_takes_the_largest_and_keeps_every_digit() -> None:
    after = '{"id":1,"big":"' + "x" * 5000 + '","n":1.10,"mid":"' + "y" * 300 + '"}'
    event = '{"op":"u","schema":"public","table":"t","key":{"id":1},"before":null,"after":' + after + ',"lsn":"0/1"}'
    fitted = Oversize("drop-columns", None).fit("k", event.encode(), 1000)
    assert fitted is not None and b'"n":1.10' in fitted
    smaller = json.loads(fitted)
    assert smaller["dropped"] == ["big"] and set(smaller["after"]) == {"id", "n", "mid"}


def test_a_large_change_whose_values_are_nested_deeply_goes_to_the_dead_letters(tmp_path: Path) -> None:
    event = '{"op":"c","key":{"id":1},"before":null,"after":{"j":%}}'.replace("%", "[" * 5000 + "]" * 5000)
    kept = Oversize("drop-columns", str(tmp_path / "dead"))
    assert kept.fit("k", event.encode(), 1000) is None
    kept.close()
    with pytest.raises(Refused, match="an unknown table"):
        Oversize("drop-columns", None).fit("k", event.encode(), 1000)


# Calls before the stream.
ONCE = {"AWS_MAX_ATTEMPTS": "1"}


def to_kinesis(rdsrepl: Program, source: Database, kinesis: KinesisServer, *more: str) -> Any:
    env = {**AWS, "AWS_ENDPOINT_URL": kinesis.url}
    return rdsrepl(*words(source, "--until-now", *more), dsn=source.dsn, env=env, timeout=100)


def check(kinesis: KinesisServer, expected: dict[int, int]) -> int:
    """Check every change and the commit order of first arrivals for each key; return how many came twice."""
    first: dict[int, list[int]] = {}
    seen: set[tuple[str, int]] = set()
    repeats = 0
    for _, event in events(kinesis):
        identity = (event["commit_lsn"], event["seq"])
        if identity in seen:
            repeats += 1
            continue
        seen.add(identity)
        first.setdefault(event["after"]["id"], []).append(event["after"]["n"])
    assert {key: len(values) for key, values in first.items()} == expected
    for values in first.values():
        assert values == list(range(1, len(values) + 1))
    return repeats


def work(source: Database, transactions: int, keys: int, hot: int = 5) -> dict[int, int]:
    """Change rows, half of them frequent ones; each row's n counts its changes. Return the counts."""
    chosen = random.Random(1)
    counts: dict[int, int] = {}
    with closing(source.connect()) as conn:
        for _ in range(transactions):
            rows = sorted(
                {chosen.randrange(hot) if chosen.random() < 0.5 else chosen.randrange(keys) for _ in range(20)}
            )
            conn.execute(
                "INSERT INTO t SELECT i, 1, repeat('x', 100) FROM unnest(%s::int[]) i "
                "ON CONFLICT (id) DO UPDATE SET n = t.n + 1",
                (rows,),
            )
            for row in rows:
                counts[row] = counts.get(row, 0) + 1
    return counts


def test_changes_arrive_with_their_keys_and_are_confirmed(
    rdsrepl: Program, source: Database, kinesis: KinesisServer
) -> None:
    source.run(
        "INSERT INTO t VALUES (1, 1, 'a'), (2, 1, NULL)",
        "UPDATE t SET n = 2 WHERE id = 1",
        "DELETE FROM t WHERE id = 2",
    )
    before = confirmed(source)
    done = to_kinesis(rdsrepl, source, kinesis)
    assert done.code == 0 and done.out == "" and "4 records acknowledged" in done.err
    assert [(key, event["op"]) for key, event in events(kinesis) if key == "public.t:1"] == [
        ("public.t:1", "c"),
        ("public.t:1", "u"),
    ]
    assert sorted(key for key, _ in events(kinesis)) == ["public.t:1"] * 2 + ["public.t:2"] * 2
    assert confirmed(source) != before


@pytest.mark.parametrize("aggregate", [False, True])
def test_names_with_newlines_do_not_split_a_record(
    rdsrepl: Program, db15: Database, kinesis: KinesisServer, aggregate: bool
) -> None:
    db15.run(
        'CREATE TABLE "two\nlines" (id int PRIMARY KEY)',
        'CREATE PUBLICATION p FOR TABLE "two\nlines"',
        f"SELECT pg_create_logical_replication_slot('{slot_of(db15)}', 'pgoutput')",
        'INSERT INTO "two\nlines" VALUES (1), (2)',
        "SELECT pg_logical_emit_message(true, E'a\\nb', 'text')",
        'TRUNCATE "two\nlines"',
    )
    done = to_kinesis(rdsrepl, db15, kinesis, *(["--aggregate"] if aggregate else []))
    assert done.code == 0, done.err
    found = events(kinesis)
    assert sorted(event["op"] for _, event in found) == ["c", "c", "m", "t"]
    assert all("\n" not in key and key for key, _ in found)


@pytest.mark.parametrize(
    ("by", "expected"), [("table", {"public.t"}), ("v", {'public.t:"a"', "public.t:null"}), ("transaction", None)]
)
def test_partition_by(
    rdsrepl: Program, source: Database, kinesis: KinesisServer, by: str, expected: set[str] | None
) -> None:
    source.run("INSERT INTO t VALUES (1, 1, 'a'), (2, 1, NULL)")
    assert to_kinesis(rdsrepl, source, kinesis, "--partition-by", by).code == 0
    found = {key for key, _ in events(kinesis)}
    assert found == expected if expected else len(found) == 1


@pytest.mark.parametrize("aggregate", [False, True])
def test_partial_failures_5xx_and_lost_connections_only_delay(
    rdsrepl: Program, source: Database, kinesis: KinesisServer, aggregate: bool
) -> None:
    counts = work(source, 100, 100)
    kinesis.faults.partial, kinesis.faults.server_error, kinesis.faults.cut = 0.3, 0.1, 0.1
    done = to_kinesis(rdsrepl, source, kinesis, *(["--aggregate"] if aggregate else []))
    assert done.code == 0, done.err
    assert "sent again" in done.err
    check(kinesis, counts)


def test_shard_limits_are_retried(rdsrepl: Program, source: Database, kinesis: KinesisServer) -> None:
    source.run("INSERT INTO t SELECT i, 1, 'x' FROM generate_series(1, 8000) i")
    kinesis.faults.shard_limits = True
    done = to_kinesis(rdsrepl, source, kinesis)
    assert done.code == 0 and len(events(kinesis)) == 8000
    assert " 0 of them throttled" not in done.err


def test_a_stream_that_is_resharded_during_a_run(
    rdsrepl: Program, source: Database, kinesis: KinesisServer, tmp_path: Path
) -> None:
    """The consumer discards what a KCL discards: user records outside the hash range of their shard."""
    counts = work(source, 400, 300)
    kinesis.faults.partial, kinesis.faults.slow_seconds = 0.2, 0.02
    shards, chosen = kinesis.shards[STREAM], random.Random(3)
    env = {**AWS, "AWS_ENDPOINT_URL": kinesis.url}
    with (tmp_path / "err").open("wb") as err:
        process = rdsrepl.start(
            *words(source, "--until-now", "--aggregate"), dsn=source.dsn, env=env, stdout=err, stderr=err
        )
        for number in range(6):
            # The answer to ListShards may be older than the answer to PutRecords.
            kinesis.faults.hidden_shards = number % 2
            before = sum(len(shard.records) for shard in shards)
            wait_until(
                lambda least=before + 3: process.poll() is not None or sum(len(s.records) for s in shards) >= least,
                "records arrive",
            )
            reshard(shards, chosen)
        kinesis.faults.hidden_shards = 0
        assert process.wait(120) == 0, (tmp_path / "err").read_text()
    assert len([shard for shard in shards if shard.records]) > 5, "records came after the stream was resharded"
    first: dict[int, list[int]] = {}
    for _, data in delivered(shards):
        event = json.loads(data)["after"]
        values = first.setdefault(event["id"], [])
        if event["n"] not in values:
            values.append(event["n"])
    assert {key: list(range(1, count + 1)) for key, count in counts.items()} == first


@pytest.mark.slow
def test_kills_refusals_and_a_failover_lose_nothing_and_reorder_nothing(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Nothing is confirmed that Kinesis has not acknowledged. ``make bench`` runs 200,000 changes and 20 kills."""
    size = FaultLoad(changes=2000, per_second=600, keys=1000, kills=2, life_seconds=(0.6, 1.2))
    came = stream_with_faults(tmp_path, size)
    said = f"{came.changes} changes, {came.kills} kills, {came.refused} refusals, {came.repeats} repeats"
    record_property("kinesis", said)
    assert came.kills == size.kills and came.refused > 0


def test_kinesis_down_is_back_pressure_and_transient(
    rdsrepl: Program, source: Database, kinesis: KinesisServer, tmp_path: Path
) -> None:
    source.run("INSERT INTO t SELECT i, 1, repeat('x', 500) FROM generate_series(1, 60000) i")
    kinesis.faults.down = True
    env = {**AWS, "AWS_ENDPOINT_URL": kinesis.url}
    # The stream is described first; then Kinesis goes down.
    kinesis.faults.down = False
    with (tmp_path / "err").open("wb") as err:
        process = rdsrepl.start(*words(source, "--until-now"), dsn=source.dsn, env=env, stdout=err, stderr=err)
        while kinesis.requests < 2:
            time.sleep(0.01)
        kinesis.faults.down = True
        time.sleep(2)
        peak = int(next(line for line in Path(f"/proc/{process.pid}/status").read_text().splitlines()
                        if line.startswith("VmHWM")).split()[1])  # fmt: skip
        assert process.poll() is None, (tmp_path / "err").read_text()
        kinesis.faults.down = False
        assert process.wait(120) == 0, (tmp_path / "err").read_text()
    assert len({event["after"]["id"] for _, event in events(kinesis)}) == 60000
    assert peak < 150_000, f"{peak} kB"


@pytest.mark.parametrize(
    ("code", "exit_code", "said"),
    [
        ("AccessDeniedException", 5, "kinesis:PutRecords"),
        ("ResourceNotFoundException", 3, "stream list"),
        ("KMSAccessDeniedException", 5, "kinesis:PutRecords"),
        ("KMSDisabledException", 4, "KMS"),
        ("InvalidArgumentException", 2, "correct the value"),
        ("ExpiredTokenException", 5, "aws sso login"),
    ],
)
def test_an_error_that_no_retry_fixes_stops_and_confirms_nothing(
    rdsrepl: Program, source: Database, kinesis: KinesisServer, code: str, exit_code: int, said: str
) -> None:
    before = wal_end(source)
    source.run("INSERT INTO t VALUES (1, 1, 'a')")
    kinesis.faults.code = code
    failed = to_kinesis(rdsrepl, source, kinesis)
    assert failed.code == exit_code and said in failed.err and "Traceback" not in failed.err
    assert is_before(source, before)


def test_an_answer_that_is_not_from_kinesis_acknowledges_nothing_and_is_retried(
    rdsrepl: Program, source: Database, kinesis: KinesisServer
) -> None:
    """The page of a proxy or a balancer, a login page with status 200, too few results, an unknown error."""
    source.run("INSERT INTO t SELECT i, 1, 'x' FROM generate_series(1, 50) i")
    page = b"<html>Bad gateway</html>"
    few = b'{"FailedRecordCount":1,"Records":[{"ErrorCode":"InternalFailure"}]}'
    kinesis.faults.pages = [(502, page), (404, page), (302, b""), (200, page), (200, b"{}"), (200, b"[1]"), (200, few),
                            (500, b'{"__type":"SomethingNew"}')]  # fmt: skip
    done = to_kinesis(rdsrepl, source, kinesis)
    assert done.code == 0, done.err
    assert kinesis.faults.pages == [] and len(events(kinesis)) == 50


@pytest.mark.parametrize("page", [(200, b"<html>Welcome</html>"), (404, b"<html>no</html>"), (200, b"{}"), (503, b"")])
def test_a_server_that_is_not_kinesis(
    rdsrepl: Program, source: Database, kinesis: KinesisServer, page: tuple[int, bytes]
) -> None:
    before = wal_end(source)
    source.run("INSERT INTO t VALUES (1, 1, 'a')")
    kinesis.faults.page = page
    failed = rdsrepl(*words(source), "--endpoint-url", kinesis.url, dsn=source.dsn, env={**AWS, **ONCE})
    assert failed.code == 5 and "endpoint" in failed.err and "Traceback" not in failed.err
    assert is_before(source, before)


@pytest.mark.parametrize(
    ("url", "exit_code", "said"),
    [("http://127.0.0.1:1", 5, "127.0.0.1:1"), ("http://127.0.0.1:99999", 2, "0-65535"), ("ftp://127.0.0.1", 5, "ftp")],
)
def test_an_endpoint_without_a_server(rdsrepl: Program, source: Database, url: str, exit_code: int, said: str) -> None:
    failed = rdsrepl(*words(source), "--endpoint-url", url, dsn=source.dsn, env={**AWS, **ONCE})
    assert failed.code == exit_code and said in failed.err and "endpoint" in failed.err
    assert "Traceback" not in failed.err


def test_no_permission_to_describe_the_stream(cloud: Cloud, source: Database) -> None:
    before = wal_end(source)
    source.run("INSERT INTO t VALUES (1, 1, 'a')")
    cloud.faults({"service": "kinesis", "operation": "DescribeStreamSummary", "code": "AccessDeniedException",
                  "status": 400, "message": "no"})  # fmt: skip
    failed = cloud.program(*words(source), dsn=source.dsn)
    assert failed.code == 5 and "the identity lacks kinesis:DescribeStreamSummary" in failed.err
    assert "rdsrepl iam-policy" in failed.err and is_before(source, before)


def test_aggregation_without_permission_to_list_the_shards(cloud: Cloud, source: Database) -> None:
    before = wal_end(source)
    source.run("INSERT INTO t VALUES (1, 1, 'a')")
    cloud.client("kinesis").create_stream(StreamName=STREAM, ShardCount=1)
    try:
        cloud.faults({"service": "kinesis", "operation": "ListShards", "code": "AccessDeniedException",
                      "status": 400, "message": "no"})  # fmt: skip
        failed = cloud.program(*words(source, "--aggregate"), dsn=source.dsn)
    finally:
        cloud.client("kinesis").delete_stream(StreamName=STREAM)
    assert failed.code == 5 and "the identity lacks kinesis:ListShards" in failed.err
    assert "rdsrepl iam-policy" in failed.err and is_before(source, before)


def test_an_arn_of_another_region(rdsrepl: Program, source: Database) -> None:
    arn = f"arn:aws:kinesis:us-east-1:123456789012:stream/{STREAM}"
    failed = rdsrepl("slot", "tail", slot_of(source), "--to", f"kinesis:{arn}", dsn=source.dsn, env=AWS)
    assert failed.code == 2 and "--region us-east-1" in failed.err


def test_without_an_endpoint_requests_go_to_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every other test has an endpoint, and then botocore does not derive it from the ARN."""
    from botocore.awsrequest import AWSRequest, AWSResponse

    for name, value in AWS.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_ENDPOINT_URL", "AWS_PROFILE", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.delenv(name, raising=False)
    arn = f"arn:aws:kinesis:ap-southeast-2:123456789012:stream/{STREAM}"
    stream = KinesisStream(STREAM, arn, "ACTIVE", "PROVISIONED", 1, 1 << 20, 24, "NONE")
    sent: list[AWSRequest] = []

    def answer(request: AWSRequest, **_: Any) -> AWSResponse:
        sent.append(request)
        raw = io.BytesIO(b'{"FailedRecordCount":0,"Records":[{}]}')
        raw.stream = lambda *_, **__: iter([raw.read()])  # type: ignore[attr-defined]
        return AWSResponse(request.url, 200, {}, raw)

    caller = PutRecordsClient(Aws(region="ap-southeast-2"), stream, KeyDispatch(Limits()), with_shards=False)
    caller._client.meta.events.register("before-send.kinesis.PutRecords", answer)
    assert caller.put([Record(b"k", b"data", PendingBatch(1, 1))]) == Answer()
    (request,) = sent
    assert request.url == "https://123456789012.data-kinesis.ap-southeast-2.amazonaws.com/"
    assert json.loads(request.body) == {"StreamARN": arn, "Records": [{"Data": "ZGF0YQ==", "PartitionKey": "k"}]}
    assert int(request.headers["Content-Length"]) == len(request.body)


def test_an_oversized_change_stops_names_itself_and_confirms_nothing(
    rdsrepl: Program, source: Database, tmp_path: Path
) -> None:
    before = wal_end(source)
    source.run("INSERT INTO t VALUES (1, 1, repeat('x', 1100000)), (2, 1, 'small')")
    with KinesisServer(STREAM) as kinesis:
        failed = to_kinesis(rdsrepl, source, kinesis)
        assert failed.code == 4 and "public.t at " in failed.err and "--dead-letter" in failed.err
        assert is_before(source, before)
        kept = tmp_path / "dead.jsonl"
        done = to_kinesis(rdsrepl, source, kinesis, "--dead-letter", str(kept))
        assert done.code == 0
        entry = json.loads(kept.read_text())
        assert entry["partition_key"] == "public.t:1" and json.loads(entry["data"])["after"]["id"] == 1
        assert [event["after"]["id"] for _, event in events(kinesis)] == [2]


def test_drop_columns_through_the_program(rdsrepl: Program, source: Database, kinesis: KinesisServer) -> None:
    source.run("INSERT INTO t VALUES (1, 1, repeat('x', 1100000))")
    assert to_kinesis(rdsrepl, source, kinesis, "--oversize", "drop-columns").code == 0
    ((_, event),) = events(kinesis)
    assert event["dropped"] == ["v"] and event["after"] == {"id": 1, "n": 1}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--to", "sqs:x"), "kinesis:STREAM"),
        (("--to", "kinesis:"), "kinesis:STREAM"),
        (("--to", "kinesis:a b"), "1 to 128"),
        (("--to", "-", "--aggregate"), "--aggregate requires --to kinesis:STREAM"),
        (("--to", "kinesis:x", "--format", "pretty"), "json or debezium"),
        (("--to", "kinesis:x", "--format", "wal2json"), "--partition-by transaction"),
        (("--to", "kinesis:x", "--format", "raw"), "json or debezium"),
        (("--to", "kinesis:x", "--partition-by", ""), "empty"),
        (
            (
                "--to",
                "kinesis:x",
                "--oversize",
                "drop-columns",
                "--format",
                "wal2json",
                "--partition-by",
                "transaction",
            ),
            "--oversize drop-columns is not supported with --format wal2json",
        ),
        (("--to", "kinesis:x", "--linger", "-1s"), "--linger"),
        (("--to", "kinesis:x", "--requests", "0"), "--requests"),
        (("--to", "kinesis:arn:aws:s3:::bucket"), "or an ARN"),
        (("--to", "kinesis:x", "--endpoint-url", "nonsense"), "endpoint"),
    ],
)
def test_options_that_are_refused(rdsrepl: Program, source: Database, more: tuple[str, ...], said: str) -> None:
    failed = rdsrepl("slot", "tail", slot_of(source), *more, dsn=source.dsn, env=AWS)
    assert failed.code == 2 and said in failed.err


def test_a_slot_whose_plugin_has_no_keys(rdsrepl: Program, source: Database, kinesis: KinesisServer) -> None:
    slot = f"td_{source.name}"
    source.run(f"SELECT pg_create_logical_replication_slot('{slot}', 'test_decoding')")
    to = ("--to", f"kinesis:{STREAM}", "--endpoint-url", kinesis.url)
    failed = rdsrepl("slot", "tail", slot, *to, dsn=source.dsn, env=AWS)
    assert failed.code == 2 and "hint: a slot with --plugin pgoutput" in failed.err


def test_a_column_that_a_table_does_not_have(rdsrepl: Program, source: Database, kinesis: KinesisServer) -> None:
    before = wal_end(source)
    source.run("INSERT INTO t VALUES (1, 1, 'a')")
    failed = to_kinesis(rdsrepl, source, kinesis, "--partition-by", "customer")
    assert failed.code == 2 and "public.t does not have this column" in failed.err and events(kinesis) == []
    assert is_before(source, before)


def test_a_stream_that_does_not_exist_or_is_deleted(rdsrepl: Program, source: Database, kinesis: KinesisServer) -> None:
    env = {**AWS, "AWS_ENDPOINT_URL": kinesis.url}
    missing = rdsrepl("slot", "tail", slot_of(source), "--to", "kinesis:nope", dsn=source.dsn, env=env)
    assert missing.code == 3 and "region eu-west-1" in missing.err
    kinesis.status = "DELETING"
    going = to_kinesis(rdsrepl, source, kinesis)
    assert going.code == 4 and "DELETING" in going.err


def test_through_moto_a_single_change_arrives_soon(cloud: Cloud, source: Database) -> None:
    kinesis = cloud.client("kinesis")
    kinesis.create_stream(StreamName=STREAM, ShardCount=1)
    iterator = None
    process = cloud.program.start(*words(source), dsn=source.dsn)
    try:
        shard = kinesis.list_shards(StreamName=STREAM)["Shards"][0]["ShardId"]
        iterator = kinesis.get_shard_iterator(StreamName=STREAM, ShardId=shard, ShardIteratorType="TRIM_HORIZON")
        position = iterator["ShardIterator"]
        for number in range(5):
            source.run(f"INSERT INTO t VALUES ({number}, 1, 'a')")
            deadline = time.monotonic() + 120
            found: list[Any] = []
            while not found:
                assert time.monotonic() < deadline
                answer = kinesis.get_records(ShardIterator=position)
                found, position = answer["Records"], answer["NextShardIterator"]
            assert json.loads(found[0]["Data"])["after"]["id"] == number
    finally:
        process.terminate()
        assert process.wait(120) == 0
        kinesis.delete_stream(StreamName=STREAM)
