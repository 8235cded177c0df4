"""The part of a snapshot in the thread of the stream: what it records, saves and refuses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime

import pytest

from rdsrepl.config import Target
from rdsrepl.errors import Error, SinkFailed
from rdsrepl.snapshot.incremental import MARKER_PREFIX, IncrementalSnapshots
from rdsrepl.snapshot.requests import PREFIX, Control, Request, Verb, encode
from rdsrepl.snapshot.shared_state import Restarted
from rdsrepl.snapshot.state import SnapshotState, Status, TableState
from rdsrepl.snapshot.transitions import Allowed
from rdsrepl.tail.formats.json_format import JsonFormat
from rdsrepl.tail.formats.type_catalog import Catalog
from rdsrepl.tail.model import Column, Relation, Transaction
from rdsrepl.tail.timelines import Timelines
from tests.workloads.hooked_stream import MemoryStore

ITEMS = Relation(16400, "public", "items", "d", (Column("id", 23, -1, True), Column("v", 25, -1, False)))
TABLES = frozenset({("public", "items")})


class Memory(MemoryStore):
    """A state that can fail."""

    fails = False

    def load(self) -> tuple[SnapshotState, ...]:
        self._fail()
        return super().load()

    def save(self, snapshots: Sequence[SnapshotState]) -> None:
        self._fail()
        super().save(snapshots)

    def _fail(self) -> None:
        if self.fails:
            raise SinkFailed("could not write the state")


@pytest.fixture
def store() -> Memory:
    return Memory()


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def hook(store: Memory, notes: list[str]) -> IncrementalSnapshots:
    return made(store, notes)


def made(store: Memory, notes: list[str], *, needs_state: bool = True) -> IncrementalSnapshots:
    return IncrementalSnapshots(
        "s",
        store,
        Catalog(Target("no server", "")),
        "json",
        notes.append,
        allowed=Allowed(),
        is_plain=True,
        needs_state=needs_state,
    )


def tx(xid: int) -> Transaction:
    return Transaction.of(xid, 1, 0x1000 * xid, 0)


def send(hook: IncrementalSnapshots, prefix: str, content: str | bytes, xid: int = 5) -> int:
    """Return how many rows stand in the place of a message."""
    data = content.encode() if isinstance(content, str) else content
    hook.batch_begins()
    try:
        return hook.message(prefix, data, "0/1", tx(xid), 1).rows
    finally:
        hook.batch_ends()


def started(hook: IncrementalSnapshots) -> str:
    """Begin a snapshot as the reader does; return the run."""
    hook.reset(Timelines(1))
    send(hook, PREFIX, encode(Request("one", "s", ("public.items",))))
    found = hook.shared.next()
    assert found is not None
    hook.shared.record(found[0], TABLES)
    assert hook.batch_begins(), "the writers are to be asked again"
    hook.batch_ends()
    return found[0]


def test_a_signal_is_saved_before_its_batch_ends(hook: IncrementalSnapshots, store: Memory) -> None:
    hook.reset(Timelines(1))
    hook.batch_begins()
    hook.message(PREFIX, encode(Request("one", "s", ("public.items",))).encode(), "0/1", tx(5), 1)
    assert store.saved == ()
    hook.batch_ends()
    assert [one.request.id for one in store.saved] == ["one"]
    store.fails = True
    with pytest.raises(SinkFailed):
        send(hook, PREFIX, encode(Control(Verb.pause, "one", "s")))
    store.fails = False
    hook.reset(Timelines(1))
    send(hook, PREFIX, encode(Control(Verb.pause, "one", "s")))
    assert store.saved[0].status is Status.paused, "the signal comes again, and is saved"


def test_too_many_recorded_changes_end_the_run_and_make_chunks_smaller(hook: IncrementalSnapshots) -> None:
    run = started(hook)
    writer = hook.writer(ITEMS, JsonFormat(Catalog(Target("no server", ""))).writer(ITEMS))
    large = '"' + "x" * 1_000_000 + '"'
    for number in range(70):
        assert not hook.shared.is_over(run)
        hook.batch_begins()
        writer.update((str(number), large, 0), None, False, "0/1", tx(number + 10), 1)
        hook.batch_ends()
        if hook.shared.is_over(run):
            break
    assert hook.shared.is_over(run) and hook.shared.overflows == 1 and 60 < number < 69
    with pytest.raises(Restarted):
        hook.shared.record(run, TABLES)


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff", b"[]", b"null", b'{"run":1}', b'{"run":"x","chunk":1}', b'{"run":null,"chunk":[]}', b"[" * 100_000],
)
def test_a_marker_of_others_is_ignored(hook: IncrementalSnapshots, content: bytes) -> None:
    run = started(hook)
    assert send(hook, MARKER_PREFIX, content) == 0
    assert send(hook, MARKER_PREFIX, json.dumps({"run": run, "chunk": True})) == 0
    assert send(hook, "rdsrepl.unknown", content) == 0
    assert not hook.shared.is_over(run)


def test_every_role_may_send_signals_and_none_is_reported_without_end(
    hook: IncrementalSnapshots, store: Memory, notes: list[str]
) -> None:
    hook.reset(Timelines(1))
    for number in range(300):
        send(hook, PREFIX, b"{" + str(number).encode())
        send(hook, PREFIX, encode(Request(f"n{number}", "s", ("public.items",), where="true")))
        send(hook, PREFIX, encode(Request(f"m{number}", "s", ("public.items",))))
        send(hook, PREFIX, encode(Control(Verb.cancel, f"o{number}", "s")))
        send(hook, PREFIX, encode(Request(f"n{number}", "another", ("public.items",))))
    assert 0 < len(notes) <= 200, "100 that are accepted, and 100 others"
    assert len(store.saved) <= 150
    assert sum(not one.status.has_ended for one in store.saved) == 100


def test_without_a_place_for_the_state_only_snapshots_are_refused(store: Memory, notes: list[str]) -> None:
    store.fails = True
    with pytest.raises(SinkFailed):
        made(store, notes).reset(Timelines(1))
    hook = made(store, notes, needs_state=False)
    hook.reset(Timelines(1))
    send(hook, PREFIX, encode(Request("one", "s", ("public.items",))))
    assert len(notes) == 1 and "--state" in notes[0]


def test_an_error_of_the_reader_ends_the_stream(hook: IncrementalSnapshots) -> None:
    started(hook)
    hook.shared.fail(Error("the reader failed"))
    with pytest.raises(Error, match="the reader failed"):
        send(hook, "rdsrepl.unknown", b"")
    with pytest.raises(Error, match="the reader failed"):
        hook.delivered(1)


@pytest.mark.parametrize(("fork", "is_read_again"), [(0x3000, False), (0x2000, True)])
def test_a_table_is_read_again_if_the_server_lost_its_last_marker(
    store: Memory, notes: list[str], fork: int, is_read_again: bool
) -> None:
    """The process that wrote the chunks has ended: only the state knows their positions."""
    done = TableState("public.items", cursor=("9",), rows=9, chunks=1, is_done=True, timeline=1, marker=0x2000)
    request = Request("one", "s", ("public.items",))
    store.saved = (SnapshotState(request, Status.done, tables=(done,), ended_at=datetime.now(UTC)),)
    hook = made(store, notes)
    hook.reset(Timelines(2, ((1, fork),)))
    hook.batch_begins()
    hook.batch_ends()
    (one,) = store.saved
    assert (one.status is Status.running) == is_read_again
    assert (one.tables[0].cursor is None) == is_read_again == (not one.tables[0].is_done)
