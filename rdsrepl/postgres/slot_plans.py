"""Plans that create, drop and advance replication slots.

The statement that drops or advances a slot checks in itself that the slot is still inactive and unchanged since the
plan was made.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Final

from rdsrepl import errors
from rdsrepl.lsn import Lsn
from rdsrepl.plan import Plan, Statement, require_same
from rdsrepl.postgres import slots, versions
from rdsrepl.postgres.connection import in_recovery, server_version, setting
from rdsrepl.postgres.error_mapping import PRIMARY_REMEDY, WAL_LEVEL_REMEDY
from rdsrepl.postgres.server_identity import done_query, unchanged_condition
from rdsrepl.postgres.slots import COUNTERS, STATE_COLUMNS, Slot
from rdsrepl.text.commands import command
from rdsrepl.text.counts import form
from rdsrepl.units import format_size

if TYPE_CHECKING:
    from psycopg.sql import SQL, Composable, Composed

    from rdsrepl.postgres.connection import Connection
    from rdsrepl.postgres.server_identity import ServerIdentity


CREATE_TIMEOUT_SECONDS: Final = 60.0
ADVANCE_TIMEOUT_SECONDS: Final = 600.0

_CHANGED: Final = "the slot was used, moved or dropped since the plan was made, or the server restarted or failed over"
_IN_USE: Final = "SELECT count(*), current_setting('max_replication_slots')::int FROM pg_catalog.pg_replication_slots"
_MAY_CALL: Final = """
SELECT bool_or(has_function_privilege(oid, 'EXECUTE')) FROM pg_catalog.pg_proc
 WHERE proname = 'pg_create_logical_replication_slot'
