"""The demo runs the whole path on a new sandbox, with rdsrepl commands only."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.fixtures.program import Program

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

COMMANDS = (
    "sandbox up --default-group",
    "doctor",
    "param-group create shop-logical --slots 4 --yes",
    "param-group attach shop-logical --reboot --yes",
    "role create cdc",
    "publication create shop",
    "slot create shop_cdc",
    "slot tail shop_cdc",
    "cluster failover sandbox --yes",
    "slot list",
    "slot lag shop_cdc",
    "slot peek shop_cdc",
    "stream create shop",
    "slot tail shop_cdc --publication shop --to kinesis:shop --until-now",
    "stream tail shop --from trim-horizon --limit 6",
    "stream delete shop --confirm shop",
    "slot prune --slot shop_cdc --dry-run",
    "slot drop shop_cdc",
    "cluster delete sandbox --final-snapshot shop-final --confirm sandbox",
    "param-group delete shop-logical --yes",
    "sandbox down",
)


def test_the_whole_path_on_a_fresh_sandbox(rdsrepl: Program, tmp_path: Path) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    done = rdsrepl(
        "demo", "--duration", "4s", env={"TMPDIR": str(temporary), "RDSREPL_POLL_INTERVAL": "250ms"}, timeout=500
    )
    assert done.code == 0, done.out + done.err
    position = 0
    for command in COMMANDS:
        found = re.search(rf"^\$ rdsrepl .*{re.escape(command)}", done.out[position:], re.M)
        assert found, f"{command} did not run, or not in this order"
        position += found.end()
    assert re.search(r"^  wal_level logical, max_replication_slots 20", done.out, re.M)
    proven = re.search(r"^All (\d+) committed orders were delivered; .* was ([\d.]+) s", done.out, re.M)
    assert proven and int(proven[1]) >= 2, done.out
    assert re.search(r"^  shop_cdc at 0/", done.out, re.M), "the slot is still there after the failover"
    assert done.out.count('"item":"in bulk"') == 5 and '"item":"the last one"' in done.out, "read back from Kinesis"
    assert not list(temporary.iterdir()), "the demo removes its files"
