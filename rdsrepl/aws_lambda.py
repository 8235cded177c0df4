"""A Lambda function that streams a slot to Kinesis until its timeout: ``rdsrepl.aws_lambda.handler``.

Invoke it on a schedule. PostgreSQL allows one connection at a time to stream a slot, so overlapping runs do no harm:
the second one reports that the slot is busy, and ends. What was not acknowledged before the end of a run is not
confirmed, and the next run delivers it.

The keys below are read from the event or from environment variables (``slot`` from ``RDSREPL_SLOT``); the event has
precedence::

    slot              the slot (required)
    to                kinesis:STREAM, a name or an ARN (required)
    publications      names, comma-separated or a list; optional if the database has only one (pgoutput)
    tables            patterns of the tables to stream
    format            json (default), debezium, wal2json
    partition_by      key (default), table, transaction, or a column's name
    aggregate         true: send waiting changes of one shard as one record
    linger, requests, oversize
                      as in ``rdsrepl slot tail --help``
    debezium_keys, debezium_time, debezium_decimal, debezium_binary, debezium_interval, debezium_hstore,
    debezium_placeholder
                      of the format debezium (``rdsrepl slot tail --help``)
    accept_gap, allow_missing_publication
                      true: continue although changes are missing (``rdsrepl slot tail --help``)
    idle_exit         end after this long without a change; by default the run lasts until its margin
    margin            how long before the function's timeout the run stops; by default 10s
    target            of a config file in the function's package (its path in RDSREPL_CONFIG)
    cluster, instance, region, secret, auth, endpoint_url
                      the database, as in a target
    host, port, dbname, user, sslmode, sslrootcert
                      libpq's parameters; never a password

``rdsrepl.aws_lambda.sync`` makes one pass over slot pairs, as ``rdsrepl slot sync`` does; invoke it every minute. Two
passes at the same time do no harm. Its keys, besides those of the database::

    with              the other server: a target, or a DB instance of the same account (required)
    slots             names, comma-separated or a list; by default all logical slots of both servers
    leader            here, or there (the server of ``with``); by default the primary
    max_repeat        a pair whose failover repeats more WAL is behind; by default 64MB
    nudge             true: write a small message, so that a pair of an idle database becomes ready
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Protocol

from rdsrepl import config
from rdsrepl.config import Aws, Target
from rdsrepl.errors import BadValue, Refused, SlotActive
from rdsrepl.render import document, log
from rdsrepl.tail import run
from rdsrepl.tail.formats.debezium_options import debezium_options
from rdsrepl.tail.model import TableFilter
from rdsrepl.tail.options import FormatName, KinesisOptions, StopConditions, TailOptions, stream_name
from rdsrepl.tail.progress import Progress
from rdsrepl.text.counts import counted
from rdsrepl.units import parse_boolean, parse_duration, parse_size

if TYPE_CHECKING:
    from rdsrepl.slot_sync.passes import PairOptions

_AWS: Final = ("cluster", "instance", "region", "secret", "auth", "endpoint_url")
_LIBPQ: Final = ("host", "port", "dbname", "user", "sslmode", "sslrootcert")
_DEBEZIUM: Final = ("time", "decimal", "binary", "interval", "hstore", "placeholder")
_OWN: Final = (
    "slot", "to", "publications", "tables", "format", "partition_by", "aggregate", "linger", "requests", "oversize",
    "accept_gap", "allow_missing_publication", "idle_exit", "margin", "target",
    "debezium_keys", *(f"debezium_{name}" for name in _DEBEZIUM),
)  # fmt: skip
KEYS: Final = (*_OWN, *_AWS, *_LIBPQ)
SYNC_KEYS: Final = ("with", "slots", "leader", "max_repeat", "nudge", "target", *_AWS, *_LIBPQ)
_SYNC_MARGIN_SECONDS: Final = 2.0
MARGIN_SECONDS: Final = 10.0
_MIN_RUN_SECONDS: Final = 1.0
# The run before may be about to end; if it does not end in this time, the next run on the schedule streams.
_ACTIVE_WAIT_SECONDS: Final = 5.0
_MAX_REQUESTS: Final = 64
_OVERSIZE: Final = ("fail", "drop-columns")


class Context(Protocol):
    """The context object that Lambda passes."""

    def get_remaining_time_in_millis(self) -> int:
        """Return the time until the function's timeout, in milliseconds."""
        ...


