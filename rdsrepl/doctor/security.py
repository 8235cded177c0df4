"""Checks of who and what may come in: transactions in the way, roles, TLS, timeouts. Pure."""

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
    """Find sessions whose open transaction has written: the creation of a slot waits for them."""
    if facts.server is not None and not facts.server.sees_sessions:
        raise NotApplicable("this role may not see others' transactions (pg_monitor)")
    for transaction in facts.transactions or ():
        if transaction.kind == "session" and transaction.age_seconds >= OLD_TRANSACTION_SECONDS:
            yield warning(
                f"PID {transaction.id}",
                f"its transaction ({transaction.user}, {transaction.about}) is open for "
                f"{format_duration(transaction.age_seconds)}: the creation of a slot waits for it, and slots hold WAL "
                "since it began",
                f"let it end, or end it: SELECT pg_catalog.pg_terminate_backend({transaction.id})",
            )


def prepared_transactions(facts: Facts) -> Iterator[Problem]:
    """Find prepared transactions that nobody ended; they survive restarts."""
    for transaction in facts.transactions or ():
        if transaction.kind == "prepared" and transaction.age_seconds >= OLD_TRANSACTION_SECONDS:
            yield warning(
                transaction.id,
                f"prepared {format_duration(transaction.age_seconds)} ago by {transaction.user} in "
                f"{transaction.about}, and never ended: the creation of a slot waits for it",
                "in that database: " + sql("COMMIT PREPARED {0} or ROLLBACK PREPARED {0}", transaction.id),
            )


def replication_roles(facts: Facts) -> Iterator[Problem]:
    """Look for a role of its own that may log in and replicate."""
    able = []
    for role in facts.roles or ():
        administrator = role.rolsuper or "member of rds_replication through rds_superuser" in role.reasons
        if role.may_replicate and role.rolcanlogin and not administrator and not role.rolname.startswith("rds"):
            able.append(role)
    elsewhere = " (on the primary)" if facts.is_standby else ""
    if not able:
        yield warning(
            "roles",
            "nobody but administrators may replicate",
            f"rdsrepl role create NAME, or rdsrepl role grant NAME{elsewhere}",
        )
    for role in able:
        if facts.server is not None and role.rolvaliduntil is not None and role.rolvaliduntil <= facts.server.now:
            yield warning(
                role.rolname,
                f"its password expired on {role.rolvaliduntil:%Y-%m-%d}: its consumer cannot reconnect",
                f"give it a new one{elsewhere}: ALTER ROLE … VALID UNTIL …",
            )


def ssl(facts: Facts) -> Iterator[Problem]:
    """Find connections that may be, or are, in clear text."""
    forced = facts.value(_FORCE_SSL)
    if forced is None:
        parameter = (facts.parameters or {}).get(_FORCE_SSL)
        forced = parameter.value if parameter is not None else None
    if forced is not None and parse_boolean(forced) is False:
        yield warning(
            _FORCE_SSL,
            "it is off: clients may send row data and passwords' proofs in clear text",
            remedies.change(facts, _FORCE_SSL, "1"),
        )
    server = facts.server
    if server is not None and server.tls is False and not server.local:
        yield warning(
            "this connection",
            "it is not encrypted",
            "sslmode=verify-full in the target or the dsn, with sslrootcert=FILE; at the server: ssl = on",
        )
    if forced is None and server is None:
        raise NotApplicable("neither the server nor the parameter group says")


def wal_sender_timeout(facts: Facts) -> Iterator[Problem]:
    """Find timeouts with which a dead consumer keeps its slot, or a busy one loses its connection."""
    value = facts.value("wal_sender_timeout")
    if value is None:
        raise NotApplicable("wal_sender_timeout is not known")
    name, milliseconds = "wal_sender_timeout", int(value)
    remedy = remedies.change(facts, name, str(_RDS_DEFAULT_TIMEOUT_MS))
    if milliseconds == 0:
        yield warning(name, "it is 0: a consumer that died without a word keeps its slot", remedy)
    elif milliseconds < _SHORT_TIMEOUT_MS:
        yield warning(name, f"{milliseconds} ms is short: a busy consumer is cut off; DMS needs 10 s", remedy)
    elif milliseconds > _LONG_TIMEOUT_MS:
        kept = format_duration(milliseconds / 1000)
        yield warning(name, f"a consumer that died without a word keeps its slot for {kept}", remedy)
    if facts.subscriptions and facts.value("wal_receiver_timeout") == "0":
        yield warning(
            "wal_receiver_timeout",
            "it is 0: a subscription does not notice that its publisher is gone",
            remedies.change(facts, "wal_receiver_timeout", str(_RDS_DEFAULT_TIMEOUT_MS)),
        )
