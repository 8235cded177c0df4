"""Passwords from Secrets Manager, in the JSON shape RDS gives them."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from rdsrepl.aws import session
from rdsrepl.config import Aws, Target
from rdsrepl.errors import Error, NotAvailable, NotFound, Refused
from rdsrepl.plan import AwsCall, Step
from rdsrepl.text.commands import shell


class NoValue(NotAvailable):
    """The secret exists, and no version of it is ``AWSCURRENT`` yet."""


@dataclass(frozen=True, slots=True)
class Login:
    """What a secret says (``username``, ``password``, and where they are good for, if it says that)."""

    password: str = field(repr=False)
    username: str | None = None
    host: str | None = None
    port: int | None = None
    dbname: str | None = None


def get(aws: Aws, secret: str) -> Login:
    """Read a secret (GetSecretValue) as it is now.

    Args:
        aws: the identity.
        secret: its name or ARN.

    Raises:
        Error: there is none, it may not be read, or it holds no password.
    """
    answer = _current(aws, secret)
    try:
        fields = json.loads(answer["SecretString"])
        port = fields.get("port")
        return Login(
            password=str(fields["password"]),
            username=fields.get("username"),
            host=fields.get("host"),
            port=int(port) if port else None,
            dbname=fields.get("dbname"),
        )
    except (LookupError, ValueError, TypeError, AttributeError, ArithmeticError, RecursionError):
        # Not as the cause: it would quote the secret.
        raise Error(
            f"secret {secret} holds no JSON object with a password",
            hint='RDS\'s shape is {"username": "…", "password": "…"}',
        ) from None


def keep_password(
    aws: Aws, secret: str, *, username: str, password: str, place: Mapping[str, str], change: Step
) -> tuple[Step, ...]:
    """Return the steps that make a password the role's and keep it in a secret, so that it is never the one alone.

    It is put there first, beside the old one (``AWSPENDING``); then CHANGE makes it the role's; then it is what the
    secret is read as (``AWSCURRENT``; the old one stays as ``AWSPREVIOUS``). A secret that does not exist is made; one
    that has no value yet gets its first one.

    Args:
        aws: the identity.
        secret: its name or ARN.
        username: the role.
        password: in clear; the steps show it masked.
        place: what a new secret says besides: ``host``, ``port``, ``dbname``.
        change: makes it the role's.

    Raises:
        Refused: the secret is RDS's own, or another role's.
        Error: it may not be read, or holds no JSON object.
    """
    if secret.startswith("rds!") or ":secret:rds!" in secret:
        raise Refused(
            f"secret {secret} is RDS's own", hint="RDS rotates it: aws secretsmanager rotate-secret --secret-id …"
        )
    try:
        answer = _current(aws, secret)
    except NotFound:
        return _new_secret(secret, {"engine": "postgres", "username": username, "password": password, **place}), change
    except NoValue:
        answer = {"SecretString": json.dumps({"engine": "postgres", **place})}
    try:
        fields: dict[str, Any] = dict(json.loads(answer["SecretString"]))
    except (LookupError, ValueError, TypeError, RecursionError):
        # Not as the cause: it would quote the secret.
        raise Error(
            f"secret {secret} holds no JSON object, and is left alone",
            hint='RDS\'s shape is {"username": "…", "password": "…"}',
        ) from None
    if fields.get("username", username) != username:
        raise Refused(
            f"secret {secret} is for role {fields['username']}, not {username}", hint="name the role's own secret"
        )
    version = str(uuid.uuid4())
    put = {
        "SecretId": secret,
        "ClientRequestToken": version,
        "SecretString": json.dumps({**fields, "username": username, "password": password}),
        "VersionStages": ["AWSPENDING"],
    }
    move = {
        "SecretId": secret,
        "VersionStage": "AWSCURRENT",
        "MoveToVersionId": version,
        **({"RemoveFromVersionId": answer["VersionId"]} if "VersionId" in answer else {}),
    }
    return (
        AwsCall(
            f"put the new password into secret {secret}, as AWSPENDING",
            "secretsmanager",
            "PutSecretValue",
            put,
            secrets=frozenset({"SecretString"}),
        ),
        change,
        AwsCall(
            f"make it what secret {secret} is read as",
            "secretsmanager",
            "UpdateSecretVersionStage",
            move,
            # AWS makes the first version of a secret AWSCURRENT by itself.
            needed=None if "VersionId" in answer else partial(_is_not_current, secret=secret, version=version),
            condition="" if "VersionId" in answer else "unless it is that already",
        ),
    )


def _current(aws: Aws, secret: str) -> dict[str, Any]:
    # The stage is AWS's default; a stand-in may take another version for it after a rotation.
    request = {"SecretId": secret, "VersionStage": "AWSCURRENT"}
    try:
        return session.call(aws, "secretsmanager", "GetSecretValue", request)
    except NotAvailable as exc:
        if exc.aws_code != "ResourceNotFoundException":
            raise
        put = "aws secretsmanager put-secret-value --secret-id {} --secret-string file://secret.json"
        raise NoValue(
            f"secret {secret} has no value yet",
            hint=f"wait until it has one (AWSCURRENT), or give it one: {shell(put, secret)}",
            aws_code=exc.aws_code,
            request_id=exc.request_id,
        ) from None


def _is_not_current(target: Target, *, secret: str, version: str) -> bool:
    try:
        return bool(_current(target.aws, secret)["VersionId"] != version)
    except NoValue:
        return True


def _new_secret(secret: str, fields: Mapping[str, str]) -> AwsCall:
    request = {"Name": secret, "SecretString": json.dumps(fields)}
    return AwsCall(
        f"create secret {secret}", "secretsmanager", "CreateSecret", request, secrets=frozenset({"SecretString"})
    )
