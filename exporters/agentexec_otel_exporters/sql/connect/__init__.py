"""Connections of the writer: guarded on the server, cut after a deadline, closed before a fork."""

from agentexec_otel_exporters.sql.connect.connector import Connector
from agentexec_otel_exporters.sql.connect.engine import parse_url
from agentexec_otel_exporters.sql.connect.watchdog import DEADLINE, INTERVAL

__all__ = ["DEADLINE", "INTERVAL", "Connector", "parse_url"]
