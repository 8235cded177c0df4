"""``rdsrepl sandbox``: run a local RDS for development and tests."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rdsrepl.cli.command_classes import LocalCommand
from rdsrepl.cli.console import note
from rdsrepl.cli.context import global_options
from rdsrepl.cli.options import flag_option
from rdsrepl.errors import Error, Interrupted, NotFound
from rdsrepl.render import emit, facts, size, stacked
from rdsrepl.text.commands import command

if TYPE_CHECKING:
    from rdsrepl.sandbox.report import ClusterReport, Report, ServerReport

app = typer.Typer(
    no_args_is_help=True, help="A local RDS: PostgreSQL servers on loopback with the roles of RDS, and an RDS API."
)

# Variables that override those of `env` in libpq or in AWS clients.
_CONFLICTING_VARIABLES = (
    *("PGHOSTADDR", "PGSERVICE", "PGPASSWORD", "PGSSLMODE", "PGTARGETSESSIONATTRS"),
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS"),
)


@app.command(cls=LocalCommand)
def up(
    ctx: typer.Context,
    postgres_bin: Annotated[
        Path | None,
        typer.Option(
            "--postgres-bin",
            metavar="DIR",
            help="Use the PostgreSQL programs in DIR; default: the newest installed, or the 'sandbox' extra's.",
            show_default=False,
        ),
    ] = None,
    no_standby: Annotated[bool, flag_option("--no-standby", help="Start only a writer.")] = False,
    default_group: Annotated[
        bool,
        flag_option(
            "--default-group",
            help="Attach the family's default parameter group, as on a new cluster: wal_level is replica.",
        ),
    ] = False,
) -> None:
    """Start a cluster of a writer and a standby and an RDS API, and write the target 'sandbox'.

    Servers that were stopped by a crash or a reboot are started again.

    Example: rdsrepl sandbox up && rdsrepl -t sandbox slot list
    """
    from rdsrepl.sandbox import client_config, lifecycle

    try:
        report = lifecycle.up(
            bin_dir=postgres_bin,
            standby=not no_standby,
            default_group=default_group,
            progress=lambda text: note(ctx, text),
        )
    except KeyboardInterrupt:
        if lifecycle.status() is None:
            raise Interrupted("interrupted; the incomplete sandbox was removed, nothing is left") from None
        raise Interrupted(
            "interrupted; the sandbox exists, and some of its processes may not run", hint="rdsrepl sandbox up"
        ) from None
    if no_standby and report.reader_port is not None:
        _note_ignored(ctx, "the sandbox has a standby", command("sandbox up --no-standby"))
    group = next((cluster.parameter_group for cluster in report.clusters if cluster.name == client_config.CLUSTER), "")
    if default_group and not group.startswith("default."):
        _note_ignored(ctx, f"the sandbox has the parameter group {group}", command("sandbox up --default-group"))
    if postgres_bin is not None and str(postgres_bin.resolve()) != report.bin_dir:
        again = command("sandbox up --postgres-bin {}", str(postgres_bin))
        _note_ignored(ctx, f"the sandbox uses the programs in {report.bin_dir}", again)
    _show(ctx, report)


@app.command(cls=LocalCommand)
def status(ctx: typer.Context) -> None:
    """Show the state of the sandbox; exit 3 when it is not running.

    Example: rdsrepl sandbox status -o json
    """
    report = _report()
    _show(ctx, report)
    if report.state != "running":
        kind = NotFound if report.state in ("stopped", "incomplete") else Error
        raise kind(f"the sandbox is {report.state}", hint="start it again: rdsrepl sandbox up")


@app.command(cls=LocalCommand)
def env(ctx: typer.Context) -> None:
    """Print shell commands that point libpq clients to the writer and AWS clients to the API.

    Example: eval "$(rdsrepl sandbox env)" && psql && aws rds describe-db-clusters
    """
    from rdsrepl.sandbox import client_config

    variables = client_config.environment_variables(_report())
    lines = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    emit(variables, global_options(ctx).output, lambda: stacked(f"unset {' '.join(_CONFLICTING_VARIABLES)}", *lines))


@app.command(cls=LocalCommand)
def down(ctx: typer.Context) -> None:
    """Stop every process of the sandbox, and remove its files and its target.

    Example: rdsrepl sandbox down
    """
    from rdsrepl.sandbox import lifecycle

    try:
        removed = lifecycle.down(progress=lambda text: note(ctx, text))
    except KeyboardInterrupt:
        raise Interrupted("interrupted; a part of the sandbox may be left", hint="rdsrepl sandbox down") from None
    text = "the sandbox was removed" if removed.was_there else "there is no sandbox: nothing to do"
    emit(removed, global_options(ctx).output, lambda: text)


def _report() -> Report:
    from rdsrepl.sandbox import lifecycle

    report = lifecycle.status()
    if report is None:
        raise NotFound("no sandbox is running", hint="start one: rdsrepl sandbox up")
    return report


def _note_ignored(ctx: typer.Context, reason: str, again: str) -> None:
    """Say that an option has no effect on the existing sandbox, and with which command to create it again."""
    note(ctx, f"{reason}; to change this: rdsrepl sandbox down && {again}")


def _show(ctx: typer.Context, report: Report) -> None:
    emit(report, global_options(ctx).output, lambda: facts(_facts(report)))


def _facts(report: Report) -> list[tuple[str, object]]:
    reader = "none" if report.reader_port is None else f"{report.host}:{report.reader_port}"
    return [
        ("state", report.state),
        ("PostgreSQL", f"{report.version} ({', '.join(report.plugins)})"),
        ("writer endpoint", f"{report.host}:{report.port}" if report.port else "none"),
        ("reader endpoint", reader),
        ("user, database", f"{report.user}, {report.dbname}"),
        ("password in", report.passfile),
        ("AWS", _api(report)),
        *((f"cluster {cluster.name}", _cluster(cluster)) for cluster in report.clusters),
        *((server.name, _server(server)) for server in report.servers),
        ("use it", command("-t {} slot list", report.target)),
        ("psql, aws", 'eval "$(rdsrepl sandbox env)"; psql; aws rds describe-db-clusters'),
    ]


def _api(report: Report) -> str:
    return "stopped" if report.api_pid is None else f"{report.endpoint_url} ({report.region}), pid {report.api_pid}"


def _cluster(cluster: ClusterReport) -> str:
    return f"{cluster.status}, {cluster.engine} {cluster.version}, group {cluster.parameter_group}"


def _server(server: ServerReport) -> str:
    status = "" if server.status in ("available", None) else f"{server.status}; "
    return status + _running(server)


def _running(server: ServerReport) -> str:
    if not server.running:
        return f"stopped; log: {server.log_file}"
    if server.in_recovery is None:
        kind = "not responding"
    elif not server.in_recovery:
        kind = "primary"
    elif server.streaming:
        kind = f"standby, streaming, {size(server.replay_lag_bytes)} to replay"
    else:
        kind = "standby, not streaming"
    return f"{kind}, pid {server.pid}, port {server.port}"
