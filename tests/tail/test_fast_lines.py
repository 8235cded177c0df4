"""The compiled way of writing usual messages gives exactly what the general way gives, also for unusual ones."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any

import pytest

from rdsrepl.config import Target
from rdsrepl.tail.decoders.pgoutput import PgoutputDecoder
from rdsrepl.tail.formats.base import Format
from rdsrepl.tail.formats.debezium import DebeziumFormat
from rdsrepl.tail.formats.debezium_options import debezium_options
from rdsrepl.tail.formats.fast_lines import compile_line
from rdsrepl.tail.formats.json_format import JsonFormat
from rdsrepl.tail.formats.partition_keys import KeyedFormat
from rdsrepl.tail.formats.type_catalog import Catalog
from rdsrepl.tail.formats.values import Conversion, ValueKind
from rdsrepl.tail.formats.wal2json_format import Wal2jsonFormat
from rdsrepl.tail.model import DecodedBatch, TableFilter
from rdsrepl.tail.timelines import Timelines

SEED = 20261122
# By type: int4, text, bool, numeric, timestamp, timestamptz, bytea, json, jsonb, date. Text that ends like the kinds of
# the protocol's values, that JSON escapes, of lengths whose bytes look like a value's start (0x7400), not in ASCII.
TEXTS = ("", "t", "n", "u", "abt", "abn", "nt", "N", "null", "%b %d %", '"', "\\", "a\nb", "\x7f", "é€😀", "x" * 255)
LONG = ("x" * 256, "n" * 300, "y" * 0x7400, "z" * 70_000)
VALUES: Mapping[int, Sequence[str]] = {
    23: ("0", "-1", "2147483647"),
    25: (*TEXTS, *LONG),
    16: ("t", "f"),
    1700: ("1.50", "-0", "NaN", "Infinity", "-Infinity", "1e30"),
    1114: (
        "2026-01-31 12:00:00",
        "2026-01-31 12:00:00.123456",
        "infinity",
        "0044-03-15 00:00:00 BC",
        "12026-01-01 00:00:00",
    ),
    1184: ("2026-01-31 12:00:00+00", "2026-01-31 12:00:00.5+05:30", "-infinity", "0044-03-15 00:00:00+00 BC"),
    17: ("\\x", "\\x00ff", "\\x" + "ab" * 500),
    114: ('{"a": 1}', '{\n"a":\r1}', '"\\u0000"'),
    3802: ('{"a": "é"}', "[]"),
    1082: ("2026-01-31", "infinity"),
}


def _options(words: Mapping[str, Any]) -> Any:
    return debezium_options(str, is_debezium=True, **words)


FORMATS: Mapping[str, Callable[[Catalog], Format]] = {
    "json": JsonFormat,
    "wal2json": Wal2jsonFormat,
    "debezium": lambda catalog: DebeziumFormat(catalog, database="d", name="n"),
    "debezium with keys": lambda catalog: DebeziumFormat(
        catalog, database="d", name="n", options=_options({"keys": True, "decimal": "string"})
    ),
    "json by key": lambda catalog: KeyedFormat(JsonFormat(catalog), catalog, "key"),
    "json by table": lambda catalog: KeyedFormat(JsonFormat(catalog), catalog, "table"),
    "json by transaction": lambda catalog: KeyedFormat(JsonFormat(catalog), catalog, "transaction"),
    "debezium by key": lambda catalog: KeyedFormat(
        DebeziumFormat(catalog, database="d", name="n"), catalog, "key", event_keys=True
    ),
}


class General:
    """A format whose lines are never compiled."""

    def __init__(self, inner: Format) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        if name == "of_transaction":
            raise AttributeError(name)
        return getattr(self._inner, name)


@pytest.fixture
def catalog() -> Iterator[Catalog]:
    """A catalogue that is not asked: the types are built in, except by wal2json, which prints their names."""
    with closing(Catalog(Target("no server", keywords={"host": "127.0.0.1", "port": "1"}))) as made:
        made.type_names = lambda oids, typmods: [f"type {oid}" for oid in oids]  # type: ignore[method-assign]
        made.primary_key = lambda oid: frozenset({"a"})  # type: ignore[method-assign]
        yield made


def _message(payload: bytes, lsn: int = 0x1_2345_6789) -> bytes:
    return struct.pack(">cQQq", b"w", lsn, lsn, 7) + payload


def _relation(oid: int, identity: str, types: Sequence[int], keys: Sequence[int]) -> bytes:
    columns = b"".join(
        struct.pack(">B", n in keys) + bytes([97 + n]) + b"\0" + struct.pack(">Ii", type_oid, -1)
        for n, type_oid in enumerate(types)
    )
    return _message(
        b"R" + struct.pack(">I", oid) + b's%\0t"\0' + identity.encode() + struct.pack(">H", len(types)) + columns
    )


def _tuple(values: Sequence[bytes]) -> bytes:
    parts = [
        value if value in (b"n", b"u") else b"t" + struct.pack(">I", len(value) - 1) + value[1:] for value in values
    ]
    return struct.pack(">H", len(values)) + b"".join(parts)


def _row(rng: random.Random, types: Sequence[int], odd: float) -> list[bytes]:
    """Return values: a kind alone (null, unchanged), or a byte that is ignored and the text."""
    row = []
    for type_oid in types:
        texts = VALUES[type_oid]
        text = rng.choice(texts) if rng.random() < odd else texts[0]
        row.append(rng.choice((b"n", b"u")) if rng.random() < odd / 3 else b"=" + text.encode())
    return row


def _stream(rng: random.Random, odd: float, rows: int) -> Iterator[bytes]:
    """Yield a transaction with changes of random tables."""
    yield _message(b"B" + struct.pack(">QqI", 900, 842_134_123_123_456, 77))
    for oid in range(1, 9):
        types = [23, *rng.choices(tuple(VALUES), k=rng.randrange(7))]
        full = oid % 3 == 0
        keys = range(len(types)) if full else (0,)
        yield _relation(oid, "f" if full else "d", types, keys)
        for _ in range(rows):
            new = _tuple(_row(rng, types, odd))
            key = _row(rng, types, odd if full else 0.0)
            old = _tuple(key if full else [key[0], *[b"n"] * (len(types) - 1)])
            mark = b"O" if full else b"K"
            head = struct.pack(">I", oid)
            yield _message(b"I" + head + b"N" + new)
            yield _message(b"U" + head + b"N" + new)
            yield _message(b"U" + head + mark + old + b"N" + new)
            yield _message(b"D" + head + mark + old)
    yield _message(b"C" + struct.pack(">BQQq", 0, 900, 0x1_2345_6789, 0))


def _lines(batch: DecodedBatch) -> tuple[list[bytes], int, Any, str]:
    lines = [line if isinstance(line, bytes) else line.encode("utf-8", "surrogateescape") for line in batch.lines]
    return lines, batch.changes, batch.commits, batch.error.message if batch.error else ""


def _both(
    make: Callable[[Catalog], Format], catalog: Catalog, messages: Sequence[bytes], *, lenient: bool = False
) -> tuple[Any, Any]:
    found = []
    for fmt in (make(catalog), General(make(catalog))):
        decoder = PgoutputDecoder(fmt, TableFilter(), catalog, lenient=lenient)  # type: ignore[arg-type]
        decoder.reset(Timelines(1))
        found.append(_lines(decoder.feed(messages)))
    return found[0], found[1]


@pytest.mark.parametrize("name", FORMATS)
def test_both_ways_give_the_same_lines(name: str, catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time_ns", lambda: 1_800_000_000_000_000_000)
    rng = random.Random(SEED)
    for odd in (0.0, 0.1, 0.6):
        messages = list(_stream(rng, odd, 12))
        compiled, general = _both(FORMATS[name], catalog, messages)
        assert compiled == general
        assert not compiled[3] and compiled[1] == len(messages) - 10


def test_a_message_that_was_cut_off_is_refused_by_both(catalog: Catalog) -> None:
    rng = random.Random(SEED)
    begin, *messages = _stream(rng, 0.0, 1)
    relation = b""
    for message in messages:
        if message[25:26] == b"R":
            relation = message
        elif message[25:26] in (b"I", b"U", b"D"):
            for end in rng.sample(range(30, len(message)), k=8):
                compiled, general = _both(JsonFormat, catalog, [begin, relation, message[:end]])
                assert compiled == general and compiled[3], message[:end]


def test_text_that_is_not_utf8(catalog: Catalog) -> None:
    begin, *rest = _stream(random.Random(SEED), 0.0, 1)
    relation = _relation(50, "d", (23, 25), (0,))
    good, bad = (
        _message(b"I" + struct.pack(">I", 50) + b"N" + _tuple([b"=1", b"=" + v])) for v in ("é".encode(), b"a\xff")
    )
    messages = [begin, relation, good, good, bad, good, *rest]
    compiled, general = _both(JsonFormat, catalog, messages)
    assert compiled == general and len(compiled[0]) == 2 and "s%.t" in compiled[3]
    compiled, general = _both(JsonFormat, catalog, messages, lenient=True)
    assert compiled == general and not compiled[3] and b"a\xff" in compiled[0][2]


def test_a_commit_time_out_of_range(catalog: Catalog) -> None:
    """The time is formatted when it is needed; a transaction whose time is not one does not begin."""
    decoder = PgoutputDecoder(JsonFormat(catalog), TableFilter(), catalog)
    decoder.reset(Timelines(1))
    begin = _message(b"B" + struct.pack(">QqI", 900, 2**63 - 1, 77))
    for _ in range(2):
        batch = decoder.feed([begin])
        assert batch.error is not None and not batch.in_transaction


def test_usual_rows_are_compiled() -> None:
    """Without this the other tests would compare the general way with itself."""
    conversions = [Conversion(ValueKind.INTEGER), Conversion(ValueKind.TEXT)]
    write = compile_line(["<", 0, "|", 1, ">"], conversions, "json", mark="N", columns=[0, 1])
    assert write is not None
    head = b"I" + struct.pack(">I", 5) + b"N"
    assert write(_message(head + _tuple([b"=1", "=é".encode()])), (), 1, b"") == '<1|"é">'.encode()
    for row in ([b"=1", b"n"], [b"n", b"=x"], [b"=1", b'="'], [b"=1", b"u"]):
        assert write(_message(head + _tuple(row)), (), 1, b"") is None
