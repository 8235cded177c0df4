"""What a check is, what it finds, and how a run of them is summed up. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from rdsrepl.doctor.facts import Facts
from rdsrepl.errors import BadValue
from rdsrepl.text.suggestions import did_you_mean


class Severity(StrEnum):
    """How bad a finding is: information changes no exit code."""

    critical = "critical"
    warning = "warning"
    info = "info"


_ORDER: Final = {severity: place for place, severity in enumerate(Severity)}


@dataclass(frozen=True, slots=True)
class Finding:
    """Something to know or to do.

    Attributes:
        check: the check's stable name.
        subject: the parameter, slot, member … it is about.
        message: one line.
        remedy: what to do, the command to type where there is one.
    """

    check: str
    severity: Severity
    subject: str
    message: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Problem:
    """A finding as a check makes it, before it is known under the check's name."""

    severity: Severity
    subject: str
    message: str
    remedy: str


class NotApplicable(Exception):
    """A check has nothing to look at here; the reason is its text."""


@dataclass(frozen=True, slots=True)
class Check:
    """A check.

    Attributes:
        name: stable; ``--only`` and ``--skip`` take it, ``docs/doctor.md`` has a heading of it.
        question: what it answers, in one line.
        needs: names of ``Facts``; of each group one must have been gathered.
        find: the check itself.
    """

    name: str
    question: str
    needs: tuple[tuple[str, ...], ...]
    find: Callable[[Facts], Iterable[Problem]]


@dataclass(frozen=True, slots=True)
class CheckResult:
    """How a check ended.

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
    """A whole run; the document ``doctor`` prints.

    Attributes:
        ready: no check that ran found something critical.
        checks: in the order in which they ran.
        findings: the worst first.
        facts: what it was looked at, in a few words.
    """

    ready: bool
    checks: tuple[CheckResult, ...]
    findings: tuple[Finding, ...]
    facts: Mapping[str, object]

    def worst(self) -> Severity | None:
        """Return the worst severity there is among the findings."""
        return min((finding.severity for finding in self.findings), key=_ORDER.__getitem__, default=None)


def critical(subject: str, message: str, remedy: str) -> Problem:
    """Something does not work, or data is about to be lost."""
    return Problem(Severity.critical, subject, message, remedy)


def warning(subject: str, message: str, remedy: str) -> Problem:
    """Something will go wrong, or costs much."""
    return Problem(Severity.warning, subject, message, remedy)


def info(subject: str, message: str, remedy: str) -> Problem:
    """Something to know."""
    return Problem(Severity.info, subject, message, remedy)


def select_checks(checks: Sequence[Check], *, only: Sequence[str] = (), skip: Sequence[str] = ()) -> tuple[Check, ...]:
    """Return the checks to run.

    Raises:
        BadValue: there is no check of a name, or none is left.
    """
    names = [check.name for check in checks]
    for name in (*only, *skip):
        if name not in names:
            hint = did_you_mean(name, names, otherwise=f"the checks are: {', '.join(names)}")
            raise BadValue(f"no check {name!r}", hint=hint)
    left = tuple(check for check in checks if (not only or check.name in only) and check.name not in skip)
    if not left:
        raise BadValue("no check is left to run", hint="name fewer with --skip")
    return left


def diagnose(facts: Facts, checks: Sequence[Check], summary: Mapping[str, object]) -> Diagnosis:
    """Run CHECKS over FACTS; one whose facts are missing is skipped, with the reason."""
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
        found = [Finding(check.name, p.severity, p.subject, p.message, p.remedy) for p in problems]
        worst = min((finding.severity for finding in found), key=_ORDER.__getitem__, default=None)
        outcomes.append(CheckResult(check.name, "ok" if worst is None else worst.value, check.question))
        findings += found
    findings.sort(key=lambda finding: _ORDER[finding.severity])
    ready = not any(finding.severity is Severity.critical for finding in findings)
    return Diagnosis(ready, tuple(outcomes), tuple(findings), summary)
