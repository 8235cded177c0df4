"""Which subscriptions follow a switchover, and the statements that point them to the new primary.

A subscription continues after the last transaction that it applied, on any publisher. If it has applied transactions
that the promoted standby never received, the new primary assigns the same positions to others, and the subscription
would leave these out, without an error. So it is pointed there only when that cannot happen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from rdsrepl.lsn import Lsn
from rdsrepl.plan import Condition, Wait
from rdsrepl.text.escapes import shown

if TYPE_CHECKING:
    from rdsrepl.config import Target
    from rdsrepl.plan import Step
    from rdsrepl.postgres.failover_servers import FailoverServer
    from rdsrepl.postgres.subscriptions import Publisher
    from rdsrepl.switchover.planner import Servers

_COPY_AGAIN: Final = (
    "it is not pointed to the new primary: failover diff names what it has that never was; create it again with a copy "
    "of its tables (ALTER SUBSCRIPTION … DISABLE, SET (slot_name = NONE), DROP SUBSCRIPTION), and run the command "
    "again without this subscriber"
)


def repoint(
    subscribers: Sequence[Target], servers: Servers, publisher: FailoverServer, *, received: Lsn | None = None
) -> tuple[list[Step], list[str]]:
    """Return the steps for the subscriptions that use slots of the old primary, and what is left to the user.

    Args:
        subscribers: the servers of the subscriptions.
        servers: the two publishers.
        publisher: the old primary, or if that does not answer the new one.
        received: the WAL that the standby has, if it is promoted as it is: what has applied more is reported.

    Raises:
        Error: a subscriber is not reachable.
    """
    from rdsrepl.postgres import connection, conninfo, subscriptions

    old, new = conninfo.address(servers.old), conninfo.address(servers.new)
    steps: list[Step] = []
    left: list[str] = []
    for target in subscribers:
        with connection.open(target) as conn:
            found = subscriptions.publishers(conn)
        moved: dict[str, Step] = {}
        for one in found:
            slot = publisher.slot(one.slot)
            if slot is None:
                continue
            if not one.knows_applied:
                left.append(
                    f"whether subscription {shown(one.subname)} has applied more than {servers.new_label} has is not "
                    "known: this role may not read pg_replication_origin_status of the subscriber"
                )
            elif received is not None and one.applied_lsn is not None and one.applied_lsn > received:
                left.append(f"{_ahead(one, servers.new_label, received)}; it is not pointed there")
            if one.conninfo is None:
                left.append(_by_hand(one, new.host, new.port))
                continue
            host, port = subscriptions.address(one.conninfo)
            if (host, port) == (new.host, new.port):
                continue
            reads_it = slot.walsender is not None and slot.walsender.application == one.subname
            if (host, port) != (old.host, old.port) and not reads_it:
                left.append(
                    f"subscription {shown(one.subname)} uses a slot named {one.slot}, but connects to {shown(host)}, "
                    f"not to {servers.old_label}: it is not changed"
                )
                continue
            place = replace(target, keywords={**target.keywords, "dbname": one.database})
            moved[one.subname] = subscriptions.repoint(one, subscriptions.at(one.conninfo, new.host, new.port), place)
        if moved:
            steps += [_proof(target, frozenset(moved), servers), *moved.values()]
    return steps, left


def _proof(subscriber: Target, names: frozenset[str], servers: Servers) -> Wait:
    """Return the step that verifies, after the promotion, that subscriptions have nothing that it left behind."""

    def probe(_: Target) -> Condition:
        from rdsrepl.postgres import connection, subscriptions
        from rdsrepl.tail import peek

        timelines = peek.history(servers.new, servers.new_label).timelines
        fork = Lsn(0 if timelines is None else timelines.begins_at)
        with connection.open(subscriber) as conn:
            found = [one for one in subscriptions.publishers(conn) if one.subname in names]
        ahead = [one for one in found if fork and one.applied_lsn is not None and one.applied_lsn > fork]
        if ahead:
            failed = "; ".join(_ahead(one, servers.new_label, fork) for one in ahead)
            return Condition(False, failed, failed=failed, remedy=_COPY_AGAIN)
        facts = {shown(one.subname): f"applied up to {one.applied_lsn}" for one in found if one.applied_lsn is not None}
        return Condition(True, "nothing else was applied", facts=facts)

    return Wait(f"verify that the subscriptions of {subscriber.label} have only what the new primary has", probe, 0.0)


def _ahead(one: Publisher, new: str, lsn: Lsn) -> str:
    return (
        f"subscription {shown(one.subname)} has applied changes up to {one.applied_lsn}, and {new} has them only up to "
        f"{lsn}: pointed there, it would leave out what {new} writes in between"
    )


def _by_hand(one: Publisher, host: str, port: str) -> str:
    return (
        f"this role may not read the connection string of subscription {shown(one.subname)}; after the promotion run "
        f"in database {shown(one.database)}: ALTER SUBSCRIPTION … CONNECTION 'host={host} port={port} …', with its "
        "user, password and database as before, if it has applied nothing after the fork (failover diff)"
    )
