"""The options of ``slot tail`` for snapshots that are requested while it runs (``rdsrepl snapshot start``)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from rdsrepl.cli.options import flag_option
from rdsrepl.cli.slot.tail_options import STREAM_PANEL
from rdsrepl.cli.targets import other_target

if TYPE_CHECKING:
    from rdsrepl.config import Target
    from rdsrepl.snapshot.state import Place
    from rdsrepl.snapshot.stream import StreamSnapshots
    from rdsrepl.tail.options import TailOptions
    from rdsrepl.tail.preflight import PreflightResult
    from rdsrepl.tail.progress import Observer


@dataclass(frozen=True, slots=True)
class RequestedSnapshotFlags:
    """Where the state of requested snapshots is, and what a request may ask for."""

    state: Annotated[
        str | None,
        typer.Option(
            "--state",
            metavar="FILE|table:SCHEMA.NAME",
            help="Keep the state of requested snapshots in this file or table, instead of a file of this host.",
            rich_help_panel=STREAM_PANEL,
        ),
    ] = None
    allow_snapshot_conditions: Annotated[
        bool,
        flag_option(
            "--allow-snapshot-conditions",
            help="Run the SQL condition of a requested snapshot (--where); every role of the database can send one.",
            panel=STREAM_PANEL,
        ),
    ] = False

    allow_snapshot_truncate: Annotated[
        bool,
        flag_option(
            "--allow-snapshot-truncate",
            help="Write tables without a key if requested (--method slot): a TRUNCATE comes first; every role can ask.",
            panel=STREAM_PANEL,
        ),
    ] = False

    def place(self) -> Place:
        """Return where the state is.

        Raises:
            BadValue: ``--state`` is neither a file nor a table.
        """
        from rdsrepl.snapshot.state import parse_place

        return parse_place(self.state)

    def opener(
        self,
        ctx: typer.Context,
        target: Target,
        options: TailOptions,
        observer: Observer,
        place: Place,
        *,
        was_copied: bool,
    ) -> Callable[[PreflightResult], StreamSnapshots | None]:
        """Return what lets requested snapshots take part in the stream."""
        from rdsrepl.snapshot import stream, transitions

        return stream.opener(
            target,
            options,
            observer,
            place,
            lambda name: other_target(ctx, name, "--read-from"),
            allowed=transitions.Allowed(self.allow_snapshot_conditions, self.allow_snapshot_truncate),
            is_given=self.state is not None or self.allow_snapshot_conditions or self.allow_snapshot_truncate,
            was_copied=was_copied,
        )
