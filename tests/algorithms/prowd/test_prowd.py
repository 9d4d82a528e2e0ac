"""ProWD in the round loop: what it reduces to, what stands for dropped entries, and what it
refuses.
"""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from bhfl.algorithms import FedAvg, FedPer, GroupedAvg, ProWD
from bhfl.algorithms.prowd import Dequantizer, Mask
from bhfl.algorithms.prowd.aggregation import SelectiveMean
from bhfl.algorithms.prowd.moves import MoveReader
from bhfl.algorithms.prowd.prowd import doublings
from bhfl.comm import encode, float_tensors
from bhfl.data import FakeImages
from bhfl.engine.aggregate import WeightedMean
from bhfl.engine.checkpoint import CheckpointError
from bhfl.engine.types import Client as FleetClient
from bhfl.engine.types import Update
from bhfl.quant import BitSpec, QuantizedTensor, quantize
from tests.federation import Client, Net, code_bytes, fake, fit, same

MIXED = {"ternary": 2, 32: 2}
QUICK = Dequantizer(warmup_rounds=1, period=2, first_steps=6, steps=3, buffer_size=8)


class Forward(Client):
    """A client with a forward pass, through which ProWD distils."""

    def forward(self, x):
        return self.net(x)


class Named(Client):
    """A client whose forward pass returns a mapping."""

    def forward(self, x):
        return {"logits": self.net(x)}


class Mapped(FakeImages):
    """Data whose held-out batches are mappings."""

    def holdout_batches(self, limit=None):
        return [{"x": x, "y": y} for x, y in super().holdout_batches(limit)]


def prowd(tmp_path, clients=None, algorithm=None, **options):
    return fit(
        tmp_path,
        algorithm or ProWD(dequantizer=QUICK),
        clients or MIXED,
        Forward,
        fake(88, holdout=8),
        **options,
    )


# ---- what it reduces to --------------------------------------------------------------------------


UNTRAINED = Dequantizer(warmup_rounds=99, distill_weight=0.0)


@pytest.mark.parametrize(
    ("algorithm", "clients"),
    [
        (ProWD(mask=None, dequantizer=None, delta_ref="broadcast"), MIXED),
        (ProWD(mask=None, dequantizer=UNTRAINED, delta_ref="broadcast"), MIXED),
        (ProWD(dequantizer=UNTRAINED), {32: 3}),
        (ProWD(Mask(fill="high"), UNTRAINED), {32: 3}),
    ],
    ids=[
        "neither half",
        "untrained, no mask",
        "all float32",
        "all float32, high",
    ],
)
def test_is_fedavg_to_the_bit(tmp_path, algorithm, clients):
    runs = [fit(tmp_path, a, clients) for a in (algorithm, FedAvg())]
    assert same(runs[0].server.params, runs[1].server.params)


@pytest.mark.slow
def test_resumed_is_never_stopped(tmp_path):
    whole = prowd(tmp_path / "a", max_rounds=5)
    prowd(tmp_path / "b", max_rounds=2)
    resumed = prowd(tmp_path / "b", max_rounds=5, ckpt_path="last")
    assert same(whole.server.params, resumed.server.params)
    states = [run.server.extra["dequantizer"] for run in (whole, resumed)]
    assert same(states[0]["weights"], states[1]["weights"])


def test_other_options_are_no_resume(tmp_path):
    fit(tmp_path, ProWD(dequantizer=None), MIXED, max_rounds=1)
    with pytest.raises(CheckpointError, match=r"algorithm\.mask\.tau: 0\.05 -> 0\.3"):
        fit(tmp_path, ProWD(Mask(tau=0.3), None), MIXED, ckpt_path="last")


def test_the_seed_of_the_run_is_that_of_the_dequantizer(tmp_path):
    first, second = (
        prowd(tmp_path, max_rounds=1, seed=seed).server.extra["dequantizer"]["weights"]
        for seed in (1, 2)
    )
    assert not same(first, second)


def test_what_is_logged(tmp_path):
    rows = prowd(tmp_path).run.history
    trained = [row for row in rows if "dequantizer/recon" in row]
    assert [row["round"] for row in trained] == [1, 3]
    assert {"dequantizer/recon_identity", "dequantizer/distill", "dequantizer/active"} <= trained[
        0
    ].keys()
    assert all(0 < row["prowd/mask_keep"] <= 0.5 for row in rows)
    assert all(
        f"prowd/cosine_{name}" in rows[0]
        for name in ("net.0.weight", "net.3.weight", "net.5.weight")
    )


