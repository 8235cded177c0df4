"""Runs a page, step by step: shows, asks, runs, compares, keeps the journal, and stops at the first step that fails.

A command of a page is a command of this program: it runs in a process of its own, without a shell, with no input, and
in the place (target, cluster, …) that the whole run is for. A step that changes something is shown with ``--dry-run``
first, so that what is asked about is its plan, and then run with ``--yes``.
"""

from __future__ import annotations

import codecs
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, Protocol

from rdsrepl.errors import AppliedInPart, BadValue, Error, ExitCode, Interrupted, NotConfirmed, StepFailed
from rdsrepl.runbooks import commands, pages
from rdsrepl.runbooks.journal import Journal, Past, who
from rdsrepl.runbooks.pages import Kind, Runbook, Step
from rdsrepl.text.commands import command
from rdsrepl.text.masking import mask

# What may say where a command works; a step that says so itself gets none of the run's.
_OPTIONS: Final = ("target", "dsn", "cluster", "instance", "dbname", "user", "profile", "region")
_OWN_PLACE: Final = ("--target", "-t", "--dsn")
# Enough for what a person reads; a stream of changes may be much longer.
_KEPT_CHARACTERS: Final = 65_536


class Answer(Enum):
    """What a person says to a step."""

    yes = "yes"
    skip = "skip"
    quit = "quit"


@dataclass(frozen=True, slots=True)
class Place:
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
        if any(word.split("=")[0] in _OWN_PLACE for word in before):
            return {}
        return dict(self.options)


@dataclass(frozen=True, slots=True)
class Result:
    """How a step ended.

    Attributes:
        command: as it was shown; a manual step's text.
        status: ``done``, ``failed``, ``skipped``, ``passed_over``, ``quit``, ``interrupted``, ``planned``.
        reason: why, where it is not done.
        changed: whether it may have changed something.
        output: the end of what it printed.
        made: what it made that was not there before.
    """

    step: Step
    command: str
    status: str
    reason: str | None = None
    changed: bool = False
    exit_code: int | None = None
    seconds: float = 0.0
    output: str = field(default="", repr=False)
    made: tuple[str, ...] = ()


class Face(Protocol):
    """What a person sees of a run."""

    def begin(self, step: Step, words: str, command: str) -> None:
        """Say which step is next."""
        ...

    def planning(self, command: str) -> None:
        """Say that the plan of a change comes next."""
        ...

    def decide(self, step: Step) -> Answer:
        """Ask for it."""
        ...

    def output(self, text: str) -> None:
        """Pass on a piece of what the step prints."""
        ...

    def end(self, result: Result) -> None:
        """Say how a step ended."""
        ...


@dataclass(frozen=True, slots=True)
class Order:
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
    place: Place
    first: int = 1
    past: Past | None = None
    ask: bool = True
    skip_manual: frozenset[str] = frozenset()


def command_of(order: Order, step: Step) -> str:
    """Return a step's command as a person can type it, variables filled in."""
    if step.kind is Kind.manual:
        return commands.filled_text(step.text, _known(order))
    return order.place.shown(commands.filled(step.command, _values(order)))


def words_of(order: Order, step: Step) -> str:
    """Return a step's prose, variables filled in."""
    return commands.filled_text(step.words, _known(order))


def go_back_of(order: Order, made: Mapping[str, Sequence[str]]) -> str:
    """Return the page's way back, variables filled in.

    A block that undoes a step (``made=STEP``) is left out unless that step made something: what was there before the
    run is not offered to be dropped.

    Args:
        order: what was run.
        made: by step, what the run made that was not there before.
    """
    kept: list[str] = []
    fence, leaves_out = "", False
    for line in order.runbook.go_back.split("\n"):
        if not fence and line.startswith("```"):
            fence = line[: len(line) - len(line.lstrip("`"))]
            undone = pages.undone_step(line)
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
    return f"{what}\n\n{commands.filled_text(text, _known(order))}"


