"""Which transactions a snapshot sees: 32 bits of the stream against 64 bits of the server."""

from __future__ import annotations

import random
from typing import Any

import pytest

from rdsrepl.errors import BadValue
from rdsrepl.snapshot.visibility import ServerSnapshot

EPOCH = 1 << 32


def test_parses_what_the_server_writes() -> None:
    assert ServerSnapshot.parse("10:20:10,14") == ServerSnapshot(10, 20, frozenset({10, 14}))
    assert ServerSnapshot.parse("731:731:") == ServerSnapshot(731, 731, frozenset())
    assert ServerSnapshot.parse("4294967300:4294967301:4294967300").in_progress == {EPOCH + 4}


@pytest.mark.parametrize("text", ["", "10:20", "20:10:", "10:20:10,", "10:20:a", "-1:5:", "10:20:10\n", "١٠:20:"])
def test_refuses_other_text(text: str) -> None:
    with pytest.raises(BadValue, match="is not a snapshot"):
        ServerSnapshot.parse(text)


def test_sees_what_ended_before_it() -> None:
    snapshot = ServerSnapshot.parse("10:20:10,14")
    assert [xid for xid in range(5, 25) if snapshot.sees(xid)] == [5, 6, 7, 8, 9, 11, 12, 13, 15, 16, 17, 18, 19]


@pytest.mark.parametrize("epoch", [0, 1, 7])
def test_the_ids_of_the_stream_wrap_around(epoch: int) -> None:
    base = (epoch + 1) * EPOCH  # the first transactions of the next epoch: 32 bits begin again at 0
    snapshot = ServerSnapshot(base - 3, base + 5, frozenset({base - 3, base + 4}))
    assert not snapshot.sees(EPOCH - 3), "in progress, before the wraparound"
    assert snapshot.sees(EPOCH - 4)
    assert snapshot.sees(EPOCH - 2)
    assert snapshot.sees(3)
    assert not snapshot.sees(4), "in progress, after the wraparound"
    assert not snapshot.sees(5), "it began later"
    before = ServerSnapshot(base - 20, base - 10, frozenset())
    assert before.sees(EPOCH - 11)
    assert not before.sees(EPOCH - 10)
    assert not before.sees(3), "it began later, behind the wraparound"


def test_is_right_for_every_id_that_a_server_can_have() -> None:
    """The oracle has the whole id of 64 bits; the rule only its lower 32."""
    rng = random.Random(4294966000)
    wrong = []
    for _ in range(20_000):
        xmax = rng.choice([rng.randrange(2_000, 1 << 40), EPOCH * rng.randrange(1, 9) + rng.randrange(-50, 50)])
        xmin = max(3, xmax - rng.randrange(0, 60))
        snapshot = ServerSnapshot(xmin, xmax, frozenset(rng.sample(range(xmin, xmax), min(3, xmax - xmin))))
        whole = max(3, xmax + rng.choice([rng.randrange(-80, 40), rng.randrange(-(1 << 31) + 1, 1 << 31)]))
        truth = whole < xmax and whole not in snapshot.in_progress
        if snapshot.sees(whole % EPOCH) is not truth:
            wrong.append((snapshot, whole))
    assert not wrong


def test_agrees_with_the_server(db18: Any) -> None:
    db18.run("CREATE TABLE seen (id int)")
    with db18.connect() as running, db18.connect() as other:
        running.execute("BEGIN")
        running.execute("INSERT INTO seen VALUES (1)")
        open_xid = running.execute("SELECT pg_current_xact_id()::text::bigint").fetchone()[0]
        ended = other.execute("INSERT INTO seen VALUES (2) RETURNING pg_current_xact_id()::text::bigint").fetchone()[0]
        text = other.execute("SELECT pg_current_snapshot()::text").fetchone()[0]
        ids = list(range(max(3, open_xid - 40), ended + 5))
        visible = other.execute(
            "SELECT array_agg(pg_visible_in_snapshot(x::text::xid8, %s::pg_snapshot) ORDER BY x) FROM unnest(%s) x",
            (text, ids),
        ).fetchone()[0]
        running.execute("COMMIT")
    snapshot = ServerSnapshot.parse(text)
    assert [snapshot.sees(xid % EPOCH) for xid in ids] == visible
    assert not snapshot.sees(open_xid % EPOCH)
    assert snapshot.sees(ended % EPOCH)
