"""The words that decoders and formats share: a relation, a transaction, a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from json.encoder import encode_basestring as quote
from typing import Final, Protocol

from rdsrepl.errors import MalformedMessage
from rdsrepl.lsn import Lsn
from rdsrepl.tail.timelines import Timelines

#: the prefix of our own heartbeat's messages, which are not passed on.
HEARTBEAT_PREFIX: Final = "rdsrepl.heartbeat"
_PG_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
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
        columns: the published ones.
        key: the names of the columns that identify a row, where the decoder knows them; None: the flagged columns, or
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
    """The transaction that is being read; made once for each, read for every change.

    ``timeline``, ``commit_lsn`` and ``seq`` identify a line for ever, and order the lines of a stream. What stands in
    a transaction is numbered from 1 and carries where the transaction's commit record **begins**. What stands in none
    (a message that is not transactional, ROLLBACK PREPARED) is number 0 and carries where its record **ends**. One
    record's end may be the next one's beginning, so the number 0 keeps the two apart, in their order.

    Attributes:
        xid: its id; None for a message outside of a transaction, or where the plugin does not say.
        commit_lsn: where its commit record begins (of a prepared one: its PREPARE); of what is no transaction, where
            its own record ends.
        timeline: the one on which that record was written.
        commit_time: when it committed, ISO 8601; None where the plugin does not say.
        commit_us: the same in microseconds since 1970.
        suffix: the end of each of its lines in the ``json`` format, up to ``seq``.
        as_text: a member of a line, with its comma, that names the columns given as text; empty where there are none.
        origin, origin_lsn: the replication origin from which it came, and its commit's position there; None without.
    """

    xid: int | None
    timeline: int
    commit_lsn: str
    commit_time: str | None
    commit_us: int | None
    suffix: str = ""
    as_text: str = ""
    origin: str | None = None
    origin_lsn: int | None = None

    def with_text(self, columns: Sequence[str]) -> Transaction:
        """Return the same transaction for a change whose values of these columns are given as the server's text."""
        member = f'"as_text":[{",".join(map(quote, columns))}],'
        return replace(self, as_text=member, suffix=f'",{member}{self.suffix[2:]}')

    @classmethod
    def of(
        cls, xid: int | None, timeline: int, commit_lsn: int, microseconds: int | None, gid: str | None = None
    ) -> Transaction:
        """Make one from pgoutput's numbers: LSN, and microseconds since 2000; GID names a prepared one."""
        moment = None if microseconds is None else _PG_EPOCH + timedelta(microseconds=microseconds)
        return cls.at(xid, timeline, str(Lsn(commit_lsn)), moment, gid)

    @classmethod
    def at(
        cls, xid: int | None, timeline: int, commit_lsn: str, moment: datetime | None, gid: str | None = None
    ) -> Transaction:
        """Make one from text and a time."""
        time = None if moment is None else moment.astimezone(UTC).isoformat()
        quoted = "null" if time is None else f'"{time}"'
        number = "null" if xid is None else xid
        prepared = "" if gid is None else f'"gid":{quote(gid)},'
        suffix = (
            f'","timeline":{timeline},"commit_lsn":"{commit_lsn}","commit_time":{quoted},"xid":{number},'
            f'{prepared}"seq":'
        )
        microseconds = None if moment is None else (moment - _UNIX_EPOCH) // _MICROSECOND
        return cls(xid, timeline, commit_lsn, time, microseconds, suffix)


@dataclass(slots=True)
class DecodedBatch:
    """What became of some messages.

    Attributes:
        lines: output, each with its newline; text, or bytes from the raw format.
        changes: how many changes they hold.
        commits: for each commit among them where it ends, and how many of the changes come before that.
        in_transaction: whether the last message stands in the middle of a transaction.
        reached_until: whether ``until_lsn`` was reached; messages after it were not read.
        error: set when a message was malformed; the lines are those before it.
    """

    lines: list[str] | list[bytes]
    changes: int
    commits: list[tuple[int, int]]
    in_transaction: bool
    reached_until: bool = False
    error: MalformedMessage | None = None

    @property
    def commit_end_lsn(self) -> int | None:
        """The end of the last commit among them; None without one."""
        return self.commits[-1][0] if self.commits else None


class Decoder(Protocol):
    """Turns XLogData messages into lines."""

    def feed(self, messages: Sequence[bytes]) -> DecodedBatch:
        """Decode messages in their order; the first malformed one ends the batch, which has its ``error``."""
        ...

    def reset(self, timelines: Timelines) -> None:
        """Begin a new connection, to a server with these timelines: it sends open transactions again, whole."""
        ...


@dataclass(frozen=True, slots=True)
class TableFilter:
    """Which tables are wanted: shell patterns on ``schema.table``, or on the table's name alone without a dot."""

    patterns: tuple[str, ...] = field(default=())

    def __bool__(self) -> bool:
        return bool(self.patterns)

    def wants(self, schema: str, table: str) -> bool:
        """Say whether a table's changes are wanted."""
        if not self.patterns:
            return True
        return any(fnmatchcase(f"{schema}.{table}" if "." in p else table, p) for p in self.patterns)
