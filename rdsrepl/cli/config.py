"""``rdsrepl config``: the config file and its targets."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Final

import typer

from rdsrepl import config
from rdsrepl.cli.command_classes import LocalCommand, LocalListCommand, LocalWriteCommand
from rdsrepl.cli.completion import complete_target
from rdsrepl.cli.console import note, warn
from rdsrepl.cli.context import apply_options, global_options
from rdsrepl.cli.lists import Rows, print_list
from rdsrepl.cli.option_bundles import with_bundles
from rdsrepl.cli.plan_view import MARKS
from rdsrepl.cli.target_options import TargetKeys, given
from rdsrepl.config import Target, edit
from rdsrepl.errors import BadValue, ExitCode, NotFound
from rdsrepl.render import Column, Listing, emit, facts, stacked
from rdsrepl.text.commands import command, shell
from rdsrepl.text.counts import counted
from rdsrepl.text.masking import MASK

app = typer.Typer(no_args_is_help=True, help="Targets: named databases in the config file.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="The target.", autocompletion=complete_target)]


@dataclass(frozen=True, slots=True)
class TargetRow:
    """A target as a list prints it, with its secrets masked.

    Attributes:
        name: the name of the target.
        current: whether commands use it without --target.
        settings: its keys.
        server: the cluster, the instance, the host, or the connection string.
        protect: slots and patterns of slots that a command drops only with --unprotect.
    """

    name: str
    current: bool
    settings: dict[str, str]
    server: str
    protect: tuple[str, ...]


def _setting(key: str) -> Callable[[Any], object]:
    return lambda row: row.settings.get(key)


_TARGETS: Final = Listing(
    TargetRow,
    (
        Column("NAME", lambda row: row.name, "name", kind="name"),
        Column("CURRENT", lambda row: "*" if row.current else "", "current"),
        Column("SERVER", lambda row: row.server, "server", kind="name"),
        Column("DATABASE", _setting("dbname"), priority=2),
        Column("USER", _setting("user"), priority=2),
        Column("PROFILE", _setting("profile"), priority=3),
        Column("REGION", _setting("region"), priority=3),
    ),
    empty="no targets",
)


@app.command(cls=LocalCommand)
def path(ctx: typer.Context) -> None:
    """Print the path of the config file.

    Example: rdsrepl config path
    """
    emit({"path": str(config.config_path())}, global_options(ctx).output, lambda: str(config.config_path()))


@app.command(
    "list", cls=LocalListCommand, help="List the targets: the same as get-targets.\n\nExample: rdsrepl config list"
)
@app.command("get-targets", cls=LocalListCommand)
def list_(ctx: typer.Context) -> None:
    """List the targets; the current one is marked.

    Example: rdsrepl config get-targets
    """

    def read() -> Rows:
        loaded = config.load()
        empty = f"no targets in {loaded.path}; add one: rdsrepl config set-target NAME --cluster ID"
        return Rows([_row(loaded, name) for name in sorted(loaded.targets)], empty=empty)

    print_list(ctx, _TARGETS, read)


@app.command(cls=LocalListCommand)
def show(
    ctx: typer.Context,
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Show this target only.", autocompletion=complete_target)
    ] = None,
) -> None:
    """Show all keys of a target, or list the targets, with their secrets masked.

    Example: rdsrepl config show prod
    """
    if name is None:
        list_(ctx)
        return

    def protect(row: TargetRow) -> list[tuple[str, object]]:
        return [("protect", row.protect)] if row.protect else []

    def read() -> Rows:
        row = _row(config.load(), name)
        return Rows(
            [row],
            document=lambda rows: rows[0],
            table=lambda _: facts([("target", name), *row.settings.items(), *protect(row)]),
        )

    print_list(ctx, _TARGETS, read)


def _row(loaded: config.Config, name: str) -> TargetRow:
    target = loaded.get(name)
    return TargetRow(name, name == loaded.current, target.masked(), _server(target), target.protect)


def _server(target: Target) -> str:
    settings = target.masked()
    for kind in ("cluster", "instance"):
        if kind in settings:
            return f"{kind} {settings[kind]}"
    if "service" in settings:
        return f"service {settings['service']}"
    host = settings.get("host") or settings.get("hostaddr")
    port = f":{settings['port']}" if "port" in settings else ""
    return f"{host}{port}" if host else settings.get("dsn", "")


@app.command("current-target", cls=LocalCommand)
def current_target(ctx: typer.Context) -> None:
    """Print the name of the current target; without one, exit 3.

    Example: rdsrepl config current-target
    """
    loaded = config.load()
    if loaded.current is None:
        raise NotFound(f"no target is the current one in {loaded.path}", hint=_choose(loaded))
    emit({"current": loaded.current}, global_options(ctx).output, lambda: loaded.current)


@app.command("use", cls=LocalWriteCommand, hidden=True)
@app.command("use-target", cls=LocalWriteCommand)
def use_target(ctx: typer.Context, name: Name) -> None:
    """Make a target the current one, which commands use without --dsn and --target.

    Example: rdsrepl config use-target prod
    """
    _report(ctx, edit.use_target(name, dry_run=_dry_run(ctx)), name, "current")


@app.command("set-target", cls=LocalWriteCommand)
@with_bundles
def set_target(
    ctx: typer.Context,
    name: Name,
    keys: TargetKeys,
    protect: Annotated[
        list[str] | None,
        typer.Option(
            "--protect",
            metavar="SLOT",
            help="Protect this slot, or slots of this pattern; may be repeated.",
            show_default=False,
        ),
    ] = None,
    unset: Annotated[
        list[str] | None,
        typer.Option(
            "--unset",
            metavar="KEY",
            help="Remove this key; may be repeated.",
            show_default=False,
            autocompletion=lambda: list(edit.SETTABLE),
        ),
    ] = None,
    password: Annotated[str | None, typer.Option("--password", hidden=True, help="Refuse a password.")] = None,
) -> None:
    """Create a target, or change the given keys of one; the other keys stay.

    The file keeps its comments and its order. Passwords belong into ~/.pgpass, PGPASSWORD or a secret.

    Example: rdsrepl config set-target prod --cluster orders --region eu-west-1
    """
    if password is not None:
        raise BadValue(
            "a password is not written to the config file",
            hint="keep it in ~/.pgpass or PGPASSWORD, or give a Secrets Manager secret: --secret ID",
        )
    settings, removed = given(keys), [key.replace("-", "_") for key in unset or ()]
    twice = sorted({*settings, *(["protect"] if protect else [])} & set(removed))
    if twice:
        raise BadValue(f"--unset {twice[0]} and --{twice[0].replace('_', '-')} exclude each other", hint="omit one")
    update = edit.set_target(name, settings, protect=protect, unset=removed, dry_run=_dry_run(ctx))
    _report(ctx, update, name, "created" if name not in update.before.targets else "changed")
    if update.after.current is None and not _dry_run(ctx):
        note(ctx, f"next: {command('config use-target {}', name)}")


@app.command("rename-target", cls=LocalWriteCommand)
def rename_target(
    ctx: typer.Context,
    name: Name,
    new: Annotated[str, typer.Argument(metavar="NEW", help="The new name.", show_default=False)],
) -> None:
    """Rename a target; the current target stays the current one.

    Example: rdsrepl config rename-target lab staging
    """
    _report(ctx, edit.rename_target(name, new, dry_run=_dry_run(ctx)), name, f"renamed to {new}")
    _warn_about_environment(ctx, name)


@app.command("delete-target", cls=LocalWriteCommand)
def delete_target(ctx: typer.Context, name: Name) -> None:
    """Delete a target from the config file; no server is changed.

    Example: rdsrepl config delete-target lab
    """
    update = edit.delete_target(name, dry_run=_dry_run(ctx))
    _report(ctx, update, name, "deleted")
    if update.before.current is not None and update.after.current is None and not _dry_run(ctx):
        warn(ctx, f"{name} was the current target; now none is: {_choose(update.after)}")
    _warn_about_environment(ctx, name)


def _dry_run(ctx: typer.Context) -> bool:
    return apply_options(ctx).dry_run or apply_options(ctx).check


def _report(ctx: typer.Context, update: edit.Update, name: str, done: str) -> None:
    """Print what an edit changes; with ``--check``, exit 7 if it changes something."""
    changes, dry_run = update.changes, _dry_run(ctx)
    document = {
        "target": name,
        "status": "unchanged" if not changes else "planned" if dry_run else "done",
        "changes": changes,
        "current": update.after.current,
        "path": str(update.path),
    }
    state = f"{done if changes else 'unchanged'} in {update.path}"
    if changes and dry_run:
        state = f"the changes are not written to {update.path}"
    lines = [f"  {MARKS[change.effect]} {_line(change)}" for change in changes]
    emit(document, global_options(ctx).output, lambda: stacked(*lines, f"target {name}: {state}"))
    if changes and apply_options(ctx).check:
        raise typer.Exit(ExitCode.CHANGES_PENDING)


def _line(change: edit.Change) -> str:
    if not change.before and not change.after:  # a whole target; its keys follow
        return change.key
    if change.effect == "change":
        return f"{change.key}: {change.before} -> {change.after}"
    return f"{change.key}: {change.after if change.effect == 'create' else change.before}"


def _choose(loaded: config.Config) -> str:
    """Return the hint that makes a target the current one."""
    if not loaded.targets:
        return "add one: rdsrepl config set-target NAME --cluster ID"
    return f"choose one: {command('config use-target {}', min(loaded.targets))}"


def _warn_about_environment(ctx: typer.Context, name: str) -> None:
    if os.environ.get("RDSREPL_TARGET") == name:
        warn(ctx, f"RDSREPL_TARGET still names {name}")


@app.command(cls=LocalCommand)
def check(ctx: typer.Context) -> None:
    """Check the config file; report file, line and key of an error.

    Example: rdsrepl config check
    """
    loaded = config.load()
    if not loaded.path.exists():
        raise NotFound(
            f"no config file at {loaded.path}", hint="create one: rdsrepl config set-target NAME --cluster ID"
        )
    secret = any(
        MASK in value or key in config.SECRETS
        for target in loaded.targets.values()
        for key, value in target.masked().items()
    )
    mode = loaded.path.stat().st_mode & 0o077
    if secret and mode:
        warn(
            ctx, f"{loaded.path} contains a password, and other users can read it: {shell('chmod 600 {}', loaded.path)}"
        )
    elif secret:
        note(ctx, "the file contains a password; keep it in ~/.pgpass instead")
    emit(
        {"path": str(loaded.path), "targets": len(loaded.targets), "current": loaded.current},
        global_options(ctx).output,
        lambda: f"{loaded.path}: {counted(len(loaded.targets), 'target')}, current: {loaded.current or 'none'}",
    )
