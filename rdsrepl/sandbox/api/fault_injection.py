"""Faults on demand: whoever tests a client says which calls shall fail, how, and how often."""

from __future__ import annotations

import threading
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Final

from rdsrepl.sandbox.api.faults import Fault
from rdsrepl.sandbox.api.request import Call

_ANY: Final = "*"
# Under which a client knows them, and under which it signs.
_SIGNED_AS: Final = {"cloudwatch": "monitoring"}


@dataclass(frozen=True, slots=True)
class FaultRule:
    """Calls that fail.

    Attributes:
        service: ``rds``, ``kinesis``, ``secretsmanager``, ``cloudwatch``; ``*`` is any.
        operation: ``RebootDBCluster``; ``*`` is any.
        code: the error's: ``Throttling``.
        status: HTTP's.
        message: the error's.
        times: how many calls are still to fail; None is all that come.
    """

    service: str
    code: str
    operation: str = _ANY
    status: int = 400
    message: str = "Rate exceeded"
    times: int | None = 1

    @classmethod
    def parse(cls, given: object) -> FaultRule:
        """Read a rule from JSON.

        Raises:
            ValueError: it is none.
        """
        if not isinstance(given, dict):
            raise ValueError("a fault is an object with service, operation, code, status, message and times")
        if unknown := sorted(given.keys() - {field.name for field in fields(cls)}):
            raise ValueError(f"a fault has no {', '.join(map(str, unknown))}")
        if missing := sorted({"service", "code"} - given.keys()):
            raise ValueError(f"a fault needs {', '.join(missing)}")
        texts = ("service", "code", "operation", "message")
        if not all(isinstance(given.get(name, ""), str) for name in texts):
            raise ValueError(f"{', '.join(texts)} are strings")
        rule = cls(**given)
        if not isinstance(rule.status, int) or not 400 <= rule.status <= 599:
            raise ValueError("status is between 400 and 599")
        if rule.times is not None and (not isinstance(rule.times, int) or rule.times < 1):
            raise ValueError("times is at least 1, or null for always")
        return replace(rule, service=_SIGNED_AS.get(rule.service, rule.service))

    def covers(self, call: Call) -> bool:
        """Say whether the call is to fail."""
        return self.service in (_ANY, call.service) and self.operation in (_ANY, call.operation)


class FaultRules:
    """The rules that are in force, first come first served."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rules: list[FaultRule] = []

    def add(self, given: object) -> None:
        """Add one rule or a list of them, from JSON.

        Raises:
            ValueError: one is none; then nothing is added.
        """
        rules = [FaultRule.parse(one) for one in (given if isinstance(given, list) else [given])]
        with self._lock:
            self._rules += rules

    def clear(self) -> None:
        """Let nothing fail any more."""
        with self._lock:
            self._rules.clear()

    def rules(self) -> list[dict[str, Any]]:
        """Return what is still to fail, as JSON has it."""
        with self._lock:
            return [asdict(rule) for rule in self._rules]

    def take(self, call: Call) -> Fault | None:
        """Return the fault this call fails with, and count it; None is no fault."""
        if not self._rules:
            return None
        with self._lock:
            for at, rule in enumerate(self._rules):
                if rule.covers(call):
                    if rule.times == 1:
                        del self._rules[at]
                    elif rule.times is not None:
                        self._rules[at] = replace(rule, times=rule.times - 1)
                    return Fault(rule.code, rule.message, rule.status)
        return None
