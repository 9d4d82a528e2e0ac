"""A ``bhfl`` that is forked from a process which has loaded the libraries: pages of the
documentation type dozens of commands, and to load them takes each of these five seconds of a core.

``python -m tests.forked PLACE`` listens at a socket. ``python -S tests/forked.py PLACE fit ...``
has ``bhfl fit ...`` run there, in its own folder and environment, with its own standard files.
"""

import array
import json
import os
import socket
import sys

MAX_BYTES = 1 << 20


def call(place: str, args: list[str]) -> int:
    """The exit code of ``bhfl`` with these arguments."""
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(place)
        request = {"args": args, "folder": os.getcwd(), "environment": dict(os.environ)}
        # standard input, output and errors
        files = array.array("i", [0, 1, 2])
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, files)]
        server.sendmsg([json.dumps(request).encode()], rights)
        server.shutdown(socket.SHUT_WR)
        return int(server.recv(MAX_BYTES) or b"1")


def serve(place: str) -> None:
    """Load what a command needs, and fork for each that is asked for, until this process is ended.

    It loads modules and computes nothing: a fork would wait for threads that only its parent has.
    """
    import gc

    import sklearn.datasets  # noqa: F401

    import bhfl.cli.federated_cli  # noqa: F401

    gc.freeze()
    listener = socket.socket(socket.AF_UNIX)
    # bound under another name first: who sees the place can already connect there
    listener.bind(place + ".new")
    listener.listen()
    os.rename(place + ".new", place)
    while True:
        asker, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            _answer(asker)
        asker.close()
        _forget_ended()


def _forget_ended() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def _answer(asker: socket.socket) -> None:
    """Run a command in a process of its own, and tell its exit code."""
    message, files, _, _ = socket.recv_fds(asker, MAX_BYTES, 3)
    while more := asker.recv(MAX_BYTES):
        message += more
    pid = os.fork()
    if pid == 0:
        asker.close()
        _become(json.loads(message), files)
    _, status = os.waitpid(pid, 0)
    asker.sendall(str(os.waitstatus_to_exitcode(status) % 256).encode())
    os._exit(0)


def _become(request: dict, files: list[int]) -> None:
    """Run ``python -m bhfl`` as if it had been started where it was asked for."""
    import runpy

    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv[1:] = request["args"]
    runpy.run_module("bhfl", run_name="__main__", alter_sys=True)
    raise SystemExit


if __name__ == "__main__":
    place, *words = sys.argv[1:]
    if words:
        sys.exit(call(place, words))
    serve(place)
