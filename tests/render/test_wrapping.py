"""A message is broken at spaces, and a command in it is not broken."""

from __future__ import annotations

import pytest

from rdsrepl.render.wrapping import wrapped

DROP = "rdsrepl -t sandbox slot drop a_long_name"


@pytest.mark.parametrize(
    ("text", "width", "lines"),
    [
        ("", 10, [""]),
        ("one two three", 8, ["one two", "three"]),
        ("a_word_that_is_longer next", 10, ["a_word_that_is_longer", "next"]),
        (f"drop it: {DROP}", 60, [f"drop it: {DROP}"]),
        (f"drop it: {DROP}", 45, ["drop it:", DROP]),
        (f"drop it: {DROP}", 20, ["drop it:", DROP]),
        (f"start it ({DROP}); or wait", 45, ["start it", f"({DROP});", "or wait"]),
        (f"{DROP}, then {DROP}", 50, [f"{DROP}, then", DROP]),
        ("象象象 象象", 8, ["象象象", "象象"]),
    ],
)
def test_a_command_is_not_broken(text: str, width: int, lines: list[str]) -> None:
    assert wrapped(text, width) == lines
    assert " ".join(wrapped(text, width)) == text
