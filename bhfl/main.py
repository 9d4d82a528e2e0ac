"""The command line: ``bhfl COMMAND``, one of `COMMANDS`."""

from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from bhfl import __version__
from bhfl.cli.command import leave
from bhfl.cli.installed import clash

COMMANDS = {
    "init": "write a commented configuration to begin with",
    "fit": "train one model over a fleet of clients, then test it",
    "serve": "train over clients on other machines, which join over a network",
    "join": "take part in such a training as one client",
    "validate": "measure a model on the validation split, by bit group",
    "test": "measure a model on the test split, by bit group",
    "predict": "write what a model predicts of the test split to a file: CSV or NumPy",
    "partition": "show which samples each client has, without training: table, CSV and picture",
    "analyze": "tell what each layer saves when it is quantised, and what that costs",
    "profile": "tell what a round costs each bit group: FLOPs, memory, seconds, bytes, by layer",
    "export": "write a trained model at each bit-width of its fleet: integers, ONNX, model card",
    "sweep": "run a matrix of methods, settings and seeds: what is missing, a few runs at a time",
    "report": "compare runs: tables, CSV and one page with all pictures",
    "doctor": "look at this installation and machine: versions, devices, backends, extras",
}

HELP = f"""usage: bhfl COMMAND [--config FILE ...] [--option value ...]

Federated learning among clients of different bit-widths.

commands:
{chr(10).join(f"  {name:<10} {text}" for name, text in COMMANDS.items())}

  bhfl COMMAND --help        all options
  bhfl --version             the version

examples:
  bhfl init demo                                                          write demo.yaml; bhfl init --list has others
  bhfl fit --config digits/fedavg
  bhfl fit --config digits/fedavg --clients '{{ternary: 3, 4: 3, 32: 4}}' --trainer.max_rounds 5
  bhfl fit --config digits/fedavg --print_config
  bhfl partition --config digits/fedavg                                   which samples each client has
  bhfl fit --config runs/NAME/version_0/config.yaml --ckpt_path last      go on with a run
  bhfl test --config runs/NAME/version_0/config.yaml --ckpt_path best     measure its best model
  bhfl predict --config runs/NAME/version_0/config.yaml --ckpt_path best --out predictions.csv
  bhfl analyze --config runs/NAME/version_0/config.yaml --ckpt_path last  its layers: table, CSV and picture
  bhfl profile --config digits/fedavg                                     what a fleet costs, before it trains
  bhfl export --config runs/NAME/version_0/config.yaml --ckpt_path best   its files for others, with a card
  bhfl sweep digits/sweeps/demo --jobs 2                                  several methods over seeds, and a report
  bhfl report runs --target 0.9                                           all runs side by side
"""  # noqa: E501


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run one command, and leave with its exit code; see `bhfl.cli.command`.

    Args:
        args: The command and its options; by default those of the process.

    Raises:
        SystemExit: Always.
    """
    leave(run, args)


def run(args: list[str]) -> int:
    """Run one command, of which only what it needs is loaded; its exit code."""
    problem = clash()
    if not problem:
        if not args or args[0] in ("-h", "--help"):
            print(HELP, end="")
            return 0
        if args[0] == "--version":
            print(f"bhfl {__version__}")
            return 0
        if args[0] in COMMANDS:
            return _run_known(args[0], args[1:])
        from bhfl.checks import suggestion

        problem = f"unknown command {args[0]!r}{suggestion(args[0], COMMANDS)}"
    from bhfl.cli.exits import BAD_CONFIG, report

    report(problem)
    return BAD_CONFIG


def _run_known(command: str, args: list[str]) -> int:
    """Run a command of `COMMANDS`, given its options; its exit code."""
    if command == "report":
        from bhfl.engine.ending import STANDING, ended_in_order
        from bhfl.report.command import main as compare

        STANDING.begin("the same command writes the report anew")
        STANDING.at("comparing runs")
        with ended_in_order(deaf=False):
            return compare(args)
    if command in ("init", "doctor", "join"):
        # each has a module of its own
        return int(import_module(f"bhfl.cli.{command}").main(args))
    if command == "sweep":
        from bhfl.sweep.command import main as sweep

        return sweep(args)
    from bhfl.cli.command import main as run_configured

    return run_configured([command, *args])