def test_bytes_are_the_formula_and_the_published_ones_stand_beside(tmp_path):
    run = fit(tmp_path, ProWD(dequantizer=None), {"ternary": 2, 8: 1, 32: 2}, max_rounds=1)
    weights = [tensor.numel() for tensor in run.server.params.values() if tensor.ndim >= 2]
    rest = sum(tensor.numel() for tensor in run.server.params.values() if tensor.ndim < 2)
    up = sum(n * sum(code_bytes(d, bits) + 4 for d in weights) for n, bits in ((2, 2), (1, 8)))
    up += 2 * 4 * sum(weights) + 5 * 4 * rest
    down = 5 * 4 * (sum(weights) + rest)
    ledger = run.run.ledger
    content = (
        ledger.total("uplink_bytes") + ledger.total("downlink_bytes") - ledger.total("header_bytes")
    )
    assert content == up + down
    published = run.run.history[0]["comm/downlink_published_MB"]
    assert published == pytest.approx((down + 5 * 4 * sum(weights)) / 1e6)


def test_dual_gives_low_bit_clients_the_plain_mean(tmp_path):
    options = {
        "mask": Mask(coarse=None),
        "dequantizer": None,
        "global_models": "dual",
        "delta_ref": "broadcast",
    }
    run = fit(tmp_path, ProWD(**options), MIXED, max_rounds=1)
    plain = fit(tmp_path, FedAvg(), MIXED, max_rounds=1)
    assert same(run.server.extra["low"], plain.server.params)
    assert not same(run.server.params, plain.server.params)
    assert same(
        fit(tmp_path, ProWD(**options), {32: 3}).server.params,
        fit(tmp_path, GroupedAvg(), {32: 3}).server.params,
    )


@pytest.mark.parametrize("per", ["client", "group"])
@pytest.mark.parametrize("scope", ["layer", "model"])
def test_every_scope_runs_and_keeps_at_most_tau(tmp_path, per, scope):
    run = fit(
        tmp_path,
        ProWD(Mask(tau=0.3, coarse=None, per=per, scope=scope), None),
        {"ternary": 2, 8: 1, 32: 2},
    )
    assert all(0 < row["prowd/mask_keep"] <= 0.3 for row in run.run.history)


def test_a_round_without_high_bit_client_uses_the_last_move_while_it_is_fresh(tmp_path):
    options = {"clients_per_round": 2, "sampling": "uniform", "max_rounds": 8, "seed": 3}
    run = fit(tmp_path, ProWD(Mask(high_max_age=1), None), {"ternary": 5, 32: 1}, **options)
    masked = ["prowd/mask_keep" in row for row in run.run.history]
    assert any(masked)
    assert not all(masked)


# ---- the aggregate -------------------------------------------------------------------------------


class OneProcess:
    world_size, is_global_zero = 1, True


HIGH, LOW = FleetClient(0, BitSpec.parse(32), 1), FleetClient(1, BitSpec.parse("ternary"), 1)
START = {"w": torch.tensor([[1.0, 2.0, -3.0, 4.0]]), "b": torch.tensor([1.0])}


def sent(tensors):
    """An update as it arrives."""
    return Update(tensors, encode(tensors))


def aggregate(low, high, keep_plain=False, **mask):
    reader = MoveReader(START, START, keep_plain, "broadcast", float_tensors)
    options = Mask(**{"tau": 1.0, "coarse": None, **mask})
    total = SelectiveMean(reader, HIGH.group, options, past_move=None, pool_size=1)
    for params, client in ((low, LOW), (high, HIGH)):
        if params is not None:
            total.add(sent({"w": START["w"] + torch.tensor([params]), "b": START["b"] + 2}), client)
    return total.reduce(OneProcess())


UP = [1.0, 1.0, 1.0, 1.0]
MIXED_SIGNS = [1.0, 1.0, -1.0, 1.0]


@pytest.mark.parametrize(
    ("fill", "third"),
    [("renorm", -2.0), ("delta", -2.5), ("high", -2.0), ("literal", -1.0)],
)
def test_what_stands_for_a_dropped_entry(fill, third):
    """The third entry disagrees: only the high-bit client's -2 is left, or half of it, or no change
    beside it.
    """
    result = aggregate(MIXED_SIGNS, UP, fill=fill).params
    assert result["w"].tolist() == [[2.0, 3.0, third, 5.0]]
    assert result["b"].tolist() == [3.0]


