"""What the statuses of DB clusters and DB instances mean for whoever waits."""

from __future__ import annotations

from typing import Final

AVAILABLE: Final = "available"
REBOOTING: Final = "rebooting"
DELETING: Final = "deleting"
# None of these becomes `available` by itself (RDS user guide, "DB instance status", "DB cluster status").
DEAD_ENDS: Final = frozenset(
    [
        DELETING,
        "failed",
        "inaccessible-encryption-credentials",
        "inaccessible-encryption-credentials-recoverable",
        "incompatible-create",
        "incompatible-network",
        "incompatible-option-group",
        "incompatible-parameters",
        "incompatible-restore",
        "insufficient-capacity",
        "restore-error",
        "stopped",
    ]
)
