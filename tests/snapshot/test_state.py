"""The state of snapshots: what was written comes back, and nothing else is taken for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from psycopg import sql

from rdsrepl import apply, errors
from rdsrepl.config import Target
from rdsrepl.snapshot import state_document, state_file, table_store
from rdsrepl.snapshot.overview import progress, rows_per_second
from rdsrepl.snapshot.requests import Control, Request, Verb
from rdsrepl.snapshot.state import (
    FilePlace,
    SnapshotState,
    Status,
    StreamIdentity,
    TablePlace,
    TableState,
    parse_place,
)
from rdsrepl.snapshot.state_file import FileStore
from rdsrepl.snapshot.table_store import TableStore
from rdsrepl.snapshot.transitions import Allowed, after
from tests.fixtures.postgres import Database

_OWNER = StreamIdentity("7301", "shop", "orders_cdc")
_NOW = datetime(2026, 11, 22, 3, 0, tzinfo=UTC)
_STATES = (
    SnapshotState.new(Request("a1", "orders_cdc", ("public.orders", 'public."Odd ""one"'))),
    SnapshotState(
        Request("b2", "orders_cdc", ("public.items",), "id > 1", 100, 5, "replica"),
        Status.running,
        None,
        (TableState("public.items", ("1", 'tab\tü"'), 200, 10**12, 2, 1, (("7", "x"),)),),
        _NOW,
        running_seconds=1.5,
        waits_for="the replica to replay 0/1",
    ),
    SnapshotState(
        Request("c3", "orders_cdc", ("public.t",)),
        Status.failed,
        "permission denied",
        (TableState("public.t", is_done=True, key=("id int4 <",), sent=("id 23", "WHERE true")),),
        _NOW,
        _NOW,
    ),
)


def test_a_file_gives_back_what_was_saved(tmp_path: Path) -> None:
    path = tmp_path / "new" / "state.json"
    with closing(FileStore(path, _OWNER)) as store:
        assert store.load() == ()
        store.save(_STATES)
    assert path.stat().st_mode & 0o777 == 0o600
    with closing(FileStore(path, _OWNER)) as store:
        assert store.load() == _STATES
    assert state_file.read_file(path, _OWNER) == _STATES
    assert state_file.read_file(tmp_path / "none", _OWNER) is None


def test_a_symbolic_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "volume").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "volume" / "state.json")
    with closing(FileStore(tmp_path / "link", _OWNER)) as store:
        store.load()
        store.save(_STATES)
    assert (tmp_path / "link").is_symlink()
    assert state_file.read_file(tmp_path / "volume" / "state.json", _OWNER) == _STATES


def test_each_changed_byte_is_detected(tmp_path: Path) -> None:
    """Not one state with another cursor or count: that would leave out rows."""
    content = state_document.encode(_OWNER, _STATES).encode()
    for at in range(len(content) - 1):
        changed = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
        with pytest.raises(errors.BadState):
            state_document.decode(changed, _OWNER, where="f")


@pytest.mark.parametrize("length", [0, 1, 50, -2])
def test_a_truncated_file_is_damaged_and_stays(tmp_path: Path, length: int) -> None:
    path = tmp_path / "state.json"
    path.write_text(state_document.encode(_OWNER, _STATES)[:length])
    before = path.read_bytes()
    with closing(FileStore(path, _OWNER)) as store, pytest.raises(errors.BadState, match="is damaged") as caught:
        store.load()
    assert caught.value.exit_code == 2
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("owner", "named"),
    [
        (replace(_OWNER, slot_name="other"), "slot other"),
        (replace(_OWNER, database="db2"), "database db2"),
        (replace(_OWNER, system_identifier="9"), "server 9"),
    ],
)
def test_the_state_of_something_else_is_refused(tmp_path: Path, owner: StreamIdentity, named: str) -> None:
    path = tmp_path / "state.json"
    path.write_text(state_document.encode(_OWNER, _STATES))
    with closing(FileStore(path, owner)) as store, pytest.raises(errors.BadState, match=named):
        store.load()


def test_a_newer_version_is_named() -> None:
    document = json.loads(state_document.encode(_OWNER, ()))
    with pytest.raises(errors.BadState, match="newer version"):
        state_document.decode(json.dumps({**document, "version": 2}), _OWNER, where="f")


def test_a_file_of_others_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.write_text(state_document.encode(_OWNER, ()))
    path.chmod(0o602)
    with pytest.raises(errors.BadState, match="another user owns it or can write to it"):
        state_file.read_file(path, _OWNER)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(errors.BadState, match="not a regular file"):
        state_file.read_file(tmp_path / "fifo", _OWNER)


def test_one_process_has_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock of a process that was killed is gone with it."""
    path = tmp_path / "state.json"
    monkeypatch.setattr(state_file, "LOCK_SECONDS", 0.0)
    hold = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, 2); print(flush=True); input()"
    lock = str(tmp_path / "state.json.lock")
    with subprocess.Popen([sys.executable, "-c", hold, lock], stdin=-1, stdout=-1) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with closing(FileStore(path, _OWNER)) as store, pytest.raises(errors.InUse, match="is in use: another process"):
            store.load()
        holder.kill()
    with closing(FileStore(path, _OWNER)) as store:
        assert store.load() == ()


