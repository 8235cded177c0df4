"""``verify --stream kinesis:STREAM``: all shards up to a position, while the stream is written and resharded."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

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
                if stop.is_set():
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


def test_records_that_may_have_been_removed(source: Database, kinesis: KinesisServer, rdsrepl: Program) -> None:
    """A stream that is older than its records cannot be called complete; what it still has is compared."""
    source.run("INSERT INTO t SELECT i, i, 'x' FROM generate_series(1, 9) i")
    kinesis.faults.read_records = 500
    with _tail(rdsrepl, source, kinesis):
        _settled(source)
        kinesis.created_at -= 48 * 3600
        refused = _verify(rdsrepl, source, kinesis, "--complete")
        assert (refused.code, "keeps its records for 24 hours" in refused.err) == (4, True)
        began = datetime.now(UTC) - timedelta(hours=1)
        assert _verify(rdsrepl, source, kinesis, "--complete", "--from", began.isoformat()).code == 0
        late = _verify(rdsrepl, source, kinesis, "--from", datetime.now(UTC).isoformat())
        assert (late.code, late.json["tables"][0]["cleared"]) == (0, 0)
        assert late.json["tables"][0]["notes"][0].startswith("9 rows not compared: the stream has no change")


def test_wrong_input(source: Database, kinesis: KinesisServer, rdsrepl: Program) -> None:
    kinesis.shards["empty"] = []
    for more, code, text in (
        (("--from", "latest"), 2, "--from is trim-horizon or a time"),
        (("--from", "yesterday"), 2, "--from yesterday"),
        (("--stream", "kinesis:other"), 2, "more than one data stream"),
        (("--to", "x"), 2, "--to cannot be used with --stream"),
        ((), 4, "is not in use"),
    ):
        result = _verify(rdsrepl, source, kinesis, *more)
        assert (result.code, text in result.err) == (code, True), result.err
    kinesis.faults.code, kinesis.shards = None, {}
    gone = _verify(rdsrepl, source, kinesis)
    assert (gone.code, f"Stream {STREAM}" in gone.err or STREAM in gone.err) == (3, True), gone.err
