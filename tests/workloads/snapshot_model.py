"""A model of a table, its transactions, and a stream that gets the table's rows by chunks while both go on.

The model has what the rules of a snapshot depend on, and random order in everything that has no order: transactions
commit and become visible later (synchronous replication), the decoder is behind, a standby replays late, the process is
killed, the connection is lost, keys move, the definition of the table changes. ``RecordedChanges`` and
``ServerSnapshot`` are the real ones. A consumer that begins with nothing folds the output; its table must be the
source's.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import Any

from rdsrepl.snapshot.recorded_changes import (
    Applied,
    ColumnsChanged,
    Key,
    RecordedChanges,
    Row,
    must_read_again,
)
from rdsrepl.snapshot.visibility import ServerSnapshot
from rdsrepl.tail.model import Column, Relation, Transaction

EPOCH = 1 << 32
_COLUMNS = (Column("id", 20, -1, True), Column("a", 25, -1, False), Column("big", 25, -1, False))
_KEYS = 9
_DEFAULT = '"default"'

Line = tuple[int, int, str, Key | None, Key | None, Row | None]  # commit LSN, seq, op, key, old key, row


@dataclass(frozen=True)
class Rules:
    """How a snapshot is merged with the stream; the defaults are ours.

    Attributes:
        name: of the variant.
        merge: apply the recorded changes; or ``drop`` what changed between two markers; or ``none``.
        barrier: wait at the beginning of recording until what committed before is visible.
        reads_moved: rows with moved keys and missing values are read again.
        wide_ids: transaction ids are compared as what they are, 64 bits.
        from_standby: rows come from a standby.
        by_position: on a standby, what was replayed is known by position, not by ``pg_current_snapshot()``.
        floor: a standby must have replayed what was committed when recording began, and never less than before.
        renames: a moved row takes the chunk's values with it.
        forgets: what a chunk's snapshot sees is forgotten; ``all`` forgets everything at each marker.
        saves_moved: the keys to read again are saved before anything behind them is confirmed.
    """

    name: str = "ours"
    merge: str = "apply"
    barrier: bool = True
    reads_moved: bool = True
    wide_ids: bool = True
    from_standby: bool = False
    by_position: bool = True
    floor: bool = True
    renames: bool = False
    forgets: str = "seen"
    saves_moved: bool = True


OURS = Rules()
OURS_FROM_STANDBY = Rules("ours, from a standby", from_standby=True)
WRONG = (
    Rules("anchored at pg_current_wal_lsn()", merge="none"),
    Rules("drop on conflict", merge="drop"),
    Rules("no start barrier", barrier=False),
    Rules("moved keys not read again", reads_moved=False),
    Rules("keys to read again not saved", saves_moved=False),
    Rules("32-bit ids compared with 64-bit ids", wide_ids=False),
    Rules("everything forgotten at a marker", forgets="all"),
    Rules("standby, by pg_current_snapshot()", from_standby=True, by_position=False),
    Rules("standby, without a least position", from_standby=True, floor=False),
    Rules("standby, moved rows renamed", from_standby=True, renames=True),
)


class RenamingChanges(RecordedChanges):
    """A wrong variant: a moved row takes the values of the chunk's row with its old key."""

    def __init__(self) -> None:
        super().__init__()
        self.moves: list[tuple[Transaction, Key, Key, Row]] = []

    def apply(self, relation: Relation, rows: dict[Key, Row]) -> Applied:
        kept = {
            key: tuple(b if b is not None else a for a, b in zip(rows[old], new, strict=False))
            for _, key, old, new in self.moves
            if old in rows
        }
        applied = super().apply(relation, rows)
        for key, row in kept.items():
            if key in applied.read_again:
                rows[key] = row
        return replace(applied, read_again=applied.read_again - kept.keys())

    def update(self, relation: Relation, tx: Transaction, key: Key, old_key: Key | None, new: Row) -> None:
        if old_key is not None:
            self.moves.append((tx, key, old_key, new))
        super().update(relation, tx, key, old_key, new)

    def forget_before(self, lsn: int) -> None:
        super().forget_before(lsn)
        self.moves = [move for move in self.moves if int(move[0].commit_lsn.split("/")[1], 16) >= lsn]


