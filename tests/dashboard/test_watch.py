"""``slot watch``: keys and snapshots on data, screens as text, and the command on a terminal and in a pipe."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from rdsrepl.config import Target
from rdsrepl.dashboard import poller, slot_table, view
from rdsrepl.dashboard.keys import decode
from rdsrepl.dashboard.poller import SlotPoller, thin_history
from rdsrepl.dashboard.state import (
    Key,
    PollFailed,
    PollStarted,
    Resized,
    Sample,
    SlotFilter,
    Snapshot,
    SnapshotTaken,
    Sort,
    State,
    next_state,
    trend,
    visible,
)
from rdsrepl.errors import ConnectionLost
from rdsrepl.lsn import Lsn
from rdsrepl.postgres import wal
from rdsrepl.postgres.activity import Sender
from rdsrepl.postgres.activity import ServerInfo as ServerFacts
from rdsrepl.postgres.slots import Slot, Walsender
from rdsrepl.postgres.wal import Wal
from rdsrepl.retention import assessment
from rdsrepl.retention.forecast import Rate, Storage
from rdsrepl.state.slot_history import Observation
from tests import ROOT
from tests.fixtures import builders

if TYPE_CHECKING:
    from rdsrepl.sandbox.servers.postgres_server import PostgresServer
    from tests.fixtures.postgres import Database, Servers
    from tests.fixtures.program import Program

NOW = datetime(2026, 11, 21, 3, tzinfo=UTC)
MIB, GIB = 1 << 20, 1 << 30
DOCS = ROOT / "docs" / "watch.md"
SERVER = ServerFacts("16.4 (Debian)", 16, "rds", False, "app", "dba", True, False, True, True, NOW)
WAL = Wal(
    "app", NOW - timedelta(days=30), False, Lsn(1000 * GIB), 1, at=NOW, version=16, slot_keep_bytes=200 * GIB,
    keep_bytes=0, next_xid=10_000,
)  # fmt: skip


def slot(name: str, *, retained: int = 0, lag: int = 0, active: bool = False, **given: Any) -> Slot:
    """Return a slot that retains RETAINED bytes and has not delivered LAG bytes of WAL."""
    sender = Walsender(4711, "cdc", "debezium", "10.0.0.7:5000", "streaming") if active else None
    columns = {
        "active": active,
        "active_pid": 4711 if active else None,
        "walsender": sender,
        "restart_lsn": Lsn(WAL.lsn - retained),
        "confirmed_flush_lsn": Lsn(WAL.lsn - lag),
        "wal_status": "reserved",
        "safe_wal_size": 200 * GIB - retained,
        "inactive_since": None if active else NOW - timedelta(hours=3, minutes=5),
        "retained_bytes": retained,
        "lag_bytes": lag,
        "catalog_xmin_age": 1_234,
    }
    return builders.slot(name, **{**columns, **given})


SLOTS = (
    slot("orders_cdc", retained=3 * GIB, lag=100 * MIB, active=True),
    slot("audit", retained=150 * GIB, lag=140 * GIB, wal_status="extended"),
    slot("old_debezium_of_a_team_that_was_dissolved_in_2019", retained=20 * GIB, lag=20 * GIB, plugin="wal2json"),
    slot("zebra", retained=MIB, active=True),
)
SENDERS = (
    Sender(4711, "cdc", "debezium", "streaming", 10 * MIB, 100 * MIB, "orders_cdc", "logical"),
    Sender(4712, None, None, None, None, None, None, None),
)


def seen(slots: tuple[Slot, ...] = SLOTS, *, seconds: float = 0, of: Wal = WAL) -> Snapshot:
    """Return a snapshot; its history has a sample of one minute before, with 1 GiB less WAL."""
    at = of.at + timedelta(seconds=seconds)
    now = replace(of, at=at)
    earlier = [
        replace(
            one, restart_lsn=Lsn(one.restart_lsn - GIB), confirmed_flush_lsn=Lsn((one.confirmed_flush_lsn or 0) - GIB)
        )
        if one.active and one.restart_lsn
        else one
        for one in slots
    ]
    before = replace(
        assessment.to_observation(now, earlier),
        at=at - timedelta(seconds=60),
        lsn=Lsn(of.lsn - GIB),
        next_xid=of.next_xid - 100,
    )
    found = assessment.assess(now, slots, (before,), storage=Storage(500 * GIB, source="CloudWatch"))
    samples = tuple(
        Sample(at - timedelta(seconds=2 * back), {one.slot_name: (one.retained_bytes or 0) - back for one in slots})
        for back in range(20, -1, -1)
    )
    return Snapshot(SERVER, found, SENDERS, samples)


def state(**given: Any) -> State:
    """Return a state with one snapshot."""
    return next_state(State("target production", **given), SnapshotTaken(seen(), NOW))


def pressed(before: State, *keys: str) -> State:
    """Press keys one after the other."""
    for key in keys:
        before = next_state(before, Key(key))
    return before


def names(of: State) -> list[str]:
    """Return the slots that are shown."""
    return [one.slot.slot_name for one in visible(of)]


def screen(of: State, width: int, height: int, *, later: float = 1) -> list[str]:
    """Return a screen as text."""
    return [line.plain.rstrip() for line in view.lines(of, width, height, NOW + timedelta(seconds=later))]


# The state


def test_sorting_and_reversing() -> None:
    """The largest value is first; names are in alphabetical order."""
    old = SLOTS[2].slot_name
    by_size = ["audit", old, "orders_cdc", "zebra"]
    first = state()
    assert names(first) == by_size  # warnings first, then by size
    assert names(pressed(first, "s")) == by_size
    assert pressed(first, "s").sort is Sort.retained
    assert names(pressed(first, "s", "s", "s", "s")) == ["audit", old, "orders_cdc", "zebra"]
    assert names(pressed(first, "s", "r")) == by_size[::-1]
    assert pressed(first, *"sssss").sort is Sort.severity
    growing = replace(seen().retention.holdings[0], growth=Rate(1e9, 60, "observed"))
    snapshot = seen()
    others = tuple(one for one in snapshot.retention.holdings if one.slot.slot_name != "zebra")
    zebra = replace(growing, slot=SLOTS[3])
    snapshot = replace(snapshot, retention=replace(snapshot.retention, holdings=(*others, zebra)))
    assert names(next_state(replace(first, sort=Sort.growth), SnapshotTaken(snapshot, NOW)))[0] == "zebra"


def test_filters() -> None:
    """All slots, inactive slots, slots with problems; the filter matches names, plugins, databases and consumers."""
    first = state()
    assert sorted(names(pressed(first, "a"))) == ["audit", SLOTS[2].slot_name]
    problems = pressed(first, "a", "a")
    assert (problems.slot_filter, "zebra" in names(problems), "audit" in names(problems)) == (
        SlotFilter.problems,
        False,
        True,
    )
    assert pressed(first, "a", "a", "a").slot_filter is SlotFilter.all
    assert names(pressed(first, "/", *"WAL2")) == [SLOTS[2].slot_name]
    assert set(names(pressed(first, "/", *"debezium"))) == {SLOTS[2].slot_name, "orders_cdc", "zebra"}
    typed = pressed(first, "/", *"qrs")  # the keys are text while a filter is typed
    assert (typed.filter, typed.typing, typed.quitting, typed.sort) == ("qrs", True, False, Sort.severity)
    kept = pressed(typed, "backspace", "enter")
    assert (kept.filter, kept.typing) == ("qr", False)
    assert pressed(kept, "/", *"xyz", "escape").filter == "qr"
    assert pressed(kept, "escape").filter == ""
    assert pressed(kept, "/", "clear").filter == ""


def test_the_selection_follows_its_slot() -> None:
    """The selection stays at the top; after a move it stays at its slot, in any order."""
    first = state()
    assert first.selected is None
    moved = pressed(first, "down", "j")
    assert moved.selected == "orders_cdc"
    assert pressed(moved, "k").selected == SLOTS[2].slot_name
    assert pressed(moved, "r").selected == "orders_cdc"
    assert pressed(moved, "G").selected == "zebra"
    assert pressed(moved, "page-up").selected == "audit"
    assert pressed(moved, "g").selected is None
    gone = next_state(moved, SnapshotTaken(seen(SLOTS[1:]), NOW))
    assert gone.removed == ("orders_cdc",)
    assert "removed: orders_cdc" in screen(gone, 80, 24)[2]
    assert pressed(gone, "down").selected == SLOTS[2].slot_name
    assert next_state(gone, SnapshotTaken(seen(), NOW)).removed == ()


def test_pausing_and_the_interval() -> None:
    """A paused screen does not change; the interval has a smallest and a largest step."""
    paused = pressed(state(), "p")
    assert next_state(paused, SnapshotTaken(seen(SLOTS[:1]), NOW)).snapshot == paused.snapshot
    assert "PAUSED" in screen(paused, 80, 24)[2]
    assert not pressed(paused, " ").paused
    assert pressed(state(interval_seconds=3.0), "+").interval_seconds == 5
    assert pressed(state(interval_seconds=3.0), "-").interval_seconds == 2
    assert pressed(state(), *"-" * 9).interval_seconds == 0.5
    assert pressed(state(), *"+" * 20).interval_seconds == 300


def test_quit_and_help() -> None:
    """``q`` quits, but in the help it closes the help, as any other key; Ctrl-C quits everywhere."""
    assert pressed(state(), "q").quitting
    helped = pressed(state(), "?")
    for key in ("q", "x", "escape", "?", "enter"):
        closed = pressed(helped, key)
        assert not closed.help and not closed.quitting
    assert pressed(helped, "quit").quitting and pressed(state(), "/", "quit").quitting
    text = "\n".join(screen(helped, 80, 40))
    for word in ("filter by text", "RETAINED", "UNDELIVERED", "Ctrl-C", "the reasons are below the table"):
        assert word in text
    assert "scroll" not in text


def test_the_help_scrolls() -> None:
    """At 24 rows every line of the help can be reached, and a larger terminal shows it from its beginning."""
    helped = pressed(state(), "?")
    top = screen(helped, 80, 24)
    assert top[3].startswith("↑ ↓  k j") and top[-1].endswith("1-20 of 26") and "scroll" in top[-1]
    for down, up in (("down", "up"), ("j", "k")):
        assert screen(pressed(helped, down), 80, 24)[3] == top[4]
        assert pressed(helped, down, up) == helped
    end = pressed(helped, "page-down")
    assert "the reasons are below the table" in screen(end, 80, 24)[-2]
    assert end == pressed(helped, *["down"] * 99) == pressed(helped, "end") == pressed(helped, "G")
    assert pressed(end, "page-up") == pressed(end, "g") == helped
    assert pressed(end, "up").help_top == end.help_top - 1
    assert next_state(end, Resized(80, 60)).help_top == 0
    assert next_state(end, Resized(60, 24)).help_top == end.help_top
    assert pressed(end, "x", "?").help_top == 0


def test_the_picture_of_the_selected_slot() -> None:
    """``v`` shows and hides it, ``w`` changes how much of the history it shows."""
    history, retention = builders.growing_slot()
    both = (*retention.holdings, *builders.growing_slot("other")[1].holdings)
    snapshot = Snapshot(SERVER, replace(retention, holdings=both), (), history=tuple(history))
    # The screen is drawn each second and at each key; the history changes less often.
    assert snapshot.series(both[0], None) is snapshot.series(both[0], None) is not snapshot.series(both[0], 3600.0)
    shown = pressed(next_state(State("x"), SnapshotTaken(snapshot, NOW)), "v")
    rows = screen(shown, 80, 24)
    text = "\n".join(rows)
    assert len(rows) == 24 and max(map(cell_len, rows)) <= 80
    assert "audit: the slot is invalidated in 4h48m" in text and "┄┄ max_slot_wal_keep_size 40.0 GB" in text
    assert "06:00" in text and "UTC" in text and "v details" in rows[-1] and "pgoutput" not in text
    assert "09:00" not in "\n".join(screen(pressed(shown, "w", "w", "w"), 80, 24))
    assert "(1 hour)" in "\n".join(screen(pressed(shown, "w", "w", "w"), 80, 24))
    assert pressed(shown, "w", "w", "w", "w").span is shown.span
    assert "no history yet" in "\n".join(screen(pressed(shown, "down"), 80, 24))
    assert "┤" not in "\n".join(screen(pressed(shown, "v"), 80, 24)) and pressed(shown, "v", "w").span is shown.span
    for width, height in ((40, 8), (40, 15), (60, 20), (120, 30), (200, 60)):
        rows = screen(shown, width, height)
        assert len(rows) == height and max(map(cell_len, rows)) <= width
    assert "too low for a picture" in "\n".join(screen(shown, 80, 12))
    ascii_only = "\n".join(screen(replace(shown, ascii_only=True), 80, 24)[6:-1])
    assert "* retained" in ascii_only and ascii_only.isascii()


def test_a_lost_connection_keeps_the_last_snapshot() -> None:
    """The screen shows the age of the data, the error and the retry, until the next snapshot."""
    lost = next_state(state(), PollFailed("the connection broke: gone", NOW, NOW + timedelta(seconds=4)))
    lost = next_state(lost, PollFailed("connection refused", NOW, NOW + timedelta(seconds=9)))
    assert lost.failure is not None and lost.failure.attempts == 2
    rows = screen(lost, 80, 24)
    assert rows[2].startswith("STALE for 1s, reconnecting in 8s (attempt 3) · connection refused")
    assert any("audit" in row for row in rows[4:8])
    assert "reconnecting (attempt 3)" in screen(next_state(lost, PollStarted(NOW)), 80, 24)[2]
    found = next_state(lost, SnapshotTaken(seen(), NOW))
    assert found.failure is None and "STALE" not in screen(found, 80, 24)[2]


def test_a_server_that_does_not_answer_is_reported() -> None:
    """The server does not answer, but the poll has not failed yet."""
    waiting = next_state(state(), PollStarted(NOW))
    assert "no answer from the server for 7s" in screen(waiting, 80, 24, later=7)[2]
    assert "no answer" not in screen(waiting, 80, 24, later=1)[2]


def test_the_trend_is_in_steps_of_time() -> None:
    """At first a step is one sample; gaps of some minutes are filled, older steps are unknown."""
    ago = [Sample(NOW - timedelta(seconds=seconds), {"a": 100 - int(seconds)}) for seconds in (6, 4, 2, 0)]
    assert trend(ago, "a", points=4, interval_seconds=2) == (94, 96, 98, 100)
    assert trend(ago, "b", points=2, interval_seconds=2) == (None, None)
    assert trend((), "a", points=4, interval_seconds=2) == ()
    sparse = [Sample(NOW - timedelta(seconds=seconds), {"a": 300 - int(seconds)}) for seconds in (270, 200, 10, 0)]
    assert trend(sparse, "a", points=9, interval_seconds=2) == (30, 30, 100, 100, 100, 100, 100, None, 300)
    assert slot_table.sparkline((None, 0, 50, 100)) == " ▁▄█"
    assert slot_table.sparkline((1000, 1001, 1000)) == "▁▁▁"


def test_a_long_history_is_thinned() -> None:
    """Recent samples are kept; of months some samples are kept, including the first and the last."""
    ages = [*range(100_000, 1000, -100), *range(1000, -1, -2)]
    history = [Observation(NOW - timedelta(seconds=age), NOW, 1, Lsn(1), 1, ()) for age in ages]
    kept = thin_history(history)
    assert kept[-1] == history[-1] and len(kept) < 200
    assert kept[0].at < NOW - timedelta(seconds=95_000)
    assert [one for one in kept if one.at >= NOW - timedelta(seconds=40)] == history[-21:]
    assert thin_history(()) == ()


@pytest.mark.parametrize(
    ("data", "keys"),
    [
        (b"jk\x1b[A\x1b[B\x1bOA", ["j", "k", "up", "down", "up"]),
        (b"\x1b[5~\x1b[6~\x1b[H\x1b[4~", ["page-up", "page-down", "home", "end"]),
        (b"\x1b[1;5A\x1b[200~x", ["x"]),
        ("ü\r\x7f\x03".encode(), ["ü", "enter", "backspace", "quit"]),
        (b"\xff\x00\x1b", ["\ufffd", "escape"]),
    ],
)
def test_keys(data: bytes, keys: list[str]) -> None:
    """All at once, or byte by byte."""
    assert decode(data, more=False) == (keys, b"")
    found: list[str] = []
    rest = b""
    for number in range(len(data)):
        more, rest = decode(rest + data[number : number + 1], more=True)
        found += more
    last, rest = decode(rest, more=False)
    assert (found + last, rest) == (keys, b"")


# The view


@pytest.mark.parametrize(("width", "height"), [(80, 24), (100, 30), (120, 30), (140, 40), (200, 50)])
def test_the_screen_fits_and_is_complete(width: int, height: int) -> None:
    """At every size: retained WAL, the first failure, its cause, the consumer, the walsenders, the keys."""
    rows = screen(state(), width, height)
    assert len(rows) == height
    assert max(cell_len(row) for row in rows) <= width
    text = "\n".join(rows)
    for word in (
        "target production",
        "RDS PostgreSQL 16.4 primary",
        "03:00:01 UTC",
        "4 slots: 1 critical, 1 warning",
        "WAL FA/0",
        "+17.1 MB/s",
        "updated 1s ago, every 2s",
        "RETAINED",
        "UNDELIVERED",
        "BREAKS IN",
        "GROWTH/s",
        "no 3h05m",
        "150 GB",
        "140 GB",
        "‼ audit",
        "! old_debezium",
        "inactive for 3h05m",
        "4711",
        "debezium",
        "UNFLUSHED",
        "q quit",
    ):
        assert word in text, word
    audit = next(row for row in rows if row[2:].startswith("audit"))
    assert "50m00s slot" in audit  # 50 GB at a GB a minute
    assert ("WAL" in rows[3].split()) == (width >= 100)
    if width >= 120:
        assert {"DELIVERY/s", "TREND"} <= set(rows[3].split())
    if width >= 140:
        assert {"PLUGIN", "wal2json"} <= set(text.split())
    hidden = next(row for row in rows if row.strip().startswith("4712"))
    assert hidden.split() == ["4712", "?", "?", "?", "?", "?", "-"]


def test_details_of_the_selected_slot() -> None:
    """The full name, also if the table shortens it; the consumer; the WAL that a drop frees."""
    rows = screen(pressed(state(), "down"), 80, 24)
    text = "\n".join(rows)
    assert f"── {SLOTS[2].slot_name} ─" in text
    assert "wal2json, database app" in text
    assert "dropping it frees 0 B of 20.0 GB; slot audit retains the rest" in text
    assert rows[5].startswith(("! old_debezium_of", "‼ old_debezium_of"))
    held = "\n".join(screen(pressed(state(), "down", "down"), 120, 40))
    assert "used by PID 4711 (user cdc, application debezium, from 10.0.0.7:5000), streaming" in held


def test_two_hundred_slots_scroll() -> None:
    """The selected slot is always visible, and the heading shows the range."""
    many = tuple(slot(f"slot_{number:03}", retained=(200 - number) * MIB) for number in range(200))
    at_top = next_state(State("x", sort=Sort.name), SnapshotTaken(seen(many), NOW))
    assert any(row.endswith(" of 200") for row in screen(at_top, 80, 24))
    chosen = at_top
    for number in range(0, 200, 7):
        chosen = replace(chosen, selected=f"slot_{number:03}")
        assert sum(f" slot_{number:03} " in row for row in screen(chosen, 80, 24)) == 2  # in the table and below
    assert names(pressed(chosen, "G"))[-1] == pressed(chosen, "G").selected == "slot_199"


def test_odd_screens() -> None:
    """No slots, no match, no snapshot yet, no permission for walsenders, names with control characters."""
    empty = next_state(State("x"), SnapshotTaken(seen(()), NOW))
    assert "no replication slots" in "\n".join(screen(empty, 80, 24))
    assert "no slot matches the filter" in "\n".join(screen(state(filter="nothing like it"), 80, 24))
    assert "no slots with problems" in "\n".join(
        screen(pressed(next_state(State("x"), SnapshotTaken(seen(SLOTS[3:]), NOW)), "a", "a"), 80, 24)
    )
    assert "connecting to x" in "\n".join(screen(State("x"), 80, 24))
    blind = next_state(State("x"), SnapshotTaken(replace(seen(), server=replace(SERVER, sees_sessions=False)), NOW))
    assert "(? requires pg_read_all_stats)" in "\n".join(screen(blind, 80, 24))
    alone = next_state(State("x"), SnapshotTaken(replace(seen(), senders=()), NOW))
    assert "── no walsenders ─" in "\n".join(screen(alone, 80, 24))
    hostile = Sender(1, "\x1b[2Jüser", "tab\tnew\nline", "streaming", 0, 0, None, None)
    text = "\n".join(screen(next_state(State("x"), SnapshotTaken(replace(seen(), senders=(hostile,)), NOW)), 80, 24))
    assert r"\x1b[2Jüs" in text and r"tab\tnew\n" in text and "\x1b" not in text
    assert screen(state(), 30, 24) == ["the terminal is too small"]


def test_colours_follow_the_severity() -> None:
    """Red is critical, yellow is a warning; the mark has the same meaning without colours."""
    lost = slot("lost_one", wal_status="lost")
    found = next_state(State("x"), SnapshotTaken(seen((*SLOTS, lost)), NOW))
    rows = view.lines(found, 120, 30, NOW)
    by_name = {row.plain[2:].split()[0]: row for row in rows if row.plain[:2] in ("‼ ", "! ", "  ") and row.plain[2:]}
    assert {str(span.style) for span in by_name["lost_one"].spans} == {"bold red"}
    assert by_name["lost_one"].plain.startswith("‼ ") and " lost " in by_name["lost_one"].plain
    assert {str(span.style) for span in by_name["audit"].spans} == {"bold red", "reverse"}
    assert not by_name["zebra"].spans


_KEYS = st.sampled_from([*"jkgGsra p+-/?xq", "up", "down", "enter", "escape", "page-down", "backspace"])


@settings(max_examples=60, deadline=None)
@given(keys=st.lists(_KEYS, max_size=12), width=st.integers(1, 220), height=st.integers(1, 70), slots=st.integers(0, 9))
def test_no_line_is_wider_than_the_terminal(keys: list[str], width: int, height: int, slots: int) -> None:
    """After any keys, at any size."""
    some = (*SLOTS, *(slot(f"more_{number}" * 6) for number in range(5)))[:slots]
    rows = screen(pressed(next_state(State("x" * 60), SnapshotTaken(seen(some), NOW)), *keys), width, height)
    assert len(rows) <= height
    assert max(cell_len(row) for row in rows) <= width


# Polls


def test_a_poll_takes_three_statements(db15: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The number does not depend on the number of slots; the first poll also sets up the session."""
    monkeypatch.setenv("RDSREPL_STATE_DIR", str(tmp_path))
    for number in range(8):
        db15.run(f"SELECT pg_create_logical_replication_slot('s{number}_{db15.name}', 'test_decoding')")
    asked: list[object] = []
    execute = psycopg.Cursor.execute

    def counted(self: Any, query: Any, *rest: Any, **options: Any) -> Any:
        asked.append(query)
        return execute(self, query, *rest, **options)

    monkeypatch.setattr(psycopg.Cursor, "execute", counted)
    live = SlotPoller(db15.target, window_seconds=60, free_bytes=10 * GIB)
    try:
        first = live.poll()
        assert len(asked) == 6
        ours = [one for one in first.retention.holdings if db15.name in one.slot.slot_name]
        assert len(ours) == 8
        asked.clear()
        second = live.poll()
        assert len(asked) == 3
    finally:
        live.close()
    assert second.retention.storage is not None and second.retention.storage.free_bytes <= 10 * GIB
    assert len(second.samples) >= 2
    assert len(list((tmp_path / "observations").iterdir())) == 1


