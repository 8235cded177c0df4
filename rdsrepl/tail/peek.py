"""Read a slot without consuming it: the transactions that commit in a range of the WAL, each counted and written.

The slot is streamed and nothing is confirmed, so that its position stays. That needs no memory for the whole range, as
``pg_logical_slot_peek_changes`` does, and decodes from the start of the range on instead of from the slot's position.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from rdsrepl.errors import TimedOut, Unsupported
from rdsrepl.failover.divergence import LostTransaction, ServerHistory, TableChanges
from rdsrepl.lsn import Lsn
from rdsrepl.tail import preflight
from rdsrepl.tail.formats.base import Format, FormatWrapper, RowWriter, Values
from rdsrepl.tail.formats.json_format import JsonFormat
from rdsrepl.tail.formats.sql_format import SqlFormat, columns_not_set
from rdsrepl.tail.formats.type_catalog import Catalog
from rdsrepl.tail.model import Relation, Transaction
from rdsrepl.tail.pipeline import for_format
from rdsrepl.tail.receiver import Receiver

if TYPE_CHECKING:
    from rdsrepl.config import Target

_SILENCE_SECONDS: Final = 60.0
_ASK_SECONDS: Final = 0.5
_PUBLICATIONS: Final = "SELECT pubname FROM pg_catalog.pg_publication ORDER BY pubname"
_NOT_SET: Final = """
SELECT n.nspname::text, c.relname::text, a.attname::text,
       CASE WHEN a.attgenerated <> '' THEN 'generated' ELSE 'identity' END
  FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE a.attnum > 0 AND NOT a.attisdropped AND (a.attgenerated <> '' OR a.attidentity = 'a')
   AND c.relkind IN ('r', 'p')
