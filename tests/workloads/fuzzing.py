"""Mutated input for every decoder and parser, from recorded streams and from texts; the same for a seed.

``tests/tail/test_fuzz.py`` runs a bounded part of it, ``tests/benchmarks/fuzz.py`` a million messages.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from psycopg import sql

from rdsrepl import errors, help_topics, units
from rdsrepl.aws.release_support import Release
from rdsrepl.config import Target
from rdsrepl.config import file as config_file
from rdsrepl.lsn import Lsn
from rdsrepl.parameters import allowed_values, formulas
from rdsrepl.parameters.instance_classes import Hardware
from rdsrepl.postgres import sql_names
from rdsrepl.retention import thresholds
from rdsrepl.runbooks import commands, model, parser
from rdsrepl.runbooks.variables import TYPES, Variable, check_value
from rdsrepl.state import json_lines, slot_history
from rdsrepl.tail import preflight
from rdsrepl.tail.formats.debezium_options import debezium_options
from rdsrepl.tail.formats.type_catalog import Catalog
from rdsrepl.tail.model import Decoder, TableFilter
from rdsrepl.tail.options import FormatName
from rdsrepl.tail.pipeline import Pipeline, assemble
from rdsrepl.tail.timelines import Timelines
from rdsrepl.text import masking
from tests.workloads.tables import SCHEMA, hostile, insert_every_type

HEADER = 25
# A stream longer than this is mutated again from its start.
STREAM = 60


_MARKERS = (b"B", b"C", b"R", b"b", b"P", b'{"action":"B"', b'{"action":"C"')


@dataclass(frozen=True)
class Recorded:
    """One decoder as the program assembles it, and the messages that a real server sent for it.

    Attributes:
        name: the plugin and the format.
        make: assembles a new pipeline.
        messages: XLogData messages, with their headers.
        ends: where its transactions end.
    """

    name: str
    make: Callable[[], Pipeline]
    messages: tuple[bytes, ...]
    ends: frozenset[int]


@dataclass
class Tally:
    """How many mutated messages were decoded and refused."""

    mutated: int = 0
    accepted: int = 0
    refused: int = 0
    kinds: set[str] = field(default_factory=set)


#: slot → (plugin, two-phase).
SLOTS = {"g": ("pgoutput", False), "g2": ("pgoutput", True), "w": ("wal2json", False), "t": ("test_decoding", False)}
_TABLES = TableFilter(("every_*", "*ile*.*", "log"))

_OTHER_MODES = debezium_options(str, is_debezium=True, keys=True, time="isostring", interval="string", decimal="double")


def _pipelines() -> Iterator[tuple[str, FormatName, dict[str, Any]]]:
    for name in FormatName:
        yield "g", name, {}
    yield "g", FormatName.json, {"partition_by": "key"}
    yield "g", FormatName.debezium, {"partition_by": "transaction"}
    yield "g", FormatName.debezium, {"partition_by": "key", "debezium": _OTHER_MODES}
    yield "g", FormatName.json, {"tables": _TABLES}
    for name in (FormatName.json, FormatName.pretty, FormatName.raw):
        yield "g2", name, {}
    for name in (FormatName.json, FormatName.debezium, FormatName.pretty, FormatName.raw):
        yield "w", name, {}
        yield "w", name, {"given": {"format-version": "1"}}
    yield "w", FormatName.raw, {"tables": _TABLES}
    yield "w", FormatName.json, {"partition_by": "key", "tables": _TABLES}
    yield "t", FormatName.raw, {"tables": _TABLES}
    yield "t", FormatName.pretty, {"colour": True}


@contextmanager
def record(connect: Callable[[], Any], target: Target) -> Iterator[list[Recorded]]:
    """Run a workload in an empty database of PostgreSQL 15, and record what each plugin sends.

    The decoders ask that database's catalogue, as long as the context lasts.
    """
    with closing(connect()) as conn, closing(Catalog(target)) as catalog:
        _workload(conn)
        recorded = []
        for slot, name, how in _pipelines():
            plugin, two_phase = SLOTS[slot]
            checked = preflight.check(target, slot, ("p",) if plugin == "pgoutput" else ())
            words = {"tables": TableFilter(), "given": {}, "colour": False, **how}
            assembled = partial(assemble, checked, name, catalog, until_lsn=None, **words)
            pipeline = assembled()
            for setting, value in pipeline.settings.items():
                conn.execute("SELECT pg_catalog.set_config(%s, %s, false)", (setting, value))
            options = [text for pair in pipeline.plugin_options.items() for text in pair]
            rows = conn.execute(
                "SELECT lsn::text, data FROM pg_logical_slot_peek_binary_changes(%s, NULL, NULL, VARIADIC %s::text[])",
                (slot, options),
            ).fetchall()
            messages = tuple(_xlogdata(int(Lsn.parse(lsn)), bytes(data)) for lsn, data in rows)
            described = f"{plugin}{' two-phase' if two_phase else ''} as {name.value}, {how}"
            recorded.append(Recorded(described, assembled, messages, _ends(pipeline.decoder, messages)))
        for slot in SLOTS:
            conn.execute("SELECT pg_drop_replication_slot(%s)", (slot,))
        yield recorded


def _xlogdata(lsn: int, payload: bytes) -> bytes:
    return struct.pack(">cQQq", b"w", lsn, lsn, 7) + payload


def _ends(decoder: Decoder, messages: Sequence[bytes]) -> frozenset[int]:
    """Return where the transactions of an unchanged stream end; it must decode without an error."""
    ends = set()
    for message in messages:
        batch = decoder.feed([message])
        assert batch.error is None, (batch.error, message)
        if batch.commit_end_lsn is not None:
            ends.add(batch.commit_end_lsn)
    assert len(ends) > 5
    return frozenset(ends)


def _workload(conn: Any) -> None:
    for statement in SCHEMA:
        conn.execute(statement)
    table = hostile(conn)
    conn.execute("CREATE TABLE big (id integer PRIMARY KEY, v text, n integer)")
    conn.execute("ALTER TABLE big ALTER v SET STORAGE EXTERNAL")
    conn.execute("CREATE TABLE full_id (a integer, b text, c numeric)")
    conn.execute("ALTER TABLE full_id REPLICA IDENTITY FULL")
    conn.execute("CREATE PUBLICATION p FOR ALL TABLES")
    for slot, (plugin, two_phase) in SLOTS.items():
        conn.execute("SELECT pg_create_logical_replication_slot(%s, %s, false, %s)", (slot, plugin, two_phase))
    insert_every_type(conn)
    insert = sql.SQL("INSERT INTO {} VALUES ('a', 'q%s', NULL, E'tab\\t', 'p', E'new\\nline', '\\', '{{}}')").format(
        table
    )
    conn.execute(insert)
    conn.execute("INSERT INTO big VALUES (1, repeat('x', 3000), 1), (2, 'short', 2)")
    conn.execute("UPDATE big SET n = n + 1")
    conn.execute("UPDATE big SET id = id + 10")
    conn.execute("INSERT INTO full_id SELECT g, 'row ' || g, g / 3.0 FROM generate_series(1, 5) g")
    conn.execute("UPDATE full_id SET b = NULL WHERE a = 2")
    conn.execute("DELETE FROM full_id WHERE a > 3")
    conn.execute("DELETE FROM big WHERE id = 11")
    conn.execute("SELECT pg_logical_emit_message(true, 'word', 'in a transaction')")
    conn.execute("SELECT pg_logical_emit_message(false, 'word', decode('ff00fe', 'hex'))")
    for number, (name, outcome) in enumerate((("one", "COMMIT"), ("two", "ROLLBACK")), 3):
        conn.execute(f"BEGIN; INSERT INTO big VALUES ({number}, 'prepared', 1); PREPARE TRANSACTION '{name}'")
        conn.execute(f"{outcome} PREPARED '{name}'")
    conn.execute("TRUNCATE full_id, big RESTART IDENTITY CASCADE")
    conn.execute("UPDATE every_type SET t = 'new', i4 = i4 + 0")


def mutated(rng: random.Random, data: bytes, others: Sequence[bytes], *, header: int = 0) -> bytes:
    """Return data with a random mutation."""
    start = header if rng.random() < 0.9 else 0
    at = rng.randrange(start, max(start + 1, len(data)))
    much = min(len(data) - at, rng.choice((1, 1, 2, 4, 8, 64)))
    way = rng.randrange(10)
    if way == 0:
        return data[:at]
    if way == 1:
        return data[:at] + bytes((rng.randrange(256),)) + data[at + 1 :]
    if way == 2 and at < len(data):
        return data[:at] + bytes((data[at] ^ 1 << rng.randrange(8),)) + data[at + 1 :]
    if way == 3:
        return data[:at] + data[at + much :]
    if way == 4:
        return data[:at] + rng.randbytes(much) + data[at:]
    if way == 5:  # a length, a count, a number
        number = rng.choice((0, 1, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1))
        return data[:at] + number.to_bytes(4) + data[at + 4 :]
    if way == 6:
        other = rng.choice(others)
        return data[:at] + other[rng.randrange(len(other)) :]
    if way == 7:
        return data[:at] + data[at : at + much] * rng.choice((2, 3, 50)) + data[at + much :]
    if way == 8:
        words = (
            b"\0",
            b"\xff",
            b"\xed\xa0\x80",
            b'"',
            b"\\",
            b"{",
            b"[" * 3000,
            b"1e999",
            b"9" * 5000,
            b"null",
            b"NaN",
        )
        return data[:at] + rng.choice(words) + data[at + rng.randrange(5) :]
    return rng.choice(others)


def fuzz_decoder(recorded: Recorded, messages: int, seed: int) -> Tally:
    """Feed mutated messages to a decoder, in batches of a few.

    Each must be decoded, or end its batch with the one error for malformed messages; and no position may come out of
    it that is not the end of one of the stream's own transactions.
    """
    rng = random.Random(f"{recorded.name} {seed}")
    tally = Tally()
    decoder = recorded.make().decoder
    while tally.mutated < messages:
        decoder.reset(Timelines(1))
        first = rng.randrange(len(recorded.messages))
        # Relation messages come early, and most messages need them.
        stream = [*recorded.messages[:8], *recorded.messages[first : first + STREAM]]
        position = 0
        while position < len(stream):
            batch = stream[position : position + rng.choice((1, 1, 2, 5))]
            position += len(batch)
            number = rng.randrange(len(batch))
            # Without Begin, Commit and Relation, all later messages are refused for the same reason.
            damaged = rng.random() < (0.1 if batch[number][HEADER:].startswith(_MARKERS) else 0.7)
            if damaged:
                batch[number] = mutated(rng, batch[number], recorded.messages, header=HEADER)
            try:
                read = decoder.feed(batch)
            except errors.Error as exc:  # of the catalogue, for a type that does not exist
                tally.kinds.add(type(exc).__name__)
                tally.refused += damaged
                tally.mutated += damaged
                continue
            except Exception as exc:
                exc.add_note(f"{recorded.name}, seed {seed}, after {tally.mutated}: {[m.hex() for m in batch]}")
                raise
            tally.mutated += damaged
            if read.error is not None:
                assert type(read.error) is errors.MalformedMessage and read.error.exit_code == errors.ExitCode.FAILED
                tally.kinds.add("MalformedMessage")
            tally.refused += damaged and read.error is not None
            tally.accepted += damaged and read.error is None
            starts = [int.from_bytes(m[1:9]) for m in batch if m[1:9] == m[9:17]]
            if (end := read.commit_end_lsn) is not None and end not in recorded.ends and end not in starts:
                # Only version 1 has the end in its text, without a second source.
                assert "'format-version': '1'" in recorded.name and end >= min(starts), [m.hex() for m in batch]
    return tally


@dataclass(frozen=True)
class Texts:
    """A parser of text, and valid texts: a mutated text is accepted, or refused with a typed error."""

    name: str
    parse: Callable[[str], object]
    seeds: tuple[str, ...]


def parsers(directory: Path) -> list[Texts]:
    """Return every parser of sizes, durations, positions, pages, names, formulas, thresholds and files."""
    page = next(iter(sorted(model.directory().glob("*.md")))).read_text()
    config_text = (
        "current: prod\nprotect: [a, 'b_*']\ntargets:\n  prod: {host: h, port: 5432, user: u}\n"
        "  lab: &lab\n    dsn: postgresql://u@h:5433/d\n  x:\n    profile: p\n    cluster: c\n    endpoint_url: http://h\n"
    )
    kinds = tuple(Variable(kind, "help", kind) for kind in TYPES)

    def checked(text: str) -> None:
        for kind in kinds:
            with suppress(errors.BadValue):
                check_value(kind, text)

    def history(text: str) -> None:
        file = directory / "rows.jsonl"
        file.write_bytes(text.encode("utf-8", "surrogatepass"))
        json_lines.read(file, slot_history.decode, 1 << 20)

    def allowed_value(text: str) -> None:
        left, _, right = text.partition("|")
        for kind in ("integer", "float", "boolean", "list", "string", None):
            allowed_values.is_allowed(left, right, kind)
        allowed_values.upper_bound(right)

    def formula(text: str) -> None:
        formulas.evaluate(text, Hardware(2, 8 << 30))
        formulas.raise_floor(text, 20)

    def threshold(text: str) -> None:
        thresholds.parse([text], [])

    def topic(text: str) -> None:
        help_topics.find([text])
        help_topics.for_terminal(text)

    def identity(kind: str) -> Callable[[str], object]:
        return lambda text: sql_names.parse_columns(text) if kind == "columns" else sql_names.parse_filter(text)

    sizes, durations = ("512MB", "10 GiB", "4096kB", "1.5TB", "0"), ("90s", "1h30m", "500ms", "2d", "1.5", "2 min")
    seen = (
        '{"at":"2026-11-21T12:00:00+00:00","started_at":"2026-11-21T11:00:00+00:00","timeline":1,"lsn":"0/1000",'
        '"next_xid":700,"slots":[["orders",true,"0/64","0/C8",7,"psql",4096]]}\n'
    )
    return [
        Texts("size", units.parse_size, sizes),
        Texts("duration", units.parse_duration, durations),
        Texts("LSN", Lsn.parse, ("16/B374D848", "0/0", "FFFFFFFF/FFFFFFFF")),
        Texts("release", Release.parse, ("16.4", "15.3-R2", "16", "14.8.R2")),
        Texts("name", sql_names.parse_name, ("sales.orders", '"We""ird".Orders', "t", '"a b"."c.d"')),
        Texts("columns", identity("columns"), ("sales.orders=id,amount", 't="a,b",c')),
        Texts("filter", identity("filter"), ("sales.orders: amount > 0", "\"T\": x = 'y'")),
        Texts(
            "formula", formula, ("GREATEST({DBInstanceVCPU*2},8)", "${DBInstanceClassMemory/9531392}", "SUM(1,-2)*3/4")
        ),
        Texts(
            "allowed values",
            allowed_value,
            ("5|1-100", "on|on,off", "{DBInstanceVCPU}|0,30-3600", "-1.5e3|-1-2147483647"),
        ),
        Texts(
            "threshold", threshold, ("retained=10GB", "inactive=1d,xid-age=1000", "wal-status=lost", "time-to-full=6h")
        ),
        Texts("variable", checked, ("orders_cdc", "sales.orders", "30s", "512MB", "16/B374D848", "a b", "arn:aws:x:y")),
        Texts("command", lambda text: commands.parse(text), ('slot drop "$SLOT" --yes', "a 'b c' \\\n d", 'x "${Y}z"')),
        Texts("page", lambda text: parser.parse(Path("x.md"), text), (page, page[: len(page) // 2])),
        Texts("config file", lambda text: config_file.parse(Path("c.yaml"), text), (config_text, "targets: {}", "")),
        Texts("DSN to show", masking.mask, ("postgresql://u:pw@h/d?password=x&a=b", "host=h password='a b' user=u")),
        Texts("history", history, (seen, seen * 3)),
        Texts("topic", topic, ("exit-codes", "[a](exit-codes.md#x) [b](http://x)")),
        Texts(
            "timeline history", lambda text: Timelines.parse(3, text), ("1\t0/3000000\tno reason\n2\t0/5000000\tx\n",)
        ),
    ]


_WORDS = (
    *(
        "\0",
        "\ud800",
        "\udcff",
        "\u0663",
        "\u00b2",
        "\u2028",
        "\x85",
        "\x1b[31m",
        "\r",
        "\n",
        "\t",
        " ",
        "'",
        '"',
        "\\",
        "$",
    ),
    *(
        "9" * 5000,
        "1e400",
        "-1e400",
        "1e999",
        "NaN",
        "Infinity",
        "0x10",
        "1_000",
        "-0",
        "--",
        "/",
        "(" * 5000,
        "[" * 5000,
    ),
    *(
        "{" * 5000,
        "{a: " * 3000,
        "- " * 3000,
        "&a [*a]",
        "*b",
        "!!python/object:x",
        "<<: *a",
        "%YAML 1.9999\n---\n",
        "---\n",
    ),
    *('"\\UFFFFFFFF"', "? ", ": ", "#", "```", "## ", "<!--", "|", "=", ",", ".", "$X", "${", "é" * 300, "null", "~"),
)


def fuzz_parser(texts: Texts, count: int, seed: int) -> tuple[int, int]:
    """Give a parser mutated texts; return how many it accepted and refused."""
    rng = random.Random(f"{texts.name} {seed}")
    taken = refused = 0
    for _ in range(count):
        text = rng.choice(texts.seeds)
        for _ in range(rng.choice((1, 1, 2, 4))):
            at = rng.randrange(len(text) + 1)
            way = rng.randrange(6)
            if way == 0:
                text = text[:at] + rng.choice(_WORDS) + text[at + rng.randrange(3) :]
            elif way == 1:
                text = text[:at]
            elif way == 2:
                text = text[:at] + chr(rng.choice((rng.randrange(128), rng.randrange(0x110000)))) + text[at + 1 :]
            elif way == 3:
                text = text[:at] + text[at + rng.randrange(9) :]
            elif way == 4:
                text = text[:at] + rng.choice(texts.seeds)[rng.randrange(9) :]
            else:
                text = text[:at] + text[at : at + rng.randrange(9)] * rng.choice((2, 9)) + text[at:]
        try:
            texts.parse(text)
            taken += 1
        except (errors.Error, commands.InvalidCommand):
            refused += 1
        except Exception as exc:
            exc.add_note(f"{texts.name}, seed {seed}: {text[:500]!r}")
            raise
    return taken, refused
