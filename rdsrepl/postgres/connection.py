"""The only door to PostgreSQL: one connection factory, and driver errors turned into ours.

Secrets come from libpq's own means and stay inside libpq. TLS defaults are safe where libpq's are not: to a host that
is not this machine, ``sslmode`` is ``require`` unless somebody chose, and to an RDS endpoint ``verify-full``.

Every session begins with an empty ``search_path`` and with the other parameters of ``session.py``. A name that a user
typed without a schema is looked up by ``relation_oid``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from rdsrepl import errors
from rdsrepl.config import config_path

if TYPE_CHECKING:
    import psycopg

    from rdsrepl.config import Target
    from rdsrepl.lsn import Lsn
    from rdsrepl.postgres.session import Session

    Connection = psycopg.Connection[tuple[Any, ...]]

CONNECT_TIMEOUT_SECONDS: Final = 10
# libpq's keywords that end a connection whose other end is gone: 60 s after the last packet, and 30 s after one that
# nobody acknowledged. The kernel's own defaults are two hours and a quarter of one.
_KEEPALIVES: Final = {
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "30000",
}
RDS_SUFFIXES: Final = (".rds.amazonaws.com", ".rds.amazonaws.com.cn")
RDS_BUNDLE: Final = "https://truststore.pki.rds.amazonaws.com/global/global-bundle.pem"

_BUNDLE_PLACE: Final = "~/.config/rdsrepl/global-bundle.pem"
_LOCAL: Final = re.compile(r"(localhost|::1|127(\.\d{1,3}){3})\Z|[/@]")
_NOBODY_CHOSE: Final = "nobody chose"


_CURRENT_LSN: Final = """
SELECT CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn()
            ELSE pg_catalog.pg_current_wal_lsn() END
"""

_SYSTEM_IDENTIFIER: Final = "SELECT system_identifier::text FROM pg_catalog.pg_control_system()"

_HERE: Final = """
SELECT pg_catalog.current_database()::text, pg_catalog.pg_postmaster_start_time(), w.in_recovery,
       CASE WHEN w.in_recovery THEN pg_catalog.pg_last_wal_replay_lsn() ELSE pg_catalog.pg_current_wal_lsn() END,
       CASE WHEN NOT w.in_recovery AND NOT w.aurora
            THEN ('x' || pg_catalog.left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 8))
                 ::bit(32)::bigint END
  FROM (SELECT pg_catalog.pg_is_in_recovery() AS in_recovery,
               EXISTS (SELECT FROM pg_catalog.pg_proc WHERE proname = 'aurora_version') AS aurora) w
"""

_IN_RECOVERY: Final = "SELECT pg_catalog.pg_is_in_recovery()"

# The path that this session would have without us. Both statements are safe on any path.
_OWN_PATH: Final = """
SELECT pg_catalog.set_config('search_path', s.reset_val, true) FROM pg_catalog.pg_settings s
 WHERE s.name OPERATOR(pg_catalog.=) 'search_path'
