"""The least IAM policy with which a command runs, by AWS's service authorization reference. Pure: nothing is asked.

A command is a list of grants, a grant is an action on kinds of resources. What is not known (region, account, names)
becomes ``*`` in the ARN, and nowhere else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from rdsrepl.errors import BadValue

Auth = Literal["password", "iam"]
Kind = Literal["cluster", "instance"]

_REGION: Final = re.compile(r"[a-z]{2,}(-[a-z]+)+-\d\Z")
_ACCOUNT: Final = re.compile(r"\d{12}\Z")
_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9.*?-]{0,254}\Z")
_SECRET: Final = re.compile(r"(arn:aws[a-z-]*:secretsmanager:[^\s\"]+|[A-Za-z0-9/_+=.@!*?-]{1,512})\Z")
_KMS_KEY: Final = re.compile(r"(arn:aws[a-z-]*:kms:[^\s\"]+|[A-Za-z0-9-]{1,128})\Z")
_STREAM: Final = re.compile(r"(arn:aws[a-z-]*:kinesis:[^\s\"]+|[a-zA-Z0-9_.*?-]{1,128})\Z")
_USER: Final = re.compile(r"[^\s/\"]{1,63}\Z")
_PARTITIONS: Final = {
    "cn-": "aws-cn",
    "us-gov-": "aws-us-gov",
    "us-iso-": "aws-iso",
    "us-isob-": "aws-iso-b",
    "eu-isoe-": "aws-iso-e",
    "us-isof-": "aws-iso-f",
    "eusc-": "aws-eusc",
}


@dataclass(frozen=True, slots=True)
class PolicyScope:
    """What the policy is for; None leaves a place open.

    Attributes:
        region: of the resources.
        account: twelve digits.
        cluster: a DB cluster's identifier, or a pattern with ``*`` and ``?``.
        instance: a DB instance's, likewise.
        members: the cluster's members, or the instance's read replicas, likewise.
        parameter_group: a parameter group's name, likewise.
        secret: name or ARN of the secret that holds the password; without it, those that RDS keeps itself.
        kms_key: id or ARN of the customer managed key that encrypts the secret; AWS's own key needs no grant.
        user: the database role that logs in with an IAM token.
        resource_id: ``DbiResourceId`` or ``DbClusterResourceId``, which ``rds-db:connect`` goes by.
        auth: how SQL commands log in.
        stream: a Kinesis stream's name or ARN, or a pattern.
    """

    region: str | None = None
    account: str | None = None
    cluster: str | None = None
    instance: str | None = None
    members: str | None = None
    parameter_group: str | None = None
    secret: str | None = None
    kms_key: str | None = None
    user: str | None = None
    resource_id: str | None = None
    auth: Auth = "password"
    stream: str | None = None


@dataclass(frozen=True, slots=True)
class PolicyStatement:
    """Actions that are allowed on the same resources, under the same conditions."""

    actions: tuple[str, ...]
    resources: tuple[str, ...]
    conditions: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Policy:
    """What an identity may do."""

    statements: tuple[PolicyStatement, ...]

    def document(self) -> dict[str, Any]:
        """Return the policy as IAM reads it."""
        return {
            "Version": "2012-10-17",
            "Statement": [
                {
                    "Effect": "Allow",
                    "Action": list(statement.actions),
                    "Resource": list(statement.resources),
                    **({"Condition": statement.conditions} if statement.conditions else {}),
                }
                for statement in self.statements
            ],
        }


@dataclass(frozen=True, slots=True)
class _Grant:
    """An action, on kinds of resources of ``_arns``; only for commands on that kind of database, where one is named."""

    action: str
    on: tuple[str, ...]
    kind: Kind | None = None
    conditions: tuple[tuple[str, str, str], ...] = ()


# AWS checks a call without an identifier, and one with a filter, against every resource of the type.
_READ_CLUSTERS: Final = _Grant("rds:DescribeDBClusters", ("every-cluster",))
_READ_INSTANCES: Final = _Grant("rds:DescribeDBInstances", ("every-db",))
_READ_CLUSTER: Final = _Grant("rds:DescribeDBClusters", ("cluster",))
_READ_INSTANCE: Final = _Grant("rds:DescribeDBInstances", ("db",))
_READ_VERSIONS: Final = _Grant("rds:DescribeDBEngineVersions", ("*",))
_USERS: Final = (_READ_CLUSTERS, _READ_INSTANCES)


def _groups(verb: str, *, cluster_on: str, instance_on: str, what: str = "ParameterGroup") -> tuple[_Grant, ...]:
    return (
        _Grant(f"rds:{verb}DBCluster{what}", (cluster_on,), "cluster"),
        _Grant(f"rds:{verb}DB{what}", (instance_on,), "instance"),
    )


def _named(verb: str, what: str = "ParameterGroup") -> tuple[_Grant, ...]:
    return _groups(verb, cluster_on="cluster-pg", instance_on="pg", what=what)


def _all(verb: str, what: str = "ParameterGroup") -> tuple[_Grant, ...]:
    return _groups(verb, cluster_on="every-cluster-pg", instance_on="every-pg", what=what)


_FIND_GROUP: Final = _named("Describe", "ParameterGroups")
_READ_GROUP: Final = (*_FIND_GROUP, *_named("Describe", "Parameters"))
_READ_GROUPS: Final = (*_all("Describe", "ParameterGroups"), *_all("Describe", "Parameters"))
_READ_DEFAULTS: Final = (
    _Grant("rds:DescribeEngineDefaultClusterParameters", ("*",), "cluster"),
    _Grant("rds:DescribeEngineDefaultParameters", ("*",), "instance"),
)
_VIA_SECRETS_MANAGER: Final = (("StringLike", "kms:ViaService", "secretsmanager.*"),)

# A SQL command finds its database, and logs in to it.
_FIND: Final = (
    _Grant("rds:DescribeDBClusters", ("cluster",), "cluster"),
    _Grant("rds:DescribeDBInstances", ("db",), "instance"),
    # A member of a cluster shares the cluster's master user and secret.
    _Grant("rds:DescribeDBClusters", ("every-cluster",), "instance"),
)
_LOGIN: Final[Mapping[Auth, tuple[_Grant, ...]]] = {
    "password": (
        _Grant("secretsmanager:GetSecretValue", ("secret",)),
        _Grant("kms:Decrypt", ("kms-key",), conditions=_VIA_SECRETS_MANAGER),
    ),
    "iam": (_Grant("rds-db:connect", ("dbuser",)),),
}
_SQL: Final = "sql"

# RDS keeps a new master user's password in a secret of its own; the first database of an account also needs RDS's role.
_MASTER_SECRET: Final = (
    _Grant("secretsmanager:CreateSecret", ("managed-secret",)),
    _Grant("secretsmanager:TagResource", ("managed-secret",)),
    _Grant("kms:DescribeKey", ("kms-key-of-secret",)),
    _Grant(
        "iam:CreateServiceLinkedRole",
        ("service-role",),
        conditions=(("StringLike", "iam:AWSServiceName", "rds.amazonaws.com"),),
    ),
)
_CREATE_MEMBER: Final = _Grant("rds:CreateDBInstance", ("db", "cluster", "default-pg", "og", "subgrp"))
# What proves a reboot where the server cannot be asked over SQL.
_EVENTS: Final = _Grant("rds:DescribeEvents", ("*",))
_REBOOTS: Final = (
    _EVENTS,
    _Grant("rds:RebootDBCluster", ("cluster",), "cluster"),
    _Grant("rds:RebootDBInstance", ("db",)),
)

_READ_STREAM: Final = _Grant("kinesis:DescribeStreamSummary", ("stream",))
_READER: Final = (
    _READ_STREAM,
    _Grant("kinesis:ListShards", ("stream",)),
    _Grant("kinesis:GetShardIterator", ("stream",)),
    _Grant("kinesis:GetRecords", ("stream",)),
    _Grant("kms:Decrypt", ("kms-key",), conditions=(("StringLike", "kms:ViaService", "kinesis.*"),)),
)
_WRITER: Final = (
    _READ_STREAM,
    _Grant("kinesis:PutRecords", ("stream",)),
    _Grant("kms:GenerateDataKey", ("kms-key",), conditions=(("StringLike", "kms:ViaService", "kinesis.*"),)),
)

# `role password --secret`.
_KEEP_PASSWORD: Final = (
    _Grant("secretsmanager:GetSecretValue", ("secret",)),
    _Grant("secretsmanager:PutSecretValue", ("secret",)),
    _Grant("secretsmanager:UpdateSecretVersionStage", ("secret",)),
    _Grant("secretsmanager:CreateSecret", ("secret",)),
    _Grant("kms:Decrypt", ("kms-key",), conditions=_VIA_SECRETS_MANAGER),
    _Grant("kms:GenerateDataKey", ("kms-key",), conditions=_VIA_SECRETS_MANAGER),
)

# What is free, and how fast WAL is written; without these rights the slots are shown all the same.
_STANDING: Final = (_READ_CLUSTERS, _READ_INSTANCES, _Grant("cloudwatch:GetMetricData", ("*",)), _SQL)

_COMMANDS: Final[Mapping[str, tuple[_Grant | str, ...]]] = {
    "param-group list": (*_all("Describe", "ParameterGroups"), *_USERS),
    "param-group show": (*_READ_GROUP, *_USERS),
    "param-group create": (
        *_named("Create"),
        *_all("Copy"),
        *_named("Modify"),
        *_READ_GROUPS,
        *_READ_DEFAULTS,
        _READ_VERSIONS,
        *_USERS,
    ),
    "param-group diff": (*_READ_GROUPS, *_READ_DEFAULTS, _READ_CLUSTER, _READ_INSTANCE, _SQL),
    "param-group set": (*_READ_GROUP, *_named("Modify"), *_USERS),
    "param-group reset": (*_READ_GROUP, *_named("Reset"), *_READ_DEFAULTS, *_USERS),
    "param-group attach": (
        *_READ_GROUPS,
        _READ_VERSIONS,
        _READ_CLUSTER,
        # The read replicas, which are rebooted in an order of their own.
        _READ_INSTANCES,
        _Grant("rds:ModifyDBCluster", ("cluster", "cluster-pg"), "cluster"),
        # ModifyDBCluster on a Multi-AZ DB cluster modifies its members.
        _Grant("rds:ModifyDBInstance", ("db", "pg")),
        *_REBOOTS,
        _SQL,
    ),
    "param-group delete": (*_FIND_GROUP, *_named("Delete"), *_USERS),
    "cluster list": (_READ_CLUSTERS,),
    "cluster show": (_READ_CLUSTER, _READ_INSTANCES, _READ_VERSIONS),
    "cluster create": (
        _Grant("rds:CreateDBCluster", ("cluster", "cluster-pg", "default-cluster-pg", "og", "subgrp")),
        _CREATE_MEMBER,
        *_MASTER_SECRET,
        _READ_CLUSTER,
        _READ_INSTANCES,
        _READ_VERSIONS,
    ),
    "cluster reboot": (
        _READ_CLUSTER,
        _READ_INSTANCES,
        _Grant("rds:RebootDBCluster", ("cluster",)),
        _Grant("rds:RebootDBInstance", ("db",)),
        _EVENTS,
        _SQL,
    ),
    "cluster failover": (_READ_CLUSTER, _READ_INSTANCES, _Grant("rds:FailoverDBCluster", ("cluster",)), _SQL),
    "cluster delete": (
        _READ_CLUSTER,
        _READ_INSTANCES,
        _Grant("rds:DeleteDBCluster", ("cluster", "cluster-snapshot")),
        _Grant("rds:DeleteDBInstance", ("db",)),
        _Grant("rds:CreateDBClusterSnapshot", ("cluster", "cluster-snapshot")),
        _Grant("rds:AddTagsToResource", ("cluster-snapshot",)),
    ),
    "instance list": (_READ_INSTANCES,),
    "instance show": (_READ_INSTANCE, _READ_CLUSTERS, _READ_VERSIONS),
    "instance create": (
        _Grant("rds:CreateDBInstance", ("db", "cluster", "pg", "default-pg", "og", "subgrp")),
        _Grant("rds:CreateDBInstanceReadReplica", ("db", "every-db", "pg", "default-pg", "og", "subgrp")),
        # A read replica's parameter group is attached after it was made.
        _Grant("rds:ModifyDBInstance", ("db", "pg")),
        _Grant("rds:RebootDBInstance", ("db",)),
        _EVENTS,
        *_MASTER_SECRET,
        _READ_INSTANCE,
        _READ_CLUSTERS,
        _READ_VERSIONS,
    ),
    "instance reboot": (_READ_INSTANCES, _READ_CLUSTERS, _Grant("rds:RebootDBInstance", ("db",)), _EVENTS, _SQL),
    "instance failover": (_READ_INSTANCES, _READ_CLUSTERS, _Grant("rds:RebootDBInstance", ("db",)), _EVENTS, _SQL),
    "instance delete": (
        _READ_INSTANCE,
        _READ_CLUSTERS,
        _Grant("rds:DeleteDBInstance", ("db",)),
        _Grant("rds:CreateDBSnapshot", ("db", "snapshot")),
        _Grant("rds:AddTagsToResource", ("snapshot",)),
    ),
    "doctor": (
        _READ_CLUSTERS,
        _READ_INSTANCES,
        _READ_VERSIONS,
        *_READ_GROUPS,
        _Grant("cloudwatch:GetMetricData", ("*",)),
        _SQL,
    ),
    "stream list": (_Grant("kinesis:ListStreams", ("*",)),),
    "stream show": (_READ_STREAM, _Grant("cloudwatch:GetMetricStatistics", ("*",))),
    "stream create": (_READ_STREAM, _Grant("kinesis:CreateStream", ("stream",))),
    "stream delete": (_READ_STREAM, _Grant("kinesis:DeleteStream", ("stream",))),
    "stream tail": _READER,
    "psql": (_SQL,),
    "slot create": (_SQL,),
    "slot list": (_SQL,),
    "slot show": (_SQL,),
    "slot advance": (_SQL,),
    "slot drop": (_SQL,),
    "slot prune": _STANDING,
    "slot lag": _STANDING,
    "slot check": (
        *_STANDING,
        _Grant("cloudwatch:PutMetricData", ("*",), conditions=(("StringEquals", "cloudwatch:namespace", "rdsrepl"),)),
    ),
    "slot tail": (_SQL,),
    "slot peek": (_SQL,),
    "slot watch": _STANDING,
    "publication create": (_SQL,),
    "publication list": (_SQL,),
    "publication show": (_SQL,),
    "publication add": (_SQL,),
    "publication remove": (_SQL,),
    "publication drop": (_SQL,),
    "publication check": (_SQL,),
    "role create": (_SQL,),
    "role list": (_SQL,),
    "role grant": (_SQL,),
    "role password": (_SQL,),
    "role drop": (_SQL,),
}
COMMANDS: Final = tuple(_COMMANDS)


def commands(words: str) -> tuple[str, ...]:
    """Return the commands that words mean: one (``slot tail``), or all of a noun (``slot``).

    Raises:
        BadValue: there is none of that name.
    """
    wanted = " ".join(words.split()).removeprefix("rdsrepl ")
    found = tuple(name for name in COMMANDS if name == wanted or name.startswith(f"{wanted} "))
    if not wanted or not found:
        raise BadValue(f"{words!r} is no command that a policy is known for", hint=f"known: {', '.join(_known())}")
    return found


def policy(names: Sequence[str], scope: PolicyScope) -> Policy:
    """Return the least policy for commands.

    Args:
        names: what people type: ``param-group create``, ``slot``; none means every command.
        scope: what they are used on; with a stream, ``slot tail`` may write to it; likewise a secret and
            ``role password``.

    Raises:
        BadValue: a command is not known, or something in SCOPE is malformed.
    """
    _check(scope)
    wanted = dict.fromkeys(name for words in names or _nouns() for name in commands(words))
    by_action: dict[tuple[str, tuple[tuple[str, str, str], ...]], dict[str, None]] = {}
    to_kinesis = _WRITER if scope.stream is not None and "slot tail" in wanted else ()
    to_secret = _KEEP_PASSWORD if scope.secret is not None and "role password" in wanted else ()
    for grant in (*_grants(wanted, scope), *to_kinesis, *to_secret):
        arns = [arn for place in grant.on for arn in _arns(place, scope)]
        if arns:
            by_action.setdefault((grant.action, grant.conditions), {}).update(dict.fromkeys(arns))
    statements: dict[tuple[tuple[str, ...], tuple[tuple[str, str, str], ...]], list[str]] = {}
    for (action, conditions), resources in by_action.items():
        statements.setdefault((_narrowed(resources), conditions), []).append(action)
    return Policy(
        tuple(
            PolicyStatement(tuple(sorted(actions)), resources, {test: {key: value} for test, key, value in conditions})
            for (resources, conditions), actions in statements.items()
        )
    )


def stream_policy(side: Literal["writer", "reader"], scope: PolicyScope) -> Policy:
    """Return the least policy for writing to a stream (``slot tail --to kinesis:…``), or for reading it.

    Raises:
        BadValue: something in SCOPE is malformed.
    """
    _check(scope)
    statements: dict[tuple[tuple[str, ...], tuple[tuple[str, str, str], ...]], list[str]] = {}
    for grant in _WRITER if side == "writer" else _READER:
        arns = tuple(arn for place in grant.on for arn in _arns(place, scope))
        if arns:
            statements.setdefault((arns, grant.conditions), []).append(grant.action)
    return Policy(
        tuple(
            PolicyStatement(tuple(sorted(actions)), arns, {test: {key: value} for test, key, value in conditions})
            for (arns, conditions), actions in statements.items()
        )
    )


def _grants(names: Iterable[str], scope: PolicyScope) -> Iterable[_Grant]:
    kinds = {kind for kind, name in (("cluster", scope.cluster), ("instance", scope.instance)) if name}
    for name in names:
        for part in _COMMANDS[name]:
            for grant in (*_FIND, *_LOGIN[scope.auth]) if isinstance(part, str) else (part,):
                if grant.kind is None or not kinds or grant.kind in kinds:
                    yield grant


def _arns(place: str, scope: PolicyScope) -> Sequence[str]:
    """Return the ARNs that stand for a kind of resource; none where nothing is to be granted."""
    partition, region, account = _partition(scope.region), scope.region or "*", scope.account or "*"

    def rds(kind: str, name: str | None) -> tuple[str]:
        return (f"arn:{partition}:rds:{region}:{account}:{kind}:{name.lower() if name else '*'}",)

    if place == "*":
        return ("*",)
    if place.startswith("every-"):
        return rds(place.removeprefix("every-"), None)
    if place.startswith("default-"):
        return rds(place.removeprefix("default-"), "default.*")
    names = {
        "cluster": scope.cluster,
        "db": scope.instance,
        "pg": scope.parameter_group,
        "cluster-pg": scope.parameter_group,
        # Nobody chooses an option group for PostgreSQL: it is default:postgres-16.
        "og": "default*",
        "subgrp": None,
        "snapshot": None,
        "cluster-snapshot": None,
    }
    if place == "db" and scope.members:
        return [*rds("db", scope.members), *(rds("db", scope.instance) if scope.instance else ())]
    if place in names:
        return rds(place, names[place])
    if place == "stream":
        if scope.stream is not None and scope.stream.startswith("arn:"):
            return (scope.stream,)
        return (f"arn:{partition}:kinesis:{region}:{account}:stream/{scope.stream or '*'}",)
    if place == "service-role":
        role = "aws-service-role/rds.amazonaws.com/AWSServiceRoleForRDS"
        return (f"arn:{partition}:iam::{account}:role/{role}",)
    if place == "dbuser":
        resource = scope.resource_id or ("*" if bool(scope.cluster) == bool(scope.instance) else None)
        resource = resource or ("cluster-*" if scope.cluster else "db-*")
        return (f"arn:{partition}:rds-db:{region}:{account}:dbuser:{resource}/{scope.user or '*'}",)
    if place in ("kms-key", "kms-key-of-secret"):
        if scope.kms_key is None and place == "kms-key":
            return ()
        if scope.kms_key and scope.kms_key.startswith("arn:"):
            return (scope.kms_key,)
        return (f"arn:{partition}:kms:{region}:{account}:key/{scope.kms_key or '*'}",)
    managed = [f"rds!{kind}-*" for kind, name in (("cluster", scope.cluster), ("db", scope.instance)) if name]
    names_of_secrets = managed or ["rds!cluster-*", "rds!db-*"]
    if place == "secret" and scope.secret:
        if scope.secret.startswith("arn:"):
            return (scope.secret,)
        # Secrets Manager adds a hyphen and six characters to the name.
        names_of_secrets = [f"{scope.secret}-??????"]
    return [f"arn:{partition}:secretsmanager:{region}:{account}:secret:{name}" for name in names_of_secrets]


def _narrowed(resources: Iterable[str]) -> tuple[str, ...]:
    """Leave out what a wildcard at the end of another resource covers already."""
    found = sorted(set(resources))
    wide = [resource[:-1] for resource in found if resource.endswith(":*") or resource == "*"]
    return tuple(
        resource for resource in found if not any(resource.startswith(w) and resource != f"{w}*" for w in wide)
    )


def _partition(region: str | None) -> str:
    if region is None:
        return "aws"
    return next((name for prefix, name in _PARTITIONS.items() if region.startswith(prefix)), "aws")


def _nouns() -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.split()[0] for name in COMMANDS))


def _known() -> Iterable[str]:
    for noun in _nouns():
        verbs = [name.removeprefix(f"{noun} ") for name in COMMANDS if name.startswith(f"{noun} ")]
        yield f"{noun} {'|'.join(verbs)}" if verbs else noun


def _check(scope: PolicyScope) -> None:
    for what, value, pattern, hint in (
        ("region", scope.region, _REGION, "regions look like eu-west-1"),
        ("account", scope.account, _ACCOUNT, "an account is twelve digits: aws sts get-caller-identity"),
        ("cluster", scope.cluster, _NAME, "an identifier, or a pattern such as orders-*"),
        ("instance", scope.instance, _NAME, "an identifier, or a pattern such as orders-*"),
        ("member", scope.members, _NAME, "an identifier, or a pattern such as orders-*"),
        ("parameter group", scope.parameter_group, _NAME, "a group's name, or a pattern such as orders-*"),
        ("secret", scope.secret, _SECRET, "a secret's name or its ARN"),
        ("KMS key", scope.kms_key, _KMS_KEY, "a key's id or its ARN"),
        ("stream", scope.stream, _STREAM, "a stream's name or its ARN"),
        ("user", scope.user, _USER, "a database role's name"),
        ("resource id", scope.resource_id, _NAME, "db-… or cluster-…, as rdsrepl instance show prints it"),
    ):
        if value is not None and not pattern.match(value):
            raise BadValue(f"{value!r} is no {what}", hint=hint)
