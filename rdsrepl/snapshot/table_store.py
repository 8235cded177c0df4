"""The state of a slot's snapshots in a table of the slot's database: the process can then run on any machine.

Each slot has one row with the document (``state_document``). Its column ``writer`` has a random text of the process
that claimed it; every write has it as a condition. The owner of a table can attach code to it that runs with the rights
of the writer, so only the role itself and superusers may own it.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from rdsrepl import errors
from rdsrepl.plan import Plan, Statement
from rdsrepl.postgres.table_structures import SNAPSHOT_STATE_COLUMNS
from rdsrepl.snapshot import state_document, state_file
from rdsrepl.snapshot.requests import table_text
from rdsrepl.snapshot.state import FilePlace, Place, SnapshotState, Store, StreamIdentity, TablePlace
from rdsrepl.text.commands import command
from rdsrepl.text.escapes import shown

if TYPE_CHECKING:
    from psycopg.sql import Composed

    from rdsrepl.config import Target
    from rdsrepl.postgres.connection import Connection

_SETTINGS: Final = {"synchronous_commit": "on", "lock_timeout": "10s"}
_COLUMNS: Final = tuple(f"{name} {type_}" for name, type_ in SNAPSHOT_STATE_COLUMNS.items())
_CREATE_SCHEMA: Final = "CREATE SCHEMA {}"
_CREATE_TABLE: Final = """
CREATE TABLE {} (slot_name text PRIMARY KEY, writer text NOT NULL, saved_at timestamptz NOT NULL, content text NOT NULL)
"""
_SCHEMA_EXISTS: Final = "SELECT EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = %s)"
_ABOUT: Final = """
SELECT c.relkind::text, c.relpersistence::text, pg_get_userbyid(c.relowner)::text,
       o.rolname = current_user OR o.rolsuper OR EXISTS (
         SELECT FROM pg_catalog.pg_roles g WHERE g.rolname = 'rds_superuser' AND pg_has_role(o.oid, g.oid, 'member')),
       c.relhastriggers OR c.relhasrules OR c.relrowsecurity OR c.relhassubclass OR c.relispartition,
       ARRAY (SELECT a.attname::text || ' ' || format_type(a.atttypid, a.atttypmod) FROM pg_catalog.pg_attribute a
               WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum)
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_catalog.pg_roles o ON o.oid = c.relowner
 WHERE n.nspname = %s AND c.relname = %s
