"""DP-FedAvg. McMahan et al., ICLR 2018, https://arxiv.org/abs/1710.06963."""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bhfl.algorithms.clipping import RATE, clipped, following_bound
from bhfl.algorithms.trained import OfTrained
from bhfl.checks import checked, or_none, positive, refuse, within
from bhfl.comm import float_tensors
from bhfl.engine.aggregate import Aggregator, Flattener, WeightedMean
from bhfl.engine.algorithm import Context, LocalRun
from bhfl.engine.buffers import tracks_statistics
from bhfl.engine.private import followed, is_public
from bhfl.engine.random import RandomKeys
from bhfl.engine.sampling import cohort_size, inclusion_rate
from bhfl.engine.sums import all_reduce_sum
from bhfl.engine.types import Client, Metrics, Params, ServerState, Tensors

if TYPE_CHECKING:
    from lightning.fabric import Fabric

_DELTA = 1e-5
_EXPONENT = 1.1
"""The default of `delta` is the smaller one of the first and ``clients ** -second``."""
_NOISE = within("[0, 1e6]")
_LEAST_NOISE = 1e-6
"""Beyond these, epsilon is lost in rounding."""
_OF_COHORT = 1 / 20
"""Noise on the number of moves within the bound, for each client of the mean cohort (Andrew et al.,
section 3.1).
"""


