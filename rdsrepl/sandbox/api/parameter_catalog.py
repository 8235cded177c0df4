"""The engine default parameters of every family: those a parameter group can change, and those that RDS reserves.

A value of None is the default of PostgreSQL: RDS lists such a parameter without a value and with the source
``engine-default``. A parameter to which RDS gives a value, or which it reserves, has the source ``system``. Values are
in the base units of PostgreSQL: ``max_slot_wal_keep_size`` in MB, ``wal_sender_timeout`` in ms, ``shared_buffers`` in
blocks of 8 kB.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from functools import cache
from types import MappingProxyType
from typing import Final, Literal, cast

from rdsrepl.sandbox.api.types import ApplyType, ResourceKind

MAJORS: Final = range(13, 19)
Engine = Literal["postgres", "aurora-postgresql"]
DataType = Literal["integer", "boolean", "string", "float", "list"]

_RANGE: Final = re.compile(r"(-?\d*\.?\d+(?:e\+?\d+)?)-(-?\d*\.?\d+(?:e\+?\d+)?)")


@dataclass(frozen=True, slots=True)
class EngineParameter:
    """One parameter of one family, as RDS describes it.

    Attributes:
        value: the default of RDS, which may be a formula; None is the default of PostgreSQL.
        allowed_values: ``5-262143``, ``0,1``; None allows any value.
        minimum_engine_version: the first release of the family with the parameter; None when all releases have it.
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
        """The source of the default value."""
        return "engine-default" if self.value is None and self.is_modifiable else "system"

    def allows(self, value: str) -> bool:
        """Return whether a value is allowed; the value must not be a formula."""
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
    """Return the parameters of the groups of a family, by name and in that order.

    In RDS families, groups of both kinds have the same parameters. In Aurora families, cluster groups have all
    parameters, and instance groups only those that can differ between instances.
    """
    chosen = (row.parameter(engine, major) for row in _rows() if row.applies(engine, major, kind))
    return MappingProxyType({one.name: one for one in sorted(chosen, key=lambda one: one.name)})


