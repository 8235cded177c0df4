"""The options of ``slot tail`` and ``slot peek``, and their conversion to the options of ``rdsrepl.tail``."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final

import typer

from rdsrepl.cli.completion import complete_plugin, complete_publication, complete_slot, complete_table, complete_target
from rdsrepl.cli.options import duration_option, flag_option, lsn_option
from rdsrepl.errors import BadValue
from rdsrepl.lsn import Lsn
from rdsrepl.tail.options import FormatName

if TYPE_CHECKING:
    from rdsrepl.tail.options import StopConditions

STREAM_PANEL: Final = "What to stream"
_STOP: Final = "When to stop"

SlotArgument = Annotated[
    str, typer.Argument(metavar="SLOT", help="The slot.", autocompletion=complete_slot, show_default=False)
]


@dataclass(frozen=True, slots=True)
class ChangeOptions:
    """Which changes, and how they are written."""

    format: Annotated[
        FormatName | None,
        typer.Option(
            "--format",
            "-f",
            help="Write changes in this format; by default pretty on a terminal, json in a pipe or a file.",
            rich_help_panel=STREAM_PANEL,
            show_default=False,
        ),
    ] = None
    publication: Annotated[
        list[str] | None,
        typer.Option(
            "--publication",
            metavar="NAME",
            help="Stream this publication (pgoutput); optional where the database has only one.",
            rich_help_panel=STREAM_PANEL,
            autocompletion=complete_publication,
        ),
    ] = None
    plugin_option: Annotated[
        list[str] | None,
        typer.Option(
            "--plugin-option", metavar="K=V", help="Set an option of the output plugin.", rich_help_panel=STREAM_PANEL
        ),
    ] = None
    table: Annotated[
        list[str] | None,
        typer.Option(
            "--table",
            metavar="PATTERN",
            help="Stream only tables that match: sales.*, or orders in any schema.",
            autocompletion=complete_table,
            rich_help_panel=STREAM_PANEL,
        ),
    ] = None

    def plugin_options(self) -> dict[str, str]:
        """Return the output plugin's options.

        Raises:
            BadValue: an option is not K=V.
        """
        pairs: dict[str, str] = {}
        for option in self.plugin_option or ():
            key, mark, value = option.partition("=")
            if not mark or not key:
                raise BadValue(
                    f"--plugin-option {option} is not K=V", hint="for example --plugin-option format-version=1"
                )
            pairs[key] = value
        return pairs

    def format_or_default(self, *, to_stdout: bool) -> FormatName:
        """Return the format to write."""
        if self.format is not None:
            return self.format
        return FormatName.pretty if to_stdout and sys.stdout.isatty() else FormatName.json


@dataclass(frozen=True, slots=True)
class SlotOptions:
    """Where the stream starts, what it confirms, and how long it waits."""

    from_lsn: Annotated[
        Lsn | None,
        lsn_option(
            "--from-lsn",
            help="Start at this LSN instead of the slot's position; changes before it are never delivered.",
            panel=STREAM_PANEL,
        ),
    ] = None
    no_confirm: Annotated[
        bool,
        typer.Option(
            "--no-confirm",
            help="Confirm nothing: the slot stays at its position, and keeps its WAL.",
            rich_help_panel=STREAM_PANEL,
            show_default=False,
        ),
    ] = False
    at_least_once: Annotated[
        bool,
        flag_option(
            "--at-least-once",
            help="Write changes again that the file has already, after a run that was killed.",
            panel=STREAM_PANEL,
        ),
    ] = False
    create: Annotated[
        str | None,
        typer.Option(
            "--create",
            metavar="PLUGIN",
            help="Create the slot with this output plugin if it does not exist.",
            autocompletion=complete_plugin,
            rich_help_panel=STREAM_PANEL,
        ),
    ] = None
    behind: Annotated[
        str | None,
        typer.Option(
            "--behind",
            metavar="TARGET",
            help="Deliver a commit only when this standby has replayed it, so that a failover to it keeps it.",
            rich_help_panel=STREAM_PANEL,
            autocompletion=complete_target,
        ),
    ] = None
    wait_active: Annotated[
        float | None,
        duration_option(
            "--wait-active",
            help="Wait this long for a slot in use; by default a little longer than wal_sender_timeout.",
            panel=STREAM_PANEL,
        ),
    ] = None
    receive_timeout: Annotated[
        float | None,
        duration_option(
            "--receive-timeout",
            help="Reconnect when the server is silent for this long; by default wal_sender_timeout, 0 is never.",
            panel=STREAM_PANEL,
        ),
    ] = None
    accept_gap: Annotated[
        bool,
        typer.Option(
            "--accept-gap",
            help="Continue although changes are missing: the slot was advanced or recreated after the last delivery.",
            rich_help_panel=STREAM_PANEL,
            show_default=False,
        ),
    ] = False
    allow_missing_publication: Annotated[
        bool,
        typer.Option(
            "--allow-missing-publication",
            help="Continue although the server leaves out changes that are older than a publication (PostgreSQL 18).",
            rich_help_panel=STREAM_PANEL,
            show_default=False,
        ),
    ] = False


@dataclass(frozen=True, slots=True)
class StopOptions:
    """When the tail stops without a signal."""

    until_lsn: Annotated[
        Lsn | None,
        lsn_option("--until-lsn", help="Stop when everything committed before LSN is delivered.", panel=_STOP),
    ] = None
    until_now: Annotated[
        bool,
        typer.Option(
            "--until-now",
            help="Stop when everything committed before the start is delivered.",
            rich_help_panel=_STOP,
            show_default=False,
        ),
    ] = False
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, metavar="N", help="Stop after N changes.", rich_help_panel=_STOP)
    ] = None
    duration: Annotated[float | None, duration_option("--duration", help="Stop after this long.", panel=_STOP)] = None
    idle_exit: Annotated[
        float | None, duration_option("--idle-exit", help="Stop after this long without a change.", panel=_STOP)
    ] = None
    drain_timeout: Annotated[
        float | None,
        duration_option(
            "--drain-timeout",
            help="At the end, deliver what was received for at most this long; the rest comes again in the next run.",
            panel=_STOP,
        ),
    ] = None

    def conditions(self) -> StopConditions:
        """Return when to stop.

        Raises:
            BadValue: two options exclude each other.
        """
        from rdsrepl.tail.options import StopConditions

        if self.until_lsn is not None and self.until_now:
            raise BadValue("--until-lsn and --until-now exclude each other", hint="choose one of them")
        return StopConditions(
            self.until_lsn, self.until_now, self.limit, self.duration, self.idle_exit, self.drain_timeout
        )
