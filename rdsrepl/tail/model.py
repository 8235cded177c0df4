"""The data that decoders and formats share: relations, transactions, decoded batches."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from functools import lru_cache
from json.encoder import encode_basestring as quote
from typing import TYPE_CHECKING, Final, Protocol, cast

from rdsrepl.errors import MalformedMessage
from rdsrepl.tail.timelines import Timelines

if TYPE_CHECKING:
    from rdsrepl.tail.formats.base import RowWriter

#: the prefix of our own heartbeat's messages.
HEARTBEAT_PREFIX: Final = "rdsrepl.heartbeat"
#: messages whose prefix begins so are this program's own, and are not written to the output.
OWN_PREFIX: Final = "rdsrepl."
# Half the time of an f-string with a format specification; both are needed once for each transaction.
_LSN: Final = "%X/%X"
_FRACTIONAL: Final = "%s.%06d+00:00"
_PG_EPOCH_US: Final = 946_684_800_000_000
_UNIX_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Column:
    """A column as pgoutput's Relation message names it."""

    name: str
    type_oid: int
    typmod: int
    is_key: bool


@dataclass(frozen=True, slots=True)
class Relation:
    """A table as pgoutput's Relation message names it.

    Attributes:
        oid: ``pg_class.oid``.
        schema, table: its name at the time of the change.
        replica_identity: ``pg_class.relreplident``: d, n, f or i.
        columns: the published columns.
        key: the names of the columns that identify a row, if the decoder knows them; None: the flagged columns, or
            with FULL the primary key's.
    """

    oid: int
    schema: str
    table: str
    replica_identity: str
    columns: tuple[Column, ...]
    key: frozenset[str] | None = None