class DPFedAvg(OfTrained):
    """FedAvg whose model tells little of any one client:

    ``w_{t+1} = w_t + (sum_i clip(w_i - w_t) + N(0, (z * bound)^2)) / m`` with ``m`` the mean number
    of clients in a round, whoever took part. Every client counts once. Each joins a round by itself
    (``trainer.sampling: poisson``), and a round without any is noised and counted like all others.

    ``privacy/epsilon`` and ``privacy/delta`` are logged after each round: for any client, what can
    be read from all models so far is (epsilon, delta)-indistinguishable from what could be without
    it. They hold for the models alone, and as long as nobody knows the seed, which the noise
    follows. Clients send the parameters that are trained, and nothing else: all other floating ones
    stay as the server has them, running statistics and counters stay with their clients.

    With `quantile` the bound follows the moves (Andrew et al., NeurIPS 2021,
    https://arxiv.org/abs/1905.03871). The number of moves within it gets noise of its own, and the
    moves get more for that: epsilon is the same.

    Args:
        bound: The largest length of a client's move, over all parameters, after what it sent was
            dequantised; null for none, without noise.
        noise_multiplier: ``z``, in [1e-6, 1e6]; 0 for no noise and no guarantee.
        delta: The probability with which the guarantee may fail; null is 1e-5, or ``n^-1.1`` where
            that is less, with n the number of clients.
        quantile: The share of moves that are to be within the bound, in [0, 1]; null for a fixed
            bound.
        rate: How fast the bound follows, in (0, 10].
        count_noise: Standard deviation of the noise on the number of moves within the bound, more
            than half of `noise_multiplier`; null is ``m / 20``, or `noise_multiplier` where that is
            more.

    Raises:
        ValueError: An argument is out of its range, or there is noise without a bound; in `setup`,
            the trainer's settings would break the guarantee.
        ImportError: In `setup`, the extra ``dp`` is not installed.
    """

    private = True
    withstands = True

    def __init__(
        self,
        bound: float | None = 1.0,
        noise_multiplier: float = 1.0,
        delta: float | None = None,
        quantile: float | None = None,
        rate: float = 0.2,
        count_noise: float | None = None,
    ) -> None:
        self.bound = checked("DPFedAvg.bound", bound, or_none(positive))
        self.noise_multiplier = checked("DPFedAvg.noise_multiplier", noise_multiplier, _NOISE)
        self.delta = checked("DPFedAvg.delta", delta, or_none(within("(0, 1)")))
        self.quantile = checked("DPFedAvg.quantile", quantile, or_none(within("[0, 1]")))
        self.rate = checked("DPFedAvg.rate", rate, RATE)
        self.count_noise = checked("DPFedAvg.count_noise", count_noise, or_none(_NOISE))
        refuse(self._problems())

    def _problems(self) -> Iterator[str]:
        """What is wrong with the options together."""
        if self.bound is None and self.noise_multiplier:
            yield (
                "DPFedAvg.noise_multiplier must be 0 without DPFedAvg.bound, because noise hides "
                f"moves of bounded length alone, got {self.noise_multiplier}"
            )
        if self.bound is None and self.quantile is not None:
            yield f"DPFedAvg.quantile needs DPFedAvg.bound to begin with, got {self.quantile}"
        if 0 < self.noise_multiplier < _LEAST_NOISE:
            yield (
                f"DPFedAvg.noise_multiplier must be 0 or at least {_LEAST_NOISE}, got "
                f"{self.noise_multiplier}"
            )
        least = self.noise_multiplier / 2
        if self.count_noise is not None and self.noise_multiplier and self.count_noise <= least:
            yield (
                "DPFedAvg.count_noise must be more than half of DPFedAvg.noise_multiplier, "
                f"{least}, got {self.count_noise}"
            )

    def expected(self, server: ServerState) -> Params:
        """The parameters that are trained."""
        return {name: server.params[name] for name in self._trained}

    def uplink(self, run: LocalRun) -> Tensors:
        """The same, at the client's bits."""
        update = super().uplink(run) or {}
        return {name: update[name] for name in self._trained}

    def setup(self, context: Context) -> None:
        """See who takes part how often, and that nothing leaves a client but its move.

        Raises:
            ValueError: Cohorts are drawn in another way than is accounted for, clients do not count
                alike, make each other late, or follow each other's metrics, or running statistics
                would be averaged.
            ImportError: There is noise, and the extra ``dp`` is not installed.
        """
        refuse(self._misfits(context))
        clients = len(context.clients)
        cohort = context.settings.cohort
        self._rate = inclusion_rate(clients, cohort.clients_per_round)
        self._cohort = self._rate * clients
        if cohort.sampling != "poisson":
            self._cohort = cohort_size(clients, cohort.clients_per_round)
        self._delta = self.delta or min(_DELTA, clients**-_EXPONENT)
        if self.noise_multiplier:
            # now, and not after a round
            epsilon_of(self._rate, self.noise_multiplier, 1, self._delta)

    def _misfits(self, context: Context) -> Iterator[str]:
        """What settings and model do not fit the guarantee."""
        settings = context.settings
        if self.noise_multiplier and settings.cohort.sampling != "poisson":
            yield (
                "DPFedAvg accounts for clients that join a round by themselves: trainer.sampling "
                f"must be poisson, got {settings.cohort.sampling!r}; with "
                "algorithm.noise_multiplier: 0 it may be any"
            )
        if settings.aggregation.weights != "uniform":
            yield (
                "DPFedAvg counts each client once: trainer.weights must be uniform, got "
                f"{settings.aggregation.weights!r}"
            )
        if settings.aggregation.norm != "local" and tracks_statistics(context.module):
            yield (
                "DPFedAvg adds noise to parameters alone, and running statistics must stay with "
                f"their clients: trainer.norm must be local, got {settings.aggregation.norm!r}; or "
                "take a model without BatchNorm"
            )
        network = settings.fleet.network
        shares = bool(network and network.shared_uplink and network.deadline_seconds is not None)
        if self.noise_multiplier and shares:
            yield (
                "DPFedAvg accounts for clients that change nothing of each other's round: "
                "network.shared_uplink must be false where network.deadline_seconds is set, "
                "because one client more makes others late, got true"
            )
        yield from self._unfit_schedules(context)

    def _unfit_schedules(self, context: Context) -> Iterator[str]:
        """Schedules by which what clients measure would reach their models without noise."""
        settings = context.settings
        if settings.training.lr_schedule == "restart":
            return
        # statistics and counters stay with clients, whose models validation then measures
        counters = [not tensor.is_floating_point() for tensor in context.worker.state().values()]
        apart = any(counters) or settings.aggregation.finetune_epochs
        for tag in followed(context.module):
            told = (
                f"ReduceLROnPlateau in {type(context.module).__name__}.configure_optimizers must "
                f"not follow what clients measure, got {tag!r}"
            )
            if apart:
                yield (
                    f"DPFedAvg adds no noise to metrics: {told}, which is of clients' own models "
                    "under trainer.finetune_epochs and where BatchNorm or integer buffers stay "
                    "with them; set trainer.lr_schedule: restart"
                )
            elif not is_public(tag, {client.group for client in context.clients}):
                yield (
                    f"DPFedAvg adds no noise to metrics: {told}; monitor what the server measures, "
                    "such as val/loss, or set trainer.lr_schedule: restart"
                )

    def init_server(self, params: Params, clients: Sequence[Client]) -> dict[str, Any]:
        """The bound."""
        return {"bound": math.inf if self.bound is None else self.bound}

    def reconstruct(
        self, update: Tensors, client: Client, server: ServerState
    ) -> tuple[Params, bool]:
        """The trained weights at the bound, in float64, and whether they were within it."""
        weights = {name: value.double() for name, value in float_tensors(update).items()}
        return clipped(weights, self.expected(server), server.extra["bound"])

    def aggregator(self, server: ServerState, clients: Sequence[Client]) -> Aggregator:
        """Exact sums of both."""
        return _Sum(self.expected(server))

    def server_update(
        self, server: ServerState, aggregate: tuple[Tensor, Tensor], rng: RandomKeys
    ) -> ServerState:
        """The noised mean over a cohort of mean size, the next bound, and what it all costs."""
        total, (count, inside) = aggregate
        moving = Flattener(self.expected(server))
        # who did not come has not moved
        absent = self._cohort - count
        total = total + absent * moving.flatten(server.params).double()
        bound = server.extra["bound"]
        metrics: Metrics = {}
        if self.noise_multiplier:
            generator = rng.torch("server")
            noises = torch.randn(len(total) + 1, dtype=torch.float64, generator=generator)
            total += self._noise * bound * noises[:-1]
            inside = inside + self._count_noise * noises[-1]
            spent = epsilon_of(self._rate, self.noise_multiplier, server.round + 1, self._delta)
            metrics = {"privacy/epsilon": spent, "privacy/delta": self._delta}
        share = float(inside) / self._cohort + 0.5
        mean = moving.unflatten(total / self._cohort)
        following = self.apply_mean(server, {**server.params, **mean})
        bound = following_bound(bound, share, self.quantile, self.rate)
        extra = {**following.extra, "bound": bound}
        return replace(following, extra=extra, metrics={**following.metrics, **metrics})

    @property
    def _count_noise(self) -> float:
        if self.count_noise is not None:
            return self.count_noise
        return max(self._cohort * _OF_COHORT, self.noise_multiplier)

    @property
    def _noise(self) -> float:
        """The multiplier of the moves' noise."""
        if self.quantile is None:
            return self.noise_multiplier
        # theorem 1 of Andrew et al.: both together are as private as `noise_multiplier` alone
        part = self.noise_multiplier / (2 * self._count_noise)
        return float(self.noise_multiplier * (1 - part**2) ** -0.5)

    def summarize(self, server: ServerState, metrics: Mapping[str, float]) -> Metrics:
        """The next bound."""
        return {} if self.bound is None else {"clipping/bound": server.extra["bound"]}


