"""A simulated network in a run: seconds from measured bytes and counted FLOPs, deadlines, and what
they cost.
"""

from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import nn

from bhfl.algorithms import FedAvg, FedCOMGATE, FedPAQ, Local
from bhfl.comm.network import Profile, SimulatedNetwork, Workload
from bhfl.engine import TooFewClientsError
from bhfl.engine.algorithm import Algorithm
from bhfl.engine.availability import Availability
from bhfl.engine.callback import Callback
from tests.engine.hand_made import HandMade, Module, points
from tests.federation import Client, fake, fit, same

FORWARD_FLOPS = 2 * (5 * 9 * 4 * 4 + 80 * 13 + 13 * 4)
"""Of `federation.Net` for one example: two operations a multiply-accumulate."""


def network(**options):
    rates = {
        "uplink_bps": 1e5,
        "downlink_bps": 4e5,
        "compute_flops": 1e7,
        "spread": 0.5,
        "latency_seconds": 0.1,
    }
    return SimulatedNetwork("slow", {"slow": Profile(**rates)}, **options)


def test_a_round_by_hand(tmp_path):
    run = fit(tmp_path, FedAvg(), {8: 1, 32: 2}, network=network(), max_rounds=2, local_epochs=2)
    examples = [client.num_examples for client in run.clients]
    assert run.session.timing.flops.example == FORWARD_FLOPS
    total = 0.0
    for round, row in enumerate(run.run.history):
        down = row["downlink_bytes"] // 3
        by_group = run.run.ledger.by_group
        up = [
            by_group["int8"]["uplink_bytes"] // 2,
            *[by_group["float32"]["uplink_bytes"] // 4] * 2,
        ]
        seconds = []
        for client in range(3):
            link = network().link(round, client)
            flops = 3 * FORWARD_FLOPS * 2 * examples[client]
            transfer = 0.2 + 8 * down / link.downlink_bps + 8 * up[client] / link.uplink_bps
            seconds.append(transfer + flops / link.compute_flops * link.slowdown)
        total += max(seconds)
        assert row["time/simulated_round_s"] == pytest.approx(max(seconds))
        assert row["time/simulated_s"] == pytest.approx(total)


def test_a_batch_that_is_a_mapping_has_as_many_examples(tmp_path):
    class Named(HandMade):
        def client_batches(self, *args):
            return ({"x": x, "y": y} for x, y in super().client_batches(*args))

    class Module(Client):
        def training_step(self, batch, batch_idx):
            return nn.functional.cross_entropy(self.net(batch["x"]), batch["y"])

        def validation_step(self, batch, batch_idx):
            self.net(batch["x"])

    found = []
    for data, module in ((HandMade([points(8)] * 2), Client), (Named([points(8)] * 2), Module)):
        make = partial(module, nn.Linear(6, 3))
        options = {"network": network(), "max_rounds": 1, "monitor": "train/loss", "mode": "min"}
        found.append(
            fit(
                tmp_path, clients={32: 2}, module=make, data=data, **options
            ).session.timing.flops.example
        )
    assert found == [2 * 6 * 3] * 2


class Sequences(Client):
    """Pictures of 6x6 pixels as sequences of 6 steps."""

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.logits(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.logits(batch[0])

    def test_step(self, batch, batch_idx):
        self.logits(batch[0])

    def logits(self, x):
        y = self.net(x.squeeze(1))
        return (y[0] if isinstance(y, tuple) else y)[:, -1, :4]


ATTENTION = 4 * 6 * 6 * 6 + 2 * 6 * 6 * 6  # projections in and out, scores and values


@pytest.mark.parametrize(
    ("make", "multiplications"),
    [
        (lambda: nn.LSTM(6, 8, batch_first=True), 6 * 4 * 8 * (6 + 8)),
        (lambda: nn.GRU(6, 8, batch_first=True), 6 * 3 * 8 * (6 + 8)),
        (
            lambda: nn.TransformerEncoderLayer(6, 2, 12, batch_first=True),
            ATTENTION + 2 * 6 * 6 * 12,
        ),
    ],
)
def test_recurrent_layers_and_attention_take_their_time(tmp_path, make, multiplications):
    options = {"network": network(), "max_rounds": 1, "monitor": "train/loss", "mode": "min"}
    run = fit(tmp_path, clients={32: 2}, module=lambda: Sequences(make()), **options)
    assert run.session.timing.flops.example == 2 * multiplications
    assert torch.backends.mha.get_fastpath_enabled()
    assert torch.backends.mkldnn.enabled


def test_every_method_sees_the_same_network_and_fewer_bits_are_sooner(tmp_path):
    times = [
        [
            row["time/simulated_round_s"]
            for row in fit(tmp_path, a, {32: 3}, network=network()).run.history
        ]
        for a in (FedAvg(), FedPAQ(8), FedPAQ(2), Local())
    ]
    for slower, faster in pairwise(times):
        assert all(a > b for a, b in zip(slower, faster, strict=True))


def test_the_model_does_not_depend_on_a_network_that_waits_for_all(tmp_path):
    with_network, without = (fit(tmp_path, network=n) for n in (network(), None))
    assert same(with_network.server.params, without.server.params)
    assert not any("simulated" in tag for tag in without.run.history[-1])


def test_what_comes_after_the_deadline_is_dropped_and_counted(tmp_path):
    full = fit(tmp_path, FedAvg(), {32: 4}, network=network(), max_rounds=1)
    works = [
        full.session.timing.workload(
            c, full.run.ledger.total("downlink_bytes") // 4,
            full.run.ledger.total("uplink_bytes") // 4, c.num_examples,
        )
        for c in full.clients
    ]  # fmt: skip
    times = [network().client_time(0, work).seconds for work in works]
    deadline = sorted(times)[1] * 1.001
    with pytest.warns(UserWarning, match=r"client \d late: its update would have arrived after"):
        run = fit(
            tmp_path, FedAvg(), {32: 4}, network=network(deadline_seconds=deadline), max_rounds=1
        )
    row = run.run.history[0]
    assert (row["clients/ok"], row["clients/late"]) == (2, 2)
    assert row["time/simulated_round_s"] == pytest.approx(deadline)
    assert run.server.participants == sorted(sorted(range(4), key=times.__getitem__)[:2])
    assert row["uplink_bytes"] == full.run.history[0]["uplink_bytes"]  # they sent, in vain


def test_a_deadline_that_nobody_meets_is_refused_before_any_work(tmp_path):
    with pytest.raises(
        ValueError, match=r"network\.deadline_seconds=0\.1 is met by no client: the fastest has rec"
    ):
        fit(tmp_path, network=network(deadline_seconds=0.1))
    assert not (tmp_path / "bhfl").exists()


def test_a_client_without_examples_meets_no_deadline(tmp_path):
    data = HandMade([points(20_000), points(0)])
    options = {"module": Module, "data": data, "monitor": "train/loss", "mode": "min"}
    with pytest.raises(
        ValueError, match=r"network\.deadline_seconds=0\.5 is met by no client: the fastest has rec"
    ):
        fit(tmp_path, clients={32: 2}, network=network(deadline_seconds=0.5), **options)


def test_a_deadline_that_uploads_never_meet_stops_the_run(tmp_path):
    timing = fit(tmp_path, FedAvg(), {32: 2}, network=network(), max_rounds=1).session.timing
    idle = [
        network().client_time(0, timing.workload(c, 5000, 0, c.num_examples)).seconds
        for c in timing.clients
    ]
    with (
        pytest.warns(UserWarning, match="late"),
        pytest.raises(
            TooFewClientsError, match=r"client 0 late: its update would have arrived after"
        ),
    ):
        fit(
            tmp_path,
            FedAvg(),
            {32: 2},
            network=network(deadline_seconds=min(idle) + 0.12),
            max_failed_rounds=1,
        )


def test_a_client_may_send_nothing(tmp_path):
    class Silent(Algorithm):
        def uplink(self, run):
            return None if run.client.id == 1 else super().uplink(run)

    with pytest.warns(UserWarning, match="client 1 skipped: nothing was sent"):
        run = fit(tmp_path, Silent(), {32: 3}, max_rounds=1)
    row = run.run.history[0]
    assert (row["clients/ok"], row["clients/skipped"]) == (2, 1)
    assert run.server.participants == [0, 2]


def test_a_closing_message_takes_its_time(tmp_path):
    def plain():
        return Client(momentum=0.0)

    options = {
        "module": plain,
        "data": fake(val_fraction=0.0),
        "norm": "average",
        "clients_per_round": 2,
    }
    options |= {
        "monitor": "train/loss",
        "mode": "min",
        "max_rounds": 1,
        "network": network(),
        "clients": {32: 3},
    }
    gate = fit(tmp_path, FedCOMGATE(8), local_steps=2, **options)
    paq = fit(tmp_path, FedPAQ(8), local_steps=2, **options)
    assert gate.run.history[0]["downlink_bytes"] > paq.run.history[0]["downlink_bytes"]
    assert (
        gate.run.history[0]["time/simulated_round_s"]
        > paq.run.history[0]["time/simulated_round_s"] + 0.1
    )


def test_time_goes_on_when_a_run_is_resumed(tmp_path):
    whole = fit(tmp_path / "a", network=network(), max_rounds=3)
    fit(tmp_path / "b", network=network(), max_rounds=2)
    resumed = fit(tmp_path / "b", network=network(), max_rounds=3, ckpt_path="last")
    assert resumed.run.history[-1]["time/simulated_s"] == whole.run.history[-1]["time/simulated_s"]
    with pytest.raises(Exception, match=r"trainer\.network\.seed: 0 -> 1"):
        fit(tmp_path / "b", network=network(seed=1), max_rounds=3, ckpt_path="last")


def test_a_trace_must_have_every_client(tmp_path):
    trace = tmp_path / "trace.csv"
    trace.write_text("client,round,uplink_bps,downlink_bps\n0,0,1e5,1e5\n1,0,1e5,1e5\n")
    with pytest.raises(ValueError, match=r"trace\.csv has no client 3: it has clients 0\.\.1"):
        fit(tmp_path, network=SimulatedNetwork(trace=str(trace)))


class Recording(Callback):
    """Keeps what became of each client."""

    def __init__(self):
        self.examples = {}

    def on_client_end(self, trainer, client, record):
        self.examples[client.id] = record.num_examples


@pytest.mark.parametrize(
    "options",
    [
        {"local_epochs": 2},
        {"local_steps": 3},
        {"local_steps": 7},
        {"local_steps": 1},
        {"local_epochs": 2, "availability": Availability(stragglers=1, part=0.7)},
    ],
)
def test_the_planned_examples_are_those_that_are_trained_on(tmp_path, options):
    watch = Recording()
    run = fit(
        tmp_path,
        clients={32: 3},
        network=network(),
        max_rounds=1,
        callbacks=[watch],
        data=fake(66),
        **options,
    )
    planned = {
        client.id: run.session.timing.planned(client, run.session.data, 0) for client in run.clients
    }
    if (
        "local_epochs" not in options or "availability" in options
    ):  # the last, smaller batch may be among the steps
        assert all(0 <= planned[i] - watch.examples[i] < 8 for i in planned)
    else:
        assert planned == watch.examples


def test_a_model_whose_work_cannot_be_counted(tmp_path):
    class Bare(Client):
        def validation_step(self, batch, batch_idx):
            return None

    with pytest.raises(
        ValueError, match=r"counts the FLOPs of Bare\.validation_step, which computes nothing"
    ):
        fit(tmp_path, module=Bare, network=network(), monitor="train/loss", mode="min")
    free = SimulatedNetwork("x", {"x": Profile(uplink_bps=1e6, downlink_bps=1e6)})
    assert (
        fit(tmp_path, module=Bare, network=free, monitor="train/loss", mode="min").server.round == 3
    )


def test_work_of_no_bytes_and_no_flops_takes_no_time():
    assert (
        network().client_time(0, Workload(client=0, download_bytes=0, upload_bytes=0)).seconds
        == 0.0
    )


class Tuned(Module):
    """A module of two layers, of which some are frozen."""

    def __init__(self, *frozen: str) -> None:
        super().__init__()
        for name in frozen:
            self.get_submodule(name).requires_grad_(False)


# of 84 and 42 FLOPs: below the first layer that trains no gradient, above it that of inputs
@pytest.mark.parametrize(
    ("frozen", "keep", "quantized"),
    [
        ((), (3 * 84 + 3 * 42) / 8, None),
        (("net.0",), 84 + 3 * 42 / 8, (84 + 3 * 42) / 8),
        (("net.2",), 3 * 84 / 8 + 2 * 42, (3 * 84 + 2 * 42) / 8),
    ],
)
def test_what_is_frozen_takes_less_and_computes_at_its_own_bits(tmp_path, frozen, keep, quantized):
    device = Profile(uplink_bps=1e15, downlink_bps=1e15, compute_flops=1e3, compute_jitter=0.0)
    steady = replace(device, spread=0.0, latency_seconds=0.0)
    for word, flops in (("keep", keep), ("quantize", quantized)):
        if flops is None:
            continue
        options = {"monitor": "train/loss", "mode": "min", "max_rounds": 1, "local_epochs": 1}
        run = fit(
            tmp_path / word,
            clients=[{"bits": 4, "count": 2, "frozen": word}],
            module=lambda: Tuned(*frozen),
            data=HandMade([points(8)] * 2),
            network=SimulatedNetwork("one", {"one": steady}, low_bit_speedup=True),
            **options,
        )
        (row,) = run.run.history
        assert row["time/simulated_round_s"] == pytest.approx(8 * flops / 1e3, rel=1e-6)