def test_no_agreement_leaves_the_high_group():
    result = aggregate([-1.0] * 4, UP)
    mean = WeightedMean({"w": START["w"]})
    mean.add({"w": START["w"] + 1}, HIGH)
    assert torch.equal(result.params["w"], mean.reduce(OneProcess())["w"])
    assert result.metrics["prowd/mask_keep"] == 0


def test_full_agreement_is_the_plain_mean():
    for fill in ("renorm", "high", "delta", "literal"):
        result = aggregate(UP, UP, keep_plain=True, fill=fill)
        assert torch.allclose(result.params["w"], result.plain["w"], atol=1e-6)
        assert result.metrics["prowd/cosine"] == pytest.approx(1.0)


@pytest.mark.parametrize("fill", ["renorm", "high"])
def test_moves_that_are_kept_whole_are_averaged_to_the_bit(fill):
    generator = torch.Generator().manual_seed(0)
    start = {"w": torch.randn(5, 7, generator=generator), "b": torch.randn(5, generator=generator)}
    updates = []
    for client in (LOW, HIGH):
        trained = {n: x + torch.randn(x.shape, generator=generator) for n, x in start.items()}
        if client is LOW:
            trained["w"] = quantize(trained["w"], 8)
        updates.append((trained, client))
    reader = MoveReader(start, start, False, "broadcast", float_tensors)
    mask = Mask(coarse=1e-9, fill=fill)
    total = SelectiveMean(reader, HIGH.group, mask, past_move=None, pool_size=0)
    plain = WeightedMean(start)
    for update, client in updates:
        total.add(sent(update), client)
        plain.add(float_tensors(update), client)
    result = total.reduce(OneProcess())
    assert result.metrics["prowd/mask_keep"] == 1
    assert same(result.params, plain.reduce(OneProcess()))


def test_without_a_high_bit_client_nothing_is_masked():
    result = aggregate(MIXED_SIGNS, None)
    assert result.params["w"].tolist() == [[2.0, 3.0, -4.0, 5.0]]
    assert result.move is None


# ---- coarse and fine moves -----------------------------------------------------------------------


def of_difference(codes, coarse, high=UP):
    """One client sends ``codes / 2`` as its difference ``w_t - w_i``, another moves by `high`."""
    reader = MoveReader(START, START, True, "sent", float_tensors)
    options = Mask(coarse=coarse, tau=1.0)
    total = SelectiveMean(reader, HIGH.group, options, past_move=None, pool_size=1)
    codes = torch.tensor([codes], dtype=torch.int8)
    total.add(sent({"w": QuantizedTensor(codes, torch.tensor(0.5), 2), "b": START["b"] + 2}), LOW)
    if high is not None:
        total.add({"w": START["w"] + torch.tensor([high]), "b": START["b"] + 2}, HIGH)
    return total.reduce(OneProcess())


def moved(params):
    return (params["w"] - START["w"])[0].tolist()


def test_a_coarse_move_is_masked_and_counts_in_part():
    """A mean square of 1/2 against coarse = 1: a count of 1/3, in 1024ths. The first entry's signs
    disagree.
    """
    result, count = of_difference([1, 0, 0, -1], 1.0), 341 / 1024
    assert moved(result.params) == pytest.approx(
        [1, 1, 1, (1 + count * 0.5) / (1 + count)], abs=1e-6
    )
    assert result.metrics["prowd/mask_keep"] == 0.25
    assert result.metrics["prowd/count"] == count


def test_a_fine_move_is_kept_whole():
    result, count = of_difference([1, 0, 0, -1], 0.25), round(1024 * 0.5 / 0.75) / 1024
    expected = [(1 + count * move) / (1 + count) for move in (-0.5, 0, 0, 0.5)]
    assert moved(result.params) == pytest.approx(expected, abs=1e-6)
    assert result.metrics["prowd/mask_keep"] == 1


@pytest.mark.parametrize("coarse", [None, 0.25])
def test_sent_differences_count_wholly_in_the_low_bit_model(coarse):
    assert moved(of_difference([1, 0, 0, -1], coarse).plain) == pytest.approx(
        [0.25, 0.5, 0.5, 0.75]
    )


