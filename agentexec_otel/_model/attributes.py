"""Names of all attributes that we write.

``agentexec.*`` is ours. ``error.type``, ``session.id`` and ``gen_ai.*`` follow the OpenTelemetry semantic conventions:
``gen_ai.*`` those of semantic-conventions-genai 0.1, which are in development.
"""

from __future__ import annotations

from typing import Final

SCOPE: Final = "agentexec_otel"
LOG_EVENT: Final = "agentexec.activity.log"
CREATED_EVENT: Final = "agentexec.activity.created"
RETRIED_EVENT: Final = "agentexec.activity.retried"
STARTED_EVENT: Final = "agentexec.activity.started"
WAITING_EVENT: Final = "agentexec.activity.waiting"
ENDED_EVENT: Final = "agentexec.activity.ended"
RECORD_UID: Final = "log.record.uid"

LOG_ID: Final = "agentexec.log.id"
LOG_STATUS: Final = "agentexec.log.status"
LOG_MESSAGE: Final = "agentexec.log.message"
LOG_PERCENTAGE: Final = "agentexec.log.percentage"
LOG_LATE: Final = "agentexec.log.late"
"""True on a log that came after its attempt had ended."""

AGENT_ID: Final = "agentexec.agent_id"
AGENT_TYPE: Final = "agentexec.agent_type"
ATTEMPT: Final = "agentexec.attempt"
STATUS: Final = "agentexec.status"
PERCENTAGE: Final = "agentexec.percentage"
QUEUE_DURATION: Final = "agentexec.queue.duration"
"""Seconds from QUEUED to RUNNING."""
REASON: Final = "agentexec.reason"
LOG_COUNT: Final = "agentexec.log.count"
"""Logs of the attempt; a span keeps only the last of them as events (``SpanLimits``)."""
METADATA_PREFIX: Final = "agentexec.metadata."
WORKER_ID: Final = "agentexec.worker_id"
WAITING_FOR: Final = "agentexec.waiting.for"
WAITING_SINCE: Final = "agentexec.waiting.since"
WAITING_ITEMS: Final = "agentexec.waiting.items"
"""JSON."""

OPERATION: Final = "gen_ai.operation.name"
INVOKE_AGENT: Final = "invoke_agent"
AGENT_NAME: Final = "gen_ai.agent.name"
CONVERSATION_ID: Final = "gen_ai.conversation.id"
SESSION_ID: Final = "session.id"
ERROR_TYPE: Final = "error.type"
INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
REQUESTS: Final = "agentexec.requests"
OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
CACHED_INPUT_TOKENS: Final = "gen_ai.usage.cache_read.input_tokens"
REASONING_TOKENS: Final = "gen_ai.usage.reasoning.output_tokens"
MODEL: Final = "gen_ai.request.model"
LANGFUSE_LEVEL: Final = "langfuse.observation.level"
LOGFIRE_LEVEL: Final = "logfire.level_num"

PREVIOUS_SPAN: Final = "agentexec.previous_span"
"""Key in the ``trace_context`` of a row: the traceparent of the previous attempt's span."""
WORKER_SPAN: Final = "agentexec.worker_span"
"""Key in the ``trace_context`` of a row: the traceparent of the span that was current where its span was started."""

METRIC_EVENTS: Final = "agentexec.exporter.events"
METRIC_PENDING: Final = "agentexec.exporter.pending"
METRIC_SPOOL: Final = "agentexec.exporter.spool.size"
METRIC_OUTAGE: Final = "agentexec.exporter.outage.duration"
METRIC_DURATION: Final = "agentexec.activity.duration"
METRIC_QUEUE_DURATION: Final = "agentexec.activity.queue.duration"
METRIC_ENDED: Final = "agentexec.activity.ended"
METRIC_ACTIVE: Final = "agentexec.activity.active"
METRIC_WAITING: Final = "agentexec.activity.waiting"
METRIC_TOKENS: Final = "agentexec.activity.token.usage"
TOKEN_TYPE: Final = "gen_ai.token.type"  # noqa: S105  # no secret
METRIC_EXPORTER: Final = "agentexec.exporter"
METRIC_OUTCOME: Final = "agentexec.outcome"
