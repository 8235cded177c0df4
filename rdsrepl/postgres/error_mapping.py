"""Turn the errors of libpq and the server into the errors of this program."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from rdsrepl import errors
from rdsrepl.text.commands import command

if TYPE_CHECKING:
    import psycopg

    from rdsrepl.config import Target


RDS_BUNDLE: Final = "https://truststore.pki.rds.amazonaws.com/global/global-bundle.pem"

_BUNDLE_PLACE: Final = "~/.config/rdsrepl/global-bundle.pem"

PRIMARY_REMEDY: Final = "connect to the primary (on RDS: the writer endpoint)"
WAL_LEVEL_REMEDY: Final = (
    "set wal_level = logical and restart (on RDS: rdsrepl param-group create NAME --cluster ID, then "
    "rdsrepl param-group attach NAME --cluster ID --reboot)"
)

# libpq gives no SQLSTATE for a failed connection, only the text of the server (in English on RDS).
_CONNECT_FAILURES: Final[tuple[tuple[str, type[errors.Error], str | None, str], ...]] = (
    (
        r"invalid \w+ value: |invalid (integer|port) |invalid value for|could not match \d+|^weak sslmode"
        r"|could not parse network address",
        errors.BadValue,
        None,
        "correct the keyword in the dsn, the target or the environment (-v shows its source)",
    ),
    (
        r"unsupported startup parameter( in options)?: (\"?(options|replication|database|search_path)|\S+)",
        errors.Unsupported,
        None,
        "this is a connection pooler, which supports neither replication connections nor options: connect to the "
        "server itself (on RDS: the endpoint of the cluster or instance), and remove PGOPTIONS and options=",
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
        "name another user (user=… in the dsn, or PGUSER), or create it: rdsrepl role create NAME",
    ),
    (
        r"no pg_hba\.conf entry",
        errors.AuthenticationFailed,
        "28000",
        "pg_hba.conf of the server has no entry for this client (on RDS: rds.force_ssl); try sslmode=require",
    ),
    (
        r"superuser or replication role to (start|connect)|permission denied to start WAL sender",
        errors.Denied,
        "42501",
        "the role may not replicate; grant it the right: rdsrepl role grant NAME --user ADMIN",
    ),
    (
        r"(too many (clients|connections)|remaining connection slots|max_wal_senders)",
        errors.SlotsExhausted,
        "53300",
        "increase max_wal_senders or max_connections, or end a connection (pg_stat_activity lists them)",
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
        "wait until the server accepts connections, then retry",
    ),
    (
        r"terminating connection|server closed the connection|Connection reset|SSL SYSCALL|SSL error: unexpected eof",
        errors.ConnectionLost,
        "57P01",
        "the server restarts or fails over; retry",
    ),
    (
        r"root certificate file .* does not exist",
        errors.Unreachable,
        None,
        f"download the RDS bundle: curl -o {_BUNDLE_PLACE} {RDS_BUNDLE} (or name another file: sslrootcert=FILE)",
    ),
    (
        r"certificate verify failed|does not match host name",
        errors.Unreachable,
        None,
        f"use the name of the endpoint, and the current bundle ({RDS_BUNDLE}) with sslrootcert=FILE",
    ),
    (
        r"server does not support SSL",
        errors.Unreachable,
        None,
        "enable SSL on the server, or accept an unencrypted connection with sslmode=disable",
    ),
    (
        r"could not translate host name|Name or service not known|nodename nor servname",
        errors.Unreachable,
        None,
        "check the host name (-v shows its source)",
    ),
    (
        r"timeout expired|timed out",
        errors.Unreachable,
        None,
        "check host, port, security group and route; connect_timeout=SECONDS sets the time limit",
    ),
    (
        r"definition of service .* not found|service file .* not found",
        errors.UsageError,
        None,
        "define the service in ~/.pg_service.conf (PGSERVICEFILE), or name another",
    ),
)

# SQLSTATE (manual, appendix A) → error and remedy, for what the noun modules did not check before.
_SQLSTATES: Final[Mapping[str, tuple[type[errors.Error], str | None]]] = {
    "42501": (
        errors.Denied,
        "use a role that has the privilege (the roles that may replicate: rdsrepl role list)",
    ),
    "42710": (errors.AlreadyExists, "choose another name"),
    "42P07": (errors.AlreadyExists, "choose another name"),
    "42704": (errors.NotFound, None),
    "42P01": (errors.NotFound, "check the name and its schema"),
    "3F000": (errors.NotFound, "check the name of the schema"),
    "42703": (errors.NotFound, "check the name of the column"),
    "55006": (errors.SlotActive, "stop its consumer first (rdsrepl slot show NAME)"),
    "53400": (
        errors.SlotsExhausted,
        "drop an unused slot (rdsrepl slot list), or increase max_replication_slots (needs a restart)",
    ),
    "53300": (errors.SlotsExhausted, "end a connection, or increase max_connections"),
    "25006": (
        errors.NotPrimary,
        f"{PRIMARY_REMEDY}; if this is the primary, the role, the database or the server has "
        "default_transaction_read_only = on",
    ),
    "58P01": (errors.PluginNotAllowed, "install the plugin on the server, or use another: --plugin pgoutput"),
    "57014": (errors.TimedOut, "increase --timeout"),
    "0A000": (errors.Unsupported, None),
    "42601": (errors.BadValue, "correct the value"),
    "22023": (errors.BadValue, None),
    "42602": (errors.BadValue, None),
    "42939": (errors.BadValue, "choose a name that is not reserved"),
    "57P01": (errors.ConnectionLost, "the server ended the connection; retry"),
    "57P02": (errors.ConnectionLost, "the server crashed and restarts; retry"),
    "57P03": (errors.ConnectionLost, "the server is starting; retry"),
}


def translate(exc: psycopg.Error) -> errors.Error:
    """Turn an error of the driver into one of ours, with the text, detail and SQLSTATE of the server."""
    import psycopg

    state = exc.sqlstate
    if state is None:
        text = _one_line(str(exc))
        if isinstance(exc, psycopg.OperationalError):
            return errors.ConnectionLost(f"connection lost: {text}", hint="retry")
        return errors.ServerError(text)
    text = _one_line(exc.diag.message_primary or str(exc))
    if exc.diag.message_detail:
        text += f" ({_one_line(exc.diag.message_detail)})"
    kind, hint = _classify(state, text)
    return kind(text, hint=hint or _hint(exc), sqlstate=state)


@contextmanager
def translating() -> Iterator[None]:
    """Raise errors of the server as those of this program."""
    import psycopg

    try:
        yield
    except psycopg.Error as exc:
        raise translate(exc) from exc


def _classify(state: str, text: str) -> tuple[type[errors.Error], str | None]:
    """Return the error and the remedy; SQLSTATE 55000 (object_not_in_prerequisite_state) needs the text as well."""
    if (state == "42501" and "output plugin" in text) or "output_plugin_libraries" in text:
        plugin = match[1] if (match := re.search(r'"([^"]+)"', text)) else "PLUGIN"
        return errors.PluginNotAllowed, plugin_remedy("pgoutput, test_decoding", plugin)
    if state == "42501" and (table := re.search(r"permission denied for table (.+)", text)):
        return errors.Denied, (
            "grant the role what it needs; to let it read: "
            f"{command('role grant NAME --grant-select {} --user ADMIN', table[1])}"
        )
    if state == "55000":
        if "wal_level" in text:
            return errors.WalLevelNotLogical, WAL_LEVEL_REMEDY
        if "recovery" in text or "RO (Read Only)" in text:
            return errors.NotPrimary, PRIMARY_REMEDY
        if "synchroniz" in text or "synced" in text:
            return errors.SlotBeingSynced, "consume the slot on the primary; it becomes usable here after a promotion"
        if "invalidated" in text or "can no longer" in text:
            return errors.SlotInvalidated, (
                "its changes are gone: drop it (rdsrepl slot drop NAME), create it and copy the tables again"
            )
    if "publication WHERE" in text:
        return errors.BadValue, "a row filter may use columns, built-in immutable functions and operators only"
    if state == "42704" and "publication" in text and "does not exist" in text:
        return errors.NotFound, (
            "create it again (rdsrepl publication create NAME --table TABLE); the server cannot decode changes older "
            "than it: create a new slot, or move this one past them (rdsrepl slot advance NAME --to-current)"
        )
    if state in _SQLSTATES:
        return _SQLSTATES[state]
    if state[:2] == "08":
        return errors.ConnectionLost, "retry"
    if state[:2] == "28":
        return errors.AuthenticationFailed, "check the user and its password"
    return errors.ServerError, None


def plugin_remedy(libraries: str, plugin: str) -> str:
    """Return the remedy that adds an output plugin to the allowed LIBRARIES (15.20, 17.11, 18.6 and later)."""
    allowed = ", ".join(name for name in (libraries, plugin) if name)
    return (
        f"as superuser: ALTER SYSTEM SET output_plugin_libraries = {allowed}; SELECT pg_catalog.pg_reload_conf(); "
        "(on RDS: in the parameter group); or use a slot with --plugin pgoutput"
    )


def _hint(exc: psycopg.Error) -> str | None:
    return _one_line(exc.diag.message_hint) if exc.diag.message_hint else None


def _one_line(text: str) -> str:
    return " ".join(text.split())


def connect_error(exc: psycopg.Error, target: Target, keywords: Mapping[str, str]) -> errors.Error:
    """Turn a failed attempt to connect into an error of ours.

    Args:
        exc: the driver's error.
        target: what was connected to, for the message.
        keywords: what libpq was given.
    """
    text = re.sub(r"^(connection (failed|is bad)|Multiple connection attempts failed.*?): ", "", _one_line(str(exc)))
    where = f"{target.label}: {keywords.get('host', '')}".rstrip(": ")
    for pattern, kind, state, hint in _CONNECT_FAILURES:
        if re.search(pattern, text):
            return kind(f"{where}: {text}", hint=hint, sqlstate=exc.sqlstate or state)
    return errors.Unreachable(
        f"{where}: {text}", hint="check that the server runs, and check host and port", sqlstate=exc.sqlstate
    )
