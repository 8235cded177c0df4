"""What a person sees on terminals of 60, 80 and 120 columns, compared as whole texts with ``screens/``.

``RDSREPL_UPDATE=1`` writes the files again. What differs in each run is made constant by the choice of the data, or is
replaced by ``#`` of the same width: see ``_MASKED``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import psycopg
import pytest

from rdsrepl import apply
from rdsrepl.config import Target
from rdsrepl.postgres import connection, server_identity
from rdsrepl.retention import prune_rules
from rdsrepl.snapshot import table_store
from rdsrepl.snapshot.requests import Request
from rdsrepl.snapshot.state import SnapshotState, Status, StreamIdentity, TablePlace, TableState
from tests.fixtures.missing import missing
from tests.fixtures.postgres import find_binaries
from tests.fixtures.sandbox import Cloud
from tests.fixtures.terminal import screen

_STORED: Final = Path(__file__).parent / "screens"
_LONG: Final = "debezium_orders_prod_eu_west_1_customer_orders_connector_012345"
# Slots, their databases, and how many MB of WAL are written between each and the next.
_SLOTS: Final = ((_LONG, "app", 24.2), ("orders_cdc", "app", 18.1), ("feed_warehouse", "注文データ", 6.3))
_MASKED: Final = re.compile(
    r"\b[0-9A-F]{1,2}/[0-9A-F]{5,8}\b"  # LSNs
    r"|(?<=:)\d{5}\b|(?<=port=)\d{5}\b"
    r"|\b16\.\d+"  # the version
    r"|\d{4}-\d\d-\d\d|\d\d:\d\d:\d\d(\.\d{6})?"
    r"|(?<!for )\b\d\.\ds\b|\d+(?= samples)"  # how long the slots were sampled
    r"|\b\d+\.\d(?=\s+MB)"  # autovacuum writes WAL as well
    r"|(?<=reserved  -                 )\d\b"  # the age of xmin
    r"|\b\d{19}\b|\b\d{4,5}(?=(')?::(oid|xid))"  # identifiers
)


class Place:
    """A sandbox that only these tests use, with slots that retain a known amount of WAL."""

    def __init__(self, home: Path) -> None:
        programs = find_binaries(16)
        assert programs is not None
        self.cloud = Cloud(home, "--postgres-bin", str(programs.bin_dir))
        self.program = self.cloud.program
        for variable in ("NO_COLOR", "COLUMNS"):
            self.program.env.pop(variable)
        self.home, self._count = home, 0

    def prepare(self) -> None:
        report = self.cloud.report
        self.dsn = " ".join(f"{name}={report[name]}" for name in ("host", "port", "user", "dbname"))
        self.program.env["PGPASSFILE"] = passfile = report["passfile"]
        with closing(psycopg.connect(self.dsn, passfile=passfile, autocommit=True)) as conn:
            conn.execute('CREATE DATABASE "注文データ"')
            for slot, database, megabytes in _SLOTS:
                with closing(
                    psycopg.connect(self.dsn, passfile=passfile, dbname=database, autocommit=True)
                ) as elsewhere:
                    elsewhere.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (slot,))
                self._write(conn, slot, megabytes)
            conn.execute("SELECT pg_current_xact_id()")  # every slot holds back VACUUM, with and without autovacuum
        self._save_snapshots()
        made = self.cloud(
            "param-group", "create", "orders-logical", "--family", "postgres16", "--kind", "cluster", "-y"
        )
        assert made.code == 0, made.err

    def _save_snapshots(self) -> None:
        """Write the state of two snapshots into a table of the database, as ``slot tail`` does."""
        target, began = Target("app", f"{self.dsn} passfile={self.program.env['PGPASSFILE']}"), datetime(2026, 1, 1, 3)
        place = TablePlace("rdsrepl", "snapshots")
        with connection.open(target) as conn:
            apply.run(table_store.creation(conn, place), target, done=lambda _: None, waiting=lambda *_: None)
            owner = StreamIdentity(server_identity.identifier(conn), "app", "orders_cdc")
        wide = Request("orders-3f9a12", "orders_cdc", ("public.orders", 'public."Customer orders of 2025"', "public.t"))
        tables = (
            TableState(wide.tables[0], ("18250000",), 18_250_000, 18_250_112, 1825, 312, (), is_done=True),
            TableState(wide.tables[1], ("eu-west-1", "4711"), 1_200_000, 9_600_000, 120, 0),
            TableState(wide.tables[2]),
        )
        small = Request("add-items", "orders_cdc", ("public.items",))
        why, ended = "role cdc may not read public.items", began.replace(hour=4, tzinfo=UTC)
        failed = TableState("public.items", None, 0, 1_000)
        with closing(table_store.open_store(place, owner, target)) as store:
            store.load()
            store.save(
                (
                    SnapshotState(wide, Status.running, None, tables, began.replace(tzinfo=UTC), None, 420.0),
                    SnapshotState(small, Status.failed, why, (failed,), began.replace(tzinfo=UTC), ended),
                )
            )

    def _write(self, conn: psycopg.Connection[tuple[int]], slot: str, megabytes: float) -> None:
        """Write WAL until a slot retains this much."""
        query = "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint FROM pg_replication_slots"
        while True:
            row = conn.execute(query + " WHERE slot_name = %s", (slot,)).fetchone()
            assert row is not None
            if (missing := int(megabytes * 2**20) - row[0]) < 1024:
                return
            size = min(1 << 20, int(missing * 0.99))
            conn.execute("SELECT pg_logical_emit_message(false, 'wal', repeat('x', %s))", (size,))

    def screen(self, *words: str, columns: int, **variables: str | None) -> str:
        self._count += 1  # a state directory of its own: no rate of an earlier run
        state = str(self.home / f"state{self._count}")
        text = screen(self.program, *words, columns=columns, XDG_STATE_HOME=state, **variables)
        text = re.sub(r"by \d+ transactions?\b", "by # transactions", text)  # autovacuum assigns transaction IDs
        return _MASKED.sub(lambda match: "#" * len(match[0]), text)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    if find_binaries(16) is None:
        missing("PostgreSQL 16", "make test installs it")
    made = Place(tmp_path_factory.mktemp("screens"))
    made.prepare()
    yield made
    assert made.cloud("sandbox", "down").code == 0


SCREENS: Final = {
    "slot-list": ("--dsn", "DSN", "slot", "list", "--filter", "slot_type=logical"),
    "slot-lag": ("--dsn", "DSN", "slot", "lag", "--filter", "slot_type=logical"),
    "slot-prune-dry-run": (
        *("--dsn", "DSN", "slot", "prune", "--slot", "orders_cdc", "--slot", "feed_warehouse"),
        *("--retaining-over", "10MB", "--inactive-for", "200ms", "--observe", "200ms", "--dry-run"),
    ),
    "snapshot-list": ("--dsn", "DSN", "snapshot", "list", "--state", "table:rdsrepl.snapshots"),
    "doctor": ("-t", "sandbox", "doctor"),
    "cluster-show": ("cluster", "show", "sandbox"),
    "param-group-diff": ("param-group", "diff", "orders-logical"),
}


@pytest.mark.parametrize("name", SCREENS)
def test_screen(place: Place, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prune_rules, "MIN_IDLE_SECONDS", 0.0)
    words = [place.dsn if word == "DSN" else word for word in SCREENS[name]]
    for columns in (60, 80, 120):
        shown = place.screen(*words, columns=columns)
        file = _STORED / f"{name}.{columns}.txt"
        if os.environ.get("RDSREPL_UPDATE"):
            file.write_text(shown, encoding="utf-8")
        assert shown == file.read_text(encoding="utf-8"), f"{file.name}: look at it, then RDSREPL_UPDATE=1"
