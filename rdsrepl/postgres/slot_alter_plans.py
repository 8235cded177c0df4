"""Plans that change the ``failover`` property of an existing slot (17 and later).

PostgreSQL has no SQL function for this: the change is a command of the replication protocol (manual, section 54.4,
``ALTER_REPLICATION_SLOT``), or of the subscription that uses the slot (``ALTER SUBSCRIPTION``). While a consumer uses
the slot, the server waits without a limit and without an error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rdsrepl import errors
from rdsrepl.plan import Meanwhile, Plan, Statement
from rdsrepl.postgres import slots, versions
from rdsrepl.postgres.server_identity import done_query
from rdsrepl.text.commands import command

if TYPE_CHECKING:
    from psycopg.sql import Composed

    from rdsrepl.config import Target
    from rdsrepl.postgres.connection import Connection
    from rdsrepl.postgres.slots import Slot
    from rdsrepl.postgres.subscriptions import Subscription
    from rdsrepl.postgres.wal import Wal

ALTER_TIMEOUT_SECONDS: Final = 30.0
_INTERRUPT_SECONDS: Final = 0.2
_HOLDER: Final = """
SELECT 'PID ' || s.active_pid, a.usename::text, a.application_name, a.state,
       extract(epoch FROM clock_timestamp() - a.xact_start)::float8, a.query
  FROM pg_catalog.pg_replication_slots s LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = s.active_pid
 WHERE s.slot_name = {} AND s.active
"""
# Only the consumer that the plan showed, and only while the change waits for the slot. A consumer that connected again
# has another PID.
_TERMINATE: Final = (
    "SELECT pg_catalog.pg_terminate_backend(s.active_pid) FROM pg_catalog.pg_replication_slots s "
    "WHERE s.slot_name = {name} AND s.active_pid = {pid} AND EXISTS (SELECT FROM pg_catalog.pg_stat_activity a "
    "WHERE a.wait_event = 'ReplicationSlotDrop' AND a.usename = current_user AND starts_with(a.query, {command}))"
)
_MAY_TERMINATE: Final = """
SELECT r.rolsuper OR (pg_has_role(a.usesysid, 'member') AND NOT o.rolsuper)
       OR (pg_has_role('pg_signal_backend', 'member') AND NOT o.rolsuper), a.usename::text
  FROM pg_catalog.pg_stat_activity a
  JOIN pg_catalog.pg_roles o ON o.oid = a.usesysid
  JOIN pg_catalog.pg_roles r ON r.rolname = current_user
 WHERE a.pid = %s
