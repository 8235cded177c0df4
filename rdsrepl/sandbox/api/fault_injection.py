"""Makes calls fail for tests: rules say which calls fail, how and how often."""

from __future__ import annotations

import threading
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Final

from rdsrepl.sandbox.api.api_errors import Fault
from rdsrepl.sandbox.api.request import Call

_ANY: Final = "*"
# The service names of clients whose requests are signed for another name.
_SIGNED_AS: Final = {"cloudwatch": "monitoring"}


@dataclass(frozen=True, slots=True)
class FaultRule:
    """A rule that makes calls fail.

    Attributes:
        service: ``rds``, ``kinesis``, ``secretsmanager``, ``cloudwatch``; ``*`` is any.
        operation: ``RebootDBCluster``; ``*`` is any.
        code: the error code: ``Throttling``.
        status: the HTTP status.
        message: the error message.
        times: how many more calls fail; None is all.
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
            ValueError: the rule is not valid.
        """
        if not isinstance(given, dict):
            raise ValueError("a fault must be an object with service, operation, code, status, message and times")
        if unknown := sorted(given.keys() - {field.name for field in fields(cls)}):
            raise ValueError(f"unknown members of a fault: {', '.join(map(str, unknown))}")
        if missing := sorted({"service", "code"} - given.keys()):
            raise ValueError(f"missing members of a fault: {', '.join(missing)}")
        texts = ("service", "code", "operation", "message")
        if not all(isinstance(given.get(name, ""), str) for name in texts):
            raise ValueError(f"{', '.join(texts)} must be strings")
        rule = cls(**given)
        if not isinstance(rule.status, int) or not 400 <= rule.status <= 599:
            raise ValueError("status must be between 400 and 599")
        if rule.times is not None and (not isinstance(rule.times, int) or rule.times < 1):
            raise ValueError("times must be at least 1, or null for all calls")
        return replace(rule, service=_SIGNED_AS.get(rule.service, rule.service))

    def covers(self, call: Call) -> bool:
        """Return whether the rule applies to a call."""
        return self.service in (_ANY, call.service) and self.operation in (_ANY, call.operation)


class FaultRules:
    """The current rules; the first one that applies to a call is used."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rules: list[FaultRule] = []

    def add(self, given: object) -> None:
        """Add one rule or a list of them, from JSON.

        Raises:
            ValueError: a rule is not valid; no rule is added.
        """
        rules = [FaultRule.parse(one) for one in (given if isinstance(given, list) else [given])]
        with self._lock:
            self._rules += rules

    def clear(self) -> None:
        """Remove all rules."""
        with self._lock:
            self._rules.clear()

    def rules(self) -> list[dict[str, Any]]:
        """Return the rules, for JSON."""
        with self._lock:
            return [asdict(rule) for rule in self._rules]

    def take(self, call: Call) -> Fault | None:
        """Return the fault with which a call fails, and count it; None when the call does not fail."""
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