def test_the_low_bit_model_takes_coarse_differences_alone():
    """A mean square of 1/2 against coarse = 1; what travels as float is averaged over all."""
    result = of_difference([1, 0, 0, -1], 1.0)
    assert moved(result.plain) == pytest.approx([-0.5, 0, 0, 0.5])
    assert result.plain["b"].tolist() == [3.0]


def test_a_group_whose_clients_send_codes_or_values_is_read_client_by_client():
    reader = MoveReader(START, START, True, "dequant_start", float_tensors)
    total = SelectiveMean(reader, HIGH.group, Mask(), past_move=None, pool_size=0)
    values = {name: tensor + 0.5 for name, tensor in START.items()}
    for update in (values, {**values, "w": quantize(values["w"], 2)}):
        total.add(sent(update), LOW)
    assert total.reduce(OneProcess()).num_clients == 2


def test_payloads_are_kept_as_they_came():
    """What was sent is neither encoded again nor held as tensors."""
    reader = MoveReader(START, START, True, "broadcast", float_tensors)
    total = SelectiveMean(reader, HIGH.group, None, past_move=None, pool_size=0)
    payload = encode({**START, "norm.running_mean": torch.ones(3)})
    total.add(Update(START, payload), LOW)
    total.file.seek(0)
    assert total.file.read() == payload
    assert same(total.reduce(OneProcess()).params, START)


def test_what_counts_nothing_changes_nothing():
    result = of_difference([0, 0, 0, 0], 0.3, high=None)
    assert moved(result.params) == [0, 0, 0, 0]
    assert result.params["b"].tolist() == [3.0]


def test_twelve_bits_need_no_mask_and_ternary_ones_do(tmp_path):
    kept = [
        fit(tmp_path, ProWD(dequantizer=None), {bits: 2, 32: 2}).run.history[-1]["prowd/mask_keep"]
        for bits in (12, "ternary")
    ]
    assert kept[0] == 1
    assert kept[1] < 0.5


@pytest.mark.parametrize("delta_ref", ["broadcast", "dequant_start"])
def test_rounding_the_broadcast_is_no_move_that_counts(tmp_path, delta_ref):
    algorithm = ProWD(dequantizer=None, delta_ref=delta_ref)
    still = fit(
        tmp_path,
        algorithm,
        {"ternary": 2, 32: 1},
        lambda: Client(lr=0.0, momentum=0.0),
        max_rounds=1,
    )
    assert still.run.history[-1]["prowd/count"] == 0


# ---- sending differences -------------------------------------------------------------------------

DELTA = {"dequantizer": None, "payload": "delta"}


def test_a_difference_takes_the_clients_bits_and_a_scale_a_channel(tmp_path):
    run = fit(tmp_path, ProWD(**DELTA), {"ternary": 2, 8: 1, 32: 2}, max_rounds=1)
    weights = [tensor for tensor in run.server.params.values() if tensor.ndim >= 2]
    rest = sum(tensor.numel() for tensor in run.server.params.values() if tensor.ndim < 2)
    up = sum(
        n * sum(code_bytes(w.numel(), bits) + 4 * len(w) for w in weights)
        for n, bits in ((2, 2), (1, 8))
    )
    up += 2 * 4 * sum(w.numel() for w in weights) + 5 * 4 * rest
    down = 5 * 4 * (sum(w.numel() for w in weights) + rest)
    ledger = run.run.ledger
    assert (
        ledger.total("uplink_bytes") + ledger.total("downlink_bytes") - ledger.total("header_bytes")
        == up + down
    )


def test_who_does_not_train_sends_no_difference(tmp_path):
    clients = {"ternary": 2, 4: 1, 32: 1}
    still = fit(
        tmp_path, ProWD(**DELTA), clients, lambda: Client(lr=0.0, momentum=0.0), max_rounds=1
    )
    torch.manual_seed(0)
    start = Client().state_dict()
    for params in (still.server.params, still.server.extra["low"]):
        assert same(params, {name: start[name] for name in params})


def test_fine_differences_come_close_to_fedavg_of_unrounded_weights(tmp_path):
    """All count nearly wholly at 16 bits, so that both models are the mean of what the clients
    reached.
    """
    run = fit(tmp_path, ProWD(**DELTA), {16: 2, 32: 2}, max_rounds=1)
    plain = fit(tmp_path, FedAvg(), {16: 2, 32: 2}, max_rounds=1)
    for params in (run.server.params, run.server.extra["low"]):
        for name, value in plain.server.params.items():
            assert torch.allclose(params[name], value, atol=1e-3)


# ---- what it refuses -----------------------------------------------------------------------------


