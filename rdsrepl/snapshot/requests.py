"""Signals: what ``rdsrepl snapshot`` asks of the process that streams a slot, as messages in the slot's own stream.

A signal is a transactional message of ``pg_logical_emit_message`` with the prefix ``PREFIX``. Its content is one JSON
object in ASCII, so that it reads the same in a database of any encoding. Every role of the database may write such a
message: ``parse`` accepts exactly the form that ``encode`` writes, with limits, and nothing else.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from rdsrepl.errors import BadValue
from rdsrepl.postgres.sql_names import parse_name, quote_if_needed
from rdsrepl.state import json_lines
from rdsrepl.state.json_lines import require_type
from rdsrepl.text.counts import counted

PREFIX: Final = "rdsrepl.signal"
DEFAULT_CHUNK_ROWS: Final = 10_000
MAX_CHUNK_ROWS: Final = 1_000_000
MAX_ROWS_PER_SECOND: Final = 1_000_000_000
MAX_TABLES: Final = 1_000
MAX_BYTES: Final = 256 << 10
_VERSION: Final = 1
_MAX_WHERE: Final = 10_000
_MAX_NAME_BYTES: Final = 63  # NAMEDATALEN - 1
_ID: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_SLOT: Final = re.compile(r"[a-z0-9_]{1,63}")
# A name of the config file or an instance, never a connection string: the writer of a message must not choose which
# server gets the credentials of the process.
_TARGET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


class Malformed(ValueError):
    """The content of a message is not a signal; the text says why, without the content."""


class Method(StrEnum):
    """How a table without a key may be read.

    Attributes:
        chunks: not at all; only the keys of rows connect chunks with the changes of the stream.
        slot: in one statement, in the snapshot of a temporary slot, after a TRUNCATE in the output.
    """

    chunks = "chunks"
    slot = "slot"


@dataclass(frozen=True, slots=True)
class Request:
    """A snapshot to start.

    Attributes:
        id: its name, unique for the slot.
        slot: whose stream gets the rows.
        tables: full names as SQL writes them, with quotes only where needed (``table_text``); see ``table_names``.
        where: an SQL condition on the rows of each table; None is all rows.
        chunk_rows: how many rows one statement reads.
        rows_per_second: the limit; None is none.
        read_from: the target, of the config file or the AWS account of the streaming process, of a replica to read.
        method: how tables without a key are read; the others are always read in chunks.
    """

    id: str
    slot: str
    tables: tuple[str, ...]
    where: str | None = None
    chunk_rows: int = DEFAULT_CHUNK_ROWS
    rows_per_second: int | None = None
    read_from: str | None = None
    method: Method = Method.chunks

    @property
    def table_names(self) -> tuple[tuple[str, str], ...]:
        """The tables as schema and name."""
        return tuple((name[0], name[1]) for name in map(parse_name, self.tables))


class Verb(StrEnum):
    """What a signal changes about a snapshot that was started."""

    pause = "pause"
    resume = "resume"
    cancel = "cancel"


@dataclass(frozen=True, slots=True)
class Control:
    """A signal to pause, resume or cancel a snapshot.

    Attributes:
        verb: what to do.
        id: the snapshot.
        slot: whose stream it is in.
    """

    verb: Verb
    id: str
    slot: str


Signal = Request | Control


def new_id(table: str = "") -> str:
    """Return a name for a snapshot that no other one has: ``orders-3f9a12`` for a table ``sales.orders``."""
    words = re.sub(r"[^a-z0-9]+", "-", table.lower().rpartition(".")[2]).strip("-")
    return f"{words[:20].strip('-') or 'snapshot'}-{secrets.token_hex(3)}"


def table_text(schema: str, name: str) -> str:
    """Return the full name of a table as a ``Request`` has it."""
    return f"{quote_if_needed(schema)}.{quote_if_needed(name)}"


def is_id(text: str) -> bool:
    """Return whether a text has the form of a snapshot's name."""
    return _ID.fullmatch(text) is not None


def is_target_name(text: str) -> bool:
    """Return whether a text can stand in ``Request.read_from``."""
    return _TARGET.fullmatch(text) is not None


def encode(signal: Signal) -> str:
    """Return the content of the message.

    Raises:
        BadValue: a value is outside of the limits; ``parse`` would refuse it.
    """
    fields: dict[str, Any] = {"version": _VERSION}
    if isinstance(signal, Control):
        fields |= {"verb": signal.verb.value, "id": signal.id, "slot": signal.slot}
    else:
        fields |= {"verb": "start", **request_fields(signal)}
    text = json.dumps(fields)
    try:
        parse(text.encode())
    except Malformed as exc:
        raise BadValue(f"the request is not valid: {exc}") from None
    return text


