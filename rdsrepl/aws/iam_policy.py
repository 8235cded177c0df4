"""Build the minimal IAM policy of a command from ``iam_grants``. Pure functions: no call is made.

An unknown part of an ARN (region, account, name) becomes ``*``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from rdsrepl.aws.iam_grants import FIND_DATABASE, GRANTS, KEEP_PASSWORD, LOGIN, READER, WRITER, Auth, Grant
from rdsrepl.errors import BadValue

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
    """The resources and the login that a policy covers; None covers all.

    Attributes:
        region: the region of the resources.
        account: the account id, twelve digits.
        cluster: the identifier of a DB cluster, or a pattern with ``*`` and ``?``.
        instance: the identifier of a DB instance, or a pattern.
        members: the members of the cluster or the read replicas of the instance, as identifier or pattern.
        parameter_group: the name of a parameter group, or a pattern.
        secret: name or ARN of the secret with the password; None means the secrets that RDS manages.
        kms_key: id or ARN of the customer managed key that encrypts the secret; the key of AWS needs no grant.
        user: the database role that logs in with an IAM token.
        resource_id: ``DbiResourceId`` or ``DbClusterResourceId``, which ``rds-db:connect`` uses.
        auth: how SQL commands log in.
        stream: the name or ARN of a Kinesis stream, or a pattern.
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
    """Actions that are allowed on the same resources and under the same conditions."""

    actions: tuple[str, ...]
    resources: tuple[str, ...]
    conditions: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Policy:
    """An IAM policy."""

    statements: tuple[PolicyStatement, ...]

    def document(self) -> dict[str, Any]:
        """Return the policy document for IAM."""
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


COMMANDS: Final = tuple(GRANTS)


def commands(name: str) -> tuple[str, ...]:
    """Return the commands that NAME selects: one (``slot tail``), or all of a noun (``slot``).

    Raises:
        BadValue: no command has this name.
    """
    wanted = " ".join(name.split()).removeprefix("rdsrepl ")
    matches = tuple(one for one in COMMANDS if one == wanted or one.startswith(f"{wanted} "))
    if not wanted or not matches:
        raise BadValue(f"{name!r} is not a command with a policy", hint=f"commands: {', '.join(_known())}")
    return matches


def policy(names: Sequence[str], scope: PolicyScope) -> Policy:
    """Return the minimal policy for commands.

    Args:
        names: commands or nouns: ``param-group create``, ``slot``; empty means every command.
        scope: the resources; a stream allows ``slot tail`` to write to it and ``verify`` to read it, a
            secret allows ``role password``.

    Raises:
        BadValue: a command does not exist, or a value of SCOPE is malformed.
    """
    _check(scope)
    wanted = dict.fromkeys(name for given in names or _nouns() for name in commands(given))
    by_action: dict[tuple[str, tuple[tuple[str, str, str], ...]], dict[str, None]] = {}
    to_kinesis = WRITER if scope.stream is not None and "slot tail" in wanted else ()
    from_kinesis = READER if scope.stream is not None and "verify" in wanted else ()
    to_secret = KEEP_PASSWORD if scope.secret is not None and "role password" in wanted else ()
    for grant in (*_grants(wanted, scope), *to_kinesis, *from_kinesis, *to_secret):
        arns = [arn for kind in grant.on for arn in _arns(kind, scope)]
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
    """Return the minimal policy for writing to a stream (``slot tail --to kinesis:…``), or for reading it.

    Raises:
        BadValue: a value of SCOPE is malformed.
    """
    _check(scope)
    statements: dict[tuple[tuple[str, ...], tuple[tuple[str, str, str], ...]], list[str]] = {}
    for grant in WRITER if side == "writer" else READER:
        arns = tuple(arn for kind in grant.on for arn in _arns(kind, scope))
        if arns:
            statements.setdefault((arns, grant.conditions), []).append(grant.action)
    return Policy(
        tuple(
            PolicyStatement(tuple(sorted(actions)), arns, {test: {key: value} for test, key, value in conditions})
            for (arns, conditions), actions in statements.items()
        )
    )


def _grants(names: Iterable[str], scope: PolicyScope) -> Iterable[Grant]:
    kinds = {kind for kind, name in (("cluster", scope.cluster), ("instance", scope.instance)) if name}
    for name in names:
        for part in GRANTS[name]:
            for grant in (*FIND_DATABASE, *LOGIN[scope.auth]) if isinstance(part, str) else (part,):
                if grant.kind is None or not kinds or grant.kind in kinds:
                    yield grant


