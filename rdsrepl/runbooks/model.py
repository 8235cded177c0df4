"""A runbook as data: its steps and their kinds."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from rdsrepl import help_topics
from rdsrepl.errors import BadValue
from rdsrepl.runbooks import commands
from rdsrepl.runbooks.variables import Variable
from rdsrepl.text.suggestions import did_you_mean

SECTIONS: Final = ("Checks first", "Steps", "Verify", "Go back")
# Set by the run: the cluster or instance of --cluster, --instance or the target.
TARGET_VARIABLES: Final = ("RDSREPL_CLUSTER", "RDSREPL_INSTANCE")
TARGET_KINDS: Final = ("cluster", "instance")
_UNDOES: Final = re.compile(r"`{3,}\s*sh made=(\S+)\s*\Z")


class StepKind(StrEnum):
    """The kind of a step.

    ``check`` only reads; ``change`` changes something and has a plan; ``run`` acts without a plan; the user does a
    ``manual`` step.
    """

    check = "check"
    change = "change"
    run = "run"
    manual = "manual"


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a page.

    Attributes:
        number: counted from 1 over the whole page.
        name: its title in lower case with hyphens; ``--from`` takes the name or the number.
        section: the section that contains it.
        prose: its text, Markdown.
        text: the text of its block.
        command: the words of the block without the leading ``rdsrepl``; empty for a manual step.
        exit_codes: the exit codes of success.
        expect: the lines that the output must contain.
        only: ``cluster`` or ``instance`` if the step is only for this kind of target.
        with_variable: the variable without which the step is skipped.
        line: the line of its block in the page.
    """

    number: int
    name: str
    title: str
    section: str
    prose: str
    kind: StepKind
    text: str
    command: tuple[commands.Word, ...]
    exit_codes: tuple[int, ...]
    expect: tuple[str, ...]
    only: str | None
    with_variable: str | None
    line: int


@dataclass(frozen=True, slots=True)
class Runbook:
    """A parsed page.

    Attributes:
        name: the name of the file without ``.md``.
        when: when to use it, in one sentence.
        needs: the kinds of target it requires: ``cluster``, ``instance``; empty if any database is sufficient.
        go_back: the section Go back, as Markdown.
        body: the page without its front matter.
        digest: the digest of the file, so that a run is not resumed with another page.
    """

    name: str
    title: str
    when: str
    needs: tuple[str, ...]
    variables: tuple[Variable, ...]
    steps: tuple[Step, ...]
    go_back: str
    body: str
    path: Path
    digest: str

    @property
    def path_or_name(self) -> str:
        """The argument of ``rdsrepl runbook`` that selects it."""
        return self.name if self.path.parent == directory() else str(self.path)

    def step(self, name: str) -> Step:
        """Return a step by its name or number.

        Raises:
            BadValue: no step has this name or number.
        """
        for step in self.steps:
            if name in (step.name, str(step.number)):
                return step
        names = [step.name for step in self.steps]
        hint = did_you_mean(name, names, otherwise=f"the steps are 1 to {len(names)}, or {', '.join(names)}")
        raise BadValue(f"runbook {self.name} has no step {name!r}", hint=hint)


def undone_step(line: str) -> str | None:
    """Return the step that a block of ``## Go back`` undoes, from ``made=STEP`` in its first line."""
    match = _UNDOES.match(line)
    return match[1] if match else None


def directory() -> Path:
    """Return the directory of the pages.

    Raises:
        NotFound: this installation has no pages.
    """
    return help_topics.directory() / "runbooks"
