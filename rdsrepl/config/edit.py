"""Edit the config file and keep its comments and order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rdsrepl.config.file import Config, child, compose_file, load, parse, target_of
from rdsrepl.errors import ConfigError


def use(name: str) -> Path:
    """Make NAME the current target; keep the comments and the order of the file.

    Raises:
        NotFound: the target does not exist.
    """
    import yaml

    config = load()
    config.get(name)
    text = config.path.read_text(encoding="utf-8")
    root = compose_file(config.path, text)
    assert isinstance(root, yaml.MappingNode)
    current, word = child(root, "current"), _plain(name)
    if current is not None:
        text = text[: current.start_mark.index] + word + text[current.end_mark.index :]
    else:
        first = root.value[0][0].start_mark
        comma = ", " if root.flow_style else "\n" + " " * first.column
        text = f"{text[: first.index]}current: {word}{comma}{text[first.index :]}"
    _write(config.path, _checked(text, replace(config, current=name)))
    return config.path


def add_target(name: str, settings: Mapping[str, str]) -> Path:
    """Add or replace a target; the rest of the file does not change.

    Raises:
        ConfigError: the file is not valid.
    """
    config = load()
    text = config.path.read_text(encoding="utf-8") if config.path.exists() else ""
    if name in config.targets:
        text = _without(config.path, text, name)
    targets = {**config.targets, name: target_of(name, settings)}
    lines = text.splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += "\n"
    at, indent = len(lines), "  "
    root = compose_file(config.path, text)
    for key, value in getattr(root, "value", ()):
        if key.value == "targets":
            at = _last_line(value)
            indent = (
                " " * value.value[0][0].start_mark.column if isinstance(value.value, list) and value.value else indent
            )
            break
    else:
        lines.append("targets:\n")
        at += 1
    lines[at:at] = [indent + line for line in _yaml({name: dict(settings)}).splitlines(keepends=True)]
    _write(config.path, _checked("".join(lines), replace(config, targets=targets)))
    return config.path


def remove_target(name: str) -> bool:
    """Remove a target, also as the current one. Return whether it existed.

    Raises:
        ConfigError: the file is not valid.
    """
    config = load()
    if name not in config.targets:
        return False
    text = _without(config.path, config.path.read_text(encoding="utf-8"), name)
    targets = {key: target for key, target in config.targets.items() if key != name}
    current = config.current
    if current == name:
        current = None
        lines = text.splitlines(keepends=True)
        node = child(compose_file(config.path, text), "current")
        assert node is not None
        del lines[node.start_mark.line]
        text = "".join(lines)
    _write(config.path, _checked(text, replace(config, current=current, targets=targets)))
    return True


def _without(path: Path, text: str, name: str) -> str:
    """Return the text of the file without one target; keep the comments around it."""
    targets = child(compose_file(path, text), "targets")
    assert targets is not None
    lines = text.splitlines(keepends=True)
    key, value = next(entry for entry in targets.value if entry[0].value == name)
    del lines[key.start_mark.line : _last_line(value)]
    return "".join(lines)


def _last_line(node: Any) -> int:
    """Return the line after the last line of a node; the end mark of a block is after the comments that follow it."""
    if isinstance(node.value, list) and node.value and not node.flow_style:
        return _last_line(node.value[-1][1])
    end = node.end_mark
    return int(end.line + (end.column > 0 or end.line == node.start_mark.line))


def _checked(text: str, wanted: Config) -> str:
    """Return an edited text if it means WANTED; otherwise (flow style, anchors) write WANTED from scratch."""
    try:
        if parse(wanted.path, text) == wanted:
            return text
    except ConfigError:
        pass
    targets = {
        name: {
            **({"dsn": target.dsn} if target.dsn else {}),
            **target.keywords,
            **{key: value for key, value in asdict(target.aws).items() if value is not None},
            **({"protect": list(target.protect)} if target.protect else {}),
        }
        for name, target in wanted.targets.items()
    }
    head = {"current": wanted.current, "protect": list(wanted.protect)}
    fresh = _yaml({**{key: value for key, value in head.items() if value}, "targets": targets})
    parse(wanted.path, fresh)
    return fresh


def _yaml(value: object) -> str:
    import yaml

    text: str = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=2**31)
    return text


def _plain(word: str) -> str:
    """Return a name in YAML: quoted if it would be a number or a boolean."""
    return _yaml([word]).removeprefix("- ").rstrip("\n")


def _write(path: Path, text: str) -> None:
    """Replace the file atomically, at the target of a link; only the owner can read a new file."""
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o600
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)
    temporary.touch(mode=0o600, exist_ok=False)
    temporary.write_text(text, encoding="utf-8")
    temporary.chmod(mode)
    temporary.replace(path)
