"""Edits of YAML text: only the characters of the edited key change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from rdsrepl.text.yaml_edit import put, remove, rename

TEXT = """\
# our databases
current: prod   # the usual one

targets:
  prod: &prod
    host: 'db'  # the writer
    port:   5432
  # not ours
  lab:
    dsn: "x y"
  copy: *prod
  flow: {host: a,port: 1}
# the end"""


@pytest.mark.parametrize(
    ("path", "value", "old", "new"),
    [
        (["current"], "lab", "prod   # the", "lab   # the"),
        (["targets", "prod", "host"], "it's", "'db'", "'it''s'"),
        (["targets", "lab", "dsn"], 'a "b"', '"x y"', '"a \\"b\\""'),
        (["targets", "prod", "user"], "yes", "port:   5432\n", "port:   5432\n    user: 'yes'\n"),
        (["targets", "flow", "host"], "b, c", "host: a,", "host: 'b, c',"),
        (["targets", "flow", "user"], "u", "port: 1}", "port: 1, user: u}"),
        (["targets", "copy", "host"], "other", "*prod", "{host: other, port: 5432}"),
        (["targets", "lab", "protect"], ["a", "b*"], '"x y"\n', '"x y"\n    protect: [a, b*]\n'),
        (["targets", "1.0"], {"host": "h"}, "port: 1}\n", "port: 1}\n  '1.0':\n    host: h\n"),
    ],
)
def test_put_changes_one_place(path: Sequence[str], value: Any, old: str, new: str) -> None:
    assert TEXT.count(old) == 1
    assert put(TEXT, path, value) == TEXT.replace(old, new)


@pytest.mark.parametrize(
    ("path", "old", "new"),
    [
        (["targets", "prod", "port"], "    port:   5432\n", ""),
        (["targets", "flow", "host"], "host: a,", ""),
        (["targets", "flow", "port"], ",port: 1", ""),
        (["targets", "lab", "dsn"], 'lab:\n    dsn: "x y"\n', "lab: {}\n"),
        (["targets", "lab"], '  lab:\n    dsn: "x y"\n', ""),
        (["current"], "current: prod   # the usual one\n", ""),
    ],
)
def test_remove_changes_one_place(path: Sequence[str], old: str, new: str) -> None:
    assert remove(TEXT, path) == TEXT.replace(old, new)


def test_rename_changes_one_place() -> None:
    assert rename(TEXT, ["targets", "flow"], "null") == TEXT.replace("  flow:", "  'null':")


@pytest.mark.parametrize(
    ("text", "edited"),
    [
        ("", "targets:\n  a:\n    host: h\n"),
        ("# only a comment", "# only a comment\ntargets:\n  a:\n    host: h"),
        ("targets:  # none yet\r\n", "targets:  # none yet\r\n  a:\r\n    host: h\r\n"),
        ("targets: {}\n", "targets:\n  a:\n    host: h\n"),
        ("targets: {a: }\n", "targets: {a: {host: h} }\n"),
        ("{}", "{targets: {a: {host: h}}}"),
        ("targets:\n  a:\n    host: |\n      x\n    port: 1\n", "targets:\n  a:\n    host: h\n    port: 1\n"),
        ("targets:\n  a:\n    host: &h x\n", "targets:\n  a:\n    host: &h h\n"),
        ("---\ntargets:\n  a: {}\n...\n", "---\ntargets:\n  a:\n    host: h\n...\n"),
        (
            "\ufefftargets:\r\n    a:\r\n        port: 1",
            "\ufefftargets:\r\n    a:\r\n        port: 1\r\n        host: h",
        ),
    ],
)
def test_line_ends_and_empty_values(text: str, edited: str) -> None:
    assert put(text, ["targets", "a", "host"], "h") == edited


NAMES = st.sampled_from(["a", "b", "yes", "1.0", "null", "x y", "é", "a: b", "- c", "#d", "'", '"'])
VALUES = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=8)


@given(
    st.lists(st.tuples(NAMES, NAMES, st.none() | VALUES), max_size=12), st.sampled_from(["", "{}", "# c\r\n", "---\n"])
)
def test_many_edits_mean_what_they_say(edits: list[tuple[str, str, str | None]], text: str) -> None:
    """After any edits the text parses to the same mapping as a dictionary that was edited the same way."""
    wanted: dict[str, dict[str, str]] = {}
    for outer, inner, value in edits:
        if value is not None:
            text = put(text, [outer, inner], value)
            wanted.setdefault(outer, {})[inner] = value
        elif inner in wanted.get(outer, {}):
            text = remove(text, [outer, inner])
            del wanted[outer][inner]
    assert (yaml.load(text, Loader=yaml.BaseLoader) or {}) == wanted
