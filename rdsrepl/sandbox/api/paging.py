"""The pages and filters of all describe operations."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Collection, Mapping
from typing import Final

from rdsrepl.sandbox.api.api_errors import fault
from rdsrepl.sandbox.api.types import Parameters, Result

MIN_RECORDS: Final = 20
MAX_RECORDS: Final = 100


def page(records: Mapping[str, Result], p: Parameters) -> tuple[list[Result], str | None]:
    """Return one page of records, and the marker of the next page; None for the last page.

    Records that are created or deleted between two pages do not move the others.

    Args:
        records: the records, by the key that orders them.
        p: the parameters of the request, with ``MaxRecords`` and ``Marker``.

    Raises:
        Fault: ``MaxRecords`` is out of range, or the marker is not valid.
    """
    most = p.get("MaxRecords", MAX_RECORDS)
    if not MIN_RECORDS <= most <= MAX_RECORDS:
        message = f"Invalid value {most} for MaxRecords. Must be between {MIN_RECORDS} and {MAX_RECORDS}"
        raise fault("InvalidParameterValue", message)
    after = _key(p["Marker"]) if p.get("Marker") else ""
    keys = sorted(key for key in records if key > after)
    marker = base64.urlsafe_b64encode(keys[most - 1].encode()).decode() if len(keys) > most else None
    return [records[key] for key in keys[:most]], marker


def matches_filters(p: Parameters, fields: Mapping[str, str | Collection[str]]) -> bool:
    """Return whether a record matches the ``Filters`` of a request.

    Args:
        p: the parameters of the request.
        fields: what each filter compares: one value, or several of which one has to match.

    Raises:
        Fault: a filter does not exist.
    """
    for wanted in p.get("Filters", ()):
        if wanted["Name"] not in fields:
            raise fault("InvalidParameterValue", f"Unrecognized filter name: {wanted['Name']}")
        has = fields[wanted["Name"]]
        if not {has} & set(wanted["Values"]) if isinstance(has, str) else not set(has) & set(wanted["Values"]):
            return False
    return True


def _key(marker: str) -> str:
    try:
        return base64.b64decode(marker, altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError) as exc:
        raise fault("InvalidParameterValue", f"Unable to parse the marker {marker}") from exc
