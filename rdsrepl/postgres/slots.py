"""Replication slots: ``pg_replication_slots`` and the functions around it (manual, sections 54.20 and 9.28.6).

A slot is dropped or moved only by a statement that carries its own proof: still inactive, still where it was when the
plan was made.
"""

from __future__ import annotations

import csv
import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from rdsrepl import errors
from rdsrepl.lsn import Lsn
from rdsrepl.plan import Plan, Statement, require_same
from rdsrepl.postgres.connection import in_recovery, plugin_remedy, server_version, setting
from rdsrepl.text.commands import command
from rdsrepl.units import format_size

if TYPE_CHECKING:
    from psycopg.sql import SQL, Composable, Composed

    from rdsrepl.postgres.connection import Connection, Here

PLUGINS: Final = ("pgoutput", "wal2json", "test_decoding")
CREATE_TIMEOUT_SECONDS: Final = 60.0
ADVANCE_TIMEOUT_SECONDS: Final = 600.0

_MOVED: Final = "it was consumed, moved or dropped since the plan was made, or the server was restarted or failed over"
_NAME: Final = re.compile(r"[a-z0-9_]{1,63}\Z")
_DMS: Final = re.compile(r"[a-z0-9]{16}_\d{8}_[0-9a-f]{8}_[0-9a-f]{4}_[0-9a-f]{4}_[0-9a-f]{4}_[0-9a-f]{12}\Z")
_TWO_PHASE_SINCE, _FAILOVER_SINCE, _LOGICAL_ON_STANDBY_SINCE, _STATISTICS_SINCE = 14, 17, 16, 14


@dataclass(frozen=True, slots=True)
class Walsender:
    """Who holds an active slot.

    Attributes:
        pid: the server process.
        user, application, client: who is connected, with what, from where; None where this role may not see it.
        state: ``pg_stat_replication.state``, or ``pg_stat_activity.state`` for a slot read through SQL.
    """

    pid: int
    user: str | None
    application: str | None
    client: str | None
    state: str | None


@dataclass(frozen=True, slots=True)
class Slot:
    """A row of ``pg_replication_slots``; what the server's version does not know is None.

    Attributes:
        retained_bytes: WAL kept for it: current position minus ``restart_lsn``. On a standby the current position is
            the last one replayed.
        lag_bytes: not consumed yet: current position minus ``confirmed_flush_lsn``.
        xmin_age, catalog_xmin_age: how many transactions old ``xmin`` and ``catalog_xmin`` are.
        total_txns … stats_reset: ``pg_stat_replication_slots`` (14): what was decoded for it. They move when a consumer
            reads, whether it confirms anything or not; the totals at a transaction's end, the spill and stream counters
            in the middle of a large one.
        walsender: who holds it, while it is active.
    """

    slot_name: str
    plugin: str | None
    slot_type: str
    datoid: int | None
    database: str | None
    temporary: bool
    active: bool
    active_pid: int | None
    xmin: str | None
    catalog_xmin: str | None
    restart_lsn: Lsn | None
    confirmed_flush_lsn: Lsn | None
    wal_status: str | None
    safe_wal_size: int | None
    two_phase: bool | None
    two_phase_at: Lsn | None
    inactive_since: datetime | None
    conflicting: bool | None
    invalidation_reason: str | None
    failover: bool | None
    synced: bool | None
    retained_bytes: int | None
    lag_bytes: int | None
    xmin_age: int | None
    catalog_xmin_age: int | None
    total_txns: int | None
    total_bytes: int | None
    walsender: Walsender | None
    spill_txns: int | None = None
    spill_count: int | None = None
    spill_bytes: int | None = None
    stream_txns: int | None = None
    stream_count: int | None = None
    stream_bytes: int | None = None
    stats_reset: datetime | None = None

    @property
    def is_lost(self) -> bool:
        """Whether the server has invalidated it: nobody can consume it any more, and no WAL is kept for it."""
        return self.wal_status == "lost" or bool(self.invalidation_reason) or bool(self.conflicting)

    @property
    def held_lsn(self) -> Lsn | None:
        """The position from which the server keeps WAL for it; None where it keeps none.

        The server passes over invalidated slots when it decides what to keep, although ``restart_lsn`` may still be
        shown (16 and later, slot.c, ``ReplicationSlotsComputeRequiredLSN``).
        """
        return None if self.is_lost else self.restart_lsn

    @property
    def counters(self) -> tuple[int | str | None, ...] | None:
        """Its counters of ``pg_stat_replication_slots``, to be compared as a whole; None where there are none."""
        values = tuple(getattr(self, name) for name in COUNTERS)
        if all(value is None for value in values):
            return None
        return (*values, None if self.stats_reset is None else self.stats_reset.isoformat())

    @property
    def state(self) -> tuple[object, ...]:
        """Everything that tells whether it was used or replaced in between, to be compared as a whole."""
        return (*(getattr(self, column) for column, _ in _UNMOVED), self.inactive_since, self.counters)

    @property
    def holder(self) -> str:
        """Who holds the slot, in words."""
        if self.walsender is None:
            return f"PID {self.active_pid}"
        about = [f"{name} {value}" for name, value in _about(self.walsender) if value]
        return f"PID {self.active_pid}" + (f" ({', '.join(about)})" if about else "")