@dataclass(slots=True)
class Transaction:
    """The transaction that is being decoded; created once for each transaction, read for every change.

    ``timeline``, ``commit_lsn`` and ``seq`` identify a line permanently, and order the lines of a stream. A change
    within a transaction has a number from 1 and the position where the commit record **begins**. A line outside of a
    transaction (a message that is not transactional, ROLLBACK PREPARED) has the number 0 and the position where its
    own record **ends**. One record's end may be the next record's beginning; the number 0 separates the two, in their
    order.

    Attributes:
        xid: its id; None for a message outside of a transaction, or if the plugin does not send it.
        commit_lsn: where its commit record begins (its PREPARE record, for a prepared transaction); outside of a
            transaction, where the line's own record ends.
        timeline: on which that record was written.
        commit_us: when it committed, in microseconds since 1970; None if the plugin does not send it.
        gid: the identifier of a prepared transaction.
        as_text: a member of a line, with its comma, that lists the columns written as text; empty without such columns.
        extra: more members of each of its lines in the ``json`` format, each with its comma.
        origin, origin_lsn: the replication origin it came from, and the commit's position there; None without one.
    """

    xid: int | None
    timeline: int
    commit_lsn: str
    commit_us: int | None
    gid: str | None = None
    as_text: str = ""
    extra: str = ""
    origin: str | None = None
    origin_lsn: int | None = None
    _suffix: str = ""

    @property
    def commit_time(self) -> str | None:
        """When it committed, ISO 8601; None if the plugin does not send it."""
        if self.commit_us is None:
            return None
        seconds, microseconds = divmod(self.commit_us, 1_000_000)
        return _FRACTIONAL % (_iso(seconds), microseconds) if microseconds else f"{_iso(seconds)}+00:00"

    @property
    def suffix(self) -> str:
        """The end of each of its lines in the ``json`` format, up to ``seq``."""
        if not self._suffix:
            time = "null" if self.commit_us is None else f'"{self.commit_time}"'
            number = "null" if self.xid is None else self.xid
            prepared = "" if self.gid is None else f'"gid":{quote(self.gid)},'
            self._suffix = (
                f'",{self.as_text}{self.extra}"timeline":{self.timeline},"commit_lsn":"{self.commit_lsn}","commit_time":{time},'
                f'"xid":{number},{prepared}"seq":'
            )
        return self._suffix

    def with_text(self, columns: Sequence[str]) -> Transaction:
        """Return the same transaction for a change whose values of these columns are written as the server's text."""
        return replace(self, as_text=f'"as_text":[{",".join(map(quote, columns))}],', _suffix="")

    @classmethod
    def of(
        cls, xid: int | None, timeline: int, commit_lsn: int, microseconds: int | None, gid: str | None = None
    ) -> Transaction:
        """Return a transaction from pgoutput's numbers: LSN, and microseconds since 2000; GID is of a prepared one."""
        position = _LSN % (commit_lsn >> 32, commit_lsn & 0xFFFFFFFF)
        return cls(xid, timeline, position, None if microseconds is None else microseconds + _PG_EPOCH_US, gid)

    @classmethod
    def at(cls, xid: int | None, timeline: int, commit_lsn: str, moment: datetime | None) -> Transaction:
        """Return a transaction from an LSN as text and a time."""
        return cls(xid, timeline, commit_lsn, None if moment is None else (moment - _UNIX_EPOCH) // _MICROSECOND)


@lru_cache(maxsize=8)
def _iso(seconds: int) -> str:
    """Return a time without its fraction and offset; transactions come in the order of their commits."""
    return (_UNIX_EPOCH + timedelta(seconds=seconds)).isoformat()[:19]


@dataclass(slots=True)
class DecodedBatch:
    """The output of some messages.

    Attributes:
        lines: each with its newline; text, or bytes from the raw format.
        changes: how many changes the lines contain.
        commits: for each commit, where it ends and how many of the changes precede it.
        in_transaction: whether a transaction is incomplete after the last message.
        reached_until: whether ``until_lsn`` was reached; messages after it were not decoded.
        error: set when a message was malformed; the lines are those before it.
        committed_lines: how many of the lines were written up to the last commit; the others belong to what follows it.
        own_messages: timeline and position of the transactions with messages of this program. Lines that stood in the
            place of such a message may not come a second time.
    """

    lines: list[str] | list[bytes]
    changes: int
    commits: list[tuple[int, int]]
    in_transaction: bool
    reached_until: bool = False
    error: MalformedMessage | None = None
    committed_lines: int = 0
    own_messages: list[tuple[int, str]] = field(default_factory=list)

    @property
    def commit_end_lsn(self) -> int | None:
        """The end of the last commit; None without one."""
        return self.commits[-1][0] if self.commits else None


def joined(lines: Sequence[str] | Sequence[bytes]) -> bytes:
    """Return the lines of a batch as bytes; text in UTF-8, with the bytes that were not UTF-8 as they came."""
    if lines and isinstance(lines[0], bytes):
        return lines[0] if len(lines) == 1 else b"".join(cast("Sequence[bytes]", lines))
    return "".join(cast("Sequence[str]", lines)).encode("utf-8", "surrogateescape")


class Decoder(Protocol):
    """Converts XLogData messages to lines."""

    def feed(self, messages: Sequence[bytes]) -> DecodedBatch:
        """Decode messages in order; the first malformed one ends the batch and is its ``error``."""
        ...

    def reset(self, timelines: Timelines) -> None:
        """Start a new connection, to a server with these timelines, which sends incomplete transactions again."""
        ...


@dataclass(frozen=True, slots=True)
class InPlace:
    """What stands in the place of a message of this program.

    Attributes:
        lines: texts of one or more lines, each with its newline.
        rows: how many lines.
    """

    lines: Sequence[bytes] = ()
    rows: int = 0


class StreamHook(Protocol):
    """Takes part in a stream of pgoutput: reads this program's own messages, and the changes of some tables.

    All methods are called in the thread of the stream.
    """

    def batch_begins(self) -> bool:
        """Prepare for messages; return whether ``writer`` has to be asked again for every relation."""
        ...

    def batch_ends(self) -> None:
        """Save what must be saved before anything that was decoded can be confirmed.

        Raises:
            Error: it could not be saved.
        """
        ...

    def writer(self, relation: Relation, writer: RowWriter) -> RowWriter:
        """Return WRITER, or one that reads the changes of the relation, and returns "" for one that is not written."""
        ...

    def truncate(self, relation: Relation, cascade: bool, restart_identity: bool, tx: Transaction) -> bool:
        """Read a TRUNCATE of a table; return whether it is not to be written."""
        ...

    def message(self, prefix: str, content: bytes, lsn: str, tx: Transaction, seq: int) -> InPlace:
        """Return what stands in the place of a message of a transaction; its first line has the number SEQ."""
        ...

    def reset(self, timelines: Timelines) -> None:
        """Start a new connection, to a server with these timelines."""
        ...

    def delivered(self, lsn: int) -> None:
        """Take note that the output has everything that was committed before a position."""
        ...


@dataclass(frozen=True, slots=True)
class TableFilter:
    """Which tables to stream.

    Attributes:
        patterns: shell patterns on ``schema.table``, or without a dot on the table's name alone; none is all tables.
        left_out: schema and name of tables that are left out nevertheless.
    """

    patterns: tuple[str, ...] = field(default=())
    left_out: tuple[tuple[str, str], ...] = field(default=())

    def __bool__(self) -> bool:
        return bool(self.patterns or self.left_out)

    def wants(self, schema: str, table: str) -> bool:
        """Return whether a table is to be streamed."""
        if (schema, table) in self.left_out:
            return False
        if not self.patterns:
            return True
        return any(fnmatchcase(f"{schema}.{table}" if "." in p else table, p) for p in self.patterns)

    def unmatched(self, tables: Collection[tuple[str, str]]) -> list[str]:
        """Return the patterns that match none of the tables, each given as schema and name."""
        return [p for p in self.patterns if not any(TableFilter((p,)).wants(*table) for table in tables)]
