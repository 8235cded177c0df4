"""The options of commands that run as a service: heartbeat, metrics and log."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from rdsrepl.cli.completion import complete_table
from rdsrepl.cli.context import LogFormat
from rdsrepl.cli.options import duration_option
from rdsrepl.errors import BadValue

if TYPE_CHECKING:
    from rdsrepl.tail.heartbeat import HeartbeatOptions
    from rdsrepl.tail.metrics import MetricsOptions

SERVICE_PANEL: Final = "As a service"

MetricsPort = Annotated[
    int | None,
    typer.Option(
        "--metrics-port",
        min=0,
        max=65535,
        metavar="PORT",
        help="Serve Prometheus metrics at /metrics, and /healthz; 0 takes a free port.",
        rich_help_panel=SERVICE_PANEL,
    ),
]


@dataclass(frozen=True, slots=True)
class ServiceOptions:
    """Heartbeat, metrics and log of a tail that runs as a service."""

    heartbeat: Annotated[
        float | None,
        duration_option(
            "--heartbeat",
            help="Write a small message to the WAL this often, so that other consumers of a quiet database advance.",
            panel=SERVICE_PANEL,
        ),
    ] = None
    heartbeat_table: Annotated[
        str | None,
        typer.Option(
            "--heartbeat-table",
            metavar="TABLE",
            help="Write a row of this table instead (slot_name, beat_at).",
            autocompletion=complete_table,
            rich_help_panel=SERVICE_PANEL,
        ),
    ] = None
    metrics_port: MetricsPort = None
    metrics_host: Annotated[
        str | None,
        typer.Option(
            "--metrics-host",
            metavar="ADDRESS",
            help="Listen on this address; 0.0.0.0 is every address.",
            rich_help_panel=SERVICE_PANEL,
            show_default="127.0.0.1",
        ),
    ] = None
    unhealthy_after: Annotated[
        float | None,
        duration_option(
            "--unhealthy-after",
            help="Report unhealthy when nothing was confirmed for this long while the lag grew; by default 5m.",
            panel=SERVICE_PANEL,
        ),
    ] = None
    log_format: Annotated[
        LogFormat,
        typer.Option(
            "--log-format", help="Choose how notes and progress are written to stderr.", rich_help_panel=SERVICE_PANEL
        ),
    ] = LogFormat.text

    def heartbeat_options(self) -> HeartbeatOptions | None:
        """Return the heartbeat; None without one.

        Raises:
            BadValue: an option is missing, or its value is not valid.
        """
        from rdsrepl.tail.heartbeat import MIN_SECONDS, HeartbeatOptions

        if self.heartbeat is None:
            if self.heartbeat_table is not None:
                raise BadValue("--heartbeat-table requires --heartbeat", hint="add the interval: --heartbeat 1m")
            return None
        if self.heartbeat < MIN_SECONDS:
            raise BadValue(
                f"--heartbeat {self.heartbeat:g}s is too short: each heartbeat is a transaction",
                hint="--heartbeat 10s or longer",
            )
        if self.heartbeat_table is not None:
            from rdsrepl.postgres.sql_names import parse_name

            parse_name(self.heartbeat_table)
        return HeartbeatOptions(self.heartbeat, self.heartbeat_table)

    def metrics_options(self) -> MetricsOptions | None:
        """Return where metrics are served; None without a port.

        Raises:
            BadValue: an option for metrics without a port.
        """
        from rdsrepl.tail.metrics import MetricsOptions

        if self.metrics_port is None:
            for flag, value in (("--metrics-host", self.metrics_host), ("--unhealthy-after", self.unhealthy_after)):
                if value is not None:
                    raise BadValue(f"{flag} requires --metrics-port", hint="add a port, such as --metrics-port 9187")
            return None
        given: dict[str, Any] = {"host": self.metrics_host, "unhealthy_seconds": self.unhealthy_after}
        return MetricsOptions(self.metrics_port, **{name: value for name, value in given.items() if value is not None})
