"""``rdsrepl runbook``: list, show and run the runbooks of ``docs/runbooks``."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rdsrepl.cli import hints, standard_streams
from rdsrepl.cli.command_classes import LocalCommand, LocalListCommand, ReadCommand
from rdsrepl.cli.console import is_interactive, note, prompt_line, warn
from rdsrepl.cli.context import global_options
from rdsrepl.cli.lists import print_list
from rdsrepl.cli.targets import aws_target
from rdsrepl.errors import AppliedInPart, BadValue, Error, NotConfirmed, NotFound, OutputClosed, Refused, SinkFailed
from rdsrepl.render import Column, Format, Listing, console, emit, facts, paged, print_lines, stacked
from rdsrepl.text.counts import form
from rdsrepl.text.escapes import json_text, shown
from rdsrepl.units import format_duration

if TYPE_CHECKING:
    from rdsrepl.runbooks.journal import EarlierRun, Journal
    from rdsrepl.runbooks.model import Runbook, Step
    from rdsrepl.runbooks.run_request import RunRequest, RunTarget
    from rdsrepl.runbooks.runner import Answer, Result

app = typer.Typer(no_args_is_help=True, help="List, show and run runbooks step by step.")


def complete_runbook() -> list[str]:
    """Return the runbooks' names for the shell."""
    from rdsrepl.runbooks import pages

    try:
        return list(pages.names())
    except (Error, OSError):
        return []


Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="The runbook, or your own file (./mine.md).",
        autocompletion=complete_runbook,
        show_default=False,
    ),
]


@dataclass(frozen=True, slots=True)
class RunbookRow:
    """A runbook as ``list`` prints it; ``steps`` is their number."""

    name: str
    title: str
    when: str
    needs: tuple[str, ...]
    steps: int


@app.command("list", cls=LocalListCommand)
def list_(ctx: typer.Context) -> None:
    """List the runbooks and when to use each.

    Example: rdsrepl runbook list
    """
    from rdsrepl.runbooks import pages

    def read() -> list[RunbookRow]:
        loaded = [pages.load(name) for name in pages.names()]
        return [RunbookRow(one.name, one.title, one.when, tuple(one.needs), len(one.steps)) for one in loaded]

    columns = (
        Column("RUNBOOK", lambda row: row.name, "name", kind="name"),
        Column("STEPS", lambda row: row.steps, "steps", priority=2, kind="number"),
        Column("WHEN", lambda row: row.when, "when", kind="prose"),
    )
    print_list(ctx, Listing(RunbookRow, columns, "no runbooks"), read)


@app.command(cls=LocalCommand)
def show(ctx: typer.Context, name: Name) -> None:
    """Show a runbook: when to use it, its variables, its steps, and how to undo them.

    On a terminal the page is formatted, and paged if it is longer than the screen. Otherwise the output is the Markdown
    of the page.

    Example: rdsrepl runbook show abandoned-slot
    """
    from rdsrepl.runbooks import pages

    runbook = pages.load(name)
    output = global_options(ctx).output
    if not output.is_table:
        emit(pages.as_document(runbook), output, lambda: "")
        return
    if not sys.stdout.isatty():
        sys.stdout.write(runbook.path.read_text(encoding="utf-8"))
        return
    from rich.markdown import Markdown

    from rdsrepl import help_topics

    known = [("when", runbook.when), ("requires", " or ".join(runbook.needs) or "any database")]
    known += [(f"--var {variable.name}", _described(variable)) for variable in runbook.variables]
    page = Markdown(
        shown(help_topics.for_terminal(runbook.body), keep="\n\t"), hyperlinks=False, code_theme="ansi_dark"
    )
    paged(stacked(facts(known), "", page))


def _described(variable: Any) -> str:
    if variable.required:
        return f"{variable.help} (required)"
    return f"{variable.help} (default: {variable.default})" if variable.default else f"{variable.help} (optional)"


