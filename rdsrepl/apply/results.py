"""What applying a plan reports: results, progress, a recorder of each step, and how often AWS is asked."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from rdsrepl import errors
from rdsrepl.plan import Step
from rdsrepl.units import parse_duration

# A look costs AWS next to nothing, but there are limits: often at first, then every ten seconds.
FIRST_POLL_SECONDS: Final = 0.25
POLL_GROWTH: Final = 1.3
LAST_POLL_SECONDS: Final = 10.0
_POLL_VARIABLE: Final = "RDSREPL_POLL_INTERVAL"


@dataclass(frozen=True, slots=True)
class StepResult:
    """A step that was done.

    Attributes:
        step: the step.
        number: its position in the plan, from 0.
        returned: the row that a statement returned, by column name, or the facts of a wait; empty without them.
        seconds: how long it took.
        skipped: it was not needed.
    """

    step: Step
    returned: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    skipped: bool = False
    number: int = 0


@dataclass(frozen=True, slots=True)
class RetryTiming:
    """How often AWS is asked again; all in seconds.

    Attributes:
        poll: the longest pause between two looks, and between two attempts to make a call.
        busy: so long a call is tried again that is refused for the moment.
        missing: so long what is not found counts as not there yet.
        clock: the time, which only moves forward.
        sleep: wait so long.
    """

    poll: float = LAST_POLL_SECONDS
    busy: float = 600.0
    missing: float = 300.0
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    @classmethod
    def from_environment(cls) -> RetryTiming:
        """Return the timing, with the longest pause from ``RDSREPL_POLL_INTERVAL`` where that is set.

        Raises:
            BadValue: it is no duration, or none at all.
        """
        given = os.environ.get(_POLL_VARIABLE)
        if not given:
            return cls()
        poll = parse_duration(given)
        if poll <= 0:
            raise errors.BadValue(f"{_POLL_VARIABLE} is {given!r}", hint="for example 10s")
        return cls(poll=poll)

    def pauses(self) -> Iterator[float]:
        """Yield how long to pause: short at first, then longer and longer."""
        pause = min(FIRST_POLL_SECONDS, self.poll)
        while True:
            yield pause
            pause = min(pause * POLL_GROWTH, self.poll)

    @property
    def confirm(self) -> float:
        """Between two looks that are to find the same."""
        return self.poll / 5


OnDone = Callable[[StepResult], None]
OnWaiting = Callable[[Step, float, list[str]], None]


class Cancelled(KeyboardInterrupt):
    """Ctrl-C, and the statement that ran was ended by it: it is not done, for certain."""


class StepRecorder(Protocol):
    """Writes down what happens, before and after each step."""

    def before(self, step: Step) -> None:
        """Take note that a step is about to be applied.

        Raises:
            Error: it cannot be written down; the step is not applied.
        """
        ...

    def after(self, step: Step, failure: BaseException | None) -> None:
        """Take note of how a step ended.

        Of ``errors.OutcomeUnknown`` nobody knows, nor of a ``KeyboardInterrupt`` that is not ``Cancelled``.
        """
        ...


class NoRecorder:
    """Records nothing."""

    def before(self, step: Step) -> None:
        """Record nothing."""

    def after(self, step: Step, failure: BaseException | None) -> None:
        """Record nothing."""
