"""A server and its slots as they were read at one moment."""

from __future__ import annotations

from dataclasses import dataclass

from rdsrepl.postgres.slots import Slot
from rdsrepl.postgres.wal import Wal


@dataclass(frozen=True, slots=True)
class ServerSlots:
    """A server and its slots at one moment.

    Attributes:
        label: the server's name in messages: ``instance orders-replica``.
        wal: its position, and what identifies it.
        slots: all slots.
        is_aurora: whether it is Aurora.
        wal_level: its ``wal_level``.
    """

    label: str
    wal: Wal
    slots: tuple[Slot, ...]
    is_aurora: bool = False
    wal_level: str = "logical"

    @property
    def role(self) -> str:
        """``primary`` or ``standby``."""
        return "standby" if self.wal.in_recovery else "primary"

    def slot(self, name: str) -> Slot | None:
        """Return the slot of this name; None if there is none."""
        return next((slot for slot in self.slots if slot.slot_name == name), None)
