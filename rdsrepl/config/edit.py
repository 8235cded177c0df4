"""Add, change, rename and delete targets in the config file; everything else in the file stays as it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from rdsrepl.config import file_update
from rdsrepl.config.file import Config, check_name, check_value, parse, target_of
from rdsrepl.config.paths import config_path
from rdsrepl.config.target import AWS_KEYS, KEYWORDS, SECRETS, Target
from rdsrepl.errors import AlreadyExists, BadValue, ConfigError, UsageError
from rdsrepl.text import yaml_edit
from rdsrepl.text.commands import command
from rdsrepl.text.yaml_nodes import NotYaml

#: The keys that ``set_target`` sets; a password belongs into .pgpass or a secret.
SETTABLE: Final = ("dsn", *AWS_KEYS, *sorted(KEYWORDS - SECRETS), "protect")

Effect = Literal["create", "change", "drop"]
_Edit = Callable[[str, Config], tuple[str, Config]]


@dataclass(frozen=True, slots=True)
class Change:
    """A change of one key of the file.

    Attributes:
        key: ``current``, or a key of a target: ``targets.prod.host``.
        effect: what happens to the key.
        before: its value, with secrets masked; None if it was not there.
        after: its new value; None if it is removed.
    """

    key: str
    effect: Effect
    before: str | None
    after: str | None


@dataclass(frozen=True, slots=True)
class Update:
    """An edit of the config file, written or, in a dry run, planned.

    Attributes:
        path: the path of the file.
        before: its content.
        after: its new content.
        renamed: the old and the new name of a target that is renamed.
    """

    path: Path
    before: Config
    after: Config
    renamed: tuple[str, str] | None = None

    @property
    def changes(self) -> tuple[Change, ...]:
        """The keys that differ, in the order of the file."""
        old, new = _flat(self.before, self.renamed), _flat(self.after)
        keys = [*old, *(key for key in new if key not in old)]
        changes = [_change(key, old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)]
        if self.renamed is not None and self.renamed[0] != self.renamed[1]:
            changes.insert(0, Change(f"targets.{self.renamed[0]}", "change", *self.renamed))
        return tuple(changes)


def use_target(name: str, *, dry_run: bool = False) -> Update:
    """Make NAME the current target.

    Raises:
        NotFound: the target does not exist.
        ConfigError: the file is not valid.
        Error: the file cannot be written.
    """

    def edit(text: str, config: Config) -> tuple[str, Config]:
        config.get(name)
        return yaml_edit.put(text, ["current"], name, first=True), replace(config, current=name)

    return _update(name, edit, dry_run=dry_run)


def set_target(
    name: str,
    settings: Mapping[str, str],
    *,
    protect: Sequence[str] | None = None,
    unset: Sequence[str] = (),
    dry_run: bool = False,
) -> Update:
    """Set keys of a target, and create it if it does not exist; keys that are not given stay.

    Args:
        name: the target.
        settings: keys and their values.
        protect: slot names and patterns, in place of those in the file.
        unset: keys to remove.
        dry_run: write nothing.

    Raises:
        BadValue: a name, a key or a value is not valid.
        UsageError: the target would have a cluster and an instance.
        ConfigError: the file is not valid.
        Error: the file cannot be written.
    """
    check_name(name)
    for key, value in settings.items():
        check_value(key, value)
    if any(not pattern.strip() for pattern in protect or ()):
        raise BadValue("--protect: the value is empty", hint="to remove the key: --unset protect")
    unknown = [key for key in unset if key not in (*SETTABLE, *SECRETS)]
    if unknown:
        raise BadValue(f"--unset: {unknown[0]!r} is not a key of a target", hint=f"keys: {', '.join(SETTABLE)}")

    def edit(text: str, config: Config) -> tuple[str, Config]:
        old = config.targets.get(name)
        if old is None and not settings and not protect:
            again = command("config set-target {} --cluster ID", name)
            raise UsageError(f"target {name} does not exist, and no key is given to create it", hint=again)
        kept = {key: value for key, value in _settings(old).items() if key not in unset}
        new = {**kept, **settings}
        _require_one_server(name, kept, settings)
        patterns = protect if protect is not None else () if old is None or "protect" in unset else old.protect
        for key in unset:
            if key in _settings(old) or (key == "protect" and old is not None and old.protect):
                text = yaml_edit.remove(text, ["targets", name, key])
        for key, value in settings.items():
            if kept.get(key) != value:
                text = yaml_edit.put(text, ["targets", name, key], value)
        if protect is not None and (old is None or tuple(protect) != old.protect):
            text = yaml_edit.put(text, ["targets", name, "protect"], list(protect))
        target = replace(target_of(name, new), protect=tuple(patterns))
        return text, replace(config, targets={**config.targets, name: target})

    return _update(name, edit, dry_run=dry_run)


def replace_target(name: str, settings: Mapping[str, str]) -> Update:
    """Write a target with exactly these keys, in place of one with this name.

    Raises:
        ConfigError: the file is not valid.
        Error: the file cannot be written.
    """

    def edit(text: str, config: Config) -> tuple[str, Config]:
        text = yaml_edit.put(text, ["targets", name], {}) if name not in config.targets else text
        for key in _settings(config.targets.get(name)).keys() - settings.keys():
            text = yaml_edit.remove(text, ["targets", name, key])
        for key, value in settings.items():
            text = yaml_edit.put(text, ["targets", name, key], value)
        old = config.targets.get(name)
        target = replace(target_of(name, settings), protect=() if old is None else old.protect)
        return text, replace(config, targets={**config.targets, name: target})

    return _update(name, edit)


def rename_target(name: str, new: str, *, dry_run: bool = False) -> Update:
    """Rename a target; the current target stays the current one.

    Raises:
        NotFound: the target does not exist.
        AlreadyExists: another target has the new name.
        BadValue: the new name is not valid.
        ConfigError: the file is not valid.
        Error: the file cannot be written.
    """
    check_name(new)

    def edit(text: str, config: Config) -> tuple[str, Config]:
        target = config.get(name)
        if new in config.targets and new != name:
            raise AlreadyExists(
                f"target {new!r} already exists in {config.path}",
                hint=f"choose another name, or delete it first: {command('config delete-target {}', new)}",
            )
        text = yaml_edit.rename(text, ["targets", name], new)
        current = config.current
        if current == name:
            text, current = yaml_edit.put(text, ["current"], new), new
        renamed = replace(target, label=f"target {new}")
        targets = {new if key == name else key: renamed if key == name else one for key, one in config.targets.items()}
        return text, replace(config, current=current, targets=targets)

    return replace(_update(name, edit, dry_run=dry_run), renamed=(name, new))


def delete_target(name: str, *, dry_run: bool = False) -> Update:
    """Delete a target; if it was the current one, no target is current.

    Raises:
        NotFound: the target does not exist.
        ConfigError: the file is not valid.
        Error: the file cannot be written.
    """

    def edit(text: str, config: Config) -> tuple[str, Config]:
        config.get(name)
        targets = {key: target for key, target in config.targets.items() if key != name}
        current = config.current
        if current == name:
            text, current = yaml_edit.remove(text, ["current"]), None
        text = yaml_edit.remove(text, ["targets", name], empty="")
        return text, replace(config, current=current, targets=targets)

    return _update(name, edit, dry_run=dry_run)


def _update(name: str, edit: _Edit, *, dry_run: bool = False) -> Update:
    """Edit the text of the file, and make sure that it means what is wanted."""
    path = config_path()
    made: list[Update] = []

    def apply(text: str) -> str:
        before = parse(path, text)
        try:
            new, wanted = edit(text, before)
            is_wanted = parse(path, new) == wanted
        except (NotYaml, ConfigError):  # an alias has no anchor any more
            is_wanted = False
        if not is_wanted:  # a change of an anchor also changes its aliases
            raise ConfigError(
                f"{path}:{yaml_edit.line_of(text, ['targets', name])}: targets.{name}: could not change it "
                "without other keys: they share an anchor, or the layout is unusual",
                hint=f"edit the file; then check it: {command('config check')}",
            )
        made.append(Update(path, before, wanted))
        return new

    if dry_run:
        apply(file_update.read(path))
    else:
        file_update.update(path, apply)
    return made[-1]


def _require_one_server(name: str, kept: Mapping[str, str], settings: Mapping[str, str]) -> None:
    for key, other in (("cluster", "instance"), ("instance", "cluster")):
        if key in settings and other in kept and other not in settings:
            again = command(f"config set-target {{}} --{key} {{}} --unset {other}", name, settings[key])
            raise UsageError(f"target {name} has the {other} {kept[other]}", hint=f"to replace it: {again}")
    if {"cluster", "instance"} <= settings.keys():
        raise UsageError("a target has a cluster or an instance, not both", hint="omit --cluster or --instance")


def _settings(target: Target | None) -> dict[str, str]:
    """Return the keys of a target and their values, without ``protect``."""
    if target is None:
        return {}
    aws = {key: value for key in AWS_KEYS if (value := getattr(target.aws, key)) is not None}
    return {**({"dsn": target.dsn} if target.dsn else {}), **target.keywords, **aws}


def _flat(config: Config, renamed: tuple[str, str] | None = None) -> dict[str, tuple[str, str]]:
    """Return the keys of the file, each with its value as it is shown, and as it is."""
    flat = {} if config.current is None else {"current": (config.current, config.current)}
    for old_name, target in config.targets.items():
        name = renamed[1] if renamed is not None and old_name == renamed[0] else old_name
        flat[f"targets.{name}"] = ("", "")
        masked = target.masked()
        flat |= {f"targets.{name}.{key}": (masked[key], value) for key, value in _settings(target).items()}
        if target.protect:
            patterns = ", ".join(target.protect)
            flat[f"targets.{name}.protect"] = (patterns, patterns)
    return flat


def _change(key: str, old: tuple[str, str] | None, new: tuple[str, str] | None) -> Change:
    effect: Effect = "create" if old is None else "drop" if new is None else "change"
    return Change(key, effect, old[0] if old else None, new[0] if new else None)
