"""Show a plan, ask for confirmation, apply what was shown, and report. Every command that changes something does so."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import typer

from rdsrepl import apply
from rdsrepl.cli.console import Progress, is_interactive, note, prompt_exact, prompt_yes, warn
from rdsrepl.cli.context import apply_options, global_options, record_applied
from rdsrepl.cli.targets import database_target
from rdsrepl.config import Target
from rdsrepl.errors import AppliedInPart, ExitCode, NotConfirmed
from rdsrepl.plan import AwsCall, ParameterChange, Plan, Statement, Step, Wait, readable
from rdsrepl.render import Format, console, emit, stacked
from rdsrepl.runbooks import journal
from rdsrepl.state import completion_cache
from rdsrepl.text.masking import MASK, mask, masked
from rdsrepl.units import format_duration

if TYPE_CHECKING:
    from rich.console import Console

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


@dataclass(frozen=True, slots=True)
class PlanTarget:
    """The server and AWS account that a plan is applied to, as plans and prompts show it.

    Attributes:
        label: how it was selected: ``cluster orders``, ``target prod``, ``--dsn``.
        host, port, dbname, user: of the database; None for a plan of AWS calls only.
        region, profile: of the AWS calls; None for a plan without AWS calls.
    """

    label: str
    host: str | None = None
    port: str | None = None
    dbname: str | None = None
    user: str | None = None
    region: str | None = None
    profile: str | None = None

    @property
    def text(self) -> str:
        """The same as one line of text."""
        account = f"AWS region {self.region or '-'}" + (f", profile {self.profile}" if self.profile else "")
        if self.host is None:
            return account
        user = f", as {self.user}" if self.user else ""
        writer = "writer " if self.label.startswith("cluster ") else ""
        place = f"{self.label} ({writer}{self.host}:{self.port}/{self.dbname}{user})"
        return place if self.region is None else f"{place}, {account}"


def plan_target(plan: Plan, target: Target) -> PlanTarget:
    """Return what PLAN is applied to; no connection is opened.

    Raises:
        Error: the cluster or instance is not found.
    """
    from rdsrepl.aws import session
    from rdsrepl.postgres import conninfo

    server = PlanTarget(target.label)
    if any(not isinstance(step, Statement) for step in plan.steps):
        server = replace(server, region=session.region(target.aws), profile=target.aws.profile)
    if any(isinstance(step, Statement) for step in plan.steps):
        server = replace(server, **asdict(conninfo.address(target)))
    return server


def confirm_and_apply(
    ctx: typer.Context,
    plan: Plan,
    *,
    target: Target | None = None,
    reveal: Mapping[str, str] | None = None,
    typed: TypedConfirmation | None = None,
    recorder: apply.StepRecorder | None = None,
) -> list[apply.StepResult]:
    """Show PLAN, ask for confirmation on a terminal, apply it, and report each step.

    Args:
        ctx: the command's context.
        plan: what to apply.
        target: the database that the plan was made for; default: the command's own.
        reveal: values that are printed once, with the result, such as a generated password.
        typed: the identifier that must be typed or given as an option; None accepts ``--yes``.
        recorder: called before and after each step.

    Raises:
        NotConfirmed: the plan was not confirmed.
        AppliedInPart: a step failed after others were applied.
        typer.Exit: ``--check`` found changes pending (7).
    """
    timing = apply.RetryTiming.from_environment()
    if not plan:
        _report(ctx, plan, None, "unchanged", [])
        return []
    target = target if target is not None else database_target(ctx)
    server = plan_target(plan, target)
    may = apply_options(ctx)
    if may.dry_run or may.check:
        if global_options(ctx).output is Format.table:
            _show(ctx, plan, server, to_stdout=True)
        else:
            _report(ctx, plan, server, "planned", [])
        if may.check:
            raise typer.Exit(ExitCode.CHANGES_PENDING)
        return []
    _confirm(ctx, plan, server, typed)
    results: list[apply.StepResult] = []
    try:
        _apply(ctx, plan, target, results, recorder, timing)
    except AppliedInPart as exc:
        # Without it the applied steps are useless: the role exists, and its password would be lost.
        if reveal and (exc.done or exc.not_done):
            _report(ctx, plan, server, "partial", results, reveal)
        raise
    finally:
        completion_cache.clear()  # so that the next Tab sees the changes
    record_applied(ctx, plan.title)
    _report(ctx, plan, server, "applied", results, reveal or {})
    return results


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
        _show(ctx, plan, server, to_stdout=False)
        _require_confirmation(plan, server, typed)
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
            journal.applied(result.step.summary, makes=result.step.makes)
        progress.clear()
        how = "not needed" if result.skipped else f"({format_duration(result.seconds)})"
        note(ctx, f"done: {result.step.summary} {how}")

    try:
        apply.run(
            plan,
            target,
            done=done,
            waiting=lambda step, seconds, states: _waiting(progress, step, seconds, states),
            recorder=recorder,
            timing=timing,
        )
    finally:
        progress.clear()


def _require_confirmation(plan: Plan, server: PlanTarget, typed: TypedConfirmation | None) -> None:
    way = "--yes" if typed is None else f"{typed.option} {typed.identifier}"
    if not is_interactive():
        stream = "stderr" if sys.stdin.isatty() else "stdin"
        raise NotConfirmed(
            f"{plan.title}: confirmation required but {stream} is not a terminal; nothing was changed",
            hint=f"add {way} to apply the plan, or --dry-run to see it",
        )
    if typed is None:
        agreed = prompt_yes(f"Apply this plan on {server.text}?")
    else:
        agreed = prompt_exact(f"On {server.text}: type {typed.identifier} to confirm:", typed.identifier)
    if not agreed:
        answer = "answer y" if typed is None else f"type {typed.identifier}"
        raise NotConfirmed(f"{plan.title}: not confirmed; nothing was changed", hint=f"{answer}, or add {way}")


def _show(ctx: typer.Context, plan: Plan, server: PlanTarget, *, to_stdout: bool) -> None:
    out = console(sys.stdout if to_stdout else sys.stderr, hides_secrets=True)
    colour = not global_options(ctx).no_color
    out.print(f"On {server.text}", style="bold" if colour else None)
    out.print(f"Plan: {plan.title}", style="bold" if colour else None)
    for change in plan.changes:
        out.print(f"  {_change(change)}")
        _indented(out, change.reason, style="dim" if colour else None)
    for number, step in enumerate(plan.steps, 1):
        condition = f", {step.condition}" if isinstance(step, AwsCall) and step.condition else ""
        out.print(f"  {number}. {step.summary}{condition}")
        _indented(out, readable(step), style="cyan" if colour else None)
    for warning in plan.warnings:
        warn(ctx, warning)


def _change(change: ParameterChange) -> str:
    default = "(engine's)" if change.default is None else change.default
    if change.value is None:
        return f"{change.name}: {default}, unchanged"
    return f"{change.name}: {default} → {change.value} ({change.apply_type}, {change.apply_method})"


def _indented(out: Console, text: str, *, style: str | None) -> None:
    for line in text.split("\n"):
        if out.is_terminal:
            from rich.padding import Padding

            out.print(Padding(line, (0, 0, 0, 5)), style=style)
        else:
            out.print(f"     {line}")


def _waiting(progress: Progress, step: Step, seconds: float, states: list[str]) -> None:
    how = "; ".join(states)
    if isinstance(step, Statement):
        how = f"waiting for {how}" if how else "waiting"
    progress.update(f"{step.summary}: {how}", seconds)


def _step_document(step: Step) -> dict[str, Any]:
    if isinstance(step, Statement):
        return {"protocol": step.protocol, "statement": mask(step.text)}
    if isinstance(step, AwsCall):
        parameters = {key: MASK if key in step.secrets else value for key, value in step.parameters.items()}
        return {
            "service": step.service,
            "operation": step.operation,
            "parameters": masked(parameters),
            "condition": step.condition or None,
        }
    return {"wait_seconds": step.timeout_seconds}


def _report(
    ctx: typer.Context,
    plan: Plan,
    server: PlanTarget | None,
    status: str,
    results: list[apply.StepResult],
    reveal: Mapping[str, str] | None = None,
) -> None:
    returned = {result.number: result.returned for result in results}
    steps: list[dict[str, Any]] = [
        {"summary": mask(step.summary), **_step_document(step), "returned": returned.get(number, {})}
        for number, step in enumerate(plan.steps)
    ]
    value: dict[str, Any] = {
        "title": mask(plan.title),
        "status": status,
        "server": server,
        "steps": steps,
        "warnings": masked(plan.warnings),
        **(reveal or {}),
    }
    if plan.changes:
        value["changes"] = plan.changes

    def table() -> object:
        if status == "unchanged":
            return f"{plan.title}: {plan.unchanged}"
        lines = [f"{plan.title}: {'done' if status == 'applied' else 'applied in part'}"]
        for result in results:
            shown = {key: item for key, item in result.returned.items() if item not in (None, "")}
            if shown:
                lines.append("  " + ", ".join(f"{key} {item}" for key, item in shown.items()))
        lines += [f"{key}: {item}" for key, item in (reveal or {}).items()]
        return stacked(*lines)

    emit(value, global_options(ctx).output, table)
