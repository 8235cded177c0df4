"""Types that change before or while their changes are streamed: a value is correct, or it is the server's text, marked.

The decoder reads what a real slot gives, over SQL, so that each change of a type is made exactly where it is wanted.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from struct import pack
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rdsrepl.config import Target
from rdsrepl.lsn import Lsn
from rdsrepl.tail.decoders.pgoutput import PgoutputDecoder
from rdsrepl.tail.formats import values
from rdsrepl.tail.formats.base import Format
from rdsrepl.tail.formats.debezium import DebeziumFormat
from rdsrepl.tail.formats.json_format import JsonFormat
from rdsrepl.tail.formats.nested_values import array, composite
from rdsrepl.tail.formats.partition_keys import KeyedFormat, keyed_records
from rdsrepl.tail.formats.pretty import PrettyFormat
from rdsrepl.tail.formats.type_catalog import Catalog
from rdsrepl.tail.formats.wal2json_format import Wal2jsonFormat
from rdsrepl.tail.model import TableFilter
from tests.fixtures.postgres import Database

if TYPE_CHECKING:
    from rdsrepl.sandbox.servers.postgres_server import PostgresServer
    from tests.fixtures.program import Program

_CHANGES = (
    "SELECT lsn, data FROM pg_logical_slot_get_binary_changes('g', NULL, NULL, "
    "'proto_version', '1', 'publication_names', 'p')"
)


class Tail:
    """A decoder of the slot g."""

    def __init__(self, database: Database, target: Target) -> None:
        self.warnings: list[str] = []
        self.database = database
        self.catalog = Catalog(target, self.warnings.append)
        self.decoder = self.of(JsonFormat(self.catalog))

    def of(self, fmt: Format) -> PgoutputDecoder:
        return PgoutputDecoder(fmt, TableFilter(), self.catalog)

    def messages(self) -> list[bytes]:
        """Consume the slot's changes, each message as the server would stream it."""
        with closing(self.database.connect()) as conn:
            conn.execute("SET bytea_output = 'hex'")
            rows = conn.execute(_CHANGES).fetchall()
        positions = [int(Lsn.parse(str(lsn))) for lsn, _ in rows]
        return [b"w" + pack(">QQq", at, at, 0) + data for at, (_, data) in zip(positions, rows, strict=True)]

    def __call__(self) -> list[Any]:
        """Decode the slot's changes."""
        batch = self.decoder.feed(self.messages())
        assert batch.error is None
        return [json.loads(line) for line in batch.lines]


@contextmanager
def tailing(database: Database, target: Target | None = None) -> Iterator[Tail]:
    """Create a decoder of the slot g, with a catalogue connection to the target."""
    tail = Tail(database, target or database.target)
    with closing(tail.catalog):
        yield tail


@pytest.fixture
def tail(slot: Database) -> Iterator[Tail]:
    """A decoder of the slot g."""
    with tailing(slot) as made:
        yield made


@pytest.fixture
def slot(database: Database) -> Database:
    """A database with the slot g and a publication of everything."""
    database.run("CREATE PUBLICATION p FOR ALL TABLES", "SELECT pg_create_logical_replication_slot('g', 'pgoutput')")
    return database


_TYPES = (
    "CREATE TYPE pair AS (a text, b integer)",
    "CREATE TYPE box_of AS (p pair[], j json)",
    "CREATE DOMAIN dpair AS pair",
    "CREATE TABLE t (id integer PRIMARY KEY, c pair, cs pair[], deep box_of, dom dpair, n integer)",
)
_COLUMNS = ["c", "cs", "deep", "dom"]


def row(number: int, pair: str) -> str:
    """Return an INSERT of a row whose columns all have this composite."""
    return (
        f"INSERT INTO t VALUES ({number}, '{pair}', ARRAY['{pair}']::pair[], "
        f"""ROW(ARRAY['{pair}']::pair[], '{{"k": 1}}')::box_of, '{pair}', {number})"""
    )


def wanted(pair: Any) -> dict[str, Any]:
    return {"c": pair, "cs": [pair], "deep": {"p": [pair], "j": {"k": 1}}, "dom": pair}