def test_columns_without_permission_are_unknown(
    db15: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The walsender of another user is shown without its details."""
    monkeypatch.setenv("RDSREPL_STATE_DIR", str(tmp_path))
    role = f"plain_{db15.name}"
    db15.run(f"CREATE ROLE {role} LOGIN PASSWORD 'plain'")
    dsn = f"{db15.dsn} user={role} password=plain host=127.0.0.1"
    sender = db15.server.connect(dbname=db15.name, replication=True)
    live = SlotPoller(Target("x", dsn), window_seconds=60)
    try:
        pid = sender.info.backend_pid
        seen_there = [one for one in live.poll().senders or () if one.pid == pid]
        assert [(one.state, one.unsent_bytes, one.unflushed_bytes) for one in seen_there] == [(None, None, None)]
    finally:
        live.close()
        sender.close()
        db15.run(f"DROP ROLE {role}")


def test_each_connection_resolves_the_address_again(
    pg15: PostgresServer, pg18: PostgresServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each connection resolves the address again; the WAL of another server is not compared."""
    monkeypatch.setenv("RDSREPL_STATE_DIR", str(tmp_path))
    place = pg15.keywords()

    class Renewed:
        def address(self) -> Mapping[str, str]:
            return place

        keywords = address

    live = SlotPoller(Target("x", "", renew=Renewed()), window_seconds=60)
    try:
        assert live.poll().server.major == 15
        live.poll()
        place = pg18.keywords()
        live.abort()
        with pytest.raises(ConnectionLost):
            live.poll()
        moved = live.poll()
        assert (moved.server.major, moved.retention.wal_rate, len(moved.samples)) == (18, None, 1)
    finally:
        live.close()


def test_a_former_writer_is_disconnected(pg15: PostgresServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """After a failover the name can still resolve to the old writer: it is shown, and the name is resolved again."""
    monkeypatch.setenv("RDSREPL_STATE_DIR", str(tmp_path))
    monkeypatch.setattr(poller, "_WRITER_SECONDS", -1)
    asked: list[int] = []
    get = wal.get

    def standby_now(conn: Any) -> Wal:
        asked.append(conn.info.backend_pid)
        return replace(get(conn), in_recovery=len(asked) > 2)

    monkeypatch.setattr(wal, "get", standby_now)
    live = SlotPoller(pg15.target(), window_seconds=60)
    try:
        roles = [live.poll().retention.wal.in_recovery for _ in range(4)]
    finally:
        live.close()
    assert roles == [False, False, True, True]
    assert asked[0] == asked[1] == asked[2] != asked[3]


# In a pipe


def test_lines_in_a_pipe(rdsrepl: Program, db15: Database) -> None:
    """One heading, then one line for each slot and sample, all with the same number of words."""
    for name in ("one", "two"):
        db15.run(f"SELECT pg_create_logical_replication_slot('{name}_{db15.name}', 'test_decoding')")
    words = ("slot", "watch", "--limit-looks", "2", "--interval", "500ms", "--filter", db15.name, "--sort", "name")
    done = rdsrepl(*words, dsn=db15.dsn)
    assert done.code == 0, done.err
    rows = [line.split() for line in done.out.splitlines()]
    assert rows[0][:4] == ["TIME", "SEVERITY", "ACTIVE", "RETAINED"]
    assert [row[-1] for row in rows[1:]] == [f"one_{db15.name}", f"two_{db15.name}"] * 2
    assert {len(row) for row in rows} == {11}
    assert (rows[1][1], rows[1][2], rows[1][9]) == ("ok", "no", "reserved")


def test_objects_in_a_pipe(rdsrepl: Program, db15: Database) -> None:
    """One object for each sample, with the documented keys."""
    db15.run(f"SELECT pg_create_logical_replication_slot('one_{db15.name}', 'test_decoding')")
    done = rdsrepl("slot", "watch", "--limit-looks", "2", "--interval", "500ms", "-o", "json", dsn=db15.dsn)
    assert done.code == 0 and len(done.lines) == 2
    snapshot = done.lines[-1]
    assert snapshot["server"] == {
        "version": "15." + snapshot["server"]["version"][3:],
        "flavour": "postgresql",
        "role": "primary",
    }
    ours = next(one for one in snapshot["slots"] if one["slot"]["slot_name"] == f"one_{db15.name}")
    assert ours["retained_bytes"] == ours["slot"]["retained_bytes"]
    page = DOCS.read_text()
    assert [key for key in (*snapshot, *ours) if f"`{key}`" not in page] == []
    yaml = rdsrepl("slot", "watch", "--limit-looks", "1", "-o", "yaml", dsn=db15.dsn)
    assert yaml.out.startswith("---\nat: ")


def test_errors_at_the_start(rdsrepl: Program, db15: Database) -> None:
    """An interval that is too short, an invalid size, a server that is not reachable at the first poll."""
    short = rdsrepl("slot", "watch", "--interval", "100ms", dsn=db15.dsn)
    assert (short.code, "at least 500ms" in short.err) == (2, True)
    assert rdsrepl("slot", "watch", "--window", "0s", dsn=db15.dsn).code == 2
    assert rdsrepl("slot", "watch", "--free-space", "much", dsn=db15.dsn).code == 2
    away = rdsrepl("slot", "watch", "-o", "json", dsn="host=127.0.0.1 port=1 dbname=x user=x")
    assert (away.code, away.error["exit_code"]) == (5, 5)


def test_a_restart_while_lines_are_printed(rdsrepl: Program, servers: Servers) -> None:
    """The loss is reported on stderr, polling continues, and a signal ends the command with exit code 0."""
    server = servers.get(18)
    running = rdsrepl.start(
        "slot",
        "watch",
        "--interval",
        "500ms",
        "-o",
        "json",
        dsn=server.dsn(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert running.stdout is not None and running.stderr is not None
    try:
        first = json.loads(running.stdout.readline())
        server.restart("immediate")
        while json.loads(running.stdout.readline())["wal"]["started_at"] == first["wal"]["started_at"]:
            pass
        running.send_signal(signal.SIGTERM)
        told = running.communicate(timeout=120)[1].decode()
    finally:
        running.kill()
        running.wait()
    assert running.returncode == 0, told
    assert "then repeatedly" in told and told.splitlines()[-1] == "reconnected"


# On a terminal


class OnTerminal:
    """The program on a pseudo-terminal, and its screen."""

    def __init__(self, command: list[str], env: dict[str, str], *, columns: int = 80, rows: int = 24) -> None:
        self.ours, self.theirs = pty.openpty()
        self.resize(columns, rows)
        self.before = termios.tcgetattr(self.theirs)
        self.raw = b""
        self._rows: dict[int, str] = {}
        self._pending = b""
        self.process = subprocess.Popen(
            command,
            stdin=self.theirs,
            stdout=self.theirs,
            stderr=self.theirs,
            env={**env, "TERM": "xterm-256color", "LANG": "C.UTF-8"},
            preexec_fn=self._lead,
        )

    @staticmethod
    def _lead() -> None:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    def resize(self, columns: int, rows: int) -> None:
        """Resize the terminal."""
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def press(self, keys: str) -> None:
        """Send keys."""
        os.write(self.ours, keys.encode())

    @property
    def text(self) -> str:
        """The text on the screen."""
        return "\n".join(self._rows[row] for row in sorted(self._rows))

    def until(self, so: Callable[[], bool], what: str = "") -> None:
        """Read until a condition is true."""
        deadline = time.monotonic() + 120
        while not so():
            left = deadline - time.monotonic()
            assert left > 0, f"never {what}; on the screen:\n{self.text}\n{self.raw[-2000:]!r}"
            ready, _, _ = select.select([self.ours], [], [], min(left, 0.2))
            if ready:
                self._take(os.read(self.ours, 65536))

    def shows(self, *words: str) -> None:
        """Read until the screen contains all these texts."""
        self.until(lambda: all(word in self.text for word in words), f"shown: {words}")

    def ended(self) -> int:
        """Read until the program has ended; return its exit code."""
        self.until(lambda: self.process.poll() is not None, "ended")
        while select.select([self.ours], [], [], 0)[0]:
            self._take(os.read(self.ours, 65536))
        return self.process.returncode

    def restored(self) -> bool:
        """Return whether the terminal is restored: its modes, the main screen, the cursor."""
        return termios.tcgetattr(self.theirs) == self.before and self.raw.rstrip().find(b"\x1b[?1049l") > 0

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.ours)
        os.close(self.theirs)

    def _take(self, data: bytes) -> None:
        self.raw += data
        self._pending += data
        # An incomplete sequence waits for its rest.
        whole = self._pending.rfind(b"\x1b[")
        for piece in re.split(rb"(?=\x1b\[\d+;1H)|(?=\x1b\[2J)", self._pending):
            if piece.startswith(b"\x1b[2J"):
                self._rows.clear()
            elif match := re.match(rb"\x1b\[(\d+);1H(\x1b\[J)?", piece):
                row = int(match[1])
                if match[2]:
                    self._rows = {number: line for number, line in self._rows.items() if number < row}
                else:
                    plain = re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", piece)
                    self._rows[row] = plain.decode(errors="replace").rstrip()
        last = max(self._pending.rfind(b";1H"), 0)
        self._pending = self._pending[self._pending.rfind(b"\x1b[", 0, last + 1) :] if last and whole >= 0 else b""


@contextmanager
def on_terminal(rdsrepl: Program, *words: str, dsn: str, **size: int) -> Iterator[OnTerminal]:
    """Run the program on a terminal."""
    env = {name: value for name, value in rdsrepl.env.items() if name != "COLUMNS"}
    running = OnTerminal([*rdsrepl.command, "--dsn", dsn, *words], env, **size)
    try:
        yield running
    finally:
        running.close()


def test_a_session_at_the_terminal(rdsrepl: Program, db15: Database) -> None:
    """Show, filter, sort, help, resize, select, quit; then the terminal is restored."""
    for name in ("alpha", "beta"):
        db15.run(f"SELECT pg_create_logical_replication_slot('{name}_{db15.name}', 'test_decoding')")
    alpha, beta = f"alpha_{db15.name}", f"beta_{db15.name}"
    with on_terminal(rdsrepl, "slot", "watch", "--interval", "500ms", dsn=db15.dsn) as terminal:
        terminal.shows(" slot watch ", "RETAINED", alpha, beta, "q quit")
        assert termios.tcgetattr(terminal.theirs)[3] & (termios.ECHO | termios.ICANON) == 0
        terminal.press("/beta")
        terminal.shows("/beta", "Enter applies")
        terminal.until(lambda: not re.search(rf"^  {alpha}", terminal.text, re.MULTILINE), "filtered")
        terminal.press("\r")
        terminal.shows("filter beta")
        terminal.press("\x1b")
        terminal.shows(alpha, beta, "by severity")
        terminal.press("ssss")
        terminal.shows("by name")
        terminal.press(f"/{db15.name}\r\x1b[B")
        terminal.shows(f"── {beta} ─", "test_decoding, database")
        terminal.press("?")
        terminal.shows("filter by text", "closes help", "1-20 of 26")
        terminal.press("\x1b[6~")
        terminal.shows("the reasons are below", "7-26 of 26")
        terminal.press("q")
        terminal.shows(f"── {beta} ─")
        terminal.press("v")
        terminal.shows(f"{beta}: no failure is forecast", "⠤⠤ retained", "UTC", "v details")
        terminal.resize(120, 30)
        terminal.process.send_signal(signal.SIGWINCH)
        terminal.shows("DELIVERY/s", "⠤⠤ retained")
        terminal.until(lambda: max(map(len, terminal.text.splitlines())) > 100, "as wide as the terminal")
        terminal.press("v")
        terminal.shows("r reverse")
        terminal.press("p")
        terminal.shows("PAUSED")
        terminal.press(" ")
        terminal.until(lambda: "PAUSED" not in terminal.text, "going on")
        terminal.press("q")
        assert terminal.ended() == 0
        assert terminal.restored()
    assert b"\x1b[31m" not in terminal.raw  # NO_COLOR is respected


def test_a_picture_that_is_drawn_repeatedly(rdsrepl: Program, db15: Database) -> None:
    """rich replaces stdout meanwhile: the picture still has the size and the characters of the terminal."""
    db15.run(f"SELECT pg_create_logical_replication_slot('one_{db15.name}', 'test_decoding')")
    words = ("slot", "lag", f"one_{db15.name}", "--plot", "--watch", "500ms")
    with on_terminal(rdsrepl, *words, dsn=db15.dsn, columns=70) as terminal:
        terminal.until(lambda: "⠤⠤ retained".encode() in terminal.raw and b"UTC" in terminal.raw, "drawn")
        terminal.press("\x03")
        terminal.ended()
    lines = re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", terminal.raw).decode().splitlines()
    (axis, *_) = (line for line in lines if "└" in line)
    assert 60 < cell_len(axis.rstrip()) <= 70, lines


@pytest.mark.parametrize("end", ["\x03", "\x1c", signal.SIGTERM, signal.SIGHUP])
def test_every_exit_restores_the_terminal(rdsrepl: Program, db15: Database, end: str | signal.Signals) -> None:
    """Ctrl-C and signals end it with exit code 0."""
    with on_terminal(rdsrepl, "slot", "watch", dsn=db15.dsn) as terminal:
        terminal.shows("updated 0s ago")
        if isinstance(end, str):
            terminal.press(end)
        else:
            terminal.process.send_signal(end)
        assert terminal.ended() == 0
        assert terminal.restored()


def test_an_error_restores_the_terminal(rdsrepl: Program) -> None:
    """The first poll fails: the error is on the main screen."""
    with on_terminal(rdsrepl, "slot", "watch", dsn="host=127.0.0.1 port=1 dbname=x user=x") as terminal:
        assert terminal.ended() == 5
        assert terminal.restored()
    assert terminal.raw.index(b"\x1b[?1049l") < terminal.raw.index(b"error: ")


def test_a_defect_restores_the_terminal(rdsrepl: Program, db15: Database, tmp_path: Path) -> None:
    """An exception while the full screen is shown."""
    (tmp_path / "broken.py").write_text(
        "import sys\n"
        "from rdsrepl.dashboard import view\n"
        "lines, left = view.lines, [2]\n"
        "def broken(*given):\n"
        "    left[0] -= 1\n"
        "    if left[0] < 0:\n"
        "        raise RuntimeError('a bug')\n"
        "    return lines(*given)\n"
        "view.lines = broken\n"
        "from rdsrepl.__main__ import run\n"
        "run()\n"
    )
    env = {name: value for name, value in rdsrepl.env.items() if name != "COLUMNS"}
    command = [sys.executable, str(tmp_path / "broken.py"), "--dsn", db15.dsn, "slot", "watch"]
    terminal = OnTerminal(command, env)
    try:
        assert terminal.ended() == 1
        assert terminal.restored()
    finally:
        terminal.close()
    assert b"RuntimeError: a bug" in terminal.raw


def test_a_restart_while_it_watches(rdsrepl: Program, servers: Servers) -> None:
    """The last snapshot stays and is marked STALE; keys work; it continues after the server is back."""
    server = servers.get(18)
    with closing(server.connect()) as conn:
        conn.execute("SELECT pg_create_physical_replication_slot('outlives_it')")
    try:
        with on_terminal(rdsrepl, "slot", "watch", "--interval", "500ms", dsn=server.dsn()) as terminal:
            terminal.shows("outlives_it", "updated 0s ago")
            server.stop("immediate")
            terminal.shows("STALE for", "reconnecting", "outlives_it")
            terminal.press("?")
            terminal.shows("filter by text")
            terminal.press("x")
            server.start()
            terminal.until(lambda: "STALE" not in terminal.text and "updated 0s ago" in terminal.text, "fresh")
            terminal.shows("outlives_it")
            terminal.press("q")
            assert terminal.ended() == 0 and terminal.restored()
    finally:
        with closing(server.connect()) as conn:
            conn.execute("SELECT pg_drop_replication_slot('outlives_it')")


def test_a_server_that_hangs_does_not_hang_the_screen(rdsrepl: Program, db15: Database) -> None:
    """Keys work during a poll that hangs, and q does not wait for it."""
    with on_terminal(rdsrepl, "slot", "watch", "--interval", "500ms", dsn=db15.dsn) as terminal:
        terminal.shows("updated 0s ago")
        pid = db15.value(
            f"SELECT pid FROM pg_stat_activity WHERE application_name = 'rdsrepl' AND datname = '{db15.name}'"
        )
        os.kill(pid, signal.SIGSTOP)
        try:
            terminal.shows("no answer from the server for")
            terminal.press("?")
            terminal.shows("filter by text")
            terminal.press("qq")
            assert terminal.ended() == 0 and terminal.restored()
        finally:
            os.kill(pid, signal.SIGCONT)


def test_stopped_and_continued_by_a_shell(rdsrepl: Program, db15: Database) -> None:
    """Ctrl-Z restores the terminal for the shell; ``fg`` shows the screen again."""
    env = {name: value for name, value in rdsrepl.env.items() if name != "COLUMNS"}
    shell = OnTerminal(["bash", "--norc", "-i"], {**env, "PS1": "> "})
    try:
        shell.press(f"{' '.join(rdsrepl.command)} --dsn '{db15.dsn}' slot watch --interval 500ms\r")
        shell.shows("updated 0s ago")
        shell.press("\x1a")
        shell.until(lambda: b"Stopped" in shell.raw, "stopped")
        assert shell.raw.rindex(b"\x1b[?1049l") > shell.raw.rindex(b"\x1b[?1049h")
        shell.press("stty -a\r")
        shell.until(lambda: b" icanon" in shell.raw and b" echo " in shell.raw, "as it was")
        entered = shell.raw.count(b"\x1b[?1049h")
        shell.press("fg\r")
        shell.until(lambda: shell.raw.count(b"\x1b[?1049h") > entered, "back")
        shell.shows("updated 0s ago", "q quit")
        shell.press("q")
        shell.until(lambda: shell.raw.rindex(b"\x1b[?1049l") > shell.raw.rindex(b"\x1b[?1049h"), "left")
        shell.press("exit\r")
        assert shell.ended() == 0
    finally:
        shell.close()
