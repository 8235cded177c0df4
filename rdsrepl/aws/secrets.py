"""Passwords in Secrets Manager, in the JSON format of RDS."""

from __future__ import annotations

import json
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
    """The secret exists, but no version of it is ``AWSCURRENT`` yet."""


@dataclass(frozen=True, slots=True)
class Login:
    """The content of a secret: ``username``, ``password``, and optionally the database that they are for."""

    password: str = field(repr=False)
    username: str | None = None
    host: str | None = None
    port: int | None = None
    dbname: str | None = None


def get(aws: Aws, secret: str) -> Login:
    """Return the current value of a secret (GetSecretValue).

    Args:
        aws: the identity.
        secret: the name or ARN of the secret.

    Raises:
        Error: the secret does not exist, is not readable, or contains no password.
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
        # Without the cause, which would quote the secret.
        raise Error(
            f"secret {secret} does not contain a JSON object with a password",
            hint='use the format of RDS: {"username": "…", "password": "…"}',
        ) from None


def keep_password(
    aws: Aws, secret: str, *, username: str, password: str, version: str, extra: Mapping[str, str], change: Step
) -> tuple[Step, ...]:
    """Return the steps that set a role's password and store it in a secret, without a moment when it is lost.

    The first step stores the password beside the old one (``AWSPENDING``). Then CHANGE sets it. Then it becomes the
    current value (``AWSCURRENT``; the old one becomes ``AWSPREVIOUS``). A secret that does not exist is created; a
    secret without a value gets its first one.

    Args:
        aws: the identity.
        secret: the name or ARN of the secret.
        username: the role.
        password: in plain text; the steps mask it.
        version: the id of the new version of the secret, a UUID.
        extra: other fields of a new secret: ``host``, ``port``, ``dbname``.
        change: sets the password of the role.

    Raises:
        Refused: RDS manages the secret, or it is for another role.
        Error: the secret is not readable, or does not contain a JSON object.
    """
    if secret.startswith("rds!") or ":secret:rds!" in secret:
        raise Refused(
            f"secret {secret} is managed by RDS",
            hint="let RDS rotate it: aws secretsmanager rotate-secret --secret-id …",
        )
    try:
        answer = _current(aws, secret)
    except NotFound:
        return _new_secret(secret, {"engine": "postgres", "username": username, "password": password, **extra}), change
    except NoValue:
        answer = {"SecretString": json.dumps({"engine": "postgres", **extra})}
    try:
        fields: dict[str, Any] = dict(json.loads(answer["SecretString"]))
    except (LookupError, ValueError, TypeError, RecursionError):
        # Without the cause, which would quote the secret.
        raise Error(
            f"secret {secret} does not contain a JSON object; it was not changed",
            hint='use the format of RDS: {"username": "…", "password": "…"}',
        ) from None
    if fields.get("username", username) != username:
        raise Refused(
            f"secret {secret} is for role {fields['username']}, not {username}", hint="use a secret of this role"
        )
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
            f"store the new password in secret {secret} as AWSPENDING",
            "secretsmanager",
            "PutSecretValue",
            put,
            secrets=frozenset({"SecretString"}),
            reason="so that the password is not lost if the next step fails",
            effect="change",
        ),
        change,
        AwsCall(
            f"make it the current value of secret {secret}",
            "secretsmanager",
            "UpdateSecretVersionStage",
            move,
            # AWS makes the first version of a secret AWSCURRENT.
            needed=None if "VersionId" in answer else partial(_is_not_current, secret=secret, version=version),
            condition="" if "VersionId" in answer else "unless it is the current value already",
            effect="change",
        ),
    )


def _current(aws: Aws, secret: str) -> dict[str, Any]:
    # This is the default stage on AWS; an emulator may return another version after a rotation.
    request = {"SecretId": secret, "VersionStage": "AWSCURRENT"}
    try:
        return session.call(aws, "secretsmanager", "GetSecretValue", request)
    except NotAvailable as exc:
        if exc.aws_code != "ResourceNotFoundException":
            raise
        put = "aws secretsmanager put-secret-value --secret-id {} --secret-string file://secret.json"
        raise NoValue(
            f"secret {secret} has no value yet",
            hint=f"wait until it has one (AWSCURRENT), or set one: {shell(put, secret)}",
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
        f"create secret {secret}",
        "secretsmanager",
        "CreateSecret",
        request,
        secrets=frozenset({"SecretString"}),
        effect="create",
    )