#: ``pg_stat_replication_slots`` (14): any of them moves when somebody reads from the slot.
COUNTERS: Final = (
    "spill_txns", "spill_count", "spill_bytes", "stream_txns", "stream_count", "stream_bytes", "total_txns",
    "total_bytes",
)  # fmt: skip
# What an untouched slot keeps, and the types to compare it in.
_UNMOVED: Final = (
    ("plugin", "name"),
    ("slot_type", "text"),
    ("datoid", "oid"),
    ("restart_lsn", "pg_lsn"),
    ("confirmed_flush_lsn", "pg_lsn"),
    ("xmin", "xid"),
    ("catalog_xmin", "xid"),
    ("two_phase", "boolean"),
)
# Columns that came with a version; before it they read as NULL.
_COLUMNS: Final[tuple[tuple[int, str, str], ...]] = (
    (14, "two_phase", "boolean"),
    (18, "two_phase_at", "pg_lsn"),
    (17, "inactive_since", "timestamptz"),
    (16, "conflicting", "boolean"),
    (17, "invalidation_reason", "text"),
    (17, "failover", "boolean"),
    (17, "synced", "boolean"),
)
_LIST: Final = """
SELECT s.slot_name::text, s.plugin::text, s.slot_type, s.datoid::bigint, s.database::text, s.temporary, s.active,
       s.active_pid, s.xmin::text, s.catalog_xmin::text, s.restart_lsn, s.confirmed_flush_lsn, s.wal_status,
       s.safe_wal_size, {columns},
       CASE WHEN s.restart_lsn IS NOT NULL
            THEN greatest(pg_wal_lsn_diff(w.lsn, s.restart_lsn), 0)::bigint END AS retained_bytes,
       CASE WHEN s.confirmed_flush_lsn IS NOT NULL
            THEN greatest(pg_wal_lsn_diff(w.lsn, s.confirmed_flush_lsn), 0)::bigint END AS lag_bytes,
       age(s.xmin) AS xmin_age, age(s.catalog_xmin) AS catalog_xmin_age,
       {statistics},
       coalesce(r.usename, a.usename)::text, coalesce(r.application_name, a.application_name),
       coalesce(host(r.client_addr) || ':' || r.client_port, host(a.client_addr) || ':' || a.client_port,
                CASE WHEN a.client_port = -1 THEN 'local' END),
       coalesce(r.state, a.state)
  FROM pg_catalog.pg_replication_slots s
 CROSS JOIN (SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()
                         ELSE pg_current_wal_lsn() END AS lsn) w
  LEFT JOIN pg_catalog.pg_stat_replication r ON r.pid = s.active_pid
  LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = s.active_pid
  {statistics_view}
 ORDER BY s.slot_name
"""
_STATISTICS_VIEW: Final = "LEFT JOIN pg_catalog.pg_stat_replication_slots d ON d.slot_name = s.slot_name"
# A slot's state is written when it is made, and at checkpoints and by its consumers when it has changed.
_SAVED_AT: Final = """
SELECT n.name, f.modification
  FROM pg_catalog.unnest(%s::text[]) AS n (name),
       LATERAL pg_catalog.pg_ls_replslotdir(n.name) AS f (name, size, modification)
 WHERE f.name = 'state'
"""
_SAVED_AT_IN: Final = (15, 16)
_MAY_REPLICATE: Final = """
SELECT current_user::text, r.rolsuper OR r.rolreplication
       OR EXISTS (SELECT FROM pg_catalog.pg_roles m
                   WHERE m.rolname = 'rds_replication' AND pg_has_role(r.oid, m.oid, 'member'))
  FROM pg_catalog.pg_roles r WHERE r.rolname = current_user
"""
_IN_USE: Final = "SELECT count(*), current_setting('max_replication_slots')::int FROM pg_catalog.pg_replication_slots"
_MAY_CALL: Final = """
SELECT bool_or(has_function_privilege(oid, 'EXECUTE')) FROM pg_catalog.pg_proc
 WHERE proname = 'pg_create_logical_replication_slot'
"""
# Of the view, not current_setting(): the view leaves out what this role may not read, the function fails (42501).
_ALLOWED_PLUGINS: Final = "SELECT setting FROM pg_catalog.pg_settings WHERE name = 'output_plugin_libraries'"
#: what a slot that is being created waits for: the transactions that were running when it began.
_BLOCKERS: Final = """
SELECT CASE WHEN b.pid = 0 THEN coalesce((
            SELECT string_agg(format('prepared transaction %%L (user %%s, %%s old)', p.gid, p.owner,
                              date_trunc('second', now() - p.prepared)), ', ') FROM pg_catalog.pg_prepared_xacts p),
            'a prepared transaction')
       ELSE format('PID %%s (user %%s, application %%s, %%s, transaction %%s old)', b.pid, a.usename,
                   coalesce(nullif(a.application_name, ''), '-'), a.state,
                   date_trunc('second', clock_timestamp() - a.xact_start)) END
  FROM (SELECT DISTINCT unnest(pg_blocking_pids(%(pid)s)) AS pid) b
  LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = b.pid
UNION ALL
SELECT 'a snapshot of the primary (run SELECT pg_catalog.pg_log_standby_snapshot() there)' WHERE pg_is_in_recovery()
"""


