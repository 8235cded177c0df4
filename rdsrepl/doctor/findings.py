"""Checks, their findings, and the result of a run. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from rdsrepl.doctor.facts import Facts
from rdsrepl.errors import BadValue
from rdsrepl.text.suggestions import did_you_mean


class Severity(StrEnum):
    """The severity of a finding; information does not change the exit code."""

    critical = "critical"
    warning = "warning"
    info = "info"


_ORDER: Final = {severity: place for place, severity in enumerate(Severity)}


@dataclass(frozen=True, slots=True)
class Finding:
    """A problem that a check found, or information.

    Attributes:
        check: the stable name of the check.
        subject: the parameter, slot, member or other object.
        message: one line.
        remedy: what to do, with the command if there is one.
    """

    check: str
    severity: Severity
    subject: str
    message: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Problem:
    """A finding without the name of its check."""

    severity: Severity
    subject: str
    message: str
    remedy: str


class NotApplicable(Exception):
    """The check does not apply to this server; the text is the reason."""


@dataclass(frozen=True, slots=True)
class Check:
    """A check.

    Attributes:
        name: stable; an argument of ``--only`` and ``--skip``, and a heading of ``docs/doctor.md``.
        question: what it checks, in one line.
        needs: groups of names of ``Facts``; one of each group must be known.
        find: the check itself.
    """

    name: str
    question: str
    needs: tuple[tuple[str, ...], ...]
    find: Callable[[Facts], Iterable[Problem]]


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The result of a check.

    Attributes:
        status: ``ok``, ``info``, ``warning``, ``critical``, or ``skipped``.
        reason: why it was skipped.
    """

    name: str
    status: str
    question: str
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The result of a run, which ``doctor`` prints.

    Attributes:
        ready: no check found a critical problem.
        checks: in the order of the list.
        findings: the most severe first.
        facts: the main facts.
    """

    ready: bool
    checks: tuple[CheckResult, ...]
    findings: tuple[Finding, ...]
    facts: Mapping[str, object]

    def worst(self) -> Severity | None:
        """Return the highest severity among the findings; None without findings."""
        return min((finding.severity for finding in self.findings), key=_ORDER.__getitem__, default=None)


def critical(subject: str, message: str, remedy: str) -> Problem:
    """Return a problem: something does not work, or data will be lost."""
    return Problem(Severity.critical, subject, message, remedy)


def warning(subject: str, message: str, remedy: str) -> Problem:
    """Return a problem: something will fail, or is expensive."""
    return Problem(Severity.warning, subject, message, remedy)


def info(subject: str, message: str, remedy: str) -> Problem:
    """Return information."""
    return Problem(Severity.info, subject, message, remedy)


def select_checks(checks: Sequence[Check], *, only: Sequence[str] = (), skip: Sequence[str] = ()) -> tuple[Check, ...]:
    """Return the checks to run.

    Raises:
        BadValue: a name is not the name of a check, or no check is left.
    """
    names = [check.name for check in checks]
    for name in (*only, *skip):
        if name not in names:
            hint = did_you_mean(name, names, otherwise=f"the checks are: {', '.join(names)}")
            raise BadValue(f"no check {name!r}", hint=hint)
    left = tuple(check for check in checks if (not only or check.name in only) and check.name not in skip)
    if not left:
        raise BadValue("no checks selected", hint="remove a --skip")
    return left


def diagnose(facts: Facts, checks: Sequence[Check], summary: Mapping[str, object]) -> Diagnosis:
    """Run the checks; skip one whose facts are missing, with the reason."""
    outcomes: list[CheckResult] = []
    findings: list[Finding] = []
    for check in checks:
        lacking = next((group for group in check.needs if all(getattr(facts, name) is None for name in group)), None)
        if lacking is not None:
            reason = next((facts.missing[name] for name in lacking if name in facts.missing), "not known")
            outcomes.append(CheckResult(check.name, "skipped", check.question, reason))
            continue
        try:
            problems = list(check.find(facts))
        except NotApplicable as exc:
            outcomes.append(CheckResult(check.name, "skipped", check.question, str(exc)))
            continue
        of_check = [Finding(check.name, p.severity, p.subject, p.message, p.remedy) for p in problems]
        worst = min((finding.severity for finding in of_check), key=_ORDER.__getitem__, default=None)
        outcomes.append(CheckResult(check.name, "ok" if worst is None else worst.value, check.question))
        findings += of_check
    findings.sort(key=lambda finding: _ORDER[finding.severity])
    ready = not any(finding.severity is Severity.critical for finding in findings)
    return Diagnosis(ready, tuple(outcomes), tuple(findings), summary)
