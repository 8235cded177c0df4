"""Checks a slot before it is streamed, on an ordinary connection.

So a problem is reported with its remedy, instead of as an error of the server within the stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rdsrepl import errors
from rdsrepl.lsn import Lsn
from rdsrepl.postgres import versions
from rdsrepl.postgres.error_mapping import PRIMARY_REMEDY, WAL_LEVEL_REMEDY
from rdsrepl.tail.model import TableFilter
from rdsrepl.text.commands import command
from rdsrepl.text.suggestions import closest

if TYPE_CHECKING:
    from rdsrepl.config import Target
    from rdsrepl.postgres.connection import Connection
    from rdsrepl.postgres.slots import Slot

_ABOUT: Final = """
SELECT pg_catalog.current_database(), pg_catalog.current_setting('server_encoding'),
       NOT EXISTS (SELECT FROM pg_catalog.pg_proc WHERE proname = 'aurora_version'),
       (SELECT s.reset_val FROM pg_catalog.pg_settings s WHERE s.name = 'search_path'),
       pg_catalog.pg_postmaster_start_time()::pg_catalog.text
"""
_STATS_RESET: Final = """
SELECT stats_reset::pg_catalog.text FROM pg_catalog.pg_stat_replication_slots WHERE slot_name = %s
"""
_DISCARDED: Final = """
SELECT DISTINCT o.schemaname || '.' || o.tablename FROM pg_catalog.pg_publication_tables o
 WHERE o.pubname = ANY (%(before)s) AND NOT EXISTS (
       SELECT FROM pg_catalog.pg_publication_tables n
        WHERE n.pubname = ANY (%(now)s) AND n.schemaname = o.schemaname AND n.tablename = o.tablename)
 ORDER BY 1
"""
_PUBLISHED_TABLES: Final = """
SELECT DISTINCT schemaname::pg_catalog.text, tablename::pg_catalog.text FROM pg_catalog.pg_publication_tables
 WHERE pubname = ANY (%s)
