"""``rdsrepl failover``: from a primary to its replica, without losing a change."""

from __future__ import annotations

import typer

from rdsrepl.cli.failover import check, diff, run

app = typer.Typer(no_args_is_help=True, help="Prepare a failover to a replica, do it, and find what it lost.")

check.register(app)
diff.register(app)
run.register(app)
