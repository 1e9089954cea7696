"""The command ``agentexec-otel``."""

from __future__ import annotations

import sys

from agentexec_otel import MissingExtraError

__all__ = ["main"]


def main() -> None:
    """Run the command. An error is one line on stderr, and the exit code 1."""
    try:
        from agentexec_otel.cli._app import run

        run()
    except ModuleNotFoundError as exc:
        if exc.name not in ("typer", "click", "rich"):
            raise
        print(f"agentexec-otel: {MissingExtraError('the command', 'typer', 'cli')}", file=sys.stderr)  # noqa: T201
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
