"""Ctrl-C in the processes that tests start."""

import signal


def hear_interrupts() -> None:
    """Undo what a shell does to a job in the background: it ignores SIGINT, and so would all that
    is started here.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