@dataclass
class Change:
    """A change of a transaction: i, u, d or t; ``row`` is whole, ``sent`` is what the stream has."""

    op: str
    relation: Relation
    key: Key | None = None
    old_key: Key | None = None
    row: Row | None = None
    sent: Row | None = None


@dataclass(eq=False)
class Tx:
    """A transaction that holds the locks of its keys until it is visible."""

    xid: int
    changes: list[Change] = field(default_factory=list)
    keys: set[Key] = field(default_factory=set)
    is_committed: bool = False


@dataclass
class Entry:
    """A commit in the WAL: of a transaction, or of a marker with its chunk's number."""

    xid: int
    begin: int
    end: int
    next_xid: int
    changes: list[Change]
    rows: dict[Key, Row]
    marker: tuple[str | int, ...] | None = None


def _apply(rows: dict[Key, Row], change: Change) -> None:
    if change.op == "t":
        rows.clear()
        return
    assert change.key is not None
    if change.op == "d":
        del rows[change.key]
        return
    if change.old_key is not None:
        del rows[change.old_key]
    assert change.row is not None
    rows[change.key] = change.row


class Server:
    """A primary with a table, and the position of a standby."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.relation = Relation(16400, "public", "items", "d", _COLUMNS)
        self.next_xid = rng.choice([700, 3 * EPOCH - rng.randrange(1, 30), 5 * EPOCH + 900])
        self.values = 0
        self._moves = rng.choice([0.05, 0.3, 0.7])
        self.rows: dict[Key, Row] = {self._key(n): self._row(self._key(n)) for n in rng.sample(range(_KEYS), 6)}
        self.in_wal = dict(self.rows)
        self.wal: list[Entry] = []
        self.open: list[Tx] = []
        self.replayed = 0
        self.append(Tx(self.new_xid()), [], None)

    def _key(self, number: int) -> Key:
        return (str(number),)

    def new_xid(self) -> int:
        """Return the next transaction id."""
        self.next_xid += 1
        return self.next_xid - 1

    def _value(self) -> str:
        self.values += 1
        return f'"v{self.values}"'

    def _row(self, key: Key) -> Row:
        return (key[0], *(self._value() for _ in self.relation.columns[1:]))

    def append(self, tx: Tx, changes: list[Change], marker: tuple[str | int, ...] | None) -> None:
        """Write a commit record."""
        begin = 0x1000 + len(self.wal) * 0x100
        for change in changes:
            _apply(self.in_wal, change)
        rows = dict(self.in_wal)
        self.wal.append(Entry(tx.xid, begin, begin + 0x100, self.next_xid, changes, rows, marker))

    @property
    def end(self) -> int:
        """The end of the WAL."""
        return self.wal[-1].end

    def snapshot(self) -> ServerSnapshot:
        """Return what a transaction that begins now sees."""
        running = frozenset(tx.xid for tx in self.open)
        return ServerSnapshot(min(running, default=self.next_xid), self.next_xid, running)

    def waiting(self) -> set[int]:
        """Return the transactions that committed and are not visible."""
        return {tx.xid for tx in self.open if tx.is_committed}

    def mark(self, run: str, number: int, half: int) -> None:
        """Write a marker, which does not wait for synchronous replication."""
        self.append(Tx(self.new_xid()), [], (run, number, half))

    def work(self) -> None:
        """Let one transaction do something."""
        rng = self._rng
        if len(self.open) < 4 and rng.random() < 0.35:
            self.open.append(Tx(self.new_xid()))
        if not self.open:
            return
        tx = rng.choice(self.open)
        if tx.is_committed:
            self._show(tx)
        elif len(tx.changes) >= 3 or (tx.changes and rng.random() < 0.5):
            self._commit(tx)
        elif rng.random() < 0.04:
            self.open.remove(tx)
        else:
            self._change(tx)

    def finish(self) -> None:
        """End all transactions."""
        for tx in list(self.open):
            if not tx.is_committed:
                self._commit(tx)
            if tx in self.open:
                self._show(tx)
        self.replayed = len(self.wal)

    def _commit(self, tx: Tx) -> None:
        tx.is_committed = True
        self.append(tx, tx.changes, None)
        if self._rng.random() < 0.6:
            self._show(tx)

    def _show(self, tx: Tx) -> None:
        for change in tx.changes:
            _apply(self.rows, change)
        self.open.remove(tx)

    def _change(self, tx: Tx) -> None:
        rng = self._rng
        locked = {key for other in self.open if other is not tx for key in other.keys}
        if rng.random() < 0.02 and not any(other.keys for other in self.open):  # both need the table alone
            self._truncate(tx) if rng.random() < 0.5 else self._alter()
            return
        if any(change.op == "t" for other in self.open for change in other.changes):
            return
        rows = dict(self.rows)
        for change in tx.changes:
            _apply(rows, change)
        key = self._key(rng.randrange(_KEYS))
        if key in locked:
            return
        dice = rng.random()
        if key not in rows:
            row = self._row(key)
            tx.changes.append(Change("i", self.relation, key, None, row, row))
        elif dice < 0.2:
            tx.changes.append(Change("d", self.relation, key))
        else:
            new = self._key(rng.randrange(_KEYS)) if dice < 0.2 + 0.8 * self._moves else key
            if new != key and (new in locked or new in rows):
                return
            leaves_big = rng.random() < 0.8
            sent: list[str | None] = [new[0], self._value(), None if leaves_big else self._value()]
            sent += [self._value() for _ in self.relation.columns[3:]]
            whole = tuple(a if a is not None else b for a, b in zip(sent, rows[key], strict=True))
            tx.changes.append(Change("u", self.relation, new, key if new != key else None, whole, tuple(sent)))
            tx.keys.add(new)
        tx.keys.add(key)

    def _truncate(self, tx: Tx) -> None:
        tx.changes.append(Change("t", self.relation))
        tx.keys.update(self._key(n) for n in range(_KEYS))

    def _alter(self) -> None:
        if len(self.relation.columns) < 5:
            added = Column(f"more{len(self.relation.columns)}", 25, -1, False)
            self.relation = replace(self.relation, columns=(*self.relation.columns, added))
            for rows in (self.rows, self.in_wal):
                for key, row in rows.items():
                    rows[key] = (*row, _DEFAULT)


@dataclass
class Chunk:
    """Rows that wait for their marker."""

    relation: Relation
    rows: dict[Key, Row]
    snapshot: ServerSnapshot
    position: int
    asked: frozenset[Key] | None
    to: int
    is_last: bool
    dropped: set[Key] = field(default_factory=set)


@dataclass
class State:
    """What a restart finds."""

    is_started: bool = False
    cursor: int = -1
    is_complete: bool = False
    read_again: frozenset[Key] = frozenset()

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to read."""
        return self.is_complete and not self.read_again


