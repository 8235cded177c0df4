"""``rdsrepl apply``: apply a plan that ``--out`` saved."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rdsrepl.cli import saved_plans
from rdsrepl.cli.command_classes import WriteCommand
from rdsrepl.cli.console import note
from rdsrepl.cli.context import SERVER_OPTIONS, LogFormat, apply_options, global_options
from rdsrepl.errors import BadPlanFile
from rdsrepl.render import Format
from rdsrepl.state import plan_files

if TYPE_CHECKING:
    from rdsrepl.state.plan_files import PlanFile, SavedPlan


def apply_plan(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The plan that --out saved.", show_default=False)],
    confirm: Annotated[
        str | None,
        typer.Option("--confirm", metavar="WORDS", help="Confirm a plan that asks for typed words, without a prompt."),
    ] = None,
) -> None:
    """Apply a plan that --out saved, on the server for which it was made; refuse if that server changed since.

    The command of the plan plans again, and each step must be as in the file; the refusal lists the differences. The
    options of the file select the server: RDSREPL_* variables are ignored. A plan is applied once. Passwords are not in
    the file: they are asked for, read or generated again.

    Example: rdsrepl slot drop old_cdc --out drop.json && rdsrepl apply drop.json
    """
    with plan_files.opened(file) as opened:
        saved = opened.plan
        _require_plannable(ctx, opened)
        note(ctx, f"plan of {saved.created_at} by {saved.created_by}: {shlex.join(saved.command)}")
        _run(ctx, opened, _words(ctx, saved, confirm))


def _require_plannable(ctx: typer.Context, file: PlanFile) -> None:
    """Check that the command only plans: it makes a plan, and does not confirm it itself.

    Raises:
        BadPlanFile: ``--out`` did not write the file.
    """
    noun, verb, *words = file.plan.command
    group = getattr(ctx.find_root().command, "commands", {}).get(noun)
    command = getattr(group, "commands", {}).get(verb)
    own = words[: words.index("--")] if "--" in words else words
    if not (
        isinstance(command, WriteCommand)
        and set(file.plan.options) <= set(SERVER_OPTIONS)
        and all(word.startswith("--") and word.partition("=")[0] in command.own_flags for word in own)
    ):
        raise BadPlanFile(
            f"{file.path} contains a command that --out does not save: {shlex.join(file.plan.command)}",
            hint="plan again with --out",
        )


def _words(ctx: typer.Context, saved: SavedPlan, confirm: str | None) -> list[str]:
    """Return the command line that plans again: the command of the file with the options of this one."""
    options, may = global_options(ctx), apply_options(ctx)
    selectors = saved_plans.with_password(saved.options, os.environ.get("RDSREPL_DSN"))
    words = [f"--{name}={value}" for name, value in selectors.items()]
    words += ["--verbose"] * options.verbose
    words += [f"--output={options.output}"] if options.output is not Format.table else []
    words += ["--quiet"] if options.quiet else []
    words += ["--no-color"] if options.no_color else []
    verb = [f"--{name.replace('_', '-')}" for name in ("yes", "dry_run", "check", "show_sql") if getattr(may, name)]
    verb += ["--log-format=json"] if options.log_format is LogFormat.json else []
    verb += [f"--confirm={confirm}"] if confirm is not None else []
    noun_and_verb = saved.command[:2]
    return [*words, *noun_and_verb, *verb, *saved.command[2:]]


def _run(ctx: typer.Context, file: PlanFile, words: list[str]) -> None:
    for name in SERVER_OPTIONS:  # they would select a server where the file does not
        os.environ.pop(f"RDSREPL_{name.upper()}", None)
    root = ctx.find_root().command
    try:
        inner = root.make_context("rdsrepl", words)
        inner.meta[saved_plans.APPLYING] = file
        with inner:
            root.invoke(inner)
    except typer.TyperException as exc:
        raise BadPlanFile(
            f"the command of {file.path} is not valid: {exc.format_message()}", hint="plan again with --out"
        ) from exc
