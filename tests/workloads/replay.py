"""A random workload with DDL in the stream, and its replay into a second database: no table may differ.

What the stream does not carry (DDL) travels in it as transactional messages, at the place where it was executed. Rows
go in through ``json_populate_record``, so that each value is read by its own type's input function, and are compared as
the server's text of the whole row.
"""

from __future__ import annotations

import json
import random
import re
import subprocess
import time
from base64 import b64decode
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

import psycopg
from psycopg import sql

from rdsrepl.lsn import Lsn
from tests.fixtures.postgres import Database
from tests.workloads.tables import SCHEMA, TYPES

if TYPE_CHECKING:
    from rdsrepl.sandbox.servers.postgres_server import PostgresServer
    from tests.fixtures.program import Program

#: settings of the role that streams; none of them may affect the lines.
ROLE_SETTINGS: Final = {
    "DateStyle": "German, DMY",
    "IntervalStyle": "sql_standard",
    "extra_float_digits": "-15",
    "bytea_output": "escape",
    "TimeZone": "Asia/Kolkata",
    "quote_all_identifiers": "on",
}
_DDL: Final = "ddl"
# JSON does not distinguish json null and SQL NULL, and has no array bounds (docs/formats.md); for
# json_populate_record a vector is not an array.
_LEFT_OUT: Final = frozenset({"iv2", "ov", "xm"})
_LOST: Final = frozenset({"null", "[2:3]={7,8}", '{"b": 1,\n "a": [1, 2.50, null]}'})
# debezium has times in UTC, without their own offset.
_LOCAL_TIMES: Final = frozenset({"12:00:00+05:30", "00:00:00-08"})
_NO_NUMBERS: Final = frozenset({"NaN", "Infinity", "-Infinity"})
_TEXTS: Final = [
    "",
    "plain",
    "two\nlines",
    'q"uo\\te',
    "tab\t\x01",
    "é ÿ",
    "日本語 ①",
    "🐘",
    "null",
    "{}",
    "%s",
    "(1,2)",
]
_ROWS: Final = 12
# Around text that is JSON, and is written to a line unchanged.
_RAW: Final = "\ue000"
_RAW_JSON: Final = re.compile(f'"{_RAW}(.*?){_RAW}"')

_COMPARED: Final = """
SELECT c.oid::pg_catalog.regclass::text FROM pg_catalog.pg_class c
 WHERE c.relkind = 'r' AND c.relnamespace::pg_catalog.regnamespace::text IN ('public', '"s%.x"') ORDER BY 1
"""
_IDENTITY: Final = """
SELECT a.attname FROM pg_catalog.pg_class c
  JOIN pg_catalog.pg_index i ON i.indrelid = c.oid
   AND CASE c.relreplident WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident END
  JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum = ANY (i.indkey)
 WHERE c.oid = %s::pg_catalog.regclass
"""


_COLUMNS: Final = """
WITH RECURSIVE columns (name, oid, typmod) AS (
  SELECT a.attname, a.atttypid, a.atttypmod FROM pg_catalog.pg_attribute a
   WHERE a.attrelid = pg_catalog.format('%%I.%%I', %s::text, %s::text)::pg_catalog.regclass
     AND a.attnum > 0 AND NOT a.attisdropped
  UNION ALL
  SELECT c.name, t.typbasetype, greatest(c.typmod, t.typtypmod)
    FROM columns c JOIN pg_catalog.pg_type t ON t.oid = c.oid WHERE t.typtype = 'd')
SELECT c.name, t.typname, c.typmod FROM columns c JOIN pg_catalog.pg_type t ON t.oid = c.oid WHERE t.typtype <> 'd'
"""


def identity(event: Mapping[str, Any]) -> tuple[int, int, int]:
    """Return the identity of a line of ``json`` or ``debezium`` (docs/formats.md, the identity of a line)."""
    where = event.get("source", event)
    lsn = where["commit_lsn"]
    return where["timeline"], lsn if isinstance(lsn, int) else int(Lsn.parse(lsn)), where["seq"]


