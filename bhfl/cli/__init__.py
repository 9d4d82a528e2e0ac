"""The command line: ``bhfl fit | validate | test | analyze | export | sweep | report``.

Exit codes: 0 done, 2 the configuration, 3 the data or 4 the checkpoint cannot be used, 5 too few
clients had usable updates, 130 and 143 stopped by SIGINT and SIGTERM, 1 anything else, with a
traceback.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

COMMANDS = {
    "fit": "train one model over a fleet of clients, then test it",
    "validate": "measure a model on the validation split, by bit group",
    "test": "measure a model on the test split, by bit group",
    "analyze": "tell what each layer saves when it is quantised, and what that costs",
    "export": "write a trained model at each bit-width of its fleet: integers, ONNX, model card",
    "sweep": "run a matrix of methods, settings and seeds: what is missing, a few runs at a time",
}
APART = {"report": "compare runs: tables, CSV and one page with all pictures"}
"""Commands with options of their own: each is ``main`` of the module ``bhfl.<name>.command``, which
loads no torch.
"""

HELP = f"""usage: bhfl COMMAND [--config FILE ...] [--option value ...]

Federated learning among clients of different bit-widths.

commands:
{chr(10).join(f"  {name:<10} {text}" for name, text in (COMMANDS | APART).items())}

  bhfl COMMAND --help        all options
  bhfl --version             the version

examples:
  bhfl fit --config configs/digits/fedavg.yaml
  bhfl fit --config configs/digits/fedavg.yaml --clients '{{ternary: 3, 4: 3, 32: 4}}' --trainer.max_rounds 5
  bhfl fit --config configs/digits/fedavg.yaml --print_config
  bhfl fit --config runs/NAME/version_0/config.yaml --ckpt_path last      go on with a run
  bhfl test --config runs/NAME/version_0/config.yaml --ckpt_path best     measure its best model
  bhfl analyze --config runs/NAME/version_0/config.yaml --ckpt_path last  its layers: table, CSV and picture
  bhfl export --config runs/NAME/version_0/config.yaml --ckpt_path best   its files for others, with a card
  bhfl sweep configs/digits/sweeps/demo.yaml --jobs 2                     several methods over seeds, and a report
  bhfl report runs --target 0.9                                           all runs side by side
"""  # noqa: E501


def main(args: Sequence[str] | None = None) -> None:
    """Run one command, and leave with its exit code.

    Args:
        args: The command and its options. By default those of the process, whose signals are then
            heard from here on.

    Raises:
        SystemExit: Always.
    """
    if args is not None:
        raise SystemExit(_main(list(args)))
    for signum in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, _end_at_once)  # what hears them later takes a moment to load
    from bhfl.engine.ending import Signals, end_with_parent

    signals = Signals(command=True)
    signals.listen()
    end_with_parent()
    code = 1
    try:
        code = _main(sys.argv[1:])
    finally:
        signals.code = code
    raise SystemExit(code)


def _end_at_once(signum: int, frame: FrameType | None) -> None:
    if os.environ.get("LOCAL_RANK", "0") == "0":
        how = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}[signal.Signals(signum)]
        os.write(2, f"error: {how} while starting; nothing new is saved\n".encode())
    os._exit(128 + signum)


def _main(args: list[str]) -> int:
    from bhfl.engine.ending import LOST, STANDING, LostProcessError, Terminated, speaks_of_others

    if not args or args[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0
    if args[0] == "--version":
        from bhfl import __version__

        print(f"bhfl {__version__}")
        return 0
    STANDING.begin("the same command goes on" if args[0] == "sweep" else "nothing new is saved")
    try:
        return _run(args)
    except KeyboardInterrupt:
        code, line = 128 + signal.SIGINT, STANDING.farewell(signal.SIGINT)
    except Terminated:
        code, line = 128 + signal.SIGTERM, STANDING.farewell(signal.SIGTERM)
    except LostProcessError as error:
        code, line = LOST, STANDING.last_line(str(error), speaks_of_others())
    if line:
        print(line, file=sys.stderr)
    return code


def _run(args: list[str]) -> int:
    import warnings
    from importlib import import_module

    from bhfl.cli.current_folder import find_in_current_folder
    from bhfl.cli.exits import BAD_CONFIG, exit_code, format_warning, report, told
    from bhfl.cli.hints import suggestion
    from bhfl.cli.reading import ConfigError, read_layers
    from bhfl.engine.ending import LostProcessError, ended_in_order, no_exit_of_others

    warnings.formatwarning = format_warning
    if args[0] in APART:
        command = import_module(f"bhfl.{args[0]}.command")
        with ended_in_order(deaf=False):
            return int(command.main(args[1:]))
    if args[0] not in COMMANDS:
        report([f"{args[0]!r} is no command{suggestion(args[0], COMMANDS | APART)}"])
        return BAD_CONFIG
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # of what LightningCLI calls
    # of sockets that end, which is told in one line
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    find_in_current_folder()
    try:
        with no_exit_of_others():
            if args[0] == "sweep":
                from bhfl.cli.sweep.command import sweep

                return sweep(args[1:])
            layers = read_layers(args[1:])  # what is wrong here is answered before torch is loaded
            from bhfl.cli.federated_cli import FederatedCLI

            FederatedCLI(args, layers)
    except ConfigError as error:
        report(error.problems)
        return BAD_CONFIG
    except LostProcessError:
        raise
    except Exception as error:
        code = exit_code(error)
        if code is None:
            raise
        report([told(error)])
        return code
    return 0
