"""How the slots stand: one look at the server, what earlier looks saw, and the room there is, for ``retention``.

Three statements, however many slots there are. Each look is added to the history (``observations``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rdsrepl import observations, retention
from rdsrepl.observations import Observation
from rdsrepl.postgres.slots import Slot
from rdsrepl.postgres.wal import Wal
from rdsrepl.retention import Rate, Retention, Storage, Thresholds

if TYPE_CHECKING:
    from rdsrepl.postgres.connection import Connection


@dataclass(frozen=True, slots=True)
class Standing:
    """One look.

    Attributes:
        server: what identifies the server in the history; a promoted standby is the same one.
        history: what was seen before, oldest first, without this look.
        storage, wal_rate: what is known from elsewhere.
        notes: what could not be found out, and why.
    """

    server: str
    wal: Wal
    slots: tuple[Slot, ...]
    history: tuple[Observation, ...] = ()
    storage: Storage | None = None
    wal_rate: Rate | None = None
    notes: tuple[str, ...] = ()

    def assessed(self, *, warn: Thresholds = retention.WARN, critical: Thresholds = retention.CRITICAL) -> Retention:
        """Return what every slot holds and what comes of it."""
        return retention.assess(
            self.wal,
            self.slots,
            self.history,
            storage=self.storage,
            wal_rate=self.wal_rate,
            warn=warn,
            critical=critical,
        )


def look(
    conn: Connection, *, storage: Storage | None = None, wal_rate: Rate | None = None, notes: Sequence[str] = ()
) -> Standing:
    """Look at the server once, and remember it."""
    from rdsrepl.postgres import slots, wal

    server = wal.server_identity(conn)
    now = wal.get(conn)
    rows = tuple(slots.ls(conn))
    past = observations.history(server)
    observations.record(server, retention.observe(now, rows))
    return Standing(server, now, rows, past, storage, wal_rate, tuple(notes))
