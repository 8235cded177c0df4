"""Checks of publications and subscriptions. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from rdsrepl.doctor.facts import Facts
from rdsrepl.doctor.findings import Problem, critical, info, warning
from rdsrepl.postgres import publication_checks
from rdsrepl.postgres.publication_checks import Level
from rdsrepl.text.commands import command, ddl
from rdsrepl.text.counts import counted, form, named

_MAX_NAMED: Final = 5


def publications(facts: Facts) -> Iterator[Problem]:
    """Summarize the findings of ``publication check``, and find pgoutput slots without a publication."""
    for publication in facts.publications or ():
        name = publication.pubname
        more = command("publication check {}", name)
        problems = publication_checks.check(publication)
        worst = [problem for problem in problems if problem.level is Level.critical]
        for problem in worst[:_MAX_NAMED]:
            where = name if problem.object == name else f"{name}: {problem.object}"
            yield critical(where, problem.message, problem.remedy)
        if len(worst) > _MAX_NAMED:
            yield critical(name, counted(len(worst) - _MAX_NAMED, "more critical finding"), more)
        rest = [problem.check for problem in problems if problem.level is not Level.critical]
        if rest:
            kinds = ", ".join(f"{kind} ({rest.count(kind)})" for kind in dict.fromkeys(rest))
            yield warning(name, f"other findings: {kinds}", more)
    database = facts.server.database if facts.server else None
    slots = [slot.slot_name for slot in facts.logical_slots if slot.plugin == "pgoutput" and slot.database == database]
    if slots and not facts.publications and not facts.is_standby:
        yield warning(
            named(slots),
            f"pgoutput needs a publication, but database {database} has none",
            "rdsrepl publication create NAME --table SCHEMA.TABLE; the server cannot decode older changes with it",
        )


def subscriptions(facts: Facts) -> Iterator[Problem]:
    """Find subscriptions that do not run or have failed."""
    for subscription in facts.subscriptions or ():
        name = f"{subscription.database}.{subscription.subname}"
        if not subscription.enabled:
            enable = ddl("ALTER SUBSCRIPTION {} ENABLE", subscription.subname)
            retains = f"; slot {subscription.slot} on its publisher retains WAL" if subscription.slot else ""
            yield warning(
                name,
                f"it is disabled: it receives no changes{retains}",
                f"see the log of the server for the reason, then {enable}",
            )
        elif subscription.worker_pid is None and not facts.is_standby:
            yield critical(
                name,
                "it has no apply worker: it receives no changes",
                "see the log of the server, and the checks logical_workers and worker_processes",
            )
        errors = (subscription.apply_errors or 0) + (subscription.sync_errors or 0)
        if errors:
            yield warning(
                name,
                f"applying failed {counted(subscription.apply_errors or 0, 'time')}, "
                f"copying {counted(subscription.sync_errors or 0, 'time')}",
                "see the log of the server; then reset the counters: "
                "SELECT pg_catalog.pg_stat_reset_subscription_stats(NULL)",
            )
        if subscription.enabled and subscription.tables_not_ready:
            yield info(
                name,
                f"{counted(subscription.tables_not_ready, 'table')} {form(subscription.tables_not_ready, 'is', 'are')} "
                "still being copied",
                "wait; SELECT srrelid::pg_catalog.regclass, srsubstate FROM pg_catalog.pg_subscription_rel shows them",
            )
