"""Mutated input for every decoder and parser: from recorded streams and from texts, always the same for a seed.

``tests/test_fuzz.py`` runs a bounded part of it, ``tests/benchmarks/fuzz.py`` a million messages.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from psycopg import sql

from rdsrepl import errors
from rdsrepl.config import Target
from rdsrepl.lsn import Lsn
from rdsrepl.tail import preflight
from rdsrepl.tail.catalog import Catalog
from rdsrepl.tail.changes import Decoder, TableFilter
from rdsrepl.tail.pipeline import FormatName, Pipeline, assemble
from rdsrepl.tail.timelines import Timelines
from tests.workload import SCHEMA, hostile, insert_every_type

HEADER = 25
# A stream longer than this is damaged anew from its beginning.
STREAM = 60


_MARKERS = (b"B", b"C", b"R", b"b", b"P", b'{"action":"B"', b'{"action":"C"')


@dataclass(frozen=True)
class Recorded:
    """One decoder as the program assembles it, and what a real server sent for it.

    Attributes:
        name: the plugin and the format.
        make: assembles the pipeline anew.
        messages: XLogData messages, with their headers.
        ends: where its transactions end.
    """

    name: str
    make: Callable[[], Pipeline]
    messages: tuple[bytes, ...]
    ends: frozenset[int]


@dataclass
class Tally:
    """What became of mutated messages."""

    mutated: int = 0
    accepted: int = 0
    refused: int = 0
    kinds: set[str] = field(default_factory=set)


#: slot → (plugin, two-phase).
SLOTS = {"g": ("pgoutput", False), "g2": ("pgoutput", True), "w": ("wal2json", False), "t": ("test_decoding", False)}
_TABLES = TableFilter(("every_*", "*ile*.*", "log"))


def _pipelines() -> Iterator[tuple[str, FormatName, dict[str, Any]]]:
    for name in FormatName:
        yield "g", name, {}
    yield "g", FormatName.json, {"partition_by": "key"}
    yield "g", FormatName.debezium, {"partition_by": "transaction"}
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
    """Make a workload in an empty database of PostgreSQL 15, and record what each plugin sends of it.

    The decoders ask that database's catalogue, as long as the context lasts.
    """
    with closing(connect()) as conn, closing(Catalog(target)) as catalog:
        _workload(conn)
        recorded = []
        for slot, name, how in _pipelines():
            plugin, two_phase = SLOTS[slot]
            findings = preflight.look(target, slot, ("p",) if plugin == "pgoutput" else ())
            words = {"tables": TableFilter(), "given": {}, "colour": False, **how}
            assembled = partial(assemble, findings, name, catalog, until_lsn=None, **words)
            pipeline = assembled()
            for setting, value in pipeline.settings.items():
                conn.execute("SELECT pg_catalog.set_config(%s, %s, false)", (setting, value))
            options = [text for pair in pipeline.options.items() for text in pair]
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
    """Return where the transactions of an undamaged stream end; it must be read without a fault."""
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
    """Return data damaged in one of the ways in which data is damaged."""
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
        # What describes the relations comes early, and is what most messages need.
        stream = [*recorded.messages[:8], *recorded.messages[first : first + STREAM]]
        position = 0
        while position < len(stream):
            batch = stream[position : position + rng.choice((1, 1, 2, 5))]
            position += len(batch)
            number = rng.randrange(len(batch))
            # Without what begins, ends and describes, all that follows is refused for the same reason.
            damaged = rng.random() < (0.1 if batch[number][HEADER:].startswith(_MARKERS) else 0.7)
            if damaged:
                batch[number] = mutated(rng, batch[number], recorded.messages, header=HEADER)
            try:
                read = decoder.feed(batch)
            except errors.Error as exc:  # the catalogue's, for a name of a type that is none
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
                # Version 1 alone says the end in its text only, which nothing else confirms.
                assert "'format-version': '1'" in recorded.name and end >= min(starts), [m.hex() for m in batch]
    return tally