class Output(ABC):
    """What a tail wrote: its first lines are durable, and its first commits are confirmed."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.lines: list[Line] = []
        self.durable = self.confirmed = self.stale = self.restarts = 0
        self._ends: list[tuple[int, int]] = []  # number of lines, number of commits

    @abstractmethod
    def _start(self) -> None:
        """Start the process, which connects."""

    @abstractmethod
    def _connect(self) -> None:
        """Connect, and receive from the confirmed commit on."""

    def kill(self) -> None:
        """Lose everything that is not durable."""
        self.restarts += 1
        kept = self._rng.randrange(self.durable, len(self.lines) + 1)
        del self.lines[kept:]
        self.durable = kept
        self._ends = [end for end in self._ends if end[0] <= kept]
        self._start()

    def lose_connection(self) -> None:
        """Receive again what is not confirmed."""
        self.restarts += 1
        self._connect()

    def confirm(self) -> None:
        """Confirm the commits that the sink has."""
        for lines, commits in self._ends:
            if lines <= self.durable:
                self.confirmed = max(self.confirmed, commits)


class Stream(Output):
    """A tail with its reader, as the contract of mode B says."""

    def __init__(self, rng: random.Random, server: Server, rules: Rules) -> None:
        super().__init__(rng)
        self._server, self._rules = server, rules
        self.saved = State()
        self._memory = State()
        self._changes = RenamingChanges() if rules.renames else RecordedChanges()
        self._start()

    def _start(self) -> None:
        self._connect()

    def _connect(self) -> None:
        self._next = self.confirmed
        self._begin()

    def _begin(self) -> None:
        """Begin to record here: what was recorded and the chunks that wait are discarded."""
        self._changes.clear()
        if isinstance(self._changes, RenamingChanges):
            self._changes.moves.clear()
        self._memory = replace(self.saved)
        self._unsaved: list[tuple[int, Chunk]] = []
        self._run = str(self._rng.random())
        self._chunks: dict[int, Chunk] = {}
        self._marked = self._number = 0
        self._window: dict[int, set[Key]] = {}
        self._position, self._last = self._memory.cursor, self._memory.is_complete
        self._invisible = self._server.waiting() if self._rules.barrier else set()
        self._floor = self._server.end if self._rules.floor else 0

    def exceed_memory(self) -> None:
        """Discard what was recorded, and begin to record here."""
        self._begin()

    def store(self) -> None:
        """Let the sink store some lines; then save cursors; then confirm."""
        self.durable = self._rng.randrange(self.durable, len(self.lines) + 1)
        if self._rng.random() < 0.7:
            self.save()
        if self._rng.random() < 0.7:
            self.confirm()

    def save(self) -> None:
        """Save the cursors of the chunks that the sink has."""
        while self._unsaved and self._unsaved[0][0] <= self.durable:
            chunk = self._unsaved.pop(0)[1]
            saved = self.saved
            if chunk.asked is None:
                self.saved = replace(saved, cursor=chunk.to, is_complete=saved.is_complete or chunk.is_last)
            else:
                self.saved = replace(saved, read_again=saved.read_again - chunk.asked)

    # The reader.

    def read(self) -> None:
        """Do the reader's next step."""
        if not self._memory.is_started or self._memory.is_done or self._server.waiting() & self._invisible:
            return
        if self._marked < self._number:
            self._server.mark(self._run, self._marked, 1)
            self._marked += 1
        elif len(self._chunks) < 2:
            self._read_chunk()

    def _read_chunk(self) -> None:
        server, rules = self._server, self._rules
        asked = None
        if self._memory.read_again and (self._last or self._rng.random() < 0.2):
            asked = self._memory.read_again
        elif self._last:
            return
        snapshot, position, rows = server.snapshot(), 0, server.rows
        if rules.from_standby:
            position = server.wal[server.replayed - 1].end if server.replayed else 0
            if position < self._floor:
                return
            self._floor = position if rules.floor else 0
            server.replayed = self._rng.randrange(server.replayed, len(server.wal) + 1)
            at = server.wal[server.replayed - 1]
            rows = at.rows
            snapshot = ServerSnapshot(at.next_xid, at.next_xid, frozenset())
        if rules.merge == "drop":
            server.mark(self._run, self._number, 0)
        keys = sorted(rows if asked is None else asked & rows.keys(), key=lambda key: int(key[0]))
        size = self._rng.randrange(1, 4)
        if asked is None:
            keys = [key for key in keys if int(key[0]) > self._position]
        chosen = {key: rows[key] for key in (keys[:size] if asked is None else keys)}
        relation = server.relation
        if any(len(row) != len(relation.columns) for row in chosen.values()):
            return  # the standby has not replayed the new definition
        is_last = asked is None and len(keys) <= size
        if asked is None:
            self._last = is_last
            self._position = int(keys[size - 1][0]) if len(keys) > size else _KEYS
        self._chunks[self._number] = Chunk(relation, chosen, snapshot, position, asked, self._position, is_last)
        self._number += 1
        if rules.merge == "none":
            self.read()

    # The decoder.

    def decode(self) -> None:
        """Decode the next commit of the WAL."""
        if self._next == len(self._server.wal):
            return
        entry = self._server.wal[self._next]
        self._next += 1
        if entry.marker is not None:
            self._decode_marker(entry)
        else:
            if entry.changes:
                self._decode_changes(entry)
        self._ends.append((len(self.lines), self._next))

    def start(self) -> None:
        """Decode the signal that starts the snapshot."""
        self.saved = replace(self.saved, is_started=True)
        self._begin()

    def _decode_changes(self, entry: Entry) -> None:
        tx = Transaction.of(entry.xid % EPOCH, 1, entry.begin, 0)
        # A chunk that waits when the last key was read needs the changes up to its marker.
        is_recording = self._memory.is_started and (not self._memory.is_done or bool(self._chunks))
        for seq, change in enumerate(entry.changes, 1):
            if is_recording:
                self._record(tx, change)
            self.lines.append((entry.begin, seq, change.op, change.key, change.old_key, change.sent))

    def _record(self, tx: Transaction, change: Change) -> None:
        recorded, relation, key = self._changes, change.relation, change.key
        for window in self._window.values():
            window.update(k for k in (key, change.old_key) if k is not None)
            if change.op == "t":
                window.update((str(n),) for n in range(_KEYS))
        if change.op == "t":
            recorded.truncate(relation, tx)
            return
        assert key is not None
        if change.op == "d":
            recorded.delete(relation, tx, key)
            return
        assert change.sent is not None
        if change.op == "i":
            recorded.insert(relation, tx, key, change.sent)
            return
        recorded.update(relation, tx, key, change.old_key, change.sent)
        is_moved = change.old_key is not None and must_read_again(key, change.old_key, change.sent)
        if is_moved and self._rules.reads_moved:
            memory = self._memory
            if not memory.is_complete or change.old_key in memory.read_again:
                memory.read_again |= {key}
                for _, chunk in self._unsaved:  # it was read before this move
                    chunk.asked = None if chunk.asked is None else chunk.asked - {key}
                if self._rules.saves_moved:
                    self.saved = replace(self.saved, read_again=self.saved.read_again | {key})

    def _decode_marker(self, entry: Entry) -> None:
        assert entry.marker is not None
        run, number, half = entry.marker
        if run != self._run:
            return
        assert isinstance(number, int)
        if half == 0:
            self._window[number] = set()
            return
        chunk = self._chunks.pop(number)
        dropped = self._window.pop(number, set())
        applied = self._merge(chunk, dropped)
        if applied is None:
            self._begin()
            return
        for seq, (key, row) in enumerate(chunk.rows.items(), 1):
            truth = entry.rows.get(key)
            self.stale += truth is None or any(a != b for a, b in zip(row, truth, strict=False))
            self.lines.append((entry.begin, seq, "r", key, None, row))
        memory = self._memory
        memory.is_complete = memory.is_complete or chunk.is_last
        if chunk.asked is not None:
            chunk.asked -= applied.read_again
            memory.read_again -= chunk.asked
        self._unsaved.append((len(self.lines), chunk))

    def _merge(self, chunk: Chunk, dropped: set[Key]) -> Applied | None:
        rules, recorded = self._rules, self._changes
        if rules.merge != "apply":
            for key in dropped:
                chunk.rows.pop(key, None)
            return Applied(0, frozenset())
        if rules.from_standby and rules.by_position:
            recorded.forget_before(chunk.position)
        elif rules.forgets == "all":
            recorded.forget_seen(ServerSnapshot(chunk.snapshot.xmax, chunk.snapshot.xmax, frozenset()))
        elif not rules.wide_ids:
            narrow: Any = _Narrow(chunk.snapshot)
            recorded.forget_seen(narrow)
        else:
            recorded.forget_seen(chunk.snapshot)
        try:
            applied = recorded.apply(chunk.relation, chunk.rows)
        except ColumnsChanged:
            return None
        if rules.forgets == "all":
            recorded.clear()
        return applied


