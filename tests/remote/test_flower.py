"""What Flower is started with."""

import importlib.util
import os
import re
import sys
from pathlib import Path

import pytest

from bhfl.remote.flower import environment, free_port, listening, needs_flower, program


def test_without_flower_a_message_names_the_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from bhfl.remote.keys import make_keys

    monkeypatch.setattr("bhfl.remote.flower.find_spec", lambda name: None)
    told = re.escape("pip install 'bhfl[flower]'")
    with pytest.raises(ImportError, match=told):
        needs_flower()
    with pytest.raises(ImportError, match=told):
        make_keys(tmp_path / "keys", ["int8"], [])
    with pytest.raises(ImportError, match=told):
        program("flower-superlink")


def test_it_tells_nobody_and_writes_where_it_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "1")
    monkeypatch.setenv("FLWR_HOME", "/elsewhere")
    found = environment(tmp_path / "home", {"MORE": "1"})
    assert found["FLWR_TELEMETRY_ENABLED"] == "0"
    assert found["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert found["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"
    assert found["FLWR_HOME"] == str(tmp_path / "home")
    assert found["MORE"] == "1"
    assert found["PATH"].split(os.pathsep)[0] == os.path.dirname(sys.executable)


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with listening("127.0.0.1", 0, "port") as taken:
        taken.listen()
        port = taken.getsockname()[1]
        told = f"superlink port {port} of 127.0.0.1 cannot be taken: Address already in use"
        with pytest.raises(OSError, match=told):
            free_port(port, "superlink port")
    assert free_port(port, "superlink port") == port


@pytest.mark.parametrize("port", [-1, 65536, True, "80"])
def test_what_is_no_port_is_refused(port: int) -> None:
    with pytest.raises(ValueError, match="port must be an integer from 0 to 65,535, got"):
        free_port(port, "port")


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(OSError, match=r"port 0 of 192\.0\.2\.1 cannot be taken"):
        listening("192.0.2.1", 0, "port")


@pytest.mark.skipif(importlib.util.find_spec("flwr") is None, reason="Flower is not installed")
def test_its_programs_are_those_of_this_python() -> None:
    assert program("flower-superlink") == os.path.join(
        os.path.dirname(sys.executable), "flower-superlink"
    )
