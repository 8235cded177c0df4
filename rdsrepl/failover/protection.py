"""Whether a slot survives a failover, as far as the list of slots of one server shows it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rdsrepl.postgres import versions
from rdsrepl.postgres.slots import Slot


def with_protection(
    slots: Sequence[Slot], *, version: int, in_recovery: bool, copied_by_aws: bool | None = False
) -> list[Slot]:
    """Return slots with ``protected`` set where it is known.

    A failover slot of a primary is protected while a standby streams through a physical slot; ``failover check`` looks
    at that standby, too. Whether a slot of 16 has a pair on the standby is not known here. On a standby a slot survives
    the promotion, except a copy that is not ready.

    Args:
        slots: all slots of one server.
        version: its major version.
        in_recovery: whether it is a standby.
        copied_by_aws: whether it belongs to a cluster whose slots AWS keeps; None where that is not known.
    """
    has_standby = any(slot.slot_type == "physical" and slot.active for slot in slots)

    def protected(slot: Slot) -> bool | None:
        is_copy = bool(slot.synced) and in_recovery
        if slot.slot_type != "logical" or (slot.temporary and not is_copy):
            return None
        if slot.is_lost:
            return False
        if copied_by_aws:
            return True
        if in_recovery:
            return not slot.temporary
        if version < versions.FAILOVER_SLOTS_SINCE:
            return None
        if slot.failover:
            return has_standby
        return None if copied_by_aws is None else False

    return [replace(slot, protected=protected(slot)) for slot in slots]
