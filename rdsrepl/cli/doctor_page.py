"""Build the HTML page of ``doctor --html``: the findings with their remedies, and the checks."""

from __future__ import annotations

from datetime import UTC, datetime

from rdsrepl.cli.html_option import footer
from rdsrepl.doctor.facts import Facts
from rdsrepl.doctor.findings import CheckResult, Diagnosis, Finding, Severity
from rdsrepl.reports import html_page
from rdsrepl.reports.html_page import Column, Html
from rdsrepl.units import format_size

_FINDINGS = (
    Column("Severity"),
    Column("Check"),
    Column("Object", is_name=True),
    Column("Finding and remedy", is_long=True),
)
_CHECKS = (Column("Check"), Column("Result"), Column("Question", is_long=True))

_PARAMETERS = frozenset({"wal_level", "max_replication_slots", "max_wal_senders"})


def page(diagnosis: Diagnosis, facts: Facts) -> str:
    """Return the page of a run."""
    parts = [_server(diagnosis, facts)]
    if diagnosis.findings:
        rows = [_finding(one) for one in diagnosis.findings]
        parts.append(html_page.section("Findings", html_page.table(_FINDINGS, rows)))
    else:
        parts.append(html_page.paragraph("No check found a problem."))
    parts.append(html_page.section("Server", html_page.facts(_facts(diagnosis))))
    parts.append(html_page.section("Checks", html_page.table(_CHECKS, [_check(one) for one in diagnosis.checks])))
    return html_page.page(f"Logical replication readiness of {facts.label}", *parts, footer=footer())


def _server(diagnosis: Diagnosis, facts: Facts) -> Html:
    server = facts.server
    worst = diagnosis.worst()
    at = server.now if server is not None else datetime.now(UTC)
    counts = [(severity, sum(one.severity is severity for one in diagnosis.findings)) for severity in Severity]
    found = ", ".join(f"{severity}: {count}" for severity, count in counts if count) or "none"
    return html_page.facts(
        [
            ("Ready", "yes" if diagnosis.ready else "no"),
            ("Worst finding", html_page.badge("ok" if worst is None else worst.value)),
            ("Findings", found),
            ("Time", f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"),
            ("Target", facts.label),
            ("Address", server.address if server is not None and server.address else "not connected"),
            ("Engine version", facts.version or "unknown"),
        ]
    )


def _finding(one: Finding) -> tuple[object, ...]:
    remedy = Html(f'<span class="note">Remedy:</span> {html_page.text(one.remedy)}')
    return (
        html_page.badge(one.severity.value),
        html_page.code(one.check),
        one.subject,
        html_page.lines([one.message, remedy]),
    )


def _check(one: CheckResult) -> tuple[object, ...]:
    skipped = one.status == "skipped"
    return (
        html_page.code(one.name),
        one.status if skipped else html_page.badge(one.status),
        html_page.lines([one.question, *([one.reason] if one.reason else [])]),
    )


def _facts(diagnosis: Diagnosis) -> list[tuple[str, object]]:
    """Return the main facts that are known, with their names as words."""
    rows: list[tuple[str, object]] = []
    for name, value in diagnosis.facts.items():
        if value is None or name == "target":
            continue
        shown = "yes" if value is True else "no" if value is False else value
        if name.endswith("_bytes") and isinstance(value, int):
            name, shown = name.removesuffix("_bytes"), format_size(value)
        rows.append((name.replace("_", " ") if name not in _PARAMETERS else name, shown))
    return rows
