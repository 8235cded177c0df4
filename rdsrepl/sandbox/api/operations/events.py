"""The RDS operation that describes events."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from rdsrepl.sandbox.api import paging
from rdsrepl.sandbox.api.api_errors import fault
from rdsrepl.sandbox.api.service import Service, operation
from rdsrepl.sandbox.api.types import Parameters, Result

_DEFAULT_MINUTES: Final = 60
_SOURCES: Final = ("db-instance", "db-cluster", "db-snapshot", "db-cluster-snapshot", "db-parameter-group")


@operation("DescribeEvents")
def describe_events(service: Service, p: Parameters) -> Result:
    """Return events, oldest first; by default those of the last hour."""
    identifier, source_type = p.get("SourceIdentifier"), p.get("SourceType")
    if source_type not in (None, *_SOURCES):
        raise fault("InvalidParameterValue", f"Invalid source type: {source_type}")
    if identifier is not None and source_type is None:
        raise fault("InvalidParameterCombination", "SourceType is required with SourceIdentifier.")
    until: datetime = p.get("EndTime") or datetime.now(UTC)
    since: datetime = p.get("StartTime") or until - timedelta(minutes=p.get("Duration") or _DEFAULT_MINUTES)
    wanted = set(p.get("EventCategories", ()))
    paging.matches_filters(p, {})
    chosen: dict[str, Result] = {}
    with service.store.lock:
        for key, event in service.store.section("events").items():
            if (
                identifier in (None, event["identifier"])
                and source_type in (None, event["source_type"])
                and since <= datetime.fromisoformat(event["at"]) <= until
                and (not wanted or wanted & set(event["categories"]))
            ):
                chosen[key] = _event_result(service, event)
    page, marker = paging.page(chosen, p)
    return {"Events": page, "Marker": marker}


def _event_result(service: Service, event: Mapping[str, Any]) -> Result:
    kind = "cluster" if event["source_type"] == "db-cluster" else "db"
    return {
        "SourceIdentifier": event["identifier"],
        "SourceType": event["source_type"],
        "Message": event["message"],
        "EventCategories": event["categories"],
        "Date": event["at"],
        "SourceArn": service.arn(kind, event["identifier"]),
    }
