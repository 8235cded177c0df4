"""A request to run a runbook: which page, with which values, on which target."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

from rdsrepl.errors import BadValue, NotConfirmed
from rdsrepl.runbooks import commands, model
from rdsrepl.runbooks.journal import EarlierRun
from rdsrepl.runbooks.model import Runbook, Step, StepKind
from rdsrepl.text.commands import STEP_OPTIONS
from rdsrepl.text.masking import mask

# The options that select a target; a step with one of _TARGET_OPTIONS gets none of the run's options.
_OPTIONS: Final = ("target", "dsn", "cluster", "instance", "dbname", "user", "profile", "region")
_TARGET_OPTIONS: Final = ("--target", "-t", "--dsn")
# A step that names another server of the same account keeps the run's other options.
_SERVER_OPTIONS: Final = ("--cluster", "--instance")


@dataclass(frozen=True, slots=True)
class RunTarget:
    """The target of the run.

    Attributes:
        options: the given connection options, by name (``target``, ``cluster``, …).
        cluster: the identifier of the cluster, from the options or the config file.
        instance: the identifier of the instance, likewise.
        taken_by: returns which of these options a command takes, from its words; the environment can have all.
    """

    options: Mapping[str, str]
    cluster: str | None = None
    instance: str | None = None
    taken_by: Callable[[Sequence[str]], Collection[str]] = field(default=lambda _: _OPTIONS, compare=False, repr=False)

    def described(self) -> dict[str, str]:
        """Return the options without secrets."""
        shown = {**self.options}
        if "dsn" in shown:
            shown["dsn"] = mask(shown["dsn"])
        return shown

    def environment(self, words: Sequence[str]) -> dict[str, str]:
        """Return the environment of a command; it contains the target, so that no password is among the arguments."""
        kept = {f"RDSREPL_{name.upper()}" for name in (*_OPTIONS, "output")}
        env = {key: value for key, value in os.environ.items() if key not in kept}
        given = self._options(words)
        named = {f"RDSREPL_{name.upper()}": value for name, value in given.items()}
        return env | named | {STEP_OPTIONS: ",".join(given)}

    def shown(self, words: Sequence[str]) -> str:
        """Return a command for a person to copy."""
        own = {name: value for name, value in self._options(words).items() if name in self.taken_by(words)}
        options = [word for name, value in self.described().items() if name in own for word in (f"--{name}", value)]
        return shlex.join(["rdsrepl", *options, *words])

    def _options(self, words: Sequence[str]) -> dict[str, str]:
        before = words[: words.index("--")] if "--" in words else words
        # Behind psql, -t without a name is psql's own.
        named = [word.split("=")[0] for word, value in pairwise([*before, "-"]) if word != "-t" or value[:1] != "-"]
        if any(word in _TARGET_OPTIONS for word in named):
            return {}
        if any(word in _SERVER_OPTIONS for word in named):
            return {name: value for name, value in self.options.items() if f"--{name}" not in _SERVER_OPTIONS}
        return dict(self.options)


@dataclass(frozen=True, slots=True)
class RunRequest:
    """A request to run a runbook.

    Attributes:
        values: the value of every variable, by name.
        target: the target of every step.
        first: the number of the first step.
        earlier: the run that this run resumes.
        ask: whether to ask before each step that can change something.
        skip_manual: the names of the manual steps to skip.
    """

    runbook: Runbook
    values: Mapping[str, str]
    target: RunTarget
    first: int = 1
    earlier: EarlierRun | None = None
    ask: bool = True
    skip_manual: frozenset[str] = frozenset()


def command_of(request: RunRequest, step: Step) -> str:
    """Return the command of a step with the values of its variables, for a person to copy."""
    if step.kind is StepKind.manual:
        return commands.substitute_text(step.text, _known_values(request))
    return request.target.shown(commands.substitute(step.command, page_values(request)))


def prose_of(request: RunRequest, step: Step) -> str:
    """Return the prose of a step with the values of its variables."""
    return commands.substitute_text(step.prose, _known_values(request))


def go_back_of(request: RunRequest, made: Mapping[str, Sequence[str]]) -> str:
    """Return the section Go back with the values of its variables.

    A block that undoes a step (``made=STEP``) is omitted if that step created nothing: an object that existed before
    the run must not be dropped.

    Args:
        request: the request of the run.
        made: what the run created, by step.
    """
    kept: list[str] = []
    fence, omitted = "", False
    for line in request.runbook.go_back.split("\n"):
        if not fence and line.startswith("```"):
            fence = line[: len(line) - len(line.lstrip("`"))]
            undone = model.undone_step(line)
            omitted = undone is not None and not made.get(undone)
            if not omitted:
                kept.append(fence + "sh" if undone is not None else line)
            continue
        if not omitted:
            kept.append(line)
        if fence and line.strip() == fence:
            fence, omitted = "", False
    listed = [summary for lines in made.values() for summary in lines]
    what = f"This run applied: {', '.join(listed)}." if listed else "This run created nothing."
    text = re.sub(r"\n{3,}", "\n\n", "\n".join(kept)).strip()
    return f"{what}\n\n{commands.substitute_text(text, _known_values(request))}"


def skip_reason(request: RunRequest, step: Step) -> str | None:
    """Return why a step is skipped; None if it is not."""
    if step.only is not None and getattr(request.target, step.only) is None:
        return f"only for {'an' if step.only == 'instance' else 'a'} {step.only}"
    if step.with_variable is not None and not request.values[step.with_variable]:
        return f"only with --var {step.with_variable}=…"
    if step.name in request.skip_manual:
        return "manual step"
    return None


def require_target(runbook: Runbook, target: RunTarget) -> None:
    """Check that the target is a cluster or an instance, if the runbook requires one.

    Raises:
        BadValue: it is not.
    """
    if runbook.needs and not any(getattr(target, kind) for kind in runbook.needs):
        raise BadValue(
            f"runbook {runbook.name} requires a {' or an '.join(runbook.needs)}",
            hint=f"add {' or '.join(f'--{kind} ID' for kind in runbook.needs)}",
        )


def manual_steps(runbook: Runbook, names: Sequence[str]) -> frozenset[str]:
    """Return the names of the manual steps that NAMES (names or numbers) select.

    Raises:
        BadValue: a step does not exist, or is not a manual step.
    """
    steps = [runbook.step(name) for name in names]
    for step in steps:
        if step.kind is not StepKind.manual:
            manual = ", ".join(each.name for each in runbook.steps if each.kind is StepKind.manual)
            raise BadValue(
                f"--skip-manual {step.name}: step {step.number} is not a manual step ({step.kind.value})",
                hint=f"the manual steps are: {manual}" if manual else f"runbook {runbook.name} has no manual step",
            )
    return frozenset(step.name for step in steps)


def require_no_manual_steps(request: RunRequest, words: Sequence[str]) -> None:
    """Refuse a run with ``--yes`` that has a manual step which ``--skip-manual`` does not name.

    It is refused before its first step, because a stop at the manual step could leave a slot without a consumer.

    Args:
        request: the request.
        words: the words of the command, for the hint.

    Raises:
        NotConfirmed: there is such a step.
    """
    ahead = [
        step
        for step in request.runbook.steps
        if step.number >= request.first
        and step.kind is StepKind.manual
        and step.name not in request.skip_manual
        and skip_reason(request, step) is None
    ]
    if request.ask or not ahead:
        return
    listed = ", ".join(f"{step.number}. {step.title}" for step in ahead)
    skips = [word for step in ahead for word in ("--skip-manual", step.name)]
    raise NotConfirmed(
        f"runbook {request.runbook.name}: --yes cannot do the manual steps: {listed}; nothing was run",
        hint="run it on a terminal without --yes; or, if these steps are done or not needed: "
        f"{request.target.shown([*words, *skips])}",
    )


def resume_command(request: RunRequest) -> str:
    """Return the command that resumes a stopped run."""
    return request.target.shown(["runbook", "run", request.runbook.path_or_name, "--resume"])


def page_values(request: RunRequest) -> dict[str, str]:
    """Return the values by their names on the page: ``SLOT``."""
    identifiers = {"RDSREPL_CLUSTER": request.target.cluster, "RDSREPL_INSTANCE": request.target.instance}
    known = {name: value for name, value in identifiers.items() if value is not None}
    # --dry-run also shows the steps for the other kind of target.
    return (
        {"RDSREPL_CLUSTER": "CLUSTER", "RDSREPL_INSTANCE": "INSTANCE"}
        | known
        | {name.upper(): value for name, value in request.values.items()}
    )


def _known_values(request: RunRequest) -> dict[str, str]:
    """Return the values for prose; a variable without a value stays as on the page."""
    return {name: value for name, value in page_values(request).items() if value}