def from_debezium(value: Any, type_: str, typmod: int) -> Any:
    """Return a value of ``debezium`` as text for its type's input function."""
    if value is None:
        return None
    if isinstance(value, list) and not type_.startswith("_"):
        raise AssertionError(value)
    if isinstance(value, list):
        return [from_debezium(one, type_ if isinstance(one, list) else type_[1:], typmod) for one in value]
    if type_ in ("json", "jsonb"):
        return f"{_RAW}{value.replace(chr(10), ' ')}{_RAW}"
    if type_ == "timestamptz" and value[0] in "+-" and value[-1] == "Z":
        year, rest = int(value[: value.index("-", 1)]), value[value.index("-", 1) : -1]
        return f"{year if year > 0 else 1 - year:04}{rest}+00{'' if year > 0 else ' BC'}"
    if type_ in ("date", "time", "timestamp"):
        return _moment(value, type_, typmod)
    if type_ in ("numeric", "money"):
        scale = 2 if type_ == "money" else (typmod - 4 & 0x7FF)
        number = value if isinstance(value, str) else value["value"]
        unscaled = int.from_bytes(b64decode(number, validate=True), signed=True)
        shift = scale if isinstance(value, str) else value["scale"]
        digits = f"{abs(unscaled):0{shift + 1}}"
        whole, fraction = (digits[:-shift], digits[-shift:]) if shift else (digits, "")
        return f"{'-' if unscaled < 0 else ''}{whole}{'.' * bool(fraction)}{fraction}"
    if type_ == "bytea":
        return "\\x" + b64decode(value, validate=True).hex()
    if type_ in ("bit", "varbit"):
        if isinstance(value, bool):
            return str(int(value))
        number = int.from_bytes(b64decode(value, validate=True), "little")
        return f"{number:0{max(typmod, 1)}b}" if type_ == "bit" else f"{number:b}" if number else ""
    if type_ == "point":
        return f"({value['x']!r},{value['y']!r})"
    return value


def _moment(value: Any, type_: str, typmod: int) -> str:
    if type_ == "date":
        if value in (-2147472692, -2147472691):
            return "infinity" if value == -2147472692 else "-infinity"
        value = value * 86_400_000_000
    elif 0 <= typmod <= 3:
        value = value * 1000
    if type_ == "timestamp" and value in (9223372036825200000, -9223372036832400000):
        return "infinity" if value > 0 else "-infinity"
    day, micros = divmod(value, 86_400_000_000)
    seconds, fraction = divmod(micros, 1_000_000)
    clock = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}.{fraction:06}"
    if type_ == "time":
        return "24:00:00" if day else clock
    cycles, number = divmod(day + date(1970, 1, 1).toordinal() - 1, 146_097)
    found = date.fromordinal(number + 1)
    year = found.year + 400 * cycles
    era = "" if year > 0 else " BC"
    return f"{year if year > 0 else 1 - year:04}-{found.month:02}-{found.day:02}{f' {clock}' * (type_ != 'date')}{era}"


def connect(database: Database) -> psycopg.Connection[Any]:
    """Connect; text of a SQL_ASCII database is sent and received as bytes."""
    conn = psycopg.connect(database.dsn, autocommit=True, client_encoding="UTF8")
    if conn.info.parameter_status("server_encoding") == "SQL_ASCII":
        conn.execute("SET client_encoding = 'SQL_ASCII'")
    return conn


