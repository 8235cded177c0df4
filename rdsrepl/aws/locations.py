"""Where a cluster's or an instance's database is, and how to log in to it: what a ``Target`` asks before it connects.

The place is looked up once in a while; a password from Secrets Manager or an IAM token is got anew for every attempt,
so that a rotation or a failover in the middle of a long stream is survived.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from rdsrepl.aws import clusters, instances, secrets, session
from rdsrepl.config import Aws, Target
from rdsrepl.errors import Error, NotAvailable, UsageError
from rdsrepl.text.commands import command

_KNOWN_FOR_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True)
class Location:
    """What the RDS API knows of a database.

    Attributes:
        identifier: the cluster's or instance's.
        kind: what it is.
        host: the writer endpoint of a cluster, the endpoint of an instance.
        user: the master user.
        secret: the ARN of the secret in which RDS keeps the master user's password; None when it keeps none.
    """

    identifier: str
    kind: str
    host: str
    port: int
    user: str | None
    dbname: str | None
    secret: str | None


def locate(aws: Aws) -> Location:
    """Look a cluster's or an instance's database up.

    Raises:
        NotFound: there is none of that name in the region.
        NotAvailable: it has no endpoint yet.
    """
    if aws.cluster is not None:
        cluster = clusters.get(aws, aws.cluster)
        kind, name, host, port = "cluster", cluster.cluster_id, cluster.endpoint, cluster.port
        user, dbname, secret, status = (
            cluster.master_user,
            cluster.database_name,
            cluster.master_secret,
            cluster.status,
        )
    else:
        assert aws.instance is not None
        instance = instances.get(aws, aws.instance)
        kind, name, host, port = "instance", instance.instance_id, instance.endpoint, instance.port
        user, dbname, secret = instance.master_user, instance.database_name, instance.master_secret
        status = instance.status
        if instance.cluster_id and secret is None:
            # A member shares its cluster's master user.
            cluster = clusters.get(aws, instance.cluster_id)
            dbname, secret = dbname or cluster.database_name, cluster.master_secret
    if host is None or port is None:
        raise NotAvailable(
            f"{kind} {name} has no endpoint yet (status {status})",
            hint=f"wait for it: {command(f'{kind} show {{}}', name)}",
        )
    return Location(name, kind, host, port, user, dbname, secret)


def connected(target: Target) -> Target:
    """Return the target with everything in it that ``connection`` has to ask before each attempt.

    Nothing is looked up here.
    """
    return replace(target, renew=_Source(target))


def require_same_server(target: Target) -> None:
    """Make sure that a target's connection string leads to the cluster or instance that it names, too.

    Raises:
        UsageError: the connection string names no host, or another one.
        NotFound, NotAvailable: the RDS API does not know the endpoint.
    """
    from psycopg import ProgrammingError
    from psycopg.conninfo import conninfo_to_dict

    aws = target.aws
    option = f"--{'cluster' if aws.cluster else 'instance'} {aws.identifier}"
    try:
        host = str(conninfo_to_dict(target.dsn).get("host") or "")
    except ProgrammingError:
        return  # reported when it is connected to
    if not host:
        raise UsageError(
            f"{target.label} names no host, and {option} names a server",
            hint=f"leave {target.label} out and use {option} with --dbname and --user",
        )
    endpoint = locate(aws).host
    if host.rstrip(".").lower() != endpoint.rstrip(".").lower():
        raise UsageError(
            f"{target.label} and {option} name different servers: {host} and {endpoint}",
            hint=f"leave one of them out; through a tunnel: host={endpoint} hostaddr=127.0.0.1 port=…",
        )


def at_endpoint(target: Target, host: str, port: int) -> Target:
    """Return the same database and login at another endpoint, such as one member's of a cluster."""
    place = {"host": host, "hostaddr": "", "port": str(port)}
    moved = replace(target, keywords={**target.keywords, **place})
    if target.aws.auth != "iam" or target.renew is None:
        return moved
    # A token is good for one endpoint alone; what else was found of the target stays.
    try:
        found = {key: value for key, value in target.renew.place().items() if key in ("user", "dbname")}
    except Error:
        return moved
    return connected(replace(moved, keywords={**found, **moved.keywords}, renew=None))


class _Source:
    def __init__(self, target: Target) -> None:
        self._target = target
        self._location: Location | None = None
        self._looked_at = 0.0

    def place(self) -> Mapping[str, str]:
        """Return where the database is and who logs in, without a secret."""
        target, aws = self._target, self._target.aws
        if not aws.identifier or target.located:
            return {}
        location = self._locate()
        keywords = {
            "host": location.host,
            "port": str(location.port),
            "dbname": os.environ.get("PGDATABASE") or location.dbname or "postgres",
        }
        user = target.keywords.get("user") or os.environ.get("PGUSER") or location.user
        return {**keywords, "user": user} if user else keywords

    def keywords(self) -> Mapping[str, str]:
        """Return libpq keywords for the next attempt: place, user, database, password."""
        target, aws = self._target, self._target.aws
        keywords = dict(self.place())
        if target.keywords.get("password") or target.keywords.get("passfile"):
            return keywords
        if aws.auth == "iam":
            return {**keywords, **_token(target, keywords)}
        secret, location = aws.secret, self._location
        if secret is None and location is not None and keywords.get("user") == location.user:
            secret = location.secret
        if secret is not None:
            login = secrets.get(aws, secret)
            keywords["password"] = login.password
            chosen = target.keywords.get("user") or (None if aws.secret else keywords.get("user"))
            if login.username and not chosen:
                keywords["user"] = login.username
        return keywords

    def _locate(self) -> Location:
        if self._location is None or time.monotonic() - self._looked_at > _KNOWN_FOR_SECONDS:
            self._location, self._looked_at = locate(self._target.aws), time.monotonic()
        return self._location


def _token(target: Target, found: Mapping[str, str]) -> Mapping[str, str]:
    from psycopg.conninfo import conninfo_to_dict

    given = {**found, **conninfo_to_dict(target.dsn), **target.keywords}
    host, user = given.get("host"), given.get("user") or os.environ.get("PGUSER")
    if not host or not user:
        raise UsageError(
            f"{target.label}: auth iam needs a host and a user", hint="name the user: user in the target, or PGUSER"
        )
    port = int(str(given.get("port") or 5432))
    # RDS takes a token over TLS alone; the defaults for its endpoints see to that.
    return {"password": session.token(target.aws, host=str(host), port=port, user=str(user))}
