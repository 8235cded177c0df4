"""A runbook as data: its steps, and what each is."""

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
# What the place gives: the cluster or instance of --cluster, --instance or the target.
TARGET_VARIABLES: Final = ("RDSREPL_CLUSTER", "RDSREPL_INSTANCE")
TARGET_KINDS: Final = ("cluster", "instance")
_UNDOES: Final = re.compile(r"`{3,}\s*sh made=(\S+)\s*\Z")


class StepKind(StrEnum):
    """What a step does: it only looks; it changes something and has a plan; it acts without a plan; a person acts."""

    check = "check"
    change = "change"
    run = "run"
    manual = "manual"


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a page.

    Attributes:
        number: counted from 1 over the whole page.
        name: its title in lower case with hyphens; ``--from`` takes it, or the number.
        section: the heading it stands under.
        prose: its text, Markdown.
        kind: what it does.
        text: what stands in its block.
        command: the same in words, without the leading ``rdsrepl``; empty for a manual step.
        exit_codes: those that are good.
        expect: lines that the output must have.
        only: ``cluster`` or ``instance``, where it is for one of them alone.
        with_variable: the variable without which it is passed over.
        line: of its block in the page.
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
    """A page as read.

    Attributes:
        name: the file's, without ``.md``.
        when: when to use it, in a sentence.
        needs: the kinds of place it works on: ``cluster``, ``instance``; empty where any database does.
        go_back: the section for people, as Markdown.
        body: the whole page without its front matter.
        digest: of the file, so that a run is not resumed on another page.
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
        """What ``rdsrepl runbook`` takes for it."""
        return self.name if self.path.parent == directory() else str(self.path)

    def step(self, name: str) -> Step:
        """Return a step by its name or number.

        Raises:
            BadValue: there is none.
        """
        for step in self.steps:
            if name in (step.name, str(step.number)):
                return step
        names = [step.name for step in self.steps]
        hint = did_you_mean(name, names, otherwise=f"its steps: 1 to {len(names)}, or {', '.join(names)}")
        raise BadValue(f"runbook {self.name} has no step {name!r}", hint=hint)


def undone_step(line: str) -> str | None:
    """Return the step that a block under ``## Go back`` undoes, from the line that opens it: ``made=STEP``."""
    match = _UNDOES.match(line)
    return match[1] if match else None


def directory() -> Path:
    """Return where the pages are.

    Raises:
        NotFound: this installation has none.
    """
    return help_topics.directory() / "runbooks"
