"""Run a runbook step by step: show, confirm, run, check the output, write the journal; stop at the first failure.

The command of a step is a command of ``rdsrepl``. It runs in its own process, without a shell and without input, on the
target of the run. A step that changes something first runs with ``--dry-run``, so that the user confirms its plan, and
then with ``--yes``.
"""

from __future__ import annotations

import codecs
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, Protocol

from rdsrepl.errors import AppliedInPart, Error, ExitCode, Interrupted, NotConfirmed, StepFailed
from rdsrepl.runbooks import commands
from rdsrepl.runbooks.journal import COMPLETED, Journal
from rdsrepl.runbooks.model import Step, StepKind
from rdsrepl.runbooks.run_request import RunRequest, command_of, page_values, prose_of, resume_command, skip_reason
from rdsrepl.state import audit
from rdsrepl.text.commands import command

# Enough for a person; a stream of changes can be much longer.
_KEPT_CHARACTERS: Final = 65_536


class Answer(Enum):
    """The answer of the user to a step."""

    yes = "yes"
    skip = "skip"
    quit = "quit"


@dataclass(frozen=True, slots=True)
class Result:
    """How a step ended.

    Attributes:
        command: the command as shown; the text of a manual step.
        status: ``done``, ``failed``, ``skipped``, ``passed_over``, ``quit``, ``interrupted``, ``planned``.
        reason: why it is not ``done``.
        changed: whether it changed something, or could have.
        output: the end of its output.
        made: what it created.
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


class RunDisplay(Protocol):
    """Shows a run to the user."""

    def begin(self, step: Step, words: str, command: str) -> None:
        """Show the next step."""
        ...

    def planning(self, command: str) -> None:
        """Show that the plan of a change follows."""
        ...

    def decide(self, step: Step) -> Answer:
        """Ask whether to run the step."""
        ...

    def output(self, text: str) -> None:
        """Show a piece of the step's output."""
        ...

    def end(self, result: Result) -> None:
        """Show the result of a step."""
        ...


def made_by_run(request: RunRequest, journal: Journal) -> dict[str, tuple[str, ...]]:
    """Return what the run, and the run that it resumes, created, by step."""
    before = request.earlier.made if request.earlier else {}
    return {step.name: (*before.get(step.name, ()), *journal.made(step.name)) for step in request.runbook.steps}


def plan_steps(request: RunRequest) -> list[Result]:
    """Return the steps of a run without running them."""
    return [
        Result(
            step, command_of(request, step), "passed_over" if (why := skip_reason(request, step)) else "planned", why
        )
        for step in request.runbook.steps
        if step.number >= request.first
    ]


def run(request: RunRequest, journal: Journal, display: RunDisplay) -> list[Result]:
    """Run the runbook.

    Raises:
        StepFailed: a step failed before anything was changed.
        AppliedInPart: a step failed, or the user quit, after something was changed.
        NotConfirmed: the user quit before anything was changed.
        Interrupted: Ctrl-C; lists the completed steps if one of them changed something.
    """
    return _Run(request, journal, display).all()


