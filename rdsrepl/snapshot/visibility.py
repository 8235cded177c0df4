"""Which transactions of a stream a server's snapshot sees (manual, section 9.27: ``pg_snapshot``)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from rdsrepl.errors import BadValue

_PATTERN: Final = re.compile(r"([0-9]{1,20}):([0-9]{1,20}):((?:[0-9]{1,20}(?:,[0-9]{1,20})*)?)\Z")
_EPOCH: Final = 1 << 32
_HALF_EPOCH: Final = 1 << 31


@dataclass(frozen=True, slots=True)
class ServerSnapshot:
    """What ``pg_current_snapshot()`` returned on a primary, within the transaction that read rows.

    On a standby this function does not list the transactions in progress: there, compare positions in the WAL.

    Attributes:
        xmin: all transactions before this one had ended; 64 bits, with the epoch.
        xmax: this transaction and all later ones had not ended; 64 bits.
        in_progress: the transactions between the two that had not ended; 64 bits.
    """

    xmin: int
    xmax: int
    in_progress: frozenset[int]

    @classmethod
    def parse(cls, text: str) -> ServerSnapshot:
        """Return the snapshot that the server's text, ``xmin:xmax:xip,xip``, means.

        Raises:
            BadValue: TEXT is not a snapshot.
        """
        match = _PATTERN.match(text)
        if match is None or int(match[1]) > int(match[2]):
            raise BadValue(f"{text!r} is not a snapshot", hint="a snapshot is xmin:xmax:xip, such as 10:20:10,14")
        return cls(int(match[1]), int(match[2]), frozenset(map(int, match[3].split(","))) if match[3] else frozenset())

    def sees(self, xid: int) -> bool:
        """Return whether the snapshot sees the changes of a transaction that committed.

        Args:
            xid: its id as a stream sends it: 32 bits, without the epoch. It is taken as the id that is closest to
                the snapshot's xmax; two ids of one server at one time are never 2**31 transactions apart.
        """
        distance = (xid - self.xmax) % _EPOCH
        if distance < _HALF_EPOCH:
            return False
        whole = self.xmax + distance - _EPOCH
        return whole < self.xmin or whole not in self.in_progress
