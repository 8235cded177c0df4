"""Choose the target from options, the config file and the environment."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Final

from rdsrepl.config.file import load
from rdsrepl.config.target import NO_AWS, Aws, Target
from rdsrepl.errors import UsageError

# What belongs to one role; another one has its own.
_LOGIN: Final = frozenset({"user", "password", "passfile", "sslcert", "sslkey", "sslpassword"})
# What says where a database is and who logs in; the rest says how, and is as good for another one.
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
        target: a target's name. With a dsn it gives the AWS identity, and may name no other server.
        aws: what options say: each replaces what the target says. A cluster or instance that is not the target's own
            replaces its host and login, and keeps its AWS identity.
        defaults: what holds where neither ``aws`` nor the target says anything.
        dbname: replaces the database that dsn or target names.
        user: replaces the role that dsn or target names; a password or secret that belongs to that one is left out.

    Raises:
        ConfigError, NotFound: the config file is wrong, or has no such target.
        UsageError: dsn and target name different servers.
    """
    if dsn is not None:
        found = Target("--dsn", dsn)
        if target is not None:
            named = load().get(target)
            if named.located or named.aws.identifier:
                raise UsageError(
                    f"--dsn and --target {target} both name a server", hint=f"leave one of them out: --target {target}"
                )
            found = replace(found, keywords=named.keywords, aws=named.aws)
    else:
        config = load()
        name = target if target is not None else config.current
        found = config.get(name) if name is not None else Target("the environment")
        if aws.identifier and (aws.cluster, aws.instance) != (found.aws.cluster, found.aws.instance):
            kind = "cluster" if aws.cluster else "instance"
            keywords = {key: value for key, value in found.keywords.items() if key not in _LOCATION}
            own = replace(found.aws, cluster=None, instance=None, secret=None, auth=None)
            found = Target(f"{kind} {aws.identifier}", keywords=keywords, aws=own)
    if user is not None and user != found.keywords.get("user"):
        keywords = {key: value for key, value in found.keywords.items() if key not in _LOGIN}
        found = replace(found, keywords={**keywords, "user": user}, aws=replace(found.aws, secret=None))
    if dbname is not None:
        found = replace(found, keywords={**found.keywords, "dbname": dbname})
    said = {key: value for key, value in asdict(found.aws).items() if value is not None}
    given = {key: value for key, value in asdict(aws).items() if value is not None}
    return replace(found, aws=Aws(**{**asdict(defaults), **said, **given}))
