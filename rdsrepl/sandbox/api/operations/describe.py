"""What the descriptions of clusters and of instances share."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Final

from rdsrepl.sandbox.api import other_engines, paging
from rdsrepl.sandbox.api.api_errors import fault
from rdsrepl.sandbox.api.operations.checks import identifier_of
from rdsrepl.sandbox.api.records import Cluster, Instance, ParameterStatus
from rdsrepl.sandbox.api.service import Service
from rdsrepl.sandbox.api.types import Parameters, ResourceKind, Result

HOSTED_ZONE: Final = "Z2R2ITUGPM61AM"
# Members that are the same for every cluster and every instance.
FIXED_MEMBERS: Final[Result] = {
    "PreferredBackupWindow": "03:00-03:30",
    "PreferredMaintenanceWindow": "sun:05:00-sun:05:30",
    "AutoMinorVersionUpgrade": True,
    "CopyTagsToSnapshot": False,
    "NetworkType": "IPV4",
    "VpcSecurityGroups": [{"VpcSecurityGroupId": "sg-0a1b2c3d4e5f60718", "Status": "active"}],
    "TagList": [],
}


def describe(
    service: Service,
    kind: ResourceKind,
    p: Parameters,
    resources: Mapping[str, Result],
    fields: Callable[[Result], Mapping[str, str | Collection[str]]],
) -> tuple[list[Result], str | None]:
    """Return one page of clusters or instances, and the marker of the next page.

    Args:
        service: the API in one region.
        kind: the kind of the resources.
        p: the parameters of the request.
        resources: every resource as it is now, by identifier.
        fields: returns what each filter compares for a described resource.

    Raises:
        Fault: the requested resource does not exist, or the request is not valid.
    """
    noun = f"DB{kind.capitalize()}"
    name = p.get(f"{noun}Identifier")
    others = other_engines.describe_all(service, kind)
    known = {*resources, *service.consistency.known(kind), *others}
    chosen: dict[str, Result] = {}
    for identifier in [identifier_of(name)] if name else known:
        shown = others.get(identifier) or service.consistency.shown(kind, identifier, resources.get(identifier))
        if shown is None:
            if name:
                raise fault(f"{noun}NotFoundFault", f"{noun} {name} not found.")
        elif paging.matches_filters(p, fields(shown)):
            chosen[identifier] = shown
    return paging.page(chosen, p)


def shown_group_status(service: Service, status: ParameterStatus) -> ParameterStatus:
    """Return the status of a parameter group on a server, as it is described."""
    hidden = service.consistency.switches.hide_pending and status == "pending-reboot"
    return "in-sync" if hidden else status


def secret_result(record: Cluster | Instance) -> Result | None:
    """Return the secret with the master password, as RDS describes it."""
    return None if record.secret_arn is None else {"SecretArn": record.secret_arn, "SecretStatus": "active"}
