"""The servers of these tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rdsrepl.retention import prune_rules
from rdsrepl.sandbox.servers.postgres_server import PostgresServer
from tests.fixtures.lone_server import Place, start
from tests.fixtures.program import Program


@pytest.fixture(scope="module", params=[15, 18], ids=["pg15", "pg18"])
def shared_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    made = start(tmp_path_factory.mktemp("slots") / "pg", request.param, logical_decoding_work_mem="64kB")
    yield made
    made.stop("immediate")
    made.remove()


@pytest.fixture
def place(shared_server: PostgresServer, rdsrepl: Program, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """A server without slots, with a minimum idle time of 0 s."""
    monkeypatch.setattr(prune_rules, "MIN_IDLE_SECONDS", 0.0)
    monkeypatch.setenv("RDSREPL_STATE_DIR", str(rdsrepl.home / "state" / "rdsrepl"))
    made = Place(shared_server, rdsrepl)
    yield made
    made.drop_slots()
