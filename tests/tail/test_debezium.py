"""The ``debezium`` format, compared with the mapping in Debezium's documentation and the values of its tests."""

from __future__ import annotations

import itertools
import json
import struct
from base64 import b64encode
from contextlib import closing
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from rdsrepl import aws_lambda
from rdsrepl.config import Target
from rdsrepl.errors import BadValue, Refused
from rdsrepl.lsn import Lsn
from rdsrepl.tail import preflight
from rdsrepl.tail.formats.debezium_options import DebeziumOptions, TimeMode, debezium_options
from rdsrepl.tail.formats.debezium_values import DebeziumValues, _geometry, _vector
from rdsrepl.tail.formats.partition_keys import keyed_records
from rdsrepl.tail.formats.type_catalog import Catalog
from rdsrepl.tail.model import TableFilter
from rdsrepl.tail.options import FormatName
from rdsrepl.tail.pipeline import assemble
from rdsrepl.tail.sinks.oversize import Oversize
from tests.fixtures.program import run_in_process

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.fixtures.postgres import Database
    from tests.fixtures.program import Program

DEFAULT = "__debezium_unavailable_value"


def base64(*octets: int) -> str:
    return b64encode(bytes(octets)).decode()


def unscaled(text: str, scale: int) -> str:
    """Return a decimal like Kafka Connect's Decimal: java.math.BigInteger.toByteArray, in base64."""
    whole, _, fraction = text.partition(".")
    number = int(Decimal(whole + fraction.ljust(scale, "0")))
    length = 1
    while not -(1 << 8 * length - 1) <= number < 1 << 8 * length - 1:
        length += 1
    return b64encode(number.to_bytes(length, "big", signed=True)).decode()


def variable(text: str, scale: int) -> dict[str, Any]:
    return {"scale": scale, "value": unscaled(text, scale)}


def days(text: str) -> int:
    return (date.fromisoformat(text) - date(1970, 1, 1)).days


def micros(text: str) -> int:
    moment = datetime.fromisoformat(text).replace(tzinfo=UTC)
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // (datetime.resolution)


_INTERVAL = (14 * 30.4375 + 3) * 86400 * 10**6 + (4 * 3600 + 5 * 60) * 10**6 + 6_780_000
_NOON = (13 * 3600 + 51 * 60 + 30) * 10**6

