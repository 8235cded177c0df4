"""The subscriptions of a server (manual, sections 52.54 and 27.2.8)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from rdsrepl.plan import Statement
from rdsrepl.postgres import versions
from rdsrepl.postgres.connection import server_version
from rdsrepl.text.masking import mask

if TYPE_CHECKING:
    from rdsrepl.config import Target
    from rdsrepl.lsn import Lsn
    from rdsrepl.postgres.connection import Connection


@dataclass(frozen=True, slots=True)
class Subscription:
    """A subscription in any database of the server, without its connection string.

    Attributes:
        database: the database of the subscription.
        slot: the slot on the publisher; None without a slot.
        worker_pid: the PID of its apply worker; None while none runs.
        apply_errors, sync_errors: how often applying changes and copying tables failed; None before 15.
        tables_not_ready: tables that are still being copied; None for a subscription of another database.
        failover: whether its slot is to be a failover slot; None before 17.
    """

    subname: str
    database: str
    enabled: bool
    slot: str | None
    worker_pid: int | None
    apply_errors: int | None
    sync_errors: int | None
    tables_not_ready: int | None
    failover: bool | None = None


_LIST: Final = """
SELECT s.subname::text, d.datname::text, s.subenabled, s.subslotname::text,
       (SELECT min(w.pid) FROM pg_catalog.pg_stat_subscription w WHERE w.subid = s.oid AND w.relid IS NULL),
       {errors},
       CASE WHEN d.datname = current_database() THEN
            (SELECT count(*) FROM pg_catalog.pg_subscription_rel r WHERE r.srsubid = s.oid AND r.srsubstate <> 'r') END,
       {failover}
  FROM pg_catalog.pg_subscription s JOIN pg_catalog.pg_database d ON d.oid = s.subdbid {statistics}
 ORDER BY 2, 1
"""
_STATISTICS: Final = "LEFT JOIN pg_catalog.pg_stat_subscription_stats e ON e.subid = s.oid"


# Every role may read these columns, in every version.
_SLOTS: Final = """
SELECT s.subslotname::text, s.subname::text, d.datname::text
  FROM pg_catalog.pg_subscription s JOIN pg_catalog.pg_database d ON d.oid = s.subdbid
 WHERE s.subslotname IS NOT NULL
 ORDER BY 3, 2
"""


@dataclass(frozen=True, slots=True)
class Publisher:
    """Where a subscription of this server gets its changes from.

    Attributes:
        database: the database of the subscription.
        slot: its slot on the publisher.
        conninfo: its connection string, which may contain a password; None if this role may not read it.
        applied_lsn: the end of the last transaction of the publisher that it applied; None if it has applied none, or
            this role may not read it. From there it continues, also on another publisher.
        knows_applied: whether this role may read that.
    """

    subname: str
    database: str
    slot: str
    conninfo: str | None = field(repr=False)
    applied_lsn: Lsn | None = None
    knows_applied: bool = False


_MAY_READ: Final = """
SELECT has_column_privilege('pg_catalog.pg_subscription', 'subconninfo', 'SELECT'),
       has_table_privilege('pg_catalog.pg_replication_origin_status', 'SELECT')
       AND has_function_privilege('pg_catalog.pg_show_replication_origin_status()', 'EXECUTE')
"""
# The origin of the apply worker, and those of the workers that copy a table (worker_internal.h).
_APPLIED: Final = """
(SELECT nullif(max(o.remote_lsn), '0/0') FROM pg_catalog.pg_replication_origin_status o
  WHERE o.external_id = 'pg_' || s.oid OR starts_with(o.external_id, 'pg_' || s.oid || '_'))
"""
_PUBLISHERS: Final = """
SELECT s.subname::text, d.datname::text, s.subslotname::text, {conninfo}, {applied}, {knows_applied}
  FROM pg_catalog.pg_subscription s JOIN pg_catalog.pg_database d ON d.oid = s.subdbid
 WHERE s.subslotname IS NOT NULL ORDER BY 2, 1