def test_the_buffer_is_spread_over_what_is_held_out(tmp_path):
    """Samples kept for the server may be sorted by class."""
    algorithm = ProWD(dequantizer=QUICK)
    run = fit(tmp_path, algorithm, MIXED, Forward, fake(104, holdout=24), max_rounds=1)
    held_out = torch.cat([inputs for inputs, _ in run.session.data.holdout_batches()])
    _, inputs = algorithm._probe(QUICK, SimpleNamespace(data=run.session.data, module=Forward()))
    assert torch.equal(inputs, held_out[::3])


def test_a_diverging_dequantizer_is_discarded(tmp_path):
    with pytest.warns(UserWarning, match="worse than the identity"):
        run = prowd(tmp_path, algorithm=ProWD(dequantizer=replace(QUICK, lr=1e6)), max_rounds=1)
    assert run.server.extra["dequantizer"]["active"] is False
    plain = fit(
        tmp_path, ProWD(dequantizer=None), MIXED, Forward, fake(88, holdout=8), max_rounds=1
    )
    assert same(run.server.params, plain.server.params)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Mask(tau=2.0), r"ProWD.mask.tau must be in \(0, 1\]"),
        (lambda: Mask(tau=0), r"ProWD.mask.tau must be in \(0, 1\]"),
        (lambda: Mask(tau=True), r"ProWD.mask.tau must be in \(0, 1\]"),
        (lambda: Mask(tau=float("nan")), r"ProWD.mask.tau must be in \(0, 1\]"),
        (
            lambda: Mask(fill="zero"),
            "ProWD.mask.fill must be one of renorm, delta, high, literal, got 'zero'",
        ),
        (lambda: Mask(scope="row"), "ProWD.mask.scope must be one of"),
        (lambda: Mask(per="layer"), "ProWD.mask.per must be one of"),
        (lambda: ProWD(global_models="three"), "ProWD.global_models must be one of"),
        (lambda: ProWD(delta_ref="x"), "ProWD.delta_ref must be one of"),
        (lambda: ProWD(payload="x"), "ProWD.payload must be one of weights, delta, got 'x'"),
        (
            lambda: ProWD(payload="delta"),
            "ProWD.dequantizer learns from weights and must be null with ProWD.payload",
        ),
        (lambda: Mask(coarse=0.0), "ProWD.mask.coarse must be positive and finite, got 0.0"),
        (lambda: Mask(coarse=math.inf), "ProWD.mask.coarse must be positive and finite, got inf"),
        (lambda: Mask(high_max_age=-1), "ProWD.mask.high_max_age must be an integer from 0"),
        (lambda: Dequantizer(period=0), "dequantizer.period must be an integer from 1 .* got 0"),
        (lambda: Dequantizer(lr=-1.0), "ProWD.dequantizer.lr must be positive and finite, got -1"),
        (lambda: Dequantizer(arch="mlp"), "ProWD.dequantizer.arch must be one of conv1d, "),
        (
            lambda: Dequantizer(ladder=[8, 2]),
            "ProWD.dequantizer.ladder must be at least two ascending widths",
        ),
        (lambda: ProWD(mask=False), r"ProWD.mask must be a Mask or None \(null\), got False"),
        (lambda: ProWD(mask={"tau": 1}), "ProWD.mask must be a Mask or None"),
        (
            lambda: ProWD(dequantizer=False),
            r"ProWD.dequantizer must be a Dequantizer or None \(null\), got False",
        ),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("algorithm", "clients", "module", "data", "message"),
    [
        (
            ProWD(),
            {8: 3},
            Forward,
            fake(holdout=8),
            "ProWD needs a high-bit group beside the low-bit ones, got only int8",
        ),
        (
            ProWD(dequantizer=replace(QUICK, ladder=[4, 32])),
            {8: 1, 32: 1},
            Forward,
            fake(holdout=8),
            "ladder must hold every width",
        ),
        (
            ProWD(),
            MIXED,
            Forward,
            fake(),
            "data.holdout must be at least ProWD.dequantizer.buffer_size=128, got 0",
        ),
        (
            ProWD(dequantizer=QUICK),
            MIXED,
            Client,
            fake(holdout=8),
            r"ProWD distils through the model's forward\(inputs\)",
        ),
        (
            ProWD(dequantizer=QUICK),
            MIXED,
            Named,
            fake(holdout=8),
            r"forward\(inputs\) must return a tensor with a row for each input, got dict; or set",
        ),
        (
            ProWD(dequantizer=QUICK),
            MIXED,
            Forward,
            Mapped(num_train=48, num_test=8, shape=(1, 6, 6), num_classes=5, holdout=8),
            r"ProWD distils on batches \(inputs, targets\) whose inputs are one tensor, got a dict",
        ),
        (
            ProWD(dequantizer=None, global_models="single", client=FedPer(["net.5"])),
            MIXED,
            Client,
            fake(),
            r"ProWD\.client must send every parameter, got FedPer, which leaves net\.5\.weight",
        ),
    ],
)
def test_what_it_cannot_run_with(tmp_path, algorithm, clients, module, data, message):
    with pytest.raises(ValueError, match=message):
        fit(tmp_path, algorithm, clients, module, data)
    assert not list(tmp_path.iterdir())