"""


def alter(
    conn: Connection,
    slot: Slot,
    *,
    failover: bool,
    server: Wal,
    target: Target,
    interrupt: bool = False,
    timeout_seconds: float = ALTER_TIMEOUT_SECONDS,
) -> Plan:
    """Return the plan that makes a slot a failover slot, or ends that.

    Args:
        conn: the primary.
        slot: as it was read.
        failover: whether it is to be a failover slot.
        server: the server it was read from.
        target: the server, for the statement that disconnects the consumer.
        interrupt: disconnect the consumer that uses the slot now.
        timeout_seconds: when the change is canceled because the slot is still in use.

    Raises:
        Unsupported, NotPrimary, Denied, Refused, SlotInvalidated: the change would fail.
    """
    from psycopg import sql

    name = slot.slot_name
    title, unchanged = _check(conn, slot, server, failover=failover)
    if unchanged:
        return Plan(title, (), unchanged=unchanged)
    word = sql.SQL("true" if failover else "false")
    meanwhile = None
    if interrupt and slot.active_pid is not None:
        _require_terminate(conn, slot)
        kill = sql.SQL(_TERMINATE).format(
            name=sql.Literal(name),
            pid=sql.Literal(slot.active_pid),
            command=sql.Literal(f'ALTER_REPLICATION_SLOT "{name}" '),
        )
        meanwhile = Meanwhile(target, kill, _INTERRUPT_SECONDS)
    step = Statement(
        title,
        sql.SQL("ALTER_REPLICATION_SLOT {} (FAILOVER {})").format(sql.Identifier(name), word),
        protocol="replication",
        timeout_seconds=timeout_seconds,
        timeout_hint=_timeout_hint(slot, failover=failover, interrupt=interrupt),
        blockers=sql.SQL(_HOLDER).format(sql.Literal(name)).as_string(None),
        key=name,
        reason="waits until its consumer disconnects" if slot.active and meanwhile is None else "",
        effect="change",
        meanwhile=meanwhile,
        done_if=done_query(
            server,
            sql.SQL("(SELECT failover = {} FROM pg_catalog.pg_replication_slots WHERE slot_name = {})").format(
                word, sql.Literal(name)
            ),
        ),
    )
    return Plan(title, (step,), tuple(_warnings(slot, failover=failover, interrupts=meanwhile is not None)))


def alter_subscription(
    conn: Connection,
    slot: Slot,
    subscription: Subscription,
    *,
    failover: bool,
    server: Wal,
    subscriber: Target,
    timeout_seconds: float = ALTER_TIMEOUT_SECONDS,
) -> Plan:
    """Return the plan that does the same through the subscription that uses the slot, which keeps its own setting.

    Args:
        conn: the publisher, a primary.
        slot: as it was read.
        subscription: on the subscriber.
        failover: whether it is to be a failover slot.
        server: the server the slot was read from.
        subscriber: the database of the subscription.
        timeout_seconds: when the change is canceled.

    Raises:
        Unsupported, NotPrimary, Denied, Refused, SlotInvalidated: the change would fail.
    """
    from psycopg import sql

    title, unchanged = _check(conn, slot, server, failover=failover)
    name = sql.Identifier(subscription.subname)
    text = subscription.subname
    if subscription.failover is None:
        raise errors.Unsupported(
            f"subscription {text} is on a server before PostgreSQL {versions.FAILOVER_SLOTS_SINCE}, where it has no "
            "such setting",
            hint=f"change only the slot: {_interrupting(slot, failover=failover)}",
        )
    enable = f"ALTER SUBSCRIPTION {name.as_string(None)} ENABLE"
    disabled = (
        "" if subscription.enabled else f"subscription {text} is disabled, and stays disabled; to enable it: {enable}"
    )
    if unchanged and subscription.failover is failover:
        return Plan(title, (), unchanged="; ".join(filter(None, (unchanged, disabled))))

    def step(summary: str, statement: Composed, seconds: float | None = None) -> Statement:
        return Statement(summary, statement, target=subscriber, timeout_seconds=seconds, effect="change")

    change = step(
        f"set failover = {str(failover).lower()} of subscription {text} and its slot {slot.slot_name}",
        sql.SQL("ALTER SUBSCRIPTION {} SET (failover = {})").format(name, sql.SQL("true" if failover else "false")),
        timeout_seconds,
    )
    warnings = list(_warnings(slot, failover=failover, interrupts=False))
    if disabled:
        return Plan(title, (change,), (*warnings, disabled))
    steps = (
        step(f"disable subscription {text}", sql.SQL("ALTER SUBSCRIPTION {} DISABLE").format(name)),
        change,
        step(f"enable subscription {text}", sql.SQL("ALTER SUBSCRIPTION {} ENABLE").format(name)),
    )
    warnings.append(f"if this command is killed after the first step, enable the subscription: {enable}")
    # The last step also runs if the change fails.
    return Plan(title, steps, tuple(warnings), independent=True)


def _check(conn: Connection, slot: Slot, server: Wal, *, failover: bool) -> tuple[str, str]:
    """Return the title of the plan, and why nothing is to do; the latter is empty if there is something to do."""
    name = slot.slot_name
    option = "--failover" if failover else "--no-failover"
    title = f"make slot {name} a failover slot" if failover else f"make slot {name} an ordinary slot"
    if server.version < versions.FAILOVER_SLOTS_SINCE:
        raise errors.Unsupported(
            f"{option} needs PostgreSQL {versions.FAILOVER_SLOTS_SINCE}; this server is {server.version}",
            hint=f"from 16 on, a pair of slots protects it: {command('slot sync {} --with REPLICA --create', name)}"
            if server.version >= versions.STANDBY_DECODING_SINCE
            else "upgrade",
        )
    if server.in_recovery:
        raise errors.NotPrimary(
            f"slot {name} cannot be changed on a standby", hint="connect to the primary; its change is copied"
        )
    if slot.slot_type != "logical" or slot.temporary:
        kind = "temporary" if slot.temporary else "physical"
        raise errors.Refused(f"slot {name} is {kind}", hint="name a logical slot (rdsrepl slot list)")
    if bool(slot.failover) is failover:
        return title, f"slot {name} is {'a failover slot already' if failover else 'not a failover slot'}"
    if slot.is_lost:
        raise errors.SlotInvalidated(
            f"slot {name} is invalidated ({slot.lost_reason})", hint=f"drop it: {command('slot drop {}', name)}"
        )
    slots.require_replication_right(conn)
    return title, ""


def _require_terminate(conn: Connection, slot: Slot) -> None:
    row = conn.execute(_MAY_TERMINATE, (slot.active_pid,)).fetchone()
    if row is not None and not row[0]:
        raise errors.Denied(
            f"this role may not disconnect the consumer of slot {slot.slot_name}, {slot.holder}",
            hint="omit --interrupt and stop the consumer, or connect as a member of pg_signal_backend "
            "(on RDS: the master user)",
            sqlstate="42501",
        )


def _timeout_hint(slot: Slot, *, failover: bool, interrupt: bool) -> str:
    if interrupt:
        return "its consumer connected again before the change; run the command again; nothing was changed"
    again = _interrupting(slot, failover=failover)
    return f"nothing was changed; stop the consumer for a moment, or let this command disconnect it: {again}"


def _interrupting(slot: Slot, *, failover: bool) -> str:
    if failover:
        return command("slot alter {} --failover --interrupt", slot.slot_name)
    return command("slot alter {} --no-failover --interrupt", slot.slot_name)


def _warnings(slot: Slot, *, failover: bool, interrupts: bool) -> list[str]:
    warnings = []
    if interrupts:
        warnings.append(
            f"the consumer, {slot.holder}, is disconnected once; it must connect again by itself, and changes that it "
            "had not confirmed are sent again"
        )
    if not failover:
        warnings.append(f"the standbys drop their copies of {slot.slot_name}: a promoted standby does not have it")
    return warnings
