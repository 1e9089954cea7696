"""Warnings that are logged once."""

from __future__ import annotations

import logging

_logger = logging.getLogger("agentexec_otel")
_complaints: set[str] = set()


def complain(text: str) -> None:
    """Log a warning, once for each text."""
    if text not in _complaints and len(_complaints) < 1000:
        _complaints.add(text)
        _logger.warning(text)


def forget_complaints() -> None:
    """For tests."""
    _complaints.clear()
