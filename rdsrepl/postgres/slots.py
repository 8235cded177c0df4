"""Replication slots: ``pg_replication_slots`` and the functions around it (manual, sections 54.20 and 9.28.6)."""

from __future__ import annotations

import csv
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from rdsrepl import errors
from rdsrepl.lsn import Lsn
from rdsrepl.postgres import slot_owners, versions
from rdsrepl.postgres.connection import server_version
from rdsrepl.postgres.error_mapping import plugin_remedy
from rdsrepl.text.commands import command
from rdsrepl.text.suggestions import did_you_mean

if TYPE_CHECKING:
    from psycopg.sql import Composed

    from rdsrepl.postgres.connection import Connection


_NAME: Final = re.compile(r"[a-z0-9_]{1,63}\Z")


@dataclass(frozen=True, slots=True)
class Walsender:
    """The server process that uses an active slot, and its client.

    Attributes:
        pid: the server process.
        user, application, client: of the connection; None where this role may not read them.
        state: ``pg_stat_replication.state``, or ``pg_stat_activity.state`` for a slot that is read over SQL.
    """

    pid: int
    user: str | None
    application: str | None
    client: str | None
    state: str | None


@dataclass(frozen=True, slots=True)
class Slot:
    """A row of ``pg_replication_slots``; a column that the version of the server does not have is None.

    Attributes:
        retained_bytes: WAL that the server keeps for it: the current position minus ``restart_lsn``. On a standby the
            current position is the last one that it replayed.
        lag_bytes: WAL not consumed yet: the current position minus ``confirmed_flush_lsn``.
        xmin_age, catalog_xmin_age: the ages of ``xmin`` and ``catalog_xmin``, in transactions.
        total_txns … stats_reset: ``pg_stat_replication_slots`` (14): what was decoded for it. The counters grow when a
            consumer reads, even if it confirms nothing: the totals at the end of a transaction, the spill and stream
            counters also within a large one.
        walsender: the process that uses it, while it is active.
        protected: whether a failover keeps it (``failover.protection``); None where that is not known, or not asked.
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
    protected: bool | None = None

    @property
    def xid_age(self) -> int | None:
        """The age of the older of ``xmin`` and ``catalog_xmin``, in transactions; None for an invalidated slot."""
        if self.is_lost:
            return None
        return max((age for age in (self.xmin_age, self.catalog_xmin_age) if age is not None), default=None)

    @property
    def is_lost(self) -> bool:
        """Whether the server invalidated the slot: nothing can consume it, and the server keeps no WAL for it.

        PostgreSQL 16 does not set ``wal_status`` to ``lost`` for a slot that conflicted with recovery.
        """
        return self.wal_status == "lost" or bool(self.invalidation_reason) or bool(self.conflicting)

    @property
    def lost_reason(self) -> str | None:
        """Why the slot is lost; None for one that is not."""
        if not self.is_lost:
            return None
        return self.invalidation_reason or (
            "it conflicted with recovery" if self.conflicting else "its WAL was removed"
        )

    @property
    def owner(self) -> str | None:
        """The product that creates slots with this name or plugin, and should drop this one; None where not known."""
        return slot_owners.by_name(self.slot_name, self.plugin)

    @property
    def is_table_copy(self) -> bool:
        """Whether a subscription made it for the first copy of one table; it is dropped after that."""
        return self.owner == slot_owners.TABLE_COPY

    @property
    def held_lsn(self) -> Lsn | None:
        """The position from which the server keeps WAL for the slot; None where it keeps none.

        The server keeps no WAL for an invalidated slot, even if that still has a ``restart_lsn`` (16 and later, slot.c,
        ``ReplicationSlotsComputeRequiredLSN``).
        """
        return None if self.is_lost else self.restart_lsn

    @property
    def counters(self) -> tuple[int | str | None, ...] | None:
        """The counters of ``pg_stat_replication_slots``, to compare them as a whole; None without statistics."""
        values = tuple(getattr(self, name) for name in COUNTERS)
        if all(value is None for value in values):
            return None
        return (*values, None if self.stats_reset is None else self.stats_reset.isoformat())

    @property
    def state(self) -> tuple[object, ...]:
        """Everything that changes when the slot is used or replaced, to compare it as a whole."""
        return (*(getattr(self, column) for column, _ in STATE_COLUMNS), self.inactive_since, self.counters)

    @property
    def holder(self) -> str:
        """The process that uses the slot and its client, in words."""
        if self.walsender is None:
            return f"PID {self.active_pid}"
        about = [f"{name} {value}" for name, value in _walsender_details(self.walsender) if value]
        return f"PID {self.active_pid}" + (f" ({', '.join(about)})" if about else "")


#: ``pg_stat_replication_slots`` (14): at least one of them grows when a consumer reads from the slot.
COUNTERS: Final = (
    "spill_txns", "spill_count", "spill_bytes", "stream_txns", "stream_count", "stream_bytes", "total_txns",
    "total_bytes",
)  # fmt: skip
# The columns that do not change while a slot is not used, and their types.
STATE_COLUMNS: Final = (
    ("plugin", "name"),
    ("slot_type", "text"),
    ("datoid", "oid"),
    ("restart_lsn", "pg_lsn"),
    ("confirmed_flush_lsn", "pg_lsn"),
    ("xmin", "xid"),
    ("catalog_xmin", "xid"),
    ("two_phase", "boolean"),
)
# Columns of newer versions; they are NULL before.
_COLUMNS: Final[tuple[tuple[int, str, str], ...]] = (
    (versions.TWO_PHASE_SLOTS_SINCE, "two_phase", "boolean"),
    (versions.TWO_PHASE_AT_SINCE, "two_phase_at", "pg_lsn"),
    (versions.SLOT_INACTIVITY_SINCE, "inactive_since", "timestamptz"),
    (versions.SLOT_CONFLICTS_SINCE, "conflicting", "boolean"),
    (versions.INVALIDATION_REASON_SINCE, "invalidation_reason", "text"),
    (versions.FAILOVER_SLOTS_SINCE, "failover", "boolean"),
    (versions.FAILOVER_SLOTS_SINCE, "synced", "boolean"),
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
# The server writes the state of a slot when it creates the slot, and later at checkpoints and confirmations.
_SAVED_AT: Final = """
SELECT n.name, f.modification
  FROM pg_catalog.unnest(%s::text[]) AS n (name),
       LATERAL pg_catalog.pg_ls_replslotdir(n.name) AS f (name, size, modification)
 WHERE f.name = 'state'