@app.command(cls=ReadCommand)
def run(
    ctx: typer.Context,
    name: Name,
    var: Annotated[
        list[str] | None,
        typer.Option("--var", metavar="NAME=VALUE", help="Set a variable; may be repeated.", show_default=False),
    ] = None,
    from_: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="STEP",
            help="Start at this step (number or name); with --resume, with the variables of that run.",
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Resume the last run on this target where it stopped, with its variables.",
            show_default=False,
        ),
    ] = False,
    yes: Annotated[
        bool,
        typer.Option(
            "--yes",
            "-y",
            help="Run without confirmation; refused (4) if a manual step is not skipped with --skip-manual.",
            show_default=False,
        ),
    ] = False,
    skip_manual: Annotated[
        list[str] | None,
        typer.Option(
            "--skip-manual",
            metavar="STEP",
            help="Skip this manual step (name or number); may be repeated.",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show every step with its command; run nothing.", show_default=False)
    ] = False,
) -> None:
    """Run a runbook step by step on the --target, --cluster, --instance or --dsn of this command.

    Each step is shown with its complete command. A check only reads, so it runs without confirmation. Before any other
    step the command asks: y runs it, s skips it, q quits. A change shows its plan first. The run stops at the first
    step with an unexpected exit code or output. --resume continues it from the journal in the state directory.

    Example: rdsrepl runbook run abandoned-slot --var slot=old_cdc --cluster orders
    """
    from rdsrepl.runbooks import pages, run_request, runner, variables

    runbook = pages.load(name)
    first = None if from_ is None else runbook.step(from_).number
    skipped = run_request.manual_steps(runbook, skip_manual or ())
    given = variables.parse_assignments(var or (), runbook.variables)
    target = _target_of_run(ctx)
    run_request.require_target(runbook, target)
    earlier = _last_run(runbook, target, required=resume)
    if resume:
        earlier, first = _resumed(runbook, earlier, given, first)
        known = {variable.name: variable for variable in runbook.variables}
        given = {
            name: variables.check_value(known[name], value)
            for name, value in earlier.variables.items()
            if name in known
        }
    if is_interactive() and not yes:
        given = _asked(ctx, runbook, given, target)
    request = run_request.RunRequest(
        runbook,
        variables.with_defaults(given, runbook.variables),
        target,
        first=first or 1,
        earlier=earlier if resume else None,
        ask=not yes,
        skip_manual=skipped,
    )
    if dry_run:
        _show_plan(ctx, request, runner.plan_steps(request))
        return
    if not yes and not is_interactive():
        raise NotConfirmed(
            f"runbook {runbook.name}: confirmation required but stdin is not a terminal; nothing was run",
            hint="add --yes to run it, or --dry-run to show the steps",
        )
    run_request.require_no_manual_steps(request, _same_command(runbook, var, from_, skip_manual, resume=resume))
    if earlier is not None and not resume and from_ is None and earlier.ended != "done":
        again = run_request.resume_command(request)
        note(ctx, f"the run of {earlier.at} stopped{_stopped_where(earlier)}; to resume it: {again}")
    _run(ctx, request)


def _asked(ctx: typer.Context, runbook: Runbook, given: dict[str, str], target: RunTarget) -> dict[str, str]:
    """Return all values, asked for where they are missing, and print the command that needs no question."""
    from rdsrepl.cli import variable_prompt

    values = variable_prompt.ask_missing(ctx, runbook, given)
    if values != given:
        words = [word for name, value in values.items() for word in ("--var", f"{name}={value}")]
        note(ctx, f"without questions: {target.shown(['runbook', 'run', runbook.path_or_name, *words])}")
    return values


def _last_run(runbook: Runbook, target: RunTarget, *, required: bool) -> EarlierRun | None:
    """Return the last run of a runbook on a target; None if there is none, or it is damaged and not required."""
    from rdsrepl.runbooks.journal import last_run

    try:
        return last_run(runbook.name, target.described())
    except Refused:
        if required:
            raise
        return None


def _run(ctx: typer.Context, request: RunRequest) -> None:
    """Run the steps, show them, and report the result."""
    from rdsrepl.runbooks import runner
    from rdsrepl.runbooks.journal import Journal

    name = request.runbook.name
    journal = Journal(name)
    display = _Display(ctx, request.runbook)
    try:
        results = runner.run(request, journal, display)
    except Error as exc:
        display.close()
        if isinstance(exc, AppliedInPart) and (exc.done or exc.not_done) and global_options(ctx).output.is_table:
            _show_go_back(ctx, request, journal)
        raise
    finally:
        if journal.failed:
            warn(ctx, f"could not write the journal of this run: {journal.failed}")
    display.close()
    skipped = sum(result.status in ("skipped", "passed_over") for result in results)
    rest = f", {skipped} of them skipped" if skipped else ""
    steps = form(len(results), "its step", f"all {len(results)} steps")
    note(
        ctx,
        f"runbook {name}: {steps} completed{rest}; journal: {journal.path}",
    )