"""
_RELATION: Final = "SELECT pg_catalog.to_regclass(%s)::pg_catalog.oid"

# A failed connection attempt carries no SQLSTATE in libpq, only the server's text (which RDS writes in English).
_CONNECT_FAILURES: Final[tuple[tuple[str, type[errors.Error], str | None, str], ...]] = (
    (
        r"invalid \w+ value: |invalid (integer|port) |invalid value for|could not match \d+|^weak sslmode"
        r"|could not parse network address",
        errors.BadValue,
        None,
        "mend that keyword in the dsn, the target or the environment (-v shows what was given)",
    ),
    (
        r"unsupported startup parameter( in options)?: (\"?(options|replication|database|search_path)|\S+)",
        errors.Unsupported,
        None,
        "a connection pooler answers here, which passes on no replication connection and no options: connect to the "
        "server itself (on RDS: the cluster's or the instance's own endpoint), and leave out PGOPTIONS and options=",
    ),
    (
        r"password authentication failed|no password supplied|SCRAM|authentication failed for user",
        errors.AuthenticationFailed,
        "28P01",
        "check the user, and its password in ~/.pgpass, PGPASSFILE or PGPASSWORD",
    ),
    (
        r"role .* does not exist|is not permitted to log in",
        errors.AuthenticationFailed,
        "28000",
        "name another user (user=… in the dsn, or PGUSER), or make it: rdsrepl role create NAME",
    ),
    (
        r"no pg_hba\.conf entry",
        errors.AuthenticationFailed,
        "28000",
        "the server's pg_hba.conf does not let this client in (on RDS: rds.force_ssl); try sslmode=require",
    ),
    (
        r"superuser or replication role to (start|connect)|permission denied to start WAL sender",
        errors.Denied,
        "42501",
        "the role may not replicate; grant it: rdsrepl role grant NAME",
    ),
    (
        r"(too many (clients|connections)|remaining connection slots|max_wal_senders)",
        errors.SlotsExhausted,
        "53300",
        "raise max_wal_senders or max_connections, or end a connection (pg_stat_activity lists them)",
    ),
    (
        r"database .* does not exist",
        errors.NotFound,
        "3D000",
        "name an existing database: --dbname NAME, or PGDATABASE",
    ),
    (
        r"the database system is (starting up|shutting down|in recovery|not yet accepting)",
        errors.ConnectionLost,
        "57P03",
        "wait for the server to finish starting, then try again",
    ),
    (
        r"terminating connection|server closed the connection|Connection reset|SSL SYSCALL|SSL error: unexpected eof",
        errors.ConnectionLost,
        "57P01",
        "the server is restarting or failing over; try again",
    ),
    (
        r"root certificate file .* does not exist",
        errors.Unreachable,
        None,
        f"get the RDS bundle: curl -o {_BUNDLE_PLACE} {RDS_BUNDLE} (or name another file: sslrootcert=FILE)",
    ),
    (
        r"certificate verify failed|does not match host name",
        errors.Unreachable,
        None,
        f"use the endpoint's own name and the current bundle ({RDS_BUNDLE}) with sslrootcert=FILE",
    ),
    (
        r"server does not support SSL",
        errors.Unreachable,
        None,
        "turn SSL on at the server, or accept clear text knowingly with sslmode=disable",
    ),
    (
        r"could not translate host name|Name or service not known|nodename nor servname",
        errors.Unreachable,
        None,
        "check the host name (-v shows where it came from)",
    ),
    (
        r"timeout expired|timed out",
        errors.Unreachable,
        None,
        "check host, port, security group and route; connect_timeout=SECONDS allows more time",
    ),
    (
        r"definition of service .* not found|service file .* not found",
        errors.UsageError,
        None,
        "define the service in ~/.pg_service.conf (PGSERVICEFILE), or name another",
    ),
)

# SQLSTATE (manual, appendix A) → our error and remedy. Nouns look first and say it better; this is for the rest.
_SQLSTATES: Final[Mapping[str, tuple[type[errors.Error], str | None]]] = {
    "42501": (errors.Denied, "use a role that has the right (rdsrepl role list shows who may replicate)"),
    "42710": (errors.AlreadyExists, "choose another name"),
    "42P07": (errors.AlreadyExists, "choose another name"),
    "42704": (errors.NotFound, None),
    "42P01": (errors.NotFound, "check the name and its schema"),
    "3F000": (errors.NotFound, "check the schema's name"),
    "42703": (errors.NotFound, "check the column's name"),
    "55006": (errors.SlotActive, "stop its consumer first (rdsrepl slot show NAME names it)"),
    "53400": (
        errors.SlotsExhausted,
        "drop a slot nobody uses (rdsrepl slot list), or raise max_replication_slots (a restart)",
    ),
    "53300": (errors.SlotsExhausted, "end a connection, or raise max_connections"),
    "25006": (
        errors.NotPrimary,
        "connect to the primary (on RDS: the writer endpoint); if this is it, the role, the database or the server has "
        "default_transaction_read_only = on",
    ),
    "58P01": (errors.PluginNotAllowed, "install the plugin on the server, or use another: --plugin pgoutput"),
    "57014": (errors.TimedOut, "allow it more time with --timeout"),
    "0A000": (errors.Unsupported, None),
    "42601": (errors.BadValue, "mend the text"),
    "22023": (errors.BadValue, None),
    "42602": (errors.BadValue, None),
    "42939": (errors.BadValue, "choose a name that is not reserved"),
    "57P01": (errors.ConnectionLost, "the server ended the connection; try again"),
    "57P02": (errors.ConnectionLost, "the server crashed and restarts; try again"),
    "57P03": (errors.ConnectionLost, "the server is starting; try again"),
}


@dataclass(frozen=True, slots=True)
class Here:
    """Where a connection led to: what a statement that is planned on it may ask for when it is carried out.

    Attributes:
        database: its name.
        started_at: since when this server runs; a restart, and another server behind the same address, differ.
        in_recovery: it is a standby.
        lsn: the end of its WAL; on a standby what it has replayed.
        timeline: None on a standby, and on Aurora; a promotion differs, a crash does not.
        system_identifier: what ``initdb`` gave the cluster; its standbys and restored copies have the same. None where
            this role may not see it.
    """

    database: str
    started_at: datetime
    in_recovery: bool
    lsn: Lsn
    timeline: int | None
    system_identifier: str | None = None


@contextmanager
def open(
    target: Target, *, replication: bool = False, settings: Mapping[str, str] | None = None
) -> Iterator[Connection]:
    """Connect, yield an autocommit connection, close it; ``pg_lsn`` values arrive as ``Lsn``.

    Args:
        target: the database.
        replication: open a walsender connection (``replication=database``), which takes replication commands and the
            simple query protocol only.
        settings: server parameters for this session alone; they win over the ones that every session is given.

    Raises:
        Error: whatever went wrong, while connecting or inside the ``with`` block, as one of ours.
    """
    import psycopg

    connection = connect(target, replication=replication, settings=settings)
    try:
        yield connection
    except psycopg.Error as exc:
        raise translate(exc) from exc
    finally:
        connection.close()


def connect(target: Target, *, replication: bool = False, settings: Mapping[str, str] | None = None) -> Connection:
    """Open a connection that the caller closes; see ``open``."""
    import psycopg

    from rdsrepl.lsn import Lsn
    from rdsrepl.postgres.session import Session, pinned
    from rdsrepl.postgres.types import PG_LSN_OID, LsnDumper, LsnLoader

    settings = dict(settings or {})
    encoding = settings.pop("client_encoding", None)
    keywords, options = _keywords(target)
    if encoding is not None:
        keywords["client_encoding"] = encoding
    if replication:
        keywords["replication"] = "database"
        keywords["options"] = _with_options(options, pinned(settings, options, version=0))
    try:
        connection = Session.connect("", autocommit=True, prepare_threshold=None, **keywords)  # type: ignore[arg-type]
    except psycopg.Error as exc:
        raise _connect_error(exc, target, keywords) from exc
    connection.answer_seconds = target.answer_seconds
    connection.adapters.register_loader(PG_LSN_OID, LsnLoader)
    connection.adapters.register_dumper(Lsn, LsnDumper)
    if not replication:
        try:
            connection.begin(pinned(settings, options, version=server_version(connection)))
        except BaseException as exc:
            connection.close()
            if isinstance(exc, psycopg.Error):
                raise translate(exc) from exc
            raise
    return connection


def keywords(target: Target) -> dict[str, str]:
    """Return everything libpq is given for a target, secrets included, for another client of libpq.

    Raises:
        Error: the target's dsn is none, or its cluster, instance or secret was not found.
    """
    return _keywords(target)[0]


def configure(connection: Connection, settings: Mapping[str, str]) -> None:
    """Set more server parameters for a session that ``connect`` opened."""
    cast("Session", connection).begin(settings)


def is_pooled(connection: Connection) -> bool:
    """Say whether a connection pooler stands between, so that one statement's session may not be the next one's."""
    return cast("Session", connection).pins is not None


@contextmanager
def own_path(connection: Connection) -> Iterator[None]:
    """Give a transaction the ``search_path`` that the role, the database and the user's own options have set.

    In it every function, operator, type and relation must be named with its schema. What is done is rolled back.
    """
    with connection.transaction(force_rollback=True):
        connection.execute(_OWN_PATH)
        yield


def relation_oid(connection: Connection, name: str) -> int | None:
    """Return the OID of the relation that NAME means, as SQL writes it; None where there is none.

    Without a schema it is looked up in the ``search_path`` that the role, the database and the user's own options give.
    That is read as data: nothing else is looked up there.

    Raises:
        psycopg.ProgrammingError: NAME is no name to SQL.
    """
    with own_path(connection):
        row = connection.execute(_RELATION, (name,)).fetchone()
    assert row is not None
    oid: int | None = row[0]
    return oid


@dataclass(frozen=True, slots=True)
class Address:
    """Where a target leads to, as far as it is known before it is connected to.

    Attributes:
        host: name, address, or directory of the unix socket; several are separated by commas.
        user: None where the login names it, such as a secret.
    """

    host: str
    port: str
    dbname: str
    user: str | None


def address(target: Target) -> Address:
    """Return where a target leads to; nothing is connected to and no secret is read.

    Raises:
        Error: the target's dsn is none, or its cluster or instance was not found.
    """
    given = _merged(target, target.renew.place() if target.renew is not None else {})
    defaults = _defaults(given.get("service"))
    said = {key: given.get(key) or defaults.get(key, "") for key in ("host", "hostaddr", "port", "dbname", "user")}
    user = given.get("user") or (None if target.aws.secret else said["user"])
    return Address(
        host=said["host"] or said["hostaddr"] or "local socket",
        port=said["port"] or "5432",
        dbname=said["dbname"] or said["user"],
        user=user or None,
    )


def rds_bundle_file() -> Path:
    """Return where the RDS bundle is looked for when nobody named a file: beside the config file."""
    return config_path().with_name("global-bundle.pem")


def server_version(connection: Connection) -> int:
    """Return the server's major version: 13 … 18."""
    return connection.info.server_version // 10000


