"""Which readings prove a difference, and which do not."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rdsrepl.verify.row_state import Reading, Round, RowState, evaluate


def _reading(text: str) -> Reading | None:
    """Read ``a1`` as the value a in its first version, ``-`` as no row."""
    return None if text == "-" else Reading(ord(text[0]), text[1])


def _evaluate(now: str, last: str | None = None) -> RowState:
    def parsed(text: str) -> Round:
        before, target, after = map(_reading, text.split())
        return Round(before, before, target, after)

    return evaluate(parsed(now), None if last is None else parsed(last))


def test_equal_to_either_reading_of_the_source_is_cleared() -> None:
    assert _evaluate("a1 a9 b2") is RowState.cleared
    assert _evaluate("a1 b9 b2") is RowState.cleared
    assert _evaluate("a1 - -") is RowState.cleared
    assert _evaluate("- - a1") is RowState.cleared


def test_a_source_row_that_did_not_change_proves() -> None:
    assert _evaluate("a1 b9 a1") is RowState.different
    assert _evaluate("a1 - a1") is RowState.missing


def test_a_row_that_was_written_meanwhile_proves_nothing() -> None:
    """Its value may be the same again: its version is not."""
    assert _evaluate("a1 b9 a2") is RowState.again
    assert _evaluate("a1 - a2") is RowState.again


def test_an_extra_row_needs_the_same_version_in_two_rounds() -> None:
    assert _evaluate("- a9 -") is RowState.again
    assert _evaluate("- a9 -", "- a9 -") is RowState.extra
    assert _evaluate("- a9 -", "- a8 -") is RowState.again
    assert _evaluate("- a9 b1", "- a9 -") is RowState.again


_HISTORY = st.lists(st.one_of(st.none(), st.integers(0, 2)), min_size=1, max_size=12)


@given(history=_HISTORY, data=st.data())
def test_a_correct_copy_is_never_called_different(history: list[int | None], data: st.DataObject) -> None:
    """The source has one row with a history; the copy applies it in order, at any speed that the waits allow."""
    states = [None if value is None else Reading(value, str(place)) for place, value in enumerate(history)]
    now = applied = 0
    last: Round | None = None
    for _ in range(4):
        now = data.draw(st.integers(now, len(states) - 1))
        before, read_at = states[now], now
        now = near = data.draw(st.integers(now, len(states) - 1))
        applied = data.draw(st.integers(max(applied, read_at), now))
        copy = states[applied]
        now = data.draw(st.integers(now, len(states) - 1))
        there = None if copy is None else Reading(copy.fingerprint, f"t{copy.version}")
        this = Round(before, states[near], there, states[now])
        assert not evaluate(this, last).is_proven
        last = this