def _target_of_run(ctx: typer.Context) -> RunTarget:
    """Return the target of the run; name the current target, so that it does not change during the run."""
    from rdsrepl import config
    from rdsrepl.runbooks.run_request import RunTarget

    options = global_options(ctx)
    names = ["target", "dsn", "cluster", "instance", "dbname", "user"]
    # The profile and the region of a typed target take precedence over RDSREPL_PROFILE and RDSREPL_REGION.
    names += [name for name in ("profile", "region") if name in options.typed or "target" not in options.typed]
    given: dict[str, str] = {name: value for name in names if (value := getattr(options, name)) is not None}
    if "target" not in given and "dsn" not in given and (current := config.load().current) is not None:
        given["target"] = current
    aws = aws_target(ctx).aws
    return RunTarget(given, aws.cluster, aws.instance, taken_by=lambda words: hints.server_options(ctx, words))


def _same_command(
    runbook: Runbook, var: list[str] | None, from_: str | None, skip_manual: list[str] | None, *, resume: bool
) -> list[str]:
    """Return the words of this command, for a hint."""
    words = ["runbook", "run", runbook.path_or_name, "--yes", *(["--resume"] if resume else [])]
    words += [] if from_ is None else ["--from", from_]
    for option, values in (("--var", var), ("--skip-manual", skip_manual)):
        words += [word for value in values or () for word in (option, value)]
    return words


def _resumed(
    runbook: Runbook, earlier: EarlierRun | None, given: dict[str, str], first: int | None
) -> tuple[EarlierRun, int]:
    """Return the run to resume, and the number of the step to start at.

    Args:
        runbook: the runbook.
        earlier: its last run on this target.
        given: the variables of this command.
        first: the number of the ``--from`` step; None starts where the last run stopped.

    Raises:
        NotFound: there is no run to resume.
        Refused: the page has changed, and ``--from`` is missing.
        BadValue: a variable has another value than in that run.
    """
    if earlier is None or earlier.ended == "done":
        what = (
            "it has no earlier run on this target" if earlier is None else f"its last run, of {earlier.at}, is complete"
        )
        raise NotFound(f"runbook {runbook.name}: nothing to resume: {what}", hint="run it without --resume")
    if earlier.digest != runbook.digest and first is None:
        raise Refused(
            f"runbook {runbook.name}: its page has changed since the run of {earlier.at}",
            hint="read the page, and give the step to start at: --resume --from STEP",
        )
    for name, value in given.items():
        if earlier.variables.get(name) != value:
            raise BadValue(
                f"--var {name}={value}: the run to resume has {earlier.variables.get(name)!r}",
                hint="omit --var, or start a new run without --resume",
            )
    if first is not None:
        return earlier, first
    # Steps run in order: every step before a completed step is completed.
    behind = max((step.number for step in runbook.steps if step.name in earlier.completed), default=0)
    for step in runbook.steps:
        if step.name == earlier.stopped_at or (earlier.stopped_at is None and step.number > behind):
            return earlier, step.number
    raise NotFound(f"runbook {runbook.name}: nothing to resume: all its steps are done", hint="run it without --resume")


def _stopped_where(earlier: EarlierRun) -> str:
    if earlier.stopped_at is None:
        return ", and the outcome of its last step is unknown" if earlier.unknown else ""
    return f" at {earlier.stopped_at}" + (", and the outcome of that step is unknown" if earlier.unknown else "")


def _show_plan(ctx: typer.Context, request: RunRequest, results: list[Result]) -> None:
    from rdsrepl.runbooks import run_request

    if not global_options(ctx).output.is_table:
        _emit_all(ctx, results)
        return
    out = console(sys.stdout)
    colour = not global_options(ctx).no_color
    out.print(f"Runbook {request.runbook.name}: {request.runbook.title}", style="bold" if colour else None)
    for result in results:
        step = result.step
        out.print()
        out.print(f"{step.number}. {step.title} ({step.kind.value})", style="bold" if colour else None)
        if words := run_request.prose_of(request, step):
            print_lines(out, _flowing(words))
        for line in result.command.split("\n"):
            out.print(f"    {line}", style="cyan" if colour else None)
        if result.reason:
            out.print(f"skipped: {result.reason}")


def _show_go_back(ctx: typer.Context, request: RunRequest, journal: Journal) -> None:
    from rdsrepl.runbooks import run_request, runner

    if global_options(ctx).quiet:
        return
    out = console(sys.stderr)
    out.print()
    out.print("Go back:", style=None if global_options(ctx).no_color else "bold")
    print_lines(out, _flowing(run_request.go_back_of(request, runner.made_by_run(request, journal))))
    out.print()


