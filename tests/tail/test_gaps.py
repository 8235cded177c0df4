"""A slot that is moved or recreated under the tail, or between two runs, is detected: missing changes are reported."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rdsrepl.lsn import Lsn
from rdsrepl.state import streamed_slots
from rdsrepl.state.streamed_slots import SlotFingerprint
from rdsrepl.tail.ledger import Ledger
from tests.fixtures.postgres import confirmed_lsn
from tests.fixtures.program import read_json_lines
from tests.fixtures.waiting import wait_until

if TYPE_CHECKING:
    from tests.fixtures.postgres import Database
    from tests.fixtures.program import Program

CREATE = "SELECT pg_create_logical_replication_slot('g', 'pgoutput')"
ROWS = "INSERT INTO t (v) SELECT 'missing' FROM generate_series(1, 100)"


@pytest.fixture
def stream(db18: Database) -> Database:
    """A table, its publication, and a slot."""
    db18.run("CREATE TABLE t (id bigserial PRIMARY KEY, v text)", "CREATE PUBLICATION p FOR TABLE t", CREATE)
    return db18


@contextmanager
def stopped(database: Database, tail: subprocess.Popen[bytes]) -> Iterator[None]:
    """Close the tail's connection while its process is stopped, so that it reconnects only after the block."""
    tail.send_signal(signal.SIGSTOP)
    try:
        database.run("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = 'g'")
        free = "SELECT 1 FROM pg_replication_slots WHERE slot_name = 'g' AND NOT active"
        wait_until(lambda: database.run(free), "the slot is free")
        yield
    finally:
        tail.send_signal(signal.SIGCONT)


def recreated(database: Database) -> None:
    database.run(ROWS, "SELECT pg_drop_replication_slot('g')", CREATE)


def advanced(database: Database) -> None:
    database.run(ROWS, "SELECT pg_replication_slot_advance('g', pg_current_wal_lsn())")


def consumed(database: Database) -> None:
    database.run(
        ROWS,
        "SELECT count(*) FROM pg_logical_slot_get_binary_changes('g', NULL, NULL, 'proto_version', '1', "
        "'publication_names', 'p')",
    )


def _has(path: Path, text: str) -> bool:
    return text in path.read_text()


