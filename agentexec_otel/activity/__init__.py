"""Activities: write their life cycle, query what was written.

`create`, `update`, `complete`, `error`, `cancel`, `retry`, `cancel_pending`, `retry_many` and `run` write; `get`,
`detail`, `list`, `logs`, `feed`, `count_active` and `stats` read in a session of the caller; `follow` and
`follow_feed` iterate over logs as they come; `current` is the activity that runs here. `archive` moves what has ended
to files, and `restore` reads them back.
`aio` has the same for asyncio.
"""

from agentexec_otel.activity import aio
from agentexec_otel.activity._criteria import ActivityFilters
from agentexec_otel.activity._feed import ActivityFeedFilters, feed
from agentexec_otel.activity._follow import follow, follow_feed
from agentexec_otel.activity._lifecycle import (
    cancel,
    cancel_pending,
    complete,
    create,
    error,
    reap,
    retry,
    retry_many,
    update,
)
from agentexec_otel.activity._query import count_active, detail, get, list, logs
from agentexec_otel.activity._retention.archive import archive, restore
from agentexec_otel.activity._run import ActivityRun, current, run
from agentexec_otel.activity._stats import stats
from agentexec_otel.activity.models import Activity, ActivityLog
from agentexec_otel.activity.schemas import (
    ActivityCursorPageSchema,
    ActivityDetailSchema,
    ActivityFeedLogSchema,
    ActivityFeedSchema,
    ActivityListItemSchema,
    ActivityListSchema,
    ActivityLogSchema,
    ActivityStatsBucketSchema,
    ActivityStatsSchema,
    ActivityTypeStatsSchema,
    PercentilesSchema,
)
from agentexec_otel.activity.status import Status

__all__ = [
    "Activity",
    "ActivityCursorPageSchema",
    "ActivityDetailSchema",
    "ActivityFeedFilters",
    "ActivityFeedLogSchema",
    "ActivityFeedSchema",
    "ActivityFilters",
    "ActivityListItemSchema",
    "ActivityListSchema",
    "ActivityLog",
    "ActivityLogSchema",
    "ActivityRun",
    "ActivityStatsBucketSchema",
    "ActivityStatsSchema",
    "ActivityTypeStatsSchema",
    "PercentilesSchema",
    "Status",
    "aio",
    "archive",
    "cancel",
    "cancel_pending",
    "complete",
    "count_active",
    "create",
    "current",
    "detail",
    "error",
    "feed",
    "follow",
    "follow_feed",
    "get",
    "list",
    "logs",
    "reap",
    "restore",
    "retry",
    "retry_many",
    "run",
    "stats",
    "update",
]
