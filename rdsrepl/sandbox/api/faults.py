"""The errors the API answers with: their codes and HTTP statuses are those of AWS."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from rdsrepl.sandbox.api import service_model

# What every query service of AWS may answer, and no service model lists.
_COMMON: Final[Mapping[str, int]] = {
    "AccessDenied": 403,
    "ExpiredToken": 403,
    "InternalFailure": 500,
    "InvalidAction": 400,
    "InvalidParameterCombination": 400,
    "InvalidParameterValue": 400,
    "MalformedInput": 400,
    "MalformedQueryString": 404,
    "MissingAuthenticationToken": 403,
    "MissingParameter": 400,
    "NotImplemented": 501,
    "Throttling": 400,
    "ValidationError": 400,
}


class Fault(Exception):
    """An answer that is an error.

    Attributes:
        code: the code on the wire, which is not always the shape's name: ``DBParameterGroupNotFound``.
        message: what the user reads.
        status: HTTP's.
    """

    def __init__(self, code: str, message: str, status: int = 400) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.status = status


def fault(name: str, message: str) -> Fault:
    """Return the fault of an error shape of RDS's model, or of one of the codes that are common to all services.

    Args:
        name: ``DBClusterNotFoundFault``, ``DBParameterGroupNotFoundFault`` … or ``InvalidParameterValue`` ….
        message: what the user reads.

    Raises:
        KeyError: AWS has no such error.
    """
    if name in _COMMON:
        return Fault(name, message, _COMMON[name])
    code, status = service_model.errors()[name]
    return Fault(code, message, status)