#: name → type, the value as SQL, the event's value by default.
ROWS: dict[str, tuple[str, str, Any]] = {
    # numeric_table
    "si": ("smallint", "1", 1),
    "i": ("integer", "123456", 123456),
    "bi": ("bigint", "1234567890123", 1234567890123),
    "r": ("real", "3.3", 3.3),
    "db": ("double precision", "4.44", 4.44),
    "r_int": ("real", "3", 3),
    "r_nan": ("real", "'NaN'", "NaN"),
    "db_pinf": ("double precision", "'Infinity'", "Infinity"),
    "db_ninf": ("double precision", "'-Infinity'", "-Infinity"),
    "b": ("boolean", "true", True),
    "o": ("oid", "4000000000", 4000000000),
    # numeric_decimal_table
    "d": ("decimal(3,2)", "1.1", unscaled("1.10", 2)),
    "dzs": ("decimal(4)", "10.11", unscaled("10", 0)),
    "dvs": ("decimal", "10.1111", variable("10.1111", 4)),
    "n": ("numeric(6,4)", "22.22", unscaled("22.22", 4)),
    "nvs_int": ("numeric", "22", variable("22", 0)),
    "neg": ("numeric(5,2)", "-1.28", unscaled("-1.28", 2)),
    "wide": ("numeric", f"'-{'9' * 6000}.5'", variable(f"-{'9' * 6000}.5", 1)),
    "n_nan": ("numeric(6,4)", "'NaN'", "NaN"),
    "nvs_inf": ("numeric", "'-Infinity'", "-Infinity"),
    "csh": ("money", "'1234.11'", unscaled("1234.11", 2)),
    "csh_neg": ("money", "'-1234.11'", unscaled("-1234.11", 2)),
    # time_table
    "ts": ("timestamp", "'2016-11-04T13:51:30.123456'", micros("2016-11-04T13:51:30.123456")),
    "tsneg": ("timestamp", "'1936-10-25T22:10:12.608'", micros("1936-10-25T22:10:12.608")),
    "ts_ms": ("timestamp(3)", "'2016-11-04T13:51:30.123456'", micros("2016-11-04T13:51:30.123456") // 1000),
    "ts_neg_ms": ("timestamp(0)", "'1936-10-25T22:10:12'", micros("1936-10-25T22:10:12") // 1000),
    "ts_us": ("timestamp(6)", "'2016-11-04T13:51:30.123456'", micros("2016-11-04T13:51:30.123456")),
    "tz": ("timestamptz", "'2016-11-04T13:51:30.123456+02:00'", "2016-11-04T11:51:30.123456Z"),
    "tz_ms": ("timestamptz(3)", "'2016-11-04T13:51:30.1+02:00'", "2016-11-04T11:51:30.100Z"),
    "tz_s": ("timestamptz(0)", "'2016-11-04T13:51:30+02:00'", "2016-11-04T11:51:30Z"),
    "date": ("date", "'2016-11-04'", days("2016-11-04")),
    "date_pinf": ("date", "'infinity'", -2147472692),
    "date_ninf": ("date", "'-infinity'", -2147472691),
    "date_bc": ("date", "'0044-03-15 BC'", -735160),
    "ti": ("time", "'13:51:30'", _NOON),
    "tip": ("time(3)", "'13:51:30.123'", _NOON // 1000 + 123),
    "ttf": ("time", "'24:00:00'", 86400 * 10**6),
    "ttz": ("timetz", "'13:51:30.123789+02:00'", "11:51:30.123789Z"),
    "tptz": ("timetz(3)", "'13:51:30.123+02:00'", "11:51:30.123Z"),
    "ttz_day": ("timetz", "'24:00:00+00'", "24:00:00Z"),
    "ttz_back": ("timetz", "'01:00:00+05:30'", "19:30:00Z"),
    "it": ("interval", "'P1Y2M3DT4H5M6.78S'", int(_INTERVAL)),
    "it_neg": ("interval", "'-1 mons -2 days -00:00:00.5'", -2629800000000 - 2 * 86400 * 10**6 - 500000),
    "ts_large": ("timestamp", "'21016-11-04T13:51:30.123456'", 601060312290123456),
    "tz_large": ("timestamptz", "'21016-11-04T13:51:30.123456+07:00'", "+21016-11-04T06:51:30.123456Z"),
    "tz_zero": ("timestamptz", "'21016-11-04T13:51:30.000000+07:00'", "+21016-11-04T06:51:30.000000Z"),
    "ts_max": ("timestamp", "'294247-01-01T23:59:59.999999'", 9223371331200000000 - 1),
    "ts_min": ("timestamp", "'4713-12-31T23:59:59.999999 BC'", -210831897600000001),
    "tz_max": ("timestamptz", "'294247-01-01T23:59:59.999999+00:00'", "+294247-01-01T23:59:59.999999Z"),
    "tz_min": ("timestamptz", "'4714-12-31T23:59:59.999999Z BC'", "-4713-12-31T23:59:59.999999Z"),
    "ts_pinf": ("timestamp", "'infinity'", 9223372036825200000),
    "ts_ninf": ("timestamp", "'-infinity'", -9223372036832400000),
    "tz_pinf": ("timestamptz", "'infinity'", "infinity"),
    "tz_ninf": ("timestamptz", "'-infinity'", "-infinity"),
    "ts_beyond": ("timestamp", "'294276-12-31 23:59:59'", "294276-12-31 23:59:59"),
    # bitbin_table, bytea_binmode_table
    "ba": ("bytea", r"'\x010203'", base64(1, 2, 3)),
    "ba_url": ("bytea", r"'\xfbff'", base64(0xFB, 0xFF)),
    "bol": ("bit(1)", "B'0'", False),
    "bol2": ("bit", "B'1'", True),
    "bs": ("bit(2)", "B'11'", base64(3)),
    "bs7": ("bit(7)", "B'1000000'", base64(64)),
    "bv": ("bit(2)", "B'00'", ""),
    "bv2": ("bit(24)", "B'000000110000001000000001'", base64(1, 2, 3)),
    "bvl": ("bit(64)", f"B'1{'0' * 63}'", base64(0, 0, 0, 0, 0, 0, 0, 128)),
    "bv1": ("varbit(1)", "B'1'", True),
    "bvunlimited1": ("varbit", "B'101'", base64(5)),
    "bvunlimited2": ("varbit", "B'111011010001000110000001000000001'", base64(1, 2, 35, 218, 1)),
    # geom_table, text_table, string_table, network addresses, range_table
    "p": ("point", "'(1,1)'", {"x": 1.0, "y": 1.0, "wkb": "AQEAAAAAAAAAAADwPwAAAAAAAPA/", "srid": None}),
    "j": ("json", """'{"bar": "baz"}'""", '{"bar": "baz"}'),
    "j_lines": ("json", """E'{"a":\\n1}'""", '{"a":\n1}'),
    "j_null": ("json", "'null'", "null"),
    "jb": ("jsonb", """'{"bar": "baz"}'""", '{"bar": "baz"}'),
    "x": ("xml", "'<foo>bar</foo><foo>bar</foo>'", "<foo>bar</foo><foo>bar</foo>"),
    "u": ("uuid", "'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
    "vc": ("varchar(2)", "'žš'", "žš"),
    "ch": ("char(6)", "'cdef'", "cdef  "),
    "t": ("text", "'some text'", "some text"),
    "inet_": ("inet", "'192.168.2.0/12'", "192.168.2.0/12"),
    "cidr_": ("cidr", "'192.168.100.128/25'", "192.168.100.128/25"),
    "m": ("macaddr", "'08:00:2b:01:02:03'", "08:00:2b:01:02:03"),
    "m8": ("macaddr8", "'08:00:2b:01:02:03:04:05'", "08:00:2b:01:02:03:04:05"),
    "tsr": ("tsrange", "'[2019-03-31 15:30:00, infinity)'", '["2019-03-31 15:30:00",infinity)'),
    "tzr": ("tstzrange", "'[2017-06-05 11:29:12.549426+00,)'", '["2017-06-05 11:29:12.549426+00",)'),
    "dr": ("daterange", "'[2019-03-31, infinity)'", "[2019-03-31,infinity)"),
    "i4r": ("int4range", "'[1000,6000)'", "[1000,6000)"),
    "nr": ("numrange", "'[5.3,6.3)'", "[5.3,6.3)"),
    "tsv": ("tsvector", "'a b'", "'a' 'b'"),
    # array_table
    "ia": ("integer[]", "'{1,2,NULL}'", [1, 2, None]),
    "bia": ("bigint[]", "'{1550166368505037572}'", [1550166368505037572]),
    "ta": ("text[]", "'{one,\"t,wo\",NULL}'", ["one", "t,wo", None]),
    "ca": ("char(10)[]", "'{cone}'", ["cone      "]),
    "da": ("date[]", "'{2016-11-04,2016-11-05}'", [days("2016-11-04"), days("2016-11-05")]),
    "na": ("numeric(10,2)[]", "'{1.2,3.4}'", [unscaled("1.20", 2), unscaled("3.40", 2)]),
    "nva": ("numeric[]", "'{1.1,2.22}'", [variable("1.1", 1), variable("2.22", 2)]),
    "nnan": ("numeric[]", "'{1.1,NaN}'", "{1.1,NaN}"),
    "fa": ("real[]", "'{1.5,NaN}'", [1.5, "NaN"]),
    "bola": ("boolean[]", "'{t,f}'", [True, False]),
    "ma": ("macaddr[]", "'{08002b:010203}'", ["08:00:2b:01:02:03"]),
    "tra": ("tsrange[]", """'{"[2019-03-31 15:30:00, infinity)"}'""", ['["2019-03-31 15:30:00",infinity)']),
    "ua": ("uuid[]", "'{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}'", ["a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"]),
    "ja": ("json[]", """array['{"bar": "baz"}']::json[]""", ['{"bar": "baz"}']),
    "oa": ("oid[]", "'{3,4000000000}'", [3, 4000000000]),
    "baa": ("bytea[]", r"""array['\x000102'::bytea, '\x030405']""", [base64(0, 1, 2), base64(3, 4, 5)]),
    "tia": ("time[]", "'{00:01:02}'", [62 * 10**6]),
    "tza": ("timestamptz[]", "'{2020-04-01 13:51:02+02}'", ["2020-04-01T11:51:02.000000Z"]),
    "ttza": ("timetz[]", "'{13:51:02+02}'", ["11:51:02Z"]),
    "matrix": ("integer[]", "'{{1,2},{3,4}}'", [[1, 2], [3, 4]]),
    # domains, enums, and what Debezium omits by default
    "dom": ("box_width", "1.1", unscaled("1.10", 2)),
    "dom2": ("box_depth", "1.1", variable("1.10", 2)),
    "doma": ("box_width[]", "'{1.1}'", [unscaled("1.10", 2)]),
    "en": ("mood", "'so \"so\"'", 'so "so"'),
    "ena": ("mood[]", """'{"so \\"so\\""}'""", ['so "so"']),
    "co": ("pair", "'(1,x)'", "(1,x)"),
    "coa": ("pair[]", "'{\"(1,x)\"}'", ["(1,x)"]),
    "bx": ("box[]", "'{(1,1),(0,0);(3,3),(2,2)}'", ["(1,1),(0,0)", "(3,3),(2,2)"]),
    "cir": ("circle", "'<(10,20),10>'", "<(10,20),10>"),
    "iv2": ("int2vector", "'1 2 3'", [1, 2, 3]),
    "ov": ("oidvector", "'4000000000'", [4000000000]),
    "empty": ("text", "NULL", None),
}
TYPES = [
    "CREATE DOMAIN box_width AS numeric(3,2)",
    "CREATE DOMAIN box_depth AS box_width",
    "CREATE TYPE mood AS ENUM ('happy', 'so \"so\"')",
    "CREATE TYPE pair AS (a integer, b text)",
]
#: columns whose value is the server's text, because their mode cannot express it.
AS_TEXT = ["n_nan", "nvs_inf", "ts_beyond", "nnan"]
_NO_NUMBERS = ["r_nan", "db_pinf", "db_ninf", "n_nan", "nvs_inf"]
HSTORE = {
    "hs": ("hstore", """'"key #1" => "val \\" 1", "key2" => NULL'"""),
    "hsa": ("hstore[]", """array['a=>b'::hstore]"""),
}
_FRACTION = micros("2016-11-04T13:51:30.123456")
#: options → values that differ from the default.
MODES: dict[str, dict[str, Any]] = {
    "time=adaptive_time_microseconds": {"tip": _NOON + 123000, "ts_ms": _FRACTION // 1000},
    "time=connect": {
        **{"ts": _FRACTION // 1000, "ti": _NOON // 1000, "tip": _NOON // 1000 + 123, "ttf": 86400000},
        **{"ts_pinf": 9223372036825200, "tia": [62000], "ts_beyond": 9224318015999000},
    },
    "time=isostring": {
        **{"ts": "2016-11-04T13:51:30.123456Z", "ts_ms": "2016-11-04T13:51:30.123Z", "date": "2016-11-04Z"},
        **{"ti": "13:51:30Z", "tip": "13:51:30.123Z", "tz": "2016-11-04T11:51:30.123456Z", "date_bc": "-0043-03-15Z"},
        **{"ts_pinf": "+294247-01-10T04:00:25.2Z", "ts_ninf": "-290308-12-21T19:59:27.6Z", "ttf": "24:00:00Z"},
        **{"da": ["2016-11-04Z", "2016-11-05Z"], "ts_beyond": "+294276-12-31T23:59:59Z", "it": int(_INTERVAL)},
    },
    "time=microseconds": {
        **{"ts_ms": micros("2016-11-04T13:51:30.123"), "tip": _NOON + 123000, "date": days("2016-11-04")},
    },
    "time=nanoseconds": {
        **{"ts": _FRACTION * 1000, "ti": _NOON * 1000, "tip": (_NOON + 123000) * 1000, "date": days("2016-11-04")},
        **{"ts_pinf": (1 << 63) - 1, "ts_ninf": -(1 << 63), "ts_large": "21016-11-04 13:51:30.123456"},
    },
    "decimal=double interval=string": {
        **{"d": 1.1, "dzs": 10.0, "dvs": 10.1111, "n_nan": "NaN", "nvs_inf": "-Infinity", "csh": 1234.11},
        **{"na": [1.2, 3.4], "nnan": [1.1, "NaN"], "wide": "-Infinity"},
        **{"it": "P1Y2M3DT4H5M6.78S", "it_neg": "P0Y-1M-2DT0H0M-0.5S"},
    },
    "decimal=string binary=hex": {
        **{"d": "1.10", "dzs": "10", "dvs": "10.1111", "n": "22.2200", "n_nan": "NAN", "csh_neg": "-1234.11"},
        **{"nvs_inf": "NEGATIVE_INFINITY", "na": ["1.20", "3.40"], "nnan": ["1.1", "NAN"]},
        **{"ba": "010203", "baa": ["000102", "030405"]},
    },
    "binary=base64": {"ba": "AQID", "ba_url": "+/8="},
    "binary=base64-url-safe": {"ba": "AQID", "ba_url": "-_8="},
}


def identity(event: dict[str, Any]) -> tuple[int, int, int]:
    source = event["source"]
    return source["timeline"], source["commit_lsn"], source["seq"]


def stream(rdsrepl: Program, database: Database, *words: str) -> list[dict[str, Any]]:
    """Return the command's output."""
    command = ("slot", "tail", "g", "--until-now", "--no-confirm", "--format", "debezium", *words)
    result = rdsrepl(*command, dsn=database.dsn)
    assert result.code == 0, result.err
    events: list[dict[str, Any]] = result.lines
    return events


def decoded(
    database: Database,
    *modes: dict[str, Any],
    slot: str = "g",
    partition_by: str | None = None,
    asked_of: Target | None = None,
    warn: Callable[[str], None] | None = None,
) -> list[list[str]]:
    """Return the lines of a slot's changes, in each of the modes."""
    lines: list[list[str]] = []
    with closing(Catalog(asked_of or database.target, warn)) as catalog, closing(database.connect()) as conn:
        checked = preflight.check(database.target, slot, ("p",) if slot == "g" else ())
        for mode in modes:
            words: dict[str, Any] = {"tables": TableFilter(), "given": {}, "until_lsn": None, "colour": False}
            options = debezium_options(str, is_debezium=True, **mode)
            pipeline = assemble(
                checked, FormatName.debezium, catalog, **words, partition_by=partition_by, debezium=options
            )
            for setting, value in pipeline.settings.items():
                conn.execute("SELECT pg_catalog.set_config(%s, %s, false)", (setting, value))
            rows = conn.execute(
                "SELECT lsn::text, data FROM pg_logical_slot_peek_binary_changes(%s, NULL, NULL, VARIADIC %s::text[])",
                (slot, [text for pair in pipeline.plugin_options.items() for text in pair]),
            ).fetchall()
            messages = [struct.pack(">cQQq", b"w", int(Lsn.parse(lsn)), int(Lsn.parse(lsn)), 7) + d for lsn, d in rows]
            batch = pipeline.decoder.feed(messages)
            assert batch.error is None
            lines.append([line if isinstance(line, str) else line.decode() for line in batch.lines if line])
    return lines


@pytest.mark.parametrize("version", [15, 18])
def test_each_type_in_each_mode(version: int, request: pytest.FixtureRequest, rdsrepl: Program) -> None:
    """From real servers, with settings of the database that must not affect the values."""
    database: Database = request.getfixturevalue(f"db{version}")
    has_hstore = bool(database.value("SELECT count(*) FROM pg_available_extensions WHERE name = 'hstore'"))
    rows = {**{name: (type_, value) for name, (type_, value, _) in ROWS.items()}, **(HSTORE if has_hstore else {})}
    if not database.value("SELECT count(*) FROM pg_config WHERE name = 'CONFIGURE' AND setting LIKE '%libxml%'"):
        del rows["x"]
    columns = ", ".join(f"{name} {type_}" for name, (type_, _) in rows.items())
    slots = {"g": "pgoutput", **({"w": "wal2json"} if version == 15 else {})}
    database.run(
        *TYPES,
        *(["CREATE EXTENSION hstore"] if has_hstore else []),
        f"CREATE TABLE t (id integer PRIMARY KEY, {columns})",
        "CREATE PUBLICATION p FOR ALL TABLES",
        *(f"SELECT pg_create_logical_replication_slot('{slot}', '{plugin}')" for slot, plugin in slots.items()),
        f"ALTER DATABASE {database.name} SET DateStyle = 'German'",
        f"ALTER DATABASE {database.name} SET TimeZone = 'Asia/Kolkata'",
        f"ALTER DATABASE {database.name} SET IntervalStyle = 'postgres_verbose'",
        f"ALTER DATABASE {database.name} SET bytea_output = 'escape'",
        f"INSERT INTO t VALUES (1, {', '.join(value for _, value in rows.values())})",
    )
    hstore = {"hs": r'{"key2":null,"key #1":"val \" 1"}', "hsa": ['{"a":"b"}']}
    default = {"id": 1, **{name: value for name, (_, _, value) in ROWS.items()}, **hstore}
    modes = {"": {}, **MODES, "hstore=map": {"hs": {"key2": None, "key #1": 'val " 1'}, "hsa": [{"a": "b"}]}}
    options = [dict(word.split("=") for word in words.split()) for words in modes]
    for slot in slots:
        # What the other plugin does not send: no NaN, no infinity in a number.
        lost = dict.fromkeys(_NO_NUMBERS if slot == "w" else ())
        for (words, differing), (line,) in zip(modes.items(), decoded(database, *options, slot=slot), strict=True):
            event = json.loads(line)
            wanted = {**default, **differing, **lost}
            assert list(event["after"]) == ["id", *rows]
            for name in event["after"].keys() & (differing.keys() if words else default.keys()):
                assert event["after"][name] == wanted[name], (slot, words, name)
            if not words:
                assert event["as_text"] == [name for name in AS_TEXT if name not in lost]
                if slot == "g":
                    (printed,) = stream(rdsrepl, database)
                    assert printed["after"] == event["after"]


def test_events(db18: Database, rdsrepl: Program) -> None:
    """Inserts, updates with and without the key, deletes, truncates, messages, an origin: like Debezium's events."""
    db18.run(
        "CREATE TABLE t (id integer PRIMARY KEY, v text, n numeric(3,1))",
        "CREATE TABLE f (id integer PRIMARY KEY, v text)",
        "ALTER TABLE f REPLICA IDENTITY FULL",
        "CREATE TABLE nokey (v text)",
        "ALTER TABLE nokey REPLICA IDENTITY FULL",
        "CREATE PUBLICATION p FOR ALL TABLES",
        "SELECT pg_create_logical_replication_slot('g', 'pgoutput')",
        "INSERT INTO t VALUES (1, 'a', 1.5)",
        "UPDATE t SET v = 'b'",
        "UPDATE t SET id = 2",
        "DELETE FROM t",
        "INSERT INTO f VALUES (1, 'a'), (2, 'b')",
        "UPDATE f SET v = 'c' WHERE id = 1",
        "UPDATE f SET id = 3 WHERE id = 2",
        "INSERT INTO nokey VALUES ('x')",
        "DELETE FROM nokey",
        "TRUNCATE t",
        "SELECT pg_logical_emit_message(true, 'p', 'hi')",
        "SELECT pg_logical_emit_message(false, 'q\"x', '\\xff00'::bytea)",
        "SELECT pg_replication_origin_create('far \"away\"')",
    )
    with closing(db18.connect()) as conn, conn.transaction():
        conn.execute("SELECT pg_replication_origin_session_setup('far \"away\"')")
        conn.execute("SELECT pg_replication_origin_xact_setup('16/B374D848', now())")
        conn.execute("INSERT INTO t VALUES (7, NULL, NULL)")
    events = stream(rdsrepl, db18)
    row = {"id": 1, "v": "a", "n": base64(15)}
    assert [(event["op"], event.get("before"), event.get("after")) for event in events] == [
        ("c", None, row),
        ("u", None, {**row, "v": "b"}),
        ("d", {"id": 1}, None),
        ("c", None, {**row, "id": 2, "v": "b"}),
        ("d", {"id": 2}, None),
        ("c", None, {"id": 1, "v": "a"}),
        ("c", None, {"id": 2, "v": "b"}),
        ("u", {"id": 1, "v": "a"}, {"id": 1, "v": "c"}),
        ("d", {"id": 2, "v": "b"}, None),
        ("c", None, {"id": 3, "v": "b"}),
        ("c", None, {"v": "x"}),
        ("d", {"v": "x"}, None),
        ("t", None, None),
        ("m", None, None),
        ("m", None, None),
        ("c", None, {"id": 7, "v": None, "n": None}),
    ]
    assert len({identity(event) for event in events}) == len(events)
    assert sorted(identity(event) for event in events) == [identity(event) for event in events]
    assert [event["source"]["seq"] for event in events[2:4]] == [1, 2]
    _check_envelopes(events, db18.name)
    transactional, alone = events[13:15]
    assert transactional["message"] == {"prefix": "p", "content": base64(*b"hi")}
    assert alone["message"] == {"prefix": 'q"x', "content": base64(0xFF, 0)}
    assert transactional["source"]["txId"] is not None
    assert alone["source"]["txId"] is None
    assert (alone["source"]["schema"], alone["source"]["table"]) == ("", "")
    source = events[-1]["source"]
    assert (source["origin"], source["origin_lsn"]) == ('far "away"', 0x16B374D848)
    assert {(e["source"]["origin"], e["source"]["origin_lsn"]) for e in events[:-1]} == {(None, None)}
    in_hex, keyed_lines = decoded(db18, {"binary": "hex"}, {"keys": True})
    assert [json.loads(line)["message"]["content"] for line in in_hex[11:13]] == ["6869", "ff00"]

    keyed = [json.loads(line) for line in "".join(keyed_lines).splitlines()]
    tombstones = [line for line in keyed if line["value"] is None]
    assert [line["value"]["op"] for line in keyed if line["value"]] == [event["op"] for event in events]
    assert [line["key"] for line in tombstones] == [{"id": 1}, {"id": 2}, {"id": 2}]
    for line, following in itertools.pairwise(keyed):
        deleted = line["value"] is not None and line["value"]["op"] == "d" and line["key"] is not None
        assert (following["value"] is None) == deleted
        assert not deleted or following["key"] == line["key"]
    keys = [json.dumps(line["key"]) for line in keyed if line["value"]]
    assert keys == [
        *('{"id": 1}', '{"id": 1}', '{"id": 1}', '{"id": 2}', '{"id": 2}'),
        *('{"id": 1}', '{"id": 2}', '{"id": 1}', '{"id": 2}', '{"id": 3}'),
        *("null", "null", "null", '{"prefix": "p"}', '{"prefix": "q\\"x"}', '{"id": 7}'),
    ]


def _check_envelopes(events: list[dict[str, Any]], database: str) -> None:
    """Members, their order and their types, like an event of Debezium 3, and our three."""
    debezium = [
        *("version", "connector", "name", "ts_ms", "snapshot", "db", "sequence", "ts_us", "ts_ns"),
        *("schema", "table", "txId", "lsn", "xmin", "origin", "origin_lsn"),
    ]
    for event in events:
        if event["op"] != "m":
            wanted = ["before", "after", "source", "transaction", "op", "ts_ms", "ts_us", "ts_ns"]
        else:
            wanted = ["op", "ts_ms", "ts_us", "ts_ns", "source", "transaction", "message"]
        assert list(event) == wanted
        assert event["transaction"] is None
        source = event["source"]
        assert list(source) == [*debezium, "timeline", "commit_lsn", "seq"]
        assert (source["connector"], source["name"], source["db"]) == ("postgresql", "g", database)
        assert (source["snapshot"], source["xmin"]) == ("false", None)
        assert json.loads(source["sequence"]) == [str(source["commit_lsn"]), str(source["lsn"])]
        for times in (source, event):
            assert times["ts_ns"] // 1000 == times["ts_us"]
            assert times["ts_us"] // 1000 == times["ts_ms"]
        assert source["ts_us"] <= event["ts_us"]
        assert event["ts_us"] - source["ts_us"] < 3600 * 10**6


def test_unchanged_toast_is_the_placeholder(db15: Database, rdsrepl: Program) -> None:
    """In the form of its column's values; also in the create of a key update."""
    types = {
        **{"t": "text", "by": "bytea", "j": "json", "jb": "jsonb", "x": "xml", "hs": "hstore", "num": "numeric"},
        **{"ta": "text[]", "ia": "integer[]", "bia": "bigint[]", "ua": "uuid[]", "bya": "bytea[]", "fa": "float8[]"},
        **{"dom": "long", "domn": "long[]"},
    }
    big = "repeat(md5('x'), 400)"
    rows = {
        **{"t": big, "by": f"{big}::bytea", "j": f"to_json({big})", "jb": f"to_jsonb({big})", "dom": big},
        **{"x": f"('<a>' || {big} || '</a>')::xml", "hs": f"hstore('k', {big})", "num": "repeat('7', 9000)::numeric"},
        **{"ta": f"array[{big}]", "ia": "array(SELECT generate_series(1, 4000))"},
        **{"bia": "array(SELECT generate_series(1::bigint, 4000))", "fa": "array_fill(1.5::float8, array[4000])"},
        **{"ua": "array_fill(gen_random_uuid(), array[2000])", "bya": f"array[{big}::bytea]", "domn": f"array[{big}]"},
    }
    db15.run(
        "CREATE EXTENSION hstore",
        "CREATE DOMAIN long AS text",
        f"CREATE TABLE t (id integer PRIMARY KEY, {', '.join(f'{name} {type_}' for name, type_ in types.items())})",
        *(f"ALTER TABLE t ALTER {name} SET STORAGE EXTERNAL" for name in types if name != "num"),
        "ALTER TABLE t ALTER num SET STORAGE EXTERNAL",
        "CREATE TABLE f (id integer PRIMARY KEY, t text)",
        "ALTER TABLE f ALTER t SET STORAGE EXTERNAL",
        "ALTER TABLE f REPLICA IDENTITY FULL",
        f"INSERT INTO t (id, {', '.join(rows)}) VALUES (1, {', '.join(rows.values())})",
        f"INSERT INTO f VALUES (1, {big})",
        "CREATE PUBLICATION p FOR ALL TABLES",
        "SELECT pg_create_logical_replication_slot('g', 'pgoutput')",
        "UPDATE t SET id = 1",
        "UPDATE t SET id = 2",
        "UPDATE f SET id = 1",
    )
    words = ("--debezium-placeholder", "hex:6e6f6e65", "--debezium-hstore", "map", "--debezium-binary", "hex")
    configured = stream(rdsrepl, db15, *words)
    update, delete, create, full = (json.loads(line) for line in "".join(decoded(db15, {})[0]).splitlines())
    octets = list(DEFAULT.encode())
    placeholders = {
        **dict.fromkeys(("t", "j", "jb", "x", "num", "fa", "dom", "domn"), DEFAULT),
        **{"by": base64(*octets), "bya": [base64(*octets)], "ta": [DEFAULT], "ia": octets, "bia": octets},
        **{"ua": ["b68a35a7-17ad-35b3-af2a-ae46edb4545a"], "hs": f'{{"{DEFAULT}":"{DEFAULT}"}}'},
    }
    assert update["after"] == {"id": 1, **placeholders}
    assert create["after"] == {"id": 2, **placeholders}
    assert (delete["op"], delete["before"], create["op"]) == ("d", {"id": 1}, "c")
    assert update["unchanged"] == create["unchanged"] == list(types)
    assert len(full["after"]["t"]) == 32 * 400
    assert "unchanged" not in full
    after = configured[0]["after"]
    assert (after["t"], after["by"], after["hs"], after["ia"]) == ("none", "none", {"none": "none"}, list(b"none"))


def test_types_of_extensions_by_their_text(db15: Database) -> None:
    """PostGIS and pgvector are not installed: the text in their manuals, and Debezium's values for it."""
    point = "0101000020730C00001C7C613255DE6540787AA52C435C42C0"
    wkb = b64encode(bytes.fromhex(point)).decode()
    assert json.loads(_geometry(point)) == {"wkb": wkb, "srid": 3187}
    assert json.loads(_geometry("0107000000" + "00" * 4))["srid"] is None
    assert json.loads(_vector("[1,2.5,-3]")) == [1, 2.5, -3]
    with closing(Catalog(db15.target)) as catalog:
        found = DebeziumValues(catalog, DebeziumOptions())
        for oid, damaged in ((1082, "2026-13-45"), (600, "(x"), (1186, "P1"), (1560, "2"), (1266, "12"), (1184, "now")):
            convert = found.conversion(oid, -1).convert
            assert convert is not None
            assert convert(damaged) == f'"{damaged}"'
            assert type(convert(damaged)).__name__ == "AsText"


def test_wrong_options(rdsrepl: Program) -> None:
    """Refused before connecting, with exit code 2; the hint lists the modes."""
    for words, told in [
        (("--format", "debezium", "--debezium-time", "hours"), "adaptive_time_microseconds"),
        (("--format", "debezium", "--debezium-decimal", "x"), "precise"),
        (("--format", "debezium", "--debezium-binary", "x"), "base64-url-safe"),
        (("--format", "debezium", "--debezium-interval", "x"), "numeric"),
        (("--format", "debezium", "--debezium-hstore", "x"), "map"),
        (("--format", "debezium", "--debezium-placeholder", "hex:0"), "hexadecimal"),
        (("--format", "json", "--debezium-keys"), "--debezium-keys requires --format debezium"),
        (("--debezium-time", "connect"), "--debezium-time requires --format debezium"),
    ]:
        for command in ("tail", "peek"):
            result = run_in_process(["--dsn", "host=/nowhere", "slot", command, "absent", *words], rdsrepl.env, None)
            assert result.code == 2, (words, result.err)
            assert told in " ".join(result.err.replace("│", " ").split()), (words, result.err)


def test_a_role_that_may_not_read_the_catalogue(db15: Database) -> None:
    """The stream continues, with text for unknown types, and the warning says what to grant."""
    db15.run(
        "CREATE TYPE mood AS ENUM ('happy')",
        "CREATE TABLE t (id integer PRIMARY KEY, n numeric(5,2), d date, m mood, a integer[])",
        "CREATE PUBLICATION p FOR ALL TABLES",
        "SELECT pg_create_logical_replication_slot('g', 'pgoutput')",
        "INSERT INTO t VALUES (1, 1.5, '1970-01-02', 'happy', '{1}')",
        f"CREATE ROLE {db15.name} LOGIN PASSWORD 'x'",
        "REVOKE SELECT ON pg_catalog.pg_type, pg_catalog.pg_attribute FROM PUBLIC",
    )
    limited = Target("t", f"{db15.server.dsn(dbname=db15.name, user=db15.name)} password=x")
    told: list[str] = []
    try:
        ((line,),) = decoded(db15, {}, asked_of=limited, warn=told.append)
        event = json.loads(line)
        assert event["after"] == {"id": 1, "n": unscaled("1.50", 2), "d": 1, "m": "happy", "a": "{1}"}
        assert event["as_text"] == ["m", "a"]
    finally:
        db15.run(f"DROP ROLE {db15.name}")
    assert told
    assert all("GRANT SELECT ON pg_catalog.pg_type" in text for text in told)


def test_to_kinesis(db15: Database) -> None:
    """The delete and the create of a key update have their own partition keys; a tombstone has its delete's."""
    db15.run(
        "CREATE TABLE t (id integer, part text, v text, PRIMARY KEY (id, part))",
        "CREATE TABLE nokey (v text)",
        "ALTER TABLE nokey REPLICA IDENTITY FULL",
        "CREATE PUBLICATION p FOR ALL TABLES",
        "SELECT pg_create_logical_replication_slot('g', 'pgoutput')",
        "SELECT pg_create_logical_replication_slot('w', 'wal2json')",
        "INSERT INTO t VALUES (1, 'a\"b', 'x')",
        "UPDATE t SET id = 2",
        "DELETE FROM t",
        "INSERT INTO nokey VALUES ('x')",
        "DELETE FROM nokey",
    )
    for slot in ("g", "w"):
        sent: list[list[tuple[str, Any]]] = []
        modes: list[dict[str, Any]] = [{"keys": True}, {}]
        for lines in decoded(db15, *modes, slot=slot, partition_by="key"):
            sent.append([(key.decode(), json.loads(text)) for key, text in keyed_records(lines)])
        keyed, plain = sent
        one, two = '{"id":1,"part":"a\\"b"}', '{"id":2,"part":"a\\"b"}'
        keys = [one, one, one, two, two, two, "public.nokey", "public.nokey"]
        assert [key for key, _ in keyed] == keys
        assert [line["value"] and line["value"]["op"] for _, line in keyed] == [
            "c",
            "d",
            None,
            "c",
            "d",
            None,
            "c",
            "d",
        ]
        assert all(line["key"] == json.loads(key) for key, line in keyed[:6])
        one, two = 'public.t:1:"a\\"b"', 'public.t:2:"a\\"b"'
        assert [key for key, _ in plain] == [one, one, two, two, "public.nokey", "public.nokey"]
        assert [event["op"] for _, event in plain] == ["c", "d", "c", "d", "c", "d"]


def test_a_keyed_event_that_is_too_large() -> None:
    event = {"key": {"id": 1}, "value": {"before": None, "after": {"id": 1, "v": "x" * 500}, "source": {"lsn": 7}}}
    line = json.dumps(event).encode()
    smaller = Oversize("drop-columns", None).fit("k", line, 300)
    assert smaller is not None
    value = {"before": None, "after": {"id": 1}, "source": {"lsn": 7}, "dropped": ["v"]}
    assert json.loads(smaller) == {"key": {"id": 1}, "value": value}
    with pytest.raises(Refused, match="at 7"):
        Oversize("fail", None).fit("k", line, 300)


def test_the_lambda_function_takes_the_options() -> None:
    event = {"slot": "s", "to": "kinesis:x", "format": "debezium", "debezium_keys": "true", "debezium_time": "connect"}
    options = aws_lambda._options(event, 60.0, 10.0)
    assert options.debezium == DebeziumOptions(keys=True, time=TimeMode.connect)
    for wrong, told in [
        (
            {"debezium_time": "x"},
            "(RDSREPL_DEBEZIUM_TIME) 'x' is not a mode one of adaptive, adaptive_time_microseconds",
        ),
        ({"format": "json"}, "debezium_keys (RDSREPL_DEBEZIUM_KEYS) requires format (RDSREPL_FORMAT) debezium"),
        ({"debezium_keys": "perhaps"}, "true or false"),
    ]:
        with pytest.raises(BadValue) as caught:
            aws_lambda._options({**event, **wrong}, 60.0, 10.0)
        assert told in f"{caught.value.message} {caught.value.hint}"
