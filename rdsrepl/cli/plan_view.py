"""Show a plan on a terminal, and report what was applied, as text or as a document."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import typer

from rdsrepl import apply
from rdsrepl.cli.console import warn
from rdsrepl.cli.context import apply_options, global_options
from rdsrepl.config import Aws, Target
from rdsrepl.plan import AwsCall, Effect, LocalCommand, ParameterChange, Plan, Statement, Step, Wait, readable
from rdsrepl.render import console, emit, stacked
from rdsrepl.text.masking import MASK, mask, masked

if TYPE_CHECKING:
    from rich.console import Console

#: What stands before a step; a wait has ``>``.
MARKS: Final[Mapping[Effect, str]] = {"create": "+", "change": "~", "drop": "-"}
_STYLES: Final[Mapping[Effect, str]] = {"create": "green", "change": "yellow", "drop": "red"}


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
    # A wait may ask AWS or a server.
    uses_aws = any(isinstance(step, (AwsCall, Wait)) for step in plan.steps)
    uses_aws = uses_aws and (target.aws != Aws() or not target.has_address)
    if uses_aws:
        server = replace(server, region=session.region(target.aws), profile=target.aws.profile)
    if any(isinstance(step, Statement) for step in plan.steps) or not uses_aws:
        server = replace(server, **asdict(conninfo.address(target)))
    return server


def _place(target: Target) -> PlanTarget:
    from rdsrepl.postgres import conninfo

    return PlanTarget(target.label, **asdict(conninfo.address(target)))


def show(ctx: typer.Context, plan: Plan, server: PlanTarget, *, to_stdout: bool) -> None:
    """Print PLAN, on stderr before a question and on stdout for a dry run: what it costs comes last.

    A dry run, ``--show-sql`` and ``-v`` print the statements and API calls as well.
    """
    out = console(sys.stdout if to_stdout else sys.stderr, hides_secrets=True)
    view = _View(out, colour=not global_options(ctx).no_color)
    with_texts = to_stdout or apply_options(ctx).show_sql or global_options(ctx).verbose > 0
    view.line(f"On {server.text}", style="bold")
    view.line(f"{plan.title}:", style="bold")
    listed: set[str] = set()
    for step in plan.steps:
        if isinstance(step, Wait):
            view.line(step.summary + (f" {step.text}" if step.timeout_seconds else ""), 2, mark=">", style="dim")
            continue
        condition = f", {step.condition}" if isinstance(step, AwsCall) and step.condition else ""
        view.line(step.summary + condition, 2, mark=MARKS[step.effect], style=_STYLES[step.effect])
        view.reason(step.reason, 6)
        if isinstance(step, Statement) and step.target is not None:
            view.reason(f"on {_place(step.target).text}", 6)
        if isinstance(step, Statement) and step.meanwhile is not None:
            view.reason(step.meanwhile.text, 6)
        for change in plan.changes:
            if isinstance(step, AwsCall) and step.sets(change.name):
                listed.add(change.name)
                view.line(_change(change), 6, mark=MARKS["change"], style=_STYLES["change"])
                view.reason(change.reason, 10)
        if with_texts:
            for line in readable(step).split("\n"):
                view.line(line, 6, style="cyan")
    for change in plan.changes:
        if change.name not in listed:
            state = f"{change.value_text}, already set" if change.value_text else f"{change.default_text}, unchanged"
            view.line(f"{change.name}: {state}", 4)
            view.reason(change.reason, 8)
    view.line(f"Plan: {plan.counts.text}", style="bold")
    for warning in plan.warnings:
        warn(ctx, warning)


class _View:
    """Prints the lines of a plan, indented; a line that is wrapped keeps its indentation."""

    def __init__(self, out: Console, *, colour: bool) -> None:
        self._out = out
        self._colour = colour

    def reason(self, text: str, indent: int) -> None:
        if text:
            self.line(text, indent, style="dim")

    def line(self, text: str, indent: int = 0, *, mark: str = "", style: str | None = None) -> None:
        style = style if self._colour else None
        start = " " * indent + (f"{mark} " if mark else "")
        if not self._out.is_terminal or not start:
            self._out.print(start + text, style=style)
            return
        from rich.table import Table

        grid = Table.grid()
        grid.add_column(width=len(start), no_wrap=True)
        grid.add_column(overflow="fold")
        grid.add_row(start, text, style=style)
        self._out.print(grid)


def _change(change: ParameterChange) -> str:
    return f"{change.name}: {change.default_text} -> {change.value_text} ({change.apply_type}, {change.apply_method})"


def _step_document(step: Step) -> dict[str, Any]:
    if isinstance(step, Statement):
        value = {"protocol": step.protocol, "statement": mask(step.text), **_effect(step)}
        if step.target is not None:
            value["server"] = _place(step.target)
        if step.meanwhile is not None:
            value["meanwhile"] = step.meanwhile.text
        return value
    if isinstance(step, AwsCall):
        parameters = {key: MASK if key in step.secrets else value for key, value in step.parameters.items()}
        return {
            "service": step.service,
            "operation": step.operation,
            "parameters": masked(parameters),
            "condition": step.condition or None,
            **_effect(step),
        }
    if isinstance(step, LocalCommand):
        return {"command": mask(step.command), **_effect(step)}
    return {"wait_seconds": step.timeout_seconds, "effect": None, "reason": None}


def _effect(step: Statement | AwsCall | LocalCommand) -> dict[str, Any]:
    return {"effect": step.effect, "reason": mask(step.reason) or None}


def report(
    ctx: typer.Context,
    plan: Plan,
    server: PlanTarget | None,
    status: str,
    results: list[apply.StepResult],
    reveal: Mapping[str, str] | None = None,
) -> None:
    """Print the result of PLAN on stdout; the arguments are those of ``document``."""

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

    emit(document(plan, server, status, results, reveal), global_options(ctx).output, table)


def document(
    plan: Plan,
    server: PlanTarget | None,
    status: str,
    results: Sequence[apply.StepResult] = (),
    reveal: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return PLAN and its result as one document; docs/concepts.md documents the keys.

    Args:
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
        "counts": plan.counts,
        "steps": steps,
        "warnings": masked(plan.warnings),
        **(reveal or {}),
    }
    if plan.changes:
        value["changes"] = plan.changes
    return value
