"""A request to run a runbook: which page, with which values, on which target."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from rdsrepl.errors import BadValue, NotConfirmed
from rdsrepl.runbooks import commands, model
from rdsrepl.runbooks.journal import EarlierRun
from rdsrepl.runbooks.model import Runbook, Step, StepKind
from rdsrepl.text.masking import mask

# What may say where a command works; a step that says so itself gets none of the run's.
_OPTIONS: Final = ("target", "dsn", "cluster", "instance", "dbname", "user", "profile", "region")
_TARGET_OPTIONS: Final = ("--target", "-t", "--dsn")


@dataclass(frozen=True, slots=True)
class RunTarget:
    """Where the whole run works.

    Attributes:
        options: the connection options by name (``target``, ``cluster``, …), as they were given.
        cluster: the cluster's identifier, also where the target says it.
        instance: the instance's, likewise.
    """

    options: Mapping[str, str]
    cluster: str | None = None
    instance: str | None = None

    def described(self) -> dict[str, str]:
        """Return the options, no secret among them."""
        shown = {**self.options}
        if "dsn" in shown:
            shown["dsn"] = mask(shown["dsn"])
        return shown

    def environment(self, words: Sequence[str]) -> dict[str, str]:
        """Return a command's environment: the place goes there, so that no password stands among the words."""
        kept = {f"RDSREPL_{name.upper()}" for name in (*_OPTIONS, "output")}
        env = {key: value for key, value in os.environ.items() if key not in kept}
        return env | {f"RDSREPL_{name.upper()}": value for name, value in self._options(words).items()}

    def shown(self, words: Sequence[str]) -> str:
        """Return a command as a person can type it."""
        own = self._options(words)
        options = [word for name, value in self.described().items() if name in own for word in (f"--{name}", value)]
        return shlex.join(["rdsrepl", *options, *words])

    def _options(self, words: Sequence[str]) -> dict[str, str]:
        before = words[: words.index("--")] if "--" in words else words
        if any(word.split("=")[0] in _TARGET_OPTIONS for word in before):
            return {}
        return dict(self.options)


@dataclass(frozen=True, slots=True)
class RunRequest:
    """What is to be run.

    Attributes:
        values: of the page's variables, by their names there, all of them.
        first: the number of the first step.
        past: the run that this one goes on with.
        ask: whether somebody is asked before each step that acts.
        skip_manual: the names of the manual steps that are passed over.
    """

    runbook: Runbook
    values: Mapping[str, str]
    target: RunTarget
    first: int = 1
    earlier: EarlierRun | None = None
    ask: bool = True
    skip_manual: frozenset[str] = frozenset()


def command_of(request: RunRequest, step: Step) -> str:
    """Return a step's command as a person can type it, variables filled in."""
    if step.kind is StepKind.manual:
        return commands.substitute_text(step.text, _known_values(request))
    return request.target.shown(commands.substitute(step.command, page_values(request)))


def prose_of(request: RunRequest, step: Step) -> str:
    """Return a step's prose, variables filled in."""
    return commands.substitute_text(step.prose, _known_values(request))


def go_back_of(request: RunRequest, made: Mapping[str, Sequence[str]]) -> str:
    """Return the page's way back, variables filled in.

    A block that undoes a step (``made=STEP``) is left out unless that step made something: what was there before the
    run is not offered to be dropped.

    Args:
        request: what was run.
        made: by step, what the run made that was not there before.
    """
    kept: list[str] = []
    fence, leaves_out = "", False
    for line in request.runbook.go_back.split("\n"):
        if not fence and line.startswith("```"):
            fence = line[: len(line) - len(line.lstrip("`"))]
            undone = model.undone_step(line)
            leaves_out = undone is not None and not made.get(undone)
            if not leaves_out:
                kept.append(fence + "sh" if undone is not None else line)
            continue
        if not leaves_out:
            kept.append(line)
        if fence and line.strip() == fence:
            fence, leaves_out = "", False
    listed = [summary for lines in made.values() for summary in lines]
    what = f"This run did: {', '.join(listed)}." if listed else "This run made nothing that was not there before."
    text = re.sub(r"\n{3,}", "\n\n", "\n".join(kept)).strip()
    return f"{what}\n\n{commands.substitute_text(text, _known_values(request))}"


def skip_reason(request: RunRequest, step: Step) -> str | None:
    """Return why a step is passed over here; None where it is not."""
    if step.only is not None and getattr(request.target, step.only) is None:
        return f"for {'an' if step.only == 'instance' else 'a'} {step.only} only"
    if step.with_variable is not None and not request.values[step.with_variable]:
        return f"for a run with --var {step.with_variable}=… only"
    if step.name in request.skip_manual:
        return "a person must do it, and --skip-manual names it"
    return None


def require_target(runbook: Runbook, target: RunTarget) -> None:
    """Refuse a page that works on a cluster or an instance where there is none.

    Raises:
        BadValue: there is none.
    """
    if runbook.needs and not any(getattr(target, kind) for kind in runbook.needs):
        raise BadValue(
            f"runbook {runbook.name} works on a {' or an '.join(runbook.needs)}, and none is named",
            hint=" or ".join(f"--{kind} ID" for kind in runbook.needs),
        )


def manual_steps(runbook: Runbook, names: Sequence[str]) -> frozenset[str]:
    """Return the manual steps that NAMES (names or numbers) name.

    Raises:
        BadValue: a name is no step's, or the step is not a manual one.
    """
    steps = [runbook.step(name) for name in names]
    for step in steps:
        if step.kind is not StepKind.manual:
            manual = ", ".join(each.name for each in runbook.steps if each.kind is StepKind.manual)
            raise BadValue(
                f"--skip-manual {step.name}: step {step.number} is not a manual step ({step.kind.value})",
                hint=f"the manual steps: {manual}" if manual else f"runbook {runbook.name} has no manual step",
            )
    return frozenset(step.name for step in steps)


def require_no_manual_steps(request: RunRequest, words: Sequence[str]) -> None:
    """Refuse a run without questions that has a manual step ahead of it which nobody said to skip.

    It is refused before its first step: stopped at the manual step, it could leave a slot without a consumer.

    Args:
        request: what is to be run.
        words: the command as it was given, for the hint.

    Raises:
        NotConfirmed: it has one.
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
        f"runbook {request.runbook.name}: --yes cannot do what a person must do: {listed}; nothing was run",
        hint=f"run it at a terminal without --yes, or, if these steps are done or not needed: "
        f"{request.target.shown([*words, *skips])}",
    )


def resume_command(request: RunRequest) -> str:
    """Return what goes on with a run that stopped."""
    return request.target.shown(["runbook", "run", request.runbook.path_or_name, "--resume"])


def page_values(request: RunRequest) -> dict[str, str]:
    """Return the values by the names the page writes: ``SLOT``."""
    identifiers = {"RDSREPL_CLUSTER": request.target.cluster, "RDSREPL_INSTANCE": request.target.instance}
    known = {name: value for name, value in identifiers.items() if value is not None}
    # A step for another kind of place is shown in --dry-run, too.
    return (
        {"RDSREPL_CLUSTER": "CLUSTER", "RDSREPL_INSTANCE": "INSTANCE"}
        | known
        | {name.upper(): value for name, value in request.values.items()}
    )


def _known_values(request: RunRequest) -> dict[str, str]:
    """Return the values for a text: what has none stays as the page writes it."""
    return {name: value for name, value in page_values(request).items() if value}
