"""Find the endpoint and the login of a cluster or an instance; a ``Target`` asks before each attempt to connect.

A description by the RDS API is used for 30 seconds. A password from Secrets Manager or an IAM token is fetched for each
attempt, so that a long stream continues after a rotation or a failover.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from rdsrepl.aws import clusters, instances, secrets, session
from rdsrepl.aws.clusters import Cluster
from rdsrepl.aws.instances import Instance
from rdsrepl.config import Aws, Target
from rdsrepl.errors import Error, NotAvailable, NotFound, UsageError
from rdsrepl.text.commands import command

_DESCRIPTION_SECONDS: Final = 30.0
_ADDRESS: Final = frozenset({"host", "hostaddr", "port", "service"})


@dataclass(frozen=True, slots=True)
class RdsServer:
    """The cluster or instance that a target names, as the RDS API describes it.

    Attributes:
        cluster: the named cluster, or the one that the named instance is a member of; None for any other instance.
        instance: the named instance; None where a cluster is named.
    """

    cluster: Cluster | None
    instance: Instance | None

    @property
    def writer_id(self) -> str | None:
        """The identifier of the cluster's writer, or of the instance; None while a cluster has no writer."""
        if self.cluster is not None:
            return self.cluster.writer
        return None if self.instance is None else self.instance.instance_id


@dataclass(frozen=True, slots=True)
class Location:
    """Where a database is, and its master user's login.

    Attributes:
        identifier: of the cluster or instance.
        kind: ``cluster`` or ``instance``.
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


def describe(aws: Aws) -> RdsServer | None:
    """Describe the cluster or instance that AWS names, and the cluster of a member; None where it names neither.

    Raises:
        NotFound: the region has none of that name.
        Refused: it is not PostgreSQL.
    """
    if not aws.identifier:
        return None
    # Where both are given, the cluster counts, as in ``Aws.identifier``.
    instance = instances.get(aws, aws.instance) if aws.instance is not None and aws.cluster is None else None
    cluster_id = aws.cluster if instance is None else instance.cluster_id
    return RdsServer(None if cluster_id is None else clusters.get(aws, cluster_id), instance)


def server_of(target: Target) -> RdsServer | None:
    """Describe the cluster or instance of a target; a description from the last 30 seconds is used again.

    Raises:
        NotFound: the region has none of that name.
    """
    return target.renew.server() if isinstance(target.renew, _Lookup) else describe(target.aws)


def location_of(server: RdsServer) -> Location:
    """Return where the database of a cluster or an instance is.

    Raises:
        NotAvailable: it has no endpoint yet.
    """
    cluster, instance = server.cluster, server.instance
    if instance is not None:
        kind, identifier, status = "instance", instance.instance_id, instance.status
        host, port, user = instance.endpoint, instance.port, instance.master_user
        dbname, secret = instance.database_name, instance.master_secret
        if cluster is not None and secret is None:
            # A member has the master user of its cluster.
            dbname, secret = dbname or cluster.database_name, cluster.master_secret
    else:
        assert cluster is not None
        kind, identifier, status = "cluster", cluster.cluster_id, cluster.status
        host, port, user = cluster.endpoint, cluster.port, cluster.master_user
        dbname, secret = cluster.database_name, cluster.master_secret
    if host is None or port is None:
        raise NotAvailable(
            f"{kind} {identifier} has no endpoint yet (status {status})",
            hint=f"wait until it has one: {command(f'{kind} show {{}}', identifier)}",
        )
    return Location(identifier, kind, host, port, user, dbname, secret)


def with_rds_lookup(target: Target) -> Target:
    """Return a target that asks AWS for endpoint and login before each attempt to connect, where AWS knows them.

    No API call is made here.
    """
    return replace(target, renew=_Lookup(target)) if target.needs_aws else target


def instance_with_login_of(target: Target, instance_id: str, unknown: NotFound | None = None) -> Target:
    """Return an instance of the same account, with the login and the database of a target, as its read replica has.

    No API call is made here. If there is no such instance, the first one raises UNKNOWN, with what AWS says.
    """
    from psycopg import ProgrammingError
    from psycopg.conninfo import conninfo_to_dict

    try:
        given = {key: str(value) for key, value in conninfo_to_dict(target.dsn).items()}
    except ProgrammingError:
        given = {}  # reported when the connection of the target is opened
    login = {key: value for key, value in {**given, **target.keywords}.items() if key not in _ADDRESS}
    aws = replace(target.aws, cluster=None, instance=instance_id)
    found = Target(f"instance {instance_id}", keywords=login, aws=aws, answer_seconds=target.answer_seconds)
    return replace(found, renew=_Lookup(found, login_of=target, unknown=unknown))


def require_same_server(target: Target) -> None:
    """Require that a target's connection string names the endpoint of the target's cluster or instance.

    Raises:
        UsageError: the connection string has no host, or another one.
        NotFound, NotAvailable: the RDS API has no endpoint for it.
    """
    from psycopg import ProgrammingError
    from psycopg.conninfo import conninfo_to_dict

    aws = target.aws
    option = f"--{'cluster' if aws.cluster else 'instance'} {aws.identifier}"
    try:
        host = str(conninfo_to_dict(target.dsn).get("host") or "")
    except ProgrammingError:
        return  # reported when the connection is opened
    if not host:
        raise UsageError(
            f"{target.label} has no host, but {option} names a server",
            hint=f"omit {target.label}, and use {option} with --dbname and --user",
        )
    server = server_of(target)
    assert server is not None
    endpoint = location_of(server).host
    if host.rstrip(".").lower() != endpoint.rstrip(".").lower():
        raise UsageError(
            f"{target.label} and {option} name different servers: {host} and {endpoint}",
            hint=f"omit one; through a tunnel: host={endpoint} hostaddr=127.0.0.1 port=…",
        )


def at_endpoint(target: Target, host: str, port: int) -> Target:
    """Return the target with another endpoint, such as that of a cluster's member, and the same database and login."""
    place = {"host": host, "hostaddr": "", "port": str(port)}
    moved = replace(target, keywords={**target.keywords, **place})
    if target.aws.auth != "iam" or target.renew is None:
        return moved
    # A token is valid for one endpoint only; user and database stay the same.
    try:
        known = {key: value for key, value in target.renew.address().items() if key in ("user", "dbname")}
    except Error:
        return moved
    return with_rds_lookup(replace(moved, keywords={**known, **moved.keywords}, renew=None))


