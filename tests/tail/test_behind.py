"""``slot tail --behind``: a commit is delivered when a standby has replayed it."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from rdsrepl.errors import Refused
from rdsrepl.tail.commit_gate import CommitGate
from rdsrepl.tail.standby_position import StandbyPosition
from rdsrepl.tail.timelines import Timelines
from tests.fixtures.program import Program, read_json_lines
from tests.fixtures.service import scrape
from tests.fixtures.slot_pairs import Pair
from tests.fixtures.waiting import wait_until

if TYPE_CHECKING:
    from tests.fixtures.postgres import Servers


@dataclass
class Standby:
    """What the gate needs of a poller."""

    position: StandbyPosition
    failure: str | None = None
    label: str = "db-2"
    server_lsn: int | None = None

    def server_position_after(self, moment: float) -> tuple[float, int] | None:
        now = time.monotonic()
        return None if self.server_lsn is None or now <= moment else (now, self.server_lsn)


@dataclass
class Notes:
    """An observer that keeps what it receives."""

    texts: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        self.texts.append(text)

    warn = note

    def progress(self, progress: object) -> None:
        pass


def gate_at(lsn: int, timeline: int = 1) -> tuple[CommitGate, Standby, list[int], Notes]:
    """Return a gate behind a standby that has replayed up to LSN, and the list of what it let pass."""
    standby, notes = Standby(StandbyPosition("7", timeline, lsn, in_recovery=True)), Notes()
    gate = CommitGate(standby, notes)  # type: ignore[arg-type]
    gate.connected("7", Timelines(1))
    return gate, standby, [], notes


def hold(gate: CommitGate, passed: list[int], number: int, end_lsn: int | None) -> None:
    gate.hold(number, 10, lambda: passed.append(number), end_lsn)


def move(standby: Standby, lsn: int, **fields: Any) -> None:
    standby.position = StandbyPosition(**{"system_id": "7", "timeline": 1, "lsn": lsn, "in_recovery": True, **fields})


def test_batches_pass_in_order_when_the_standby_has_their_commit() -> None:
    gate, standby, passed, _ = gate_at(100)
    hold(gate, passed, 1, 100)
    hold(gate, passed, 2, 200)
    hold(gate, passed, 3, 0)  # it has no lines, and keeps its place
    assert passed == [1]
    assert (gate.held_bytes, gate.first_number) == (20, 2)
    move(standby, 200)
    gate.release()
    assert passed == [1, 2, 3]
    assert gate.held_bytes == 0


def test_the_parts_of_a_transaction_wait_for_its_commit() -> None:
    gate, standby, passed, _ = gate_at(500)
    hold(gate, passed, 1, None)
    hold(gate, passed, 2, None)
    assert passed == []
    hold(gate, passed, 3, 600)
    assert passed == []
    move(standby, 600)
    gate.release()
    assert passed == [1, 2, 3]


def test_a_transaction_that_does_not_fit_into_memory_passes_behind_a_later_position_of_the_server() -> None:
    gate, standby, passed, _ = gate_at(500)
    hold(gate, passed, 1, None)
    standby.server_lsn = 700
    wait_until(lambda: gate.release() or gate._held[0].end_lsn == 700, "the position is asked for")  # type: ignore[func-returns-value]
    assert passed == []
    move(standby, 700)
    gate.release()
    assert passed == [1]


def test_what_is_held_back_when_the_connection_is_lost_is_forgotten() -> None:
    gate, standby, passed, _ = gate_at(100)
    for number, end_lsn in ((1, 100), (2, 250), (3, None)):
        hold(gate, passed, number, end_lsn)
    assert (gate.discard(), gate.discard(), gate.held_bytes) == (2, None, 0)
    gate.connected("7", Timelines(2, ((1, 200),)))
    move(standby, 300, timeline=2)
    gate.release()
    assert passed == [1]
    hold(gate, passed, 2, 290)
    assert passed == [1, 2]


def test_a_standby_on_another_timeline_lets_only_the_common_history_pass() -> None:
    gate, standby, passed, notes = gate_at(0)
    gate.connected("7", Timelines(2, ((1, 200),)))
    hold(gate, passed, 1, 200)
    hold(gate, passed, 2, 250)
    move(standby, 900)  # it goes on with the old primary's WAL
    gate.release()
    assert passed == [1]
    move(standby, 900, timeline=3)
    gate.release()
    assert passed == [1]
    assert any("is on timeline 3" in text for text in notes.texts)


def test_a_promoted_standby_ends_the_run() -> None:
    gate, standby, _, _ = gate_at(0)
    move(standby, 100, in_recovery=False)
    with pytest.raises(Refused, match="db-2 was promoted"):
        gate.release()


def test_another_system_is_refused(pair: Pair, servers: Servers, rdsrepl: Program) -> None:
    assert rdsrepl("slot", "create", "a", "--yes", dsn=pair.primary.dsn()).code == 0
    words = ("-o", "json", "slot", "tail", "a", "--publication", "p", "--until-now", "--behind")
    own = rdsrepl(*words, pair.primary.dsn(), dsn=pair.primary.dsn())
    assert (own.code, "is not a standby" in own.error["message"]) == (4, True)
    gone = rdsrepl(*words, "host=/nowhere", dsn=pair.primary.dsn())
    assert gone.code == 5
    gate, _, _, _ = gate_at(0)
    with pytest.raises(Refused, match="database system 7"):
        gate.connected("8", Timelines(1))


def tail_behind(rdsrepl: Program, pair: Pair, out: Path, *words: str) -> subprocess.Popen[bytes]:
    assert rdsrepl("slot", "create", "a", "--yes", dsn=pair.primary.dsn()).code == 0
    with out.open("wb") as file:
        return rdsrepl.start(
            *("slot", "tail", "a", "--publication", "p", "--behind", pair.standby.dsn(), *words),
            dsn=pair.primary.dsn(),
            stdout=file,
            stderr=subprocess.PIPE,
        )


def stderr_of(process: subprocess.Popen[bytes]) -> Callable[[str], str]:
    """Return a function that reads the lines of stderr up to one that contains a text."""

    def read(text: str) -> str:
        assert process.stderr is not None
        for line in iter(process.stderr.readline, b""):
            if text in line.decode():
                return line.decode()
        raise AssertionError(f"stderr ended before {text!r}")

    return read


def test_nothing_is_delivered_or_confirmed_before_the_standby_has_it(
    rdsrepl: Program, pair: Pair, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    process = tail_behind(rdsrepl, pair, out, "--metrics-port", "0")
    read = stderr_of(process)
    address = read("metrics: ").split("metrics: ")[1].split("/metrics")[0]
    try:
        pair.run(pair.primary, "INSERT INTO public.t VALUES (1, 'x')")
        wait_until(lambda: len(read_json_lines(out)) == 1, "the first row is delivered")
        pair.wait_until_replayed()
        pair.run(pair.standby, "SELECT pg_catalog.pg_wal_replay_pause()")
        pair.run(pair.primary, "INSERT INTO public.t VALUES (2, 'x')")
        wait_until(lambda: scrape(address).get("held_bytes", 0) > 0, "the second row is held back")
        held_at = pair.confirmed(pair.primary, "a") or 0
        assert len(read_json_lines(out)) == 1
        replayed = pair.run(pair.standby, "SELECT pg_catalog.pg_last_wal_replay_lsn() - '0/0'")[0][0]
        assert held_at <= int(replayed)
        pair.run(pair.standby, "SELECT pg_catalog.pg_wal_replay_resume()")
        wait_until(lambda: len(read_json_lines(out)) == 2, "the second row is delivered")
        pair.standby.stop("immediate")
        pair.run(pair.primary, "INSERT INTO public.t VALUES (3, 'x')")
        assert "nothing is delivered until it answers again" in read("nothing is delivered")
        assert len(read_json_lines(out)) == 2
        pair.standby.start()
        wait_until(lambda: len(read_json_lines(out)) == 3, "the third row is delivered")
    finally:
        process.terminate()
        assert process.wait(timeout=60) == 0
        assert process.stderr is not None
        process.stderr.close()


@pytest.mark.parametrize("fmt", ["json", "wal2json"])
def test_a_file_gets_held_commits_once_when_the_connection_was_lost_in_between(
    rdsrepl: Program, pair: Pair, tmp_path: Path, fmt: str
) -> None:
    """The end of a json file is compared with the stream, a wal2json file has its position beside it."""
    out = tmp_path / "out"
    process = tail_behind(rdsrepl, pair, out, "--metrics-port", "0", "--format", fmt)
    address = stderr_of(process)("metrics: ").split("metrics: ")[1].split("/metrics")[0]
    backend = "FROM pg_catalog.pg_replication_slots WHERE slot_name = 'a' AND active_pid IS NOT NULL"
    try:
        pair.run(pair.primary, "INSERT INTO public.t VALUES (1, 'x')")
        wait_until(lambda: out.stat().st_size > 0, "the first row is delivered")
        pair.wait_until_replayed()
        pair.run(pair.standby, "SELECT pg_catalog.pg_wal_replay_pause()")
        pair.run(pair.primary, "INSERT INTO public.t VALUES (2, 'x')")
        wait_until(lambda: scrape(address).get("held_bytes", 0) > 0, "the second row is held back")
        ((before,),) = pair.run(pair.primary, f"SELECT active_pid {backend}")
        pair.run(pair.primary, f"SELECT pg_catalog.pg_terminate_backend(active_pid) {backend}")
        wait_until(
            lambda: pair.run(pair.primary, f"SELECT active_pid {backend} AND active_pid <> {before}"),
            "the slot is streamed again",
        )
        pair.run(pair.primary, "INSERT INTO public.t VALUES (3, 'x')")
        pair.run(pair.standby, "SELECT pg_catalog.pg_wal_replay_resume()")
        wait_until(lambda: out.read_bytes().count(b'"x"') >= 3, "every row is delivered")
    finally:
        pair.run(pair.standby, "SELECT pg_catalog.pg_wal_replay_resume()")
        process.terminate()
        assert process.wait(timeout=60) == 0
        assert process.stderr is not None
        process.stderr.close()
    rows = re.findall(rb'"id":(\d),"v"|"id"[^}]*"value":(\d)', out.read_bytes())
    assert [b"".join(row) for row in rows] == [b"1", b"2", b"3"]


def test_a_transaction_of_any_size_passes(rdsrepl: Program, pair: Pair, tmp_path: Path) -> None:
    """It is larger than what the tail keeps in memory."""
    out = tmp_path / "out.jsonl"
    assert rdsrepl("slot", "create", "a", "--yes", dsn=pair.primary.dsn()).code == 0
    pair.run(pair.primary, "INSERT INTO public.t SELECT g, repeat('x', 2000) FROM generate_series(1, 15000) g")
    with out.open("wb") as file:
        words = ("-q", "slot", "tail", "a", "--publication", "p", "--until-now", "--behind", pair.standby.dsn())
        process = rdsrepl.start(*words, dsn=pair.primary.dsn(), stdout=file)
        assert process.wait(timeout=100) == 0
    assert [row["after"]["id"] for row in read_json_lines(out)] == list(range(1, 15001))


def test_a_signal_does_not_wait_for_the_standby(rdsrepl: Program, pair: Pair, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    process = tail_behind(rdsrepl, pair, out, "--metrics-port", "0")
    address = stderr_of(process)("metrics: ").split("metrics: ")[1].split("/metrics")[0]
    pair.wait_until_replayed()
    pair.run(pair.standby, "SELECT pg_catalog.pg_wal_replay_pause()")
    try:
        pair.run(pair.primary, "INSERT INTO public.t VALUES (1, 'x')")
        wait_until(lambda: scrape(address).get("held_bytes", 0) > 0, "the row is held back")
        process.terminate()
        assert process.wait(timeout=60) == 0
    finally:
        pair.run(pair.standby, "SELECT pg_catalog.pg_wal_replay_resume()")
        assert process.stderr is not None
        process.stderr.close()
    assert read_json_lines(out) == []
    again = rdsrepl("slot", "tail", "a", "--publication", "p", "--until-now", dsn=pair.primary.dsn())
    assert [row["after"]["id"] for row in again.lines] == [1]
