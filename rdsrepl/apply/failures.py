"""The error of a plan that failed or was interrupted: which steps are done and which are not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rdsrepl import errors
from rdsrepl.apply.results import Cancelled, StepResult
from rdsrepl.plan import Plan, Wait

_AGAIN: Final = "run the command again: it plans only the missing steps"


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
        if not isinstance(interrupt, Cancelled) and not isinstance(plan.steps[at], Wait):
            causes[at] = "interrupted; whether it was done is unknown"
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
        hint=hint or f"fix the cause, then {_AGAIN}",
        done=[step.summary for n, step in enumerate(plan.steps) if n in done],
        not_done=[
            step.summary + (f": {causes[n]}" if plan.independent and n in causes else "")
            for n, step in enumerate(plan.steps)
            if n not in done
        ],
    )


def _is_interrupt(failure: BaseException) -> bool:
    return isinstance(failure if failure.__cause__ is None else failure.__cause__, KeyboardInterrupt)
