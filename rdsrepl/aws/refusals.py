"""Which of AWS's refusals pass by themselves, so that the same call is worth another attempt a little later.

RDS refuses calls on what is busy: after another operation, during a backup, sometimes although the status is
``available`` already, and a parameter group's while its former users are still being deleted. The same error codes
stand for states that never pass, which the text of the refusal or the resource's status tells apart.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from rdsrepl.aws import session, statuses
from rdsrepl.config import Aws
from rdsrepl.errors import Error, NotAvailable, NotFound, Throttled

# Without the suffix "Fault", which some have on the wire and others have not.
BUSY: Final = frozenset(["InvalidDBInstanceState", "InvalidDBClusterState", "InvalidDBParameterGroupState"])
_NEVER: Final = re.compile(
    r"stopp(ed|ing)\b|\bfailed\b|incompatible|inaccessible|insufficient|restore-error|storage-full"
    r"|not (enabled|supported)|cannot have|is not a |is a member of|\bdefault\b",
    re.IGNORECASE,
)
_STATUSES: Final = (
    ("DBInstanceIdentifier", "DescribeDBInstances", "DBInstances", "DBInstanceStatus", "instance"),
    ("DBClusterIdentifier", "DescribeDBClusters", "DBClusters", "Status", "cluster"),
)


def is_busy(error: Error) -> bool:
    """Say whether AWS refused because something is busy, or because there were too many calls."""
    if isinstance(error, Throttled):
        return error.aws_code != "LimitExceededException"
    code = (error.aws_code or "").removesuffix("Fault")
    return code in BUSY and _NEVER.search(error.message) is None


def is_missing(error: Error) -> bool:
    """Say whether AWS does not know what a call or a describe names."""
    return isinstance(error, NotFound) and error.aws_code is not None


def names(parameters: Mapping[str, Any]) -> frozenset[str]:
    """Return what a request names: clusters, instances, parameter groups."""
    return frozenset(
        value.lower()
        for key, value in parameters.items()
        if isinstance(value, str) and key.endswith(("Identifier", "GroupName"))
    )


def check_status(aws: Aws, operation: str, parameters: Mapping[str, Any]) -> None:
    """Look whether what a refused call works on can become available at all.

    Args:
        aws: the identity.
        operation: the refused call's; a deletion is accepted in nearly every status.
        parameters: the refused call's.

    Raises:
        NotAvailable: its status is one that does not pass.
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
                f"{operation}: {identifier} is {status}, which does not pass by itself",
                hint=statuses.remedy(status, kind, identifier),
            )
