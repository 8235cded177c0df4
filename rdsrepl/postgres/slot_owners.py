"""Which product a slot belongs to: by its name, its output plugin, or the application that consumes it."""

from __future__ import annotations

import re
from typing import Final

#: the owner of the slots through which a subscription copies its tables for the first time.
TABLE_COPY: Final = "a subscription's table synchronization"
_PLUGINS: Final = {"decoderbufs": "Debezium"}
_NAMES: Final = tuple(
    (re.compile(pattern), owner)
    for pattern, owner in (
        (r"rds", "RDS"),
        (r"[a-z0-9]{16}_\d{8}_[0-9a-f]{8}(_[0-9a-f]{4}){3}_[0-9a-f]{12}\Z", "AWS DMS"),
        (r"awsdms_", "AWS DMS"),
        (r"pgl_", "pglogical"),
        (r"pg_\d+_sync_\d+_\d+\Z", TABLE_COPY),
        (r"(.*_)?(debezium|dbz)(_|\Z)", "Debezium"),
        (r"(.*_)?fivetran", "Fivetran"),
        (r"(.*_)?airbyte", "Airbyte"),
        (r"peerflow_slot_", "PeerDB"),
        (r"materialize_", "Materialize"),
        (r"electric_slot_", "Electric"),
        (r"spk_", "Spock"),
    )
)
# Users often choose the name of a slot, but these products set their own application name.
_APPLICATIONS: Final = {"debezium": "Debezium", "fivetran": "Fivetran", "airbyte": "Airbyte", "peerdb": "PeerDB"}
_APPLICATION: Final = re.compile(rf"(?i)application [^,)]*({'|'.join(_APPLICATIONS)})")


def by_name(slot_name: str, plugin: str | None) -> str | None:
    """Return the product that creates slots with such a name or plugin; None where not known."""
    if plugin in _PLUGINS:
        return _PLUGINS[plugin]
    return next((owner for pattern, owner in _NAMES if pattern.match(slot_name)), None)


def by_consumer(holder: str) -> str | None:
    """Return the product that consumes a slot, from the application in ``Slot.holder``; None where not known."""
    match = _APPLICATION.search(holder)
    return None if match is None else _APPLICATIONS[match[1].lower()]
