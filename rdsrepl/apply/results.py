"""The interface of ``run``: results, progress callbacks, a recorder of the steps, and the timing of retries."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from rdsrepl import errors
from rdsrepl.plan import Step
from rdsrepl.units import format_duration, parse_duration

# Poll often at first, then every ten seconds: AWS limits the rate of requests.
FIRST_POLL_SECONDS: Final = 0.25
POLL_GROWTH: Final = 1.3
LAST_POLL_SECONDS: Final = 10.0
_QUERY_CHARACTERS: Final = 200
_POLL_VARIABLE: Final = "RDSREPL_POLL_INTERVAL"


@dataclass(frozen=True, slots=True)
class StepResult:
    """The result of a step that was done.

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
    """How often and how long AWS calls are retried and waits poll; all in seconds.

    Attributes:
        poll: the longest pause between two polls, and between two attempts of a call.
        busy: how long a call is retried that AWS refuses temporarily.
        missing: how long an object that is not found counts as not visible yet.
        clock: a monotonic clock.
        sleep: pauses.
    """

    poll: float = LAST_POLL_SECONDS
    busy: float = 600.0
    missing: float = 300.0
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    @classmethod
    def from_environment(cls) -> RetryTiming:
        """Return the timing, with the longest pause from ``RDSREPL_POLL_INTERVAL`` if it is set.

        Raises:
            BadValue: the variable is not a duration above zero.
        """
        given = os.environ.get(_POLL_VARIABLE)
        if not given:
            return cls()
        try:
            poll = parse_duration(given)
        except errors.BadValue:
            poll = 0.0
        if poll <= 0:
            raise errors.BadValue(
                f"{_POLL_VARIABLE} is {given!r}, not a duration above zero",
                hint="set a duration above zero, for example 10s",
            )
        return cls(poll=poll)

    def pauses(self) -> Iterator[float]:
        """Yield the pauses: short at first, then longer up to ``poll``."""
        pause = min(FIRST_POLL_SECONDS, self.poll)
        while True:
            yield pause
            pause = min(pause * POLL_GROWTH, self.poll)

    @property
    def confirm(self) -> float:
        """The pause between two polls that confirm a condition."""
        return self.poll / 5


@dataclass(frozen=True, slots=True)
class Blocker:
    """Something that a statement waits for: a row of its query ``blockers``.

    Attributes:
        what: ``PID 4711``, or another thing than a session.
        user, application, state, query: of the session; None if it has none or the role may not read it.
        age_seconds: the age of its transaction.
    """

    what: str
    user: str | None = None
    application: str | None = None
    state: str | None = None
    age_seconds: float | None = None
    query: str | None = None

    @property
    def identity(self) -> str:
        """What distinguishes it from another blocker, and from another state of this one: all but the age."""
        return "\0".join(str(one) for one in (self.what, self.user, self.application, self.state, self.query))

    @property
    def about(self) -> str:
        """One line without the query."""
        parts = [
            self.what,
            self.user and f"user {self.user}",
            self.application and f"application {self.application}",
            self.state,
            None if self.age_seconds is None else f"transaction {format_duration(max(0.0, self.age_seconds))} old",
        ]
        return ", ".join(part for part in parts if part)

    @property
    def text(self) -> str:
        """One line with the query, whose end may be left out."""
        query = " ".join((self.query or "").split())
        if not query:
            return self.about
        return f"{self.about}: {query if len(query) <= _QUERY_CHARACTERS else query[:_QUERY_CHARACTERS] + '...'}"


OnDone = Callable[[StepResult], None]
OnWaiting = Callable[[Step, float, Sequence[Blocker | str]], None]


class Cancelled(KeyboardInterrupt):
    """Ctrl-C cancelled the step: it is certain that the step was not done.

    Attributes:
        was_sent: whether the step had begun.
    """

    def __init__(self, *, was_sent: bool = True) -> None:
        super().__init__()
        self.was_sent = was_sent


class StepRecorder(Protocol):
    """Records each step before and after it is applied."""

    def before(self, step: Step) -> None:
        """Record that a step starts.

        Raises:
            Error: the record could not be written; the step is not applied.
        """
        ...

    def after(self, step: Step, failure: BaseException | None) -> None:
        """Record how a step ended.

        After ``errors.OutcomeUnknown``, and after a ``KeyboardInterrupt`` that is not ``Cancelled``, the result is
        unknown.
        """
        ...


class NoRecorder:
    """Records nothing."""

    def before(self, step: Step) -> None:
        """Record nothing."""

    def after(self, step: Step, failure: BaseException | None) -> None:
        """Record nothing."""
