"""The error of a plan that failed or was interrupted: which steps are done and which are not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rdsrepl import errors
from rdsrepl.apply.results import Cancelled, StepResult
from rdsrepl.plan import AwsCall, Plan, Statement, Step, Wait
from rdsrepl.text.commands import command

#: The end of a hint; the command line adds the command.
RUN_AGAIN: Final = "run the command again, it plans only the missing steps"
# Running the command again makes these calls again.
_REPEATED: Final = ("RebootDBInstance", "RebootDBCluster", "FailoverDBCluster")


def failure_of(
    plan: Plan, outcomes: Sequence[StepResult], failures: Sequence[tuple[int, errors.Error | KeyboardInterrupt]]
) -> BaseException:
    """Return the error that lists the steps that were done and those that were not."""
    number, first = failures[0]
    causes = {n: exc.message if isinstance(exc, errors.Error) else "interrupted" for n, exc in failures}
    done = {outcome.number for outcome in outcomes}
    unknown = any(isinstance(exc, errors.OutcomeUnknown) for _, exc in failures)
    changed = [outcome for outcome in outcomes if not isinstance(outcome.step, Wait) and not outcome.skipped]
    stopped = next(((n, exc) for n, exc in failures if _is_interrupt(exc)), None)
    if stopped is not None:
        at, interrupt = stopped
        step = plan.steps[at]
        if isinstance(interrupt, Cancelled) and not unknown and not changed:
            what = "the statement was cancelled, " if interrupt.was_sent and isinstance(step, Statement) else ""
            return errors.Interrupted(f"{plan.title}: interrupted; {what}nothing was changed")
        causes[at] = _interrupted(step, interrupt, changed)
        return errors.Interrupted(
            f"{plan.title}: interrupted in step {at + 1} of {len(plan.steps)} ({step.summary})",
            hint=_how_to_go_on([step for n, step in enumerate(plan.steps) if n not in done], changed),
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
            f"{plan.title}: no step was done: {'; '.join(causes.values())}",
            hint=first.hint,
            sqlstate=first.sqlstate,
            aws_code=first.aws_code,
        )
    hint = first.hint if isinstance(first, errors.Error) else None
    more = f", and {len(failures) - 1} more" if len(failures) > 1 else ""
    return errors.AppliedInPart(
        f"{plan.title}: step {number + 1} of {len(plan.steps)} failed ({plan.steps[number].summary}): "
        f"{causes[number]}{more}",
        hint=hint or f"fix the cause, then {RUN_AGAIN}",
        done=[step.summary for n, step in enumerate(plan.steps) if n in done],
        not_done=[
            step.summary + (f": {causes[n]}" if plan.independent and n in causes else "")
            for n, step in enumerate(plan.steps)
            if n not in done
        ],
    )


def interrupted_after(plan: Plan) -> errors.Interrupted:
    """Return the error of a plan whose last step was done before Ctrl-C could cancel it."""
    return errors.Interrupted(
        f"{plan.title}: interrupted, but the last step was done before it could be cancelled; all steps are done",
        done=[step.summary for step in plan.steps],
    )


def _interrupted(step: Step, interrupt: BaseException, changed: Sequence[StepResult]) -> str:
    """Say what became of the step in which the plan was interrupted."""
    if not isinstance(interrupt, Cancelled):
        return "interrupted; whether it was done is unknown"
    if isinstance(step, Wait):
        how = "interrupted" if interrupt.was_sent else "not started"
        continues = any(isinstance(result.step, AwsCall) for result in changed)
        return how + ("; AWS continues without this command" if continues else "")
    if not interrupt.was_sent:
        return "not started"
    return "cancelled; it changed nothing" if isinstance(step, Statement) else "interrupted; AWS had not accepted it"


def _how_to_go_on(missing: Sequence[Step], changed: Sequence[StepResult]) -> str:
    repeated = [one.step for one in changed if isinstance(one.step, AwsCall) and one.step.operation in _REPEATED]
    if not repeated or not all(isinstance(step, Wait) for step in missing):
        return RUN_AGAIN
    name, kind = repeated[-1].parameters.get("DBInstanceIdentifier"), "instance"
    if name is None:
        name, kind = repeated[-1].parameters.get("DBClusterIdentifier"), "cluster"
    return f"only waits are missing; to see the state: {command(f'{kind} show {{}}', name)}"


def _is_interrupt(failure: BaseException) -> bool:
    return isinstance(failure if failure.__cause__ is None else failure.__cause__, KeyboardInterrupt)
