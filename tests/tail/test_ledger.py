"""The ledger never allows to confirm an undelivered change, in any order of events."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rdsrepl.tail.ledger import Ledger


def test_nothing_delivered_nothing_confirmed() -> None:
    ledger = Ledger()
    ledger.hand_over(100, in_transaction=False)
    assert ledger.flush_lsn == 0
    assert not ledger.all_delivered


def test_a_commit_is_confirmed_once_its_batch_is_durable() -> None:
    ledger = Ledger()
    number = ledger.hand_over(100, in_transaction=False)
    ledger.deliver(number)
    assert ledger.flush_lsn == 100
    assert ledger.all_delivered


def test_a_keepalive_after_an_undelivered_change_waits_for_it() -> None:
    ledger = Ledger()
    number = ledger.hand_over(100, in_transaction=False)
    ledger.keepalive(500)
    assert ledger.flush_lsn == 0
    ledger.deliver(number)
    assert ledger.flush_lsn == 500


def test_an_idle_slot_moves_with_the_keepalive() -> None:
    ledger = Ledger()
    ledger.keepalive(500)
    assert ledger.flush_lsn == 500


def test_a_keepalive_within_a_transaction_has_no_effect() -> None:
    ledger = Ledger()
    ledger.deliver(ledger.hand_over(None, in_transaction=True))
    ledger.keepalive(500)
    assert ledger.flush_lsn == 0
    assert not ledger.all_delivered
    ledger.deliver(ledger.hand_over(600, in_transaction=False))
    assert ledger.flush_lsn == 600


def test_a_lost_connection_ends_the_incomplete_transaction() -> None:
    ledger = Ledger()
    ledger.deliver(ledger.hand_over(None, in_transaction=True))
    ledger.connection_lost(ledger.handed_over)
    ledger.keepalive(500)
    assert ledger.flush_lsn == 500


def test_a_lost_connection_takes_back_what_no_sink_has() -> None:
    ledger = Ledger()
    ledger.begin(50)
    first = ledger.hand_over(100, in_transaction=False)
    ledger.hand_over(200, in_transaction=False)
    ledger.keepalive(300)
    ledger.connection_lost(first)
    assert (ledger.handed_over, ledger.commit_lsn, ledger.received_lsn) == (first, 100, 100)
    ledger.deliver(first)
    assert ledger.flush_lsn == 100
    assert ledger.hand_over(200, in_transaction=False) == first + 1
    ledger.connection_lost(first)
    assert (ledger.commit_lsn, ledger.received_lsn) == (100, 100)
    before = Ledger()
    before.begin(50)
    before.hand_over(100, in_transaction=False)
    before.connection_lost(0)
    assert (before.commit_lsn, before.received_lsn, before.all_delivered) == (0, 50, True)


def test_another_history_forgets_every_position() -> None:
    ledger = Ledger()
    ledger.deliver(ledger.hand_over(1000, in_transaction=False))
    late = ledger.hand_over(2000, in_transaction=False)
    ledger.history_changed()
    ledger.deliver(late)
    assert (ledger.flush_lsn, ledger.commit_lsn) == (0, 0)
    ledger.deliver(ledger.hand_over(900, in_transaction=False))
    assert ledger.flush_lsn == 900


def test_the_sink_cannot_deliver_what_it_was_not_given() -> None:
    with pytest.raises(ValueError, match="was not handed over"):
        Ledger().deliver(1)


EVENTS = ["change", "commit", "keepalive", "deliver", "lose", "discard"]


@given(st.lists(st.sampled_from(EVENTS), max_size=60), st.randoms())
def test_never_past_an_undelivered_change(events: list[str], random) -> None:  # type: ignore[no-untyped-def]
    """Model: each change has the LSN of its transaction's commit; the smallest undelivered one limits the position."""
    ledger = Ledger()
    lsn, is_open, delivered = 0, False, 0
    undelivered: dict[int, list[int]] = {}  # batch → LSNs of the changes in it
    open_batches: list[int] = []
    previous = 0
    for event in events:
        lsn += random.randint(1, 10)
        if event == "change":
            is_open = True
            number = ledger.hand_over(None, in_transaction=True)
            undelivered[number] = [lsn]
            open_batches.append(number)
        elif event == "commit":
            number = ledger.hand_over(lsn, in_transaction=False)
            undelivered[number] = [lsn - 1]
            is_open, open_batches = False, []
        elif event == "keepalive":
            ledger.keepalive(lsn)
        elif event == "lose":
            ledger.connection_lost(ledger.handed_over)
            # The server sends the open transaction again: its changes so far do not matter.
            for number in open_batches:
                undelivered.pop(number, None)
            is_open, open_batches = False, []
        elif event == "discard":
            # Nothing after some batch reached the sink: the server sends everything again that was committed later.
            kept = random.randint(delivered, ledger.handed_over)
            ledger.connection_lost(kept)
            for number in [n for n in undelivered if n > kept or n in open_batches]:
                assert number in open_batches or ledger.received_lsn <= min(undelivered[number])
                del undelivered[number]
            lsn, is_open, open_batches = ledger.received_lsn, False, []
        elif ledger.handed_over > delivered:
            delivered = random.randint(delivered + 1, ledger.handed_over)
            ledger.deliver(delivered)
            for number in [n for n in undelivered if n <= delivered and n not in open_batches]:
                del undelivered[number]
        for lsns in undelivered.values():
            assert ledger.flush_lsn < min(lsns) + 1
        assert ledger.flush_lsn >= previous
        previous = ledger.flush_lsn
        assert not (is_open and ledger.all_delivered)