def ls(conn: Connection) -> list[Slot]:
    """Return all slots of the server, by name."""
    return [_slot(row) for row in conn.execute(_query(server_version(conn))).fetchall()]


def get(conn: Connection, name: str) -> Slot:
    """Return one slot.

    Raises:
        NotFound: there is none of that name.
    """
    everything = ls(conn)
    for slot in everything:
        if slot.slot_name == name:
            return slot
    near = difflib.get_close_matches(name, [slot.slot_name for slot in everything], n=1)
    raise errors.NotFound(
        f"no replication slot {name} on this server",
        hint=f"did you mean {near[0]}?"
        if near
        else "rdsrepl slot list shows them; slots do not move to another server",
    )


def require_replication_right(conn: Connection) -> None:
    """Make sure that this connection's role may use replication slots.

    Membership of ``rds_replication`` is what counts on RDS; ``rolreplication`` is false there for an able role.

    Raises:
        Denied: it may not.
    """
    row = conn.execute(_MAY_REPLICATE).fetchone()
    assert row is not None
    if not row[1]:
        raise errors.Denied(
            f"role {row[0]} may not use replication slots",
            hint=f"as an administrator: {command('role grant {}', row[0])}",
            sqlstate="42501",
        )


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

    Through SQL where the role may call the function, else through the replication protocol. The creation waits for
    every transaction that runs when it begins; it ends after ``timeout_seconds``, and leaves no slot behind then.

    Raises:
        BadValue: NAME cannot be a slot's name.
        AlreadyExists: there is one that differs, is in use or was invalidated; with another one there is nothing to do.
        Denied, WalLevelNotLogical, NotPrimary, SlotsExhausted, PluginNotAllowed, Unsupported: it would
            fail, each with its remedy.
    """
    from psycopg import sql

    check_name(name)
    require_replication_right(conn)
    _require_logical(conn, two_phase=two_phase, failover=failover)
    title = f"create replication slot {name}"
    present = ls(conn)
    for slot in present:
        if slot.slot_name == name:
            _require_same(conn, slot, plugin, two_phase=two_phase, failover=failover)
            return Plan(title, (), unchanged=f"it exists already, unused, at {slot.confirmed_flush_lsn}")
    _require_free(conn, present)
    require_plugin(conn, plugin)
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
        if words and version >= 15:
            statement += sql.SQL(" ({})").format(sql.SQL(", ").join(map(sql.SQL, words)))
        elif words:
            statement += sql.SQL(" " + " ".join(words))
    step = Statement(
        f"create logical replication slot {name} ({plugin})",
        statement,
        protocol="sql" if through_sql else "replication",
        timeout_seconds=timeout_seconds,
        blockers=_BLOCKERS,
        makes=True,
        undo=sql.SQL(
            "SELECT pg_catalog.pg_drop_replication_slot(slot_name) FROM pg_catalog.pg_replication_slots "
            "WHERE slot_name = {} AND NOT active AND confirmed_flush_lsn IS NOT NULL"
        ).format(sql.Literal(name)),
    )
    warning = "from now on the server keeps WAL for this slot until it is consumed or dropped"
    return Plan(title, (step,), (warning,))


def saved_at(conn: Connection, names: Sequence[str]) -> dict[str, datetime]:
    """Return when the server last wrote each slot's state to disk; nothing where that is not known.

    On 15 and 16 it tells a slot from another one that was copied to its name and position, which no column does
    (17 and later have ``inactive_since``). It needs ``pg_monitor``. Whole seconds.
    """
    import psycopg

    if server_version(conn) not in _SAVED_AT_IN or not names:
        return {}
    try:
        return dict(conn.execute(_SAVED_AT, (list(names),)).fetchall())
    except (psycopg.errors.InsufficientPrivilege, psycopg.errors.UndefinedFunction, psycopg.errors.UndefinedObject):
        return {}


def drop(slot: Slot, *, here: Here, physical: bool = False, saved: datetime | None = None) -> Plan:
    """Return the plan that drops a slot.

    Args:
        slot: as it was looked at; the statement drops this one, in this state, and no other.
        here: where it was looked at; the statement drops it there, and not after a restart or a failover.
        physical: a physical slot may be dropped, too; RDS's own never.
        saved: what ``saved_at`` says of it.

    Raises:
        SlotActive: somebody consumes it.
        SlotBeingSynced: it is a standby's copy.
        Refused: it is physical: a standby lives on it.
    """
    from psycopg import sql

    name = slot.slot_name
    if slot.slot_type != "logical" and (not physical or name.startswith("rds")):
        owner = "RDS for a read replica or reader" if name.startswith("rds") else "a standby or a backup"
        raise errors.Refused(
            f"slot {name} is physical, made by {owner}; it is not dropped here",
            hint="remove the replica, and its slot goes with it",
        )
    if slot.synced and here.in_recovery:
        raise errors.SlotBeingSynced(
            f"slot {name} is a copy that this standby keeps in step with its primary",
            hint="drop it on the primary; the copy goes with it",
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
        ).format(sql.Literal(name), _unmoved(slot, saved), _still_here(here)),
        guard=_MOVED,
        done_if=_answered_by(
            here,
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
    here: Here,
    timeout_seconds: float = ADVANCE_TIMEOUT_SECONDS,
    saved: datetime | None = None,
) -> Plan:
    """Return the plan that moves a slot forward, to LSN or (None) to the server's current position.

    Args:
        slot: as it was looked at.
        lsn: where to.
        here: where it was looked at.
        timeout_seconds: after this long the statement is cancelled.
        saved: what ``saved_at`` says of it.

    Raises:
        BadValue: LSN lies behind the slot, or beyond the server's WAL.
        SlotActive, SlotInvalidated, SlotBeingSynced, Refused: the slot cannot be moved.
    """
    from psycopg import sql

    name = slot.slot_name
    if slot.slot_type != "logical":
        raise errors.Refused(
            f"slot {name} is physical; its standby moves it", hint="name a logical slot (rdsrepl slot list)"
        )
    if slot.database != here.database:
        raise errors.Refused(
            f"slot {name} belongs to database {slot.database}, and this connection to {here.database}",
            hint=f"connect to it: --dbname {slot.database}",
        )
    if slot.active:
        raise errors.SlotActive(f"slot {name} is in use by {slot.holder}", hint="stop that consumer first")
    if slot.synced and here.in_recovery:
        raise errors.SlotBeingSynced(f"slot {name} follows its primary", hint="advance it on the primary")
    if slot.is_lost:
        raise errors.SlotInvalidated(f"slot {name} is invalidated", hint=f"drop it: {command('slot drop {}', name)}")
    current = here.lsn
    goal = current if lsn is None else lsn
    start = slot.confirmed_flush_lsn or Lsn(0)
    if goal > current:
        raise errors.BadValue(f"{goal} lies beyond the server's WAL, which ends at {current}", hint="use --to-current")
    if lsn is not None and goal < start:
        raise errors.BadValue(
            f"slot {name} stands at {start} already, behind which it cannot go", hint="a slot only moves forward"
        )
    if goal <= start:
        return Plan(f"advance replication slot {name}", (), unchanged=f"it stands at {start} already")
    step = Statement(
        f"advance replication slot {name} from {start} to {goal}",
        sql.SQL(
            "SELECT a.slot_name, a.end_lsn FROM (SELECT slot_name FROM pg_catalog.pg_replication_slots "
            "WHERE slot_name = {} AND NOT active AND {} AND {}) s, "
            "LATERAL pg_catalog.pg_replication_slot_advance(s.slot_name, {}) a"
        ).format(sql.Literal(name), _unmoved(slot, saved), _still_here(here), sql.Literal(str(goal))),
        guard=_MOVED,
        timeout_seconds=timeout_seconds,
        done_if=_answered_by(
            here,
            sql.SQL(
                "(SELECT confirmed_flush_lsn >= {}::pg_lsn FROM pg_catalog.pg_replication_slots WHERE slot_name = {})"
            ).format(sql.Literal(str(goal)), sql.Literal(name)),
        ),
    )
    warning = f"changes in these {format_size(goal - start)} of WAL are given up: no consumer of {name} will see them"
    return Plan(f"advance replication slot {name}", (step,), (warning,))


def check_name(name: str) -> None:
    """Make sure that NAME can be a slot's.

    Raises:
        BadValue: it cannot.
    """
    if not _NAME.match(name):
        raise errors.BadValue(
            f"{name!r} cannot be a slot's name", hint="up to 63 lower-case letters, digits and underscores"
        )
    if name.startswith("rds"):
        raise errors.BadValue(f"slot name {name}: names that begin with rds belong to RDS", hint="choose another name")


def foreign_owner(name: str) -> str | None:
    """Return which product's naming a slot follows; such a slot is that product's to drop."""
    if _DMS.match(name):
        return "AWS DMS"
    if name.startswith("pgl_"):
        return "pglogical"
    return None


def plugin_allowed(libraries: str | None, plugin: str) -> bool:
    """Say whether ``output_plugin_libraries`` lets a plugin in; None: the server has no such parameter, or hides it."""
    if libraries is None:
        return True
    entries = next(csv.reader([libraries], skipinitialspace=True), [])
    return plugin in [entry.strip() for entry in entries]


def _require_logical(conn: Connection, *, two_phase: bool, failover: bool) -> None:
    version, standby = server_version(conn), in_recovery(conn)
    if (level := setting(conn, "wal_level")) != "logical":
        raise errors.WalLevelNotLogical(
            f"wal_level is {level}, not logical: no logical slot can be made",
            hint="set wal_level = logical and restart (on RDS: rdsrepl param-group create NAME --cluster ID, then "
            "rdsrepl param-group attach NAME --cluster ID --reboot)",
        )
    if standby and version < _LOGICAL_ON_STANDBY_SINCE:
        raise errors.NotPrimary(
            f"the server is a standby, and PostgreSQL {version} decodes on a primary only",
            hint="connect to the primary (on RDS: the writer endpoint)",
        )
    for wanted, since, what in (
        (two_phase, _TWO_PHASE_SINCE, "--two-phase"),
        (failover, _FAILOVER_SINCE, "--failover"),
    ):
        if wanted and version < since:
            raise errors.Unsupported(
                f"{what} needs PostgreSQL {since}, and this is {version}", hint="leave it out, or upgrade"
            )
    if failover and standby:
        raise errors.NotPrimary("a failover slot is made on the primary", hint="connect to the primary")


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
            f"all {row[1]} replication slots are in use",
            hint=f"drop one that nobody uses (rdsrepl slot list), or raise max_replication_slots (a restart){which}",
        )


def planned(name: str, plugin: str, database: str) -> Slot:
    """Return a logical slot that is not there yet."""
    row: dict[str, Any] = dict.fromkeys(field.name for field in fields(Slot))
    row |= {"slot_name": name, "plugin": plugin, "slot_type": "logical", "database": database}
    return Slot(**{**row, "temporary": False, "active": False})


def require_plugin(conn: Connection, plugin: str) -> None:
    """Make sure that the server allows an output plugin; where this role may not see that, nothing is said.

    Raises:
        PluginNotAllowed: it does not.
    """
    row = conn.execute(_ALLOWED_PLUGINS).fetchone()
    libraries = row[0] if row else None
    if not plugin_allowed(libraries, plugin):
        raise errors.PluginNotAllowed(
            f"the server allows no output plugin {plugin} (output_plugin_libraries = {libraries})",
            hint=plugin_remedy(libraries or "", plugin),
        )


def _drop_warnings(slot: Slot) -> list[str]:
    name = slot.slot_name
    retained = "an unknown amount" if slot.retained_bytes is None else format_size(slot.retained_bytes)
    lag = "an unknown amount" if slot.lag_bytes is None else format_size(slot.lag_bytes)
    since = f", inactive since {slot.inactive_since:%Y-%m-%d %H:%M:%S %Z}" if slot.inactive_since else ""
    consumed = (
        "what its standby has not received yet is lost to that standby"
        if slot.slot_type != "logical"
        else "it is invalidated: its changes are gone already"
        if slot.is_lost
        else f"everything up to {slot.confirmed_flush_lsn}, the end of the WAL, was consumed"
        if slot.lag_bytes == 0
        else f"{lag} of WAL after {slot.confirmed_flush_lsn} was never consumed: its changes are lost to the consumer"
    )
    kind = f"{slot.plugin}, {slot.database}" if slot.slot_type == "logical" else "physical"
    held = f"{name} ({kind}{since}) holds {retained} of WAL, which the server may then remove"
    warnings = [held, consumed]
    if owner := foreign_owner(name):
        warnings.append(f"the name is one that {owner} gives: let {owner} drop it, or be sure its task is gone")
    if slot.failover:
        warnings.append("it is a failover slot: its copies on the standbys go with it")
    return warnings


def _same_server(here: Here) -> Composed:
    """Return the condition under which the server that answers is the one that was looked at, not restarted since."""
    from psycopg import sql

    conditions = [
        sql.SQL("pg_catalog.pg_postmaster_start_time() = {}::timestamptz").format(
            sql.Literal(here.started_at.isoformat())
        )
    ]
    if here.system_identifier is not None:
        conditions.append(
            sql.SQL("(SELECT system_identifier::text FROM pg_catalog.pg_control_system()) = {}").format(
                sql.Literal(here.system_identifier)
            )
        )
    return sql.SQL(" AND ").join(conditions)


def _still_here(here: Here) -> Composed:
    """Return the condition under which a server is still the one that was looked at, and has not been down since.

    After a restart or a failover every slot is inactive where it stood: consumers are only on their way back.
    """
    from psycopg import sql

    return sql.SQL("{} AND pg_catalog.pg_is_in_recovery() = {}").format(
        _same_server(here), sql.Literal(here.in_recovery)
    )


def _answered_by(here: Here, done: Composed) -> Composed:
    """Return the query whether a statement was carried out, for when it was sent and not answered.

    It is NULL where another server answers, or the same one after a restart: a restored snapshot, the other side of a
    blue/green deployment, a promoted standby and a server that crashed tell nothing of what the first one did.

    Args:
        here: where the statement was sent.
        done: the condition that says so there.
    """
    from psycopg import sql

    same = _same_server(here)
    if here.timeline is not None:
        # The walfile's name is no matter of a standby's.
        same = sql.SQL(
            "NOT pg_catalog.pg_is_in_recovery() AND {} AND "
            "('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::bigint = {}"
        ).format(same, sql.Literal(here.timeline))
    return sql.SQL("SELECT CASE WHEN {} THEN {} END").format(same, done)


def _unmoved(slot: Slot, saved: datetime | None = None) -> Composed:
    """Return the condition under which a row is still the slot that was looked at, untouched since."""
    from psycopg import sql

    conditions = []
    for column, kind in _UNMOVED:
        value = getattr(slot, column)
        if column == "two_phase" and value is None:
            continue  # before 14 there is no such column
        conditions.append(_is(sql.Identifier(column), str(value) if isinstance(value, Lsn) else value, kind))
    if slot.inactive_since is not None:
        conditions.append(_is(sql.Identifier("inactive_since"), slot.inactive_since.isoformat(), "timestamptz"))
    if slot.counters is not None:
        # Whoever read from it since is counted, whether it confirmed anything or not; a slot made anew begins at 0.
        same = [_is(sql.Identifier(name), getattr(slot, name), "bigint") for name in COUNTERS]
        reset = None if slot.stats_reset is None else slot.stats_reset.isoformat()
        same.append(_is(sql.Identifier("stats_reset"), reset, "timestamptz"))
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


def _is(column: Composable, value: object, kind: str) -> Composed:
    """Return the condition that a column has a value, or none."""
    from psycopg import sql

    if value is None:
        return sql.SQL("{} IS NULL").format(column)
    return sql.SQL("{} = {}::{}").format(column, sql.Literal(value), sql.SQL(kind))


def _query(version: int) -> Composed:
    from psycopg import sql

    columns = [
        sql.SQL("s.{}").format(sql.Identifier(name))
        if version >= since
        else sql.SQL("NULL::{} AS {}").format(sql.SQL(kind), sql.Identifier(name))
        for since, name, kind in _COLUMNS
    ]
    known = version >= _STATISTICS_SINCE
    return sql.SQL(_LIST).format(
        columns=sql.SQL(", ").join(columns),
        statistics=sql.SQL(", ").join(
            [sql.SQL("d.{}").format(sql.Identifier(name)) for name in (*COUNTERS, "stats_reset")]
            if known
            else [*[sql.SQL("NULL::bigint")] * len(COUNTERS), sql.SQL("NULL::timestamptz")]
        ),
        statistics_view=sql.SQL(_STATISTICS_VIEW if known else ""),
    )


def _slot(row: tuple[Any, ...]) -> Slot:
    *values, user, application, client, state = row
    own = len(values) - len(COUNTERS) - 1
    statistics = dict(zip((*COUNTERS, "stats_reset"), values[own:], strict=True))
    totals = statistics.pop("total_txns"), statistics.pop("total_bytes")
    slot = Slot(*(*values[:own], *totals, None), **statistics)
    if slot.is_lost:
        slot = replace(slot, retained_bytes=0)  # whatever restart_lsn still shows
    if not slot.active or slot.active_pid is None:
        return slot
    return replace(slot, walsender=Walsender(slot.active_pid, user, application, client, state))


def _about(sender: Walsender) -> tuple[tuple[str, str | None], ...]:
    return ("user", sender.user), ("application", sender.application), ("from", sender.client)
