"""The two distributions of one package: which one is there, and both at once."""

import pytest

from bhfl import main
from bhfl.cli import client, installed

BOTH = (
    "error: bhfl and bhfl-client are both installed, and hold the same package: pip uninstall bhfl "
    "bhfl-client, then install one of them again\n"
)


@pytest.mark.parametrize("run", [main.run, client.run])
def test_both_at_once_are_refused_by_either_command_with_one_message(
    run, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(installed, "version", lambda name: "0.1.0")
    assert run(["--version"]) == 2
    assert capsys.readouterr() == ("", BOTH)


def test_one_alone_is_not() -> None:
    assert (installed.clash(), installed.is_whole()) == ("", True)


def test_the_small_one_has_one_command(capsys) -> None:
    assert client.run([]) == client.run(["--version"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("usage: bhfl join")
    assert (out.splitlines()[-1], err) == ("bhfl-client 0.1.0", "")
    assert client.run(["fit"]) == 2
    assert capsys.readouterr().err == (
        "error: bhfl-client has the command join alone, got 'fit': the others are bhfl's\n"
    )
    assert client.run(["join", "--help"]) == 0
