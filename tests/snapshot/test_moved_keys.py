"""Rows that move to a part of the table that was read, with a value that the stream does not have.

The stream's side of a snapshot without a server: messages, changes and chunks come in a chosen order.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from rdsrepl.config import Target
from rdsrepl.snapshot import requests, shared_state, transitions
from rdsrepl.snapshot.chunk_rows import ChunkRows, RowFormat
from rdsrepl.snapshot.chunk_table import ChunkTable, KeyColumn
from rdsrepl.snapshot.incremental import MARKER_PREFIX, IncrementalSnapshots
from rdsrepl.snapshot.marked_rows import Chunk
from rdsrepl.snapshot.requests import Control, Request, Verb, encode
from rdsrepl.snapshot.state import SnapshotState, Status, StreamIdentity
from rdsrepl.snapshot.state_file import FileStore
from rdsrepl.snapshot.transitions import Allowed
from rdsrepl.snapshot.visibility import ServerSnapshot
from rdsrepl.tail.formats.json_format import JsonFormat
from rdsrepl.tail.formats.type_catalog import Catalog
from rdsrepl.tail.model import Column, Relation, Transaction
from rdsrepl.tail.timelines import Timelines

COLUMNS = (Column("id", 23, -1, True), Column("a", 25, -1, False), Column("big", 25, -1, False))
ITEMS = Relation(16400, "public", "items", "d", COLUMNS)
TABLE = ("public", "items")


class Stream:
    """The stream's side, and a reader that does what a test says."""

    def __init__(self, path: Path) -> None:
        self.catalog = Catalog(Target("no server", "host=127.0.0.1 port=1"))
        self.format = JsonFormat(self.catalog)
        operator = ("pg_catalog", "=")
        key = KeyColumn("id", "integer", operator, operator, operator, None)
        self.rows = RowFormat(ChunkTable(ITEMS, (), None, (key,), False, None, None), self.format, lenient=False)
        self.notes: list[str] = []
        self.hook = IncrementalSnapshots(
            "s",
            FileStore(path, StreamIdentity("1", "d", "s")),
            self.catalog,
            self.format.dialect,
            self.notes.append,
            allowed=Allowed(),
            is_plain=True,
            needs_state=True,
        )
        self.xid = 700
        self.hook.reset(Timelines(1))

    def tx(self) -> Transaction:
        self.xid += 1
        return Transaction.of(self.xid, 1, self.xid * 0x1000, 0)

    def begin(self, snapshot_id: str, *, records: bool = True) -> str:
        """Start a snapshot as the reader does; return the run."""
        self.message(requests.PREFIX, encode(Request(snapshot_id, "s", ("public.items",))))
        return self.go_on(snapshot_id) if records else ""

    def go_on(self, snapshot_id: str) -> str:
        found = self.hook.shared.next()
        assert found is not None and found[1].request.id == snapshot_id
        run = found[0]
        self.hook.shared.update(
            run, snapshot_id, lambda one: replace(one, status=Status.running, started_at=datetime.now(UTC))
        )
        self.hook.shared.record(run, frozenset({TABLE}))
        return run

    def message(self, prefix: str, content: str) -> list[Any]:
        self.hook.batch_begins()
        tx = self.tx()
        lines = self.hook.message(prefix, content.encode(), "0/0", tx, 1)
        self.hook.batch_ends()
        return [json.loads(line) for line in b"".join(lines.lines).splitlines()]

    def move(self, old: int, new: int) -> None:
        """Decode an update that moves a key and leaves the large value alone."""
        self.hook.batch_begins()
        writer = self.hook.writer(ITEMS, self.format.writer(ITEMS))
        writer.update((str(new), '"moved"', None), (str(old), "null", "null"), False, "0/0", self.tx(), 1)
        self.hook.batch_ends()

    def offer(self, run: str, snapshot_id: str, number: int, ids: range, *, keys: tuple[int, ...] = ()) -> None:
        """Let a chunk wait whose snapshot sees everything up to now."""
        rows = ChunkRows.of(self.rows, [b"%d\tread\tbig\n" % n for n in ids])
        cursor = None if keys or not ids else (str(ids[-1]),)
        self.hook.shared.offer(
            run,
            Chunk(
                snapshot_id=snapshot_id,
                place=0,
                number=number,
                rows=rows,
                seen=ServerSnapshot(self.xid + 1, self.xid + 1, frozenset()),
                cursor=cursor,
                size=1,
                keys=tuple((str(key),) for key in keys),
                is_last=not keys and len(ids) < 10,
            ),
        )

    def marker(self, run: str, snapshot_id: str, number: int) -> list[Any]:
        return self.message(MARKER_PREFIX, json.dumps({"run": run, "id": snapshot_id, "chunk": number}))

    def state(self, snapshot_id: str) -> SnapshotState:
        return next(one for one in self.hook.shared._snapshots if one.request.id == snapshot_id)

    def read_again(self, snapshot_id: str = "one") -> tuple[Any, ...]:
        return self.state(snapshot_id).tables[0].read_again


@pytest.fixture
def stream(tmp_path: Path) -> Iterator[Stream]:
    made = Stream(tmp_path / "state.json")
    yield made
    made.hook.shared.end()
    made.hook.shared.close()


def test_a_move_is_noted_before_it_can_be_confirmed(stream: Stream, tmp_path: Path) -> None:
    run = stream.begin("one")
    stream.offer(run, "one", 1, range(1, 11))
    stream.marker(run, "one", 1)
    stream.move(25, 0)
    assert stream.read_again() == (("0",),)
    assert '"read_again": [["0"]]' in json.dumps(json.loads((tmp_path / "state.json").read_text()))


