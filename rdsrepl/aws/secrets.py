"""Passwords from Secrets Manager, in the JSON shape RDS gives them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from rdsrepl.aws import session
from rdsrepl.config import Aws
from rdsrepl.errors import Error


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
    answer = session.call(aws, "secretsmanager", "GetSecretValue", {"SecretId": secret})
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
    except (KeyError, ValueError, TypeError, AttributeError):
        # Not as the cause: it would quote the secret.
        raise Error(
            f"secret {secret} holds no JSON object with a password",
            hint='RDS\'s shape is {"username": "…", "password": "…"}',
        ) from None