"""
_MAY_REPLICATE: Final = """
SELECT current_user::text, r.rolsuper OR r.rolreplication
       OR EXISTS (SELECT FROM pg_catalog.pg_roles m
                   WHERE m.rolname = 'rds_replication' AND pg_has_role(r.oid, m.oid, 'member'))
  FROM pg_catalog.pg_roles r WHERE r.rolname = current_user
"""
# The view, not current_setting(): the view omits what this role may not read, the function fails (42501).
_ALLOWED_PLUGINS: Final = "SELECT setting FROM pg_catalog.pg_settings WHERE name = 'output_plugin_libraries'"


def ls(conn: Connection) -> list[Slot]:
    """Return all slots of the server, by name."""
    return [_slot(row) for row in conn.execute(_query(server_version(conn))).fetchall()]


def get(conn: Connection, name: str) -> Slot:
    """Return one slot.

    Raises:
        NotFound: the server has no such slot.
    """
    everything = ls(conn)
    for slot in everything:
        if slot.slot_name == name:
            return slot
    raise errors.NotFound(
        f"no replication slot {name} on this server",
        hint=did_you_mean(
            name,
            [slot.slot_name for slot in everything],
            otherwise="list them: rdsrepl slot list; slots do not move to another server",
        ),
    )


def in_another_database(slot: Slot, database: str) -> errors.Refused:
    """Return the error of a command that reads the changes of a slot, and is connected to another DATABASE."""
    error = errors.Refused(
        f"slot {slot.slot_name} belongs to database {slot.database}, and this connection is to {database}",
        hint=f"connect to it: --dbname {shlex.quote(str(slot.database))}",
    )
    found = errors.Instead("connect to its database", ({"dbname": str(slot.database)},))
    error.instead = lambda: found
    return error


def require_replication_right(conn: Connection) -> None:
    """Make sure that this connection's role may use replication slots.

    On RDS the membership in ``rds_replication`` counts; ``rolreplication`` is false there.

    Raises:
        Denied: it may not use them.
    """
    row = conn.execute(_MAY_REPLICATE).fetchone()
    assert row is not None
    if not row[1]:
        raise errors.Denied(
            f"role {row[0]} may not use replication slots",
            hint=f"run as an administrator: {command('role grant {} --user ADMIN', row[0])}",
            sqlstate="42501",
        )


def saved_at(conn: Connection, names: Sequence[str]) -> dict[str, datetime]:
    """Return when the server last wrote the state of each slot to disk, as far as that is known.

    On 15 and 16 only this tells a slot from a copy with the same name and position. 17 and later have
    ``inactive_since``. It needs ``pg_monitor``, and has whole seconds.
    """
    import psycopg

    known = versions.SLOT_FILES_SINCE <= server_version(conn) < versions.SLOT_INACTIVITY_SINCE
    if not known or not names:
        return {}
    try:
        return dict(conn.execute(_SAVED_AT, (list(names),)).fetchall())
    except (psycopg.errors.InsufficientPrivilege, psycopg.errors.UndefinedFunction, psycopg.errors.UndefinedObject):
        return {}


def check_name(name: str) -> None:
    """Make sure that NAME is a valid slot name.

    Raises:
        BadValue: it is not.
    """
    if not _NAME.match(name):
        raise errors.BadValue(
            f"{name!r} is not a valid slot name", hint="use up to 63 lower-case letters, digits and underscores"
        )
    if name.startswith("rds"):
        raise errors.BadValue(
            f"slot name {name} begins with rds, which is reserved for RDS", hint="choose another name"
        )


def plugin_allowed(libraries: str | None, plugin: str) -> bool:
    """Say whether ``output_plugin_libraries`` allows a plugin; None: the server does not have or show it."""
    if libraries is None:
        return True
    entries = next(csv.reader([libraries], skipinitialspace=True), [])
    return plugin in [entry.strip() for entry in entries]


def planned(name: str, plugin: str, database: str) -> Slot:
    """Return a logical slot that does not exist yet."""
    row: dict[str, Any] = dict.fromkeys(field.name for field in fields(Slot))
    row |= {"slot_name": name, "plugin": plugin, "slot_type": "logical", "database": database}
    return Slot(**{**row, "temporary": False, "active": False})


def require_plugin(conn: Connection, plugin: str) -> None:
    """Make sure that the server allows an output plugin, as far as this role may read that.

    Raises:
        PluginNotAllowed: the server does not allow it.
    """
    row = conn.execute(_ALLOWED_PLUGINS).fetchone()
    libraries = row[0] if row else None
    if not plugin_allowed(libraries, plugin):
        raise errors.PluginNotAllowed(
            f"output plugin {plugin} is not allowed by the server (output_plugin_libraries = {libraries})",
            hint=plugin_remedy(libraries or "", plugin),
        )


def _query(version: int) -> Composed:
    from psycopg import sql

    columns = [
        sql.SQL("s.{}").format(sql.Identifier(name))
        if version >= since
        else sql.SQL("NULL::{} AS {}").format(sql.SQL(kind), sql.Identifier(name))
        for since, name, kind in _COLUMNS
    ]
    known = version >= versions.SLOT_STATISTICS_SINCE
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
        slot = replace(slot, retained_bytes=0)  # even if it still has a restart_lsn
    if not slot.active or slot.active_pid is None:
        return slot
    return replace(slot, walsender=Walsender(slot.active_pid, user, application, client, state))


def _walsender_details(sender: Walsender) -> tuple[tuple[str, str | None], ...]:
    return ("user", sender.user), ("application", sender.application), ("from", sender.client)