def in_recovery(connection: Connection) -> bool:
    """Say whether the server is a standby."""
    row = connection.execute(_IN_RECOVERY).fetchone()
    assert row is not None
    return bool(row[0])


def here(connection: Connection) -> Here:
    """Return where a connection leads to."""
    row = connection.execute(_HERE).fetchone()
    assert row is not None
    return Here(*(*row, system_identifier(connection)))


def system_identifier(connection: Connection) -> str | None:
    """Return what ``initdb`` gave the cluster; None where this role may not see it."""
    import psycopg

    try:
        row = connection.execute(_SYSTEM_IDENTIFIER).fetchone()
    except psycopg.errors.InsufficientPrivilege:
        return None
    return None if row is None else str(row[0])


def current_lsn(connection: Connection) -> Lsn:
    """Return how far the server's WAL is written; on a standby, how far it is replayed."""
    row = connection.execute(_CURRENT_LSN).fetchone()
    assert row is not None
    lsn: Lsn = row[0]
    return lsn


def setting(connection: Connection, name: str) -> str:
    """Return a server parameter's value as ``SHOW`` prints it; works on a replication connection, too."""
    from psycopg import sql

    row = connection.execute(sql.SQL("SHOW {}").format(sql.Identifier(name))).fetchone()
    assert row is not None
    return text(row[0])


