"""``bhfl init NAME``: a commented configuration to begin with. This loads no torch."""

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bhfl.checks import choice
from bhfl.cli.command import run_or_tell
from bhfl.cli.packaged import packaged_names
from bhfl.cli.reading import ConfigError, options
from bhfl.files import user_path, write_text

_FOLDER = Path(__file__).parent / "starts"
_PLACE = "FILE"
"""What stands in a start for the name of the file that it is written to."""


@dataclass(frozen=True)
class Start:
    """A configuration to begin with.

    Attributes:
        about: What it is, in a few words.
        command: The command that runs it, without the file.
        beside: Other files that it needs, which are written to the same folder.
    """

    about: str
    command: str = "bhfl fit --config"
    beside: tuple[str, ...] = ()


STARTS = {
    "demo": Start("int8 and float32 clients on scikit-learn's digits"),
    "module": Start("your own LightningModule and data", beside=("my_module.py",)),
    "images": Start("pictures of yours, in a folder or an archive"),
    "links": Start("simulated links, devices and a deadline"),
    "network": Start(
        "clients on other machines, over a network",
        command="bhfl serve --config",
        beside=("client.yaml",),
    ),
    "sweep": Start("methods by settings by seeds, and a report", command="bhfl sweep"),
}

HELP = f"""usage: bhfl init NAME [--out FILE]
       bhfl init --list

Writes a configuration to begin with, in which comments say what its keys do and what else they take. No file is
overwritten.

names:
{chr(10).join(f"  {name:<10} {start.about}" for name, start in STARTS.items())}

options:
  --out FILE         where to write it (NAME.yaml)
  --list             print these names, and those of all configurations that come with bhfl
"""  # noqa: E501


def main(args: Sequence[str]) -> int:
    """Run ``bhfl init``, given its options; the exit code."""
    return run_or_tell(_init, args, HELP)


def _init(args: Sequence[str]) -> int:
    name, out, lists = _read(args)
    if lists:
        _print_names()
        return 0
    if name is None:
        raise ConfigError(f"NAME is missing: bhfl init NAME, which is one of {', '.join(STARTS)}")
    if problem := choice(*STARTS)(name):
        raise ConfigError(f"NAME {problem}")
    _write(STARTS[name], name, out)
    return 0


def _read(args: Sequence[str]) -> tuple[str | None, str | None, bool]:
    """What the command line asks for: NAME, FILE, and whether names are to be listed.

    Raises:
        ConfigError: It cannot be used; it lists everything that is wrong.
    """
    name = None
    out = None
    lists = False
    problems = []
    for option, value in options(args):
        if option == "" and name is None:
            name = value
        elif option == "list":
            lists = True
        elif option == "out" and value:
            out = value
        elif option == "out":
            problems.append("--out needs a file")
        else:
            word = f"--{option}" if option else repr(value)
            problems.append(f"{word} is not understood: bhfl init NAME [--out FILE] [--list]")
    if problems:
        raise ConfigError(*problems)
    return name, out, lists


def _print_names() -> None:
    print("bhfl init NAME writes a configuration to begin with:\n")
    for name, start in STARTS.items():
        print(f"  {name:<10} {start.about}")
    print("\nbhfl fit --config NAME and bhfl sweep NAME take what comes with bhfl:\n")
    for name in packaged_names():
        command = "sweep" if "/sweeps/" in name else "fit"
        print(f"  {name:<28} {command}")


def _write(start: Start, name: str, out: str | None) -> None:
    """Write a start, and say what to type next.

    Args:
        start: Which one.
        name: Its name.
        out: Where to; ``NAME.yaml`` if it is None.

    Raises:
        ConfigError: A file is there already, or `out` is no path.
        OSError: A file cannot be written.
    """
    try:
        path = user_path(out or f"{name}.yaml")
    except ValueError as error:
        raise ConfigError(f"--out must be a file: {error}") from error
    files = {path: f"{name}.yaml"}
    files |= {path.parent / other: other for other in start.beside}
    # lexists: a link that leads nowhere is there, too
    if there := list(filter(os.path.lexists, files)):
        raise ConfigError(*[f"{file} is there already, and is left as it is" for file in there])
    path.parent.mkdir(parents=True, exist_ok=True)
    # whole or not at all: what there was of it would be left as it is by the next command
    try:
        for file, source in files.items():
            text = (_FOLDER / source).read_text(encoding="utf-8")
            write_text(file, text.replace(_PLACE, shlex.quote(path.name)))
    except BaseException:
        for file in files:
            file.unlink(missing_ok=True)
        raise
    print(f"{' and '.join(map(str, files))}: {start.about}")
    # files beside it are found from the folder where they are
    folder = "" if path.parent == Path() else f"cd {shlex.quote(str(path.parent))} && "
    print(f"next: {folder}{start.command} {shlex.quote(path.name)}")
