"""``rdsrepl doctor``: check whether logical replication is ready, with a remedy for each finding."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rdsrepl.cli import html_option
from rdsrepl.cli.context import global_options
from rdsrepl.cli.hints import with_selectors
from rdsrepl.cli.html_option import HtmlFile
from rdsrepl.cli.targets import database_target
from rdsrepl.errors import BadValue, ExitCode
from rdsrepl.render import Column, emit, indented, sections, stacked, styled
from rdsrepl.text.counts import counted

if TYPE_CHECKING:
    from rdsrepl.doctor.facts import Planned
    from rdsrepl.doctor.findings import Diagnosis, Finding


def complete_check() -> list[str]:
    """Complete the name of a check."""
    from rdsrepl.doctor.check_list import ALL

    return [check.name for check in ALL]


def doctor(
    ctx: typer.Context,
    for_: Annotated[
        list[str] | None,
        typer.Option(
            "--for",
            metavar="slots=N,...",
            help="Check the capacity for this many more: slots=N, subscriptions=N, replicas=N.",
            show_default=False,
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only", metavar="CHECK", help="Run only this check; may be repeated.", autocompletion=complete_check,
            show_default=False,
        ),
    ] = None,
    skip: Annotated[
        list[str] | None,
        typer.Option(
            "--skip", metavar="CHECK", help="Skip this check; may be repeated.", autocompletion=complete_check,
            show_default=False,
        ),
    ] = None,
    html: HtmlFile = None,
) -> None:  # fmt: skip
    """Check whether logical replication is ready, and print a remedy for each finding.

    The checks use SQL and, with --cluster or --instance, the RDS API; one of the two is enough. -v lists the checks
    that passed as well. The exit code is 0, 8 with warnings, 9 with critical findings.

    Example: rdsrepl doctor --cluster orders --for slots=4
    """
    from rdsrepl.doctor import check_list, facts, findings

    html_option.require_usable(ctx, html)
    planned = _planned_objects(for_ or [])
    selected = findings.select_checks(check_list.ALL, only=only or (), skip=skip or ())
    needed = frozenset(name for check in selected for group in check.needs for name in group)
    gathered = facts.gather(database_target(ctx), planned=planned, wanted=needed)
    diagnosis = findings.diagnose(gathered, selected, check_list.summary(gathered))
    reachable = tuple(replace(one, remedy=with_selectors(ctx, one.remedy)) for one in diagnosis.findings)
    diagnosis = replace(diagnosis, findings=reachable)
    options = global_options(ctx)
    if html is not None:
        from rdsrepl.cli.doctor_page import page

        html_option.write(ctx, html, page(diagnosis, gathered))
    if not html_option.is_stdout(html):
        emit(diagnosis, options.output, lambda: _table(diagnosis, verbose=options.verbose > 0))
    worst = diagnosis.worst()
    if worst is findings.Severity.critical:
        raise typer.Exit(ExitCode.CRITICAL)
    if worst is findings.Severity.warning:
        raise typer.Exit(ExitCode.WARNING)


def _planned_objects(texts: list[str]) -> Planned | None:
    from rdsrepl.doctor.facts import Planned

    counts: dict[str, int] = {}
    for word in ",".join(texts).split(",") if texts else ():
        name, equals, number = word.strip().partition("=")
        if name not in Planned.__dataclass_fields__ or not equals or not number.isascii() or not number.isdigit():
            raise BadValue(
                f"--for: {word.strip()!r} is not NAME=NUMBER",
                hint="for example --for slots=4,subscriptions=2,replicas=1",
            )
        if name in counts:
            raise BadValue(f"--for names {name} twice", hint="name it once")
        counts[name] = int(number)
    return Planned(**counts) if counts else None


def _finding_lines(finding: Finding) -> list[object]:
    return [f"{finding.subject}: {finding.message}", styled(f"→ {finding.remedy}", "dim")]


def _table(diagnosis: Diagnosis, *, verbose: bool) -> Any:
    styles = {"critical": "bold red", "warning": "yellow", "info": "cyan"}
    parts: list[object] = []
    if diagnosis.findings:
        columns = (
            Column("SEVERITY", lambda one: styled(one.severity.value, styles[one.severity.value])),
            Column("CHECK", lambda one: one.check),
        )
        parts.append(sections(diagnosis.findings, columns, _finding_lines, kind=lambda one: one.check))
    passed = [check for check in diagnosis.checks if check.status == "ok"]
    skipped = [check for check in diagnosis.checks if check.status == "skipped"]
    parts.append(f"{counted(len(passed), 'check')} passed")
    if verbose:
        parts += [indented(f"{check.name}: {check.question}") for check in passed]
    if skipped:
        parts.append(f"{len(skipped)} skipped")
        reasons: dict[str, list[str]] = {}
        for check in skipped:
            reasons.setdefault(check.reason or "", []).append(check.name)
        parts += [indented(f"{', '.join(names)}: {reason}") for reason, names in reasons.items()]
    return stacked(*parts)
