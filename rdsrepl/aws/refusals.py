"""Decide which refusals of AWS are temporary, so that the call can be retried.

RDS refuses calls on a busy resource: during another operation or a backup, sometimes although the status already is
``available``, and on a parameter group while its former users are being deleted. The same error codes also report
permanent states; the error text or the status of the resource distinguishes them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from rdsrepl.aws import session, statuses
from rdsrepl.config import Aws
from rdsrepl.errors import Error, NotAvailable, NotFound, Throttled

# Without the suffix "Fault", which only some codes have.
BUSY: Final = frozenset(["InvalidDBInstanceState", "InvalidDBClusterState", "InvalidDBParameterGroupState"])
_PERMANENT: Final = re.compile(
    r"stopp(ed|ing)\b|\bfailed\b|incompatible|inaccessible|insufficient|restore-error|storage-full"
    r"|not (enabled|supported)|cannot have|is not a |is a member of|\bdefault\b",
    re.IGNORECASE,
)
_STATUSES: Final = (
    ("DBInstanceIdentifier", "DescribeDBInstances", "DBInstances", "DBInstanceStatus", "instance"),
    ("DBClusterIdentifier", "DescribeDBClusters", "DBClusters", "Status", "cluster"),
)


def is_busy(error: Error) -> bool:
    """Return whether AWS refused because a resource is busy, or because of too many calls."""
    if isinstance(error, Throttled):
        return error.aws_code != "LimitExceededException"
    code = (error.aws_code or "").removesuffix("Fault")
    return code in BUSY and _PERMANENT.search(error.message) is None


def is_missing(error: Error) -> bool:
    """Return whether AWS does not know an object that a call names."""
    return isinstance(error, NotFound) and error.aws_code is not None


def names(parameters: Mapping[str, Any]) -> frozenset[str]:
    """Return the identifiers in a request: clusters, instances, parameter groups."""
    return frozenset(
        value.lower()
        for key, value in parameters.items()
        if isinstance(value, str) and key.endswith(("Identifier", "GroupName"))
    )


def check_status(aws: Aws, operation: str, parameters: Mapping[str, Any]) -> None:
    """Check that the resource of a refused call can become available.

    Args:
        aws: the identity.
        operation: of the refused call; AWS accepts a deletion in nearly every status.
        parameters: of the refused call.

    Raises:
        NotAvailable: the status needs a repair.
    """
    if operation.startswith("Delete"):
        return
    for parameter, describe, key, field, kind in _STATUSES:
        identifier = parameters.get(parameter)
        if identifier is None:
            continue
        try:
            rows = session.call(aws, "rds", describe, {parameter: identifier})[key]
        except Error:
            return
        status = rows[0].get(field, "") if rows else ""
        if statuses.is_dead_end(status):
            raise NotAvailable(
                f"{operation}: {kind} {identifier} is {status}, which needs a repair",
                hint=statuses.remedy(status, kind, identifier),
            )
