"""``python -m bhfl.sweep.child fit ...`` is ``bhfl fit ...`` that ends when the sweep that
started it has gone.

The sweep holds the other end of standard input and writes nothing to it. So the end of standard
input is the end of the sweep, even of one that was killed.

``python -m bhfl.sweep.child``, without arguments, loads what such a run needs once, and is then
forked for each run of a sweep: see `bhfl.sweep.forks`.
"""

import os
import signal
import sys
import threading
import time

from bhfl.cli.command import leave, main
from bhfl.cli.current_folder import forget_start_folder

PATIENCE_SECONDS = 10.0


def end_with_parent() -> None:
    """Wait for the end of standard input, then end this process: in order if it can, by force if it
    has not ended after `PATIENCE_SECONDS`.
    """
    # nothing is ever written there: this returns when the other end is closed
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(PATIENCE_SECONDS)
    os._exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    forget_start_folder()
    if not sys.argv[1:]:
        from bhfl.sweep.forks import serve

        # it returns in each fork, which goes on as a process that was started with these words
        sys.argv[1:] = serve()
    # a daemon, so that a run that has ended does not wait for its sweep
    threading.Thread(target=end_with_parent, daemon=True).start()
    leave(main, None)
