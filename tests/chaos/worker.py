"""A process that does what it is told, line by line: `python -m tests.chaos.worker URL`.

run ID          enter a block of the activity
report ID TEXT  one line outside of any block
say TEXT        one line inside the block
wait CALL       wait inside the block for the approval of a call, and for its commit as far as there is a database
canceled        wait until the block knows that the activity was canceled
leave           leave the block
exit            end in good order
"""

import sys
import time
from uuid import UUID

import agentexec_otel as ax
from tests.chaos.producer import say


def main(url: str) -> None:
    """Answer each line with its first word, once it is done."""
    ax.configure(url)
    say("configured")
    run: ax.activity.ActivityRun | None = None
    for line in sys.stdin:
        verb, _, rest = line.strip().partition(" ")
        match verb:
            case "run":
                run = ax.activity.run(UUID(rest)).__enter__()
            case "report":
                agent_id, _, text = rest.partition(" ")
                ax.activity.update(agent_id, text)
                ax.flush()
            case "say" if run is not None:
                run.update(rest)
            case "wait" if run is not None:
                run.waiting(items=[{"tool": "pay", "call_id": rest}])
                ax.flush(2.0)
            case "canceled" if run is not None:
                inside = ax.activity.current()
                while not (run.canceled and inside is not None and inside.canceled):
                    time.sleep(0.01)
            case "leave" if run is not None:
                run.__exit__(None, None, None)
                ax.flush()
            case "exit":
                break
            case _:
                raise ValueError(line)
        say(f"{verb} done")


def start(url: str) -> None:
    """The program."""
    main(url)
