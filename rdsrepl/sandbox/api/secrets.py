"""Stores master passwords that RDS manages in the Secrets Manager of moto, which runs in this process."""

from __future__ import annotations

import json
import random
import string
from typing import Any, Final

from rdsrepl.sandbox.api.api_errors import fault
from rdsrepl.sandbox.api.types import ACCOUNT

_LENGTH: Final = 28


def generate() -> str:
    """Return a new password of letters and digits, which needs no quoting."""
    return "".join(random.SystemRandom().choices(string.ascii_letters + string.digits, k=_LENGTH))


def put(region: str, resource_id: str, user: str, password: str) -> str:
    """Store a password as RDS does, under a name with the resource id; return the ARN of the secret.

    Raises:
        Fault: moto is not installed.
    """
    kind, _, rest = resource_id.partition("-")
    name = f"rds!{kind}-{rest.lower()}"
    backend = _backend(region)
    if name in backend.secrets:
        arn = str(backend.secrets[name].arn)
        backend.put_secret_value(arn, _secret_string(user, password), None, "", ["AWSCURRENT"])
        return arn
    return _create(backend, name, user, password)


def restore(region: str, arn: str, user: str, password: str) -> None:
    """Create a secret of an earlier process again, with the same ARN."""
    backend = _backend(region)
    if arn not in backend.secrets:
        name = arn.rpartition(":")[2].rpartition("-")[0]
        _create(backend, name, user, password)
        backend.secrets[name].arn = arn


def delete(region: str, arn: str) -> None:
    """Delete a secret if it exists."""
    backend = _backend(region)
    if arn in backend.secrets:
        backend.delete_secret(arn, None, True)


def _create(backend: Any, name: str, user: str, password: str) -> str:
    backend.create_secret(
        name=name,
        secret_string=_secret_string(user, password),
        secret_binary=None,
        description="Secret associated with primary RDS DB resource",
        tags=[],
        kms_key_id=None,
        client_request_token=None,
        replica_regions=[],
        force_overwrite=False,
    )
    return str(backend.secrets[name].arn)


def _secret_string(user: str, password: str) -> str:
    return json.dumps({"username": user, "password": password})


def _backend(region: str) -> Any:
    try:
        from moto.backends import get_backend
    except ImportError as exc:
        raise fault("NotImplemented", "This needs moto: pip install 'rdsrepl[sandbox]'") from exc
    return get_backend("secretsmanager")[ACCOUNT][region]