def made_in(order: Order, journal: Journal) -> dict[str, tuple[str, ...]]:
    """Return by step what the run, and the one that it goes on with, made that was not there before."""
    before = order.past.made if order.past else {}
    return {step.name: (*before.get(step.name, ()), *journal.made(step.name)) for step in order.runbook.steps}


def not_for(order: Order, step: Step) -> str | None:
    """Return why a step is passed over here; None where it is not."""
    if step.only is not None and getattr(order.place, step.only) is None:
        return f"for {'an' if step.only == 'instance' else 'a'} {step.only} only"
    if step.given is not None and not order.values[step.given]:
        return f"for a run with --var {step.given}=… only"
    if step.name in order.skip_manual:
        return "a person must do it, and --skip-manual names it"
    return None


def require_place(runbook: Runbook, place: Place) -> None:
    """Refuse a page that works on a cluster or an instance where there is none.

    Raises:
        BadValue: there is none.
    """
    if runbook.needs and not any(getattr(place, kind) for kind in runbook.needs):
        raise BadValue(
            f"runbook {runbook.name} works on a {' or an '.join(runbook.needs)}, and none is named",
            hint=" or ".join(f"--{kind} ID" for kind in runbook.needs),
        )


def skipped_by_name(runbook: Runbook, names: Sequence[str]) -> frozenset[str]:
    """Return the manual steps that NAMES (names or numbers) name.

    Raises:
        BadValue: a name is no step's, or the step is not a manual one.
    """
    steps = [runbook.step(name) for name in names]
    for step in steps:
        if step.kind is not Kind.manual:
            manual = ", ".join(each.name for each in runbook.steps if each.kind is Kind.manual)
            raise BadValue(
                f"--skip-manual {step.name}: step {step.number} is not a manual step ({step.kind.value})",
                hint=f"the manual steps: {manual}" if manual else f"runbook {runbook.name} has no manual step",
            )
    return frozenset(step.name for step in steps)


def require_nothing_manual(order: Order, words: Sequence[str]) -> None:
    """Refuse a run without questions that has a manual step ahead of it which nobody said to skip.

    It is refused before its first step: stopped at the manual step, it could leave a slot without a consumer.

    Args:
        order: what is to be run.
        words: the command as it was given, for the hint.

    Raises:
        NotConfirmed: it has one.
    """
    ahead = [
        step
        for step in order.runbook.steps
        if step.number >= order.first
        and step.kind is Kind.manual
        and step.name not in order.skip_manual
        and not_for(order, step) is None
    ]
    if order.ask or not ahead:
        return
    listed = ", ".join(f"{step.number}. {step.title}" for step in ahead)
    skips = [word for step in ahead for word in ("--skip-manual", step.name)]
    raise NotConfirmed(
        f"runbook {order.runbook.name}: --yes cannot do what a person must do: {listed}; nothing was run",
        hint=f"run it at a terminal without --yes, or, if these steps are done or not needed: "
        f"{order.place.shown([*words, *skips])}",
    )


def planned(order: Order) -> list[Result]:
    """Return what a run would do; nothing is run."""
    return [
        Result(step, command_of(order, step), "passed_over" if (why := not_for(order, step)) else "planned", why)
        for step in order.runbook.steps
        if step.number >= order.first
    ]


def run(order: Order, journal: Journal, face: Face) -> list[Result]:
    """Run the page.

    Raises:
        StepFailed: a step did not end as the page says, nothing was changed before.
        AppliedInPart: the same, or the person stopped, after something was changed.
        NotConfirmed: the person stopped before anything was changed.
        Interrupted: Ctrl-C; the steps that were done are listed, if any changed something.
    """
    return _Run(order, journal, face).all()


