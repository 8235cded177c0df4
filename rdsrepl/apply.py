"""Carry out a plan, step by step. This is the only writer in the house.

Each statement runs in a worker thread while this one watches: it can say what the statement waits for, end it at its
deadline or at Ctrl-C, and undo what a cancelled statement may have left half made. An AWS call is made as it was shown,
and made again for some minutes while AWS refuses it only for the moment. A wait looks until its condition holds; a look
that could not be taken, or that did not find what was made a moment ago, is no failure.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from rdsrepl import errors
from rdsrepl.plan import AwsCall, Condition, Plan, Statement, Step, Wait
from rdsrepl.units import format_duration, parse_duration

if TYPE_CHECKING:
    from rdsrepl.config import Target
    from rdsrepl.postgres.connection import Connection

_LOOK_AFTER_SECONDS: Final = 1.0
_CANCEL_SECONDS: Final = 10.0
# A look costs AWS next to nothing, but there are limits: often at first, then every ten seconds.
_FIRST_POLL_SECONDS: Final = 0.25
_POLL_GROWTH: Final = 1.3
_LAST_POLL_SECONDS: Final = 10.0
_POLL_VARIABLE: Final = "RDSREPL_POLL_INTERVAL"
# A crash recovery, or a failover.
_SERVER_BACK_SECONDS: Final = 90.0
_STILL_THERE: Final = """
SELECT FROM pg_catalog.pg_stat_activity
 WHERE pid = %s AND pid <> pg_catalog.pg_backend_pid() AND usename = current_user
"""
_TERMINATE: Final = "SELECT pg_catalog.pg_terminate_backend(%s)"
_A = TypeVar("_A")
_R = TypeVar("_R")
_AGAIN: Final = "run the command again: it plans only what is still missing"
# After these no further step is tried, however independent it is.
_FATAL_ERRORS: Final = (errors.Unreachable, errors.OutcomeUnknown, KeyboardInterrupt)


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

    poll: float = _LAST_POLL_SECONDS
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
        pause = min(_FIRST_POLL_SECONDS, self.poll)
        while True:
            yield pause
            pause = min(pause * _POLL_GROWTH, self.poll)

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


class _NoRecorder:
    def before(self, step: Step) -> None:
        pass

    def after(self, step: Step, failure: BaseException | None) -> None:
        pass


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
        plan: what ``confirm_and_apply`` has shown.
        target: the database it was made for.
        done: called after each step.
        waiting: called about once a second while a step waits, with the seconds so far and what it waits for, or
            how far it is.
        recorder: is told before and after each step.
        timing: how often AWS is asked again.

    Raises:
        Interrupted: Ctrl-C; it says what was done and what was not.
        AppliedInPart: a step failed and others were done; the cause is chained.
        Error: nothing was done.
    """
    outcomes: list[StepResult] = []
    failures: list[tuple[int, errors.Error | KeyboardInterrupt]] = []
    connections: dict[str, Connection] = {}
    recorder = recorder or _NoRecorder()
    cloud = _Cloud(target, waiting, timing or RetryTiming())
    interrupted = False
    with ExitStack() as stack:
        for number, step in enumerate(plan.steps):
            try:
                if interrupted:
                    raise Cancelled
                outcome, interrupted = _step(step, target, stack, connections, waiting, recorder, cloud)
            except (errors.Error, KeyboardInterrupt) as exc:
                failures.append((number, exc))
                # What the server did not do for one reason it may do for the next; but not when it is gone.
                if plan.independent and not isinstance(exc, _FATAL_ERRORS):
                    continue
                break
            outcome = replace(outcome, number=number)
            outcomes.append(outcome)
            done(outcome)
    if failures:
        cause = failures[0][1]
        failure = _failed(plan, outcomes, failures)
        if failure is cause:
            raise failure
        raise failure from cause
    return outcomes


