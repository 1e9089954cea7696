"""Where the logs go, by the environment variables of OpenTelemetry."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import urlsplit

from agentexec_otel._errors import ConfigurationError
from agentexec_otel._model.text import describe, describe_url

Protocol = Literal["http/protobuf", "grpc"]

_DEFAULTS: Final[dict[Protocol, str]] = {"http/protobuf": "http://localhost:4318", "grpc": "http://localhost:4317"}
_PATH: Final = "v1/logs"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A receiver of logs.

    Attributes:
        url: With the path of the signal for HTTP. For gRPC also without a scheme, such as ``localhost:4317``.
    """

    protocol: Protocol
    url: str

    @property
    def place(self) -> str:
        """Protocol, host, port and path, without user, password and query."""
        parts = urlsplit(self.url if "//" in self.url else f"//{self.url}")
        port = "" if parts.port is None else f":{parts.port}"
        return f"{self.protocol} {parts.hostname or ''}{port}{parts.path}"


def endpoint_of(url: str | None, protocol: str | None) -> Endpoint:
    """The receiver that the arguments name, or ``OTEL_EXPORTER_OTLP_*`` in their place.

    Raises:
        ConfigurationError: There is no such protocol, or the URL cannot be used.
    """
    chosen = _protocol(protocol)
    found = url or _variable("ENDPOINT", of_logs=True) or _base(chosen)
    endpoint = Endpoint(chosen, found)
    if not _is_usable(endpoint):
        raise ConfigurationError(
            f"the OTLP endpoint is {describe_url(found)}: write it like {_DEFAULTS[chosen]}{_example_path(chosen)}"
        )
    return endpoint


def _protocol(given: str | None) -> Protocol:
    protocol = given or _variable("PROTOCOL", of_logs=True) or _variable("PROTOCOL") or "http/protobuf"
    if protocol not in _DEFAULTS:
        raise ConfigurationError(f"the OTLP protocol is {describe(protocol)}: use {' or '.join(_DEFAULTS)}")
    return protocol


def _base(protocol: Protocol) -> str:
    base = _variable("ENDPOINT") or _DEFAULTS[protocol]
    return base if protocol == "grpc" else f"{base.removesuffix('/')}/{_PATH}"


def _variable(name: str, *, of_logs: bool = False) -> str | None:
    return os.environ.get(f"OTEL_EXPORTER_OTLP_{'LOGS_' if of_logs else ''}{name}") or None


def _is_usable(endpoint: Endpoint) -> bool:
    try:
        parts = urlsplit(endpoint.url if "//" in endpoint.url else f"//{endpoint.url}")
        _ = parts.port  # Raises ValueError if it is no number.
    except ValueError:
        return False
    schemes = ("http", "https") if endpoint.protocol == "http/protobuf" else ("http", "https", "")
    return parts.scheme in schemes and bool(parts.hostname)


def _example_path(protocol: Protocol) -> str:
    return f"/{_PATH}" if protocol == "http/protobuf" else ""
