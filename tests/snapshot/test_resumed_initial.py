"""``slot tail --snapshot`` that ends early: the stream reads what is left, and the result has every row."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from rdsrepl.postgres.table_structures import TableName
from rdsrepl.snapshot.initial_state import InitialState
from rdsrepl.snapshot.requests import Request
from rdsrepl.snapshot.state import SnapshotState, Status, StreamIdentity
from rdsrepl.snapshot.state_file import FileStore
from rdsrepl.snapshot.tables import SnapshotTable, TableRange
from rdsrepl.tail.model import Relation
from tests.fixtures.hints import require_commands_parse
from tests.fixtures.postgres import Database
from tests.fixtures.program import Program
from tests.fixtures.waiting import wait_until
from tests.snapshot.test_table_copy import rows_of, truth

_COMMAND = ("slot", "tail", "s", "--create", "pgoutput", "--snapshot", "--workers", "1", "--publication", "p")
_JSON = ("-f", "json")
_SLOT = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 's' AND NOT temporary"
_OWNER = StreamIdentity("1", "d", "s")


@pytest.fixture
def source(db18: Database) -> Database:
    """Three tables; the rows of one are more than the output may have pending, and one has no key."""
    db18.run(
        "CREATE TABLE big (id int PRIMARY KEY, n int, v text)",
        "INSERT INTO big SELECT i, 0, repeat('x', 2000) FROM generate_series(1, 14000) i",
        "CREATE TABLE small (a text, b int, PRIMARY KEY (b, a))",
        "INSERT INTO small SELECT 'a', i FROM generate_series(1, 5) i",
        "CREATE TABLE log (a int, b text)",
        "ALTER TABLE log REPLICA IDENTITY FULL",
        "INSERT INTO log SELECT i % 2, 'b' FROM generate_series(1, 5) i",
        "CREATE PUBLICATION p FOR TABLE big, small, log",
    )
    return db18


@contextmanager
def _tail(rdsrepl: Program, dsn: str, out: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with out.open("ab") as file, log.open("wb") as err:
        process = rdsrepl.start(*_COMMAND, *_JSON, dsn=dsn, stdout=file, stderr=err)
    try:
        yield process
    finally:
        process.terminate()
        process.communicate()


def _wait_until_complete(rdsrepl: Program, source: Database) -> None:
    def states() -> set[str]:
        return {one["state"] for one in rdsrepl("snapshot", "list", "--slot", "s", "-o", "json", dsn=source.dsn).json}

    wait_until(lambda: states() == {"done"}, "the snapshot is complete", seconds=120)


def _require_equal(rdsrepl: Program, source: Database, *files: Path) -> None:
    words = [word for file in files for word in ("--stream", str(file))]
    result = rdsrepl("verify", *words, "--slot", "s", "--publication", "p", "--complete", "-o", "json", dsn=source.dsn)
    states = {one["table"]: one["state"] for one in result.json["tables"]}
    # Without a key verify does not compare the rows of a stream.
    assert states == {"public.big": "equal", "public.log": "not proven", "public.small": "equal"}, result.out


def test_a_killed_copy_goes_on(source: Database, rdsrepl: Program, tmp_path: Path) -> None:
    """kill -9 while the reader of a pipe is slow: the slot stays, and the same command reads the rest in chunks."""
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    process = rdsrepl.start(*_COMMAND, *_JSON, dsn=source.dsn, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    wait_until(lambda: source.value(_SLOT), "the slot is there")
    process.kill()
    text = process.stdout.read()
    first.write_bytes(text[: text.rfind(b"\n") + 1])  # as a reader of lines does
    assert len(first.read_bytes().splitlines()) < 14_005
    source.run("UPDATE big SET n = 1 WHERE id % 1000 = 0", "DELETE FROM big WHERE id = 14000")
    source.run("UPDATE log SET b = 'c' WHERE a = 0", "INSERT INTO log VALUES (0, 'b')")
    with _tail(rdsrepl, source.dsn, second, tmp_path / "log"):
        _wait_until_complete(rdsrepl, source)
        _require_equal(rdsrepl, source, first, second)
    assert "snapshot initial goes on" in (tmp_path / "log").read_text()
    chunks = [event for event in map(json.loads, second.read_bytes().splitlines()) if event["op"] == "r"]
    truncated = [event for event in map(json.loads, second.read_bytes().splitlines()) if event["op"] == "t"]
    assert [(event["table"], event["snapshot"]["id"]) for event in truncated] == [("log", "initial")]
    assert rows_of(list(map(json.loads, second.read_bytes().splitlines()))) == truth(source)
    assert {event["snapshot"]["id"] for event in chunks} == {"initial"}


@contextmanager
def _with_a_lost_process(
    rdsrepl: Program, source: Database, out: Path, log: Path, *words: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Yield a tail whose process that reads the tables was killed; a thread writes its output to OUT."""
    with log.open("wb") as err:
        process = rdsrepl.start(*_COMMAND, *_JSON, *words, dsn=source.dsn, stdout=subprocess.PIPE, stderr=err)
    assert process.stdout is not None
    reader = threading.Thread(target=lambda: out.write_bytes(process.stdout.read()))
    try:
        wait_until(lambda: source.value(_SLOT), "the slot is there")
        (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(child), signal.SIGKILL)
        reader.start()
        yield process
    finally:
        process.terminate()
        process.wait()
        reader.join()


