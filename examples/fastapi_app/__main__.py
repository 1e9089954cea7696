"""Run the service, and worker processes where there is a broker: `python -m fastapi_app`, in the folder examples/."""

from __future__ import annotations

import argparse
import signal
import sys
from contextlib import suppress


def main() -> int:
    """Serve until Ctrl-C or SIGTERM. The exit code of the process."""
    parser = argparse.ArgumentParser(prog="python -m fastapi_app", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--workers", type=int, default=2, help="worker processes, where there is a broker")
    options = parser.parse_args()

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with suppress(KeyboardInterrupt):
        from sqlalchemy.exc import ArgumentError

        import agentexec_otel as ax

        try:
            from fastapi_app.server import serve  # takes a second or two, and may be interrupted

            serve(options.host, options.port, options.workers)
        except (ax.AgentExecError, ArgumentError, OverflowError) as exc:  # a setting that makes no sense
            print(f"{parser.prog}: {exc}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