class _Run:
    def __init__(self, order: Order, journal: Journal, face: Face) -> None:
        self._order = order
        self._journal = journal
        self._face = face
        self._values = _values(order)
        past = order.past
        self._settled = dict(past.settled) if past else {}
        self._changed = past.changed if past else False
        self._results: list[Result] = []
        # Whether a command is under way that may change something.
        self._acting = False

    def all(self) -> list[Result]:
        order, runbook = self._order, self._order.runbook
        self._journal.write(
            "begin",
            runbook=runbook.name,
            page=str(runbook.path),
            digest=runbook.digest,
            who=who(),
            pid=os.getpid(),
            where=order.place.described(),
            variables=dict(order.values),
            first=order.first,
            resumes=order.past.run if order.past else None,
            settled=self._settled,
            changed=self._changed,
            made=dict(order.past.made) if order.past else {},
        )
        for step in runbook.steps:
            if step.number < order.first:
                continue
            try:
                self._journal.write("step_begin", step=step.name, number=step.number, kind=step.kind.value)
                result = self._step(step)
            except KeyboardInterrupt:
                # What was under way may have changed something before it heard of it.
                applied = self._journal.applied(step.name)
                changed = self._acting and (applied is None or bool(applied) or step.kind is Kind.run)
                made = self._journal.made(step.name)
                result = Result(step, command_of(order, step), "interrupted", changed=changed, made=made)
            self._end(result)
            if result.status in ("failed", "quit", "interrupted"):
                error = self._stopped(result)
                self._journal.write("end", status=result.status, exit_code=int(error.exit_code))
                raise error
        self._journal.write("end", status="done", exit_code=0)
        return self._results

    def _end(self, result: Result) -> None:
        self._results.append(result)
        self._changed = self._changed or result.changed
        if result.status in ("done", "skipped", "passed_over"):
            self._settled[result.step.name] = result.status
        self._journal.write(
            "step_end",
            step=result.step.name,
            number=result.step.number,
            status=result.status,
            reason=result.reason,
            changed=result.changed,
            command=None if result.step.kind is Kind.manual else result.command,
            exit_code=result.exit_code,
            seconds=round(result.seconds, 3),
        )
        self._face.end(result)

    def _step(self, step: Step) -> Result:
        command = command_of(self._order, step)
        if why := not_for(self._order, step):
            return Result(step, command, "passed_over", why)
        self._face.begin(step, words_of(self._order, step), command)
        if step.kind is Kind.manual:
            answer = self._face.decide(step)
            status = {Answer.yes: "done", Answer.skip: "skipped", Answer.quit: "quit"}[answer]
            return Result(step, command, status, changed=answer is Answer.yes)
        words = list(commands.filled(step.command, self._values))
        if self._order.ask and step.kind is not Kind.check:
            if step.kind is Kind.change:
                shown = _with(words, "--dry-run")
                self._face.planning(self._order.place.shown(shown))
                plan = self._execute(step, shown, command, acts=False)
                if plan.exit_code != 0:
                    # It fails as the step would, or there is nothing to do in a way that the page knows.
                    return plan
            answer = self._face.decide(step)
            if answer is not Answer.yes:
                return Result(step, command, "skipped" if answer is Answer.skip else "quit")
        if step.kind is Kind.change:
            words = _with(words, "--yes")
        return self._execute(step, words, command, acts=step.kind is not Kind.check)

    def _execute(self, step: Step, words: list[str], command: str, *, acts: bool) -> Result:
        # What the page says of the output is of the deed, not of its plan.
        expect = step.expect if "--dry-run" not in words else ()
        expectation = commands.Expectation(expect, self._values)
        started = time.monotonic()
        self._acting = acts
        env = self._order.place.environment(words) | self._journal.environment(step.name)
        code, output = _spawn(words, env, expectation.see, self._face.output)
        seconds = time.monotonic() - started
        if code in (-signal.SIGINT, ExitCode.INTERRUPTED):
            raise KeyboardInterrupt
        self._acting = False
        missing = expectation.missing
        reason = None
        if code not in step.exit_codes:
            wanted = " or ".join(map(str, step.exit_codes))
            how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit {code}"
            reason = f"{how}, not {wanted}"
        elif missing is not None:
            reason = f"its output lacks the line: {missing}"
        # A plan that stopped half way, or a process that was killed, has changed something or may have.
        changed = acts and (code in (*step.exit_codes, ExitCode.PARTIAL) or code < 0)
        applied = self._journal.applied(step.name)
        if step.kind is Kind.change and applied is not None and code >= 0:
            changed = acts and bool(applied)
        status = "done" if reason is None else "failed"
        made = self._journal.made(step.name) if acts else ()
        return Result(step, command, status, reason, changed, code, seconds, output, made)

    def _stopped(self, result: Result) -> Error:
        runbook, step = self._order.runbook, result.step
        place = f"step {step.number} of {len(runbook.steps)}, {step.name}"
        interrupted = result.status == "interrupted"
        why = "interrupted" if interrupted else "was not confirmed"
        why = f"failed: {result.reason}" if result.status == "failed" else why
        message = f"runbook {runbook.name}: {place}, {why}"
        hint = (
            f"go on with: {resume_command(self._order)} (add --from STEP to go on at another step); "
            f"go back: the page's section Go back, {command('runbook show {}', runbook.path_or_name)}"
        )
        if self._changed:
            done = [f"{item.number}. {item.title}" for item in runbook.steps if self._settled.get(item.name) == "done"]
            left = [
                f"{item.number}. {item.title}"
                for item in runbook.steps
                if item.number >= self._order.first and item.name not in self._settled
            ]
            if interrupted:
                return Interrupted(message, hint=hint, done=done, not_done=left)
            return AppliedInPart(message, hint=hint, done=done, not_done=left)
        if interrupted:
            return Interrupted(f"{message}; nothing was changed", hint=hint)
        if result.status == "quit":
            return NotConfirmed(f"{message}; nothing was changed", hint=hint)
        return StepFailed(f"{message}; nothing was changed", hint=hint)


