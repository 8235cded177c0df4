"""Switches for behaviour that RDS shows only sometimes: ``POST /_sandbox/consistency``.

Some delay the control plane: describe calls that lag, new resources that are not found yet, calls that are refused for
some seconds. Others give less common answers: statuses, version suffixes, other engines, another spelling of formulas.
All switches are off by default.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final

from rdsrepl.sandbox.api.types import ResourceKind, Result

Described = Mapping[tuple[ResourceKind, str], Result]

# Members that differ from one describe call to the next although the resource did not change.
_ALWAYS_CHANGING: Final = frozenset({"LatestRestorableTime"})


@dataclass(frozen=True, slots=True)
class Switches:
    """The switches.

    Attributes:
        lag_seconds: how long describe calls show a changed cluster or instance as it was before the change.
        not_found_seconds: how long a new cluster or instance is not found.
        busy_seconds: how long calls that change a cluster or instance are refused, because of an operation in progress,
            after its status became ``available``. Also how long a changed parameter group, or one whose last user was
            deleted, cannot be reset or deleted.
        hide_pending: describe servers that need a reboot for their parameter groups as ``in-sync``.
        other_engines: show clusters and instances of other engines (``other_engines.py``).
        printed_formulas: show default values that are formulas without braces around their variables.
        version_suffix: appended to every version: ``-rds.20260224``, as for Extended Support.
        statuses: the status to show for a cluster or instance, by identifier.
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
        """Read the switches from JSON; those that are missing are off.

        Raises:
            ValueError: a switch does not exist, or its value is not valid.
        """
        if unknown := sorted(given.keys() - {field.name for field in fields(cls)}):
            raise ValueError(f"unknown switch: {', '.join(unknown)}")
        for name, value in given.items():
            if name.endswith("_seconds"):
                if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 600:
                    raise ValueError(f"{name} must be a number of seconds between 0 and 600")
            elif name == "statuses":
                if not isinstance(value, dict) or not all(isinstance(status, str) for status in value.values()):
                    raise ValueError("statuses must be an object: the status by identifier")
            elif not isinstance(value, str if name == "version_suffix" else bool):
                raise ValueError(f"{name} must be {'a string' if name == 'version_suffix' else 'true or false'}")
        return cls(**given)

    def apply(self, identifier: str, described: Result | None) -> Result | None:
        """Return the description of a cluster or an instance, changed as the switches say."""
        if described is None:
            return None
        shown = dict(described)
        if self.version_suffix:
            shown["EngineVersion"] += self.version_suffix
        if identifier in self.statuses:
            shown["DBInstanceStatus" if "DBInstanceStatus" in shown else "Status"] = self.statuses[identifier]
        return shown


class Consistency:
    """What describe calls in one region show, and which resources are busy."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.switches = Switches()
        self._clock = clock
        self._lock = threading.Lock()
        self._shown: dict[tuple[ResourceKind, str], tuple[Result | None, float]] = {}
        self._busy_until: dict[tuple[str, str], float] = {}

    def configure(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Set the switches from JSON, end all current delays, and return the switches.

        Raises:
            ValueError: a switch does not exist, or its value is not valid.
        """
        delays = Switches.parse(given)
        with self._lock:
            self.switches = delays
            self._shown.clear()
            self._busy_until.clear()
        return asdict(delays)

    def changed(self, before: Described, after: Described) -> None:
        """Delay what a call changed: describe calls show it as it was before, for some time.

        This includes the cluster of a changed member, because its description lists the members.

        Args:
            before: the description of every resource before the call, by kind and identifier.
            after: the same after the call.
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
        """Return the description of a resource that a describe call shows; None when it is not found.

        Args:
            kind: the kind of the resource.
            identifier: the identifier of the resource.
            fresh: its current description; None when it does not exist.
        """
        with self._lock:
            shown = self._shown.get((kind, identifier))
            is_late = shown is not None and shown[1] > self._clock()
            return self.switches.apply(identifier, shown[0] if shown is not None and is_late else fresh)

    def known(self, kind: ResourceKind) -> set[str]:
        """Return the identifiers of resources that may be shown as they were before."""
        with self._lock:
            return {identifier for of, identifier in self._shown if of == kind}

    def mark_busy(self, kind: str, identifiers: Iterable[str]) -> None:
        """Make resources busy for ``busy_seconds``."""
        with self._lock:
            until = self._clock() + self.switches.busy_seconds
            self._busy_until |= {(kind, identifier): until for identifier in identifiers}

    def is_busy(self, kind: str, identifier: str) -> bool:
        """Return whether a resource is busy."""
        with self._lock:
            return self._busy_until.get((kind, identifier), 0.0) > self._clock()


def _comparable(described: Result | None) -> Result | None:
    return (
        None if described is None else {key: value for key, value in described.items() if key not in _ALWAYS_CHANGING}
    )
