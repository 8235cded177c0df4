"""``rdsrepl verify``: compare the tables of two databases while both change, and prove each difference."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from rdsrepl.cli.completion import complete_publication, complete_slot, complete_table, complete_target
from rdsrepl.cli.confirm import confirm_and_apply
from rdsrepl.cli.console import note
from rdsrepl.cli.context import apply_options, global_options
from rdsrepl.cli.options import duration_option, flag_option
from rdsrepl.cli.progress import Progress
from rdsrepl.cli.targets import database_target, other_target
from rdsrepl.errors import BadValue, ExitCode
from rdsrepl.render import Column, emit, indented, listing, stacked
from rdsrepl.text.counts import counted

if TYPE_CHECKING:
    from rdsrepl.config import Target
    from rdsrepl.plan import Statement
    from rdsrepl.verify.results import TableResult, Verification
    from rdsrepl.verify.run import Options
    from rdsrepl.verify.stream import StreamOptions

_SHOWN_SECONDS: Final = 0.5


def verify(
    ctx: typer.Context,
    to: Annotated[
        str | None,
        typer.Option(
            "--to", metavar="TARGET", help="Compare with this copy: a target, an instance or a connection string.",
            autocompletion=complete_target, show_default=False,
        ),
    ] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--stream", metavar="FILE|kinesis:STREAM", help="Compare the output of slot tail; files may be repeated.",
            show_default=False,
        ),
    ] = None,
    from_: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="TIME", help="Read the records of kinesis:STREAM from this time on.",
            show_default="trim-horizon",
        ),
    ] = None,
    slot: Annotated[
        str | None,
        typer.Option(
            "--slot", metavar="SLOT", help="Name the slot of --stream.",
            autocompletion=complete_slot, show_default=False,
        ),
    ] = None,
    complete: Annotated[
        bool, flag_option("--complete", help="Assume that --stream has every row: one that it lacks is missing.")
    ] = False,
    source: Annotated[
        str | None,
        typer.Option(
            "--source", metavar="TARGET", help="Name the source; default: the database of the command.",
            autocompletion=complete_target, show_default=False
        ),
    ] = None,
    read_from: Annotated[
        str | None,
        typer.Option(
            "--read-from", metavar="TARGET", help="Read the tables of the source from this standby.",
            autocompletion=complete_target, show_default=False,
        ),
    ] = None,
    publication: Annotated[
        str | None,
        typer.Option(
            "--publication", metavar="NAME", help="Compare the tables, columns and rows that it sends.",
            autocompletion=complete_publication, show_default=False,
        ),
    ] = None,
    table: Annotated[
        list[str] | None,
        typer.Option(
            "--table", metavar="TABLE", help="Compare only this table; may be repeated.",
            autocompletion=complete_table, show_default=False,
        ),
    ] = None,
    columns: Annotated[bool, flag_option("--columns", help="Name the columns that differ.")] = False,
    exact_text: Annotated[
        bool, flag_option("--exact-text", help="Compare all values as text: numeric 1.0 and 1.00 differ.")
    ] = False,
    no_changes: Annotated[
        bool, flag_option("--no-changes", help="Assume that neither side changes; needed without replication.")
    ] = False,
    proof_timeout: Annotated[
        float, duration_option("--proof-timeout", help="Stop proving a table's differences after this.")
    ] = 60.0,
    repair: Annotated[bool, flag_option("--repair", help="Make the rows equal that are proven to differ.")] = False,
) -> None:  # fmt: skip
    """Compare the tables of two databases, and prove each difference.

    Both sides may go on changing. A row that differs is read again, after the copy has applied what the source had
    committed, until the difference is gone or proven. The exit code is 0 if all tables are equal, 8 if a difference is
    not proven in time, 9 with proven differences.

    With --stream, compare what the output of slot tail in the format json leaves behind, up to one position.

    Example: rdsrepl verify --source orders --to reporting --columns
    """
    from rdsrepl.verify.run import Options

    if not repair:
        _require_no_apply_options(ctx)
    if inputs:
        of_copy = {"--to": to, "--read-from": read_from, "--repair": repair, "--no-changes": no_changes,
                   "--exact-text": exact_text}  # fmt: skip
        _refuse(of_copy, "cannot be used with --stream")
        chosen = _stream_options(inputs, from_, slot, publication)
        chosen = replace(
            chosen, tables=tuple(table or ()), is_complete=complete, columns=columns, seconds=proof_timeout
        )
        found = _verify_stream(ctx, source, chosen)
    else:
        if to is None:
            raise BadValue(
                "neither --to nor --stream is given",
                hint="name the copy with --to TARGET, or the output of slot tail with --stream FILE",
            )
        _refuse({"--slot": slot, "--complete": complete, "--from": from_}, "is for --stream")
        options = Options(publication, tuple(table or ()), no_changes, exact_text, columns, proof_timeout, repair)
        found = _verify_copy(ctx, source, to, read_from, options)
    if found.exit_code is not ExitCode.DONE:
        raise typer.Exit(found.exit_code)


def _refuse(options: Mapping[str, object], why: str) -> None:
    """Refuse the first option that was given."""
    for name, value in options.items():
        if value:
            raise BadValue(f"{name} {why}", hint="omit it")


def _verify_copy(
    ctx: typer.Context, source: str | None, to: str, read_from: str | None, options: Options
) -> Verification:
    from rdsrepl.verify import run
    from rdsrepl.verify.repair import plan
    from rdsrepl.verify.results import TableState

    primary, copy = _primary(ctx, source), other_target(ctx, to, "--to")
    reader = None if read_from is None else other_target(ctx, read_from, "--read-from")

    def verified(options: Options) -> tuple[Verification, tuple[Statement, ...]]:
        with _progress(ctx) as shown:
            return run.verify(primary, copy, options, shown, read_from=reader)

    found, steps = verified(options)
    if not options.repairs or global_options(ctx).output.is_table:
        _print(ctx, found)
    if options.repairs and confirm_and_apply(ctx, plan(steps), target=copy):
        changed = {one.table for one in found.tables if one.state is TableState.different}
        # All tables again: what the repair does not touch is a part of the exit code.
        found, _ = verified(replace(options, repairs=False))
        after = [f"{one.table} {one.state.value}" for one in found.tables if one.table in changed]
        note(ctx, f"after the repair: {', '.join(after)}")
    return found


def _verify_stream(ctx: typer.Context, source: str | None, options: StreamOptions) -> Verification:
    from rdsrepl.verify import stream

    primary = _primary(ctx, source)
    with _progress(ctx) as shown:
        found = stream.verify(primary, options, shown)
    _print(ctx, found)
    return found


def _stream_options(
    inputs: Sequence[str], from_: str | None, slot: str | None, publication: str | None
) -> StreamOptions:
    """Return which stream to compare.

    Raises:
        BadValue: the slot or the publication is missing; files and a data stream are named, or several data streams;
            there is a start, and it is none of a data stream.
    """
    from rdsrepl.aws.stream_reader import Start
    from rdsrepl.tail.options import file_path, stream_name
    from rdsrepl.verify.stream import StreamOptions

    if slot is None or publication is None:
        raise BadValue(
            "--stream needs the slot and the publication of the stream", hint="add --slot NAME --publication NAME"
        )
    names = [one for one in inputs if one.lower().startswith("kinesis:")]
    if names and len(inputs) > 1:
        raise BadValue("--stream names more than one data stream, or files as well", hint="name one data stream")
    start = None if from_ is None else Start.parse(from_, "--from")
    if start is not None and (not names or start.kind == "LATEST"):
        raise BadValue("--from is trim-horizon or a time, for --stream kinesis:STREAM", hint="omit it")
    if names:
        return StreamOptions(slot, publication, kinesis=stream_name(names[0], lambda _: "--stream"), start=start)
    return StreamOptions(slot, publication, tuple(file_path(one) or Path(one) for one in inputs))


def _primary(ctx: typer.Context, source: str | None) -> Target:
    return database_target(ctx) if source is None else other_target(ctx, source, "--source")


@contextmanager
def _progress(ctx: typer.Context) -> Iterator[Callable[[str, str], None]]:
    """Show what is done, with the time since the command began; the time goes on while nothing else changes."""
    shown, began, current, ended = Progress(ctx), time.monotonic(), ("connecting", ""), threading.Event()

    def report(what: str, state: str) -> None:
        nonlocal current
        current = what, state

    def show() -> None:
        while not ended.wait(_SHOWN_SECONDS):
            what, state = current
            with suppress(OSError):  # stderr may be closed
                shown.update(what, time.monotonic() - began, [state] if state else [])

    thread = threading.Thread(target=show, name="progress", daemon=True)
    thread.start()
    try:
        yield report
    finally:
        ended.set()
        thread.join()
        shown.clear()


def _print(ctx: typer.Context, found: Verification) -> None:
    emit(found, global_options(ctx).output, lambda: _table(found))


def _require_no_apply_options(ctx: typer.Context) -> None:
    given = apply_options(ctx)
    if given.yes or given.plans_only:
        raise BadValue("--yes, --dry-run, --check and --out are for --repair", hint="add --repair, or omit the option")


def _table(found: Verification) -> object:
    rows = (
        Column("TABLE", lambda row: row.table, kind="name"),
        Column("ROWS", lambda row: f"{row.rows:,}", kind="number"),
        Column("STATE", lambda row: row.state.value),
        Column("MISSING", lambda row: f"{row.missing:,}", kind="number"),
        Column("EXTRA", lambda row: f"{row.extra:,}", kind="number"),
        Column("DIFFERENT", lambda row: f"{row.different:,}", kind="number"),
        Column("NOT PROVEN", lambda row: f"{row.not_proven:,}", priority=2, kind="number"),
        Column("CLEARED", lambda row: f"{row.cleared:,}", priority=3, kind="number"),
    )
    parts: list[object] = [listing(found.tables, rows, empty="no tables to compare")]
    parts += [f"{one.table}: {one.message}" for one in found.structure]
    for result in found.tables:
        parts += [f"{result.table}: {note}" for note in result.notes]
        parts += _rows(result)
    return stacked(*parts)


def _rows(result: TableResult) -> list[object]:
    lines: list[object] = []
    for row in result.keys:
        key = ", ".join(f"{name}={value}" for name, value in row.key.items())
        which = f" in {', '.join(row.columns)}" if row.columns else ""
        lines.append(indented(f"{key}: {row.state.value}{which}"))
    proven = result.missing + result.extra + result.different
    if lines and proven > len(lines):
        lines.append(indented(f"and {counted(proven - len(lines), 'more row', grouped=True)}"))
    return [f"{result.table}:", *lines] if lines else []
