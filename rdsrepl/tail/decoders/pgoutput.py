"""The decoder of pgoutput's messages, protocol versions 1 and 3 (manual, section 55.9).

Version 1 sends each transaction whole and in commit order, a prepared one at its COMMIT PREPARED, as the delivery
contract needs it. Version 3 is only for slots with two-phase decoding: there a prepared transaction's changes come when
it is prepared, and a later message says whether it was committed.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from struct import Struct
from typing import Any, Final

from rdsrepl.errors import MalformedMessage
from rdsrepl.tail.formats.base import Format, FormatInParts, RowWriter, TextMarkingWriter, WriterInParts
from rdsrepl.tail.formats.fast_lines import LineParts, Write, compile_line, now_members
from rdsrepl.tail.formats.row_parsers import Parse, compile_tuple
from rdsrepl.tail.formats.type_catalog import Catalog
from rdsrepl.tail.formats.values import Conversion
from rdsrepl.tail.model import (
    HEARTBEAT_PREFIX,
    OWN_PREFIX,
    Column,
    DecodedBatch,
    InPlace,
    Relation,
    StreamHook,
    TableFilter,
    Transaction,
)
from rdsrepl.tail.timelines import Timelines
from rdsrepl.tail.xlogdata import LSN_HALVES, MALFORMED, PAYLOAD, malformed, require_end

_AT: Final = PAYLOAD
_AFTER_OID: Final = PAYLOAD + 5
#: the bytes of a change that name its kind and its relation.
_KIND_AND_OID: Final = itemgetter(slice(_AT, _AFTER_OID))
_OID: Final = Struct(">I").unpack_from
_BEGIN: Final = Struct(">QqI").unpack_from
_COMMIT: Final = Struct(">BQQ").unpack_from
_BEGIN_PREPARE: Final = Struct(">QQqI").unpack_from
_COMMIT_PREPARED: Final = Struct(">BQQqI").unpack_from
_ROLLBACK_PREPARED: Final = Struct(">BQQqqI").unpack_from
_ATTRIBUTE: Final = Struct(">Ii").unpack_from
_MESSAGE: Final = Struct(">BQ").unpack_from
_TRUNCATE: Final = Struct(">IB").unpack_from
_ORIGIN: Final = Struct(">Q").unpack_from

_HEARTBEAT: Final = HEARTBEAT_PREFIX.encode() + b"\0"
_OWN: Final = OWN_PREFIX.encode()
_KEY, _OLD = 0x4B, 0x4F
_WRONG_LENGTH: Final = "its values do not end at its end"
_NO_TRANSACTION: Final = Transaction.of(None, 0, 0, None)
_UNKNOWN: Final = Timelines(0)


class _CompiledRelation:
    """A relation with its compiled parser and writer; None if the relation is filtered out.

    Attributes:
        own_writer: the format's writer, which a hook may have wrapped.
        writes: the compiled functions that write its usual messages; used where no hook reads its changes.
    """

    __slots__ = ("own_writer", "parse", "relation", "writer", "writes")

    def __init__(self, relation: Relation, writer: RowWriter | None, parse: Parse | None) -> None:
        self.relation = relation
        self.writer = self.own_writer = writer
        self.parse = parse
        self.writes: dict[bytes, Write] = {}


_NOTHING: Final = InPlace()
_NO_RELATIONS: Final[dict[int, _CompiledRelation]] = {}
_NO_WRITES: Final[dict[bytes, Write]] = {}


class PgoutputDecoder:
    """Decodes XLogData messages of a pgoutput slot into a format's lines."""

    def __init__(
        self,
        fmt: Format,
        tables: TableFilter,
        catalog: Catalog,
        *,
        until_lsn: int | None = None,
        lenient: bool = False,
        hook: StreamHook | None = None,
    ) -> None:
        """Make a decoder.

        Args:
            fmt: writes the lines.
            tables: which tables to stream.
            catalog: receives the type names of the stream.
            until_lsn: stop before the first transaction whose commit record starts there or later.
            lenient: the database's text may not be UTF-8.
            hook: reads this program's own messages, and the changes of some tables.
        """
        self._format = fmt
        self._hook = hook
        # The lines that stood in the place of messages, if their batch is decoded a second time.
        self._hooked: dict[bytes, InPlace] = {}
        self._tables = tables
        self._catalog = catalog
        self._until = until_lsn
        self._lenient = lenient
        self._timelines = _UNKNOWN
        self._relations: dict[int, _CompiledRelation] = {}
        self._in_parts = fmt if isinstance(fmt, FormatInParts) else None
        # By a message's kind and relation, as the message has them: the functions that write the usual messages.
        self._writes: dict[bytes, Write] = {}
        self._tx = _NO_TRANSACTION
        self._seq = 0
        self._open = False
        self._commit_lsn = 0

    def reset(self, timelines: Timelines) -> None:
        """Start a new connection."""
        self._timelines = timelines
        self._relations.clear()
        self._writes.clear()
        self._tx, self._seq, self._open = _NO_TRANSACTION, 0, False
        if self._hook is not None:
            self._hook.reset(timelines)

    def feed(self, messages: Sequence[bytes]) -> DecodedBatch:
        """Decode messages in order; the first malformed one ends the batch and is its ``error``."""
        self._catalog.batch_received()
        if self._hook is None:
            return self._fed(messages)
        if self._hook.batch_begins():
            for known in self._relations.values():
                self._choose_writer(known)
        try:
            return self._fed(messages)
        finally:
            self._hooked.clear()
            self._hook.batch_ends()

    def _fed(self, messages: Sequence[bytes]) -> DecodedBatch:
        if self._in_parts is None:
            return self._decoded(messages, _NO_WRITES)
        before = self._tx, self._seq, self._open, self._commit_lsn, self._catalog.xid
        batch = self._decoded(messages, self._writes)
        if self._lenient or _is_utf8(batch.lines):
            return batch
        # The general way decodes every value, and so finds the message.
        self._tx, self._seq, self._open, self._commit_lsn, self._catalog.xid = before
        return self._decoded(messages, _NO_WRITES)

    def _decoded(self, messages: Sequence[bytes], writes: dict[bytes, Write]) -> DecodedBatch:
        lines: list[Any] = []
        append = lines.append
        # Outside of a transaction no change is valid.
        relations = self._relations if self._open else _NO_RELATIONS
        catalog = self._catalog
        tx, seq = self._tx, self._seq
        of_transaction = _no_pieces if self._in_parts is None else self._in_parts.of_transaction
        pieces, now = of_transaction(tx), now_members()
        commits: list[tuple[int, int]] = []
        own_messages: list[tuple[int, str]] = []
        changes, committed_lines, reached_until, error = 0, 0, False, None
        m = b""
        try:
            # Most messages are written by the function of their kind and relation, which is looked up without an
            # operation of Python.
            for m, write in zip(messages, map(writes.get, map(_KIND_AND_OID, messages)), strict=True):
                if write is not None and self._open and (line := write(m, pieces, seq + 1, now)) is not None:
                    seq += 1
                    changes += 1
                    append(line)
                    continue
                kind = m[_AT]
                if kind == 0x49:  # Insert: relation, 'N', tuple
                    known = relations[_OID(m, _AT + 1)[0]]
                    seq += 1
                    if known.writer is not None and known.parse is not None:
                        new = known.parse(m, _AT + 8)
                        if new[-1] != len(m):
                            raise ValueError(_WRONG_LENGTH)
                        if text := known.writer.insert(new, "%X/%X" % LSN_HALVES(m, 1), tx, seq):
                            append(text)
                            changes += 1
                elif kind == 0x55:  # Update: relation, maybe 'K' or 'O' and a tuple, 'N', tuple
                    known = relations[_OID(m, _AT + 1)[0]]
                    seq += 1
                    if known.writer is not None and known.parse is not None:
                        old, mark, position = None, m[_AT + 5], _AT + 8
                        if mark == _KEY or mark == _OLD:
                            old = known.parse(m, position)
                            position = old[-1] + 3
                        new = known.parse(m, position)
                        if new[-1] != len(m):
                            raise ValueError(_WRONG_LENGTH)
                        if text := known.writer.update(new, old, mark == _OLD, "%X/%X" % LSN_HALVES(m, 1), tx, seq):
                            append(text)
                            changes += 1
                elif kind == 0x44:  # Delete: relation, 'K' or 'O', tuple
                    known = relations[_OID(m, _AT + 1)[0]]
                    seq += 1
                    if known.writer is not None and known.parse is not None:
                        old = known.parse(m, _AT + 8)
                        if old[-1] != len(m):
                            raise ValueError(_WRONG_LENGTH)
                        if text := known.writer.delete(old, m[_AT + 5] == _OLD, "%X/%X" % LSN_HALVES(m, 1), tx, seq):
                            append(text)
                            changes += 1
                elif kind == 0x42:  # Begin
                    commit_lsn, microseconds, xid = _BEGIN(m, _AT + 1)
                    if self._until is not None and commit_lsn >= self._until:
                        reached_until = True
                        break
                    begun = self._transaction(xid, commit_lsn, microseconds)
                    pieces = of_transaction(begun)
                    tx, seq, relations = self._begin(begun, commit_lsn), 0, self._relations
                    catalog.xid = xid
                    if marker := self._format.begin(tx):
                        append(marker)
                elif kind == 0x43:  # Commit
                    commits.append((self._end(m), changes))
                    if marker := self._format.commit(tx):
                        append(marker)
                    committed_lines = len(lines)
                    tx, seq, relations = _NO_TRANSACTION, 0, _NO_RELATIONS
                elif kind == 0x52:  # Relation
                    self._read_relation(m)
                elif kind == 0x59:  # Type: comes before the Relation message that uses it
                    self._read_type(m)
                elif kind == 0x54:  # Truncate
                    written, seq = self._truncate(m, tx, seq)
                    lines += written
                    changes += len(written)
                elif kind == 0x4D:  # Message
                    seq += m[_AT + 1] & 1  # a message that is not transactional has no number
                    if not m.startswith(_OWN, _AT + 10):
                        append(self._message(m, tx, seq))
                        changes += 1
                    elif self._open and not m.startswith(_HEARTBEAT, _AT + 10):
                        own_messages.append((tx.timeline, tx.commit_lsn))
                        in_place = self._hook_message(m, tx, seq)
                        lines += in_place.lines
                        changes += in_place.rows
                        seq += max(in_place.rows - 1, 0)
                elif kind == 0x62:  # Begin Prepare: a two-phase slot sends the changes when they are prepared
                    prepare_lsn, _, microseconds, xid = _BEGIN_PREPARE(m, _AT + 1)
                    if self._until is not None and prepare_lsn >= self._until:
                        reached_until = True
                        break
                    gid = _string(m, _AT + 29)[0]
                    begun = self._transaction(xid, prepare_lsn, microseconds, gid)
                    pieces = of_transaction(begun)
                    tx, seq, relations = self._begin(begun, prepare_lsn), 0, self._relations
                    catalog.xid = xid
                elif kind == 0x50:  # Prepare
                    commits.append((self._end(m), changes))
                    committed_lines = len(lines)
                    tx, seq, relations = _NO_TRANSACTION, 0, _NO_RELATIONS
                elif kind == 0x4B or kind == 0x72:  # Commit Prepared, Rollback Prepared
                    resolution, end_lsn = self._resolution(m)
                    append(resolution)
                    changes += 1
                    commits.append((end_lsn, changes))
                    committed_lines = len(lines)
                elif kind == 0x4F:  # Origin: comes after Begin, before the first change
                    if not self._open:
                        raise ValueError("an origin outside of a transaction")
                    tx.origin_lsn, tx.origin = _ORIGIN(m, _AT + 1)[0], _string(m, _AT + 9)[0]
                    pieces = of_transaction(tx)
                else:
                    raise ValueError(f"{chr(kind)!r} is not a message type of the protocol")
        except MALFORMED as exc:
            error = self._malformed(m, exc)
        self._tx, self._seq = tx, seq
        if self._in_parts is not None:
            lines = [line if type(line) is bytes else line.encode("utf-8", "surrogateescape") for line in lines]
        return DecodedBatch(lines, changes, commits, self._open, reached_until, error, committed_lines, own_messages)

    def _begin(self, tx: Transaction, commit_lsn: int) -> Transaction:
        if self._open:
            raise ValueError("a transaction begins within another one")
        self._open, self._commit_lsn = True, commit_lsn
        return tx

    def _end(self, m: bytes) -> int:
        """Return the end of a transaction's last record, from Commit or Prepare; the tail confirms it."""
        _, commit_lsn, end_lsn = _COMMIT(m, _AT + 1)
        if not self._open or commit_lsn != self._commit_lsn:
            raise ValueError("it ends a transaction that did not begin")
        require_end(m, end_lsn)
        self._open = False
        return int(end_lsn)

    def _malformed(self, m: bytes, exc: Exception) -> MalformedMessage:
        relation = None
        if m[_AT : _AT + 1] in (b"I", b"U", b"D") and len(m) >= _AT + 5:
            oid = _OID(m, _AT + 1)[0]
            known = self._relations.get(oid)
            relation = f"with OID {oid}" if known is None else f"{known.relation.schema}.{known.relation.table}"
            if isinstance(exc, KeyError):
                exc = ValueError("no Relation message" if self._open else "a change outside of a transaction")
        return malformed("pgoutput", m, relation, exc)

    def _transaction(self, xid: int, lsn: int, microseconds: int, gid: str | None = None) -> Transaction:
        """Return the transaction whose COMMIT, PREPARE or COMMIT PREPARED record begins at LSN."""
        return Transaction.of(xid, self._timelines.of_start(lsn), lsn, microseconds, gid)

    def _resolution(self, m: bytes) -> tuple[str, int]:
        """Write the commit or rollback of a prepared transaction; return the line and the end of its record."""
        if m[_AT] == 0x4B:
            _, lsn, end_lsn, microseconds, xid = _COMMIT_PREPARED(m, _AT + 1)
            gid = _string(m, _AT + 30)[0]
            verb, seq, tx = "commit_prepared", 1, self._transaction(xid, lsn, microseconds, gid)
        else:  # the message does not contain the record's start
            _, _, end_lsn, _, microseconds, xid = _ROLLBACK_PREPARED(m, _AT + 1)
            gid = _string(m, _AT + 38)[0]
            verb, seq = "rollback_prepared", 0
            tx = Transaction.of(xid, self._timelines.of_end(end_lsn), end_lsn, microseconds, gid)
        require_end(m, end_lsn)
        return self._format.resolution(verb, gid, "%X/%X" % LSN_HALVES(m, 1), tx, seq), end_lsn

    def _read_relation(self, m: bytes) -> None:
        """Read a Relation message; it comes before the relation's first change, and after its definition changed."""
        oid = _OID(m, _AT + 1)[0]
        schema, position = _string(m, _AT + 5)
        table, position = _string(m, position)
        identity = chr(m[position])
        count = int.from_bytes(m[position + 1 : position + 3])
        position += 3
        columns: list[Column] = []
        for _ in range(count):
            flags = m[position]
            name, position = _string(m, position + 1)
            type_oid, typmod = _ATTRIBUTE(m, position)
            position += 8
            columns.append(Column(name, type_oid, typmod, bool(flags & 1)))
        # An empty namespace means pg_catalog.
        relation = Relation(oid, schema or "pg_catalog", table, identity, tuple(columns))
        for kind in b"IUD":
            self._writes.pop(bytes((kind,)) + m[_AT + 1 : _AFTER_OID], None)
        if not self._tables.wants(relation.schema, table):
            self._relations[oid] = _CompiledRelation(relation, None, None)
            return
        conversions, writer = self._format.conversions(relation), self._format.writer(relation)
        if any(conversion.may_be_text for conversion in conversions):
            writer = TextMarkingWriter(writer, relation)
        parse = compile_tuple(conversions, self._format.dialect, lenient=self._lenient)
        known = self._relations[oid] = _CompiledRelation(relation, writer, parse)
        if self._in_parts is not None and isinstance(writer, WriterInParts):
            known.writes = self._compiled_lines(m[_AT + 1 : _AFTER_OID], relation, conversions, writer.parts)
        self._choose_writer(known)

    def _choose_writer(self, known: _CompiledRelation) -> None:
        """Ask the hook whether it reads the relation's changes; then none of them is written by a compiled line."""
        known.writer = known.own_writer
        if self._hook is not None and known.own_writer is not None:
            known.writer = self._hook.writer(known.relation, known.own_writer)
        if known.writer is known.own_writer:
            self._writes.update(known.writes)
        else:
            for name in known.writes:
                self._writes.pop(name, None)

    def _compiled_lines(
        self, oid: bytes, relation: Relation, conversions: Sequence[Conversion], parts: LineParts
    ) -> dict[bytes, Write]:
        """Compile the usual messages of a relation, if they are changes of a single tuple."""
        writes: dict[bytes, Write] = {}
        every = range(len(relation.columns))
        # An old key has only the flagged columns; with FULL the old row has all of them.
        key = [number for number in every if relation.columns[number].is_key]
        full = relation.replica_identity == "f"
        for kind, line, mark, columns in (
            (b"I", parts.insert, "N", every),
            (b"U", parts.update, "N", every),
            (b"D", parts.delete_row if full else parts.delete_key, "O" if full else "K", every if full else key),
        ):
            if line is not None:
                write = compile_line(
                    line, conversions, self._format.dialect, mark=mark, columns=columns, lenient=self._lenient
                )
                if write is not None:
                    writes[kind + oid] = write
        return writes

    def _read_type(self, m: bytes) -> None:
        schema, position = _string(m, _AT + 5)
        self._catalog.type_named(_OID(m, _AT + 1)[0], schema, _string(m, position)[0])

    def _truncate(self, m: bytes, tx: Transaction, seq: int) -> tuple[list[str], int]:
        count, flags = _TRUNCATE(m, _AT + 1)
        if not self._open:
            raise ValueError("a change outside of a transaction")
        lsn = "%X/%X" % LSN_HALVES(m, 1)
        lines: list[str] = []
        for number in range(count):
            seq += 1
            known = self._relations[_OID(m, _AT + 6 + 4 * number)[0]]
            if known.writer is None:
                continue
            cascade, restarts = bool(flags & 1), bool(flags & 2)
            if self._hook is None or not self._hook.truncate(known.relation, cascade, restarts, tx):
                lines.append(self._format.truncate(known.relation, cascade, restarts, lsn, tx, seq))
        return lines, seq

    def _hook_message(self, m: bytes, tx: Transaction, seq: int) -> InPlace:
        """Return what stands in the place of a message of this program; the hook reads each message once."""
        if self._hook is None or not m[_AT + 1] & 1:
            return _NOTHING
        if m not in self._hooked:
            prefix, content = _prefix_and_content(m)
            self._hooked[m] = self._hook.message(prefix, content, "%X/%X" % LSN_HALVES(m, 1), tx, seq)
        return self._hooked[m]

    def _message(self, m: bytes, tx: Transaction, seq: int) -> str:
        flags, lsn = _MESSAGE(m, _AT + 1)
        prefix, content = _prefix_and_content(m)
        if flags & 1 and not self._open:
            raise ValueError("a change outside of a transaction")
        if not flags & 1:  # outside of any transaction: the end of its own record identifies it
            tx = Transaction.of(None, self._timelines.of_end(lsn), lsn, None)
            seq = 0
        return self._format.message(prefix, content, bool(flags & 1), "%X/%X" % LSN_HALVES(m, 1), tx, seq)


def _string(m: bytes, position: int) -> tuple[str, int]:
    end = m.index(0, position)
    return m[position:end].decode("utf-8", "surrogateescape"), end + 1


def _prefix_and_content(m: bytes) -> tuple[str, bytes]:
    prefix, position = _string(m, _AT + 10)
    content = m[position + 4 :]
    if len(content) != int.from_bytes(m[position : position + 4]):
        raise ValueError(_WRONG_LENGTH)
    return prefix, content


def _no_pieces(tx: Transaction) -> tuple[bytes, ...]:
    return ()


def _is_utf8(lines: Sequence[Any]) -> bool:
    if all(map(bytes.isascii, lines)):
        return True
    try:
        b"".join(lines).decode()
    except UnicodeDecodeError:
        return False
    return True
