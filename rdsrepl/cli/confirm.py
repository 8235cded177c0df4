"""Ask for the confirmation of a plan, and apply what was shown. Every command that changes something does so.

``cli.plan_view`` shows and reports.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

from rdsrepl import apply
from rdsrepl.cli import saved_plans
from rdsrepl.cli.console import is_interactive, note, prompt_exact, prompt_yes, warn
from rdsrepl.cli.context import apply_options, global_options, record_applied, same_command
from rdsrepl.cli.plan_view import PlanTarget, plan_target, report, show
from rdsrepl.cli.progress import Progress
from rdsrepl.cli.targets import database_target
from rdsrepl.config import Target
from rdsrepl.errors import AppliedInPart, ExitCode, NotConfirmed, OutputClosed, SinkFailed
from rdsrepl.plan import Plan, Wait
from rdsrepl.runbooks import journal
from rdsrepl.state import completion_cache
from rdsrepl.text.commands import command
from rdsrepl.units import format_duration

if TYPE_CHECKING:
    from rdsrepl.postgres.connection import Connection


@dataclass(frozen=True, slots=True)
class TypedConfirmation:
    """A confirmation by typing an identifier, for what ``--yes`` must not confirm.

    Attributes:
        identifier: what must be typed.
        option: the option that may be given instead.
        given: the value of that option; None asks on the terminal.
    """

    identifier: str
    option: str
    given: str | None


def confirm_and_apply(
    ctx: typer.Context,
    plan: Plan,
    *,
    target: Target | None = None,
    reveal: Mapping[str, str] | None = None,
    typed: TypedConfirmation | None = None,
    recorder: apply.StepRecorder | None = None,
    is_shown: bool = False,
    reports: bool = True,
) -> list[apply.StepResult]:
    """Show PLAN, ask for confirmation on a terminal, apply it, and report each step.

    With ``--dry-run``, ``--check`` and ``--out`` it is shown only, and with ``--out`` saved. ``rdsrepl apply`` confirms
    and applies it only if it is the saved plan.

    Args:
        ctx: the command's context.
        plan: what to apply.
        target: the database that the plan was made for; default: the command's own.
        reveal: values that are printed once, with the result, such as a generated password.
        typed: the identifier that must be typed or given as an option; None accepts ``--yes``.
        recorder: called before and after each step.
        is_shown: the command has printed the plan that is not applied.
        reports: whether to report the plan on stdout after it was applied; otherwise the command prints its result.

    Raises:
        NotConfirmed: the plan was not confirmed.
        Refused: ``rdsrepl apply`` does not find the server and the plan that were saved.
        AppliedInPart: a step failed after others were applied.
        typer.Exit: ``--check`` found changes pending (7).
    """
    timing = apply.RetryTiming.from_environment()
    target = target if target is not None else database_target(ctx)
    server = plan_target(plan, target) if plan else None
    saved_plans.require_same(ctx, plan, server, target)
    if apply_options(ctx).plans_only or server is None:
        _plan_only(ctx, plan, server, target, is_shown=is_shown)
        return []
    _confirm(ctx, plan, server, typed)
    results: list[apply.StepResult] = []
    try:
        with saved_plans.marked_applied(ctx):
            _apply(ctx, plan, target, results, recorder, timing)
    except AppliedInPart as exc:
        if exc.hint is not None and (again := same_command(ctx)) is not None:
            exc.hint = exc.hint.replace(apply.RUN_AGAIN, f"{apply.RUN_AGAIN}: {again}")
        # Without it the applied steps are useless: the role exists, and its password would be lost.
        if reveal and (exc.done or exc.not_done):
            report(ctx, plan, server, "partial", results, reveal)
        raise
    finally:
        completion_cache.clear()  # so that the next Tab sees the changes
    if reports:
        _report_applied(ctx, plan, server, results, reveal or {})
    return results


def _report_applied(
    ctx: typer.Context,
    plan: Plan,
    server: PlanTarget,
    results: list[apply.StepResult],
    reveal: Mapping[str, str],
) -> None:
    """Report a plan that was applied.

    Raises:
        OutputClosed, SinkFailed: standard output does not take the report; a warning names the values that are lost.
    """
    try:
        report(ctx, plan, server, "applied", results, reveal)
        sys.stdout.flush()
    except (OutputClosed, SinkFailed):
        if reveal:
            lost = " and ".join(reveal)
            warn(
                ctx,
                f"{plan.title} is done, but the {lost} could not be printed; set another: rdsrepl role password NAME",
            )
        raise


def _plan_only(ctx: typer.Context, plan: Plan, server: PlanTarget | None, target: Target, *, is_shown: bool) -> None:
    """Show a plan that is not applied, or that has nothing to do; save it if ``--out`` is given.

    Raises:
        typer.Exit: ``--check`` found changes pending (7).
    """
    may = apply_options(ctx)
    # First: the reader of the output may close the pipe.
    path = None if may.out is None else saved_plans.save(ctx, plan, server, target)
    if server is not None and global_options(ctx).output.is_table:
        show(ctx, plan, server, to_stdout=True)
    elif not is_shown:
        report(ctx, plan, server, "planned" if plan else "unchanged", [])
    if path is not None:
        note(ctx, f"the plan is saved; next: {command('apply {}', path)}")
    if may.check and plan:
        raise typer.Exit(ExitCode.CHANGES_PENDING)


def plan_and_apply(ctx: typer.Context, planner: Callable[[Connection], Plan]) -> None:
    """Make a plan on a connection to the command's database, then confirm and apply it."""
    from rdsrepl.postgres import connection

    target = database_target(ctx)
    with connection.open(target) as conn:
        plan = planner(conn)
    confirm_and_apply(ctx, plan, target=target)


