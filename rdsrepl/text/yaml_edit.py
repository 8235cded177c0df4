"""Change single values of a YAML text: comments, order, quotes, anchors, line ends and all other bytes stay.

A parser that writes the whole document again (ruamel.yaml) also changes the indentation, the length and the line ends
of the other lines. These functions replace, insert and remove only the characters of one key. The caller parses the
result and compares it with what it wanted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from rdsrepl.text.yaml_nodes import NotYaml, compose

if TYPE_CHECKING:
    import yaml

#: What ``put`` writes: a text, a list of texts, or a mapping of such values.
Value = str | Sequence[str] | Mapping[str, Any]

# An anchor or a tag in front of a value.
_PROPERTIES: Final = re.compile(r"(?:[&!]\S*[ \t]+)*")
_NUMBER: Final = re.compile(r"0|[1-9]\d{0,8}")


def put(text: str, path: Sequence[str], value: Value, *, first: bool = False) -> str:
    """Return TEXT with a value at a path of keys; missing mappings are created.

    Args:
        text: a YAML document whose root is a mapping, or which is empty.
        path: the keys from the root.
        value: a text, a list of texts, or a mapping.
        first: a new key at the root becomes the first key, not the last.

    Raises:
        NotYaml: TEXT is not YAML.
    """
    node: Any = compose(text)
    if node is None or _is_null(node):
        return _with_lines(text, len(text.splitlines()), _block(_nested(path, value), 0, text))
    for depth, key in enumerate(path):
        entry, rest = _entry(node, key), path[depth + 1 :]
        if entry is None:
            new = _nested(path[depth:], value)
            return _insert_first(text, node, new) if first and not depth else _insert_last(text, node, new)
        if not rest or _is_empty(entry[1]):
            return _replace(text, node, entry, _nested(rest, value))
        node = entry[1]
        if text.startswith("*", node.start_mark.index):
            # The keys of an alias are those of its anchor: a copy of them can be changed.
            return put(_replaced(text, node, _flow(_plain(node))), path, value)
    raise AssertionError("a path has at least one key")


def remove(text: str, path: Sequence[str], *, empty: str = "{}") -> str:
    """Return TEXT without a key and its value; comments outside of the value stay.

    Args:
        text: a YAML document.
        path: the keys from the root.
        empty: what stays of the mapping around the key when it has no other key: ``{}`` or nothing.

    Raises:
        NotYaml: TEXT is not YAML.
    """
    parent: Any = compose(text)
    around: Any = None
    for key in path[:-1]:
        around, parent = _require(parent, key)
    key_node, value = _require(parent, path[-1])
    if parent.flow_style:
        at = [entry[0] for entry in parent.value].index(key_node)
        if at + 1 < len(parent.value):
            return text[: key_node.start_mark.index] + text[parent.value[at + 1][0].start_mark.index :]
        start = parent.value[at - 1][1].end_mark.index if at else key_node.start_mark.index
        return text[:start] + text[value.end_mark.index :]
    lines = text.splitlines(keepends=True)
    del lines[key_node.start_mark.line : _line_after(text, value)]
    if len(parent.value) == 1 and around is not None and empty:
        line, column = around.end_mark.line, around.end_mark.column
        lines[line] = f"{lines[line][:column]}: {empty}{lines[line][column:].lstrip(' ').removeprefix(':')}"
    return _ending_as(text, "".join(lines))


def rename(text: str, path: Sequence[str], name: str) -> str:
    """Return TEXT with another name for the last key of a path.

    Raises:
        NotYaml: TEXT is not YAML.
    """
    node: Any = compose(text)
    for key in path[:-1]:
        node = _require(node, key)[1]
    key_node = _require(node, path[-1])[0]
    return _replaced(text, key_node, _scalar(name, key_node.style))


def line_of(text: str, path: Sequence[str]) -> int:
    """Return the line of a key, from 1; of the last key on the path that exists."""
    node: Any = compose(text)
    line = 1
    for key in path:
        entry = _entry(node, key)
        if entry is None:
            break
        line, node = entry[0].start_mark.line + 1, entry[1]
    return line


def _entry(node: Any, key: str) -> tuple[yaml.ScalarNode, Any] | None:
    for name, value in node.value if isinstance(getattr(node, "value", None), list) else ():
        if name.value == key:
            return name, value
    return None


def _require(node: Any, key: str) -> tuple[yaml.ScalarNode, Any]:
    entry = _entry(node, key)
    if entry is None:
        raise NotYaml(1, f"there is no key {key}")
    return entry


def _is_null(node: Any) -> bool:
    return bool(node.tag == "tag:yaml.org,2002:null")


def _is_empty(node: Any) -> bool:
    """Return whether a value is null or a mapping without keys."""
    return _is_null(node) or node.value == []


def _nested(path: Sequence[str], value: Any) -> Any:
    for key in reversed(path):
        value = {key: value}
    return value


def _plain(node: Any) -> Any:
    """Return the texts of a node as plain data."""
    if isinstance(node.value, str):
        return node.value
    if node.value and isinstance(node.value[0], tuple):
        return {key.value: _plain(value) for key, value in node.value}
    return [_plain(item) for item in node.value]


def _insert_first(text: str, node: Any, new: Mapping[str, Any]) -> str:
    if not node.value:
        return _insert_last(text, node, new)
    mark = node.value[0][0].start_mark
    start, column = int(mark.index), int(mark.column)
    inserted = f"{_flow(new)[1:-1]}, " if node.flow_style else _block(new, 0, text) + " " * column
    return text[:start] + inserted + text[start:]


def _insert_last(text: str, node: Any, new: Mapping[str, Any]) -> str:
    if node.flow_style:
        at = node.value[-1][1].end_mark.index if node.value else node.end_mark.index - 1
        return text[:at] + (", " if node.value else "") + _flow(new)[1:-1] + text[at:]
    return _with_lines(text, _line_after(text, node), _block(new, node.value[0][0].start_mark.column, text))


def _replace(text: str, parent: Any, entry: tuple[Any, Any], value: Value) -> str:
    """Return TEXT with another value of a key, which can be of another kind."""
    key, node = entry
    if isinstance(value, Mapping) and not parent.flow_style and _is_empty(node):
        text = text[: node.start_mark.index].rstrip(" ") + text[node.end_mark.index :]
        return _with_lines(text, key.start_mark.line + 1, _block(value, key.start_mark.column + 2, text))
    if isinstance(node.value, str) or node.flow_style or text.startswith("*", node.start_mark.index):
        return _replaced(text, node, _flow(value, getattr(node, "style", None)))
    lines = text.splitlines(keepends=True)
    lines[key.start_mark.line : _line_after(text, node)] = [_block({key.value: value}, key.start_mark.column, text)]
    return _ending_as(text, "".join(lines))


def _replaced(text: str, node: Any, new: str) -> str:
    """Return TEXT with NEW in place of a node; its anchor stays."""
    start, end = node.start_mark.index, node.end_mark.index
    if start == end:
        return f"{text[:start]} {new}{text[end:]}"
    properties = _PROPERTIES.match(text, start)
    assert properties is not None
    if getattr(node, "style", None) in ("|", ">"):  # its end is after the line break
        new += _newline(text)
    return text[: properties.end()] + new + text[end:]


def _line_after(text: str, node: Any) -> int:
    """Return the line after the last line of a node; the end mark of a block is after the comments that follow it."""
    is_block = isinstance(node.value, list) and node.value and not node.flow_style
    if is_block and not text.startswith("*", node.start_mark.index):
        last = node.value[-1]
        return _line_after(text, last[1] if isinstance(last, tuple) else last)
    end = node.end_mark
    return int(end.line + (end.column > 0 or end.line == node.start_mark.line))


def _with_lines(text: str, at: int, new: str) -> str:
    """Return TEXT with NEW in front of a line, counted from 0."""
    lines = text.splitlines(keepends=True)
    if lines and not lines[-1].endswith(("\n", "\r")):
        lines[-1] += _newline(text)
    lines.insert(at, new)
    return _ending_as(text, "".join(lines))


def _ending_as(text: str, new: str) -> str:
    """Return NEW with a line break at its end where TEXT has one, or is empty."""
    if text and not text.endswith(("\n", "\r")):
        return new.removesuffix("\n").removesuffix("\r")
    return new


def _newline(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"


def _block(value: Mapping[str, Any], indent: int, text: str) -> str:
    """Return a mapping as lines."""
    lines = ""
    for key, item in value.items():
        is_mapping = isinstance(item, Mapping) and item
        lines += " " * indent + f"{_scalar(key)}:{'' if is_mapping else ' ' + _flow(item)}{_newline(text)}"
        lines += _block(item, indent + 2, text) if is_mapping else ""
    return lines


def _flow(value: Value, style: str | None = None) -> str:
    """Return a value on one line."""
    if isinstance(value, str):
        return value if style not in ("'", '"') and _NUMBER.fullmatch(value) else _scalar(value, style)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_scalar(key)}: {_flow(item)}" for key, item in value.items()) + "}"
    return "[" + ", ".join(_scalar(item) for item in value) + "]"


def _scalar(value: str, style: str | None = None) -> str:
    """Return a text on one line, quoted as STYLE says, or as it needs: as a number, a boolean, a mark."""
    import yaml

    style = style if style in ("'", '"') and value.isprintable() else None if value.isprintable() else '"'
    written: str = yaml.safe_dump(
        [value], default_flow_style=True, default_style=style, allow_unicode=True, width=2**31
    )
    return written.rstrip("\n")[1:-1]
