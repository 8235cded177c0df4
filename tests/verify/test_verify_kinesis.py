"""``verify --stream kinesis:STREAM``: all shards up to a position, while the stream is written and resharded."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from rdsrepl.aws.stream_reader import Start, opened
from rdsrepl.config import Aws
from rdsrepl.errors import Refused
from rdsrepl.verify.stream_input import KinesisInput
from tests.fixtures.kinesis import AWS, STREAM, confirmed, is_before, slot_of, wal_end, words
from tests.fixtures.postgres import Database
from tests.fixtures.program import Program
from tests.fixtures.waiting import wait_until
from tests.workloads.kinesis_server import KinesisServer


def _verify(rdsrepl: Program, source: Database, kinesis: KinesisServer, *more: str) -> Any:
    names = ("--stream", f"kinesis:{STREAM}", "--slot", slot_of(source), "--publication", "p", "-o", "json")
    return rdsrepl("verify", *names, *more, dsn=source.dsn, env={**AWS, "AWS_ENDPOINT_URL": kinesis.url})


@contextmanager
def _tail(rdsrepl: Program, source: Database, kinesis: KinesisServer, *more: str) -> Iterator[None]:
    process = rdsrepl.start(
        *words(source, "--publication", "p", *more), dsn=source.dsn, env={**AWS, "AWS_ENDPOINT_URL": kinesis.url}
    )
    try:
        yield
    finally:
        process.terminate()
        process.communicate()


def _settled(source: Database) -> None:
    end = wal_end(source)
    wait_until(lambda: not is_before(source, end), f"{end} is confirmed; it is {confirmed(source)}")


@pytest.mark.timeout(120)
def test_all_shards_are_read_while_the_stream_is_written_and_resharded(
    source: Database, kinesis: KinesisServer, rdsrepl: Program
) -> None:
    """Then a record is lost, one is changed, one is repeated."""
    stop = threading.Event()

    def write() -> None:
        with closing(source.connect()) as conn:
            for number in range(1_000_000):
                # All shards get records all the time; what is read does not grow with the speed of the machine.
                if stop.wait(0.01):
                    return
                conn.execute("UPDATE t SET n = %s WHERE id = %s", (number, number % 150 + 1))
                conn.execute("UPDATE t SET id = -id WHERE abs(id) = %s", (number % 40 + 200,))

    kinesis.faults.read_records, kinesis.faults.expire_iterators = 500, True
    with _tail(rdsrepl, source, kinesis, "--aggregate"):
        source.run("INSERT INTO t SELECT i, i, repeat(md5(i::text), 100) FROM generate_series(1, 300) i")
        writer = threading.Thread(target=write)
        writer.start()
        try:
            wait_until(lambda: len(kinesis.records(STREAM)) > 20, "the stream has records")
            kinesis.split(STREAM, 1)
            kinesis.merge(STREAM, 2, 3)
            result = _verify(rdsrepl, source, kinesis, "--complete")
        finally:
            stop.set()
            writer.join()
        assert result.code == 0, result.out + result.err
        (table,) = result.json["tables"]
        assert (table["rows"], table["state"]) == (300, "equal")
        assert result.json["target"] == f"kinesis:{STREAM}"
    with _tail(rdsrepl, source, kinesis):
        source.run("UPDATE t SET n = -2 WHERE id IN (160, 161)", "DELETE FROM t WHERE id = 162")
        _settled(source)
        _lose(kinesis, b'"op":"d"', b'"key":{"id":160}')
        damaged = _verify(rdsrepl, source, kinesis, "--complete", "--columns")
    assert damaged.code == 9, damaged.err
    keys = damaged.json["tables"][0]["keys"]
    assert sorted((row["key"]["id"], row["state"], row["columns"]) for row in keys) == [
        ("160", "different", ["n"]),
        ("162", "extra", None),
    ]


def _lose(kinesis: KinesisServer, *texts: bytes) -> None:
    """Take the last record that has one of these texts out of its shard, for each."""
    for text in texts:
        shard, place = max(
            ((shard, place) for shard in kinesis.shards[STREAM] for place, (_, data) in enumerate(shard.records)
             if text in data and data.startswith(b"{")),
            key=lambda found: found[0].times[found[1]],
        )  # fmt: skip
        del shard.records[place], shard.times[place]


@pytest.mark.parametrize(
    ("stream_hours", "from_hours", "is_complete", "known_hours"),
    [
        (1, None, True, None),
        (48, None, True, "refused"),
        (48, 1, True, None),
        (48, 25, True, "refused"),
        (48, 24, True, "refused"),
        (1, None, False, None),
        (48, None, False, 24),
        (48, 1, False, 1),
        (48, 30, False, 24),
        (1, 30, False, 24),
    ],
)
def test_records_that_may_have_been_removed(
    kinesis: KinesisServer,
    monkeypatch: pytest.MonkeyPatch,
    stream_hours: int,
    from_hours: int | None,
    is_complete: bool,
    known_hours: int | str | None,
) -> None:
    """A stream that is older than its records cannot be called complete; of what it still has, a margin is left out."""
    for name, value in AWS.items():
        monkeypatch.setenv(name, value)
    now = datetime.now(UTC)
    kinesis.created_at = (now - timedelta(hours=stream_hours)).timestamp()
    start = Start("TRIM_HORIZON") if from_hours is None else Start("AT_TIMESTAMP", now - timedelta(hours=from_hours))
    aws = Aws(endpoint_url=kinesis.url, region="eu-west-1")
    with ExitStack() as stack:
        if known_hours == "refused":
            with pytest.raises(Refused, match="keeps its records for 24 hours"):
                KinesisInput(stack, aws, STREAM, start, is_complete=is_complete)
            return
        known = KinesisInput(stack, aws, STREAM, start, is_complete=is_complete).known_since()
    if known_hours is None:
        assert known == ""
    else:
        assert isinstance(known_hours, int)
        expected = now - timedelta(hours=known_hours) + timedelta(minutes=5)
        assert timedelta(0) <= datetime.fromisoformat(known) - expected < timedelta(minutes=1)


def test_the_children_of_a_closed_shard_are_read_before_they_are_listed(
    kinesis: KinesisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shards that were read must take all hash keys; GetRecords names the children at the end of a shard."""
    for name, value in AWS.items():
        monkeypatch.setenv(name, value)
    for number in range(4):
        kinesis.shards[STREAM][number].records.append((f"k{number}", b"parent"))
        kinesis.shards[STREAM][number].times.append(0.0)
    with opened(Aws(endpoint_url=kinesis.url, region="eu-west-1"), STREAM, Start("TRIM_HORIZON")) as reader:
        kinesis.split(STREAM, 2)
        kinesis.faults.hidden_shards = 2
        for number in (4, 5):
            kinesis.shards[STREAM][number].records.append((f"k{number}", b"child"))
            kinesis.shards[STREAM][number].times.append(0.0)
        read = [(record.partition_key, record.data) for batch in reader.stored_before() for record in batch]
    assert sorted(read) == [*((f"k{n}", b"parent") for n in range(4)), ("k4", b"child"), ("k5", b"child")]


def test_wrong_input(source: Database, kinesis: KinesisServer, rdsrepl: Program) -> None:
    kinesis.shards["empty"] = []
    for more, code, text in (
        (("--from", "latest"), 2, "--from is trim-horizon or a time"),
        (("--from", "yesterday"), 2, "--from yesterday"),
        (("--stream", "kinesis:other"), 2, "more than one data stream"),
        (("--to", "x"), 2, "--to cannot be used with --stream"),
        (("--proof-timeout", "0s"), 4, "is not in use"),
    ):
        result = _verify(rdsrepl, source, kinesis, *more)
        assert (result.code, text in result.err) == (code, True), result.err
    kinesis.faults.code, kinesis.shards = None, {}
    gone = _verify(rdsrepl, source, kinesis)
    assert (gone.code, f"Stream {STREAM}" in gone.err or STREAM in gone.err) == (3, True), gone.err
