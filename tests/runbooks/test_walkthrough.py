"""docs/walkthrough.md: a Multi-AZ DB cluster as written, and each command of the others.

The benchmark ``walkthrough`` runs all ways, ``aws_cli`` what is for the aws CLI.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fixtures.hints import wrong_commands
from tests.fixtures.sandbox import Cloud
from tests.fixtures.walkthrough import BLOCKS, WAYS, blocks, walk


def test_the_page_has_every_way() -> None:
    assert {way: len(blocks(way)) for way in BLOCKS} == BLOCKS


@pytest.mark.parametrize("way", WAYS)
def test_every_command_exists(way: str) -> None:
    commands = "".join(block.commands for block in blocks(way)).replace("\\\n", " ").splitlines()
    ours = [line.partition(">")[0] for line in commands if line.startswith("rdsrepl ")]
    assert len(ours) >= 12
    assert wrong_commands("\n".join(ours)) == []


def test_from_nothing_to_a_stream(cloud: Cloud, tmp_path: Path) -> None:
    walk(cloud, "multi-az", tmp_path)
