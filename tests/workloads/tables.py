"""Schemas and random changes for the tail's tests: every built-in type, hostile names and values."""

from __future__ import annotations

import random
import string
from typing import Any

import psycopg
from psycopg import sql

#: column name → (type, values with special cases).
TYPES: dict[str, tuple[str, list[str]]] = {
    "i2": ("smallint", ["-32768", "0", "32767"]),
    "i4": ("integer", ["-2147483648", "42"]),
    "i8": ("bigint", ["-9223372036854775808", "9223372036854775807"]),
    "oid_": ("oid", ["0", "4294967295"]),
    "num": ("numeric", ["0.10", "-12345678901234567890123456789.000000000000000001", "NaN", "1e-20", "Infinity"]),
    "num2": ("numeric(12,3)", ["1.5", "-0.001", "999999999.999"]),
    "f4": ("real", ["1.5", "-0", "NaN", "Infinity", "-Infinity", "1e-30", "3.4e38"]),
    "f8": ("double precision", ["0.1", "1e300", "NaN", "-Infinity", "123456789012345680", "5e-324"]),
    "money_": ("money", ["-1234.56", "0"]),
    "b": ("boolean", ["t", "f"]),
    "t": ("text", ["", "plain", 'quo"te \\ back\nnew\ttab\r\x01', "emoji 🐘 ünï", "{}", "null", "'", "a%sb%%"]),
    "vc": ("varchar(40)", ["x", "Ω"]),
    "ch": ("char(5)", ["ab", ""]),
    "ch1": ('"char"', ["x", ""]),
    "nm": ("name", ["pg_class"]),
    "by": ("bytea", ["\\x", "\\x00ff10", "\\x5c22"]),
    "d": ("date", ["2026-01-31", "0044-03-15 BC", "infinity", "-infinity", "10000-12-31"]),
    "ti": ("time", ["00:00:00", "23:59:59.999999", "24:00:00"]),
    "titz": ("timetz", ["12:00:00+05:30", "00:00:00-08"]),
    "ts": ("timestamp", ["2026-01-31 12:34:56.789", "infinity", "0044-03-15 12:00:00 BC", "294276-12-31 23:59:59"]),
    "tstz": (
        "timestamptz",
        ["2026-01-31 12:34:56.789+05:30", "-infinity", "0044-03-15 12:00:00+00 BC", "1999-12-31 23:59:59Z"],
    ),
    "iv": ("interval", ["1 year 2 mons 3 days 04:05:06.7", "-1 day", "0"]),
    "js": ("json", ['{"b": 1,\n "a": [1, 2.50, null]}', '"x"', "null", "1.000", "[]"]),
    "jb": ("jsonb", ['{"b": 1, "a": [1, 2.50, null, "é\\n"]}', "null", "0.10"]),
    "jp": ("jsonpath", ['$."a"[*]']),
    "xm": ("xml", ['<a b="1">x &amp; y</a>']),
    "uu": ("uuid", ["00000000-0000-0000-0000-00000000000f"]),
    "ine": ("inet", ["10.0.0.1/8", "::1"]),
    "ci": ("cidr", ["10.0.0.0/8"]),
    "mac": ("macaddr", ["08:00:2b:01:02:03"]),
    "mac8": ("macaddr8", ["08:00:2b:01:02:03:04:05"]),
    "bi": ("bit(3)", ["101"]),
    "vb": ("varbit", ["10101", ""]),
    "pt": ("point", ["(1.5,2)"]),
    "ln": ("line", ["{1,2,3}"]),
    "ls": ("lseg", ["[(0,0),(1,1)]"]),
    "bx": ("box", ["(1,1),(0,0)"]),
    "pa": ("path", ["((0,0),(1,1))", "[(0,0),(1,1)]"]),
    "pg": ("polygon", ["((0,0),(1,1),(2,0))"]),
    "cir": ("circle", ["<(0,0),2>"]),
    "tsv": ("tsvector", ["'a':1 'b':2"]),
    "tsq": ("tsquery", ["'a' & 'b'"]),
    "lsn_": ("pg_lsn", ["16/B374D848"]),
    "snap": ("pg_snapshot", ["10:20:10,14,15"]),
    "ir": ("int4range", ["[1,10)", "empty", "(,)"]),
    "nr": ("numrange", ["[1.5,2.5]"]),
    "tr": ("tstzrange", ["[2026-01-01 00:00:00+00,infinity)"]),
    "mr": ("int4multirange", ["{[1,3),[5,8)}", "{}"]),
    "ia": ("integer[]", ["{1,NULL,3}", "{}", "{{1,2},{3,4}}", "[2:3]={7,8}"]),
    "ta": ("text[]", ['{a,"b c","quo\\"te","back\\\\slash",NULL,"NULL",""}', '{"{",","}', '{"ünï 🐘"}']),
    "fa": ("float8[]", ["{1.5,NaN,-Infinity}"]),
    "ba": ("boolean[]", ["{t,f,NULL}"]),
    "na": ("numeric[]", ["{1.10,NaN}"]),
    "da": ("timestamptz[]", ['{"2026-01-01 00:00:00+00",infinity}']),
    "ja": ("jsonb[]", ['{"{\\"a\\": 1}"}']),
    "bya": ("bytea[]", ['{"\\\\x00ff"}']),
    "bxa": ("box[]", ["{(1,1),(0,0);(3,3),(2,2)}"]),
    "iv2": ("int2vector", ["1 2 3", ""]),
    "ov": ("oidvector", ["1 2"]),
    "rc": ("regclass", ["pg_class"]),
    "en": ("mood", ["happy", 'so "so"']),
    "ena": ("mood[]", ['{happy,"so \\"so\\""}']),
    "dom": ("posint", ["7"]),
    "domt": ("shortname", ["ab"]),
    "doma": ("posint[]", ["{1,2}"]),
    "co": ("address", ['("1 Main ""St""",12345,t)', "(,,)", '("a,b(c)\\\\",1,f)']),
    "coa": ("address[]", ['{"(x,1,t)","(\\"a \\"\\"q\\"\\"\\",2,f)"}']),
    "cn": ("nested", ['("(x,1,t)","{1,2}","2026-01-31 00:00:00")']),
}