def test_batch_norm_networks_are_distilled_with_the_high_groups_statistics(tmp_path):
    run = fit(
        tmp_path,
        ProWD(dequantizer=QUICK),
        MIXED,
        lambda: Forward(Net(batch_norm=True)),
        fake(88, holdout=8),
    )
    assert run.server.round == 3


@pytest.mark.parametrize("bits", range(2, 17))
def test_any_width_beside_float32(tmp_path, bits):
    algorithm = ProWD(dequantizer=Dequantizer(warmup_rounds=1, first_steps=1, buffer_size=8))
    run = fit(tmp_path, algorithm, {bits: 1, 32: 1}, Forward, fake(20, holdout=8), max_rounds=1)
    assert run.server.extra["dequantizer"] is not None


def test_ladders():
    assert doublings([2, 32]) == [2, 4, 8, 16, 32]
    assert doublings([8, 32]) == [8, 16, 32]
    assert doublings([3, 32]) == [3, 6, 12, 32]
    assert doublings([15, 32]) == [15, 32]
    assert doublings([6, 8, 12, 16]) == [6, 8, 12, 16]


def test_rounding_of_the_broadcast_is_no_move(tmp_path):
    """Clients that do not train leave the model as it was, to the bit, whatever their bits."""
    algorithm = ProWD(mask=None, dequantizer=None)
    still = fit(
        tmp_path,
        algorithm,
        {"ternary": 2, 4: 1, 32: 1},
        lambda: Client(lr=0.0, momentum=0.0),
        max_rounds=1,
    )
    torch.manual_seed(0)
    start = Client().state_dict()
    assert same(still.server.params, {name: start[name] for name in still.server.params})


@pytest.mark.parametrize("per", ["client", "group"])
def test_two_models_exchange_moves_and_nothing_else(tmp_path, monkeypatch, per):
    """Each global model goes on from itself: by all clients' moves, the float32 one by what passes
    the masks.
    """
    seen = []
    aggregator = ProWD.aggregator

    def spy(self, server, clients):
        found = aggregator(self, server, clients)
        reduce, add = found.reduce, found.add
        updates = []
        found.add = lambda update, client: (updates.append((client, update)), add(update, client))[
            1
        ]
        found.reduce = lambda fabric: (seen.append((server, updates)), reduce(fabric))[1]
        return found

    monkeypatch.setattr(ProWD, "aggregator", spy)
    run = fit(
        tmp_path,
        ProWD(Mask(coarse=None, per=per), None),
        {"ternary": 2, 32: 2},
        max_rounds=3,
    )
    server, updates = seen[-1]
    low, high = server.extra["low"], server.params
    total = sum(client.weight for client, _ in updates)
    for name, result in run.server.extra["low"].items():
        moves = []
        for client, update in updates:
            value = update[name]
            if isinstance(value, QuantizedTensor):
                origin = quantize(low[name], 2, range_rule=client.spec.range_rule)
                moves.append(client.weight * (value.dequantize().double() - origin.dequantize()))
            else:
                moves.append(
                    client.weight * (value.double() - (high if client.spec.is_float else low)[name])
                )
        assert torch.allclose(result.double(), low[name] + sum(moves) / total, atol=1e-6)
    side = [name for name, tensor in high.items() if tensor.ndim < 2]
    for name in side:  # no mask: the mean of all moves
        moved = [
            c.weight * (u[name].double() - (high if c.spec.is_float else low)[name])
            for c, u in updates
        ]
        assert torch.allclose(
            run.server.params[name].double(), high[name] + sum(moved) / total, atol=1e-6
        )