# One row for each parameter: name, apply type, data type, allowed values (``any``: no restriction), options and, after
# the bar, the description. The options: ``value`` is the default on both engines, ``rds`` and ``aurora`` override it;
# ``since`` and ``until`` are major versions; ``only`` is an engine; ``minimum`` lists the first releases with the
# parameter; ``cluster``: Aurora has it only in cluster groups; ``fixed``: it cannot be changed. An indented line
# continues a row.
_TABLE: Final = """
# Logical and physical replication
rds.logical_replication static boolean 0,1 value=0 cluster | Enables logical replication.
max_replication_slots static integer 5-262143 value=20 cluster | Maximum number of replication slots.
max_wal_senders static integer 5-262143 rds=20 aurora=10 until=15 cluster | Maximum number of WAL senders.
max_wal_senders static integer 5-262143 rds=35 aurora=10 since=16 cluster | Maximum number of WAL senders.
max_logical_replication_workers static integer 0-262143 cluster | Maximum number of logical replication workers.
max_sync_workers_per_subscription dynamic integer 0-262143 cluster | Maximum number of tables that a subscription
    copies in parallel.
max_parallel_apply_workers_per_subscription dynamic integer 0-1024 since=16 cluster | Maximum number of parallel apply
    workers per subscription.
wal_sender_timeout dynamic integer 0-3600000 value=30000 cluster | (ms) Timeout for a receiver that does not answer.
wal_receiver_timeout dynamic integer 0-3600000 value=30000 cluster | (ms) Timeout for a sender that does not answer.
wal_receiver_status_interval dynamic integer 0-2147483 cluster fixed | (s) Interval of the receiver's status reports.
wal_retrieve_retry_interval dynamic integer 1-2147483647 | (ms) Wait before WAL is requested again.
max_slot_wal_keep_size dynamic integer -1-2147483647 | (MB) Maximum WAL that slots retain.
wal_keep_size dynamic integer 0-2147483647 rds=2048 only=postgres | (MB) WAL kept for standbys.
logical_decoding_work_mem dynamic integer 64-2147483647 | (kB) Memory of one decoding before it spills to disk.
hot_standby_feedback dynamic boolean 0,1 aurora=1 | Standbys report their oldest snapshot.
max_standby_streaming_delay dynamic integer -1-2147483647 rds=30000 | (ms) Maximum delay of replay for queries.
max_standby_archive_delay dynamic integer -1-2147483647 rds=30000 | (ms) Maximum delay of replay of archived WAL.
recovery_min_apply_delay dynamic integer 0-86400000 since=14 only=postgres minimum=14.19,15.14,16.10,17.6 | (ms)
    Minimum delay of replay.
track_commit_timestamp static boolean 0,1 cluster | Records the time of every commit.
sync_replication_slots dynamic boolean 0,1 rds=0 since=17 only=postgres | A replica synchronizes the failover slots of
    its primary.
synchronized_standby_slots dynamic string any since=17 only=postgres | Physical slots that logical ones wait for.
rds.logical_slot_sync_dbname dynamic string any rds=postgres since=17 only=postgres | The database to which a replica
    connects to synchronize slots.
idle_replication_slot_timeout dynamic integer 0-2147483647 since=18 cluster | (s) Time after which an idle slot is
    invalidated.
max_active_replication_origins static integer 0-262143 value=20 since=18 cluster | Maximum number of replication
    origins.
rds.logical_wal_cache static integer -1-262143 only=aurora-postgresql minimum=13.8,14.5 cluster | (8kB) Cache for WAL
    that is decoded.
rds.logical_decoding_work_disk dynamic integer 0-2147483647 since=14 only=aurora-postgresql minimum=14.7 cluster |
    (kB) Local storage to which one decoding can spill.
rds.logically_replicate_unlogged_tables static boolean 0,1 value=0 since=14 only=aurora-postgresql cluster |
    Replicates unlogged tables.
aurora.enhanced_logical_replication static boolean 0,1 value=0 only=aurora-postgresql cluster | How the storage layer
    logs for decoding.
aurora.logical_replication_backup static boolean 0,1 value=1 only=aurora-postgresql cluster | How the storage layer
    logs for decoding.
aurora.logical_replication_globaldb static boolean 0,1 value=1 only=aurora-postgresql cluster | How the storage layer
    logs for decoding.
rds.iam_auth_for_replication dynamic boolean 0,1 value=0 cluster | Allows IAM tokens for replication connections.
rds.run_logical_replication_as_subscription_owner dynamic boolean 0,1 since=15 only=postgres minimum=15.5 | Apply
    workers run as the owner of the subscription.
# Limits
max_connections static integer 6-262143 value=LEAST({DBInstanceClassMemory/9531392},5000) | Maximum number of
    connections.
max_worker_processes static integer 0-262143 rds=GREATEST({DBInstanceVCPU*2},8) aurora=GREATEST(${DBInstanceVCPU*2},8)
    | Maximum number of background processes.
max_parallel_workers dynamic integer 0-1024 rds=GREATEST({DBInstanceVCPU/2},8) aurora=GREATEST(${DBInstanceVCPU/2},8)
    | Maximum number of parallel workers.
max_parallel_workers_per_gather dynamic integer 0-1024 | Maximum number of workers of one query node.
max_parallel_maintenance_workers dynamic integer 0-1024 | Maximum number of workers of one maintenance command.
max_prepared_transactions static integer 0-262143 value=0 | Maximum number of prepared transactions.
max_locks_per_transaction static integer 10-2147483647 value=64 | Average number of locks per transaction.
max_pred_locks_per_transaction static integer 10-2147483647 | Average number of predicate locks per transaction.
max_files_per_process static integer 64-2147483647 | Maximum number of open files per process.
track_activity_query_size static integer 100-1048576 value=4096 | (B) Maximum length of a query that is shown.
temp_file_limit dynamic integer -1-2147483647 | (kB) Temporary files of one process.
shared_preload_libraries static list
    auto_explain,orafce,pgaudit,pg_bigm,pg_cron,pg_hint_plan,pg_partman_bgw,pg_prewarm,pg_similarity,pg_stat_statements,
    pg_tle,pg_transport,pglogical,plprofiler,plrust,pgactive,wal2json
    rds=pg_stat_statements aurora=pg_stat_statements | Libraries that are loaded at the start.
# Memory
shared_buffers static integer 16-1073741823 rds={DBInstanceClassMemory/32768}
    aurora=SUM({DBInstanceClassMemory/12038},-50003) | (8kB) Shared buffers.
effective_cache_size dynamic integer 1-2147483647 rds={DBInstanceClassMemory/16384}
    aurora=SUM({DBInstanceClassMemory/12038},-50003) | (8kB) Cache size that the planner assumes.
work_mem dynamic integer 64-2147483647 | (kB) Memory of one sort or hash.
maintenance_work_mem dynamic integer 1024-2147483647 value=GREATEST({DBInstanceClassMemory*1024/63963136},65536) |
    (kB) Memory of one maintenance command.
autovacuum_work_mem dynamic integer -1-2147483647 value=GREATEST({DBInstanceClassMemory/32768},131072) | (kB) Memory
    of one autovacuum worker.
temp_buffers dynamic integer 100-1073741823 | (8kB) Buffers of one session's temporary tables.
# WAL and checkpoints
max_wal_size dynamic integer 2-2147483647 rds=2048 | (MB) WAL between checkpoints.
min_wal_size dynamic integer 2-2147483647 rds=192 | (MB) WAL kept for reuse.
checkpoint_timeout dynamic integer 30-86400 | (s) Time between checkpoints.
checkpoint_completion_target dynamic float 0-1 rds=0.9 | Fraction of that time for the writes.
checkpoint_warning dynamic integer 0-2147483647 | (s) Warns when WAL causes checkpoints more often.
wal_buffers static integer -1-262143 | (8kB) Buffers for WAL.
wal_writer_delay dynamic integer 1-10000 | (ms) Pause between two flushes of the WAL writer.
commit_delay dynamic integer 0-100000 | (us) Wait for other commits before a flush.
wal_compression dynamic boolean 0,1 rds=1 until=14 | Compresses full pages in WAL.
wal_compression dynamic string off,on,pglz,lz4,zstd rds=zstd since=15 | Compresses full pages in WAL.
synchronous_commit dynamic string local,on,off,remote_write,remote_apply | What a commit waits for.
# Vacuum
autovacuum dynamic boolean 0,1 value=1 | Runs autovacuum.
autovacuum_max_workers static integer 1-262143 value=GREATEST({DBInstanceClassMemory/64371566592},3) until=17 |
    Maximum number of autovacuum workers.
autovacuum_max_workers dynamic integer 1-262143 value=GREATEST({DBInstanceClassMemory/64371566592},3) since=18 |
    Maximum number of autovacuum workers.
autovacuum_worker_slots static integer 1-262143 value=LEAST(GREATEST({DBInstanceClassMemory/32185783296},16),32)
    since=18 | Upper limit of autovacuum_max_workers.
autovacuum_naptime dynamic integer 1-2147483 value=15 | (s) Pause between two runs.
autovacuum_vacuum_cost_delay dynamic float -1-100 value=2 | (ms) Pause when the cost limit is reached.
autovacuum_vacuum_cost_limit dynamic integer -1-10000 value=GREATEST({log(DBInstanceClassMemory/21474836480)*600},200)
    | Cost before a pause.
autovacuum_vacuum_scale_factor dynamic float 0-100 value=0.1 | Fraction of dead rows before a vacuum.
autovacuum_analyze_scale_factor dynamic float 0-100 value=0.05 | Fraction of changed rows before an analyze.
autovacuum_vacuum_threshold dynamic integer 0-2147483647 | Number of dead rows before a vacuum.
autovacuum_freeze_max_age static integer 100000-2000000000 | Age that forces a vacuum.
autovacuum_multixact_freeze_max_age static integer 10000-2000000000 | Age that forces a vacuum.
vacuum_cost_delay dynamic float 0-100 | (ms) Pause of a manual vacuum.
vacuum_cost_limit dynamic integer 1-10000 | Cost of a manual vacuum before a pause.
# Planner and background writer
random_page_cost dynamic float 0-1.79769e+308 | Cost of a random page read.
seq_page_cost dynamic float 0-1.79769e+308 | Cost of a sequential page read.
effective_io_concurrency dynamic integer 0-1000 | Number of concurrent reads.
default_statistics_target dynamic integer 1-10000 | Detail of the statistics.
jit dynamic boolean 0,1 | Compiles expressions.
bgwriter_delay dynamic integer 10-10000 | (ms) Pause between two runs of the background writer.
synchronize_seqscans dynamic boolean 0,1 | Synchronizes sequential scans of a table.
# Clients
statement_timeout dynamic integer 0-2147483647 | (ms) Maximum duration of a statement.
lock_timeout dynamic integer 0-2147483647 | (ms) Maximum wait for a lock.
deadlock_timeout dynamic integer 1-2147483647 | (ms) Wait before a check for a deadlock.
idle_in_transaction_session_timeout dynamic integer 0-2147483647 value=86400000 | (ms) Maximum idle time in a
    transaction.
idle_session_timeout dynamic integer 0-2147483647 since=14 | (ms) Maximum idle time of a session.
tcp_keepalives_idle dynamic integer 0-2147483647 value=300 | (s) Idle time before a probe.
tcp_keepalives_interval dynamic integer 0-2147483647 value=30 | (s) Time between two probes.
tcp_keepalives_count dynamic integer 0-2147483647 value=2 | Number of lost probes before a connection ends.
tcp_user_timeout dynamic integer 0-2147483647 | (ms) Maximum time for the acknowledgement of sent data.
client_connection_check_interval dynamic integer 0-2147483647 since=14 | (ms) Interval of connection checks.
timezone dynamic string any value=UTC | The time zone of timestamps.
search_path dynamic string any | The schema search path.
client_encoding dynamic string any | The client's character set.
password_encryption dynamic string md5,scram-sha-256 until=13 | How passwords are encrypted.
password_encryption dynamic string md5,scram-sha-256 rds=scram-sha-256 since=14 | How passwords are encrypted.
row_security dynamic boolean 0,1 | Enables row security policies.
# Logging and statistics
log_connections dynamic boolean 0,1 until=17 | Logs connections.
log_connections dynamic list on,off,receipt,authentication,authorization,setup_durations,all since=18 | Logs
    connections.
log_disconnections dynamic boolean 0,1 | Logs the end of connections.
log_checkpoints dynamic boolean 0,1 value=1 | Logs checkpoints.
log_lock_waits dynamic boolean 0,1 | Logs long waits for locks.
log_replication_commands dynamic boolean 0,1 cluster | Logs replication commands.
log_statement dynamic string none,ddl,mod,all | Which statements are logged.
log_min_messages dynamic string debug5,debug4,debug3,debug2,debug1,info,notice,warning,error,log,fatal,panic | The
    lowest level that is logged.
log_min_duration_statement dynamic integer -1-2147483647 | (ms) Logs statements with at least this duration.
log_autovacuum_min_duration dynamic integer -1-2147483647 value=10000 | (ms) Logs autovacuum runs with at least this
    duration.
log_temp_files dynamic integer -1-2147483647 | (kB) Logs temporary files of at least this size.
track_io_timing dynamic boolean 0,1 value=1 | Measures the time of reads and writes.
track_functions dynamic string none,pl,all value=pl | Which function calls are counted.
pg_stat_statements.track dynamic string none,top,all value=top | Which statements are counted.
pgaudit.log dynamic string any | Classes of statements that are audited.
# Parameters of RDS
rds.force_ssl dynamic boolean 0,1 value=0 until=14 only=postgres cluster | Refuses connections without SSL.
rds.force_ssl dynamic boolean 0,1 value=1 since=15 only=postgres cluster | Refuses connections without SSL.
rds.force_ssl dynamic boolean 0,1 value=0 until=16 only=aurora-postgresql cluster | Refuses connections without SSL.
rds.force_ssl dynamic boolean 0,1 value=1 since=17 only=aurora-postgresql cluster | Refuses connections without SSL.
rds.enable_plan_management static boolean 0,1 value=0 only=aurora-postgresql cluster | Enables query plan management.
rds.log_retention_period dynamic integer 1440-10080 value=4320 | (min) Retention of logs.
rds.force_autovacuum_logging_level dynamic string
    disabled,debug5,debug4,debug3,debug2,debug1,info,notice,warning,error,log,fatal,panic value=warning | The lowest
    level that autovacuum workers log.
rds.restrict_password_commands static boolean 0,1 cluster | Only members of rds_password can set passwords.
rds.custom_dns_resolution static string 0,1 value=0 only=postgres | Resolves names with the DNS servers of the VPC.
# Parameters that RDS shows and that cannot be changed
wal_level static string minimal,replica,logical cluster fixed | How much information is in the WAL.
hot_standby static boolean 0,1 rds=1 fixed | Standbys accept queries.
port static integer 1150-65535 value={EndPointPort} fixed | The port on which the server listens.
listen_addresses static string any value=* fixed | The addresses on which the server listens.
fsync dynamic boolean 0,1 rds=1 fixed | Flushes writes to the disk.
full_page_writes dynamic boolean 0,1 rds=1 fixed | Writes full pages to the WAL.
ssl static boolean 0,1 value=1 fixed | Enables SSL.
archive_mode static string off,on,always rds=on fixed | Archives WAL.
archive_timeout dynamic integer 0-2147483647 rds=300 fixed | (s) Maximum time between two WAL archives.
superuser_reserved_connections static integer 0-262143 rds=3 fixed | Connections that are reserved for superusers.
block_size static integer 8192-8192 fixed | (B) The size of a block.
server_encoding static string any fixed | The character set of the database.
data_checksums static boolean 0,1 fixed | Enables checksums of pages.
logging_collector static string 0,1 value=1 fixed | Enables the logging collector.
"""