def test_a_move_that_a_waiting_chunk_sees_is_noted(stream: Stream) -> None:
    """Its transaction need not be recorded; but the chunk has not the row, and no later one does."""
    run = stream.begin("one")
    stream.offer(run, "one", 1, range(1, 11))
    stream.marker(run, "one", 1)
    stream.xid += 1  # the move commits and is sent late: the second chunk sees it
    stream.offer(run, "one", 2, range(11, 21))
    stream.xid -= 1
    stream.move(25, 0)
    assert stream.read_again() == (("0",),)


def test_a_move_to_a_key_that_is_being_read_again_stays_noted(stream: Stream) -> None:
    """The chunk is written, and the output has it later than the stream has the second move."""
    run = stream.begin("one")
    stream.move(25, 0)
    stream.offer(run, "one", 1, range(1), keys=(0,))
    assert len(stream.marker(run, "one", 1)) == 1
    stream.move(26, 0)
    stream.hook.delivered((stream.xid + 1) * 0x1000)
    stream.hook.shared.wait(run, for_all=True)
    assert stream.read_again() == (("0",),)
    stream.offer(run, "one", 2, range(1), keys=(0,))
    stream.marker(run, "one", 2)
    stream.hook.delivered((stream.xid + 1) * 0x1000)
    stream.hook.shared.wait(run, for_all=True)
    assert stream.read_again() == ()


@pytest.mark.parametrize("what", ["reconnected", "paused", "failed reader"])
def test_a_move_is_noted_while_no_chunk_is_read(stream: Stream, what: str) -> None:
    run = stream.begin("one")
    stream.offer(run, "one", 1, range(1, 11))
    stream.marker(run, "one", 1)
    stream.hook.delivered((stream.xid + 1) * 0x1000)
    stream.hook.shared.wait(run, for_all=True)
    if what == "reconnected":
        stream.hook.reset(Timelines(1))
    elif what == "paused":
        stream.message(requests.PREFIX, encode(Control(Verb.pause, "one", "s")))
    else:
        stream.hook.shared.give_up(run)
    stream.move(25, 0)
    assert stream.read_again() == (("0",),)


def test_a_second_snapshot_of_the_table_notes_its_own_moves(stream: Stream) -> None:
    run = stream.begin("one")
    stream.offer(run, "one", 1, range(1, 4))
    stream.marker(run, "one", 1)
    stream.hook.delivered((stream.xid + 1) * 0x1000)
    stream.hook.shared.wait(run, for_all=True)
    stream.move(2, 20)
    assert stream.read_again() == (), "a consumer has every row"
    stream.hook.shared.update(run, "one", lambda one: replace(one, status=Status.done))
    run = stream.begin("two")
    stream.move(25, 0)
    assert stream.read_again("two") == (("0",),)


def test_a_failed_snapshot_is_read_from_the_start(stream: Stream) -> None:
    """Nothing noted the moves meanwhile."""
    run = stream.begin("one")
    stream.offer(run, "one", 1, range(1, 11))
    stream.marker(run, "one", 1)
    stream.hook.delivered((stream.xid + 1) * 0x1000)
    stream.hook.shared.wait(run, for_all=True)
    failed = replace(stream.state("one"), status=Status.failed)
    assert failed.tables[0].cursor == ("10",)
    resumed = transitions.after([failed], Control(Verb.resume, "one", "s"), now=datetime.now(UTC)).snapshots[0]
    assert resumed.status is Status.running
    assert resumed.tables[0].cursor is None


def test_the_chunks_of_a_failed_reader_are_not_written(stream: Stream) -> None:
    run = stream.begin("one")
    stream.offer(run, "one", 1, range(1, 11))
    stream.hook.shared.give_up(run)
    again = stream.go_on("one")
    assert again != run
    stream.offer(again, "one", 1, range(1, 6))
    assert stream.marker(run, "one", 1) == [], "a marker of the reader that failed"
    assert len(stream.marker(again, "one", 1)) == 5


def test_a_table_with_too_many_moves_is_read_from_the_start(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_state, "_MOST_READ_AGAIN", 3)
    run = stream.begin("one")
    stream.offer(run, "one", 1, range(1, 11))
    stream.marker(run, "one", 1)
    for number in range(4):
        stream.move(20 + number, -number)
    stream.hook.delivered((stream.xid + 1) * 0x1000)
    again = stream.go_on("one")
    assert again != run
    table = stream.state("one").tables[0]
    assert (table.cursor, table.read_again) == (None, ()), "the chunk that the output has now does not count"


def test_a_move_before_the_first_chunk_is_not_noted(stream: Stream) -> None:
    """Its transaction was decoded before recording began, and the first chunk waits until that is visible."""
    stream.begin("one", records=False)
    found = stream.hook.shared.next()
    assert found is not None
    stream.hook.shared.update(found[0], "one", lambda one: replace(one, status=Status.running))
    stream.move(25, 0)
    assert stream.read_again() == ()
    stream.hook.shared.record(found[0], frozenset({TABLE}))
    stream.move(26, 1)
    assert stream.read_again() == (("1",),)


def test_a_move_behind_a_chunk_that_the_output_has_later_is_noted(stream: Stream) -> None:
    run = stream.begin("one")
    stream.offer(run, "one", 1, range(1, 11))
    stream.marker(run, "one", 1)
    stream.message(requests.PREFIX, encode(Control(Verb.pause, "one", "s")))
    stream.move(25, 0)
    assert stream.state("one").tables[0].cursor is None
    assert stream.read_again() == (("0",),)