"""


def history(target: Target, label: str) -> ServerHistory:
    """Return which server answers, and the history of its WAL.

    Raises:
        Error: the server is not reachable, or the role may not open a replication connection.
    """
    from rdsrepl.postgres import connection

    with connection.open(target) as conn:
        in_recovery = connection.in_recovery(conn)
        row = conn.execute(
            "SELECT pg_catalog.pg_postmaster_start_time(), "
            "NOT EXISTS (SELECT FROM pg_catalog.pg_proc WHERE proname = 'aurora_version')"
        ).fetchone()
        lsn = connection.current_lsn(conn)
    assert row is not None
    receiver = Receiver(target, {})
    try:
        timelines = receiver.timelines() if row[1] else None
    finally:
        receiver.close()
    return ServerHistory(label, receiver.system_id, timelines, in_recovery, lsn, row[0])


def publications(target: Target) -> tuple[str, ...]:
    """Return the publications of a database."""
    from rdsrepl.postgres import connection

    with connection.open(target) as conn:
        return tuple(str(name) for (name,) in conn.execute(_PUBLICATIONS).fetchall())


def transactions(
    target: Target,
    slot_name: str,
    server: ServerHistory,
    *,
    published_by: tuple[str, ...],
    start_lsn: Lsn,
    as_sql: bool,
    write: Callable[[str], None],
    warn: Callable[[str], None],
) -> list[LostTransaction]:
    """Return the transactions whose commit record begins at START_LSN or later, up to the server's present end.

    Args:
        target: the slot's database.
        slot_name: the slot; it must not be in use.
        server: the server, with its history.
        published_by: the publications to read, for pgoutput.
        start_lsn: where the range starts; what the slot's consumer confirmed is not shown.
        as_sql: write SQL, else the ``json`` format.
        write: receives the output of each change.
        warn: receives warnings about types.

    Raises:
        Error: the slot cannot be read.
    """
    assert server.timelines is not None
    checked = preflight.check(target, slot_name, published_by)
    if as_sql and checked.slot.two_phase:
        raise Unsupported(
            f"slot {slot_name} decodes prepared transactions, which are not written as SQL",
            hint="--format json, or another slot with --slot",
        )
    catalog = Catalog(target, warn)
    try:
        inner: Format = SqlFormat(catalog, _not_set(target)) if as_sql else JsonFormat(catalog)
        counting = _Counting(inner, checked.database)
        pipeline = for_format(checked, counting, catalog)
        pipeline.decoder.reset(server.timelines)
        with _streaming(target, slot_name, start_lsn, pipeline.plugin_options, pipeline.settings) as receiver:
            for messages in _until(receiver, server.lsn, slot_name):
                batch = pipeline.decoder.feed(messages)
                for line in batch.lines:
                    write(str(line))
                if batch.error is not None:
                    raise batch.error
        return counting.transactions
    finally:
        catalog.close()


def _not_set(target: Target) -> dict[tuple[str, str], dict[str, str]]:
    from rdsrepl.postgres import connection

    with connection.open(target) as conn:
        return columns_not_set(conn.execute(_NOT_SET).fetchall())


@contextmanager
def _streaming(
    target: Target, slot_name: str, start_lsn: Lsn, options: Mapping[str, str], settings: Mapping[str, str]
) -> Iterator[Receiver]:
    receiver = Receiver(target, settings)
    try:
        receiver.start(slot_name, start_lsn, options)
        yield receiver
    finally:
        receiver.close(polite=True)


def _until(receiver: Receiver, end: Lsn, slot_name: str) -> Iterator[list[bytes]]:
    """Yield the messages until the server has decoded everything up to END; nothing is confirmed.

    Raises:
        TimedOut: the server decodes, but sends nothing: it waits for a standby.
    """
    asked = progress = time.monotonic()
    position = 0
    while True:
        messages = receiver.read()
        if messages:
            yield messages
        # A keepalive ends a read: what precedes its position was yielded.
        if receiver.take_keepalive() and receiver.wal_end_lsn >= end:
            return
        now = time.monotonic()
        if messages or receiver.wal_end_lsn > position:
            progress, position = now, receiver.wal_end_lsn
        if now - progress > _SILENCE_SECONDS:
            raise TimedOut(
                f"slot {slot_name}: the server sent nothing for {_SILENCE_SECONDS:g}s and is at {Lsn(position)}, "
                f"before {end}, the end of its WAL",
                hint="it may wait for a standby: set synchronized_standby_slots to an empty value on that server, "
                "then run the command again",
            )
        if now - asked > _ASK_SECONDS or receiver.reply_requested:
            receiver.send_status(0, 0, reply=True)
            asked = now
        receiver.wait(_ASK_SECONDS, ())


class _Counting(FormatWrapper):
    """Counts the changes of each transaction, and lets another format write them; empty transactions are left out."""

    def __init__(self, inner: Format, database: str) -> None:
        super().__init__(inner)
        self._database = database
        self._tx: Transaction | None = None
        self._tables: dict[tuple[str, str], TableChanges] = {}
        self.transactions: list[LostTransaction] = []

    def writer(self, relation: Relation) -> RowWriter:
        """Return a writer that counts."""
        return _CountingWriter(self, self._inner.writer(relation), relation)

    def begin(self, tx: Transaction) -> str:  # noqa: ARG002
        """Write nothing: the transaction may be empty."""
        return ""

    def commit(self, tx: Transaction) -> str:
        """Write the end of a transaction that has changes."""
        return self._inner.commit(tx) if tx is self._tx else ""

    def truncate(
        self, relation: Relation, cascade: bool, restart_identity: bool, lsn: str, tx: Transaction, seq: int
    ) -> str:
        """Count and write a TRUNCATE of one table."""
        begin = self.counted(tx, relation, truncates=1)
        return begin + self._inner.truncate(relation, cascade, restart_identity, lsn, tx, seq)

    def message(self, prefix: str, content: bytes, transactional: bool, lsn: str, tx: Transaction, seq: int) -> str:
        """Count and write a message of ``pg_logical_emit_message``."""
        begin = self.counted(tx, None) if transactional else ""
        return begin + self._inner.message(prefix, content, transactional, lsn, tx, seq)

    def resolution(self, verb: str, gid: str, lsn: str, tx: Transaction, seq: int) -> str:
        """Write the end of a prepared transaction."""
        return self._inner.resolution(verb, gid, lsn, tx, seq)

    def counted(
        self,
        tx: Transaction,
        relation: Relation | None,
        *,
        inserts: int = 0,
        updates: int = 0,
        deletes: int = 0,
        truncates: int = 0,
    ) -> str:
        """Count a change; return the begin of its transaction if it is the first one."""
        begin = ""
        # A change whose values are marked as text has a copy of its transaction.
        if self._tx is None or (tx.commit_lsn, tx.xid) != (self._tx.commit_lsn, self._tx.xid):
            self._tx, self._tables = tx, {}
            lsn = Lsn.parse(tx.commit_lsn)
            self.transactions.append(LostTransaction(self._database, tx.xid, tx.timeline, lsn, tx.commit_time))
            begin = self._inner.begin(tx)
        current = self.transactions[-1]
        current.changes += 1
        if relation is not None:
            name = relation.schema, relation.table
            if name not in self._tables:
                self._tables[name] = TableChanges(*name)
                current.tables.append(self._tables[name])
            table = self._tables[name]
            table.inserts += inserts
            table.updates += updates
            table.deletes += deletes
            table.truncates += truncates
        return begin


class _CountingWriter:
    __slots__ = ("_counting", "_inner", "_relation")

    def __init__(self, counting: _Counting, inner: RowWriter, relation: Relation) -> None:
        self._counting, self._inner, self._relation = counting, inner, relation

    def insert(self, new: Values, lsn: str, tx: Transaction, seq: int) -> str:
        return self._counting.counted(tx, self._relation, inserts=1) + self._inner.insert(new, lsn, tx, seq)

    def update(self, new: Values, old: Values | None, whole: bool, lsn: str, tx: Transaction, seq: int) -> str:
        begin = self._counting.counted(tx, self._relation, updates=1)
        return begin + self._inner.update(new, old, whole, lsn, tx, seq)

    def delete(self, old: Values, whole: bool, lsn: str, tx: Transaction, seq: int) -> str:
        return self._counting.counted(tx, self._relation, deletes=1) + self._inner.delete(old, whole, lsn, tx, seq)
