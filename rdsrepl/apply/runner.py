"""Apply a plan, step by step.

A statement runs in a worker thread. The main thread reports what the statement waits for, cancels it at its timeout or
at Ctrl-C, and undoes what a cancelled statement left. An AWS call is sent as the plan shows it, and retried for some
minutes while AWS refuses it only temporarily. A wait polls until its condition is met; a poll that fails, or that does
not find an object that was just created, is repeated.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from rdsrepl import errors
from rdsrepl.apply.aws_calls import AwsRunner, cancellable
from rdsrepl.apply.failures import failure_of, interrupted_after
from rdsrepl.apply.local_commands import run_command
from rdsrepl.apply.results import Cancelled, NoRecorder, OnDone, OnWaiting, RetryTiming, StepRecorder, StepResult
from rdsrepl.apply.statements import connect, execute, require_own_session, was_executed
from rdsrepl.plan import AwsCall, LocalCommand, Plan, Statement, Step, Wait

if TYPE_CHECKING:
    from rdsrepl.config import Target
    from rdsrepl.postgres.connection import Connection

# The open connections, by the label and the database of the step's own server, if it has one, and the protocol.
_Place = tuple[str | None, str | None, str]
_Connections = dict[_Place, "Connection"]
# After one of these no further step is tried, even if it is independent.
_FATAL_ERRORS: Final = (errors.Unreachable, errors.OutcomeUnknown, KeyboardInterrupt)


def run(
    plan: Plan,
    target: Target,
    *,
    done: OnDone,
    waiting: OnWaiting,
    recorder: StepRecorder | None = None,
    timing: RetryTiming | None = None,
) -> list[StepResult]:
    """Apply every step of PLAN in order.

    Args:
        plan: the plan that ``confirm_and_apply`` has shown.
        target: the database that the plan was made for.
        done: called after each step.
        waiting: called about once a second while a step waits, with the elapsed seconds and what it waits for, or
            its progress.
        recorder: called before and after each step.
        timing: how often AWS calls are retried and waits poll.

    Raises:
        Interrupted: Ctrl-C; it lists the steps that were done and those that were not. All of them can be done.
        AppliedInPart: a step failed and others were done; the cause is chained.
        Error: nothing was done.
    """
    outcomes: list[StepResult] = []
    failures: list[tuple[int, errors.Error | KeyboardInterrupt]] = []
    connections: _Connections = {}
    recorder = recorder or NoRecorder()
    cloud = AwsRunner(target, waiting, timing or RetryTiming())
    interrupted = False
    try:
        with ExitStack() as stack:
            for number, step in enumerate(plan.steps):
                try:
                    if interrupted:
                        raise Cancelled(was_sent=False)
                    outcome, interrupted = _step(step, target, stack, connections, waiting, recorder, cloud)
                    outcomes.append(replace(outcome, number=number))
                except (errors.Error, KeyboardInterrupt) as exc:
                    failures.append((number, exc))
                    # The next step can succeed if this one failed, unless the server is not reachable.
                    if plan.independent and not isinstance(exc, _FATAL_ERRORS):
                        continue
                    break
                done(outcomes[-1])
    except KeyboardInterrupt:  # between two steps
        interrupted = True
        tried = {outcome.number for outcome in outcomes} | {number for number, _ in failures}
        if missing := [number for number in range(len(plan.steps)) if number not in tried]:
            failures.append((missing[0], Cancelled(was_sent=False)))
    if failures:
        cause = failures[0][1]
        failure = failure_of(plan, outcomes, failures)
        if failure is cause:
            raise failure
        raise failure from cause
    if interrupted:
        raise interrupted_after(plan)
    return outcomes


def _step(
    step: Step,
    target: Target,
    stack: ExitStack,
    connections: _Connections,
    waiting: OnWaiting,
    recorder: StepRecorder,
    cloud: AwsRunner,
) -> tuple[StepResult, bool]:
    """Apply one step; return its result, and whether Ctrl-C came after the step was done."""
    pid = 0
    place: _Place = (None, None, "")
    try:
        if isinstance(step, Statement):
            if step.target is not None:
                target = step.target
                place = (target.label, target.keywords.get("dbname"), step.protocol)
            else:
                place = (None, None, step.protocol)
            if place not in connections:
                connections[place] = connect(stack, target, step.protocol)
            if connections[place].closed:
                # Not sent, so not done. A new connection could reach another server than the one that was planned for.
                raise errors.ConnectionLost(
                    f"{step.summary}: not sent, because the connection was lost before it", hint="run the command again"
                )
            require_own_session(step, connections[place])
            pid = connections[place].info.backend_pid
        recorder.before(step)
    except KeyboardInterrupt:
        raise Cancelled(was_sent=False) from None
    interrupted = False
    try:
        if isinstance(step, AwsCall):
            outcome = cloud.call(step)
        elif isinstance(step, Wait):
            outcome = cancellable(cloud.wait, step)
        elif isinstance(step, LocalCommand):
            outcome = run_command(step, waiting)
        else:
            outcome, interrupted = execute(step, connections[place], target, waiting)
    except BaseException as exc:
        if not isinstance(step, Statement) or step.done_if is None or not _may_be_done(exc):
            recorder.after(step, exc)
            raise
        interrupted = isinstance(exc, KeyboardInterrupt)
        try:
            connections[place].close()  # its server process must have ended
            was_done = was_executed(step, target, pid, waiting)
        except (errors.Error, KeyboardInterrupt):
            was_done = None
        if was_done is None:
            how = "interrupted" if interrupted else "the connection was lost"
            unknown = errors.OutcomeUnknown(
                f"{step.summary}: {how}; whether the step was done is unknown",
                hint="check when the server is available: rdsrepl slot list",
                sqlstate=exc.sqlstate if isinstance(exc, errors.Error) else None,
            )
            recorder.after(step, unknown)
            raise unknown from exc
        if not was_done:
            recorder.after(step, Cancelled() if interrupted else exc)
            raise
        outcome = StepResult(step)
    recorder.after(step, None)
    return outcome, interrupted


def _may_be_done(failure: BaseException) -> bool:
    """Return whether the server can have executed a statement that ended so.

    The statement may have dropped a slot before it was cancelled: that is not part of its transaction.
    """
    return isinstance(failure, errors.Unreachable) or (
        isinstance(failure, KeyboardInterrupt) and not (isinstance(failure, Cancelled) and not failure.was_sent)
    )
