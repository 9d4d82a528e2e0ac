"""The server of a federation over a network: a fit whose clients are on other machines."""

import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import yaml

from bhfl.engine.ending import STANDING
from bhfl.engine.links import MeasuredLinks
from bhfl.engine.result import FitResult
from bhfl.engine.session import Session
from bhfl.engine.trainer import FederatedTrainer
from bhfl.engine.types import FederatedData
from bhfl.engine.written import configuration
from bhfl.files import write_json
from bhfl.plain import read_json
from bhfl.recorded import FROM_DATA, UNWRITTEN
from bhfl.remote.attendance import Terms
from bhfl.remote.bundle import start_app
from bhfl.remote.fleet import NETWORK_JSON, FlowerClients
from bhfl.remote.front import Front
from bhfl.remote.keys import server_keys
from bhfl.remote.messages import SIZES
from bhfl.remote.registry import Registry
from bhfl.remote.relay import Relay
from bhfl.remote.scratch import scratch
from bhfl.remote.sealed import Sealed
from bhfl.remote.superlink import Control, SuperLink
from bhfl.settings import Role

_log = logging.getLogger(__name__)

_SECTIONS = ("seed_everything", "clients", "algorithm", "model", "data", "trainer")
"""What of a configuration clients are told."""


@dataclass(frozen=True)
class Place:
    """Where a server is reached, and by what keys.

    Attributes:
        keys: The folder that `bhfl.remote.keys.make_keys` made.
        host: The address to listen at.
        port: The port to listen at; 0 takes a free one.
        superlink: ``HOST:PORT`` of a SuperLink of this machine's that runs already, and that
            clients reach through a front of its own; None starts one, and a front.
    """

    keys: str | Path
    host: str = "0.0.0.0"
    port: int = 8443
    superlink: str | None = None


def serve(  # noqa: PLR0913
    trainer: FederatedTrainer,
    model: L.LightningModule,
    datamodule: FederatedData,
    place: Place,
    terms: Terms | None = None,
    ckpt_path: str | Path | None = None,
    written: Mapping[str, Any] | None = None,
) -> FitResult:
    """Fit a model over clients that join by `bhfl join`; the same run as `FederatedTrainer.fit`.

    Args:
        trainer: Its fleet says which clients there are, by their keys.
        model: See `FederatedTrainer.fit`.
        datamodule: The data of the server: what is held out of them, and how they are split.
        place: Where clients reach the server.
        terms: How clients are treated.
        ckpt_path: See `FederatedTrainer.fit`.
        written: The configuration of the run; by default what trainer, model and data say.

    Returns:
        What the run came to.

    Raises:
        ImportError: Flower is not installed.
        ValueError: The run needs several processes, waits for more clients than there are, its
            algorithm cannot be told to them, or the keys are those of another fleet.
        OSError: The port is in use.
    """
    processes = trainer.fabric.world_size
    if processes > 1:
        raise ValueError(f"trainer.devices must be 1 where clients are elsewhere, got {processes}")
    fleet = len(groups_of(trainer))
    terms = terms or Terms()
    if (terms.wait_for or 0) > fleet:
        raise ValueError(f"wait_for must be at most {fleet}, the whole fleet, got {terms.wait_for}")
    with _grid(trainer, place) as (grid, keyed, front):

        def connect(session: Session) -> FlowerClients:
            assert trainer.run is not None
            config = written or yaml.safe_load(configuration(session))
            told = _told(config, session)
            return FlowerClients(session, grid, keyed, told, terms, trainer.run.folder)

        trainer.connect = connect  # type: ignore[method-assign]
        trainer.links = MeasuredLinks(trainer.settings, terms.round_seconds, tells=True)
        try:
            result = trainer.fit(model, datamodule, ckpt_path)
            if front is not None:
                _tell_bytes(trainer, front)
            return result
        finally:
            # the class's own again
            vars(trainer).pop("connect")
            trainer.links = None


def _told(config: Mapping[str, Any], session: Session) -> dict[str, Any]:
    """What clients are told of a configuration: all but where the server computes and writes."""
    if why := config.get(UNWRITTEN, {}).get("algorithm"):
        raise ValueError(f"algorithm cannot be told to clients, which would run another: {why}")
    told = {key: config[key] for key in _SECTIONS if key in config}
    own = (Role.MACHINE, Role.OUTPUT)
    kept = {name for name, role, _ in session.settings.options() if role not in own}
    # tasks tell what each client is to do, and a trace may be a file of this machine's
    kept.discard("availability")
    network = session.settings.fleet.network
    if network is not None and network.file_digests:
        kept.discard("network")
    options = config.get("trainer", {})
    told["trainer"] = {name: options[name] for name in options if name in kept}
    if "model" in told:
        # a client's own data may not tell how many classes there are
        made_with = getattr(session.module, "_made_with", {})
        told[SIZES] = {key: made_with[key] for key in FROM_DATA if key in made_with}
    return told


def _tell_bytes(trainer: FederatedTrainer, front: Front) -> None:
    """Say and write the bytes of all requests and answers, Flower's own too, since the front was
    opened: their bodies, without the heads of HTTP.
    """
    assert trainer.run is not None
    path = trainer.run.folder / NETWORK_JSON
    wire = {"up": front.bytes_up, "down": front.bytes_down}
    write_json(path, {**read_json(path.read_bytes()), "wire_bytes": wire})
    up, down = (sum(one.values()) / 1e6 for one in wire.values())
    _log.info("on the wire since this start: %.3g MB up, %.3g MB down", up, down)


def groups_of(trainer: FederatedTrainer) -> list[str]:
    """The name of each client's group, that of client 0 first."""
    groups = []
    counts = trainer.fleet.counts(trainer.settings.fleet.num_clients)
    for group, count in zip(trainer.fleet.groups, counts, strict=True):
        groups += [group.label] * count
    return groups


class _Keyed:
    """Which client each node is; the SuperLink is asked where there are nodes that are not known.

    Args:
        control: Asks it.
    """

    def __init__(self, control: Control) -> None:
        self._control = control
        self._known: dict[int, int] = {}

    def __call__(self, nodes: Collection[int]) -> dict[int, int]:
        if not self._known.keys() >= set(nodes):
            found = self._control.nodes().items()
            self._known = {node.node: client for client, node in found}
        return {node: self._known[node] for node in nodes if node in self._known}


@contextmanager
def _grid(trainer: FederatedTrainer, place: Place) -> Iterator[tuple[Sealed, _Keyed, Front | None]]:
    """A Grid that carries messages to whoever has a key, for the block."""
    keys = server_keys(place.keys)
    registry = Registry.read(keys.registry)
    registry.fits(groups_of(trainer))
    with ExitStack() as stack:
        STANDING.at("starting Flower")
        own = stack.enter_context(scratch())
        address = place.superlink
        if address is None:
            superlink = stack.enter_context(SuperLink(own / "superlink", keys))
            address = superlink.address
        control = Control(address, keys, registry)
        stack.callback(control.close)
        control.register()
        relay = Relay(own, partial(start_app, own, address, keys.ca))
        stack.callback(relay.close)
        relay.restore()
        front = None
        if place.superlink is None:
            front = stack.enter_context(Front(keys, registry, address, place.host, place.port))
            _log.info("clients join at port %d", front.port)
        keyed = _Keyed(control)
        allowance = None if front is None else front.allowance
        yield Sealed(relay, keyed, allowance), keyed, front
