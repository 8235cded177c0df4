"""What all ``Describe`` operations share: pages and filters."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Collection, Mapping
from typing import Final

from rdsrepl.sandbox.api.faults import fault
from rdsrepl.sandbox.api.types import Parameters, Result

MIN_RECORDS: Final = 20
MAX_RECORDS: Final = 100


def page(records: Mapping[str, Result], p: Parameters) -> tuple[list[Result], str | None]:
    """Return one page, and the marker of the next one if there is one.

    Records stay in their places when others come and go between two pages.

    Args:
        records: by a key that orders them.
        p: the request's parameters; ``MaxRecords`` and ``Marker`` count.

    Raises:
        Fault: ``MaxRecords`` is out of its range, or the marker is none of ours.
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
    """Say whether a record passes the request's ``Filters``.

    Args:
        p: the request's parameters.
        fields: what each filter looks at: one value, or several of which one is enough.

    Raises:
        Fault: there is no such filter.
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