"""
# So that the table does not change between the check and the write.
_LOCK: Final = "LOCK TABLE ONLY {} IN ROW EXCLUSIVE MODE"
_INSERT: Final = """
INSERT INTO {} (slot_name, writer, saved_at, content) VALUES (%s, %s, pg_catalog.clock_timestamp(), %s)
ON CONFLICT (slot_name) DO NOTHING
"""
_CLAIM: Final = "UPDATE {} SET writer = %s WHERE slot_name = %s RETURNING content"
_SAVE: Final = """
UPDATE {} SET content = %s, saved_at = pg_catalog.clock_timestamp() WHERE slot_name = %s AND writer = %s
"""
_READ: Final = "SELECT content FROM ONLY {} WHERE slot_name = %s"


class TableStore:
    """The state in a table; see ``Store``."""

    def __init__(self, place: TablePlace, owner: StreamIdentity, target: Target) -> None:
        self._place = place
        self._owner = owner
        self._target = target
        self._writer = secrets.token_hex(16)
        self._connection: Connection | None = None

    def load(self) -> tuple[SnapshotState, ...]:
        """Claim the row of the slot, and return the state in it.

        Raises:
            NotFound: the table does not exist.
            Refused: it is not a table that rdsrepl created, or another role owns it.
            BadState: the state is damaged, or of another slot, database or server.
            Denied, NotPrimary, Unreachable: the table cannot be written.
        """
        empty, slot_name = state_document.encode(self._owner, ()), self._owner.slot_name
        with _transaction(self._connected()) as conn:
            _lock(conn, self._place)
            conn.execute(_sql(_INSERT, self._place), (slot_name, self._writer, empty))
            row = conn.execute(_sql(_CLAIM, self._place), (self._writer, slot_name)).fetchone()
            assert row is not None
            return _decoded(row[0], self._place, self._owner)

    def save(self, snapshots: Sequence[SnapshotState]) -> None:
        """Write the state, if this process still has the row.

        Raises:
            InUse: another process claimed the row, or it was removed.
            Refused, NotFound: the table was replaced by another.
            Denied, NotPrimary, Unreachable: the table cannot be written.
        """
        content, slot_name = state_document.encode(self._owner, snapshots), self._owner.slot_name
        with _transaction(self._connected()) as conn:
            _lock(conn, self._place)
            saved = conn.execute(_sql(_SAVE, self._place), (content, slot_name, self._writer)).rowcount
        if not saved:
            raise errors.InUse(
                f"another process has taken over the snapshot state of slot {slot_name} in {self._place}",
                hint="run one process for each slot",
            )

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connected(self) -> Connection:
        from rdsrepl.postgres import connection

        if self._connection is None or self._connection.closed:
            self._connection = connection.connect(self._target, settings=_SETTINGS)
        return self._connection


def open_store(place: Place, owner: StreamIdentity, target: Target) -> Store:
    """Return the store of a place; nothing is opened before ``load``."""
    if isinstance(place, TablePlace):
        return TableStore(place, owner, target)
    return state_file.FileStore(place.path or state_file.default_file(owner), owner)


def read(conn: Connection, place: Place, owner: StreamIdentity) -> tuple[SnapshotState, ...] | None:
    """Return the state of a slot without a claim on it; None if there is none.

    Raises:
        NotFound: the table does not exist.
        Refused: it is not a table that rdsrepl created.
        BadState: the state is damaged, or of another slot, database or server.
    """
    if not isinstance(place, TablePlace):
        return state_file.read_file(place.path or state_file.default_file(owner), owner)
    with _transaction(conn):
        _require_own(conn, place)
        row = conn.execute(_sql(_READ, place), (owner.slot_name,)).fetchone()
    return None if row is None else _decoded(row[0], place, owner)


def owner_of(conn: Connection, slot_name: str) -> StreamIdentity:
    """Return whose state it is: a slot of the database and the server of a connection."""
    from rdsrepl.postgres import server_identity

    return StreamIdentity(server_identity.system_identifier(conn) or "unknown", conn.info.dbname, slot_name)


def read_slots(conn: Connection, place: Place, slot_name: str | None) -> dict[str, tuple[SnapshotState, ...] | None]:
    """Return the state of each pgoutput slot of the database, or of one slot; None where there is none; see ``read``.

    Raises:
        BadValue: the place is a file of one slot, and no slot was named.
    """
    from rdsrepl.postgres import slots

    if isinstance(place, FilePlace) and place.path is not None and slot_name is None:
        table = "" if place.path.exists() else f"; if it is a table: --state table:{place.path.name}"
        raise errors.BadValue(
            f"--state {place} is a file, which has the state of one slot", hint=f"add --slot NAME{table}"
        )
    names = [slot_name] if slot_name is not None else [
        one.slot_name for one in slots.ls(conn) if one.plugin == "pgoutput" and one.database == conn.info.dbname
    ]  # fmt: skip
    return {name: read(conn, place, owner_of(conn, name)) for name in names}


def creation(conn: Connection, place: TablePlace) -> Plan:
    """Return the plan that creates the table, and its schema where it does not exist; empty if the table exists.

    Raises:
        Refused: another object has the name, or another role owns the table.
    """
    from psycopg import sql

    name = table_text(place.schema, place.table)
    title = f"create the table {name} for the state of snapshots"
    try:
        _require_own(conn, place)
    except errors.NotFound:
        steps: list[Statement] = []
        row = conn.execute(_SCHEMA_EXISTS, (place.schema,)).fetchone()
        assert row is not None
        if not row[0]:
            statement = sql.SQL(_CREATE_SCHEMA).format(sql.Identifier(place.schema))
            steps.append(Statement(f"create schema {place.schema}", statement, effect="create"))
        steps.append(Statement(f"create table {name}", _sql(_CREATE_TABLE.strip(), place), effect="create"))
        return Plan(title, tuple(steps))
    return Plan(title, (), unchanged="it exists")


@contextmanager
def _transaction(conn: Connection) -> Iterator[Connection]:
    """Run a transaction that raises errors of this program."""
    from rdsrepl.postgres.error_mapping import translating

    with translating(), conn.transaction():
        yield conn


def _lock(conn: Connection, place: TablePlace) -> None:
    _require_own(conn, place)
    conn.execute(_sql(_LOCK, place))
    _require_own(conn, place)


def _require_own(conn: Connection, place: TablePlace) -> None:
    """Require a table as ``creation`` creates it, of a role that may not use this one's rights against it.

    Raises:
        NotFound, Refused: there is none.
    """
    name = str(place)
    row = conn.execute(_ABOUT, (place.schema, place.table)).fetchone()
    if row is None:
        raise errors.NotFound(
            f"--state {name}: the table does not exist",
            hint=f"create it: {command('snapshot create-table {}', table_text(place.schema, place.table))}",
        )
    kind, persistence, owner, is_trusted, has_more, columns = row
    other = "give another name, or drop it if nothing needs it"
    if kind != "r" or persistence != "p" or tuple(columns) != _COLUMNS:
        raise errors.Refused(f"--state {name} is not a table that rdsrepl created: it has other columns", hint=other)
    if not is_trusted:
        raise errors.Refused(
            f"--state {name} belongs to role {shown(owner)}, who could attach code to it that runs as you",
            hint="use a table that this role owns: give another name",
        )
    if has_more:
        raise errors.Refused(f"--state {name} has triggers, rules, policies or partitions", hint=other)


def _decoded(content: str, place: TablePlace, owner: StreamIdentity) -> tuple[SnapshotState, ...]:
    row = f"the row of slot {owner.slot_name} in {place}"
    return state_document.decode(content, owner, where=row, remedy="delete that row, or give another --state")


def _sql(text: str, place: TablePlace) -> Composed:
    from psycopg import sql

    return sql.SQL(text).format(sql.Identifier(place.schema, place.table))
