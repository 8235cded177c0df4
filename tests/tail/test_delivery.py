"""The delivery contract under faults: everything committed is delivered, in commit order."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from rdsrepl.sandbox.servers.postgres_server import PostgresServer
from tests.fixtures.failover import failover_pair
from tests.fixtures.postgres import confirmed_lsn
from tests.fixtures.program import read_json_lines
from tests.fixtures.waiting import wait_until

if TYPE_CHECKING:
    from tests.fixtures.postgres import Database, Servers
    from tests.fixtures.program import Program


@pytest.fixture
def stream(db15: Database) -> Database:
    """A database with table t, its publication p, and the slots g (pgoutput) and w (wal2json)."""
    db15.run(
        "CREATE TABLE t (id bigserial PRIMARY KEY, v text)",
        "CREATE PUBLICATION p FOR TABLE t",
        "SELECT pg_create_logical_replication_slot('g', 'pgoutput')",
        "SELECT pg_create_logical_replication_slot('w', 'wal2json')",
    )
    return db15


class Writer:
    """Commits small transactions as fast as it can, also through restarts, and remembers what was committed."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._stop = threading.Event()
        self.committed: list[int] = []
        self._thread = threading.Thread(target=self._work)

    @contextmanager
    def running(self) -> Iterator[Writer]:
        self._thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            self._thread.join()

    def _work(self) -> None:
        rng = random.Random(7)
        while not self._stop.is_set():
            try:
                with closing(psycopg.connect(self._database.dsn)) as conn:
                    while not self._stop.is_set():
                        query = "INSERT INTO t (v) SELECT 'x' FROM generate_series(1, %s) RETURNING id"
                        ids = [row[0] for row in conn.execute(query, (rng.randint(1, 5),))]
                        conn.commit()
                        self.committed += ids
                        time.sleep(0.002)
            except psycopg.Error:
                time.sleep(0.05)


def check_order(events: list[dict[str, Any]], committed: set[int]) -> list[int]:
    """Check that everything committed is there, first appearances in commit order; return the ids with repeats."""
    ids = [event["after"]["id"] for event in events]
    assert committed <= set(ids)
    seen: dict[tuple[int, int], int] = {}
    for event in events:
        high, low = (int(part, 16) for part in event["commit_lsn"].split("/"))
        key = ((high << 32) | low, event["seq"])
        # The same (commit_lsn, seq) is always the same change.
        assert seen.setdefault(key, event["after"]["id"]) == event["after"]["id"]
    first = list(seen)
    assert first == sorted(first)
    return ids


