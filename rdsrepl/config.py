"""Where to work: the YAML config and the environment as one frozen ``Target``.

The file is ``$XDG_CONFIG_HOME/rdsrepl/config.yaml``::

    current: prod
    targets:
      prod:
        host: orders.cluster-abc.eu-west-1.rds.amazonaws.com
        dbname: orders
        user: repl
        sslmode: verify-full
        sslrootcert: /etc/ssl/rds/global-bundle.pem
      lab:
        dsn: postgresql://dba@127.0.0.1:5433/lab

A target's keys are ``dsn`` and libpq's own connection keywords (manual, section 34.1.2). What no option and no target
says, libpq takes from ``PG*``, ``pg_service.conf`` and ``.pgpass`` as always. AWS identities (profile, region,
cluster, instance) will be further keys of the same mapping.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rdsrepl.errors import ConfigError, NotFound

if TYPE_CHECKING:
    import yaml

KEYWORDS: Final = frozenset(
    [
        "host",
        "hostaddr",
        "port",
        "dbname",
        "user",
        "password",
        "passfile",
        "service",
        "connect_timeout",
        "options",
        "channel_binding",
        "require_auth",
        "sslmode",
        "sslrootcert",
        "sslcert",
        "sslkey",
        "sslcrl",
        "sslpassword",
        "ssl_min_protocol_version",
        "sslnegotiation",
        "gssencmode",
        "krbsrvname",
        "target_session_attrs",
        "load_balance_hosts",
        "keepalives",
        "keepalives_idle",
        "keepalives_interval",
        "keepalives_count",
        "tcp_user_timeout",
    ]
)
SECRETS: Final = frozenset({"password", "sslpassword"})
MASK: Final = "********"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*\Z")


@dataclass(frozen=True, slots=True)
class Target:
    """A database to work on.

    Attributes:
        label: how messages call it: ``target prod``, ``--dsn``, ``the environment``.
        dsn: a libpq connection string or URI; empty when keywords or the environment say it all.
        keywords: libpq keywords that go on top of ``dsn``.
    """

    label: str
    dsn: str = field(default="", repr=False)
    keywords: Mapping[str, str] = field(default_factory=dict, repr=False)

    def masked(self) -> dict[str, str]:
        """Return the settings with their secrets hidden."""
        shown = {key: MASK if key in SECRETS else value for key, value in self.keywords.items()}
        return {"dsn": mask_dsn(self.dsn), **shown} if self.dsn else shown


@dataclass(frozen=True, slots=True)
class Config:
    """The config file as read: its path, the current target's name, all targets."""

    path: Path
    current: str | None
    targets: Mapping[str, Target]

    def get(self, name: str) -> Target:
        """Return one target.

        Raises:
            NotFound: no target of that name.
        """
        try:
            return self.targets[name]
        except KeyError:
            known = ", ".join(sorted(self.targets)) or "none"
            raise NotFound(
                f"no target {name!r} in {self.path}", hint=f"targets there: {known} (rdsrepl config show)"
            ) from None


def config_path() -> Path:
    """Return where the config file is, or would be: ``RDSREPL_CONFIG``, or under ``XDG_CONFIG_HOME``."""
    if explicit := os.environ.get("RDSREPL_CONFIG"):
        return Path(explicit)
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "rdsrepl" / "config.yaml"


def load(path: Path | None = None) -> Config:
    """Read the config file; a missing file is an empty config.

    Raises:
        ConfigError: it cannot be read, is no YAML, or holds an unknown key or a wrong value.
    """
    path = path or config_path()
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return Config(path, None, {})
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path}: cannot be read: {exc}", hint="make the file readable UTF-8") from exc
    return _parse(path, text)


def resolve(*, dsn: str | None, target: str | None) -> Target:
    """Return the database to work on: ``dsn``, else the named target, else the current one, else the environment.

    Raises:
        ConfigError, NotFound: the config file is wrong, or has no such target.
    """
    if dsn is not None:
        return Target("--dsn", dsn)
    if target is not None:
        return load().get(target)
    config = load()
    if config.current is not None:
        return config.get(config.current)
    return Target("the environment")


def mask_dsn(dsn: str) -> str:
    """Return a connection string or URI without its password."""
    masked = re.sub(r"(?<=://)([^:@/?]*):[^@]*(?=@)", rf"\1:{MASK}", dsn)
    return re.sub(r"(?i)\b((?:ssl)?password\s*=\s*)('(?:[^'\\]|\\.)*'|[^\s&]+)", rf"\1{MASK}", masked)


def use(name: str) -> Path:
    """Make NAME the current target, keeping the file's comments and order.

    Raises:
        NotFound: no target of that name.
    """
    config = load()
    config.get(name)
    lines = config.path.read_text(encoding="utf-8").splitlines(keepends=True)
    for number, line in enumerate(lines):
        if re.match(r"current\s*:", line):
            lines[number] = f"current: {name}\n"
            break
    else:
        lines.insert(0, f"current: {name}\n")
    _write(config.path, "".join(lines))
    return config.path


def add_target(name: str, settings: Mapping[str, str]) -> Path:
    """Add a target, or replace it, keeping the rest of the file as it is.

    Raises:
        ConfigError: the file as it stands is wrong.
    """
    import yaml

    remove_target(name)
    path = config_path()
    block = yaml.safe_dump({name: dict(settings)}, sort_keys=False, allow_unicode=True)
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    node = _child(_compose(path, text), "targets")
    if isinstance(node, yaml.MappingNode) and node.value and not node.flow_style:
        at, indent = node.start_mark.line, node.start_mark.column
        lines = text.splitlines(keepends=True)
        lines[at:at] = [" " * indent + line for line in block.splitlines(keepends=True)]
        text = "".join(lines)
    else:
        text = re.sub(r"(?m)^targets\s*:.*\n?", "", text)
        text += "" if not text or text.endswith("\n") else "\n"
        text += "targets:\n" + "".join("  " + line for line in block.splitlines(keepends=True))
    _write(path, text)
    return path