def text(value: str | bytes) -> str:
    """Return a text value as ``str``; a connection with client_encoding SQL_ASCII gives bytes."""
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value


def translate(exc: psycopg.Error) -> errors.Error:
    """Turn a driver's error into ours, keeping the server's text, detail and SQLSTATE."""
    import psycopg

    state = exc.sqlstate
    if state is None:
        text = _one_line(str(exc))
        if isinstance(exc, psycopg.OperationalError):
            return errors.ConnectionLost(f"the connection broke: {text}", hint="try again")
        return errors.ServerError(text)
    text = _one_line(exc.diag.message_primary or str(exc))
    if exc.diag.message_detail:
        text += f" ({_one_line(exc.diag.message_detail)})"
    kind, hint = _classify(state, text)
    return kind(text, hint=hint or _hint(exc), sqlstate=state)


def _classify(state: str, text: str) -> tuple[type[errors.Error], str | None]:
    """Tell apart what shares SQLSTATE 55000 (object_not_in_prerequisite_state); the wording is PostgreSQL's own."""
    if (state == "42501" and "output plugin" in text) or "output_plugin_libraries" in text:
        plugin = match[1] if (match := re.search(r'"([^"]+)"', text)) else "PLUGIN"
        return errors.PluginNotAllowed, plugin_remedy("pgoutput, test_decoding", plugin)
    if state == "55000":
        if "wal_level" in text:
            return errors.WalLevelNotLogical, (
                "set wal_level = logical and restart (on RDS: rdsrepl param-group create NAME --cluster ID, then "
                "rdsrepl param-group attach NAME --cluster ID --reboot)"
            )
        if "recovery" in text or "RO (Read Only)" in text:
            return errors.NotPrimary, "connect to the primary (on RDS: the writer endpoint)"
        if "synchroniz" in text or "synced" in text:
            return errors.SlotBeingSynced, "consume the slot on the primary; it becomes usable here after a promotion"
        if "invalidated" in text or "can no longer" in text:
            return errors.SlotInvalidated, (
                "its changes are gone: drop it, create it anew and copy the tables again (rdsrepl slot drop NAME)"
            )
    if "publication WHERE" in text:
        return errors.BadValue, "a row filter may use columns, built-in immutable functions and operators only"
    if state == "42704" and "publication" in text and "does not exist" in text:
        return errors.NotFound, (
            "make it again (rdsrepl publication create NAME …); changes older than a publication cannot be decoded "
            "with it: a new one also needs a new slot, or one moved past them (rdsrepl slot advance NAME --to-current)"
        )
    if state in _SQLSTATES:
        return _SQLSTATES[state]
    if state[:2] == "08":
        return errors.ConnectionLost, "try again"
    if state[:2] == "28":
        return errors.AuthenticationFailed, "check the user and its password"
    return errors.ServerError, None


