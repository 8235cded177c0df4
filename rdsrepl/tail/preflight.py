"""What is looked at before a slot is streamed, on an ordinary connection.

So a bad start is an error with a remedy, and not the server's last words in the middle of the stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rdsrepl import errors
from rdsrepl.lsn import Lsn
from rdsrepl.postgres import versions
from rdsrepl.text.commands import command

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
_PUBLICATIONS: Final = "SELECT pubname FROM pg_catalog.pg_publication ORDER BY pubname"


@dataclass(frozen=True, slots=True)
class PreflightResult:
    """What the server says before streaming.

    Attributes:
        slot: the slot.
        database: the connection's database.
        version: the server's major version.
        in_recovery: whether it is a standby.
        current_lsn: how far its WAL reaches (on a standby: is replayed).
        publications: the publications to stream; empty for other plugins.
        lenient_text: the database's text may be no UTF-8 (SQL_ASCII).
        encoding: the database's own (``server_encoding``).
        has_timelines: whether a promotion begins a new timeline. Aurora's storage is one for all servers of a cluster:
            a failover gives no position twice, and there are no timelines.
        search_path: the one that the role and the database have set. A plugin that prints types' names leaves out the
            schemas on it; nothing is looked up there.
        started_at: since when the server runs, as it prints it.
        stats_reset: when the slot's statistics were reset, as it prints it; None is never, or not known before 14.
        is_planned: the slot is not there yet.
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
    """Look at the slot and what streaming it needs.

    Args:
        target: the database.
        slot_name: the slot.
        publications: those to stream.
        primary: a standby will not do, whatever it has; the slot was streamed from a primary, and this is another
            server.
        create: the output plugin of the slot to be made where there is none; whether that can be done is looked at.

    Raises:
        NotFound: no such slot or publication.
        PluginNotAllowed, WrongPlugin, Refused, SlotInvalidated, SlotBeingSynced, NotPrimary, WalLevelNotLogical,
            Denied: it cannot be streamed, each with its remedy.
        Unreachable: no server answered.
    """
    from rdsrepl.postgres import connection, slot_plans, slots

    with connection.open(target) as conn:
        version, in_recovery = connection.server_version(conn), connection.in_recovery(conn)
        if connection.setting(conn, "wal_level") != "logical":
            raise errors.WalLevelNotLogical(
                f"wal_level is {connection.setting(conn, 'wal_level')}, not logical: this server has no logical slots",
                hint="set wal_level = logical and restart (on RDS: rdsrepl param-group create NAME --cluster ID, then "
                "rdsrepl param-group attach NAME --cluster ID --reboot)",
            )
        if in_recovery and version < versions.STANDBY_DECODING_SINCE:
            raise errors.NotPrimary(
                f"the server is a standby, and PostgreSQL {version} decodes on a primary only",
                hint="connect to the primary (on RDS: the writer endpoint); standbys can since PostgreSQL 16",
            )
        if in_recovery and primary:
            raise errors.NotPrimary(
                "the server is a standby now", hint="connect to the primary (on RDS: the writer endpoint)"
            )
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
            slot_plans.create(conn, slot_name, plugin=create)  # only the plan, with what it checks
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
                f"slot {slot_name} uses {slot.plugin}, which knows no publications",
                hint="leave --publication out; --table PATTERN picks tables",
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
    """Return the tables that the publications BEFORE publish today and NOW do not.

    Raises:
        Error: the server cannot be asked.
    """
    from rdsrepl.postgres import connection

    with connection.open(target) as conn:
        rows = conn.execute(_DISCARDED, {"before": list(before), "now": list(now)})
        return [row[0] for row in rows]


def published(conn: Connection, wanted: Sequence[str]) -> tuple[str, ...]:
    """Return the publications to stream: those wanted, or the database's only one.

    Raises:
        NotFound: one of them does not exist, or none was named and there is not exactly one.
    """
    present = [row[0] for row in conn.execute(_PUBLICATIONS)]
    listed = ", ".join(present) or "none (rdsrepl publication create NAME --table …)"
    missing = [name for name in wanted if name not in present]
    if missing:
        raise errors.NotFound(f"no publication {', '.join(missing)}", hint=f"publications here: {listed}")
    if wanted:
        return tuple(wanted)
    if len(present) == 1:
        return tuple(present)
    raise errors.NotFound(
        "a pgoutput slot needs a publication, and none was named",
        hint=f"add --publication NAME; publications here: {listed}",
    )


def _fit(slot: Slot, database: str, in_recovery: bool) -> None:
    name = slot.slot_name
    if slot.slot_type != "logical":
        raise errors.WrongPlugin(
            f"slot {name} is physical: it feeds a standby and has no changes to print",
            hint="name a logical slot (rdsrepl slot list)",
        )
    if slot.database != database:
        raise errors.Refused(
            f"slot {name} belongs to database {slot.database}, and this connection to {database}",
            hint=f"connect to it: --dbname {slot.database}",
        )
    if slot.is_lost:
        raise errors.SlotInvalidated(
            f"slot {name} is invalidated ({slot.lost_reason}): the changes it held are gone",
            hint=f"drop it ({command('slot drop {}', name)}), create it anew, and copy the tables again: "
            "there is a gap",
        )
    # On a promoted standby the mark stays, and means nothing any more.
    if slot.synced and in_recovery:
        raise errors.SlotBeingSynced(
            f"slot {name} is being synchronised here from the primary",
            hint="tail it on the primary; it becomes usable here after a promotion",
        )
