"""Where to work: the YAML config and the environment as one frozen ``Target``.

The file is ``$XDG_CONFIG_HOME/rdsrepl/config.yaml``::

    current: prod
    protect: [orders_cdc, 'prod_*']
    targets:
      prod:
        host: orders.cluster-abc.eu-west-1.rds.amazonaws.com
        dbname: orders
        user: repl
        sslmode: verify-full
        sslrootcert: /etc/ssl/rds/global-bundle.pem
        protect: [billing_cdc]
      lab:
        dsn: postgresql://dba@127.0.0.1:5433/lab

      orders:
        profile: prod
        region: eu-west-1
        cluster: orders

A target's keys are ``dsn`` and libpq's own connection keywords (manual, section 34.1.2), and those of ``Aws``. What no
option and no target says, libpq takes from ``PG*``, ``pg_service.conf`` and ``.pgpass``, and boto3 from ``AWS_*`` and
its own files, as always.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rdsrepl.config.paths import config_path
from rdsrepl.config.target import AWS_KEYS, KEYWORDS, Aws, Target
from rdsrepl.errors import ConfigError, NotFound
from rdsrepl.text.yaml_nodes import NotYaml, compose

if TYPE_CHECKING:
    import yaml

# Keywords with a known set of values, or a number: a wrong one is found in the file and not at the server.
_VALUES: Final[Mapping[str, str]] = {
    "port": r"\d{1,5}(,\d{1,5})*",
    "connect_timeout": r"\d+",
    "keepalives": "0|1",
    "keepalives_idle": r"\d+",
    "keepalives_interval": r"\d+",
    "keepalives_count": r"\d+",
    "tcp_user_timeout": r"\d+",
    "sslmode": "disable|allow|prefer|require|verify-ca|verify-full",
    "sslnegotiation": "postgres|direct",
    "channel_binding": "disable|prefer|require",
    "gssencmode": "disable|prefer|require",
    "load_balance_hosts": "disable|random",
    "target_session_attrs": "any|read-write|read-only|primary|standby|prefer-standby",
}
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*\Z")
_AWS_VALUES: Final = {"auth": "password|iam", "endpoint_url": r"https?://\S+"}


@dataclass(frozen=True, slots=True)
class Config:
    """The config file as read.

    Attributes:
        path: where it is.
        current: the current target's name.
        targets: all targets.
        protect: shell patterns of slots that are dropped only when they are named as exceptions.
    """

    path: Path
    current: str | None
    targets: Mapping[str, Target]
    protect: tuple[str, ...] = ()

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
    except (OSError, ValueError) as exc:
        raise ConfigError(f"{path}: cannot be read: {exc}", hint="make the file readable UTF-8") from exc
    return parse(path, text)


def compose_file(path: Path, text: str) -> yaml.Node | None:
    """Return the YAML nodes of the file.

    Raises:
        ConfigError: the file is not YAML.
    """
    try:
        return compose(text)
    except NotYaml as exc:
        raise ConfigError(f"{path}:{exc.line}: {exc.problem}", hint="mend that line") from None


def child(node: yaml.Node | None, key: str) -> yaml.Node | None:
    """Return the value of a key of a mapping."""
    for name, value in getattr(node, "value", None) or ():
        if name.value == key:
            return value  # type: ignore[no-any-return]
    return None


def parse(path: Path, text: str) -> Config:
    """Return the config that the text of the file describes.

    Raises:
        ConfigError: the text is not YAML, or holds an unknown key or a wrong value.
    """
    root = compose_file(path, text)
    if root is None:
        return Config(path, None, {})
    current: str | None = None
    current_line = 1
    targets: dict[str, Target] = {}
    protect: tuple[str, ...] = ()
    for key, node, line in _entries(path, root, "the file"):
        if key == "current":
            current, current_line = _scalar(path, node, "current"), line
        elif key == "protect":
            protect = _patterns(path, node, key)
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
            raise ConfigError(
                f"{path}:{line}: unknown key {key!r}", hint="the keys there are: current, protect, targets"
            )
    if current is not None and current not in targets:
        raise ConfigError(
            f"{path}:{current_line}: current: no target {current!r}",
            hint="targets there: " + (", ".join(sorted(targets)) or "none"),
        )
    return Config(path, current, targets, protect)


def _patterns(path: Path, node: yaml.Node, where: str) -> tuple[str, ...]:
    import yaml

    items = node.value if isinstance(node, yaml.SequenceNode) else None
    if items is None or not all(isinstance(item, yaml.ScalarNode) and item.value.strip() for item in items):
        raise ConfigError(
            f"{path}:{node.start_mark.line + 1}: {where}: must be a list of slot names and patterns",
            hint="write protect: [orders_cdc, 'prod_*']",
        )
    return tuple(str(item.value) for item in items)


def target_of(name: str, settings: Mapping[str, str]) -> Target:
    """Return the target with the settings of the file or of ``config add``."""
    keywords = {key: value for key, value in settings.items() if key != "dsn" and key not in AWS_KEYS}
    aws = Aws(**{key: value for key, value in settings.items() if key in AWS_KEYS})
    return Target(f"target {name}", settings.get("dsn", ""), keywords, aws)


def _target(path: Path, name: str, node: yaml.Node) -> Target:
    settings: dict[str, str] = {}
    protect: tuple[str, ...] = ()
    for key, value, line in _entries(path, node, f"targets.{name}"):
        if key == "protect":
            protect = _patterns(path, value, f"targets.{name}.protect")
            continue
        if key != "dsn" and key not in KEYWORDS and key not in AWS_KEYS:
            raise ConfigError(
                f"{path}:{line}: targets.{name}: unknown key {key!r}",
                hint="the keys there are dsn, libpq's connection keywords (host, port, dbname, user, sslmode, …) and "
                + ", ".join([*AWS_KEYS, "protect"]),
            )
        settings[key] = _scalar(path, value, f"targets.{name}.{key}")
        if key == "dsn":
            _check_dsn(path, line, name, settings[key])
        values = _VALUES.get(key) or _AWS_VALUES.get(key)
        if values and not re.fullmatch(values, settings[key]):
            known = {"endpoint_url": "http://… or https://…"}.get(key) or (
                "a number" if "\\d" in values else values.replace("|", ", ")
            )
            raise ConfigError(
                f"{path}:{line}: targets.{name}.{key}: {settings[key]!r} is none of its values", hint=f"write {known}"
            )
        if {"cluster", "instance"} <= settings.keys():
            raise ConfigError(
                f"{path}:{line}: targets.{name}: cluster and instance exclude each other", hint="keep one of them"
            )
    return replace(target_of(name, settings), protect=protect)


def _check_dsn(path: Path, line: int, name: str, dsn: str) -> None:
    import psycopg
    from psycopg.conninfo import conninfo_to_dict

    try:
        conninfo_to_dict(dsn)
    except (psycopg.ProgrammingError, ValueError):
        # Not as the cause: libpq quotes what it stumbled over, which may be a piece of the password.
        raise ConfigError(
            f"{path}:{line}: targets.{name}.dsn: not a connection string",
            hint="postgresql://user@host:5432/dbname, or host=… dbname=… user=…",
        ) from None


def _entries(path: Path, node: Any, where: str) -> list[tuple[str, Any, int]]:
    import yaml

    line = node.start_mark.line + 1
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{path}:{line}: {where}: must be a mapping", hint="write it as 'key: value' lines")
    entries: list[tuple[str, Any, int]] = []
    for key, value in node.value:
        at = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise ConfigError(f"{path}:{at}: {where}: a key must be one word", hint="write it as 'key: value' lines")
        if key.value in {entry[0] for entry in entries}:
            raise ConfigError(f"{path}:{at}: {where}: {key.value!r} stands there twice", hint="remove one of them")
        entries.append((key.value, value, at))
    return entries


def _scalar(path: Path, node: Any, where: str) -> str:
    import yaml

    if not isinstance(node, yaml.ScalarNode) or node.tag == "tag:yaml.org,2002:null":
        raise ConfigError(f"{path}:{node.start_mark.line + 1}: {where}: must be one value", hint="write 'key: value'")
    return str(node.value)
