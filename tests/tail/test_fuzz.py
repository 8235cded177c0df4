"""Every decoder and every parser with mutated input: a value or a typed error, and never a wrong position."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rdsrepl.sandbox.servers.postgres_server import PostgresServer
from tests.fixtures.postgres import Database
from tests.workloads import fuzzing

SEED = 20261121
MESSAGES = 150
TEXTS = 150


@pytest.fixture(scope="module")
def recorded(pg15: PostgresServer) -> Iterator[list[fuzzing.Recorded]]:
    """What PostgreSQL 15 sends for each decoder."""
    with pg15.connect() as conn:
        conn.execute("CREATE DATABASE fuzz TEMPLATE template0")
    database = Database(pg15, "fuzz")
    with fuzzing.record(database.connect, database.target) as found:
        yield found


def test_no_decoder_ends_in_an_untyped_error(recorded: list[fuzzing.Recorded]) -> None:
    for one in recorded:
        tally = fuzzing.fuzz_decoder(one, MESSAGES, SEED)
        assert tally.mutated >= MESSAGES and tally.accepted and tally.refused, (one.name, tally)
        assert tally.kinds == {"MalformedMessage"}, (one.name, tally)


def test_no_parser_ends_in_an_untyped_error(tmp_path: Path) -> None:
    for one in fuzzing.parsers(tmp_path):
        for seed in one.seeds:
            one.parse(seed) if one.name not in ("page", "config file") else None
        taken, refused = fuzzing.fuzz_parser(one, TEXTS, SEED)
        assert taken + refused == TEXTS, one.name