@dataclass(frozen=True, slots=True)
class _Row:
    name: str
    apply_type: ApplyType
    data_type: DataType
    allowed: str | None
    options: Mapping[str, str]
    description: str

    @classmethod
    def parse(cls, line: str) -> _Row:
        columns, _, description = line.partition(" | ")
        name, apply_type, data_type, allowed, *words = columns.split()
        options = dict(word.partition("=")[::2] for word in words)
        return cls(
            name,
            cast("ApplyType", apply_type),
            cast("DataType", data_type),
            None if allowed == "any" else allowed,
            options,
            description,
        )

    def applies(self, engine: Engine, major: int, kind: ResourceKind) -> bool:
        since, until = int(self.options.get("since", MAJORS.start)), int(self.options.get("until", MAJORS.stop))
        if not since <= major <= until or self.options.get("only", engine) != engine:
            return False
        return not (engine == "aurora-postgresql" and kind == "instance" and "cluster" in self.options)

    def parameter(self, engine: Engine, major: int) -> EngineParameter:
        own = self.options.get("aurora" if engine == "aurora-postgresql" else "rds")
        minimums = self.options.get("minimum", "").split(",")
        return EngineParameter(
            name=self.name,
            value=own if own is not None else self.options.get("value"),
            apply_type=self.apply_type,
            data_type=self.data_type,
            allowed_values=self.allowed,
            is_modifiable="fixed" not in self.options,
            description=self.description,
            minimum_engine_version=next((one for one in minimums if one.startswith(f"{major}.")), None),
        )


@cache
def _rows() -> tuple[_Row, ...]:
    # A line that continues a list of allowed values is joined without a space.
    joined = re.sub(r"\n +", " ", re.sub(r",\n +", ",", _TABLE))
    return tuple(_Row.parse(line) for line in joined.splitlines() if line and not line.startswith("#"))
