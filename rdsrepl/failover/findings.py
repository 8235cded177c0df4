"""Findings about a failover, and how severe they are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How severe a finding is: after a failover with a critical one, changes are lost or a consumer gets nothing."""

    critical = "critical"
    warning = "warning"
    info = "info"

    @property
    def rank(self) -> int:
        """2 for critical, 1 for a warning, 0 for information; also the exit code of a Nagios plugin."""
        return {"critical": 2, "warning": 1}.get(self.value, 0)


@dataclass(frozen=True, slots=True)
class Finding:
    """A reason why a failover would lose or repeat changes, or stop a consumer.

    Attributes:
        check: the stable name of the rule: ``copy_temporary``.
        server: the label of the server on which the remedy is applied.
        subject: the slot or the parameter.
        message: one line.
        remedy: what to do, with the command if there is one.
    """

    check: str
    level: Level
    server: str
    subject: str
    message: str
    remedy: str


def worst(findings: Iterable[Finding]) -> Level | None:
    """Return the highest level among the findings; None without findings."""
    return max((finding.level for finding in findings), key=lambda level: level.rank, default=None)
