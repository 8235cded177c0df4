"""Which readings prove a difference, and which do not."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import Phase, given, settings
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


def test_a_short_round_proves_only_a_row_that_no_transaction_changes() -> None:
    before, target = Reading(1, "1", is_settled=True), Reading(9, "9")
    for is_settled, state in ((True, RowState.different), (False, RowState.again)):
        after = Reading(1, "1", is_settled=is_settled)
        assert evaluate(Round(before, before, target, after, is_long=False), None) is state
        assert evaluate(Round(before, before, target, after), None) is RowState.different
    extra = Round(None, None, target, None, is_long=False)
    assert evaluate(extra, extra) is RowState.again


def test_an_extra_row_needs_the_same_version_in_two_rounds() -> None:
    assert _evaluate("- a9 -") is RowState.again
    assert _evaluate("- a9 -", "- a9 -") is RowState.extra
    assert _evaluate("- a9 -", "- a8 -") is RowState.again
    assert _evaluate("- a9 b1", "- a9 -") is RowState.again


_HISTORY = st.lists(st.one_of(st.none(), st.integers(0, 2)), min_size=1, max_size=12)


class _Source:
    """One row with a history. A change begins, commits (the copy may apply it), and becomes visible, in this order."""

    def __init__(self, history: list[int | None], data: st.DataObject) -> None:
        self._states = [None if value is None else Reading(value, str(place)) for place, value in enumerate(history)]
        self._data, self._last = data, len(history) - 1
        self._begun = self.committed = self.visible = 0

    def proceed(self, *, waits: bool = False) -> None:
        """Let some changes begin, commit and become visible; WAITS: all that were committed are visible then."""
        least = self.committed if waits else self.visible
        # The next change of a row begins when the one before is visible.
        self.visible = self._data.draw(st.integers(least, self._last), label="visible")
        self._begun = self._data.draw(st.integers(max(self._begun, self.visible), min(self.visible + 1, self._last)))
        self.committed = self._data.draw(st.integers(max(self.committed, self.visible), self._begun), label="committed")

    def read(self) -> Reading | None:
        state = self._states[self.visible]
        return None if state is None else replace(state, is_settled=self._begun == self.visible)

    def copy(self, applied: int) -> Reading | None:
        state = self._states[applied]
        return None if state is None else Reading(state.fingerprint, f"t{state.version}")


@pytest.mark.parametrize("checks_xmax", [True, False], ids=["", "wrong variant"])
def test_a_correct_copy_is_never_called_different(checks_xmax: bool) -> None:
    """The copy applies the changes in order, at any speed that the waits allow."""

    @settings(database=None, derandomize=True, max_examples=200 if checks_xmax else 2_000, phases=[Phase.generate])
    @given(history=_HISTORY, rounds=st.lists(st.booleans(), min_size=1, max_size=4), data=st.data())
    def check(history: list[int | None], rounds: list[bool], data: st.DataObject) -> None:
        source, applied = _Source(history, data), 0
        last: Round | None = None
        for is_long in rounds:
            source.proceed()
            before, read_at = source.read(), source.visible
            source.proceed()
            near = source.read()
            source.proceed()
            applied = data.draw(st.integers(max(applied, read_at), source.committed), label="applied")
            target = source.copy(applied)
            source.proceed(waits=is_long)
            after = source.read()
            now = Round(before, near, target, after, is_long or not checks_xmax)
            assert not evaluate(now, last).is_proven
            if is_long:
                last = now

    if checks_xmax:
        check()
    else:
        with pytest.raises(AssertionError):
            check()
