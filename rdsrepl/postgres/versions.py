"""The major version of PostgreSQL that introduced each feature this program depends on.

What Amazon RDS requires beyond that is in ``aws.release_support``.
"""

from __future__ import annotations

from typing import Final

OLDEST_SUPPORTED: Final = 13

#: ``two_phase`` slots.
TWO_PHASE_SLOTS_SINCE: Final = 14
#: ``pg_stat_replication_slots``.
SLOT_STATISTICS_SINCE: Final = 14
#: the option ``messages`` of pgoutput.
PGOUTPUT_MESSAGES_SINCE: Final = 14
IDLE_SESSION_TIMEOUT_SINCE: Final = 14
#: ``client_connection_check_interval``.
CLIENT_CHECK_INTERVAL_SINCE: Final = 14
#: ``hash_record_extended``.
RECORD_HASHES_SINCE: Final = 14
#: a condition on ``ctid`` reads only the pages of its range.
TID_RANGES_SINCE: Final = 14

#: row filters, column lists and TABLES IN SCHEMA.
PUBLICATION_FILTERS_SINCE: Final = 15
#: ``CREATE_REPLICATION_SLOT … (option, …)``; before it the options are bare words.
REPLICATION_OPTION_LISTS_SINCE: Final = 15
#: ``pg_stat_subscription_stats``.
SUBSCRIPTION_STATISTICS_SINCE: Final = 15
#: ``pg_ls_replslotdir``.
SLOT_FILES_SINCE: Final = 15

#: CREATEROLE needs the ADMIN OPTION on the roles that it changes.
ADMIN_OPTION_SINCE: Final = 16
STANDBY_DECODING_SINCE: Final = 16
#: ``pg_replication_slots.conflicting``.
SLOT_CONFLICTS_SINCE: Final = 16

#: ``failover`` and ``synced`` slots.
FAILOVER_SLOTS_SINCE: Final = 17
#: ``pg_replication_slots.inactive_since``.
SLOT_INACTIVITY_SINCE: Final = 17
#: ``pg_replication_slots.invalidation_reason``.
INVALIDATION_REASON_SINCE: Final = 17
#: a major upgrade from here on keeps logical slots that are fully consumed.
UPGRADE_KEEPS_SLOTS_SINCE: Final = 17
TRANSACTION_TIMEOUT_SINCE: Final = 17

#: ``pg_replication_slots.two_phase_at``.
TWO_PHASE_AT_SINCE: Final = 18
#: ``max_active_replication_origins``; before it ``max_replication_slots`` also limits the origins.
ORIGIN_LIMIT_SINCE: Final = 18
#: ``publish_generated_columns``.
GENERATED_COLUMNS_SINCE: Final = 18
#: the server skips changes for which a publication did not exist yet; before it the stream ends there.
MISSING_PUBLICATIONS_SKIPPED_SINCE: Final = 18
#: ``autovacuum_worker_slots``.
AUTOVACUUM_WORKER_SLOTS_SINCE: Final = 18
#: subscriptions have ``streaming = parallel`` by default.
PARALLEL_APPLY_DEFAULT_SINCE: Final = 18
