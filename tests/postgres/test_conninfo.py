"""The parameters of a connection, from the target, the environment and the service file."""

from __future__ import annotations

import os
import threading

import pytest
from psycopg import pq

from rdsrepl.config import Target
from rdsrepl.postgres import conninfo


def test_threads_that_connect_at_the_same_time_leave_the_environment_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mark that stayed would be an invalid sslmode for each later connection and process."""
    monkeypatch.delenv("PGSSLMODE", raising=False)
    real, both, first_is_done = pq.Conninfo.get_defaults, threading.Event(), threading.Event()
    other = threading.Thread(target=conninfo.keywords, args=(Target(label="other"),))

    def get_defaults() -> list[pq.ConninfoOption]:
        if threading.current_thread() is other:
            both.set()
            first_is_done.wait(5)
        else:
            other.start()
            both.wait(0.2)
        return real()

    monkeypatch.setattr(pq.Conninfo, "get_defaults", get_defaults)
    conninfo.keywords(Target(label="one"))
    first_is_done.set()
    other.join()
    assert "PGSSLMODE" not in os.environ


def test_a_connection_does_not_read_the_mark_of_another_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGSSLMODE", "not chosen")
    local = Target(label="one", keywords={"host": "127.0.0.1"})
    assert conninfo.keywords(local)["sslmode"] == "prefer"
    assert conninfo.keywords(Target(label="two", keywords={"host": "db.example.com"}))["sslmode"] == "require"