def _confirm(ctx: typer.Context, plan: Plan, server: PlanTarget, typed: TypedConfirmation | None) -> None:
    """Return when the plan is confirmed, by an option or on the terminal.

    Raises:
        NotConfirmed: it is not.
    """
    is_confirmed = apply_options(ctx).yes if typed is None else typed.given is not None
    if not is_confirmed:
        show(ctx, plan, server, to_stdout=False)
        _require_confirmation(ctx, plan, server, typed)
        return
    if typed is not None and typed.given != typed.identifier:
        raise NotConfirmed(
            f"{plan.title}: {typed.option} names {typed.given}, not {typed.identifier}; nothing was changed",
            hint=f"to confirm: {typed.option} {typed.identifier}",
        )
    note(ctx, f"On {server.text}")
    for warning in plan.warnings:
        warn(ctx, warning)


def _apply(
    ctx: typer.Context,
    plan: Plan,
    target: Target,
    results: list[apply.StepResult],
    recorder: apply.StepRecorder | None,
    timing: apply.RetryTiming,
) -> None:
    """Apply a plan; append each result, and print it when the step ends."""
    progress = Progress(ctx)

    def done(result: apply.StepResult) -> None:
        results.append(result)
        if not isinstance(result.step, Wait) and not result.skipped:
            journal.applied(result.step.summary, makes=result.step.effect == "create")
        progress.clear()
        how = "not needed" if result.skipped else f"({format_duration(result.seconds)})"
        note(ctx, f"done: {result.step.summary} {how}")

    try:
        apply.run(
            plan,
            target,
            done=done,
            waiting=lambda step, seconds, states: progress.update(step.summary, seconds, states),
            recorder=recorder,
            timing=timing,
        )
        record_applied(ctx, plan.title)
    finally:
        progress.clear()


def _require_confirmation(ctx: typer.Context, plan: Plan, server: PlanTarget, typed: TypedConfirmation | None) -> None:
    way = "--yes" if typed is None else f"{typed.option} {typed.identifier}"
    # With --yes a question is left only if an identifier must be typed.
    has_yes = apply_options(ctx).yes
    not_enough = "--yes does not confirm a permanent deletion"
    if not is_interactive():
        stream = "stderr" if sys.stdin.isatty() else "stdin"
        reason = f"{not_enough}, and" if has_yes else "confirmation required but"
        raise NotConfirmed(
            f"{plan.title}: {reason} {stream} is not a terminal; nothing was changed",
            hint=f"add {way} to apply the plan, or --dry-run to see it",
        )
    if typed is None:
        agreed = prompt_yes(f"Apply this plan on {server.text}?")
    else:
        if has_yes:
            warn(ctx, f"{plan.title}: {not_enough}")
        agreed = prompt_exact(f"On {server.text}: type {typed.identifier} to confirm:", typed.identifier)
    if not agreed:
        answer = "answer y" if typed is None else f"type {typed.identifier}"
        raise NotConfirmed(f"{plan.title}: not confirmed; nothing was changed", hint=f"{answer}, or add {way}")