def _step(
    step: Step,
    target: Target,
    stack: ExitStack,
    connections: dict[str, Connection],
    waiting: OnWaiting,
    recorder: StepRecorder,
    cloud: _Cloud,
) -> tuple[StepResult, bool]:
    """Apply one step; return what came of it, and whether Ctrl-C was pressed when it was done already."""
    pid = 0
    try:
        if isinstance(step, Statement):
            if step.protocol not in connections:
                connections[step.protocol] = _enter(stack, target, step.protocol)
            if connections[step.protocol].closed:
                # Not sent, so not done; a new connection may lead to another server than the one that was looked at.
                raise errors.ConnectionLost(
                    f"{step.summary}: not begun, as the connection broke before it", hint="run the command again"
                )
            _require_own_session(step, connections[step.protocol])
            pid = connections[step.protocol].info.backend_pid
        recorder.before(step)
    except KeyboardInterrupt:
        raise Cancelled from None
    interrupted = False
    try:
        if isinstance(step, AwsCall):
            outcome = cloud.call(step)
        elif isinstance(step, Wait):
            outcome = _not_sent(cloud.wait, step)
        else:
            outcome, interrupted = _run(step, connections[step.protocol], target, waiting)
    except BaseException as exc:
        is_open = isinstance(exc, (errors.Unreachable, KeyboardInterrupt)) and not isinstance(exc, Cancelled)
        if not is_open or not isinstance(step, Statement) or step.done_if is None:
            recorder.after(step, exc)
            raise
        try:
            was_done = _was_done(step, target, pid, waiting)
        except (errors.Error, KeyboardInterrupt):
            was_done = None
        if was_done is None:
            unknown = errors.OutcomeUnknown(
                f"{step.summary}: the connection broke, and nobody knows whether it was done",
                hint="look at it when the server is back: rdsrepl slot list",
                sqlstate=exc.sqlstate if isinstance(exc, errors.Error) else None,
            )
            recorder.after(step, unknown)
            raise unknown from exc
        interrupted = isinstance(exc, KeyboardInterrupt)
        if not was_done:
            recorder.after(step, Cancelled() if interrupted else exc)
            raise
        outcome = StepResult(step)
    recorder.after(step, None)
    return outcome, interrupted


def _was_done(step: Statement, target: Target, pid: int, waiting: OnWaiting) -> bool | None:
    """Ask the server, once it answers again, whether a statement was carried out that it never answered.

    Args:
        step: the statement.
        target: where it was sent.
        pid: the server process it was sent to. That may outlive its connection: the answer counts when it is gone.
        waiting: is told what this waits for.

    Returns:
        None where the server cannot tell.

    Raises:
        Unreachable: it does not answer for too long.
    """
    from rdsrepl.postgres import connection

    assert step.done_if is not None
    started = time.monotonic()
    pause = _FIRST_POLL_SECONDS
    while True:
        try:
            with connection.open(target) as conn:
                if conn.execute(_STILL_THERE, (pid,)).fetchone() is None:
                    row = conn.execute(step.done_if).fetchone()
                    return None if row is None or row[0] is None else bool(row[0])
            what = f"PID {pid} of the server to end"
            failure: errors.Unreachable | None = None
        except errors.Unreachable as exc:
            what, failure = "the server to answer again", exc
        elapsed = time.monotonic() - started
        if elapsed >= _SERVER_BACK_SECONDS:
            if failure is None:
                return None
            raise failure
        waiting(step, elapsed, [what])
        time.sleep(pause)
        pause = min(pause * _POLL_GROWTH, _LAST_POLL_SECONDS)


class _Cloud:
    """A plan's AWS calls and waits: where whatever passes by itself is waited out."""

    def __init__(self, target: Target, waiting: OnWaiting, timing: RetryTiming) -> None:
        self._target = target
        self._waiting = waiting
        self._timing = timing
        self._made: frozenset[str] = frozenset()

    def call(self, step: AwsCall) -> StepResult:
        """Make a call, again and again while AWS refuses it only for the moment.

        Raises:
            Error: AWS refuses it for good, or has refused it for minutes.
        """
        from rdsrepl.aws import refusals, session

        started = self._timing.clock()
        named = refusals.names(step.parameters)
        for pause in self._timing.pauses():
            try:
                if step.needed is not None and not _not_sent(self._is_needed, step.needed):
                    return StepResult(step, seconds=self._timing.clock() - started, skipped=True)
                session.call(self._target.aws, step.service, step.operation, step.parameters)
                break
            except errors.Error as exc:
                elapsed = self._timing.clock() - started
                if isinstance(exc, _NotAsked):
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
                self._waiting(step, elapsed, [f"trying again: {exc.message}"])
            _not_sent(self._timing.sleep, pause)
        if step.makes:
            self._made |= named
        return StepResult(step, seconds=self._timing.clock() - started)

    def wait(self, step: Wait) -> StepResult:
        """Look until it is so in as many looks in a row as the step asks for.

        Raises:
            TimedOut: it is not so in time.
            Error: it will never be so.
        """
        from rdsrepl.aws import refusals

        clock, started = self._timing.clock, self._timing.clock()
        in_a_row, missing_since = 0, None
        for pause in self._timing.pauses():
            try:
                found = step.probe(self._target)
                missing_since = None
                in_a_row = in_a_row + 1 if found.met else 0
            except errors.Unreachable as exc:
                found = Condition(False, exc.message)
            except errors.NotFound as exc:
                missing_since = clock() if missing_since is None else missing_since
                if not refusals.is_missing(exc) or clock() - missing_since >= self._timing.missing:
                    raise
                found, in_a_row = Condition(False, "not found yet"), 0
            elapsed = clock() - started
            if in_a_row >= step.confirmations:
                return StepResult(step, dict(found.facts), elapsed)
            if found.failed is not None:
                raise errors.Error(f"{step.summary}: {found.failed}", hint=found.remedy)
            if elapsed >= step.timeout_seconds and not found.met:
                raise errors.TimedOut(
                    f"{step.summary}: not so after {format_duration(step.timeout_seconds)}; it is: {found.state}",
                    hint="it may still come to be so: look again, or allow more time with --timeout",
                )
            self._waiting(step, elapsed, [found.state])
            left = max(step.timeout_seconds - elapsed, 0.0)
            self._timing.sleep(self._timing.confirm if found.met else min(pause, left))
        raise AssertionError("the pauses do not end")

    def _is_needed(self, needed: Callable[[Target], bool]) -> bool:
        try:
            return needed(self._target)
        except errors.Unreachable as exc:
            # The look failed, nothing was sent.
            raise _NotAsked(exc) from exc


