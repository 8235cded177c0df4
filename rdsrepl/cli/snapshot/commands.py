"""``rdsrepl snapshot``: the rows of tables, written into a running stream; one file per group of verbs."""

from __future__ import annotations

from typing import Final

import typer

#: The modules of the verbs; each is imported when its verb is used.
VERB_MODULES: Final = {
    "start": "rdsrepl.cli.snapshot.start",
    "list": "rdsrepl.cli.snapshot.listing",
    "show": "rdsrepl.cli.snapshot.listing",
    "pause": "rdsrepl.cli.snapshot.control",
    "resume": "rdsrepl.cli.snapshot.control",
    "cancel": "rdsrepl.cli.snapshot.control",
    "create-table": "rdsrepl.cli.snapshot.state_table",
}

app = typer.Typer(no_args_is_help=True, help="Snapshots: write the rows of tables into a running stream.")
