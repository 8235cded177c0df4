"""Read the config file.

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

The keys of a target are ``dsn``, the connection keywords of libpq (manual, section 34.1.2), and those of ``Aws``. For
the rest, libpq reads ``PG*``, ``pg_service.conf`` and ``.pgpass``, and boto3 reads ``AWS_*`` and its own files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rdsrepl.config.paths import config_path
from rdsrepl.config.target import AWS_KEYS, KEYWORDS, Aws, Target
from rdsrepl.errors import BadValue, ConfigError, NotFound
from rdsrepl.text.escapes import is_plain
from rdsrepl.text.masking import mask
from rdsrepl.text.suggestions import did_you_mean
from rdsrepl.text.yaml_nodes import NotYaml, compose
from rdsrepl.units import PARAMETER_UNITS, exact_duration

if TYPE_CHECKING:
    import yaml

# Keywords with a known set of values, or a number: a wrong value is detected here and not by the server.
VALUES: Final[Mapping[str, str]] = {
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
    "auth": "password|iam",
    "endpoint_url": r"https?://\S+",
}
# The unit in which libpq counts a duration.
_DURATIONS: Final = {
    "connect_timeout": "s",
    "keepalives_idle": "s",
    "keepalives_interval": "s",
    "tcp_user_timeout": "ms",
}
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*\Z")
_NAME_HINT: Final = "use letters, digits, '_', '.', '-'; the first is a letter or a digit"

_PASSWORD_HINT: Final = (
    "keep it in ~/.pgpass or PGPASSWORD, or give a Secrets Manager secret (--secret ID), and remove it from the string"
)


@dataclass(frozen=True, slots=True)
class Config:
    """The content of the config file.

    Attributes:
        path: the path of the file.
        current: the name of the current target.
        targets: all targets.
        protect: shell patterns of slots that a command drops only with ``--unprotect``.
    """

    path: Path
    current: str | None
    targets: Mapping[str, Target]
    protect: tuple[str, ...] = ()

    def get(self, name: str) -> Target:
        """Return one target.

        Raises:
            NotFound: the target does not exist.
        """
        try:
            return self.targets[name]
        except KeyError:
            listed = f"targets: {', '.join(sorted(self.targets)) or 'none'}; list them: rdsrepl config get-targets"
            raise NotFound(
                f"target {name!r} does not exist in {self.path}",
                hint=did_you_mean(name, self.targets, otherwise=listed),
            ) from None


def load(path: Path | None = None) -> Config:
    """Read the config file; a missing file is an empty config.

    Raises:
        ConfigError: the file cannot be read, is not YAML, or holds an unknown key or a wrong value.
    """
    path = path or config_path()
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return Config(path, None, {})
    except (OSError, ValueError) as exc:
        raise ConfigError(f"could not read {path}: {exc}", hint="make the file readable, in UTF-8") from exc
    return parse(path, text)


def compose_file(path: Path, text: str) -> yaml.Node | None:
    """Return the YAML nodes of the file.

    Raises:
        ConfigError: the file is not YAML.
    """
    try:
        return compose(text)
    except NotYaml as exc:
        column = f":{exc.column}" if exc.column else ""
        raise ConfigError(f"{path}:{exc.line}{column}: {exc.problem}", hint="correct that line") from None


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
                    raise ConfigError(f"{path}:{at}: targets.{name}: not a valid target name", hint=_NAME_HINT)
                targets[name] = _target(path, name, settings)
        else:
            raise ConfigError(f"{path}:{line}: unknown key {key!r}", hint="valid keys: current, protect, targets")
    if current is not None and current not in targets:
        raise ConfigError(
            f"{path}:{current_line}: current: target {current!r} does not exist",
            hint="targets: " + (", ".join(sorted(targets)) or "none"),
        )
    return Config(path, current, targets, protect)


def _patterns(path: Path, node: yaml.Node, where: str) -> tuple[str, ...]:
    import yaml

    items = node.value if isinstance(node, yaml.SequenceNode) else None
    if items is None or not all(isinstance(item, yaml.ScalarNode) and item.value.strip() for item in items):
        raise ConfigError(
            f"{path}:{node.start_mark.line + 1}: {where}: must be a list of slot names and patterns",
            hint="for example: protect: [orders_cdc, 'prod_*']",
        )
    return tuple(str(item.value) for item in items)


def check_name(name: str) -> None:
    """Make sure that a target can have this name.

    Raises:
        BadValue: it cannot.
    """
    if not _NAME.match(name):
        raise BadValue(f"{name!r} is not a valid target name", hint=_NAME_HINT)


def check_value(key: str, value: str) -> None:
    """Make sure that a key of a target, except ``protect``, can have this value, and that it is not a secret.

    Raises:
        BadValue: it cannot.
    """
    option = "--" + key.replace("_", "-")
    if not value.strip():
        raise BadValue(f"{option}: the value is empty", hint=f"to remove the key: --unset {key}")
    if not is_plain(value):
        raise BadValue(f"{option}: {value!r} has characters that a terminal does not show", hint="remove them")
    if (fault := _fault(key, _as_libpq_takes_it(key, value))) is not None:
        raise BadValue(f"{option}: {fault[0]}", hint=fault[1])
    if key == "dsn" and mask(value) != value:
        raise BadValue("--dsn: the connection string contains a password", hint=_PASSWORD_HINT)


def target_of(name: str, settings: Mapping[str, str]) -> Target:
    """Return the target with these settings."""
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
                hint="valid keys: dsn, the connection keywords of libpq (host, port, dbname, user, sslmode, …), "
                + ", ".join([*AWS_KEYS, "protect"]),
            )
        settings[key] = _as_libpq_takes_it(key, _scalar(path, value, f"targets.{name}.{key}"))
        if (fault := _fault(key, settings[key])) is not None:
            raise ConfigError(f"{path}:{line}: targets.{name}.{key}: {fault[0]}", hint=fault[1])
        if {"cluster", "instance"} <= settings.keys():
            raise ConfigError(
                f"{path}:{line}: targets.{name}: cluster and instance are mutually exclusive", hint="remove one of them"
            )
    return replace(target_of(name, settings), protect=protect)


def _as_libpq_takes_it(key: str, value: str) -> str:
    """Return ``10s`` as ``10``, and ``Require`` as ``require``; another value as it is."""
    if unit := _DURATIONS.get(key):
        with suppress(BadValue):
            number = exact_duration(value) / PARAMETER_UNITS[unit][1] if not value.isdigit() else None
            return value if number is None or number.denominator != 1 else str(number)
    return value.lower() if value.lower() in VALUES.get(key, "").split("|") else value


def _fault(key: str, value: str) -> tuple[str, str] | None:
    """Return what is wrong with a value, and the hint; None if it is valid."""
    if key == "dsn":
        import psycopg
        from psycopg.conninfo import conninfo_to_dict

        try:
            conninfo_to_dict(value)
        except (psycopg.ProgrammingError, ValueError):
            # Without the cause: libpq quotes the text that it could not parse, which can be a part of the password.
            return "not a connection string", "write postgresql://user@host:5432/dbname, or host=… dbname=… user=…"
    values = VALUES.get(key)
    if values is None or re.fullmatch(values, value):
        return None
    known = "a number" if "\\d" in values else values.replace("|", ", ")
    return f"{value!r} is not a valid value", f"valid: {'http://… or https://…' if key == 'endpoint_url' else known}"


def _entries(path: Path, node: Any, where: str) -> list[tuple[str, Any, int]]:
    import yaml

    line = node.start_mark.line + 1
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{path}:{line}: {where}: must be a mapping", hint="write it as 'key: value' lines")
    entries: list[tuple[str, Any, int]] = []
    for key, value in node.value:
        at = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise ConfigError(f"{path}:{at}: {where}: a key must be a scalar", hint="write it as 'key: value' lines")
        if key.value in {entry[0] for entry in entries}:
            raise ConfigError(f"{path}:{at}: {where}: {key.value!r} is a duplicate key", hint="remove one of them")
        entries.append((key.value, value, at))
    return entries


def _scalar(path: Path, node: Any, where: str) -> str:
    import yaml

    if not isinstance(node, yaml.ScalarNode) or node.tag == "tag:yaml.org,2002:null":
        raise ConfigError(
            f"{path}:{node.start_mark.line + 1}: {where}: must be a single value", hint="write 'key: value'"
        )
    return str(node.value)
