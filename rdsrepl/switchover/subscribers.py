"""Which subscriptions follow a switchover, and the statements that point them to the new primary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from rdsrepl.text.escapes import shown

if TYPE_CHECKING:
    from rdsrepl.config import Target
    from rdsrepl.plan import Statement
    from rdsrepl.postgres.failover_servers import FailoverServer
    from rdsrepl.postgres.subscriptions import Publisher
    from rdsrepl.switchover.planner import Servers


def repoint(
    subscribers: Sequence[Target], servers: Servers, publisher: FailoverServer
) -> tuple[list[Statement], list[str]]:
    """Return the statements for the subscriptions that use slots of the old primary, and what is left to the user.

    Args:
        subscribers: the servers of the subscriptions.
        servers: the two publishers.
        publisher: the old primary, or if that does not answer the new one.

    Raises:
        Error: a subscriber is not reachable.
    """
    from rdsrepl.postgres import connection, conninfo, subscriptions

    old, new = conninfo.address(servers.old), conninfo.address(servers.new)
    steps: list[Statement] = []
    left: list[str] = []
    for target in subscribers:
        with connection.open(target) as conn:
            found = subscriptions.publishers(conn)
        for one in found:
            slot = publisher.slot(one.slot)
            if slot is None:
                continue
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
            steps.append(subscriptions.repoint(one, subscriptions.at(one.conninfo, new.host, new.port), place))
    return steps, left


def _by_hand(one: Publisher, host: str, port: str) -> str:
    return (
        f"this role may not read the connection string of subscription {shown(one.subname)}; after the promotion run "
        f"in database {shown(one.database)}: ALTER SUBSCRIPTION … CONNECTION 'host={host} port={port} …', with its "
        "user, password and database as before"
    )
