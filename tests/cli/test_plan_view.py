"""How a plan is shown: whole texts, as lines for programs and on a terminal."""

from __future__ import annotations

import io

import pytest
from psycopg import sql
from typer import Context
from typer.main import get_command

from rdsrepl.cli import plan_view
from rdsrepl.cli.context import ApplyOptions, GlobalOptions, set_apply_options
from rdsrepl.cli.main import app
from rdsrepl.plan import AwsCall, Condition, Counts, ParameterChange, Plan, Statement, Wait

SERVER = plan_view.PlanTarget("cluster orders", "h", "5432", "shop", "admin", "eu-west-1")
PLAN = Plan(
    "prepare orders",
    (
        Statement("create role cdc", sql.SQL("CREATE ROLE cdc"), effect="create"),
        AwsCall(
            "set max_replication_slots in group orders",
            "rds",
            "ModifyDBClusterParameterGroup",
            {"DBClusterParameterGroupName": "orders", "Parameters": [{"ParameterName": "max_replication_slots"}]},
            effect="change",
        ),
        Wait("read group orders back", lambda _: Condition(True, ""), 120.0),
        AwsCall(
            "delete instance orders-2", "rds", "DeleteDBInstance", {}, condition="unless it is being deleted",
            reason="a reader that no consumer uses", effect="drop",
        ),
    ),
    warnings=("the reader is lost",),
    changes=(
        ParameterChange("max_replication_slots", "20", "25", "static", "pending-reboot", "21 slots + 2 standbys + 2"),
        ParameterChange("max_wal_senders", "20", None, "static", "pending-reboot", "sufficient"),
    ),
)  # fmt: skip


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(
    monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, *, verbose: int = 0, show_sql: bool = False, dry: bool = False
) -> str:
    ctx = Context(get_command(app))
    ctx.obj = GlobalOptions(verbose=verbose, no_color=True)
    set_apply_options(ctx, vars_of(ApplyOptions(show_sql=show_sql)))
    monkeypatch.setattr("sys.stdout" if dry else "sys.stderr", stream)
    if dry:
        monkeypatch.setattr("sys.stderr", io.StringIO())
    plan_view.show(ctx, PLAN, SERVER, to_stdout=dry)
    return "".join(f"{line.rstrip()}\n" for line in stream.getvalue().splitlines())


def vars_of(options: ApplyOptions) -> dict[str, object]:
    return {name: getattr(options, name) for name in ApplyOptions.__dataclass_fields__}


def test_a_change_is_a_line_and_its_texts_are_shown_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    brief = """\
On cluster orders (writer h:5432/shop, as admin), AWS region eu-west-1
prepare orders:
  + create role cdc
  ~ set max_replication_slots in group orders
      ~ max_replication_slots: 20 -> 25 (static, pending-reboot)
          21 slots + 2 standbys + 2
  > read group orders back (timeout 2m00s)
  - delete instance orders-2, unless it is being deleted
      a reader that no consumer uses
    max_wal_senders: 20, unchanged
        sufficient
Plan: 1 to create, 1 to change, 1 to drop
"""
    with_texts = brief.replace("create role cdc\n", "create role cdc\n      CREATE ROLE cdc\n")
    with_texts = with_texts.replace("2 standbys + 2\n", """2 standbys + 2
      aws rds modify-db-cluster-parameter-group --cli-input-json '{
        "DBClusterParameterGroupName": "orders",
        "Parameters": [
          {
            "ParameterName": "max_replication_slots"
          }
        ]
      }'
""")  # fmt: skip
    with_texts = with_texts.replace(
        "consumer uses\n", "consumer uses\n      aws rds delete-db-instance --cli-input-json '{}'\n"
    )
    warning = "warning: the reader is lost\n"
    assert shown(monkeypatch, io.StringIO()) == brief + warning
    assert shown(monkeypatch, io.StringIO(), verbose=1) == with_texts + warning
    assert shown(monkeypatch, io.StringIO(), show_sql=True) == with_texts + warning
    assert shown(monkeypatch, io.StringIO(), dry=True) == with_texts  # its warnings are on stderr
    assert PLAN.counts == Counts(1, 1, 1)


def test_a_wrapped_line_keeps_its_indentation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    assert shown(monkeypatch, Screen()) == """\
On cluster orders (writer h:5432/shop,
as admin), AWS region eu-west-1
prepare orders:
  + create role cdc
  ~ set max_replication_slots in group
    orders
      ~ max_replication_slots: 20 -> 25
        (static, pending-reboot)
          21 slots + 2 standbys + 2
  > read group orders back (timeout
    2m00s)
  - delete instance orders-2, unless it
    is being deleted
      a reader that no consumer uses
    max_wal_senders: 20, unchanged
        sufficient
Plan: 1 to create, 1 to change, 1 to
drop
warning: the reader is lost
"""  # fmt: skip
