"""The control plane's delays: describes that lag behind, resources that are not found yet, refusals for a moment.

RDS is eventually consistent, which a client notices only now and then and then fails on. Here each delay can be
switched on and has a length: ``POST /_sandbox/consistency``. All are off until somebody switches them on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, Literal

Kind = Literal["cluster", "instance"]
# As the output shape has it.
_Result = dict[str, Any]

Described = Mapping[tuple[Kind, str], _Result]

# Differs from one describe to the next although nothing was changed.
_MOVING: Final = frozenset({"LatestRestorableTime"})


@dataclass(frozen=True, slots=True)
class Delays:
    """What is delayed, and for how long.

    Attributes:
        lag_seconds: after a call changed a cluster or an instance, describes show it as it was before the call.
        not_found_seconds: a new cluster or instance is not found.
        busy_seconds: after a cluster's or instance's status has become ``available`` again, calls that change it are
            refused because of an operation in progress; so are the reset and the deletion of a parameter group after
            it was changed, or after its last user was deleted.
        hide_pending: servers that need a reboot for their parameter groups are described as ``in-sync``.
    """

    lag_seconds: float = 0.0
    not_found_seconds: float = 0.0
    busy_seconds: float = 0.0
    hide_pending: bool = False

    @classmethod
    def parse(cls, given: Mapping[str, Any]) -> Delays:
        """Read the switches from JSON; what is not named is off.

        Raises:
            ValueError: a name or a value is wrong.
        """
        if unknown := sorted(given.keys() - {field.name for field in fields(cls)}):
            raise ValueError(f"there is no switch {', '.join(unknown)}")
        hide = given.get("hide_pending", False)
        seconds = {name: value for name, value in given.items() if name != "hide_pending"}
        if not isinstance(hide, bool) or not all(
            isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 600
            for value in seconds.values()
        ):
            raise ValueError("hide_pending is true or false, the others are seconds between 0 and 600")
        return cls(**seconds, hide_pending=hide)


class Consistency:
    """What one region's describes show, and which resources are busy."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.delays = Delays()
        self._clock = clock
        self._lock = threading.Lock()
        self._shown: dict[tuple[Kind, str], tuple[_Result | None, float]] = {}
        self._busy_until: dict[tuple[str, str], float] = {}

    def configure(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Set the switches from JSON, forget what is delayed now, and return them.

        Raises:
            ValueError: a name or a value is wrong.
        """
        delays = Delays.parse(given)
        with self._lock:
            self.delays = delays
            self._shown.clear()
            self._busy_until.clear()
        return asdict(delays)

    def changed(self, before: Described, after: Described) -> None:
        """Note what a call has changed: until its time is over it is shown as it was before.

        A cluster whose member was changed is shown as before, too: the list of members is its own.

        Args:
            before: every resource as described before the call, by kind and identifier.
            after: the same after it.
        """
        touched = {key for key in {*before, *after} if _still(before.get(key)) != _still(after.get(key))}
        for kind, identifier in tuple(touched):
            described = after.get((kind, identifier)) or before[kind, identifier]
            if kind == "instance" and (cluster := described.get("DBClusterIdentifier")):
                touched.add(("cluster", cluster))
        with self._lock:
            now = self._clock()
            for key in touched:
                old = before.get(key)
                seconds = self.delays.not_found_seconds if old is None else self.delays.lag_seconds
                shown = self._shown.get(key)
                if shown is not None and shown[1] > now:
                    old = shown[0]
                self._shown[key] = (old, now + seconds)

    def view(self, kind: Kind, identifier: str, fresh: _Result | None) -> _Result | None:
        """Return what a describe shows of a resource; None is not found.

        Args:
            kind: the resource's.
            identifier: the resource's.
            fresh: as it is; None where there is none.
        """
        with self._lock:
            shown = self._shown.get((kind, identifier))
            if shown is None or shown[1] <= self._clock():
                return fresh
            return shown[0]

    def known(self, kind: Kind) -> set[str]:
        """Return the identifiers of which something else than what is may be shown."""
        with self._lock:
            return {identifier for of, identifier in self._shown if of == kind}

    def settled(self, kind: str, identifiers: Iterable[str]) -> None:
        """Note that something has just ended on resources, which stay busy for a while."""
        with self._lock:
            until = self._clock() + self.delays.busy_seconds
            self._busy_until |= {(kind, identifier): until for identifier in identifiers}

    def is_busy(self, kind: str, identifier: str) -> bool:
        """Say whether a resource is still busy."""
        with self._lock:
            return self._busy_until.get((kind, identifier), 0.0) > self._clock()


def _still(described: _Result | None) -> _Result | None:
    return None if described is None else {key: value for key, value in described.items() if key not in _MOVING}
