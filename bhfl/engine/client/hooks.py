"""The client half of an algorithm: hooks held to what they may return before anything goes on."""

from collections.abc import Mapping

from torch import Tensor

from bhfl.comm import Tensors
from bhfl.engine.algorithm import Algorithm, LocalRun
from bhfl.engine.handed import ReturnError, check_kept, check_metrics, check_tensors, name_of
from bhfl.engine.types import Client, Params


class ClientHooks:
    """Calls the hooks of the client half; what is wrong with what one returns is a `ReturnError`.

    Args:
        algorithm: Its hooks.
        model: The first model, by name, for the names, shapes and dtypes of its tensors.
    """

    def __init__(self, algorithm: Algorithm, model: Mapping[str, Tensor]) -> None:
        self.algorithm = algorithm
        self.model = model
        # the default gives the message itself, in which there is nothing to check
        self.receives = type(algorithm).receive is not Algorithm.receive
        self.closes = type(algorithm).client_close is not Algorithm.client_close

    def name(self, hook: str) -> str:
        """What errors call a hook."""
        return name_of(self.algorithm, hook)

    def init_client(self, client: Client, received: Params) -> dict[str, Tensor]:
        """What a client keeps, at first."""
        state = self.algorithm.init_client(client, received)
        check_kept(self.name("init_client"), state)
        return state

    def receive(self, received: Params, state: dict[str, Tensor]) -> Params:
        """The tensors of the model that a client makes of a downlink."""
        given = self.algorithm.receive(received, state)
        if self.receives:
            check_tensors(self.name("receive"), given, self.model, known=received)
        return given

    def uplink(self, run: LocalRun) -> Tensors | None:
        """What a client sends."""
        update, hook = self.algorithm.uplink(run), self.name("uplink")
        if update is not None and not isinstance(update, Mapping):
            raise ReturnError(
                f"{hook} must return a dict of tensors by name, or None, got "
                f"{type(update).__name__}"
            )
        check_metrics(f"{hook} must leave in run.metrics", run.metrics)
        check_kept(f"run.state after {hook}", run.state)
        return update

    def client_close(
        self, client: Client, state: dict[str, Tensor], closing: Params
    ) -> dict[str, Tensor]:
        """A client's state after it received `closing`."""
        kept = self.algorithm.client_close(client, state, closing)
        check_kept(self.name("client_close"), kept)
        return kept
