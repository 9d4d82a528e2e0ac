"""Signals at any moment end a command with the right code and one line."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

SCRIPT = """
import atexit, os, signal, sys, time
import bhfl.main
from bhfl.engine import ending

# who ends in order is waited for, however busy the machine is
ending.PATIENCE_SECONDS = 30 if sys.argv[2] == "in_order" else 0.3
me, how = os.getpid(), int(sys.argv[1])

def at_once(args):
    os.kill(me, how)
    time.sleep(10)

def in_order(args):
    with ending.ended_in_order(deaf=False):
        try:
            at_once(args)
        finally:
            print("closed", flush=True)

if sys.argv[2] == "in_order":
    # on a busy machine, the listening thread may run before the handler does
    handle = ending.Signals._handle
    ending.Signals._handle = lambda *told: time.sleep(0.1) or handle(*told)

def twice(args):
    with ending.ended_in_order(deaf=False):
        try:
            at_once(args)
        finally:
            at_once(args)

def swallowed(args):
    with ending.ended_in_order(deaf=False):
        while True:
            try:
                at_once(args)
            except BaseException:
                # as a DataLoader's workers end, each with a signal that is no reason to wait longer
                signal.signal(signal.SIGCHLD, lambda *_: None)
                while True:
                    time.sleep(0.1)
                    os.kill(me, signal.SIGCHLD)

def unraised(args):
    # Ctrl-C reaches forks too, which have nothing to tell
    if os.fork() == 0:
        os.kill(os.getpid(), how)
        time.sleep(10)
    os.wait()

    class Closing:
        def __del__(self):
            at_once(args)

    with ending.ended_in_order(deaf=False):
        Closing()
        time.sleep(10)

def afterwards(args):
    atexit.register(os.kill, me, how)
    return 0

def after_an_interrupt(args):
    atexit.register(os.kill, me, how)
    at_once(args)

bhfl.main.run = globals()[sys.argv[2]]
bhfl.main.main()
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "case",
    ["at_once", "in_order", "twice", "swallowed", "unraised", "afterwards", "after_an_interrupt"],
)
def test_a_signal(how, case):
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(int(how)), case],
        capture_output=True,
        text=True,
        timeout=60,
    )
    said = (
        f"error: {'interrupted' if how == signal.SIGINT else 'terminated'} while starting; "
        "nothing new is saved\n"
    )
    code = 128 + how
    if case == "afterwards":  # the command is done
        said, code = "", 0
    assert (process.returncode, process.stderr) == (code, said)
    assert process.stdout == ("closed\n" if case == "in_order" else "")
