"""The column PROTECTED of ``slot list``: what one server shows of a slot's fate in a failover."""

from __future__ import annotations

from typing import Any

import pytest

from rdsrepl.failover.protection import with_protection
from tests.fixtures.builders import slot

STANDBY = slot("s", slot_type="physical", active=True, active_pid=1)


@pytest.mark.parametrize(
    ("columns", "server", "expected"),
    [
        pytest.param({"failover": True}, {}, True, id="failover"),
        pytest.param({"failover": False}, {}, False, id="ordinary"),
        pytest.param({"failover": True, "wal_status": "lost"}, {}, False, id="lost"),
        pytest.param({"failover": None}, {"version": 16}, None, id="before-17-a-pair-is-not-seen-here"),
        pytest.param({"temporary": True}, {}, None, id="temporary"),
        pytest.param({"slot_type": "physical"}, {}, None, id="physical"),
        pytest.param({"failover": False}, {"copied_by_aws": True}, True, id="multi-az-cluster"),
        pytest.param({"failover": False}, {"copied_by_aws": None}, None, id="perhaps-multi-az-cluster"),
        pytest.param({"synced": True}, {"in_recovery": True}, True, id="copy"),
        pytest.param({"synced": True, "temporary": True}, {"in_recovery": True}, False, id="copy-not-ready"),
        pytest.param({"synced": False}, {"in_recovery": True}, True, id="own-slot-of-a-standby"),
    ],
)
def test_protection(columns: dict[str, Any], server: dict[str, Any], expected: bool | None) -> None:
    named = {"version": 18, "in_recovery": False, **server}
    first, _ = with_protection([slot("one", **columns), STANDBY], **named)
    assert first.protected is expected


def test_a_failover_slot_without_a_standby_is_not_protected() -> None:
    (one,) = with_protection([slot("one", failover=True)], version=18, in_recovery=False)
    assert one.protected is False
