"""Ctrl-C while a script still loads its libraries ends in one line, as it does later.

A script imports this before all else. What it loads next takes seconds; then `screens.run_script`
takes over.
"""

import os
import signal


def leave(number, frame):
    """End at once: nothing has begun, and an exception might be lost in a library's import."""
    os.write(2, b"stopped; start again\n")
    os._exit(130)


for number in (signal.SIGINT, signal.SIGTERM):
    if signal.getsignal(number) != signal.SIG_IGN:
        signal.signal(number, leave)
