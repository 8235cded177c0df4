"""``slot tail --snapshot`` that is stopped in the middle of the copy: what is left, and what the output says of it."""

from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.fixtures.postgres import Database
from tests.fixtures.program import Program
from tests.fixtures.waiting import wait_until

_COMMAND = (
    "slot", "tail", "s", "--create", "pgoutput", "--snapshot", "--workers", "1", "--publication", "p", "-f", "json",
)  # fmt: skip
_SLOTS = "SELECT slot_name FROM pg_replication_slots WHERE database = current_database()"
_READERS = "FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'COPY%'"
_HOLDER = "FROM pg_replication_slots WHERE database = current_database() AND temporary"
_ROWS = 22


@pytest.fixture
def source(db18: Database) -> Database:
    """Two tables; the rows of the larger one are more than the output may have pending."""
    db18.run(
        "CREATE TABLE big (id int PRIMARY KEY, v text)",
        f"INSERT INTO big SELECT i, repeat('x', 1000000) FROM generate_series(1, {_ROWS}) i",
        "CREATE TABLE small (id int PRIMARY KEY)",
        "INSERT INTO small SELECT generate_series(1, 5)",
        "CREATE PUBLICATION p FOR TABLE big, small",
    )
    return db18


# What the stream cannot go on with: the slot is created at the end.
_AT_THE_END = ("--plugin-option", "messages=false")


@contextmanager
def _copying(
    rdsrepl: Program, source: Database, log: Path, *words: str
) -> Iterator[tuple[subprocess.Popen[bytes], Callable[[], bytes]]]:
    """Yield a copy that waits for the reader of its output, and what reads that to the end."""
    with log.open("wb") as err:
        process = rdsrepl.start(*_COMMAND, *words, dsn=source.dsn, stdout=subprocess.PIPE, stderr=err)
    assert process.stdout is not None
    try:
        wait_until(lambda: source.run(f"SELECT 1 {_READERS} AND wait_event = 'ClientWrite'"), "the copy waits")
        yield process, process.stdout.read
    finally:
        process.kill()
        process.communicate()


