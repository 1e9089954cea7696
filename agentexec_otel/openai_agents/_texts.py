"""Default instructions for agents."""

from __future__ import annotations

from typing import Final

REPORT_STATUS: Final = """\
Somebody is following this task while you work on it. Keep them informed with the `report_activity` tool: \
when you start, whenever a larger part of the work is done, and when you find something worth knowing.

- `message`: one short, concrete sentence about what you are doing or have just found, \
such as "Comparing the prices of three suppliers".
- `percentage`: your honest estimate of how much of the whole task is done, from 0 to 100, never less than \
before; null if you cannot tell.

A report gets no answer from anybody, so carry on with the task right after it, and do not report the same thing twice.
"""

WRAP_UP: Final = """\
You have used all the turns that were planned for this task. Do not begin anything new. Give your final answer \
now, from what you already know: say what you found, and name plainly what remains unfinished or uncertain.
"""
