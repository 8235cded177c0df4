"""The changes of a table without a key in random orders of commits, blocks, kills and pauses, without a server."""

from __future__ import annotations

import json
import random
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from rdsrepl.config import Target
from rdsrepl.lsn import Lsn
from rdsrepl.snapshot import held_changes, incremental
from rdsrepl.snapshot.chunk_rows import ChunkRows, RowFormat
from rdsrepl.snapshot.chunk_table import ChunkTable
from rdsrepl.snapshot.held_changes import HeldChanges
from rdsrepl.snapshot.incremental import MARKER_PREFIX, IncrementalSnapshots
from rdsrepl.snapshot.marked_rows import TableBlock
from rdsrepl.snapshot.requests import PREFIX, Method, Request, encode
from rdsrepl.snapshot.state import SnapshotState, Status, TableState
from rdsrepl.snapshot.transitions import Allowed
from rdsrepl.tail.formats.json_format import JsonFormat
from rdsrepl.tail.formats.type_catalog import Catalog
from rdsrepl.tail.model import Column, Relation, Transaction
from rdsrepl.tail.timelines import Timelines
from tests.workloads.hooked_stream import MemoryStore

LOG = Relation(16400, "public", "log", "f", (Column("a", 23, -1, False),), key=frozenset())
NAME = ("public", "log")


@dataclass(frozen=True)
class Commit:
    """A committed transaction: its changes are (old, new), (None, None) is a TRUNCATE; or it is a message."""

    begin: int
    changes: tuple[tuple[int | None, int | None], ...] = ()
    message: tuple[str, str] | None = None


