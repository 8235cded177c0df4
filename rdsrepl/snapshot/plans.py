"""Plan the signals of ``rdsrepl snapshot``: check everything that the streaming process will need, then one message."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from rdsrepl import errors
from rdsrepl.plan import Plan, Statement
from rdsrepl.postgres import relations, row_filters, server_identity, slots, table_structures, versions, wal
from rdsrepl.postgres.connection import server_version
from rdsrepl.postgres.error_mapping import PRIMARY_REMEDY
from rdsrepl.postgres.table_structures import TableName
from rdsrepl.snapshot import chunk_table, chunks, requests
from rdsrepl.snapshot.requests import Control, Method, Request, Signal, Verb, table_text
from rdsrepl.snapshot.state import FilePlace, Place, SnapshotState
from rdsrepl.snapshot.transitions import after
from rdsrepl.text.commands import command
from rdsrepl.text.counts import counted, named
from rdsrepl.text.suggestions import did_you_mean

if TYPE_CHECKING:
    from psycopg.sql import Composed

    from rdsrepl.postgres.connection import Connection
    from rdsrepl.postgres.server_identity import ServerIdentity
    from rdsrepl.postgres.slots import Slot

_PUBLICATIONS: Final = "SELECT pubname::text FROM pg_catalog.pg_publication ORDER BY pubname"
_MAY_WRITE: Final = """
SELECT current_user::text, bool_or(has_function_privilege(p.oid, 'execute')) FROM pg_catalog.pg_proc p
 WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.proname = 'pg_logical_emit_message'
"""
_SEND: Final = """
SELECT pg_catalog.pg_logical_emit_message(true, {prefix}, {content}::text) AS lsn
  FROM pg_catalog.pg_replication_slots
 WHERE slot_name = {slot} AND plugin = 'pgoutput' AND database = current_database() AND {same_server}