def _arns(kind: str, scope: PolicyScope) -> Sequence[str]:
    """Return the ARNs of a kind of resource; empty if no grant is needed."""
    partition, region, account = _partition(scope.region), scope.region or "*", scope.account or "*"

    def rds(rds_type: str, name: str | None) -> tuple[str]:
        return (f"arn:{partition}:rds:{region}:{account}:{rds_type}:{name.lower() if name else '*'}",)

    if kind == "*":
        return ("*",)
    if kind.startswith("every-"):
        return rds(kind.removeprefix("every-"), None)
    if kind.startswith("default-"):
        return rds(kind.removeprefix("default-"), "default.*")
    names = {
        "cluster": scope.cluster,
        "db": scope.instance,
        "pg": scope.parameter_group,
        "cluster-pg": scope.parameter_group,
        # PostgreSQL always has a default option group: default:postgres-16.
        "og": "default*",
        "subgrp": None,
        "snapshot": None,
        "cluster-snapshot": None,
    }
    if kind == "db" and scope.members:
        return [*rds("db", scope.members), *(rds("db", scope.instance) if scope.instance else ())]
    if kind in names:
        return rds(kind, names[kind])
    if kind == "stream":
        if scope.stream is not None and scope.stream.startswith("arn:"):
            return (scope.stream,)
        return (f"arn:{partition}:kinesis:{region}:{account}:stream/{scope.stream or '*'}",)
    if kind == "service-role":
        role = "aws-service-role/rds.amazonaws.com/AWSServiceRoleForRDS"
        return (f"arn:{partition}:iam::{account}:role/{role}",)
    if kind == "dbuser":
        resource = scope.resource_id or ("*" if bool(scope.cluster) == bool(scope.instance) else None)
        resource = resource or ("cluster-*" if scope.cluster else "db-*")
        return (f"arn:{partition}:rds-db:{region}:{account}:dbuser:{resource}/{scope.user or '*'}",)
    if kind in ("kms-key", "kms-key-of-secret"):
        if scope.kms_key is None and kind == "kms-key":
            return ()
        if scope.kms_key and scope.kms_key.startswith("arn:"):
            return (scope.kms_key,)
        return (f"arn:{partition}:kms:{region}:{account}:key/{scope.kms_key or '*'}",)
    managed = [f"rds!{rds_type}-*" for rds_type, name in (("cluster", scope.cluster), ("db", scope.instance)) if name]
    names_of_secrets = managed or ["rds!cluster-*", "rds!db-*"]
    if kind == "secret" and scope.secret:
        if scope.secret.startswith("arn:"):
            return (scope.secret,)
        # Secrets Manager adds a hyphen and six characters to the name.
        names_of_secrets = [f"{scope.secret}-??????"]
    return [f"arn:{partition}:secretsmanager:{region}:{account}:secret:{name}" for name in names_of_secrets]


def _narrowed(resources: Iterable[str]) -> tuple[str, ...]:
    """Remove resources that a wildcard at the end of another resource covers."""
    unique = sorted(set(resources))
    wide = [resource[:-1] for resource in unique if resource.endswith(":*") or resource == "*"]
    return tuple(
        resource for resource in unique if not any(resource.startswith(w) and resource != f"{w}*" for w in wide)
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
        ("region", scope.region, _REGION, "use a region such as eu-west-1"),
        ("account", scope.account, _ACCOUNT, "use twelve digits: aws sts get-caller-identity"),
        ("cluster", scope.cluster, _NAME, "use an identifier, or a pattern such as orders-*"),
        ("instance", scope.instance, _NAME, "use an identifier, or a pattern such as orders-*"),
        ("member", scope.members, _NAME, "use an identifier, or a pattern such as orders-*"),
        ("parameter group", scope.parameter_group, _NAME, "use the name of a group, or a pattern such as orders-*"),
        ("secret", scope.secret, _SECRET, "use the name or ARN of a secret"),
        ("KMS key", scope.kms_key, _KMS_KEY, "use the id or ARN of a key"),
        ("stream", scope.stream, _STREAM, "use the name or ARN of a stream"),
        ("user", scope.user, _USER, "use the name of a database role"),
        ("resource id", scope.resource_id, _NAME, "use db-… or cluster-…: rdsrepl instance show ID"),
    ):
        if value is not None and not pattern.match(value):
            raise BadValue(f"{value!r} is not a valid {what}", hint=hint)