class Simulation:
    """A server with one table, a stream of it, and a reader; RNG chooses what is next."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.wal: list[Commit] = []
        self.rows: Counter[int] = Counter({n % 5: 6 for n in range(12)})
        self.lines: list[dict[str, Any]] = []
        self.next = self.confirmed = 0
        self.restarts = 0
        self.store = MemoryStore()
        self.hook: IncrementalSnapshots | None = None
        self.starts()

    def starts(self) -> None:
        """Begin with nothing but the saved state; the stream comes again from a position that was confirmed."""
        if self.hook is not None:
            self.hook.close()
            self.restarts += 1
        self.next = self.rng.randrange(self.confirmed, self.next + 1)
        catalog = Catalog(Target("no server", ""))
        self.format = JsonFormat(catalog)
        self.hook = IncrementalSnapshots(
            "s",
            self.store,
            catalog,
            "json",
            lambda _: None,
            allowed=Allowed(truncate=True),
            is_plain=True,
            needs_state=True,
        )
        self.hook.reset(Timelines(1))
        self.reader: Any = None

    def commit(self, message: tuple[str, str] | None = None) -> None:
        changes: list[tuple[int | None, int | None]] = []
        for _ in range(0 if message else self.rng.randrange(1, 4)):
            old = self.rng.choice([None, *self.rows.elements()])
            new = self.rng.choice([None, self.rng.randrange(5)])
            if old is None and new is None:
                if self.rng.random() < 0.9:
                    continue
                self.rows.clear()
            changes.append((old, new))
            if old is not None:
                self.rows -= Counter([old])
            if new is not None:
                self.rows[new] += 1
        self.wal.append(Commit(100 * (len(self.wal) + 1), tuple(changes), message))

    def decode(self) -> None:
        self.hook.batch_begins()
        writer = self.hook.writer(LOG, self.format.writer(LOG))
        for commit in self.wal[self.next : self.next + self.rng.randrange(1, 4)]:
            self.next += 1
            tx = Transaction.of(7, 1, commit.begin, 0)
            if commit.message is not None:
                prefix, content = commit.message
                found = self.hook.message(prefix, content.encode(), "0/1", tx, 1)
                self.lines += map(json.loads, b"".join(found.lines).splitlines())
                assert len(b"".join(found.lines).splitlines()) == found.rows
            for seq, (old, new) in enumerate(commit.changes, 1):
                if old is None and new is None:
                    if not self.hook.truncate(LOG, False, False, tx):
                        self.lines.append(json.loads(self.format.truncate(LOG, False, False, "0/1", tx, seq)))
                    continue
                if old is None:
                    text = writer.insert((str(new), 0), "0/1", tx, seq)
                elif new is None:
                    text = writer.delete((str(old), 0), True, "0/1", tx, seq)
                else:
                    text = writer.update((str(new), 0), (str(old), 0), True, "0/1", tx, seq)
                self.lines += map(json.loads, text.splitlines())
        self.hook.batch_ends()
        if self.rng.random() < 0.7:
            self.hook.delivered(100 * self.next + 1)
            if self.rng.random() < 0.05:
                self.confirmed = self.next

    def read(self) -> None:
        """Let the reader do its next step, if it need not wait."""
        self.reader = self.reader or self.session()
        next(self.reader, None)

    def session(self) -> Any:
        shared, store = self.hook.shared, self.store
        wanted = [one for one in store.saved if one.status in (Status.requested, Status.running)]
        if not wanted or shared._run is None:
            self.reader = None
            return
        run = shared._run
        table = replace(wanted[0].tables[0], method=Method.slot)
        shared.update(run, "one", lambda one: replace(one, status=Status.running, tables=(table,)))
        held = HeldChanges(NAME, Lsn(100 * len(self.wal)))
        yield
        shared.record(run, frozenset(), held)
        for _ in range(self.rng.randrange(8)):
            yield
        held.since = Lsn(100 * len(self.wal) + 50)  # whatever comes later has a later commit record
        rows = list(self.rows.elements())
        fmt = RowFormat(ChunkTable(LOG, (), None, (), False, None, None), self.format, lenient=False)
        number, is_first = 0, True
        while not held.is_over:
            yield
            copied, rows = rows[:1], rows[1:]
            number += 1
            block = TableBlock(
                "one", 0, number, ChunkRows.of(fmt, [b"%d\n" % n for n in copied]), 1, held, is_first, not rows
            )
            is_first = False
            shared.offer(run, block)
            self.commit((MARKER_PREFIX, json.dumps({"run": run, "id": "one", "chunk": number})))
            for _ in range(self.rng.randrange(3)):
                yield
        while shared._written or shared._waiting:
            yield
            with shared._changed:
                shared._take_delivered()
        shared.update(run, "one", lambda one: replace(one, status=Status.done, tables=(
            replace(one.tables[0], is_done=True),)))  # fmt: skip

    def is_done(self) -> bool:
        return bool(self.store.saved) and self.store.saved[0].status is Status.done


def consumer(lines: Sequence[dict[str, Any]]) -> Counter[int]:
    """Return the rows that a consumer has; it leaves out lines that come again."""
    rows: Counter[int] = Counter()
    seen: set[tuple[str, int]] = set()
    for event in lines:
        if (identity := (event["commit_lsn"], event["seq"])) in seen:
            continue
        seen.add(identity)
        if event["op"] == "t":
            rows.clear()
        if event["before"]:
            rows[event["before"]["a"]] -= 1
        if event["after"]:
            rows[event["after"]["a"]] += 1
    return Counter({value: count for value, count in rows.items() if count})


def run(seed: int) -> Simulation:
    rng = random.Random(seed)
    one = Simulation(rng)
    one.commit()
    one.commit((PREFIX, encode(Request("one", "s", ("public.log",), method=Method.slot))))
    kills = rng.choice([0, 0, 2, 5])
    for step in range(400):
        dice = rng.random()
        if dice < 0.3 and step < 300:
            one.commit()
        elif dice < 0.65:
            one.decode()
        elif dice < 0.96:
            one.read()
        elif kills:
            kills -= 1
            one.starts()
    for _ in range(200):
        one.decode()
        one.read()
    one.hook.close()
    return one


@pytest.mark.parametrize("most_bytes", [32 << 20, 300, 0], ids=["in memory", "both", "in a file"])
def test_the_rows_then_the_changes_since(monkeypatch: pytest.MonkeyPatch, most_bytes: int) -> None:
    monkeypatch.setattr(held_changes, "_MOST_BYTES", most_bytes)
    monkeypatch.setattr(incremental, "_MOST_RELEASED_BYTES", 200)
    withheld = 0
    for seed in range(20):
        one = run(seed)
        assert one.is_done(), seed
        assert consumer(one.lines) == one.rows, seed
        places = [(int(Lsn.parse(line["commit_lsn"])), line["seq"]) for line in one.lines]
        assert one.restarts or places == sorted(set(places)), seed
        withheld += sum("snapshot" in line and line["op"] in "cud" for line in one.lines)
    assert withheld > 60, "hardly a change came while rows were written"


@pytest.mark.parametrize("what", ["forgets nothing", "withholds nothing"])
def test_the_simulation_finds_a_wrong_order(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    if what == "forgets nothing":
        monkeypatch.setattr(HeldChanges, "since", property(lambda _: 0, lambda *_: None), raising=False)
    else:
        monkeypatch.setattr(HeldChanges, "is_withheld", property(lambda _: False, lambda *_: None), raising=False)
    assert any(consumer((one := run(seed)).lines) != one.rows for seed in range(60))


def test_changes_that_the_output_has_under_another_identity_do_not_come_again() -> None:
    """The copy is complete, and the server sends again what was not confirmed: the output would have changes twice."""
    one = Simulation(random.Random(1))
    done = TableState("public.log", is_done=True, timeline=1, marker=2_000, method=Method.slot)
    request = Request("one", "s", ("public.log",), method=Method.slot)
    one.store.saved = (SnapshotState(request, Status.done, tables=(done,), ended_at=datetime.now(UTC)),)
    one.starts()
    hook = one.hook
    assert hook is not None
    hook.batch_begins()
    plain = one.format.writer(LOG)
    writer = hook.writer(LOG, plain)
    before, after = Transaction.of(7, 1, 1_999, 0), Transaction.of(8, 1, 2_000, 0)
    assert writer.insert(("1", 0), "0/1", before, 1) == writer.delete(("1", 0), True, "0/1", before, 2) == ""
    assert writer.update(("1", 0), ("2", 0), True, "0/1", before, 3) == ""
    assert hook.truncate(LOG, False, False, before)
    assert not hook.truncate(LOG, False, False, after)
    assert json.loads(writer.insert(("1", 0), "0/1", after, 1))["after"] == {"a": 1}
    hook.batch_ends()
    assert hook.batch_begins(), "the writers are asked for again"
    assert hook.writer(LOG, plain) is plain
    hook.batch_ends()
    other = Timelines(2, ((1, 1_500),))
    hook.reset(other)
    assert not hook.truncate(LOG, False, False, before), "a server without the marker: the table is copied again"


def test_a_full_disk_ends_the_copy_and_not_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_changes, "_MOST_BYTES", 0)
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: Path("/dev/full").open("r+b", buffering=0))  # noqa: SIM115
    held = HeldChanges(NAME, Lsn(0))
    fmt = JsonFormat(Catalog(Target("no server", "")))
    writer = held.writer(LOG, fmt.writer(LOG))
    held.is_withheld = True
    tx = Transaction.of(7, 1, 100, 0)
    assert json.loads(writer.insert(("1", 0), "0/1", tx, 1))["after"] == {"a": 1}, "it is written as usual"
    assert held.is_over
    assert held.failure is not None and "No space left on device" in held.failure and "TMPDIR" in held.failure
