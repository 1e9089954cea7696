"""What a receiver's answer means, by the rules of OTLP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from agentexec_otel._model.text import prepare_message
from agentexec_otel.export import (
    ExportError,
    MisconfiguredExportError,
    PoisonExportError,
    TransientExportError,
)

LONGEST_WAIT: Final = 300.0
"""Seconds. A receiver that asks for a longer wait is asked again after this time."""

_TEXT_LIMIT: Final = 200
# https://opentelemetry.io/docs/specs/otlp/#failures-1 and https://opentelemetry.io/docs/specs/otlp/#failures
_RETRYABLE: Final = frozenset(
    ("HTTP 408", "HTTP 429", "HTTP 502", "HTTP 503", "HTTP 504",
     "CANCELLED", "DEADLINE_EXCEEDED", "ABORTED", "OUT_OF_RANGE", "UNAVAILABLE", "DATA_LOSS")
)  # fmt: skip
_MALFORMED: Final = frozenset(("HTTP 400", "HTTP 413", "HTTP 422", "INVALID_ARGUMENT"))
_REMEDIES: Final = {
    "HTTP 401": "correct the key in OTEL_EXPORTER_OTLP_HEADERS",
    "HTTP 403": "correct the key in OTEL_EXPORTER_OTLP_HEADERS, or its rights",
    "HTTP 404": "correct the path in OTEL_EXPORTER_OTLP_ENDPOINT",
    "UNAUTHENTICATED": "correct the key in OTEL_EXPORTER_OTLP_HEADERS",
    "PERMISSION_DENIED": "correct the key in OTEL_EXPORTER_OTLP_HEADERS, or its rights",
    "UNIMPLEMENTED": "send to a receiver that takes logs",
}


@dataclass(frozen=True, slots=True)
class Accepted:
    """The receiver has taken the request.

    Attributes:
        rejected: Number of log records that it has rejected. It does not say which.
        message: Why, or a warning.
    """

    rejected: int = 0
    message: str = ""


@dataclass(frozen=True, slots=True)
class Refused:
    """The receiver has refused the request.

    Attributes:
        code: Such as ``HTTP 503`` or, by gRPC, ``UNAVAILABLE``.
        retry_after: Seconds that it has asked to wait.
    """

    code: str
    message: str = ""
    retry_after: float | None = None


@dataclass(frozen=True, slots=True)
class Unanswered:
    """The request was not answered.

    Attributes:
        error: What the transport has raised.
        sent: The receiver may have got the request.
    """

    error: str
    sent: bool = True


@dataclass(frozen=True, slots=True)
class Unsendable:
    """The official exporter could not encode the records, or has found them too large."""


Answer = Accepted | Refused | Unanswered | Unsendable


def error_of(answer: Refused | Unanswered | Unsendable, place: str) -> ExportError:
    """The exception for a request that was not accepted, which decides what the processor does next.

    OTLP would drop what a receiver refuses for another reason than the request's content, such as a wrong key. It is
    kept here, and offered again every 30 s.
    """
    if isinstance(answer, Unsendable):
        return PoisonExportError("the log records cannot be encoded, or are too large for one request")
    if isinstance(answer, Unanswered):
        error = TransientExportError(f"no answer from {place} ({answer.error})")
        error.sent = answer.sent
        return error
    said = f": {text}" if (text := clean(answer.message)) else ""
    text = f"{place} has answered {answer.code}{said}"
    if answer.code in _MALFORMED or _is_too_large(answer):
        return PoisonExportError(text)
    if answer.code in _RETRYABLE or (answer.code == "RESOURCE_EXHAUSTED" and answer.retry_after is not None):
        return TransientExportError(text, after=min(answer.retry_after or 0.0, LONGEST_WAIT))
    return MisconfiguredExportError(text, remedy=_REMEDIES.get(answer.code))


def _is_too_large(answer: Refused) -> bool:
    """Whether a gRPC server refuses the size of a message, for which there is no code of its own."""
    return answer.code in ("RESOURCE_EXHAUSTED", "OUT_OF_RANGE") and (
        "larger than max" in answer.message or "length too large" in answer.message
    )


def clean(message: str) -> str:
    """A text of the receiver in one line, cleaned, redacted and cut."""
    return prepare_message(" ".join(message.split()), _TEXT_LIMIT)
