"""The meaning of the statuses of DB clusters and DB instances, for commands, waits and checks.

Sources: RDS user guide, "Viewing instance status"; Aurora user guide, "Viewing cluster status". A status that is not
listed here is temporary or unknown: waits continue.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from rdsrepl.text.commands import shell

AVAILABLE: Final = "available"
REBOOTING: Final = "rebooting"
DELETING: Final = "deleting"
# The server works as usual; storage-optimization can last for more than a day.
USABLE: Final = frozenset([AVAILABLE, "storage-config-upgrade", "storage-initialization", "storage-optimization"])

_START: Final = "aws rds start-db-{kind} --db-{kind}-identifier {id}"
_REBOOT: Final = "then reboot it: aws rds reboot-db-{kind} --db-{kind}-identifier {id}"
_RESTORE: Final = "restore a backup under another name: aws rds restore-db-{kind}-to-point-in-time"
# These statuses need a repair. The remedy for each; {kind} is `cluster` or `instance`, {id} its identifier.
_REMEDIES: Final[Mapping[str, str]] = {
    "cloning-failed": "delete it and clone again",
    DELETING: "wait until it is deleted; create a new one if you need it",
    "failed": f"RDS could not recover it; {_RESTORE}",
    "inaccessible-encryption-credentials": f"RDS cannot use its KMS key; enable the key and {_RESTORE}",
    "inaccessible-encryption-credentials-recoverable": f"enable its KMS key, then start it: {_START}",
    "incompatible-create": "delete it and create it again with options that its engine and class support",
    "incompatible-network": "correct its VPC: subnets with free addresses, DNS resolution, its security groups",
    "incompatible-option-group": f"correct its option group, {_REBOOT}",
    "incompatible-parameters": "set values that its class and version accept (rdsrepl param-group diff GROUP), "
    + _REBOOT,
    "incompatible-restore": "restore again from another point in time, then delete it",
    "insufficient-capacity": "AWS has no capacity for its class in its zone: delete it and create it again with "
    "another class or zone, or later",
    "migration-failed": "delete it and migrate again",
    "restore-error": "restore again from another point in time or snapshot, then delete it",
    "stopped": f"start it: {_START}",
    "storage-full": "increase its storage: aws rds modify-db-{kind} --db-{kind}-identifier {id} --apply-immediately "
    "--allocated-storage GIB",
}


def is_usable(status: str) -> bool:
    """Return whether a cluster or instance with this status serves queries and accepts changes."""
    return status in USABLE


def is_dead_end(status: str) -> bool:
    """Return whether a status needs a repair."""
    return status in _REMEDIES


def remedy(status: str, kind: str, identifier: str) -> str:
    """Return the remedy for a status that needs a repair, with commands to paste.

    Args:
        status: a status for which ``is_dead_end`` is true.
        kind: ``cluster`` or ``instance``.
        identifier: its identifier.
    """
    advice = _REMEDIES[status].replace("{kind}", kind)
    if "{id}" in advice:
        advice = shell(advice.replace("{id}", "{}"), identifier)
    events = shell(f"aws rds describe-events --source-type db-{kind} --source-identifier {{}}", identifier)
    return f"{advice}; see its events: {events}"
