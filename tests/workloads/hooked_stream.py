"""The model's table with the program's own stream side of a snapshot (``IncrementalSnapshots``), in one thread.

The reader is a generator that does what ``chunk_reader`` does, and stops wherever something else may happen. Waiting is
an exception here (``Blocked``), after which it is asked again. The state survives a kill as it was saved.
"""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, TypeVar
from unittest import mock

from rdsrepl.config import Target
from rdsrepl.lsn import Lsn
from rdsrepl.snapshot import incremental, requests, shared_state
from rdsrepl.snapshot.chunk_rows import ChunkRows, RowFormat
from rdsrepl.snapshot.chunk_table import ChunkTable, KeyColumn
from rdsrepl.snapshot.incremental import MARKER_PREFIX, IncrementalSnapshots
from rdsrepl.snapshot.marked_rows import Chunk
from rdsrepl.snapshot.recorded_changes import Key, Row
from rdsrepl.snapshot.requests import Control, Request, Verb, encode
from rdsrepl.snapshot.shared_state import Restarted
from rdsrepl.snapshot.state import SnapshotState, Status
from rdsrepl.snapshot.transitions import Allowed
from rdsrepl.tail.formats.base import Values
from rdsrepl.tail.formats.json_format import JsonFormat
from rdsrepl.tail.formats.type_catalog import Catalog
from rdsrepl.tail.model import Column, Relation, Transaction
from rdsrepl.tail.timelines import Timelines
from tests.workloads.snapshot_model import EPOCH, Change, Entry, Line, Outcome, Output, Server, Tx, differences

T = TypeVar("T")
_NAME = ("public", "items")
# Compiling a format takes longer than a run.
_FORMATS: dict[tuple[Column, ...], RowFormat] = {}


class Blocked(Exception):
    """The reader waits."""


class _Condition(threading.Condition):
    def wait(self, timeout: float | None = None) -> bool:  # noqa: ARG002
        raise Blocked


class MemoryStore:
    """What is on disk: the state as it was saved last."""

    def __init__(self) -> None:
        self.saved: tuple[SnapshotState, ...] = ()

    def load(self) -> tuple[SnapshotState, ...]:
        """Return it."""
        return self.saved

    def save(self, snapshots: Sequence[SnapshotState]) -> None:
        """Replace it."""
        self.saved = tuple(snapshots)

    def close(self) -> None:
        """Nothing to release."""


class _Writer:
    """Takes the lines of changes."""

    def __init__(self, lines: list[Line]) -> None:
        self._lines = lines

    def insert(self, new: Values, lsn: str, tx: Transaction, seq: int) -> str:  # noqa: ARG002
        row = tuple(new)
        self._lines.append((int(Lsn.parse(tx.commit_lsn)), seq, "i", (str(row[0]),), None, row))
        return ""

    def update(self, new: Values, old: Values | None, whole: bool, lsn: str, tx: Transaction, seq: int) -> str:  # noqa: ARG002
        row, old_key = tuple(new), None if old is None else (str(old[0]),)
        self._lines.append((int(Lsn.parse(tx.commit_lsn)), seq, "u", (str(row[0]),), old_key, row))
        return ""

    def delete(self, old: Values, whole: bool, lsn: str, tx: Transaction, seq: int) -> str:  # noqa: ARG002
        self._lines.append((int(Lsn.parse(tx.commit_lsn)), seq, "d", (str(old[0]),), None, None))
        return ""


