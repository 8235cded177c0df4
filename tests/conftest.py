"""Load the fixtures of ``tests/fixtures`` and order the test files: see README.md."""

from __future__ import annotations

import os
import re
import signal
import tempfile
from pathlib import Path
from typing import Final

import pytest
from hypothesis import settings

# Every run checks the same examples, and no example fails because the machine is slow.
settings.register_profile("tests", derandomize=True, deadline=None)
settings.load_profile("tests")

# In the background of a shell (make test &, nohup make test) these are ignored, and the programs that tests start would
# inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

_MEMORY: Final = Path("/dev/shm")
_MEMORY_BYTES: Final = 6 << 30


def _use_memory() -> None:
    """Keep the files of the tests in memory where there is enough of it, unless TMPDIR names a directory.

    A new database is 300 files, a new server 1,000. On a disk, to create and remove them takes five times the CPU.
    """
    if "TMPDIR" in os.environ or not os.access(_MEMORY, os.W_OK):
        return
    room = os.statvfs(_MEMORY)
    memory = re.search(r"^MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text(), re.M)
    available = min(room.f_bavail * room.f_frsize, int(memory[1]) << 10 if memory else 0)
    if room.f_flag & os.ST_NOEXEC or available < _MEMORY_BYTES:
        return
    os.environ["TMPDIR"] = str(_MEMORY)
    tempfile.tempdir = None  # pytest asked already


_use_memory()

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
    "tests.fixtures.slot_pairs",
]

# The files that take longest, the slowest first: a long file that starts last keeps the other workers waiting.
_SLOWEST: Final = (
    "runbooks/test_pages",
    "runbooks/test_walkthrough",
    "verify/test_verify_kinesis",
    "cli/test_demo",
    "sandbox/test_servers",
    "tail/test_kinesis",
    "tail/test_failover",
    "tail/test_delivery",
    "snapshot/test_incremental",
    "runbooks/test_runner",
    "retention/test_prune",
    "aws/test_eventual_consistency",
    "aws/test_clusters",
    "sandbox/test_api",
    "sandbox/test_lifecycle",
    "switchover/test_run",
    "doctor/test_doctor",
    "tail/test_service",
    "tail/test_replay",
    "cli/test_unattended",
    "cli/test_slot_sync",
    "snapshot/test_resumed_initial",
    "snapshot/test_incremental_servers",
    "snapshot/test_snapshot_model",
    "snapshot/test_merge_on_servers",
    "slot_sync/test_promotion",
    "tail/test_dead_network",
    "tail/test_identity",
    "postgres/test_roles",
    "postgres/test_slots",
    "tail/test_changing_types",
    "dashboard/test_watch",
    "tail/test_recorded_file",
    "tail/test_edges",
    "failover/test_readiness",
    "failover/test_diff",
    "parameters/test_param_group",
    "cli/test_completions",
)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the slowest files first; the rest keep their random order."""
    places = {name: number for number, name in enumerate(_SLOWEST)}
    items.sort(key=lambda item: places.get("/".join(item.path.with_suffix("").parts[-2:]), len(places)))
