"""The Lambda function ``rdsrepl.aws_lambda.sync``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from rdsrepl import aws_lambda
from rdsrepl.errors import BadValue, NotFound, Refused
from tests import ROOT
from tests.fixtures.program import Program
from tests.fixtures.slot_pairs import Pair


class Context:
    """The context that Lambda passes."""

    def get_remaining_time_in_millis(self) -> int:
        return 30_000


@pytest.fixture
def invoke(pair: Pair, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Call the function with the primary in its event, and the standby in its config file."""
    for name in [name for name in os.environ if name.startswith(("RDSREPL_", "PG", "AWS_"))]:
        monkeypatch.delenv(name)
    config = tmp_path / "config.yaml"
    config.write_text(f"targets: {{replica: {{dsn: '{pair.standby.dsn()}'}}}}")
    config.chmod(0o600)
    monkeypatch.setenv("RDSREPL_CONFIG", str(config))
    monkeypatch.setenv("RDSREPL_WITH", "replica")
    own = {name: value for name, value in pair.primary.keywords().items() if name in aws_lambda.SYNC_KEYS}
    return lambda **event: aws_lambda.sync({**own, **event}, Context())


def test_a_pass_on_a_schedule(invoke: Any, rdsrepl: Program, pair: Pair) -> None:
    made = rdsrepl("slot", "create", "a", "--pair", pair.standby.dsn(), "--yes", dsn=pair.primary.dsn())
    assert made.code == 0, made.err
    pair.run(pair.primary, "SELECT pg_catalog.pg_replication_slot_advance('a', pg_catalog.pg_current_wal_lsn())")
    pair.wait_until_replayed()
    done = invoke(leader="here")
    assert (done["status"], [one["slot_name"] for one in done["pairs"]]) == ("ready", ["a"])
    assert pair.confirmed(pair.standby, "a") == pair.confirmed(pair.primary, "a")


def test_a_pair_that_does_not_protect_fails_the_run(invoke: Any, rdsrepl: Program, pair: Pair) -> None:
    assert rdsrepl("slot", "create", "a", "--yes", dsn=pair.primary.dsn()).code == 0
    with pytest.raises(Refused, match="a missing: target replica has no slot a"):
        invoke()


def test_the_event_is_checked(invoke: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for event in ({"to": "kinesis:x"}, {"leader": "nowhere"}, {"max_repeat": "many"}):
        with pytest.raises(BadValue):
            invoke(**event)
    with pytest.raises(NotFound, match="target 'other' does not exist"):
        invoke(**{"with": "other"})
    monkeypatch.delenv("RDSREPL_WITH")
    with pytest.raises(BadValue, match="with is missing"):
        invoke()


def test_the_page_names_every_key() -> None:
    page = (ROOT / "docs" / "slot-pairs.md").read_text(encoding="utf-8")
    assert all(f"`{key}`" in page for key in aws_lambda.SYNC_KEYS)
