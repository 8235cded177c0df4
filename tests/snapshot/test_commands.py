"""``rdsrepl snapshot``: what is checked before the request is written, what is written, and what the state shows."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pytest

from rdsrepl.postgres import server_identity
from rdsrepl.sandbox.servers.postgres_server import PostgresServer
from rdsrepl.snapshot import requests
from rdsrepl.snapshot.requests import Control, Request, Verb
from rdsrepl.snapshot.state import SnapshotState, Status, StreamIdentity, TableState
from rdsrepl.snapshot.state_file import FileStore, default_file
from tests.fixtures.postgres import Database
from tests.fixtures.program import Program, Result, complete
from tests.fixtures.waiting import wait_until

_TABLES: Final = (
    "CREATE TABLE orders (id int PRIMARY KEY, amount int)",
    'CREATE TABLE "Odd.name" (a text, b int, PRIMARY KEY (a, b))',
    "CREATE TABLE parts (id int PRIMARY KEY) PARTITION BY RANGE (id)",
    "CREATE TABLE parts1 PARTITION OF parts FOR VALUES FROM (0) TO (10)",
    "CREATE TABLE keyless (id int)",
    "CREATE TABLE hidden (id int PRIMARY KEY)",
    "CREATE FUNCTION own(int) RETURNS bool LANGUAGE sql IMMUTABLE AS 'SELECT true'",
    "CREATE VIEW seen AS TABLE orders",
    'CREATE PUBLICATION shop FOR TABLE orders, "Odd.name", parts, keyless',
    "CREATE PUBLICATION other FOR TABLE hidden",
)
_NOW: Final = datetime(2026, 11, 22, 3, 0, tzinfo=UTC)


class Place:
    """A database with tables, and a slot named like it."""

    def __init__(self, database: Database, program: Program, path: Path) -> None:
        self.database, self.slot, self.program, self.path = database, database.name, program, path
        database.run(*_TABLES, f"SELECT pg_create_logical_replication_slot('{self.slot}', 'pgoutput')")

    def __call__(self, *words: str, env: dict[str, str | None] | None = None) -> Result:
        return self.program("snapshot", *words, dsn=self.database.dsn, env=env)

    def start(self, *words: str) -> Result:
        return self("start", "--slot", self.slot, *words)

    def sent(self) -> list[requests.Signal]:
        """Return the signals in the stream of the slot."""
        rows = self.database.run(
            f"SELECT data FROM pg_logical_slot_peek_binary_changes('{self.slot}', NULL, NULL, 'proto_version', '1',"
            " 'publication_names', 'shop', 'messages', 'true')"
        )
        found: list[requests.Signal] = []
        for (data,) in rows:
            if match := re.match(rb"M.{9}rdsrepl\.signal\0.{4}", bytes(data), re.DOTALL):
                found.append(requests.parse(bytes(data)[match.end() :]))
        return found

    @contextmanager
    def streamed(self, *words: str) -> Iterator[None]:
        """Let a process stream the slot; without options, one that cannot have snapshots."""
        words = ("--publication", "shop", "--quiet", *(words or ("--no-confirm", "-f", "raw")))
        process = self.program.start(
            "slot", "tail", self.slot, *words, dsn=self.database.dsn, stdout=subprocess.DEVNULL
        )
        query = f"SELECT active FROM pg_replication_slots WHERE slot_name = '{self.slot}'"
        try:
            wait_until(lambda: self.database.value(query), "the slot is streamed")
            yield
        finally:
            process.terminate()
            process.wait()

    def default_file(self, program: Program) -> Path:
        """Return the file in which ``slot tail`` keeps the state."""
        with closing(self.database.connect()) as conn, pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_STATE_HOME", program.env["XDG_STATE_HOME"])
            patch.delenv("RDSREPL_STATE_DIR", raising=False)
            server = server_identity.identifier(conn)
            return default_file(StreamIdentity(server, self.database.name, self.slot))

    def save(self, *states: SnapshotState) -> tuple[str, ...]:
        """Write the state of the slot; return the options that name it."""
        with closing(self.database.connect()) as conn:
            owner = StreamIdentity(server_identity.identifier(conn), self.database.name, self.slot)
        with closing(FileStore(self.path, owner)) as store:
            store.load()
            store.save(states)
        return ("--slot", self.slot, "--state", str(self.path))

    def state(self, name: str = "a1", status: Status = Status.running, **changes: Any) -> SnapshotState:
        request = Request(name, self.slot, ("public.orders", 'public."Odd.name"'))
        tables = (
            TableState("public.orders", ("1500",), 1500, 9000, 2, 7),
            TableState('public."Odd.name"', estimated_rows=None),
        )
        state = SnapshotState(request, status, None, tables, _NOW, None, 10.0)
        return replace(state, **changes)


@pytest.fixture
def place(db18: Database, rdsrepl: Program, tmp_path: Path) -> Place:
    return Place(db18, rdsrepl, tmp_path / "state.json")


def test_the_request_is_in_the_stream_and_nowhere_else(place: Place) -> None:
    dry = place.start("--table", "orders", "--dry-run", "--id", "a1")
    assert dry.code == 0
    assert "+ request snapshot a1" in dry.out
    assert "pg_logical_emit_message(true, 'rdsrepl.signal'" in dry.out
    assert place.sent() == []

    words = ("--table", "ORDERS", "--table", 'public."Odd.name"', "--chunk", "500", "--rate", "20k/s", "--id", "a1")
    done = place.start(*words, "--yes", "-o", "json")
    assert done.code == 0, done.err
    request = Request("a1", place.slot, ("public.orders", 'public."Odd.name"'), None, 500, 20_000)
    assert place.sent() == [request]
    assert done.json["status"] == "applied"
    assert done.json["title"].startswith("start snapshot a1 of public.orders")
    assert f"slot {place.slot} is not active" in done.err

    place.save(place.state(request=request))
    again = place.start(*words, "--state", str(place.save(place.state(request=request))[3]), "--yes")
    assert (again.code, again.out) == (0, "start snapshot a1: it is running already\n")
    assert len(place.sent()) == 1


def test_an_id_is_made_from_the_table(place: Place) -> None:
    for _ in range(2):
        assert place.start("--table", '"Odd.name"', "--yes").code == 0
    first, second = (one.id for one in place.sent())
    assert first != second
    assert re.fullmatch(r"name-[0-9a-f]{6}", first)


_REFUSED: Final = (
    ((), 2, "no table is named"),
    (("--all", "--table", "orders"), 2, "--table and --all cannot be used together"),
    (("--all",), 4, "has no primary key or replica identity index"),
    (("--table", "nothing"), 3, "no table nothing"),
    (("--table", "a.b.c"), 2, "is not the name of a table"),
    (("--table", "seen"), 4, "public.seen is not a table"),
    (("--table", "keyless"), 4, "has no primary key or replica identity index"),
    (
        ("--table", "hidden", "--publication", "shop"),
        4,
        "table public.hidden is not published in this stream",
    ),
    (("--table", "orders", "--publication", "nothing"), 3, "publication nothing does not exist"),
    (("--table", "orders", "--where", "nothing > 1"), 2, 'column "nothing" does not exist'),
    (("--table", "orders", "--where", "id > 1) OR (true"), 2, "its parentheses do not match"),
    (("--table", "orders", "--where", "true); DROP TABLE orders; --"), 2, "--where public.orders: "),
    (("--table", "orders", "--where", "own(id)"), 2, "function own(integer) does not exist"),
    (("--table", "orders", "--where", "public.own(id)"), 2, "built-in types, functions and operators only, not"),
    (("--table", "orders", "--where", ""), 2, "--where public.orders: "),
    (("--table", "orders", "--id", "Ä"), 2, "--id Ä is not an ID"),
    (("--table", "orders", "--rate", "0"), 2, "is not a number of rows per second"),
    (("--table", "orders", "--chunk", "0"), 2, "0 is less than 1"),
    (("--table", "orders", "--read-from", "host=a"), 2, "--read-from takes a name"),
    (("--table", "orders", "--read-from", "nothing"), 3, "nothing"),
    (("--table", "orders", "--state", "table:rdsrepl.none"), 3, "the table does not exist"),
    (("--table", "orders", "--state", "table:none"), 2, "the table none for the state of snapshots has no schema"),
)


def test_what_cannot_be_in_a_snapshot_is_refused_first(place: Place) -> None:
    for words, code, text in _REFUSED:
        result = place.start(*words, "--yes")
        assert (result.code, text in result.err) == (code, True), (words, result.err)
    assert place.sent() == []
    assert place.database.value("SELECT count(*) FROM orders") == 0


def test_all_tables_of_a_publication(place: Place) -> None:
    assert place.start("--all", "--publication", "other", "--id", "a1", "--yes").code == 0
    assert place.sent() == [Request("a1", place.slot, ("public.hidden",))]


def test_the_table_of_the_state_is_not_one_of_all(place: Place) -> None:
    """A publication for all tables has it; it changes with each chunk."""
    assert place("create-table", "kept.snapshots", "--yes").code == 0
    assert place("create-table", "kept.snapshots", "--yes").out.endswith(": it exists\n")
    place.database.run("DROP TABLE keyless CASCADE", "CREATE PUBLICATION everything FOR ALL TABLES")
    words = ("--all", "--publication", "everything", "--id", "a1")
    assert "kept.snapshots" in place.start(*words, "--dry-run").out
    assert place.start(*words, "--state", "table:kept.snapshots", "--yes").code == 0
    (request,) = place.sent()
    assert isinstance(request, Request)
    assert "kept.snapshots" not in request.tables


def test_the_state_goes_with_its_slot(place: Place) -> None:
    """A slot that is created later with the same name has not sent the changes behind the cursor."""
    place.path = place.default_file(place.program)
    place.save(place.state())
    assert place.program("slot", "drop", place.slot, "--yes", dsn=place.database.dsn).code == 0
    assert not place.path.exists()


def test_a_condition_is_sent_with_a_warning(place: Place) -> None:
    done = place.start("--table", "orders", "--where", "amount > 5 AND id < pg_backend_pid()", "--yes")
    assert done.code == 0
    assert "--where is refused unless slot tail runs with --allow-snapshot-conditions" in done.err
    (request,) = place.sent()
    assert isinstance(request, Request)
    assert request.where == "amount > 5 AND id < pg_backend_pid()"
    assert "next: rdsrepl" in done.err and "snapshot list --watch" in done.err
    where = place.save(place.state(request=replace(request, id="a1"), status=Status.failed, reason="no condition"))
    again = place("resume", "a1", *where, "--dry-run")
    assert "--where is refused unless slot tail runs with --allow-snapshot-conditions" in again.err + again.out


def test_other_slots_are_refused(db15: Database, rdsrepl: Program, tmp_path: Path) -> None:
    place = Place(db15, rdsrepl, tmp_path / "state.json")
    name, server = place.slot, db15.server

    def refused(slot: str, dsn: str) -> str:
        result = rdsrepl("snapshot", "start", "--slot", slot, "--table", "orders", "--yes", dsn=dsn)
        assert result.code in (2, 3, 4, 5)
        return result.err

    make = "SELECT pg_create_logical_replication_slot('{}_{}', '{}', false, {})"
    db15.run(make.format(name, "td", "test_decoding", "false"), make.format(name, "tp", "pgoutput", "true"))
    assert "no replication slot nothing" in refused("nothing", db15.dsn)
    assert "is of the plugin test_decoding; a snapshot needs" in refused(f"{name}_td", db15.dsn)
    assert "has two_phase" in refused(f"{name}_tp", db15.dsn)
    assert "belongs to database" in refused(name, server.dsn(dbname="postgres"))
    db15.run(
        "REVOKE EXECUTE ON FUNCTION pg_logical_emit_message(boolean, text, text),"
        " pg_logical_emit_message(boolean, text, bytea) FROM PUBLIC",
        f"CREATE ROLE r_{name} LOGIN PASSWORD 'r'",
    )
    denied = refused(name, f"{server.dsn(dbname=name, user=f'r_{name}')} password=r")
    assert "may not call pg_logical_emit_message" in denied
    assert place.sent() == []


def test_a_replica_must_be_of_the_same_server(place: Place, pg15: PostgresServer, rdsrepl: Program) -> None:
    config = rdsrepl.home / "config" / "rdsrepl" / "config.yaml"
    config.parent.mkdir(parents=True)
    other, own = pg15.dsn(dbname="postgres"), place.database.dsn
    config.write_text(json.dumps({"targets": {"other": {"dsn": other}, "primary": {"dsn": own}}}))
    config.chmod(0o600)
    for target, text in (("other", "is not a replica of this server"), ("primary", "is a primary, not a replica")):
        result = place.start("--table", "orders", "--read-from", target, "--yes")
        assert (result.code, text in result.err) == (4, True), result.err
    assert place.sent() == []


def test_verbs_name_what_they_cannot_do(place: Place) -> None:
    """Nothing is written that would do nothing."""
    where = place.save(place.state(), place.state("b2", Status.done), place.state("c3", Status.cancelled))
    unread = place("pause", "zz", *where, "--dry-run")
    assert (unread.code, "its request may not have been read yet" in unread.err) == (0, True)
    with place.streamed():
        assert place("pause", "zz", *where, "--yes").code == 3
        assert "did you mean a1?" in place("pause", "a11", *where, "--yes").err
    assert place("show", "zz", *where).code == 3
    for verb, name, code, text in (
        ("pause", "b2", 4, "snapshot b2 is done already"),
        ("resume", "b2", 4, "snapshot b2 is done already"),
        ("cancel", "b2", 4, "snapshot b2 is done already"),
        ("resume", "c3", 4, "snapshot c3 is cancelled already"),
        ("cancel", "c3", 0, "cancel snapshot c3: it is cancelled already"),
        ("resume", "a1", 0, "resume snapshot a1: it is running already"),
    ):
        result = place(verb, name, *where, "--yes")
        assert (result.code, text in result.err + result.out) == (code, True), (verb, name, result)
        assert code == 0 or f"snapshot show {name} {' '.join(where)}\n" in result.err, "with the place of the state"
    assert place.sent() == []

    assert place("pause", "a1", *where, "--yes").code == 0
    several = place("cancel", "a1", "c3", "a1", *where, "--yes", "-o", "json")
    assert (several.json["title"], len(several.json["steps"])) == ("cancel 2 snapshots", 1)
    where = place.save(place.state(status=Status.failed, reason="permission denied"))
    assert place("resume", "a1", *where, "--yes").code == 0
    assert place.sent() == [Control(verb, "a1", place.slot) for verb in (Verb.pause, Verb.cancel, Verb.resume)]


def test_without_the_state_the_slot_is_needed(place: Place) -> None:
    assert "no snapshot a1" in place("cancel", "a1", "--yes").err
    result = place("cancel", "a1", "--slot", place.slot, "--yes")
    assert result.code == 0
    assert "whether the snapshot exists is not checked" in result.err
    assert place.sent() == [Control(Verb.cancel, "a1", place.slot)]
    assert "no state of slot" in place("show", "a1", "--slot", place.slot).err


def test_a_damaged_state_ends_every_verb(place: Place, tmp_path: Path) -> None:
    where = place.save(place.state())
    assert "is the snapshot state of slot" in place("list", "--slot", "other", *where[2:]).err
    file = tmp_path / "state.json"
    file.write_bytes(before := file.read_bytes().replace(b"1500", b"1501", 1))
    for words in (("list",), ("show", "a1"), ("cancel", "a1", "--yes"), ("start", "--table", "orders", "--yes")):
        result = place(*words, *where)
        assert (result.code, "state.json is damaged: its checksum is not right" in result.err) == (2, True)
    assert "has the state of one slot" in place("list", *where[2:]).err
    table = place("list", "--state", "rdsrepl.snapshots")
    assert (table.code, "--state table:rdsrepl.snapshots" in table.err) == (2, True), table.err
    assert file.read_bytes() == before
    assert place.sent() == []


def test_the_list_has_the_figures(place: Place) -> None:
    where = place.save(
        place.state(),
        place.state("w3", waits_for="the replica r to replay 0/1"),
        place.state("p4", Status.paused, waits_for="what it waited for before it was paused"),
        place.state("b2", Status.failed, reason="column \x1b[31m is gone", ended_at=_NOW + timedelta(hours=1)),
    )
    rows = place("list", *where, "-o", "json").json
    assert [(row["snapshot"], row["table"], row["state"]) for row in rows] == [
        ("a1", "public.orders", "running"),
        ("a1", 'public."Odd.name"', "waiting"),
        ("w3", "public.orders", "running"),
        ("w3", 'public."Odd.name"', "waiting"),
        ("p4", "public.orders", "paused"),
        ("p4", 'public."Odd.name"', "paused"),
        ("b2", "public.orders", "failed"),
        ("b2", 'public."Odd.name"', "failed"),
    ]
    first = rows[0]
    assert (first["rows_per_second"], first["left_seconds"], first["cursor"]) == (150.0, 50.0, ["1500"])
    assert (first["rows"], first["estimated_rows"], first["conflicts"]) == (1500, 9000, 7)
    text = place("list", *where).out
    assert "SNAPSHOT" in text.splitlines()[0]
    assert "b2 failed: column " in text and "\x1b" not in text
    assert "\nw3 waits for the replica r to replay 0/1\n" in text and "p4 waits" not in text
    assert re.search(r"^waits for +the replica r to replay 0/1$", place("show", "w3", *where).out, re.M)
    assert f"slot {place.slot} is not active: its snapshots go on when slot tail streams it" in text
    shown = place("show", "a1", *where)
    assert "150/s" in shown.out and "50.0s" in shown.out
    assert place("show", "a1", *where, "-o", "json").json["tables"][0]["cursor"] == ["1500"]
    assert place("list").out.startswith("no snapshots in the state on this machine")
    assert place("list", "--slot", place.slot, "--state", "none.json").out == "--state none.json has no snapshots\n"
    wrong = place("list", "--slot", f"{place.slot}x")
    assert (wrong.code, f"did you mean {place.slot}?" in wrong.err) == (3, True), wrong.err


def test_waiting_ends_with_the_snapshot(place: Place) -> None:
    words = ("--table", "orders", "--id", "a1", "--wait", "--yes")
    where = place.save(place.state(request=Request("a1", place.slot, ("public.orders",)), status=Status.done))
    done = place.start(*words, *where[2:])
    assert (done.code, "snapshot a1 is done" in done.err) == (0, True), done.err
    assert re.search(r"^status +done$", done.out, re.M)
    where = place.save(place.state(request=Request("a1", place.slot, ("public.orders",)), status=Status.failed))
    failed = place.start(*words, *where[2:])
    assert (failed.code, "error: snapshot a1 failed" in failed.err) == (1, True)


def test_waiting_ends_if_the_state_is_elsewhere(place: Place, tmp_path: Path) -> None:
    """The slot's process has confirmed the request, and there is no state of it where the command looks."""
    with place.streamed("-f", "json", "--state", str(tmp_path / "elsewhere.json")):
        lost = place.start("--table", "orders", "--wait", "--yes")
        assert (lost.code, "has read the request, and there is no state of it here" in lost.err) == (3, True), lost.err
        found = place.start("--table", "orders", "--wait", "--yes", "--state", str(tmp_path / "elsewhere.json"))
        assert (found.code, "is done" in found.err) == (0, True), found.err


def test_names_are_completed(place: Place) -> None:
    dsn = ("--dsn", f"'{place.database.dsn}'")
    program = place.program
    assert complete(program, *dsn, "snapshot", "start", "--slot", place.slot[:8]) == [place.slot]
    tables = complete(program, *dsn, "snapshot", "start", "--table", "public.")
    assert tables == ["public.hidden", "public.keyless", "public.orders", "public.parts1"]
    place.path = place.default_file(program)
    place.save(place.state("first"), place.state("second"))
    assert complete(program, *dsn, "snapshot", "pause", "s") == ["second"]