class HookedStream(Output):
    """A tail with its reader."""

    def __init__(self, rng: random.Random, server: Server, *, from_standby: bool) -> None:
        super().__init__(rng)
        self._server, self._from_standby = server, from_standby
        self._store = MemoryStore()
        self._start()

    def _start(self) -> None:
        self._catalog = catalog = Catalog(Target("no server", "host=127.0.0.1 port=1"))
        self.hook = IncrementalSnapshots(
            "s",
            self._store,
            catalog,
            "json",
            lambda _: None,
            allowed=Allowed(),
            is_plain=True,
            needs_state=True,
        )
        self._reader: Generator[None, None, None] | None = None
        self._run, self._least = "", 0
        self._connect()

    def _connect(self) -> None:
        self._next = self.confirmed
        self.hook.reset(Timelines(1))

    # What an operator and the surroundings do.

    def signal(self, signal: Request | Control) -> None:
        """Write a signal into the stream."""
        self._server.append(Tx(self._server.new_xid()), [], (requests.PREFIX, encode(signal)))

    def request(self, name: str) -> None:
        """Request a snapshot."""
        self.signal(Request(name, "s", ("public.items",)))

    def control(self, verb: Verb) -> None:
        """Pause or resume the first snapshot."""
        self.signal(Control(verb, "one", "s"))

    def lose_reader(self) -> None:
        """End the reader as a lost connection does."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None
            self.hook.shared.give_up(self._run)

    def store(self) -> None:
        """Let the output store some lines, and confirm them."""
        self.durable = self._rng.randrange(self.durable, len(self.lines) + 1)
        self.confirm()

    def confirm(self) -> None:
        """Confirm, and tell the program's side what is delivered."""
        super().confirm()
        if self.confirmed:
            self.hook.delivered(self._server.wal[self.confirmed - 1].end)

    # The decoder.

    def decode(self) -> None:
        """Decode some commits as one batch."""
        hook, wal = self.hook, self._server.wal
        hook.batch_begins()
        for _ in range(self._rng.randrange(1, 4)):
            if self._next < len(wal):
                self._decode(wal[self._next])
                self._next += 1
                self._ends.append((len(self.lines), self._next))
        hook.batch_ends()

    def _decode(self, entry: Entry) -> None:
        tx = Transaction.of(entry.xid % EPOCH, 1, entry.begin, 0)
        if entry.marker is not None:
            prefix, content = entry.marker
            written = self.hook.message(str(prefix), str(content).encode(), str(Lsn(entry.begin)), tx, 1)
            for text in b"".join(written.lines).splitlines():
                event = json.loads(text)
                row = tuple(map(json.dumps, event["after"].values()))
                truth = entry.rows.get(row[:1])
                self.stale += truth is None or any(a != b for a, b in zip(row, truth, strict=False))
                self.lines.append((entry.begin, event["seq"], "r", row[:1], None, row))
        for seq, change in enumerate(entry.changes, 1):
            self._change(tx, seq, change)

    def _change(self, tx: Transaction, seq: int, change: Change) -> None:
        relation, key = change.relation, change.key
        if change.op == "t":
            self.hook.truncate(relation, False, False, tx)
            self.lines.append((int(Lsn.parse(tx.commit_lsn)), seq, "t", None, None, None))
            return
        assert key is not None
        writer = self.hook.writer(relation, _Writer(self.lines))
        nulls = ("null",) * (len(relation.columns) - 1)
        if change.op == "d":
            writer.delete((*key, *nulls), False, "0/0", tx, seq)
            return
        assert change.sent is not None
        if change.op == "i":
            writer.insert(change.sent, "0/0", tx, seq)
        else:
            old = None if change.old_key is None else (*change.old_key, *nulls)
            writer.update(change.sent, old, False, "0/0", tx, seq)

    # The reader.

    def read(self) -> None:
        """Let the reader do its next step."""
        if self._reader is None:
            self._reader = self._session()
        try:
            next(self._reader)
        except (StopIteration, Restarted, Blocked):
            self._reader = None

    def _session(self) -> Generator[None, None, None]:
        hook, server = self.hook, self._server
        found = hook.shared.next()
        assert found is not None
        run, one = found
        self._run, name = run, one.request.id
        hook.shared.update(run, name, lambda one: replace(one, status=Status.running, started_at=datetime.now(UTC)))
        yield
        yield from _until(lambda: hook.shared.record(run, frozenset({_NAME})))
        if self._from_standby:
            written = server.end
            while self._replayed() < written:
                yield
            self._least = written
        else:
            invisible = server.waiting()
            while server.waiting() & invisible:
                yield
        yield from self._table(run, name)
        hook.shared.record(run, frozenset())
        hook.shared.update(run, name, lambda one: replace(one, status=Status.done))

    def _table(self, run: str, name: str) -> Generator[None, None, None]:
        hook, number, is_last = self.hook, 0, False
        cursor = hook.shared.table(name, 0).cursor
        while True:
            yield
            now = hook.shared.table(name, 0)
            if now.read_again:
                yield from _until(lambda: hook.shared.wait(run, for_all=True))
                now = hook.shared.table(name, 0)
            keys = now.read_again[:2]
            if is_last and not keys:
                yield from _until(lambda: hook.shared.wait(run, for_all=True))
                if not hook.shared.table(name, 0).read_again:
                    break
                continue
            if self._from_standby and self._replayed() < self._least:
                hook.shared.give_up(run)  # it restarted, and the connection was lost
                return
            self._least = self._replayed()
            chunk = self._chunk(name, number := number + 1, cursor, keys)
            if chunk is None:
                continue
            yield
            hook.shared.offer(run, chunk)
            yield
            hook.shared._require(run)
            content = {"run": run, "id": name, "chunk": number}
            self._server.append(Tx(self._server.new_xid()), [], (MARKER_PREFIX, json.dumps(content)))
            cursor, is_last = chunk.cursor or cursor, is_last or chunk.is_last
            yield from _until(lambda: hook.shared.wait(run))
        hook.shared.update(run, name, lambda one: replace(one, tables=(replace(one.tables[0], is_done=True),)))

    def _replayed(self) -> int:
        return self._server.wal[self._server.replayed - 1].end if self._server.replayed else 0

    def _chunk(self, name: str, number: int, cursor: Any, keys: tuple[Any, ...]) -> Chunk | None:
        server, rows, relation = self._server, self._server.rows, self._server.relation
        seen: Any = server.snapshot()
        if self._from_standby:
            seen = Lsn(self._replayed())
            server.replayed = self._rng.randrange(server.replayed, len(server.wal) + 1)
            rows = server.wal[server.replayed - 1].rows
        least = -1 if cursor is None else int(cursor[0])
        chosen = [key for key in keys if key in rows] if keys else [key for key in rows if int(key[0]) > least]
        chosen.sort(key=lambda key: int(key[0]))
        size = len(chosen) if keys else self._rng.randrange(1, 4)
        found: dict[Key, Row] = {key: rows[key] for key in chosen[:size]}
        if any(len(row) != len(relation.columns) for row in found.values()):
            return None  # the standby has not replayed the new definition
        return Chunk(
            snapshot_id=name,
            place=0,
            number=number,
            rows=ChunkRows.of(self._format(relation), list(map(_copied, found.values()))),
            seen=seen,
            cursor=None if keys or not found else chosen[:size][-1],
            size=1,
            keys=keys,
            is_last=not keys and len(found) < size,
        )

    def _format(self, relation: Relation) -> RowFormat:
        if relation.columns not in _FORMATS:
            operator = ("pg_catalog", "=")
            table = ChunkTable(
                relation, (), None, (KeyColumn("id", "bigint", operator, operator, operator, None),), False, None, None
            )
            _FORMATS[relation.columns] = RowFormat(table, JsonFormat(self._catalog), lenient=False)
        return _FORMATS[relation.columns]

    @property
    def is_done(self) -> bool:
        """Whether all snapshots are complete, and everything is decoded."""
        return (
            self._next == len(self._server.wal)
            and bool(self._store.saved)
            and all(one.status is Status.done for one in self._store.saved)
        )


