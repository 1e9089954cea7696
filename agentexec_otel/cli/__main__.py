"""The command as ``python -m agentexec_otel.cli``."""

from agentexec_otel.cli import main

if __name__ == "__main__":
    main()