def test_a_copy_whose_process_was_killed_goes_on_in_the_same_run(
    source: Database, rdsrepl: Program, tmp_path: Path
) -> None:
    out, log = tmp_path / "out.jsonl", tmp_path / "log"
    with _with_a_lost_process(rdsrepl, source, out, log):
        _wait_until_complete(rdsrepl, source)
        wait_until(lambda: "snapshot initial is complete" in log.read_text(), "it says so")
    assert "the stream begins, and reads 3 tables beside it" in log.read_text()
    events = [json.loads(line) for line in out.read_bytes().splitlines()]
    of_chunks = [(event["table"], event["after"]["id" if event["table"] == "big" else "b"])
                 for event in events if "snapshot" in event and event["op"] == "r"]  # fmt: skip
    assert sorted(of_chunks) == [("big", n) for n in range(1, 14_001)] + [("log", "b")] * 5 + [
        ("small", n) for n in range(1, 6)
    ]


def test_a_run_that_is_to_end_fails_instead(source: Database, rdsrepl: Program, tmp_path: Path) -> None:
    """With --until-now it would end before the tables are read: it says that the slot stays, and how to go on."""
    out, log = tmp_path / "out.jsonl", tmp_path / "log"
    with _with_a_lost_process(rdsrepl, source, out, log, "--until-now") as process:
        assert process.wait(60) == 1
    text = log.read_text()
    assert "a process of the snapshot ended unexpectedly" in text
    assert "slot s is there and retains WAL" in text
    require_commands_parse(text)
    assert source.value(_SLOT) == 1


def test_a_stream_without_the_state_of_its_copy_warns(source: Database, rdsrepl: Program, tmp_path: Path) -> None:
    source.run("SELECT pg_create_logical_replication_slot('s', 'pgoutput')")
    result = rdsrepl(*_COMMAND, *_JSON, "--until-now", "--to", f"file:{tmp_path / 'out'}", dsn=source.dsn)
    assert (result.code, "rows are missing" in result.err) == (0, True), result.err


def test_the_output_does_not_have_the_table_of_the_state(
    db18: Database, rdsrepl: Program, tmp_path: Path, make_database: Callable[..., Database]
) -> None:
    """A publication of all tables sends it as well; neither the copy nor the stream has it, nor is it compared."""
    out, other = tmp_path / "out.jsonl", make_database(db18.server)
    small = ("CREATE TABLE small (id int PRIMARY KEY)", "INSERT INTO small SELECT generate_series(1, 5)")
    db18.run(*small, "CREATE PUBLICATION p FOR ALL TABLES")
    other.run(*small)
    rdsrepl("snapshot", "create-table", "kept.snapshots", "--yes", dsn=db18.dsn)
    db18.run("INSERT INTO kept.snapshots VALUES ('other', '', now(), '')")
    words = (*_COMMAND, *_JSON, "--state", "table:kept.snapshots", "--until-now", "--to", f"file:{out}")
    for _ in range(2):  # the second run streams what the first one saved
        result = rdsrepl(*words, dsn=db18.dsn)
        assert result.code == 0, result.err
    assert db18.value("SELECT count(*) FROM kept.snapshots") == 2
    assert {json.loads(line)["table"] for line in out.read_bytes().splitlines()} == {"small"}
    compared = rdsrepl("verify", "--source", db18.dsn, "--to", other.dsn, "--no-changes", "-o", "json")
    assert [one["table"] for one in compared.json["tables"]] == ["public.small"], compared.err


def _table(name: TableName) -> SnapshotTable:
    return SnapshotTable(Relation(1, *name, "d", ()), (), None, ())


def test_a_table_is_complete_when_the_output_has_its_last_batch(tmp_path: Path) -> None:
    """What did not end in an older state belongs to another slot; what ended stays."""
    path = tmp_path / "state"
    older, ended = (SnapshotState.new(Request(name, "s", ("public.x",))) for name in ("older", "ended"))
    store = FileStore(path, _OWNER)
    store.load()
    store.save([older, SnapshotState(ended.request, Status.cancelled, tables=ended.tables)])
    store.close()
    tables = [_table(("public", name)) for name in ("a", "b", "C")]
    name: Any = ("public", "a")
    state = InitialState(
        store, "s", tables, [TableRange(0, name, None, 1), TableRange(0, name, 1, None), TableRange(1, name)],
        goes_on=True,
    )  # fmt: skip
    state.received(0, 10, 1, ends_range=True)
    state.received(1, 5, 2, ends_range=True)
    state.received(0, 7, 3, ends_range=True)
    state.stored(2)
    assert state.left == ["public.a"], "without ranges a table has no rows"
    state.save()
    state.close()
    saved = {one.request.id: one for one in store.load()}
    store.close()
    assert set(saved) == {"ended", "initial"}
    assert saved["initial"].status is Status.running
    assert [(one.table, one.rows, one.is_done) for one in saved["initial"].tables] == [
        ("public.a", 0, False), ("public.b", 5, True), ('public."C"', 0, True),
    ]  # fmt: skip
    again = InitialState(store, "s", tables, [], goes_on=True)
    again.stored(0)
    again.save()
    again.close()
    assert [one.status for one in store.load() if one.request.id == "initial"] == [Status.done]
    store.close()