def resume_command(order: Order) -> str:
    """Return what goes on with a run that stopped."""
    return order.place.shown(["runbook", "run", order.runbook.path_or_name, "--resume"])


def _values(order: Order) -> dict[str, str]:
    """Return the values by the names the page writes: ``SLOT``."""
    place = {"RDSREPL_CLUSTER": order.place.cluster, "RDSREPL_INSTANCE": order.place.instance}
    known = {name: value for name, value in place.items() if value is not None}
    # A step for another kind of place is shown in --dry-run, too.
    return (
        {"RDSREPL_CLUSTER": "CLUSTER", "RDSREPL_INSTANCE": "INSTANCE"}
        | known
        | {name.upper(): value for name, value in order.values.items()}
    )


def _known(order: Order) -> dict[str, str]:
    """Return the values for a text: what has none stays as the page writes it."""
    return {name: value for name, value in _values(order).items() if value}


def _with(words: list[str], option: str) -> list[str]:
    at = words.index("--") if "--" in words else len(words)
    return [*words[:at], option, *words[at:]]


def _spawn(
    words: Sequence[str], env: Mapping[str, str], line: Callable[[str], None], output: Callable[[str], None]
) -> tuple[int, str]:
    """Run a command of this installation; pass on what it prints as it comes; return its code and its output's end."""
    # -P: the installation that runs now, not a directory that happens to be called rdsrepl.
    command = [sys.executable, "-P", "-m", "rdsrepl", *words]
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    kept, rest = "", ""
    with subprocess.Popen(
        command, env=dict(env), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdout is not None
        try:
            while piece := os.read(process.stdout.fileno(), 65_536):
                text = decoder.decode(piece)
                output(text)
                kept = (kept + text)[-_KEPT_CHARACTERS:]
                *lines, rest = (rest + text).split("\n")
                for each in lines:
                    line(each)
        except BaseException:
            # At a terminal Ctrl-C went to both, and a second one would cut its tidy end short.
            if process.poll() is None and not sys.stdin.isatty():
                process.send_signal(signal.SIGINT)
            # What it says of the interruption is worth reading.
            while piece := os.read(process.stdout.fileno(), 65_536):
                output(decoder.decode(piece))
            process.wait()
            raise
    if rest:
        line(rest)
    return process.returncode, kept