def _children(process: subprocess.Popen[bytes]) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def _has_ended(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] == "Z"  # an orphan may stay a zombie
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_ctrl_c_leaves_the_slot_and_says_so(source: Database, rdsrepl: Program, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with _copying(rdsrepl, source, log) as (process, _):
        (child,) = _children(process)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert _has_ended(child)
    text = log.read_text()
    assert "slot s is there and retains WAL: run the command again" in text
    assert "slot drop s" in text
    assert "Traceback" not in text
    assert source.run(_SLOTS) == [("s",)]
    states = rdsrepl("snapshot", "list", "--slot", "s", "-o", "json", dsn=source.dsn).json
    assert {one["table"] for one in states} == {"public.big", "public.small"}


def test_sigterm_before_there_is_a_slot_leaves_nothing(source: Database, rdsrepl: Program, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with _copying(rdsrepl, source, log, *_AT_THE_END) as (process, _):
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 130
    assert "no slot is left; run the command again, with a new file" in log.read_text()
    wait_until(lambda: source.run(_SLOTS) == [], "no slot is left")


def test_a_process_that_waits_for_the_server_ends_with_the_command(
    source: Database, rdsrepl: Program, tmp_path: Path
) -> None:
    """After kill -9 a process that waits for a lock would wait as long as the lock is held."""
    with _copying(rdsrepl, source, tmp_path / "log") as (process, read), closing(source.connect()) as conn:
        conn.execute("BEGIN; LOCK TABLE small")
        reader = threading.Thread(target=read)
        reader.start()
        wait_until(lambda: source.run(f"SELECT 1 {_READERS} AND wait_event_type = 'Lock'"), "it waits for the lock")
        (child,) = _children(process)
        process.kill()
        wait_until(lambda: _has_ended(child), "the process has ended")
        reader.join()


_DROP_SLOT = ("SELECT pg_drop_replication_slot('s')",)
_READ_SLOT = ("INSERT INTO small VALUES (99)", "SELECT pg_replication_slot_advance('s', pg_current_wal_lsn())")
_END_HOLDER = (f"SELECT pg_terminate_backend(active_pid) {_HOLDER}",)


@pytest.mark.parametrize(
    ("statements", "code", "message"),
    [
        (_DROP_SLOT, 4, "slot s was dropped during the snapshot"),
        (_READ_SLOT, 4, "another process has read slot s during the snapshot"),
        # The reader has taken the snapshot over.
        (_END_HOLDER, 0, f"snapshot of 2 tables: {_ROWS + 5} rows"),
    ],
    ids=["drop", "read", "end-holder"],
)
def test_what_happens_to_the_slots(
    source: Database, rdsrepl: Program, tmp_path: Path, statements: tuple[str, ...], code: int, message: str
) -> None:
    log = tmp_path / "log"
    with _copying(rdsrepl, source, log, "--until-now") as (process, read):
        source.run(*statements)
        read()
        assert process.wait(60) == code, log.read_text()
    assert message in log.read_text()
    assert source.run(_SLOTS) == ([] if statements == _DROP_SLOT else [("s",)])


def test_tables_that_are_altered_before_they_are_read(source: Database, rdsrepl: Program, tmp_path: Path) -> None:
    """To a snapshot that is older than its new file a table is empty. One that was dropped has no rows to copy.

    A table that was read is not locked: all its queries would wait behind a statement that waits for the lock.
    """
    names = ["a", *(f"t_{change}" for change in ("rewritten", "column", "renamed", "dropped"))]
    for name in names:
        source.run(f"CREATE TABLE {name} (id int PRIMARY KEY)", f"ALTER PUBLICATION p ADD TABLE {name}")
    source.run("INSERT INTO a VALUES (1)", "INSERT INTO t_rewritten VALUES (1)")
    log = tmp_path / "log"
    with _copying(rdsrepl, source, log, "--until-now") as (process, read):
        source.run(
            "SET lock_timeout = '10s'",
            "ALTER TABLE a ALTER id TYPE bigint",
            "ALTER TABLE t_rewritten ALTER id TYPE bigint",
            "ALTER TABLE t_column RENAME id TO other",
            "ALTER TABLE t_renamed RENAME TO other",
            "CREATE TABLE t_renamed (id int)",
            "DROP TABLE t_dropped",
        )
        read()
        assert process.wait(60) == 1, log.read_text()
    text = log.read_text()
    (message,) = (line for line in text.splitlines() if line.startswith("error: "))
    altered = message.removeprefix("error: ").removesuffix(" were altered during the snapshot: rows are missing")
    assert set(altered.split(", ")) == {f"public.t_{change}" for change in ("rewritten", "column", "renamed")}, text
    assert "slot s is there and retains WAL" in text


def test_a_lost_holder_ends_a_copy_that_has_no_slot(source: Database, rdsrepl: Program, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with _copying(rdsrepl, source, log, "--until-now", *_AT_THE_END) as (process, read):
        source.run(f"SELECT pg_terminate_backend(active_pid) {_HOLDER}")
        read()
        assert process.wait(60) == 5
    text = log.read_text()
    assert "the connection that holds the snapshot was lost" in text
    assert text.count("no slot is left; run the command again, with a new file") == 1
    assert source.run(_SLOTS) == []


def test_a_slot_of_the_same_name_ends_a_copy_that_has_no_slot(
    source: Database, rdsrepl: Program, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with _copying(rdsrepl, source, log, *_AT_THE_END) as (process, read):
        source.run("SELECT pg_create_logical_replication_slot('s', 'pgoutput')")
        read()
        assert process.wait(60) == 4
    assert "another process has created slot s since this command began" in log.read_text()


def test_a_lost_reader_lets_the_stream_begin(source: Database, rdsrepl: Program, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with _copying(rdsrepl, source, log) as (process, read):
        source.run(f"SELECT pg_terminate_backend(pid) {_READERS}")
        reader = threading.Thread(target=read)
        reader.start()
        wait_until(lambda: "the stream begins, and reads 2 tables beside it" in log.read_text(), "it says so")
        process.terminate()
        reader.join()


def test_an_invalidated_slot_ends_the_copy(source: Database, rdsrepl: Program, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with _copying(rdsrepl, source, log) as (process, read):
        try:
            source.run(
                "ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'",
                "SELECT pg_reload_conf()",
                *["SELECT pg_logical_emit_message(false, 'x', 'x')", "SELECT pg_switch_wal()"] * 3,
                "CHECKPOINT",
            )
        finally:
            source.run("ALTER SYSTEM RESET max_slot_wal_keep_size", "SELECT pg_reload_conf()")
        read()
        assert process.wait(60) == 4, log.read_text()
    text = log.read_text()
    assert "slot s is invalidated (wal_removed): the changes since the snapshot are gone" in text
    assert "raise max_slot_wal_keep_size" in text


def test_a_second_command_does_not_read_the_slot_of_a_copy(source: Database, rdsrepl: Program, tmp_path: Path) -> None:
    """Its changes belong behind the rows of the first command, in the output of that."""
    with _copying(rdsrepl, source, tmp_path / "log"):
        command = ("slot", "tail", "s", "--publication", "p", "-f", "json", "--until-now")
        result = rdsrepl(*command, "--to", f"file:{tmp_path / 'second'}", dsn=source.dsn)
    assert result.code == 4, result.err
    assert "another process writes the rows of the tables of slot s" in result.err