def test_a_slot_that_is_ahead_at_a_reconnect_stops_the_run(stream: Database, rdsrepl: Program, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    words = ("slot", "tail", "g", "-f", "json")
    moves = ((recreated, ""), (advanced, ""), (consumed, ""), (advanced, "--accept-gap"))
    for number, (move, accept) in enumerate(moves):
        after = f"after {number}"
        more = [accept] if accept else []
        with out.open("wb") as file:
            tail = rdsrepl.start(*words, *more, dsn=stream.dsn, stdout=file, stderr=subprocess.PIPE)
            stream.run("INSERT INTO t (v) VALUES ('before')")
            wait_until(lambda: "before" in out.read_text(), "the first change")
            with stopped(stream, tail):
                move(stream)
                stream.run(f"INSERT INTO t (v) VALUES ('{after}')")
            if accept:
                wait_until(partial(_has, out, after), "the change after the gap")
                tail.send_signal(signal.SIGINT)
            _, err = tail.communicate(timeout=120)
        text, values = err.decode(), [event["after"]["v"] for event in read_json_lines(out)]
        assert "were not delivered" in text
        assert "recreated" in text
        if accept:
            assert (tail.returncode, values[-2:]) == (0, ["before", after]), text
        else:
            # With --accept-gap, the changes after the gap of the earlier runs come first.
            assert (tail.returncode, values[-1]) == (4, "before"), text
            assert "missing" not in values
            assert "--accept-gap" in text


def test_a_slot_recreated_between_two_runs(stream: Database, rdsrepl: Program) -> None:
    words = ("slot", "tail", "g", "--until-now", "-f", "json")
    stream.run(ROWS)
    assert len(rdsrepl(*words, dsn=stream.dsn).lines) == 100
    recreated(stream)
    stream.run("INSERT INTO t (v) VALUES ('after')")
    refused = rdsrepl(*words, "-o", "json", dsn=stream.dsn)
    assert (refused.code, refused.out, refused.error["error"]) == (4, "", "slot_moved")
    assert "dropped and recreated" in refused.error["message"]
    # peek consumes nothing and is not refused.
    assert len(rdsrepl("slot", "peek", "g", "-f", "json", dsn=stream.dsn).lines) == 1
    accepted = rdsrepl(*words, "--accept-gap", dsn=stream.dsn)
    assert (accepted.code, len(accepted.lines)) == (0, 1)
    assert "were not delivered" in accepted.err
    again = rdsrepl(*words, dsn=stream.dsn)
    assert (again.code, again.out) == (0, "")
    assert "slot g" not in again.err.replace("slot g: 0 changes", "")
    # The state directory records a slot that this tool dropped.
    stream.run(ROWS)
    assert rdsrepl("slot", "drop", "g", "--yes", dsn=stream.dsn).code == 0
    stream.run(CREATE, "INSERT INTO t (v) VALUES ('after')")
    assert rdsrepl(*words, dsn=stream.dsn).code == 0


def test_two_machines_that_take_turns(stream: Database, rdsrepl: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has a state of its own: that the other one moved the slot is told, and no alarm; nor is a copied state."""
    here, there = ({"XDG_STATE_HOME": str(rdsrepl.home / name)} for name in ("here", "there"))
    words = ("slot", "tail", "g", "--until-now", "-f", "json")
    for number, env in enumerate((here, there, here)):
        stream.run("INSERT INTO t (v) VALUES ('x')")
        result = rdsrepl(*words, dsn=stream.dsn, env=env)
        assert (result.code, len(result.lines)) == (0, 1)
        assert "warning" not in result.err
        assert ("moved from" in result.err) == (number >= 2)
    (path,) = (rdsrepl.home / "here" / "rdsrepl" / "streamed").iterdir()
    row = json.loads(path.read_text())
    system_id, old = row["system_id"], {**row, "confirmed_lsn": "0/1"}
    load = partial(streamed_slots.load, system_id, "g")
    monkeypatch.setenv("RDSREPL_STATE_DIR", str(rdsrepl.home / "here" / "rdsrepl"))
    assert load() is not None
    for damage in ({**row, "machine": "another"}, {**row, "final": False, "boot": "another"}, {"slot": "g"}, [], "{"):
        path.write_text(damage if isinstance(damage, str) else json.dumps(damage))
        assert load() is None
    path.write_text(json.dumps({**old, "machine": "another"}))
    assert "moved from" not in rdsrepl(*words, dsn=stream.dsn, env=here).err
    path.unlink()
    path.mkdir()
    (path / "in the way").touch()
    stream.run("INSERT INTO t (v) VALUES ('x')")
    assert len(rdsrepl(*words, dsn=stream.dsn, env=here).lines) == 1


def test_a_kill_leaves_no_false_alarm(stream: Database, rdsrepl: Program, tmp_path: Path) -> None:
    """What is remembered is at or beyond what the server was told, whenever the process dies."""
    out = tmp_path / "out.jsonl"
    before = confirmed_lsn(stream, "g")
    with out.open("ab") as file:
        tail = rdsrepl.start("slot", "tail", "g", dsn=stream.dsn, stdout=file, stderr=subprocess.PIPE)
        stream.run("INSERT INTO t (v) VALUES ('x')")
        wait_until(lambda: read_json_lines(out) and confirmed_lsn(stream, "g") > before, "the change is confirmed")
        tail.kill()
        tail.communicate()
    again = rdsrepl("slot", "tail", "g", "--until-now", "-f", "json", dsn=stream.dsn)
    assert (again.code, "moved" in again.err) == (0, False)
    (path,) = (rdsrepl.home / "state" / "rdsrepl" / "streamed").iterdir()
    assert int(Lsn.parse(json.loads(path.read_text())["confirmed_lsn"])) >= confirmed_lsn(stream, "g")


MARKS = st.builds(
    SlotFingerprint,
    st.none() | st.integers(0, 1 << 20),
    st.none() | st.integers(0, (1 << 32) - 1),
    st.none() | st.integers(0, 1 << 20),
    st.none(),
    st.none() | st.just("2026-11-21 00:00:00+00"),
)


@given(MARKS, st.integers(0, 1 << 20), st.integers(0, (1 << 31) - 1), st.integers(0, 1 << 20))
def test_the_same_slot_is_never_taken_for_another(mark: SlotFingerprint, wal: int, xids: int, decoded: int) -> None:
    """Whatever it does: it only moves forward."""
    later = SlotFingerprint(
        None if mark.restart_lsn is None else mark.restart_lsn + wal,
        None if mark.catalog_xmin is None else (mark.catalog_xmin + xids) % (1 << 32),
        None if mark.total_bytes is None else mark.total_bytes + decoded,
        mark.stats_reset,
        mark.started_at,
    )
    assert not mark.is_different_slot(later)


def test_marks() -> None:
    mark = SlotFingerprint(1000, 700, 5000, None, "start")
    assert mark.is_different_slot(SlotFingerprint(999, 700, 5000, None, "start"))
    assert mark.is_different_slot(SlotFingerprint(1000, 699, 5000, None, "start"))
    assert mark.is_different_slot(SlotFingerprint(1000, 700, 4999, None, "start"))
    # A reset and a crash set the counter back as well.
    assert not mark.is_different_slot(SlotFingerprint(1000, 700, 0, "reset", "start"))
    assert not mark.is_different_slot(SlotFingerprint(1000, 700, 0, None, "another start"))


@given(st.lists(st.tuples(st.sampled_from(["change", "commit", "keepalive", "lose"]), st.integers(1, 50)), max_size=40))
def test_what_was_received_is_no_more_than_was_handed_over(events: list[tuple[str, int]]) -> None:
    ledger = Ledger()
    ledger.begin(100)
    lsn, is_open, sure = 100, False, 100
    for event, step in events:
        lsn += step
        if event == "change":
            ledger.hand_over(None, in_transaction=True)
            is_open = True
        elif event == "commit":
            ledger.hand_over(lsn, in_transaction=False)
            is_open, sure = False, lsn
        elif event == "keepalive":
            ledger.keepalive(lsn)
            sure = sure if is_open else lsn
        else:
            ledger.connection_lost(ledger.handed_over)
            is_open, lsn = False, sure
        assert ledger.received_lsn == sure


def test_state_files_are_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RDSREPL_STATE_DIR", str(tmp_path / "state"))
    from datetime import UTC, datetime

    mark = SlotFingerprint(1, 2, 3, None, "x")
    streamed = streamed_slots.StreamedSlot(datetime.now(UTC), 1, Lsn(5), ("p",), mark, is_final=True)
    assert streamed_slots.save("123", "g", streamed)
    assert streamed_slots.load("123", "g") == streamed
    assert (streamed_slots.load("124", "g"), streamed_slots.load("123", "h")) == (None, None)
    (path,) = (tmp_path / "state" / "streamed").iterdir()
    assert (path.stat().st_mode & 0o077, path.parent.stat().st_mode & 0o077) == (0, 0)
    streamed_slots.delete("123", "g")
    assert streamed_slots.load("123", "g") is None
