"""Tags of resources, by their ARNs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from rdsrepl.sandbox.api.faults import Fault, fault
from rdsrepl.sandbox.api.service import Kind, Parameters, Result, Service, operation
from rdsrepl.sandbox.api.store import Store

MOST: Final = 50
_SECTION: Final = "tags"
# What an ARN's sixth word names: the store's section, and the fault when it is not there.
_RECORDS: Final[Mapping[str, tuple[str, str]]] = {
    "cluster": ("clusters", "DBClusterNotFoundFault"),
    "db": ("instances", "DBInstanceNotFoundFault"),
    "cluster-snapshot": ("snapshots", "DBClusterSnapshotNotFoundFault"),
    "snapshot": ("snapshots", "DBSnapshotNotFoundFault"),
    "subgrp": ("subnet_groups", "DBSubnetGroupNotFoundFault"),
}
_GROUPS: Final[Mapping[str, Kind]] = {"pg": "instance", "cluster-pg": "cluster"}


def put(store: Store, arn: str, given: Iterable[Mapping[str, Any]]) -> None:
    """Add tags to a resource, over those of the same key; without any this does nothing.

    Raises:
        Fault: a key is not allowed, or there are too many.
    """
    new = checked(given)
    if not new:
        return
    with store.lock:
        section = store.section(_SECTION)
        both = {**section.get(arn, {}), **new}
        if len(both) > MOST:
            raise _too_many()
        section[arn] = both
        store.save()


def checked(given: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Return a request's tags by their keys; whoever makes a resource asks for them before it is there.

    Raises:
        Fault: a key is not allowed, or there are too many.
    """
    new = {str(tag.get("Key", "")): str(tag.get("Value", "")) for tag in given}
    for key in new:
        if not 1 <= len(key) <= 128 or key.lower().startswith(("aws:", "rds:")):
            raise fault("InvalidParameterValue", f"Invalid tag key: {key}")
    if len(new) > MOST:
        raise _too_many()
    return new


def of(store: Store, arn: str) -> list[Result]:
    """Return a resource's tags as RDS lists them."""
    with store.lock:
        return [{"Key": key, "Value": value} for key, value in sorted(store.section(_SECTION).get(arn, {}).items())]


def drop(store: Store, arn: str) -> None:
    """Forget a resource's tags."""
    with store.lock:
        if store.section(_SECTION).pop(arn, None) is not None:
            store.save()


@operation("ListTagsForResource")
def list_tags(service: Service, p: Parameters) -> Result:
    """Answer with a resource's tags."""
    return {"TagList": of(service.store, _resource(service, p["ResourceName"]))}


@operation("AddTagsToResource")
def add_tags(service: Service, p: Parameters) -> Result:
    """Add tags to a resource."""
    put(service.store, _resource(service, p["ResourceName"]), p["Tags"])
    return {}


@operation("RemoveTagsFromResource")
def remove_tags(service: Service, p: Parameters) -> Result:
    """Remove tags of a resource by their keys."""
    arn = _resource(service, p["ResourceName"])
    with service.store.lock:
        kept = service.store.section(_SECTION).get(arn, {})
        for key in p["TagKeys"]:
            kept.pop(key, None)
        service.store.save()
    return {}


def _too_many() -> Fault:
    return fault("InvalidParameterValue", f"A resource can have {MOST} tags at the most")


def _resource(service: Service, arn: str) -> str:
    """Return the ARN, in lower case as the records have it, when there is such a resource."""
    words = arn.lower().split(":")
    if len(words) != 7 or words[:3] != ["arn", "aws", "rds"] or words[3:5] != [service.region, service.account]:
        raise fault("InvalidParameterValue", f"Invalid resource name: {arn}")
    kind, name = words[5:]
    if kind in _GROUPS:
        service.groups.get(_GROUPS[kind], name)
    elif kind in _RECORDS:
        section, missing = _RECORDS[kind]
        if name not in service.store.section(section):
            raise fault(missing, f"{name} not found")
    else:
        raise fault("InvalidParameterValue", f"Invalid resource name: {arn}")
    return arn.lower()
