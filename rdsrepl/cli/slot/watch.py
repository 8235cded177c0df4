"""``rdsrepl slot watch``: show the slots live."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated, Final

import typer

from rdsrepl.cli.command_classes import ReadCommand
from rdsrepl.cli.console import note
from rdsrepl.cli.context import global_options
from rdsrepl.cli.options import duration_option, size_option
from rdsrepl.cli.slot.server_state import read_rds_metrics
from rdsrepl.cli.targets import database_target
from rdsrepl.dashboard.state import Sort
from rdsrepl.errors import BadValue
from rdsrepl.render import Format
from rdsrepl.text.escapes import json_text, yaml_text

if TYPE_CHECKING:
    from rdsrepl.dashboard.state import Snapshot, State

_SHORTEST_SECONDS: Final = 0.5


def watch(
    ctx: typer.Context,
    interval: Annotated[float, duration_option("--interval", help="Refresh every DURATION; at least 500ms.")] = 2.0,
    window: Annotated[float, duration_option("--window", help="Compute rates and forecasts over this time.")] = 60.0,
    sort: Annotated[Sort, typer.Option("--sort", help="Set the sort order.")] = Sort.severity,
    filter: Annotated[
        str,
        typer.Option(
            "--filter",
            metavar="TEXT",
            help="Show only slots with this text in name, plugin, database or holder.",
            show_default=False,
        ),
    ] = "",
    free_space: Annotated[
        int | None,
        size_option("--free-space", help="Set the current free storage, if CloudWatch does not report it."),
    ] = None,
    limit_looks: Annotated[
        int | None, typer.Option("--limit-looks", min=1, metavar="N", help="Stop after N samples.")
    ] = None,
) -> None:
    """Show the slots live: what each retains, how fast that grows, which failure follows when; and the walsenders.

    The output is a full screen on a terminal (? shows the keys), one line for each slot and sample in a pipe, and one
    object for each sample with -o json. After a connection loss or a failover it reconnects. Ctrl-C stops it.

    Example: rdsrepl slot watch --interval 5s
    """
    from rdsrepl.dashboard import loop
    from rdsrepl.dashboard.poller import MetricsPoller, SlotPoller
    from rdsrepl.dashboard.state import State
    from rdsrepl.render import colours, displays_unicode

    if interval < _SHORTEST_SECONDS:
        raise BadValue(f"--interval {interval:g}s is too short", hint="give at least 500ms")
    if window <= 0:
        raise BadValue("--window must be longer than 0s", hint="for example --window 1m")
    target = database_target(ctx)
    poller = SlotPoller(
        target,
        window_seconds=window,
        free_bytes=free_space,
        metrics=MetricsPoller(target, read_rds_metrics(ctx, target, free_space)),
    )
    state = State(
        target.label,
        interval,
        window,
        sort,
        filter=filter,
        ascii_only=not displays_unicode(sys.stdout),
    )
    output = global_options(ctx).output
    if output.is_table and sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
        loop.run_full_screen(
            poller, state, colour=colours(sys.stdout) and not global_options(ctx).no_color, limit=limit_looks
        )
        return
    printer = _Printer(state, output)
    loop.run_lines(poller, state, emit=printer, note=lambda text: note(ctx, text), limit=limit_looks)


class _Printer:
    """Prints snapshots to stdout."""

    def __init__(self, state: State, output: Format) -> None:
        self._state = state
        self._output = output
        self._begun = False

    def __call__(self, snapshot: Snapshot) -> None:
        from dataclasses import replace

        from rdsrepl.dashboard import pipe_output
        from rdsrepl.dashboard.state import visible

        shown = visible(replace(self._state, snapshot=snapshot))
        if self._output.is_table:
            heading = [] if self._begun else [pipe_output.heading()]
            self._begun = True
            text = "".join(line + "\n" for line in (*heading, *pipe_output.rows(snapshot, shown)))
        elif self._output is Format.json:
            text = json_text(pipe_output.as_document(snapshot, shown)) + "\n"
        else:
            text = yaml_text(pipe_output.as_document(snapshot, shown), explicit_start=True)
        sys.stdout.write(text)
        sys.stdout.flush()


def register(app: typer.Typer) -> None:
    """Add the verb to ``rdsrepl slot``."""
    app.command("watch", cls=ReadCommand)(watch)