class _Narrow:
    """A wrong variant: it compares the stream's 32 bits with the server's 64."""

    def __init__(self, snapshot: ServerSnapshot) -> None:
        self._snapshot = snapshot

    def sees(self, xid: int) -> bool:
        return xid < self._snapshot.xmin or (xid < self._snapshot.xmax and xid not in self._snapshot.in_progress)


@dataclass(frozen=True)
class Outcome:
    """What a run showed.

    Attributes:
        wrong: rows of a new consumer that differ from the source's at the end, with both.
        stale: rows of chunks that were not the source's at their place in the stream.
        is_done: whether the snapshot ended.
        restarts: kills and lost connections.
        lines: how many lines were written.
    """

    wrong: tuple[tuple[Key, Row | None, Row | None], ...]
    stale: int
    is_done: bool
    restarts: int
    lines: int

    @property
    def is_right(self) -> bool:
        """Whether everything was as it must be."""
        return not self.wrong and not self.stale and self.is_done


def run(seed: int, rules: Rules = OURS, steps: int = 150) -> Outcome:
    """Run one random interleaving."""
    rng = random.Random(seed)
    server = Server(rng)
    stream = Stream(rng, server, rules)
    actions = [server.work] * 8 + [stream.decode] * 5 + [stream.read] * 3 + [stream.store]
    begins, tail_dies = rng.randrange(0, steps // 2), rng.choice([0.0, 0.01, 0.05, 0.15])
    for step in range(steps):
        if step == begins:
            stream.start()
        rng.choice(actions)()
        dice = rng.random()
        if dice < 0.15:
            server.replayed = rng.randrange(server.replayed, len(server.wal) + 1)
        elif dice < 0.16:  # a standby that restarts is consistent before it has replayed all that it had shown
            server.replayed = rng.randrange(1, server.replayed + 1) if server.replayed else 0
        elif dice < 0.16 + tail_dies:
            rng.choice([stream.kill, stream.kill, stream.lose_connection, stream.exceed_memory])()
    server.finish()
    for _ in range(400):
        stream.read()
        server.replayed = len(server.wal)
        while stream._next < len(server.wal):
            stream.decode()
        stream.durable = len(stream.lines)
        stream.save()
        stream.confirm()
        if stream.saved.is_done:
            break
    wrong = differences(stream.lines, server)
    return Outcome(wrong, stream.stale, stream.saved.is_done, stream.restarts, len(stream.lines))


def differences(lines: list[Line], server: Server) -> tuple[tuple[Key, Row | None, Row | None], ...]:
    """Return the rows of a new consumer that differ from the source's, with both."""
    table = fold(lines)
    return tuple(
        (key, table.get(key), server.rows.get(key))
        for key in sorted(table.keys() | server.rows.keys())
        if _padded(table.get(key), len(server.relation.columns)) != server.rows.get(key)
    )


def fold(lines: list[Line]) -> dict[Key, Row]:
    """Return the table of a consumer that begins with nothing and applies every line once."""
    table: dict[Key, Row] = {}
    seen: set[tuple[int, int]] = set()
    for commit, seq, op, key, old_key, row in lines:
        if (commit, seq) in seen:
            continue
        seen.add((commit, seq))
        if op == "t":
            table.clear()
        elif op == "d":
            table.pop(key or (), None)
        elif row is not None and key is not None:
            before = table.pop(old_key if old_key is not None else key, ()) if op == "u" else ()
            table[key] = tuple(
                value if value is not None or n >= len(before) else before[n] for n, value in enumerate(row)
            )
    return table


def _padded(row: Row | None, width: int) -> Row | None:
    return None if row is None else row + (_DEFAULT,) * (width - len(row))