"""


def publishers(conn: Connection) -> list[Publisher]:
    """Return the subscriptions of this server that have a slot, with what this role may read of them."""
    from psycopg import sql

    reads_conninfo, reads_applied = conn.execute(_MAY_READ).fetchone() or (False, False)
    query = sql.SQL(_PUBLISHERS).format(
        conninfo=sql.SQL("s.subconninfo" if reads_conninfo else "NULL"),
        applied=sql.SQL(_APPLIED if reads_applied else "NULL::pg_lsn"),
        knows_applied=sql.Literal(bool(reads_applied)),
    )
    return [Publisher(*one) for one in conn.execute(query).fetchall()]


def address(conninfo: str) -> tuple[str, str]:
    """Return the host and the port of a connection string."""
    from psycopg.conninfo import conninfo_to_dict

    values = conninfo_to_dict(conninfo)
    return str(values.get("host") or values.get("hostaddr") or ""), str(values.get("port") or "5432")


def at(conninfo: str, host: str, port: str) -> str:
    """Return a connection string that leads to another server, with the same database and login."""
    from psycopg.conninfo import conninfo_to_dict, make_conninfo

    kept = {key: value for key, value in conninfo_to_dict(conninfo).items() if key not in ("host", "hostaddr", "port")}
    return make_conninfo("", host=host, port=port, **kept)


def repoint(one: Publisher, conninfo: str, subscriber: Target) -> Statement:
    """Return the statement that makes a subscription connect to another publisher; the password is not shown.

    Args:
        one: the subscription.
        conninfo: its new connection string.
        subscriber: the server of the subscription, in its database.
    """
    from psycopg import sql

    statement = sql.SQL("ALTER SUBSCRIPTION {} CONNECTION {}")
    name = sql.Identifier(one.subname)
    return Statement(
        f"point subscription {one.subname} to the new primary",
        statement.format(name, sql.Literal(conninfo)),
        shown=statement.format(name, sql.Literal(mask(conninfo))).as_string(None),
        target=subscriber,
        key=one.slot,
        reason=f"it uses slot {one.slot}",
        effect="change",
    )


def slots_in_use(conn: Connection) -> list[tuple[str, str, str]]:
    """Return the slots on publishers that the subscriptions of this server use: slot, subscription, database."""
    return [(slot, name, database) for slot, name, database in conn.execute(_SLOTS).fetchall()]


def ls(conn: Connection) -> list[Subscription]:
    """Return the server's subscriptions, by database and name."""
    from psycopg import sql

    new = server_version(conn) >= versions.SUBSCRIPTION_STATISTICS_SINCE
    query = sql.SQL(_LIST).format(
        errors=sql.SQL("e.apply_error_count, e.sync_error_count" if new else "NULL::bigint, NULL::bigint"),
        statistics=sql.SQL(_STATISTICS if new else ""),
        failover=sql.SQL("s.subfailover" if server_version(conn) >= versions.FAILOVER_SLOTS_SINCE else "NULL::boolean"),
    )
    return [Subscription(*row) for row in conn.execute(query).fetchall()]


@dataclass(frozen=True, slots=True)
class ReceivedTable:
    """A table that a subscription of this database receives.

    Attributes:
        slot: the slot on the publisher; None without a slot.
        publications: the publications on the publisher.
        is_ready: whether its initial copy is complete and the apply worker applies its changes.
    """

    subscription: str
    enabled: bool
    slot: str | None
    publications: tuple[str, ...]
    schema: str
    name: str
    is_ready: bool


# srsubstate: s is synchronized, r is ready.
_RECEIVED: Final = """
SELECT s.subname::text, s.subenabled, s.subslotname::text, s.subpublications, n.nspname::text, c.relname::text,
       r.srsubstate IN ('s', 'r')
  FROM pg_catalog.pg_subscription s
  JOIN pg_catalog.pg_database d ON d.oid = s.subdbid AND d.datname = current_database()
  JOIN pg_catalog.pg_subscription_rel r ON r.srsubid = s.oid
  JOIN pg_catalog.pg_class c ON c.oid = r.srrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 ORDER BY 1, 5, 6
"""


def received(conn: Connection) -> list[ReceivedTable]:
    """Return the tables that the subscriptions of this database receive."""
    return [
        ReceivedTable(name, enabled, slot, tuple(publications), schema, table, is_ready)
        for name, enabled, slot, publications, schema, table, is_ready in conn.execute(_RECEIVED).fetchall()
    ]
