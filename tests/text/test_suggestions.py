"""Which name is suggested for one that does not exist."""

from __future__ import annotations

from rdsrepl.text.suggestions import closest, did_you_mean


def test_a_similar_name_is_suggested() -> None:
    assert did_you_mean("ordres", ["orders", "items"], otherwise="list them") == "did you mean orders?"


def test_case_does_not_matter_and_the_name_is_quoted_as_asked() -> None:
    assert did_you_mean("orders", ["Orders"], otherwise="", quote='"{}"'.format) == 'did you mean "Orders"?'


def test_no_name_is_similar() -> None:
    assert closest("x", ["orders"]) is None
    assert did_you_mean("x", ["orders"], otherwise="list them") == "list them"