def _copied(row: Row) -> bytes:
    """Return a row as COPY sends it; the values need no escapes."""
    return "\t".join(str(json.loads(value or "null")) for value in row).encode() + b"\n"


def _until(action: Callable[[], T]) -> Generator[None, None, T]:
    while True:
        try:
            return action()
        except Blocked:
            yield


@contextmanager
def _in_one_thread(most_bytes: int, most_keys: int) -> Iterator[None]:
    with (
        mock.patch.object(shared_state.threading, "Condition", _Condition),
        mock.patch.object(incremental, "_MOST_RECORDED_BYTES", most_bytes),
        mock.patch.object(shared_state, "_MOST_READ_AGAIN", most_keys),
    ):
        yield


def run(seed: int, *, from_standby: bool = False, steps: int = 200) -> Outcome:
    """Run one random interleaving with the program's own stream side."""
    rng = random.Random(seed)
    with _in_one_thread(rng.choice([64 << 20, 64 << 20, 2_500]), rng.choice([5_000, 2])):
        return _run(rng, from_standby, steps)


def _run(rng: random.Random, from_standby: bool, steps: int) -> Outcome:
    server = Server(rng)
    stream = HookedStream(rng, server, from_standby=from_standby)
    actions = [server.work] * 8 + [stream.decode] * 4 + [stream.read] * 8 + [stream.store] * 2
    begins, dies = rng.randrange(0, steps // 2), rng.choice([0.0, 0.01, 0.05, 0.1])
    pauses = rng.choice([0.0, 0.0, 0.03])
    for step in range(steps):
        if step == begins:
            stream.request("one")
        if step == begins + 60 and rng.random() < 0.3:
            stream.request("two")
        rng.choice(actions)()
        dice = rng.random()
        if dice < 0.15:
            server.replayed = rng.randrange(server.replayed, len(server.wal) + 1)
        elif dice < 0.16:
            server.replayed = rng.randrange(1, server.replayed + 1) if server.replayed else 0
        elif dice < 0.16 + dies:
            rng.choice([stream.kill, stream.kill, stream.lose_connection, stream.lose_reader])()
        elif dice < 0.16 + dies + pauses:
            stream.control(rng.choice([Verb.pause, Verb.resume]))
    server.finish()
    if pauses:
        stream.control(Verb.resume)
    for _ in range(2_000):
        stream.read()
        server.replayed = len(server.wal)
        stream.decode()
        stream.durable = len(stream.lines)
        stream.confirm()
        if stream.is_done:
            break
    wrong = differences(stream.lines, server)
    return Outcome(wrong, stream.stale, stream.is_done, stream.restarts, len(stream.lines))
