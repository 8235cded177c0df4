"""Run AWS calls and waits, and retry calls that AWS refuses temporarily."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from rdsrepl import errors
from rdsrepl.apply.results import Cancelled, OnWaiting, RetryTiming, StepResult
from rdsrepl.plan import AwsCall, Condition, Wait
from rdsrepl.units import format_duration

if TYPE_CHECKING:
    from rdsrepl.config.target import Target

_A = TypeVar("_A")
_R = TypeVar("_R")


class AwsRunner:
    """Runs the AWS calls and waits of a plan; transient failures are retried."""

    def __init__(self, target: Target, waiting: OnWaiting, timing: RetryTiming) -> None:
        self._target = target
        self._waiting = waiting
        self._timing = timing
        self._made: frozenset[str] = frozenset()

    def call(self, step: AwsCall) -> StepResult:
        """Make a call; retry it while AWS refuses it temporarily.

        Raises:
            Error: AWS refused it, permanently or for longer than the timing allows.
        """
        from rdsrepl.aws import refusals, session

        started = self._timing.clock()
        named = refusals.names(step.parameters)
        for pause in self._timing.pauses():
            try:
                if step.needed is not None and not cancellable(self._is_needed, step.needed):
                    return StepResult(step, seconds=self._timing.clock() - started, skipped=True)
                session.call(self._target.aws, step.service, step.operation, step.parameters)
                break
            except errors.Error as exc:
                elapsed = self._timing.clock() - started
                if isinstance(exc, _NeedUnknown):
                    limit, exc = self._timing.busy, exc.cause
                elif refusals.is_busy(exc):
                    limit = self._timing.busy
                elif refusals.is_missing(exc) and step.operation.startswith("Delete"):
                    return StepResult(step, seconds=elapsed, skipped=True)
                elif refusals.is_missing(exc) and named & self._made:
                    limit = self._timing.missing
                else:
                    raise
                if elapsed >= limit:
                    exc.message += f" (refused for {format_duration(elapsed)})"
                    raise exc from exc.__cause__
                refusals.check_status(self._target.aws, step.operation, step.parameters)
                self._waiting(step, elapsed, [f"retrying: {exc.message}"])
            cancellable(self._timing.sleep, pause)
        if step.effect == "create":
            self._made |= named
        return StepResult(step, seconds=self._timing.clock() - started)

    def wait(self, step: Wait) -> StepResult:
        """Poll until as many polls in a row as the step requires meet the condition.

        Raises:
            TimedOut: the condition was not met in time.
            Error: the condition cannot be met any more.
        """
        from rdsrepl.aws import refusals

        clock, started = self._timing.clock, self._timing.clock()
        in_a_row, missing_since = 0, None
        for pause in self._timing.pauses():
            try:
                condition = step.probe(self._target)
                missing_since = None
                in_a_row = in_a_row + 1 if condition.met else 0
            except errors.Unreachable as exc:
                condition = Condition(False, exc.message)
            except errors.NotFound as exc:
                missing_since = clock() if missing_since is None else missing_since
                if not refusals.is_missing(exc) or clock() - missing_since >= self._timing.missing:
                    raise
                condition, in_a_row = Condition(False, "not found yet"), 0
            elapsed = clock() - started
            if in_a_row >= step.confirmations:
                return StepResult(step, dict(condition.facts), elapsed)
            if condition.failed is not None:
                raise errors.Error(f"{step.summary}: {condition.failed}", hint=condition.remedy)
            if elapsed >= step.timeout_seconds and not condition.met:
                raise errors.TimedOut(
                    f"{step.summary}: timed out after {format_duration(step.timeout_seconds)}; "
                    f"current state: {condition.state}",
                    hint="the operation may still complete: run the command again, or with a longer --timeout",
                )
            self._waiting(step, elapsed, [condition.state])
            left = max(step.timeout_seconds - elapsed, 0.0)
            self._timing.sleep(self._timing.confirm if condition.met else min(pause, left))
        raise AssertionError("pauses() does not end")

    def _is_needed(self, needed: Callable[[Target], bool]) -> bool:
        try:
            return needed(self._target)
        except errors.Unreachable as exc:
            # The describe call failed, so the change was not sent.
            raise _NeedUnknown(exc) from exc


def cancellable(read: Callable[[_A], _R], argument: _A) -> _R:
    """Call a function that changes nothing: after Ctrl-C in it, the step is certainly not done."""
    try:
        return read(argument)
    except KeyboardInterrupt:
        raise Cancelled from None


class _NeedUnknown(errors.Error):
    """Whether a call is needed could not be determined."""

    def __init__(self, cause: errors.Error) -> None:
        super().__init__(cause.message)
        self.cause = cause