def test_a_type_altered_before_its_changes_are_read(slot: Database, tail: Tail) -> None:
    """Each value has the definition of its time: an object if that is certain, otherwise the server's text."""
    slot.run(*_TYPES)
    slot.run(row(1, "(t,7)"))
    slot.run("ALTER TYPE pair RENAME ATTRIBUTE a TO aa CASCADE")
    slot.run(row(2, "(t,7)"))
    slot.run("ALTER TYPE pair DROP ATTRIBUTE aa, ADD ATTRIBUTE flag boolean")
    slot.run(row(3, "(8,t)"))
    slot.run("ALTER TYPE pair ADD ATTRIBUTE more text, DROP ATTRIBUTE b")
    with closing(slot.connect()) as conn, conn.transaction():
        conn.execute("INSERT INTO t (id, c) VALUES (4, ROW(true, 'x'))")
        conn.execute("ALTER TYPE pair ADD ATTRIBUTE last integer")
        conn.execute("INSERT INTO t (id, c) VALUES (5, ROW(false, 'x', 3))")
    slot.run("INSERT INTO t (id, c) VALUES (6, ROW(true, 'y', 4))", "UPDATE t SET n = 9 WHERE id = 6", "DELETE FROM t")
    events = tail()
    inserts = {event["after"]["id"]: event for event in events if event["op"] == "c"}
    texts = {number: event["after"]["c"] for number, event in inserts.items()}
    assert texts[1] == texts[2] == "(t,7)"
    assert inserts[1]["after"]["cs"] == '{"(t,7)"}'
    assert texts[3] == "(8,t)"
    assert (texts[4], texts[5]) == ("(t,x)", "(f,x,3)")
    for number in (1, 2, 3):
        assert inserts[number]["as_text"] == _COLUMNS
    for number in (4, 5):
        assert inserts[number]["as_text"] == ["c"]
    assert texts[6] == {"flag": True, "more": "y", "last": 4}
    assert "as_text" not in inserts[6]
    (update,) = (event for event in events if event["op"] == "u")
    assert update["after"]["c"] == texts[6]
    assert [event["key"] for event in events if event["op"] == "d"] == [{"id": number} for number in range(1, 7)]


def test_types_altered_under_a_running_tail(slot: Database, tail: Tail) -> None:
    """No Relation message reports it; the next changes have the new names, and changes read in time are no text."""
    slot.run(*_TYPES)
    slot.run(row(1, "(t,7)"))
    (event,) = tail()
    assert {name: event["after"][name] for name in _COLUMNS} == wanted({"a": "t", "b": 7})
    slot.run("ALTER TYPE pair RENAME ATTRIBUTE a TO aa CASCADE", row(2, "(f,7)"))
    (event,) = tail()
    assert {name: event["after"][name] for name in _COLUMNS} == wanted({"aa": "f", "b": 7})
    slot.run("ALTER TYPE pair DROP ATTRIBUTE aa, ADD ATTRIBUTE flag boolean")
    slot.run("INSERT INTO t (id, c) VALUES (3, ROW(5, true))")
    (event,) = tail()
    assert event["after"]["c"] == {"b": 5, "flag": True}
    assert "as_text" not in event
    # A change and then another ALTER before it is read.
    slot.run("INSERT INTO t (id, c) VALUES (4, ROW(6, false))", "ALTER TYPE pair RENAME ATTRIBUTE b TO bb CASCADE")
    (event,) = tail()
    assert (event["after"]["c"], event["as_text"]) == ("(6,f)", ["c"])
    # The catalogue's connection is idle between two batches, and may be closed.
    slot.run(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'rdsrepl' AND datname = "
        "current_database() AND pid <> pg_backend_pid()"
    )
    slot.run("ALTER TABLE t REPLICA IDENTITY FULL", "UPDATE t SET c = ROW(7, true) WHERE id = 4")
    (event,) = tail()
    assert (event["before"]["c"], event["after"]["c"]) == ({"bb": 6, "flag": False}, {"bb": 7, "flag": True})


