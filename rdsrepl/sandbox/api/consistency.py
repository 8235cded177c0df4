"""What a client of RDS meets only now and then, as switches: ``POST /_sandbox/consistency``.

Delays of the control plane, each with its length: describes that lag behind, resources that are not found yet, calls
that are refused for a moment. And answers that are less common: statuses, versions with a suffix, other engines in the
account, formulas in another spelling. All switches are off until somebody sets them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final

from rdsrepl.sandbox.api.types import ResourceKind, Result

Described = Mapping[tuple[ResourceKind, str], Result]

# Differs from one describe to the next although nothing was changed.
_ALWAYS_CHANGING: Final = frozenset({"LatestRestorableTime"})


@dataclass(frozen=True, slots=True)
class Switches:
    """What is delayed, and for how long.

    Attributes:
        lag_seconds: after a call changed a cluster or an instance, describes show it as it was before the call.
        not_found_seconds: a new cluster or instance is not found.
        busy_seconds: after a cluster's or instance's status has become ``available`` again, calls that change it are
            refused because of an operation in progress; so are the reset and the deletion of a parameter group after
            it was changed, or after its last user was deleted.
        hide_pending: servers that need a reboot for their parameter groups are described as ``in-sync``.
        other_engines: clusters and instances of other engines are in the account (``other_engines.py``).
        printed_formulas: default values that are formulas have no braces around their variables.
        version_suffix: every version ends with it: ``-rds.20260224``, as those of Extended Support do.
        statuses: clusters and instances, by identifier, that are described with this status.
    """

    lag_seconds: float = 0.0
    not_found_seconds: float = 0.0
    busy_seconds: float = 0.0
    hide_pending: bool = False
    other_engines: bool = False
    printed_formulas: bool = False
    version_suffix: str = ""
    statuses: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, given: Mapping[str, Any]) -> Switches:
        """Read the switches from JSON; what is not named is off.

        Raises:
            ValueError: a name or a value is wrong.
        """
        if unknown := sorted(given.keys() - {field.name for field in fields(cls)}):
            raise ValueError(f"there is no switch {', '.join(unknown)}")
        for name, value in given.items():
            if name.endswith("_seconds"):
                if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 600:
                    raise ValueError(f"{name} is a number of seconds between 0 and 600")
            elif name == "statuses":
                if not isinstance(value, dict) or not all(isinstance(status, str) for status in value.values()):
                    raise ValueError("statuses is an object: the status by identifier")
            elif not isinstance(value, str if name == "version_suffix" else bool):
                raise ValueError(f"the switch {name} is {'a string' if name == 'version_suffix' else 'true or false'}")
        return cls(**given)

    def apply(self, identifier: str, described: Result | None) -> Result | None:
        """Return what a describe shows of a cluster or an instance with these switches."""
        if described is None:
            return None
        shown = dict(described)
        if self.version_suffix:
            shown["EngineVersion"] += self.version_suffix
        if identifier in self.statuses:
            shown["DBInstanceStatus" if "DBInstanceStatus" in shown else "Status"] = self.statuses[identifier]
        return shown


class Consistency:
    """What one region's describes show, and which resources are busy."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.switches = Switches()
        self._clock = clock
        self._lock = threading.Lock()
        self._shown: dict[tuple[ResourceKind, str], tuple[Result | None, float]] = {}
        self._busy_until: dict[tuple[str, str], float] = {}

    def configure(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Set the switches from JSON, forget what is delayed now, and return them.

        Raises:
            ValueError: a name or a value is wrong.
        """
        delays = Switches.parse(given)
        with self._lock:
            self.switches = delays
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
        touched = {key for key in {*before, *after} if _comparable(before.get(key)) != _comparable(after.get(key))}
        for kind, identifier in tuple(touched):
            described = after.get((kind, identifier)) or before[kind, identifier]
            if kind == "instance" and (cluster := described.get("DBClusterIdentifier")):
                touched.add(("cluster", cluster))
        with self._lock:
            now = self._clock()
            for key in touched:
                old = before.get(key)
                seconds = self.switches.not_found_seconds if old is None else self.switches.lag_seconds
                shown = self._shown.get(key)
                if shown is not None and shown[1] > now:
                    old = shown[0]
                self._shown[key] = (old, now + seconds)

    def shown(self, kind: ResourceKind, identifier: str, fresh: Result | None) -> Result | None:
        """Return what a describe shows of a resource; None is not found.

        Args:
            kind: the resource's.
            identifier: the resource's.
            fresh: as it is; None where there is none.
        """
        with self._lock:
            shown = self._shown.get((kind, identifier))
            is_late = shown is not None and shown[1] > self._clock()
            return self.switches.apply(identifier, shown[0] if shown is not None and is_late else fresh)

    def known(self, kind: ResourceKind) -> set[str]:
        """Return the identifiers of which something else than what is may be shown."""
        with self._lock:
            return {identifier for of, identifier in self._shown if of == kind}

    def mark_busy(self, kind: str, identifiers: Iterable[str]) -> None:
        """Note that something has just ended on resources, which stay busy for a while."""
        with self._lock:
            until = self._clock() + self.switches.busy_seconds
            self._busy_until |= {(kind, identifier): until for identifier in identifiers}

    def is_busy(self, kind: str, identifier: str) -> bool:
        """Say whether a resource is still busy."""
        with self._lock:
            return self._busy_until.get((kind, identifier), 0.0) > self._clock()


def _comparable(described: Result | None) -> Result | None:
    return (
        None if described is None else {key: value for key, value in described.items() if key not in _ALWAYS_CHANGING}
    )