"""
_TABLES: Final = """
SELECT n.nspname::pg_catalog.text, c.relname::pg_catalog.text
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'p')
"""
_PUBLICATIONS: Final = "SELECT pubname FROM pg_catalog.pg_publication ORDER BY pubname"


@dataclass(frozen=True, slots=True)
class PreflightResult:
    """What the checks read from the server.

    Attributes:
        slot: the slot.
        database: the connection's database.
        version: the server's major version.
        in_recovery: whether it is a standby.
        current_lsn: the end of its WAL (on a standby: of the replayed WAL).
        publications: the publications to stream; empty for other plugins.
        lenient_text: the database's text may not be UTF-8 (SQL_ASCII).
        encoding: the database's (``server_encoding``).
        has_timelines: whether a promotion starts a new timeline. On Aurora all servers of a cluster share the storage:
            a failover assigns no position twice, and there are no timelines.
        search_path: set by the role and the database. A plugin that prints type names omits the schemas on it; no
            name is looked up there.
        started_at: when the server started, as it prints it.
        stats_reset: when the slot's statistics were reset, as the server prints it; None is never, or unknown (13).
        is_planned: the slot does not exist yet.
    """

    slot: Slot
    database: str
    version: int
    in_recovery: bool
    current_lsn: Lsn
    publications: tuple[str, ...]
    lenient_text: bool
    encoding: str
    has_timelines: bool
    search_path: str
    started_at: str
    stats_reset: str | None
    is_planned: bool = False


def check(
    target: Target,
    slot_name: str,
    publications: Sequence[str],
    *,
    primary: bool = False,
    create: str | None = None,
) -> PreflightResult:
    """Check the slot and everything that streaming needs.

    Args:
        target: the database.
        slot_name: the slot.
        publications: those to stream.
        primary: whether a standby is refused, because the slot was streamed from a primary before.
        create: the output plugin of the slot to create if it does not exist; whether that is possible is checked.

    Raises:
        NotFound: the slot or a publication does not exist.
        PluginNotAllowed, WrongPlugin, Refused, SlotInvalidated, SlotBeingSynced, NotPrimary, WalLevelNotLogical,
            Denied: the slot cannot be streamed; each has its remedy.
        Unreachable: the server is unreachable.
    """
    from rdsrepl.postgres import connection, slot_plans, slots

    with connection.open(target) as conn:
        version, in_recovery = connection.server_version(conn), connection.in_recovery(conn)
        if connection.setting(conn, "wal_level") != "logical":
            raise errors.WalLevelNotLogical(
                f"wal_level is {connection.setting(conn, 'wal_level')}, not logical; the server has no logical slots",
                hint=WAL_LEVEL_REMEDY,
            )
        if in_recovery and version < versions.STANDBY_DECODING_SINCE:
            raise errors.NotPrimary(
                f"the server is a standby, and PostgreSQL {version} decodes only on a primary",
                hint=f"{PRIMARY_REMEDY}; standbys decode since PostgreSQL 16",
            )
        if in_recovery and primary:
            raise errors.NotPrimary("the server is a standby now", hint=PRIMARY_REMEDY)
        slots.require_replication_right(conn)
        row = conn.execute(_ABOUT).fetchone()
        assert row is not None
        database, encoding, has_timelines, path, started_at = row
        is_planned = False
        try:
            slot = slots.get(conn, slot_name)
        except errors.NotFound:
            if create is None:
                raise
            slot_plans.create(conn, slot_name, plugin=create)  # only for the checks that the plan makes
            slot, is_planned = slots.planned(slot_name, create, database), True
        statistics = (
            conn.execute(_STATS_RESET, (slot_name,)).fetchone() if version >= versions.SLOT_STATISTICS_SINCE else None
        )
        _fit(slot, database, in_recovery)
        slots.require_plugin(conn, slot.plugin or "")
        names: tuple[str, ...] = ()
        if slot.plugin == "pgoutput":
            names = published(conn, publications)
        elif publications:
            raise errors.WrongPlugin(
                f"slot {slot_name} uses {slot.plugin}, which does not support publications",
                hint="omit --publication; --table PATTERN selects tables",
            )
        current_lsn = connection.current_lsn(conn)
        return PreflightResult(
            slot,
            database,
            version,
            in_recovery,
            current_lsn,
            names,
            encoding == "SQL_ASCII",
            encoding,
            has_timelines,
            path,
            started_at,
            statistics[0] if statistics else None,
            is_planned,
        )


def discarded(target: Target, before: Sequence[str], now: Sequence[str]) -> list[str]:
    """Return the tables that the publications BEFORE publish at present, and NOW do not.

    Raises:
        Error: the server is unreachable or refuses the query.
    """
    from rdsrepl.postgres import connection

    with connection.open(target) as conn:
        rows = conn.execute(_DISCARDED, {"before": list(before), "now": list(now)})
        return [row[0] for row in rows]


def unmatched(target: Target, checked: PreflightResult, tables: TableFilter) -> list[str]:
    """Return why a pattern of ``--table`` selects nothing: no table whose changes the slot sends has such a name.

    Raises:
        Error: the server is unreachable or refuses the query.
    """
    if not tables:
        return []
    from rdsrepl.postgres import connection

    with connection.open(target) as conn:
        rows = conn.execute(_PUBLISHED_TABLES, (list(checked.publications),)) if checked.publications else None
        present: list[tuple[str, str]] = (rows or conn.execute(_TABLES)).fetchall()
    which = "published table" if checked.publications else "table of the database"
    names = [name for schema, table in present for name in (table, f"{schema}.{table}")]
    found: list[str] = []
    for pattern in tables.unmatched(present):
        near = closest(pattern, names)
        found.append(f"--table {pattern} matches no {which}" + (f"; did you mean {near}?" if near else ""))
    return found


def published(conn: Connection, wanted: Sequence[str]) -> tuple[str, ...]:
    """Return the publications to stream: those named, or the database's only one.

    Raises:
        NotFound: a publication does not exist, or none was named and the database does not have exactly one.
    """
    present = [row[0] for row in conn.execute(_PUBLICATIONS)]
    listed = ", ".join(present) or "none (rdsrepl publication create NAME --table …)"
    missing = [name for name in wanted if name not in present]
    if missing:
        raise errors.NotFound(
            f"publication {', '.join(missing)} does not exist", hint=f"publications in this database: {listed}"
        )
    if wanted:
        return tuple(wanted)
    if len(present) == 1:
        return tuple(present)
    raise errors.NotFound(
        "a pgoutput slot needs a publication, and none was named",
        hint=f"add --publication NAME; publications in this database: {listed}",
    )


def _fit(slot: Slot, database: str, in_recovery: bool) -> None:
    from rdsrepl.postgres import slots

    name = slot.slot_name
    if slot.slot_type != "logical":
        raise errors.WrongPlugin(
            f"slot {name} is physical: it serves a standby and has no changes to print",
            hint="choose a logical slot (rdsrepl slot list)",
        )
    if slot.database != database:
        raise slots.in_another_database(slot, database)
    if slot.is_lost:
        raise errors.SlotInvalidated(
            f"slot {name} is invalidated ({slot.lost_reason}): the changes it held are gone",
            hint=f"drop it ({command('slot drop {}', name)}), create it again, and copy the tables: "
            "changes are missing",
        )
    # On a promoted standby the flag stays, without a meaning.
    if slot.synced and in_recovery:
        raise errors.SlotBeingSynced(
            f"slot {name} is being synchronised from the primary",
            hint="stream it from the primary; it can be streamed from this server after a promotion",
        )
