"""What every process of Flower is started with: its program, its environment and a free port."""

import os
import shutil
import socket
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from bhfl.checks import checked, count

_REMEDY = "pip install 'bhfl[flower]'" if find_spec("bhfl.main") else "pip install bhfl-client"
"""What installs Flower: the small distribution, which has one command alone, needs it anyway."""


def needs_flower() -> None:
    """Make sure that Flower is installed, without importing it.

    Raises:
        ImportError: It is not, saying what to install.
    """
    if find_spec("flwr") is None:
        raise ImportError(f"a federation over a network needs Flower: {_REMEDY}")


def environment(home: Path, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a process of Flower: it reports to nobody, looks for no update, installs
    nothing, and writes below `home` alone.

    Args:
        home: The folder for Flower's own files.
        more: What the process is told besides.
    """
    # a SuperLink starts its helpers by name: they are those of this Python
    beside = os.path.dirname(sys.executable)
    return {
        **os.environ,
        "PATH": os.pathsep.join([beside, os.environ.get("PATH", os.defpath)]),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_HOME": str(home.absolute()),
        # how often they look for messages to be worked on: once a second by default
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
        "PYTHONUNBUFFERED": "1",
        **(more or {}),
    }


def program(name: str) -> str:
    """The path of a program of Flower, such as ``flower-superlink``.

    Raises:
        ImportError: It is not installed.
    """
    needs_flower()
    beside = os.path.dirname(sys.executable)
    found = shutil.which(name, path=beside) or shutil.which(name)
    if found is None:
        raise ImportError(f"there is no program {name}: {_REMEDY}")
    return found


def listening(host: str, port: int, key: str) -> socket.socket:
    """A socket that is bound to a port and does not listen yet.

    Args:
        host: The address to be reached at.
        port: The port; 0 takes a free one.
        key: The name that messages call the port.

    Raises:
        ValueError: It is no port, or the address is not of this machine.
        OSError: Another process has the port, or the user may not take it.
    """
    checked(key, port, count(0, 65535))
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise ValueError(f"{key}: there is no address {host}: {error.strerror}") from error
    bound = socket.socket(family, kind, proto)
    try:
        # a port that a killed server had just before is free; one that somebody listens at is not
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise OSError(
            error.errno, f"{key} {port} of {host} cannot be taken: {error.strerror}"
        ) from error
    return bound


def free_port(port: int, key: str) -> int:
    """A port of 127.0.0.1 that nobody has now, for a process that binds it by itself.

    Args:
        port: The port that is wanted; 0 takes any.
        key: The name that messages call it.

    Raises:
        ValueError: It is no port.
        OSError: Another process has it.
    """
    with listening("127.0.0.1", port, key) as bound:
        return int(bound.getsockname()[1])
