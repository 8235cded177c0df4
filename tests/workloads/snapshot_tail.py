"""A ``slot tail`` whose stream gets snapshots, and which may be killed."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from rdsrepl.snapshot.requests import PREFIX, Method, Request, encode
from tests.benchmarks.measure import SCRIPT
from tests.fixtures.postgres import Database
from tests.fixtures.waiting import wait_until

_PROGRESS = "SELECT active, confirmed_flush_lsn >= %s FROM pg_replication_slots WHERE slot_name = %s"


class SnapshotTail:
    """A tail of SLOT that appends to ``out.jsonl`` in a directory of its own."""

    def __init__(self, source: Database, slot: str, directory: Path, *words: str, targets: Mapping[str, str]) -> None:
        """Create the directory; TARGETS are names and connection strings for ``--read-from``."""
        directory.mkdir()
        self.source, self.slot, self.directory = source, slot, directory
        self.out, self.state, self.errors = directory / "out.jsonl", directory / "state.json", directory / "err"
        self._words = words
        config = directory / "config.yaml"
        lines = ["targets:", *(f"  {name}:\n    dsn: {json.dumps(dsn)}" for name, dsn in targets.items())]
        config.write_text("\n".join(lines) + "\n" if targets else "targets: {}\n")
        self.env = {**os.environ, "RDSREPL_CONFIG": str(config), "XDG_STATE_HOME": str(directory / "home")}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        """Start the process."""
        command = [SCRIPT, "-q", "--dsn", self.source.dsn, "slot", "tail", self.slot, "--publication", "items"]
        command += ["-f", "json", "--state", str(self.state), *self._words, *words]
        with self.out.open("ab") as out, self.errors.open("ab") as err:
            self.process = subprocess.Popen(command, stdout=out, stderr=err, env=self.env)
        return self.process

    def kill(self, *, may_have_ended: bool = False) -> None:
        """Kill the process with SIGKILL."""
        assert self.process is not None
        assert may_have_ended or self.process.poll() is None, self.errors.read_text()
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """Let the process end."""
        assert self.process is not None
        self.process.terminate()
        assert self.process.wait() == 0, self.errors.read_text()

    def request(
        self,
        snapshot_id: str,
        chunk_rows: int,
        read_from: str | None = None,
        *,
        tables: tuple[str, ...] = ("public.items", "public.places"),
        where: str | None = None,
        method: Method = Method.chunks,
    ) -> None:
        """Start a snapshot, as ``rdsrepl snapshot start`` does."""
        request = Request(
            snapshot_id, self.slot, tables, where, chunk_rows=chunk_rows, read_from=read_from, method=method
        )
        with closing(self.source.connect()) as conn:
            conn.execute("SELECT pg_logical_emit_message(true, %s, %s)", (PREFIX, encode(request)))

    def snapshot(self, snapshot_id: str) -> dict[str, Any] | None:
        """Return the state of a snapshot."""
        if not self.state.exists():
            return None
        found = {one["request"]["id"]: one for one in json.loads(self.state.read_text())["snapshots"]}
        return found.get(snapshot_id)

    def wait_until_done(self, snapshot_id: str, seconds: float = 150) -> dict[str, Any]:
        """Wait until a snapshot is complete; return its state."""

        def state() -> dict[str, Any] | None:
            assert self.process is not None
            assert self.process.poll() is None, self.errors.read_text()
            one = self.snapshot(snapshot_id)
            return one if one is not None and one["status"] in ("done", "failed", "cancelled") else None

        found: dict[str, Any] = wait_until(state, f"snapshot {snapshot_id} is complete", seconds)
        assert found["status"] == "done", found["reason"]
        return found

    def wait_until_confirmed(self) -> None:
        """Wait until everything that is committed now is in the file."""
        with closing(self.source.connect()) as conn:
            conn.execute("SELECT pg_logical_emit_message(true, 'rdsrepl.heartbeat', '')")
            row = conn.execute("SELECT pg_current_wal_insert_lsn()").fetchone()
            assert row is not None
            wait_until(
                lambda: (conn.execute(_PROGRESS, (row[0], self.slot)).fetchone() or (0, 0))[1], "all is confirmed"
            )