def plugin_remedy(libraries: str, plugin: str) -> str:
    """Say how to let an output plugin in, where the server allows LIBRARIES (15.20, 17.11, 18.6 and later)."""
    allowed = ", ".join(name for name in (libraries, plugin) if name)
    return (
        f"as superuser: ALTER SYSTEM SET output_plugin_libraries = {allowed}; SELECT pg_catalog.pg_reload_conf(); "
        "(on RDS: in the parameter group); or use a slot with --plugin pgoutput"
    )


def _hint(exc: psycopg.Error) -> str | None:
    return _one_line(exc.diag.message_hint) if exc.diag.message_hint else None


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _merged(target: Target, found: Mapping[str, str]) -> dict[str, str]:
    """Return the keywords of a target's dsn, of what was FOUND through AWS, and its own; the later ones win."""
    import psycopg
    from psycopg.conninfo import conninfo_to_dict

    try:
        dsn = conninfo_to_dict(target.dsn)
        if target.keywords.get("user", dsn.get("user")) != dsn.get("user"):
            dsn.pop("password", None)  # it belongs to the role that the dsn names
        given = conninfo_to_dict("", **{**dsn, **found, **target.keywords})
    except psycopg.ProgrammingError:
        # Not as the cause: libpq quotes what it stumbled over, which may be a piece of the password.
        raise errors.BadValue(
            f"{target.label}: not a connection string",
            hint="postgresql://user@host:5432/dbname, or host=… dbname=… user=…",
        ) from None
    keywords = {key: str(value) for key, value in given.items() if value is not None}
    if not re.fullmatch(r"[\d,]*", keywords.get("port", "")) or re.search(r"[^,]@", keywords.get("host", "")):
        raise errors.BadValue(
            f"{target.label}: no host and port can be read from it",
            hint="in a URI, write what is special in user and password percent-encoded: @ as %40, / as %2F, : as %3A",
        )
    return keywords