def test_text_that_would_be_json_members(slot: Database, tail: Tail) -> None:
    """An attribute's text cannot become part of the line's JSON, also when the catalogue has another type for it."""
    traps = ['1,"admin":true', "null", "}", '"', "[1]", "007", "1e5", "NaN", "(1,2)", "{", "\\", "true", "2026-01-31"]
    for number, type_ in enumerate(("integer", "jsonb", "numeric[]", "boolean", "timestamp", "pair", "int2vector")):
        name = f"trap{number}"
        slot.run(
            *(["CREATE TYPE pair AS (x integer, y integer)"] if number == 0 else []),
            f"CREATE TYPE {name} AS (v text)",
            f"CREATE TABLE {name}_t (id integer PRIMARY KEY, c {name})",
        )
        with closing(slot.connect()) as conn:
            for key, trap in enumerate(traps):
                conn.execute(f"INSERT INTO {name}_t VALUES ({key}, ROW(%s))", (trap,))  # type: ignore[call-overload]
        slot.run(f"ALTER TYPE {name} DROP ATTRIBUTE v, ADD ATTRIBUTE v {type_}")
    events = tail()
    assert len(events) == 7 * len(traps)
    for event in events:
        assert event["as_text"] == ["c"]
        assert event["after"].keys() == {"id", "c"}
        assert isinstance(event["after"]["c"], str)


def test_types_that_were_dropped(slot: Database, tail: Tail) -> None:
    """Dropped, recreated with the same name, or replaced by ALTER TABLE, before their changes are read."""
    with closing(slot.connect()) as conn:
        for statement in (
            "CREATE TYPE mood AS ENUM ('happy')",
            "CREATE TYPE comp AS (a integer)",
            "CREATE DOMAIN whole AS integer",
            "CREATE TYPE span AS RANGE (subtype = integer)",
            "CREATE SCHEMA s",
            "CREATE TYPE s.\"Größe\" AS ENUM ('x')",
            "CREATE TABLE t (id integer PRIMARY KEY, m mood, ms mood[], c comp, cs comp[], w whole, ws whole[], "
            'r span, s s."Größe", i integer)',
            "INSERT INTO t VALUES (1, 'happy', '{happy}', '(1)', '{(1)}', 5, '{5}', '[1,2)', 'x', 3)",
            "ALTER TABLE t DROP COLUMN m, DROP COLUMN ms, DROP COLUMN c, DROP COLUMN cs, DROP COLUMN w, "
            "DROP COLUMN ws, DROP COLUMN r, DROP COLUMN s",
            "DROP TYPE mood, span",
            'DROP TYPE s."Größe"',
            "DROP DOMAIN whole",
            "DROP TYPE comp",
            "CREATE TYPE comp AS (b text, c text)",
            "CREATE TYPE mood AS (x integer)",
            "ALTER TABLE t ALTER i TYPE comp USING NULL, ADD m mood",
            "INSERT INTO t (id, i, m) VALUES (2, '(x,y)', '(4)')",
        ):
            conn.execute(statement)
    messages = tail.messages()
    first, second = (json.loads(line) for line in tail.decoder.feed(messages).lines)
    assert first["after"] == {
        **{"id": 1, "m": "happy", "ms": "{happy}", "c": "(1)", "cs": "{(1)}", "w": 5, "ws": "{5}", "r": "[1,2)"},
        **{"s": "x", "i": 3},
    }
    assert first["as_text"] == ["m", "ms", "c", "cs", "ws", "r", "s"]
    assert second["after"] == {"id": 2, "i": {"b": "x", "c": "y"}, "m": {"x": 4}}
    assert "as_text" not in second
    lines = tail.of(Wal2jsonFormat(tail.catalog)).feed(messages).lines
    types = {column["name"]: column["type"] for column in json.loads(lines[1])["columns"]}
    assert types == {
        **{"id": "integer", "m": "mood", "ms": "_mood", "c": "comp", "cs": "_comp", "w": "integer", "ws": "_whole"},
        **{"r": "span", "s": 's."Größe"', "i": "integer"},
    }
    # Every format for programs has the mark, also with a partition key.
    debezium = DebeziumFormat(tail.catalog, database="d", name="n")
    assert json.loads(tail.of(debezium).feed(messages).lines[0])["as_text"] == first["as_text"]
    by_key = KeyedFormat(JsonFormat(tail.catalog), tail.catalog, "key")
    ((key, line), *_) = keyed_records(tail.of(by_key).feed(messages).lines)
    assert (key, json.loads(line)) == (b"public.t:1", first)
    assert 'ms="{happy}"' in tail.of(PrettyFormat(tail.catalog, colour=False)).feed(messages).lines[0]