def handler(event: Mapping[str, Any] | None, context: Context) -> dict[str, Any]:
    """Stream until shortly before the function's timeout; return the result.

    Returns:
        ``status`` (``done``, or ``busy`` if another run uses the slot), ``slot``, ``reason``; for a run that is
        done also ``changes``, ``records``, ``retries``, ``throttles``, ``received_bytes``, ``confirmed_lsn``,
        ``undelivered`` (whether something received was not acknowledged in time), ``reconnects``, ``seconds``.

    Raises:
        Error: the event is not valid, or streaming failed; Lambda counts the run as failed.
    """
    given = _given(event or {}, KEYS, required=("slot", "to"))
    margin = _seconds(given, "margin", MARGIN_SECONDS)
    allowed = context.get_remaining_time_in_millis() / 1000 - margin
    if allowed < _MIN_RUN_SECONDS:
        raise BadValue(
            f"the function may run for {allowed + margin:.1f}s, of which {margin:g}s are its margin: no time is left",
            hint="increase the function's timeout (up to 15 minutes), or set a smaller margin",
        )
    options = _options(given, allowed, margin)
    observer = _Observer()
    try:
        tailed = run.run(_target(given), options, observer)
    except SlotActive as exc:
        log("warning", exc.message, event="busy", slot=options.slot_name)
        return {"status": "busy", "slot": options.slot_name, "reason": exc.message}
    summary, counts = tailed.summary, tailed.counts
    progress = summary.progress
    result = {
        "status": "done",
        "slot": options.slot_name,
        "reason": summary.reason,
        "changes": progress.changes,
        "records": counts.records if counts else 0,
        "retries": counts.retries if counts else 0,
        "throttles": counts.throttles if counts else 0,
        "received_bytes": progress.received_bytes,
        "confirmed_lsn": document(progress.confirmed_lsn),
        "undelivered": progress.pending_bytes > 0,
        "reconnects": progress.reconnects,
        "seconds": round(progress.seconds, 3),
    }
    log("info", f"slot {options.slot_name}: {summary.reason}", event="result", **result)
    return result


def sync(event: Mapping[str, Any] | None, context: Context) -> dict[str, Any]:
    """Make one pass over slot pairs; return their states.

    Returns:
        ``status`` (``ready``, or ``warning`` if a pair is pending or behind), and ``pairs``, as ``slot pairs -o json``
        prints them.

    Raises:
        Refused: a pair is missing, lost or broken, so that an alarm on the function's errors reports it.
        Error: the event is not valid, or a server does not answer.
    """
    from rdsrepl.failover import slot_pairs
    from rdsrepl.failover.slot_pairs import PairReport
    from rdsrepl.slot_sync.passes import PairSynchronizer, require_no_cluster

    given = _given(event or {}, SYNC_KEYS, required=("with",))
    here = _target(given)
    there = _other_target(here, str(given["with"]))
    for target in (here, there):
        require_no_cluster(target)
    allowed = context.get_remaining_time_in_millis() / 1000 - _SYNC_MARGIN_SECONDS
    with PairSynchronizer(here, there, _pair_options(given, max(allowed, _MIN_RUN_SECONDS))) as synchronizer:
        pairs = synchronizer.run()
        if _bool(given, "nudge"):
            synchronizer.nudge_pending(pairs)
    reports = document([PairReport.of(pair) for pair in pairs])
    rank = slot_pairs.worst(pairs)
    log("info" if rank == 0 else "warning", slot_pairs.summary(pairs), event="pass", pairs=reports)
    if rank > 1:
        bad = [f"{pair.slot_name} {pair.state}: {pair.reason}" for pair in pairs if pair.rank > 1]
        raise Refused("; ".join(bad), hint="see: rdsrepl help slot-pairs")
    return {"status": "ready" if rank == 0 else "warning", "pairs": reports}


def _pair_options(given: Mapping[str, Any], answer_seconds: float) -> PairOptions:
    from rdsrepl.failover.slot_pairs import MAX_REPEAT_BYTES
    from rdsrepl.slot_sync.passes import PairOptions

    leader = given.get("leader")
    if leader not in (None, "here", "there"):
        raise BadValue(f"{_name('leader')} {leader!r} is not a server", hint="here or there")
    size = given.get("max_repeat")
    return PairOptions(
        _names(given, "slots"),
        leader,
        MAX_REPEAT_BYTES if size is None else parse_size(str(size)),
        answer_seconds,
    )


def _other_target(own: Target, name: str) -> Target:
    from rdsrepl.aws import locations

    if name in config.load().targets or not own.aws.identifier:
        return locations.with_rds_lookup(config.resolve(dsn=None, target=name))
    return locations.instance_with_login_of(own, name)


class _Observer:
    """Writes the function's log: one JSON object a line."""

    _EVERY_SECONDS: Final = 30.0

    def __init__(self) -> None:
        self._last_at = time.monotonic()

    def note(self, text: str) -> None:
        log("info", text, event="note")

    def warn(self, text: str) -> None:
        log("warning", text, event="warning")

    def progress(self, progress: Progress) -> None:
        now = time.monotonic()
        if now - self._last_at >= self._EVERY_SECONDS:
            self._last_at = now
            log("info", counted(progress.changes, "change"), event="progress", **document(progress))


