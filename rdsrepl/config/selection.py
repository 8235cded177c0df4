"""Choose the target from options, the config file and the environment."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Final

from rdsrepl.config.file import load
from rdsrepl.config.target import NO_AWS, Aws, Target
from rdsrepl.errors import UsageError

# Keywords that belong to one role.
_LOGIN: Final = frozenset({"user", "password", "passfile", "sslcert", "sslkey", "sslpassword"})
# Keywords that identify a database and a role; the others apply to another database, too.
_LOCATION: Final = frozenset({"host", "hostaddr", "port", "dbname", "user", "password", "passfile", "service"})


def resolve(
    *,
    dsn: str | None,
    target: str | None,
    aws: Aws = NO_AWS,
    defaults: Aws = NO_AWS,
    dbname: str | None = None,
    user: str | None = None,
) -> Target:
    """Return the database to work on: ``dsn``, else the named target, else the current one, else the environment.

    Args:
        dsn: a libpq connection string.
        target: the name of a target. With a dsn, it supplies the AWS identity and must not name another server.
        aws: the values of options; each overrides the target. A cluster or instance that the target does not name,
            or that of the target in another region, replaces its host and login, and keeps its AWS identity.
        defaults: used for what neither ``aws`` nor the target sets.
        dbname: overrides the database of dsn or target.
        user: overrides the role of dsn or target; the password or secret of that role is not used.

    Raises:
        ConfigError, NotFound: the config file is not valid, or the target does not exist.
        UsageError: dsn and target name different servers.
    """
    if dsn is not None:
        chosen = Target("--dsn", dsn)
        if target is not None:
            named = load().get(target)
            if named.has_address or named.aws.identifier:
                raise UsageError(f"--dsn and --target {target} both name a server", hint="use only one of them")
            chosen = replace(chosen, keywords=named.keywords, aws=named.aws)
    else:
        config = load()
        name = target if target is not None else config.current
        chosen = config.get(name) if name is not None else Target("the environment")
        server = aws if aws.identifier else chosen.aws
        if server.identifier and (_is_another(server, chosen.aws) or _is_elsewhere(aws, chosen.aws)):
            kind = "cluster" if server.cluster else "instance"
            keywords = {key: value for key, value in chosen.keywords.items() if key not in _LOCATION}
            own = replace(chosen.aws, cluster=server.cluster, instance=server.instance, secret=None, auth=None)
            chosen = Target(f"{kind} {server.identifier}", keywords=keywords, aws=own)
    if user is not None and user != chosen.keywords.get("user"):
        keywords = {key: value for key, value in chosen.keywords.items() if key not in _LOGIN}
        chosen = replace(chosen, keywords={**keywords, "user": user}, aws=replace(chosen.aws, secret=None))
    if dbname is not None:
        chosen = replace(chosen, keywords={**chosen.keywords, "dbname": dbname})
    target_aws = {key: value for key, value in asdict(chosen.aws).items() if value is not None}
    given = {key: value for key, value in asdict(aws).items() if value is not None}
    return replace(chosen, aws=Aws(**{**asdict(defaults), **target_aws, **given}))


def _is_another(one: Aws, other: Aws) -> bool:
    return (one.cluster, one.instance) != (other.cluster, other.instance)


def _is_elsewhere(one: Aws, other: Aws) -> bool:
    return one.region is not None and other.region is not None and one.region != other.region
