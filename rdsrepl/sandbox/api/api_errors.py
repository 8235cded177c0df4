"""The errors of the API, with the codes and HTTP statuses of AWS."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from rdsrepl.sandbox.api import service_model

# Errors of every AWS query service, which no service model lists.
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
    """An error response.

    Attributes:
        code: the code in the response, which can differ from the name of the shape: ``DBParameterGroupNotFound``.
        message: the error message.
        status: the HTTP status.
    """

    def __init__(self, code: str, message: str, status: int = 400) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.status = status


def fault(name: str, message: str) -> Fault:
    """Return the fault of an error shape of the RDS model, or of an error that all services share.

    Args:
        name: ``DBClusterNotFoundFault``, ``DBParameterGroupNotFoundFault`` … or ``InvalidParameterValue`` ….
        message: the error message.

    Raises:
        KeyError: the error does not exist.
    """
    if name in _COMMON:
        return Fault(name, message, _COMMON[name])
    code, status = service_model.errors()[name]
    return Fault(code, message, status)
