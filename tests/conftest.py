"""Load the fixtures of ``tests/fixtures`` and order the test files: see README.md."""

from __future__ import annotations

import signal
from typing import Final

import pytest
from hypothesis import settings

# Every run checks the same examples, and no example fails because the machine is slow.
settings.register_profile("tests", derandomize=True, deadline=None)
settings.load_profile("tests")

# In the background of a shell (make test &) SIGINT is ignored, and the programs that tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A module stands after those that it imports: pytest rewrites the assertions of a module at its first import.
pytest_plugins = [
    "tests.fixtures.waiting",
    "tests.fixtures.hints",
    "tests.fixtures.postgres",
    "tests.fixtures.program",
    "tests.fixtures.sandbox",
    "tests.fixtures.terminal",
    "tests.fixtures.kinesis",
    "tests.fixtures.service",
]

# The files that take longest, the slowest first: a long file that starts last keeps the other workers waiting.
_SLOWEST: Final = (
    "runbooks/test_pages",
    "sandbox/test_lifecycle",
    "sandbox/test_servers",
    "runbooks/test_walkthrough",
    "tail/test_delivery",
    "tail/test_kinesis",
    "aws/test_clusters",
    "tail/test_failover",
    "runbooks/test_runner",
    "retention/test_prune",
    "cli/test_demo",
    "aws/test_eventual_consistency",
    "cli/test_unattended",
    "tail/test_service",
    "doctor/test_doctor",
    "postgres/test_slots",
    "parameters/test_param_group",
)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the slowest files first; the rest keep their random order."""
    places = {name: number for number, name in enumerate(_SLOWEST)}
    items.sort(key=lambda item: places.get("/".join(item.path.with_suffix("").parts[-2:]), len(places)))