SCHEMA = [
    "CREATE TYPE mood AS ENUM ('happy', 'so \"so\"')",
    "CREATE DOMAIN posint AS integer CHECK (VALUE > 0)",
    "CREATE DOMAIN shortname AS varchar(10)",
    "CREATE TYPE address AS (street text, zip integer, valid boolean)",
    "CREATE TYPE nested AS (home address, numbers integer[], at timestamp)",
    "CREATE TABLE every_type (id integer PRIMARY KEY, "
    + ", ".join(f"{name} {type_}" for name, (type_, _) in TYPES.items())
    + ")",
]

#: 63 bytes, dots, quotes, emoji, a newline, a percent sign.
HOSTILE_SCHEMA = 'ho.st"ile 🐘'
HOSTILE_TABLE = "t%s.{}\\" + "é" * 20 + '\n"'
HOSTILE_COLUMNS = ["a b", 'q"uote', "dot.ted", "🐘", "per%cent", "new\nline", "back\\slash", "x" * 63]


def every_type_rows() -> list[dict[str, str | None]]:
    """Return rows in which each column takes each of its values, and NULL."""
    longest = max(len(values) for _, values in TYPES.values())
    rows: list[dict[str, str | None]] = [dict.fromkeys(TYPES)]
    for number in range(longest):
        rows.append({name: values[number % len(values)] for name, (_, values) in TYPES.items()})
    return rows


def insert_every_type(conn: Any) -> int:
    """Insert these rows; return how many."""
    rows = every_type_rows()
    try:
        conn.execute("SELECT '<a/>'::xml")
    except psycopg.errors.FeatureNotSupported:  # built without libxml
        rows = [{**row, "xm": None} for row in rows]
    for number, row in enumerate(rows):
        columns = sql.SQL(", ").join(map(sql.Identifier, row))
        values = sql.SQL(", ").join(
            sql.SQL("{}::{}").format(sql.Literal(value), sql.SQL(TYPES[name][0])) for name, value in row.items()
        )
        conn.execute(sql.SQL("INSERT INTO every_type (id, {}) VALUES ({}, {})").format(columns, number, values))
    return len(rows)


def hostile(conn: Any) -> sql.Identifier:
    """Create a table with hostile names; return its name."""
    table = sql.Identifier(HOSTILE_SCHEMA, HOSTILE_TABLE)
    conn.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(HOSTILE_SCHEMA)))
    columns = sql.SQL(", ").join(sql.SQL("{} text").format(sql.Identifier(name)) for name in HOSTILE_COLUMNS)
    conn.execute(
        sql.SQL("CREATE TABLE {} ({}, PRIMARY KEY ({}, {}))").format(
            table, columns, sql.Identifier(HOSTILE_COLUMNS[1]), sql.Identifier(HOSTILE_COLUMNS[4])
        )
    )
    return table


def hostile_text(rng: random.Random, length: int = 20) -> str:
    """Return text with everything that breaks quoting."""
    alphabet = string.ascii_letters + "\"'\\\n\t\r%{}[],;()$ \x01\x7fé🐘\u2028"
    return "".join(rng.choice(alphabet) for _ in range(rng.randint(0, length)))