def test_a_role_that_may_not_read_the_types(slot: Database) -> None:
    """The stream continues with text, and the warning has the remedy; with the privilege there are objects again."""
    slot.run(
        *_TYPES,
        row(1, "(t,7)"),
        f"CREATE ROLE {slot.name} LOGIN PASSWORD 'x'",
        "REVOKE SELECT ON pg_catalog.pg_type, pg_catalog.pg_attribute FROM PUBLIC",
    )
    limited = Target("t", f"{slot.server.dsn(dbname=slot.name, user=slot.name)} password=x")
    try:
        with tailing(slot, limited) as tail:
            (event,) = tail()
            assert event["as_text"] == _COLUMNS
            assert len(tail.warnings) == 1
            assert "GRANT SELECT ON pg_catalog.pg_type, pg_catalog.pg_attribute TO" in tail.warnings[0]
            slot.run(f"GRANT SELECT ON pg_catalog.pg_type, pg_catalog.pg_attribute TO {slot.name}")
            slot.run("ALTER TABLE t ADD extra integer", row(2, "(t,7)"))
            (event,) = tail()
            assert {name: event["after"][name] for name in _COLUMNS} == wanted({"a": "t", "b": 7})
    finally:
        slot.run(f"DROP OWNED BY {slot.name}", f"DROP ROLE {slot.name}")


@pytest.mark.parametrize("plugin", ["pgoutput", "wal2json"])
def test_names_that_are_not_utf8(pg15: PostgresServer, rdsrepl: Program, plugin: str) -> None:
    """A SQL_ASCII database has names of any bytes: tables, keys, types, attributes; they are written unchanged."""
    made = Database(pg15, f"names_{plugin}")
    with closing(pg15.connect()) as conn:
        conn.execute(f"CREATE DATABASE {made.name} TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE 'C'")
    try:
        with closing(psycopg.connect(f"{made.dsn} client_encoding=SQL_ASCII", autocommit=True)) as conn:
            for statement in (
                b'CREATE TYPE "c\xe9" AS ("a\xe9" integer)',
                b'CREATE TABLE "t\xe9" ("i\xe9" integer PRIMARY KEY, c "c\xe9")',
                b'ALTER TABLE "t\xe9" REPLICA IDENTITY FULL',
                b"CREATE PUBLICATION p FOR ALL TABLES",
                f"SELECT pg_create_logical_replication_slot('names_{plugin}', '{plugin}')".encode(),
                b"INSERT INTO \"t\xe9\" VALUES (1, '(2)')",
            ):
                conn.execute(statement)
        tail = rdsrepl.start("-q", "slot", "tail", made.name, "--until-now", dsn=made.dsn, stdout=subprocess.PIPE)
        out, _ = tail.communicate(timeout=120)
        assert tail.returncode == 0
        assert b'"table":"t\xe9","key":{"i\xe9":1},"before":null,"after":{"i\xe9":1,"c":{"a\xe9":2}}' in out
    finally:
        with closing(pg15.connect()) as conn:
            conn.execute("SELECT pg_drop_replication_slot(%s)", (made.name,))
            conn.execute(f"DROP DATABASE {made.name} WITH (FORCE)")


_INNER = composite([("n", values.checked(values.Conversion(values.ValueKind.NUMBER)))])
_EVERY = composite(
    [
        (kind.name, values.checked(values.Conversion(kind)))
        for kind in values.ValueKind
        if kind is not values.ValueKind.CONVERT
    ]
    + [("array", array(_INNER)), ("vector", values.vector), ("oids", values.oidvector)]
)
_SCRAPS = st.sampled_from([*'(){}[],:"\\ =tf01-+.eE\n', '""', "NaN", "NULL", "null", "2026-01-31 00:00:00+00", "\\x00"])
_FIELD = st.one_of(st.text(max_size=8), st.lists(_SCRAPS, max_size=8).map("".join))


@settings(max_examples=150, deadline=None)
@given(st.lists(_FIELD, max_size=14), st.booleans())
@example(["(" * 2000], False)
@example(["[" * 5000], True)
def test_any_composite_text_gives_json(fields: list[str], quoted: bool) -> None:
    """A composite's text becomes JSON with the type's members, or it is refused."""
    if quoted:
        fields = ['"' + field.replace("\\", "\\\\").replace('"', '""') + '"' for field in fields]
    text = "(" + ",".join(fields) + ")"
    for convert, names in ((_EVERY, 13), (array(_EVERY), None), (_INNER, 1)):
        try:
            found = convert(text)
        except (ValueError, IndexError, RecursionError):
            continue
        parsed = json.loads(found, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
        assert "\n" not in found
        assert names is None or len(parsed) == names
