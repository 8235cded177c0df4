"""Show a plan on a terminal, and report what was applied, as text or as a document."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import typer

from rdsrepl import apply
from rdsrepl.cli.console import warn
from rdsrepl.cli.context import global_options
from rdsrepl.config import Target
from rdsrepl.plan import AwsCall, ParameterChange, Plan, Statement, Step, readable
from rdsrepl.render import console, emit, stacked
from rdsrepl.text.masking import MASK, mask, masked

if TYPE_CHECKING:
    from rich.console import Console


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


def show(ctx: typer.Context, plan: Plan, server: PlanTarget, *, to_stdout: bool) -> None:
    """Print PLAN, on stderr before a question and on stdout for a dry run."""
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


def report(
    ctx: typer.Context,
    plan: Plan,
    server: PlanTarget | None,
    status: str,
    results: list[apply.StepResult],
    reveal: Mapping[str, str] | None = None,
) -> None:
    """Print the result of PLAN on stdout.

    Args:
        ctx: the command's context.
        plan: the plan.
        server: what it is applied to; None for a plan without steps.
        status: ``unchanged``, ``planned``, ``partial`` or ``applied``.
        results: of the steps that were applied.
        reveal: values that are printed once, such as a generated password.
    """
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