def parse(content: bytes) -> Signal:
    """Return the signal of a message's content.

    Raises:
        Malformed: it is not one.
    """
    if len(content) > MAX_BYTES:
        raise Malformed(f"it is larger than {counted(MAX_BYTES, 'byte', grouped=True)}")
    try:
        fields = require_type(json_lines.parse(content), dict)
        if require_type(fields.pop("version"), int) != _VERSION:
            raise Malformed("another version of rdsrepl wrote it")
        verb = require_type(fields.pop("verb"), str)
        if verb == "start":
            return request_of(fields)
        if verb not in Verb.__members__:
            raise Malformed("its verb is not known")
        _require_keys(fields, {"id", "slot"})
        return Control(Verb(verb), _matching(fields["id"], _ID, "id"), _matching(fields["slot"], _SLOT, "slot"))
    except KeyError as exc:
        raise Malformed(f"it has no {exc.args[0]}") from None
    except json_lines.Damaged:
        raise Malformed("it is not a JSON object of the expected form") from None


def request_fields(request: Request) -> dict[str, Any]:
    """Return a request as a JSON object."""
    return {
        "id": request.id,
        "slot": request.slot,
        "tables": list(request.tables),
        "where": request.where,
        "chunk_rows": request.chunk_rows,
        "rows_per_second": request.rows_per_second,
        "read_from": request.read_from,
        "method": request.method.value,
    }


def request_of(fields: Mapping[str, Any]) -> Request:
    """Return the request of a JSON object.

    Raises:
        Malformed: a value is missing, of another type, or outside of the limits; or there are others.
        Damaged: a value is of another type.
        KeyError: a value is missing.
    """
    fields = {"method": Method.chunks.value, **fields}  # an earlier version did not write it
    _require_keys(fields, {"id", "slot", "tables", "where", "chunk_rows", "rows_per_second", "read_from", "method"})
    if (method := require_type(fields["method"], str)) not in Method.__members__:
        raise Malformed("its method is not known")
    where = fields["where"]
    if where is not None and not (0 < len(require_type(where, str)) <= _MAX_WHERE and _is_text(where)):
        raise Malformed(
            f"its condition is empty, not text, or has more than {counted(_MAX_WHERE, 'character', grouped=True)}"
        )
    return Request(
        id=_matching(fields["id"], _ID, "id"),
        slot=_matching(fields["slot"], _SLOT, "slot"),
        tables=_tables(fields["tables"]),
        where=where,
        chunk_rows=_between(fields["chunk_rows"], MAX_CHUNK_ROWS, "chunk_rows"),
        rows_per_second=None
        if fields["rows_per_second"] is None
        else _between(fields["rows_per_second"], MAX_ROWS_PER_SECOND, "rows_per_second"),
        read_from=None if fields["read_from"] is None else _matching(fields["read_from"], _TARGET, "read_from"),
        method=Method(method),
    )


def _tables(value: object) -> tuple[str, ...]:
    names = tuple(require_type(name, str) for name in require_type(value, list))
    if not 0 < len(names) <= MAX_TABLES:
        raise Malformed(f"it names no table, or more than {MAX_TABLES:,}")
    if len(set(names)) != len(names):
        raise Malformed("it names a table twice")
    for name in names:
        try:
            parts = parse_name(name)
        except BadValue:
            raise Malformed("one of its tables is not a name") from None
        if len(parts) != 2 or table_text(*parts) != name:
            raise Malformed("one of its tables is not a full name in the shortest form")
        if not all(_is_text(part) and len(part.encode()) <= _MAX_NAME_BYTES for part in parts):
            raise Malformed("one of its tables has a name that PostgreSQL does not allow")
    return names


def _is_text(value: str) -> bool:
    """Return whether PostgreSQL takes a text: no zero byte, and no half of a surrogate pair."""
    return "\0" not in value and not any("\ud800" <= character <= "\udfff" for character in value)


def _require_keys(fields: Mapping[str, Any], wanted: set[str]) -> None:
    if missing := wanted - fields.keys():
        raise Malformed(f"it has no {min(missing)}")
    if len(fields) != len(wanted):
        raise Malformed("it has a field that is not known")


def _matching(value: object, pattern: re.Pattern[str], name: str) -> str:
    text = require_type(value, str)
    if pattern.fullmatch(text) is None:
        raise Malformed(f"its {name} is not valid")
    return text


def _between(value: object, most: int, name: str) -> int:
    number = require_type(value, int)
    if not 1 <= number <= most:
        raise Malformed(f"its {name} is not between 1 and {most:,}")
    return number
