"""Which major version of PostgreSQL brought what the checks ask for; what RDS adds stands in ``aws.release_support``."""

from __future__ import annotations

from typing import Final

OLDEST_SERVED: Final = 13
DECODES_ON_STANDBY_SINCE: Final = 16
FAILOVER_SLOTS_SINCE: Final = 17
#: a major upgrade from here on carries over logical slots that are consumed to the end.
UPGRADE_KEEPS_SLOTS_SINCE: Final = 17
#: max_active_replication_origins; before it max_replication_slots limits the origins, too.
OWN_ORIGINS_SINCE: Final = 18