def _document(result: Result) -> dict[str, Any]:
    step = result.step
    return {
        "number": step.number,
        "step": step.name,
        "title": step.title,
        "kind": step.kind.value,
        "command": result.command,
        "status": result.status,
        "reason": result.reason,
        "exit_code": result.exit_code,
        "seconds": round(result.seconds, 3),
        "output": result.output,
        "made": result.made,
    }


def _flowing(text: str) -> str:
    """Return Markdown with one line a paragraph, because the console wraps lines; blocks are unchanged."""
    parts = re.split(r"(^```.*?^```$)", text, flags=re.M | re.S)
    return "".join(part if part.startswith("```") else re.sub(r"(?<=\S)\n(?=[^\s|*-])", " ", part) for part in parts)


def _emit_all(ctx: typer.Context, results: list[Result]) -> None:
    if global_options(ctx).output is Format.json:
        for result in results:
            _emit_line(result)
    else:
        emit([_document(result) for result in results], global_options(ctx).output, lambda: "")


def _emit_line(result: Result) -> None:
    sys.stdout.write(json_text(_document(result)) + "\n")
    sys.stdout.flush()


class _Display:
    """Shows a run: prose, commands and prompts on stderr, the output (or one object a step) on stdout."""

    def __init__(self, ctx: typer.Context, runbook: Runbook) -> None:
        self._ctx = ctx
        self._total = len(runbook.steps)
        self._output = global_options(ctx).output
        self._out = console(sys.stderr)
        self._colour = not global_options(ctx).no_color
        self._results: list[Result] = []
        self._open_line = False
        self._closed = False

    def begin(self, step: Step, words: str, command: str) -> None:
        if global_options(self._ctx).quiet:
            return
        self._out.print()
        self._say(f"Step {step.number} of {self._total}: {step.title}", "bold")
        if words:
            self._say(_flowing(words), None)
        for number, line in enumerate(command.split("\n")):
            mark = "" if step.kind.value == "manual" else "$ " if number == 0 else "  "
            self._say(f"  {mark}{line}", "cyan")

    def planning(self, command: str) -> None:
        if not global_options(self._ctx).quiet:
            self._say(f"plan: {command}", "dim")

    def decide(self, step: Step) -> Answer:
        from rdsrepl.runbooks.runner import Answer

        question = "Is this step done?" if step.kind.value == "manual" else "Run it?"
        answers = {"y": Answer.yes, "yes": Answer.yes, "s": Answer.skip, "skip": Answer.skip, "q": Answer.quit}
        while True:
            self._end_line()
            line = prompt_line(f"{question} [y = yes, s = skip, q = quit]")
            if line is None:
                return Answer.quit
            word = line.lower()
            if word in (*answers, "quit"):
                return answers.get(word, Answer.quit)

    def output(self, text: str) -> None:
        if self._output.is_table and text:
            self._write(text)
            self._open_line = not text.endswith("\n")

    def end(self, result: Result) -> None:
        self._end_line()
        self._results.append(result)
        if self._output is Format.json:
            self._write(json_text(_document(result)) + "\n")
        if global_options(self._ctx).quiet:
            return
        if result.status == "done":
            took = "" if result.exit_code is None else f" (exit {result.exit_code}, {format_duration(result.seconds)})"
            self._say(f"ok{took}", "green")
        else:
            how = "skipped" if result.status == "passed_over" else result.status
            title = f"step {result.step.number}, {result.step.title}: " if result.status == "passed_over" else ""
            self._say(f"{title}{how}" + (f": {result.reason}" if result.reason else ""), "yellow")

    def close(self) -> None:
        if self._output is Format.yaml and not self._closed:
            _emit_all(self._ctx, self._results)
        self._closed = True

    def _end_line(self) -> None:
        if self._open_line:
            self._write("\n")
        self._open_line = False

    def _write(self, text: str) -> None:
        """Write to stdout. A reader that has closed it does not stop the run between two steps or within one."""
        try:
            sys.stdout.write(text)
            sys.stdout.flush()
        except (OutputClosed, SinkFailed) as exc:
            standard_streams.discard()
            warn(self._ctx, f"{exc.message}; the run continues")

    def _say(self, text: str, style: str | None) -> None:
        print_lines(self._out, text, style=style if self._colour else None)