def _given(event: Mapping[str, Any], keys: Sequence[str], *, required: Sequence[str]) -> dict[str, Any]:
    """Return the values of the environment, replaced by those of the event.

    Raises:
        BadValue: a key is unknown, a value is not a string, number, boolean or list of strings, or a required key is
            missing.
    """
    for key, value in event.items():
        if key not in keys:
            raise BadValue(f"the event has an unknown key {key!r}", hint=f"valid keys: {', '.join(keys)}")
        plain = isinstance(value, str | bool | int | float)
        if not plain and not (isinstance(value, list) and all(isinstance(item, str) for item in value)):
            raise BadValue(f"the event's {key} is not a string, a number, a boolean or a list of strings", hint=_HELP)
    environment = {key: os.environ[name] for key in keys if (name := f"RDSREPL_{key.upper()}") in os.environ}
    given = {**environment, **event}
    for key in required:
        if not given.get(key):
            raise BadValue(f"{key} is missing", hint=f"set {key} in the event, or RDSREPL_{key.upper()}")
    return given


_HELP: Final = "the documentation of rdsrepl.aws_lambda lists all keys"


def _options(given: Mapping[str, Any], allowed: float, margin: float) -> TailOptions:
    """Return what is wanted of the run.

    Args:
        given: the event and the environment.
        allowed: how long the run may take, in seconds.
        margin: how much of the function's time is reserved for its end, in seconds.

    Raises:
        BadValue: a value is not valid, or two do not fit each other.
    """
    format_name = str(given.get("format", "json")).lower()
    if format_name not in {one.value for one in FormatName}:
        raise BadValue(f"{_name('format')} {format_name!r} is not a format", hint="json, debezium or wal2json")
    form = FormatName(format_name)
    debezium = {name: None if (value := given.get(f"debezium_{name}")) is None else str(value) for name in _DEBEZIUM}
    return TailOptions(
        slot_name=str(given["slot"]),
        format=form,
        publications=_names(given, "publications"),
        tables=TableFilter(_names(given, "tables")),
        stop=StopConditions(
            duration_seconds=allowed, idle_seconds=_seconds(given, "idle_exit", None), drain_seconds=margin / 2
        ),
        active_wait_seconds=_ACTIVE_WAIT_SECONDS,
        kinesis=_kinesis(given, form),
        accept_gap=_bool(given, "accept_gap"),
        allow_missing_publication=_bool(given, "allow_missing_publication"),
        debezium=debezium_options(
            _name,
            is_debezium=form is FormatName.debezium,
            keys=_bool(given, "debezium_keys") or None,
            **debezium,
        ),
    )


def _kinesis(given: Mapping[str, Any], format: FormatName) -> KinesisOptions:
    stream = stream_name(str(given["to"]), _name)
    if stream is None:
        raise BadValue(
            f"{_name('to')}: a function has no standard output and no file to stream to", hint="to: kinesis:STREAM"
        )
    chosen = {key: given[key] for key in ("partition_by", "requests", "oversize") if given.get(key) is not None}
    requests, oversize = chosen.get("requests", 1), str(chosen.get("oversize", "fail")).lower()
    if not (str(requests).isdigit() and 1 <= int(requests) <= _MAX_REQUESTS):
        raise BadValue(
            f"{_name('requests')} {requests!r} is not between 1 and {_MAX_REQUESTS}", hint="4 is the default"
        )
    if oversize not in _OVERSIZE:
        raise BadValue(f"{_name('oversize')} {oversize!r} is not a policy", hint=" or ".join(_OVERSIZE))
    if "oversize" in chosen:
        chosen["oversize"] = oversize
    if "requests" in chosen:
        chosen["requests"] = int(requests)
    if (linger := _seconds(given, "linger", None)) is not None:
        chosen["linger_seconds"] = linger
    options = KinesisOptions(stream, aggregate=_bool(given, "aggregate"), **chosen)
    options.check(format, _name)
    return options


def _name(key: str) -> str:
    """Return a key as errors name it, with its environment variable."""
    return f"{key} (RDSREPL_{key.upper()})"


def _target(given: Mapping[str, Any]) -> Target:
    """Return the database; its password comes from a secret, an IAM token or libpq's own means."""
    target = config.resolve(
        dsn=None,
        target=given.get("target"),
        aws=Aws(**{key: str(given[key]) for key in _AWS if given.get(key)}),
    )
    keywords = {key: str(given[key]) for key in _LIBPQ if given.get(key)}
    target = replace(target, keywords={**target.keywords, **keywords})
    from rdsrepl.aws import locations

    return locations.with_rds_lookup(target)


def _names(given: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = given.get(key, ())
    names = value.split(",") if isinstance(value, str) else value
    return tuple(stripped for name in names if (stripped := str(name).strip()))


def _bool(given: Mapping[str, Any], key: str) -> bool:
    value = given.get(key, False)
    if isinstance(value, bool):
        return value
    boolean = False if value == "" else parse_boolean(str(value))
    if boolean is None:
        raise BadValue(f"{key}: {value!r} is not a boolean", hint="write true or false")
    return boolean


def _seconds(given: Mapping[str, Any], key: str, default: float | None) -> Any:
    value = given.get(key)
    if value is None:
        return default
    try:
        return parse_duration(str(value))
    except BadValue as exc:
        raise BadValue(f"{_name(key)}: {exc.message}", hint=exc.hint) from None
