"""Convert a parameter's value from the unit that a person writes (``10GB``) to the unit that AWS takes (``10240``).

A parameter group takes bare numbers in the unit of ``pg_settings.unit``. PostgreSQL's units are powers of 1024.
"""

from __future__ import annotations

import math
import re
from decimal import Decimal
from fractions import Fraction
from typing import Final

from rdsrepl.errors import BadValue
from rdsrepl.units import PARAMETER_UNITS, exact_duration, parse_size

_NUMBER: Final = re.compile(r"[+-]?[0-9.]+(?:[eE][+-]?[0-9]+)?")
# RDS begins the description of a parameter with its unit: "(MB) Maximum WAL size that …".
_DESCRIBED: Final = re.compile(r"\((8kB|[kM]?B|us|ms|s|min)\) ", re.IGNORECASE)
# ``pg_settings.unit`` of 15 to 18, for parameters that RDS describes without a unit.
_UNITS: Final = {
    "B": "log_parameter_max_length log_parameter_max_length_on_error track_activity_query_size wal_decode_buffer_size",
    "kB": "autovacuum_work_mem gin_pending_list_limit huge_page_size log_rotation_size log_temp_files "
    "logical_decoding_work_mem maintenance_work_mem max_stack_depth temp_file_limit vacuum_buffer_usage_limit "
    "wal_skip_threshold work_mem",
    "8kB": "backend_flush_after bgwriter_flush_after checkpoint_flush_after commit_timestamp_buffers "
    "effective_cache_size io_combine_limit io_max_combine_limit min_parallel_index_scan_size "
    "min_parallel_table_scan_size multixact_member_buffers multixact_offset_buffers notify_buffers "
    "serializable_buffers shared_buffers subtransaction_buffers temp_buffers transaction_buffers wal_buffers "
    "wal_writer_flush_after",
    "MB": "max_slot_wal_keep_size max_wal_size min_dynamic_shared_memory min_wal_size wal_keep_size",
    "ms": "autovacuum_vacuum_cost_delay bgwriter_delay client_connection_check_interval deadlock_timeout "
    "idle_in_transaction_session_timeout idle_session_timeout lock_timeout log_autovacuum_min_duration "
    "log_min_duration_sample log_min_duration_statement log_startup_progress_interval max_standby_archive_delay "
    "max_standby_streaming_delay recovery_min_apply_delay statement_timeout tcp_user_timeout transaction_timeout "
    "vacuum_cost_delay wal_receiver_timeout wal_retrieve_retry_interval wal_sender_timeout wal_writer_delay",
    "s": "archive_timeout authentication_timeout autovacuum_naptime checkpoint_timeout checkpoint_warning "
    "idle_replication_slot_timeout post_auth_delay pre_auth_delay tcp_keepalives_idle tcp_keepalives_interval "
    "wal_receiver_status_interval",
    "min": "log_rotation_age old_snapshot_threshold rds.log_retention_period wal_summary_keep_time",
}
CATALOG: Final = {name: unit for unit, names in _UNITS.items() for name in names.split()}


def unit_of(name: str, description: str) -> str | None:
    """Return the unit of a parameter, as RDS describes it or as PostgreSQL defines it; None where it has none."""
    if match := _DESCRIBED.match(description):
        return next(unit for unit in PARAMETER_UNITS if unit.lower() == match[1].lower())
    return CATALOG.get(name)


def convert(name: str, value: str, unit: str | None, *, whole: bool = True) -> str:
    """Return a value as AWS takes it: ``10GB`` in the parameter's unit; a bare number or a formula as it is.

    Args:
        name: the parameter, for errors.
        value: what the user gave.
        unit: the unit of the parameter; None leaves the value unchanged.
        whole: whether the parameter takes only whole numbers.

    Raises:
        BadValue: the value is no size or no duration, or not a whole number of the unit.
    """
    if unit is None or _NUMBER.fullmatch(value) or "{" in value or "(" in value:
        return value
    is_size, factor = PARAMETER_UNITS[unit]
    try:
        number = (Fraction(parse_size(value)) if is_size else exact_duration(value)) / factor
    except BadValue as exc:
        example = "10MB" if is_size else "30s"
        raise BadValue(
            f"{name}: {exc.message}",
            hint=f"give a {'size' if is_size else 'duration'} such as {example}, or a number in its unit, {unit}",
        ) from None
    if number.denominator == 1:
        return str(number)
    if not whole:
        return f"{Decimal(number.numerator) / Decimal(number.denominator):f}"
    below, above = math.floor(number), math.ceil(number)
    choices = " or ".join(str(one) for one in (below, above) if one)
    raise BadValue(
        f"{name}={value} is not a whole number of {unit}, the parameter's unit", hint=f"give {choices} (in {unit})"
    )