class _Run:
    def __init__(self, request: RunRequest, journal: Journal, display: RunDisplay) -> None:
        self._request = request
        self._journal = journal
        self._display = display
        self._values = page_values(request)
        earlier = request.earlier
        self._completed = dict(earlier.completed) if earlier else {}
        self._changed = earlier.changed if earlier else False
        self._results: list[Result] = []
        # Whether a command that can change something is running.
        self._acting = False

    def all(self) -> list[Result]:
        request, runbook = self._request, self._request.runbook
        self._journal.write(
            "begin",
            runbook=runbook.name,
            page=str(runbook.path),
            digest=runbook.digest,
            who=audit.user_and_host(),
            pid=os.getpid(),
            where=request.target.described(),
            variables=dict(request.values),
            first=request.first,
            resumes=request.earlier.run if request.earlier else None,
            settled=self._completed,
            changed=self._changed,
            made=dict(request.earlier.made) if request.earlier else {},
        )
        for step in runbook.steps:
            if step.number < request.first:
                continue
            try:
                self._journal.write("step_begin", step=step.name, number=step.number, kind=step.kind.value)
                result = self._step(step)
            except KeyboardInterrupt:
                # The running command can have changed something before the interrupt.
                applied = self._journal.applied(step.name)
                changed = self._acting and (applied is None or bool(applied) or step.kind is StepKind.run)
                made = self._journal.made(step.name)
                result = Result(step, command_of(request, step), "interrupted", changed=changed, made=made)
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
        if result.status in COMPLETED:
            self._completed[result.step.name] = result.status
        self._journal.write(
            "step_end",
            step=result.step.name,
            number=result.step.number,
            status=result.status,
            reason=result.reason,
            changed=result.changed,
            command=None if result.step.kind is StepKind.manual else result.command,
            exit_code=result.exit_code,
            seconds=round(result.seconds, 3),
        )
        self._display.end(result)

    def _step(self, step: Step) -> Result:
        command = command_of(self._request, step)
        if why := skip_reason(self._request, step):
            return Result(step, command, "passed_over", why)
        self._display.begin(step, prose_of(self._request, step), command)
        if step.kind is StepKind.manual:
            answer = self._display.decide(step)
            status = {Answer.yes: "done", Answer.skip: "skipped", Answer.quit: "quit"}[answer]
            return Result(step, command, status, changed=answer is Answer.yes)
        words = list(commands.substitute(step.command, self._values))
        if self._request.ask and step.kind is not StepKind.check:
            if step.kind is StepKind.change:
                shown = _with_option(words, "--dry-run")
                self._display.planning(self._request.target.shown(shown))
                plan = self._execute(step, shown, command, acts=False)
                if plan.exit_code != 0:
                    # The step would fail the same way, or has nothing to do with an expected exit code.
                    return plan
            answer = self._display.decide(step)
            if answer is not Answer.yes:
                return Result(step, command, "skipped" if answer is Answer.skip else "quit")
        if step.kind is StepKind.change:
            words = _with_option(words, "--yes")
        return self._execute(step, words, command, acts=step.kind is not StepKind.check)

    def _execute(self, step: Step, words: list[str], command: str, *, acts: bool) -> Result:
        # The expected lines are those of the applied step, not of its plan.
        expect = step.expect if "--dry-run" not in words else ()
        expectation = commands.Expectation(expect, self._values)
        started = time.monotonic()
        self._acting = acts
        env = self._request.target.environment(words) | self._journal.environment(step.name)
        code, output = _spawn(words, env, expectation.see, self._display.output)
        seconds = time.monotonic() - started
        if code in (-signal.SIGINT, ExitCode.INTERRUPTED):
            raise KeyboardInterrupt
        self._acting = False
        missing = expectation.missing
        reason = None
        if code not in step.exit_codes:
            wanted = " or ".join(map(str, step.exit_codes))
            how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit {code}"
            reason = f"{how}, expected {wanted}"
        elif missing is not None:
            reason = f"expected line is missing in the output: {missing}"
        # A plan that was applied in part has changed something; a process that was killed can have.
        changed = acts and (code in (*step.exit_codes, ExitCode.PARTIAL) or code < 0)
        applied = self._journal.applied(step.name)
        if step.kind is StepKind.change and applied is not None and code >= 0:
            changed = acts and bool(applied)
        status = "done" if reason is None else "failed"
        made = self._journal.made(step.name) if acts else ()
        return Result(step, command, status, reason, changed, code, seconds, output, made)

    def _stopped(self, result: Result) -> Error:
        runbook, step = self._request.runbook, result.step
        at = f"step {step.number} of {len(runbook.steps)}, {step.name}"
        interrupted = result.status == "interrupted"
        why = "interrupted" if interrupted else "was not confirmed"
        why = f"failed: {result.reason}" if result.status == "failed" else why
        message = f"runbook {runbook.name}: {at}, {why}"
        hint = (
            f"resume with: {resume_command(self._request)} (add --from STEP to start at another step); "
            f"to undo: section Go back of {command('runbook show {}', runbook.path_or_name)}"
        )
        if self._changed:
            done = [
                f"{item.number}. {item.title}" for item in runbook.steps if self._completed.get(item.name) == "done"
            ]
            left = [
                f"{item.number}. {item.title}"
                for item in runbook.steps
                if item.number >= self._request.first and item.name not in self._completed
            ]
            if interrupted:
                return Interrupted(message, hint=hint, done=done, not_done=left)
            return AppliedInPart(message, hint=hint, done=done, not_done=left)
        if interrupted:
            return Interrupted(f"{message}; nothing was changed", hint=hint)
        if result.status == "quit":
            return NotConfirmed(f"{message}; nothing was changed", hint=hint)
        return StepFailed(f"{message}; nothing was changed", hint=hint)


def _with_option(words: list[str], option: str) -> list[str]:
    at = words.index("--") if "--" in words else len(words)
    return [*words[:at], option, *words[at:]]


def _spawn(
    words: Sequence[str], env: Mapping[str, str], line: Callable[[str], None], output: Callable[[str], None]
) -> tuple[int, str]:
    """Run a command of this installation; forward its output; return its exit code and the end of its output."""
    # -P: run this installation, not a directory named rdsrepl in the working directory.
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
        except BaseException as exc:
            # On a terminal both processes received Ctrl-C, and a second signal would stop the clean end.
            both = sys.stdin.isatty() and isinstance(exc, KeyboardInterrupt) and exc.args != (signal.SIGTERM,)
            if process.poll() is None and not both:
                process.send_signal(signal.SIGINT)
            # Show what it prints about the interruption.
            while piece := os.read(process.stdout.fileno(), 65_536):
                output(decoder.decode(piece))
            process.wait()
            raise
    if rest:
        line(rest)
    return process.returncode, kept
