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

import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from rdsrepl.errors import ConfigError, NotFound, UsageError
from rdsrepl.text.masking import MASK, mask
from rdsrepl.text.yaml_nodes import NotYaml, compose

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
        "application_name",
        "channel_binding",
        "requirepeer",
        "require_auth",
        "sslmode",
        "sslrootcert",
        "sslcert",
        "sslkey",
        "sslcertmode",
        "sslcrl",
        "sslcrldir",
        "sslpassword",
        "sslsni",
        "ssl_min_protocol_version",
        "ssl_max_protocol_version",
        "sslnegotiation",
        "gssencmode",
        "gssdelegation",
        "gsslib",
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
# What belongs to one role; another one has its own.
_LOGIN: Final = frozenset({"user", "password", "passfile", "sslcert", "sslkey", "sslpassword"})
# What says where a database is and who logs in; the rest says how, and is as good for another one.
_LOCATION: Final = frozenset({"host", "hostaddr", "port", "dbname", "user", "password", "passfile", "service"})


@dataclass(frozen=True, slots=True)
class Aws:
    """An AWS identity, and the cluster or instance to work on.

    Attributes:
        profile: of the shared config and credentials files; boto3's usual chain where it is None.
        region: where the cluster or instance lives.
        endpoint_url: of every service, in place of AWS's own.
        aws_config_file: in place of ``~/.aws/config``.
        aws_credentials_file: in place of ``~/.aws/credentials``.
        cluster: a DB cluster's identifier (Multi-AZ or Aurora).
        instance: a DB instance's identifier.
        secret: name or ARN of the Secrets Manager secret that holds the role's password.
        auth: how the role logs in: ``password``, or ``iam`` with a token made anew for each attempt.
    """

    profile: str | None = None
    region: str | None = None
    endpoint_url: str | None = None
    aws_config_file: str | None = None
    aws_credentials_file: str | None = None
    cluster: str | None = None
    instance: str | None = None
    secret: str | None = None
    auth: str | None = None

    @property
    def identifier(self) -> str | None:
        """The cluster's or the instance's identifier."""
        return self.cluster or self.instance


_NO_AWS: Final = Aws()
AWS_KEYS: Final = tuple(Aws.__dataclass_fields__)
_AWS_VALUES: Final = {"auth": "password|iam", "endpoint_url": r"https?://\S+"}


class Lookup(Protocol):
    """Finds, through AWS, libpq keywords that a target does not have itself."""

    def place(self) -> Mapping[str, str]:
        """Return host, port, dbname and user as far as the RDS API knows them; no secret."""
        ...

    def keywords(self) -> Mapping[str, str]:
        """Return everything for the next attempt to connect, secrets included."""
        ...


@dataclass(frozen=True, slots=True)
class Target:
    """A database to work on.

    Attributes:
        label: how messages call it: ``target prod``, ``--dsn``, ``the environment``.
        dsn: a libpq connection string or URI; empty when keywords or the environment say it all.
        keywords: libpq keywords that go on top of ``dsn``.
        aws: the AWS identity, and the cluster or instance.
        renew: asked before each attempt to connect for further keywords: an endpoint, a password, a token.
        protect: shell patterns of slots that are dropped only when they are named as exceptions; on this target, beside
            the config file's own.
        answer_seconds: how long a connection waits for the server's answer to a statement; None is for ever.
    """

    label: str
    dsn: str = field(default="", repr=False)
    keywords: Mapping[str, str] = field(default_factory=dict, repr=False)
    aws: Aws = _NO_AWS
    renew: Lookup | None = field(default=None, repr=False, compare=False)
    protect: tuple[str, ...] = ()
    answer_seconds: float | None = None

    @property
    def located(self) -> bool:
        """Whether dsn or keywords themselves say where the database is."""
        return bool(self.dsn) or any(self.keywords.get(key) for key in ("host", "hostaddr", "service"))

    def masked(self) -> dict[str, str]:
        """Return the settings with their secrets hidden."""
        shown = {key: MASK if key in SECRETS else value for key, value in self.keywords.items()}
        shown = {"dsn": mask(self.dsn), **shown} if self.dsn else shown
        return {**shown, **{key: value for key, value in asdict(self.aws).items() if value is not None}}


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


def config_path() -> Path:
    """Return where the config file is, or would be: ``RDSREPL_CONFIG``, or under ``XDG_CONFIG_HOME``."""
    if explicit := os.environ.get("RDSREPL_CONFIG"):
        return Path(explicit)
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "rdsrepl" / "config.yaml"


def state_directory() -> Path:
    """Return where rdsrepl keeps what it must remember: ``RDSREPL_STATE_DIR``, or under ``XDG_STATE_HOME``."""
    if explicit := os.environ.get("RDSREPL_STATE_DIR"):
        return Path(explicit)
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "rdsrepl"


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
    return _parse(path, text)