class _Sum:
    """The sum of clipped weights, the number of clients, and the sum of 1/2 for each whose move was
    within the bound and -1/2 for each other: one client more changes it by half as much as a count.
    """

    def __init__(self, like: Params) -> None:
        self.mean = WeightedMean(like)
        self.inside = torch.zeros((), dtype=torch.float64)

    def expect(self, cohort: Sequence[Client]) -> None:
        self.mean.expect(cohort)

    def add(self, update: tuple[Params, bool], client: Client) -> None:
        weights, inside = update
        # first: it may refuse
        self.mean.add(weights, client)
        self.inside += inside - 0.5

    def reduce(self, fabric: "Fabric") -> tuple[Tensor, Tensor]:
        """Float64 [parameters], and float64 [2]."""
        self.mean.sum.reduce(fabric)
        counts = all_reduce_sum(fabric, torch.stack([self.mean.weight, self.inside]))
        return self.mean.sum.value(), counts


# ---- accounting ----------------------------------------------------------------------------------


def epsilon_of(rate: float, noise_multiplier: float, rounds: int, delta: float) -> float:
    """Epsilon of so many rounds, by Rényi differential privacy for clients that are there or not
    (Mironov et al. 2019, https://arxiv.org/abs/1908.10530), as dp-accounting computes it.

    Args:
        rate: The probability with which a client takes part in a round.
        noise_multiplier: Standard deviation of the noise over the bound.
        rounds: How many.
        delta: That of the guarantee.

    Raises:
        ImportError: The extra ``dp`` is not installed.
    """
    dp_accounting = _dp_accounting()
    orders, spent = _one_round(rate, noise_multiplier)
    epsilon, _ = dp_accounting.rdp.compute_epsilon(orders, rounds * spent, delta)
    return float(epsilon)


def _dp_accounting() -> Any:
    try:
        return import_module("dp_accounting")
    except ImportError as error:
        raise ImportError("DPFedAvg needs dp-accounting: pip install 'bhfl[dp]'") from error


@cache
def _one_round(rate: float, noise_multiplier: float) -> tuple[Any, Any]:
    """Orders, and what a round spends at each of them: rounds add up."""
    dp_accounting = _dp_accounting()
    accountant = dp_accounting.rdp.RdpAccountant()
    noise = dp_accounting.GaussianDpEvent(noise_multiplier)
    with _quiet(logging.getLogger("absl")):
        accountant.compose(dp_accounting.PoissonSampledDpEvent(rate, noise))
    return accountant.orders, accountant.rdp


@contextmanager
def _quiet(log: logging.Logger) -> Iterator[None]:
    """Silence absl's warnings of orders that are left out, which only makes epsilon larger."""
    level = log.level
    log.setLevel(logging.ERROR)
    # where the root logger has no handler, absl gives it one for good, and all is said twice
    none = logging.NullHandler()
    logging.root.addHandler(none)
    try:
        yield
    finally:
        logging.root.removeHandler(none)
        log.setLevel(level)
