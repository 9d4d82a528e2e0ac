"""A command as a process: the signals that it hears, what it tells its user, and its exit code.

Exit codes: 0 done, 2 the configuration, 3 the data or 4 the checkpoint cannot be used, 5 too few
clients had usable updates, 130 and 143 stopped by SIGINT and SIGTERM, 141 nobody reads what it
prints, 1 anything else, with a traceback.
"""

import argparse
import os
import re
import select
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import FrameType
from typing import Any, NoReturn

UNREAD = 141
"""What a shell says of a process that the signal SIGPIPE, 13, has ended."""


def main(args: Sequence[str]) -> int:
    """Run ``fit``, ``validate``, ``test``, ``analyze`` or ``export``.

    Args:
        args: The command and its options.

    Returns:
        The exit code.
    """
    return run_or_tell(_run, args)


def _run(args: Sequence[str]) -> int:
    """Read the options, and run the command that they are of."""
    from bhfl.cli.reading import read_layers

    # what is wrong here is answered before torch is loaded
    layers = read_layers(args[1:])
    from bhfl.engine.console import told

    with told("loading PyTorch and Lightning"):
        from bhfl.cli.federated_cli import FederatedCLI

    FederatedCLI(args, layers)
    return 0


def run_or_tell(run: Callable[[Sequence[str]], int], args: Sequence[str], about: str = "") -> int:
    """Run a command that reads configurations; where its user can mend what ends it, tell that.

    Args:
        run: What runs the command, given its arguments; it returns the exit code.
        args: The command and its options.
        about: What ``--help`` prints; empty where `run` does that.

    Returns:
        The exit code.

    Raises:
        LostProcessError: Another process of the run is gone.
        BrokenPipeError: Whoever read what the command prints is gone, or who it spoke to.
        Exception: Whatever its user cannot mend.
    """
    from bhfl.cli.current_folder import find_in_current_folder
    from bhfl.cli.exits import BAD_CONFIG, exit_code, log_on_stdout, report, told
    from bhfl.cli.reading import ConfigError, asks_help
    from bhfl.engine.ending import LostProcessError
    from bhfl.engine.exits import no_exit_of_others

    # warnings of what LightningCLI calls, which no user can mend
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    # warnings of sockets whose other end is gone, which is told in one line
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if about and asks_help(args):
        print(about, end="")
        return 0
    try:
        find_in_current_folder()
        with no_exit_of_others(), log_on_stdout():
            return run(args)
    except ConfigError as error:
        report(*error.problems)
        return BAD_CONFIG
    # they have exit codes of their own, which `_until_stopped` knows
    except (LostProcessError, BrokenPipeError):
        raise
    except Exception as error:
        code = exit_code(error)
        if code is None:
            raise
        # of several problems, each in a line of its own; others go on in lines that are set in
        report(*(re.split(r"\n(?=\S)", told(error)) if code == BAD_CONFIG else [told(error)]))
        return code


def leave(run: Callable[[list[str]], int], args: Sequence[str] | None) -> NoReturn:
    """Run a command as this process, and leave with its exit code.

    Args:
        run: What runs the command, given its arguments.
        args: The arguments. By default those of the process, whose signals are then heard from here
            on.

    Raises:
        SystemExit: Always.
    """
    if args is not None:
        raise SystemExit(_until_stopped(run, list(args)))
    for signum in (signal.SIGINT, signal.SIGTERM):
        # a shell lets what runs in the background ignore SIGINT, and that is to stay so
        if signal.getsignal(signum) is not signal.SIG_IGN:
            # what hears them later takes a moment to load
            signal.signal(signum, _end_at_once)
    if sys.stdout is not None and sys.stdout.errors == "strict":
        # a character that the console's encoding lacks, in a path or a table, is no failure
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    from bhfl.engine.ending import Signals, end_with_parent

    signals = Signals(command=True)
    signals.listen()
    end_with_parent()
    # an error that nobody turns into a code leaves with its traceback and this one
    code = 1
    try:
        code = _until_stopped(run, sys.argv[1:])
    finally:
        signals.code = code
    raise SystemExit(code)


def _end_at_once(signum: int, frame: FrameType | None) -> None:
    """End the process by a signal that came before there was anything to save."""
    # one line a machine, whatever the number of its processes; see `bhfl.engine.ending.speaks`
    if os.environ.get("LOCAL_RANK", "0") == "0" or os.environ.get("WORLD_SIZE", "1") == "1":
        how = "interrupted" if signum == signal.SIGINT else "terminated"
        # not by print, in the middle of which the signal may have come
        os.write(2, f"error: {how} while starting; nothing new is saved\n".encode())
    # at once: what is just being imported may catch exceptions, and there is nothing to close yet
    os._exit(128 + signum)


def _until_stopped(run: Callable[[list[str]], int], args: list[str]) -> int:
    """The exit code of a command, or of what stops it, which is told in one line."""
    import warnings

    from bhfl.cli.exits import WarningForm
    from bhfl.engine.ending import LOST, STANDING, LostProcessError, Terminated, speaks_of_others

    warnings.formatwarning = WarningForm()  # type: ignore[assignment]  # it hands on the rest
    STANDING.begin("nothing new is saved")
    try:
        return _ended(run, args)
    except BrokenPipeError:
        # quietly, as programs do behind `| head`; a pipe that is another one is no reader's choice
        if not _is_unread():
            raise
        return UNREAD
    except (KeyboardInterrupt, Terminated) as stop:
        signum = signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT
        code, line = 128 + signum, STANDING.farewell(signum)
    except LostProcessError as error:
        code, line = LOST, STANDING.last_line(str(error), speaks_of_others())
    if line:
        # what reads it may have ended by the same Ctrl-C, as behind `2>&1 | tee log`
        with suppress(OSError):
            print(line, file=sys.stderr)
    return code


def _ended(run: Callable[[list[str]], int], args: list[str]) -> int:
    """The exit code of a command that comes to its end, or of what became of its output."""
    from bhfl.cli.exits import BAD_CONFIG, say
    from bhfl.engine.ending import Terminated

    # argparse itself passes over what cannot be written
    argparse.ArgumentParser._print_message = _print  # type: ignore[assignment,method-assign]  # noqa: SLF001
    code = 0
    try:
        try:
            code = run(args)
        except Terminated:
            raise
        # of a parser, after a help text
        except SystemExit as end:
            code = int(end.code or 0)
        # looked at in any case: Python would complain when it ends
        unread = _is_unread()
        return code or UNREAD * unread
    except BrokenPipeError:
        raise
    except OSError as error:
        # all else that fails so is told by now
        _print_nowhere()
        if not code:
            say(f"error: what the command prints cannot be written: {error}")
        return code or BAD_CONFIG


def _print(parser: object, message: str, file: Any = None) -> None:
    """Print a help text or an error of a parser."""
    print(message, end="", file=file or sys.stderr)


def _is_unread() -> bool:
    """Whether nobody reads what is printed any more; all of it goes nowhere from then on.

    Raises:
        OSError: It cannot be written, as where a disk is full.
    """
    try:
        sys.stdout.flush()
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        gone = any(event & select.POLLERR for _, event in poll.poll(0))
    except BrokenPipeError:
        gone = True
    # there is no output, it is no file, or the system has no poll
    except (AttributeError, ValueError):
        return False
    if gone:
        _print_nowhere()
    return gone


def _print_nowhere() -> None:
    """Let what is printed go nowhere: Python flushes once more when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
