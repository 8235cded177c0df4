"""``rdsrepl config``: the config file and its targets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final

import typer

from rdsrepl import config
from rdsrepl.cli.completion import complete_target
from rdsrepl.cli.console import note, warn
from rdsrepl.cli.context import global_options
from rdsrepl.cli.lists import Rows, print_list
from rdsrepl.cli.options import LocalCommand, LocalListCommand
from rdsrepl.errors import NotFound
from rdsrepl.render import Column, Listing, emit, facts
from rdsrepl.text.commands import shell
from rdsrepl.text.counts import counted
from rdsrepl.text.masking import MASK

app = typer.Typer(no_args_is_help=True, help="Targets: named databases in the config file.")


@dataclass(frozen=True, slots=True)
class TargetRow:
    """A target as ``config show`` prints it, with its secrets masked."""

    name: str
    current: bool
    settings: dict[str, str]


_TARGETS: Final = Listing(
    TargetRow,
    (
        Column("TARGET", lambda row: row.name, "name", kind="name"),
        Column("CURRENT", lambda row: "*" if row.current else "", "current"),
        Column("SETTINGS", lambda row: " ".join(f"{k}={v}" for k, v in row.settings.items()), kind="prose"),
    ),
    empty="no targets",
)


@app.command(cls=LocalCommand)
def path(ctx: typer.Context) -> None:
    """Print the path of the config file.

    Example: rdsrepl config path
    """
    emit({"path": str(config.config_path())}, global_options(ctx).output, lambda: str(config.config_path()))


@app.command(cls=LocalListCommand)
def show(
    ctx: typer.Context,
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Show this target only.", autocompletion=complete_target)
    ] = None,
) -> None:
    """Show the targets, with their secrets masked.

    Example: rdsrepl config show prod
    """

    def read() -> Rows:
        loaded = config.load()
        targets = {name: loaded.get(name)} if name else dict(sorted(loaded.targets.items()))
        rows = [TargetRow(key, key == loaded.current, target.masked()) for key, target in targets.items()]
        if name is None:
            return Rows(rows, empty=f"no targets in {loaded.path}")
        return Rows(
            rows,
            document=lambda rows: rows[0],
            table=lambda rows: facts([("target", name), *rows[0].settings.items()]),
        )

    print_list(ctx, _TARGETS, read)


@app.command(cls=LocalCommand)
def use(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The target.", autocompletion=complete_target)],
) -> None:
    """Make a target the current one, which commands use without --dsn and --target.

    Example: rdsrepl config use prod
    """
    written = config.use(name)
    emit({"current": name, "path": str(written)}, global_options(ctx).output, lambda: f"current target: {name}")


@app.command(cls=LocalCommand)
def check(ctx: typer.Context) -> None:
    """Check the config file; report file, line and key of an error.

    Example: rdsrepl config check
    """
    loaded = config.load()
    if not loaded.path.exists():
        raise NotFound(f"no config file at {loaded.path}", hint="create one as rdsrepl help concepts describes")
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
