"""What decides whether a standby can take over the logical slots of its primary: read from one of the two servers.

Manual, sections 29.3 (failover of subscriptions), 47.2.3 (slot synchronization) and 26.2 (standby settings).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from rdsrepl.lsn import Lsn
from rdsrepl.postgres import activity, settings, slots, wal
from rdsrepl.postgres.slots import Slot
from rdsrepl.postgres.wal import Wal

if TYPE_CHECKING:
    from rdsrepl.postgres.connection import Connection

_SETTINGS: Final = (
    "hot_standby_feedback",
    "max_replication_slots",
    "primary_conninfo",
    "primary_slot_name",
    "sync_replication_slots",
    "synchronized_standby_slots",
    "wal_level",
)
# A walsender with this wait event sends nothing until the standbys of synchronized_standby_slots have the WAL (17).
_STATE: Final = """
SELECT ARRAY(SELECT d.datname::text FROM pg_catalog.pg_database d WHERE d.datallowconn) AS databases,
       current_setting('rds.logical_slot_sync_dbname', true) AS sync_database,
       EXISTS (SELECT FROM pg_catalog.pg_stat_activity WHERE backend_type = 'slotsync worker') AS has_sync_worker,
       ARRAY(SELECT s.slot_name::text FROM pg_catalog.pg_stat_activity a
               JOIN pg_catalog.pg_replication_slots s ON s.active_pid = a.pid
              WHERE a.wait_event = 'WaitForStandbyConfirmation' ORDER BY 1) AS waiting_slots,
       (SELECT r.status FROM pg_catalog.pg_stat_wal_receiver r) AS receiver_status,
       CASE WHEN pg_is_in_recovery() THEN pg_last_wal_receive_lsn() END AS received_lsn,
       CASE WHEN pg_is_in_recovery() THEN pg_is_wal_replay_paused() END AS replay_paused,
       has_function_privilege('pg_catalog.pg_promote(boolean, integer)', 'EXECUTE') AS may_promote
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class FailoverServer:
    """A primary or a standby of it, as far as it concerns the failover of logical slots.

    A value that this role may not read is None.

    Attributes:
        label: its name in messages: ``instance orders-replica``.
        version: the major version.
        wal: its position, and what identifies it.
        is_managed: whether it is on RDS.
        is_aurora: whether it is on Aurora.
        settings: the parameters by name, without those that the server does not have or this role may not read.
        databases: those that can be connected to.
        sync_database: the database in ``primary_conninfo``, to which slot synchronization connects; empty without one.
        has_sync_worker: whether the process that synchronizes slots runs.
        waiting_slots: slots whose consumers get nothing, because the server waits for standbys.
        is_streaming: of a standby: whether it is connected to its source.
        received_lsn: of a standby: the WAL that it has, replayed or not; None before it has streamed.
        replay_paused: of a standby: whether the replay is paused.
        may_promote: whether this role may call ``pg_promote``; None where that is not known.
        selectors: the words that select this server in a command: ``("--instance", "orders-replica")``; empty for the
            server of the command itself.
        parameter_group: of an instance of RDS; None where that is not known.
        instance_id: of an instance of RDS; None where that is not known.
    """

    label: str
    version: int
    in_recovery: bool
    slots: tuple[Slot, ...]
    settings: Mapping[str, str]
    wal: Wal | None = None
    is_managed: bool = False
    is_aurora: bool = False
    databases: frozenset[str] | None = None
    sync_database: str | None = None
    has_sync_worker: bool | None = None
    waiting_slots: tuple[str, ...] = ()
    is_streaming: bool | None = None
    received_lsn: Lsn | None = None
    replay_paused: bool | None = None
    may_promote: bool | None = None
    selectors: tuple[str, ...] = field(default=())
    parameter_group: str | None = None
    instance_id: str | None = None

    @property
    def lsn(self) -> Lsn | None:
        """The end of the WAL; of a standby the last position that it replayed."""
        return None if self.wal is None else self.wal.lsn

    @property
    def system_identifier(self) -> str | None:
        """The number that a primary and its standbys share."""
        return None if self.wal is None else self.wal.system_identifier

    def slot(self, name: str) -> Slot | None:
        """Return the slot of this name; None if there is none."""
        return next((slot for slot in self.slots if slot.slot_name == name), None)


def read(conn: Connection, label: str) -> FailoverServer:
    """Return the server behind a connection.

    Read the primary before its standby: what the primary's consumers had confirmed then is never too new.
    """
    from psycopg.rows import dict_row

    about = activity.server(conn)
    position = wal.get(conn)
    values = {name: one.setting for name, one in settings.ls(conn, _SETTINGS).items()}
    conninfo = values.pop("primary_conninfo", None)  # it may contain a password
    rows = tuple(slots.ls(conn))
    if about.flavour == "aurora":  # without standbys that stream; some of the functions below fail there
        return FailoverServer(
            label=label, version=position.version, in_recovery=position.in_recovery, slots=rows, settings=values,
            wal=position, is_managed=True, is_aurora=True,
        )  # fmt: skip
    with conn.cursor(row_factory=dict_row) as cursor:
        state = cursor.execute(_STATE).fetchone()
    assert state is not None
    in_recovery = position.in_recovery
    return FailoverServer(
        label=label,
        version=position.version,
        in_recovery=in_recovery,
        slots=rows,
        settings=values,
        wal=position,
        is_managed=about.flavour != "postgresql",
        databases=frozenset(state["databases"]),
        sync_database=state["sync_database"] or _database(conninfo),
        has_sync_worker=state["has_sync_worker"] if about.sees_sessions else None,
        waiting_slots=tuple(state["waiting_slots"]),
        is_streaming=state["receiver_status"] == "streaming" if in_recovery and about.sees_sessions else None,
        received_lsn=state["received_lsn"],
        replay_paused=state["replay_paused"],
        may_promote=state["may_promote"],
    )


def _database(conninfo: str | None) -> str | None:
    """Return the database of a connection string; empty if it has none, None if it is not known."""
    from psycopg import ProgrammingError
    from psycopg.conninfo import conninfo_to_dict

    if conninfo is None:
        return None
    try:
        return str(conninfo_to_dict(conninfo).get("dbname") or "")
    except ProgrammingError:
        return None