@dataclass
class Workload:
    """Random transactions on a database: every type, every replica identity, TOAST, partitions, and DDL between them.

    Attributes:
        database: where.
        seed: of everything random.
        numbers_only: leave out NaN and infinities, which wal2json does not print.
    """

    database: Database
    seed: int
    numbers_only: bool = False
    ddl: int = 0
    changes: int = 0
    _attributes: list[tuple[str, str]] = field(default_factory=lambda: [("a", "text"), ("b", "integer")])
    _extra: list[str] = field(default_factory=list)
    _values: dict[str, tuple[str, list[str]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Connect, and choose text that the database's encoding supports."""
        self._rng = random.Random(self.seed)
        self._conn = connect(self.database)
        codec = {"LATIN1": "latin-1", "EUC_JP": "euc_jp"}.get(
            self._conn.info.parameter_status("server_encoding") or "", "utf-8"
        )
        self._texts = [text for text in _TEXTS if _fits(text, codec)]
        for name, (type_, values) in TYPES.items():
            if name not in _LEFT_OUT:
                kept = [v for v in values if v not in _LOST | _LOCAL_TIMES and _fits(v, codec)] or ["01:00:00+00"]
                if self.numbers_only and name in ("num", "f4", "f8"):
                    kept = [v for v in kept if v not in _NO_NUMBERS]
                self._values[name] = (type_, kept)

    def schema(self) -> list[str]:
        """Return the statements that create the tables, in both databases."""
        columns = ", ".join(f"{name} {type_}" for name, (type_, _) in self._values.items())
        return [
            *SCHEMA[:-1],
            f"CREATE TABLE every (id integer PRIMARY KEY, {columns})",
            "CREATE TYPE pair AS (a text, b integer)",
            "CREATE DOMAIN dpair AS pair",
            "CREATE TYPE outer_of AS (ps pair[], j jsonb)",
            "CREATE TABLE comps (id integer PRIMARY KEY, c pair, cs pair[], d dpair, o outer_of)",
            "CREATE TABLE big (id integer PRIMARY KEY, v text, n integer)",
            "ALTER TABLE big ALTER v SET STORAGE EXTERNAL",
            "CREATE TABLE full_none (id integer, v text, j json, n numeric)",
            "ALTER TABLE full_none ALTER v SET STORAGE EXTERNAL",
            "ALTER TABLE full_none REPLICA IDENTITY FULL",
            "CREATE TABLE ident (id integer PRIMARY KEY, code text NOT NULL, v text)",
            "CREATE UNIQUE INDEX ident_code ON ident (code)",
            'CREATE SCHEMA "s%.x"',
            'CREATE TABLE "s%.x"."t""%s" (id integer PRIMARY KEY, "a""b" text, "c.d" text)',
            "CREATE TABLE part (id integer PRIMARY KEY, v text) PARTITION BY RANGE (id)",
            "CREATE TABLE part_low PARTITION OF part FOR VALUES FROM (MINVALUE) TO (6)",
            "CREATE TABLE part_high (v text, id integer NOT NULL)",
            "ALTER TABLE part ATTACH PARTITION part_high FOR VALUES FROM (6) TO (MAXVALUE)",
        ]

    def run(self, transactions: int) -> None:
        """Execute this many transactions."""
        for _ in range(transactions):
            if self._rng.random() < 0.1:
                self._alone()
                continue
            with self._conn.transaction():
                for _ in range(self._rng.randint(1, 4)):
                    kind = self._rng.random()
                    if kind < 0.12:
                        self._definition()
                    elif kind < 0.2:
                        with self._conn.transaction(force_rollback=True):
                            self._change()
                    else:
                        self._change()

    def close(self) -> None:
        """Close the connection."""
        self._conn.close()

    def _execute(self, query: str, parameters: Sequence[Any] = ()) -> None:
        self._conn.execute(query.encode(), parameters or None)  # bytes, because the query is not a literal

    def _message(self, statement: str) -> None:
        self.ddl += 1
        self._conn.execute("SELECT pg_catalog.pg_logical_emit_message(true, %s, %s)", (_DDL, statement))

    def _define(self, *statements: str) -> None:
        for statement in statements:
            self._execute(statement)
            self._message(statement)

    def _alone(self) -> None:
        """Execute DDL that only later transactions use."""
        self._define(
            f"ALTER TYPE mood ADD VALUE 'm{self.ddl}'"
            if self._rng.random() < 0.5
            else "ALTER TYPE mood RENAME VALUE 'happy' TO 'glad'; ALTER TYPE mood RENAME VALUE 'glad' TO 'happy'"
        )

    def _definition(self) -> None:
        number = self.ddl
        choice = self._rng.choice(["type", "type", "type", "column", "column", "identity", "table", "again"])
        if choice == "type":
            self._alter_type(number)
        elif choice == "column":
            if self._extra and self._rng.random() < 0.5:
                name = self._extra.pop(self._rng.randrange(len(self._extra)))
                renamed = self._rng.random() < 0.5
                self._define(
                    f"ALTER TABLE big {'RENAME' if renamed else 'DROP'} {name}{f' TO r{number}' if renamed else ''}"
                )
                self._extra += [f"r{number}"] if renamed else []
            else:
                type_ = self._rng.choice(["text", "integer", "pair", "integer[]"])
                default = {"text": "'x'", "integer": "7", "pair": "NULL", "integer[]": "'{1}'"}[type_]
                self._define(f"ALTER TABLE big ADD x{number} {type_} DEFAULT {default}")
                self._extra.append(f"x{number}")
        elif choice == "identity":
            how = self._rng.choice(["DEFAULT", "FULL", "USING INDEX ident_code"])
            self._define(f"ALTER TABLE ident REPLICA IDENTITY {how}")
        elif choice == "table":
            self._define(f"CREATE TABLE n{number} (id integer PRIMARY KEY, c pair, v text)")
            self._execute(f"INSERT INTO n{number} SELECT g, NULL, 'v' || g FROM generate_series(1, 3) g")
            self.changes += 3
            if self._rng.random() < 0.5:
                self._define(f"DROP TABLE n{number}")
        else:
            # The same name, another type: changes that are not read yet have the old one.
            self._define(
                "ALTER TABLE comps DROP o",
                "DROP TYPE outer_of",
                f"CREATE TYPE outer_of AS (k{number} integer, ps pair[], j text)",
                "ALTER TABLE comps ADD o outer_of",
            )

    def _alter_type(self, number: int) -> None:
        choice = self._rng.random()
        name, type_ = self._rng.choice(self._attributes)
        if choice < 0.4 or len(self._attributes) == 1:
            new = self._rng.choice(["text", "integer", "boolean", "jsonb", "numeric"])
            self._define(f"ALTER TYPE pair ADD ATTRIBUTE n{number} {new}")
            self._attributes.append((f"n{number}", new))
        elif choice < 0.7:
            self._define(f"ALTER TYPE pair DROP ATTRIBUTE {name}")
            self._attributes.remove((name, type_))
        else:
            self._define(f"ALTER TYPE pair RENAME ATTRIBUTE {name} TO r{number} CASCADE")
            self._attributes[self._attributes.index((name, type_))] = (f"r{number}", type_)

    def _pair(self) -> str:
        values = {"integer": "7", "boolean": "t", "jsonb": '{"k": [1.50]}', "numeric": "1.10"}
        row = sql.SQL(", ").join(
            sql.Literal(
                self._rng.choice([None, values[type_]])
                if type_ in values
                else self._rng.choice(["t", "1", *self._texts])
            )
            for _, type_ in self._attributes
        )
        query = sql.SQL("SELECT ROW({})::text").format(row)
        found = self._conn.execute(query).fetchone()
        assert found is not None
        return found[0].decode() if isinstance(found[0], bytes) else str(found[0])

    def _text(self) -> str:
        return self._rng.choice(self._texts) + str(self._rng.randint(0, 99))

    def _change(self) -> None:
        rng, key = self._rng, self._rng.randint(1, _ROWS)
        self.changes += 1
        choice = rng.randrange(12)
        if choice < 3:
            name, (type_, values) = rng.choice(list(self._values.items()))
            if choice == 0:
                names = rng.sample(list(self._values), 12)
                marks = ", ".join(f"%s::{self._values[n][0]}" for n in names)
                self._execute("DELETE FROM every WHERE id = %s", (key,))
                self._execute(
                    f"INSERT INTO every (id, {', '.join(names)}) VALUES ({key}, {marks})",
                    [rng.choice([None, *self._values[n][1]]) for n in names],
                )
            else:
                self._execute(
                    f"UPDATE every SET {name} = %s::{type_} WHERE id = %s", (rng.choice([None, *values]), key)
                )
        elif choice < 6:
            pair = self._pair()
            self._execute("DELETE FROM comps WHERE id = %s", (key,))
            self._execute(
                "INSERT INTO comps (id, c, cs, d) "
                "VALUES (%s, %s::text::pair, ARRAY[%s::text::pair, NULL], %s::text::dpair)",
                (key, pair, pair, pair),
            )
            if rng.random() < 0.5:
                self._execute(
                    "UPDATE comps SET c = %s::text::pair, o.ps = ARRAY[%s::text::pair] WHERE id = %s",
                    (self._pair(), pair, key),
                )
        elif choice == 6:
            value = self._text() * rng.choice([1, 4000])
            self._execute(
                "INSERT INTO big (id, v, n) VALUES (%s, %s, 1) ON CONFLICT (id) DO UPDATE SET v = excluded.v",
                (key, value),
            )
        elif choice == 7:
            self._execute("UPDATE big SET n = %s WHERE id = %s", (key, key))
            self._execute(
                "UPDATE big SET id = id + 100 WHERE id = %s AND NOT EXISTS (SELECT 1 FROM big WHERE id = %s)",
                (key, key + 100),
            )
        elif choice == 8:
            self._execute(
                "INSERT INTO full_none VALUES (%s, %s, %s, %s)",
                (key, self._text() * rng.choice([1, 4000]), rng.choice([None, '{"a": 1.50}']), rng.choice([None, 1])),
            )
            self._execute("UPDATE full_none SET n = 2.50 WHERE ctid = (SELECT min(ctid) FROM full_none)")
            if rng.random() < 0.3:
                self._execute("DELETE FROM full_none WHERE ctid = (SELECT max(ctid) FROM full_none)")
        elif choice == 9:
            self._execute(
                "INSERT INTO ident VALUES (%s, %s, %s) ON CONFLICT DO NOTHING", (key, f"c{key}", self._text())
            )
            self._execute(
                "UPDATE ident SET v = %s, code = code || %s WHERE id = %s",
                (self._text(), rng.choice(["", "x"]), key - 1),
            )
            self._execute(
                "UPDATE ident SET id = -id WHERE id = %s AND NOT EXISTS (SELECT 1 FROM ident WHERE id = %s)",
                (key, -key),
            )
            self._execute("DELETE FROM ident WHERE id = %s", (rng.randint(-_ROWS, _ROWS),))
        elif choice == 10:
            self._execute("INSERT INTO part VALUES (%s, %s) ON CONFLICT DO NOTHING", (key, self._text()))
            self._execute(
                "UPDATE part SET id = id + 5, v = %s WHERE id = %s AND NOT EXISTS (SELECT 1 FROM part WHERE id = %s)",
                (self._text(), key, key + 5),
            )
            if rng.random() < 0.1:
                self._execute(rng.choice(["TRUNCATE part", "TRUNCATE part_low, full_none", "TRUNCATE big"]))
        else:
            self._execute(
                'INSERT INTO "s%%.x"."t""%%s" VALUES (%s, %s, %s) '
                'ON CONFLICT (id) DO UPDATE SET "c.d" = excluded."c.d"',
                (key, self._text(), self._text()),
            )


class Replica:
    """A second database that is written only from the lines of a stream."""

    def __init__(self, database: Database, schema: Sequence[str]) -> None:
        """Connect, and create the tables that exist at the start of the stream."""
        self._conn = connect(database)
        for statement in schema:
            self._conn.execute(statement.encode())
        self._seen: set[tuple[int, int, int]] = set()
        self._deleted: tuple[tuple[int, int, int], bytes] | None = None
        self._returned = b""
        self._types: dict[tuple[str, str], dict[str, tuple[str, int]]] = {}
        self.repeats = 0

    def close(self) -> None:
        """Close the connection."""
        self._conn.close()

    def apply(self, line: bytes) -> None:
        """Apply one line of ``json`` or ``debezium``; a line whose identity was seen is a repeat, and is dropped.

        Raises:
            AssertionError: it does not fit: no such row, no such table, a value that its type does not take.
        """
        text = line.decode("utf-8", "surrogateescape")
        event = json.loads(text, parse_int=lambda digits: -0.0 if digits == "-0" else int(digits))
        if identity(event) in self._seen:
            self.repeats += 1
            return
        self._seen.add(identity(event))
        op = event["op"]
        if op == "m":
            self._types.clear()
            self._conn.execute(_statement(event))
            return
        where = event.get("source", event)
        if "source" in event:
            event, line = self._from_debezium(event)
        table = sql.Identifier(where["schema"], where["table"])
        if op == "t":
            self._write(sql.SQL("TRUNCATE {}").format(table))
            return
        after = list(event["after"] or {})
        columns = sql.SQL(", ").join(map(sql.Identifier, after))
        new = sql.SQL("SELECT {} FROM json_populate_record(NULL::{}, $1::json->'after')").format(columns, table)
        if op == "c" and event.get("unchanged"):
            written = self._write(self._moved(event, table), line, self._deleted[1] if self._deleted else b"")
        elif op == "c":
            written = self._write(sql.SQL("INSERT INTO {} ({}) {}").format(table, columns, new), line)
        elif op == "u":
            written = self._write(
                sql.SQL("UPDATE {} SET ({}) = ({}) WHERE {}").format(table, columns, new, self._row(event, table)), line
            )
        else:
            delete = sql.SQL("DELETE FROM {0} t WHERE {1} RETURNING t::text").format(table, self._row(event, table))
            written = self._write(delete, line)
            self._deleted = (identity(event), self._returned)
        assert written == 1, f"{written} rows: {line!r}"

    def _moved(self, event: Mapping[str, Any], table: sql.Identifier) -> sql.Composable:
        """Return the INSERT of a row whose key changed: its unchanged values are in the row that was deleted before."""
        timeline, commit_lsn, seq = identity(event)
        assert self._deleted is not None and self._deleted[0] == (timeline, commit_lsn, seq - 1), event
        names = [*event["after"], *event["unchanged"]]
        values = [sql.SQL("n.{}").format(sql.Identifier(name)) for name in event["after"]]
        values += [sql.SQL("o.{}").format(sql.Identifier(name)) for name in event["unchanged"]]
        return sql.SQL(
            "INSERT INTO {0} ({1}) SELECT {2} FROM json_populate_record(NULL::{0}, $1::json->'after') n, "
            "CAST($2::text AS {0}) o"
        ).format(
            table,
            sql.SQL(", ").join(map(sql.Identifier, names)),
            sql.SQL(", ").join(values),
        )

    def _from_debezium(self, event: Mapping[str, Any]) -> tuple[dict[str, Any], bytes]:
        """Return the event with values as text for the server's input functions, without placeholders."""
        table = (event["source"]["schema"], event["source"]["table"])
        if table not in self._types:
            rows = self._conn.execute(_COLUMNS, table).fetchall()
            self._types[table] = {_str(name): (_str(type_), typmod) for name, type_, typmod in rows}
        types, as_text = self._types[table], event.get("as_text", ())
        plain: dict[str, Any] = dict(event)
        for member in ("before", "after"):
            plain[member] = event[member] and {
                name: value if name in as_text else from_debezium(value, *types[name])
                for name, value in event[member].items()
                if member == "before" or name not in event.get("unchanged", ())
            }
        text = _RAW_JSON.sub(lambda found: str(json.loads(f'"{found[1]}"')), json.dumps(plain, ensure_ascii=False))
        return plain, text.encode("utf-8", "surrogateescape")

    def _row(self, event: Mapping[str, Any], table: sql.Identifier) -> sql.Composable:
        """Return the condition that selects the old row, with all values that the line has."""
        member, names = "before", event["before"]
        if names is None:
            member = "key" if "key" in event else "after"
            names = event[member]
            if member == "after":  # debezium: the key did not change
                name = table.as_string(self._conn)
                names = [row[0] for row in self._conn.execute(_IDENTITY, (name,))]
                names = [name.decode() if isinstance(name, bytes) else name for name in names]
        columns = sql.SQL(", ").join(map(sql.Identifier, names))
        return sql.SQL(
            "ctid = (SELECT ctid FROM {0} WHERE ROW({1})::text = "
            "(SELECT ROW({1})::text FROM json_populate_record(NULL::{0}, $1::json->{2})) LIMIT 1)"
        ).format(table, columns, sql.Literal(member))

    def _write(self, query: sql.Composable, *parameters: bytes) -> int:
        text = query.as_string(self._conn).encode("utf-8", "surrogateescape")
        result = self._conn.pgconn.exec_params(text, parameters or None)
        assert not result.error_message, (result.error_message, parameters, text)
        self._returned = result.get_value(0, 0) or b"" if result.ntuples else b""
        return result.command_tuples or 0


def _statement(event: Mapping[str, Any]) -> bytes:
    """Return the DDL in a message."""
    message = event.get("message", event)
    assert message["prefix"] == _DDL
    content: str = message["content"]
    return b64decode(content) if "message" in event else content.encode()


def differences(source: Database, replica: Database) -> list[str]:
    """Return the names of the tables whose rows differ, or that one of the two databases lacks."""
    found: list[dict[str, Counter[Any]]] = []
    for database in (source, replica):
        with closing(connect(database)) as conn:
            names = [_str(row[0]) for row in conn.execute(_COMPARED)]
            found.append(
                {
                    name: Counter(row[0] for row in conn.execute(f"SELECT t::text FROM ONLY {name} t".encode()))
                    for name in names
                }
            )
    one, two = found
    return sorted(name for name in one.keys() | two.keys() if one.get(name) != two.get(name))


def _str(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _fits(text: str, codec: str) -> bool:
    try:
        text.encode(codec)
    except UnicodeEncodeError:
        return False
    # PostgreSQL's EUC_JP maps a few characters differently.
    return codec != "euc_jp" or not any("\x80" <= character <= "\xff" for character in text)


@dataclass(frozen=True)
class Replayed:
    """The result of replaying a slot's lines.

    Attributes:
        plugin, format: of the stream.
        lines: how many there were.
        repeats: how many of them had come before.
        as_text: how many have a value written as text.
        differing: the tables that differ from the source's.
    """

    plugin: str
    format: str
    lines: int
    repeats: int
    as_text: int
    differing: list[str]


class Oracle:
    """A source database with slots, and a replica for each."""

    def __init__(self, program: Program, directory: Path, server: PostgresServer, encoding: str, seed: int) -> None:
        self._program = program
        self._directory = directory
        self._encoding = encoding
        self._server = server
        self._stack = ExitStack()
        self.role = f"replay_{uuid4().hex[:12]}"
        self.source = self._database()
        # (slot, plugin, format); a name used before would be a recreated slot, which the tail refuses.
        self.streams = [(f"{self.role}_j", "pgoutput", "json"), (f"{self.role}_d", "pgoutput", "debezium")]
        if server.binaries.has_plugin("wal2json"):
            self.streams.append((f"{self.role}_w", "wal2json", "json"))
        self.workload = Workload(self.source, seed, numbers_only=len(self.streams) > 2)
        self._stack.callback(self.workload.close)
        self.source.run(
            *self.workload.schema(),
            "CREATE PUBLICATION p FOR ALL TABLES",
            f"CREATE ROLE {self.role} LOGIN REPLICATION PASSWORD 'x'",
            *(f"ALTER ROLE {self.role} SET {name} = '{value}'" for name, value in ROLE_SETTINGS.items()),
            *(f"SELECT pg_create_logical_replication_slot('{slot}', '{plugin}')" for slot, plugin, _ in self.streams),
        )
        self._stack.callback(self.source.run, f"DROP ROLE {self.role}")

    def __enter__(self) -> Oracle:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _database(self) -> Database:
        made = Database(self._server, f"t_{uuid4().hex[:12]}")
        with closing(self._server.connect()) as conn:
            conn.execute(f"CREATE DATABASE {made.name} TEMPLATE template0 ENCODING '{self._encoding}' LOCALE 'C'")
        self._stack.callback(self._drop, made.name)
        return made

    def _drop(self, name: str) -> None:
        with closing(self._server.connect()) as conn:
            slots = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = %s"
            conn.execute(slots, (name,))
            conn.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def out(self, slot: str) -> Path:
        return self._directory / f"{slot}.{self._encoding}"

    def _tail(self, slot: str, fmt: str, *words: str) -> subprocess.Popen[bytes]:
        dsn = self._server.dsn(user=self.role, dbname=self.source.name)
        if fmt == "debezium":
            words = ("--debezium-interval", "string", *words)
        words = ("-q", "slot", "tail", slot, "--format", fmt, *words)
        with self.out(slot).open("ab") as file:
            return self._program.start(*words, dsn=dsn, env={"PGPASSWORD": "x"}, stdout=file, stderr=subprocess.PIPE)

    def stream_and_kill(self) -> None:
        """Kill each slot's tail after it has written lines."""
        for slot, _, _ in self.streams:
            self.out(slot).touch()
        sizes = {slot: self.out(slot).stat().st_size for slot, _, _ in self.streams}
        tails = {slot: self._tail(slot, fmt) for slot, _, fmt in self.streams}
        for slot, tail in tails.items():
            while self.out(slot).stat().st_size <= sizes[slot] and tail.poll() is None:
                time.sleep(0.02)
            assert tail.poll() is None, tail.communicate()[1].decode()
            tail.kill()
            tail.communicate()

    def finish(self) -> None:
        """Stream the rest."""
        for tail in [self._tail(slot, fmt, "--until-now") for slot, _, fmt in self.streams]:
            _, err = tail.communicate(timeout=120)
            assert tail.returncode == 0, err.decode()

    def replay(self) -> list[Replayed]:
        """Apply each slot's lines to its own database, and compare that with the source."""
        results: list[Replayed] = []
        for slot, plugin, fmt in self.streams:
            database = self._database()
            lines = self.out(slot).read_bytes().split(b"\n")[:-1]
            with closing(Replica(database, self.workload.schema())) as replica:
                for line in lines:
                    replica.apply(line)
                text = sum(b'"as_text"' in line for line in lines)
                differing = differences(self.source, database)
                results.append(Replayed(plugin, fmt, len(lines), replica.repeats, text, differing))
        return results