"""
#: what the creation of a slot waits for besides transactions.
_BLOCKERS: Final = """
SELECT 'a snapshot of the primary (run SELECT pg_catalog.pg_log_standby_snapshot() there)' WHERE pg_is_in_recovery()
"""


def create(
    conn: Connection,
    name: str,
    *,
    plugin: str,
    two_phase: bool = False,
    failover: bool = False,
    timeout_seconds: float = CREATE_TIMEOUT_SECONDS,
) -> Plan:
    """Return the plan that creates a logical slot in this connection's database.

    The plan uses SQL where the role may call the function, else the replication protocol. The creation waits for every
    transaction that runs when it begins. It stops after ``timeout_seconds`` and then leaves no slot.

    Raises:
        BadValue: NAME is not a valid slot name.
        AlreadyExists: the slot exists and differs, is in use or invalidated. For the same slot the plan is empty.
        Denied, WalLevelNotLogical, NotPrimary, SlotsExhausted, PluginNotAllowed, Unsupported: the creation would fail.
    """
    from psycopg import sql

    slots.check_name(name)
    slots.require_replication_right(conn)
    _require_logical(conn, two_phase=two_phase, failover=failover)
    title = f"create replication slot {name}"
    present = slots.ls(conn)
    for slot in present:
        if slot.slot_name == name:
            _require_same(conn, slot, plugin, two_phase=two_phase, failover=failover)
            return Plan(title, (), unchanged=f"it already exists, is not in use, and is at {slot.confirmed_flush_lsn}")
    _require_free(conn, present)
    slots.require_plugin(conn, plugin)
    version = server_version(conn)
    row = conn.execute(_MAY_CALL).fetchone()
    through_sql = row is not None and bool(row[0])
    statement: SQL | Composed
    if through_sql:
        arguments: list[Composable] = [sql.Literal(name), sql.Literal(plugin)]
        if two_phase or failover:
            arguments += [sql.SQL("false"), sql.Literal(two_phase)]
        if failover:
            arguments.append(sql.Literal(failover))
        statement = sql.SQL("SELECT slot_name, lsn FROM pg_catalog.pg_create_logical_replication_slot({})").format(
            sql.SQL(", ").join(arguments)
        )
    else:
        statement = sql.SQL("CREATE_REPLICATION_SLOT {} LOGICAL {}").format(
            sql.Identifier(name), sql.Identifier(plugin)
        )
        words = [word for word, wanted in (("TWO_PHASE", two_phase), ("FAILOVER", failover)) if wanted]
        if words and version >= versions.REPLICATION_OPTION_LISTS_SINCE:
            statement += sql.SQL(" ({})").format(sql.SQL(", ").join(map(sql.SQL, words)))
        elif words:
            statement += sql.SQL(" " + " ".join(words))
    step = Statement(
        f"create logical replication slot {name} ({plugin})",
        statement,
        protocol="sql" if through_sql else "replication",
        timeout_seconds=timeout_seconds,
        blockers=_BLOCKERS,
        effect="create",
        undo=sql.SQL(
            "SELECT pg_catalog.pg_drop_replication_slot(slot_name) FROM pg_catalog.pg_replication_slots "
            "WHERE slot_name = {} AND NOT active AND confirmed_flush_lsn IS NOT NULL"
        ).format(sql.Literal(name)),
    )
    warning = "from now on the server keeps WAL for this slot until it is consumed or dropped"
    return Plan(title, (step,), (warning,))


def drop(slot: Slot, *, server: ServerIdentity, physical: bool = False, saved: datetime | None = None) -> Plan:
    """Return the plan that drops a slot.

    Args:
        slot: as it was read; the statement drops it only in this state.
        server: the server it was read from; the statement drops it only there, and not after a restart or a failover.
        physical: whether to allow a physical slot; one of RDS is never dropped.
        saved: what ``slots.saved_at`` returned for it.

    Raises:
        SlotActive: a consumer uses it.
        SlotBeingSynced: it is the copy of a standby.
        Refused: it is physical, so a standby may need it.
    """
    from psycopg import sql

    name = slot.slot_name
    if slot.slot_type != "logical" and (not physical or name.startswith("rds")):
        owner = "a read replica or reader of RDS" if name.startswith("rds") else "a standby or a backup"
        raise errors.Refused(
            f"slot {name} is physical and belongs to {owner}; it cannot be dropped with this command",
            hint="delete the replica, which also drops its slot",
        )
    if slot.synced and server.in_recovery:
        raise errors.SlotBeingSynced(
            f"slot {name} is synchronized from the primary of this standby",
            hint="drop it on the primary, which also drops the copy",
        )
    if slot.active:
        raise errors.SlotActive(
            f"slot {name} is in use by {slot.holder}", hint="stop that consumer first; an active slot is never dropped"
        )
    step = Statement(
        f"drop replication slot {name}",
        sql.SQL(
            "SELECT slot_name, pg_catalog.pg_drop_replication_slot(slot_name)::text AS dropped "
            "FROM pg_catalog.pg_replication_slots WHERE slot_name = {} AND NOT active AND NOT temporary AND {} AND {}"
        ).format(sql.Literal(name), _same_slot(slot, saved), unchanged_condition(server)),
        key=name,
        reason=_described(slot),
        effect="drop",
        guard=_CHANGED,
        done_if=done_query(
            server,
            sql.SQL("NOT EXISTS (SELECT FROM pg_catalog.pg_replication_slots WHERE slot_name = {})").format(
                sql.Literal(name)
            ),
        ),
    )
    return Plan(f"drop replication slot {name}", (step,), tuple(_drop_warnings(slot)))


def advance(
    slot: Slot,
    lsn: Lsn | None,
    *,
    server: ServerIdentity,
    timeout_seconds: float = ADVANCE_TIMEOUT_SECONDS,
    saved: datetime | None = None,
) -> Plan:
    """Return the plan that advances a slot to LSN, or to the current position of the server for None.

    Args:
        slot: as it was read.
        lsn: the new position.
        server: the server it was read from.
        timeout_seconds: when the statement is canceled.
        saved: what ``slots.saved_at`` returned for it.

    Raises:
        BadValue: LSN is behind the slot, or beyond the WAL of the server.
        SlotActive, SlotInvalidated, SlotBeingSynced, Refused: the slot cannot be advanced.
    """
    from psycopg import sql

    name = slot.slot_name
    if slot.slot_type != "logical":
        raise errors.Refused(
            f"slot {name} is physical; its standby advances it", hint="name a logical slot (rdsrepl slot list)"
        )
    if slot.database != server.database:
        raise slots.in_another_database(slot, server.database)
    if slot.active:
        raise errors.SlotActive(f"slot {name} is in use by {slot.holder}", hint="stop that consumer first")
    if slot.synced and server.in_recovery:
        raise errors.SlotBeingSynced(f"slot {name} is synchronized from the primary", hint="advance it on the primary")
    if slot.is_lost:
        raise errors.SlotInvalidated(f"slot {name} is invalidated", hint=f"drop it: {command('slot drop {}', name)}")
    current = server.lsn
    goal = current if lsn is None else lsn
    start = slot.confirmed_flush_lsn or Lsn(0)
    if goal > current:
        raise errors.BadValue(f"{goal} is beyond the end of the WAL, {current}", hint="use --to-current")
    if lsn is not None and goal < start:
        raise errors.BadValue(
            f"slot {name} is already at {start}, which is after {goal}", hint="a slot only moves forward"
        )
    if goal <= start:
        return Plan(f"advance replication slot {name}", (), unchanged=f"it is already at {start}")
    step = Statement(
        f"advance replication slot {name} from {start} to {goal}",
        sql.SQL(
            "SELECT a.slot_name, a.end_lsn FROM (SELECT slot_name FROM pg_catalog.pg_replication_slots "
            "WHERE slot_name = {} AND NOT active AND {} AND {}) s, "
            "LATERAL pg_catalog.pg_replication_slot_advance(s.slot_name, {}) a"
        ).format(sql.Literal(name), _same_slot(slot, saved), unchanged_condition(server), sql.Literal(str(goal))),
        key=name,
        reason=f"skips changes in {format_size(goal - start)} of WAL",
        effect="change",
        guard=_CHANGED,
        timeout_seconds=timeout_seconds,
        done_if=done_query(
            server,
            sql.SQL(
                "(SELECT confirmed_flush_lsn >= {}::pg_lsn FROM pg_catalog.pg_replication_slots WHERE slot_name = {})"
            ).format(sql.Literal(str(goal)), sql.Literal(name)),
        ),
    )
    warning = f"changes in {format_size(goal - start)} of WAL are skipped: no consumer of {name} receives them"
    return Plan(f"advance replication slot {name}", (step,), (warning,))


def _require_logical(conn: Connection, *, two_phase: bool, failover: bool) -> None:
    version, standby = server_version(conn), in_recovery(conn)
    if (level := setting(conn, "wal_level")) != "logical":
        raise errors.WalLevelNotLogical(
            f"wal_level is {level}: a logical slot needs wal_level = logical",
            hint=WAL_LEVEL_REMEDY,
        )
    if standby and version < versions.STANDBY_DECODING_SINCE:
        raise errors.NotPrimary(
            f"the server is a standby, and PostgreSQL {version} decodes only on a primary",
            hint=PRIMARY_REMEDY,
        )
    for wanted, since, what in (
        (two_phase, versions.TWO_PHASE_SLOTS_SINCE, "--two-phase"),
        (failover, versions.FAILOVER_SLOTS_SINCE, "--failover"),
    ):
        if wanted and version < since:
            raise errors.Unsupported(
                f"{what} needs PostgreSQL {since}; this server is {version}",
                hint=f"remove {what}, or upgrade",
            )
    if failover and standby:
        raise errors.NotPrimary("a failover slot can be created only on the primary", hint="connect to the primary")


def _require_same(conn: Connection, slot: Slot, plugin: str, *, two_phase: bool, failover: bool) -> None:
    state = "invalidated" if slot.is_lost else f"in use by PID {slot.active_pid}" if slot.active else "unused"
    compared: dict[str, tuple[object, object]] = {
        "type": (slot.slot_type, "logical"),
        "plugin": (slot.plugin, plugin),
        "database": (slot.database, conn.info.dbname),
        "two_phase": (bool(slot.two_phase), two_phase),
        "failover": (bool(slot.failover), failover),
        "temporary": (slot.temporary, False),
        "state": (state, "unused"),
    }
    hint = f"{command('slot show {}', slot.slot_name)}, or choose another name"
    require_same(f"slot {slot.slot_name}", compared, hint=hint)


def _require_free(conn: Connection, present: Sequence[Slot]) -> None:
    row = conn.execute(_IN_USE).fetchone()
    assert row is not None
    if row[0] >= row[1]:
        idle = [slot for slot in present if not slot.active and slot.slot_type == "logical"]
        idle.sort(key=lambda slot: -(slot.retained_bytes or 0))
        which = f"; inactive: {', '.join(slot.slot_name for slot in idle[:3])}" if idle else ""
        raise errors.SlotsExhausted(
            f"{form(int(row[1]), 'the only replication slot is', f'all {row[1]} replication slots are')} in use",
            hint=f"drop an unused one (rdsrepl slot list), or increase max_replication_slots (needs a restart){which}",
        )


def _described(slot: Slot) -> str:
    retained = "" if slot.retained_bytes is None else f"retains {format_size(slot.retained_bytes)} of WAL, "
    since = f"inactive since {slot.inactive_since:%Y-%m-%d %H:%M %Z}, " if slot.inactive_since else ""
    kind = f"{slot.plugin}, database {slot.database}" if slot.slot_type == "logical" else "physical"
    return f"{retained}{since}{kind}"


def _drop_warnings(slot: Slot) -> list[str]:
    name = slot.slot_name
    retained = "an unknown amount" if slot.retained_bytes is None else format_size(slot.retained_bytes)
    lag = "an unknown amount" if slot.lag_bytes is None else format_size(slot.lag_bytes)
    consumed = (
        "its standby loses the WAL that it has not received yet"
        if slot.slot_type != "logical"
        else "it is invalidated: its changes are already gone"
        if slot.is_lost
        else f"everything up to {slot.confirmed_flush_lsn}, the end of the WAL, was consumed"
        if slot.lag_bytes == 0
        else f"{lag} of WAL after {slot.confirmed_flush_lsn} is not consumed: its consumer loses these changes"
    )
    warnings = [f"{name} retains {retained} of WAL, which the server may then remove", consumed]
    if slot.owner is not None:
        warnings.append(f"{slot.owner} creates slots with such a name: drop it there, or check that it is not used")
    if slot.failover:
        warnings.append("it is a failover slot: its copies on the standbys are also dropped")
    return warnings


def _same_slot(slot: Slot, saved: datetime | None = None) -> Composed:
    """Return the SQL condition that a row is still the slot that was read, and was not used since."""
    from psycopg import sql

    conditions = []
    for column, kind in STATE_COLUMNS:
        value = getattr(slot, column)
        if column == "two_phase" and value is None:
            continue  # the column does not exist before 14
        conditions.append(_equals(sql.Identifier(column), str(value) if isinstance(value, Lsn) else value, kind))
    if slot.inactive_since is not None:
        conditions.append(_equals(sql.Identifier("inactive_since"), slot.inactive_since.isoformat(), "timestamptz"))
    if slot.counters is not None:
        # The counters show a consumer that read since, even if it confirmed nothing. A new slot begins at 0.
        same = [_equals(sql.Identifier(name), getattr(slot, name), "bigint") for name in COUNTERS]
        reset = None if slot.stats_reset is None else slot.stats_reset.isoformat()
        same.append(_equals(sql.Identifier("stats_reset"), reset, "timestamptz"))
        conditions.append(
            sql.SQL("EXISTS (SELECT FROM pg_catalog.pg_stat_replication_slots d WHERE d.slot_name = {} AND {})").format(
                sql.Literal(slot.slot_name), sql.SQL(" AND ").join(same)
            )
        )
    if saved is not None:
        conditions.append(
            sql.SQL(
                "(SELECT f.modification = {}::timestamptz FROM pg_catalog.pg_ls_replslotdir({}) f "
                "WHERE f.name = 'state')"
            ).format(sql.Literal(saved.isoformat()), sql.Literal(slot.slot_name))
        )
    return sql.SQL(" AND ").join(conditions)


def _equals(column: Composable, value: object, kind: str) -> Composed:
    """Return the SQL condition that a column has a value, or is NULL for None."""
    from psycopg import sql

    if value is None:
        return sql.SQL("{} IS NULL").format(column)
    return sql.SQL("{} = {}::{}").format(column, sql.Literal(value), sql.SQL(kind))
