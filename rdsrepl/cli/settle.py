"""Show a plan, ask, apply exactly what was shown, report. The one place where a command comes to change something."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import typer

from rdsrepl import apply
from rdsrepl.cli.options import consent, shared, where
from rdsrepl.cli.talk import ask, can_ask, note, warn
from rdsrepl.config import Target
from rdsrepl.errors import AppliedInPart, ExitCode, NotConfirmed
from rdsrepl.plan import Plan, Statement
from rdsrepl.render import Format, console, emit
from rdsrepl.units import format_duration


def settle(
    ctx: typer.Context, plan: Plan, *, target: Target | None = None, reveal: Mapping[str, str] | None = None
) -> list[apply.Outcome]:
    """Show PLAN, ask on a terminal, apply it, report each step.

    Args:
        ctx: the command's context.
        plan: what to do.
        target: the database it was made for; by default the command's own.
        reveal: printed once with the result and nowhere else, such as a generated password.

    Raises:
        NotConfirmed: nobody said yes.
        AppliedInPart: a later step failed.
        typer.Exit: ``--check`` found changes pending (7).
    """
    may, options = consent(ctx), shared(ctx)
    machine = options.output is not Format.table
    if not plan:
        _report(ctx, plan, "unchanged", [])
        return []
    if may.dry_run or may.check:
        _show(ctx, plan, to_stdout=True) if not machine else _report(ctx, plan, "planned", [])
        if may.check:
            raise typer.Exit(ExitCode.CHANGES_PENDING)
        return []
    if not may.yes:
        _show(ctx, plan, to_stdout=False)
        if not can_ask():
            raise NotConfirmed(
                f"{plan.title}: nobody to ask, nothing was changed",
                hint="add --yes to go ahead, or --dry-run to see the plan",
            )
        if not ask("Go ahead?"):
            raise NotConfirmed(f"{plan.title}: not confirmed, nothing was changed", hint="answer y, or add --yes")
    else:
        for warning in plan.warnings:
            warn(ctx, warning)
    outcomes: list[apply.Outcome] = []

    def done(outcome: apply.Outcome) -> None:
        outcomes.append(outcome)
        note(ctx, f"done: {outcome.step.summary} ({format_duration(outcome.seconds)})")

    try:
        apply.run(
            plan,
            target if target is not None else where(ctx),
            done=done,
            waiting=lambda step, seconds, blockers: _waiting(ctx, step, seconds, blockers),
        )
    except AppliedInPart:
        # What is made already is of no use without it: the role is there, and nobody else knows its password.
        if reveal:
            _report(ctx, plan, "partial", outcomes, reveal)
        raise
    _report(ctx, plan, "applied", outcomes, reveal or {})
    return outcomes


def _show(ctx: typer.Context, plan: Plan, *, to_stdout: bool) -> None:
    out = console(sys.stdout if to_stdout else sys.stderr)
    colour = not shared(ctx).no_color
    out.print(f"Plan: {plan.title}", style="bold" if colour else None)
    for number, step in enumerate(plan.steps, 1):
        out.print(f"  {number}. {step.summary}")
        for line in step.text.splitlines():
            out.print(f"     {line}", style="cyan" if colour else None)
    for warning in plan.warnings:
        warn(ctx, warning)


def _waiting(ctx: typer.Context, step: Statement, seconds: float, blockers: list[str]) -> None:
    # The first second, then every ten: a heartbeat, not a flood.
    if round(seconds) == 1 or round(seconds) % 10 == 0:
        cause = f" for {'; '.join(blockers)}" if blockers else ""
        note(ctx, f"{step.summary}: waiting{cause} ({format_duration(seconds)})")


def _report(
    ctx: typer.Context,
    plan: Plan,
    status: str,
    outcomes: list[apply.Outcome],
    reveal: Mapping[str, str] | None = None,
) -> None:
    returned = {id(outcome.step): outcome.returned for outcome in outcomes}
    steps: list[dict[str, Any]] = [
        {
            "summary": step.summary,
            "protocol": step.protocol,
            "statement": step.text,
            "returned": returned.get(id(step), {}),
        }
        for step in plan.steps
    ]
    value = {"title": plan.title, "status": status, "steps": steps, "warnings": list(plan.warnings), **(reveal or {})}

    def table() -> object:
        from rich.text import Text

        if status == "unchanged":
            return Text(f"{plan.title}: {plan.unchanged}")
        lines = [f"{plan.title}: {'done' if status == 'applied' else 'done in part'}"]
        for outcome in outcomes:
            shown = {key: item for key, item in outcome.returned.items() if item not in (None, "")}
            if shown:
                lines.append("  " + ", ".join(f"{key} {item}" for key, item in shown.items()))
        lines += [f"{key}: {item}" for key, item in (reveal or {}).items()]
        return Text("\n".join(lines))

    emit(value, shared(ctx).output, table)
