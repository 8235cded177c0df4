"""Passwords from Secrets Manager, in the JSON shape RDS gives them."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rdsrepl.aws import session
from rdsrepl.config import Aws
from rdsrepl.errors import Error, NotFound, Refused
from rdsrepl.plan import AwsCall, Step


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
    answer = session.call(aws, "secretsmanager", "GetSecretValue", _current(secret))
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
    secret is read as (``AWSCURRENT``; the old one stays as ``AWSPREVIOUS``). A secret that does not exist is made.

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
        answer = session.call(aws, "secretsmanager", "GetSecretValue", _current(secret))
    except NotFound:
        return _new_secret(secret, {"engine": "postgres", "username": username, "password": password, **place}), change
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
        "RemoveFromVersionId": answer["VersionId"],
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
        AwsCall(f"make it what secret {secret} is read as", "secretsmanager", "UpdateSecretVersionStage", move),
    )


def _current(secret: str) -> dict[str, str]:
    # AWS's default; a stand-in may take another version for it after a rotation.
    return {"SecretId": secret, "VersionStage": "AWSCURRENT"}


def _new_secret(secret: str, fields: Mapping[str, str]) -> AwsCall:
    request = {"Name": secret, "SecretString": json.dumps(fields)}
    return AwsCall(
        f"create secret {secret}", "secretsmanager", "CreateSecret", request, secrets=frozenset({"SecretString"})
    )