def test_an_undisturbed_run_gives_each_change_once(stream: Database, rdsrepl: Program, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    writer = Writer(stream)
    with out.open("wb") as file:
        tail = rdsrepl.start("slot", "tail", "g", dsn=stream.dsn, stdout=file, stderr=subprocess.PIPE)
        with writer.running():
            time.sleep(2)
        wait_until(lambda: len(out.read_bytes().splitlines()) >= len(writer.committed), "all changes arrive")
        tail.send_signal(signal.SIGINT)
        _, err = tail.communicate(timeout=120)
    assert tail.returncode == 0, err
    assert err.endswith(b"; stopped by Ctrl-C\n"), err
    assert check_order(read_json_lines(out), set(writer.committed)) == writer.committed


def test_eight_kills_lose_and_repeat_nothing(stream: Database, rdsrepl: Program, tmp_path: Path) -> None:
    """kill -9 at random moments, appending to the same file: every line is complete, every change is there once.

    ``make bench`` kills more often: ``file_kills``.
    """
    out = tmp_path / "out.jsonl"
    writer = Writer(stream)
    with writer.running():
        kill_repeatedly(rdsrepl, stream, out, 8)
    finish(rdsrepl, stream, out)
    assert check_order(read_json_lines(out), set(writer.committed)) == writer.committed


def kill_repeatedly(rdsrepl: Program, stream: Database, out: Path, kills: int, *words: str) -> None:
    """Stream into a file with a tail that is killed again and again."""
    rng = random.Random(kills)
    with out.open("ab") as file:
        for _ in range(kills):
            size = out.stat().st_size
            process = rdsrepl.start(
                "-q", "slot", "tail", "g", *words, dsn=stream.dsn, stdout=file, stderr=subprocess.DEVNULL
            )
            wait_until(lambda size=size: out.stat().st_size > size, "the tail writes")
            time.sleep(rng.uniform(0, 0.25))
            process.kill()
            process.wait()


def finish(rdsrepl: Program, stream: Database, out: Path, *words: str, code: int = 0) -> str:
    """Append what is left; return what the tail printed on stderr."""
    with out.open("ab") as file:
        last = rdsrepl.start(
            "slot", "tail", "g", "--until-now", *words, dsn=stream.dsn, stdout=file, stderr=subprocess.PIPE
        )
        _, err = last.communicate(timeout=120)
    assert last.returncode == code, err
    return str(err, "utf-8")


def test_a_file_of_another_stream_is_refused(stream: Database, rdsrepl: Program, tmp_path: Path) -> None:
    """The end of the file is not in the stream, so nothing is left out, written or confirmed."""
    stream.run("INSERT INTO t (v) VALUES ('a')")
    out = tmp_path / "out.jsonl"
    finish(rdsrepl, stream, out)
    before = confirmed_lsn(stream, "g")
    (line,) = out.read_text().splitlines()
    stream.run("INSERT INTO t (v) VALUES ('b')")
    lsn = json.loads(line)["commit_lsn"]
    foreign = line.replace(lsn, lsn.split("/")[0] + "/FFFFFFF0") + "\n"
    out.write_text(foreign)
    err = finish(rdsrepl, stream, out, code=4)
    assert "the output file ends with the change" in err and "hint: append to another file, or write" in err
    assert out.read_text() == foreign
    assert confirmed_lsn(stream, "g") == before
    finish(rdsrepl, stream, out, "--at-least-once")
    assert len(out.read_text().splitlines()) == 2


def test_an_incomplete_last_line_is_removed(stream: Database, rdsrepl: Program, tmp_path: Path) -> None:
    stream.run("INSERT INTO t (v) VALUES ('a')")
    out = tmp_path / "out.jsonl"
    out.write_text('{"whole": 1}\n{"op":"c","schema":"pub')
    with out.open("ab") as file:
        assert rdsrepl.start("slot", "tail", "g", "--until-now", dsn=stream.dsn, stdout=file).wait(timeout=120) == 0
    assert [sorted(line)[0] for line in read_json_lines(out)] == ["whole", "after"]
    foreign = tmp_path / "foreign"
    foreign.write_text("not ours")
    with foreign.open("ab") as file:
        words = ("slot", "tail", "g", "--until-now")
        assert rdsrepl.start(*words, dsn=stream.dsn, stdout=file).wait(timeout=120) == 0
    assert foreign.read_text().startswith("not ours\n")


@pytest.fixture
def own_server(servers: Servers, pg15: PostgresServer, tmp_path: Path) -> Iterator[PostgresServer]:
    """A server for one test, which may restart it."""
    made = PostgresServer(tmp_path / "own", pg15.binaries, settings={**pg15.settings, "wal_sender_timeout": "3s"})
    made.initdb()
    made.start()
    yield made
    made.stop("immediate")
    made.remove()


def test_restarts_and_terminations_lose_nothing(
    own_server: PostgresServer, make_database: Any, rdsrepl: Program, tmp_path: Path
) -> None:
    database = make_database(own_server)
    database.run(
        "CREATE TABLE t (id bigserial PRIMARY KEY, v text)",
        "CREATE PUBLICATION p FOR TABLE t",
        "SELECT pg_create_logical_replication_slot('g', 'pgoutput')",
    )
    out = tmp_path / "out.jsonl"
    writer = Writer(database)

    def grows() -> None:
        size = out.stat().st_size
        wait_until(lambda: out.stat().st_size > size, "the stream goes on")

    with out.open("wb") as file:
        tail = rdsrepl.start("slot", "tail", "g", dsn=database.dsn, stdout=file, stderr=subprocess.PIPE)
        with writer.running():
            grows()
            for _ in range(3):
                database.run("SELECT pg_terminate_backend(pid) FROM pg_stat_replication")
                grows()
            own_server.restart("immediate")
            grows()
            own_server.restart("fast")
            grows()
        wanted = set(writer.committed)
        wait_until(
            lambda: (
                wanted <= {event["after"]["id"] for event in read_json_lines(out)}
                if out.read_bytes()[-1:] == b"\n"
                else 0
            ),
            "all changes arrive",
        )
        tail.send_signal(signal.SIGTERM)
        _, err = tail.communicate(timeout=120)
    assert tail.returncode == 0, err
    assert b"connecting again" in err
    check_order(read_json_lines(out), wanted)


def test_a_failover_is_transient(servers: Servers, rdsrepl: Program, tmp_path: Path) -> None:
    """A synchronised standby is promoted while the tail streams: it finds the new primary and resumes without a gap."""
    out = tmp_path / "out.jsonl"
    with failover_pair(servers, rdsrepl, tmp_path, "id integer PRIMARY KEY") as pair:
        with out.open("wb") as file:
            tail = rdsrepl.start("slot", "tail", "fo", dsn=pair.dsn, stdout=file, stderr=subprocess.PIPE)
            for number in range(1, 11):
                with closing(pair.primary.connect()) as conn:
                    conn.execute("INSERT INTO public.t VALUES (%s)", (number,))
                    conn.execute("SELECT pg_log_standby_snapshot()")
            wait_until(lambda: len(out.read_text().splitlines()) == 10, "the changes before the failover")
            # A synchronised slot survives the promotion after the primary's has advanced (facts of PostgreSQL 17).
            pair.wait_until_synced("SELECT pg_logical_emit_message(false, 'x', '', true)")
            with closing(pair.primary.connect()) as conn:
                conn.execute("INSERT INTO public.t VALUES (11)")
                end = conn.execute("SELECT pg_current_wal_lsn()").fetchone()
            with closing(pair.standby.connect()) as conn:
                replayed = "SELECT pg_last_wal_replay_lsn() >= %s"
                wait_until(lambda: conn.execute(replayed, end).fetchone() == (True,), "the standby has it")
            pair.primary.stop("immediate")
            pair.standby.promote()
            with closing(pair.standby.connect()) as conn:
                for number in range(12, 21):
                    conn.execute("INSERT INTO public.t VALUES (%s)", (number,))

            def ids() -> list[int]:
                return [event["after"]["id"] for event in read_json_lines(out) if event["op"] == "c"]

            wait_until(lambda: 20 in ids(), "the changes after the failover")
            tail.send_signal(signal.SIGINT)
            _, err = tail.communicate(timeout=120)
        assert tail.returncode == 0, err
        assert b"connecting again" in err
        assert sorted(set(ids())) == list(range(1, 21))
        first = list(dict.fromkeys(ids()))
        assert first == sorted(first)
        with closing(pair.standby.connect()) as conn:
            row = conn.execute(
                "SELECT confirmed_flush_lsn <= pg_current_wal_lsn() FROM pg_replication_slots"
            ).fetchone()
            assert row == (True,)


def test_a_stalled_reader_does_not_cost_the_connection(
    own_server: PostgresServer, make_database: Any, rdsrepl: Program
) -> None:
    """stdout's reader is blocked for three times wal_sender_timeout; the walsender is the same before and after."""
    database = make_database(own_server)
    database.run(
        "CREATE TABLE t (id bigserial PRIMARY KEY, v text)",
        "CREATE PUBLICATION p FOR TABLE t",
        "SELECT pg_create_logical_replication_slot('g', 'pgoutput')",
        "INSERT INTO t (v) SELECT repeat('x', 1000) FROM generate_series(1, 60000)",
    )
    tail = rdsrepl.start(
        "slot", "tail", "g", "--until-now", dsn=database.dsn, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert tail.stdout is not None
    first = tail.stdout.readline()
    pid = wait_until(lambda: database.run("SELECT pid FROM pg_stat_replication"), "the walsender runs")[0][0]
    time.sleep(9)
    assert database.run("SELECT pid FROM pg_stat_replication") == [(pid,)]
    assert confirmed_lsn(database, "g") < json_lsn(first)
    lines = [first, *tail.stdout]
    assert tail.stderr is not None
    err = tail.stderr.read()
    assert tail.wait(timeout=120) == 0, err
    tail.stdout.close()
    tail.stderr.close()
    assert b"connecting again" not in err
    assert [json.loads(line)["after"]["id"] for line in lines] == list(range(1, 60001))


def json_lsn(line: bytes) -> int:
    high, low = (int(part, 16) for part in json.loads(line)["commit_lsn"].split("/"))
    return (high << 32) | low


def test_an_idle_publication_does_not_pin_wal(stream: Database, rdsrepl: Program) -> None:
    """Unrelated WAL advances confirmed_flush_lsn up to the server's position; so does a filtered change."""
    stream.run("CREATE TABLE other (id integer)")
    tail = rdsrepl.start("-q", "slot", "tail", "g", dsn=stream.dsn, stdout=subprocess.PIPE)
    try:
        wait_until(lambda: stream.value("SELECT active FROM pg_replication_slots WHERE slot_name = 'g'"), "it streams")
        stream.run("INSERT INTO other SELECT generate_series(1, 10000)")
        goal = stream.value("SELECT pg_current_wal_lsn() - '0/0'")
        wait_until(lambda: confirmed_lsn(stream, "g") >= goal, "the idle slot moves")
    finally:
        tail.send_signal(signal.SIGINT)
        tail.communicate(timeout=120)
    assert tail.returncode == 0


def test_an_undelivered_change_holds_the_position(stream: Database, rdsrepl: Program) -> None:
    """While stdout's reader is blocked, no keepalive advances the slot past what it has not read."""
    stream.run("CREATE TABLE other (id integer)")
    tail = rdsrepl.start("-q", "slot", "tail", "g", dsn=stream.dsn, stdout=subprocess.PIPE)
    assert tail.stdout is not None
    stream.run("INSERT INTO t (v) SELECT repeat('y', 1000) FROM generate_series(1, 5000)")
    commit = json_lsn(tail.stdout.readline())
    for _ in range(3):
        stream.run("INSERT INTO other SELECT generate_series(1, 1000)")
        time.sleep(1)
        assert confirmed_lsn(stream, "g") <= commit
    tail.kill()
    tail.communicate()
    wait_until(
        lambda: not stream.value("SELECT active FROM pg_replication_slots WHERE slot_name = 'g'"),
        "it releases the slot",
    )
    again = rdsrepl("-q", "slot", "tail", "g", "--until-now", dsn=stream.dsn)
    assert [event["after"]["id"] for event in again.lines] == list(range(1, 5001))


def test_a_transaction_of_400_000_rows_streams_in_bounded_memory(stream: Database, rdsrepl: Program) -> None:
    stream.run("INSERT INTO t (v) SELECT 'row ' || g FROM generate_series(1, 400000) g")
    tail = rdsrepl.start("-q", "slot", "tail", "g", "--until-now", dsn=stream.dsn, stdout=subprocess.PIPE)
    assert tail.stdout is not None
    count = peak_kib = 0
    for line in tail.stdout:
        count += 1
        if count % 100_000 == 1:
            peak_kib = max(peak_kib, *peak(tail.pid))
            assert json.loads(line)["seq"] == count
    assert (tail.wait(timeout=120), count) == (0, 400_000)
    tail.stdout.close()
    # The lines alone would need as much.
    assert peak_kib * 1024 <= 100 * 1_000_000


def peak(pid: int) -> tuple[int, int]:
    """Return the process's peak memory in KiB, if the system reports it."""
    status = Path(f"/proc/{pid}/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return 0, next((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)


def test_raw_is_what_pg_recvlogical_writes(stream: Database, rdsrepl: Program, tmp_path: Path) -> None:
    for slot in ("w2", "g2", "g3"):
        plugin = "wal2json" if slot == "w2" else "pgoutput"
        stream.run(f"SELECT pg_create_logical_replication_slot('{slot}', '{plugin}')")
    stream.run(
        "INSERT INTO t (v) SELECT 'row ' || g FROM generate_series(1, 1000) g",
        "UPDATE t SET v = v || '\n\"é' WHERE id < 10",
        "DELETE FROM t WHERE id > 990",
    )
    end = stream.value("SELECT pg_current_wal_lsn()")
    options = {
        "w": ["format-version=2"],
        "g2": ["proto_version=1", "publication_names=p", "messages=true"],
    }
    for slot, ours in (("w", "w2"), ("g2", "g3")):
        file = tmp_path / slot
        command = [stream.server.binaries.program("pg_recvlogical"), "-d", stream.dsn, "--slot", slot, "--start"]
        command += ["--no-loop", "--endpos", str(end), "-f", str(file)]
        command += [word for option in options[slot] for word in ("-o", option)]
        subprocess.run(command, check=True, timeout=120)
        mine = tmp_path / ours
        with mine.open("wb") as out:
            tail = rdsrepl.start("-q", "slot", "tail", ours, "-f", "raw", "--until-now", dsn=stream.dsn, stdout=out)
            assert tail.wait(timeout=120) == 0
        assert mine.read_bytes() == file.read_bytes()


def test_bounds(stream: Database, rdsrepl: Program) -> None:
    stream.run(*(f"INSERT INTO t (v) VALUES ('{n}')" for n in range(10)))

    def ids(*words: str) -> list[int]:
        result = rdsrepl("slot", "tail", "g", *words, dsn=stream.dsn)
        assert result.code == 0, result.err
        return [event["after"]["id"] for event in result.lines]

    assert ids("--limit", "3", "--no-confirm") == [1, 2, 3]
    assert ids("--limit", "3") == [1, 2, 3]
    assert ids("--limit", "2") == [4, 5]  # the commit after the last change was confirmed, too
    lsn = stream.value("SELECT pg_current_wal_lsn()")
    stream.run("INSERT INTO t (v) VALUES ('later')")
    assert ids("--until-lsn", str(lsn)) == [6, 7, 8, 9, 10]
    assert ids("--until-lsn", str(lsn)) == []
    assert ids("--idle-exit", "2s") == [11]
    assert ids("--duration", "300ms") == []
    stream.run("INSERT INTO t (v) SELECT 'x' FROM generate_series(1, 10)")
    assert ids("--limit", "4") == [12, 13, 14, 15]
    assert ids("--until-now") == list(
        range(12, 22)
    )  # a transaction that --limit interrupts is not confirmed: it comes again


def test_peek_consumes_nothing(stream: Database, rdsrepl: Program) -> None:
    stream.run("INSERT INTO t (v) SELECT 'x' FROM generate_series(1, 100000)")
    before = confirmed_lsn(stream, "g")
    for _ in range(2):
        result = rdsrepl("slot", "peek", "g", "--limit", "3", dsn=stream.dsn)
        assert (result.code, len(result.lines)) == (0, 3)
    assert confirmed_lsn(stream, "g") == before
    assert rdsrepl("slot", "peek", "w", "--limit", "2", "--format", "json", dsn=stream.dsn).lines[1]["seq"] == 2


def test_create_makes_the_slot_once(stream: Database, rdsrepl: Program) -> None:
    words = ("slot", "tail", "fresh", "--create", "pgoutput", "--publication", "p", "--until-now")
    first = rdsrepl(*words, dsn=stream.dsn)
    assert first.code == 0, first.err
    assert "created slot fresh" in first.err
    stream.run("INSERT INTO t (v) VALUES ('x')")
    second = rdsrepl(*words, dsn=stream.dsn)
    assert "created" not in second.err
    assert len(second.lines) == 1
    missing = rdsrepl("slot", "tail", "other", "--create", "pgoutput", "--publication", "nope", dsn=stream.dsn)
    assert missing.code == 3
    assert stream.run("SELECT FROM pg_replication_slots WHERE slot_name = 'other'") == []


def test_a_second_signal_exits_at_once(stream: Database, rdsrepl: Program) -> None:
    stream.run("INSERT INTO t (v) SELECT repeat('x', 1000) FROM generate_series(1, 5000)")
    tail = rdsrepl.start("-q", "slot", "tail", "g", dsn=stream.dsn, stdout=subprocess.PIPE)
    assert tail.stdout is not None
    tail.stdout.readline()
    tail.send_signal(signal.SIGINT)
    time.sleep(1)
    assert tail.poll() is None  # it delivers to a reader that does not read
    tail.send_signal(signal.SIGINT)
    assert tail.wait(timeout=120) == 130
    tail.stdout.close()


def test_a_reader_that_closes_stdout_ends_the_run_quietly(stream: Database, rdsrepl: Program) -> None:
    """As ``yes | head -1``: no message, the exit code of SIGPIPE; what the reader did not read comes again."""
    stream.run(*(f"INSERT INTO t (v) SELECT '{number} ' || repeat('x', 500)" for number in range(50)))
    before = confirmed_lsn(stream, "g")
    # All of it fits into the pipe; head reads a part.
    line = " ".join([*rdsrepl.command, "-q", "--dsn", f"'{stream.dsn}'", "slot tail g --until-now | head -1"])
    run = subprocess.run(
        ["bash", "-c", f"{line}; exit ${{PIPESTATUS[0]}}"], env=rdsrepl.env, capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stderr) == (141, "")
    assert json.loads(run.stdout)["after"]["v"].startswith("0 ")
    assert confirmed_lsn(stream, "g") == before
    # While nothing is written, too.
    tail = rdsrepl.start("-q", "slot", "tail", "g", dsn=stream.dsn, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert tail.stdout is not None
    again = [json.loads(tail.stdout.readline())["after"]["v"].split()[0] for _ in range(50)]
    assert again == [str(number) for number in range(50)]
    wait_until(lambda: confirmed_lsn(stream, "g") > before, "what was read is confirmed")
    tail.stdout.close()
    assert tail.stderr is not None
    assert tail.stderr.read() == b""
    tail.stderr.close()
    assert tail.wait(timeout=120) == 141


def test_a_full_disk_ends_the_run(stream: Database, rdsrepl: Program) -> None:
    stream.run("INSERT INTO t (v) VALUES ('x')")
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with Path("/dev/full").open("wb") as full:
        tail = rdsrepl.start("slot", "tail", "g", dsn=stream.dsn, stdout=full, stderr=subprocess.PIPE)
        _, err = tail.communicate(timeout=120)
    assert tail.returncode == 1
    assert b"No space left" in err
    assert rdsrepl("slot", "tail", "g", "--until-now", dsn=stream.dsn).lines[0]["after"]["v"] == "x"


def test_a_slot_in_use_is_waited_for_and_then_refused(stream: Database, rdsrepl: Program) -> None:
    holder = rdsrepl.start("-q", "slot", "tail", "g", dsn=stream.dsn, stdout=subprocess.DEVNULL)
    active = "SELECT active_pid FROM pg_replication_slots WHERE slot_name = 'g' AND active"
    pid = wait_until(lambda: stream.run(active), "it streams")[0][0]
    refused = rdsrepl("slot", "tail", "g", "--wait-active", "1s", "-o", "json", dsn=stream.dsn)
    assert refused.code == 4
    assert refused.error["error"] == "slot_active"
    assert str(pid) in refused.error["message"]
    assert "application rdsrepl" in refused.error["message"]
    assert refused.error["sqlstate"] == "55006"
    waiting = rdsrepl.start("-q", "slot", "tail", "g", "--until-now", dsn=stream.dsn, stdout=subprocess.DEVNULL)
    time.sleep(1)
    holder.send_signal(signal.SIGTERM)
    assert holder.wait(timeout=120) == 0
    assert waiting.wait(timeout=120) == 0


def test_errors_before_the_stream_have_remedies(stream: Database, rdsrepl: Program) -> None:
    def fails(code: int, text: str, *words: str, dsn: str | None = None) -> None:
        result = rdsrepl("-o", "json", *words, dsn=dsn or stream.dsn)
        assert (result.code, result.out) == (code, ""), result.err
        assert text in result.error["message"], result.error
        assert result.error["hint"]

    stream.run("SELECT pg_create_logical_replication_slot('d', 'test_decoding')")
    stream.run("SELECT pg_create_physical_replication_slot('ph_" + stream.name[2:] + "')")
    try:
        fails(3, "no replication slot nope", "slot", "tail", "nope")
        fails(3, "publication missing does not exist", "slot", "tail", "g", "--publication", "missing")
        fails(2, "does not support --format json", "slot", "tail", "d", "--format", "json")
        fails(2, "does not support publications", "slot", "tail", "w", "--publication", "p")
        fails(2, "is physical", "slot", "tail", "ph_" + stream.name[2:])
        fails(2, "is not a sink", "slot", "tail", "g", "--to", "sqs:x")
        fails(2, "exclude each other", "slot", "tail", "g", "--until-now", "--until-lsn", "0/1")
        fails(2, "not K=V", "slot", "tail", "w", "--plugin-option", "oops")
        fails(2, "cannot go back", "slot", "tail", "g", "--from-lsn", "0/1")
        fails(
            2,
            "the end of a transaction, which is confirmed, is unknown",
            "slot",
            "tail",
            "w",
            "--plugin-option",
            "include-transaction=0",
        )
        fails(2, "whole transactions", "slot", "tail", "g", "--plugin-option", "streaming=on")
        fails(4, "belongs to database", "slot", "tail", "g", dsn=stream.server.dsn())
        fails(5, "onnection", "slot", "tail", "g", dsn="host=127.0.0.1 port=1 dbname=x user=y")
    finally:
        stream.run("SELECT pg_drop_replication_slot('ph_" + stream.name[2:] + "')")
    bad = rdsrepl("slot", "tail", "g", "--until-lsn", "garbage", dsn=stream.dsn)
    assert bad.code == 2
    assert "is not an LSN" in bad.err
    bad = rdsrepl("slot", "tail", "g", "--duration", "soon", dsn=stream.dsn)
    assert bad.code == 2
    assert "is not a duration" in bad.err


def test_a_role_without_the_privilege_is_refused(stream: Database, rdsrepl: Program) -> None:
    role = f"r_{stream.name}"
    stream.run(f"CREATE ROLE {role} LOGIN PASSWORD 'secret'")
    try:
        dsn = stream.server.dsn(user=role, dbname=stream.name)
        result = rdsrepl("slot", "tail", "g", "-o", "json", dsn=dsn, env={"PGPASSWORD": "secret"})
        assert (result.code, result.error["error"]) == (5, "denied")
        assert f" role grant {role} --user ADMIN" in result.error["hint"]
        wrong = rdsrepl("slot", "tail", "g", "-o", "json", dsn=dsn, env={"PGPASSWORD": "wrong-s3cret"})
        assert (wrong.code, wrong.error["error"]) == (5, "authentication_failed")
        assert "wrong-s3cret" not in wrong.err
    finally:
        stream.run(f"DROP ROLE {role}")


def test_a_publication_dropped_during_the_stream_is_an_error(stream: Database, rdsrepl: Program) -> None:
    tail = rdsrepl.start(
        "slot", "tail", "g", "--publication", "p", dsn=stream.dsn, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    wait_until(lambda: stream.value("SELECT active FROM pg_replication_slots WHERE slot_name = 'g'"), "it streams")
    stream.run("DROP PUBLICATION p", "INSERT INTO t (v) VALUES ('x')")
    _, err = tail.communicate(timeout=120)
    assert tail.returncode == 3
    assert b"publication" in err
    assert b"hint" in err


def test_an_invalidated_slot_is_refused(own_server: PostgresServer, make_database: Any, rdsrepl: Program) -> None:
    database = make_database(own_server)
    database.run("CREATE TABLE t (id integer)", "CREATE PUBLICATION p FOR ALL TABLES")
    database.run("SELECT pg_create_logical_replication_slot('g', 'pgoutput')")
    own_server.settings["max_slot_wal_keep_size"] = "1MB"
    own_server.reload()
    for _ in range(4):
        database.run("INSERT INTO t SELECT generate_series(1, 1000)", "SELECT pg_switch_wal()", "CHECKPOINT")
    wait_until(lambda: database.value("SELECT wal_status FROM pg_replication_slots") == "lost", "the slot is lost")
    result = rdsrepl("slot", "tail", "g", "-o", "json", dsn=database.dsn)
    assert (result.code, result.error["error"]) == (4, "slot_invalidated")
    assert " slot drop g" in result.error["hint"]