def _not_sent(look: Callable[[_A], _R], argument: _A) -> _R:
    """Do what changes nothing: Ctrl-C in it leaves the step undone, for certain."""
    try:
        return look(argument)
    except KeyboardInterrupt:
        raise Cancelled from None


class _NotAsked(errors.Error):
    """It could not be looked up whether a call is needed."""

    def __init__(self, cause: errors.Error) -> None:
        super().__init__(cause.message)
        self.cause = cause


def _enter(stack: ExitStack, target: Target, protocol: str) -> Connection:
    from rdsrepl.postgres import connection, versions

    conn = connection.connect(target, replication=protocol == "replication")
    stack.callback(conn.close)
    if protocol == "sql" and connection.server_version(conn) >= versions.CLIENT_CHECK_INTERVAL_SINCE:
        # Should this process be killed, the server notices and ends the statement instead of finishing it later.
        connection.configure(conn, {"client_connection_check_interval": "1s"})
    return conn


def _require_own_session(step: Statement, conn: Connection) -> None:
    """Refuse behind a pooler what must know its server process: to look what it waits for, to end it, to ask after it.

    Raises:
        Refused: it is such a statement.
    """
    from rdsrepl.postgres import connection

    watched = step.timeout_seconds is not None or step.blockers or step.undo or step.done_if
    if watched and connection.is_pooled(conn):
        raise errors.Refused(
            f"{step.summary}: a connection pooler stands between, which does not say which server process runs it",
            hint="connect to the server itself, by its own host and port (on RDS: the endpoint of the cluster or "
            "instance, not of the proxy)",
        )


def _failed(
    plan: Plan, outcomes: Sequence[StepResult], failures: Sequence[tuple[int, errors.Error | KeyboardInterrupt]]
) -> BaseException:
    """Return the error that says what was done and what was not."""
    number, first = failures[0]
    causes = {n: exc.message if isinstance(exc, errors.Error) else "interrupted" for n, exc in failures}
    done = {outcome.number for outcome in outcomes}
    unknown = any(isinstance(exc, errors.OutcomeUnknown) for _, exc in failures)
    changed = [outcome for outcome in outcomes if not isinstance(outcome.step, Wait) and not outcome.skipped]
    stopped = next(((n, exc) for n, exc in failures if _is_interrupt(exc)), None)
    if stopped is not None:
        at, interrupt = stopped
        if not isinstance(interrupt, Cancelled) and not isinstance(plan.steps[at], Wait):
            causes[at] = "interrupted, and it is not known whether it was done"
        elif not unknown and not changed:
            return errors.Interrupted(f"{plan.title}: interrupted; nothing was changed")
        return errors.Interrupted(
            f"{plan.title}: interrupted in step {at + 1} of {len(plan.steps)} ({plan.steps[at].summary})",
            hint=_AGAIN,
            done=[step.summary for n, step in enumerate(plan.steps) if n in done],
            not_done=[
                step.summary + (f": {causes[n]}" if n in causes else "")
                for n, step in enumerate(plan.steps)
                if n not in done
            ],
        )
    if not unknown and not changed and len(failures) == 1:
        return first
    if not unknown and not outcomes and isinstance(first, errors.Error):
        return type(first)(
            f"{plan.title}: nothing was done: {'; '.join(causes.values())}",
            hint=first.hint,
            sqlstate=first.sqlstate,
            aws_code=first.aws_code,
        )
    hint = first.hint if isinstance(first, errors.Error) else None
    more = f", and {len(failures) - 1} more" if len(failures) > 1 else ""
    return errors.AppliedInPart(
        f"{plan.title}: step {number + 1} of {len(plan.steps)} failed ({plan.steps[number].summary}): "
        f"{causes[number]}{more}",
        hint=hint or f"remove the cause, then {_AGAIN}",
        done=[step.summary for n, step in enumerate(plan.steps) if n in done],
        not_done=[
            step.summary + (f": {causes[n]}" if plan.independent and n in causes else "")
            for n, step in enumerate(plan.steps)
            if n not in done
        ],
    )


