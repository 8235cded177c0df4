"""The engine default parameters of every family: what a parameter group can hold, and what RDS sets itself.

A value of None is PostgreSQL's own default: RDS lists such a parameter without a value, its source ``engine-default``.
What RDS gives a value to, or keeps for itself, has the source ``system``. Values are in PostgreSQL's base units, as
RDS has them: ``max_slot_wal_keep_size`` in MB, ``wal_sender_timeout`` in ms, ``shared_buffers`` in blocks of 8 kB.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from functools import cache
from types import MappingProxyType
from typing import Any, Final, Literal

from rdsrepl.sandbox.api.types import ApplyType, ResourceKind

MAJORS: Final = range(13, 19)
Engine = Literal["postgres", "aurora-postgresql"]
DataType = Literal["integer", "boolean", "string", "float", "list"]

_MAX: Final = 2147483647
_RANGE: Final = re.compile(r"(-?\d*\.?\d+(?:e\+?\d+)?)-(-?\d*\.?\d+(?:e\+?\d+)?)")


@dataclass(frozen=True, slots=True)
class EngineParameter:
    """One parameter of one family, as RDS describes it.

    Attributes:
        value: RDS's default, a formula at times; None is PostgreSQL's own.
        allowed_values: ``5-262143``, ``0,1``; None is anything.
        minimum_engine_version: the first release of the family that has it, where it is not the first of all.
    """

    name: str
    value: str | None
    apply_type: ApplyType
    data_type: DataType
    allowed_values: str | None
    is_modifiable: bool
    description: str
    minimum_engine_version: str | None = None

    @property
    def source(self) -> str:
        """Who gave it its value, while nobody has changed it."""
        return "engine-default" if self.value is None and self.is_modifiable else "system"

    def allows(self, value: str) -> bool:
        """Say whether VALUE is one of the allowed; formulas are not looked at here."""
        if self.data_type in ("integer", "float"):
            return self._allows_number(value)
        if self.allowed_values is None:
            return True
        allowed = self.allowed_values.split(",")
        if self.data_type == "list":
            return all(item.strip() in allowed for item in value.split(",")) if value else True
        return value in allowed

    def _allows_number(self, text: str) -> bool:
        try:
            number = Decimal(text.strip())
        except InvalidOperation:
            return False
        if not number.is_finite() or (self.data_type == "integer" and not re.fullmatch(r"-?\d+", text.strip())):
            return False
        for piece in (self.allowed_values or "").split(","):
            bounds = _RANGE.fullmatch(piece)
            low, high = bounds.groups() if bounds is not None else (piece, piece)
            if not piece or Decimal(low) <= number <= Decimal(high):
                return True
        return False


@cache
def defaults(engine: Engine, major: int, kind: ResourceKind) -> Mapping[str, EngineParameter]:
    """Return what groups of a family hold, by name and in its order.

    The groups of RDS's families hold the same in both kinds. Of Aurora's the cluster's hold everything, the instance's
    what may differ from instance to instance.
    """
    chosen = (_parameter(row, engine, major) for row in _rows() if _applies(row, engine, major, kind))
    return MappingProxyType({made.name: made for made in sorted(chosen, key=lambda made: made.name)})


@dataclass(frozen=True, slots=True)
class _Row:
    name: str
    apply_type: ApplyType
    data_type: DataType
    allowed: str | None
    description: str
    # Values: of both engines; of one of them, which counts more.
    value: str | None = None
    rds: str | None = None
    aurora: str | None = None
    since: int = 13
    until: int = 99
    only: Engine | None = None
    # In Aurora's cluster groups alone.
    cluster: bool = False
    fixed: bool = False
    # By major version: the first release that has it.
    minimum: Mapping[int, str] = field(default_factory=dict)


def _applies(row: _Row, engine: Engine, major: int, kind: ResourceKind) -> bool:
    if not row.since <= major <= row.until or row.only not in (None, engine):
        return False
    return not (engine == "aurora-postgresql" and kind == "instance" and row.cluster)


def _parameter(row: _Row, engine: Engine, major: int) -> EngineParameter:
    special = row.aurora if engine == "aurora-postgresql" else row.rds
    return EngineParameter(
        name=row.name,
        value=special if special is not None else row.value,
        apply_type=row.apply_type,
        data_type=row.data_type,
        allowed_values=row.allowed,
        is_modifiable=not row.fixed,
        description=row.description,
        minimum_engine_version=row.minimum.get(major),
    )


def _rows() -> Iterator[_Row]:
    yield from _replication()
    yield from _limits()
    yield from _memory()
    yield from _wal()
    yield from _vacuum()
    yield from _planner()
    yield from _clients()
    yield from _logging()
    yield from _rds_parameters()
    yield from _reserved()


def _integer(name: str, apply_type: ApplyType, low: int, high: int, description: str, **other: Any) -> _Row:
    return _Row(name, apply_type, "integer", f"{low}-{high}", description, **other)


def _float(name: str, apply_type: ApplyType, low: str, high: str, description: str, **other: Any) -> _Row:
    return _Row(name, apply_type, "float", f"{low}-{high}", description, **other)


def _boolean(name: str, apply_type: ApplyType, description: str, **other: Any) -> _Row:
    return _Row(name, apply_type, "boolean", "0,1", description, **other)


def _string(name: str, apply_type: ApplyType, allowed: str | None, description: str, **other: Any) -> _Row:
    return _Row(name, apply_type, "string", allowed, description, **other)


def _list(name: str, apply_type: ApplyType, allowed: str | None, description: str, **other: Any) -> _Row:
    return _Row(name, apply_type, "list", allowed, description, **other)


def _replication() -> Iterator[_Row]:
    yield _boolean("rds.logical_replication", "static", "Switches logical replication on.", value="0", cluster=True)
    yield _integer(
        "max_replication_slots", "static", 5, 262143, "How many slots there may be.", value="20", cluster=True
    )
    for low, high, senders in ((13, 15, "20"), (16, 99, "35")):
        yield _integer(
            "max_wal_senders",
            "static",
            5,
            262143,
            "How many WAL senders may run.",
            rds=senders,
            aurora="10",
            since=low,
            until=high,
            cluster=True,
        )
    yield _integer(
        "max_logical_replication_workers", "static", 0, 262143, "How many workers subscriptions share.", cluster=True
    )
    yield _integer(
        "max_sync_workers_per_subscription",
        "dynamic",
        0,
        262143,
        "How many tables a subscription copies at once.",
        cluster=True,
    )
    yield _integer(
        "max_parallel_apply_workers_per_subscription",
        "dynamic",
        0,
        1024,
        "How many workers apply the open transactions of a subscription.",
        since=16,
        cluster=True,
    )
    yield _integer(
        "wal_sender_timeout",
        "dynamic",
        0,
        3600000,
        "(ms) When a silent receiver is given up.",
        value="30000",
        cluster=True,
    )
    yield _integer(
        "wal_receiver_timeout",
        "dynamic",
        0,
        3600000,
        "(ms) When a silent sender is given up.",
        value="30000",
        cluster=True,
    )
    yield _integer(
        "wal_receiver_status_interval",
        "dynamic",
        0,
        2147483,
        "(s) How often a receiver reports its position.",
        fixed=True,
        cluster=True,
    )
    yield _integer(
        "wal_retrieve_retry_interval", "dynamic", 1, _MAX, "(ms) How long to wait before WAL is asked for again."
    )
    yield _integer("max_slot_wal_keep_size", "dynamic", -1, _MAX, "(MB) How much WAL slots may hold back.")
    yield _integer("wal_keep_size", "dynamic", 0, _MAX, "(MB) WAL kept for standbys.", rds="2048", only="postgres")
    yield _integer("logical_decoding_work_mem", "dynamic", 64, _MAX, "(kB) Memory of one decoding before it spills.")
    yield _boolean("hot_standby_feedback", "dynamic", "Standbys report their oldest snapshot.", aurora="1")
    yield _integer(
        "max_standby_streaming_delay", "dynamic", -1, _MAX, "(ms) How long replay waits for queries.", rds="30000"
    )
    yield _integer(
        "max_standby_archive_delay", "dynamic", -1, _MAX, "(ms) How long replay of archived WAL waits.", rds="30000"
    )
    yield _integer(
        "recovery_min_apply_delay",
        "dynamic",
        0,
        86400000,
        "(ms) How far a replica stays behind on purpose.",
        since=14,
        only="postgres",
        minimum={14: "14.19", 15: "15.14", 16: "16.10", 17: "17.6"},
    )
    yield _boolean("track_commit_timestamp", "static", "Keeps the time of every commit.", cluster=True)
    yield _boolean(
        "sync_replication_slots",
        "dynamic",
        "A replica copies the failover slots of its primary.",
        rds="0",
        since=17,
        only="postgres",
    )
    yield _string(
        "synchronized_standby_slots",
        "dynamic",
        None,
        "Physical slots that logical ones wait for.",
        since=17,
        only="postgres",
    )
    yield _string(
        "rds.logical_slot_sync_dbname",
        "dynamic",
        None,
        "The database a replica connects to in order to copy slots.",
        rds="postgres",
        since=17,
        only="postgres",
    )
    yield _integer(
        "idle_replication_slot_timeout",
        "dynamic",
        0,
        _MAX,
        "(s) When a slot nobody uses is invalidated.",
        since=18,
        cluster=True,
    )
    yield _integer(
        "max_active_replication_origins",
        "static",
        0,
        262143,
        "How many replication origins there may be.",
        value="20",
        since=18,
        cluster=True,
    )
    yield _integer(
        "rds.logical_wal_cache",
        "static",
        -1,
        262143,
        "(8kB) Cache of the WAL that is decoded.",
        only="aurora-postgresql",
        cluster=True,
        minimum={13: "13.8", 14: "14.5"},
    )
    yield _integer(
        "rds.logical_decoding_work_disk",
        "dynamic",
        0,
        _MAX,
        "(kB) Local storage that one decoding may spill to.",
        since=14,
        only="aurora-postgresql",
        cluster=True,
        minimum={14: "14.7"},
    )
    yield _boolean(
        "rds.logically_replicate_unlogged_tables",
        "static",
        "Unlogged tables are replicated as well.",
        value="0",
        only="aurora-postgresql",
        since=14,
        cluster=True,
    )
    for name, value in (
        ("aurora.enhanced_logical_replication", "0"),
        ("aurora.logical_replication_backup", "1"),
        ("aurora.logical_replication_globaldb", "1"),
    ):
        yield _boolean(
            name,
            "static",
            "How the storage layer logs for decoding.",
            value=value,
            only="aurora-postgresql",
            cluster=True,
        )
    yield _boolean(
        "rds.iam_auth_for_replication",
        "dynamic",
        "Replication connections may log in with IAM tokens.",
        value="0",
        cluster=True,
    )
    yield _boolean(
        "rds.run_logical_replication_as_subscription_owner",
        "dynamic",
        "Apply workers act as the subscription's owner.",
        since=15,
        only="postgres",
        minimum={15: "15.5"},
    )


def _limits() -> Iterator[_Row]:
    yield _integer(
        "max_connections",
        "static",
        6,
        262143,
        "How many connections there may be.",
        value="LEAST({DBInstanceClassMemory/9531392},5000)",
    )
    yield _integer(
        "max_worker_processes",
        "static",
        0,
        262143,
        "How many background processes there may be.",
        rds="GREATEST({DBInstanceVCPU*2},8)",
        aurora="GREATEST(${DBInstanceVCPU*2},8)",
    )
    yield _integer(
        "max_parallel_workers",
        "dynamic",
        0,
        1024,
        "How many workers queries share.",
        rds="GREATEST({DBInstanceVCPU/2},8)",
        aurora="GREATEST(${DBInstanceVCPU/2},8)",
    )
    yield _integer("max_parallel_workers_per_gather", "dynamic", 0, 1024, "How many workers one query node may have.")
    yield _integer(
        "max_parallel_maintenance_workers", "dynamic", 0, 1024, "How many workers one maintenance command may have."
    )
    yield _integer("max_prepared_transactions", "static", 0, 262143, "How many may be prepared at once.", value="0")
    yield _integer("max_locks_per_transaction", "static", 10, _MAX, "Average locks a transaction holds.", value="64")
    yield _integer("max_pred_locks_per_transaction", "static", 10, _MAX, "Average predicate locks a transaction holds.")
    yield _integer("max_files_per_process", "static", 64, _MAX, "How many files a process may open.")
    yield _integer("track_activity_query_size", "static", 100, 1048576, "(B) Length of a shown query.", value="4096")
    yield _integer("temp_file_limit", "dynamic", -1, _MAX, "(kB) Temporary files of one process.")
    yield _list(
        "shared_preload_libraries",
        "static",
        "auto_explain,orafce,pgaudit,pg_bigm,pg_cron,pg_hint_plan,pg_partman_bgw,pg_prewarm,pg_similarity,"
        "pg_stat_statements,pg_tle,pg_transport,pglogical,plprofiler,plrust,pgactive,wal2json",
        "Libraries loaded at the start.",
        rds="pg_stat_statements",
        aurora="pg_stat_statements",
    )


def _memory() -> Iterator[_Row]:
    yield _integer(
        "shared_buffers",
        "static",
        16,
        1073741823,
        "(8kB) Buffers all processes share.",
        rds="{DBInstanceClassMemory/32768}",
        aurora="SUM({DBInstanceClassMemory/12038},-50003)",
    )
    yield _integer(
        "effective_cache_size",
        "dynamic",
        1,
        _MAX,
        "(8kB) Cache the planner counts on.",
        rds="{DBInstanceClassMemory/16384}",
        aurora="SUM({DBInstanceClassMemory/12038},-50003)",
    )
    yield _integer("work_mem", "dynamic", 64, _MAX, "(kB) Memory of one sort or hash.")
    yield _integer(
        "maintenance_work_mem",
        "dynamic",
        1024,
        _MAX,
        "(kB) Memory of one maintenance command.",
        value="GREATEST({DBInstanceClassMemory*1024/63963136},65536)",
    )
    yield _integer(
        "autovacuum_work_mem",
        "dynamic",
        -1,
        _MAX,
        "(kB) Memory of one autovacuum worker.",
        value="GREATEST({DBInstanceClassMemory/32768},131072)",
    )
    yield _integer("temp_buffers", "dynamic", 100, 1073741823, "(8kB) Buffers of one session's temporary tables.")


def _wal() -> Iterator[_Row]:
    yield _integer("max_wal_size", "dynamic", 2, _MAX, "(MB) WAL between checkpoints.", rds="2048")
    yield _integer("min_wal_size", "dynamic", 2, _MAX, "(MB) WAL kept for reuse.", rds="192")
    yield _integer("checkpoint_timeout", "dynamic", 30, 86400, "(s) Time between checkpoints.")
    yield _float("checkpoint_completion_target", "dynamic", "0", "1", "Share of that time to write in.", rds="0.9")
    yield _integer("checkpoint_warning", "dynamic", 0, _MAX, "(s) Warns when WAL forces checkpoints more often.")
    yield _integer("wal_buffers", "static", -1, 262143, "(8kB) Buffers for WAL.")
    yield _integer("wal_writer_delay", "dynamic", 1, 10000, "(ms) Pause between two flushes of the WAL writer.")
    yield _integer("commit_delay", "dynamic", 0, 100000, "(us) Wait for other commits before a flush.")
    yield _boolean("wal_compression", "dynamic", "Compresses full pages in WAL.", rds="1", until=14)
    yield _string(
        "wal_compression", "dynamic", "off,on,pglz,lz4,zstd", "Compresses full pages in WAL.", rds="zstd", since=15
    )
    yield _string("synchronous_commit", "dynamic", "local,on,off,remote_write,remote_apply", "What a commit waits for.")


def _vacuum() -> Iterator[_Row]:
    yield _boolean("autovacuum", "dynamic", "Vacuums by itself.", value="1")
    workers = "GREATEST({DBInstanceClassMemory/64371566592},3)"
    for apply_type, low, high in (("static", 13, 17), ("dynamic", 18, 99)):
        yield _Row(
            "autovacuum_max_workers",
            "static" if apply_type == "static" else "dynamic",
            "integer",
            "1-262143",
            "How many autovacuum workers may run.",
            value=workers,
            since=low,
            until=high,
        )
    yield _integer(
        "autovacuum_worker_slots",
        "static",
        1,
        262143,
        "The most that autovacuum_max_workers may be.",
        value="LEAST(GREATEST({DBInstanceClassMemory/32185783296},16),32)",
        since=18,
    )
    yield _integer("autovacuum_naptime", "dynamic", 1, 2147483, "(s) Pause between two rounds.", value="15")
    yield _float("autovacuum_vacuum_cost_delay", "dynamic", "-1", "100", "(ms) Rest after a share.", value="2")
    yield _integer(
        "autovacuum_vacuum_cost_limit",
        "dynamic",
        -1,
        10000,
        "Work before a rest.",
        value="GREATEST({log(DBInstanceClassMemory/21474836480)*600},200)",
    )
    yield _float("autovacuum_vacuum_scale_factor", "dynamic", "0", "100", "Share of dead rows.", value="0.1")
    yield _float("autovacuum_analyze_scale_factor", "dynamic", "0", "100", "Share of changed rows.", value="0.05")
    yield _integer("autovacuum_vacuum_threshold", "dynamic", 0, _MAX, "Dead rows before a table is vacuumed.")
    yield _integer("autovacuum_freeze_max_age", "static", 100000, 2000000000, "Age that forces a vacuum.")
    yield _integer("autovacuum_multixact_freeze_max_age", "static", 10000, 2000000000, "Age that forces a vacuum.")
    yield _float("vacuum_cost_delay", "dynamic", "0", "100", "(ms) Rest of a manual vacuum.")
    yield _integer("vacuum_cost_limit", "dynamic", 1, 10000, "Work of a manual vacuum before a rest.")


def _planner() -> Iterator[_Row]:
    yield _float("random_page_cost", "dynamic", "0", "1.79769e+308", "Cost of a page read anywhere.")
    yield _float("seq_page_cost", "dynamic", "0", "1.79769e+308", "Cost of a page read in order.")
    yield _integer("effective_io_concurrency", "dynamic", 0, 1000, "Reads the storage takes at once.")
    yield _integer("default_statistics_target", "dynamic", 1, 10000, "How finely values are counted.")
    yield _boolean("jit", "dynamic", "Compiles expressions.")
    yield _integer("bgwriter_delay", "dynamic", 10, 10000, "(ms) Pause between two rounds of the background writer.")
    yield _boolean("synchronize_seqscans", "dynamic", "Scans of a table go together.")


def _clients() -> Iterator[_Row]:
    yield _integer("statement_timeout", "dynamic", 0, _MAX, "(ms) The longest a statement may take.")
    yield _integer("lock_timeout", "dynamic", 0, _MAX, "(ms) The longest to wait for a lock.")
    yield _integer("deadlock_timeout", "dynamic", 1, _MAX, "(ms) When a wait is checked for a deadlock.")
    yield _integer(
        "idle_in_transaction_session_timeout",
        "dynamic",
        0,
        _MAX,
        "(ms) The longest to idle in a transaction.",
        value="86400000",
    )
    yield _integer("idle_session_timeout", "dynamic", 0, _MAX, "(ms) The longest to idle.", since=14)
    yield _integer("tcp_keepalives_idle", "dynamic", 0, _MAX, "(s) Silence before a probe.", value="300")
    yield _integer("tcp_keepalives_interval", "dynamic", 0, _MAX, "(s) Time between two probes.", value="30")
    yield _integer("tcp_keepalives_count", "dynamic", 0, _MAX, "Probes before a connection is given up.", value="2")
    yield _integer("tcp_user_timeout", "dynamic", 0, _MAX, "(ms) How long sent data may stay unacknowledged.")
    yield _integer("client_connection_check_interval", "dynamic", 0, _MAX, "(ms) How often to look.", since=14)
    yield _string("timezone", "dynamic", None, "The time zone of timestamps shown and read.", value="UTC")
    yield _string("search_path", "dynamic", None, "Schemas that are searched.")
    yield _string("client_encoding", "dynamic", None, "The client's character set.")
    yield _string("password_encryption", "dynamic", "md5,scram-sha-256", "How passwords are kept.", until=13)
    yield _string(
        "password_encryption", "dynamic", "md5,scram-sha-256", "How passwords are kept.", rds="scram-sha-256", since=14
    )
    yield _boolean("row_security", "dynamic", "Row security policies hold.")


def _logging() -> Iterator[_Row]:
    yield _boolean("log_connections", "dynamic", "Logs connections.", until=17)
    yield _list(
        "log_connections",
        "dynamic",
        "on,off,receipt,authentication,authorization,setup_durations,all",
        "Logs connections.",
        since=18,
    )
    yield _boolean("log_disconnections", "dynamic", "Logs the end of connections.")
    yield _boolean("log_checkpoints", "dynamic", "Logs checkpoints.", value="1")
    yield _boolean("log_lock_waits", "dynamic", "Logs long waits for locks.")
    yield _boolean("log_replication_commands", "dynamic", "Logs replication commands.", cluster=True)
    yield _string("log_statement", "dynamic", "none,ddl,mod,all", "Which statements are logged.")
    yield _string(
        "log_min_messages",
        "dynamic",
        "debug5,debug4,debug3,debug2,debug1,info,notice,warning,error,log,fatal,panic",
        "The least that is logged.",
    )
    yield _integer("log_min_duration_statement", "dynamic", -1, _MAX, "(ms) Logs statements that take as long.")
    yield _integer("log_autovacuum_min_duration", "dynamic", -1, _MAX, "(ms) Logs autovacuums.", value="10000")
    yield _integer("log_temp_files", "dynamic", -1, _MAX, "(kB) Logs temporary files of that size.")
    yield _boolean("track_io_timing", "dynamic", "Measures reads and writes.", value="1")
    yield _string("track_functions", "dynamic", "none,pl,all", "Which functions are counted.", value="pl")
    yield _string("pg_stat_statements.track", "dynamic", "none,top,all", "Which statements are counted.", value="top")
    yield _string("pgaudit.log", "dynamic", None, "Classes of statements that are audited.")


def _rds_parameters() -> Iterator[_Row]:
    for engine, first in (("postgres", 15), ("aurora-postgresql", 17)):
        for low, high, value in ((13, first - 1, "0"), (first, 99, "1")):
            yield _Row(
                "rds.force_ssl",
                "dynamic",
                "boolean",
                "0,1",
                "Connections without SSL are refused.",
                value=value,
                since=low,
                until=high,
                only="postgres" if engine == "postgres" else "aurora-postgresql",
                cluster=True,
            )
    yield _boolean(
        "rds.enable_plan_management", "static", "Plans are managed.", value="0", only="aurora-postgresql", cluster=True
    )
    yield _integer("rds.log_retention_period", "dynamic", 1440, 10080, "(min) How long logs are kept.", value="4320")
    yield _string(
        "rds.force_autovacuum_logging_level",
        "dynamic",
        "disabled,debug5,debug4,debug3,debug2,debug1,info,notice,warning,error,log,fatal,panic",
        "The least an autovacuum worker logs.",
        value="warning",
    )
    yield _boolean("rds.restrict_password_commands", "static", "Only rds_password may set passwords.", cluster=True)
    yield _string(
        "rds.custom_dns_resolution",
        "static",
        "0,1",
        "Names are resolved by the network's own servers.",
        only="postgres",
        value="0",
    )


def _reserved() -> Iterator[_Row]:
    # What RDS shows and keeps for itself.
    yield _string("wal_level", "static", "minimal,replica,logical", "How much WAL says.", fixed=True, cluster=True)
    yield _boolean("hot_standby", "static", "Standbys take queries.", rds="1", fixed=True)
    yield _integer("port", "static", 1150, 65535, "Where the server listens.", value="{EndPointPort}", fixed=True)
    yield _string("listen_addresses", "static", None, "Addresses the server listens on.", value="*", fixed=True)
    yield _boolean("fsync", "dynamic", "Writes reach the disk.", rds="1", fixed=True)
    yield _boolean("full_page_writes", "dynamic", "WAL has whole pages.", rds="1", fixed=True)
    yield _boolean("ssl", "static", "The server speaks SSL.", value="1", fixed=True)
    yield _string("archive_mode", "static", "off,on,always", "WAL is archived.", rds="on", fixed=True)
    yield _integer(
        "archive_timeout", "dynamic", 0, _MAX, "(s) WAL is archived at least as often.", rds="300", fixed=True
    )
    yield _integer("superuser_reserved_connections", "static", 0, 262143, "Kept for RDS.", rds="3", fixed=True)
    yield _integer("block_size", "static", 8192, 8192, "(B) The size of a block.", fixed=True)
    yield _string("server_encoding", "static", None, "The database's character set.", fixed=True)
    yield _boolean("data_checksums", "static", "Pages have checksums.", fixed=True)
    yield _string("logging_collector", "static", "0,1", "The server's log is collected.", value="1", fixed=True)
