"""Subscriptions that follow a promotion: one that has applied what was left behind must not be pointed there."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from tests.fixtures.postgres import Database, Servers
from tests.fixtures.program import Program
from tests.fixtures.splits import split
from tests.fixtures.waiting import wait_until


def test_a_subscription_that_is_ahead_of_the_new_primary_is_not_pointed_there(
    servers: Servers, db18: Database, rdsrepl: Program, tmp_path: Path
) -> None:
    """It would ask for what follows its own position, and the new primary writes other changes before that."""
    with split(servers.get(18).binaries, tmp_path) as made, ExitStack() as after:
        old, new = made.before, made.after
        old.run("CREATE TABLE t (id int PRIMARY KEY)", "CREATE PUBLICATION p FOR TABLE t")
        db18.run("CREATE TABLE t (id int PRIMARY KEY)")
        db18.run(f"CREATE SUBSCRIPTION s CONNECTION '{old.dsn}' PUBLICATION p WITH (copy_data = false)")
        for statement in ("DROP SUBSCRIPTION s", "ALTER SUBSCRIPTION s SET (slot_name = NONE)",
                          "ALTER SUBSCRIPTION s DISABLE"):  # fmt: skip
            after.callback(db18.run, statement)
        made.replayed()
        made.cut_off()
        old.run("INSERT INTO t SELECT generate_series(1, 1000)")
        wait_until(lambda: db18.value("SELECT count(*) FROM t") == 1000, "the subscription has applied it")
        checked = rdsrepl("failover", "check", "--to", new.dsn, "--subscriber", db18.dsn, "-o", "json", dsn=old.dsn)
        assert ("subscriber_ahead", "s") in [(one["check"], one["subject"]) for one in checked.json["findings"]]
        words = ("failover", "run", "--to", new.dsn, "--subscriber", db18.dsn)
        unplanned = rdsrepl(*words, "--unplanned", "--dry-run", dsn=old.dsn)
        assert "subscription s has applied changes up to" in unplanned.err
        promoted = rdsrepl(*words, "--unplanned", "--yes", dsn=old.dsn)
        assert promoted.code == 6 and "it would leave out what" in promoted.err, promoted.err
        assert not new.value("SELECT pg_is_in_recovery()")
        conninfo = "SELECT subconninfo FROM pg_subscription WHERE subname = 's'"
        assert db18.value(conninfo) == old.dsn
        # With its position at the fork, it gets everything that the new primary writes.
        new.run("SELECT pg_create_logical_replication_slot('s', 'pgoutput')", "INSERT INTO t VALUES (-1)")
        fork = rdsrepl("failover", "diff", "--old", old.dsn, "--new", new.dsn, "-o", "json")
        assert fork.code == 4 and "in use by" in fork.err
        db18.run("ALTER SUBSCRIPTION s DISABLE")
        wait_until(lambda: not old.value("SELECT active FROM pg_replication_slots WHERE slot_name = 's'"), "it ended")
        lsn = rdsrepl("failover", "diff", "--old", old.dsn, "--new", new.dsn, "-o", "json").json["fork"]["lsn"]
        db18.run(
            f"SELECT pg_replication_origin_advance(external_id, '{lsn}') FROM pg_replication_origin_status "
            "JOIN pg_subscription s ON external_id = 'pg_' || s.oid WHERE subname = 's'"
        )
        finished = rdsrepl(*words, "--idle", "--yes", dsn=old.dsn)
        assert finished.code == 0, finished.err
        assert db18.value(conninfo) != old.dsn
        db18.run("ALTER SUBSCRIPTION s ENABLE")
        wait_until(lambda: db18.value("SELECT count(*) FROM t WHERE id = -1"), "what the new primary wrote arrives")
