"""Warnings that are logged once, however often their cause comes back."""

from __future__ import annotations

import logging
from typing import Final

_logger = logging.getLogger("agentexec_otel")
_MOST: Final = 1000

_complaints: set[str] = set()


def complain(text: str) -> None:
    """Log a warning, once for each text."""
    if text not in _complaints and len(_complaints) < _MOST:
        _complaints.add(text)
        _logger.warning(text)


def forget_complaints() -> None:
    """For tests."""
    _complaints.clear()