class _Lookup:
    """Asks AWS where a target's database is and how to log in to it."""

    def __init__(self, target: Target, login_of: Target | None = None, unknown: NotFound | None = None) -> None:
        """Prepare.

        Args:
            target: names the cluster or instance.
            login_of: the target whose master user's secret counts where this one has none.
            unknown: the error if there is no such cluster or instance; None is that of AWS.
        """
        self._target = target
        self._login_of = login_of
        self._unknown = unknown
        self._server: RdsServer | None = None
        self._described_at = 0.0

    def server(self) -> RdsServer | None:
        """Return the cluster or instance that the target names; describe it at most once in 30 seconds."""
        if self._server is None or time.monotonic() - self._described_at > _DESCRIPTION_SECONDS:
            try:
                self._server, self._described_at = describe(self._target.aws), time.monotonic()
            except NotFound as exc:
                if self._unknown is None:
                    raise
                unknown = self._unknown
                hint = "; ".join(filter(None, (unknown.hint, exc.hint)))
                raise NotFound(unknown.message, hint=hint, aws_code=exc.aws_code, request_id=exc.request_id) from exc
        return self._server

    def address(self) -> Mapping[str, str]:
        """Return host, port, database and user, without a secret."""
        target, location = self._target, self._location()
        if location is None:
            return {}
        keywords = {
            "host": location.host,
            "port": str(location.port),
            "dbname": os.environ.get("PGDATABASE") or location.dbname or "postgres",
        }
        user = target.keywords.get("user") or os.environ.get("PGUSER") or location.user
        return {**keywords, "user": user} if user else keywords

    def keywords(self) -> Mapping[str, str]:
        """Return the libpq keywords for the next attempt: host, port, database, user, password."""
        target, aws = self._target, self._target.aws
        keywords = dict(self.address())
        if target.keywords.get("password") or target.keywords.get("passfile"):
            return keywords
        if aws.auth == "iam":
            return {**keywords, **_token(target, keywords)}
        secret, location = aws.secret, self._location()
        if secret is None and location is not None and keywords.get("user") == location.user:
            secret = location.secret or self._secret_of_login()
        if secret is not None:
            login = secrets.get(aws, secret)
            keywords["password"] = login.password
            chosen = target.keywords.get("user") or (None if aws.secret else keywords.get("user"))
            if login.username and not chosen:
                keywords["user"] = login.username
        return keywords

    def _secret_of_login(self) -> str | None:
        server = None if self._login_of is None else server_of(self._login_of)
        return None if server is None else location_of(server).secret

    def _location(self) -> Location | None:
        server = None if self._target.has_address else self.server()
        return None if server is None else location_of(server)


def _token(target: Target, known: Mapping[str, str]) -> Mapping[str, str]:
    from psycopg.conninfo import conninfo_to_dict

    given = {**known, **conninfo_to_dict(target.dsn), **target.keywords}
    host, user = given.get("host"), given.get("user") or os.environ.get("PGUSER")
    if not host or not user:
        raise UsageError(
            f"{target.label}: auth iam needs a host and a user", hint="name the user: user in the target, or PGUSER"
        )
    port = int(str(given.get("port") or 5432))
    # RDS accepts a token over TLS only, which is the default for its endpoints.
    return {"password": session.token(target.aws, host=str(host), port=port, user=str(user))}