def remove_target(name: str) -> bool:
    """Take a target out of the file; it stops being current, too. Return whether there was one.

    Raises:
        ConfigError: the file as it stands is wrong.
    """
    config = load()
    if name not in config.targets:
        return False
    text = config.path.read_text(encoding="utf-8")
    targets = _child(_compose(config.path, text), "targets")
    assert targets is not None
    lines = text.splitlines(keepends=True)
    for key, value in targets.value:
        if key.value == name:
            # A block value's end mark stands at the start of whatever comes next.
            end = value.end_mark.line + (1 if value.end_mark.column and value.end_mark.line < len(lines) else 0)
            if value.end_mark.line < len(lines) and not lines[value.end_mark.line][: value.end_mark.column].strip():
                end = value.end_mark.line
            del lines[key.start_mark.line : end]
            break
    text = "".join(line for line in lines if not (config.current == name and re.match(r"current\s*:", line)))
    _write(config.path, text)
    return True


def _write(path: Path, text: str) -> None:
    """Replace the file in one step; a new one is for its owner's eyes only."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o600
    temporary = path.with_name(path.name + ".new")
    temporary.touch(mode=0o600)
    temporary.write_text(text, encoding="utf-8")
    temporary.chmod(mode)
    temporary.replace(path)


def _compose(path: Path, text: str) -> yaml.Node | None:
    import yaml

    try:
        node: yaml.Node | None = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark or exc.context_mark
        line = mark.line + 1 if mark else 1
        raise ConfigError(f"{path}:{line}: not YAML: {exc.problem or exc}", hint="mend that line") from exc
    except yaml.YAMLError as exc:
        raise ConfigError(f"{path}:1: not YAML: {exc}", hint="mend the file") from exc
    return node


def _child(node: yaml.Node | None, key: str) -> yaml.Node | None:
    for name, value in getattr(node, "value", None) or ():
        if name.value == key:
            return value  # type: ignore[no-any-return]
    return None


def _parse(path: Path, text: str) -> Config:
    root = _compose(path, text)
    if root is None:
        return Config(path, None, {})
    current: str | None = None
    targets: dict[str, Target] = {}
    for key, node, line in _entries(path, root, "the file"):
        if key == "current":
            current = _scalar(path, node, "current")
        elif key == "targets":
            if getattr(node, "value", None) in ("", "null", "~"):
                continue
            for name, settings, at in _entries(path, node, "targets"):
                if not _NAME.match(name):
                    raise ConfigError(
                        f"{path}:{at}: targets.{name}: not a target name", hint="use letters, digits, '_', '.', '-'"
                    )
                targets[name] = _target(path, name, settings)
        else:
            raise ConfigError(f"{path}:{line}: unknown key {key!r}", hint="the keys there are: current, targets")
    if current is not None and current not in targets:
        line = next(n for n, text_line in enumerate(text.splitlines(), 1) if re.match(r"current\s*:", text_line))
        raise ConfigError(
            f"{path}:{line}: current: no target {current!r}",
            hint="targets there: " + (", ".join(sorted(targets)) or "none"),
        )
    return Config(path, current, targets)


def _target(path: Path, name: str, node: yaml.Node) -> Target:
    dsn, keywords = "", {}
    for key, value, line in _entries(path, node, f"targets.{name}"):
        if key == "dsn":
            dsn = _scalar(path, value, f"targets.{name}.dsn")
            _check_dsn(path, line, name, dsn)
        elif key in KEYWORDS:
            keywords[key] = _scalar(path, value, f"targets.{name}.{key}")
        else:
            raise ConfigError(
                f"{path}:{line}: targets.{name}: unknown key {key!r}",
                hint="the keys there are dsn and libpq's connection keywords (host, port, dbname, user, sslmode, …)",
            )
        if key == "port" and not re.fullmatch(r"\d{1,5}(,\d{1,5})*", keywords["port"]):
            raise ConfigError(f"{path}:{line}: targets.{name}.port: not a port number", hint="for example 5432")
    return Target(f"target {name}", dsn, keywords)


def _check_dsn(path: Path, line: int, name: str, dsn: str) -> None:
    import psycopg
    from psycopg.conninfo import conninfo_to_dict

    try:
        conninfo_to_dict(dsn)
    except psycopg.ProgrammingError as exc:
        raise ConfigError(
            f"{path}:{line}: targets.{name}.dsn: not a connection string",
            hint="postgresql://user@host:5432/dbname, or host=… dbname=… user=…",
        ) from exc


def _entries(path: Path, node: Any, where: str) -> list[tuple[str, Any, int]]:
    import yaml

    line = node.start_mark.line + 1
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{path}:{line}: {where}: must be a mapping", hint="write it as 'key: value' lines")
    entries: list[tuple[str, Any, int]] = []
    for key, value in node.value:
        at = key.start_mark.line + 1
        if key.value in {entry[0] for entry in entries}:
            raise ConfigError(f"{path}:{at}: {where}: {key.value!r} stands there twice", hint="remove one of them")
        entries.append((key.value, value, at))
    return entries


def _scalar(path: Path, node: Any, where: str) -> str:
    import yaml

    if not isinstance(node, yaml.ScalarNode) or node.tag == "tag:yaml.org,2002:null":
        raise ConfigError(f"{path}:{node.start_mark.line + 1}: {where}: must be one value", hint="write 'key: value'")
    return str(node.value)