"""
_APPLICATION: Final = "rdsrepl"
_CONDITION_WARNING: Final = "--where is refused unless slot tail runs with --allow-snapshot-conditions"
_TRUNCATE_WARNING: Final = "--method slot is refused unless slot tail runs with --allow-snapshot-truncate"


def start(
    conn: Connection,
    request: Request,
    *,
    publications: Sequence[str] = (),
    known: Sequence[SnapshotState] | None = None,
    state: Place = FilePlace(),  # noqa: B008 - frozen
) -> Plan:
    """Return the plan that requests a snapshot.

    Args:
        conn: the slot's database, on the primary.
        request: what to request; its tables as a user named them, or none for all that the publications have.
        publications: those that the slot's process streams; empty is any of the database.
        known: the snapshots of the slot, if their state can be read here.
        state: where that is; its table is not one of all tables.

    Raises:
        NotFound, Refused, WrongPlugin, SlotInvalidated, Unsupported, NotPrimary: the slot cannot have a snapshot.
        NotFound, BadValue, Refused: a table cannot be in it.
        BadValue: the condition or another value is not valid.
        Denied: the role may not write a message.
        AlreadyExists: the slot has another snapshot with this ID.
    """
    slot = _require_slot(conn, request.slot)
    present = [name for (name,) in conn.execute(_PUBLICATIONS).fetchall()]
    if missing := next((name for name in publications if name not in present), None):
        raise errors.NotFound(
            f"publication {missing} does not exist",
            hint=did_you_mean(missing, present, otherwise="list them: rdsrepl publication list"),
        )
    sent = list(publications) or present
    names = [_table_name(conn, text) for text in request.tables] or _all_tables(conn, sent, state)
    if not names:
        raise errors.NotFound(
            "no table is published", hint="publish one: rdsrepl publication create NAME --table TABLE"
        )
    request = replace(request, tables=tuple(dict.fromkeys(table_text(*name) for name in names)))
    parts = {name: chunk_table.expanded(conn, name, sent) for name in names}
    every = dict.fromkeys(part for of_name in parts.values() for part in of_name)
    tables = [chunk_table.describe(conn, name, sent, request.method) for name in every]
    whole = [table_text(*table.name) for table in tables if not table.key]
    if whole and request.read_from is not None:
        raise errors.BadValue(
            f"table {whole[0]} has no key: it is read in the snapshot of a slot, which a replica does not have",
            hint="omit --read-from, or name only tables with a key",
        )
    for table in tables if request.where is not None else ():
        _require_condition(conn, table, request.where or "")
    if existing := next((one for one in known or () if one.request.id == request.id), None):
        if not _is_same(existing.request, request, parts):
            raise errors.AlreadyExists(
                f"slot {slot.slot_name} has another snapshot {request.id}", hint="give another --id, or omit it"
            )
        return Plan(f"start snapshot {request.id}", (), unchanged=f"it is {existing.status} already")
    refused = after(known or (), request, now=datetime.now(UTC))
    if refused.is_refused:
        raise errors.Refused(refused.message, hint=f"list them: {_with_state('snapshot list', slot.slot_name, state)}")
    step = _step(conn, slot, request, f"request snapshot {request.id}", _contents(tables))
    title = f"start snapshot {request.id} of {named(request.tables, most=3)}"
    return Plan(title, (step,), tuple(_warnings(slot, request, whole, known)))


def _is_same(existing: Request, request: Request, parts: Mapping[TableName, Sequence[TableName]]) -> bool:
    """Return whether a request is for the same.

    The state names the partitions of a partitioned table that is published by them, and those only that the stream has.
    """
    there = set(existing.table_names)
    stands_for = [{name, *of_name} for name, of_name in parts.items()]
    is_same = all(there & one for one in stands_for) and there <= set().union(*stands_for)
    return is_same and replace(existing, tables=request.tables) == request


def _all_tables(conn: Connection, publications: Sequence[str], state: Place) -> list[TableName]:
    return sorted(name for name in table_structures.published(conn, publications) if name not in state.tables)


def _contents(tables: Sequence[chunk_table.ChunkTable]) -> str:
    """Return what a snapshot reads, in words."""
    return named(
        [
            table_text(*one.name)
            + (f" (about {counted(one.estimated_rows, 'row', grouped=True)})" if one.estimated_rows else "")
            for one in tables
        ],
        most=3,
    )


def control(
    conn: Connection,
    control: Control,
    *,
    known: Sequence[SnapshotState] | None = None,
    state: Place = FilePlace(),  # noqa: B008 - frozen
) -> Plan:
    """Return the plan that pauses, resumes or cancels a snapshot.

    Args:
        conn: the slot's database, on the primary.
        control: what to do.
        known: the snapshots of the slot, if their state can be read here.
        state: where that is.

    Raises:
        NotFound, Refused, WrongPlugin, SlotInvalidated, Unsupported, NotPrimary: the slot cannot have a snapshot.
        NotFound: the slot has no such snapshot, and its process has read all requests.
        Refused: the snapshot has ended.
        Denied: the role may not write a message.
    """
    slot = _require_slot(conn, control.slot)
    title = f"{control.verb} snapshot {control.id}"
    warnings = _consumer_warnings(slot)
    if known is None:
        warnings.append(
            f"the state of slot {slot.slot_name} is not on this machine: whether the snapshot exists is not checked"
        )
    elif not any(one.request.id == control.id for one in known):
        if slot.active:
            raise errors.NotFound(
                f"slot {slot.slot_name} has no snapshot {control.id}",
                hint=did_you_mean(
                    control.id,
                    [one.request.id for one in known],
                    otherwise=f"list them: {_with_state('snapshot list', slot.slot_name, state)}",
                ),
            )
        warnings.append(f"the state has no snapshot {control.id}: its request may not have been read yet")
    elif (result := after(known, control, now=datetime.now(UTC))).is_refused:
        return _refused(control, title, known, state, result.message)
    elif control.verb is Verb.resume:
        warnings += _permission_warnings(next(one.request for one in known if one.request.id == control.id))
    return Plan(title, (_step(conn, slot, control, title),), tuple(warnings))


def _with_state(words: str, slot_name: str, state: Place, *values: str) -> str:
    """Return a command that finds the state where this one found it."""
    if state == FilePlace():
        return command(words, *values)
    return command(f"{words} --slot {{}} --state {{}}", *values, slot_name, str(state))


def _refused(control: Control, title: str, known: Sequence[SnapshotState], state: Place, message: str) -> Plan:
    """Return an empty plan if the snapshot is already as wanted.

    Raises:
        Refused: it has ended otherwise.
    """
    status = next(one.status for one in known if one.request.id == control.id)
    wanted = {Verb.pause: ("paused",), Verb.resume: ("running", "requested"), Verb.cancel: ("cancelled",)}
    if status in wanted[control.verb]:
        return Plan(title, (), unchanged=f"it is {status} already")
    raise errors.Refused(message, hint=f"see it: {_with_state('snapshot show {}', control.slot, state, control.id)}")


def _require_slot(conn: Connection, name: str) -> Slot:
    """Return the slot, if the process that streams it can make snapshots, and this role can ask it to.

    Raises:
        Error: it cannot; see ``start``.
    """
    slot = slots.get(conn, name)
    version = server_version(conn)
    if slot.slot_type != "logical" or slot.plugin != "pgoutput":
        kind = "physical" if slot.plugin is None else f"of the plugin {slot.plugin}"
        raise errors.WrongPlugin(
            f"slot {name} is {kind}; a snapshot needs a slot of the plugin pgoutput",
            hint=f"create one: {command('slot create {} --plugin pgoutput', name + '_pgoutput')}",
        )
    if slot.database != conn.info.dbname:
        raise slots.in_another_database(slot, conn.info.dbname)
    if version < versions.PGOUTPUT_MESSAGES_SINCE:
        raise errors.Unsupported(
            f"PostgreSQL {version} does not send messages through pgoutput; a snapshot needs 14 or later",
            hint="create the slot with its rows: rdsrepl slot tail NAME --create pgoutput --snapshot",
        )
    server = wal.get(conn)
    if server.in_recovery:
        raise errors.NotPrimary(
            "the server is a standby, and a snapshot is requested by a message in the WAL", hint=PRIMARY_REMEDY
        )
    if slot.is_lost:
        raise errors.SlotInvalidated(
            f"slot {name} is invalidated ({slot.lost_reason}): no process can stream it",
            hint=f"drop it ({command('slot drop {}', name)}), and create it again with its rows: "
            f"{command('slot tail {} --create pgoutput --snapshot', name)}",
        )
    if slot.two_phase:
        raise errors.Unsupported(
            f"slot {name} has two_phase: it sends prepared transactions, which a snapshot cannot be merged with",
            hint="use a slot without two_phase",
        )
    row = conn.execute(_MAY_WRITE).fetchone()
    assert row is not None
    if not row[1]:
        raise errors.Denied(
            f"role {row[0]} may not call pg_logical_emit_message, which requests a snapshot",
            hint="as its owner: GRANT EXECUTE ON FUNCTION pg_catalog.pg_logical_emit_message(boolean, text, text) TO …",
            sqlstate="42501",
        )
    return slot


def _table_name(conn: Connection, text: str) -> tuple[str, str]:
    """Return the full name of a table that a user named.

    Raises:
        BadValue: it is not the name of a table.
        NotFound: the database has no such table.
        Refused: it is not a table.
    """
    found = relations.find(conn, text)
    if found.relkind not in ("r", "p"):
        raise errors.Refused(f"{found.quoted} is not a table", hint="name a table or a partitioned table")
    return found.schema, found.name


def _require_condition(conn: Connection, table: chunk_table.ChunkTable, where: str) -> None:
    """Let the server parse a condition, without running it or code of other roles.

    Raises:
        BadValue: it is not one condition on the rows of the table, or does not only use what is built in.
    """
    import psycopg

    from rdsrepl.postgres.error_mapping import translate

    relation = relations.find(conn, table_text(*table.name))
    row_filters.check_predicate(conn, relation, where, is_immutable=False)
    try:
        with conn.transaction(force_rollback=True):
            conn.execute("SET TRANSACTION READ ONLY")
            for check in chunks.condition_checks(table, where):
                result = conn.pgconn.prepare(b"", check.as_bytes(conn))
                if result.status != psycopg.pq.ExecStatus.COMMAND_OK:
                    raise psycopg.errors.error_from_result(result)
    except psycopg.Error as exc:
        cause = translate(exc)
        if isinstance(cause, errors.Denied | errors.Unreachable):
            raise cause from exc
        raise errors.BadValue(
            f"--where is not a condition on the rows of {table_text(*table.name)}: {cause.message}",
            hint="for example --where 'id > 1000'; it applies to every table of the snapshot",
            sqlstate=cause.sqlstate,
        ) from exc


def _warnings(slot: Slot, request: Request, whole: Sequence[str], known: Sequence[SnapshotState] | None) -> list[str]:
    warnings = _consumer_warnings(slot) + _permission_warnings(request)
    if whole:
        warnings.append(
            f"without a key: {named(whole, most=3)}; the output gets a TRUNCATE of each, then all rows. Until its end, "
            "one transaction keeps dead rows of the database from being removed"
        )
    for one in known or ():
        both = set(one.request.tables) & set(request.tables)
        if both and not one.status.has_ended:
            warnings.append(f"snapshot {one.request.id}, which is {one.status}, has {min(both)} as well")
    return warnings


def _permission_warnings(request: Request) -> list[str]:
    """Return what the process that streams the slot must allow."""
    conditions = [] if request.where is None else [_CONDITION_WARNING]
    return conditions + ([_TRUNCATE_WARNING] if request.method is Method.slot else [])


def _consumer_warnings(slot: Slot) -> list[str]:
    """Return why the signal may not be read soon, or not at all."""
    if not slot.active:
        return [f"slot {slot.slot_name} is not active: nothing happens until slot tail streams it"]
    application = None if slot.walsender is None else slot.walsender.application
    if application is not None and application != _APPLICATION:
        return [f"slot {slot.slot_name} is streamed by {slot.holder}; only slot tail makes the snapshot"]
    return []


def _step(conn: Connection, slot: Slot, signal: Signal, summary: str, reason: str = "") -> Statement:
    return Statement(
        summary,
        _statement(wal.get(conn), slot, signal),
        guard=f"slot {slot.slot_name} is not as it was, or the server restarted or failed over",
        reason="; ".join(filter(None, (reason, f"a message in the stream of slot {slot.slot_name}"))),
        key=signal.id,
        effect="create" if isinstance(signal, Request) else "change",
    )


def _statement(server: ServerIdentity, slot: Slot, signal: Signal) -> Composed:
    from psycopg import sql

    return sql.SQL(_SEND.strip()).format(
        prefix=sql.Literal(requests.PREFIX),
        content=sql.Literal(requests.encode(signal)),
        slot=sql.Literal(slot.slot_name),
        same_server=server_identity.unchanged_condition(server),
    )


def require_replica(conn: Connection, replica: Connection, name: str) -> None:
    """Require that a server is a standby with the same rows.

    Raises:
        Refused: it is a primary, or of another server.
    """
    from rdsrepl.postgres import connection

    own, other = (server_identity.system_identifier(one) for one in (conn, replica))
    if own is not None and other is not None and own != other:
        raise errors.Refused(
            f"--read-from {name} is not a replica of this server: its system identifier is {other}, not {own}",
            hint="name a read replica of the instance, or omit --read-from",
        )
    if not connection.in_recovery(replica):
        raise errors.Refused(
            f"--read-from {name} is a primary, not a replica", hint="omit --read-from to read from the primary"
        )
    if replica.info.dbname != conn.info.dbname:
        raise errors.Refused(
            f"--read-from {name} is database {replica.info.dbname}, and the slot's database is {conn.info.dbname}",
            hint="give the target the same dbname",
        )