def _is_interrupt(failure: BaseException) -> bool:
    return isinstance(failure if failure.__cause__ is None else failure.__cause__, KeyboardInterrupt)


def _run(step: Statement, conn: Connection, target: Target, waiting: OnWaiting) -> tuple[StepResult, bool]:
    """Run a statement; return what it gave, and whether Ctrl-C was pressed when it was too late to end it."""
    import psycopg
    from psycopg.rows import dict_row

    result: list[dict[str, Any] | None] = []
    failure: list[BaseException] = []
    # Whoever takes it first decides: the worker begins, or Ctrl-C keeps it from beginning.
    begins = threading.Lock()

    def work() -> None:
        if not begins.acquire(blocking=False):
            return
        try:
            with conn.cursor(row_factory=dict_row) as cursor:
                cursor.execute(step.sql)
                result.append(cursor.fetchone() if cursor.description else {})
        except BaseException as exc:  # noqa: BLE001 - handed to the thread that waits
            failure.append(exc)

    started = time.monotonic()
    worker = threading.Thread(target=work, name="statement", daemon=True)
    blockers: list[str] = []
    timed_out = interrupted = False
    try:
        worker.start()
        while worker.is_alive():
            elapsed = time.monotonic() - started
            left = None if step.timeout_seconds is None else step.timeout_seconds - elapsed
            if left is not None and left <= 0:
                timed_out = True
                # What it waits for must be asked before it is gone.
                blockers = _blockers(step, conn, target) or blockers
                _cancel(conn, target, worker)
                break
            worker.join(_LOOK_AFTER_SECONDS if left is None else min(left, _LOOK_AFTER_SECONDS))
            if worker.is_alive() and time.monotonic() - started >= _LOOK_AFTER_SECONDS:
                blockers = _blockers(step, conn, target)
                waiting(step, time.monotonic() - started, blockers)
    except KeyboardInterrupt:
        if begins.acquire(blocking=False):
            raise Cancelled from None  # not sent
        interrupted = True
        _cancel(conn, target, worker)
        if not result:
            _undo(step, target)
            said = failure and isinstance(failure[0], psycopg.Error) and failure[0].sqlstate
            if said and (not conn.closed or step.undo is not None):
                raise Cancelled from None  # the server said that it did not do it, or it is undone
            raise
    if timed_out and not result:
        _undo(step, target)
        cause = f"; it waits for {'; '.join(blockers)}" if blockers else ""
        raise errors.TimedOut(
            f"{step.summary}: not done within {step.timeout_seconds:g} s{cause}",
            hint="end what it waits for, or allow more time with --timeout; nothing was left behind",
        )
    if failure:
        if isinstance(failure[0], psycopg.Error):
            from rdsrepl.postgres.error_mapping import translate

            raise translate(failure[0]) from failure[0]
        raise failure[0]
    if step.guard is not None and not result[0]:
        raise errors.StalePlan(
            f"{step.summary}: {step.guard}", hint="nothing was changed by this step; look again and repeat the command"
        )
    return StepResult(step, result[0] or {}, time.monotonic() - started), interrupted


def _blockers(step: Statement, conn: Connection, target: Target) -> list[str]:
    """Ask a second connection what the statement waits for; not knowing is no reason to fail."""
    from rdsrepl.postgres import connection

    if step.blockers is None:
        return []
    try:
        with connection.open(target, settings={"statement_timeout": "2s"}) as watcher:
            return [str(row[0]) for row in watcher.execute(step.blockers, {"pid": conn.info.backend_pid})]
    except errors.Error:
        return []


def _cancel(conn: Connection, target: Target, worker: threading.Thread) -> None:
    """End the statement; a backend that does not heed a cancel request is terminated."""
    import psycopg

    from rdsrepl.postgres import connection

    pid = conn.info.backend_pid
    try:
        conn.cancel_safe(timeout=_CANCEL_SECONDS)
        worker.join(_CANCEL_SECONDS)
    except psycopg.Error:
        pass
    if worker.is_alive() and not connection.is_pooled(conn):  # a pooler tells a number of its own
        with connection.open(target) as other:
            other.execute(_TERMINATE, (pid,))
        worker.join(_CANCEL_SECONDS)


def _undo(step: Statement, target: Target) -> None:
    from rdsrepl.postgres import connection

    if step.undo is not None:
        with connection.open(target) as conn:
            conn.execute(step.undo)