def resolve(
    *,
    dsn: str | None,
    target: str | None,
    aws: Aws = _NO_AWS,
    defaults: Aws = _NO_AWS,
    dbname: str | None = None,
    user: str | None = None,
) -> Target:
    """Return the database to work on: ``dsn``, else the named target, else the current one, else the environment.

    Args:
        dsn: a libpq connection string.
        target: a target's name. With a dsn it gives the AWS identity, and may name no other server.
        aws: what options say: each replaces what the target says. A cluster or instance that is not the target's own
            replaces its host and login, and keeps its AWS identity.
        defaults: what holds where neither ``aws`` nor the target says anything.
        dbname: replaces the database that dsn or target names.
        user: replaces the role that dsn or target names; a password or secret that belongs to that one is left out.

    Raises:
        ConfigError, NotFound: the config file is wrong, or has no such target.
        UsageError: dsn and target name different servers.
    """
    if dsn is not None:
        found = Target("--dsn", dsn)
        if target is not None:
            named = load().get(target)
            if named.located or named.aws.identifier:
                raise UsageError(
                    f"--dsn and --target {target} both name a server", hint=f"leave one of them out: --target {target}"
                )
            found = replace(found, keywords=named.keywords, aws=named.aws)
    else:
        config = load()
        name = target if target is not None else config.current
        found = config.get(name) if name is not None else Target("the environment")
        if aws.identifier and (aws.cluster, aws.instance) != (found.aws.cluster, found.aws.instance):
            kind = "cluster" if aws.cluster else "instance"
            keywords = {key: value for key, value in found.keywords.items() if key not in _LOCATION}
            own = replace(found.aws, cluster=None, instance=None, secret=None, auth=None)
            found = Target(f"{kind} {aws.identifier}", keywords=keywords, aws=own)
    if user is not None and user != found.keywords.get("user"):
        keywords = {key: value for key, value in found.keywords.items() if key not in _LOGIN}
        found = replace(found, keywords={**keywords, "user": user}, aws=replace(found.aws, secret=None))
    if dbname is not None:
        found = replace(found, keywords={**found.keywords, "dbname": dbname})
    said = {key: value for key, value in asdict(found.aws).items() if value is not None}
    given = {key: value for key, value in asdict(aws).items() if value is not None}
    return replace(found, aws=Aws(**{**asdict(defaults), **said, **given}))


def use(name: str) -> Path:
    """Make NAME the current target, keeping the file's comments and order.

    Raises:
        NotFound: no target of that name.
    """
    import yaml

    config = load()
    config.get(name)
    text = config.path.read_text(encoding="utf-8")
    root = _compose(config.path, text)
    assert isinstance(root, yaml.MappingNode)
    current, word = _child(root, "current"), _plain(name)
    if current is not None:
        text = text[: current.start_mark.index] + word + text[current.end_mark.index :]
    else:
        first = root.value[0][0].start_mark
        comma = ", " if root.flow_style else "\n" + " " * first.column
        text = f"{text[: first.index]}current: {word}{comma}{text[first.index :]}"
    _write(config.path, _checked(text, replace(config, current=name)))
    return config.path


def add_target(name: str, settings: Mapping[str, str]) -> Path:
    """Add a target, or replace it, keeping the rest of the file as it is.

    Raises:
        ConfigError: the file as it stands is wrong.
    """
    config = load()
    text = config.path.read_text(encoding="utf-8") if config.path.exists() else ""
    if name in config.targets:
        text = _without(config.path, text, name)
    targets = {**config.targets, name: _made(name, settings)}
    lines = text.splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += "\n"
    at, indent = len(lines), "  "
    root = _compose(config.path, text)
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
    """Take a target out of the file; it stops being current, too. Return whether there was one.

    Raises:
        ConfigError: the file as it stands is wrong.
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
        node = _child(_compose(config.path, text), "current")
        assert node is not None
        del lines[node.start_mark.line]
        text = "".join(lines)
    _write(config.path, _checked(text, replace(config, current=current, targets=targets)))
    return True


def _without(path: Path, text: str, name: str) -> str:
    """Return the file's text without one target; comments around it stay."""
    targets = _child(_compose(path, text), "targets")
    assert targets is not None
    lines = text.splitlines(keepends=True)
    key, value = next(entry for entry in targets.value if entry[0].value == name)
    del lines[key.start_mark.line : _last_line(value)]
    return "".join(lines)


def _last_line(node: Any) -> int:
    """Return the line after a node's last; a block's own end mark stands behind the comments that follow it."""
    if isinstance(node.value, list) and node.value and not node.flow_style:
        return _last_line(node.value[-1][1])
    end = node.end_mark
    return int(end.line + (end.column > 0 or end.line == node.start_mark.line))


def _checked(text: str, wanted: Config) -> str:
    """Return an edited text if it says what is wanted, else (flow style, anchors) the same written afresh."""
    try:
        if _parse(wanted.path, text) == wanted:
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
    _parse(wanted.path, fresh)
    return fresh


def _yaml(value: object) -> str:
    import yaml

    text: str = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=2**31)
    return text


def _plain(word: str) -> str:
    """Return a name as YAML writes it: quoted where it would be a number or a truth value."""
    return _yaml([word]).removeprefix("- ").rstrip("\n")


def _write(path: Path, text: str) -> None:
    """Replace the file in one step, where a link points to; a new one is for its owner's eyes only."""
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o600
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)
    temporary.touch(mode=0o600, exist_ok=False)
    temporary.write_text(text, encoding="utf-8")
    temporary.chmod(mode)
    temporary.replace(path)


def _compose(path: Path, text: str) -> yaml.Node | None:
    try:
        return compose(text)
    except NotYaml as exc:
        raise ConfigError(f"{path}:{exc.line}: {exc.problem}", hint="mend that line") from None


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


def _made(name: str, settings: Mapping[str, str]) -> Target:
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
    return replace(_made(name, settings), protect=protect)


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
