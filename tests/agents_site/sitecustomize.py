"""In every Python that agents of a test start: short waits, a record of what is started, a gate in the trial.

Environment: STARTED is the file that gets a line for each process that is started (beside it, a file `full` leaves no
room for a shared service); GATE=N stops a trial before its epoch N, see tests/gate.py.
"""

import os
import sys
from pathlib import Path


def _record(event, args):
    if event == "subprocess.Popen":
        words = [os.fsdecode(word) for word in args[1]]
        started = Path(os.environ["STARTED"])
        if "--detached" in words and started.with_name("full").exists():
            raise OSError("no room for it")
        with started.open("a", encoding="utf-8") as file:
            file.write(f"{' '.join(words)}\n")


if "STARTED" in os.environ:
    sys.addaudithook(_record)
if "wandb" in sys.orig_argv and "agent" in sys.orig_argv:
    from wandb.wandb_agent import Agent

    Agent.POLL_INTERVAL = 0.3  # between two heartbeats W&B's agent waits 5 s; nothing else of it is changed
if "sweep.trial" in sys.orig_argv and "GATE" in os.environ:
    from tests.gate import close_gate

    close_gate(int(os.environ["GATE"]))