def _keywords(target: Target) -> tuple[dict[str, str], str]:
    """Return what libpq is given, and the ``options`` that hold, whoever gave them."""
    keywords = _merged(target, target.renew.keywords() if target.renew is not None else {})
    defaults = _defaults(keywords.get("service"))
    keywords.setdefault("fallback_application_name", "rdsrepl")
    if keywords.get("host") and "hostaddr" not in keywords and defaults["hostaddr"]:
        keywords["hostaddr"] = ""  # PGHOSTADDR belongs to the environment's host, not to this one
    if not keywords.get("connect_timeout") and not defaults.get("connect_timeout"):
        keywords["connect_timeout"] = str(CONNECT_TIMEOUT_SECONDS)
    for keyword, value in _KEEPALIVES.items():
        if not keywords.get(keyword) and not defaults.get(keyword):
            keywords[keyword] = value
    if not keywords.get("sslmode") and defaults["sslmode"] == _NOBODY_CHOSE:
        sslmode = _safe_sslmode(
            keywords.get("host", defaults["host"]), hostaddr=keywords.get("hostaddr", defaults["hostaddr"])
        )
        if sslmode and keywords.get("sslrootcert", defaults["sslrootcert"]) != "system":  # that implies verify-full
            keywords["sslmode"] = sslmode
            bundle = rds_bundle_file()
            if (
                sslmode == "verify-full"
                and not keywords.get("sslrootcert", defaults["sslrootcert"])
                and bundle.exists()
            ):
                keywords["sslrootcert"] = str(bundle)
    # UTF8 is what every decoder and printer here expects, whatever the database's own encoding.
    keywords["client_encoding"] = "UTF8"
    if "passfile" in keywords and "password" not in keywords:
        # libpq would prefer PGPASSWORD, which then is meant for another server; an empty password means: look it up.
        keywords["password"] = ""
    return keywords, keywords.get("options", defaults.get("options", ""))


def _with_options(options: str, settings: Mapping[str, str]) -> str:
    for name, value in settings.items():
        escaped = value.replace("\\", "\\\\").replace(" ", "\\ ")
        options += f" -c {name}={escaped}"
    return options.strip()


def _defaults(service: str | None) -> dict[str, str]:
    """Return what libpq will take from the environment and the service file for keywords that nobody gives."""
    from psycopg import pq

    # libpq looks up PGSERVICE here. The mark shows whether anybody chose an sslmode, be it the default one.
    marks = {"PGSERVICE": service or os.environ.get("PGSERVICE"), "PGSSLMODE": os.environ.get("PGSSLMODE")}
    before = dict(marks, PGSERVICE=os.environ.get("PGSERVICE"))
    if not marks["PGSSLMODE"] and "PGREQUIRESSL" not in os.environ:
        marks["PGSSLMODE"] = _NOBODY_CHOSE
    try:
        _set_environment(marks)
        return {option.keyword.decode(): (option.val or b"").decode() for option in pq.Conninfo.get_defaults()}
    finally:
        _set_environment(before)


def _set_environment(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _safe_sslmode(hosts: str, *, hostaddr: str = "") -> str | None:
    """Return the mode to ask for when nobody chose one; None where libpq's own default will do (this machine)."""
    names = [name.strip().lower() for name in hosts.split(",") if name.strip()]
    if any(name.rstrip(".").endswith(RDS_SUFFIXES) for name in names):
        return "verify-full"
    addresses = [address.strip() for address in hostaddr.split(",") if address.strip()] or names
    return None if all(_LOCAL.match(address) for address in addresses) else "require"


def _connect_error(exc: psycopg.Error, target: Target, keywords: Mapping[str, str]) -> errors.Error:
    text = re.sub(r"^(connection (failed|is bad)|Multiple connection attempts failed.*?): ", "", _one_line(str(exc)))
    where = f"{target.label}: {keywords.get('host', '')}".rstrip(": ")
    for pattern, kind, state, hint in _CONNECT_FAILURES:
        if re.search(pattern, text):
            return kind(f"{where}: {text}", hint=hint, sqlstate=exc.sqlstate or state)
    return errors.Unreachable(
        f"{where}: {text}", hint="check that the server runs, and its host and port", sqlstate=exc.sqlstate
    )