def test_a_failed_write_keeps_the_state_before(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    with closing(FileStore(path, _OWNER)) as store:
        store.load()
        store.save(_STATES)
        before = path.read_bytes()
        (tmp_path / f".state.json.{os.getpid()}").mkdir()  # where the new file would be
        with pytest.raises(errors.SinkFailed, match="could not write the snapshot state"):
            store.save(())
    assert path.read_bytes() == before


def test_ended_snapshots_are_forgotten_at_last() -> None:
    ended = [replace(_STATES[2], request=replace(_STATES[2].request, id=f"e{n}")) for n in range(200)]
    kept = state_document.decode(state_document.encode(_OWNER, [_STATES[0], *ended]), _OWNER, where="f")
    assert [one.request.id for one in kept] == ["a1", *(f"e{n}" for n in range(150, 200))]


def test_places() -> None:
    assert parse_place(None) == FilePlace()
    assert parse_place('table:"My s".t') == TablePlace("My s", "t")
    assert parse_place("/x/table:a") == FilePlace(Path("/x/table:a"))
    for text in ("table:t", "table:", "table:a.b.c", "", "/", "\0"):
        with pytest.raises(errors.BadValue):
            parse_place(text)


def test_what_signals_do() -> None:
    def said(snapshots: tuple[SnapshotState, ...], verb: Verb, name: str = "a1") -> tuple[str, tuple[str, ...]]:
        result = after(snapshots, Control(verb, name, "orders_cdc"), now=_NOW)
        assert not result.is_refused or result.snapshots == snapshots
        return result.message, tuple(one.status for one in result.snapshots)

    requested = after((), _STATES[0].request, now=_NOW).snapshots
    paused = after(requested, Control(Verb.pause, "a1", "s"), now=_NOW).snapshots
    cancelled = after(paused, Control(Verb.cancel, "a1", "s"), now=_NOW).snapshots
    done = (replace(requested[0], status=Status.done),)
    assert after(requested, _STATES[0].request, now=_NOW).message == "snapshot a1 exists already"
    assert said(requested, Verb.pause, "zz") == ("snapshot zz does not exist", ("requested",))
    assert said(requested, Verb.resume) == ("snapshot a1 is running already", ("requested",))
    assert said(paused, Verb.pause) == ("snapshot a1 is paused already", ("paused",))
    assert said(paused, Verb.resume) == ("snapshot a1 is resumed", ("requested",))
    assert said(cancelled, Verb.cancel) == ("snapshot a1 is cancelled already", ("cancelled",))
    assert said(cancelled, Verb.resume) == ("snapshot a1 is cancelled already", ("cancelled",))
    assert said(done, Verb.pause) == ("snapshot a1 is done already", ("done",))
    assert said(done, Verb.cancel) == ("snapshot a1 is done already", ("done",))
    assert cancelled[0].ended_at == _NOW


def test_a_failed_snapshot_counts_the_rows_again_that_it_reads_again() -> None:
    done = TableState("public.a", ("9",), 300, 300, 3, is_done=True)
    part = TableState("public.b", ("5",), 100, 400, 2, 1, (("7",),), marker=5)
    request = Request("a1", "orders_cdc", ("public.a", "public.b"))
    failed = SnapshotState(request, Status.failed, "no", (done, part), _NOW, _NOW, running_seconds=8.0)
    (resumed,) = after((failed,), Control(Verb.resume, "a1", "orders_cdc"), now=_NOW).snapshots
    assert resumed.tables == (done, TableState("public.b", estimated_rows=400, marker=5))
    assert rows_per_second(resumed) == rows_per_second(failed) == 50
    first, second = progress([resumed])
    assert (first.rows, second.rows, second.left_seconds) == (300, 0, 8.0)


def test_a_condition_needs_permission() -> None:
    """Any role can write a signal; its SQL would run with the rights of the streaming role."""
    request = replace(_STATES[0].request, where="evil()")
    refused = after((), request, now=_NOW, allowed=Allowed())
    assert (refused.snapshots[0].status, refused.snapshots[0].reason) == (
        "failed",
        "its condition needs slot tail --allow-snapshot-conditions",
    )
    again = after(refused.snapshots, Control(Verb.resume, "a1", "s"), now=_NOW, allowed=Allowed())
    assert again.is_refused
    assert after(refused.snapshots, Control(Verb.resume, "a1", "s"), now=_NOW).snapshots[0].status == "requested"


def test_unfinished_snapshots_are_limited() -> None:
    snapshots: tuple[SnapshotState, ...] = ()
    for number in range(101):
        result = after(snapshots, replace(_STATES[0].request, id=f"n{number}"), now=_NOW)
        snapshots = result.snapshots
    assert result.is_refused
    assert len(snapshots) == 100


@pytest.fixture
def place(db18: Database) -> TablePlace:
    place = TablePlace("Odd schema", "snap'shots")
    with closing(db18.connect()) as conn:
        plan = table_store.creation(conn, place)
        assert [step.summary for step in plan.steps] == [
            "create schema Odd schema",
            'create table "Odd schema"."snap\'shots"',
        ]
        apply.run(plan, db18.target, done=lambda _: None, waiting=lambda *_: None)
        assert not table_store.creation(conn, place).steps
    return place


@pytest.fixture
def worker(db18: Database, place: TablePlace) -> Iterator[Target]:
    """The database as a role that may use the table, and does not own it."""
    role = f"worker_{db18.name}"
    db18.run(f"CREATE ROLE {role} LOGIN PASSWORD 'w'", f'GRANT USAGE ON SCHEMA "Odd schema" TO {role}')
    db18.run(f'GRANT ALL ON "Odd schema"."snap\'shots" TO {role}')
    yield Target("worker", f"{db18.server.dsn(dbname=db18.name, user=role)} password=w")
    db18.run(f"DROP OWNED BY {role} CASCADE", f"DROP ROLE {role}")


def test_a_table_gives_back_what_was_saved(db18: Database, place: TablePlace, worker: Target) -> None:
    with closing(TableStore(place, _OWNER, worker)) as store:
        assert store.load() == ()
        store.save(_STATES)
    with closing(db18.connect()) as conn:
        assert table_store.read(conn, place, _OWNER) == _STATES
        assert table_store.read(conn, place, replace(_OWNER, slot_name="other")) is None
        with pytest.raises(errors.BadState, match="server 9"):
            table_store.read(conn, place, replace(_OWNER, system_identifier="9"))
    with closing(TableStore(place, _OWNER, worker)) as store:
        assert store.load() == _STATES


def test_the_last_process_has_the_table(db18: Database, place: TablePlace) -> None:
    first, second = (TableStore(place, _OWNER, db18.target) for _ in range(2))
    with closing(first), closing(second):
        first.load()
        first.save(_STATES)
        assert second.load() == _STATES
        with pytest.raises(errors.InUse, match="has taken over the snapshot state of slot orders_cdc"):
            first.save(())
        second.save(_STATES[:1])
        db18.run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
                 " AND datname = current_database()")  # fmt: skip
        with pytest.raises(errors.ConnectionLost):
            second.save(_STATES[:2])
        second.save(_STATES[:2])
        assert second.load() == _STATES[:2]


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ("DROP TABLE {}", errors.NotFound, "the table does not exist"),
        ("ALTER TABLE {} ADD COLUMN more int", errors.Refused, "it has other columns"),
        ("ALTER TABLE {} ALTER writer TYPE varchar(64)", errors.Refused, "it has other columns"),
        ("ALTER TABLE {} SET UNLOGGED", errors.Refused, "it has other columns"),
        ("ALTER TABLE {} RENAME TO t; CREATE VIEW {} AS TABLE \"Odd schema\".t", errors.Refused, "other columns"),
        ("ALTER TABLE {} OWNER TO pg_monitor", errors.Refused, "belongs to role pg_monitor"),
        ("CREATE RULE r AS ON UPDATE TO {} DO ALSO SELECT 1", errors.Refused, "has triggers, rules"),
        (
            "CREATE TRIGGER t BEFORE UPDATE ON {} FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()",
            errors.Refused,
            "has triggers, rules",
        ),
        ("REVOKE ALL ON {} FROM PUBLIC, {role}", errors.Denied, "permission denied"),
    ],
)  # fmt: skip
def test_another_table_is_refused_before_it_is_written(
    db18: Database, place: TablePlace, worker: Target, change: str, error: type[errors.Error], text: str
) -> None:
    """Also one that took the place of the right one while the process ran."""
    name = sql.Identifier(place.schema, place.table).as_string(None)
    role = f"worker_{db18.name}"
    with closing(TableStore(place, _OWNER, worker)) as store:
        store.load()
        db18.run(*change.replace("{role}", role).replace("{}", name).split("; "))
        for attempt in (store.load, lambda: store.save(())):
            with pytest.raises(error, match=text) as caught:
                attempt()
        assert caught.value.hint
