"""Read an instance of RDS and its read replicas, for the check whether slots survive a failover between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from rdsrepl.aws import locations
from rdsrepl.config import Target
from rdsrepl.postgres import connection, failover_servers
from rdsrepl.postgres.failover_servers import FailoverServer

#: read replicas that are checked; RDS allows 15 of an instance.
MAX_REPLICAS: Final = 5
_LIMITS: Final = {"statement_timeout": "15s", "lock_timeout": "2s"}


def read(
    target: Target, source: str | None, replicas: Sequence[str]
) -> tuple[FailoverServer, tuple[FailoverServer, ...]]:
    """Return the primary and its standbys; the replicas have the login of the target.

    Args:
        target: an instance.
        source: the instance of which the target is a read replica; None if it is none.
        replicas: the read replicas of the target.

    Raises:
        Error: one of them is not reachable.
    """
    own = _read(target)
    if source is not None:
        return _other(target, source), (own,)
    return own, tuple(_other(target, replica) for replica in replicas[:MAX_REPLICAS])


def _other(target: Target, instance_id: str) -> FailoverServer:
    server = _read(locations.instance_with_login_of(target, instance_id))
    return replace(server, selectors=("--instance", instance_id))


def _read(target: Target) -> FailoverServer:
    described = locations.server_of(target)
    instance = None if described is None else described.instance
    with connection.open(target, settings=_LIMITS) as conn:
        server = failover_servers.read(conn, target.label)
    if instance is None:
        return server
    return replace(server, parameter_group=instance.parameter_group, instance_id=instance.instance_id)
