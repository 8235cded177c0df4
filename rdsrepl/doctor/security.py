"""Checks of old transactions, roles, TLS and timeouts. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from rdsrepl.doctor import remedies
from rdsrepl.doctor.facts import OLD_TRANSACTION_SECONDS, Facts
from rdsrepl.doctor.findings import NotApplicable, Problem, warning
from rdsrepl.text.commands import sql
from rdsrepl.units import format_duration, parse_boolean

_FORCE_SSL: Final = "rds.force_ssl"
_SHORT_TIMEOUT_MS: Final = 10_000
_LONG_TIMEOUT_MS: Final = 600_000
_RDS_DEFAULT_TIMEOUT_MS: Final = 30_000


def long_transactions(facts: Facts) -> Iterator[Problem]:
    """Find sessions with an old transaction that has written data, which blocks the creation of a slot."""
    if facts.server is not None and not facts.server.sees_sessions:
        raise NotApplicable("this role may not read the transactions of other roles (needs pg_monitor)")
    for transaction in facts.transactions or ():
        if transaction.kind == "session" and transaction.age_seconds >= OLD_TRANSACTION_SECONDS:
            yield warning(
                f"PID {transaction.id}",
                f"its transaction ({transaction.user}, {transaction.about}) has been open for "
                f"{format_duration(transaction.age_seconds)}: the creation of a slot waits for it, and slots retain "
                "WAL since it began",
                f"wait until it ends, or end it: SELECT pg_catalog.pg_terminate_backend({transaction.id})",
            )


def prepared_transactions(facts: Facts) -> Iterator[Problem]:
    """Find old prepared transactions, which survive restarts."""
    for transaction in facts.transactions or ():
        if transaction.kind == "prepared" and transaction.age_seconds >= OLD_TRANSACTION_SECONDS:
            yield warning(
                transaction.id,
                f"prepared {format_duration(transaction.age_seconds)} ago by {transaction.user} in "
                f"{transaction.about}, and still open: the creation of a slot waits for it",
                "in that database: " + sql("COMMIT PREPARED {0} or ROLLBACK PREPARED {0}", transaction.id),
            )


def replication_roles(facts: Facts) -> Iterator[Problem]:
    """Find out whether a role other than an administrator may log in and replicate."""
    able = []
    for role in facts.roles or ():
        administrator = role.rolsuper or "member of rds_replication through rds_superuser" in role.reasons
        if role.may_replicate and role.rolcanlogin and not administrator and not role.rolname.startswith("rds"):
            able.append(role)
    elsewhere = " (on the primary)" if facts.is_standby else ""
    if not able:
        yield warning(
            "roles",
            "only administrators may replicate",
            f"rdsrepl role create NAME, or rdsrepl role grant NAME{elsewhere}",
        )
    for role in able:
        if facts.server is not None and role.rolvaliduntil is not None and role.rolvaliduntil <= facts.server.now:
            yield warning(
                role.rolname,
                f"its password expired on {role.rolvaliduntil:%Y-%m-%d}: its consumer cannot reconnect",
                f"extend it or set a new one{elsewhere}: ALTER ROLE … VALID UNTIL …",
            )


def ssl(facts: Facts) -> Iterator[Problem]:
    """Find connections without encryption."""
    forced = facts.value(_FORCE_SSL)
    if forced is None:
        parameter = (facts.parameters or {}).get(_FORCE_SSL)
        forced = parameter.value if parameter is not None else None
    if forced is not None and parse_boolean(forced) is False:
        yield warning(
            _FORCE_SSL,
            "it is off: clients may send row data and authentication data in clear text",
            remedies.change(facts, _FORCE_SSL, "1"),
        )
    server = facts.server
    if server is not None and server.tls is False and not server.local:
        yield warning(
            "this connection",
            "it is not encrypted",
            "set sslmode=verify-full and sslrootcert=FILE in the target or the dsn; on the server: ssl = on",
        )
    if forced is None and server is None:
        raise NotApplicable("rds.force_ssl is not known")


def wal_sender_timeout(facts: Facts) -> Iterator[Problem]:
    """Find timeouts that keep the slot of a dead consumer active, or disconnect a busy consumer."""
    value = facts.value("wal_sender_timeout")
    if value is None:
        raise NotApplicable("wal_sender_timeout is not known")
    name, milliseconds = "wal_sender_timeout", int(value)
    remedy = remedies.change(facts, name, str(_RDS_DEFAULT_TIMEOUT_MS))
    if milliseconds == 0:
        yield warning(name, "it is 0: a dead consumer keeps its slot active", remedy)
    elif milliseconds < _SHORT_TIMEOUT_MS:
        yield warning(
            name, f"{milliseconds} ms is too short: the server disconnects a busy consumer; DMS needs 10 s", remedy
        )
    elif milliseconds > _LONG_TIMEOUT_MS:
        kept = format_duration(milliseconds / 1000)
        yield warning(name, f"a dead consumer keeps its slot active for {kept}", remedy)
    if facts.subscriptions and facts.value("wal_receiver_timeout") == "0":
        yield warning(
            "wal_receiver_timeout",
            "it is 0: a subscription does not detect a dead publisher",
            remedies.change(facts, "wal_receiver_timeout", str(_RDS_DEFAULT_TIMEOUT_MS)),
        )
